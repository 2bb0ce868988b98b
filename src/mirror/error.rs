//! Why a pull is not answered with content. A variant is an answer; `server/error.rs` alone makes statuses of them.

use std::sync::Arc;
use std::time::Duration;

use crate::upstream::UpstreamError;

/// What was not found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    Manifest,
    Blob,
    /// A list of tags: the repository itself.
    Repository,
    /// What refers to a manifest, or the API that says it.
    Referrers,
}

/// An answer without content. `upstream` is the configured name; details are for the log alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No upstream of this name is configured; nobody was asked.
    #[error("no upstream is configured for this name")]
    UnknownUpstream,
    /// Upstream said so (`remembered`: a moment ago).
    #[error("{upstream} has no such {what:?}")]
    NotFound { upstream: Arc<str>, what: What, remembered: bool },
    #[error("{upstream} refused access: {detail}")]
    Denied { upstream: Arc<str>, detail: String },
    #[error("{upstream} refused larder's credential: {detail}")]
    CredentialRefused { upstream: Arc<str>, detail: String },
    #[error("{upstream} rate limit reached")]
    RateLimited { upstream: Arc<str>, retry_after: Option<Duration> },
    #[error("{upstream} unavailable: {detail}")]
    Unavailable { upstream: Arc<str>, detail: String },
    #[error("{upstream} silent: {detail}")]
    TimedOut { upstream: Arc<str>, detail: String },
    #[error("{upstream} answered wrongly: {detail}")]
    Corrupt { upstream: Arc<str>, detail: String },
    /// It exists, so that it is not "not found"; a client of today could do nothing with it.
    #[error("{upstream} has it in the retired schema version 1 only")]
    SchemaOne { upstream: Arc<str> },
    /// Upstream asks to come back after this.
    #[error("{upstream} asks to come back later: {detail}")]
    Busy { upstream: Arc<str>, retry_after: Duration, detail: String },
    /// Too many questions to upstreams are under way for one more.
    #[error("{upstream} was not asked: too many questions are waiting")]
    TooManyQuestions { upstream: Arc<str>, retry_after: Duration },
    /// Too many downloads wait already, or too many different questions are under way.
    #[error("too many requests are waiting")]
    Overloaded,
    /// A task that worked on it panicked: a bug of larder's.
    #[error("larder failed: {detail}")]
    Internal { detail: String },
}

impl Error {
    /// Whether upstream has said that the client gets no such thing.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self, Error::NotFound { remembered: false, .. } | Error::Denied { .. })
    }

    /// What an upstream's failure means to the client that asked for `what`.
    pub fn from_upstream(upstream: &Arc<str>, what: What, error: &UpstreamError) -> Error {
        let upstream = Arc::clone(upstream);
        match error.clone() {
            UpstreamError::NotFound => Error::NotFound { upstream, what, remembered: false },
            UpstreamError::Denied { detail } => Error::Denied { upstream, detail },
            UpstreamError::CredentialRefused { detail } => Error::CredentialRefused { upstream, detail },
            UpstreamError::RateLimited { retry_after } => Error::RateLimited { upstream, retry_after },
            UpstreamError::Unavailable { detail, .. } => Error::Unavailable { upstream, detail },
            UpstreamError::TimedOut { detail } => Error::TimedOut { upstream, detail },
            UpstreamError::Corrupt { detail } => Error::Corrupt { upstream, detail },
            UpstreamError::Busy { retry_after, detail } => Error::Busy { upstream, retry_after, detail },
            UpstreamError::Overloaded { retry_after } => Error::TooManyQuestions { upstream, retry_after },
            UpstreamError::SchemaOne => Error::SchemaOne { upstream },
            UpstreamError::Internal { detail } => Error::Internal { detail },
        }
    }
}
