//! Where the ledger keeps what it knows of each item: of objects under the number of their digest, of the few partials apart.

use std::collections::HashMap;
use std::sync::Arc;

use slab::Slab;

use super::{Item, Place};
use crate::oci::Digest;
use crate::store::names::{Id, Names, User};
use crate::store::uptime::DaemonTime;

/// Set in the keys of partials.
const PARTIAL: u32 = 1 << 31;

/// An item's number while it is in the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(u32);

enum Where {
    Stored(usize),
    Partial(usize),
}

impl Key {
    pub fn stored(id: Id) -> Key {
        Key(id.number())
    }

    fn place(self) -> Where {
        let index = (self.0 & !PARTIAL) as usize;
        if self.0 & PARTIAL == 0 { Where::Stored(index) } else { Where::Partial(index) }
    }
}

#[derive(Debug)]
pub struct Entry {
    pub allocated: u64,
    pub place: Place,
    /// Its file is being removed: nobody may begin to read it.
    pub is_leaving: bool,
}

#[derive(Debug, Default)]
enum Slot {
    #[default]
    Vacant,
    /// What the index knows and nobody has seen; not there for anybody.
    Expected(DaemonTime),
    Held(Entry),
}

#[derive(Debug, Default)]
pub struct Items {
    names: Arc<Names>,
    /// By number, of 32 bytes each; numbers that only others use are vacant.
    slots: Vec<Slot>,
    partials: Slab<(Item, Entry)>,
    partial_keys: HashMap<Item, Key>,
}

impl Items {
    pub fn names(&self) -> &Arc<Names> {
        &self.names
    }

    /// Of what is there.
    pub fn key(&self, item: &Item) -> Option<Key> {
        let key = match item {
            Item::Stored(digest) => Key::stored(self.names.find(digest)?),
            Item::Partial(..) => *self.partial_keys.get(item)?,
        };
        self.get(key).map(|_| key)
    }

    pub fn get(&self, key: Key) -> Option<&Entry> {
        match key.place() {
            Where::Stored(index) => match self.slots.get(index) {
                Some(Slot::Held(entry)) => Some(entry),
                _ => None,
            },
            Where::Partial(index) => self.partials.get(index).map(|(_, entry)| entry),
        }
    }

    pub fn get_mut(&mut self, key: Key) -> Option<&mut Entry> {
        match key.place() {
            Where::Stored(index) => match self.slots.get_mut(index) {
                Some(Slot::Held(entry)) => Some(entry),
                _ => None,
            },
            Where::Partial(index) => self.partials.get_mut(index).map(|(_, entry)| entry),
        }
    }

    /// In the order of use; what is not there is at its beginning.
    pub fn place(&self, key: Key) -> Place {
        self.get(key).map(|entry| entry.place).unwrap_or_default()
    }

    /// What a key of something that is there stands for.
    pub fn item(&self, key: Key) -> Option<Item> {
        match key.place() {
            Where::Stored(index) => self.names.digest(Id::of(index)).map(Item::Stored),
            Where::Partial(index) => self.partials.get(index).map(|(item, _)| item.clone()),
        }
    }

    /// Enters what is not there, in place of what was expected.
    pub fn enter(&mut self, item: &Item, entry: Entry) -> Key {
        match item {
            Item::Stored(digest) => {
                let id = self.names.take(digest, User::Ledger);
                *self.slot(id) = Slot::Held(entry);
                Key::stored(id)
            }
            Item::Partial(..) => {
                let key = Key(Id::of(self.partials.insert((item.clone(), entry))).number() | PARTIAL);
                self.partial_keys.insert(item.clone(), key);
                key
            }
        }
    }

    pub fn remove(&mut self, key: Key) -> Option<Entry> {
        match key.place() {
            Where::Stored(index) => {
                let slot = self.slots.get_mut(index).filter(|slot| matches!(slot, Slot::Held(_)))?;
                let Slot::Held(entry) = std::mem::take(slot) else { return None };
                self.names.give_back(Id::of(index), User::Ledger);
                Some(entry)
            }
            Where::Partial(index) => {
                let (item, entry) = self.partials.try_remove(index)?;
                self.partial_keys.remove(&item);
                Some(entry)
            }
        }
    }

    fn slot(&mut self, id: Id) -> &mut Slot {
        if self.slots.len() <= id.index() {
            self.slots.resize_with(id.index() + 1, Slot::default);
        }
        &mut self.slots[id.index()]
    }

    /// Says when what is not there was last used, if it comes.
    pub fn expect(&mut self, digest: &Digest, last_used: DaemonTime) {
        let id = self.names.take(digest, User::Ledger);
        let slot = self.slot(id);
        if !matches!(slot, Slot::Held(_)) {
            *slot = Slot::Expected(last_used);
        }
    }

    pub fn expected_mut(&mut self, digest: &Digest) -> Option<(Key, &mut DaemonTime)> {
        let id = self.names.find(digest)?;
        match self.slots.get_mut(id.index()) {
            Some(Slot::Expected(last_used)) => Some((Key::stored(id), last_used)),
            _ => None,
        }
    }

    /// It is expected no longer.
    pub fn drop_expected(&mut self, digest: &Digest) {
        if let Some((key, _)) = self.expected_mut(digest) {
            self.vacate(key.0 as usize);
        }
    }

    fn vacate(&mut self, index: usize) {
        self.slots[index] = Slot::Vacant;
        self.names.give_back(Id::of(index), User::Ledger);
    }

    /// What is expected still, and no longer then. Linear.
    pub fn take_all_expected(&mut self) -> Vec<Digest> {
        let mut dropped = Vec::new();
        for index in 0..self.slots.len() {
            if matches!(self.slots[index], Slot::Expected(_)) {
                dropped.extend(self.names.digest(Id::of(index)));
                self.vacate(index);
            }
        }
        dropped
    }

    /// The digest of an object that is there or expected, and its last use.
    pub fn use_of(&self, key: Key) -> Option<(Digest, DaemonTime)> {
        let Where::Stored(index) = key.place() else { return None };
        let last_used = match self.slots.get(index)? {
            Slot::Vacant => return None,
            Slot::Expected(last_used) => *last_used,
            Slot::Held(entry) => entry.place.0,
        };
        Some((self.names.digest(Id::of(index))?, last_used))
    }

    /// At most `count` objects that are there, from a place in no order, and the place to go on from.
    pub fn stored_from(&self, start: usize, count: usize) -> (Vec<Digest>, Option<usize>) {
        let held = |(index, slot): (usize, &Slot)| matches!(slot, Slot::Held(_)).then_some(index);
        let indices: Vec<usize> = self.slots.iter().enumerate().skip(start).filter_map(held).take(count).collect();
        let next = indices.last().map(|last| last + 1).filter(|_| indices.len() == count);
        (indices.into_iter().filter_map(|index| self.names.digest(Id::of(index))).collect(), next)
    }
}
