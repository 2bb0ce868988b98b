//! The one way to read what the cache directory holds: by the names of `layout`, one level at a time. What else stands there, or cannot be
//! read, is reported once with its path and left out: it fails nobody's walk. Knows nothing of what is done with what it finds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::{self, Disk, Entry, FileKind, Planted};
use super::layout::{self, Layout, RepositoryKey};
use super::strays::Strays;
use crate::oci::{Algorithm, Digest, RepositoryName, Tag};

/// Every ext file system has one at its root.
const LOST_AND_FOUND: &str = "lost+found";

/// The walker. Every method of it that reads a directory blocks.
pub(super) struct Walk {
    disk: Arc<dyn Disk>,
    layout: Layout,
    strays: Strays,
    /// Something could not be read since somebody asked.
    is_incomplete: AtomicBool,
}

/// A directory below `refs/<upstream>/`, that one included.
pub(super) struct RefsDirectory {
    pub(super) path: PathBuf,
    /// Absent where what leads there spells no repository's name.
    pub(super) repository: Option<RepositoryKey>,
    pub(super) has_tags: bool,
    pub(super) has_manifests: bool,
    /// Records that stand in it, not in a folder of it; with those that were not finished.
    pub(super) records: Vec<PathBuf>,
}

/// A file below `partial/<upstream>/`.
pub(super) struct PartialFile {
    pub(super) path: PathBuf,
    pub(super) digest: Digest,
    /// Whether a download could go on with it.
    pub(super) is_resumable: bool,
}

/// What a name and the kind of what bears it tell.
enum Judged<T> {
    Ours(T),
    /// Ours, and another one's to read.
    Elsewhere,
    /// Not ours, because of this.
    Foreign(&'static str),
}

const NAME: &str = "its name is none that larder gives";
const KIND: &str = "it is not the kind of file that larder puts there";

impl Walk {
    pub(super) fn new(disk: Arc<dyn Disk>, layout: Layout) -> Walk {
        Walk { disk, layout, strays: Strays::default(), is_incomplete: AtomicBool::new(false) }
    }

    /// What is there cannot be read, and is left out until it can be.
    pub(super) fn unreadable(&self, path: &Path, error: &io::Error) {
        self.should_read_again();
        self.strays.unreadable(path, error);
    }

    /// Something that larder did not put there, and what tells that.
    pub(super) fn foreign(&self, path: &Path, what: &str) {
        self.strays.foreign(path, what);
    }

    /// What was read is not all there is.
    pub(super) fn should_read_again(&self) {
        self.is_incomplete.store(true, Ordering::Release);
    }

    /// Whether something could not be read since this was last asked.
    pub(super) fn take_incomplete(&self) -> bool {
        self.is_incomplete.swap(false, Ordering::AcqRel)
    }

    pub(super) fn is_incomplete(&self) -> bool {
        self.is_incomplete.load(Ordering::Acquire)
    }

    /// All of the directory was walked.
    pub(super) fn ended(&self) {
        self.strays.walked();
    }

    /// # Errors
    /// When the cache directory cannot be read, or a symbolic link stands in place of what is larder's: the lock, the index and the socket
    /// are opened by their paths.
    pub(super) fn refuse_links(&self) -> io::Result<()> {
        let root = self.layout.root();
        let entries = self.disk.list(root).map_err(|error| disk::at(root, error))?;
        let planted = entries.iter().find(|entry| entry.kind == FileKind::Link && layout::is_root_name(&entry.name));
        planted.map_or(Ok(()), |entry| Err(Planted::at(&root.join(&entry.name))))
    }

    /// Looks at what stands directly in the cache directory, and in `index/`.
    pub(super) fn root(&self) {
        let own = |entry: &Entry| match layout::is_root_name(&entry.name) || entry.name == LOST_AND_FOUND {
            true => Judged::<()>::Elsewhere,
            false => Judged::Foreign(NAME),
        };
        // What cannot be read was reported.
        let _ = self.entries(self.layout.root(), own);
        let database = |entry: &Entry| match entry.kind {
            _ if entry.name.parse::<u32>().is_err() && entry.name != "old" => Judged::Foreign(NAME),
            FileKind::Directory => Judged::<()>::Elsewhere,
            _ => Judged::Foreign(KIND),
        };
        // What is in it is sled's, and what cannot be read is begun anew.
        let _ = self.entries(&self.layout.index(), database);
    }

    /// The directories that hold blobs of an algorithm.
    pub(super) fn shelves(&self, algorithm: Algorithm) -> Vec<PathBuf> {
        let blobs = self.layout.blobs();
        let of_algorithm = |entry: &Entry| match Algorithm::ALL.iter().any(|algorithm| algorithm.as_str() == entry.name) {
            true if entry.is_dir() => Judged::<()>::Elsewhere,
            true => Judged::Foreign(KIND),
            false => Judged::Foreign(NAME),
        };
        let _ = self.entries(&blobs, of_algorithm);
        let directory = blobs.join(algorithm.as_str());
        let shelf = |entry: &Entry| named(layout::is_shelf(&entry.name).then(|| directory.join(&entry.name)), entry.is_dir());
        self.entries(&directory, shelf).unwrap_or_default()
    }

    /// What bears the name of a blob in one of these directories, of whatever kind it is: what is no file is damage.
    ///
    /// # Errors
    /// When the directory cannot be read, which was reported.
    pub(super) fn shelf(&self, algorithm: Algorithm, shelf: &Path) -> io::Result<Vec<Entry>> {
        self.entries(shelf, |entry| named(Digest::from_parts(algorithm.as_str(), &entry.name).ok().map(|_| entry.clone()), true))
    }

    /// The upstreams that have a directory in `refs/` or `partial/`.
    ///
    /// # Errors
    /// When the directory cannot be read, which was reported.
    pub(super) fn upstreams(&self, folder: &Path) -> io::Result<Vec<Arc<str>>> {
        self.entries(folder, |entry| named(layout::is_upstream(&entry.name).then(|| entry.name.as_str().into()), entry.is_dir()))
    }

    /// What downloads from an upstream have left.
    pub(super) fn partials(&self, upstream: &str) -> Vec<PartialFile> {
        let directory = self.layout.partials().join(upstream);
        let partial = |entry: &Entry| {
            let of = layout::partial_of(&entry.name);
            let file = of.map(|(digest, is_resumable)| PartialFile { path: directory.join(&entry.name), digest, is_resumable });
            named(file, entry.kind == FileKind::File)
        };
        self.entries(&directory, partial).unwrap_or_default()
    }

    /// What was put aside.
    pub(super) fn quarantined(&self) -> Vec<Digest> {
        // Of whatever kind: what stood in place of a blob came here as it was.
        self.entries(&self.layout.quarantine(), |entry| named(layout::digest_of(&entry.name), true)).unwrap_or_default()
    }

    /// Calls `found` for every blob that an upstream has confirmed.
    ///
    /// # Errors
    /// Those of `found`.
    pub(super) fn confirmations(&self, upstream: &str, found: &mut dyn FnMut(Digest) -> io::Result<()>) -> io::Result<()> {
        let directory = self.layout.confirmations(upstream);
        let mut stopped = Ok(());
        let visited = self.disk.visit(&directory, &mut |entry| {
            let Some(digest) = self.judge(&directory, &entry, named(layout::digest_of(&entry.name), entry.kind == FileKind::File)) else {
                return Ok(());
            };
            stopped = found(digest);
            stopped.as_ref().map_err(|error| error.kind().into()).copied()
        });
        stopped?;
        // What cannot be read was reported.
        let _ = self.checked(&directory, visited, ());
        Ok(())
    }

    /// Calls `found` for every directory of an upstream's records.
    ///
    /// # Errors
    /// Those of `found`.
    pub(super) fn refs(&self, upstream: &Arc<str>, found: &mut dyn FnMut(RefsDirectory) -> io::Result<()>) -> io::Result<()> {
        let mut names = vec![String::new()];
        while let Some(name) = names.pop() {
            let path = self.layout.refs().join(&**upstream).join(&name);
            let repository = name.parse().ok().map(|name| RepositoryKey { upstream: Arc::clone(upstream), name });
            let mut directory = RefsDirectory { path, repository, has_tags: false, has_manifests: false, records: Vec::new() };
            let below = |entry: &Entry| {
                let of = (below_refs(entry, name.is_empty()), entry.is_dir());
                match of {
                    (Some(BelowRefs::Confirmations), true) => Judged::Elsewhere,
                    (Some(BelowRefs::Record), false) if entry.kind == FileKind::File => {
                        Judged::Ours((BelowRefs::Record, entry.name.clone()))
                    }
                    (Some(found @ (BelowRefs::Tags | BelowRefs::Manifests | BelowRefs::Component)), true) => {
                        Judged::Ours((found, entry.name.clone()))
                    }
                    (Some(_), _) => Judged::Foreign(KIND),
                    (None, _) => Judged::Foreign(NAME),
                }
            };
            for (found, entry) in self.entries(&directory.path, below).unwrap_or_default() {
                match found {
                    BelowRefs::Tags => directory.has_tags = true,
                    BelowRefs::Manifests => directory.has_manifests = true,
                    BelowRefs::Record => directory.records.push(directory.path.join(entry)),
                    BelowRefs::Component if name.is_empty() => names.push(entry),
                    BelowRefs::Component => names.push(format!("{name}/{entry}")),
                    BelowRefs::Confirmations => {}
                }
            }
            found(directory)?;
        }
        Ok(())
    }

    /// The names of the files in a repository's folder of tags; with those that were not finished.
    ///
    /// # Errors
    /// When the folder cannot be read, which was reported.
    pub(super) fn tags(&self, repository: &RepositoryKey) -> io::Result<Vec<String>> {
        self.records(&self.layout.tags(repository), |name| name.parse::<Tag>().is_ok())
    }

    /// The same of its folder of manifests.
    ///
    /// # Errors
    /// As [`Walk::tags`].
    pub(super) fn manifests(&self, repository: &RepositoryKey) -> io::Result<Vec<String>> {
        self.records(&self.layout.manifest_refs(repository), |name| layout::digest_of(name).is_some())
    }

    fn records(&self, directory: &Path, is_ours: impl Fn(&str) -> bool) -> io::Result<Vec<String>> {
        let is_ours = |name: &str| is_ours(name.strip_suffix('~').unwrap_or(name));
        self.entries(directory, |entry| named(is_ours(&entry.name).then(|| entry.name.clone()), entry.kind == FileKind::File))
    }

    /// What of a directory's entries is ours.
    ///
    /// # Errors
    /// When it cannot be read, which was reported.
    fn entries<T>(&self, directory: &Path, judge: impl Fn(&Entry) -> Judged<T>) -> io::Result<Vec<T>> {
        let listed = self.disk.list(directory);
        let entries = self.checked(directory, listed, Vec::new())?;
        Ok(entries.iter().filter_map(|entry| self.judge(directory, entry, judge(entry))).collect())
    }

    fn judge<T>(&self, directory: &Path, entry: &Entry, judged: Judged<T>) -> Option<T> {
        match judged {
            Judged::Ours(ours) => return Some(ours),
            Judged::Elsewhere => {}
            Judged::Foreign(what) => self.foreign(&directory.join(&entry.name), what),
        }
        None
    }

    /// What came of reading a directory. One in whose place something else stands holds nothing.
    fn checked<T>(&self, directory: &Path, read: io::Result<T>, nothing: T) -> io::Result<T> {
        read.or_else(|error| {
            if disk::is_obstructed(&error) {
                self.foreign(disk::obstacle(directory, &error), &error.to_string());
                return Ok(nothing);
            }
            self.unreadable(directory, &error);
            Err(disk::at(directory, error))
        })
    }
}

/// What an entry of a directory below `refs/<upstream>/` can be by its name.
#[derive(Clone, Copy)]
enum BelowRefs {
    Confirmations,
    Tags,
    Manifests,
    Record,
    /// Of a repository's name.
    Component,
}

fn below_refs(entry: &Entry, is_upstream: bool) -> Option<BelowRefs> {
    match entry.name.as_str() {
        layout::CONFIRMATIONS if is_upstream => Some(BelowRefs::Confirmations),
        layout::TAGS if !is_upstream => Some(BelowRefs::Tags),
        layout::MANIFESTS if !is_upstream => Some(BelowRefs::Manifests),
        name if !is_upstream && layout::is_own_record(name.strip_suffix('~').unwrap_or(name)) => Some(BelowRefs::Record),
        // What stands in a directory is one component.
        name => name.parse::<RepositoryName>().is_ok().then_some(BelowRefs::Component),
    }
}

/// What bears a name of ours, if it is also of our kind.
fn named<T>(ours: Option<T>, is_our_kind: bool) -> Judged<T> {
    match ours {
        Some(ours) if is_our_kind => Judged::Ours(ours),
        Some(_) => Judged::Foreign(KIND),
        None => Judged::Foreign(NAME),
    }
}
