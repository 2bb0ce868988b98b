//! One process a directory, and the marks of how the last one left.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::layout::Layout;

/// Changes with every boot of the machine, and with nothing else.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The held lock. The kernel lets go of it when the process ends, however it ends: the file itself says nothing.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    file: File,
    boot: String,
    /// Whether partials can be trusted to be what was written: the same boot, or a clean stop.
    pub(super) partials_are_durable: bool,
}

/// What the holder writes into the file, for people and for the next start.
#[derive(Default, Serialize, Deserialize)]
struct Holder {
    pid: u32,
    boot: String,
    clean: bool,
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
    pub(super) fn take(layout: &Layout) -> Result<DirectoryLock, LockError> {
        let path = layout.lock();
        let failed = |source| LockError::Io { path: path.clone(), source };
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(failed)?;
        let last: Holder = serde_json::from_str(&text).unwrap_or_default();
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(LockError::Held { path: layout.root().to_owned(), pid: last.pid }),
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        let boot = std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default();
        let partials_are_durable = last.clean || (!boot.is_empty() && last.boot == boot);
        let lock = DirectoryLock { file, boot, partials_are_durable };
        lock.write(false).map_err(failed)?;
        Ok(lock)
    }

    /// Notes that everything was written down.
    pub(super) fn leave_cleanly(&self) {
        // A clean stop promises that partials survive whatever comes; the file system's sync is the shortest way to keep that.
        let kept = rustix::fs::syncfs(&self.file).map_err(io::Error::from).and_then(|()| self.write(true));
        if let Err(error) = kept {
            tracing::warn!(%error, "the stop was not marked as clean");
        }
    }

    fn write(&self, clean: bool) -> io::Result<()> {
        let holder = Holder { pid: std::process::id(), boot: self.boot.clone(), clean };
        let text = serde_json::to_string(&holder).map_err(io::Error::other)?;
        let mut file = &self.file;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}
