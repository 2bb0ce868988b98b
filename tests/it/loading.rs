//! What is answered while a large cache directory is still being read: the same as later.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use larder::config::Visibility;
use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};

use crate::fills::{hub, path, path_in, push, until};
use crate::store::{blob_file, du, pull};
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::registry::{FakeRegistry, Image, Matcher};

const MIB: usize = 1024 * 1024;

/// A disk on which whoever wants to see all blobs waits until it is let.
#[derive(Clone, Default)]
struct SlowDisk {
    is_let: Arc<(Mutex<bool>, Condvar)>,
}

impl SlowDisk {
    fn let_go(&self) {
        *self.is_let.0.lock().expect("a lock") = true;
        self.is_let.1.notify_all();
    }
}

impl Drop for SlowDisk {
    /// A test that fails must not hang, too.
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Disk for SlowDisk {
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        if directory.ends_with("blobs/sha256") {
            let is_let = self.is_let.0.lock().expect("a lock");
            drop(self.is_let.1.wait_while(is_let, |is_let| !*is_let).expect("a lock"));
        }
        SystemDisk.list(directory)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.open(path)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.create(path)
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.reopen(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }

    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        SystemDisk.stat(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        SystemDisk.free_space(path)
    }
}
