//! Not asking: the circuit breaker of a host, a pull limit, and the pace that a registry sets.

pub mod breaker;
pub mod pull_limit;
pub mod throttle;
