//! Makes and registers series with the common prefix.

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

pub(super) struct Maker<'a> {
    pub(super) registry: &'a Registry,
}

#[expect(clippy::expect_used, reason = "names, labels and buckets are constants of this file")]
impl Maker<'_> {
    fn register<C: Collector + Clone + 'static>(&self, series: prometheus::Result<C>) -> C {
        let series = series.expect("constant names and labels are valid");
        self.registry.register(Box::new(series.clone())).expect("each name stands once in this file");
        series
    }

    pub(super) fn counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::new(format!("larder_{name}"), help))
    }

    pub(super) fn gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::new(format!("larder_{name}"), help))
    }

    pub(super) fn counters(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        self.register(IntCounterVec::new(Opts::new(format!("larder_{name}"), help), labels))
    }

    /// Counters of one label, all of whose values are known.
    pub(super) fn prepared(&self, name: &str, help: &str, label: &str, values: &[&str]) -> IntCounterVec {
        let counters = self.counters(name, help, &[label]);
        for value in values {
            counters.with_label_values(&[value]);
        }
        counters
    }

    pub(super) fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(Opts::new(format!("larder_{name}"), help), labels))
    }

    pub(super) fn histograms(&self, name: &str, help: &str, labels: &[&str], buckets: &[f64]) -> HistogramVec {
        let options = HistogramOpts::new(format!("larder_{name}"), help).buckets(buckets.into());
        self.register(HistogramVec::new(options, labels))
    }

    pub(super) fn ages(&self, name: &str, help: &str) -> Histogram {
        let days = [0.01, 0.1, 1.0, 3.0, 7.0, 14.0, 30.0, 90.0].map(|days| days * 86_400.0);
        self.register(Histogram::with_opts(HistogramOpts::new(format!("larder_{name}"), help).buckets(days.into())))
    }
}
