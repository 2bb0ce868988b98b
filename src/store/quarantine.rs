//! What was found damaged is put aside for people to look at: counted like everything else, and never much.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk;
use super::evict::Item;
use super::{Store, layout, lock};
use crate::oci::Digest;

/// Files kept; the oldest goes first.
const FILES_MAX: usize = 100;
/// Of `max_size`, as a divisor: damage must not push out what is sound.
const SHARE: u64 = 20;

/// What lies in `quarantine/`, oldest first, with its allocated bytes. They count as promised, so that the bound holds.
pub(super) struct Quarantine {
    max_bytes: u64,
    kept: Mutex<VecDeque<(Digest, u64)>>,
}

impl Quarantine {
    pub(super) fn new(max_size: u64) -> Quarantine {
        Quarantine { max_bytes: max_size / SHARE, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<(Digest, u64)>> {
        lock(&self.kept)
    }

    /// The bytes that this digest's earlier file took.
    fn replaced(&self, digest: &Digest) -> u64 {
        let mut kept = self.kept();
        let at = kept.iter().position(|(other, _)| other == digest);
        at.and_then(|at| kept.remove(at)).map_or(0, |(_, bytes)| bytes)
    }

    /// The next that has to go.
    fn too_many(&self) -> Option<(Digest, u64)> {
        let mut kept = self.kept();
        let over = kept.len() > FILES_MAX || kept.iter().map(|(_, bytes)| bytes).sum::<u64>() > self.max_bytes;
        if over { kept.pop_front() } else { None }
    }
}

impl Store {
    /// A stored blob could not be read or was found wrong: it is put aside and held no longer. Blocks.
    pub fn quarantine(&self, digest: &Digest) {
        let _files = lock(&self.files);
        let path = self.layout.blob(digest);
        let allocated = self.disk.stat(&path).map_or(0, |stat| stat.allocated);
        self.remove_item(&Item::Stored(*digest));
        match self.put_aside(digest, &path, allocated) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => tracing::error!(%digest, "a stored blob is gone"),
            Err(error) => tracing::error!(%digest, %error, "a damaged blob could not be put aside"),
            Ok(()) => tracing::error!(%digest, "a damaged blob was put aside"),
        }
    }

    fn put_aside(&self, digest: &Digest, path: &Path, allocated: u64) -> io::Result<()> {
        self.disk.rename(path, &self.layout.quarantined(digest))?;
        self.keep_aside(*digest, allocated);
        Ok(())
    }

    /// Counts a file in `quarantine/`, and lets go of what is too much. The file lock is held.
    fn keep_aside(&self, digest: Digest, allocated: u64) {
        let replaced = self.quarantine.replaced(&digest);
        self.unreserve(replaced);
        self.ledger().count_reserved(allocated);
        self.quarantine.kept().push_back((digest, allocated));
        while let Some((oldest, bytes)) = self.quarantine.too_many() {
            if let Err(error) = disk::remove_if_there(&*self.disk, &self.layout.quarantined(&oldest)) {
                tracing::warn!(digest = %oldest, %error, "a file in quarantine could not be removed");
            }
            self.unreserve(bytes);
        }
    }

    /// Counts what earlier runs have put aside. Blocks.
    pub(super) fn find_quarantined(&self) -> io::Result<()> {
        let _files = lock(&self.files);
        let mut found = Vec::new();
        for entry in self.disk.list(&self.layout.quarantine())? {
            let Some(digest) = layout::digest_of(&entry.name) else { continue };
            let stat = self.disk.stat(&self.layout.quarantined(&digest))?;
            found.push((stat.modified, digest, stat.allocated));
        }
        found.sort_unstable();
        for (_, digest, allocated) in found {
            self.keep_aside(digest, allocated);
        }
        Ok(())
    }

    /// A stored blob could not be read while it was served.
    pub(super) async fn damaged(self: &Arc<Store>, digest: Digest) {
        self.metrics.read_failed("io");
        let store = Arc::clone(self);
        self.gate.run(move || store.quarantine(&digest)).await;
    }
}
