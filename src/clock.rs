//! Time as a value. Waiting is tokio's business; only what is written down (when a tag was last checked) needs the wall
//! clock, and pure functions get it as an argument. What must not jump is measured by `steady`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error, Unexpected};

/// Milliseconds since the Unix epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The end of the year 9999: RFC 3339 has four digits for a year (section 5.6), and no clock will show more.
    const LAST: Timestamp = Timestamp(253_402_300_799_999);

    /// For people, as RFC 3339 in whole seconds. What lies beyond the year 9999 is written as its end, since a
    /// `Display` that fails makes whoever writes the log panic.
    #[expect(clippy::disallowed_methods, reason = "the one place: it never gets what it cannot write")]
    pub fn rfc3339(self) -> humantime::Rfc3339Timestamp {
        humantime::format_rfc3339_seconds(self.writable())
    }

    /// The same in milliseconds.
    #[expect(clippy::disallowed_methods, reason = "the one place: it never gets what it cannot write")]
    pub fn rfc3339_millis(self) -> humantime::Rfc3339Timestamp {
        humantime::format_rfc3339_millis(self.writable())
    }

    fn writable(self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.min(Timestamp::LAST).0)
    }

    /// How long ago `earlier` was; `None` when it lies in the future, which is what a clock that was set back leaves
    /// behind.
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

/// A number that no clock can have shown is refused where it is read: the file is damaged. Zero is a time: `larder
/// import` writes it of what has none.
impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        let millis = u64::deserialize(deserializer)?;
        let refused = || D::Error::invalid_value(Unexpected::Unsigned(millis), &"milliseconds since 1970, before the year 10000");
        Some(Timestamp(millis)).filter(|at| *at <= Timestamp::LAST).ok_or_else(refused)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_clock_can_have_shown_is_refused_where_it_is_read() {
        let read = |text: &str| serde_json::from_str::<Timestamp>(text).ok().map(|at| at.0);
        for millis in [0, 1, 1_795_219_200_000, 253_402_300_799_999] {
            assert_eq!(read(&millis.to_string()), Some(millis));
        }
        for text in ["-1", "253402300800000", "18446744073709551615", "1e300", "1.5", "null", "\"1795219200000\""] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn every_moment_can_be_written() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_795_219_200_123, "2026-11-21T00:00:00.123Z"),
            (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
            (253_402_300_800_000, "9999-12-31T23:59:59.999Z"),
            (u64::MAX, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(Timestamp(millis).rfc3339_millis().to_string(), text);
            assert_eq!(Timestamp(millis).rfc3339().to_string(), format!("{}Z", &text[..19]));
        }
    }
}
