//! Looking after what nobody reads: everything that is held is hashed once per `cache.scrub_interval`, slowly, so that
//! what rots is found while upstream still has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Store;
use super::audit::{Event, Pace, Reply, SHELVES};
use super::hash::Verdict;
use crate::oci::Digest;
use crate::rng::Rng;

/// Bytes a second. Slower than this, a restarted daemon would never come to an end.
const RATE_MIN: u64 = 1 << 20;
/// Faster than this, clients would feel it. Enough for 150 TB in 30 days.
const RATE_MAX: u64 = 64 << 20;
/// After the start, when everybody else wants the disk, too.
const FIRST_WAIT: Duration = Duration::from_secs(120);

impl Store {
    /// Hashes everything that is held, once per `interval`, for as long as it is awaited. Each pass begins at a random
    /// place, so that passes that a restart cuts short come round, too.
    pub async fn scrub(self: Arc<Store>, interval: Duration, rng: Arc<Rng>) {
        self.loaded().await;
        let age = self.lock.marks().examined_at.and_then(|at| self.clock.now().since(at));
        let due = age.map_or(Duration::ZERO, |age| interval.saturating_sub(age));
        tokio::time::sleep(due.max(rng.jitter(FIRST_WAIT))).await;
        loop {
            let begun = Instant::now();
            let first = rng.u128() % (SHELVES as u128);
            self.scrub_once(interval, usize::try_from(first).unwrap_or_default()).await;
            // At least a moment, or an empty cache would be looked through without end.
            tokio::time::sleep(interval.saturating_sub(begun.elapsed()).max(Duration::from_secs(1))).await;
        }
    }

    /// One pass, from a shelf to the one before it. Counts what is found, and puts aside what is damaged.
    async fn scrub_once(self: &Arc<Store>, interval: Duration, first: usize) {
        let rate = (self.ledger().size() / interval.as_secs().max(1)).clamp(RATE_MIN, RATE_MAX);
        tracing::debug!(rate, "a scrub begins");
        let mut listener = |event: Event<'_>| {
            if let Event::Judged(digest, verdict) = event {
                self.count_scrubbed(digest, verdict);
            }
            Reply::PutAside
        };
        if self.audit(first, Pace::Rate(rate), &mut listener).await {
            let store = Arc::clone(self);
            self.gate.run(move || store.all_is_known()).await;
        }
    }

    fn count_scrubbed(&self, digest: &Digest, verdict: &Verdict) {
        let result = match verdict {
            Verdict::Intact => "ok",
            Verdict::Damaged(why) => {
                tracing::error!(%digest, why, "a stored blob was found damaged");
                "damaged"
            }
            Verdict::Unreadable(error) => {
                tracing::warn!(%digest, %error, "a stored blob could not be looked at");
                "error"
            }
        };
        self.metrics.examined(result);
    }
}
