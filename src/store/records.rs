//! The small files and the directories of the cache, written so that what they occupy is counted.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{self, Disk};
use super::lock;

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
    /// By name: who counts what a file occupied before and after must be alone with it.
    files: [Mutex<()>; LOCKS],
    directories: Mutex<()>,
}

impl Records {
    pub fn new(disk: Arc<dyn Disk>, occupied: Arc<AtomicU64>) -> Records {
        let (expected, found) = (AtomicU64::new(0), AtomicU64::new(0));
        Records { disk, occupied, expected, found, files: Default::default(), directories: Mutex::new(()) }
    }

    /// The directory is being read; so many bytes were counted at the last stop.
    pub fn begin_loading(&self, expected: u64) {
        self.expected.store(expected, Ordering::Relaxed);
        self.count(0, expected);
    }

    /// Everything was found. (What was written in the meantime may count twice, some blocks, until the next start.)
    pub fn finish_loading(&self) {
        self.count(self.expected.swap(0, Ordering::Relaxed), self.found.swap(0, Ordering::Relaxed));
    }

    /// Something was there at the start.
    pub fn found(&self, path: &Path) {
        self.found.fetch_add(self.allocated(path), Ordering::Relaxed);
    }

    /// Something has come by another way than this.
    pub fn add(&self, path: &Path) {
        self.count(0, self.allocated(path));
    }

    /// Removes what a crash has left of [`Records::replace`].
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove_temporary(&self, path: &Path) -> io::Result<()> {
        // Alone with the file it was to become: what is being written at this moment has gone to its place then.
        let _alone = self.alone(&disk::replaced_by(path));
        disk::remove_if_there(&*self.disk, path)
    }

    /// Replaces a small file whole.
    ///
    /// # Errors
    /// When the disk fails; the old file is then still there.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let _alone = self.alone(path);
        let before = self.allocated(path);
        if before == 0 {
            self.create_directory(path.parent().unwrap_or(path))?;
        }
        let replaced = disk::replace(&*self.disk, path, bytes);
        self.count(before, self.allocated(path));
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

    /// Removes a file; that it is gone already is no error.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        let _alone = self.alone(path);
        let before = self.allocated(path);
        disk::remove_if_there(&*self.disk, path)?;
        self.count(before, 0);
        Ok(())
    }

    /// Makes a directory, and those above it, where they are not there.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn create_directory(&self, path: &Path) -> io::Result<()> {
        let _alone = lock(&self.directories);
        let is_absent = |path: &&Path| matches!(self.disk.stat(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
        let absent: Vec<_> = path.ancestors().take_while(is_absent).collect();
        self.disk.create_dir_all(path)?;
        absent.into_iter().for_each(|path| self.add(path));
        Ok(())
    }

    /// What cannot be seen occupies nothing.
    fn allocated(&self, path: &Path) -> u64 {
        self.disk.stat(path).map_or(0, |stat| stat.allocated)
    }

    fn count(&self, before: u64, after: u64) {
        let counted = self.occupied.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |sum| Some((sum + after).saturating_sub(before)));
        debug_assert!(counted.is_ok());
    }

    fn alone(&self, path: &Path) -> MutexGuard<'_, ()> {
        let name = path.as_os_str().as_encoded_bytes();
        let sum = name.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        lock(&self.files[sum % LOCKS])
    }
}
