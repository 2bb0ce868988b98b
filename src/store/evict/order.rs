//! The order of use of a million items: sorted lists of keys, each after the other. A key takes 4 bytes here, as its place is
//! asked for; what is used now goes to the end at once, and what leaves is looked for in one list.

use super::Place;
use super::items::Key;

/// Keys in a list: few enough to be moved, and enough to make the lists few.
const KEYS_MAX: usize = 512;

#[derive(Debug)]
struct Run {
    /// Not behind any of the keys, and behind all of the lists before; in the first list, it says nothing.
    first: (Place, Key),
    keys: Vec<Key>,
}

#[derive(Debug, Default)]
pub struct Order(Vec<Run>);

impl Order {
    /// The first first.
    pub fn keys(&self) -> impl Iterator<Item = Key> {
        self.0.iter().flat_map(|run| run.keys.iter().copied())
    }

    /// Where a key is or belongs.
    fn run(&self, ranked: (Place, Key)) -> usize {
        self.0.get(1..).map_or(0, |others| others.partition_point(|run| run.first <= ranked))
    }

    /// Enters a key that is not there; `place_of` tells where the others are.
    pub fn insert(&mut self, place: Place, key: Key, place_of: impl Fn(Key) -> Place) {
        let ranked = (place, key);
        let is_behind = |other: Key| (place_of(other), other) < ranked;
        let mut at = self.run(ranked);
        if self.0.get(at).is_none_or(|run| run.keys.len() >= KEYS_MAX) {
            let is_last = at + 1 >= self.0.len() && self.0.last().is_none_or(|run| run.keys.last().is_none_or(|last| is_behind(*last)));
            if is_last {
                return self.0.push(Run { first: ranked, keys: vec![key] });
            }
            let keys = self.0[at].keys.split_off(KEYS_MAX / 2);
            let first = (place_of(keys[0]), keys[0]);
            self.0.insert(at + 1, Run { first, keys });
            at = self.run(ranked);
        }
        let run = &mut self.0[at];
        if run.keys.last().is_none_or(|last| is_behind(*last)) {
            run.keys.push(key);
        } else {
            let index = run.keys.partition_point(|other| is_behind(*other));
            run.keys.insert(index, key);
        }
    }

    /// Takes a key out that is at this place, if it is.
    pub fn remove(&mut self, place: Place, key: Key) {
        let at = self.run((place, key));
        let Some(run) = self.0.get_mut(at) else { return };
        let Some(index) = run.keys.iter().position(|other| *other == key) else { return };
        run.keys.remove(index);
        if run.keys.len() <= run.keys.capacity() / 4 {
            run.keys.shrink_to(run.keys.len() * 2);
        }
        if run.keys.len() <= KEYS_MAX / 4 {
            self.merge(at);
        }
    }

    /// Joins a short list with a neighbour that has room, which then has the memory that it needs.
    fn merge(&mut self, at: usize) {
        let len = |at: usize| self.0.get(at).map_or(KEYS_MAX, |run| run.keys.len());
        let left = if len(at) + len(at + 1) <= KEYS_MAX / 2 {
            at
        } else if at > 0 && len(at) + len(at - 1) <= KEYS_MAX / 2 {
            at - 1
        } else {
            if len(at) == 0 {
                self.0.remove(at);
            }
            return;
        };
        let right = self.0.remove(left + 1);
        self.0[left].keys.extend(right.keys);
        self.0[left].keys.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::names::Id;
    use crate::store::uptime::DaemonTime;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashMap};

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 50, ..ProptestConfig::default() })]

        /// Thousands of steps, of which those of one phase all are for more, or all for fewer.
        #[test]
        fn it_is_a_sorted_set(phases in proptest::collection::vec((any::<u64>(), 0..2500usize, 1..4u8), 1..6)) {
            let mut order = Order::default();
            let (mut model, mut places) = (BTreeSet::new(), HashMap::new());
            for (seed, steps, kind) in phases {
                let mut rng = fastrand::Rng::with_seed(seed);
                for step in 0..steps {
                    let key = Key::stored(Id::of(rng.usize(..4000)));
                    if let Some(place) = places.remove(&key) {
                        order.remove(place, key);
                        prop_assert!(model.remove(&(place, key)));
                    }
                    // Only leaves, comes last, or comes anywhere.
                    let place = match kind {
                        1 => continue,
                        2 => (DaemonTime(1000), step as u64),
                        _ => (DaemonTime(rng.u64(..3)), rng.u64(..50)),
                    };
                    order.insert(place, key, |key| places[&key]);
                    places.insert(key, place);
                    model.insert((place, key));
                }
                prop_assert!(order.keys().eq(model.iter().map(|(_, key)| *key)));
                let room: usize = order.0.iter().map(|run| run.keys.capacity()).sum();
                prop_assert!(room <= 5 * model.len() + 2 * KEYS_MAX, "{} for {}", room, model.len());
            }
            let all: Vec<_> = model.into_iter().collect();
            all.iter().for_each(|(place, key)| order.remove(*place, *key));
            prop_assert_eq!(order.0.len(), 0);
        }
    }
}
