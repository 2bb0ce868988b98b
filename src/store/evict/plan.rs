//! What must leave, and why: a pure function of what is held, in the order of its use.

use super::Item;
use crate::store::uptime::DaemonTime;

/// Why something leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// For `cache.max_size`.
    Size,
    /// For `cache.min_free`.
    MinFree,
    /// `cache.evict_unused_after` has passed.
    Unused,
}

impl Reason {
    pub const LABELS: [&'static str; 3] = ["size", "min_free", "unused"];

    pub fn as_str(self) -> &'static str {
        Reason::LABELS[self as usize]
    }
}

/// What keeps an item from leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    None,
    /// Its image is being pulled just now: it leaves when nothing else can.
    Grace,
    /// It is pinned, or being read: it stays.
    Fast,
}

/// What is known of an item, which whoever asks may name as it likes.
#[derive(Clone, Copy, Debug)]
pub struct Usage<I> {
    pub item: I,
    pub allocated: u64,
    pub last_used: DaemonTime,
}

/// What has to be reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Bytes beyond `cache.max_size`.
    pub size: u64,
    /// Bytes beyond what `cache.min_free` leaves.
    pub min_free: u64,
    /// What was used last before that goes in any case.
    pub unused_before: DaemonTime,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Victim<I = Item> {
    pub item: I,
    pub allocated: u64,
    pub reason: Reason,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan<I = Item> {
    /// In the order in which to let go.
    pub victims: Vec<Victim<I>>,
    /// Bytes by which the demand is missed though all of them go.
    pub missing: u64,
}

impl<I> Default for Plan<I> {
    fn default() -> Plan<I> {
        Plan { victims: Vec::new(), missing: 0 }
    }
}

/// Chooses at most `most` victims among `usage`, which comes in the order of last use, the oldest first. `hold` is asked
/// only about items whose turn it is.
pub fn plan<I>(usage: impl IntoIterator<Item = Usage<I>>, demand: Demand, most: usize, hold: impl Fn(&Usage<I>) -> Hold) -> Plan<I> {
    let wanted = demand.size.max(demand.min_free);
    let mut plan = Plan { victims: Vec::new(), missing: wanted };
    let take = |plan: &mut Plan<I>, usage: Usage<I>, is_unused: bool| {
        let reason = match wanted - plan.missing {
            _ if is_unused => Reason::Unused,
            freed if freed < demand.size => Reason::Size,
            _ => Reason::MinFree,
        };
        plan.missing = plan.missing.saturating_sub(usage.allocated);
        plan.victims.push(Victim { item: usage.item, allocated: usage.allocated, reason });
    };
    let mut spared = Vec::new();
    for usage in usage {
        let is_unused = usage.last_used < demand.unused_before;
        if plan.victims.len() >= most || plan.missing == 0 && !is_unused {
            break;
        }
        match hold(&usage) {
            Hold::None => take(&mut plan, usage, is_unused),
            Hold::Grace => spared.push(usage),
            Hold::Fast => {}
        }
    }
    for usage in spared {
        if plan.victims.len() >= most || plan.missing == 0 {
            break;
        }
        take(&mut plan, usage, false);
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    struct Held {
        item: Item,
        allocated: u64,
        hold: Hold,
    }

    fn held() -> impl Strategy<Value = Vec<Held>> {
        let hold = prop_oneof![4 => Just(Hold::None), 1 => Just(Hold::Grace), 1 => Just(Hold::Fast)];
        proptest::collection::vec((0..1000u64, hold), 0..40).prop_map(|all| {
            let item = |n: usize| Item::Stored(Digest::of(Algorithm::Sha256, &n.to_be_bytes()));
            all.into_iter().enumerate().map(|(n, (allocated, hold))| Held { item: item(n), allocated, hold }).collect()
        })
    }

    fn plan_of(held: &[Held], demand: Demand, most: usize) -> Plan {
        let usage =
            held.iter().zip(0..).map(|(held, n)| Usage { item: held.item.clone(), allocated: held.allocated, last_used: DaemonTime(n) });
        plan(usage, demand, most, |usage| held.iter().find(|held| held.item == usage.item).map_or(Hold::None, |held| held.hold))
    }

    proptest! {
        #[test]
        fn a_plan_frees_what_is_wanted_or_says_what_is_missing(held in held(), size in 0..20_000u64, min_free in 0..20_000u64, unused in 0..50u64) {
            let demand = Demand { size, min_free, unused_before: DaemonTime(unused) };
            let Plan { victims, missing } = plan_of(&held, demand, usize::MAX);
            let freed: u64 = victims.iter().map(|victim| victim.allocated).sum();
            prop_assert_eq!(missing, size.max(min_free).saturating_sub(freed));
            let places: Vec<_> = victims.iter().map(|victim| held.iter().position(|held| held.item == victim.item).unwrap()).collect();
            let holds: Vec<_> = places.iter().map(|place| held[*place].hold).collect();
            // A short plan is the beginning of the whole one.
            prop_assert_eq!(&plan_of(&held, demand, 5).victims[..], &victims[..victims.len().min(5)]);
            // What is pinned or read stays; what is being pulled leaves last, and only for room; else the oldest leaves first.
            prop_assert!(!holds.contains(&Hold::Fast));
            let free = places.iter().filter(|place| held[**place].hold == Hold::None).count();
            prop_assert!(holds[..free].iter().all(|hold| *hold == Hold::None));
            prop_assert!(places[..free].is_sorted() && places[free..].is_sorted());
            if free < places.len() {
                prop_assert_eq!(free, held.iter().filter(|held| held.hold == Hold::None).count());
            }
            if missing > 0 {
                prop_assert_eq!(places.len(), held.iter().filter(|held| held.hold != Hold::Fast).count());
            }
            // Nobody leaves in vain.
            for (n, victim) in victims.iter().enumerate() {
                let before: u64 = victims[..n].iter().map(|victim| victim.allocated).sum();
                let is_unused = (places[n] as u64) < unused && holds[n] == Hold::None;
                let reason = if is_unused { Reason::Unused } else if before < size { Reason::Size } else { Reason::MinFree };
                prop_assert_eq!(victim.reason, reason);
                prop_assert!(is_unused || before < size.max(min_free));
            }
            let unused = held.iter().take(usize::try_from(unused).unwrap()).filter(|held| held.hold == Hold::None);
            prop_assert!(unused.clone().all(|held| victims.iter().any(|victim| victim.item == held.item)));
        }
    }
}
