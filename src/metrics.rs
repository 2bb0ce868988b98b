//! Every series larder exports, in one struct that is handed down. Labels are closed enums and configured upstream
//! names; what the hot path touches is resolved once, so that a request costs a few atomic additions.

mod maker;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::mirror::{Outcome, StaleReason};
use crate::upstream::UpstreamError;
use maker::Maker;

/// What a request is about, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Manifest,
    Blob,
    /// `/v2/`, listings, health, and whatever is not found.
    Other,
}

impl Kind {
    pub const LABELS: [&'static str; 3] = ["manifest", "blob", "other"];

    pub fn as_str(self) -> &'static str {
        Kind::LABELS[self as usize]
    }
}

/// What upstream is asked for, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamKind {
    Manifest,
    Blob,
    Token,
    Listing,
}

impl UpstreamKind {
    const LABELS: [&'static str; 4] = ["manifest", "blob", "token", "listing"];

    pub fn as_str(self) -> &'static str {
        UpstreamKind::LABELS[self as usize]
    }
}

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillResult {
    Stored,
    Bypassed,
    Failed,
}

impl FillResult {
    const LABELS: [&'static str; 3] = ["stored", "bypassed", "failed"];
}

/// Status classes of the answers clients got.
const RESPONSE_CODES: [&str; 16] =
    ["200", "206", "400", "401", "403", "404", "405", "408", "416", "429", "431", "500", "502", "503", "504", "other"];
/// Status classes of the answers upstreams gave.
const UPSTREAM_CODES: [&str; 9] = ["2xx", "3xx", "401", "403", "404", "429", "4xx", "5xx", "none"];
/// The reasons for which a question is asked again.
const RETRY_REASONS: [&str; 6] = ["timeout", "dns", "connect", "tls", "status", "broken"];
const EVICTION_REASONS: [&str; 1] = ["size"];
const CACHE_ERRORS: [&str; 3] = ["full", "io", "corrupt"];
const MISMATCH_PLACES: [&str; 3] = ["blob", "manifest", "store"];
const REJECTIONS: [&str; 1] = ["limit"];
const SECONDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];
/// Coarser, since these stand once for each upstream.
const UPSTREAM_SECONDS: [f64; 5] = [0.05, 0.25, 1.0, 5.0, 20.0];

/// All series, and the registry they are encoded from.
pub struct Metrics {
    registry: Registry,
    upstreams: HashMap<Arc<str>, Arc<UpstreamMetrics>>,
    unknown: Arc<UpstreamMetrics>,
    responses: [[IntCounter; RESPONSE_CODES.len()]; 3],
    time_to_first_byte: HistogramTable,
    request_duration: HistogramTable,
    pub requests_in_flight: IntGauge,
    pub client_aborts: IntCounter,
    pub connections: IntGauge,
    pub fills_in_flight: IntGauge,
    pub fills_queued: IntGauge,
    pub cache_size: IntGauge,
    pub cache_limit: IntGauge,
    pub cache_disk_free: IntGauge,
    pub cache_writable: IntGauge,
    pub cache_evicted_age: Histogram,
    pub task_panics: IntCounter,
    pub log_lines_dropped: IntCounter,
    connections_rejected: IntCounterVec,
    cache_objects: IntGaugeVec,
    cache_evictions: IntCounterVec,
    cache_evicted_bytes: IntCounterVec,
    cache_write_errors: IntCounterVec,
    cache_read_errors: IntCounterVec,
    blocked_dials: IntCounterVec,
}

/// The series of one upstream.
pub struct UpstreamMetrics {
    name: Arc<str>,
    requests: [[IntCounter; Outcome::LABELS.len()]; 3],
    response_bytes: [IntCounter; 3],
    pub tag_moves: IntCounter,
    stale_served: [IntCounter; StaleReason::LABELS.len()],
    pub received_bytes: IntCounter,
    pub last_success: IntGauge,
    upstream_requests: IntCounterVec,
    upstream_duration: [Histogram; 3],
    errors: IntCounterVec,
    retries: IntCounterVec,
    fills: [IntCounter; 3],
    digest_mismatch: IntCounterVec,
}

type HistogramTable = [[Histogram; Outcome::LABELS.len()]; 3];

impl Metrics {
    /// Builds every series; each counter stands at 0 from the start.
    ///
    /// # Panics
    /// When two series share a name: a mistake in this file, found by its own test.
    #[expect(clippy::expect_used, reason = "names and labels are constants of this file")]
    pub fn new(upstream_names: impl IntoIterator<Item = impl AsRef<str>>) -> Metrics {
        let registry = Registry::new();
        let make = Maker { registry: &registry };

        let requests = make.counters("requests_total", "Requests by upstream, kind and outcome", &["upstream", "kind", "outcome"]);
        let response_bytes = make.counters("response_bytes_total", "Body bytes sent to clients", &["upstream", "kind"]);
        let tag_moves = make.counters("tag_moves_total", "Tags that upstream moved to another digest", &["upstream"]);
        let stale = make.counters("stale_served_total", "Answers with a tag that upstream did not confirm", &["upstream", "reason"]);
        let received = make.counters("upstream_received_bytes_total", "Body bytes received from upstream", &["upstream"]);
        let last_success = make.gauges("upstream_last_success_timestamp_seconds", "When upstream last answered (Unix time)", &["upstream"]);
        let upstream_requests =
            make.counters("upstream_requests_total", "Requests sent to upstream, by status class", &["upstream", "kind", "code"]);
        let upstream_duration =
            make.histograms("upstream_request_duration_seconds", "Time to an upstream's headers", &["upstream", "kind"], &UPSTREAM_SECONDS);
        let errors = make.counters("upstream_errors_total", "Questions upstream did not answer", &["upstream", "reason"]);
        let retries = make.counters("upstream_retries_total", "Questions asked again", &["upstream", "reason"]);
        let fills = make.counters("fills_total", "Blob downloads that ended", &["upstream", "result"]);
        let mismatch = make.counters("digest_mismatch_total", "Bytes that did not hash to their name", &["upstream", "where"]);

        let of_upstream = |name: &str| {
            for place in MISMATCH_PLACES {
                mismatch.with_label_values(&[name, place]);
            }
            for reason in UpstreamError::LABELS {
                errors.with_label_values(&[name, reason]);
            }
            for reason in RETRY_REASONS {
                retries.with_label_values(&[name, reason]);
            }
            for kind in UpstreamKind::LABELS {
                for code in UPSTREAM_CODES {
                    upstream_requests.with_label_values(&[name, kind, code]);
                }
            }
            Arc::new(UpstreamMetrics {
                name: name.into(),
                requests: Kind::LABELS.map(|kind| Outcome::LABELS.map(|outcome| requests.with_label_values(&[name, kind, outcome]))),
                response_bytes: Kind::LABELS.map(|kind| response_bytes.with_label_values(&[name, kind])),
                tag_moves: tag_moves.with_label_values(&[name]),
                stale_served: StaleReason::LABELS.map(|reason| stale.with_label_values(&[name, reason])),
                received_bytes: received.with_label_values(&[name]),
                last_success: last_success.with_label_values(&[name]),
                upstream_requests: upstream_requests.clone(),
                upstream_duration: ["manifest", "blob", "token"].map(|kind| upstream_duration.with_label_values(&[name, kind])),
                errors: errors.clone(),
                retries: retries.clone(),
                fills: FillResult::LABELS.map(|result| fills.with_label_values(&[name, result])),
                digest_mismatch: mismatch.clone(),
            })
        };
        let unknown = of_upstream("unknown");
        let upstreams = upstream_names
            .into_iter()
            .map(|name| of_upstream(name.as_ref()))
            .map(|upstream| (Arc::clone(&upstream.name), upstream))
            .collect();

        let responses = make.counters("responses_total", "Answers to clients by kind and status", &["kind", "code"]);
        let first_byte = make.histograms("time_to_first_byte_seconds", "Time to the response's headers", &["kind", "outcome"], &SECONDS);
        let duration = make.histograms("request_duration_seconds", "Time to the response's end", &["kind", "outcome"], &SECONDS);
        let table = |histograms: &HistogramVec| {
            Kind::LABELS.map(|kind| Outcome::LABELS.map(|outcome| histograms.with_label_values(&[kind, outcome])))
        };
        let build_info = make.gauges("build_info", "Always 1", &["version"]);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).expect("process metrics register once");

        Metrics {
            upstreams,
            unknown,
            responses: Kind::LABELS.map(|kind| RESPONSE_CODES.map(|code| responses.with_label_values(&[kind, code]))),
            time_to_first_byte: table(&first_byte),
            request_duration: table(&duration),
            requests_in_flight: make.gauge("requests_in_flight", "Requests being answered"),
            client_aborts: make.counter("client_aborts_total", "Answers the client did not read to the end"),
            connections: make.gauge("connections", "Open client connections"),
            fills_in_flight: make.gauge("fills_in_flight", "Blob downloads under way"),
            fills_queued: make.gauge("fills_queued", "Blob downloads waiting for their turn"),
            cache_size: make.gauge("cache_size_bytes", "What the cache occupies, in allocated bytes, reservations included"),
            cache_limit: make.gauge("cache_limit_bytes", "cache.max_size"),
            cache_disk_free: make.gauge("cache_disk_free_bytes", "Free bytes of the cache's file system"),
            cache_writable: make.gauge("cache_writable", "1 while the last write to the cache succeeded"),
            cache_evicted_age: make.ages("cache_evicted_age_seconds", "Time since the last use of what was evicted"),
            task_panics: make.counter("task_panics_total", "Tasks that panicked; each is a bug"),
            log_lines_dropped: make.counter("log_lines_dropped_total", "Log lines dropped because the log's reader is too slow"),
            connections_rejected: make.prepared("connections_rejected_total", "Connections refused", "reason", &REJECTIONS),
            cache_objects: make.gauges("cache_objects", "Stored objects", &["kind"]),
            cache_evictions: make.prepared("cache_evictions_total", "Objects evicted", "reason", &EVICTION_REASONS),
            cache_evicted_bytes: make.prepared("cache_evicted_bytes_total", "Allocated bytes evicted", "reason", &EVICTION_REASONS),
            cache_write_errors: make.prepared("cache_write_errors_total", "Failed writes to the cache", "reason", &CACHE_ERRORS),
            cache_read_errors: make.prepared("cache_read_errors_total", "Failed reads of the cache", "reason", &CACHE_ERRORS),
            blocked_dials: make.prepared(
                "blocked_dials_total",
                "Addresses larder refused to connect to",
                "reason",
                &["private", "metadata"],
            ),
            registry,
        }
    }

    /// The series of a configured upstream; any other name counts as `unknown`.
    pub fn upstream(&self, name: &str) -> &Arc<UpstreamMetrics> {
        self.upstreams.get(name).unwrap_or(&self.unknown)
    }

    /// For requests that name no configured upstream.
    pub fn unknown(&self) -> &Arc<UpstreamMetrics> {
        &self.unknown
    }

    /// Counts a response whose headers leave now.
    pub fn responded(&self, kind: Kind, outcome: Outcome, status: u16, elapsed: Duration) {
        let code = RESPONSE_CODES.iter().position(|code| code.parse() == Ok(status)).unwrap_or(RESPONSE_CODES.len() - 1);
        self.responses[kind as usize][code].inc();
        self.time_to_first_byte[kind as usize][outcome.index()].observe(elapsed.as_secs_f64());
    }

    /// Counts a response that ended, as it ended.
    pub fn finished(&self, upstream: &UpstreamMetrics, kind: Kind, outcome: Outcome, bytes: u64, elapsed: Duration) {
        upstream.requests[kind as usize][outcome.index()].inc();
        if let Outcome::Stale(reason) = outcome {
            upstream.stale_served[reason as usize].inc();
        }
        upstream.response_bytes[kind as usize].inc_by(bytes);
        self.request_duration[kind as usize][outcome.index()].observe(elapsed.as_secs_f64());
    }

    pub fn connection_rejected(&self) {
        self.connections_rejected.with_label_values(&["limit"]).inc();
    }

    pub fn dial_blocked(&self, reason: &'static str) {
        self.blocked_dials.with_label_values(&[reason]).inc();
    }

    pub fn evicted(&self, bytes: u64, age: Duration) {
        self.cache_evictions.with_label_values(&["size"]).inc();
        self.cache_evicted_bytes.with_label_values(&["size"]).inc_by(bytes);
        self.cache_evicted_age.observe(age.as_secs_f64());
    }

    /// `reason`: `full`, `io` or `corrupt`.
    pub fn write_failed(&self, reason: &'static str) {
        self.cache_write_errors.with_label_values(&[reason]).inc();
        self.cache_writable.set(0);
    }

    /// `reason`: `full`, `io` or `corrupt`.
    pub fn read_failed(&self, reason: &'static str) {
        self.cache_read_errors.with_label_values(&[reason]).inc();
    }

    pub fn objects(&self, blobs: u64, manifests: u64) {
        for (kind, count) in [("blob", blobs), ("manifest", manifests)] {
            self.cache_objects.with_label_values(&[kind]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// The text exposition format, version 0.0.4.
    pub fn encode(&self) -> String {
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
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

    pub fn failed(&self, error: &UpstreamError) {
        self.errors.with_label_values(&[&self.name, error.label()]).inc();
    }

    pub fn retried(&self, error: &UpstreamError) {
        self.retries.with_label_values(&[&self.name, error.label()]).inc();
    }

    pub fn filled(&self, result: FillResult) {
        self.fills[result as usize].inc();
    }

    /// `place`: `blob`, `manifest` or `store`.
    pub fn mismatched(&self, place: &'static str) {
        self.digest_mismatch.with_label_values(&[&self.name, place]).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_32_upstreams_there_are_fewer_than_5000_series() {
        let metrics = Metrics::new((0..32).map(|n| format!("registry-{n}.example")));
        let text = metrics.encode();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series < 5_000, "{series}");
        assert!(text.contains(r#"larder_requests_total{kind="blob",outcome="stale",upstream="registry-7.example"} 0"#), "{text}");
    }

    #[test]
    fn a_name_that_is_not_configured_makes_no_series() {
        let metrics = Metrics::new(["docker.io"]);
        metrics.upstream("evil.example").failed(&UpstreamError::NotFound);
        assert!(!metrics.encode().contains("evil.example"));
    }
}
