//! `cache.verify_on_read`: which stored blobs are hashed again before they are served, and how their readers wait for it.
//!
//! What is small is hashed whenever it is read into RAM, and needs none of this.

use parking_lot::Mutex;
use prometheus::IntCounter;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::Store;
use super::blobs::{Blob, Content, FileReader};
use super::hash::{Rehash, Verdict};
use super::tail::{Phase, Tail};
use crate::config::VerifyOnRead;
use crate::oci::Digest;
use crate::single_flight::{Entry, Group, Joined};

/// How long a blob is hashed before its headers leave. What is found damaged within it is fetched again and nobody notices;
/// after that, readers follow the hashing, the end held back, and damage breaks their connections.
const VERIFY_WAIT: Duration = Duration::from_secs(10);
/// Blobs that are hashed at a time for those who read them as far as they are; who wants another waits until it is hashed whole.
const HASHED_MAX: usize = 4096;
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
    running: Group<Digest, Tail>,
}

impl Trust {
    pub(super) fn new(mode: VerifyOnRead, doubt: bool, panics: IntCounter) -> Trust {
        Trust { mode, doubt: AtomicBool::new(doubt), known: Mutex::default(), running: Group::new(HASHED_MAX, panics) }
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
        let Content::File(reader) = &blob.content else { return Vouched::Stored(blob) };
        let Some(tail) = self.hashing(&blob, reader) else {
            return if self.is_intact(&blob).await { Vouched::Stored(blob) } else { Vouched::Damaged };
        };
        let mut progress = tail.subscribe();
        let hashed = tokio::time::timeout(VERIFY_WAIT, progress.wait_for(|progress| progress.phase != Phase::Receiving)).await;
        match hashed.map(|progress| progress.map(|progress| progress.phase)) {
            Ok(Ok(Phase::Verified)) => Vouched::Stored(blob),
            Ok(_) => Vouched::Damaged,
            Err(_) => Vouched::Arriving(tail),
        }
    }

    /// Hashes a stored blob again, of which something is doubtful; one that is not as it was is put aside.
    pub async fn is_intact(self: &Arc<Store>, blob: &Blob) -> bool {
        let Content::File(reader) = &blob.content else { return true };
        let (store, digest) = (Arc::clone(self), blob.digest);
        let rehash = Rehash { file: Arc::clone(&reader.file), digest, len: blob.len };
        if let Verdict::Intact = rehash.run(&self.gate, SLICE_BYTES, |_| Duration::ZERO).await {
            return true;
        }
        self.metrics.read_failed("corrupt");
        self.gate.run(move || store.quarantine(&digest)).await;
        false
    }

    /// The hashing of this blob, begun if it is not under way; `None` when too many are.
    fn hashing(self: &Arc<Store>, blob: &Arc<Blob>, reader: &FileReader) -> Option<Arc<Tail>> {
        match self.trust.running.join(blob.digest, |_| (), || Some(Tail::of_stored(Arc::clone(blob), reader.clone()))) {
            Joined::Running(tail) => Some(tail),
            Joined::New(entry) => {
                let tail = Arc::clone(entry.job());
                let rehash = Rehash { file: Arc::clone(&reader.file), digest: blob.digest, len: blob.len };
                tokio::spawn(Hashing { store: Arc::clone(self), entry, digest: blob.digest }.run(rehash));
                Some(tail)
            }
            Joined::Needless | Joined::Full => None,
        }
    }
}

/// The task that hashes a blob for its readers; however it ends, they are told.
struct Hashing {
    store: Arc<Store>,
    entry: Entry<Digest, Tail>,
    digest: Digest,
}

impl Hashing {
    async fn run(self, rehash: Rehash) {
        let advance = |done| {
            self.entry.job().advance(done);
            Duration::ZERO
        };
        match rehash.run(&self.store.gate, SLICE_BYTES, advance).await {
            Verdict::Intact => {
                self.store.trust.saw(&self.digest);
                self.entry.release();
                self.entry.job().finish(Phase::Verified);
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
}

impl Drop for Hashing {
    fn drop(&mut self) {
        self.entry.release();
        if self.entry.job().progress().phase == Phase::Receiving {
            self.entry.job().finish(Phase::Failed);
        }
    }
}
