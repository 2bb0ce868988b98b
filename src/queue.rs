//! Where downloads, and questions to upstreams, wait for their turn. `turns` decides; here they wait, and leave when they have waited long
//! enough. Knows neither downloads nor questions.

mod turns;

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

pub use turns::Rank;
use turns::{Ticket, Turn, Turns};

/// Of one upstream, that may wait. One more is told at once to come again.
const WAITING_MAX: usize = 4096;

/// How long those that no client waits for let others go before, and how often they look.
const CALM_TIMEOUT: Duration = Duration::from_secs(60);
const CALM_INTERVAL: Duration = Duration::from_millis(250);

type Upstream = Arc<str>;

/// Is told how many run and how many wait, after each change.
type Observer = Box<dyn Fn(usize, usize) + Send + Sync>;

/// All who run or wait to.
pub struct Queue {
    state: Mutex<State>,
    running_max: usize,
    observer: Observer,
}

struct State {
    turns: Turns<Upstream>,
    waiters: HashMap<Ticket, (Upstream, oneshot::Sender<Running>)>,
}

/// A turn; dropped, by a panic too, it is the next one's.
#[derive(Debug)]
pub struct Running {
    queue: Arc<Queue>,
    upstream: Upstream,
}

/// There was no turn in time, or there is not even room to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overloaded;

impl Queue {
    /// `running_max` may run at a time. `observer` must be quick, and not call back.
    pub fn new(running_max: usize, observer: impl Fn(usize, usize) + Send + Sync + 'static) -> Queue {
        let state = State { turns: Turns::new(running_max, WAITING_MAX), waiters: HashMap::new() };
        Queue { state: Mutex::new(state), running_max, observer: Box::new(observer) }
    }

    /// Waits for a turn for this upstream, of which `lane_max` may run.
    ///
    /// # Errors
    /// When it does not come within `timeout`, or too many wait already.
    pub async fn turn(
        self: &Arc<Queue>,
        upstream: &Upstream,
        lane_max: usize,
        rank: Rank,
        timeout: Duration,
    ) -> Result<Running, Overloaded> {
        let Some(mut waiting) = self.ask(upstream, lane_max, rank)? else {
            return Ok(Running { queue: Arc::clone(self), upstream: Arc::clone(upstream) });
        };
        let turn = tokio::time::timeout(timeout, &mut waiting.turn).await;
        turn.ok().and_then(Result::ok).ok_or(Overloaded)
    }

    /// Waits while others wait for their turn or take most of the places, but not for ever: then who waits here queues like
    /// everybody.
    pub async fn calm(&self) {
        let until = Instant::now() + CALM_TIMEOUT;
        while self.is_busy() && Instant::now() < until {
            tokio::time::sleep(CALM_INTERVAL).await;
        }
    }

    fn is_busy(&self) -> bool {
        let state = self.state();
        let running = state.turns.running();
        state.turns.waiting() > 0 || running > 0 && running * 4 >= self.running_max * 3
    }

    /// `None` when the turn is now.
    fn ask(self: &Arc<Queue>, upstream: &Upstream, lane_max: usize, rank: Rank) -> Result<Option<Waiting>, Overloaded> {
        let mut state = self.state();
        let ticket = match state.turns.ask(upstream, lane_max, rank) {
            Turn::Now => None,
            Turn::Wait(ticket) => Some(ticket),
            Turn::Full => return Err(Overloaded),
        };
        let waiting = ticket.map(|ticket| {
            let (sender, turn) = oneshot::channel();
            state.waiters.insert(ticket, (Arc::clone(upstream), sender));
            Waiting { queue: Arc::clone(self), upstream: Arc::clone(upstream), ticket, turn }
        });
        self.observe(&state);
        Ok(waiting)
    }

    fn end(self: &Arc<Queue>, upstream: &Upstream) {
        let next = {
            let mut state = self.state();
            let ticket = state.turns.end(upstream);
            let next = ticket.and_then(|ticket| state.waiters.remove(&ticket));
            self.observe(&state);
            next
        };
        if let Some((upstream, sender)) = next {
            // Who has left in this very moment drops the turn, which passes it on.
            let _ = sender.send(Running { queue: Arc::clone(self), upstream });
        }
    }

    fn leave(&self, upstream: &Upstream, ticket: Ticket) {
        let mut state = self.state();
        if state.turns.leave(upstream, ticket) {
            state.waiters.remove(&ticket);
            self.observe(&state);
        }
    }

    fn observe(&self, state: &State) {
        (self.observer)(state.turns.running(), state.turns.waiting());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.queue.end(&self.upstream);
    }
}

/// A place in the queue; dropped, it is free. A turn that came at the same time is passed on.
struct Waiting {
    queue: Arc<Queue>,
    upstream: Upstream,
    ticket: Ticket,
    turn: oneshot::Receiver<Running>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.queue.leave(&self.upstream, self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    type Seen = Arc<Mutex<(usize, usize)>>;

    fn queue(max: usize) -> (Arc<Queue>, Seen) {
        let seen = Seen::default();
        let observer = {
            let seen = Arc::clone(&seen);
            move |running, waiting| *seen.lock() = (running, waiting)
        };
        (Arc::new(Queue::new(max, observer)), seen)
    }

    fn gauges(seen: &Seen) -> (usize, usize) {
        *seen.lock()
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_leaves_frees_its_place_and_loses_no_turn() {
        let (queue, seen) = queue(1);
        let hub: Upstream = "hub".into();
        let first = queue.turn(&hub, 9, Rank::Usual, LONG).await.expect("a free place");
        let mut leaver = Box::pin(queue.turn(&hub, 9, Rank::Usual, LONG));
        let mut second = Box::pin(queue.turn(&hub, 9, Rank::Usual, LONG));
        assert!(tokio::time::timeout(Duration::ZERO, &mut leaver).await.is_err());
        assert!(tokio::time::timeout(Duration::ZERO, &mut second).await.is_err());
        assert_eq!(gauges(&seen), (1, 2));
        // The leaver has its turn and does not know it yet.
        drop(first);
        assert_eq!(gauges(&seen), (1, 1));
        drop(leaver);
        let second = second.await.expect("the turn that was passed on");
        assert_eq!(gauges(&seen), (1, 0));
        drop(second);
        assert_eq!(gauges(&seen), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_in_vain_is_told_in_time_and_who_finds_no_room_at_once() {
        let (queue, seen) = queue(1);
        let hub: Upstream = "hub".into();
        let running = queue.turn(&hub, 9, Rank::Usual, LONG).await.expect("a free place");
        let waiters: Vec<_> = (0..WAITING_MAX).map(|_| queue.ask(&hub, 9, Rank::Usual).expect("room to wait")).collect();
        let begun = tokio::time::Instant::now();
        assert_eq!(queue.turn(&hub, 9, Rank::Usual, LONG).await.err(), Some(Overloaded));
        assert_eq!((begun.elapsed(), gauges(&seen).1), (Duration::ZERO, 4096));
        drop(waiters);
        assert_eq!(queue.turn(&hub, 9, Rank::Usual, LONG).await.err(), Some(Overloaded));
        assert_eq!((begun.elapsed().as_secs(), gauges(&seen)), (20, (1, 0)));
        drop(running);
        assert!(queue.turn(&hub, 9, Rank::Usual, LONG).await.is_ok());
    }

    #[tokio::test]
    async fn a_turn_whose_task_panics_is_the_next_one_s() {
        let (queue, seen) = queue(1);
        let hub: Upstream = "hub".into();
        let running = queue.turn(&hub, 9, Rank::Usual, LONG).await.expect("a free place");
        #[expect(clippy::panic, reason = "the point of the test")]
        let task = tokio::spawn(async move {
            let _running = running;
            panic!("on purpose");
        });
        assert!(task.await.is_err());
        assert_eq!(gauges(&seen), (0, 0));
        assert!(queue.turn(&hub, 9, Rank::Usual, LONG).await.is_ok());
    }
}
