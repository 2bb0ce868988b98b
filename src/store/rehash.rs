//! Hashing what is on disk again, a slice at a time, so that nobody else waits long for the gate.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::Store;
use super::blobs::Lease;
use super::disk::DiskFile;
use super::partial::Verifier;
use crate::gate::Gate;
use crate::oci::Digest;

/// Read at a time: small enough to be hashed while it is in cache.
const READ_BYTES: usize = 256 * 1024;

/// What a look at a stored file told.
#[derive(Debug)]
pub enum Verdict {
    Intact,
    /// The bytes are not those of the name, or are not there.
    Damaged(String),
    /// The disk would not say.
    Unreadable(io::Error),
}

/// A stored file that is being hashed.
pub(super) struct Rehash {
    file: Arc<dyn DiskFile>,
    digest: Digest,
    len: u64,
    verifier: Option<Verifier>,
}

impl Rehash {
    pub(super) fn new(file: Arc<dyn DiskFile>, digest: Digest, len: u64) -> Rehash {
        Rehash { file, digest, len, verifier: Some(Verifier::new(&digest)) }
    }

    /// Bytes of the file.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Hashes at most `bytes` more, and tells how far it has come; at [`Rehash::len`] nothing is left.
    ///
    /// # Errors
    /// When the disk fails, or the file has become shorter.
    pub(super) async fn step(&mut self, gate: &Gate, bytes: u64) -> io::Result<u64> {
        let mut verifier = self.verifier.take().ok_or(io::ErrorKind::InvalidInput)?;
        let (file, end) = (Arc::clone(&self.file), self.len.min(verifier.len() + bytes));
        let work = move || -> io::Result<Verifier> {
            let mut buffer = vec![0; READ_BYTES];
            while verifier.len() < end {
                let want = usize::try_from(end - verifier.len()).unwrap_or(READ_BYTES).min(READ_BYTES);
                match file.read_at(&mut buffer[..want], verifier.len())? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    count => verifier.update(&buffer[..count]),
                }
            }
            Ok(verifier)
        };
        let verifier = gate.run(work).await?;
        let done = verifier.len();
        self.verifier = Some(verifier);
        Ok(done)
    }

    /// What came of it.
    pub(super) fn verdict(self, read: io::Result<()>) -> Verdict {
        let hashed = read.and_then(|()| self.verifier.ok_or(io::ErrorKind::InvalidInput.into()));
        match hashed.map(|verifier| verifier.finish(&self.digest)) {
            Ok(Ok(_)) => Verdict::Intact,
            Ok(Err(mismatch)) => Verdict::Damaged(mismatch.to_string()),
            Err(error) => Verdict::of(error),
        }
    }
}

impl Verdict {
    /// What a failed open or read tells of the file.
    fn of(error: io::Error) -> Verdict {
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

/// A stored object under examination; while it lives, it is not evicted.
pub(super) struct Examined {
    pub(super) rehash: Rehash,
    _lease: Lease,
}

impl Store {
    /// Opens a stored object to hash it, which is no use of it; `None` when it is not held.
    pub(super) async fn examine(self: &Arc<Store>, digest: &Digest) -> Option<Result<Examined, Verdict>> {
        let lease = Lease::take(&self.ledger, *digest)?;
        let (store, digest) = (Arc::clone(self), *digest);
        let opened = self.gate.run(move || {
            let file = store.disk.open(&store.layout.blob(&digest))?;
            let len = file.stat()?.len;
            Ok(Rehash::new(file, digest, len))
        });
        Some(opened.await.map(|rehash| Examined { rehash, _lease: lease }).map_err(Verdict::of))
    }

    /// A digest's bytes were hashed, and are right.
    pub(super) fn vouch_for(&self, digest: &Digest) {
        self.trust.saw(digest);
    }

    /// Everything that is held was hashed since the last unclean stop, so that nothing is in doubt any more. Blocks.
    pub(super) fn all_is_known(&self) {
        self.trust.settle();
        let now = self.clock.now();
        self.metrics.scrubbed(now);
        if let Err(error) = self.lock.examined(now) {
            tracing::warn!(%error, "that the whole cache was hashed could not be written down");
        }
    }
}
