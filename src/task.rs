//! Background work that outlives its panics: each is counted and logged, and the work begun again after a pause that grows. What
//! keeps panicking is named, so that `/readyz` can say so. Knows no room of larder.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;

/// So many panics within [`FAILING_WINDOW`], and the work counts as failing.
const FAILING_PANICS: usize = 3;
/// Work that has not panicked for so long has recovered. Longer than any loop's own interval but the scrub's (which reads all the
/// time), so that a loop which panics each time it has something to do is seen.
const FAILING_WINDOW: Duration = Duration::from_hours(1);
/// Before the work is begun again; doubles with each panic, so that one that panics at once neither spins nor fills the log.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// Looks after background work; clones are the same.
#[derive(Clone, Debug)]
pub struct Supervisor {
    panics: IntCounter,
    /// The last ones of each work that ever panicked, oldest first.
    recent: Arc<Mutex<BTreeMap<&'static str, Recent>>>,
}

#[derive(Debug, Default)]
struct Recent {
    panics: VecDeque<Instant>,
    /// Those of which none came later than [`FAILING_WINDOW`] after the one before.
    in_a_row: u32,
}

impl Supervisor {
    /// `panics` counts all that is caught here.
    pub fn new(panics: IntCounter) -> Supervisor {
        Supervisor { panics, recent: Arc::default() }
    }

    /// Runs what `begin` makes, until it ends by itself; after a panic it is begun anew. Dropped, it stops.
    pub async fn run<F: Future<Output = ()>>(self, name: &'static str, mut begin: impl FnMut() -> F) {
        loop {
            let panicked = match catch_unwind(AssertUnwindSafe(&mut begin)) {
                Ok(work) => caught(work).await,
                Err(panic) => Err(panic),
            };
            match panicked {
                Ok(()) => return,
                Err(panic) => tokio::time::sleep(self.panicked(name, &*panic)).await,
            }
        }
    }

    /// Does some work of a thread.
    ///
    /// # Errors
    /// How long to wait before it is tried again, when it panicked.
    pub fn attempt<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> Result<T, Duration> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|panic| self.panicked(name, &*panic))
    }

    /// What has panicked again and again, and has not run without a panic long enough since.
    pub fn failing(&self) -> Option<&'static str> {
        let now = Instant::now();
        self.recent.lock().iter().find(|(_, recent)| recent.is_failing(now)).map(|(name, _)| *name)
    }

    /// Counts and logs a panic; returns the pause after it.
    fn panicked(&self, name: &'static str, panic: &(dyn Any + Send)) -> Duration {
        self.panics.inc();
        let in_a_row = self.recent.lock().entry(name).or_default().add(Instant::now());
        let pause = PAUSE_MIN.saturating_mul(2_u32.saturating_pow(in_a_row - 1)).min(PAUSE_MAX);
        let (panic, pause_seconds) = (message(panic), pause.as_secs());
        tracing::error!(task = name, panic, pause_seconds, "a background task panicked, which is a bug; it is started again");
        pause
    }
}

impl Recent {
    /// How many there have been in a row.
    fn add(&mut self, now: Instant) -> u32 {
        let is_first = self.panics.back().is_none_or(|last| now.saturating_duration_since(*last) >= FAILING_WINDOW);
        self.in_a_row = if is_first { 1 } else { self.in_a_row.saturating_add(1) };
        self.panics.push_back(now);
        if self.panics.len() > FAILING_PANICS {
            self.panics.pop_front();
        }
        self.in_a_row
    }

    fn is_failing(&self, now: Instant) -> bool {
        let (Some(first), Some(last)) = (self.panics.front(), self.panics.back()) else { return false };
        let are_close = last.saturating_duration_since(*first) <= FAILING_WINDOW;
        self.panics.len() == FAILING_PANICS && are_close && now.saturating_duration_since(*last) < FAILING_WINDOW
    }
}

/// Runs `work` to its end or its panic.
///
/// # Errors
/// What the panic said. It is counted by whoever calls this, who knows whose work it was.
pub async fn catch<T>(work: impl Future<Output = T>) -> Result<T, String> {
    let mut work = std::pin::pin!(work);
    let polled = poll_fn(|context| match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
        Ok(polled) => polled.map(Ok),
        Err(panic) => std::task::Poll::Ready(Err(message(&*panic).to_owned())),
    });
    polled.await
}

/// What a panic said.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    said.unwrap_or("a panic without a message")
}

type Caught = Result<(), Box<dyn Any + Send>>;

/// The work's end, or its panic.
async fn caught(work: impl Future<Output = ()>) -> Caught {
    let mut work = Some(Box::pin(work));
    let ended = poll_fn(|context| {
        let Some(work) = &mut work else { return std::task::Poll::Ready(Ok(())) };
        let work: Pin<&mut _> = work.as_mut();
        match catch_unwind(AssertUnwindSafe(|| work.poll(context))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        }
    });
    let ended: Caught = ended.await;
    // What a panic left behind may panic once more.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(work.take())));
    ended
}

#[cfg(test)]
#[expect(clippy::panic, reason = "the point of the tests")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn supervisor() -> (Supervisor, IntCounter) {
        let panics = IntCounter::new("panics", "of tasks").expect("a name");
        (Supervisor::new(panics.clone()), panics)
    }

    /// A loop that works once a minute, and panics the first so many times.
    fn spawn(supervisor: &Supervisor, panics: usize) -> (tokio::task::JoinHandle<()>, Arc<AtomicUsize>) {
        let (begun, rounds) = (AtomicUsize::new(0), Arc::new(AtomicUsize::new(0)));
        let worked = Arc::clone(&rounds);
        let begin = move || {
            let (begun, worked) = (begun.fetch_add(1, Ordering::SeqCst) + 1, Arc::clone(&worked));
            async move {
                loop {
                    tokio::time::sleep(Duration::from_mins(1)).await;
                    assert!(begun > panics, "panic {begun}");
                    worked.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        (tokio::spawn(supervisor.clone().run("loop", begin)), rounds)
    }

    async fn minutes(minutes: u64) {
        tokio::time::sleep(Duration::from_mins(minutes)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_panics_once_is_counted_and_goes_on() {
        let (supervisor, panics) = supervisor();
        let (task, rounds) = spawn(&supervisor, 1);
        minutes(10).await;
        assert_eq!((panics.get(), rounds.load(Ordering::SeqCst), supervisor.failing()), (1, 8, None));
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_keeps_panicking_is_named_until_it_has_run_for_an_hour() {
        let (supervisor, panics) = supervisor();
        let (_task, rounds) = spawn(&supervisor, 3);
        minutes(3).await;
        assert_eq!((panics.get(), supervisor.failing()), (2, None));
        minutes(1).await;
        assert_eq!((panics.get(), supervisor.failing()), (3, Some("loop")));
        minutes(57).await;
        assert!(rounds.load(Ordering::SeqCst) > 50 && supervisor.failing() == Some("loop"));
        minutes(5).await;
        assert_eq!((panics.get(), supervisor.failing()), (3, None));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_to_its_bound_and_begins_anew_after_a_quiet_time() {
        let (supervisor, _) = supervisor();
        let pause = || supervisor.attempt("thread", || panic!("on purpose")).map(|()| Duration::ZERO).expect_err("a panic").as_secs();
        let pauses: Vec<_> = (0..9).map(|_| pause()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        minutes(61).await;
        assert_eq!(pause(), 1);
        assert_eq!(supervisor.attempt("thread", || 7), Ok(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_before_the_work_begins_and_one_while_it_is_dropped_are_caught_too() {
        struct Broken;
        impl Future for Broken {
            type Output = ();
            fn poll(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> std::task::Poll<()> {
                panic!("at work")
            }
        }
        impl Drop for Broken {
            fn drop(&mut self) {
                panic!("while it is dropped")
            }
        }
        let (supervisor, panics) = supervisor();
        let mut begun = 0;
        let begin = || -> Pin<Box<dyn Future<Output = ()>>> {
            begun += 1;
            match begun {
                1 => panic!("too early"),
                2 => Box::pin(Broken),
                _ => Box::pin(std::future::ready(())),
            }
        };
        supervisor.run("loop", begin).await;
        assert_eq!(panics.get(), 2);
    }
}
