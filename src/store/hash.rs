//! Hashing what arrives and what is on disk, and the proof that bytes are those of their digest. Knows neither where bytes come from nor
//! where they go.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::disk::DiskFile;
use crate::gate::Gate;
use crate::oci::{Digest, Hasher};

/// Read at a time when a file is hashed: small enough to be hashed while it is in cache.
const READ_BYTES: usize = 256 * 1024;

/// Hashes and counts what arrives, whether it is stored or passes through.
#[derive(Clone)]
pub struct Verifier {
    hasher: Hasher,
    len: u64,
}

/// Proof that bytes were hashed and are those of `digest`. Only [`Verifier::finish`] makes it.
#[derive(Clone, Copy, Debug)]
pub struct Verified {
    digest: Digest,
    len: u64,
}

/// The bytes are not those of the digest they came under.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{len} bytes that hash to {found}")]
pub struct Mismatch {
    found: Digest,
    len: u64,
}

impl Verifier {
    pub fn new(expected: &Digest) -> Verifier {
        Verifier { hasher: Hasher::new(expected.algorithm()), len: 0 }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
    }

    /// Hashes a file from where this has come to, until it has come to `end`. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read, or is shorter.
    pub(super) fn read(&mut self, file: &dyn DiskFile, end: u64) -> io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while self.len < end {
            let want = usize::try_from(end - self.len).unwrap_or(READ_BYTES).min(READ_BYTES);
            match file.read_at(&mut buffer[..want], self.len)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => self.update(&buffer[..count]),
            }
        }
        Ok(())
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// # Errors
    /// When the bytes hash to something else.
    pub fn finish(self, expected: &Digest) -> Result<Verified, Mismatch> {
        let found = self.hasher.finish();
        if found == *expected { Ok(Verified { digest: found, len: self.len }) } else { Err(Mismatch { found, len: self.len }) }
    }
}

impl Verified {
    /// Whether it is proved of these bytes.
    pub(super) fn is_of(&self, digest: &Digest, len: u64) -> bool {
        self.digest == *digest && self.len == len
    }
}

/// A file of the store that is to be hashed again.
pub(super) struct Rehash {
    pub(super) file: Arc<dyn DiskFile>,
    pub(super) digest: Digest,
    /// Bytes of the file.
    pub(super) len: u64,
}

impl Rehash {
    /// Hashes the file in slices of at most `slice` bytes, so that nobody else waits long for the gate. After each `done` is told how
    /// far it is, and says how long to pause.
    pub(super) async fn run(self, gate: &Gate, slice: u64, mut done: impl FnMut(u64) -> Duration + Send) -> Verdict {
        let mut verifier = Verifier::new(&self.digest);
        while verifier.len() < self.len {
            let (file, end) = (Arc::clone(&self.file), self.len.min(verifier.len() + slice));
            let work = move || verifier.read(&*file, end).map(|()| verifier);
            verifier = match gate.run(work).await {
                Ok(verifier) => verifier,
                Err(error) => return Verdict::of(error),
            };
            let pause = done(verifier.len());
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
        }
        verifier.finish(&self.digest).map_or_else(|mismatch| Verdict::Damaged(mismatch.to_string()), |_| Verdict::Intact)
    }
}

/// What a look at a stored file told.
#[derive(Debug)]
pub enum Verdict {
    Intact,
    /// The bytes are not those of the name, or are not there.
    Damaged(String),
    /// The disk would not say.
    Unreadable(io::Error),
}

impl Verdict {
    /// What a failed open or read tells of the file.
    pub(super) fn of(error: io::Error) -> Verdict {
        let planted = error.kind() == io::ErrorKind::InvalidData
            || [Errno::LOOP, Errno::ISDIR].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
        match error.kind() {
            io::ErrorKind::NotFound => Verdict::Damaged("the file is gone".into()),
            io::ErrorKind::UnexpectedEof => Verdict::Damaged("the file is shorter than it was".into()),
            _ if planted => Verdict::Damaged("a link or a directory stands in its place".into()),
            _ => Verdict::Unreadable(error),
        }
    }
}
