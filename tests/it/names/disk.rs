//! A disk that tells what was asked of it.

use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};

/// The system's disk, and a list of the paths that were asked of it.
#[derive(Clone, Default)]
pub(super) struct NotingDisk {
    paths: Arc<Mutex<Vec<PathBuf>>>,
}

impl NotingDisk {
    pub(super) fn touched(&self) -> Vec<PathBuf> {
        self.paths.lock().clone()
    }

    fn note(&self, path: &Path) {
        self.paths.lock().push(path.into());
    }
}

impl Disk for NotingDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.note(path);
        SystemDisk.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.note(path);
        SystemDisk.create(path)
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.note(path);
        SystemDisk.reopen(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(to);
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.note(path);
        SystemDisk.remove(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.note(path);
        SystemDisk.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_dir(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.note(directory);
        SystemDisk.list(directory)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.note(path);
        SystemDisk.stat(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        SystemDisk.free_space(path)
    }
}
