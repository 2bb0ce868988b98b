//! What can go wrong with an answer, and when.

use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::answer::{Answer, Length};
use super::wire::Cut;
use super::{Matcher, Request};

/// One thing that goes wrong. Offsets count bytes of the body as sent, so of a range from its own start;
/// at an offset beyond the body nothing happens. A HEAD has no body to go wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This answer instead of the honest one; auth, content and redirects are not asked.
    Answer(Canned),
    /// The honest answer, so much later.
    Delay(Duration),
    /// No headers, for ever.
    Stall,
    /// No headers until the latch opens. Auth and content are judged only then.
    Hold(Latch),
    /// The connection closes without an answer.
    Hangup,
    /// Nothing after the first n bytes of the body, for ever.
    StallAt(u64),
    /// Nothing after the first n bytes of the body until the latch opens.
    HoldAt(u64, Latch),
    /// The connection closes once exactly n bytes of the body are written.
    CutAt(u64),
    /// So many bytes of the body in each interval.
    Drip { bytes: usize, every: Duration },
    /// One bit of byte n of the body is wrong.
    FlipBitAt(u64),
    /// Other bytes under the honest headers; Content-Length fits them.
    Body(Bytes),
    /// Content-Length lies by so much. More: the connection closes at the honest end. Less: the body ends there.
    ContentLengthOff(i64),
    /// No Content-Length, the body chunked.
    Chunked,
    /// 200 and the whole, whatever range was asked for.
    IgnoreRange,
    /// One header more, or another value for one that is there (a wrong Content-Range, ratelimit headers).
    Header(&'static str, String),
    /// One header less.
    WithoutHeader(&'static str),
}

impl Fault {
    pub fn status(status: u16) -> Canned {
        Canned { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// As Docker Hub says that the pull limit is reached.
    pub fn too_many_requests(retry_after_seconds: u64) -> Canned {
        Fault::status(429).header("retry-after", retry_after_seconds).header("content-type", "application/json").body(
            r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"You have reached your unauthenticated pull rate limit. https://www.docker.com/increase-rate-limit"}]}"#,
        )
    }

    /// As a captive portal or a single-sign-on proxy answers: 200, and not what was asked for.
    pub fn login_page() -> Canned {
        Fault::status(200).header("content-type", "text/html; charset=utf-8").body("<!DOCTYPE html><title>Log in</title><form></form>")
    }

    pub fn redirect(status: u16, location: &str) -> Canned {
        Fault::status(status).header("location", location)
    }

    /// The honest bytes under a Content-Range that says otherwise.
    pub fn content_range(value: &str) -> Fault {
        Fault::Header("content-range", value.into())
    }

    pub(super) fn canned(&self) -> Option<&Canned> {
        match self {
            Fault::Answer(canned) => Some(canned),
            _ => None,
        }
    }

    pub(super) async fn before_headers(&self, cut: &Cut) {
        match self {
            Fault::Delay(delay) => tokio::time::sleep(*delay).await,
            Fault::Stall => std::future::pending().await,
            Fault::Hold(latch) => latch.opened().await,
            Fault::Hangup => {
                cut.now();
                std::future::pending().await
            }
            _ => {}
        }
    }

    pub(super) fn change(&self, answer: &mut Answer) {
        match self {
            Fault::StallAt(n) => answer.pace.hold_at(*n, Latch::new()),
            Fault::HoldAt(n, latch) => answer.pace.hold_at(*n, latch.clone()),
            Fault::CutAt(n) => answer.pace.cut_at = Some(*n),
            Fault::Drip { bytes, every } => answer.pace.drip = Some((*bytes, *every)),
            Fault::FlipBitAt(n) => answer.flip_bit_at(*n),
            Fault::Body(bytes) => answer.body = bytes.clone(),
            Fault::ContentLengthOff(by) => answer.length = Length::OffBy(*by),
            Fault::Chunked => answer.length = Length::Untold,
            Fault::Header(name, value) => answer.set(name, value),
            Fault::WithoutHeader(name) => answer.unset(name),
            Fault::Answer(_) | Fault::Delay(_) | Fault::Stall | Fault::Hold(_) | Fault::Hangup | Fault::IgnoreRange => {}
        }
    }
}

/// An answer written down beforehand.
#[derive(Clone, Debug)]
pub struct Canned {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Bytes,
}

impl Canned {
    pub fn header(mut self, name: &'static str, value: impl ToString) -> Canned {
        self.headers.push((name, value.to_string()));
        self
    }

    pub fn body(self, body: impl Into<Bytes>) -> Canned {
        Canned { body: body.into(), ..self }
    }
}

impl From<Canned> for Fault {
    fn from(canned: Canned) -> Fault {
        Fault::Answer(canned)
    }
}

/// Something that a test lets happen by opening it, once and for all clones.
#[derive(Clone, Debug, Default)]
pub struct Latch(watch::Sender<bool>);

impl Latch {
    pub fn new() -> Latch {
        Latch::default()
    }

    pub fn open(&self) {
        self.0.send_replace(true);
    }

    /// Returns once it is open.
    pub async fn opened(&self) {
        let mut state = self.0.subscribe();
        // The sender lives in `self`, so that this can't fail.
        let _ = state.wait_for(|open| *open).await;
    }
}

/// A fault and the requests it is for.
pub(super) struct Rule {
    matcher: Matcher,
    turns: RangeInclusive<usize>,
    fault: Fault,
    seen: usize,
}

impl Rule {
    pub(super) fn new(matcher: Matcher, turns: RangeInclusive<usize>, fault: Fault) -> Rule {
        Rule { matcher, turns, fault, seen: 0 }
    }

    pub(super) fn judge(&mut self, request: &Request) -> Option<Fault> {
        if !self.matcher.matches(request) {
            return None;
        }
        self.seen += 1;
        self.turns.contains(&self.seen).then(|| self.fault.clone())
    }
}
