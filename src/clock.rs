//! Time as a value. Waiting is tokio's business; only what is written down (when a tag was last checked) needs the wall
//! clock, and pure functions get it as an argument. What must not jump is measured by `steady`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// How long ago `earlier` was; `None` when it lies in the future, which is what a clock that was set back leaves behind.
    pub fn since(self, earlier: Timestamp) -> Option<Duration> {
        self.0.checked_sub(earlier.0).map(Duration::from_millis)
    }

    /// How far away another moment is, in whichever direction: a clock that was wrong must make nothing immortal.
    pub fn distance(self, other: Timestamp) -> Duration {
        Duration::from_millis(self.0.abs_diff(other.0))
    }

    pub fn plus(self, duration: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Timestamp {
        let elapsed = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::default().plus(elapsed)
    }
}

/// Where time comes from: the system, or a test's hand.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    /// Milliseconds.
    Manual { wall: Arc<AtomicU64>, steady: Arc<AtomicU64> },
}

/// What [`Clock::steady`] counts from.
#[expect(clippy::disallowed_methods, reason = "nobody waits by it; tests have a manual clock")]
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

impl Clock {
    /// A clock that stands at `now` until [`Clock::advance`].
    pub fn manual(now: Timestamp) -> Clock {
        Clock::Manual { wall: Arc::new(AtomicU64::new(now.0)), steady: Arc::default() }
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System => SystemTime::now().into(),
            Clock::Manual { wall, .. } => Timestamp(wall.load(Ordering::SeqCst)),
        }
    }

    /// What has passed since some moment of this process. Never jumps, whatever is done to the wall clock.
    pub fn steady(&self) -> Duration {
        match self {
            Clock::System => START.elapsed(),
            Clock::Manual { steady, .. } => Duration::from_millis(steady.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on; the system's is not ours to move.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual { wall, steady } = self {
            wall.store(self.now().plus(by).0, Ordering::SeqCst);
            steady.fetch_add(Timestamp::default().plus(by).0, Ordering::SeqCst);
        }
    }

    /// Sets a manual clock's wall time, as an operator or NTP does: no time passes.
    pub fn set(&self, now: Timestamp) {
        if let Clock::Manual { wall, .. } = self {
            wall.store(now.0, Ordering::SeqCst);
        }
    }
}
