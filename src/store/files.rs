//! How files come into `blobs/` and leave it for other reasons than room. All of it blocks.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{self, DiskFile};
use super::evict::Item;
use super::index::Record;
use super::{Store, StoreError, io_error};
use crate::oci::Digest;

impl Store {
    /// Moves a verified, synced file into `blobs/`.
    pub(super) fn adopt(&self, path: &Path, digest: &Digest, allocated: u64, reserved: u64) -> Result<(), StoreError> {
        let target = self.layout.blob(digest);
        let directory = target.parent().unwrap_or(&target);
        let moved = || match self.disk.rename(path, &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.records.create_directory(directory)?;
                self.disk.rename(path, &target)
            }
            renamed => renamed,
        };
        let bounds = self.bounds(false);
        {
            let _files = self.files.lock();
            self.records.in_place_of(&target, moved).map_err(|error| self.write_error("rename", &target, error))?;
            let mut ledger = self.ledger();
            ledger.unreserve(reserved);
            ledger.insert(Item::Stored(*digest), allocated, self.uptime.now());
            drop(ledger);
            self.trim(bounds);
        }
        self.trust.saw(digest);
        // It is stored, whole and verified, though a power cut might still undo the rename.
        if let Err(error) = self.disk.sync_dir(directory) {
            let error = self.write_error("fsync", directory, error);
            tracing::error!(%digest, %error, "a stored blob's name may not survive a power cut");
        }
        self.index.put(*digest, Record { last_used: self.uptime.now(), children: None });
        self.is_well();
        Ok(())
    }

    /// Forgets an item and every record that names it, whoever reads it: it was found wrong, or an operator wants it gone.
    /// Returns what its file occupies. The file lock is held.
    pub(super) fn remove_item(&self, item: &Item) -> u64 {
        // First, so that whoever writes a record meanwhile sees that it names nothing, or is seen here.
        let freed = self.ledger().remove(item).unwrap_or_default();
        if let Item::Stored(digest) = item {
            if let Err(error) = self.drop_records(digest) {
                tracing::warn!(%digest, %error, "a record of an object that is gone could not be removed");
            }
            self.forget(digest);
        }
        freed
    }

    /// Tries again to remove what could not be removed. Under the file lock, as it may stand under a blob's name.
    pub(super) fn sweep(&self) {
        let _files = self.files.lock();
        self.records.sweep();
    }

    pub(super) fn create_file(&self, path: &Path) -> Result<Arc<dyn DiskFile>, StoreError> {
        let create = || match self.disk.create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.records.create_directory(path.parent().unwrap_or(path)).and_then(|()| self.disk.create(path))
            }
            created => created,
        };
        self.records.in_place_of(path, create).map_err(|error| self.write_error("create", path, error))
    }

    /// Takes an idle partial out of the ledger, for whoever overwrites it.
    pub(super) fn take_partial(&self, upstream: &Arc<str>, digest: &Digest) -> Option<u64> {
        self.ledger().remove(&Item::Partial(Arc::clone(upstream), *digest))
    }

    /// Takes an idle partial out of the ledger, for whoever goes on with it: what it occupies is promised to him.
    pub(super) fn resume_partial(&self, upstream: &Arc<str>, digest: &Digest) -> Option<u64> {
        let mut ledger = self.ledger();
        let allocated = ledger.remove(&Item::Partial(Arc::clone(upstream), *digest))?;
        ledger.reserve(allocated);
        Some(allocated)
    }

    /// Nobody goes on with a partial at present: it may be evicted.
    pub(super) fn leave_partial(&self, item: Item, allocated: u64, reserved: u64) {
        let now = self.uptime.now();
        let mut ledger = self.ledger();
        ledger.unreserve(reserved);
        ledger.insert(item, allocated, now);
    }

    pub(super) fn write_error(&self, operation: &'static str, path: &Path, source: io::Error) -> StoreError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.metrics.write_failed(if full { "full" } else { "io" });
        if disk::is_obstructed(&source) {
            // One place is taken; the disk takes everything else.
            self.walk.foreign(disk::obstacle(path, &source), &format!("it is in the way of what larder would write there: {source}"));
        } else {
            self.could_not_write(&source);
        }
        if full {
            // Somebody else has written meanwhile.
            *self.space.lock() = None;
        }
        if full { StoreError::Full } else { io_error(operation, path, source) }
    }
}
