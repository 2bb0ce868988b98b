//! Whether the cache takes what is written to it. A write that fails says no; the next one that succeeds, or a try every few
//! seconds, says yes again: when a disk has room once more, nobody need tell larder.

use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::Store;
use super::disk::Disk;
use super::layout::Layout;

/// A full disk is believed to have room again when so much is free beyond `cache.min_free`.
const ROOM_BYTES: u64 = 1 << 20;

/// What is wrong with the cache directory. Pulls go on: what cannot be stored passes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// No blocks, or no inodes.
    Full,
    ReadOnly,
    Denied,
    /// Its path leads to it no more.
    Gone,
    /// What was in it, or `blobs/` or `refs/` alone, was removed or replaced.
    Emptied,
    /// Another process has taken it over.
    Taken,
    Failing,
}

impl Trouble {
    fn of(error: &io::Error) -> Trouble {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Trouble::Full,
            io::ErrorKind::ReadOnlyFilesystem => Trouble::ReadOnly,
            io::ErrorKind::PermissionDenied => Trouble::Denied,
            io::ErrorKind::NotFound => Trouble::Gone,
            _ => Trouble::Failing,
        }
    }

    /// One line for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Trouble::Full => "the cache's disk is full",
            Trouble::ReadOnly => "the cache is read-only",
            Trouble::Denied => "larder may not write to the cache directory",
            Trouble::Gone => "the cache directory was moved or removed",
            Trouble::Emptied => "blobs/ or refs/ of the cache directory was removed; nothing is stored until larder is restarted",
            Trouble::Taken => "another process uses the cache directory; nothing is stored until larder is restarted",
            Trouble::Failing => "the cache's disk fails",
        }
    }
}

impl Trouble {
    /// Whether what larder opened is not what its path leads to: then nothing is written, however well that would go.
    pub(super) fn forbids_writing(self) -> bool {
        matches!(self, Trouble::Gone | Trouble::Emptied | Trouble::Taken)
    }
}

/// Device and inode.
type FileId = (u64, u64);

pub(super) struct Health {
    trouble: Mutex<Option<Trouble>>,
    /// The directories without which nothing of what is known is true, as they were at the start.
    opened: Vec<(PathBuf, FileId)>,
}

impl Health {
    /// The directories are there.
    pub(super) fn new(disk: &dyn Disk, layout: &Layout) -> Health {
        let opened = [layout.blobs(), layout.refs()].into_iter().filter_map(|path| disk.stat(&path).ok().map(|stat| (path, stat.id)));
        Health { trouble: Mutex::default(), opened: opened.collect() }
    }

    /// The first of them that is there no more.
    fn missing(&self, disk: &dyn Disk) -> Option<&Path> {
        let is_missing = |path: &Path, id: FileId| match disk.stat(path) {
            Ok(stat) => stat.id != id,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        };
        self.opened.iter().find(|(path, id)| is_missing(path, *id)).map(|(path, _)| path.as_path())
    }
}

impl Store {
    /// Why nothing is stored at present.
    pub fn trouble(&self) -> Option<Trouble> {
        *self.health.trouble.lock()
    }

    pub(super) fn is_in_trouble(&self, trouble: Trouble) {
        let before = self.health.trouble.lock().replace(trouble);
        self.metrics.cache_writable.set(0);
        if before != Some(trouble) {
            tracing::error!(why = trouble.as_str(), "the cache cannot be written; what is not held passes through");
        }
    }

    pub(super) fn could_not_write(&self, error: &io::Error) {
        self.is_in_trouble(Trouble::of(error));
    }

    /// Something was written.
    pub(super) fn is_well(&self) {
        // Whoever cannot find the directory by its path does not store in it, however well that would go.
        if self.health.trouble.lock().take_if(|trouble| !trouble.forbids_writing()).is_some() {
            tracing::info!("the cache can be written again");
        }
        self.metrics.cache_writable.set(i64::from(self.trouble().is_none()));
    }

    /// Looks whether the directory is there, and, after something has failed, whether it can be written again. Blocks.
    pub(super) fn look_after(&self) {
        if let Some(absent) = self.absent() {
            return self.is_in_trouble(absent);
        }
        if self.health.trouble.lock().take_if(|trouble| trouble.forbids_writing()).is_some() {
            // What was asked for meanwhile was taken for gone.
            self.walk.should_read_again();
        }
        self.make_folders();
        let written = match self.trouble() {
            Some(Trouble::Full) if !self.has_space() => return,
            // All that may leave has left by now, and still no fill would be stored.
            None if self.is_beyond_disk() => return self.is_in_trouble(Trouble::Full),
            Some(_) => self.uptime.write(),
            None => self.uptime.tend(),
        };
        match written {
            Ok(()) => self.is_well(),
            Err(error) => self.could_not_write(&error),
        }
    }

    /// Why what larder opened is not what its path leads to. The lock file is made anew where it was removed, so that no second
    /// process begins beside this one.
    fn absent(&self) -> Option<Trouble> {
        if !self.disk.is_in_place() {
            return Some(Trouble::Gone);
        }
        match self.lock.renew() {
            Ok(false) => {}
            Ok(true) => tracing::warn!(path = %self.layout.lock().display(), "the lock file was removed; it is made anew"),
            // Whoever has the file has not the directory, where that can be locked.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && !self.lock.has_directory() => return Some(Trouble::Taken),
            Err(error) => tracing::debug!(%error, "the lock file was not made anew"),
        }
        let missing = self.health.missing(&*self.disk)?;
        if self.trouble() != Some(Trouble::Emptied) {
            tracing::error!(path = %missing.display(), "removed or replaced while larder runs; what was in it is fetched from upstream");
        }
        Some(Trouble::Emptied)
    }

    /// What was in these is missed by nobody: they are made anew.
    fn make_folders(&self) {
        for path in [self.layout.partials(), self.layout.quarantine()] {
            if self.disk.stat(&path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
                let made = self.records.create_directory(&path);
                tracing::warn!(path = %path.display(), ?made, "removed while larder runs; it is made anew");
                // What they counted is counted anew.
                self.walk.should_read_again();
            }
        }
    }

    fn has_space(&self) -> bool {
        let wanted = self.min_free.saturating_add(ROOM_BYTES);
        self.disk.free_space(self.layout.root()).is_ok_and(|free| free >= wanted)
    }
}

/// What would be said of any file just now: that larder may not look, or has too many open.
pub(super) fn says_nothing_of_the_file(error: &io::Error) -> bool {
    let errors = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
    error.kind() == io::ErrorKind::PermissionDenied || errors.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
