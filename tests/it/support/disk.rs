//! The system's disk, but for what a test lets go wrong with it.
//!
//! ```ignore
//! let disk = FaultyDisk::new();
//! disk.fail(Op::Rename, io::ErrorKind::Other);   // from now on
//! disk.fill_up_after(100_000);                   // bytes, then "no space left"
//! disk.fail_nth(7);                              // one operation, of any kind
//! ```

use std::collections::HashMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    Open,
    Create,
    Reopen,
    Rename,
    Remove,
    RemoveDir,
    Link,
    Share,
    CreateDir,
    SyncDir,
    List,
    Stat,
    FreeSpace,
    Read,
    Write,
    Sync,
}

impl Op {
    /// Whether it changes what is on the disk.
    fn writes(self) -> bool {
        matches!(self, Op::Create | Op::Reopen | Op::Rename | Op::Remove | Op::RemoveDir | Op::Link | Op::Share | Op::CreateDir | Op::Write)
    }
}

/// A disk with faults; clones are the same disk.
#[derive(Clone, Default)]
pub struct FaultyDisk {
    faults: Arc<Mutex<Faults>>,
    held: Arc<(Mutex<Held>, Condvar)>,
}

/// Reads that wait, as on a disk that is too slow.
#[derive(Default)]
struct Held {
    from: Option<u64>,
    waiting: usize,
}

#[derive(Default)]
struct Faults {
    kinds: HashMap<Op, io::ErrorKind>,
    read_only: bool,
    /// What there is to write to, as a test tells it.
    free: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
    /// Bytes that may still be written.
    space: Option<u64>,
    /// How many operations from now on are done yet.
    left: Option<usize>,
    /// How many operations from now the one is that fails.
    nth: Option<usize>,
    /// The one that did.
    hit: Option<Op>,
    operations: usize,
}

impl FaultyDisk {
    pub fn new() -> FaultyDisk {
        FaultyDisk::default()
    }

    /// Every operation of a kind fails from now on.
    pub fn fail(&self, op: Op, kind: io::ErrorKind) {
        self.faults().kinds.insert(op, kind);
    }

    /// So many bytes can be written, and no more; the write that crosses the line is torn at it.
    pub fn fill_up_after(&self, bytes: u64) {
        self.faults().space = Some(bytes);
    }

    /// The free space is what this says: somebody else writes, too.
    pub fn free_space_is(&self, free: impl Fn() -> u64 + Send + Sync + 'static) {
        self.faults().free = Some(Arc::new(free));
    }

    pub fn read_only(&self) {
        self.faults().read_only = true;
    }

    /// The nth operation from now, counted from 1, fails, and only that.
    pub fn fail_nth(&self, n: usize) {
        let mut faults = self.faults();
        (faults.nth, faults.hit) = (Some(n), None);
    }

    /// Every read at `offset` or beyond waits, as on a disk that is too slow, until [`FaultyDisk::release`].
    pub fn hold_reads_from(&self, offset: u64) {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).from = Some(offset);
    }

    pub fn release(&self) {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).from = None;
        self.held.1.notify_all();
    }

    /// Reads that wait.
    pub fn waiting(&self) -> usize {
        self.held.0.lock().unwrap_or_else(PoisonError::into_inner).waiting
    }

    fn wait(&self, offset: u64) {
        let mut held = self.held.0.lock().unwrap_or_else(PoisonError::into_inner);
        held.waiting += 1;
        while held.from.is_some_and(|from| offset >= from) {
            held = self.held.1.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        held.waiting -= 1;
    }

    /// After so many operations nothing is done any more, as after a crash.
    pub fn die_after(&self, operations: usize) {
        self.faults().left = Some(operations);
    }

    /// Whether `die_after` has come to its end.
    pub fn is_dead(&self) -> bool {
        self.faults().left == Some(0)
    }

    /// What `fail_nth` struck, if it was reached.
    pub fn hit(&self) -> Option<Op> {
        self.faults().hit
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.faults().operations
    }

    pub fn heal(&self) {
        let operations = self.operations();
        *self.faults() = Faults { operations, ..Faults::default() };
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn attempt(&self, op: Op) -> io::Result<()> {
        let mut faults = self.faults();
        faults.operations += 1;
        match faults.left.as_mut() {
            Some(0) => return Err(io::Error::other("dead by script")),
            Some(left) => *left -= 1,
            None => {}
        }
        if let Some(left) = faults.nth.as_mut() {
            *left -= 1;
            if *left == 0 {
                (faults.nth, faults.hit) = (None, Some(op));
                return Err(io::Error::other("a fault by script"));
            }
        }
        if faults.read_only && op.writes() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match (faults.kinds.get(&op), faults.space) {
            (Some(kind), _) => Err((*kind).into()),
            // A full disk has no room for a directory entry either, once it is really full.
            (None, Some(0)) if matches!(op, Op::Create | Op::CreateDir) => Err(io::ErrorKind::StorageFull.into()),
            (None, _) => Ok(()),
        }
    }

    /// How many of `bytes` fit.
    fn take_space(&self, bytes: usize) -> usize {
        let mut faults = self.faults();
        let Some(space) = faults.space.as_mut() else { return bytes };
        let fits = bytes.min(usize::try_from(*space).unwrap_or(usize::MAX));
        *space -= fits as u64;
        fits
    }

    fn wrap(&self, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, disk: self.clone() })
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.attempt(Op::Open)?;
        SystemDisk.open(path).map(|file| self.wrap(file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.attempt(Op::Create)?;
        SystemDisk.create(path).map(|file| self.wrap(file))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.attempt(Op::Reopen)?;
        SystemDisk.reopen(path).map(|file| self.wrap(file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.attempt(Op::Rename)?;
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::Remove)?;
        SystemDisk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::RemoveDir)?;
        SystemDisk.remove_dir(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.attempt(Op::Link)?;
        SystemDisk.link(from, to)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::CreateDir)?;
        SystemDisk.create_dir_all(path)
    }

    /// Only counted: no test pulls the plug, and hundreds of real ones take minutes.
    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        self.attempt(Op::SyncDir)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        self.attempt(Op::List)?;
        SystemDisk.list(directory)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.attempt(Op::Stat)?;
        SystemDisk.stat(path)
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.attempt(Op::FreeSpace)?;
        let free = self.faults().free.clone();
        free.map_or_else(|| SystemDisk.free_space(path), |free| Ok(free()))
    }
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    disk: FaultyDisk,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.disk.attempt(Op::Read)?;
        self.disk.wait(offset);
        self.file.read_at(buffer, offset)
    }

    /// Nothing is ever in memory already, so that every read can fail.
    fn read_now(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.disk.attempt(Op::Write)?;
        let fits = self.disk.take_space(bytes.len());
        self.file.write_all_at(&bytes[..fits], offset)?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.attempt(Op::Sync)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.disk.attempt(Op::Stat)?;
        self.file.stat()
    }

    fn share(&self, source: BorrowedFd<'_>) -> io::Result<()> {
        self.disk.attempt(Op::Share)?;
        self.file.share(source)
    }

    /// A transport that sent the file by itself would pass the faults by.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
