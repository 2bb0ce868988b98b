//! The one table from what can go wrong to what a client is told. Nothing inner passes here: no addresses, no details, no secrets.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::route::RouteError;
use crate::clock::Timestamp;
use crate::mirror::{self, What};
use crate::oci::{ErrorCode, InvalidName, error_body};

/// When upstream limits us without saying until when.
const RATE_LIMIT_WAIT: Duration = Duration::from_secs(60);
/// Docker Hub's window is 6 h, but room in it returns all the time; clients should not give up for the day.
const RATE_LIMIT_WAIT_MAX: Duration = Duration::from_secs(3600);
const OVERLOAD_WAIT: Duration = Duration::from_secs(5);

/// Why a request is answered with an error. A variant is an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The prefix before `/v2` and `ns` name different upstreams.
    #[error("the path's prefix and ns name different upstreams")]
    Contradiction,
    #[error(transparent)]
    Mirror(#[from] mirror::Error),
    #[error("range not satisfiable: the blob has {size} bytes")]
    RangeNotSatisfiable { size: u64 },
    /// The time to headers is over.
    #[error("no answer within the deadline")]
    Deadline,
    /// The request's own task panicked: a bug of larder's.
    #[error("larder failed: {detail}")]
    Internal { detail: String },
}

/// An error as a client gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub code: ErrorCode,
    /// The line that docker prints.
    pub message: String,
    /// Beside the content's type and length.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Error {
    /// The answer to the request of this id.
    pub fn answer(&self, request_id: &str, now: Timestamp) -> Answer {
        match self {
            Error::Route(error) => route_answer(*error),
            Error::Contradiction => {
                answer(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, "the path's prefix and ns name different upstreams")
            }
            Error::Mirror(error) => mirror_answer(error, now),
            Error::RangeNotSatisfiable { size } => {
                let text = format!("range not satisfiable: the blob has {size} bytes");
                answer(StatusCode::RANGE_NOT_SATISFIABLE, ErrorCode::RangeInvalid, text)
                    .with(CONTENT_RANGE, format!("bytes */{size}"))
                    .with(ACCEPT_RANGES, "bytes")
            }
            Error::Deadline => answer(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable, "no answer from upstream in time"),
            Error::Internal { .. } => internal(),
        }
        .signed(request_id)
    }
}

fn route_answer(error: RouteError) -> Answer {
    let text = error.to_string();
    match error {
        RouteError::NotFound => answer(StatusCode::NOT_FOUND, ErrorCode::Unsupported, text),
        RouteError::MethodNotAllowed => answer(StatusCode::METHOD_NOT_ALLOWED, ErrorCode::Unsupported, text).with(ALLOW, "GET, HEAD"),
        RouteError::Page | RouteError::Query => answer(StatusCode::BAD_REQUEST, ErrorCode::Unsupported, text),
        RouteError::Digest(_) => answer(StatusCode::BAD_REQUEST, ErrorCode::DigestInvalid, text),
        // There is none of such a name anywhere, which need not be asked.
        RouteError::Name(InvalidName::Tag) => answer(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, text),
        RouteError::Name(_) | RouteError::Path | RouteError::Namespace => answer(StatusCode::BAD_REQUEST, ErrorCode::NameInvalid, text),
    }
}

fn mirror_answer(error: &mirror::Error, now: Timestamp) -> Answer {
    match error {
        mirror::Error::UnknownUpstream => answer(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, "no upstream is configured for this name"),
        mirror::Error::NotFound { upstream, what, remembered: _ } => match what {
            What::Manifest => answer(StatusCode::NOT_FOUND, ErrorCode::ManifestUnknown, format!("{upstream} has no such manifest")),
            What::Blob => answer(StatusCode::NOT_FOUND, ErrorCode::BlobUnknown, format!("{upstream} has no such blob")),
            What::Repository => answer(StatusCode::NOT_FOUND, ErrorCode::NameUnknown, format!("{upstream} has no such repository")),
            // Not NAME_UNKNOWN: oras would not go on to the tag that stands in for the API.
            What::Referrers => answer(StatusCode::NOT_FOUND, ErrorCode::Unsupported, format!("{upstream} has no referrers of this")),
        },
        mirror::Error::Denied { upstream, .. } => {
            answer(StatusCode::FORBIDDEN, ErrorCode::Denied, format!("{upstream} refused access to this repository"))
        }
        // Our fault, not the image's: a 403 would be taken for the image's.
        mirror::Error::CredentialRefused { upstream, .. } => {
            answer(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, format!("{upstream} refused larder's own credential"))
        }
        mirror::Error::RateLimited { upstream, retry_after } => {
            let wait = client_wait(*retry_after);
            let text = format!("{upstream} rate limit reached, retry after {}", minute(now.plus(wait)));
            answer(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::TooManyRequests, text).retry_after(wait)
        }
        mirror::Error::Unavailable { upstream, .. } => {
            answer(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, format!("{upstream} is unavailable"))
        }
        mirror::Error::TimedOut { upstream, .. } => {
            answer(StatusCode::GATEWAY_TIMEOUT, ErrorCode::Unavailable, format!("{upstream} did not answer in time"))
        }
        mirror::Error::Corrupt { upstream, .. } => {
            answer(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, format!("{upstream} sent content that is not what it should be"))
        }
        mirror::Error::SchemaOne { upstream } => {
            let text = format!("{upstream} has this image only as manifest schema 1, which Docker has retired and larder does not serve");
            answer(StatusCode::BAD_GATEWAY, ErrorCode::Unavailable, text)
        }
        mirror::Error::Busy { upstream, retry_after, .. } => {
            let wait = client_wait(Some(*retry_after));
            let text = format!("{upstream} is busy, retry after {}", minute(now.plus(wait)));
            answer(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, text).retry_after(wait)
        }
        mirror::Error::TooManyQuestions { upstream, retry_after } => {
            let text = format!("too many requests to {upstream} are waiting");
            answer(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, text).retry_after(client_wait(Some(*retry_after)))
        }
        mirror::Error::Internal { .. } => internal(),
        mirror::Error::Overloaded => {
            answer(StatusCode::SERVICE_UNAVAILABLE, ErrorCode::Unavailable, "too many requests are waiting").retry_after(OVERLOAD_WAIT)
        }
    }
}

/// A panic's words are for the log alone.
fn internal() -> Answer {
    answer(StatusCode::INTERNAL_SERVER_ERROR, ErrorCode::Unknown, "an internal error, which the log names by this request's id")
}

/// What a client is told to wait, of what upstream or a queue asks for.
fn client_wait(asked: Option<Duration>) -> Duration {
    asked.unwrap_or(RATE_LIMIT_WAIT).clamp(Duration::from_secs(1), RATE_LIMIT_WAIT_MAX)
}

/// Hours and minutes of the day, rounded up so that whoever heeds it does not come early.
fn minute(time: Timestamp) -> String {
    let minutes = time.0.div_ceil(60_000);
    format!("{:02}:{:02}Z", minutes / 60 % 24, minutes % 60)
}

fn answer(status: StatusCode, code: ErrorCode, text: impl Into<String>) -> Answer {
    Answer { status, code, message: text.into(), headers: Vec::new() }
}

impl Answer {
    /// The response, body included; a HEAD's answer keeps the headers as they are.
    pub fn into_response(self) -> Response<Bytes> {
        let body = error_body(self.code, &self.message);
        let mut response = Response::new(Bytes::new());
        *response.status_mut() = self.status;
        response.headers_mut().extend(self.headers);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response.headers_mut().insert(CONTENT_LENGTH, body.len().into());
        *response.body_mut() = body.into();
        response
    }

    fn with(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Answer {
        // Every value here is made of our own words and numbers, so none is ever lost.
        self.headers.extend(value.try_into().ok().map(|value| (name, value)));
        self
    }

    /// Whole seconds, rounded up.
    fn retry_after(self, wait: Duration) -> Answer {
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        self.with(RETRY_AFTER, seconds)
    }

    /// Adds who speaks and about which request.
    fn signed(mut self, request_id: &str) -> Answer {
        self.message = format!("larder: {} (request {request_id})", self.message);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::InvalidDigest;

    const SECRET: &str = "https://10.0.0.7/blob?X-Amz-Signature=abc";
    /// 14:03:20 UTC.
    const NOW: Timestamp = Timestamp((14 * 3600 + 3 * 60 + 20) * 1000);

    fn check(error: impl Into<Error>, status: u16, code: ErrorCode, retry_after: Option<&str>) -> Answer {
        let answer = error.into().answer("01JABC", NOW);
        assert_eq!((answer.status.as_u16(), answer.code), (status, code));
        assert!(answer.message.starts_with("larder: ") && answer.message.ends_with(" (request 01JABC)"), "{}", answer.message);
        let response = answer.clone().into_response();
        let body = String::from_utf8(response.body().to_vec()).unwrap();
        assert!(body.contains(code.as_str()) && !format!("{response:?}").contains("Signature"), "{body}");
        assert_eq!(response.headers()[CONTENT_LENGTH], body.len().to_string());
        assert_eq!(response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap()), retry_after);
        answer
    }

    #[test]
    fn what_upstream_did_is_told_without_its_details() {
        let upstream: std::sync::Arc<str> = "docker.io".into();
        let name = || upstream.clone();
        let detail = || SECRET.to_owned();
        let not_found = |what| mirror::Error::NotFound { upstream: name(), what, remembered: true };
        let limited = |retry_after| mirror::Error::RateLimited { upstream: name(), retry_after };
        check(mirror::Error::UnknownUpstream, 404, ErrorCode::NameUnknown, None);
        check(not_found(What::Manifest), 404, ErrorCode::ManifestUnknown, None);
        check(not_found(What::Blob), 404, ErrorCode::BlobUnknown, None);
        check(not_found(What::Repository), 404, ErrorCode::NameUnknown, None);
        check(not_found(What::Referrers), 404, ErrorCode::Unsupported, None);
        check(mirror::Error::Denied { upstream: name(), detail: detail() }, 403, ErrorCode::Denied, None);
        check(mirror::Error::CredentialRefused { upstream: name(), detail: detail() }, 502, ErrorCode::Unavailable, None);
        check(mirror::Error::Unavailable { upstream: name(), detail: detail() }, 502, ErrorCode::Unavailable, None);
        check(mirror::Error::TimedOut { upstream: name(), detail: detail() }, 504, ErrorCode::Unavailable, None);
        check(mirror::Error::Corrupt { upstream: name(), detail: detail() }, 502, ErrorCode::Unavailable, None);
        check(mirror::Error::SchemaOne { upstream: name() }, 502, ErrorCode::Unavailable, None);
        check(mirror::Error::Overloaded, 503, ErrorCode::Unavailable, Some("5"));
        check(mirror::Error::Internal { detail: detail() }, 500, ErrorCode::Unknown, None);
        let busy = mirror::Error::Busy { upstream: name(), retry_after: Duration::from_secs(30), detail: detail() };
        let answer = check(busy, 503, ErrorCode::Unavailable, Some("30"));
        assert_eq!(answer.message, "larder: docker.io is busy, retry after 14:04Z (request 01JABC)");
        let crowded = mirror::Error::TooManyQuestions { upstream: name(), retry_after: Duration::from_secs(5) };
        check(crowded, 503, ErrorCode::Unavailable, Some("5"));
        let answer = check(limited(None), 503, ErrorCode::TooManyRequests, Some("60"));
        assert_eq!(answer.message, "larder: docker.io rate limit reached, retry after 14:05Z (request 01JABC)");
        check(limited(Some(Duration::ZERO)), 503, ErrorCode::TooManyRequests, Some("1"));
        check(limited(Some(Duration::from_millis(1500))), 503, ErrorCode::TooManyRequests, Some("2"));
        check(limited(Some(Duration::MAX)), 503, ErrorCode::TooManyRequests, Some("3600"));
    }

    #[test]
    fn what_the_client_did_is_told_in_the_spec_s_codes() {
        check(RouteError::NotFound, 404, ErrorCode::Unsupported, None);
        check(RouteError::Page, 400, ErrorCode::Unsupported, None);
        check(RouteError::Query, 400, ErrorCode::Unsupported, None);
        check(RouteError::Path, 400, ErrorCode::NameInvalid, None);
        check(RouteError::Namespace, 400, ErrorCode::NameInvalid, None);
        check(RouteError::Name(InvalidName::Tag), 404, ErrorCode::ManifestUnknown, None);
        check(RouteError::Name(InvalidName::Repository), 400, ErrorCode::NameInvalid, None);
        check(RouteError::Digest(InvalidDigest), 400, ErrorCode::DigestInvalid, None);
        check(Error::Contradiction, 400, ErrorCode::NameInvalid, None);
        check(Error::Deadline, 504, ErrorCode::Unavailable, None);
        check(Error::Internal { detail: SECRET.into() }, 500, ErrorCode::Unknown, None);
        let method = check(RouteError::MethodNotAllowed, 405, ErrorCode::Unsupported, None);
        assert_eq!(method.headers, [(ALLOW, HeaderValue::from_static("GET, HEAD"))]);
        let range = check(Error::RangeNotSatisfiable { size: 9 }, 416, ErrorCode::RangeInvalid, None);
        assert_eq!(range.headers[0], (CONTENT_RANGE, HeaderValue::from_static("bytes */9")));
    }

    #[test]
    fn a_minute_is_rounded_up_and_wraps_at_midnight() {
        assert_eq!(minute(Timestamp(86_400_000 - 1)), "00:00Z");
        assert_eq!(minute(Timestamp(60_000)), "00:01Z");
    }
}
