//! Whose turn it is: a bound for all, one for each upstream, and freed places that go round the upstreams, so that one with
//! a thousand waiting does not starve one with a single one. Pure; `queue` waits.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::Hash;

/// Who waits. Within an upstream the lowest goes first.
pub type Ticket = u64;

/// The tickets of those who go ahead of the others of their upstream are below this.
const USUAL: Ticket = 1 << 63;

/// Where who has to wait stands, within its upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// Before everybody of the usual rank: it ends what one of these has begun.
    Ahead,
    Usual,
}

/// What becomes of who asks for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    Now,
    Wait(Ticket),
    /// Too many of this upstream wait already.
    Full,
}

/// Who runs, who waits, and who is next. Between two calls nobody waits who could run.
#[derive(Debug)]
pub struct Turns<U> {
    running_max: usize,
    waiting_max: usize,
    running: usize,
    waiting: usize,
    next_ticket: Ticket,
    lanes: HashMap<U, Lane>,
    /// The upstreams that have waiters; the first that may run one is next.
    round: VecDeque<U>,
}

/// One upstream's part.
#[derive(Debug, Default)]
struct Lane {
    running: usize,
    running_max: usize,
    waiting: BTreeSet<Ticket>,
}

impl<U: Clone + Eq + Hash> Turns<U> {
    /// `waiting_max` is for each upstream.
    pub fn new(running_max: usize, waiting_max: usize) -> Turns<U> {
        let (lanes, round) = (HashMap::new(), VecDeque::new());
        Turns { running_max, waiting_max, running: 0, waiting: 0, next_ticket: 0, lanes, round }
    }

    pub fn running(&self) -> usize {
        self.running
    }

    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Asks for a turn for an upstream of which `lane_max` may run.
    pub fn ask(&mut self, upstream: &U, lane_max: usize, rank: Rank) -> Turn {
        let lane = self.lanes.entry(upstream.clone()).or_default();
        lane.running_max = lane_max;
        if self.running < self.running_max && lane.running < lane.running_max {
            lane.running += 1;
            self.running += 1;
            return Turn::Now;
        }
        if lane.waiting.len() >= self.waiting_max {
            return Turn::Full;
        }
        if lane.waiting.is_empty() {
            self.round.push_back(upstream.clone());
        }
        let ticket = if rank == Rank::Ahead { self.next_ticket } else { self.next_ticket | USUAL };
        self.next_ticket += 1;
        lane.waiting.insert(ticket);
        self.waiting += 1;
        Turn::Wait(ticket)
    }

    /// One that ran has ended. What is returned has the turn now.
    pub fn end(&mut self, upstream: &U) -> Option<Ticket> {
        let lane = self.lanes.get_mut(upstream)?;
        lane.running = lane.running.checked_sub(1)?;
        self.running = self.running.saturating_sub(1);
        self.next()
    }

    /// One that waited waits no longer; of one that has its turn already, `end` is to be told.
    pub fn leave(&mut self, upstream: &U, ticket: Ticket) -> bool {
        let Some(lane) = self.lanes.get_mut(upstream) else { return false };
        let waited = lane.waiting.remove(&ticket);
        if waited {
            self.waiting -= 1;
            if lane.waiting.is_empty() {
                self.round.retain(|other| other != upstream);
            }
        }
        waited
    }

    fn next(&mut self) -> Option<Ticket> {
        if self.running >= self.running_max {
            return None;
        }
        let may_run = |upstream: &U| self.lanes.get(upstream).is_some_and(|lane| lane.running < lane.running_max);
        let at = self.round.iter().position(may_run)?;
        let upstream = self.round.remove(at)?;
        let lane = self.lanes.get_mut(&upstream)?;
        let ticket = lane.waiting.pop_first()?;
        lane.running += 1;
        self.running += 1;
        self.waiting -= 1;
        if !lane.waiting.is_empty() {
            self.round.push_back(upstream);
        }
        Some(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_upstream_with_500_waiting_does_not_starve_one_with_a_single_one() {
        let mut turns = Turns::new(2, 1000);
        assert_eq!([turns.ask(&"hub", 9, Rank::Usual), turns.ask(&"hub", 9, Rank::Usual)], [Turn::Now; 2]);
        for ticket in 0..500 {
            assert_eq!(turns.ask(&"hub", 9, Rank::Usual), Turn::Wait(USUAL | ticket));
        }
        assert_eq!(turns.ask(&"ghcr", 9, Rank::Usual), Turn::Wait(USUAL | 500));
        assert_eq!([turns.end(&"hub"), turns.end(&"hub"), turns.end(&"hub")], [Some(USUAL), Some(USUAL | 500), Some(USUAL | 1)]);
        assert_eq!((turns.running(), turns.waiting()), (2, 498));
    }

    #[test]
    fn an_upstream_at_its_own_bound_is_passed_over_and_keeps_its_place() {
        let mut turns = Turns::new(3, 10);
        assert_eq!([turns.ask(&"a", 1, Rank::Usual), turns.ask(&"b", 2, Rank::Usual), turns.ask(&"b", 2, Rank::Usual)], [Turn::Now; 3]);
        let waiting = [turns.ask(&"a", 1, Rank::Usual), turns.ask(&"b", 2, Rank::Usual), turns.ask(&"b", 2, Rank::Usual)];
        assert_eq!(waiting, [Turn::Wait(USUAL), Turn::Wait(USUAL | 1), Turn::Wait(USUAL | 2)]);
        assert_eq!(turns.end(&"b"), Some(USUAL | 1), "a runs as many as it may");
        assert_eq!(turns.end(&"a"), Some(USUAL));
    }

    #[test]
    fn more_than_may_wait_are_refused_and_who_leaves_makes_room() {
        let mut turns = Turns::new(1, 2);
        assert_eq!(turns.ask(&"a", 5, Rank::Usual), Turn::Now);
        assert_eq!(
            [turns.ask(&"a", 5, Rank::Usual), turns.ask(&"a", 5, Rank::Usual), turns.ask(&"a", 5, Rank::Usual)],
            [Turn::Wait(USUAL), Turn::Wait(USUAL | 1), Turn::Full]
        );
        assert_eq!(turns.ask(&"b", 5, Rank::Usual), Turn::Wait(USUAL | 2), "each upstream has a bound of its own");
        assert!(turns.leave(&"a", USUAL) && !turns.leave(&"a", USUAL));
        assert_eq!(turns.ask(&"a", 5, Rank::Usual), Turn::Wait(USUAL | 3));
        assert_eq!(
            [turns.end(&"a"), turns.end(&"a"), turns.end(&"b"), turns.end(&"a")],
            [Some(USUAL | 1), Some(USUAL | 2), Some(USUAL | 3), None]
        );
        assert_eq!((turns.running(), turns.waiting()), (0, 0));
    }

    #[test]
    fn who_ends_what_another_has_begun_goes_ahead_within_its_upstream() {
        let mut turns = Turns::new(1, 9);
        assert_eq!(turns.ask(&"a", 1, Rank::Usual), Turn::Now);
        assert_eq!([turns.ask(&"a", 1, Rank::Usual), turns.ask(&"b", 1, Rank::Usual)], [Turn::Wait(USUAL), Turn::Wait(USUAL | 1)]);
        assert_eq!([turns.ask(&"a", 1, Rank::Ahead), turns.ask(&"a", 1, Rank::Ahead)], [Turn::Wait(2), Turn::Wait(3)]);
        let order = ["a", "a", "b", "a", "a"].map(|upstream| turns.end(&upstream));
        assert_eq!(order, [Some(2), Some(USUAL | 1), Some(3), Some(USUAL), None]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask(u8, bool),
        End(usize),
        Leave(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![3 => (0..4_u8, any::<bool>()).prop_map(|(upstream, ahead)| Step::Ask(upstream, ahead)), 2 => any::<usize>().prop_map(Step::End), 1 => any::<usize>().prop_map(Step::Leave)];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn bounds_hold_nobody_waits_who_could_run_and_everybody_comes_in_turn(steps in steps(), max in 1..6_usize, lane_max in 1..4_usize) {
            let mut turns = Turns::new(max, 8);
            let mut running: Vec<u8> = Vec::new();
            let mut waiting: Vec<(Ticket, u8)> = Vec::new();
            // Turns that others had while an upstream waited that could have run.
            let mut passed = [0; 4];
            for step in steps {
                match step {
                    Step::Ask(upstream, ahead) => match turns.ask(&upstream, lane_max, if ahead { Rank::Ahead } else { Rank::Usual }) {
                        Turn::Now => running.push(upstream),
                        Turn::Wait(ticket) => waiting.push((ticket, upstream)),
                        Turn::Full => prop_assert_eq!(waiting.iter().filter(|(_, other)| *other == upstream).count(), 8),
                    },
                    Step::End(at) if !running.is_empty() => {
                        let ended = running.swap_remove(at % running.len());
                        let could = |upstream: u8, running: &[u8]| running.iter().filter(|other| **other == upstream).count() < lane_max;
                        let candidates: Vec<u8> = waiting.iter().map(|(_, upstream)| *upstream).filter(|upstream| could(*upstream, &running)).collect();
                        if let Some(ticket) = turns.end(&ended) {
                            let at = waiting.iter().position(|(other, _)| *other == ticket).expect("somebody who waits");
                            let (_, upstream) = waiting.remove(at);
                            prop_assert!(waiting.iter().all(|(other, of)| *of != upstream || *other > ticket), "first come, first served");
                            running.push(upstream);
                            for other in 0..4 {
                                let waits = other != upstream && candidates.contains(&other);
                                passed[usize::from(other)] = if waits { passed[usize::from(other)] + 1 } else { 0 };
                            }
                            prop_assert!(passed.iter().all(|passed| *passed < 4), "starved: {:?}", passed);
                        }
                    }
                    Step::Leave(at) if !waiting.is_empty() => {
                        let (ticket, upstream) = waiting.swap_remove(at % waiting.len());
                        prop_assert!(turns.leave(&upstream, ticket));
                    }
                    Step::End(_) | Step::Leave(_) => {}
                }
                for upstream in 0..4 {
                    if waiting.iter().all(|(_, other)| *other != upstream) {
                        passed[usize::from(upstream)] = 0;
                    }
                }
                let of = |upstream: u8| running.iter().filter(|other| **other == upstream).count();
                prop_assert!(running.len() <= max && (0..4).all(|upstream| of(upstream) <= lane_max));
                prop_assert!(running.len() == max || waiting.iter().all(|(_, upstream)| of(*upstream) == lane_max), "somebody could run");
                prop_assert_eq!((turns.running(), turns.waiting()), (running.len(), waiting.len()));
            }
        }
    }
}
