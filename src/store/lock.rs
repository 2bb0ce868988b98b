//! One process a directory, and the marks of how the last one left.

use parking_lot::Mutex;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::layout::Layout;
use crate::clock::Timestamp;

/// No disk holds more (1 EiB): a file that says so is damaged, and sums with such numbers would overflow.
const SIZE_MAX: u64 = 1 << 60;
/// Changes with every boot of the machine, and with nothing else.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The held lock. The kernel lets go of it when the process ends, however it ends: the file itself says nothing.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    /// Locked as well, since it stays when everything in it is removed; absent where the file system locks no directories (NFS). First, so
    /// that whoever gets the file's lock gets this one, too.
    directory: Option<File>,
    file: Mutex<File>,
    path: PathBuf,
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

impl Sizes {
    fn are_plausible(self) -> bool {
        self.blobs <= SIZE_MAX && self.others <= SIZE_MAX
    }
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
    /// `pid` is 0 where the lock file, which names it, was removed.
    #[error("the cache directory {path} is in use by {}; stop it, or set another cache.path", process(*pid))]
    Held { path: PathBuf, pid: u32 },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

fn process(pid: u32) -> String {
    if pid == 0 { "another process".into() } else { format!("process {pid}") }
}

/// Takes the kernel's lock of an open file, without waiting; `false` when somebody else has it.
fn lock(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(false),
        locked => locked.map(|()| true).map_err(io::Error::from),
    }
}

fn open(path: &Path) -> io::Result<File> {
    let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
    OpenOptions::new().read(true).write(true).create(true).truncate(false).custom_flags(nofollow).open(path)
}

fn read(mut file: &File) -> io::Result<Holder> {
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text).unwrap_or_default())
}

impl DirectoryLock {
    /// `new`: nothing is stored yet, so that nothing is in doubt.
    pub(super) fn take(layout: &Layout, new: bool) -> Result<DirectoryLock, LockError> {
        let path = layout.lock();
        let failed = |source| LockError::Io { path: path.clone(), source };
        let held = |pid| LockError::Held { path: layout.root().to_owned(), pid };
        let directory = File::open(layout.root()).map_err(|source| LockError::Io { path: layout.root().to_owned(), source })?;
        let directory = match lock(&directory) {
            // Before the file is made: it may have been removed under the process that has the directory.
            Ok(false) => return Err(held(File::open(&path).and_then(|file| read(&file)).map_or(0, |holder| holder.pid))),
            Ok(true) => Some(directory),
            Err(error) => {
                tracing::debug!(%error, "the file system does not lock the cache directory itself; its lock file does");
                None
            }
        };
        let file = open(&path).map_err(failed)?;
        let last = read(&file).map_err(failed)?;
        if !lock(&file).map_err(failed)? {
            return Err(held(last.pid));
        }
        let boot = std::fs::read_to_string(BOOT_ID).map(|id| id.trim().to_owned()).unwrap_or_default();
        let partials_are_durable = last.clean || (!boot.is_empty() && last.boot == boot);
        let marks = Marks { doubt: !new && (last.marks.doubt || !last.clean), ..last.marks };
        let last_sizes = if new { Some(Sizes::default()) } else { last.sizes.filter(|sizes| last.clean && sizes.are_plausible()) };
        let (file, marks) = (Mutex::new(file), Mutex::new(marks));
        let lock = DirectoryLock { directory, file, path: path.clone(), boot, partials_are_durable, last_sizes, marks };
        lock.write(None).map_err(failed)?;
        Ok(lock)
    }

    /// Makes the file anew if somebody has removed or replaced it; says whether that was so. Another process must not come to hold
    /// what this one holds.
    ///
    /// # Errors
    /// When it cannot be made, or another process has it.
    pub(super) fn renew(&self) -> io::Result<bool> {
        let mut file = self.file.lock();
        let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        let there = std::fs::symlink_metadata(&self.path).map(id).ok();
        if there == Some(id(file.metadata()?)) {
            return Ok(false);
        }
        let new = open(&self.path)?;
        if !lock(&new)? {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{} is held by another process", self.path.display())));
        }
        *file = new;
        drop(file);
        self.write(None)?;
        Ok(true)
    }

    /// Whether the directory itself is locked, not only the file in it.
    pub(super) fn has_directory(&self) -> bool {
        self.directory.is_some()
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
        let synced = rustix::fs::syncfs(&*self.file.lock()).map_err(io::Error::from);
        let kept = synced.and_then(|()| self.write(Some(sizes)));
        if let Err(error) = kept {
            tracing::warn!(%error, "the stop was not marked as clean");
        }
    }

    /// `stopped`: cleanly.
    fn write(&self, stopped: Option<Option<Sizes>>) -> io::Result<()> {
        let (boot, clean, sizes) = (self.boot.clone(), stopped.is_some(), stopped.flatten());
        let holder = Holder { pid: std::process::id(), boot, clean, sizes, marks: self.marks() };
        let text = serde_json::to_string(&holder).map_err(io::Error::other)?;
        let held = self.file.lock();
        let mut file = &*held;
        file.set_len(0)?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    }
}
