//! `cache.verify_on_read`: which stored blobs are hashed again before they are served, and how their readers wait for it.
//!
//! What is small is hashed whenever it is read into RAM, and needs none of this.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Store;
use super::blobs::{Blob, Content};
use super::rehash::{Rehash, Verdict};
use super::tail::{Phase, Tail};
use crate::config::VerifyOnRead;
use crate::oci::Digest;

/// How long a blob is hashed before its headers leave. What is found damaged within it is fetched again and nobody notices;
/// after that, readers follow the hashing, the end held back, and damage breaks their connections.
const VERIFY_WAIT: Duration = Duration::from_secs(10);
/// Hashed at a time: some milliseconds of the gate.
const SLICE_BYTES: u64 = 8 << 20;

/// What is believed without looking.
pub(super) struct Trust {
    mode: VerifyOnRead,
    /// A stop was not clean, and not everything has been hashed since.
    doubt: AtomicBool,
    /// While there is doubt: what was hashed or stored since the start, by the first eight bytes of its digest. As large as
    /// what is held.
    known: Mutex<HashSet<u64>>,
    running: Mutex<HashMap<Digest, Arc<Tail>>>,
}

impl Trust {
    pub(super) fn new(mode: VerifyOnRead, doubt: bool) -> Trust {
        Trust { mode, doubt: AtomicBool::new(doubt), known: Mutex::default(), running: Mutex::default() }
    }

    fn wants_proof(&self, digest: &Digest) -> bool {
        match self.mode {
            VerifyOnRead::Never => false,
            VerifyOnRead::Always => true,
            VerifyOnRead::AfterUncleanStop => self.doubt.load(Ordering::Acquire) && !self.known.lock().contains(&key(digest)),
        }
    }

    pub(super) fn saw(&self, digest: &Digest) {
        if self.doubt.load(Ordering::Acquire) {
            self.known.lock().insert(key(digest));
        }
    }

    pub(super) fn forget(&self, digest: &Digest) {
        self.known.lock().remove(&key(digest));
    }

    /// Nothing is in doubt any more.
    pub(super) fn settle(&self) {
        self.doubt.store(false, Ordering::Release);
        *self.known.lock() = HashSet::new();
    }
}

fn key(digest: &Digest) -> u64 {
    digest.as_bytes().iter().take(8).fold(0, |key, byte| key << 8 | u64::from(*byte))
}

/// How a stored blob may be served.
pub enum Vouched {
    /// As it stands.
    Stored(Arc<Blob>),
    /// As far as it is hashed; the end when all of it is.
    Arriving(Arc<Tail>),
    /// Not at all: it was damaged, and is held no longer.
    Damaged,
}

impl Store {
    /// Hashes a blob before it is served from disk, where `cache.verify_on_read` wants that: once for all who ask meanwhile.
    pub async fn vouch(self: &Arc<Store>, blob: Arc<Blob>) -> Vouched {
        if !self.trust.wants_proof(&blob.digest) {
            return Vouched::Stored(blob);
        }
        let Some(tail) = self.hashing(&blob) else { return Vouched::Stored(blob) };
        let mut progress = tail.subscribe();
        let hashed = tokio::time::timeout(VERIFY_WAIT, progress.wait_for(|progress| progress.phase != Phase::Receiving)).await;
        match hashed.map(|progress| progress.map(|progress| progress.phase)) {
            Ok(Ok(Phase::Verified)) => Vouched::Stored(blob),
            Ok(_) => Vouched::Damaged,
            Err(_) => Vouched::Arriving(tail),
        }
    }

    /// The hashing of this blob, begun if it is not under way; `None` for what is in RAM.
    fn hashing(self: &Arc<Store>, blob: &Arc<Blob>) -> Option<Arc<Tail>> {
        let Content::File(reader) = &blob.content else { return None };
        let mut running = self.trust.running.lock();
        if let Some(tail) = running.get(&blob.digest) {
            return Some(Arc::clone(tail));
        }
        let tail = Arc::new(Tail::of_stored(Arc::clone(blob), reader.clone()));
        running.insert(blob.digest, Arc::clone(&tail));
        let rehash = Rehash::new(Arc::clone(&reader.file), blob.digest, blob.len);
        let hashing = Hashing { store: Arc::clone(self), tail: Arc::clone(&tail), digest: blob.digest };
        tokio::spawn(hashing.run(rehash));
        Some(tail)
    }
}

/// The task that hashes a blob for its readers; however it ends, they are told.
struct Hashing {
    store: Arc<Store>,
    tail: Arc<Tail>,
    digest: Digest,
}

impl Hashing {
    async fn run(self, mut rehash: Rehash) {
        let read = self.read(&mut rehash).await;
        match rehash.verdict(read) {
            Verdict::Intact => {
                self.store.trust.saw(&self.digest);
                self.store.trust.running.lock().remove(&self.digest);
                self.tail.finish(Phase::Verified);
            }
            verdict => {
                let reason = if matches!(verdict, Verdict::Damaged(_)) { "corrupt" } else { "io" };
                tracing::error!(digest = %self.digest, ?verdict, "a stored blob is not what it was");
                self.store.metrics.read_failed(reason);
                let (store, digest) = (Arc::clone(&self.store), self.digest);
                self.store.gate.run(move || store.quarantine(&digest)).await;
            }
        }
    }

    async fn read(&self, rehash: &mut Rehash) -> io::Result<()> {
        let mut done = 0;
        while done < rehash.len() {
            done = rehash.step(&self.store.gate, SLICE_BYTES).await?;
            self.tail.advance(done);
        }
        Ok(())
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.store.trust.running.lock().remove(&self.digest);
        if self.tail.progress().phase == Phase::Receiving {
            self.tail.finish(Phase::Failed);
        }
    }
}
