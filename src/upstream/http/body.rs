//! A blob as it comes in.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;

use super::exchange::{Answer, broken};
use crate::metrics::UpstreamMetrics;
use crate::oci::KIB;
use crate::upstream::UpstreamError;

/// Without a byte.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Less than 1 KiB/s over a minute of waiting is no download. How long all of it takes is nobody's business.
const PACE_OVER: Duration = Duration::from_secs(60);
const PACE_BYTES_MIN: u64 = 60 * KIB;

/// A blob's bytes from some offset on.
pub struct BlobStream {
    /// Where the body begins: the asked offset (206), or 0 (200 to a Range).
    pub offset: u64,
    /// The whole size of the blob, if upstream said it.
    pub size: Option<u64>,
    received: u64,
    body: Incoming,
    /// Kept across calls, so that a caller who gives up waiting and comes back does not start the wait anew.
    stalled_at: Option<Instant>,
    pace: Pace,
    from: String,
    metrics: Arc<UpstreamMetrics>,
}

/// What came in how much waiting.
#[derive(Debug, Default)]
struct Pace {
    waited: Duration,
    bytes: u64,
    is_slow: bool,
}

impl Pace {
    fn add(&mut self, waited: Duration, bytes: u64) {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited >= PACE_OVER {
            *self = Pace { is_slow: self.bytes < PACE_BYTES_MIN, ..Pace::default() };
        }
    }
}

impl BlobStream {
    /// Takes a 200 or 206 as the answer to a question for everything from `offset` on.
    pub fn new(answer: Answer, offset: u64, metrics: Arc<UpstreamMetrics>) -> Result<BlobStream, UpstreamError> {
        let from = answer.url.to_string();
        check_encoding(&answer)?;
        let (offset, size) = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.header(CONTENT_RANGE).and_then(content_range);
                let (_, size) = range
                    .filter(|(start, size)| *start == offset && size.is_none_or(|size| size > offset))
                    .ok_or_else(|| UpstreamError::Corrupt { detail: format!("{from} answered a Range from {offset} with another one") })?;
                (offset, size)
            }
            _ => (0, content_length(&answer)),
        };
        let body = answer.response.into_body();
        Ok(BlobStream { offset, size, received: 0, body, stalled_at: None, pace: Pace::default(), from, metrics })
    }

    /// The next bytes; `None` after the last. Cancel-safe.
    ///
    /// # Errors
    /// When the body ends before its announced length, breaks, stalls for 30 s, or is slower than 1 KiB/s. What came before is good as far as it goes.
    pub async fn next(&mut self) -> Result<Option<Bytes>, UpstreamError> {
        let stalled_at = *self.stalled_at.get_or_insert_with(|| Instant::now() + STALL_TIMEOUT);
        let asked_at = Instant::now();
        loop {
            let Ok(frame) = tokio::time::timeout_at(stalled_at, self.body.frame()).await else {
                return Err(self.failed(UpstreamError::TimedOut { detail: format!("{} sent nothing for 30 s", self.from) }));
            };
            match frame {
                None if self.is_short() => return Err(self.failed(broken(format!("{} ended its body early", self.from)))),
                None => return Ok(None),
                Some(Err(_)) => return Err(self.failed(broken(format!("{} broke off its body", self.from)))),
                Some(Ok(frame)) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    self.stalled_at = None;
                    self.received += bytes.len() as u64;
                    self.metrics.received_bytes.inc_by(bytes.len() as u64);
                    self.pace.add(asked_at.elapsed(), bytes.len() as u64);
                    if self.pace.is_slow {
                        return Err(self.failed(UpstreamError::TimedOut { detail: format!("{} sends less than 1 KiB/s", self.from) }));
                    }
                    return Ok(Some(bytes));
                }
            }
        }
    }

    /// Whether it was given up for its pace: that some of it came is then no progress.
    pub fn was_slow(&self) -> bool {
        self.pace.is_slow
    }

    /// hyper guards the Content-Length; a 206 may besides have left out the blob's end.
    fn is_short(&self) -> bool {
        self.size.is_some_and(|size| self.offset + self.received < size)
    }

    fn failed(&self, error: UpstreamError) -> UpstreamError {
        self.metrics.failed(error.reason());
        error
    }
}

/// Content coded in any way would not hash to its name, and its length would be another's.
pub fn check_encoding(answer: &Answer) -> Result<(), UpstreamError> {
    match answer.headers().get(CONTENT_ENCODING) {
        Some(encoding) if !encoding.as_bytes().eq_ignore_ascii_case(b"identity") => {
            Err(UpstreamError::Corrupt { detail: format!("{} sent a Content-Encoding that was not asked for", answer.url) })
        }
        _ => Ok(()),
    }
}

pub fn content_length(answer: &Answer) -> Option<u64> {
    answer.header(CONTENT_LENGTH)?.trim().parse().ok()
}

/// Start and whole size in `bytes 5-9/10`.
pub fn content_range(value: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = value.trim().strip_prefix("bytes")?.trim_start().split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let (start, end): (u64, u64) = (start.trim().parse().ok()?, end.trim().parse().ok()?);
    let size = match size.trim() {
        "*" => None,
        size => Some(size.parse().ok()?),
    };
    (start <= end && size.is_none_or(|size| end < size)).then_some((start, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(content_range("bytes 0-0/*"), Some((0, None)));
        for wrong in ["", "bytes", "bytes */10", "bytes 5-4/10", "bytes 5-10/10", "items 0-1/2", "bytes a-b/c", "bytes 1/2"] {
            assert_eq!(content_range(wrong), None, "{wrong}");
        }
    }
}
