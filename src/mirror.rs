//! Answers pulls; the only place that knows both the store and the upstreams.
mod outcome;
pub use outcome::{BypassReason, Outcome, StaleReason};
