//! What the index is told beside what comes and goes: uses, once a minute; and all there is, slowly, after it was lost.

use parking_lot::Mutex;

use super::Store;
use super::evict::Item;
use super::index::Record;
use crate::oci::Digest;

/// Objects that are put each time, while the index is filled again: half a second of one processor.
const PORTION: usize = 20_000;
/// As many as the ledger is asked for while others wait for it.
const BATCH: usize = 1000;

#[derive(Default)]
pub(super) struct Hints {
    /// Where to go on with filling the index again.
    refill: Mutex<Option<usize>>,
}

impl Store {
    /// Tells the index what it should know by now. To be called before daemon time is written down. Blocks.
    pub(super) fn hint(&self) {
        // As often as daemon time: a use that is written twice a minute says no more than the last.
        if self.uptime.is_due() {
            self.tell_uses();
        }
        if self.index.take_loss() {
            self.refill_index();
        }
        let mut refill = self.hints.refill.lock();
        if let Some(from) = refill.take() {
            *refill = self.put_portion(from);
        }
    }

    pub(super) fn tell_uses(&self) {
        let used = self.ledger().take_touched();
        if !used.is_empty() {
            self.index.touch(used);
        }
    }

    /// The index lacks what it was told before.
    pub(super) fn refill_index(&self) {
        tracing::info!("the index is filled again from what is known");
        *self.hints.refill.lock() = Some(0);
    }

    /// Says where to go on.
    fn put_portion(&self, from: usize) -> Option<usize> {
        let mut next = Some(from);
        for _ in 0..PORTION / BATCH {
            let (digests, then) = self.ledger().stored_from(next?, BATCH);
            let records = digests.into_iter().filter_map(|digest| Some((digest, self.record(&digest)?))).collect();
            if !self.index.put_many(records) {
                return None;
            }
            next = then;
        }
        next
    }

    fn record(&self, digest: &Digest) -> Option<Record> {
        let last_used = self.ledger().last_used(&Item::Stored(*digest))?;
        Some(Record { last_used, children: self.children(digest) })
    }
}
