//! Reading a blob that is still arriving: every reader at its own pace and place, from the growing file, and never the
//! end of it before the digest is verified (invariant 3).
//!
//! Where the store stops taking bytes (full, broken, blob too large), what arrives from there on passes through a
//! bounded ring in RAM, paced by the readers.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::blobs::{Blob, FileReader};

/// Bytes at a blob's end that nobody gets before its digest is verified.
pub const HOLD_BACK: u64 = 64 * 1024;
/// Most bytes that the ring holds.
const RING_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes that stay in the ring when all present readers have them.
const RING_BYTES_KEPT: u64 = RING_BYTES_MAX / 4;
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

/// A blob that is arriving: one writer, any number of readers.
pub struct Tail {
    progress: watch::Sender<Progress>,
    file: Option<FileReader>,
    ring: Mutex<Option<Ring>>,
    seats: Mutex<HashMap<u64, Seat>>,
    next_seat: AtomicU64,
    /// A reader has moved, come or gone.
    moved: Notify,
    /// Where the file is a stored blob's: it is not evicted while somebody reads.
    _stored: Option<Arc<Blob>>,
}

/// What passed through without being stored, from where the file ends.
struct Ring {
    from: u64,
    start: u64,
    end: u64,
    chunks: VecDeque<Bytes>,
}

struct Seat {
    offset: u64,
    moved_at: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
            _stored: None,
        };
        if bypass {
            tail.divert();
        }
        tail
    }

    /// A tail over a stored blob's file, which is leased as long as somebody reads.
    pub(super) fn of_stored(blob: Arc<Blob>, file: FileReader) -> Tail {
        Tail { _stored: Some(Arc::clone(&blob)), ..Tail::new(Some(file), 0, Some(blob.len())) }
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
        lock(&self.ring).get_or_insert_with(|| Ring { from, start: from, end: from, chunks: VecDeque::new() });
    }

    pub fn is_diverted(&self) -> bool {
        lock(&self.ring).is_some()
    }

    /// Publishes bytes that are in the file by now.
    pub fn advance(&self, received: u64) {
        self.progress.send_modify(|progress| progress.received = received);
    }

    /// Publishes bytes that are in no file.
    pub fn pass(&self, chunks: impl IntoIterator<Item = Bytes>) {
        let end = {
            let mut ring = lock(&self.ring);
            let Some(ring) = ring.as_mut() else { return };
            for chunk in chunks {
                ring.end += chunk.len() as u64;
                ring.chunks.push_back(chunk);
            }
            ring.end
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
            if since.elapsed() > STALLED_READER_TIMEOUT && lock(&self.seats).is_empty() {
                return false;
            }
            // The time-out only bounds how late a stalled reader is noticed.
            let _ = tokio::time::timeout(STALLED_READER_TIMEOUT / 10, moved).await;
        }
    }

    /// Lets go of what every reader has, and, where that is not enough, of readers that have stalled since `since`.
    fn make_room(&self, since: Instant) -> bool {
        let mut ring = lock(&self.ring);
        let Some(ring) = ring.as_mut() else { return true };
        let mut seats = lock(&self.seats);
        loop {
            let slowest = seats.iter().min_by_key(|(_, seat)| seat.offset).map(|(id, seat)| (*id, seat.offset, seat.moved_at));
            if let Some((_, offset, _)) = slowest {
                ring.release(offset);
            }
            if ring.len() < RING_BYTES_MAX {
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
            let wants_ring = end.is_none_or(|end| end > ring.from);
            if start < ring.from { self.file.is_none() || wants_ring && ring.start > ring.from } else { start < ring.start }
        };
        let ring = lock(&self.ring);
        if ring.as_ref().is_some_and(passed) {
            return None;
        }
        let seat = self.next_seat.fetch_add(1, Ordering::Relaxed);
        lock(&self.seats).insert(seat, Seat { offset: start, moved_at: Instant::now() });
        drop(ring);
        Some(TailReader { progress: self.subscribe(), tail: Arc::clone(self), seat, offset: start, end })
    }

    async fn read(&self, offset: u64, max: u64) -> io::Result<Bytes> {
        let in_file = match lock(&self.ring).as_ref() {
            Some(ring) if offset >= ring.from => return ring.read(offset, max),
            Some(ring) => ring.from - offset,
            None => u64::MAX,
        };
        match &self.file {
            Some(file) => file.read(offset, max.min(in_file)).await,
            None => Err(fell_behind()),
        }
    }
}

impl Ring {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Lets go of what is before `offset`, but for the last of it: those who asked together do not come together.
    fn release(&mut self, offset: u64) {
        while let Some(chunk) = self.chunks.front() {
            let next = self.start + chunk.len() as u64;
            if next > offset || self.len() < RING_BYTES_KEPT {
                return;
            }
            self.start = next;
            self.chunks.pop_front();
        }
    }

    fn read(&self, offset: u64, max: u64) -> io::Result<Bytes> {
        let mut start = self.start;
        for chunk in &self.chunks {
            let end = start + chunk.len() as u64;
            if (start..end).contains(&offset) {
                let from = usize::try_from(offset - start).map_err(io::Error::other)?;
                let len = usize::try_from(max).unwrap_or(usize::MAX).min(chunk.len() - from);
                return Ok(chunk.slice(from..from + len));
            }
            start = end;
        }
        Err(fell_behind())
    }
}

fn fell_behind() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the reader fell behind a blob that is not stored")
}

/// One client's place in a blob that is arriving.
pub struct TailReader {
    tail: Arc<Tail>,
    progress: watch::Receiver<Progress>,
    seat: u64,
    offset: u64,
    end: Option<u64>,
}

impl TailReader {
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
            let limit = progress.readable().min(end.unwrap_or(u64::MAX));
            if self.offset < limit {
                let read = self.tail.read(self.offset, limit - self.offset).await;
                return Some(read.and_then(|bytes| self.moved(bytes)));
            }
            if self.progress.changed().await.is_err() {
                return Some(Err(io::Error::other("the download was given up")));
            }
        }
    }

    fn moved(&mut self, bytes: Bytes) -> io::Result<Bytes> {
        self.offset += bytes.len() as u64;
        match lock(&self.tail.seats).get_mut(&self.seat) {
            Some(seat) => *seat = Seat { offset: self.offset, moved_at: Instant::now() },
            None => return Err(fell_behind()),
        }
        self.tail.moved.notify_one();
        Ok(bytes)
    }
}

impl Drop for TailReader {
    fn drop(&mut self) {
        lock(&self.tail.seats).remove(&self.seat);
        self.tail.moved.notify_one();
    }
}

#[cfg(test)]
mod tests {
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
