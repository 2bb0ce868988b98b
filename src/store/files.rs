//! How files come into `blobs/` and leave it: room is made, verified files are adopted.
//! All of it blocks.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::disk::{self, DiskFile};
use super::evict::{self, Item};
use super::index::Record;
use super::{Store, StoreError, io_error, lock};
use crate::oci::Digest;

impl Store {
    /// Moves a verified, synced file into `blobs/`.
    pub(super) fn adopt(&self, path: &Path, digest: &Digest, allocated: u64, reserved: u64) -> Result<(), StoreError> {
        let target = self.layout.blob(digest);
        let directory = target.parent().unwrap_or(&target);
        let moved = || match self.disk.rename(path, &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dir_all(directory)?;
                self.disk.rename(path, &target)
            }
            renamed => renamed,
        };
        {
            let _files = lock(&self.files);
            moved().map_err(|error| self.write_error("rename", &target, error))?;
            let mut ledger = self.ledger();
            ledger.unreserve(reserved);
            ledger.insert(Item::Stored(*digest), allocated, self.clock.now());
            drop(ledger);
            self.trim();
        }
        self.trust.saw(digest);
        // It is stored, whole and verified, though a power cut might still undo the rename.
        if let Err(error) = self.disk.sync_dir(directory) {
            let error = self.write_error("fsync", directory, error);
            tracing::error!(%digest, %error, "a stored blob's name may not survive a power cut");
        }
        self.index.put(*digest, Record { last_used: self.clock.now(), children: None });
        self.metrics.cache_writable.set(1);
        Ok(())
    }

    /// Makes room. Blocks.
    pub(super) fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let _files = lock(&self.files);
        let victims = self.ledger().reserve(bytes).map_err(|evict::Full| {
            self.metrics.write_failed("full");
            StoreError::Full
        })?;
        for victim in &victims {
            self.evict(victim);
        }
        Ok(())
    }

    pub(super) fn unreserve(&self, bytes: u64) {
        self.ledger().unreserve(bytes);
    }

    /// Lets go of the least recently used, until the bound holds again. The file lock is held.
    pub(super) fn trim(&self) {
        let victims = self.ledger().reserve(0).unwrap_or_default();
        for victim in &victims {
            self.evict(victim);
        }
    }

    /// Removes a victim: first what names it, then its bytes, so that a crash between leaves bytes nobody names. The file
    /// lock is held.
    pub(super) fn evict(&self, victim: &Item) {
        let age = self.ledger().last_used(victim).and_then(|used| self.clock.now().since(used)).unwrap_or_default();
        let path = match victim {
            Item::Stored(digest) => self.layout.blob(digest),
            Item::Partial(upstream, digest) => self.layout.partial(upstream, digest),
        };
        let freed = self.remove_item(victim);
        if let Err(error) = disk::remove_if_there(&*self.disk, &path) {
            self.metrics.write_failed("io");
            tracing::error!(path = %path.display(), %error, "an evicted file could not be removed");
        }
        self.metrics.evicted(freed, age);
    }

    /// Forgets an item and every record that names it.
    pub(super) fn remove_item(&self, item: &Item) -> u64 {
        // First, so that whoever writes a record meanwhile sees that it names nothing, or is seen here.
        let freed = self.ledger().remove(item).unwrap_or_default();
        if let Item::Stored(digest) = item {
            let (holders, upstreams) = {
                let links = self.links();
                (links.holders(digest).cloned().collect::<Vec<_>>(), links.confirmed(digest).to_vec())
            };
            let dropped = holders.iter().try_for_each(|holder| self.refs.drop_manifest(holder, digest));
            let dropped = dropped.and(upstreams.iter().try_for_each(|upstream| self.refs.drop_confirmation(upstream, digest)));
            if let Err(error) = dropped {
                tracing::warn!(%digest, %error, "a record of an evicted object could not be removed");
            }
            self.links_mut().forget(digest);
            self.memory.invalidate(digest);
            self.trust.forget(digest);
            self.index.remove(*digest);
        }
        freed
    }

    pub(super) fn create_file(&self, path: &Path) -> Result<Arc<dyn DiskFile>, StoreError> {
        let created = match self.disk.create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dir_all(path.parent().unwrap_or(path)).and_then(|()| self.disk.create(path))
            }
            created => created,
        };
        created.map_err(|error| self.write_error("create", path, error))
    }

    /// Takes an idle partial out of the ledger, for whoever goes on with it or overwrites it.
    pub(super) fn take_partial(&self, upstream: &Arc<str>, digest: &Digest) -> Option<u64> {
        self.ledger().remove(&Item::Partial(Arc::clone(upstream), *digest))
    }

    /// Nobody goes on with a partial at present: it may be evicted.
    pub(super) fn leave_partial(&self, item: Item, allocated: u64, reserved: u64) {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        ledger.unreserve(reserved);
        ledger.insert(item, allocated, now);
    }

    pub(super) fn write_error(&self, operation: &'static str, path: &Path, source: io::Error) -> StoreError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.metrics.write_failed(if full { "full" } else { "io" });
        if full { StoreError::Full } else { io_error(operation, path, source) }
    }
}
