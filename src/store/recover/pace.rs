//! How much of the machine the reading takes, once clients are served.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::Loading;

/// It gets one part in so many of a processor.
const PARTS: u32 = 6;
const REST_EVERY: Duration = Duration::from_millis(2);

/// Keeps the reading from taking what clients need, once they are served.
pub(super) struct Pace<'a> {
    loading: &'a Loading,
    /// What this thread had computed when it last rested.
    rested: Duration,
}

impl Pace<'_> {
    pub(super) fn new(loading: &Loading) -> Pace<'_> {
        Pace { loading, rested: computed() }
    }

    /// # Errors
    /// When there is no use in going on.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        self.loading.check()?;
        let worked = computed().saturating_sub(self.rested);
        if worked >= REST_EVERY {
            if self.loading.is_behind.load(Ordering::Acquire) {
                std::thread::sleep(worked * (PARTS - 1));
            }
            self.rested = computed();
        }
        Ok(())
    }
}

/// The processor time of this thread: waiting for the disk takes nothing from anybody.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}
