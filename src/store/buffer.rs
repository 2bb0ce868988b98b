//! Read buffers that are used again: a fresh 128 KiB for each chunk would cost as much as the read.

use parking_lot::Mutex;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes read at once. With hyper's own 64 KiB limit, what one client pins.
pub const CHUNK: usize = 128 * 1024;
/// Idle buffers kept; more are given back to the allocator.
const IDLE_MAX: usize = 64;

/// A pool of equal buffers.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Arc<Mutex<Vec<Box<[u8]>>>>);

impl Buffers {
    pub fn take(&self) -> Buffer {
        let idle = self.0.lock().pop();
        Buffer { bytes: idle.unwrap_or_else(|| vec![0; CHUNK].into()), filled: 0, pool: self.clone() }
    }
}

/// A buffer that goes back to its pool when the last reader of its bytes is gone.
pub struct Buffer {
    bytes: Box<[u8]>,
    filled: usize,
    pool: Buffers,
}

impl Buffer {
    /// Where at most `len` bytes may be read into.
    pub fn space(&mut self, len: u64) -> &mut [u8] {
        let len = usize::try_from(len).unwrap_or(CHUNK).min(CHUNK);
        &mut self.bytes[..len]
    }

    /// The first `filled` bytes, for sending.
    pub fn into_bytes(mut self, filled: usize) -> Bytes {
        self.filled = filled;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut idle = self.pool.0.lock();
        if idle.len() < IDLE_MAX {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}
