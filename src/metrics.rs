//! Every series larder exports, in one struct that is handed down. Labels are closed enums and configured upstream
//! names; what the hot path touches is resolved once, so that a request costs a few atomic additions.

mod maker;
mod process;
mod upstream;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder};

use crate::clock::Timestamp;
use crate::mirror::Outcome;
use maker::Maker;
use process::ProcessCollector;
use upstream::Families;
pub use upstream::{FillResult, UpstreamKind, UpstreamMetrics};

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

/// Status classes of the answers clients got.
const RESPONSE_CODES: [&str; 16] =
    ["200", "206", "400", "401", "403", "404", "405", "408", "416", "429", "431", "500", "502", "503", "504", "other"];
const EVICTION_REASONS: [&str; 3] = ["size", "min_free", "unused"];
const CACHE_ERRORS: [&str; 3] = ["full", "io", "corrupt"];
const SCRUB_RESULTS: [&str; 3] = ["ok", "damaged", "error"];
const REJECTIONS: [&str; 1] = ["limit"];
const SECONDS: [f64; 9] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.0, 10.0, 60.0, 300.0];

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
    pub pinned_images_missing: IntGauge,
    pub task_panics: IntCounter,
    pub log_lines_dropped: IntCounter,
    connections_rejected: IntCounterVec,
    cache_objects: IntGaugeVec,
    cache_evictions: IntCounterVec,
    cache_evicted_bytes: IntCounterVec,
    cache_write_errors: IntCounterVec,
    cache_read_errors: IntCounterVec,
    blocked_dials: IntCounterVec,
    scrub_last_success: IntGauge,
    scrub_objects: IntCounterVec,
}

/// What counts for those who ask what a mirror is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub pulls: u64,
    pub counted_gets: u64,
    /// To clients, of manifests and blobs.
    pub sent_bytes: u64,
    /// From upstreams.
    pub received_bytes: u64,
    /// Answers with a tag that upstream could not confirm, for an outage or a limit.
    pub unconfirmed: u64,
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

        let families = Families::new(&make);
        let unknown = Arc::new(families.of("unknown"));
        let upstreams = upstream_names.into_iter().map(|name| (Arc::from(name.as_ref()), Arc::new(families.of(name.as_ref())))).collect();

        let responses = make.counters("responses_total", "Answers to clients by kind and status", &["kind", "code"]);
        let first_byte = make.histograms("time_to_first_byte_seconds", "Time to the response's headers", &["kind", "outcome"], &SECONDS);
        let duration = make.histograms("request_duration_seconds", "Time to the response's end", &["kind", "outcome"], &SECONDS);
        let table = |histograms: &HistogramVec| {
            Kind::LABELS.map(|kind| Outcome::LABELS.map(|outcome| histograms.with_label_values(&[kind, outcome])))
        };
        let build_info = make.gauges("build_info", "Always 1", &["version"]);
        build_info.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
        let process = ProcessCollector::new().expect("constant names are valid");
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
            cache_evicted_age: make.ages("cache_evicted_age_seconds", "Time since the last use of what was evicted, as far as larder ran"),
            pinned_images_missing: make.gauge("pinned_images_missing", "Images of cache.pinned_images that are not complete in the cache"),
            task_panics: make.counter("task_panics_total", "Tasks that panicked; each is a bug"),
            log_lines_dropped: make.counter("log_lines_dropped_total", "Log lines dropped because the log's reader is too slow"),
            connections_rejected: make.prepared("connections_rejected_total", "Connections refused", "reason", &REJECTIONS),
            cache_objects: make.gauges("cache_objects", "Stored objects", &["kind"]),
            cache_evictions: make.prepared("cache_evictions_total", "Objects evicted", "reason", &EVICTION_REASONS),
            cache_evicted_bytes: make.prepared("cache_evicted_bytes_total", "Allocated bytes evicted", "reason", &EVICTION_REASONS),
            cache_write_errors: make.prepared("cache_write_errors_total", "Failed writes to the cache", "reason", &CACHE_ERRORS),
            cache_read_errors: make.prepared("cache_read_errors_total", "Failed reads of the cache", "reason", &CACHE_ERRORS),
            scrub_last_success: make.gauge("scrub_last_success_timestamp_seconds", "When all that is held had been hashed again; 0: never"),
            scrub_objects: make.prepared("scrub_objects_total", "Stored objects that were hashed again", "result", &SCRUB_RESULTS),
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

    /// Requests for manifests and blobs, and those answered by what was held; since the start.
    pub fn traffic(&self) -> (u64, u64) {
        self.upstreams.values().map(|upstream| upstream.traffic()).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// Over all upstreams, since the start.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        self.upstreams.values().for_each(|upstream| upstream.total(&mut totals));
        totals
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
        upstream.finished(kind, outcome, bytes);
        self.request_duration[kind as usize][outcome.index()].observe(elapsed.as_secs_f64());
    }

    pub fn connection_rejected(&self) {
        self.connections_rejected.with_label_values(&["limit"]).inc();
    }

    pub fn dial_blocked(&self, reason: &'static str) {
        self.blocked_dials.with_label_values(&[reason]).inc();
    }

    /// `reason`: `size`, `min_free` or `unused`.
    pub fn evicted(&self, reason: &'static str, bytes: u64, age: Duration) {
        self.cache_evictions.with_label_values(&[reason]).inc();
        self.cache_evicted_bytes.with_label_values(&[reason]).inc_by(bytes);
        self.cache_evicted_age.observe(age.as_secs_f64());
    }

    /// `reason`: `full`, `io` or `corrupt`.
    pub fn write_failed(&self, reason: &'static str) {
        self.cache_write_errors.with_label_values(&[reason]).inc();
    }

    /// `reason`: `full`, `io` or `corrupt`.
    pub fn read_failed(&self, reason: &'static str) {
        self.cache_read_errors.with_label_values(&[reason]).inc();
    }

    /// `result`: `ok`, `damaged` or `error`.
    pub fn examined(&self, result: &'static str) {
        self.scrub_objects.with_label_values(&[result]).inc();
    }

    /// All that is held had been hashed.
    pub fn scrubbed(&self, at: Timestamp) {
        self.scrub_last_success.set(i64::try_from(at.0 / 1000).unwrap_or(i64::MAX));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UpstreamError;

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
