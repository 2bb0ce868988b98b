//! A pace that a registry sets: questions go out one after the other, so far apart. Who would come too late to be answered is
//! told so at once. A GET goes first: it ends what a HEAD began, and a hundred new HEADs would keep all of them from an end.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::oci::registries;
use crate::upstream::UpstreamError;

/// What is left to a question when its turn comes, at least.
const TIME_TO_ASK: Duration = Duration::from_secs(5);

/// Hands out turns. So many wait, at most, as fit before their deadlines.
pub struct Pace {
    interval: Duration,
    queue: Mutex<Queue>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    /// No turn before this.
    next: Option<Instant>,
    waiting: BTreeSet<Place>,
    tickets: u64,
}

/// In the order of their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    what: Asking,
    ticket: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asking {
    Get,
    Head,
}

impl Pace {
    /// That of whoever asks this host without an account.
    pub fn of_anonymous(host: &str) -> Option<Pace> {
        let interval = registries::find(host)?.anonymous_interval?;
        Some(Pace { interval, queue: Mutex::default(), changed: Notify::new() })
    }

    /// Waits for its turn.
    ///
    /// # Errors
    /// When that comes too late to be answered before `deadline`: at once, as far as that can be told.
    pub async fn turn(&self, what: Asking, deadline: Instant) -> Result<(), UpstreamError> {
        let limited = |wait| UpstreamError::RateLimited { retry_after: Some(wait) };
        let place = self.queue().enter(what, Instant::now(), deadline, self.interval).map_err(limited)?;
        let _leaving = Leaving { pace: self, place };
        loop {
            let changed = self.changed.notified();
            let now = Instant::now();
            let Some(turn) = self.queue().take(place, now, self.interval) else { return Ok(()) };
            if is_late(turn, now, deadline) {
                return Err(limited(turn - now));
            }
            tokio::select! {
                () = tokio::time::sleep_until(turn) => {}
                () = changed => {}
            }
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock()
    }
}

impl Queue {
    /// A place, unless its turn comes too late; then how far away that is.
    fn enter(&mut self, what: Asking, now: Instant, deadline: Instant, interval: Duration) -> Result<Place, Duration> {
        let heads = self.waiting.iter().filter(|place| place.what == Asking::Head).count();
        let gets = self.waiting.len() - heads;
        let ahead = match what {
            Asking::Get => gets,
            // Every HEAD before this one will have its GET, and this one, too.
            Asking::Head => gets + 2 * heads,
        };
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let turn = self.next.map_or(now, |next| next.max(now)) + interval.saturating_mul(ahead);
        let end = if what == Asking::Head { turn + interval } else { turn };
        if turn > now && is_late(end, now, deadline) {
            return Err(turn - now);
        }
        self.tickets += 1;
        let place = Place { what, ticket: self.tickets };
        self.waiting.insert(place);
        Ok(place)
    }

    /// Takes the turn, or says when it may come.
    fn take(&mut self, place: Place, now: Instant, interval: Duration) -> Option<Instant> {
        let next = self.next.map_or(now, |next| next.max(now));
        if self.waiting.first() == Some(&place) {
            if next > now {
                return Some(next);
            }
            self.next = Some(now + interval);
            return None;
        }
        Some(next + interval)
    }
}

/// A turn that is due now is never late.
fn is_late(turn: Instant, now: Instant, deadline: Instant) -> bool {
    turn > now && turn + TIME_TO_ASK > deadline
}

/// Gives up a place, whether its turn came or not, and lets the others look where they stand.
struct Leaving<'a> {
    pace: &'a Pace,
    place: Place,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.pace.queue().waiting.remove(&self.place);
        self.pace.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn who_comes_too_late_is_told_at_once_how_late() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let deadline = start + seconds(9);
        let enter = |queue: &mut Queue, what| queue.enter(what, start, deadline, INTERVAL).map(|place| place.ticket);
        assert_eq!(enter(&mut queue, Asking::Head), Ok(1));
        assert_eq!(enter(&mut queue, Asking::Head), Ok(2), "after 2 s, and its GET after 3 s");
        assert_eq!(enter(&mut queue, Asking::Head), Err(seconds(4)), "its GET would be late");
        assert_eq!(enter(&mut queue, Asking::Get), Ok(3));
        assert_eq!(enter(&mut Queue::default(), Asking::Head), Ok(1));
        let soon = Queue::default().enter(Asking::Get, start, start + seconds(1), INTERVAL);
        assert!(soon.is_ok(), "no wait is never too long");
    }

    #[test]
    fn turns_are_an_interval_apart_gets_first_and_none_is_saved_up() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        let [head, get, late] =
            [Asking::Head, Asking::Get, Asking::Get].map(|what| queue.enter(what, start, start + seconds(25), INTERVAL).expect("a place"));
        let mut turn = |place: Place, at: Instant| {
            let turn = queue.take(place, at, INTERVAL);
            if turn.is_none() {
                queue.waiting.remove(&place);
            }
            turn
        };
        assert_eq!(turn(head, start), Some(start + seconds(1)), "a GET is waiting");
        assert_eq!(turn(get, start), None);
        assert_eq!(turn(late, start), Some(start + seconds(1)));
        let later = start + seconds(60);
        assert_eq!((turn(late, later), turn(head, later)), (None, Some(later + seconds(1))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_makes_way() {
        let pace = Pace::of_anonymous("public.ecr.aws").expect("a pace");
        let begun = Instant::now();
        let deadline = begun + seconds(25);
        assert_eq!(pace.turn(Asking::Head, deadline).await, Ok(()));
        let given_up = tokio::time::timeout(Duration::from_millis(500), pace.turn(Asking::Get, deadline));
        let (given_up, waited) = tokio::join!(given_up, pace.turn(Asking::Head, deadline));
        assert!(given_up.is_err() && waited.is_ok());
        assert_eq!(begun.elapsed(), seconds(1));
        assert!(pace.queue().waiting.is_empty());
    }

    #[test]
    fn only_amazon_s_public_registry_has_one() {
        for host in ["docker.io", "ghcr.io", "public.ecr.aws.evil.io", "123456789012.dkr.ecr.eu-west-1.amazonaws.com"] {
            assert!(Pace::of_anonymous(host).is_none(), "{host}");
        }
    }
}
