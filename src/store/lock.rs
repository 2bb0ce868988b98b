//! One process a directory, and the marks of how the last one left.

use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::clock::Timestamp;

/// Changes with every boot of the machine, and with nothing else.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The held lock. The kernel lets go of it when the process ends, however it ends: the file itself says nothing.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    file: File,
    boot: String,
    /// Whether partials can be trusted to be what was written: the same boot, or a clean stop.
    pub(super) partials_are_durable: bool,
    /// What was held at the last stop; `None` when that was not clean.
    pub(super) last_sizes: Option<Sizes>,
    marks: Mutex<Marks>,
}

/// What outlives the process beside the boot and the way of the stop.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(super) struct Marks {
    /// A stop was not clean, and not everything that was held has been hashed since.
    #[serde(default)]
    pub(super) doubt: bool,
    /// When everything that was held had been hashed.
    #[serde(default)]
    pub(super) examined_at: Option<Timestamp>,
}

/// Allocated bytes, at a clean stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Sizes {
    /// Of blobs.
    pub(super) blobs: u64,
    /// Of records, directories, and what was put aside.
    pub(super) others: u64,
}

/// What the holder writes into the file, for people and for the next start.
#[derive(Default, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    boot: String,
    clean: bool,
    #[serde(default)]
    sizes: Option<Sizes>,
    #[serde(flatten)]
    marks: Marks,
}

/// Why the directory is not ours.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("the cache directory {path} is in use by process {pid}; stop it, or set another cache.path")]
    Held { path: PathBuf, pid: u32 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl DirectoryLock {
    /// `new`: nothing is stored yet, so that nothing is in doubt.
    pub(super) fn take(layout: &Layout, new: bool) -> Result<DirectoryLock, LockError> {
        let path = layout.lock();
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let last: Holder = serde_json::from_str(&text).unwrap_or_default();
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held { path: layout.root().to_owned(), pid: last.pid }),
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        let boot = std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default();
        let partials_are_durable = last.clean || (!boot.is_empty() && last.boot == boot);
        let marks = Marks { doubt: !new && (last.marks.doubt || !last.clean), ..last.marks };
        let last_sizes = if new { Some(Sizes::default()) } else { last.sizes.filter(|_| last.clean) };
        let lock = DirectoryLock { file, boot, partials_are_durable, last_sizes, marks: Mutex::new(marks) };
        lock.write(None).map_err(failed)?;
        Ok(lock)
    }

    pub(super) fn marks(&self) -> Marks {
        *self.marks.lock()
    }

    /// Notes that everything that is held was hashed.
    pub(super) fn examined(&self, at: Timestamp) -> io::Result<()> {
        *self.marks.lock() = Marks { doubt: false, examined_at: Some(at) };
        self.write(None)
    }

    /// Notes that everything was written down, and what is held, if that is known.
    pub(super) fn leave_cleanly(&self, sizes: Option<Sizes>) {
        // A clean stop promises that partials survive whatever comes; the file system's sync is the shortest way to keep that.
        let kept = rustix::fs::syncfs(&self.file).map_err(io::Error::from).and_then(|()| self.write(Some(sizes)));
        if let Err(error) = kept {
            tracing::warn!(%error, "the stop was not marked as clean");
        }
    }

    /// `stopped`: cleanly.
    fn write(&self, stopped: Option<Option<Sizes>>) -> io::Result<()> {
        let (boot, clean, sizes) = (self.boot.clone(), stopped.is_some(), stopped.flatten());
        let holder = Holder { pid: std::process::id(), boot, clean, sizes, marks: self.marks() };
        let text = serde_json::to_string(&holder).map_err(io::Error::other)?;
        let mut file = &self.file;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}
