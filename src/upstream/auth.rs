//! How larder signs in: which login, to whom it may be sent, what a 401 asks for, and when a login is tried again.

pub mod challenge;
pub mod credentials;
pub mod lockout;
mod scope;
pub mod sign_in;
pub mod token;
pub mod token_hosts;
pub mod unauthorized;
