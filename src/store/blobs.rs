//! Reading: a stored blob, leased against eviction, and the file reads it shares with the tail of a growing one.

use parking_lot::Mutex;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use bytes::Bytes;

use super::Store;
use super::buffer::Buffers;
use super::disk::DiskFile;
use super::evict::{Item, Ledger};
use crate::gate::Gate;
use crate::oci::Digest;

/// A complete, verified blob, open for reading. While it lives, it is not evicted.
pub struct Blob {
    pub(super) digest: Digest,
    pub(super) len: u64,
    pub(super) content: Content,
    pub(super) store: Arc<Store>,
    pub(super) _lease: Lease,
}

pub(super) enum Content {
    Memory(Bytes),
    File(FileReader),
}

impl Blob {
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The open file, for a transport that can send files; `None` for what is in RAM.
    pub fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        match &self.content {
            Content::Memory(_) => None,
            Content::File(reader) => reader.file.as_fd(),
        }
    }

    /// The next chunk of `range`, if it takes no waiting for the disk.
    pub fn read_now(&self, range: &Range<u64>) -> Option<Bytes> {
        match &self.content {
            Content::Memory(bytes) => Some(slice(bytes, range)),
            // What fails here fails again in `read`, which says so.
            Content::File(reader) => reader.read_now(range.start, range.end - range.start).ok()?,
        }
    }

    /// The next chunk of `range`.
    ///
    /// # Errors
    /// When the disk fails, or the file is shorter than it was: the blob is then put aside.
    pub async fn read(&self, range: &Range<u64>) -> io::Result<Bytes> {
        let read = match &self.content {
            Content::Memory(bytes) => Ok(slice(bytes, range)),
            Content::File(reader) => reader.read(range.start, range.end - range.start).await,
        };
        if let (Err(_), Content::File(reader)) = (&read, &self.content) {
            self.store.damaged(self.digest, &reader.file).await;
        }
        read
    }
}

fn slice(bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let index = |offset: u64| usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(index(range.start)..index(range.end))
}

/// Chunks of a file: what the page cache has at once, the rest by way of the gate.
#[derive(Clone)]
pub struct FileReader {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) gate: Gate,
    pub(super) buffers: Buffers,
}

impl FileReader {
    /// At most `max` bytes at `offset`; never none.
    ///
    /// # Errors
    /// When the disk fails or the file ends before `offset`.
    pub async fn read(&self, offset: u64, max: u64) -> io::Result<Bytes> {
        if let Some(bytes) = self.read_now(offset, max)? {
            return Ok(bytes);
        }
        let (file, mut buffer) = (Arc::clone(&self.file), self.buffers.take());
        self.gate
            .run(move || {
                let count = file.read_at(buffer.space(max), offset)?;
                if count == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(buffer.into_bytes(count)) }
            })
            .await
    }

    /// As [`FileReader::read`], but `None` where the disk would have to be waited for.
    ///
    /// # Errors
    /// As [`FileReader::read`].
    pub fn read_now(&self, offset: u64, max: u64) -> io::Result<Option<Bytes>> {
        let mut buffer = self.buffers.take();
        match self.file.read_now(buffer.space(max), offset)? {
            // The end of the file, or a file system that says 0 for "would wait": the blocking read tells which.
            None | Some(0) => Ok(None),
            Some(count) => Ok(Some(buffer.into_bytes(count))),
        }
    }
}

/// One reader's claim on a stored item.
pub struct Lease {
    ledger: Arc<Mutex<Ledger>>,
    item: Item,
    /// Which stay of the item is read: it may be purged meanwhile, and come again.
    stay: u64,
}

impl Lease {
    /// `None` when the item is not there.
    pub(super) fn take(ledger: &Arc<Mutex<Ledger>>, digest: Digest) -> Option<Lease> {
        let item = Item::Stored(digest);
        let stay = ledger.lock().lease(&item)?;
        Some(Lease { ledger: Arc::clone(ledger), item, stay })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.lock().release(&self.item, self.stay);
    }
}
