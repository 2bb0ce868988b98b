//! All of 429: whether an answer is a limit, whose limit, for how long, and what an answer tells of the pull limit. Pure: statuses, headers, bodies
//! and times are arguments; it knows neither hosts nor credentials.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{DATE, HeaderMap, RETRY_AFTER};

use super::breaker::Backoff;
use super::pull_limit::Budget;
use crate::clock::Timestamp;
use crate::labels::UpstreamKind;
use crate::oci::{ErrorCode, first_error_code};

/// A limit that does not say for how long: some are of a second, some of an hour.
pub const LIMITED: Backoff = Backoff { first: Duration::from_secs(5), max: Duration::from_mins(15) };
/// A `Retry-After` beyond this is a mistake or malice; the upstream would be lost for days.
const RETRY_AFTER_MAX: Duration = Duration::from_hours(1);
/// Docker Hub's window is six hours and rolls: some of it is free before. A probe an hour costs nothing, being a HEAD mostly.
const WINDOW_MAX: Duration = Duration::from_hours(1);

/// What was asked, and who answered, as far as a limit depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    pub kind: UpstreamKind,
    /// Its answer has no body that would tell which limit it met.
    pub is_head: bool,
    /// The upstream's own host has answered, and not one that it redirects to: that one's limits are its own (`redirect_targets`).
    pub is_own: bool,
}

/// 429 in any of its shapes, and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limited {
    pub of: LimitOf,
    /// `None`: it does not say for how long.
    pub retry_after: Option<Duration>,
}

/// What has been asked too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOf {
    /// Manifests, with this credential: Docker Hub's pull limit, in the registry's own JSON.
    Pulls,
    /// Lists, with this credential: no pull limit counts them, Amazon ECR for one limits each kind of request by itself.
    Lists,
    /// Anything, by anybody here: what a proxy in front of the registry says, in HTML, plain text or nothing.
    Host,
    /// Tokens for this credential.
    TokenServer,
}

/// What an answer tells of the pull limit of the credential it was asked with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullLimitNews {
    Nothing,
    /// A pull is allowed now.
    Allows,
    /// The next pull would be refused, for so long at most.
    UsedUp(Duration),
}

impl Asked {
    /// A token: no hop of it is anybody else's.
    pub const TOKEN: Asked = Asked { kind: UpstreamKind::Token, is_head: false, is_own: true };

    /// The limit that an answer with this status and body is about; `None` where it is about none.
    pub fn limit(self, status: u16, body: &[u8]) -> Option<LimitOf> {
        // Another host's limit is neither this credential's nor this host's (`redirect_targets`).
        if !self.is_own || !is_limit(status, body) {
            return None;
        }
        Some(match self.kind {
            UpstreamKind::Token => LimitOf::TokenServer,
            // No registry counts blobs, so that a blob is under none but the host's.
            UpstreamKind::Blob => LimitOf::Host,
            UpstreamKind::Manifest if self.is_head || speaks_as_registry(status, body) => LimitOf::Pulls,
            UpstreamKind::Listing if speaks_as_registry(status, body) => LimitOf::Lists,
            UpstreamKind::Manifest | UpstreamKind::Listing => LimitOf::Host,
        })
    }

    /// Only a manifest's answer, from the upstream's own host, tells of the pull limit. Lists, blobs and tokens are not counted, and
    /// their success says nothing. Docker Hub lets a HEAD pass with no pull left, and says so beside it.
    pub fn pull_limit_news(self, status: u16, budget: Option<&Budget>) -> PullLimitNews {
        if self.kind != UpstreamKind::Manifest || !self.is_own || !has_asked(status) {
            return PullLimitNews::Nothing;
        }
        match budget {
            Some(budget) if self.is_head && budget.is_used_up() => PullLimitNews::UsedUp(window(budget).unwrap_or(WINDOW_MAX)),
            // "Not found" to a HEAD that names no limit is no pull, and says nothing of one.
            None if self.is_head && status >= 400 => PullLimitNews::Nothing,
            _ => PullLimitNews::Allows,
        }
    }

    /// Whether the answer shows that no limit of lists is reached.
    pub fn allows_lists(self, status: u16) -> bool {
        self.kind == UpstreamKind::Listing && self.is_own && has_asked(status)
    }

    /// Whether what the answer says of what is left, also by saying nothing, is to be remembered. A 429 that does not say it is about
    /// another limit.
    pub fn tells_what_is_left(self, status: u16, budget: Option<&Budget>) -> bool {
        self.kind == UpstreamKind::Manifest && self.is_own && ((200..300).contains(&status) || status == 429 && budget.is_some())
    }

    /// How long no pull is asked for after a 429: as its `Retry-After` says, else as long as the window that was last named. A HEAD may
    /// have met another limit: the window counts where nothing is left of it.
    pub fn pulls_wait(self, limited: &Limited, budget: Option<&Budget>) -> Option<Duration> {
        limited.retry_after.or_else(|| budget.filter(|budget| !self.is_head || budget.is_used_up()).and_then(window))
    }
}

/// Whether an answer says "too often" at all.
pub fn is_limit(status: u16, body: &[u8]) -> bool {
    // Distribution as a proxy turns its own upstream's 429 into a 500.
    status == 429 || status == 500 && mentions_rate_limit(body)
}

/// Whether the question came as far as to be counted: its credential was accepted, and the registry is well.
fn has_asked(status: u16) -> bool {
    !matches!(status, 401 | 429 | 500..)
}

fn speaks_as_registry(status: u16, body: &[u8]) -> bool {
    status == 500 || first_error_code(body).as_deref() == Some(ErrorCode::TooManyRequests.as_str())
}

fn mentions_rate_limit(body: &[u8]) -> bool {
    const NEEDLE: &[u8] = b"toomanyrequests";
    body.windows(NEEDLE.len()).any(|window| window.eq_ignore_ascii_case(NEEDLE))
}

fn window(budget: &Budget) -> Option<Duration> {
    budget.window.map(|window| window.min(WINDOW_MAX))
}

/// The wait that `Retry-After` asks for (RFC 9110 §10.2.3), an hour at most: seconds or an HTTP date, measured by the clock that wrote it,
/// which the answer's `Date` shows, else by ours. Of several the longest. What is past or unreadable asks for nothing.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = |value: &http::HeaderValue| value.to_str().ok().map(str::to_owned);
    let now = headers
        .get(DATE)
        .and_then(text)
        .and_then(|date| httpdate::parse_http_date(date.trim()).ok())
        .unwrap_or(UNIX_EPOCH + Duration::from_millis(now.0));
    let waits = headers.get_all(RETRY_AFTER).into_iter().filter_map(|line| wait(line.to_str().ok()?.trim(), now));
    waits.max().map(|wait| wait.min(RETRY_AFTER_MAX))
}

fn wait(value: &str, now: SystemTime) -> Option<Duration> {
    match httpdate::parse_http_date(value) {
        Ok(date) => date.duration_since(now).ok().filter(|wait| !wait.is_zero()),
        // Proxies join what was said twice: "120, 60".
        Err(_) => value.split(',').filter_map(seconds).max(),
    }
}

/// Some registries send decimals, which the RFC does not have.
fn seconds(text: &str) -> Option<Duration> {
    let text = text.trim();
    if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64())).ok().filter(|wait| !wait.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    const MANIFEST: Asked = Asked { kind: UpstreamKind::Manifest, is_head: false, is_own: true };
    const HEAD: Asked = Asked { is_head: true, ..MANIFEST };
    const LIST: Asked = Asked { kind: UpstreamKind::Listing, ..MANIFEST };
    const BLOB: Asked = Asked { kind: UpstreamKind::Blob, ..MANIFEST };
    const JSON: &str = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your pull rate limit."}]}"#;

    fn budget(remaining: u64) -> Budget {
        Budget { limit: Some(100), remaining: Some(remaining), window: Some(Duration::from_secs(21_600)), source: None }
    }

    #[test]
    fn registry_36_a_limit_is_of_pulls_in_json_and_of_the_host_in_html_text_or_nothing() {
        let of = |status, body: &str| MANIFEST.limit(status, body.as_bytes());
        assert_eq!(of(429, JSON), Some(LimitOf::Pulls));
        for body in ["Too Many Requests (HAP429).", "<html><h1>429 Too Many Requests</h1></html>", "", "{}"] {
            assert_eq!(of(429, body), Some(LimitOf::Host), "{body}");
        }
        assert_eq!((of(500, "toomanyrequests: you"), of(500, ""), of(503, "toomanyrequests")), (Some(LimitOf::Pulls), None, None));
    }

    #[test]
    fn a_limit_is_of_what_was_asked_for() {
        let of = |asked: Asked, body: &str| asked.limit(429, body.as_bytes());
        assert_eq!((of(HEAD, ""), of(LIST, JSON), of(LIST, "")), (Some(LimitOf::Pulls), Some(LimitOf::Lists), Some(LimitOf::Host)));
        assert_eq!((of(BLOB, JSON), of(BLOB, "")), (Some(LimitOf::Host), Some(LimitOf::Host)));
        assert_eq!((of(Asked::TOKEN, JSON), of(Asked::TOKEN, "")), (Some(LimitOf::TokenServer), Some(LimitOf::TokenServer)));
        for asked in [HEAD, LIST, BLOB] {
            assert_eq!(
                of(Asked { is_own: false, ..asked }, JSON),
                None,
                "another host's limit is neither this credential's nor this host's"
            );
        }
    }

    #[test]
    fn only_a_manifest_s_answer_from_the_registry_itself_tells_of_the_pull_limit() {
        use PullLimitNews::{Allows, Nothing, UsedUp};
        assert_eq!((MANIFEST.pull_limit_news(200, None), HEAD.pull_limit_news(200, None)), (Allows, Allows));
        assert_eq!((MANIFEST.pull_limit_news(404, None), HEAD.pull_limit_news(404, None)), (Allows, Nothing));
        assert_eq!((HEAD.pull_limit_news(200, Some(&budget(1))), HEAD.pull_limit_news(404, Some(&budget(1)))), (Allows, Allows));
        assert_eq!(HEAD.pull_limit_news(200, Some(&budget(0))), UsedUp(WINDOW_MAX), "the window rolls: an hour at most");
        assert_eq!(MANIFEST.pull_limit_news(200, Some(&budget(0))), Allows, "the last pull was allowed");
        for status in [401, 429, 500, 503] {
            assert_eq!(MANIFEST.pull_limit_news(status, None), Nothing, "{status}");
        }
        for asked in [LIST, BLOB, Asked::TOKEN, Asked { is_own: false, ..MANIFEST }, Asked { is_own: false, ..HEAD }] {
            for status in [200, 404, 429] {
                assert_eq!(asked.pull_limit_news(status, Some(&budget(0))), Nothing, "{asked:?} {status}");
                assert!(!asked.tells_what_is_left(status, Some(&budget(0))), "{asked:?} {status}");
                assert_eq!(asked.allows_lists(status), asked == LIST && status != 429, "{asked:?} {status}");
            }
        }
    }

    #[test]
    fn the_window_is_waited_for_where_nothing_else_is_said_and_nothing_is_left() {
        let limited = |retry_after| Limited { of: LimitOf::Pulls, retry_after };
        let minute = Duration::from_mins(1);
        assert_eq!(MANIFEST.pulls_wait(&limited(Some(minute)), Some(&budget(0))), Some(minute));
        assert_eq!(MANIFEST.pulls_wait(&limited(None), Some(&budget(9))), Some(WINDOW_MAX));
        assert_eq!((HEAD.pulls_wait(&limited(None), Some(&budget(9))), HEAD.pulls_wait(&limited(None), None)), (None, None));
    }

    /// In seconds.
    fn asked_for(lines: &[&str], date: Option<&str>) -> Option<f64> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(RETRY_AFTER, HeaderValue::from_str(line).expect("a header"));
        }
        if let Some(date) = date {
            headers.insert(DATE, HeaderValue::from_str(date).expect("a header"));
        }
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").expect("a date");
        retry_after(&headers, now.into()).map(|wait| wait.as_secs_f64())
    }

    #[test]
    fn registry_35_retry_after_is_seconds_or_a_date_to_come() {
        assert_eq!(asked_for(&[" 30 "], None), Some(30.0));
        assert_eq!(asked_for(&["Sun, 06 Nov 1994 08:50:37 GMT"], None), Some(60.0));
        assert_eq!(asked_for(&["Sun, 06 Nov 1994 08:48:37 GMT"], None), None);
        assert_eq!(asked_for(&["99999999"], None), Some(3600.0));
        for nonsense in ["", "0", "0.0", "-1", "soon", "inf", "nan", "1e3", ".", "1.2.3"] {
            assert_eq!(asked_for(&[nonsense], None), None, "{nonsense}");
        }
    }

    #[test]
    fn registry_35_a_date_is_measured_by_the_clock_that_wrote_it() {
        // The registry's clock is two hours ahead of ours, and two hours behind.
        assert_eq!(asked_for(&["Sun, 06 Nov 1994 10:51:37 GMT"], Some("Sun, 06 Nov 1994 10:49:37 GMT")), Some(120.0));
        assert_eq!(asked_for(&["Sun, 06 Nov 1994 06:51:37 GMT"], Some("Sun, 06 Nov 1994 06:49:37 GMT")), Some(120.0));
        assert_eq!(asked_for(&["Sun, 06 Nov 1994 08:50:37 GMT"], Some("some day")), Some(60.0), "no date: ours");
    }

    #[test]
    fn registry_35_decimals_and_lists_are_read_and_the_longest_counts() {
        assert_eq!((asked_for(&["1.5"], None), asked_for(&["0.25"], None)), (Some(1.5), Some(0.25)));
        for lines in [&["120, 60"][..], &["60,120"], &["60", "120"], &["soon, 120"], &["120", "Sun, 06 Nov 1994 08:50:37 GMT"]] {
            assert_eq!(asked_for(lines, None), Some(120.0), "{lines:?}");
        }
    }

    proptest! {
        #[test]
        fn no_retry_after_makes_it_panic(value: String) {
            let _ = wait(&value, SystemTime::UNIX_EPOCH);
        }
    }
}
