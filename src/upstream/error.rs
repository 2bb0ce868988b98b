//! What an upstream's failure means to whoever asked. A variant is an answer, not a library that failed.

use std::time::Duration;

use crate::labels::ErrorReason;
use crate::single_flight::NoAnswer;

/// When to come back where too many different questions are under way: most are answered within seconds.
const WHEN_FULL: Duration = Duration::from_secs(5);

/// Why an upstream gave no content. `detail` is for the log: one line, no secrets, no presigned query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// Upstream itself said that there is no such thing.
    #[error("not found upstream")]
    NotFound,
    /// Refused for this repository, to an accepted credential or to none, by the registry or by its token server.
    #[error("upstream refused access: {detail}")]
    Denied { detail: String },
    /// Our own credential was not accepted, or its file cannot be read.
    #[error("upstream refused larder's credential: {detail}")]
    CredentialRefused { detail: String },
    /// 429 in any of its shapes.
    #[error("upstream rate limit reached")]
    RateLimited { retry_after: Option<Duration> },
    /// 503 with `Retry-After` (RFC 9110 §10.2.3): it asks to be left alone for so long, or until the next probe.
    #[error("upstream asks to come back later: {detail}")]
    Busy { retry_after: Duration, detail: String },
    /// Nobody was asked: as many questions as `limits` allows are under way, and no place came free in time; or others did not
    /// finish trying a login that upstream has not accepted yet.
    #[error("too many questions to upstream are waiting")]
    Overloaded { retry_after: Duration },
    /// No connection, TLS or DNS failure, a 5xx, a connection that broke.
    #[error("upstream unavailable: {detail}")]
    Unavailable { reason: UnavailableReason, detail: String },
    /// No answer within its deadline.
    #[error("upstream silent: {detail}")]
    TimedOut { detail: String },
    /// An answer that cannot be true: wrong bytes, wrong length, a login page, a Content-Range that was not asked for.
    #[error("upstream answered wrongly: {detail}")]
    Corrupt { detail: String },
    /// The image exists there in Docker's first format alone, which larder does not serve.
    #[error("upstream has it in the retired schema version 1 only")]
    SchemaOne,
    /// The task that asked ended without an answer: it panicked, which is a bug of larder's and says nothing of upstream.
    #[error("larder failed: {detail}")]
    Internal { detail: String },
}

/// What of the way to upstream, or of upstream itself, failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnavailableReason {
    Dns,
    Connect,
    Tls,
    /// An address that larder may not connect to.
    Blocked,
    Status,
    Broken,
}

impl UpstreamError {
    /// The `reason` label.
    pub fn reason(&self) -> ErrorReason {
        match self {
            UpstreamError::NotFound => ErrorReason::NotFound,
            UpstreamError::Denied { .. } => ErrorReason::Denied,
            UpstreamError::CredentialRefused { .. } => ErrorReason::Credential,
            UpstreamError::RateLimited { .. } => ErrorReason::RateLimited,
            // Of the last two: it was not asked within its deadline; no answer came of it.
            UpstreamError::TimedOut { .. } | UpstreamError::Overloaded { .. } | UpstreamError::Internal { .. } => ErrorReason::Timeout,
            UpstreamError::Busy { .. } => ErrorReason::Status,
            UpstreamError::Corrupt { .. } | UpstreamError::SchemaOne => ErrorReason::Corrupt,
            UpstreamError::Unavailable { reason, .. } => match reason {
                UnavailableReason::Dns => ErrorReason::Dns,
                UnavailableReason::Connect => ErrorReason::Connect,
                UnavailableReason::Tls => ErrorReason::Tls,
                UnavailableReason::Blocked => ErrorReason::Blocked,
                UnavailableReason::Status => ErrorReason::Status,
                UnavailableReason::Broken => ErrorReason::Broken,
            },
        }
    }

    /// The same, to whoever is told to come back after `left`; an error that names no time stays as it is.
    pub fn with_retry_after(self, left: Duration) -> UpstreamError {
        match self {
            UpstreamError::RateLimited { .. } => UpstreamError::RateLimited { retry_after: Some(left) },
            UpstreamError::Busy { detail, .. } => UpstreamError::Busy { retry_after: left, detail },
            other => other,
        }
    }

    /// Whether another host, or another credential, may well answer.
    pub fn is_of_one_host(&self) -> bool {
        let is_of_credential =
            matches!(self, UpstreamError::RateLimited { .. } | UpstreamError::CredentialRefused { .. } | UpstreamError::Overloaded { .. });
        is_of_credential || self.is_outage()
    }

    /// Whether no credential would have helped.
    pub fn is_outage(&self) -> bool {
        match self {
            UpstreamError::Unavailable { .. }
            | UpstreamError::TimedOut { .. }
            | UpstreamError::Busy { .. }
            | UpstreamError::Internal { .. } => true,
            UpstreamError::NotFound
            | UpstreamError::Denied { .. }
            | UpstreamError::CredentialRefused { .. }
            | UpstreamError::RateLimited { .. }
            | UpstreamError::Overloaded { .. }
            | UpstreamError::Corrupt { .. }
            | UpstreamError::SchemaOne => false,
        }
    }

    /// Whether the same question, asked again soon, may well be answered.
    pub fn is_transient(&self) -> bool {
        match self {
            UpstreamError::Unavailable { reason, .. } => *reason != UnavailableReason::Blocked,
            UpstreamError::TimedOut { .. } | UpstreamError::Internal { .. } => true,
            UpstreamError::NotFound
            | UpstreamError::Denied { .. }
            | UpstreamError::CredentialRefused { .. }
            | UpstreamError::RateLimited { .. }
            | UpstreamError::Busy { .. }
            | UpstreamError::Overloaded { .. }
            | UpstreamError::Corrupt { .. }
            | UpstreamError::SchemaOne => false,
        }
    }

    /// Whether this says nothing of what was asked for: who holds something older may serve it.
    pub fn says_nothing(&self) -> bool {
        self.is_of_one_host() || matches!(self, UpstreamError::Overloaded { .. })
    }
}

impl From<NoAnswer> for UpstreamError {
    fn from(error: NoAnswer) -> UpstreamError {
        match error {
            NoAnswer::Full => UpstreamError::Overloaded { retry_after: WHEN_FULL },
            NoAnswer::Ended => UpstreamError::Internal { detail: error.to_string() },
        }
    }
}
