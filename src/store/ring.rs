//! What passes through without being stored: a bounded piece of a blob in RAM, paced by whoever reads it. Pure.

use std::collections::VecDeque;
use std::io;

use bytes::Bytes;

/// Most bytes that the ring holds.
pub(super) const RING_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Bytes that stay in the ring when all present readers have them.
const RING_BYTES_KEPT: u64 = RING_BYTES_MAX / 4;

/// What passed through without being stored, from where the file ends.
pub(super) struct Ring {
    from: u64,
    start: u64,
    end: u64,
    chunks: VecDeque<Bytes>,
}

impl Ring {
    pub(super) fn new(from: u64) -> Ring {
        Ring { from, start: from, end: from, chunks: VecDeque::new() }
    }

    /// The offset of the first byte that went to no file.
    pub(super) fn from(&self) -> u64 {
        self.from
    }

    /// The offset of the first byte that is still here.
    pub(super) fn start(&self) -> u64 {
        self.start
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        self.end += chunk.len() as u64;
        self.chunks.push_back(chunk);
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= RING_BYTES_MAX
    }

    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Lets go of what is before `offset`, but for the last of it: those who asked together do not come together.
    pub(super) fn release(&mut self, offset: u64) {
        while let Some(chunk) = self.chunks.front() {
            let next = self.start + chunk.len() as u64;
            if next > offset || self.len() < RING_BYTES_KEPT {
                return;
            }
            self.start = next;
            self.chunks.pop_front();
        }
    }

    pub(super) fn read(&self, offset: u64, max: u64) -> io::Result<Bytes> {
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

pub(super) fn fell_behind() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the reader fell behind a blob that is not stored")
}
