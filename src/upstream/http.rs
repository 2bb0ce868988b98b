//! One request on the wire and what its answer means: redirects, bodies, statuses. Knows no credentials but the header it carries.

pub mod body;
pub mod exchange;
pub mod meaning;
pub mod pool;
pub mod redirect;
pub mod url;
