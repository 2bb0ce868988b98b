//! What is on disk. `blobs/` and `refs/` are the truth (`layout` draws the tree); what is in RAM or in the index can be
//! made again from them. Knows no upstream and no HTTP.

mod audit;
mod blobs;
mod buffer;
pub mod disk;
mod evict;
mod explain;
mod files;
mod hash;
mod health;
mod hints;
mod import;
pub mod index;
mod inventory;
mod layout;
mod links;
mod lock;
mod manifests;
mod names;
mod partial;
mod pins;
mod purge;
mod quarantine;
mod records;
mod recover;
mod refs;
mod ring;
mod room;
#[cfg(test)]
mod scale_tests;
mod scrub;
mod socket;
mod strays;
mod tail;
mod trust;
mod upkeep;
mod uptime;
mod verify;
mod walk;

pub use blobs::{Blob, FileReader};
pub use buffer::CHUNK;
pub use explain::{Holding, Keeps, Place};
pub use hash::{Mismatch, Verified, Verifier};
pub use health::Trouble;
pub use import::{BlobError, Way};
pub use inventory::{Held, Inventory, Next};
pub use layout::{Layout, RepositoryKey};
pub use links::Link;
pub use lock::LockError;
pub use partial::PartialBlob;
pub use pins::Pin;
pub use purge::{Purged, Selected, What, Wildcard};
pub use refs::TagRecord;
pub use socket::{control_path, is_cache};
pub use tail::{HOLD_BACK, Lost, Phase, Progress, Tail, TailReader, Unreadable};
pub use trust::Vouched;
pub use uptime::DaemonTime;
pub use verify::{Progress as VerifyProgress, Report};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use bytes::Bytes;
use moka::sync::Cache;

use crate::clock::Clock;
use crate::config::VerifyOnRead;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::oci::{Digest, KIB};
use crate::task::Supervisor;
use blobs::{Content, Lease};
use buffer::Buffers;
use disk::Disk;
use evict::{Item, Ledger};
use health::Health;
use hints::Hints;
use index::Index;
use links::Links;
use lock::{DirectoryLock, Sizes};
use partial::Writing;
use pins::Pins;
use quarantine::Quarantine;
use records::Records;
use recover::Loading;
use refs::Refs;
use trust::Trust;
use uptime::Uptime;
use walk::Walk;

/// Blobs of at most so many bytes are kept in RAM once read: image configurations, not layers.
const SMALL_BLOB_BYTES_MAX: u64 = 64 * KIB;
/// An image that was used a moment ago need not be moved to the front again.
const TOUCH_INTERVAL: Duration = Duration::from_secs(1);

/// A cache directory, open and locked.
pub struct Store {
    disk: Arc<dyn Disk>,
    gate: Gate,
    clock: Clock,
    metrics: Arc<Metrics>,
    layout: Layout,
    walk: Arc<Walk>,
    refs: Refs,
    records: Arc<Records>,
    uptime: Uptime,
    max_blob_size: u64,
    min_free: u64,
    evict_unused_after: Duration,
    /// When the disk's free space was last asked for, and the size of the cache at which `min_free` of it is left.
    space: Mutex<Option<(Duration, u64)>>,
    /// What fills have written of what they were promised.
    written: AtomicU64,
    pins: Mutex<Pins>,
    ledger: Arc<Mutex<Ledger>>,
    links: RwLock<Links>,
    index: Index,
    hints: Hints,
    memory: Cache<Digest, Bytes>,
    buffers: Buffers,
    writing: Writing,
    health: Health,
    /// Held while a blob's file comes or goes, so that an eviction can't unlink what was just put in its place. Blocks;
    /// only for work behind the gate.
    files: Mutex<()>,
    lock: DirectoryLock,
    trust: Trust,
    quarantine: Quarantine,
    loading: Loading,
    tasks: Supervisor,
}

/// What `Store::open` needs to know.
pub struct Options {
    pub path: PathBuf,
    /// Allocated bytes.
    pub max_size: u64,
    /// Bytes of the disk that stay free, whoever else writes to it.
    pub min_free: u64,
    /// Daemon time; zero is never.
    pub evict_unused_after: Duration,
    pub pins: Vec<Pin>,
    /// Bytes.
    pub max_blob_size: u64,
    /// Bytes.
    pub memory_cache_size: u64,
    pub verify_on_read: VerifyOnRead,
    /// Upstreams whose content is not everybody's.
    pub private_upstreams: HashSet<Arc<str>>,
}

/// Why the cache did not do what was asked. Never a reason to fail a pull that upstream can answer (invariant 9).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no room: everything else is in use")]
    Full,
    #[error("no room as far as is known: the cache directory is still being read")]
    Loading,
    #[error("larger than cache.max_blob_size")]
    TooLarge,
    #[error("{operation} {path}: {source}")]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{digest} was to be committed with {len} bytes that are not verified")]
    Incomplete { digest: Digest, len: u64 },
}

/// Why a cache directory cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Locked(#[from] LockError),
    #[error("the cache directory {path} is unusable: {source}")]
    Unusable { path: PathBuf, source: io::Error },
}

impl Store {
    /// Locks the directory and begins to read what it holds; see [`Store::loaded`]. Blocks, for a second or so at most.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be read or written.
    pub fn open(options: Options, disk: Arc<dyn Disk>, gate: Gate, clock: Clock, metrics: Arc<Metrics>) -> Result<Arc<Store>, OpenError> {
        let unusable = |source| OpenError::Unusable { path: options.path.clone(), source };
        let layout = Layout::new(&options.path);
        let new = disk.stat(&layout.blobs()).is_err();
        disk::create_root(&*disk, layout.root(), new).map_err(unusable)?;
        let disk = disk.rooted(layout.root()).map_err(unusable)?.unwrap_or(disk);
        let walk = Arc::new(Walk::new(Arc::clone(&disk), layout.clone()));
        walk.refuse_links().map_err(unusable)?;
        // First: a process that has the directory may have lost all that was in it.
        let lock = DirectoryLock::take(&layout, new)?;
        walk.root();
        for directory in [layout.blobs(), layout.refs(), layout.partials(), layout.quarantine()] {
            disk.create_dir_all(&directory).map_err(|error| unusable(disk::at(&directory, error)))?;
        }
        disk::sync_names(&*disk, layout.root());
        let tasks = Supervisor::new(metrics.task_panics.clone());
        let index = Index::open(&layout.index(), &tasks).map_err(unusable)?;
        let was_killed = lock.last_sizes.is_none();
        let (uptime, last_stop) = Uptime::start(clock.clone(), Arc::clone(&disk), layout.uptime(), was_killed);
        let begun = uptime.now();
        let mut ledger = Ledger::new(options.max_size);
        let (records, names) = (Arc::new(Records::new(Arc::clone(&disk), ledger.others())), ledger.names());
        // It has never been more.
        let sizes = lock.last_sizes.unwrap_or(Sizes { blobs: options.max_size, others: 0 });
        ledger.begin_loading(sizes.blobs);
        records.begin_loading(sizes.others);
        let mut links = Links::with_names(names, options.private_upstreams);
        links.set_loading(true);
        let trust = Trust::new(options.verify_on_read, lock.marks().doubt, metrics.task_panics.clone());
        let store = Store {
            refs: Refs::new(Arc::clone(&disk), Arc::clone(&records), Arc::clone(&walk), layout.clone()),
            walk,
            records,
            uptime,
            min_free: options.min_free,
            evict_unused_after: options.evict_unused_after,
            space: Mutex::new(None),
            written: AtomicU64::new(0),
            pins: Mutex::new(Pins::new(options.pins)),
            ledger: Arc::new(Mutex::new(ledger)),
            links: RwLock::new(links),
            memory: Cache::builder()
                .weigher(|_, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                .max_capacity(options.memory_cache_size)
                .build(),
            max_blob_size: options.max_blob_size,
            buffers: Buffers::default(),
            writing: Writing::default(),
            health: Health::new(&*disk, &layout),
            files: Mutex::new(()),
            disk,
            gate,
            clock,
            metrics,
            layout,
            index,
            hints: Hints::default(),
            trust,
            quarantine: Quarantine::new(options.max_size),
            loading: Loading::new(begun, last_stop),
            lock,
            tasks,
        };
        let store = Arc::new(store);
        store.bounds(true);
        store.metrics.cache_limit.set(i64::try_from(options.max_size).unwrap_or(i64::MAX));
        store.metrics.cache_writable.set(1);
        if let Some(at) = store.lock.marks().examined_at {
            store.metrics.scrubbed(at);
        }
        recover::start(&store).map_err(unusable)?;
        Ok(store)
    }

    /// What looks after the store's own threads, and whatever else works in the background on it.
    pub fn tasks(&self) -> &Supervisor {
        &self.tasks
    }

    /// Opens a blob for reading; `None` when it is not held. What the caller may serve it for is [`Store::link`]'s to say.
    ///
    /// # Errors
    /// When it is held but cannot be read; it is then held no longer.
    pub async fn blob(self: &Arc<Store>, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        let Some(lease) = Lease::take(&self.ledger, *digest) else { return Ok(None) };
        self.touch(digest);
        if let Some(bytes) = self.memory.get(digest) {
            return Ok(Some(Blob {
                digest: *digest,
                len: bytes.len() as u64,
                content: Content::Memory(bytes),
                store: Arc::clone(self),
                _lease: lease,
            }));
        }
        let (store, digest) = (Arc::clone(self), *digest);
        self.gate.run(move || store.open_blob(digest, lease)).await
    }

    fn open_blob(self: &Arc<Store>, digest: Digest, lease: Lease) -> Result<Option<Blob>, StoreError> {
        let path = self.layout.blob(&digest);
        let open = || -> io::Result<(u64, Content)> {
            let file = self.disk.open(&path)?;
            let len = file.stat()?.len;
            if len > SMALL_BLOB_BYTES_MAX {
                let reader = FileReader { file, gate: self.gate.clone(), buffers: self.buffers.clone() };
                return Ok((len, Content::File(reader)));
            }
            let bytes = Bytes::from(disk::read_exact(&*file, usize::try_from(len).unwrap_or_default())?);
            // It is read once and served from RAM ever after; to hash it costs less than the read.
            check(&digest, &bytes)?;
            self.memory.insert(digest, bytes.clone());
            Ok((len, Content::Memory(bytes)))
        };
        match open() {
            Ok((len, content)) => Ok(Some(Blob { digest, len, content, store: Arc::clone(self), _lease: lease })),
            Err(error) => {
                drop(lease);
                let damaged = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData);
                self.metrics.read_failed(if damaged { "corrupt" } else { "io" });
                if !health::says_nothing_of_the_file(&error) {
                    self.quarantine(&digest);
                }
                if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(io_error("open", &path, error)) }
            }
        }
    }

    /// Whether a digest's bytes are held.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.ledger().contains(&Item::Stored(*digest))
    }

    fn touch(&self, digest: &Digest) {
        let now = self.uptime.now();
        self.ledger().touch(&Item::Stored(*digest), now);
    }

    /// What a repository's manifests say about a digest.
    pub fn link(&self, repository: &RepositoryKey, digest: &Digest) -> Link {
        self.links().link(repository, digest)
    }

    /// An upstream has answered for a blob. Blocks.
    pub fn confirm(&self, upstream: &Arc<str>, digest: &Digest) {
        self.links_mut().confirm(upstream, *digest);
        if let Err(error) = self.refs.add_confirmation(upstream, digest) {
            tracing::warn!(%upstream, %digest, %error, "a confirmation was not written; upstream will be asked again after a restart");
        }
    }

    /// Begins to store a blob, in place of any partial of it.
    ///
    /// # Errors
    /// When it is too large, there is no room, or the disk fails.
    pub async fn begin(self: &Arc<Store>, upstream: &Arc<str>, digest: &Digest, size: Option<u64>) -> Result<PartialBlob, StoreError> {
        if size.is_some_and(|size| size > self.max_blob_size) {
            return Err(StoreError::TooLarge);
        }
        let (store, upstream, digest) = (Arc::clone(self), Arc::clone(upstream), *digest);
        self.gate.run(move || PartialBlob::create(&store, &upstream, &digest, size)).await
    }

    /// Goes on with an interrupted download: what its file holds, hashed again. `None` when there is none.
    pub async fn resume(self: &Arc<Store>, upstream: &Arc<str>, digest: &Digest) -> Option<(PartialBlob, Verifier)> {
        if !self.ledger().contains(&Item::Partial(Arc::clone(upstream), *digest)) {
            return None;
        }
        let (store, upstream, digest) = (Arc::clone(self), Arc::clone(upstream), *digest);
        self.gate.run(move || PartialBlob::resume(&store, &upstream, &digest)).await
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock()
    }

    fn links(&self) -> RwLockReadGuard<'_, Links> {
        self.links.read()
    }

    fn links_mut(&self) -> RwLockWriteGuard<'_, Links> {
        self.links.write()
    }
}

fn check(digest: &Digest, bytes: &[u8]) -> io::Result<()> {
    if Digest::of(digest.algorithm(), bytes) == *digest {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the file's bytes are not those of its name"))
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.to_owned(), source }
}
