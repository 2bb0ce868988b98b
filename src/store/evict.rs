//! What the cache holds, in the order of last use, and what must leave to make room. Exact, in RAM, and pure: nothing
//! here touches the disk. (Not moka: TinyLFU refuses large blobs for ever and overshoots; `facts` measured it.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use crate::clock::Timestamp;
use crate::oci::Digest;

/// Something that occupies disk and may be evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A file under `blobs/`.
    Stored(Digest),
    /// An interrupted download that nobody continues at present.
    Partial(Arc<str>, Digest),
}

/// Not even evicting everything that may leave makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
struct Usage {
    allocated: u64,
    /// Place in the order of use; unique.
    rank: u64,
    last_used: Timestamp,
    /// Readers at present; a leased item is no victim.
    leases: u32,
}

/// Allocated bytes under `max_size`: what is stored, what is promised to fills, and the order in which to let go.
#[derive(Debug)]
pub struct Ledger {
    max_size: u64,
    stored: u64,
    reserved: u64,
    next_rank: u64,
    items: HashMap<Item, Usage>,
    order: BTreeMap<u64, Item>,
    /// Used since the last [`Ledger::take_touched`].
    touched: HashSet<Digest>,
}

impl Ledger {
    pub fn new(max_size: u64) -> Ledger {
        Ledger { max_size, stored: 0, reserved: 0, next_rank: 0, items: HashMap::new(), order: BTreeMap::new(), touched: HashSet::new() }
    }

    /// Bytes stored and reserved.
    pub fn size(&self) -> u64 {
        self.stored + self.reserved
    }

    pub fn contains(&self, item: &Item) -> bool {
        self.items.contains_key(item)
    }

    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    pub fn allocated(&self, item: &Item) -> Option<u64> {
        self.items.get(item).map(|usage| usage.allocated)
    }

    /// Every object that is stored, in no order.
    pub fn stored(&self) -> Vec<Digest> {
        let digest = |item: &Item| if let Item::Stored(digest) = item { Some(*digest) } else { None };
        self.items.keys().filter_map(digest).collect()
    }

    /// The first to leave when room is wanted, with their allocated bytes.
    pub fn next_to_go(&self, count: usize) -> Vec<(Item, u64, Timestamp)> {
        let usage = |item: &Item| self.items.get(item).map(|usage| (item.clone(), usage.allocated, usage.last_used));
        self.order.values().filter_map(usage).take(count).collect()
    }

    pub fn count(&self) -> usize {
        self.items.len()
    }

    /// Enters an item as the most recently used. One that is there already keeps its size.
    pub fn insert(&mut self, item: Item, allocated: u64, now: Timestamp) {
        if self.items.contains_key(&item) {
            self.touch(&item, now);
            return;
        }
        let rank = self.next_rank;
        self.next_rank += 1;
        self.stored += allocated;
        self.order.insert(rank, item.clone());
        if let Item::Stored(digest) = item {
            self.touched.insert(digest);
        }
        self.items.insert(item, Usage { allocated, rank, last_used: now, leases: 0 });
    }

    /// Takes an item out; its bytes are free when its file is.
    pub fn remove(&mut self, item: &Item) -> Option<u64> {
        let usage = self.items.remove(item)?;
        self.order.remove(&usage.rank);
        self.stored -= usage.allocated;
        Some(usage.allocated)
    }

    /// Makes an item the most recently used.
    pub fn touch(&mut self, item: &Item, now: Timestamp) {
        if let Some(usage) = self.items.get_mut(item) {
            self.order.remove(&usage.rank);
            usage.rank = self.next_rank;
            usage.last_used = now;
            self.order.insert(self.next_rank, item.clone());
            self.next_rank += 1;
            if let Item::Stored(digest) = item {
                self.touched.insert(*digest);
            }
        }
    }

    pub fn last_used(&self, item: &Item) -> Option<Timestamp> {
        self.items.get(item).map(|usage| usage.last_used)
    }

    /// A reader begins; `false` when there is nothing to read.
    pub fn lease(&mut self, item: &Item) -> bool {
        self.items.get_mut(item).map(|usage| usage.leases += 1).is_some()
    }

    /// A reader ends.
    pub fn release(&mut self, item: &Item) {
        if let Some(usage) = self.items.get_mut(item) {
            usage.leases = usage.leases.saturating_sub(1);
        }
    }

    /// Promises `bytes` to a fill. The victims must be removed, here and on disk, before the first of the bytes is written.
    ///
    /// # Errors
    /// [`Full`], and nothing is promised.
    pub fn reserve(&mut self, bytes: u64) -> Result<Vec<Item>, Full> {
        let wanted = (self.size() + bytes).saturating_sub(self.max_size);
        let victims = self.plan(wanted)?;
        self.reserved += bytes;
        Ok(victims)
    }

    /// Counts what is there and was not promised: files in quarantine, which no victim makes room for.
    pub fn count_reserved(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    /// Gives a promise back, because the bytes are stored and counted, or will never come.
    pub fn unreserve(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// The least recently used items whose removal frees `wanted` bytes.
    fn plan(&self, wanted: u64) -> Result<Vec<Item>, Full> {
        let mut victims = Vec::new();
        let mut freed = 0;
        let mut candidates = self.order.values();
        while freed < wanted {
            let item = candidates.next().ok_or(Full)?;
            if let Some(usage) = self.items.get(item).filter(|usage| usage.leases == 0) {
                victims.push(item.clone());
                freed += usage.allocated;
            }
        }
        Ok(victims)
    }

    /// What was used since the last call, with the time of its last use: for the index.
    pub fn take_touched(&mut self) -> Vec<(Digest, Timestamp)> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().filter_map(|digest| Some((digest, self.last_used(&Item::Stored(digest))?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    fn item(n: u8) -> Item {
        Item::Stored(Digest::of(Algorithm::Sha256, &[n]))
    }

    fn ledger_of(max_size: u64, sizes: &[u64]) -> Ledger {
        let mut ledger = Ledger::new(max_size);
        for (n, size) in (0..).zip(sizes) {
            ledger.insert(item(n), *size, Timestamp(u64::from(n)));
        }
        ledger
    }

    #[test]
    fn the_least_recently_used_leaves_first() {
        let mut ledger = ledger_of(30, &[10, 10, 10]);
        ledger.touch(&item(0), Timestamp(9));
        assert_eq!(ledger.reserve(15), Ok(vec![item(1), item(2)]));
    }

    #[test]
    fn what_is_being_read_stays() {
        let mut ledger = ledger_of(20, &[10, 10]);
        ledger.lease(&item(0));
        assert_eq!(ledger.reserve(10), Ok(vec![item(1)]));
        ledger.unreserve(10);
        ledger.release(&item(0));
        assert_eq!(ledger.reserve(10), Ok(vec![item(0)]));
    }

    #[test]
    fn a_promise_that_cannot_be_kept_is_not_made() {
        let mut ledger = ledger_of(20, &[10]);
        assert_eq!(ledger.reserve(21), Err(Full));
        assert_eq!(ledger.size(), 10);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fill(u8, u64),
        Touch(u8),
        Lease(u8),
        Release(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..20u8, 0..60u64).prop_map(|(n, size)| Step::Fill(n, size)),
            (0..20u8).prop_map(Step::Touch),
            (0..20u8).prop_map(Step::Lease),
            (0..20u8).prop_map(Step::Release),
        ]
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_no_leased_item_leaves(steps in proptest::collection::vec(step(), 0..200)) {
            let mut ledger = Ledger::new(100);
            let mut leases: HashMap<u8, u32> = HashMap::new();
            for (now, step) in (0..).zip(steps) {
                let now = Timestamp(now);
                match step {
                    Step::Fill(n, size) => {
                        if let Ok(victims) = ledger.reserve(size) {
                            for victim in &victims {
                                prop_assert!(!leases.iter().any(|(n, count)| *count > 0 && item(*n) == *victim));
                                ledger.remove(victim);
                            }
                            prop_assert!(ledger.size() <= 100);
                            ledger.unreserve(size);
                            ledger.insert(item(n), size, now);
                        }
                    }
                    Step::Touch(n) => ledger.touch(&item(n), now),
                    Step::Lease(n) => if ledger.lease(&item(n)) { *leases.entry(n).or_default() += 1 },
                    Step::Release(n) => if let Some(count) = leases.get_mut(&n).filter(|count| **count > 0) {
                        *count -= 1;
                        ledger.release(&item(n));
                    },
                }
                prop_assert!(ledger.size() <= 100);
                prop_assert_eq!(ledger.stored, ledger.items.values().map(|usage| usage.allocated).sum::<u64>());
                prop_assert_eq!(ledger.order.len(), ledger.items.len());
            }
        }
    }
}
