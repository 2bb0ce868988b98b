//! A disk in RAM that forgets what was not synced when its plug is pulled. What a file had at its last `fsync` stays; what
//! came since is there, torn, zeros or not there. Names come and go in a directory when it is synced, and until then each
//! directory by itself may have seen all, some or none of its changes.

use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use larder::store::disk::{Disk, DiskFile, Entry, FileKind, Stat};
use rustix::io::Errno;

/// What is torn off or not, together.
const SECTOR: usize = 512;
const BLOCK: u64 = 4096;
const ROOT: usize = 0;

/// What pulling the plug does to the changes of a directory.
#[derive(Clone, Copy, Debug)]
pub enum Order {
    /// The first of them are there, as a journal has it.
    Kept,
    /// Any of them.
    Lost,
}

/// A disk; clones are the same one.
#[derive(Clone)]
pub struct PowerDisk {
    root: PathBuf,
    state: Arc<Mutex<State>>,
}

#[derive(Clone)]
struct State {
    nodes: Vec<Node>,
    operations: usize,
    /// Operations that are yet to be done before the plug is pulled.
    left: Option<usize>,
}

#[derive(Clone)]
enum Node {
    File { bytes: Vec<u8>, synced: Vec<u8>, is_dirty: bool },
    Directory { names: Names, synced: Names, pending: Vec<Change> },
}

type Names = BTreeMap<String, usize>;

/// What was done to a directory and not synced. A rename within one is one change, between two it is two.
#[derive(Clone)]
enum Change {
    Put(String, usize),
    Take(String),
    Move(String, String, usize),
}

impl Change {
    fn apply(&self, names: &mut Names) {
        match self {
            Change::Put(name, node) => drop(names.insert(name.clone(), *node)),
            Change::Take(name) => drop(names.remove(name)),
            Change::Move(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

fn empty_directory() -> Node {
    Node::Directory { names: Names::new(), synced: Names::new(), pending: Vec::new() }
}

impl State {
    fn attempt(&mut self) -> io::Result<()> {
        self.operations += 1;
        match self.left.as_mut() {
            Some(0) => return Err(Errno::IO.into()),
            Some(left) => *left -= 1,
            None => {}
        }
        Ok(())
    }

    fn names(&self, node: usize) -> io::Result<&Names> {
        match &self.nodes[node] {
            Node::Directory { names, .. } => Ok(names),
            Node::File { .. } => Err(Errno::NOTDIR.into()),
        }
    }

    fn find(&self, path: &[String]) -> io::Result<usize> {
        path.iter().try_fold(ROOT, |node, name| self.names(node)?.get(name).copied().ok_or_else(|| Errno::NOENT.into()))
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn change(&mut self, directory: usize, change: Change) {
        if let Node::Directory { names, pending, .. } = &mut self.nodes[directory] {
            change.apply(names);
            pending.push(change);
        }
    }

    fn walk(&self, node: usize, path: &Path, found: &mut impl FnMut(&Path, usize, &Node)) {
        found(path, node, &self.nodes[node]);
        if let Node::Directory { names, .. } = &self.nodes[node] {
            names.iter().for_each(|(name, node)| self.walk(*node, &path.join(name), found));
        }
    }
}

impl PowerDisk {
    /// An empty one whose root is this directory.
    pub fn new(root: &Path) -> PowerDisk {
        let state = State { nodes: vec![empty_directory()], operations: 0, left: None };
        PowerDisk { root: root.to_owned(), state: Arc::new(Mutex::new(state)) }
    }

    /// After so many operations more nothing is done any more.
    pub fn pull_the_plug_after(&self, operations: usize) {
        self.state().left = Some(operations);
    }

    pub fn is_dead(&self) -> bool {
        self.state().left == Some(0)
    }

    /// Operations so far.
    pub fn operations(&self) -> usize {
        self.state().operations
    }

    /// As `syncfs` does.
    pub fn sync_all(&self) {
        for node in &mut self.state().nodes {
            match node {
                Node::File { bytes, synced, is_dirty } => (*synced, *is_dirty) = (bytes.clone(), false),
                Node::Directory { names, synced, pending } => {
                    synced.clone_from(names);
                    pending.clear();
                }
            }
        }
    }

    /// What is found when the power is back.
    pub fn after_power_cut(&self, rng: &mut fastrand::Rng, order: Order) -> PowerDisk {
        let mut state = self.state().clone();
        for node in &mut state.nodes {
            match node {
                Node::File { bytes, synced, is_dirty } => {
                    if *is_dirty {
                        *bytes = torn(rng, bytes, synced);
                    }
                    (*synced, *is_dirty) = (bytes.clone(), false);
                }
                Node::Directory { names, synced, pending } => {
                    let kept = rng.usize(..=pending.len());
                    names.clone_from(synced);
                    for (at, change) in pending.drain(..).enumerate() {
                        if if let Order::Kept = order { at < kept } else { rng.bool() } {
                            change.apply(names);
                        }
                    }
                    synced.clone_from(names);
                }
            }
        }
        (state.left, state.operations) = (None, 0);
        PowerDisk { root: self.root.clone(), state: Arc::new(Mutex::new(state)) }
    }

    /// Every file below a folder: its path from the root, its inode and its bytes.
    pub fn files(&self, below: &str) -> Vec<(PathBuf, usize, Vec<u8>)> {
        let mut found = Vec::new();
        let state = self.state();
        state.walk(ROOT, Path::new(""), &mut |path, node, content| {
            if let Node::File { bytes, .. } = content
                && path.starts_with(below)
            {
                found.push((path.to_owned(), node, bytes.clone()));
            }
        });
        found
    }

    /// What all below these folders occupies.
    pub fn allocated(&self, folders: &[&str]) -> u64 {
        let mut sum = 0;
        self.state().walk(ROOT, Path::new(""), &mut |path, _, node| {
            if folders.iter().any(|folder| path.starts_with(folder)) {
                sum += allocated(node);
            }
        });
        sum
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// The names below the root that lead there.
    fn below(&self, path: &Path) -> io::Result<Vec<String>> {
        let Ok(rest) = path.strip_prefix(&self.root) else {
            // What is above the root is there.
            return if self.root.starts_with(path) { Ok(Vec::new()) } else { Err(Errno::NOENT.into()) };
        };
        let name = |component: Component<'_>| component.as_os_str().to_string_lossy().into_owned();
        Ok(rest.components().map(name).collect())
    }

    /// Where a name stands: its directory and itself.
    fn place(&self, path: &Path) -> io::Result<(Vec<String>, String)> {
        let mut names = self.below(path)?;
        let name = names.pop().ok_or(Errno::ISDIR)?;
        Ok((names, name))
    }

    fn open_node(&self, node: usize) -> Arc<dyn DiskFile> {
        Arc::new(PowerFile { disk: self.clone(), node })
    }
}

/// What is left of bytes that were not synced.
fn torn(rng: &mut fastrand::Rng, bytes: &[u8], synced: &[u8]) -> Vec<u8> {
    let common = bytes.iter().zip(synced).take_while(|(now, then)| now == then).count();
    let sectors = (bytes.len() - common).div_ceil(SECTOR);
    let end = (common + rng.usize(..=sectors) * SECTOR).min(bytes.len());
    match rng.u8(..5) {
        0 => synced.to_vec(),
        1 => bytes.to_vec(),
        // The length was written down, and not the bytes.
        2 => [&bytes[..end], &vec![0; bytes.len() - end]].concat(),
        3 if synced.is_empty() => Vec::new(),
        _ => bytes[..end].to_vec(),
    }
}

fn allocated(node: &Node) -> u64 {
    match node {
        Node::File { bytes, .. } => (bytes.len() as u64).div_ceil(BLOCK) * BLOCK,
        Node::Directory { .. } => BLOCK,
    }
}

fn stat(number: usize, node: &Node) -> Stat {
    let (kind, len) = if let Node::File { bytes, .. } = node { (FileKind::File, bytes.len() as u64) } else { (FileKind::Directory, BLOCK) };
    Stat { kind, id: (0, number as u64), len, allocated: allocated(node), modified: SystemTime::UNIX_EPOCH }
}

impl Disk for PowerDisk {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.attempt()?;
        let node = state.find(&self.below(path)?)?;
        match &state.nodes[node] {
            Node::File { .. } => Ok(self.open_node(node)),
            Node::Directory { .. } => Err(Errno::ISDIR.into()),
        }
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state();
        state.attempt()?;
        let (directory, name) = self.place(path)?;
        let directory = state.find(&directory)?;
        if let Some(node) = state.names(directory)?.get(&name).copied() {
            let Node::File { bytes, is_dirty, .. } = &mut state.nodes[node] else { return Err(Errno::ISDIR.into()) };
            bytes.clear();
            *is_dirty = true;
            return Ok(self.open_node(node));
        }
        let node = state.add(Node::File { bytes: Vec::new(), synced: Vec::new(), is_dirty: false });
        state.change(directory, Change::Put(name, node));
        Ok(self.open_node(node))
    }

    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.attempt()?;
        let ((from, old), (to, new)) = (self.place(from)?, self.place(to)?);
        let (from, to) = (state.find(&from)?, state.find(&to)?);
        let node = state.names(from)?.get(&old).copied().ok_or(Errno::NOENT)?;
        if from == to {
            state.change(from, Change::Move(old, new, node));
        } else {
            state.change(to, Change::Put(new, node));
            state.change(from, Change::Take(old));
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.attempt()?;
        let (directory, name) = self.place(path)?;
        let directory = state.find(&directory)?;
        state.names(directory)?.get(&name).ok_or(Errno::NOENT)?;
        state.change(directory, Change::Take(name));
        Ok(())
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.attempt()?;
        let mut node = ROOT;
        for name in self.below(path)? {
            node = match state.names(node)?.get(&name).copied() {
                Some(node) => node,
                None => {
                    let new = state.add(empty_directory());
                    state.change(node, Change::Put(name, new));
                    new
                }
            };
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.attempt()?;
        if !path.starts_with(&self.root) {
            return Ok(());
        }
        let node = state.find(&self.below(path)?)?;
        if let Node::Directory { names, synced, pending } = &mut state.nodes[node] {
            synced.clone_from(names);
            pending.clear();
        }
        Ok(())
    }

    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.state();
        state.attempt()?;
        let node = match self.below(directory).and_then(|path| state.find(&path)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            found => found?,
        };
        let kind = |node: usize| if let Node::File { .. } = state.nodes[node] { FileKind::File } else { FileKind::Directory };
        Ok(state.names(node)?.iter().map(|(name, node)| Entry { name: name.clone(), kind: kind(*node) }).collect())
    }

    fn stat(&self, path: &Path) -> io::Result<Stat> {
        let mut state = self.state();
        state.attempt()?;
        let node = state.find(&self.below(path)?)?;
        Ok(stat(node, &state.nodes[node]))
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        self.state().attempt().map(|()| 1 << 40)
    }
}

struct PowerFile {
    disk: PowerDisk,
    node: usize,
}

impl DiskFile for PowerFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.disk.state();
        state.attempt()?;
        let Node::File { bytes, .. } = &state.nodes[self.node] else { return Err(Errno::ISDIR.into()) };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
        let count = buffer.len().min(bytes.len() - start);
        buffer[..count].copy_from_slice(&bytes[start..start + count]);
        Ok(count)
    }

    fn read_now(&self, _buffer: &mut [u8], _offset: u64) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn write_all_at(&self, new: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.attempt()?;
        let Node::File { bytes, is_dirty, .. } = &mut state.nodes[self.node] else { return Err(Errno::ISDIR.into()) };
        let start = usize::try_from(offset).expect("small");
        bytes.resize(bytes.len().max(start + new.len()), 0);
        bytes[start..start + new.len()].copy_from_slice(new);
        *is_dirty = true;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        state.attempt()?;
        if let Node::File { bytes, synced, is_dirty } = &mut state.nodes[self.node] {
            (*synced, *is_dirty) = (bytes.clone(), false);
        }
        Ok(())
    }

    fn stat(&self) -> io::Result<Stat> {
        let mut state = self.disk.state();
        state.attempt()?;
        Ok(stat(self.node, &state.nodes[self.node]))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
