//! Not asking: circuit breakers, what a 429 limits, what is left of a pull limit, and the pace that a registry sets. Knows the `http` crate's
//! values, and no request, host or credential.

pub mod breaker;
pub mod host_breaker;
pub mod pull_limit;
pub mod questions;
pub mod redirect_targets;
pub mod throttle;
pub mod too_many_requests;
