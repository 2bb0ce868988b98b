//! The one door to blocking work (disk, index): a bounded number of blocking threads, or, in a simulation, none. Closed
//! at the stop: what runs then is waited for, and nothing more begins.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// With fewer free places than this, work that nobody waits for should wait.
const FREE_PLACES_MIN: usize = 8;

/// Runs blocking work off the async workers.
#[derive(Clone, Debug)]
pub enum Gate {
    /// On tokio's blocking threads, at most so many at a time: the pool is shared with DNS, which a slow disk must not
    /// starve.
    Threads { places: Arc<Semaphore>, limit: u32 },
    /// In place. For tests that want one order of events, and commands that do one thing after another.
    Inline,
}

impl Gate {
    pub fn threads(limit: u32) -> Gate {
        Gate::Threads { places: Arc::new(Semaphore::new(usize::try_from(limit).unwrap_or(usize::MAX))), limit }
    }

    /// Whether work that somebody waits for takes most of the places.
    pub fn is_busy(&self) -> bool {
        match self {
            Gate::Inline => false,
            Gate::Threads { places, .. } => places.available_permits() < FREE_PLACES_MIN,
        }
    }

    /// Runs `work` to its end, even when the caller stops waiting: a half-done commit helps nobody. Once the gate is
    /// closed, work that has not begun never does, and this never returns.
    ///
    /// # Panics
    /// When `work` panics.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Gate::Inline => work(),
            Gate::Threads { places, .. } => {
                let Ok(place) = Arc::clone(places).acquire_owned().await else { return std::future::pending().await };
                let task = tokio::task::spawn_blocking(move || {
                    let _place = place;
                    work()
                });
                match task.await {
                    Ok(done) => done,
                    Err(failed) => match failed.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // Only a runtime that is shutting down cancels blocking work; nothing after this point runs.
                        Err(_) => std::future::pending().await,
                    },
                }
            }
        }
    }

    /// Closes the gate for good, once what runs and what waited before has ended, but after `within` in any case.
    /// Returns whether it has: `false` means that some work is still running.
    pub async fn close(&self, within: Duration) -> bool {
        let Gate::Threads { places, limit } = self else { return true };
        // The semaphore is fair: whoever asks from now on waits behind this.
        let all = tokio::time::timeout(within, places.acquire_many(*limit)).await;
        places.close();
        all.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    use super::*;

    impl Gate {
        fn is_free(&self, count: usize) -> bool {
            matches!(self, Gate::Threads { places, .. } if places.available_permits() == count)
        }
    }

    #[tokio::test]
    async fn a_closing_gate_waits_for_what_runs_and_lets_nothing_more_in() {
        let gate = Gate::threads(2);
        let (go, wait) = mpsc::channel::<()>();
        let done = Arc::new(AtomicUsize::new(0));
        let (count, other) = (Arc::clone(&done), gate.clone());
        let running = tokio::spawn(async move {
            let work = move || {
                let _ = wait.recv();
                count.fetch_add(1, Ordering::SeqCst)
            };
            other.run(work).await
        });
        while gate.is_free(2) {
            tokio::task::yield_now().await;
        }
        let other = gate.clone();
        let closing = tokio::spawn(async move { other.close(Duration::from_secs(60)).await });
        tokio::task::yield_now().await;
        let (count, other) = (Arc::clone(&done), gate.clone());
        let late = tokio::spawn(async move { other.run(move || count.fetch_add(10, Ordering::SeqCst)).await });
        tokio::task::yield_now().await;
        assert!(!closing.is_finished());
        drop(go);
        assert!(closing.await.expect("it ends") && running.await.is_ok() && !late.is_finished());
        assert_eq!(done.load(Ordering::SeqCst), 1);
        let after = tokio::time::timeout(Duration::from_millis(1), gate.run(|| ())).await;
        assert!(after.is_err());
    }

    #[tokio::test]
    async fn a_gate_whose_work_hangs_says_so() {
        let gate = Gate::threads(2);
        let (go, wait) = mpsc::channel::<()>();
        let hanging = gate.clone();
        let task = tokio::spawn(async move { hanging.run(move || wait.recv().is_ok()).await });
        while gate.is_free(2) {
            tokio::task::yield_now().await;
        }
        assert!(!gate.close(Duration::from_millis(1)).await);
        drop(go);
        task.await.expect("it ends");
    }
}
