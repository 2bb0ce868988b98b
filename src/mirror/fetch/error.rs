//! Why a download came to nothing.

use std::sync::Arc;

use crate::labels::BypassReason;
use crate::mirror::{Error, What};
use crate::upstream::UpstreamError;

#[derive(Clone, Debug)]
pub enum FillError {
    Upstream(UpstreamError),
    /// No turn within `fills.queue_timeout`, or too many wait for one.
    Overloaded,
    /// The download's task panicked.
    Ended,
    /// Nobody wants the bytes but to have them stored, and they cannot be.
    Unstored(BypassReason),
}

impl FillError {
    pub fn into_error(self, upstream: &Arc<str>) -> Error {
        match self {
            FillError::Upstream(error) => Error::from_upstream(upstream, What::Blob, &error),
            FillError::Overloaded => Error::Overloaded,
            FillError::Ended => Error::Internal { detail: "the task of a download ended without an answer".into() },
            // Who wants the bytes keeps a download from ending so.
            FillError::Unstored(_) => Error::Unavailable { upstream: Arc::clone(upstream), detail: "the blob cannot be stored".into() },
        }
    }
}
