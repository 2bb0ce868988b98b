//! What the cache holds, in the order of last use, and what it occupies. Exact, in RAM, and pure: nothing here touches
//! the disk. (Not moka: TinyLFU refuses large blobs for ever and overshoots; `facts` measured it.)

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::plan::{self, Demand, Hold, Plan, Usage};
use super::uptime::DaemonTime;
use crate::oci::Digest;

/// What is being pulled is not torn apart: for so long, an image of which something is missing leaves last.
pub const GRACE: Duration = Duration::from_secs(10 * 60);

/// Uses of this run come after what earlier ones left at the same millisecond.
const FIRST_USE: u64 = 1 << 63;

/// Something that occupies disk and may be evicted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Item {
    /// A file under `blobs/`.
    Stored(Digest),
    /// An interrupted download that nobody continues at present.
    Partial(Arc<str>, Digest),
}

/// A place in the order of use: the time of the last use, and what tells those of one millisecond apart.
pub type Place = (DaemonTime, u64);

#[derive(Debug)]
struct Entry {
    allocated: u64,
    /// Unique.
    place: Place,
    /// Readers at present; a leased item is no victim.
    leases: u32,
    /// Tells this stay from an earlier one of the same item: whoever read that one is no reader of this.
    stay: u64,
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
    /// On disk by what was known at the last stop, and not entered yet.
    unseen: u64,
    /// What the index knows and nobody has seen; not there for anybody.
    expected: HashMap<Digest, DaemonTime>,
    /// Numbers uses and stays.
    next: u64,
    stored_count: usize,
    items: HashMap<Item, Entry>,
    /// Without what is pinned: that would only be in the way of a plan.
    order: BTreeSet<(Place, Item)>,
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
            unseen: 0,
            expected: HashMap::new(),
            next: FIRST_USE,
            stored_count: 0,
            items: HashMap::new(),
            order: BTreeSet::new(),
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
        self.stored + self.unseen + self.others.load(Ordering::Relaxed)
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
        let usage = |item: &Item| self.items.get(item).map(|entry| (item.clone(), entry.allocated, entry.place.0));
        self.order.iter().map(|(_, item)| item).filter_map(usage).take(count).collect()
    }

    /// Files under `blobs/`.
    pub fn stored_count(&self) -> usize {
        self.stored_count
    }

    /// Loading begins: files of so many bytes are on disk and will be found. They count at once.
    pub fn begin_loading(&mut self, unseen: u64) {
        self.unseen = unseen;
    }

    /// Bytes of what was not found yet.
    pub fn unseen(&self) -> u64 {
        self.unseen
    }

    /// An object may be there, last used then. Until it is found or stored, it is not. Says nothing of what is there.
    pub fn expect(&mut self, digest: Digest, last_used: DaemonTime) {
        if !self.items.contains_key(&Item::Stored(digest)) {
            self.expected.insert(digest, last_used);
        }
    }

    /// A file is there, from an earlier run; `otherwise` is its place if it was not expected. That is no use of it.
    /// Says whether that place was needed.
    pub fn find(&mut self, item: Item, allocated: u64, otherwise: Place) -> bool {
        if self.items.contains_key(&item) {
            return false;
        }
        let mut last_used = None;
        if let Item::Stored(digest) = &item {
            self.unseen = self.unseen.saturating_sub(allocated);
            last_used = self.expected.remove(digest);
        }
        self.enter(item, allocated, (last_used.unwrap_or(otherwise.0), otherwise.1));
        last_used.is_none()
    }

    /// All that is there was found. Returns what was expected and is not.
    pub fn finish_loading(&mut self) -> Vec<Digest> {
        self.unseen = 0;
        std::mem::take(&mut self.expected).into_keys().collect()
    }

    /// Enters an item as the most recently used. One that is there already keeps its size.
    pub fn insert(&mut self, item: Item, allocated: u64, now: DaemonTime) {
        if self.items.contains_key(&item) {
            self.touch(&item, now);
            return;
        }
        if let Item::Stored(digest) = &item {
            self.touched.insert(*digest);
            if self.expected.remove(digest).is_some() {
                // It has taken the place of a file that counts as unseen.
                self.unseen = self.unseen.saturating_sub(allocated);
            }
        }
        let place = (now, self.number());
        self.enter(item, allocated, place);
    }

    fn enter(&mut self, item: Item, allocated: u64, place: Place) {
        self.stored += allocated;
        self.stored_count += usize::from(matches!(item, Item::Stored(_)));
        if !self.is_pinned(&item) {
            self.order.insert((place, item.clone()));
        }
        let stay = self.number();
        self.items.insert(item, Entry { allocated, place, leases: 0, stay, is_leaving: false });
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes an item out; its bytes are free when its file is. What was only expected is expected no longer.
    pub fn remove(&mut self, item: &Item) -> Option<u64> {
        if let Item::Stored(digest) = item {
            self.expected.remove(digest);
        }
        let entry = self.items.remove(item)?;
        self.order.remove(&(entry.place, item.clone()));
        self.stored -= entry.allocated;
        self.stored_count -= usize::from(matches!(item, Item::Stored(_)));
        Some(entry.allocated)
    }

    /// Makes an item the most recently used. Of what is only expected, it is known when it is found.
    pub fn touch(&mut self, item: &Item, now: DaemonTime) {
        if let Item::Stored(digest) = item
            && let Some(last_used) = self.expected.get_mut(digest)
        {
            *last_used = now.max(*last_used);
            self.touched.insert(*digest);
        }
        let (is_pinned, number) = (self.is_pinned(item), self.number());
        if let Some(entry) = self.items.get_mut(item) {
            self.order.remove(&(entry.place, item.clone()));
            entry.place = (now.max(entry.place.0), number);
            if !is_pinned {
                self.order.insert((entry.place, item.clone()));
            }
            if let Item::Stored(digest) = item {
                self.touched.insert(*digest);
            }
        }
    }

    pub fn last_used(&self, item: &Item) -> Option<DaemonTime> {
        self.items.get(item).map(|entry| entry.place.0)
    }

    /// A reader begins; `None` when there is nothing to read. What it gets tells [`Ledger::release`] which stay of the item
    /// it read.
    pub fn lease(&mut self, item: &Item) -> Option<u64> {
        let entry = self.items.get_mut(item).filter(|entry| !entry.is_leaving)?;
        entry.leases += 1;
        Some(entry.stay)
    }

    /// A reader ends. One of an earlier stay of the item was forgotten when that ended.
    pub fn release(&mut self, item: &Item, stay: u64) {
        if let Some(entry) = self.items.get_mut(item).filter(|entry| entry.stay == stay) {
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
                self.order.remove(&(entry.place, item));
            } else {
                self.order.insert((entry.place, item));
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
        let usage = self.order.iter().filter_map(|(_, item)| {
            let entry = self.items.get(item)?;
            Some(Usage { item, allocated: entry.allocated, last_used: entry.place.0 })
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
        let last_used = |digest: &Digest| self.last_used(&Item::Stored(*digest)).or_else(|| self.expected.get(digest).copied());
        touched.into_iter().filter_map(|digest| Some((digest, last_used(&digest)?))).collect()
    }
}

#[cfg(test)]
mod tests;
