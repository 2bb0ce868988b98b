//! Taking over what another program has stored. The bytes come by another way than a download, and into `blobs/` by the
//! same one: hashed where they will stand, synced, committed. All of it blocks, and wants the directory for itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::disk;
use super::evict::Item;
use super::hash::Verifier;
use super::partial::{BLOCK, PartialBlob, allocation};
use super::refs::TagRecord;
use super::room::RECORD_ROOM;
use super::{RepositoryKey, Store, StoreError, io_error};
use crate::oci::{Digest, Manifest, Tag};

/// Read at a time: small enough to be hashed while it is in cache.
const COPY_CHUNK: usize = 256 * 1024;

/// How a blob's bytes came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The file system shares the blocks until one side writes.
    Reflinked,
    /// One file under two names.
    Hardlinked,
    Copied,
}

/// Why a blob was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The bytes are not those of the digest.
    #[error("damaged")]
    Damaged,
    /// The other program's file cannot be read.
    #[error(transparent)]
    Unreadable(io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Store {
    /// Whether so much more can be stored, and a record of it, without anything having to leave: what was taken first would
    /// be the first to go. Asks for the free space.
    pub fn has_room(&self, bytes: u64) -> bool {
        let size = self.ledger().size();
        self.bounds(true).hold(size.saturating_add(bytes).saturating_add(RECORD_ROOM))
    }

    fn want_room(&self, bytes: u64) -> Result<(), StoreError> {
        if self.has_room(bytes) { Ok(()) } else { Err(StoreError::Full) }
    }

    /// What a file of `len` bytes will take of the bounds, its directory included.
    pub fn cost(len: u64) -> u64 {
        allocation(len) + BLOCK
    }

    /// What a record of a tag or a manifest will take of the bounds, its directories included.
    pub fn record_cost() -> u64 {
        RECORD_ROOM
    }

    /// Takes over a file that should hold the bytes of `digest`; with `copy`, never by sharing anything with it. Nothing
    /// leaves for it.
    ///
    /// # Errors
    /// When the file is damaged or unreadable, or the store cannot take it.
    pub fn import_blob(self: &Arc<Store>, upstream: &Arc<str>, digest: &Digest, path: &Path, copy: bool) -> Result<(Way, u64), BlobError> {
        let source = open(path).map_err(BlobError::Unreadable)?;
        let len = source.metadata().map_err(BlobError::Unreadable)?.len();
        if len > self.max_blob_size {
            return Err(StoreError::TooLarge.into());
        }
        self.want_room(Store::cost(len))?;
        let mut partial = PartialBlob::in_one_go(self, upstream, digest, len)?;
        let (way, verifier) = if !copy && reflink(&partial, &source) {
            let file = Arc::clone(partial.file());
            (Way::Reflinked, partial.came_as(file).map_err(BlobError::Unreadable)?)
        } else if !copy && self.hardlink(&partial, path, &source) {
            let file = self.disk.open(partial.path()).map_err(|error| io_error("open", partial.path(), error))?;
            (Way::Hardlinked, partial.came_as(file).map_err(BlobError::Unreadable)?)
        } else {
            (Way::Copied, append(&mut partial, &source, digest)?)
        };
        let verified = verifier.finish(digest).map_err(|_| BlobError::Damaged)?;
        partial.commit(verified)?;
        Ok((way, len))
    }

    /// Puts the file itself in the partial's place; `false` when it must be copied instead.
    fn hardlink(&self, partial: &PartialBlob, path: &Path, source: &File) -> bool {
        if !source.metadata().is_ok_and(|metadata| is_ours_alone(&metadata)) {
            return false;
        }
        let beside = partial.path().with_extension("link");
        if self.disk.link(path, &beside).is_err() {
            return false;
        }
        // Between the look at the file and the link to it, it may have become another one.
        let still = std::fs::symlink_metadata(&beside).is_ok_and(|metadata| metadata.is_file() && is_ours_alone(&metadata));
        let moved = still && self.disk.rename(&beside, partial.path()).is_ok();
        if !moved && let Err(error) = disk::remove_if_there(&*self.disk, &beside) {
            tracing::warn!(path = %beside.display(), %error, "a link could not be removed; the next start does it");
        }
        moved
    }

    /// Takes over a manifest, for a repository; `false` when the repository has it already.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn import_manifest(self: &Arc<Store>, repository: &RepositoryKey, manifest: &Manifest) -> Result<bool, StoreError> {
        let digest = manifest.descriptor().digest;
        if self.contains(&digest) && self.media_type(repository, &digest).is_some() {
            return Ok(false);
        }
        self.want_room(Store::cost(manifest.descriptor().size))?;
        self.write_manifest(repository, manifest).map(|()| true)
    }

    /// Takes over a tag whose manifest is stored. A younger word of upstream's stays; `false` when the tag says nothing new.
    ///
    /// # Errors
    /// When the store cannot take it.
    pub fn import_tag(&self, key: &(RepositoryKey, Tag), mut record: TagRecord) -> Result<bool, StoreError> {
        let path = self.layout.tag(&key.0, &key.1);
        let before = self.refs.tag(key).map_err(|error| io_error("read", &path, error))?;
        let before = before.filter(|before| self.contains(&before.descriptor.digest));
        if before.as_ref().is_some_and(|before| before.checked_at >= record.checked_at) {
            return Ok(false);
        }
        let same = before.filter(|before| before.descriptor.digest == record.descriptor.digest);
        if let Some(before) = &same {
            record.first_seen = before.first_seen;
        }
        self.want_room(0)?;
        self.write_tag(key, record)?;
        Ok(same.is_none())
    }

    /// Takes over that an upstream has answered for a blob.
    pub fn import_confirmation(&self, upstream: &Arc<str>, digest: &Digest) {
        if !self.links().confirmed(digest).contains(upstream) {
            self.confirm(upstream, digest);
        }
    }

    /// Puts images into their order of use: the last is the one to keep longest. Moments apart, so that a restart keeps it.
    pub fn rank_images(&self, manifests: &[Digest]) {
        let now = self.uptime.now();
        for (rank, manifest) in (0..).zip(manifests) {
            let moment = Duration::from_millis(1);
            let at = now.plus(Duration::from_millis(2 * rank));
            self.uptime.at_least(at.plus(moment));
            let children = self.children(manifest);
            let mut ledger = self.ledger();
            for (child, _) in children.iter().flat_map(|children| children.iter()) {
                ledger.touch(&Item::Stored(*child), at);
            }
            ledger.touch(&Item::Stored(*manifest), at.plus(moment));
        }
    }
}

/// An ordinary file, not by way of a link, and without waiting for whoever should write into a pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file")) }
}

/// Nobody else can write into it, so that what it holds stays what was verified.
fn is_ours_alone(metadata: &std::fs::Metadata) -> bool {
    metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0 && metadata.mode() & 0o400 != 0
}

/// Most file systems cannot, and no two of them can together.
fn reflink(partial: &PartialBlob, source: &File) -> bool {
    partial.file().share(source.as_fd()).is_ok()
}

fn append(partial: &mut PartialBlob, source: &File, digest: &Digest) -> Result<Verifier, BlobError> {
    let mut verifier = Verifier::new(digest);
    let mut buffer = vec![0; COPY_CHUNK];
    loop {
        let count = match source.read_at(&mut buffer, verifier.len()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(BlobError::Unreadable)?,
        };
        if count == 0 {
            return Ok(verifier);
        }
        verifier.update(&buffer[..count]);
        partial.append(&Bytes::copy_from_slice(&buffer[..count]))?;
    }
}
