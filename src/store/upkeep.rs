//! What is done every few seconds, and at the end.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Store;
use super::lock::Sizes;

impl Store {
    /// Writes down what was used, keeps headroom, and says what the gauges should. To be called every few seconds.
    pub async fn tend(self: &Arc<Store>) {
        let store = Arc::clone(self);
        let work = move || {
            store.sweep();
            store.read_again();
            store.tidy();
            store.hint();
            store.look_after();
            store.observe();
        };
        self.gate.run(work).await;
    }

    /// Waits, for `within` at most, until all work on the directory has ended, and lets none begin any more: no
    /// download writes on, no record is written, no purge, verify or prefetch goes on behind the last sync. Returns
    /// whether it has.
    pub async fn end_work(&self, within: Duration) -> bool {
        let has_ended = self.gate.close(within).await;
        if !has_ended {
            let seconds = within.as_secs();
            tracing::warn!(seconds, "work on the cache directory did not end in time; the next start doubts what it finds");
        }
        has_ended
    }

    /// The last words of a stop. It is marked as clean if all work on the directory has ended: else something may be
    /// written after the sync. Blocks.
    pub fn close(&self, has_work_ended: bool) {
        if let Err(error) = self.stop_listening() {
            tracing::debug!(%error, "control.sock stays behind");
        }
        self.tell_uses();
        if let Err(error) = self.uptime.write() {
            tracing::warn!(%error, "daemon time was not written down; the last minute of it is forgotten");
        }
        self.loading.give_up();
        if !has_work_ended {
            return;
        }
        let sizes = {
            let ledger = self.ledger();
            Sizes { blobs: ledger.at_rest() - ledger.others().load(Ordering::Relaxed), others: ledger.others().load(Ordering::Relaxed) }
        };
        // Idle partials are found anew, and at once.
        self.lock.leave_cleanly((!self.loading.is_under_way()).then_some(sizes));
    }

    pub(super) fn observe(&self) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (size, items) = {
            let ledger = self.ledger();
            (ledger.size() - ledger.unseen(), ledger.stored_count())
        };
        let manifests = self.links().manifest_count();
        self.metrics.cache_size.set(gauge(size));
        self.metrics.objects(items.saturating_sub(manifests) as u64, manifests as u64);
    }
}
