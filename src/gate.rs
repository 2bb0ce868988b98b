//! The one door to blocking work (disk, index): a bounded number of blocking threads, or, in a simulation, none.

use std::sync::Arc;

use tokio::sync::Semaphore;

/// With fewer free places than this, work that nobody waits for should wait.
const FREE_PLACES_MIN: usize = 8;

/// Runs blocking work off the async workers.
#[derive(Clone, Debug)]
pub enum Gate {
    /// On tokio's blocking threads, at most so many at a time: the pool is shared with DNS, which a slow disk must not starve.
    Threads(Arc<Semaphore>),
    /// In place. For tests that want one order of events.
    Inline,
}

impl Gate {
    pub fn threads(limit: usize) -> Gate {
        Gate::Threads(Arc::new(Semaphore::new(limit)))
    }

    /// Whether work that somebody waits for takes most of the places.
    pub fn is_busy(&self) -> bool {
        match self {
            Gate::Inline => false,
            Gate::Threads(permits) => permits.available_permits() < FREE_PLACES_MIN,
        }
    }

    /// Runs `work` to its end, even when the caller stops waiting: a half-done commit helps nobody.
    ///
    /// # Panics
    /// When `work` panics.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Gate::Inline => work(),
            Gate::Threads(permits) => {
                let permit = Arc::clone(permits).acquire_owned().await;
                let task = tokio::task::spawn_blocking(move || {
                    let _permit = permit;
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
}
