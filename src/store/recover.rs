//! The start: from the files to what is in RAM, behind the first requests; what one of these needs is looked at before its
//! turn. The index only saves reading the manifests and tells the order of use.

use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;

use super::evict::Item;
use super::index::Record;
use super::links::{Children, Link};
use super::refs::Found;
use super::uptime::DaemonTime;
use super::{RepositoryKey, Store, disk, layout, lock};
use crate::clock::Timestamp;
use crate::gate::Gate;
use crate::oci::{Algorithm, Descriptor, Digest, MANIFEST_BYTES_MAX, Manifest};

/// The first requests wait for it so long: most caches are read by then.
const START_WAIT: Duration = Duration::from_secs(1);
/// A use may be written down before the daemon time is, but not by more than this.
const BELIEVED: Duration = Duration::from_secs(3600);
/// Files that are looked at while the file lock is held: a fraction of a millisecond.
const BATCH: usize = 64;
/// Hints for the index that are sent at a time.
const HINTS: usize = 1000;
/// Once clients are served, reading gets one part in so many of a processor.
const PARTS: u32 = 4;
const REST_EVERY: Duration = Duration::from_millis(2);
/// Repositories that can be looked at before their turn at a time, if their names fall apart.
const LOCKS: usize = 16;

/// How far the directory has been read.
pub(super) struct Loading {
    is_under_way: AtomicBool,
    /// Clients are being served.
    is_behind: AtomicBool,
    is_given_up: AtomicBool,
    /// What is found without a word of its last use counts as used then: nothing is evicted because a hint was lost, and
    /// nothing kept for ever.
    begun: DaemonTime,
    /// The daemon time that the last run wrote down.
    last_stop: Option<DaemonTime>,
    /// Looked at before their turn.
    looked_at: [Mutex<HashSet<RepositoryKey>>; LOCKS],
    ended: watch::Sender<bool>,
}

impl Loading {
    pub(super) fn new(begun: DaemonTime, last_stop: Option<DaemonTime>) -> Loading {
        Loading {
            is_under_way: AtomicBool::new(true),
            is_behind: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            begun,
            last_stop,
            looked_at: Default::default(),
            ended: watch::Sender::new(false),
        }
    }

    pub(super) fn is_under_way(&self) -> bool {
        self.is_under_way.load(Ordering::Acquire)
    }

    /// The store closes; what is not read yet, the next start reads.
    pub(super) fn give_up(&self) {
        self.is_given_up.store(true, Ordering::Release);
    }

    fn check(&self) -> io::Result<()> {
        if self.is_given_up.load(Ordering::Acquire) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn looked_at(&self, repository: &RepositoryKey) -> &Mutex<HashSet<RepositoryKey>> {
        let name = repository.name.as_str().as_bytes();
        let sum = name.iter().fold(0usize, |sum, byte| sum.wrapping_mul(31).wrapping_add(usize::from(*byte)));
        &self.looked_at[sum % LOCKS]
    }
}

/// Begins to read the directory. Returns when all of it is in RAM, or after [`START_WAIT`]. Blocks.
///
/// # Errors
/// When what is read at once, because it is little, cannot be read.
pub(super) fn start(store: &Arc<Store>) -> io::Result<()> {
    store.find_quarantined()?;
    store.find_partials()?;
    if matches!(store.gate, Gate::Inline) {
        store.load();
        return Ok(());
    }
    let (done, ended) = mpsc::sync_channel::<()>(0);
    let loader = Arc::clone(store);
    let load = move || {
        let _done = done;
        loader.load();
        drop(loader);
    };
    // Not behind the gate: it takes as long as it takes, and clients must not wait for its place.
    std::thread::Builder::new().name("loader".into()).spawn(load)?;
    let _ = ended.recv_timeout(START_WAIT);
    store.loading.is_behind.store(true, Ordering::Release);
    Ok(())
}

impl Store {
    /// While the directory is still being read: looks at what this repository has, and at this object, before their turn,
    /// so that whoever asks for them gets the same answer as later.
    pub async fn look(self: &Arc<Store>, repository: &RepositoryKey, digest: Option<&Digest>) {
        if self.loading.is_under_way() {
            let (store, repository, digest) = (Arc::clone(self), repository.clone(), digest.copied());
            self.gate.run(move || store.look_now(&repository, digest.as_ref())).await;
        }
    }

    /// Returns when the whole directory has been read.
    pub async fn loaded(&self) {
        let mut ended = self.loading.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    fn look_now(&self, repository: &RepositoryKey, digest: Option<&Digest>) {
        {
            let mut looked_at = lock(self.loading.looked_at(repository));
            if !looked_at.contains(repository) {
                match self.look_at_repository(repository) {
                    Ok(()) => _ = looked_at.insert(repository.clone()),
                    Err(error) => tracing::warn!(upstream = %repository.upstream, name = %repository.name, %error, "its records cannot be read"),
                }
            }
        }
        if let Some(digest) = digest {
            self.look_at(repository, digest);
        }
    }

    fn look_at_repository(&self, repository: &RepositoryKey) -> io::Result<()> {
        self.refs.manifests(repository, &mut |descriptor| {
            let digest = descriptor.digest;
            self.look_at(repository, &digest);
            if self.enter_manifest(repository, descriptor)? {
                for (child, _) in self.children(&digest).iter().flat_map(|children| children.iter()) {
                    self.look_at(repository, child);
                }
            }
            Ok(())
        })
    }

    /// An object, and whether this upstream has confirmed it where that matters.
    fn look_at(&self, repository: &RepositoryKey, digest: &Digest) {
        if !self.contains(digest) {
            let _files = lock(&self.files);
            if let Err(error) = self.enter_blob(digest) {
                tracing::warn!(%digest, %error, "a stored file cannot be looked at");
            }
        }
        let is_doubtful = matches!(self.link(repository, digest), Link::Doubtful { .. });
        if is_doubtful && self.disk.stat(&self.layout.confirmation(&repository.upstream, digest)).is_ok() {
            self.links_mut().confirm(&repository.upstream, *digest);
        }
    }

    /// Reads everything. What cannot be read is left out and told; whoever asks for it gets it from upstream.
    fn load(&self) {
        let mut pace = Pace::new(&self.loading);
        let all_known = self.index.read(&mut |digest, record| self.expect(digest, record));
        let read = self.find_blobs(&mut pace).and_then(|()| self.find_refs(&mut pace)).and_then(|()| self.find_pins());
        match read {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return,
            Err(error) => tracing::error!(%error, "not everything in the cache directory could be read"),
            Ok(()) => {}
        }
        self.finish_loading();
        if !all_known {
            tracing::info!("the index was made anew from the files");
        }
    }

    /// What the index knows of an object, whose file may be gone.
    fn expect(&self, digest: Digest, record: Record) {
        let latest = self.loading.last_stop.map(|last_stop| last_stop.plus(BELIEVED));
        let is_believed = latest.is_some_and(|latest| record.last_used <= latest);
        let last_used = if is_believed { record.last_used } else { self.loading.begun };
        // Daemon time goes on from the last use that is known.
        self.uptime.at_least(last_used);
        let mut ledger = self.ledger();
        ledger.expect(digest, last_used);
        if !is_believed {
            // Or the next start would not believe it again, and it would never age.
            ledger.touch(&Item::Stored(digest), last_used);
        }
        drop(ledger);
        if let Some(children) = record.children {
            self.links_mut().list(digest, children);
        }
    }

    fn find_blobs(&self, pace: &mut Pace<'_>) -> io::Result<()> {
        let mut hints = Vec::new();
        self.records.found(&self.layout.blobs());
        for algorithm in Algorithm::ALL {
            let root = self.layout.blobs().join(algorithm.as_str());
            self.records.found(&root);
            for shelf in self.list(&root) {
                let shelf = root.join(&shelf.name);
                self.records.found(&shelf);
                for batch in self.list(&shelf).chunks(BATCH) {
                    pace.rest()?;
                    self.enter_blobs(algorithm, batch, &mut hints);
                }
                if hints.len() >= HINTS {
                    self.index.touch(std::mem::take(&mut hints));
                }
            }
        }
        self.index.touch(hints);
        Ok(())
    }

    fn enter_blobs(&self, algorithm: Algorithm, batch: &[disk::Entry], hints: &mut Vec<(Digest, DaemonTime)>) {
        let _files = lock(&self.files);
        for entry in batch {
            let Ok(digest) = Digest::from_parts(algorithm.as_str(), &entry.name) else {
                tracing::warn!(file = entry.name, "a file under blobs/ that larder did not write; it is left alone");
                continue;
            };
            match self.enter_blob(&digest) {
                Ok(true) => hints.push((digest, self.loading.begun)),
                Ok(false) => {}
                Err(error) => tracing::warn!(%digest, %error, "a stored file cannot be looked at"),
            }
        }
    }

    /// Enters an object, if there is a file; says whether its last use had to be made up. The file lock is held.
    fn enter_blob(&self, digest: &Digest) -> io::Result<bool> {
        let stat = match self.disk.stat(&self.layout.blob(digest)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            stat => stat?,
        };
        // In the old order, as far as the file's own time tells it.
        let otherwise = (self.loading.begun, Timestamp::from(stat.modified).0);
        Ok(self.ledger().find(Item::Stored(*digest), stat.allocated, otherwise))
    }

    /// Partials of the same boot or of a clean stop are continued by whoever asks for them; others may hold anything.
    fn find_partials(&self) -> io::Result<()> {
        self.records.found(&self.layout.partials());
        for upstream in self.disk.list(&self.layout.partials())? {
            let directory = self.layout.partials().join(&upstream.name);
            self.records.found(&directory);
            let name: Arc<str> = upstream.name.into();
            for entry in self.disk.list(&directory)? {
                let path = directory.join(&entry.name);
                match layout::digest_of(&entry.name) {
                    Some(digest) if self.lock.partials_are_durable => {
                        let stat = self.disk.stat(&path)?;
                        let last_used = (self.loading.begun, Timestamp::from(stat.modified).0);
                        self.ledger().find(Item::Partial(Arc::clone(&name), digest), stat.allocated, last_used);
                    }
                    _ => disk::remove_if_there(&*self.disk, &path)?,
                }
            }
        }
        Ok(())
    }

    fn find_refs(&self, pace: &mut Pace<'_>) -> io::Result<()> {
        self.records.found(&self.layout.refs());
        self.refs.walk(&mut |found| {
            pace.rest()?;
            match found {
                Found::Confirmation { upstream, digest } if self.contains(&digest) => self.links_mut().confirm(&upstream, digest),
                Found::Confirmation { .. } => {}
                Found::Manifest { repository, descriptor } => {
                    let digest = descriptor.digest;
                    let entered = self.enter_manifest(&repository, descriptor);
                    let settled = entered.and_then(|is_there| if is_there { Ok(()) } else { self.drop_lost(&repository, &digest) });
                    if let Err(error) = settled {
                        tracing::warn!(%digest, %error, "a manifest cannot be read");
                    }
                }
            }
            Ok(())
        })
    }

    /// Says whose a manifest is and what it lists; `false` when there is no such manifest.
    fn enter_manifest(&self, repository: &RepositoryKey, descriptor: Descriptor) -> io::Result<bool> {
        let path = self.layout.blob(&descriptor.digest);
        if !self.contains(&descriptor.digest) {
            return match self.disk.stat(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                // Unreadable a moment ago, or leaving at this moment.
                stat => stat.map(|_| true),
            };
        }
        if self.children(&descriptor.digest).is_none() {
            match self.read_children(&descriptor)? {
                Some(children) => self.links_mut().list(descriptor.digest, children),
                None => return Ok(false),
            }
        }
        self.links_mut().hold(repository.clone(), descriptor.digest, descriptor.media_type);
        Ok(true)
    }

    /// What a manifest lists, from its bytes, which are checked.
    fn read_children(&self, descriptor: &Descriptor) -> io::Result<Option<Children>> {
        let digest = descriptor.digest;
        let bytes = match disk::read_small(&*self.disk, &self.layout.blob(&digest), MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Ok(None),
            read => read?,
        };
        let Some(bytes) = bytes else { return Ok(None) };
        match Manifest::verified(Bytes::from(bytes), Some(descriptor.media_type.as_str()), &digest) {
            Ok(manifest) => {
                let children: Children = manifest.children().iter().map(|child| (child.digest, child.size)).collect();
                let last_used = self.ledger().last_used(&Item::Stored(digest)).unwrap_or_default();
                self.index.put(digest, Record { last_used, children: Some(Arc::clone(&children)) });
                Ok(Some(children))
            }
            Err(error) => {
                tracing::error!(%digest, %error, "a stored manifest is damaged");
                self.quarantine(&digest);
                Ok(None)
            }
        }
    }

    /// A crash came between unlinking a manifest and its record, or somebody has removed the file.
    fn drop_lost(&self, repository: &RepositoryKey, digest: &Digest) -> io::Result<()> {
        // Under this lock it comes back, and its record after it.
        let _files = lock(&self.files);
        if self.contains(digest) { Ok(()) } else { self.refs.drop_manifest(repository, digest) }
    }

    /// What the pinned tags name.
    fn find_pins(&self) -> io::Result<()> {
        let repositories = lock(&self.pins).repositories();
        for repository in repositories {
            for tag in self.refs.tags(&repository)? {
                let key = (repository.clone(), tag);
                if let Some(record) = self.refs.tag(&key)? {
                    lock(&self.pins).name(&key, record.descriptor.digest);
                }
            }
        }
        Ok(())
    }

    /// Everything is in RAM: from now on the bounds are kept.
    fn finish_loading(&self) {
        let lost = self.ledger().finish_loading();
        self.records.finish_loading();
        for digest in lost {
            let _files = lock(&self.files);
            if !self.contains(&digest) {
                self.links_mut().forget(&digest);
                self.index.remove(digest);
            }
        }
        self.links_mut().set_loading(false);
        self.repin();
        self.trim_all();
        self.loading.is_under_way.store(false, Ordering::Release);
        self.loading.looked_at.iter().for_each(|looked_at| *lock(looked_at) = HashSet::new());
        self.observe();
        self.loading.ended.send_replace(true);
    }

    /// What a directory holds; nothing, when that cannot be read.
    fn list(&self, directory: &std::path::Path) -> Vec<disk::Entry> {
        let listed = self.disk.list(directory);
        listed.inspect_err(|error| tracing::error!(directory = %directory.display(), %error, "it cannot be read")).unwrap_or_default()
    }
}

/// Keeps the reading from taking what clients need, once they are served.
struct Pace<'a> {
    loading: &'a Loading,
    /// What this thread had computed when it last rested.
    rested: Duration,
}

impl Pace<'_> {
    fn new(loading: &Loading) -> Pace<'_> {
        Pace { loading, rested: computed() }
    }

    /// # Errors
    /// When there is no use in going on.
    fn rest(&mut self) -> io::Result<()> {
        self.loading.check()?;
        let worked = computed().saturating_sub(self.rested);
        if worked >= REST_EVERY {
            if self.loading.is_behind.load(Ordering::Acquire) {
                std::thread::sleep(worked * (PARTS - 1));
            }
            self.rested = computed();
        }
        Ok(())
    }
}

/// The processor time of this thread: waiting for the disk takes nothing from anybody.
fn computed() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or_default(), time.tv_nsec.try_into().unwrap_or_default())
}
