//! The cache directory as the operating system has it, held open. Everything below is found from its descriptor and never by
//! way of a symbolic link, wherever in a path one was planted; and the directory stays the same one if it is moved away.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Disk, DiskFile, Entry, FileKind, Planted, Stat, collected, stat};

/// A directory, and what is below it. Its own path may lead through symbolic links: who configures it may set them.
pub struct Rooted {
    path: PathBuf,
    directory: OwnedFd,
    /// Kernels since 5.6, unless a sandbox forbids it; else one component is opened after the other.
    has_openat2: bool,
}

impl Rooted {
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path) -> io::Result<Rooted> {
        let directory = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let has_openat2 = rustix::fs::openat2(&directory, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), RESOLVE).is_ok();
        Ok(Rooted { path: path.to_owned(), directory, has_openat2 })
    }

    fn relative<'a>(&self, path: &'a Path) -> io::Result<&'a Path> {
        let relative = path.strip_prefix(&self.path).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(if relative.as_os_str().is_empty() { Path::new(".") } else { relative })
    }

    /// Opens what is at a path. Nobody waits for the other end of a pipe that was planted.
    fn at(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let nonblock = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NONBLOCK };
        // Of a link in place of a directory openat2 says the truth only without it.
        let nofollow = if self.has_openat2 && flags.contains(OFlags::DIRECTORY) { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = flags | OFlags::CLOEXEC | nofollow | nonblock;
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o640) } else { Mode::empty() };
        let relative = self.relative(path)?;
        let opened = if self.has_openat2 {
            rustix::fs::openat2(&self.directory, relative, flags, mode, RESOLVE)
        } else {
            self.step_by_step(relative, flags, mode)
        };
        opened.map_err(|errno| told(errno, path))
    }

    fn step_by_step(&self, relative: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let mut components = relative.components().peekable();
        let mut directory: Option<OwnedFd> = None;
        while let Some(component) = components.next() {
            if !matches!(component, Component::Normal(_) | Component::CurDir) {
                return Err(Errno::INVAL);
            }
            let flags = if components.peek().is_some() { DIRECTORY | OFlags::NOFOLLOW } else { flags };
            let at = directory.as_ref().map_or_else(|| self.directory.as_fd(), AsFd::as_fd);
            let opened = match rustix::fs::openat(at, component.as_os_str(), flags, mode) {
                // What is said of a link where a directory is wanted.
                Err(Errno::NOTDIR) if flags.contains(OFlags::DIRECTORY) => return Err(Errno::LOOP),
                opened => opened?,
            };
            directory = Some(opened);
        }
        directory.ok_or(Errno::INVAL)
    }

    /// The directory that a path is in, and its name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a std::ffi::OsStr)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(io::ErrorKind::InvalidInput.into()) };
        Ok((self.at(parent, DIRECTORY)?, name))
    }

    fn file(&self, path: &Path, flags: OFlags) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(File::from(self.at(path, flags)?)))
    }
}

/// Neither out of the directory nor by any link.
const RESOLVE: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn kind_of(kind: FileType) -> FileKind {
    match kind {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Link,
        _ => FileKind::Other,
    }
}

fn told(errno: Errno, path: &Path) -> io::Error {
    if errno == Errno::LOOP { Planted::at(path) } else { errno.into() }
}

impl Disk for Rooted {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.file(path, OFlags::RDONLY)
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.file(path, OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC)
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.file(path, OFlags::RDWR)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((old, old_name), (new, new_name)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat(old, old_name, new, new_name)?)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        if path == self.path || self.at(path, DIRECTORY).is_ok() {
            return Ok(());
        }
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o777)) {
            // Somebody else was faster, or something else stands there.
            Err(Errno::EXIST) => self.at(path, DIRECTORY).map(drop),
            made => Ok(made?),
        }
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.at(path, OFlags::RDONLY | OFlags::DIRECTORY)?)?)
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        collected(|found| self.visit(directory, found))
    }

    fn visit(&self, directory: &Path, found: &mut dyn FnMut(Entry) -> io::Result<()>) -> io::Result<()> {
        let opened = match self.at(directory, OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            opened => opened?,
        };
        for entry in Dir::read_from(&opened)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let kind = match entry.file_type() {
                // Not every file system says.
                FileType::Unknown => FileType::from_raw_mode(rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode),
                kind => kind,
            };
            found(Entry { name: name.to_string_lossy().into_owned(), kind: kind_of(kind) })?;
        }
        Ok(())
    }

    /// Of a link, what it is and not where it leads.
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        File::from(self.at(path, OFlags::PATH)?).metadata().map(|metadata| stat(&metadata))
    }

    fn stats(&self, directory: &Path, names: &[Entry]) -> Vec<io::Result<Stat>> {
        let opened = match self.at(directory, OFlags::PATH | OFlags::DIRECTORY) {
            // Each says for itself what is wrong.
            Err(_) => return names.iter().map(|entry| self.stat(&directory.join(&entry.name))).collect(),
            Ok(opened) => opened,
        };
        let of = |entry: &Entry| {
            let found = rustix::fs::statat(&opened, &entry.name, AtFlags::SYMLINK_NOFOLLOW)?;
            let modified = Duration::new(found.st_mtime.try_into().unwrap_or_default(), found.st_mtime_nsec.try_into().unwrap_or_default());
            Ok(Stat {
                kind: kind_of(FileType::from_raw_mode(found.st_mode)),
                id: (found.st_dev, found.st_ino),
                len: found.st_size.try_into().unwrap_or_default(),
                allocated: found.st_blocks.try_into().unwrap_or(0) * 512,
                modified: SystemTime::UNIX_EPOCH + modified,
            })
        };
        names.iter().map(of).collect()
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        let space = rustix::fs::fstatvfs(&self.directory)?;
        Ok(space.f_bavail * space.f_frsize)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (parent, name) = self.parent(to)?;
        Ok(rustix::fs::linkat(CWD, from, parent, name, AtFlags::empty())?)
    }

    fn is_in_place(&self) -> bool {
        let here = fs::metadata(&self.path).map(|metadata| (metadata.dev(), metadata.ino()));
        let open = rustix::fs::fstat(&self.directory).map(|stat| (stat.st_dev, stat.st_ino));
        matches!((here, open), (Ok(here), Ok(open)) if here == open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Both ways through the directory: by openat2, and where that is forbidden.
    #[test]
    fn disk_fault_15_no_link_is_followed_with_openat2_or_without() {
        let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(elsewhere.path().join("secret"), "secret").unwrap();
        let mut disk = Rooted::open(cache.path()).unwrap();
        let path = |below: &str| cache.path().join(below);
        disk.create_dir_all(&path("a/b")).unwrap();
        disk.create(&path("a/b/own")).unwrap().write_all_at(b"own", 0).unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), path("a/link")).unwrap();
        std::os::unix::fs::symlink(elsewhere.path().join("secret"), path("a/last")).unwrap();
        let mut modes = vec![false];
        modes.extend(disk.has_openat2.then_some(true));
        for has_openat2 in modes {
            disk.has_openat2 = has_openat2;
            let planted = |tried: io::Result<()>| {
                let error = tried.expect_err("a link is followed");
                assert!(error.get_ref().is_some_and(|error| error.is::<Planted>()), "{error}");
            };
            for below in ["a/link/secret", "a/last"] {
                planted(disk.open(&path(below)).map(drop));
                planted(disk.create(&path(below)).map(drop));
                planted(disk.reopen(&path(below)).map(drop));
            }
            planted(disk.list(&path("a/link")).map(drop));
            planted(disk.create_dir_all(&path("a/link/new")));
            planted(disk.remove(&path("a/link/secret")));
            planted(disk.rename(&path("a/b/own"), &path("a/link/own")));
            planted(disk.link(&path("a/b/own"), &path("a/link/own")));
            planted(disk.stat(&path("a/link/secret")).map(drop));
            assert!(disk.open(&path("a/../../secret")).is_err() && disk.open(elsewhere.path()).is_err());
            assert_eq!(disk.stat(&path("a/b/own")).unwrap().len, 3);
            assert_eq!(disk.list(&path("a")).unwrap().len(), 3);
            assert!(disk.list(&path("none/below")).unwrap().is_empty());
            disk.create_dir_all(&path("x/y")).unwrap();
            disk.rename(&path("a/b/own"), &path("x/y/own")).unwrap();
            disk.rename(&path("x/y/own"), &path("a/b/own")).unwrap();
            assert!(disk.remove_dir(&path("x")).is_err());
            disk.remove_dir(&path("x/y")).unwrap();
        }
        assert_eq!(fs::read(elsewhere.path().join("secret")).unwrap(), b"secret");
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 1);
        assert!(disk.is_in_place());
        fs::rename(cache.path(), elsewhere.path().join("moved")).unwrap();
        assert!(!disk.is_in_place() && disk.open(&path("a/b/own")).is_ok());
        fs::rename(elsewhere.path().join("moved"), cache.path()).unwrap();
        assert!(disk.is_in_place());
    }
}
