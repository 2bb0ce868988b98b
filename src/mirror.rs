//! Answers pulls; the only place that knows both the store and the upstreams.
mod error;
mod outcome;
pub use error::{Error, What};
pub use outcome::{BypassReason, Outcome, StaleReason};
