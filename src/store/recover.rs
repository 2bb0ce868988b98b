//! The start: from the files to what is in RAM, behind the first requests; what one of these needs is looked at before its
//! turn. The index only saves reading the manifests and tells the order of use.

mod pace;
mod reading;

use parking_lot::{Mutex, RwLock};
use std::collections::HashSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::watch;

use super::links::Link;
use super::refs::Found;
use super::uptime::DaemonTime;
use super::{RepositoryKey, Store};
use crate::gate::Gate;
use crate::oci::Digest;
use pace::Pace;

/// The first requests wait for it so long: most caches are read by then.
const START_WAIT: Duration = Duration::from_secs(1);
/// When what could not be read is tried again: as long again each time that does not help, up to the second.
const RETRY_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(3600);
/// So often the reading is begun when it panics; then what was found is all there is, until it is read again.
const LOADS_MAX: usize = 3;
/// Repositories that can be looked at before their turn at a time, if their names fall apart.
const LOCKS: usize = 16;

/// The reading, as the log and `/readyz` name it.
const LOADER: &str = "loader";

/// How far the directory has been read.
pub(super) struct Loading {
    is_under_way: AtomicBool,
    /// Clients are being served.
    is_behind: AtomicBool,
    is_given_up: AtomicBool,
    /// When it was last tried again to read what could not be read, and how long after that it is next.
    retry: Mutex<(Duration, Duration)>,
    /// What is found without a word of its last use counts as used then: nothing is evicted because a hint was lost, and
    /// nothing kept for ever.
    begun: DaemonTime,
    /// The daemon time that the last run wrote down.
    last_stop: Option<DaemonTime>,
    /// Looked at before their turn.
    looked_at: [RwLock<HashSet<RepositoryKey>>; LOCKS],
    ended: watch::Sender<bool>,
}

impl Loading {
    pub(super) fn new(begun: DaemonTime, last_stop: Option<DaemonTime>) -> Loading {
        Loading {
            is_under_way: AtomicBool::new(true),
            is_behind: AtomicBool::new(false),
            is_given_up: AtomicBool::new(false),
            retry: Mutex::new((Duration::ZERO, RETRY_INTERVAL)),
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

    fn end(&self) {
        self.is_under_way.store(false, Ordering::Release);
        self.looked_at.iter().for_each(|looked_at| *looked_at.write() = HashSet::new());
        self.ended.send_replace(true);
    }

    fn check(&self) -> io::Result<()> {
        if self.is_given_up.load(Ordering::Acquire) { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }

    fn looked_at(&self, repository: &RepositoryKey) -> &RwLock<HashSet<RepositoryKey>> {
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
    store.find_quarantined();
    store.find_partials();
    if matches!(store.gate, Gate::Inline) {
        store.load();
        return Ok(());
    }
    let (done, ended): (mpsc::SyncSender<()>, _) = mpsc::sync_channel(0);
    let loader = Arc::clone(store);
    let load = move || {
        let _done = done;
        loader.load_in_spite_of_panics();
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
        if self.loading.is_under_way() && !self.is_looked_at(repository, digest) {
            let (store, repository, digest) = (Arc::clone(self), repository.clone(), digest.copied());
            self.gate.run(move || store.look_now(&repository, digest.as_ref())).await;
        }
    }

    /// Whether that was done, as far as this can be told without waiting.
    fn is_looked_at(&self, repository: &RepositoryKey, digest: Option<&Digest>) -> bool {
        let is_known = |digest: &Digest| self.contains(digest) && matches!(self.link(repository, digest), Link::Listed { .. });
        let is_manifest = |digest: &Digest| self.contains(digest) && self.media_type(repository, digest).is_some();
        let looked_at = self.loading.looked_at(repository).try_read();
        looked_at.is_some_and(|looked_at| looked_at.contains(repository))
            && digest.is_none_or(|digest| is_known(digest) || is_manifest(digest))
    }

    /// Returns when the whole directory has been read.
    pub async fn loaded(&self) {
        let mut ended = self.loading.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Reads everything once more where something could not be read. To be called now and then. Blocks.
    pub(super) fn read_again(&self) {
        let now = self.clock.steady();
        let (tried, interval) = *self.loading.retry.lock();
        let is_due = now.saturating_sub(tried) >= interval;
        if self.loading.is_under_way() || !is_due || !self.walk.take_incomplete() {
            return;
        }
        let read = || {
            self.records.begin_again();
            self.count_partial_directories();
            self.find_quarantined();
            let mut pace = Pace::new(self);
            let read = self.find_blobs(&mut pace, true).and_then(|()| self.find_refs(&mut pace));
            if let Err(error) = read.and_then(|()| self.find_tags()) {
                self.walk.unreadable(self.layout.root(), &error);
            }
            self.repin();
            self.walk.ended();
        };
        if self.tasks.attempt(LOADER, read).is_err() {
            self.walk.should_read_again();
        }
        // A directory that is never readable is not worth reading all the others once a minute.
        let helped = !self.walk.is_incomplete();
        let next = if helped { RETRY_INTERVAL } else { (interval * 2).min(RETRY_INTERVAL_MAX) };
        *self.loading.retry.lock() = (now, next);
    }

    fn look_now(&self, repository: &RepositoryKey, digest: Option<&Digest>) {
        {
            let mut looked_at = self.loading.looked_at(repository).write();
            if !looked_at.contains(repository) {
                match self.look_at_repository(repository) {
                    Ok(()) => _ = looked_at.insert(repository.clone()),
                    Err(error) => {
                        tracing::warn!(upstream = %repository.upstream, name = %repository.name, %error, "its records cannot be read")
                    }
                }
            }
        }
        if let Some(digest) = digest {
            self.look_at(repository, digest);
        }
    }

    fn look_at_repository(&self, repository: &RepositoryKey) -> io::Result<()> {
        self.refs.manifests(repository, &mut |found| {
            let descriptor = match found {
                Found::Manifest { descriptor, .. } => descriptor,
                Found::Confirmation { .. } => return Ok(()),
            };
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
            let _files = self.files.lock();
            if let Err(error) = self.enter_blob(digest) {
                tracing::warn!(%digest, %error, "a stored file cannot be looked at");
            }
        }
        let is_doubtful = matches!(self.link(repository, digest), Link::Doubtful { .. });
        if is_doubtful && self.disk.stat(&self.layout.confirmation(&repository.upstream, digest)).is_ok() {
            self.links_mut().confirm(&repository.upstream, *digest);
        }
    }

    /// Reads everything, once more after a panic. However that goes, it ends: what is not found then is as what cannot be read.
    fn load_in_spite_of_panics(&self) {
        for load in 1..=LOADS_MAX {
            let Err(pause) = self.tasks.attempt(LOADER, || if load == 1 { self.load() } else { self.load_anew() }) else { return };
            if load < LOADS_MAX {
                std::thread::sleep(pause);
            }
        }
        self.walk.should_read_again();
        if self.loading.is_under_way() && self.tasks.attempt(LOADER, || self.finish_loading()).is_err() {
            self.loading.end();
        }
    }

    /// The same, after a reading that broke off in its midst.
    fn load_anew(&self) {
        self.records.begin_again();
        self.count_partial_directories();
        self.find_quarantined();
        self.load();
    }

    /// Reads everything. What cannot be read is left out and told; whoever asks for it gets it from upstream.
    fn load(&self) {
        let mut pace = Pace::new(self);
        let all_known = self.index.read(&mut |digest, record| self.expect(digest, record));
        // One that knows little is told everything later, not now.
        let read = self.find_blobs(&mut pace, all_known).and_then(|()| self.find_refs(&mut pace));
        if read.is_err() {
            // Given up.
            return;
        }
        if let Err(error) = self.find_tags() {
            self.walk.unreadable(&self.layout.refs(), &error);
        }
        self.walk.ended();
        self.finish_loading();
        if !all_known {
            self.refill_index();
        }
    }

    /// Everything is in RAM: from now on the bounds are kept.
    fn finish_loading(&self) {
        let lost = self.ledger().finish_loading();
        for digest in lost {
            let _files = self.files.lock();
            if !self.contains(&digest) {
                self.links_mut().forget(&digest);
                self.index.remove(digest);
            }
        }
        self.links_mut().set_loading(false);
        self.repin();
        self.trim_all();
        // Whoever waits for the end reads the gauges next.
        self.observe();
        self.loading.end();
    }
}
