//! Reading a blob that is still arriving: every reader at its own pace and place, from the growing file, and never the
//! end of it before the digest is verified (invariant 3).
//!
//! Where the store stops taking bytes (full, broken, blob too large), what arrives from there on passes through a
//! bounded ring in RAM, paced by the readers.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::blobs::{Blob, FileReader};
use super::disk::DiskFile;
use super::ring::{Ring, fell_behind};

/// Bytes at a blob's end that nobody gets before its digest is verified.
pub const HOLD_BACK: u64 = 64 * 1024;
/// A reader that keeps others waiting for so long is dropped, in bypass only; so is a download that nobody reads.
const STALLED_READER_TIMEOUT: Duration = Duration::from_secs(10);

/// How far a download is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes received and readable but for the hold-back.
    pub received: u64,
    /// The blob's size, when anybody said.
    pub size: Option<u64>,
    pub phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Receiving,
    Verified,
    Failed,
}

impl Progress {
    /// The offset up to which readers may read.
    fn readable(&self) -> u64 {
        match self.phase {
            Phase::Verified => self.received,
            Phase::Receiving | Phase::Failed => {
                let end = self.size.unwrap_or(self.received);
                self.received.min(end.saturating_sub(HOLD_BACK))
            }
        }
    }

    /// Where the body ends, as far as is known.
    fn end(&self) -> Option<u64> {
        self.size.or((self.phase == Phase::Verified).then_some(self.received))
    }
}

/// The file that readers follow cannot be read, though what arrives may be as good as before.
#[derive(Debug, thiserror::Error)]
#[error("the file of a blob that is arriving cannot be read: {0}")]
pub struct Unreadable(io::Error);

/// A blob that is arriving: one writer, any number of readers.
pub struct Tail {
    progress: watch::Sender<Progress>,
    file: Option<FileReader>,
    ring: Mutex<Option<Ring>>,
    seats: Mutex<HashMap<u64, Seat>>,
    next_seat: AtomicU64,
    /// A reader has moved, come or gone.
    moved: Notify,
    is_unreadable: AtomicBool,
    /// Where the file is a stored blob's: it is not evicted while somebody reads.
    stored: Option<Arc<Blob>>,
}

struct Seat {
    offset: u64,
    moved_at: Instant,
}

impl Tail {
    /// A tail over a file that holds `received` bytes already; without a file, in bypass from there on.
    pub fn new(file: Option<FileReader>, received: u64, size: Option<u64>) -> Tail {
        let bypass = file.is_none();
        let tail = Tail {
            progress: watch::Sender::new(Progress { received, size, phase: Phase::Receiving }),
            file,
            ring: Mutex::new(None),
            seats: Mutex::default(),
            next_seat: AtomicU64::new(0),
            moved: Notify::new(),
            is_unreadable: AtomicBool::new(false),
            stored: None,
        };
        if bypass {
            tail.divert();
        }
        tail
    }

    /// A tail over a stored blob's file, which is leased as long as somebody reads.
    pub(super) fn of_stored(blob: Arc<Blob>, file: FileReader) -> Tail {
        Tail { stored: Some(Arc::clone(&blob)), ..Tail::new(Some(file), 0, Some(blob.len())) }
    }

    pub fn progress(&self) -> Progress {
        *self.progress.borrow()
    }

    /// Follows the progress, for those who wait for the end and not for the bytes.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// From here on, nothing more goes to the file.
    pub fn divert(&self) {
        let from = self.progress().received;
        self.ring.lock().get_or_insert_with(|| Ring::new(from));
    }

    pub fn is_diverted(&self) -> bool {
        self.ring.lock().is_some()
    }

    /// Publishes bytes that are in the file by now.
    pub fn advance(&self, received: u64) {
        self.progress.send_modify(|progress| progress.received = received);
    }

    /// Publishes bytes that are in no file.
    pub fn pass(&self, chunks: impl IntoIterator<Item = Bytes>) {
        let end = {
            let mut ring = self.ring.lock();
            let Some(ring) = ring.as_mut() else { return };
            chunks.into_iter().for_each(|chunk| ring.push(chunk));
            ring.end()
        };
        self.advance(end);
    }

    pub fn finish(&self, phase: Phase) {
        self.progress.send_modify(|progress| progress.phase = phase);
    }

    /// Waits until the ring has room, for which nobody need read yet: a small blob has its first reader when it is whole.
    /// `false` when it stays full because nobody reads any more, or only readers that have stalled.
    pub async fn room(&self) -> bool {
        let since = Instant::now();
        loop {
            let moved = self.moved.notified();
            if self.make_room(since) {
                return true;
            }
            if since.elapsed() > STALLED_READER_TIMEOUT && self.seats.lock().is_empty() {
                return false;
            }
            // The time-out only bounds how late a stalled reader is noticed.
            let _ = tokio::time::timeout(STALLED_READER_TIMEOUT / 10, moved).await;
        }
    }

    /// Lets go of what every reader has, and, where that is not enough, of readers that have stalled since `since`.
    fn make_room(&self, since: Instant) -> bool {
        let mut ring = self.ring.lock();
        let Some(ring) = ring.as_mut() else { return true };
        let mut seats = self.seats.lock();
        loop {
            let slowest = seats.iter().min_by_key(|(_, seat)| seat.offset).map(|(id, seat)| (*id, seat.offset, seat.moved_at));
            if let Some((_, offset, _)) = slowest {
                ring.release(offset);
            }
            if !ring.is_full() {
                return true;
            }
            match slowest {
                Some((id, _, moved_at)) if moved_at.max(since).elapsed() > STALLED_READER_TIMEOUT => seats.remove(&id),
                _ => return false,
            };
        }
    }

    /// A reader of `start..end`; without an end, to the end of the blob. `None` when what it wants has passed by.
    pub fn reader(self: &Arc<Tail>, start: u64, end: Option<u64>) -> Option<TailReader> {
        let passed = |ring: &Ring| {
            let wants_ring = end.is_none_or(|end| end > ring.from());
            if start < ring.from() { self.file.is_none() || wants_ring && ring.start() > ring.from() } else { start < ring.start() }
        };
        let ring = self.ring.lock();
        if ring.as_ref().is_some_and(passed) {
            return None;
        }
        let seat = self.next_seat.fetch_add(1, Ordering::Relaxed);
        self.seats.lock().insert(seat, Seat { offset: start, moved_at: Instant::now() });
        drop(ring);
        Some(TailReader { progress: self.subscribe(), tail: Arc::clone(self), seat, offset: start, end, before: Vec::new() })
    }

    /// Whether the disk has refused to give back what was written to the file.
    pub fn is_unreadable(&self) -> bool {
        self.is_unreadable.load(Ordering::Acquire)
    }

    /// The file, if it is one that is being written.
    pub(super) fn file(&self) -> Option<&Arc<dyn DiskFile>> {
        self.file.as_ref().map(|reader| &reader.file)
    }

    /// Whoever reads while a stored blob is hashed has no proof of what was read so far, and nowhere to go on.
    fn lost(&self, error: io::Error) -> io::Error {
        if self.stored.is_some() {
            return error;
        }
        self.is_unreadable.store(true, Ordering::Release);
        io::Error::other(Unreadable(error))
    }

    async fn read(&self, offset: u64, max: u64) -> io::Result<Bytes> {
        let in_file = match self.ring.lock().as_ref() {
            Some(ring) if offset >= ring.from() => return ring.read(offset, max),
            Some(ring) => ring.from() - offset,
            None => u64::MAX,
        };
        match &self.file {
            Some(file) => file.read(offset, max.min(in_file)).await.map_err(|error| self.lost(error)),
            None => Err(fell_behind()),
        }
    }
}

/// One client's place in a blob that is arriving.
pub struct TailReader {
    tail: Arc<Tail>,
    progress: watch::Receiver<Progress>,
    seat: u64,
    offset: u64,
    end: Option<u64>,
    /// The downloads that what was sent before came from: they must turn out right, too, before the end goes out.
    before: Vec<watch::Receiver<Progress>>,
}

/// What is left of a reader whose file failed.
pub struct Lost {
    pub tail: Arc<Tail>,
    before: Vec<watch::Receiver<Progress>>,
}

impl Lost {
    /// Whether the downloads that a body began with turned out right; waits for their ends.
    pub async fn is_right(&self) -> bool {
        are_right(self.before.clone()).await
    }
}

async fn are_right(downloads: Vec<watch::Receiver<Progress>>) -> bool {
    for mut download in downloads {
        let ended = download.wait_for(|progress| progress.phase != Phase::Receiving).await;
        if !ended.is_ok_and(|progress| progress.phase == Phase::Verified) {
            return false;
        }
    }
    true
}

impl TailReader {
    /// What this reader's body began with came from another download.
    #[must_use]
    pub fn after(mut self, lost: &Lost) -> TailReader {
        self.before.clone_from(&lost.before);
        self
    }

    /// Gives the place up.
    pub fn into_lost(mut self) -> Lost {
        let mut before = std::mem::take(&mut self.before);
        before.push(self.tail.subscribe());
        Lost { tail: Arc::clone(&self.tail), before }
    }

    /// What is still to be read: from where, to where.
    pub fn place(&self) -> (u64, Option<u64>) {
        (self.offset, self.end)
    }

    /// Bytes that are still to come, when that is known.
    pub fn remaining(&self) -> Option<u64> {
        let end = self.end.or(self.progress.borrow().size)?;
        Some(end.saturating_sub(self.offset))
    }

    /// The next chunk; `None` at the end of what was asked for.
    ///
    /// # Errors
    /// When the download failed, the disk did, or this reader was dropped for stalling. The body must then break, not end.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            let progress = *self.progress.borrow_and_update();
            let end = self.end.or(progress.end());
            if end.is_some_and(|end| self.offset >= end) {
                return None;
            }
            if progress.phase == Phase::Failed {
                return Some(Err(io::Error::other("the download failed")));
            }
            let is_proven = progress.phase == Phase::Verified && self.before.is_empty();
            let phase = if is_proven { Phase::Verified } else { Phase::Receiving };
            let limit = Progress { phase, ..progress }.readable().min(end.unwrap_or(u64::MAX));
            if self.offset < limit {
                let read = self.tail.read(self.offset, limit - self.offset).await;
                return Some(read.and_then(|bytes| self.moved(bytes)));
            }
            if progress.phase == Phase::Verified && !is_proven {
                if !are_right(std::mem::take(&mut self.before)).await {
                    return Some(Err(io::Error::other("the download that the body began with failed")));
                }
            } else if self.progress.changed().await.is_err() {
                return Some(Err(io::Error::other("the download was given up")));
            }
        }
    }

    fn moved(&mut self, bytes: Bytes) -> io::Result<Bytes> {
        self.offset += bytes.len() as u64;
        match self.tail.seats.lock().get_mut(&self.seat) {
            Some(seat) => *seat = Seat { offset: self.offset, moved_at: Instant::now() },
            None => return Err(fell_behind()),
        }
        self.tail.moved.notify_one();
        Ok(bytes)
    }
}

impl Drop for TailReader {
    fn drop(&mut self) {
        self.tail.seats.lock().remove(&self.seat);
        self.tail.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::RING_BYTES_MAX;
    use super::*;

    /// A tail in bypass whose ring is full, one chunk of it read in part by a reader that then stalls.
    fn full() -> (Arc<Tail>, TailReader) {
        let tail = Arc::new(Tail::new(None, 0, Some(3 * RING_BYTES_MAX)));
        let chunk = usize::try_from(RING_BYTES_MAX).expect("a size in memory");
        tail.pass([Bytes::from(vec![7; chunk])]);
        let mut reader = tail.reader(0, None).expect("nothing has passed by yet");
        let read = reader.moved(Bytes::from_static(b"a few"));
        assert!(read.is_ok());
        (tail, reader)
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stalls_amid_a_chunk_is_dropped() {
        let (tail, mut stalled) = full();
        let _other = tail.reader(0, None).expect("nothing has passed by yet");
        let begun = Instant::now();
        // Both have stalled, so that nobody is left to read.
        let room = tokio::time::timeout(STALLED_READER_TIMEOUT * 3, tail.room()).await;
        assert_eq!(room, Ok(false));
        assert!(begun.elapsed() >= STALLED_READER_TIMEOUT);
        assert!(stalled.next().await.expect("not its end").is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_ring_with_room_waits_for_no_reader() {
        let tail = Tail::new(None, 0, Some(100));
        tail.pass([Bytes::from_static(b"a beginning")]);
        let room = tokio::time::timeout(Duration::from_millis(1), tail.room()).await;
        assert_eq!(room, Ok(true));
    }
}
