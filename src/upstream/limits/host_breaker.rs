//! Whether an upstream's own host is asked: its circuit breaker, the gauge that shows it and the lines that log it. Is told what became of a
//! question in plain values; knows no request and no answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;

use super::breaker::{Backoff, Breaker, Open, Permit};
use super::too_many_requests::{LIMITED, retry_after};
use crate::clock::{Clock, Timestamp};
use crate::labels::UpstreamKind;
use crate::metrics::UpstreamMetrics;
use crate::rng::Rng;
use crate::upstream::{UnavailableReason, UpstreamError};

/// For how long a host that is down is not asked, the first time and at most.
const DOWN: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
/// Silence that ends sooner was ended by somebody's deadline, and says nothing of the host.
const SILENCE_MIN: Duration = Duration::from_secs(4);
/// A host that asks to come back later is probed so often all the same: most name a time that they do not need.
const BUSY_PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// The circuit breaker of one host.
pub struct HostBreaker {
    breaker: Breaker,
    is_open: AtomicBool,
    /// As it is logged.
    host: String,
    /// As errors name it.
    origin: String,
    metrics: Arc<UpstreamMetrics>,
    rng: Arc<Rng>,
}

impl HostBreaker {
    pub fn new(host: String, origin: String, metrics: Arc<UpstreamMetrics>, rng: Arc<Rng>) -> HostBreaker {
        HostBreaker { breaker: Breaker::default(), is_open: AtomicBool::new(false), host, origin, metrics, rng }
    }

    /// Permits a question.
    ///
    /// # Errors
    /// While the breaker is open.
    pub fn enter(&self, now: Instant) -> Result<Permit<'_>, Open> {
        self.breaker.enter(now)
    }

    /// `None`: closed.
    pub fn state(&self, now: Instant) -> Option<Open> {
        self.breaker.state(now)
    }

    /// Draws the conclusion from one question of this kind, begun then: from its answer's status and headers, or why there is none. A 429 is
    /// judged by who reads its body (`limited`).
    pub fn observe(&self, kind: UpstreamKind, begun: Instant, answer: Result<(StatusCode, &HeaderMap), &UpstreamError>) {
        let now = Instant::now();
        match answer {
            // One bad image is no outage.
            Ok((StatusCode::TOO_MANY_REQUESTS | StatusCode::INTERNAL_SERVER_ERROR, _)) => {}
            Ok((status @ (StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT), headers)) => {
                let detail = format!("{} answered {}", self.origin, status.as_u16());
                match busy_wait(status, headers, Clock::System.now()) {
                    // Of some scopes, perhaps; the token server has a breaker of its own.
                    Some(_) if kind == UpstreamKind::Token => {}
                    Some(retry_after) => self.busy(begun, now, retry_after, detail),
                    None => self.failed(begun, now, &UpstreamError::Unavailable { reason: UnavailableReason::Broken, detail }),
                }
            }
            // A token is not yet the answer of whoever probes for one.
            Ok((status, _)) if kind == UpstreamKind::Token && status.as_u16() < 500 => {}
            Ok(_) => {
                if self.breaker.succeeded(begun, now) {
                    tracing::info!(upstream = self.metrics.name(), host = self.host, "upstream answers again");
                }
                self.show(false);
            }
            // Somebody else's deadline, soon after the question was asked, says nothing.
            Err(UpstreamError::TimedOut { .. }) if now - begun < SILENCE_MIN => {}
            // A bug of larder's is not the host's.
            Err(UpstreamError::Internal { .. }) => {}
            Err(error) if error.is_transient() => self.failed(begun, now, error),
            Err(_) => {}
        }
    }

    /// The host has had enough questions. Returns for how long it is not asked, and whether that is news.
    pub fn limited(&self, begun: Instant, now: Instant, why: &UpstreamError, asked: Option<Duration>) -> (Duration, bool) {
        let opened = self.breaker.open(begun, now, why, asked, LIMITED, |wait| self.rng.jitter(wait));
        self.show(true);
        opened
    }

    fn busy(&self, begun: Instant, now: Instant, wait: Duration, detail: String) {
        let why = UpstreamError::Busy { retry_after: wait, detail };
        let (wait, is_new) = self.breaker.open(begun, now, &why, Some(wait), DOWN, |wait| wait);
        self.show(true);
        if is_new {
            let (upstream, seconds) = (self.metrics.name(), wait.as_secs());
            tracing::warn!(upstream, host = self.host, %why, seconds, "upstream asks to come back later; it is not asked before this time is over");
        }
    }

    fn failed(&self, begun: Instant, now: Instant, why: &UpstreamError) {
        if self.breaker.failed(begun, now, why, DOWN, |wait| self.rng.jitter(wait)) {
            tracing::warn!(upstream = self.metrics.name(), host = self.host, %why, "upstream is down; it is left alone but for probes");
            self.show(true);
        }
    }

    fn show(&self, is_open: bool) {
        if self.is_open.swap(is_open, Ordering::Relaxed) != is_open {
            self.metrics.circuit_open.add(if is_open { 1 } else { -1 });
        }
    }
}

/// For how long a host that answers 503 with `Retry-After` is not asked: as it says, and no longer than until the next probe.
pub fn busy_wait(status: StatusCode, headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let asked = (status == StatusCode::SERVICE_UNAVAILABLE).then(|| retry_after(headers, now)).flatten();
    asked.map(|wait| wait.min(BUSY_PROBE_INTERVAL))
}
