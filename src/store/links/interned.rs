//! Values that very many things share, under short numbers; one that nobody uses any more is forgotten.

use std::collections::HashMap;
use std::hash::Hash;
use std::num::NonZeroU32;

use slab::Slab;

/// What a list calls a value while it is in use. Small also where there may be none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Number(NonZeroU32);

impl Number {
    pub fn of(index: usize) -> Number {
        let number = u32::try_from(index + 1).ok().and_then(NonZeroU32::new);
        Number(number.unwrap_or(NonZeroU32::MAX))
    }

    pub fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

#[derive(Debug)]
pub struct Interned<T> {
    /// With the count of its uses.
    values: Slab<(T, u32)>,
    numbers: HashMap<T, Number>,
}

impl<T> Default for Interned<T> {
    fn default() -> Interned<T> {
        Interned { values: Slab::new(), numbers: HashMap::new() }
    }
}

impl<T: Clone + Eq + Hash> Interned<T> {
    /// One more use of a value.
    pub fn take(&mut self, value: &T) -> Number {
        let number = self.find(value).unwrap_or_else(|| {
            let number = Number::of(self.values.insert((value.clone(), 0)));
            self.numbers.insert(value.clone(), number);
            number
        });
        if let Some((_, uses)) = self.values.get_mut(number.index()) {
            *uses += 1;
        }
        number
    }

    /// One use less.
    pub fn give_back(&mut self, number: Number) {
        let Some((value, uses)) = self.values.get_mut(number.index()) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.numbers.remove(value);
            self.values.remove(number.index());
        }
    }

    pub fn find(&self, value: &T) -> Option<Number> {
        self.numbers.get(value).copied()
    }

    pub fn get(&self, number: Number) -> Option<&T> {
        self.values.get(number.index()).map(|(value, _)| value)
    }
}
