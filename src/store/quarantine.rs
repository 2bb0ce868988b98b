//! What was found damaged is put aside for people to look at: counted like everything else, and never much.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use super::Store;
use super::disk::DiskFile;
use super::evict::Item;
use super::tail::Tail;
use crate::oci::Digest;

/// Files kept; the oldest goes first.
const FILES_MAX: usize = 100;
/// Of `max_size`, as a divisor: damage must not push out what is sound.
const SHARE: u64 = 20;

/// What lies in `quarantine/`, oldest first, with its allocated bytes. They count like records: nobody needs them, but no
/// room that a fill wants is worth the trace.
pub(super) struct Quarantine {
    max_bytes: u64,
    kept: Mutex<VecDeque<(Digest, u64)>>,
}

impl Quarantine {
    pub(super) fn new(max_size: u64) -> Quarantine {
        Quarantine { max_bytes: max_size / SHARE, kept: Mutex::default() }
    }

    fn add(&self, digest: Digest, allocated: u64) {
        let mut kept = self.kept.lock();
        kept.retain(|(other, _)| *other != digest);
        kept.push_back((digest, allocated));
    }

    /// The next that has to go.
    fn too_many(&self) -> Option<Digest> {
        let mut kept = self.kept.lock();
        let over = kept.len() > FILES_MAX || kept.iter().map(|(_, bytes)| bytes).sum::<u64>() > self.max_bytes;
        if over { kept.pop_front().map(|(digest, _)| digest) } else { None }
    }
}

impl Store {
    /// A stored blob could not be read or was found wrong: it is put aside and held no longer. Blocks.
    pub fn quarantine(&self, digest: &Digest) {
        let _files = self.files.lock();
        let allocated = self.remove_item(&Item::Stored(*digest));
        match self.put_aside(digest) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => tracing::error!(%digest, "a stored blob is gone"),
            Err(error) => {
                tracing::error!(%digest, %error, "a damaged blob could not be put aside; it is removed");
                self.records.discard(&self.layout.blob(digest), allocated);
            }
            Ok(()) => tracing::error!(%digest, "a damaged blob was put aside"),
        }
    }

    /// The file lock is held.
    pub(super) fn put_aside(&self, digest: &Digest) -> io::Result<()> {
        let (path, target) = (self.layout.blob(digest), self.layout.quarantined(digest));
        let allocated = self.disk.stat(&path)?.allocated;
        // Its place is counted once.
        self.records.remove(&target)?;
        self.disk.rename(&path, &target)?;
        self.records.add(&target);
        self.keep_aside(*digest, allocated);
        Ok(())
    }

    /// Notes a file in `quarantine/`, and lets go of what is too much. The file lock is held.
    fn keep_aside(&self, digest: Digest, allocated: u64) {
        self.quarantine.add(digest, allocated);
        while let Some(oldest) = self.quarantine.too_many() {
            if let Err(error) = self.records.remove(&self.layout.quarantined(&oldest)) {
                tracing::warn!(digest = %oldest, %error, "a file in quarantine could not be removed");
            }
        }
    }

    /// Counts what earlier runs have put aside. Blocks.
    pub(super) fn find_quarantined(&self) {
        let _files = self.files.lock();
        self.records.found(&self.layout.quarantine());
        let mut found = Vec::new();
        for digest in self.walk.quarantined() {
            let path = self.layout.quarantined(&digest);
            match self.disk.stat(&path) {
                Ok(stat) => found.push((stat.modified, digest, stat.allocated)),
                Err(error) => self.walk.unreadable(&path, &error),
            }
        }
        found.sort_unstable();
        for (_, digest, allocated) in found {
            self.records.found(&self.layout.quarantined(&digest));
            self.keep_aside(digest, allocated);
        }
    }

    /// A blob could not be read while it was served. Readers of its old file must not put aside what was fetched since.
    pub(super) async fn damaged(self: &Arc<Store>, digest: Digest, file: &Arc<dyn DiskFile>) {
        self.metrics.read_failed("io");
        let (store, file) = (Arc::clone(self), Arc::clone(file));
        let work = move || {
            let stored = store.disk.stat(&store.layout.blob(&digest));
            let is_other = matches!((stored, file.stat()), (Ok(stored), Ok(read)) if stored.modified != read.modified);
            if !is_other && store.contains(&digest) {
                store.quarantine(&digest);
            }
        };
        self.gate.run(work).await;
    }

    /// A blob that is arriving, or has just arrived, could not be read back.
    pub async fn unreadable(self: &Arc<Store>, digest: Digest, tail: &Tail) {
        if let Some(file) = tail.file() {
            self.damaged(digest, file).await;
        }
    }
}
