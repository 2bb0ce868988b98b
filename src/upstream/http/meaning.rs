//! What an answer's status means, and when to ask again. Pure: statuses, bodies and times are arguments.

use std::time::Duration;

use crate::oci::first_error_code;
use crate::upstream::limits::breaker::Open;
use crate::upstream::limits::too_many_requests::{Asked, Limited, is_limit};
use crate::upstream::{UnavailableReason, UpstreamError};

/// Requests that one question may cost, challenges and redirects aside.
pub const ATTEMPTS_MAX: u32 = 3;
const BACKOFF_FIRST: Duration = Duration::from_millis(250);

/// Why an attempt gave no answer, and whether another may.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// By what the error itself is.
    Plain(UpstreamError),
    /// The place that the registry redirected to refuses: its link may have expired, so a fresh one is asked for, once.
    Location(UpstreamError),
    /// Nobody was asked: a circuit breaker is open, and it makes no sense to ask again sooner than this.
    NotAsked(UpstreamError, Duration),
    /// Asked too often: a breaker is to be opened.
    Limited(Limited),
    /// HEAD is not done here, or a link was signed for GET alone: a GET may tell.
    Head(UpstreamError),
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Failure {
        Failure::Plain(error)
    }
}

impl From<Open> for Failure {
    fn from(open: Open) -> Failure {
        let wait = open.ask_again_in();
        Failure::NotAsked(open.why, wait)
    }
}

impl Failure {
    pub fn into_error(self) -> UpstreamError {
        match self {
            Failure::Plain(error) | Failure::Location(error) | Failure::Head(error) | Failure::NotAsked(error, _) => error,
            Failure::Limited(limited) => UpstreamError::RateLimited { retry_after: limited.retry_after },
        }
    }
}

/// How long to wait, before jitter, after the attempt with this number (from 1).
pub fn backoff(attempt: u32) -> Duration {
    BACKOFF_FIRST * 2u32.saturating_pow(attempt.saturating_sub(1).min(4))
}

/// An answer that is not a success: its status, what its `Retry-After` asks for, the beginning of its body, and where it came from.
pub struct Refused<'a> {
    pub status: u16,
    pub retry_after: Option<Duration>,
    /// How long a host that answers so is not asked, where it is a 503 that names a time.
    pub busy_wait: Option<Duration>,
    pub body: &'a [u8],
    pub from: &'a str,
}

impl Refused<'_> {
    /// What it means to a question about content.
    pub fn meaning(&self) -> UpstreamError {
        let detail = self.detail();
        match self.status {
            404 => UpstreamError::NotFound,
            status if is_limit(status, self.body) => UpstreamError::RateLimited { retry_after: self.retry_after },
            401 | 403 | 407 | 412 | 451 => UpstreamError::Denied { detail },
            408 | 425 | 500..=599 => match self.busy_wait {
                Some(retry_after) => UpstreamError::Busy { retry_after, detail },
                None => UpstreamError::Unavailable { reason: UnavailableReason::Status, detail },
            },
            _ => UpstreamError::Corrupt { detail },
        }
    }

    /// The limit that it is about, if any.
    pub fn limited(&self, asked: Asked) -> Option<Limited> {
        asked.limit(self.status, self.body).map(|of| Limited { of, retry_after: self.retry_after })
    }

    /// What it means when a redirect led to it and the registry itself was willing: nothing about the content, as its link may be stale.
    pub fn meaning_behind_redirect(&self) -> Failure {
        match self.status {
            400 | 401 | 403 | 404 | 410 => {
                Failure::Location(UpstreamError::Unavailable { reason: UnavailableReason::Status, detail: self.detail() })
            }
            _ => Failure::Plain(self.meaning()),
        }
    }

    /// What it means to a HEAD.
    pub fn meaning_to_head(&self, meant: Failure) -> Failure {
        match (self.status, meant) {
            (_, Failure::Location(error)) => Failure::Head(error),
            (405 | 501, meant) => Failure::Head(meant.into_error()),
            (_, meant) => meant,
        }
    }

    /// What a token server means by it.
    pub fn meaning_of_token_server(&self, with_credentials: bool, by_post: bool) -> UpstreamError {
        let detail = self.detail();
        match self.status {
            401 if with_credentials => UpstreamError::CredentialRefused { detail },
            // RFC 6749 §5.2: 400 to a refresh token that is not, or no longer, valid.
            400 if by_post => UpstreamError::CredentialRefused { detail },
            404 | 405 if by_post => UpstreamError::CredentialRefused { detail: format!("{detail}: it takes no identity tokens") },
            // Quay says 400 to a scope it does not like, GHCR 403 to a stale token for one repository.
            400 | 401 | 403 => UpstreamError::Denied { detail },
            404 => UpstreamError::Corrupt { detail },
            _ => self.meaning(),
        }
    }

    fn detail(&self) -> String {
        let code = first_error_code(self.body).map(|code| format!(" ({code})")).unwrap_or_default();
        format!("{} answered {}{code}", self.from, self.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, body: &str) -> Refused<'_> {
        Refused { status, retry_after: Some(Duration::from_secs(7)), busy_wait: None, body: body.as_bytes(), from: "https://r.example" }
    }

    #[test]
    fn statuses_mean_what_registries_mean_by_them() {
        let label = |status: u16, body: &str| refused(status, body).meaning().reason().as_str();
        let table = [
            (404, "not_found"),
            (401, "denied"),
            (403, "denied"),
            (412, "denied"),
            (429, "rate_limited"),
            (408, "status"),
            (500, "status"),
            (502, "status"),
            (503, "status"),
            (504, "status"),
            (400, "corrupt"),
            (410, "corrupt"),
            (416, "corrupt"),
            (304, "corrupt"),
            (204, "corrupt"),
        ];
        for (status, meaning) in table {
            assert_eq!(label(status, ""), meaning, "{status}");
        }
        assert_eq!(label(500, "unknown: TooManyRequests: you"), "rate_limited");
        assert_eq!(label(502, "toomanyrequests"), "status");
        let busy = Refused { busy_wait: Some(Duration::from_secs(30)), ..refused(503, "") }.meaning();
        assert!(matches!(busy, UpstreamError::Busy { retry_after, .. } if retry_after == Duration::from_secs(30)), "{busy:?}");
    }

    #[test]
    fn behind_a_redirect_nothing_is_said_about_the_content() {
        for status in [400, 401, 403, 404, 410] {
            assert!(
                matches!(refused(status, "").meaning_behind_redirect(), Failure::Location(UpstreamError::Unavailable { .. })),
                "{status}"
            );
        }
        assert!(matches!(refused(503, "").meaning_behind_redirect(), Failure::Plain(UpstreamError::Unavailable { .. })));
        assert!(matches!(refused(429, "").meaning_behind_redirect(), Failure::Plain(UpstreamError::RateLimited { .. })));
    }

    #[test]
    fn a_head_that_is_not_done_is_told_from_a_refusal() {
        let meant = |status| refused(status, "").meaning_to_head(refused(status, "").meaning_behind_redirect());
        assert!(matches!(meant(403), Failure::Head(_)) && matches!(meant(405), Failure::Head(_)) && matches!(meant(501), Failure::Head(_)));
        assert!(matches!(meant(429), Failure::Plain(_)));
        assert!(matches!(
            refused(403, "").meaning_to_head(refused(403, "").meaning().into()),
            Failure::Plain(UpstreamError::Denied { .. })
        ));
    }

    #[test]
    fn a_token_server_s_refusal_is_about_the_credential_only_when_there_was_one() {
        assert_eq!(refused(401, "").meaning_of_token_server(true, false).reason().as_str(), "credential");
        assert_eq!(refused(401, "").meaning_of_token_server(false, false).reason().as_str(), "denied");
        assert_eq!(refused(403, "").meaning_of_token_server(true, false).reason().as_str(), "denied");
        assert_eq!(refused(500, "").meaning_of_token_server(true, false).reason().as_str(), "status");
        assert_eq!(refused(429, "").meaning_of_token_server(true, false).reason().as_str(), "rate_limited");
        assert_eq!(refused(404, "").meaning_of_token_server(false, false).reason().as_str(), "corrupt");
    }

    #[test]
    fn registry_17_a_refused_identity_token_is_told_from_a_server_that_takes_none() {
        let meant = |status| refused(status, "").meaning_of_token_server(true, true);
        assert_eq!(
            (meant(400).reason().as_str(), meant(401).reason().as_str(), meant(403).reason().as_str()),
            ("credential", "credential", "denied")
        );
        for status in [404, 405] {
            assert!(
                matches!(meant(status), UpstreamError::CredentialRefused { detail } if detail.contains("no identity tokens")),
                "{status}"
            );
        }
    }

    #[test]
    fn a_detail_has_the_code_and_no_message() {
        let body = r#"{"errors":[{"code":"DENIED","message":"token=hunter2"}]}"#;
        let UpstreamError::Denied { detail } = refused(403, body).meaning() else { panic!("not denied") };
        assert_eq!(detail, "https://r.example answered 403 (DENIED)");
    }
}
