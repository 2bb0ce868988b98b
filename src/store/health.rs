//! Whether the cache takes what is written to it. A write that fails says no; the next one that succeeds, or a try every few
//! seconds, says yes again: when a disk has room once more, nobody need tell larder.

use parking_lot::Mutex;
use std::io;

use rustix::io::Errno;

use super::Store;

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
            Trouble::Failing => "the cache's disk fails",
        }
    }
}

#[derive(Default)]
pub(super) struct Health {
    trouble: Mutex<Option<Trouble>>,
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
        if self.health.trouble.lock().take_if(|trouble| *trouble != Trouble::Gone).is_some() {
            tracing::info!("the cache can be written again");
        }
        self.metrics.cache_writable.set(i64::from(self.trouble().is_none()));
    }

    /// Looks whether the directory is there, and, after something has failed, whether it can be written again. Blocks.
    pub(super) fn look_after(&self) {
        if !self.disk.is_in_place() {
            return self.is_in_trouble(Trouble::Gone);
        }
        self.health.trouble.lock().take_if(|trouble| *trouble == Trouble::Gone);
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
