//! Wall time as a value. Waiting is tokio's business; only what is written down (when a tag was last checked, when a
//! blob was last used) needs the wall clock, and pure functions get it as an argument.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

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

/// Where wall time comes from: the system, or a test's hand.
#[derive(Clone, Debug, Default)]
pub enum Clock {
    #[default]
    System,
    Manual(Arc<AtomicU64>),
}

impl Clock {
    /// A clock that stands at `now` until [`Clock::advance`].
    pub fn manual(now: Timestamp) -> Clock {
        Clock::Manual(Arc::new(AtomicU64::new(now.0)))
    }

    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System => SystemTime::now().into(),
            Clock::Manual(millis) => Timestamp(millis.load(Ordering::SeqCst)),
        }
    }

    /// Moves a manual clock on; the system's is not ours to move.
    pub fn advance(&self, by: Duration) {
        if let Clock::Manual(millis) = self {
            millis.store(self.now().plus(by).0, Ordering::SeqCst);
        }
    }
}
