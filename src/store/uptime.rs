//! Daemon time: how long larder has run with this cache directory. What is used is put in order by it, and what is not
//! used ages by it; the wall clock jumps, and a cache that was switched off has not been neglected.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::disk::{self, Disk};
use crate::clock::Clock;

/// Most bytes of the file; a number has fewer.
const FILE_BYTES_MAX: u64 = 64;
/// A file that says more is damaged, and counts as lost: daemon time would stand at its end, and what is used last would be put in no
/// order. A thousand years.
const MILLIS_MAX: u64 = 1000 * 365 * 24 * 3_600_000;
/// How often it is written down: so much is forgotten by a crash.
const WRITE_INTERVAL: Duration = Duration::from_secs(60);

/// Milliseconds of daemon time. Never goes back, also not over a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DaemonTime(pub u64);

impl DaemonTime {
    /// How long ago `earlier` was.
    pub fn since(self, earlier: DaemonTime) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// So long before, or the beginning.
    pub fn before(self, duration: Duration) -> DaemonTime {
        DaemonTime(self.0.saturating_sub(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }

    pub fn plus(self, duration: Duration) -> DaemonTime {
        DaemonTime(self.0.saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)))
    }
}

/// The clock of it, and its file.
pub struct Uptime {
    clock: Clock,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    /// What the clock said at the start.
    started: Duration,
    /// What had passed before.
    before: AtomicU64,
    written: AtomicU64,
}

impl Uptime {
    /// Goes on where the file says the last run ended, or, if that run was killed, where it may have ended at the latest. Also
    /// says what the file says.
    pub fn start(clock: Clock, disk: Arc<dyn Disk>, path: PathBuf, was_killed: bool) -> (Uptime, Option<DaemonTime>) {
        let read = disk::read_small(&*disk, &path, FILE_BYTES_MAX).ok().flatten();
        let last: Option<u64> =
            read.and_then(|bytes| String::from_utf8(bytes).ok()?.trim().parse().ok()).filter(|last| *last <= MILLIS_MAX);
        let started = clock.steady();
        let unwritten = if was_killed { WRITE_INTERVAL * 2 } else { Duration::ZERO };
        let before = DaemonTime(last.unwrap_or_default()).plus(unwritten).0;
        let uptime = Uptime { clock, disk, path, started, before: AtomicU64::new(before), written: AtomicU64::new(before) };
        (uptime, last.map(DaemonTime))
    }

    pub fn now(&self) -> DaemonTime {
        let elapsed = self.clock.steady().saturating_sub(self.started);
        DaemonTime(self.before.load(Ordering::Relaxed)).plus(elapsed)
    }

    /// Something was used then, so it is later now: the file is older than the last use after a crash.
    pub fn at_least(&self, then: DaemonTime) {
        self.before.fetch_max(then.0, Ordering::Relaxed);
    }

    /// Whether it is time to write it down.
    pub fn is_due(&self) -> bool {
        let written = DaemonTime(self.written.load(Ordering::Relaxed));
        self.now().since(written) >= WRITE_INTERVAL
    }

    /// Writes it down if that is due. Blocks.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn tend(&self) -> io::Result<()> {
        if self.is_due() { self.write() } else { Ok(()) }
    }

    /// Writes it down. Blocks.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn write(&self) -> io::Result<()> {
        let now = self.now();
        self.written.store(now.0, Ordering::Relaxed);
        disk::replace(&*self.disk, &self.path, now.0.to_string().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::store::disk::SystemDisk;

    #[test]
    fn only_time_counts_in_which_larder_runs_whatever_the_wall_clock_says() {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = Clock::manual(Timestamp(1_000_000_000_000));
        let start = |was_killed| Uptime::start(clock.clone(), Arc::new(SystemDisk), directory.path().join("uptime"), was_killed);
        let (first, last) = start(false);
        assert_eq!((first.now(), last), (DaemonTime(0), None));
        clock.advance(Duration::from_millis(7));
        clock.set(Timestamp(0));
        first.write().expect("a file");
        assert_eq!(first.now(), DaemonTime(7));
        clock.advance(Duration::from_secs(1000));
        let (second, last) = start(false);
        assert_eq!((second.now(), last), (DaemonTime(7), Some(DaemonTime(7))));
        second.at_least(DaemonTime(20));
        second.at_least(DaemonTime(10));
        assert_eq!(second.now(), DaemonTime(20));
        let (third, _) = start(true);
        assert_eq!(third.now(), DaemonTime(7).plus(WRITE_INTERVAL * 2));
    }

    #[test]
    fn a_file_with_more_than_a_thousand_years_counts_as_lost() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("uptime");
        for (text, expected) in
            [("31536000000000", Some(DaemonTime(MILLIS_MAX))), ("31536000000001", None), ("18446744073709551615", None), ("-1", None)]
        {
            std::fs::write(&path, text).expect("a file");
            let (uptime, last) = Uptime::start(Clock::manual(Timestamp(1)), Arc::new(SystemDisk), path.clone(), false);
            assert_eq!((last, uptime.now()), (expected, expected.unwrap_or_default()), "{text}");
        }
    }
}
