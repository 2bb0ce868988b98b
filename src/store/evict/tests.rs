//! The ledger, step by step and under random steps.

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
    let plan = ledger.plan(demand, usize::MAX, now, &|_, digest| half_pulled.iter().any(|n| super::tests::digest(*n) == *digest));
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
    let stay = ledger.lease(&item(0)).expect("an item");
    assert_eq!(victims(&ledger, 10, NOW, &[]), Some(vec![item(1)]));
    assert!(!ledger.condemn(&item(0)));
    ledger.release(&item(0), stay);
    assert_eq!(victims(&ledger, 10, NOW, &[]), Some(vec![item(0)]));
}

#[test]
fn what_is_leaving_is_not_there_and_what_could_not_leave_is() {
    let mut ledger = ledger_of(20, &[10, 10]);
    assert!(ledger.condemn(&item(0)) && ledger.lease(&item(0)).is_none() && !ledger.contains(&item(0)));
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
fn a_promise_that_cannot_be_kept_is_not_made() {
    let ledger = ledger_of(20, &[10]);
    assert_eq!(victims(&ledger, 21, NOW, &[]), None);
    ledger.others().fetch_add(1, Ordering::Relaxed);
    assert_eq!(victims(&ledger, 20, NOW, &[]), None);
    assert_eq!(ledger.size(), 11);
}

#[test]
fn a_reader_of_what_was_purged_holds_nothing_of_what_came_in_its_place() {
    let mut ledger = ledger_of(20, &[10]);
    let of_the_old = ledger.lease(&item(0)).expect("an item");
    assert_eq!(ledger.remove(&item(0)), Some(10));
    ledger.insert(item(0), 10, NOW);
    let of_the_new = ledger.lease(&item(0)).expect("an item");
    ledger.release(&item(0), of_the_old);
    assert!(!ledger.condemn(&item(0)), "somebody reads it");
    ledger.release(&item(0), of_the_new);
    assert!(ledger.condemn(&item(0)));
}

#[test]
fn what_is_used_never_becomes_older() {
    let mut ledger = ledger_of(20, &[10, 10]);
    ledger.touch(&item(0), DaemonTime(9));
    ledger.touch(&item(0), DaemonTime(8));
    assert_eq!(ledger.last_used(&item(0)), Some(DaemonTime(9)));
}

#[test]
fn what_is_expected_is_not_there_until_it_is_found_and_then_has_its_time() {
    let mut ledger = Ledger::new(100);
    ledger.begin_loading(20);
    ledger.expect(digest(0), DaemonTime(5));
    assert!(!ledger.contains(&item(0)) && ledger.lease(&item(0)).is_none() && !ledger.condemn(&item(0)));
    assert_eq!((ledger.allocated(&item(0)), ledger.last_used(&item(0))), (None, None));
    assert_eq!((ledger.stored(), ledger.stored_count(), ledger.next_to_go(9)), (vec![], 0, vec![]));
    assert_eq!((ledger.size(), ledger.at_rest(), ledger.unseen()), (20, 20, 20));
    assert_eq!(victims(&ledger, 81, NOW, &[]), None);

    assert!(!ledger.find(item(0), 10, (DaemonTime(7), 3)) && !ledger.find(item(0), 11, (DaemonTime(8), 4)));
    assert_eq!((ledger.contains(&item(0)), ledger.last_used(&item(0))), (true, Some(DaemonTime(5))));
    assert_eq!((ledger.size(), ledger.unseen(), ledger.stored_count()), (20, 10, 1));
    assert_eq!(ledger.take_touched(), vec![], "to be found is no use");
    ledger.expect(digest(0), DaemonTime(9));
    assert_eq!(ledger.last_used(&item(0)), Some(DaemonTime(5)));
    assert!(ledger.finish_loading().is_empty() && ledger.size() == 10);
}

#[test]
fn what_is_found_may_come_in_any_order_and_also_at_the_same_place() {
    let mut ledger = Ledger::new(100);
    ledger.insert(item(9), 1, DaemonTime(5));
    ledger.expect(digest(1), DaemonTime(4));
    for (n, otherwise) in [(4, (DaemonTime(5), 2)), (1, (DaemonTime(9), 0)), (3, (DaemonTime(5), 1)), (2, (DaemonTime(5), 0))] {
        assert_eq!(ledger.find(item(n), 1, otherwise), n != 1, "whether its time was made up");
    }
    let partial = Item::Partial("docker.io".into(), digest(0));
    assert!(ledger.find(partial.clone(), 1, (DaemonTime(3), 0)));
    let order: Vec<_> = ledger.next_to_go(9).into_iter().map(|(item, ..)| item).collect();
    assert_eq!(order, [partial, item(1), item(2), item(3), item(4), item(9)]);
    assert!(ledger.find(item(5), 1, (DaemonTime(5), 1)));
    assert_eq!((ledger.next_to_go(9).len(), ledger.remove(&item(3)), ledger.next_to_go(9).len()), (7, Some(1), 6));
}

#[test]
fn what_was_expected_and_is_not_found_is_dropped_and_named() {
    let mut ledger = Ledger::new(100);
    ledger.begin_loading(50);
    (0..4).for_each(|n| ledger.expect(digest(n), DaemonTime(u64::from(n))));
    assert_eq!((ledger.remove(&item(0)), ledger.unseen()), (None, 50));
    ledger.insert(item(1), 10, NOW);
    assert_eq!((ledger.size(), ledger.unseen(), ledger.last_used(&item(1))), (50, 40, Some(NOW)));
    assert!(!ledger.find(item(1), 10, (DaemonTime(1), 0)));
    ledger.insert(item(5), 7, NOW);
    assert_eq!((ledger.size(), ledger.unseen()), (57, 40), "what is new was not among the unseen");
    assert!(!ledger.find(item(2), 60, (NOW, 0)) && ledger.unseen() == 0);
    assert_eq!((ledger.finish_loading(), ledger.finish_loading()), (vec![digest(3)], vec![]));
    assert_eq!(ledger.size(), 77);
}

#[test]
fn a_use_of_what_is_only_expected_counts_when_it_is_found() {
    let mut ledger = Ledger::new(100);
    ledger.expect(digest(0), DaemonTime(1));
    ledger.touch(&item(0), NOW);
    assert_eq!((ledger.last_used(&item(0)), ledger.next_to_go(1)), (None, vec![]));
    assert_eq!(ledger.take_touched(), vec![(digest(0), NOW)]);
    assert!(!ledger.find(item(0), 10, (DaemonTime(0), 0)));
    assert_eq!(ledger.last_used(&item(0)), Some(NOW));
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
        let mut leases: Vec<(u8, u64)> = Vec::new();
        let mut pinned: Vec<u8> = Vec::new();
        for (now, step) in (0..).zip(steps) {
            let now = DaemonTime(now);
            match step {
                Step::Fill(n, size) => {
                    if let Some(victims) = victims(&ledger, size, now, &[3, 4]) {
                        for victim in &victims {
                            prop_assert!(!leases.iter().any(|(n, _)| item(*n) == *victim));
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
                Step::Lease(n) => leases.extend(ledger.lease(&item(n)).map(|stay| (n, stay))),
                Step::Release(n) => if let Some(place) = leases.iter().position(|(leased, _)| *leased == n) {
                    let (_, stay) = leases.swap_remove(place);
                    ledger.release(&item(n), stay);
                },
                Step::Pin(all) => {
                    ledger.pin(all.iter().map(|n| digest(*n)).collect());
                    pinned = all;
                }
            }
            prop_assert!(ledger.size() <= 100);
            let stored: Vec<Item> = ledger.stored().into_iter().map(Item::Stored).collect();
            prop_assert_eq!(ledger.stored, stored.iter().filter_map(|item| ledger.allocated(item)).sum::<u64>());
            prop_assert_eq!(ledger.stored_count, stored.len());
            let pinned = stored.iter().filter(|item| ledger.is_pinned(item)).count();
            let order: Vec<_> = ledger.order.keys().map(|key| (ledger.items.place(key), key)).collect();
            prop_assert_eq!(order.len() + pinned, stored.len());
            prop_assert!(order.is_sorted());
            let leased: HashSet<u8> = leases.iter().map(|(n, _)| *n).collect();
            prop_assert_eq!(ledger.readers.len(), leased.len());
        }
    }
}
