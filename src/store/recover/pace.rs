//! How much of the machine the reading takes, once clients are served.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::store::Store;

/// While something is being used, it gets one part in so many of a processor.
const PARTS: u32 = 20;
const REST_EVERY: Duration = Duration::from_millis(2);

/// Keeps the reading from taking what clients need, once they are served.
pub(super) struct Pace<'a> {
    store: &'a Store,
    /// As the ledger counted them then.
    uses: u64,
    /// What this thread had computed when it last rested.
    rested: Duration,
}

impl Pace<'_> {
    pub(super) fn new(store: &Store) -> Pace<'_> {
        Pace { store, uses: store.ledger().uses(), rested: computed() }
    }

    /// # Errors
    /// When there is no use in going on.
    pub(super) fn rest(&mut self) -> io::Result<()> {
        let loading = &self.store.loading;
        loading.check()?;
        let worked = computed().saturating_sub(self.rested);
        if worked >= REST_EVERY {
            let before = std::mem::replace(&mut self.uses, self.store.ledger().uses());
            if loading.is_behind.load(Ordering::Acquire) && self.uses != before {
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
