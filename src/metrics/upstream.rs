//! The series that stand once for each upstream.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::Totals;
use super::maker::Maker;
use crate::labels::{ErrorReason, FillResult, Kind, Outcome, StaleReason, UpstreamKind};

/// Status classes of the answers upstreams gave.
const UPSTREAM_CODES: [&str; 9] = ["2xx", "3xx", "401", "403", "404", "429", "4xx", "5xx", "none"];
/// The reasons for which a question is asked again.
const RETRY_REASONS: [&str; 6] = ["timeout", "dns", "connect", "tls", "status", "broken"];
const MISMATCH_PLACES: [&str; 3] = ["blob", "manifest", "store"];
/// Coarser, since these stand once for each upstream.
const UPSTREAM_SECONDS: [f64; 5] = [0.05, 0.25, 1.0, 5.0, 20.0];

/// A pull limit as the gauges show it. What upstream does not name has no series; naming nothing means that there is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullLimit {
    /// Pulls in a window.
    pub limit: Option<u64>,
    /// Pulls left in it.
    pub remaining: Option<u64>,
    pub window: Option<Duration>,
}

/// The series of one upstream.
pub struct UpstreamMetrics {
    name: Arc<str>,
    requests: [[IntCounter; Outcome::LABELS.len()]; 3],
    response_bytes: [IntCounter; 3],
    pub tag_moves: IntCounter,
    /// Images asked for and served: manifests that no other of the repository's lists.
    pulls: AtomicU64,
    /// GETs of manifests, which registries count. These two are for `stats` alone, and no series.
    counted_gets: AtomicU64,
    stale_served: [IntCounter; StaleReason::LABELS.len()],
    pub received_bytes: IntCounter,
    pub last_success: IntGauge,
    upstream_requests: IntCounterVec,
    upstream_duration: [Histogram; 3],
    errors: IntCounterVec,
    retries: IntCounterVec,
    /// Hosts that are left alone for now.
    pub circuit_open: IntGauge,
    ratelimit: [IntGaugeVec; 3],
    fills: [IntCounter; 3],
    digest_mismatch: IntCounterVec,
}

/// The families that the upstreams' series belong to.
pub(super) struct Families {
    requests: IntCounterVec,
    response_bytes: IntCounterVec,
    tag_moves: IntCounterVec,
    stale: IntCounterVec,
    received: IntCounterVec,
    last_success: IntGaugeVec,
    upstream_requests: IntCounterVec,
    upstream_duration: HistogramVec,
    errors: IntCounterVec,
    retries: IntCounterVec,
    circuit_open: IntGaugeVec,
    ratelimit: [IntGaugeVec; 3],
    fills: IntCounterVec,
    mismatch: IntCounterVec,
}

impl Families {
    pub(super) fn new(make: &Maker<'_>) -> Families {
        let ratelimit = |name: &str, help: &str| make.gauges(&format!("upstream_ratelimit_{name}"), help, &["upstream", "credential"]);
        Families {
            requests: make.counters("requests_total", "Requests by upstream, kind and outcome", &["upstream", "kind", "outcome"]),
            response_bytes: make.counters("response_bytes_total", "Body bytes sent to clients", &["upstream", "kind"]),
            tag_moves: make.counters("tag_moves_total", "Tags that upstream moved to another digest", &["upstream"]),
            stale: make.counters("stale_served_total", "Answers with a tag that upstream did not confirm", &["upstream", "reason"]),
            received: make.counters("upstream_received_bytes_total", "Body bytes received from upstream", &["upstream"]),
            last_success: make.gauges("upstream_last_success_timestamp_seconds", "When upstream last answered (Unix time)", &["upstream"]),
            upstream_requests: make.counters(
                "upstream_requests_total",
                "Requests sent to upstream, by status class",
                &["upstream", "kind", "code"],
            ),
            upstream_duration: make.histograms(
                "upstream_request_duration_seconds",
                "Time to an upstream's headers",
                &["upstream", "kind"],
                &UPSTREAM_SECONDS,
            ),
            errors: make.counters("upstream_errors_total", "Questions upstream did not answer", &["upstream", "reason"]),
            retries: make.counters("upstream_retries_total", "Questions asked again", &["upstream", "reason"]),
            circuit_open: make.gauges(
                "upstream_circuit_open",
                "Hosts of this upstream that are left alone for now, being down or at their limit",
                &["upstream"],
            ),
            ratelimit: [
                ratelimit("limit", "Pulls that upstream allows in a window; no series where it names no limit"),
                ratelimit("remaining", "Pulls left"),
                ratelimit("window_seconds", "Length of the window"),
            ],
            fills: make.counters("fills_total", "Blob downloads that ended", &["upstream", "result"]),
            mismatch: make.counters("digest_mismatch_total", "Bytes that did not hash to their name", &["upstream", "where"]),
        }
    }

    /// The series of one upstream, each counter at 0.
    pub(super) fn of(&self, name: &str) -> UpstreamMetrics {
        for place in MISMATCH_PLACES {
            self.mismatch.with_label_values(&[name, place]);
        }
        for reason in ErrorReason::LABELS {
            self.errors.with_label_values(&[name, reason]);
        }
        for reason in RETRY_REASONS {
            self.retries.with_label_values(&[name, reason]);
        }
        for kind in UpstreamKind::LABELS {
            for code in UPSTREAM_CODES {
                self.upstream_requests.with_label_values(&[name, kind, code]);
            }
        }
        UpstreamMetrics {
            name: name.into(),
            requests: Kind::LABELS.map(|kind| Outcome::LABELS.map(|outcome| self.requests.with_label_values(&[name, kind, outcome]))),
            response_bytes: Kind::LABELS.map(|kind| self.response_bytes.with_label_values(&[name, kind])),
            tag_moves: self.tag_moves.with_label_values(&[name]),
            pulls: AtomicU64::new(0),
            counted_gets: AtomicU64::new(0),
            stale_served: StaleReason::LABELS.map(|reason| self.stale.with_label_values(&[name, reason])),
            received_bytes: self.received.with_label_values(&[name]),
            last_success: self.last_success.with_label_values(&[name]),
            upstream_requests: self.upstream_requests.clone(),
            upstream_duration: ["manifest", "blob", "token"].map(|kind| self.upstream_duration.with_label_values(&[name, kind])),
            errors: self.errors.clone(),
            retries: self.retries.clone(),
            circuit_open: self.circuit_open.with_label_values(&[name]),
            ratelimit: self.ratelimit.clone(),
            fills: FillResult::LABELS.map(|result| self.fills.with_label_values(&[name, result])),
            digest_mismatch: self.mismatch.clone(),
        }
    }
}

impl UpstreamMetrics {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Counts one request on the wire; `status` is `None` when no answer came.
    pub fn asked(&self, kind: UpstreamKind, status: Option<u16>, elapsed: Duration) {
        let code = match status {
            None => "none",
            Some(200..=299) => "2xx",
            Some(300..=399) => "3xx",
            Some(401) => "401",
            Some(403) => "403",
            Some(404) => "404",
            Some(429) => "429",
            Some(400..=499) => "4xx",
            Some(_) => "5xx",
        };
        self.upstream_requests.with_label_values(&[&self.name, kind.as_str(), code]).inc();
        if let Some(histogram) = self.upstream_duration.get(kind as usize) {
            histogram.observe(elapsed.as_secs_f64());
        }
    }

    pub fn failed(&self, reason: ErrorReason) {
        self.errors.with_label_values(&[&self.name, reason.as_str()]).inc();
    }

    pub fn retried(&self, reason: ErrorReason) {
        self.retries.with_label_values(&[&self.name, reason.as_str()]).inc();
    }

    pub fn filled(&self, result: FillResult) {
        self.fills[result as usize].inc();
    }

    /// What upstream says of a credential's pull limit.
    pub fn pull_limit(&self, credential: &str, said: PullLimit) {
        let labels = [&*self.name, credential];
        let values = [said.limit, said.remaining, said.window.map(|window| window.as_secs())];
        for (gauges, value) in self.ratelimit.iter().zip(values) {
            match value {
                Some(value) => gauges.with_label_values(&labels).set(i64::try_from(value).unwrap_or(i64::MAX)),
                // An unlimited upstream has no series; that there was none to remove is no fault.
                None => drop(gauges.remove_label_values(&labels)),
            }
        }
    }

    pub fn pulled(&self) {
        self.pulls.fetch_add(1, Ordering::Relaxed);
    }

    pub fn counted_get(&self) {
        self.counted_gets.fetch_add(1, Ordering::Relaxed);
    }

    /// As [`super::Metrics::traffic`]: requests and hits.
    pub(super) fn traffic(&self) -> (u64, u64) {
        let content = [Kind::Manifest, Kind::Blob].map(|kind| &self.requests[kind as usize]);
        let held = [Outcome::Hit, Outcome::Revalidated, Outcome::Stale(StaleReason::Unavailable)].map(Outcome::index);
        let all = content.iter().flat_map(|counters| counters.iter()).map(IntCounter::get).sum();
        let hits = content.iter().flat_map(|counters| held.iter().map(|outcome| counters[*outcome].get())).sum();
        (all, hits)
    }

    /// Adds what this upstream has to the totals.
    pub(super) fn total(&self, totals: &mut Totals) {
        totals.pulls += self.pulls.load(Ordering::Relaxed);
        totals.counted_gets += self.counted_gets.load(Ordering::Relaxed);
        totals.sent_bytes += [Kind::Manifest, Kind::Blob].iter().map(|kind| self.response_bytes[*kind as usize].get()).sum::<u64>();
        totals.received_bytes += self.received_bytes.get();
        let reasons = [StaleReason::RateLimited, StaleReason::Unavailable];
        totals.unconfirmed += reasons.iter().map(|reason| self.stale_served[*reason as usize].get()).sum::<u64>();
    }

    pub(super) fn finished(&self, kind: Kind, outcome: Outcome, bytes: u64) {
        self.requests[kind as usize][outcome.index()].inc();
        if let Outcome::Stale(reason) = outcome {
            self.stale_served[reason as usize].inc();
        }
        self.response_bytes[kind as usize].inc_by(bytes);
    }

    /// `place`: `blob`, `manifest` or `store`.
    pub fn mismatched(&self, place: &'static str) {
        self.digest_mismatch.with_label_values(&[&self.name, place]).inc();
    }
}
