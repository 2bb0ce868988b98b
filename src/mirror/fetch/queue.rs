//! The places for downloads: so many in all and of each upstream, with gauges. Who waits, waits in a `queue`; what no client waits for lets others
//! go before. Knows no blob.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::queue::{Overloaded, Queue, Rank, Running};

/// How long what no client waits for lets others go before, and how often it looks.
const CALM_TIMEOUT: Duration = Duration::from_secs(60);
const CALM_INTERVAL: Duration = Duration::from_millis(250);

/// All downloads that run or wait to.
pub struct Downloads {
    queue: Arc<Queue>,
    running_max: usize,
    timeout: Duration,
}

impl Downloads {
    /// `running_max` at a time; one waits for `timeout` at most.
    pub fn new(running_max: usize, timeout: Duration, metrics: Arc<Metrics>) -> Downloads {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let observer = move |running, waiting| {
            metrics.fills_in_flight.set(gauge(running));
            metrics.fills_queued.set(gauge(waiting));
        };
        Downloads { queue: Arc::new(Queue::new(running_max, observer)), running_max, timeout }
    }

    /// Waits for a place, of which this upstream may have `upstream_max`.
    ///
    /// # Errors
    /// When there is none in time, or too many wait already.
    pub async fn place(&self, upstream: &Arc<str>, upstream_max: usize) -> Result<Running, Overloaded> {
        self.queue.turn(upstream, upstream_max, Rank::Usual, self.timeout).await
    }

    /// Waits while others wait for their turn or take most of the places, but not for ever: then who waits here queues like
    /// everybody.
    pub async fn calm(&self) {
        let until = Instant::now() + CALM_TIMEOUT;
        while self.is_busy() && Instant::now() < until {
            tokio::time::sleep(CALM_INTERVAL).await;
        }
    }

    fn is_busy(&self) -> bool {
        let (running, waiting) = self.queue.load();
        waiting > 0 || running > 0 && running * 4 >= self.running_max * 3
    }
}
