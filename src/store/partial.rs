//! Writing: a blob that is not yet believed, and the one way in which it becomes one that is.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::blobs::FileReader;
use super::disk::{self, DiskFile};
use super::evict::Item;
use super::hash::{Verified, Verifier};
use super::health::{self, Trouble};
use super::{Store, StoreError};
use crate::oci::{Descriptor, Digest};

/// Promised at a time to a blob whose size nobody announced.
const RESERVE_STEP: u64 = 16 * 1024 * 1024;
/// What file systems allocate by.
pub(super) const BLOCK: u64 = 4096;

/// Who writes where under `partial/`. A download that goes on although its readers have left it for another one keeps its
/// file to itself.
#[derive(Default)]
pub(super) struct Writing {
    paths: Mutex<HashSet<PathBuf>>,
    copies: AtomicU64,
}

impl Writing {
    /// The number of a file that nobody else writes.
    fn copy(&self) -> u64 {
        self.copies.fetch_add(1, Ordering::Relaxed)
    }
}

/// The right to write to a path; dropped, others may.
struct Claim {
    store: Arc<Store>,
    path: PathBuf,
}

impl Claim {
    /// `None` while somebody writes there.
    fn take(store: &Arc<Store>, path: &Path) -> Option<Claim> {
        let is_free = store.writing.paths.lock().insert(path.to_owned());
        is_free.then(|| Claim { store: Arc::clone(store), path: path.to_owned() })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store.writing.paths.lock().remove(&self.path);
    }
}

/// A file under `partial/`, with the bytes promised to it. Dropped, it stays to be continued; [`PartialBlob::discard`]
/// removes it; [`PartialBlob::commit`] makes it a blob.
pub struct PartialBlob {
    store: Arc<Store>,
    upstream: Arc<str>,
    digest: Digest,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    len: u64,
    reserved: u64,
    fate: Fate,
    /// Let go of after what `drop` does; absent where the path is nobody else's by its name.
    claim: Option<Claim>,
}

/// What dropping a partial means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The file stays to be continued.
    Keep,
    /// The file goes.
    Discard,
    /// The file is a blob by now.
    Committed,
}

/// The allocated size that a file of `len` bytes is promised.
pub(super) fn allocation(len: u64) -> u64 {
    len.div_ceil(BLOCK).saturating_mul(BLOCK)
}

/// Hashes the first `len` bytes of a file. Blocks.
///
/// # Errors
/// When it cannot be read, or is shorter.
fn rehash(file: &dyn DiskFile, digest: &Digest, len: u64) -> io::Result<Verifier> {
    let mut verifier = Verifier::new(digest);
    verifier.read(file, len).map(|()| verifier)
}

impl PartialBlob {
    /// Opens an empty partial of `size` bytes, or of an unknown size. Blocks.
    pub(super) fn create(store: &Arc<Store>, upstream: &Arc<str>, digest: &Digest, size: Option<u64>) -> Result<PartialBlob, StoreError> {
        let path = store.layout.partial(upstream, digest);
        let Some(claim) = Claim::take(store, &path) else {
            return PartialBlob::in_one_go(store, upstream, digest, size.unwrap_or_default());
        };
        let before = store.take_partial(upstream, digest);
        let created = PartialBlob::create_at(store, path, upstream, digest, size.unwrap_or_default());
        if matches!(&created, Err(StoreError::Io { source, .. }) if disk::is_obstructed(source)) {
            // Something else stands under its name, and nothing under another one.
            return PartialBlob::in_one_go(store, upstream, digest, size.unwrap_or_default());
        }
        let mut partial = created.inspect_err(|_| {
            // What an earlier download has left is as it was, and can be gone on with when there is room.
            if let Some(allocated) = before {
                store.leave_partial(Item::Partial(Arc::clone(upstream), *digest), allocated, 0);
            }
        })?;
        (partial.fate, partial.claim) = (Fate::Keep, Some(claim));
        Ok(partial)
    }

    /// Opens an empty file for a manifest, which is written in one go and never continued. Blocks.
    pub(super) fn of_manifest(store: &Arc<Store>, upstream: &Arc<str>, descriptor: &Descriptor) -> Result<PartialBlob, StoreError> {
        PartialBlob::in_one_go(store, upstream, &descriptor.digest, descriptor.size)
    }

    /// Opens an empty file that nobody will ever find and continue. Blocks.
    pub(super) fn in_one_go(store: &Arc<Store>, upstream: &Arc<str>, digest: &Digest, size: u64) -> Result<PartialBlob, StoreError> {
        let path = store.layout.partial_manifest(upstream, digest, store.writing.copy());
        PartialBlob::create_at(store, path, upstream, digest, size)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self) -> &Arc<dyn DiskFile> {
        &self.file
    }

    /// Its bytes came by another way than [`PartialBlob::append`], and its path leads to `file` now: they are hashed. Blocks.
    pub(super) fn came_as(&mut self, file: Arc<dyn DiskFile>) -> io::Result<Verifier> {
        self.len = file.stat()?.len;
        self.store.written.fetch_add(self.len, Ordering::Relaxed);
        self.file = file;
        rehash(&*self.file, &self.digest, self.len)
    }

    fn create_at(store: &Arc<Store>, path: PathBuf, upstream: &Arc<str>, digest: &Digest, size: u64) -> Result<PartialBlob, StoreError> {
        if store.trouble().is_some_and(Trouble::forbids_writing) {
            return Err(store.write_error("create", &path, io::ErrorKind::NotFound.into()));
        }
        let reserved = allocation(size);
        store.reserve(reserved)?;
        let file = store.create_file(&path).inspect_err(|_| store.unreserve(reserved))?;
        let (store, upstream) = (Arc::clone(store), Arc::clone(upstream));
        Ok(PartialBlob { store, upstream, digest: *digest, path, file, len: 0, reserved, fate: Fate::Discard, claim: None })
    }

    /// Opens an interrupted partial and hashes what it holds again. Needs no room: what it holds is on the disk already. Blocks.
    /// `None` when there is none that could be continued; one that cannot be read is removed, unless that is for a reason of larder's own.
    pub(super) fn resume(store: &Arc<Store>, upstream: &Arc<str>, digest: &Digest) -> Option<(PartialBlob, Verifier)> {
        let path = store.layout.partial(upstream, digest);
        let claim = Claim::take(store, &path)?;
        let allocated = store.resume_partial(upstream, digest)?;
        match PartialBlob::reopen(store, path.clone(), upstream, digest, allocated) {
            Ok((mut partial, verifier)) => {
                partial.claim = Some(claim);
                Some((partial, verifier))
            }
            Err(error) if health::says_nothing_of_the_file(&error) => {
                store.leave_partial(Item::Partial(Arc::clone(upstream), *digest), allocated, allocated);
                None
            }
            Err(_) => {
                store.records.discard(&path, allocated);
                store.unreserve(allocated);
                None
            }
        }
    }

    /// `allocated` is reserved for it.
    fn reopen(
        store: &Arc<Store>,
        path: PathBuf,
        upstream: &Arc<str>,
        digest: &Digest,
        allocated: u64,
    ) -> io::Result<(PartialBlob, Verifier)> {
        let file = store.disk.reopen(&path)?;
        let len = file.stat()?.len;
        let verifier = rehash(&*file, digest, len)?;
        store.written.fetch_add(len, Ordering::Relaxed);
        let partial = PartialBlob {
            store: Arc::clone(store),
            upstream: Arc::clone(upstream),
            digest: *digest,
            path,
            file,
            len,
            reserved: allocated,
            fate: Fate::Keep,
            claim: None,
        };
        Ok((partial, verifier))
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For the readers that follow it as it grows.
    pub fn reader(&self) -> FileReader {
        FileReader { file: Arc::clone(&self.file), gate: self.store.gate.clone(), buffers: self.store.buffers.clone() }
    }

    /// Promises room for the whole blob, now that its size is known. Blocks.
    ///
    /// # Errors
    /// When it cannot be made, or the blob is too large.
    pub fn expect_size(&mut self, size: u64) -> Result<(), StoreError> {
        if size > self.store.max_blob_size {
            return Err(StoreError::TooLarge);
        }
        let more = allocation(size).saturating_sub(self.reserved);
        if more > 0 {
            self.store.reserve(more)?;
            self.reserved += more;
        }
        Ok(())
    }

    /// Appends a chunk. Blocks.
    ///
    /// # Errors
    /// When there is no room, or the disk fails; nothing that was there before is lost.
    pub fn append(&mut self, chunk: &Bytes) -> Result<(), StoreError> {
        let len = self.len + chunk.len() as u64;
        if len > self.reserved {
            self.expect_size(len + RESERVE_STEP).or_else(|_| self.expect_size(len))?;
        }
        self.file.write_all_at(chunk, self.len).map_err(|error| self.store.write_error("write", &self.path, error))?;
        self.len = len;
        self.store.written.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the partial a blob: the only way into `blobs/`. Blocks.
    ///
    /// # Errors
    /// When the disk fails, or `verified` is not about these bytes; the partial is then gone.
    pub fn commit(mut self, verified: Verified) -> Result<(), StoreError> {
        self.fate = Fate::Discard;
        if !verified.is_of(&self.digest, self.len) {
            return Err(StoreError::Incomplete { digest: self.digest, len: self.len });
        }
        self.file.sync().map_err(|error| self.store.write_error("fsync", &self.path, error))?;
        let allocated = self.file.stat().map_err(|error| self.store.write_error("stat", &self.path, error))?.allocated;
        self.store.adopt(&self.path, &self.digest, allocated, self.reserved)?;
        self.fate = Fate::Committed;
        Ok(())
    }

    /// Removes the file: what it holds is wrong, or will never be completed. Blocks.
    pub fn discard(mut self) {
        self.fate = Fate::Discard;
    }
}

impl Drop for PartialBlob {
    fn drop(&mut self) {
        self.store.written.fetch_sub(self.len, Ordering::Relaxed);
        match self.fate {
            Fate::Committed => {}
            Fate::Keep => {
                let allocated = self.file.stat().map_or(allocation(self.len), |stat| stat.allocated.max(allocation(stat.len)));
                let item = Item::Partial(Arc::clone(&self.upstream), self.digest);
                self.store.leave_partial(item, allocated, self.reserved);
            }
            Fate::Discard => {
                self.store.records.discard(&self.path, allocation(self.len));
                self.store.unreserve(self.reserved);
            }
        }
    }
}
