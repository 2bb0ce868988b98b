//! What is on disk. `blobs/` and `refs/` are the truth (`layout` draws the tree); what is in RAM or in the index can be
//! made again from them. Knows no upstream and no HTTP.

mod blobs;
mod buffer;
pub mod disk;
mod evict;
mod index;
mod layout;
mod links;
mod lock;
mod partial;
mod recover;
mod refs;
mod tail;

pub use blobs::{Blob, FileReader};
pub use buffer::CHUNK;
pub use layout::{Layout, RepositoryKey};
pub use links::Link;
pub use lock::LockError;
pub use partial::{Mismatch, PartialBlob, Verified, Verifier};
pub use refs::TagRecord;
pub use tail::{HOLD_BACK, Phase, Progress, Tail, TailReader};

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use moka::sync::Cache;

use crate::clock::Clock;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::oci::{Digest, KIB, MANIFEST_BYTES_MAX, Manifest, MediaType, Tag};
use blobs::{Content, Lease};
use buffer::Buffers;
use disk::{Disk, DiskFile};
use evict::{Item, Ledger};
use index::{Index, Record};
use links::Links;
use lock::DirectoryLock;
use refs::Refs;

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
    refs: Refs,
    max_blob_size: u64,
    ledger: Arc<Mutex<Ledger>>,
    links: RwLock<Links>,
    index: Index,
    memory: Cache<Digest, Bytes>,
    buffers: Buffers,
    /// Numbers the temporary files of manifests.
    manifest_copies: AtomicU64,
    /// Held while a blob's file comes or goes, so that an eviction can't unlink what was just put in its place. Blocks;
    /// only for work behind the gate.
    files: Mutex<()>,
    lock: DirectoryLock,
}

/// What `Store::open` needs to know.
pub struct Options {
    pub path: PathBuf,
    /// Allocated bytes.
    pub max_size: u64,
    /// Bytes.
    pub max_blob_size: u64,
    /// Bytes.
    pub memory_cache_size: u64,
    /// Upstreams whose content is not everybody's.
    pub private_upstreams: HashSet<Arc<str>>,
}

/// Why the cache did not do what was asked. Never a reason to fail a pull that upstream can answer (invariant 9).
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no room: everything else is in use")]
    Full,
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
    /// Locks the directory, reads what it holds, and brings it under `max_size`. Blocks.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be read or written.
    pub fn open(options: Options, disk: Arc<dyn Disk>, gate: Gate, clock: Clock, metrics: Arc<Metrics>) -> Result<Arc<Store>, OpenError> {
        let unusable = |source| OpenError::Unusable { path: options.path.clone(), source };
        let layout = Layout::new(&options.path);
        for directory in [layout.blobs(), layout.refs(), layout.partials(), layout.quarantine()] {
            disk.create_dir_all(&directory).map_err(unusable)?;
        }
        let lock = DirectoryLock::take(&layout)?;
        let (index, records) = Index::open(&layout.index()).map_err(unusable)?;
        let store = Store {
            refs: Refs::new(Arc::clone(&disk), layout.clone()),
            ledger: Arc::new(Mutex::new(Ledger::new(options.max_size))),
            links: RwLock::new(Links::new(options.private_upstreams)),
            memory: Cache::builder()
                .weigher(|_, bytes: &Bytes| u32::try_from(bytes.len()).unwrap_or(u32::MAX))
                .max_capacity(options.memory_cache_size)
                .build(),
            max_blob_size: options.max_blob_size,
            buffers: Buffers::default(),
            manifest_copies: AtomicU64::new(0),
            files: Mutex::new(()),
            disk,
            gate,
            clock,
            metrics,
            layout,
            index,
            lock,
        };
        recover::recover(&store, records).map_err(unusable)?;
        store.metrics.cache_limit.set(i64::try_from(options.max_size).unwrap_or(i64::MAX));
        store.metrics.cache_writable.set(1);
        store.observe();
        Ok(Arc::new(store))
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
            self.memory.insert(digest, bytes.clone());
            Ok((len, Content::Memory(bytes)))
        };
        match open() {
            Ok((len, content)) => Ok(Some(Blob { digest, len, content, store: Arc::clone(self), _lease: lease })),
            Err(error) => {
                drop(lease);
                self.metrics.read_failed(if error.kind() == io::ErrorKind::NotFound { "corrupt" } else { "io" });
                self.quarantine(&digest);
                if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(io_error("open", &path, error)) }
            }
        }
    }

    /// The bytes of a stored manifest; `None` when they are not held.
    ///
    /// # Errors
    /// As [`Store::blob`].
    pub async fn manifest(self: &Arc<Store>, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = self.memory.get(digest) {
            return Ok(Some(bytes));
        }
        let Some(blob) = self.blob(digest).await? else { return Ok(None) };
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.len().min(MANIFEST_BYTES_MAX) {
            let rest = bytes.len() as u64..blob.len();
            let chunk = blob.read(&rest).await.map_err(|error| io_error("read", &self.layout.blob(digest), error))?;
            bytes.extend_from_slice(&chunk);
        }
        let bytes = Bytes::from(bytes);
        self.memory.insert(*digest, bytes.clone());
        Ok(Some(bytes))
    }

    /// Whether a digest's bytes are held.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.ledger().contains(&Item::Stored(*digest))
    }

    /// A manifest was pulled: that is a use of everything it lists, so that an image ages as a whole. The manifest comes
    /// last, since what it lists can't be served without it.
    pub fn touch_image(&self, manifest: &Digest) {
        let now = self.clock.now();
        let item = Item::Stored(*manifest);
        let mut ledger = self.ledger();
        let recently = ledger.last_used(&item).and_then(|used| now.since(used)).is_some_and(|age| age < TOUCH_INTERVAL);
        if recently {
            return;
        }
        let children = self.links().children(manifest).cloned();
        for (child, _) in children.iter().flat_map(|children| children.iter()) {
            ledger.touch(&Item::Stored(*child), now);
        }
        ledger.touch(&item, now);
    }

    fn touch(&self, digest: &Digest) {
        let now = self.clock.now();
        self.ledger().touch(&Item::Stored(*digest), now);
    }

    /// What a repository's manifests say about a digest.
    pub fn link(&self, repository: &RepositoryKey, digest: &Digest) -> Link {
        self.links().link(repository, digest)
    }

    /// The media type of a manifest that this repository has; `None` when it has none of this digest.
    pub fn media_type(&self, repository: &RepositoryKey, manifest: &Digest) -> Option<MediaType> {
        self.links().media_type(repository, manifest).cloned()
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

    /// Stores a manifest, then records that the repository has it.
    ///
    /// # Errors
    /// When it cannot be written; then nothing is recorded.
    pub async fn put_manifest(self: &Arc<Store>, repository: &RepositoryKey, manifest: &Manifest) -> Result<(), StoreError> {
        let (store, repository, manifest) = (Arc::clone(self), repository.clone(), manifest.clone());
        self.gate.run(move || store.write_manifest(&repository, &manifest)).await
    }

    fn write_manifest(self: &Arc<Store>, repository: &RepositoryKey, manifest: &Manifest) -> Result<(), StoreError> {
        let descriptor = manifest.descriptor();
        if !self.contains(&descriptor.digest) {
            let mut partial = PartialBlob::of_manifest(self, &repository.upstream, descriptor)?;
            let mut verifier = Verifier::new(&descriptor.digest);
            verifier.update(manifest.bytes());
            let verified = verifier.finish(&descriptor.digest);
            let verified = verified.map_err(|_| StoreError::Incomplete { digest: descriptor.digest, len: descriptor.size })?;
            partial.append(manifest.bytes()).and_then(|()| partial.commit(verified))?;
        }
        let path = self.layout.manifest_ref(repository, &descriptor.digest);
        self.refs.add_manifest(repository, descriptor).map_err(|error| self.write_error("write", &path, error))?;
        let children: links::Children = manifest.children().iter().map(|child| (child.digest, child.size)).collect();
        self.index.put(descriptor.digest, Record { last_used: self.clock.now(), children: Some(Arc::clone(&children)) });
        let mut links = self.links_mut();
        links.list(descriptor.digest, children);
        links.hold(repository.clone(), descriptor.digest, descriptor.media_type.clone());
        drop(links);
        self.memory.insert(descriptor.digest, manifest.bytes().clone());
        Ok(())
    }

    /// The record of a tag, if it is in RAM.
    pub fn recent_tag(&self, key: &(RepositoryKey, Tag)) -> Option<Arc<TagRecord>> {
        self.refs.recent(key)
    }

    /// The record of a tag.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn tag(self: &Arc<Store>, key: &(RepositoryKey, Tag)) -> Result<Option<Arc<TagRecord>>, StoreError> {
        if let Some(record) = self.recent_tag(key) {
            return Ok(Some(record));
        }
        let (store, key) = (Arc::clone(self), key.clone());
        self.gate.run(move || store.refs.tag(&key).map_err(|error| io_error("read", &store.layout.tag(&key.0, &key.1), error))).await
    }

    /// Writes the record of a tag whose manifest is stored (invariant 12).
    ///
    /// # Errors
    /// When the disk fails; until the next stop the record is known all the same.
    pub async fn put_tag(self: &Arc<Store>, key: &(RepositoryKey, Tag), record: TagRecord) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(self), key.clone());
        self.gate
            .run(move || {
                store.refs.set_tag(&key, record).map_err(|error| store.write_error("write", &store.layout.tag(&key.0, &key.1), error))
            })
            .await
    }

    /// Removes the record of a tag.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn drop_tag(self: &Arc<Store>, key: &(RepositoryKey, Tag)) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(self), key.clone());
        self.gate
            .run(move || store.refs.drop_tag(&key).map_err(|error| store.write_error("remove", &store.layout.tag(&key.0, &key.1), error)))
            .await
    }

    /// A stored blob could not be read while it was served.
    async fn damaged(self: &Arc<Store>, digest: Digest) {
        self.metrics.read_failed("io");
        let store = Arc::clone(self);
        self.gate.run(move || store.quarantine(&digest)).await;
    }

    /// A stored blob could not be read or was found wrong: it is put aside and held no longer. Blocks.
    pub fn quarantine(&self, digest: &Digest) {
        let _files = lock(&self.files);
        self.remove_item(&Item::Stored(*digest));
        let path = self.layout.blob(digest);
        match self.disk.rename(&path, &self.layout.quarantined(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => tracing::error!(%digest, "a stored blob is gone"),
            Err(error) => tracing::error!(%digest, %error, "a damaged blob could not be put aside"),
            Ok(()) => tracing::error!(%digest, "a damaged blob was put aside"),
        }
    }

    /// Writes down what was used, and what the gauges should say. To be called every few seconds.
    pub async fn tend(self: &Arc<Store>) {
        let used = self.ledger().take_touched();
        if !used.is_empty() {
            self.index.touch(used);
        }
        let store = Arc::clone(self);
        self.gate.run(move || store.observe()).await;
    }

    /// The last words of a clean stop. Blocks.
    pub fn close(&self) {
        self.index.touch(self.ledger().take_touched());
        self.lock.leave_cleanly();
    }

    fn observe(&self) {
        let gauge = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let (size, items) = {
            let ledger = self.ledger();
            (ledger.size(), ledger.count())
        };
        let manifests = self.links().manifest_count();
        self.metrics.cache_size.set(gauge(size));
        self.metrics.objects(items.saturating_sub(manifests) as u64, manifests as u64);
        if let Ok(free) = self.disk.free_space(self.layout.root()) {
            self.metrics.cache_disk_free.set(gauge(free));
        }
    }

    /// Makes room. Blocks.
    fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let _files = lock(&self.files);
        let victims = self.ledger().reserve(bytes).map_err(|evict::Full| {
            self.metrics.write_failed("full");
            StoreError::Full
        })?;
        for victim in &victims {
            self.evict(victim);
        }
        Ok(())
    }

    fn unreserve(&self, bytes: u64) {
        self.ledger().unreserve(bytes);
    }

    /// Lets go of the least recently used, until the bound holds again. The file lock is held.
    fn trim(&self) {
        let victims = self.ledger().reserve(0).unwrap_or_default();
        for victim in &victims {
            self.evict(victim);
        }
    }

    /// Removes a victim: first what names it, then its bytes, so that a crash between leaves bytes nobody names. The file
    /// lock is held.
    fn evict(&self, victim: &Item) {
        let age = self.ledger().last_used(victim).and_then(|used| self.clock.now().since(used)).unwrap_or_default();
        let path = match victim {
            Item::Stored(digest) => self.layout.blob(digest),
            Item::Partial(upstream, digest) => self.layout.partial(upstream, digest),
        };
        let freed = self.remove_item(victim);
        if let Err(error) = disk::remove_if_there(&*self.disk, &path) {
            self.metrics.write_failed("io");
            tracing::error!(path = %path.display(), %error, "an evicted file could not be removed");
        }
        self.metrics.evicted(freed, age);
    }

    /// Forgets an item and every record that names it.
    fn remove_item(&self, item: &Item) -> u64 {
        if let Item::Stored(digest) = item {
            let (holders, upstreams) = {
                let links = self.links();
                (links.holders(digest).cloned().collect::<Vec<_>>(), links.confirmed(digest).to_vec())
            };
            let dropped = holders.iter().try_for_each(|holder| self.refs.drop_manifest(holder, digest));
            let dropped = dropped.and(upstreams.iter().try_for_each(|upstream| self.refs.drop_confirmation(upstream, digest)));
            if let Err(error) = dropped {
                tracing::warn!(%digest, %error, "a record of an evicted object could not be removed");
            }
            self.links_mut().forget(digest);
            self.memory.invalidate(digest);
            self.index.remove(*digest);
        }
        self.ledger().remove(item).unwrap_or_default()
    }

    /// Moves a verified, synced file into `blobs/`.
    fn adopt(&self, path: &Path, digest: &Digest, allocated: u64, reserved: u64) -> Result<(), StoreError> {
        let target = self.layout.blob(digest);
        let directory = target.parent().unwrap_or(&target);
        let moved = || match self.disk.rename(path, &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dir_all(directory)?;
                self.disk.rename(path, &target)
            }
            renamed => renamed,
        };
        {
            let _files = lock(&self.files);
            moved().map_err(|error| self.write_error("rename", &target, error))?;
            let mut ledger = self.ledger();
            ledger.unreserve(reserved);
            ledger.insert(Item::Stored(*digest), allocated, self.clock.now());
            drop(ledger);
            self.trim();
        }
        // It is stored, whole and verified, though a power cut might still undo the rename.
        if let Err(error) = self.disk.sync_dir(directory) {
            let error = self.write_error("fsync", directory, error);
            tracing::error!(%digest, %error, "a stored blob's name may not survive a power cut");
        }
        self.index.put(*digest, Record { last_used: self.clock.now(), children: None });
        self.metrics.cache_writable.set(1);
        Ok(())
    }

    fn create_file(&self, path: &Path) -> Result<Arc<dyn DiskFile>, StoreError> {
        let created = match self.disk.create(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.disk.create_dir_all(path.parent().unwrap_or(path)).and_then(|()| self.disk.create(path))
            }
            created => created,
        };
        created.map_err(|error| self.write_error("create", path, error))
    }

    /// Takes an idle partial out of the ledger, for whoever goes on with it or overwrites it.
    fn take_partial(&self, upstream: &Arc<str>, digest: &Digest) -> Option<u64> {
        self.ledger().remove(&Item::Partial(Arc::clone(upstream), *digest))
    }

    /// Nobody goes on with a partial at present: it may be evicted.
    fn leave_partial(&self, item: Item, allocated: u64, reserved: u64) {
        let now = self.clock.now();
        let mut ledger = self.ledger();
        ledger.unreserve(reserved);
        ledger.insert(item, allocated, now);
    }

    fn write_error(&self, operation: &'static str, path: &Path, source: io::Error) -> StoreError {
        let full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
        self.metrics.write_failed(if full { "full" } else { "io" });
        if full { StoreError::Full } else { io_error(operation, path, source) }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        lock(&self.ledger)
    }

    fn links(&self) -> RwLockReadGuard<'_, Links> {
        self.links.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn links_mut(&self) -> RwLockWriteGuard<'_, Links> {
        self.links.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn io_error(operation: &'static str, path: &Path, source: io::Error) -> StoreError {
    StoreError::Io { operation, path: path.to_owned(), source }
}
