//! What the cache holds, in the order of last use, and what it occupies. Exact, in RAM, and pure: nothing here touches
//! the disk. (Not moka: TinyLFU refuses large blobs for ever and overshoots; `facts` measured it.)

mod items;
mod order;
pub(super) mod plan;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use self::items::{Entry, Items, Key};
use self::order::Order;
use self::plan::{Demand, Hold, Plan, Usage, Victim};
use super::names::{Id, Names};
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

/// Readers of an item at present; an item with readers is no victim.
#[derive(Debug)]
struct Readers {
    count: u32,
    /// Tells them from those of an earlier item of this name: whoever read that one is no reader of this.
    stay: u64,
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
    /// Numbers uses and stays.
    next: u64,
    stored_count: usize,
    items: Items,
    /// Without what is pinned: that would only be in the way of a plan.
    order: Order,
    readers: HashMap<Key, Readers>,
    pinned: HashSet<Digest>,
    /// Used since the last [`Ledger::take_touched`].
    touched: HashSet<Key>,
}

impl Ledger {
    pub fn new(max_size: u64) -> Ledger {
        Ledger {
            max_size,
            stored: 0,
            reserved: 0,
            others: Arc::default(),
            unseen: 0,
            next: FIRST_USE,
            stored_count: 0,
            items: Items::default(),
            order: Order::default(),
            readers: HashMap::new(),
            pinned: HashSet::new(),
            touched: HashSet::new(),
        }
    }

    /// The digests' numbers, for whoever else knows things of objects.
    pub fn names(&self) -> Arc<Names> {
        Arc::clone(self.items.names())
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

    fn entry(&self, item: &Item) -> Option<&Entry> {
        self.items.get(self.items.key(item)?)
    }

    pub fn contains(&self, item: &Item) -> bool {
        self.entry(item).is_some_and(|entry| !entry.is_leaving)
    }

    pub fn allocated(&self, item: &Item) -> Option<u64> {
        self.entry(item).map(|entry| entry.allocated)
    }

    /// What the objects among these occupy together.
    pub fn allocated_by(&self, ids: impl IntoIterator<Item = Id>) -> u64 {
        ids.into_iter().filter_map(|id| self.items.get(Key::stored(id))).map(|entry| entry.allocated).sum()
    }

    /// At most `count` objects that are stored, from a place in no order (at first 0), and the place to go on from.
    pub fn stored_from(&self, start: usize, count: usize) -> (Vec<Digest>, Option<usize>) {
        self.items.stored_from(start, count)
    }

    /// Every object that is stored, in no order.
    #[cfg(test)]
    pub fn stored(&self) -> Vec<Digest> {
        self.stored_from(0, usize::MAX).0
    }

    /// The first to leave when room is wanted, with their allocated bytes.
    pub fn next_to_go(&self, count: usize) -> Vec<(Item, Standing)> {
        let standing = |item: Item| self.standing(&item).map(|standing| (item, standing));
        self.order.keys().filter_map(|key| standing(self.items.item(key)?)).take(count).collect()
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
        self.items.expect(&digest, last_used);
    }

    /// A file is there, from an earlier run; `otherwise` is its place if it was not expected. That is no use of it.
    /// Says whether that place was needed.
    pub fn find(&mut self, item: Item, allocated: u64, otherwise: Place) -> bool {
        if self.items.key(&item).is_some() {
            return false;
        }
        let mut last_used = None;
        if let Item::Stored(digest) = &item {
            self.unseen = self.unseen.saturating_sub(allocated);
            last_used = self.items.expected_mut(digest).map(|(_, last_used)| *last_used);
        }
        self.enter(item, allocated, (last_used.unwrap_or(otherwise.0), otherwise.1));
        last_used.is_none()
    }

    /// All that is there was found. Returns what was expected and is not.
    pub fn finish_loading(&mut self) -> Vec<Digest> {
        self.unseen = 0;
        self.items.take_all_expected()
    }

    /// Enters an item as the most recently used. One that is there already keeps its size.
    pub fn insert(&mut self, item: Item, allocated: u64, now: DaemonTime) {
        if self.items.key(&item).is_some() {
            self.touch(&item, now);
            return;
        }
        if let Item::Stored(digest) = &item
            && self.items.expected_mut(digest).is_some()
        {
            // It has taken the place of a file that counts as unseen.
            self.unseen = self.unseen.saturating_sub(allocated);
        }
        let place = (now, self.number());
        let key = self.enter(item, allocated, place);
        self.touched.insert(key);
    }

    fn enter(&mut self, item: Item, allocated: u64, place: Place) -> Key {
        self.stored += allocated;
        self.stored_count += usize::from(matches!(item, Item::Stored(_)));
        let key = self.items.enter(&item, Entry { allocated, place, is_leaving: false });
        if !self.is_pinned(&item) {
            self.order.insert(place, key, |key| self.items.place(key));
        }
        key
    }

    /// Grows with every use of anything.
    pub fn uses(&self) -> u64 {
        self.next
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes an item out; its bytes are free when its file is. What was only expected is expected no longer.
    pub fn remove(&mut self, item: &Item) -> Option<u64> {
        if let Item::Stored(digest) = item {
            self.items.drop_expected(digest);
        }
        let key = self.items.key(item)?;
        let entry = self.items.remove(key)?;
        self.order.remove(entry.place, key);
        self.readers.remove(&key);
        self.stored -= entry.allocated;
        self.stored_count -= usize::from(matches!(item, Item::Stored(_)));
        Some(entry.allocated)
    }

    /// Makes an item the most recently used. Of what is only expected, it is known when it is found.
    pub fn touch(&mut self, item: &Item, now: DaemonTime) {
        if let Item::Stored(digest) = item
            && let Some((key, last_used)) = self.items.expected_mut(digest)
        {
            *last_used = now.max(*last_used);
            self.touched.insert(key);
        }
        let (is_pinned, number) = (self.is_pinned(item), self.number());
        let Some(key) = self.items.key(item) else { return };
        let Some(entry) = self.items.get_mut(key) else { return };
        self.order.remove(entry.place, key);
        let place = (now.max(entry.place.0), number);
        entry.place = place;
        if !is_pinned {
            self.order.insert(place, key, |key| self.items.place(key));
        }
        self.touched.insert(key);
    }

    pub fn last_used(&self, item: &Item) -> Option<DaemonTime> {
        self.entry(item).map(|entry| entry.place.0)
    }

    /// A reader begins; `None` when there is nothing to read. What it gets tells [`Ledger::release`] which stay of the item
    /// it read.
    pub fn lease(&mut self, item: &Item) -> Option<u64> {
        let key = self.items.key(item)?;
        if self.items.get(key)?.is_leaving {
            return None;
        }
        let stay = self.number();
        let readers = self.readers.entry(key).or_insert(Readers { count: 0, stay });
        readers.count += 1;
        Some(readers.stay)
    }

    /// A reader ends. One of an earlier stay of the item was forgotten when that ended.
    pub fn release(&mut self, item: &Item, stay: u64) {
        let Some(key) = self.items.key(item) else { return };
        if let Some(readers) = self.readers.get_mut(&key).filter(|readers| readers.stay == stay) {
            readers.count -= 1;
            if readers.count == 0 {
                self.readers.remove(&key);
            }
        }
    }

    /// A victim's file is about to be removed; `false` when somebody came before and it must stay.
    pub fn condemn(&mut self, item: &Item) -> bool {
        let Some(key) = self.items.key(item) else { return false };
        if self.readers.contains_key(&key) || self.is_pinned(item) {
            return false;
        }
        self.items.get_mut(key).map(|entry| entry.is_leaving = true).is_some()
    }

    /// A victim's file could not be removed, and occupies the disk as before. Others are tried first from now on.
    pub fn spare(&mut self, item: &Item, now: DaemonTime) {
        if let Some(entry) = self.items.key(item).and_then(|key| self.items.get_mut(key)) {
            entry.is_leaving = false;
        }
        self.touch(item, now);
    }

    /// Says anew what is pinned: these, as far as they are here or come.
    pub fn pin(&mut self, pinned: HashSet<Digest>) {
        let before = std::mem::replace(&mut self.pinned, pinned);
        for digest in before.symmetric_difference(&self.pinned) {
            let Some(key) = self.items.key(&Item::Stored(*digest)) else { continue };
            let Some(entry) = self.items.get(key) else { continue };
            if self.pinned.contains(digest) {
                self.order.remove(entry.place, key);
            } else {
                self.order.insert(entry.place, key, |key| self.items.place(key));
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

    /// What must leave to meet a demand. Looks no further when it has `most` victims: what is missing then is not known.
    /// `is_half_pulled` is asked about what was used within [`GRACE`].
    pub fn plan(&self, demand: Demand, most: usize, now: DaemonTime, is_half_pulled: &dyn Fn(&Ledger, &Digest) -> bool) -> Plan {
        let usage = self.order.keys().filter_map(|key| {
            let entry = self.items.get(key)?;
            Some(Usage { item: key, allocated: entry.allocated, last_used: entry.place.0 })
        });
        let plan = plan::plan(usage, demand, most, |usage| {
            let is_leaving = self.items.get(usage.item).is_none_or(|entry| entry.is_leaving);
            let is_young = now.since(usage.last_used) < GRACE;
            match self.items.item(usage.item).filter(|_| is_young) {
                _ if is_leaving || self.readers.contains_key(&usage.item) => Hold::Fast,
                Some(Item::Stored(digest)) if is_half_pulled(self, &digest) => Hold::Grace,
                _ => Hold::None,
            }
        });
        let named =
            |victim: Victim<Key>| Some(Victim { item: self.items.item(victim.item)?, allocated: victim.allocated, reason: victim.reason });
        Plan { victims: plan.victims.into_iter().filter_map(named).collect(), missing: plan.missing }
    }

    /// What was used since the last call, with the time of its last use: for the index.
    pub fn take_touched(&mut self) -> Vec<(Digest, DaemonTime)> {
        let touched = std::mem::take(&mut self.touched);
        touched.into_iter().filter_map(|key| self.items.use_of(key)).collect()
    }

    /// How an item stands in the order of use.
    pub fn standing(&self, item: &Item) -> Option<Standing> {
        let key = self.items.key(item)?;
        let entry = self.items.get(key).filter(|entry| !entry.is_leaving)?;
        let (is_read, is_pinned) = (self.readers.contains_key(&key), self.is_pinned(item));
        Some(Standing { place: entry.place, allocated: entry.allocated, is_read, is_pinned })
    }

    /// How many items stand in the order of use before a place, and how many bytes they have, but for the first `skipped`; at
    /// most `count` at a time, and whether that was all.
    pub fn ahead(&self, skipped: usize, before: Place, count: usize) -> (u64, u64, bool) {
        let entries = self.order.keys().skip(skipped).take(count).filter_map(|key| self.items.get(key));
        let ahead = entries.take_while(|entry| entry.place < before);
        let (items, bytes) = ahead.fold((0, 0), |(items, bytes), entry| (items + 1, bytes + entry.allocated));
        (items, bytes, items < count as u64)
    }

    /// Items that would go for room, sooner or later.
    pub fn ordered_count(&self) -> usize {
        self.order.keys().count()
    }
}

/// How an item stands in the order of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Less is sooner.
    pub place: Place,
    pub allocated: u64,
    /// Somebody reads it.
    pub is_read: bool,
    pub is_pinned: bool,
}

#[cfg(test)]
mod tests;
