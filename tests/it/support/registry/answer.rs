//! An answer in the making: honest first, then changed by faults, then sent.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use larder::oci::{ErrorCode, error_body};

use super::Request;
use super::fault::Canned;
use super::wire::{Cut, Pace, ScriptedBody};

/// What is said about the body's length.
#[derive(Clone, Copy)]
pub enum Length {
    True,
    OffBy(i64),
    Untold,
}

/// Status, headers, body, and how it leaves.
pub struct Answer {
    status: u16,
    headers: HeaderMap,
    pub body: Bytes,
    pub length: Length,
    pub(super) pace: Pace,
}

impl Answer {
    pub fn new(status: u16, body: impl Into<Bytes>) -> Answer {
        Answer { status, headers: HeaderMap::new(), body: body.into(), length: Length::True, pace: Pace::default() }
    }

    /// The distribution-spec's error document.
    pub fn error(status: u16, code: ErrorCode, message: &str) -> Answer {
        Answer::new(status, error_body(code, message)).with("content-type", "application/json")
    }

    /// What Distribution's router says of a path it does not know.
    pub fn no_such_route() -> Answer {
        Answer::new(404, "404 page not found\n").with("content-type", "text/plain; charset=utf-8")
    }

    pub fn with(mut self, name: &str, value: impl AsRef<str>) -> Answer {
        self.set(name, value.as_ref());
        self
    }

    pub fn set(&mut self, name: &str, value: &str) {
        let name: HeaderName = name.parse().expect("a header's name");
        self.headers.insert(name, HeaderValue::from_str(value).expect("a header's value"));
    }

    /// One line more of a header that may have several.
    pub fn also(mut self, name: &str, value: &str) -> Answer {
        let name: HeaderName = name.parse().expect("a header's name");
        self.headers.append(name, HeaderValue::from_str(value).expect("a header's value"));
        self
    }

    /// The same with another body.
    pub fn saying(self, body: impl Into<Bytes>) -> Answer {
        Answer { body: body.into(), ..self }
    }

    pub fn status(&self) -> u16 {
        self.status
    }

    /// Announces a body of this size and never sends it; the connection stays open.
    pub fn announcing(mut self, size: u64) -> Answer {
        self.body = Bytes::new();
        self.length = Length::OffBy(i64::try_from(size).expect("a size"));
        self.pace.hold_at(0, super::Latch::new());
        self
    }

    pub fn unset(&mut self, name: &str) {
        if name == "content-length" {
            self.length = Length::Untold;
        }
        self.headers.remove(name);
    }

    /// A body that does not reach so far (a resumed range, an error) stays as it is.
    pub(super) fn flip_bit_at(&mut self, offset: u64) {
        let mut bytes = self.body.to_vec();
        if let Some(byte) = usize::try_from(offset).ok().and_then(|at| bytes.get_mut(at)) {
            *byte ^= 1;
        }
        self.body = bytes.into();
    }

    /// This whole, or what the request wants of it, as Go's `http.ServeContent` decides (save for several ranges: those get the whole).
    pub fn conditional(self, request: &Request, etag: &str) -> Answer {
        let whole = self.with("etag", etag).with("accept-ranges", "bytes");
        if request.header("if-none-match").is_some_and(|held| held == etag || held == "*") {
            return Answer { status: 304, body: Bytes::new(), length: Length::Untold, ..whole };
        }
        let current = request.header("if-range").is_none_or(|held| held == etag);
        match request.header("range").filter(|text| current && !text.contains(',')) {
            None => whole,
            Some(text) => whole.range(text),
        }
    }

    fn range(self, text: &str) -> Answer {
        let size = self.body.len();
        let Some((start, end)) = parse_range(text, size) else {
            return Answer::new(416, "invalid range: failed to overlap\n")
                .with("content-type", "text/plain; charset=utf-8")
                .with("content-range", format!("bytes */{size}"));
        };
        let body = self.body.slice(start..end);
        let range = format!("bytes {start}-{}/{size}", end - 1);
        Answer { status: 206, body, ..self }.with("content-range", range)
    }

    pub(super) fn into_response(mut self, method: &Method, cut: Cut, sent: Arc<AtomicU64>) -> http::Response<ScriptedBody> {
        let size = self.body.len() as u64;
        if let Length::OffBy(by) = self.length
            && by > 0
        {
            self.pace.cut_at = Some(self.pace.cut_at.unwrap_or(size).min(size));
        }
        match self.length {
            Length::True => self.set("content-length", &size.to_string()),
            Length::OffBy(by) => self.set("content-length", &size.saturating_add_signed(by).to_string()),
            Length::Untold => {}
        }
        let bodiless = *method == Method::HEAD || self.status == 304;
        let body = if bodiless || (self.body.is_empty() && self.pace.cut_at.is_none()) {
            ScriptedBody::empty(cut, sent)
        } else {
            ScriptedBody::new(self.body, self.pace, cut, sent)
        };
        let mut response = http::Response::new(body);
        *response.status_mut() = self.status.try_into().expect("a status");
        *response.headers_mut() = self.headers;
        response
    }
}

/// Start and end (exclusive) within `size`, or nothing for 416.
fn parse_range(text: &str, size: usize) -> Option<(usize, usize)> {
    let (first, last) = text.strip_prefix("bytes=")?.trim().split_once('-')?;
    let (start, end) = match (first, last) {
        ("", suffix) => (size.saturating_sub(suffix.parse().ok()?), size),
        (first, "") => (first.parse().ok()?, size),
        (first, last) => (first.parse().ok()?, last.parse::<usize>().ok()?.checked_add(1)?.min(size)),
    };
    (start < end).then_some((start, end))
}

impl From<Canned> for Answer {
    fn from(canned: Canned) -> Answer {
        canned.headers.iter().fold(Answer::new(canned.status, canned.body), |answer, (name, value)| answer.with(name, value))
    }
}
