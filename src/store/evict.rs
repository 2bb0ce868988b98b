//! What the cache holds, in the order of last use, and what it occupies. Exact, in RAM, and pure: nothing here touches
//! the disk. (Not moka: TinyLFU refuses large blobs for ever and overshoots; `facts` measured it.)

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::plan::{self, Demand, Hold, Plan, Usage};
use super::uptime::DaemonTime;
use crate::oci::Digest;

/// What is being pulled is not torn apart: for so long, an image of which something is missing leaves last.
pub const GRACE: Duration = Duration::from_secs(10 * 60);

/// Something that occupies disk and may be evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A file under `blobs/`.
    Stored(Digest),
    /// An interrupted download that nobody continues at present.
    Partial(Arc<str>, Digest),
}

#[derive(Debug)]
struct Entry {
    allocated: u64,
    /// Place in the order of use; unique.
    rank: u64,
    last_used: DaemonTime,
    /// Readers at present; a leased item is no victim.
    leases: u32,
    /// Its file is being removed: nobody may begin to read it.
    is_leaving: bool,
}

/// Allocated bytes under `max_size`: what is stored, what is promised to fills, and the order in which to let go.
#[derive(Debug)]
pub struct Ledger {
    max_size: u64,
    stored: u64,
    reserved: u64,
    /// What is no item: records and directories. Whoever writes them counts here.
    others: Arc<AtomicU64>,
    next_rank: u64,
    stored_count: usize,
    items: HashMap<Item, Entry>,
    /// Without what is pinned: that would only be in the way of a plan.
    order: BTreeMap<u64, Item>,
    pinned: HashSet<Digest>,
    /// Used since the last [`Ledger::take_touched`].
    touched: HashSet<Digest>,
}

impl Ledger {
    pub fn new(max_size: u64) -> Ledger {
        Ledger {
            max_size,
            stored: 0,
            reserved: 0,
            others: Arc::default(),
            next_rank: 0,
            stored_count: 0,
            items: HashMap::new(),
            order: BTreeMap::new(),
            pinned: HashSet::new(),
            touched: HashSet::new(),
        }
    }

    /// The counter of what is no item.
    pub fn others(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.others)
    }

    pub fn max_size(&self) -> u64 {
        self.max_size
    }

    /// Bytes on disk and reserved.
    pub fn size(&self) -> u64 {
        self.at_rest() + self.reserved
    }

    /// Bytes on disk, without what fills are writing.
    pub fn at_rest(&self) -> u64 {
        self.stored + self.others.load(Ordering::Relaxed)
    }

    pub fn contains(&self, item: &Item) -> bool {
        self.items.get(item).is_some_and(|entry| !entry.is_leaving)
    }

    pub fn allocated(&self, item: &Item) -> Option<u64> {
        self.items.get(item).map(|entry| entry.allocated)
    }

    /// Every object that is stored, in no order.
    pub fn stored(&self) -> Vec<Digest> {
        let digest = |item: &Item| if let Item::Stored(digest) = item { Some(*digest) } else { None };
        self.items.keys().filter_map(digest).collect()
    }

    /// The first to leave when room is wanted, with their allocated bytes.
    pub fn next_to_go(&self, count: usize) -> Vec<(Item, u64, DaemonTime)> {
        let usage = |item: &Item| self.items.get(item).map(|entry| (item.clone(), entry.allocated, entry.last_used));
        self.order.values().filter_map(usage).take(count).collect()
    }

    /// Files under `blobs/`.
    pub fn stored_count(&self) -> usize {
        self.stored_count
    }

    /// Enters an item as the most recently used. One that is there already keeps its size.
    pub fn insert(&mut self, item: Item, allocated: u64, now: DaemonTime) {
        if self.items.contains_key(&item) {
            self.touch(&item, now);
            return;
        }
        let rank = self.next_rank;
        self.next_rank += 1;
        self.stored += allocated;
        if !self.is_pinned(&item) {
            self.order.insert(rank, item.clone());
        }
        if let Item::Stored(digest) = item {
            self.stored_count += 1;
            self.touched.insert(digest);
        }
        self.items.insert(item, Entry { allocated, rank, last_used: now, leases: 0, is_leaving: false });
    }

    /// Takes an item out; its bytes are free when its file is.
    pub fn remove(&mut self, item: &Item) -> Option<u64> {
        let entry = self.items.remove(item)?;
        self.order.remove(&entry.rank);
        self.stored -= entry.allocated;
        self.stored_count -= usize::from(matches!(item, Item::Stored(_)));
        Some(entry.allocated)
    }

    /// Makes an item the most recently used.
    pub fn touch(&mut self, item: &Item, now: DaemonTime) {
        let is_pinned = self.is_pinned(item);
        if let Some(entry) = self.items.get_mut(item) {
            self.order.remove(&entry.rank);
            entry.rank = self.next_rank;
            entry.last_used = now;
            if !is_pinned {
                self.order.insert(self.next_rank, item.clone());
            }
            self.next_rank += 1;
            if let Item::Stored(digest) = item {
                self.touched.insert(*digest);
            }
        }
    }

    pub fn last_used(&self, item: &Item) -> Option<DaemonTime> {
        self.items.get(item).map(|entry| entry.last_used)
    }

    /// A reader begins; `false` when there is nothing to read.
    pub fn lease(&mut self, item: &Item) -> bool {
        let entry = self.items.get_mut(item).filter(|entry| !entry.is_leaving);
        entry.map(|entry| entry.leases += 1).is_some()
    }

    /// A reader ends.
    pub fn release(&mut self, item: &Item) {
        if let Some(entry) = self.items.get_mut(item) {
            entry.leases = entry.leases.saturating_sub(1);
        }
    }

    /// A victim's file is about to be removed; `false` when somebody came before and it must stay.
    pub fn condemn(&mut self, item: &Item) -> bool {
        let is_pinned = self.is_pinned(item);
        let entry = self.items.get_mut(item).filter(|entry| entry.leases == 0 && !is_pinned);
        entry.map(|entry| entry.is_leaving = true).is_some()
    }

    /// A victim's file could not be removed, and occupies the disk as before. Others are tried first from now on.
    pub fn spare(&mut self, item: &Item, now: DaemonTime) {
        if let Some(entry) = self.items.get_mut(item) {
            entry.is_leaving = false;
        }
        self.touch(item, now);
    }

    /// Says anew what is pinned: these, as far as they are here or come.
    pub fn pin(&mut self, pinned: HashSet<Digest>) {
        let before = std::mem::replace(&mut self.pinned, pinned);
        for digest in before.symmetric_difference(&self.pinned) {
            let item = Item::Stored(*digest);
            let Some(entry) = self.items.get(&item) else { continue };
            if self.pinned.contains(digest) {
                self.order.remove(&entry.rank);
            } else {
                self.order.insert(entry.rank, item);
            }
        }
    }

    pub fn is_pinned(&self, item: &Item) -> bool {
        matches!(item, Item::Stored(digest) if self.pinned.contains(digest))
    }

    /// Promises `bytes` to a fill, for which room was made.
    pub fn reserve(&mut self, bytes: u64) {
        self.reserved += bytes;
    }

    /// Gives a promise back, because the bytes are stored and counted, or will never come.
    pub fn unreserve(&mut self, bytes: u64) {
        self.reserved = self.reserved.saturating_sub(bytes);
    }

    /// What must leave to meet a demand. `is_half_pulled` is asked about what was used within [`GRACE`].
    pub fn plan(&self, demand: Demand, now: DaemonTime, is_half_pulled: &dyn Fn(&Ledger, &Digest) -> bool) -> Plan {
        let usage = self.order.values().filter_map(|item| {
            let entry = self.items.get(item)?;
            Some(Usage { item, allocated: entry.allocated, last_used: entry.last_used })
        });
        plan::plan(usage, demand, |usage| {
            let Some(entry) = self.items.get(usage.item) else { return Hold::Fast };
            let is_young = now.since(usage.last_used) < GRACE;
            match usage.item {
                _ if entry.leases > 0 || entry.is_leaving => Hold::Fast,
                Item::Stored(digest) if is_young && is_half_pulled(self, digest) => Hold::Grace,
                _ => Hold::None,
            }
        })
    }

    /// What was used since the last call, with the time of its last use: for the index.
    pub fn take_touched(&mut self) -> Vec<(Digest, DaemonTime)> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().filter_map(|digest| Some((digest, self.last_used(&Item::Stored(digest))?))).collect()
    }

    /// How an item stands in the order of use.
    pub fn standing(&self, item: &Item) -> Option<Standing> {
        let entry = self.items.get(item).filter(|entry| !entry.is_leaving)?;
        let is_read = entry.leases > 0;
        Some(Standing {
            rank: entry.rank,
            allocated: entry.allocated,
            last_used: entry.last_used,
            is_read,
            is_pinned: self.is_pinned(item),
        })
    }

    /// How many items stand in the order of use, and how many bytes they have, from one rank on and before another; at most
    /// so many at a time, and where to go on.
    pub fn ahead(&self, from: u64, before: u64, at_most: usize) -> (u64, u64, Option<u64>) {
        let (mut items, mut bytes) = (0, 0);
        for (rank, item) in self.order.range(from..before.max(from)) {
            if items == at_most as u64 {
                return (items, bytes, Some(*rank));
            }
            items += 1;
            bytes += self.items.get(item).map_or(0, |entry| entry.allocated);
        }
        (items, bytes, None)
    }

    /// Items that would go for room, sooner or later.
    pub fn ordered_count(&self) -> usize {
        self.order.len()
    }
}

/// How an item stands in the order of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Less is sooner; says nothing by itself.
    pub rank: u64,
    pub allocated: u64,
    pub last_used: DaemonTime,
    /// Somebody reads it.
    pub is_read: bool,
    pub is_pinned: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    fn digest(n: u8) -> Digest {
        Digest::of(Algorithm::Sha256, &[n])
    }

    fn item(n: u8) -> Item {
        Item::Stored(digest(n))
    }

    fn ledger_of(max_size: u64, sizes: &[u64]) -> Ledger {
        let mut ledger = Ledger::new(max_size);
        for (n, size) in (0..).zip(sizes) {
            ledger.insert(item(n), *size, DaemonTime(u64::from(n)));
        }
        ledger
    }

    fn victims(ledger: &Ledger, bytes: u64, now: DaemonTime, half_pulled: &[u8]) -> Option<Vec<Item>> {
        let size = (ledger.size() + bytes).saturating_sub(ledger.max_size());
        let demand = Demand { size, ..Demand::default() };
        let plan = ledger.plan(demand, now, &|_, digest| half_pulled.iter().any(|n| super::tests::digest(*n) == *digest));
        (plan.missing == 0).then(|| plan.victims.into_iter().map(|victim| victim.item).collect())
    }

    const NOW: DaemonTime = DaemonTime(10);

    #[test]
    fn the_least_recently_used_leaves_first() {
        let mut ledger = ledger_of(30, &[10, 10, 10]);
        ledger.touch(&item(0), DaemonTime(9));
        assert_eq!(victims(&ledger, 15, NOW, &[]), Some(vec![item(1), item(2)]));
    }

    #[test]
    fn what_is_being_read_stays() {
        let mut ledger = ledger_of(20, &[10, 10]);
        ledger.lease(&item(0));
        assert_eq!(victims(&ledger, 10, NOW, &[]), Some(vec![item(1)]));
        assert!(!ledger.condemn(&item(0)));
        ledger.release(&item(0));
        assert_eq!(victims(&ledger, 10, NOW, &[]), Some(vec![item(0)]));
    }

    #[test]
    fn what_is_leaving_is_not_there_and_what_could_not_leave_is() {
        let mut ledger = ledger_of(20, &[10, 10]);
        assert!(ledger.condemn(&item(0)) && !ledger.lease(&item(0)) && !ledger.contains(&item(0)));
        assert_eq!(ledger.size(), 20);
        ledger.spare(&item(0), NOW);
        assert!(ledger.contains(&item(0)));
        assert_eq!(victims(&ledger, 10, NOW, &[]), Some(vec![item(1)]));
    }

    #[test]
    fn what_is_pinned_stays_also_what_comes_later_and_is_let_go_in_its_place() {
        let mut ledger = ledger_of(30, &[10, 10]);
        ledger.pin([digest(0), digest(2)].into());
        ledger.insert(item(2), 10, DaemonTime(2));
        ledger.touch(&item(2), DaemonTime(3));
        assert_eq!(victims(&ledger, 10, NOW, &[]), Some(vec![item(1)]));
        assert_eq!(victims(&ledger, 11, NOW, &[]), None);
        ledger.pin([digest(2)].into());
        assert_eq!(victims(&ledger, 11, NOW, &[]), Some(vec![item(0), item(1)]));
    }

    #[test]
    fn what_is_being_pulled_leaves_last_for_ten_minutes() {
        let ledger = ledger_of(20, &[10, 10]);
        assert_eq!(victims(&ledger, 10, NOW, &[0]), Some(vec![item(1)]));
        assert_eq!(victims(&ledger, 11, NOW, &[0]), Some(vec![item(1), item(0)]));
        assert_eq!(victims(&ledger, 10, DaemonTime(0).plus(GRACE), &[0]), Some(vec![item(0)]));
    }

    #[test]
    fn what_is_ahead_of_an_item_is_told_in_pieces_and_changes_nothing() {
        let mut ledger = ledger_of(100, &[10, 20, 30, 5]);
        ledger.pin([digest(1)].into());
        ledger.touch(&item(0), DaemonTime(9));
        let standing = ledger.standing(&item(0)).expect("an item");
        assert_eq!((standing.allocated, standing.last_used, standing.is_read, standing.is_pinned), (10, DaemonTime(9), false, false));
        assert_eq!(ledger.ahead(0, standing.rank, 9), (2, 35, None));
        let (items, bytes, next) = ledger.ahead(0, standing.rank, 1);
        assert_eq!((items, bytes), (1, 30));
        assert_eq!(ledger.ahead(next.expect("more"), standing.rank, 1), (1, 5, None));
        assert_eq!((ledger.ordered_count(), ledger.standing(&item(9))), (3, None));
        assert!(ledger.standing(&item(1)).is_some_and(|standing| standing.is_pinned));
        assert!(ledger.condemn(&item(2)) && ledger.standing(&item(2)).is_none());
    }

    #[test]
    fn a_promise_that_cannot_be_kept_is_not_made() {
        let ledger = ledger_of(20, &[10]);
        assert_eq!(victims(&ledger, 21, NOW, &[]), None);
        ledger.others().fetch_add(1, Ordering::Relaxed);
        assert_eq!(victims(&ledger, 20, NOW, &[]), None);
        assert_eq!(ledger.size(), 11);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Fill(u8, u64),
        Touch(u8),
        Lease(u8),
        Release(u8),
        Pin(Vec<u8>),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..20u8, 0..60u64).prop_map(|(n, size)| Step::Fill(n, size)),
            4 => (0..20u8).prop_map(Step::Touch),
            4 => (0..20u8).prop_map(Step::Lease),
            4 => (0..20u8).prop_map(Step::Release),
            1 => proptest::collection::vec(0..20u8, 0..4).prop_map(Step::Pin),
        ]
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_nothing_leased_or_pinned_leaves(steps in proptest::collection::vec(step(), 0..200)) {
            let mut ledger = Ledger::new(100);
            let mut leases: HashMap<u8, u32> = HashMap::new();
            let mut pinned: Vec<u8> = Vec::new();
            for (now, step) in (0..).zip(steps) {
                let now = DaemonTime(now);
                match step {
                    Step::Fill(n, size) => {
                        if let Some(victims) = victims(&ledger, size, now, &[3, 4]) {
                            for victim in &victims {
                                prop_assert!(!leases.iter().any(|(n, count)| *count > 0 && item(*n) == *victim));
                                prop_assert!(!pinned.iter().any(|n| item(*n) == *victim));
                                prop_assert!(ledger.condemn(victim));
                                ledger.remove(victim);
                            }
                            ledger.reserve(size);
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
                    Step::Pin(all) => {
                        ledger.pin(all.iter().map(|n| digest(*n)).collect());
                        pinned = all;
                    }
                }
                prop_assert!(ledger.size() <= 100);
                prop_assert_eq!(ledger.stored, ledger.items.values().map(|entry| entry.allocated).sum::<u64>());
                prop_assert_eq!(ledger.stored_count, ledger.items.len());
                let pinned = ledger.items.keys().filter(|item| ledger.is_pinned(item)).count();
                prop_assert_eq!(ledger.order.len() + pinned, ledger.items.len());
                prop_assert!(ledger.order.iter().all(|(rank, item)| ledger.items[item].rank == *rank));
            }
        }
    }
}
