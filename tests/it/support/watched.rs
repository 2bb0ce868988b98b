//! The system's disk, and a function that is shown every operation before it is done: it may note it, let it wait, or panic.

use std::io;
use std::path::Path;
use std::sync::Arc;

use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};

use super::disk::Op;

pub struct WatchedDisk<F>(F);

impl<F: Fn(Op, &Path) + Send + Sync> WatchedDisk<F> {
    pub fn new(watch: F) -> WatchedDisk<F> {
        WatchedDisk(watch)
    }
}

impl<F: Fn(Op, &Path) + Send + Sync> Disk for WatchedDisk<F> {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        (self.0)(Op::Open, path);
        SystemDisk.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        (self.0)(Op::Create, path);
        SystemDisk.create(path)
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        (self.0)(Op::Reopen, path);
        SystemDisk.reopen(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        (self.0)(Op::Rename, to);
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        (self.0)(Op::Remove, path);
        SystemDisk.remove(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        (self.0)(Op::CreateDir, path);
        SystemDisk.create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        (self.0)(Op::SyncDir, path);
        SystemDisk.sync_dir(path)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        (self.0)(Op::List, directory);
        SystemDisk.list(directory)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        (self.0)(Op::Stat, path);
        SystemDisk.stat(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        (self.0)(Op::FreeSpace, path);
        SystemDisk.free_space(path)
    }
}
