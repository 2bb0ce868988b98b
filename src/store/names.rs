//! Digests under short numbers, since the store knows a million of them and what belongs to each. A digest is kept once,
//! for the ledger and the links together.

use parking_lot::RwLock;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use crate::oci::Digest;

/// A digest's number while it is in use; later it is another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(u32);

impl Id {
    /// A place in a list of all numbers.
    pub fn index(self) -> usize {
        self.0 as usize
    }

    pub fn number(self) -> u32 {
        self.0
    }

    /// Numbers begin at 0, and 2³¹ digests would take more memory than there is: the highest bit is free for others.
    pub fn of(number: usize) -> Id {
        Id(u32::try_from(number).unwrap_or(u32::MAX >> 1))
    }
}

/// Who uses numbers, each by itself.
#[derive(Clone, Copy, Debug)]
pub enum User {
    Ledger = 1,
    Links = 2,
}

/// The digests in use. A user's numbers stay what they are until it gives them back, and it takes and gives under a lock of
/// its own. What it has not taken itself may be another's at any moment: a number that is found only counts where
/// the user keeps something under it.
#[derive(Debug, Default)]
pub struct Names(RwLock<Table>);

/// 34 bytes, and 10 in `places`.
#[derive(Debug)]
struct Name {
    /// All of it, or the first half of a long one.
    head: [u8; 32],
    is_long: bool,
    /// Bits of [`User`].
    users: u8,
}

#[derive(Debug, Default)]
struct Table {
    names: Vec<Name>,
    free: Vec<Id>,
    /// Second halves, of SHA-512.
    tails: HashMap<Id, [u8; 32]>,
    places: HashTable<Id>,
    /// Keyed by chance, since anybody can list digests that collide.
    hasher: RandomState,
}

impl Names {
    pub fn find(&self, digest: &Digest) -> Option<Id> {
        let table = self.0.read();
        table.find(&split(digest))
    }

    /// The number of a digest from now on.
    pub fn take(&self, digest: &Digest, user: User) -> Id {
        let mut table = self.0.write();
        let parts = split(digest);
        let id = table.find(&parts).unwrap_or_else(|| table.enter(parts));
        if let Some(name) = table.names.get_mut(id.index()) {
            name.users |= user as u8;
        }
        id
    }

    /// The user has nothing under this number any more.
    pub fn give_back(&self, id: Id, user: User) {
        let mut table = self.0.write();
        if let Some(name) = table.names.get_mut(id.index()).filter(|name| name.users != 0) {
            name.users &= !(user as u8);
            if name.users == 0 {
                table.remove(id);
            }
        }
    }

    /// `None` for a number that nobody uses.
    pub fn digest(&self, id: Id) -> Option<Digest> {
        self.0.read().digest(id)
    }
}

type Parts = ([u8; 32], Option<[u8; 32]>);

fn split(digest: &Digest) -> Parts {
    match digest {
        Digest::Sha256(hash) => (*hash, None),
        Digest::Sha512(hash) => {
            let (mut head, mut tail) = ([0; 32], [0; 32]);
            head.copy_from_slice(&hash[..32]);
            tail.copy_from_slice(&hash[32..]);
            (head, Some(tail))
        }
    }
}

impl Table {
    fn find(&self, (head, tail): &Parts) -> Option<Id> {
        let is_it = |id: &Id| {
            let name = &self.names[id.index()];
            name.head == *head && name.is_long == tail.is_some() && self.tails.get(id) == tail.as_ref()
        };
        self.places.find(self.hasher.hash_one(head), is_it).copied()
    }

    fn enter(&mut self, (head, tail): Parts) -> Id {
        let name = Name { head, is_long: tail.is_some(), users: 0 };
        let id = self.free.pop().unwrap_or_else(|| Id::of(self.names.len()));
        match self.names.get_mut(id.index()) {
            Some(place) => *place = name,
            None => self.names.push(name),
        }
        if let Some(tail) = tail {
            self.tails.insert(id, tail);
        }
        let (names, hasher) = (&self.names, &self.hasher);
        self.places.insert_unique(hasher.hash_one(head), id, |id| hasher.hash_one(names[id.index()].head));
        id
    }

    fn remove(&mut self, id: Id) {
        let hash = self.hasher.hash_one(self.names[id.index()].head);
        if let Ok(place) = self.places.find_entry(hash, |other| *other == id) {
            place.remove();
            self.tails.remove(&id);
            self.free.push(id);
        }
    }

    fn digest(&self, id: Id) -> Option<Digest> {
        let name = self.names.get(id.index()).filter(|name| name.users != 0)?;
        if !name.is_long {
            return Some(Digest::Sha256(name.head));
        }
        let mut hash = [0; 64];
        hash[..32].copy_from_slice(&name.head);
        hash[32..].copy_from_slice(self.tails.get(&id)?);
        Some(Digest::Sha512(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;
    use proptest::prelude::*;

    /// Short ones and long ones, some of which begin alike.
    fn digest(n: u8) -> Digest {
        let Digest::Sha256(head) = Digest::of(Algorithm::Sha256, &[n / 3]) else { unreachable!() };
        let long = |last| {
            let mut hash = [last; 64];
            hash[..32].copy_from_slice(&head);
            Digest::Sha512(hash)
        };
        [Digest::Sha256(head), long(1), long(2)][usize::from(n % 3)]
    }

    proptest! {
        #[test]
        fn a_number_means_one_digest_while_either_user_has_it(steps in proptest::collection::vec((0..30u8, any::<bool>(), any::<bool>()), 0..300)) {
            let names = Names::default();
            let mut taken: HashMap<(u8, u8), Id> = HashMap::new();
            for (n, take, is_ledger) in steps {
                let user = if is_ledger { User::Ledger } else { User::Links };
                if take {
                    let id = names.take(&digest(n), user);
                    prop_assert_eq!(*taken.entry((n, user as u8)).or_insert(id), id);
                } else if let Some(id) = taken.remove(&(n, user as u8)) {
                    names.give_back(id, user);
                }
                for n in 0..30 {
                    let id = names.find(&digest(n));
                    let users: Vec<_> = [1, 2].into_iter().filter_map(|user| taken.get(&(n, user)).copied()).collect();
                    prop_assert!(users.iter().all(|used| Some(*used) == id));
                    prop_assert_eq!(id.is_some(), !users.is_empty());
                    prop_assert_eq!(id.and_then(|id| names.digest(id)), id.map(|_| digest(n)));
                }
            }
            let in_use: std::collections::HashSet<u8> = taken.keys().map(|(n, _)| *n).collect();
            prop_assert!(names.0.read().names.len() <= 30 && names.0.read().places.len() == in_use.len());
        }
    }
}
