//! Looking after what nobody reads: everything that is held is hashed once per `cache.scrub_interval`, slowly, so that
//! what rots is found while upstream still has it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Store;
use super::rehash::Verdict;
use crate::oci::{Algorithm, Digest};
use crate::rng::Rng;

/// Bytes a second. Slower than this, a restarted daemon would never come to an end.
const RATE_MIN: u64 = 1 << 20;
/// Faster than this, clients would feel it. Enough for 150 TB in 30 days.
const RATE_MAX: u64 = 64 << 20;
/// Hashed at a time.
const SLICE_BYTES: u64 = 1 << 20;
/// A file costs as much as so many bytes, however small it is: disks have to seek.
const FILE_BYTES: u64 = 64 << 10;
/// So much slower while clients need the disk.
const BUSY_FACTOR: u32 = 10;
/// After the start, when everybody else wants the disk, too.
const FIRST_WAIT: Duration = Duration::from_secs(120);
/// Directories below `blobs/<algorithm>/`: one for each first byte.
const SHELVES: usize = 256;

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

    /// One pass, from a shelf to the one before it.
    async fn scrub_once(self: &Arc<Store>, interval: Duration, first: usize) {
        let rate = (self.ledger().size() / interval.as_secs().max(1)).clamp(RATE_MIN, RATE_MAX);
        tracing::debug!(rate, "a scrub begins");
        let mut whole = true;
        for shelf in (0..SHELVES).cycle().skip(first).take(SHELVES) {
            for algorithm in Algorithm::ALL {
                whole &= self.scrub_shelf(algorithm, shelf, rate).await;
            }
        }
        if whole {
            let store = Arc::clone(self);
            self.gate.run(move || store.all_is_known()).await;
        }
    }

    /// `false` when something could not be looked at.
    async fn scrub_shelf(self: &Arc<Store>, algorithm: Algorithm, shelf: usize, rate: u64) -> bool {
        let Some(digests) = self.shelf(algorithm, shelf).await else { return false };
        let mut whole = true;
        for digest in digests {
            if let Some(verdict) = self.scrub_object(&digest, rate).await {
                whole &= !matches!(verdict, Verdict::Unreadable(_));
                self.settle_scrubbed(digest, verdict).await;
            }
        }
        whole
    }

    /// What a shelf's directory names, in order; `None` when the disk fails.
    pub(super) async fn shelf(self: &Arc<Store>, algorithm: Algorithm, shelf: usize) -> Option<Vec<Digest>> {
        let store = Arc::clone(self);
        let list = move || {
            let directory = store.layout.blobs().join(algorithm.as_str()).join(format!("{shelf:02x}"));
            // What cannot be read was reported.
            let entries = store.walk.shelf(algorithm, &directory).ok()?;
            let mut digests: Vec<Digest> =
                entries.iter().filter_map(|entry| Digest::from_parts(algorithm.as_str(), &entry.name).ok()).collect();
            digests.sort_unstable();
            Some(digests)
        };
        self.gate.run(list).await
    }

    async fn scrub_object(self: &Arc<Store>, digest: &Digest, rate: u64) -> Option<Verdict> {
        let mut examined = match self.examine(digest).await? {
            Ok(examined) => examined,
            Err(verdict) => return Some(verdict),
        };
        self.pause(FILE_BYTES, rate).await;
        let mut done = 0;
        while done < examined.rehash.len() {
            match examined.rehash.step(&self.gate, SLICE_BYTES).await {
                Ok(now) => {
                    self.pause(now - done, rate).await;
                    done = now;
                }
                Err(error) => return Some(examined.rehash.verdict(Err(error))),
            }
        }
        Some(examined.rehash.verdict(Ok(())))
    }

    async fn pause(&self, bytes: u64, rate: u64) {
        let pause = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        tokio::time::sleep(if self.gate.is_busy() { pause * BUSY_FACTOR } else { pause }).await;
    }

    /// Counts what was found, and puts aside what is damaged.
    async fn settle_scrubbed(self: &Arc<Store>, digest: Digest, verdict: Verdict) {
        match verdict {
            Verdict::Intact => {
                self.vouch_for(&digest);
                self.metrics.examined("ok");
            }
            Verdict::Damaged(why) => {
                tracing::error!(%digest, why, "a stored blob was found damaged");
                self.metrics.examined("damaged");
                let store = Arc::clone(self);
                self.gate.run(move || store.quarantine(&digest)).await;
            }
            Verdict::Unreadable(error) => {
                tracing::warn!(%digest, %error, "a stored blob could not be looked at");
                self.metrics.examined("error");
            }
        }
    }
}
