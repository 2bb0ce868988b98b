//! The system's disk, but for what a test lets go wrong with it.
//!
//! ```ignore
//! let disk = FaultyDisk::new();
//! disk.fail(Op::Rename, io::ErrorKind::Other);   // from now on
//! disk.fill_up_after(100_000);                   // bytes, then "no space left"
//! disk.harm(7..=7, Harm::Error);                 // one operation, of any kind
//! disk.harm(7.., Harm::Full);                    // writes, from the seventh on
//! ```

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::collections::HashMap;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};

/// What a directory occupies at least.
pub const DIRECTORY_BYTES: u64 = 4096;

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

/// What is done to operations by their place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// `EIO`; half of what was to be written is.
    Error,
    /// The same, but only to what changes something.
    WriteError,
    /// `ENOSPC`; half of what was to be written is.
    Full,
    /// Half of what was to be read is, which the caller must expect.
    Short,
    /// Nothing more is there to read: the file has been cut.
    Cut,
    /// The thread panics.
    Panic,
}

impl Harm {
    pub fn strikes(self, op: Op) -> bool {
        match self {
            Harm::Error | Harm::Panic => true,
            Harm::WriteError => op.writes() || op == Op::Sync || op == Op::SyncDir,
            Harm::Full => matches!(op, Op::Create | Op::CreateDir | Op::Write),
            Harm::Short | Harm::Cut => op == Op::Read,
        }
    }

    fn error(self) -> io::Error {
        let errno = if self == Harm::Full { rustix::io::Errno::NOSPC } else { rustix::io::Errno::IO };
        errno.into()
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
    /// The same of one path, and of no other.
    places: HashMap<(Op, PathBuf), io::ErrorKind>,
    read_only: bool,
    /// What there is to write to, as a test tells it.
    free: Option<Arc<dyn Fn() -> u64 + Send + Sync>>,
    /// Bytes that may still be written.
    space: Option<u64>,
    /// How many operations from now on are done yet.
    left: Option<usize>,
    harm: Option<Planned>,
    /// What it struck first.
    hit: Option<(Op, PathBuf)>,
    struck: Option<(Op, PathBuf)>,
    operations: usize,
    /// Of this kind below this name so many panic from now on.
    panics: Option<(Op, &'static str, usize)>,
}

/// Operations to which something is done, counted among those that it can be done to.
struct Planned {
    harm: Harm,
    first: usize,
    last: usize,
    seen: usize,
}

impl Faults {
    fn strike(&mut self, op: Op) -> Option<Harm> {
        let planned = self.harm.as_mut().filter(|planned| planned.harm.strikes(op))?;
        planned.seen += 1;
        (planned.first..=planned.last).contains(&planned.seen).then_some(planned.harm)
    }
}

impl FaultyDisk {
    pub fn new() -> FaultyDisk {
        FaultyDisk::default()
    }

    /// Every operation of a kind fails from now on.
    pub fn fail(&self, op: Op, kind: io::ErrorKind) {
        self.faults().kinds.insert(op, kind);
    }

    /// Every operation of a kind at this path fails from now on.
    pub fn fail_at(&self, op: Op, path: &Path, kind: io::ErrorKind) {
        self.faults().places.insert((op, path.to_owned()), kind);
    }

    /// So many bytes can be written, and no more; the write that crosses the line is torn at it.
    pub fn fill_up_after(&self, bytes: u64) {
        self.faults().space = Some(bytes);
    }

    /// The free space is what this says: somebody else writes, too.
    pub fn free_space_is(&self, free: impl Fn() -> u64 + Send + Sync + 'static) {
        self.faults().free = Some(Arc::new(free));
    }

    /// The next so many operations of this kind panic, where the path has this in it.
    pub fn panic_at(&self, op: Op, below: &'static str, times: usize) {
        self.faults().panics = Some((op, below, times));
    }

    pub fn read_only(&self) {
        self.faults().read_only = true;
    }

    /// Something is done to the nth operations from now, counted from 1 among those that it can be done to.
    pub fn harm(&self, nth: impl RangeBounds<usize>, harm: Harm) {
        let first = if let Bound::Included(first) = nth.start_bound() { *first } else { 1 };
        let last = if let Bound::Included(last) = nth.end_bound() { *last } else { usize::MAX };
        let mut faults = self.faults();
        (faults.harm, faults.hit) = (Some(Planned { harm, first, last, seen: 0 }), None);
    }

    /// Every read at `offset` or beyond waits, as on a disk that is too slow, until [`FaultyDisk::release`].
    pub fn hold_reads_from(&self, offset: u64) {
        self.held.0.lock().from = Some(offset);
    }

    pub fn release(&self) {
        self.held.0.lock().from = None;
        self.held.1.notify_all();
    }

    /// Reads that wait.
    pub fn waiting(&self) -> usize {
        self.held.0.lock().waiting
    }

    fn wait(&self, offset: u64) {
        let mut held = self.held.0.lock();
        held.waiting += 1;
        while held.from.is_some_and(|from| offset >= from) {
            self.held.1.wait(&mut held);
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

    /// What `harm` struck first, also when that is long healed.
    pub fn struck(&self) -> Option<(Op, PathBuf)> {
        self.faults().struck.clone()
    }

    /// What `harm` struck first, if it was reached.
    pub fn hit(&self) -> Option<(Op, PathBuf)> {
        self.faults().hit.clone()
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.faults().operations
    }

    pub fn heal(&self) {
        let mut faults = self.faults();
        *faults = Faults { operations: faults.operations, struck: faults.struck.take(), ..Faults::default() };
    }

    fn faults(&self) -> MutexGuard<'_, Faults> {
        self.faults.lock()
    }

    /// Counts an operation. Says what is to be done to it beside failing it.
    fn attempt(&self, op: Op, path: &Path) -> io::Result<Option<Harm>> {
        let mut faults = self.faults();
        faults.operations += 1;
        match faults.left.as_mut() {
            Some(0) => return Err(io::Error::other("dead by script")),
            Some(left) => *left -= 1,
            None => {}
        }
        if let Some(harm) = faults.strike(op) {
            faults.hit.get_or_insert_with(|| (op, path.to_owned()));
            faults.struck = faults.hit.clone();
            drop(faults);
            return match harm {
                Harm::Panic => panic!("a panic by script"),
                Harm::Short | Harm::Cut => Ok(Some(harm)),
                _ if op == Op::Write => Ok(Some(harm)),
                _ => Err(harm.error()),
            };
        }
        if let Some((kind, below, left)) = &mut faults.panics
            && *kind == op
            && *left > 0
            && path.to_string_lossy().contains(*below)
        {
            *left -= 1;
            drop(faults);
            panic!("a panic by script");
        }
        if let Some(kind) = faults.places.get(&(op, path.to_owned())) {
            return Err((*kind).into());
        }
        if faults.read_only && op.writes() {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        match (faults.kinds.get(&op), faults.space) {
            (Some(kind), _) => Err((*kind).into()),
            // A full disk has no room for a directory entry either, once it is really full.
            (None, Some(0)) if matches!(op, Op::Create | Op::CreateDir) => Err(io::ErrorKind::StorageFull.into()),
            (None, _) => Ok(None),
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

    fn wrap(&self, path: &Path, file: Arc<dyn DiskFile>) -> Arc<dyn DiskFile> {
        Arc::new(FaultyFile { file, disk: self.clone(), path: path.to_owned() })
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.attempt(Op::Open, path)?;
        SystemDisk.open(path).map(|file| self.wrap(path, file))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.attempt(Op::Create, path)?;
        SystemDisk.create(path).map(|file| self.wrap(path, file))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.attempt(Op::Reopen, path)?;
        SystemDisk.reopen(path).map(|file| self.wrap(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.attempt(Op::Rename, to)?;
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::Remove, path)?;
        SystemDisk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::RemoveDir, path)?;
        SystemDisk.remove_dir(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.attempt(Op::Link, to)?;
        SystemDisk.link(from, to)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::CreateDir, path)?;
        SystemDisk.create_dir_all(path)
    }

    /// Only counted: no test pulls the plug, and hundreds of real ones take minutes.
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.attempt(Op::SyncDir, path).map(drop)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        // What is not there is not looked for on the disk, and is most of what a scrub of an almost empty cache lists.
        if directory.exists() {
            self.attempt(Op::List, directory)?;
        }
        SystemDisk.list(directory)
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        self.attempt(Op::Stat, path)?;
        let stat = SystemDisk.stat(path)?;
        // In RAM directories occupy nothing.
        Ok(if path.is_dir() { Stat { allocated: stat.allocated.max(DIRECTORY_BYTES), ..stat } } else { stat })
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        self.attempt(Op::FreeSpace, path)?;
        let free = self.faults().free.clone();
        free.map_or_else(|| SystemDisk.free_space(path), |free| Ok(free()))
    }
}

struct FaultyFile {
    file: Arc<dyn DiskFile>,
    disk: FaultyDisk,
    path: PathBuf,
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let harm = self.disk.attempt(Op::Read, &self.path)?;
        self.disk.wait(offset);
        let len = match harm {
            Some(Harm::Short) => buffer.len().div_ceil(2),
            Some(Harm::Cut) => 0,
            _ => buffer.len(),
        };
        self.file.read_at(&mut buffer[..len], offset)
    }

    /// Nothing is ever in memory already, so that every read can fail.
    fn read_now(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Some(harm) = self.disk.attempt(Op::Write, &self.path)? {
            self.file.write_all_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(harm.error());
        }
        let fits = self.disk.take_space(bytes.len());
        self.file.write_all_at(&bytes[..fits], offset)?;
        if fits < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.attempt(Op::Sync, &self.path).map(drop)
    }

    fn stat(&self) -> io::Result<Stat> {
        self.disk.attempt(Op::Stat, &self.path)?;
        self.file.stat()
    }

    fn share(&self, source: BorrowedFd<'_>) -> io::Result<()> {
        self.disk.attempt(Op::Share, &self.path)?;
        self.file.share(source)
    }

    /// A transport that sent the file by itself would pass the faults by.
    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
