//! The small files and the directories of the cache, written so that what they occupy is counted.

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::disk::{self, Disk, FileKind};
use super::partial::{BLOCK, allocation};

/// So many records can be written at a time, if their names fall apart.
const LOCKS: usize = 16;

/// Writers of what is no item of the ledger. All block.
pub struct Records {
    disk: Arc<dyn Disk>,
    /// Allocated bytes.
    occupied: Arc<AtomicU64>,
    /// Until all that was there at the start is found, what the last stop said counts in its place.
    expected: AtomicU64,
    found: AtomicU64,
    /// Something of it could not be looked at.
    is_uncertain: AtomicBool,
    /// By name: who counts what a file occupied before and after must be alone with it.
    files: [Mutex<()>; LOCKS],
    directories: Mutex<()>,
    /// Files that should be gone and could not be removed, with what they occupy.
    litter: Mutex<HashMap<PathBuf, u64>>,
}

impl Records {
    pub fn new(disk: Arc<dyn Disk>, occupied: Arc<AtomicU64>) -> Records {
        let (expected, found) = (AtomicU64::new(0), AtomicU64::new(0));
        Records {
            disk,
            occupied,
            expected,
            found,
            is_uncertain: AtomicBool::new(false),
            files: Default::default(),
            directories: Mutex::new(()),
            litter: Mutex::default(),
        }
    }

    /// The directory is being read; so many bytes were counted at the last stop.
    pub fn begin_loading(&self, expected: u64) {
        self.expected.store(expected, Ordering::Relaxed);
        self.count(0, expected);
    }

    /// The directory is read once more: what is counted counts until all is found.
    pub fn begin_again(&self) {
        // Nobody finds what could not be removed.
        self.found.store(self.litter.lock().values().sum(), Ordering::Relaxed);
        self.expected.store(self.occupied.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// Everything was found; says whether all of it could be looked at. (What was written in the meantime may count twice, some blocks, until the next start.)
    pub fn finish_loading(&self) -> bool {
        self.count(self.expected.swap(0, Ordering::Relaxed), self.found.swap(0, Ordering::Relaxed));
        !self.is_uncertain.swap(false, Ordering::Relaxed)
    }

    /// Something was there at the start, or is there now. What cannot be looked at counts as the least that it can be.
    pub fn found(&self, path: &Path) {
        let allocated = self.allocated(path).inspect_err(|_| self.is_uncertain.store(true, Ordering::Relaxed));
        self.found.fetch_add(allocated.unwrap_or(BLOCK), Ordering::Relaxed);
    }

    /// Something has come by another way than this.
    pub fn add(&self, path: &Path) {
        self.count(0, self.allocated(path).unwrap_or(BLOCK));
    }

    /// Removes what a crash has left of [`Records::replace`]. What cannot be removed counts, and is tried again.
    pub fn remove_temporary(&self, path: &Path) {
        // Alone with the file it was to become: what is being written at this moment has gone to its place then.
        let _alone = self.alone(&disk::replaced_by(path));
        self.discard(path, BLOCK);
    }

    /// Replaces a small file whole.
    ///
    /// # Errors
    /// When the disk fails; the old file is then still there.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let _alone = self.alone(path);
        let before = self.allocated(path)?;
        if before == 0 {
            self.create_directory(path.parent().unwrap_or(path))?;
        }
        let temporary = disk::temporary(path);
        let replaced = self.in_place_of(&temporary, || disk::replace(&*self.disk, path, bytes));
        if replaced.is_err() {
            self.discard(&temporary, BLOCK);
        }
        let expected = if replaced.is_ok() { allocation(bytes.len() as u64) } else { before };
        self.count(before, self.allocated(path).unwrap_or(expected));
        replaced
    }

    /// Makes an empty file.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create_empty(&self, path: &Path) -> io::Result<()> {
        match self.disk.create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_directory(path.parent().unwrap_or(path))?;
                self.disk.create(path).map(drop)
            }
            created => created.map(drop),
        }
    }

    /// Removes a file; that it is gone already is no error, nor that something stands there which larder did not write.
    ///
    /// # Errors
    /// When it is there and cannot be removed; they say its path.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let _alone = self.alone(path);
        let before = match self.disk.stat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound || disk::is_obstructed(&error) => return Ok(()),
            stat => stat.map_err(|error| disk::at(path, error))?,
        };
        if before.kind == FileKind::File {
            disk::remove_if_there(&*self.disk, path).map_err(|error| disk::at(path, error))?;
            self.count(before.allocated, 0);
        }
        Ok(())
    }

    /// Removes a file that is good for nothing. One that cannot be removed counts, as `unknown` where the disk does not say,
    /// and is tried again.
    pub fn discard(&self, path: &Path, unknown: u64) {
        let mut litter = self.litter.lock();
        if let Err(error) = disk::remove_if_there(&*self.disk, path) {
            tracing::warn!(path = %path.display(), %error, "a file could not be removed; it is tried again");
            let allocated = self.allocated(path).unwrap_or(unknown);
            let before = litter.insert(path.to_owned(), allocated).unwrap_or_default();
            self.count(before, allocated);
        }
    }

    /// Makes something where a file may stand that could not be removed.
    ///
    /// # Errors
    /// Those of `make`.
    pub fn in_place_of<T>(&self, path: &Path, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut litter = self.litter.lock();
        let Some(allocated) = litter.get(path).copied() else {
            drop(litter);
            return make();
        };
        // Locked meanwhile, or what is made might be taken for what is to be removed.
        let made = make()?;
        litter.remove(path);
        self.count(allocated, 0);
        Ok(made)
    }

    /// Those of some names in a directory that could not be removed: they count already, and must not be found again.
    pub fn undeleted(&self, directory: &Path) -> HashSet<PathBuf> {
        self.litter.lock().keys().filter(|path| path.parent() == Some(directory)).cloned().collect()
    }

    /// Tries again to remove what could not be removed.
    pub fn sweep(&self) {
        self.litter.lock().retain(|path, allocated| {
            let removed = disk::remove_if_there(&*self.disk, path).is_ok();
            if removed {
                self.count(*allocated, 0);
            }
            !removed
        });
    }

    /// Makes a directory, and those above it, where they are not there, so that a power cut does not take them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create_directory(&self, path: &Path) -> io::Result<()> {
        let _alone = self.directories.lock();
        let mut absent = Vec::new();
        for path in path.ancestors() {
            match self.disk.stat(path) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => absent.push(path),
                Err(error) => return Err(error),
            }
        }
        let created = self.disk.create_dir_all(path);
        for path in &absent {
            let unknown = if created.is_ok() { BLOCK } else { 0 };
            self.count(0, self.allocated(path).unwrap_or(unknown));
        }
        created?;
        for parent in absent.iter().filter_map(|path| path.parent()) {
            if let Err(error) = self.disk.sync_dir(parent) {
                tracing::error!(path = %parent.display(), %error, "a directory may not survive a power cut");
            }
        }
        Ok(())
    }

    /// What is not there occupies nothing.
    fn allocated(&self, path: &Path) -> io::Result<u64> {
        match self.disk.stat(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            stat => stat.map(|stat| stat.allocated),
        }
    }

    fn count(&self, before: u64, after: u64) {
        let counted = self.occupied.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| Some((sum + after).saturating_sub(before)));
        debug_assert!(counted.is_ok());
    }

    fn alone(&self, path: &Path) -> MutexGuard<'_, ()> {
        let name = path.as_os_str().as_encoded_bytes();
        let sum = name.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        (self.files[sum % LOCKS]).lock()
    }
}
