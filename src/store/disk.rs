//! The seam to the disk: the dozen file operations the store is made of. All of them may block; see [`crate::gate`].

mod obstacle;
mod rooted;

use std::fs::{self, File, OpenOptions};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rustix::io::{Errno, ReadWriteFlags};

pub use obstacle::Planted;
pub(super) use obstacle::{at, is_obstructed, obstacle};
use rooted::Rooted;

/// What stands at a path; of a symbolic link, that it is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    File,
    Directory,
    Link,
    /// A socket, a pipe or a device.
    Other,
}

/// What is known of a file without reading it.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    pub kind: FileKind,
    /// Device and inode: the same as long as it is the same file.
    pub id: (u64, u64),
    /// Bytes to read.
    pub len: u64,
    /// Bytes that it occupies.
    pub allocated: u64,
    pub modified: SystemTime,
}

/// An entry of a directory.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub kind: FileKind,
}

impl Entry {
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }
}

/// An open file.
pub trait DiskFile: Send + Sync {
    /// Reads at most `buffer.len()` bytes; 0 at the end. May wait for the disk.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
    /// As `read_at`, but only what is in memory already; `None` where the disk would have to be waited for.
    fn read_now(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>>;
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Returns when the bytes would survive a power cut.
    fn sync(&self) -> io::Result<()>;
    fn stat(&self) -> io::Result<Stat>;
    /// For a transport that can hand files to the kernel.
    fn as_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Takes over what another file holds, by sharing its blocks; not on every file system, and never between two of them.
    fn share(&self, _source: BorrowedFd<'_>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// A file system.
pub trait Disk: Send + Sync {
    /// Opens a file for reading; a symbolic link is not followed.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Makes an empty file for reading and writing, in place of any that is there.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file for reading and writing; what it holds stays.
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes renames and removals in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// What a directory holds; one that is not there holds nothing.
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>>;
    /// As `list`, one entry after the other: for directories that may hold a million.
    fn visit(&self, directory: &Path, found: &mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
        self.list(directory)?.into_iter().try_for_each(found)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat>;
    /// The same of several files of a directory: for directories that hold a million.
    fn stats(&self, directory: &Path, names: &[Entry]) -> Vec<io::Result<Stat>> {
        names.iter().map(|entry| self.stat(&directory.join(&entry.name))).collect()
    }
    /// Bytes that an ordinary user could still write.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
    /// Removes an empty directory.
    fn remove_dir(&self, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Makes another name for a file that need not be in the cache; not on every file system.
    fn link(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Whether the path of the directory that [`Disk::rooted`] has opened still leads to it.
    fn is_in_place(&self) -> bool {
        true
    }
    /// The same file system, for what is below one directory only, and never through a symbolic link there. `None`: as it is.
    ///
    /// # Errors
    /// When the directory cannot be opened, or a link stands in it.
    fn rooted(&self, _directory: &Path) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(None)
    }
}

/// Makes the cache directory, with those above it. Of a new one its name is made durable, and theirs: a power cut shall take none of
/// them with all that will be in it. To be called before the directory is taken for a root, below which alone is seen then.
///
/// # Errors
/// When it cannot be made.
pub(super) fn create_root(disk: &dyn Disk, root: &Path, is_new: bool) -> io::Result<()> {
    // An empty path is the working directory.
    let is_absent = |path: &Path| !path.as_os_str().is_empty() && disk.stat(path).is_err();
    let made = root.ancestors().take_while(|path| is_new && is_absent(path)).count();
    disk.create_dir_all(root)?;
    if is_new {
        // Its own also where somebody else has made it, or a start that was cut short.
        root.ancestors().skip(1).take(made.max(1)).for_each(|parent| sync_names(disk, parent));
    }
    Ok(())
}

/// Makes the names in a directory durable, as far as that can be done: a cache on a disk that cannot is one all the same.
pub(super) fn sync_names(disk: &dyn Disk, directory: &Path) {
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    if let Err(error) = disk.sync_dir(directory) {
        tracing::warn!(path = %directory.display(), %error, "a directory may not survive a power cut");
    }
}

/// Reads a whole small file; `None` when there is none.
///
/// # Errors
/// When it cannot be read, or is larger than `limit`.
pub fn read_small(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let len = file.stat()?.len;
    if len > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{} has {len} bytes, more than {limit}", path.display())));
    }
    read_exact(&*file, usize::try_from(len).unwrap_or(usize::MAX)).map(Some)
}

/// Reads the first `len` bytes of a file.
///
/// # Errors
/// When it cannot be read, or is shorter.
pub fn read_exact(file: &dyn DiskFile, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let mut read = 0;
    while read < len {
        match file.read_at(&mut bytes[read..], read as u64)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read += count,
        }
    }
    Ok(bytes)
}

/// What a visit finds.
///
/// # Errors
/// Those of the visit.
fn collected(visit: impl FnOnce(&mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<()>) -> io::Result<Vec<Entry>> {
    let mut all = Vec::new();
    visit(&mut |entry| {
        all.push(entry);
        Ok(())
    })?;
    Ok(all)
}

/// Whether a file is one that [`replace`] had not finished.
pub fn is_temporary(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().ends_with(b"~"))
}

/// The file that a temporary one was to replace.
pub fn replaced_by(temporary: &Path) -> PathBuf {
    let name = temporary.file_name().unwrap_or_default().to_string_lossy();
    temporary.with_file_name(name.trim_end_matches('~'))
}

/// Where [`replace`] writes first. `~` stands in no tag and no digest, so that the name is nobody else's.
pub fn temporary(path: &Path) -> PathBuf {
    path.with_file_name(format!("{}~", path.file_name().unwrap_or_default().to_string_lossy()))
}

/// Replaces a small file whole: after a crash it holds the old bytes or the new ones.
///
/// # Errors
/// When any of the steps fails; the old file is then still there.
pub fn replace(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().unwrap_or(path);
    let temporary = temporary(path);
    let write = || {
        let file = disk.create(&temporary)?;
        file.write_all_at(bytes, 0)?;
        file.sync()
    };
    match write() {
        // Most of the time the directory is there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            disk.create_dir_all(directory)?;
            write()?;
        }
        written => written?,
    }
    disk.rename(&temporary, path)?;
    disk.sync_dir(directory)
}

/// Removes a file; that it is gone already is no error, nor that something else stands in its place, which stays.
///
/// # Errors
/// When it is there and cannot be removed.
pub fn remove_if_there(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    match disk.remove(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_obstructed(&error) => Ok(()),
        removed => removed,
    }
}

/// The operating system's file system.
#[derive(Clone, Copy, Debug)]
pub struct SystemDisk;

impl Disk for SystemDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        open(path, OpenOptions::new().read(true))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        open(path, OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o640))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        open(path, OpenOptions::new().read(true).write(true))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        fs::create_dir_all(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        collected(|found| self.visit(directory, found))
    }

    fn visit(&self, directory: &Path, found: &mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
        let mut entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        entries.try_for_each(|entry| {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            found(Entry { name, kind: kind(entry.file_type()?) })
        })
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        fs::symlink_metadata(path).map(|metadata| stat(&metadata))
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        let space = rustix::fs::statvfs(path)?;
        Ok(space.f_bavail * space.f_frsize)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to)
    }

    fn rooted(&self, directory: &Path) -> io::Result<Option<Arc<dyn Disk>>> {
        Ok(Some(Arc::new(Rooted::open(directory)?)))
    }
}

impl DiskFile for File {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        loop {
            match FileExt::read_at(self, buffer, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        match rustix::io::preadv2(self, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) {
            Ok(count) => Ok(Some(count)),
            // Not in the page cache, or a file system that cannot tell (tmpfs of old, FUSE).
            Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR | Errno::NOSYS) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn stat(&self) -> io::Result<Stat> {
        self.metadata().map(|metadata| stat(&metadata))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(AsFd::as_fd(self))
    }

    fn share(&self, source: BorrowedFd<'_>) -> io::Result<()> {
        Ok(rustix::fs::ioctl_ficlone(self, source)?)
    }
}

/// Never through a symbolic link: whoever can plant one could have us read or overwrite what is not ours.
fn open(path: &Path, options: &mut OpenOptions) -> io::Result<Arc<dyn DiskFile>> {
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    Ok(Arc::new(options.custom_flags(nofollow).open(path)?))
}

fn stat(metadata: &fs::Metadata) -> Stat {
    Stat {
        kind: kind(metadata.file_type()),
        id: (metadata.dev(), metadata.ino()),
        len: metadata.len(),
        // POSIX counts blocks of 512 bytes, whatever the file system's own block is.
        allocated: metadata.blocks() * 512,
        modified: metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH),
    }
}

fn kind(of: fs::FileType) -> FileKind {
    match of {
        of if of.is_file() => FileKind::File,
        of if of.is_dir() => FileKind::Directory,
        of if of.is_symlink() => FileKind::Link,
        _ => FileKind::Other,
    }
}
