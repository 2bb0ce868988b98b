//! One look at everything that is held: each file under `blobs/` is hashed and judged. `scrub` does it slowly and for ever, `verify` at once
//! because somebody asked; what becomes of a verdict is theirs to say, but that what is damaged may be put aside.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::Store;
use super::blobs::Lease;
use super::hash::{Rehash, Verdict};
use crate::gate::Gate;
use crate::oci::{Algorithm, Digest};

/// Directories below `blobs/<algorithm>/`: one for each first byte.
pub(super) const SHELVES: usize = 256;
/// Bytes that are hashed at a time where somebody waits for it: some milliseconds of the gate.
const SLICE_BYTES: u64 = 8 << 20;
/// The same where nobody does.
const SLOW_SLICE_BYTES: u64 = 1 << 20;
/// A file costs as much as so many bytes, however small it is: disks have to seek.
const FILE_BYTES: u64 = 64 << 10;
/// So much slower while clients need the disk.
const BUSY_FACTOR: u32 = 10;

/// How fast an audit goes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Pace {
    /// As fast as the gate lets it.
    Full,
    /// So many bytes a second.
    Rate(u64),
}

impl Pace {
    fn slice(self) -> u64 {
        if let Pace::Full = self { SLICE_BYTES } else { SLOW_SLICE_BYTES }
    }

    /// How long to pause after so many bytes.
    fn pause(self, bytes: u64, gate: &Gate) -> Duration {
        let Pace::Rate(rate) = self else { return Duration::ZERO };
        let pause = Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate);
        if gate.is_busy() { pause * BUSY_FACTOR } else { pause }
    }
}

/// What happens in an audit.
pub(super) enum Event<'a> {
    /// The next object is about to be looked at.
    Begun,
    /// So many more bytes of it were hashed.
    Hashed(u64),
    /// That came of it.
    Judged(&'a Digest, &'a Verdict),
    /// A directory could not be read, which was reported: what is in it is not looked at.
    Unread(&'a Path, &'a io::Error),
}

/// What is to be done upon it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reply {
    GoOn,
    /// What was found damaged is moved to `quarantine/`.
    PutAside,
    /// Nobody wants to know the rest.
    Stop,
}

/// Whoever is told.
pub(super) type Listener<'a> = &'a mut (dyn FnMut(Event<'_>) -> Reply + Send);

impl Store {
    /// Looks at everything that is held, from a shelf to the one before it. Says whether that was all, and none of it unreadable.
    pub(super) async fn audit(self: &Arc<Store>, first: usize, pace: Pace, listener: Listener<'_>) -> bool {
        let mut whole = true;
        for shelf in (0..SHELVES).cycle().skip(first).take(SHELVES) {
            for algorithm in Algorithm::ALL {
                let directory = self.layout.blobs().join(algorithm.as_str()).join(format!("{shelf:02x}"));
                let digests = self.shelf(algorithm, directory.clone()).await.unwrap_or_else(|error| {
                    whole = false;
                    listener(Event::Unread(&directory, &error));
                    Vec::new()
                });
                for digest in digests {
                    if listener(Event::Begun) == Reply::Stop {
                        return false;
                    }
                    let Some(verdict) = self.examine(digest, pace, listener).await else { continue };
                    whole &= !matches!(verdict, Verdict::Unreadable(_));
                    let reply = listener(Event::Judged(&digest, &verdict));
                    self.settle(digest, &verdict, reply).await;
                }
            }
        }
        whole
    }

    /// What a shelf's directory names, in order.
    async fn shelf(self: &Arc<Store>, algorithm: Algorithm, directory: PathBuf) -> io::Result<Vec<Digest>> {
        let store = Arc::clone(self);
        let list = move || {
            let entries = store.walk.shelf(algorithm, &directory)?;
            let mut digests: Vec<Digest> =
                entries.iter().filter_map(|entry| Digest::from_parts(algorithm.as_str(), &entry.name).ok()).collect();
            digests.sort_unstable();
            Ok(digests)
        };
        self.gate.run(list).await
    }

    /// Hashes an object, which is no use of it, and keeps it from being evicted meanwhile; `None` when it is not held.
    async fn examine(self: &Arc<Store>, digest: Digest, pace: Pace, listener: Listener<'_>) -> Option<Verdict> {
        let _lease = Lease::take(&self.ledger, digest)?;
        let store = Arc::clone(self);
        let opened = self.gate.run(move || {
            let file = store.disk.open(&store.layout.blob(&digest))?;
            let len = file.stat()?.len;
            Ok(Rehash { file, digest, len })
        });
        let rehash = match opened.await {
            Ok(rehash) => rehash,
            Err(error) => return Some(Verdict::of(error)),
        };
        tokio::time::sleep(pace.pause(FILE_BYTES, &self.gate)).await;
        let mut before = 0;
        let hashed = |done: u64| {
            let bytes = done - std::mem::replace(&mut before, done);
            listener(Event::Hashed(bytes));
            pace.pause(bytes, &self.gate)
        };
        Some(rehash.run(&self.gate, pace.slice(), hashed).await)
    }

    async fn settle(self: &Arc<Store>, digest: Digest, verdict: &Verdict, reply: Reply) {
        match verdict {
            Verdict::Intact => self.trust.saw(&digest),
            Verdict::Damaged(_) if reply == Reply::PutAside => {
                let store = Arc::clone(self);
                self.gate.run(move || store.quarantine(&digest)).await;
            }
            Verdict::Damaged(_) | Verdict::Unreadable(_) => {}
        }
    }

    /// Everything that is held was hashed since the last unclean stop, so that nothing is in doubt any more. Blocks.
    pub(super) fn all_is_known(&self) {
        self.trust.settle();
        let now = self.clock.now();
        self.metrics.scrubbed(now);
        if let Err(error) = self.lock.examined(now) {
            tracing::warn!(%error, "that the whole cache was hashed could not be written down");
        }
    }
}
