//! One download of a blob: one upstream GET, any number of readers, owned by none of them (invariants 6 and 7).
//!
//! A fill asks the repositories that want the blob, one after another, until one is given it; then `transfer` receives it.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::error::FillError;
use super::queue::Downloads;
use super::transfer::{Intake, Transfer};
use crate::gate::Gate;
use crate::labels::{BypassReason, FillResult};
use crate::metrics::Metrics;
use crate::mirror::{Repository, Source};
use crate::oci::{Digest, RepositoryName};
use crate::queue::Overloaded;
use crate::rng::Rng;
use crate::single_flight::{Entry, Group, Joined};
use crate::store::{FileReader, PartialBlob, Phase, Store, StoreError, Tail, Verifier};
use crate::upstream::{BlobStream, Call, Exchange, UpstreamError};

/// From a fill's begin, and from each resumption, to upstream's headers.
pub(in crate::mirror) const HEADERS_TIMEOUT: Duration = Duration::from_secs(25);
/// Downloads under way or waiting for their turn. `Downloads` bounds them for each upstream; this bounds them for all.
const DOWNLOADS_MAX: usize = 16_384;
type Key = (Arc<str>, Digest);

/// The fills that are under way, and what they need.
pub struct Fills {
    running: Group<Key, Fill>,
    pub(in crate::mirror) downloads: Downloads,
    pub(super) store: Arc<Store>,
    pub(super) gate: Gate,
    pub(super) rng: Arc<Rng>,
}

/// One download as those who wait for it see it.
pub struct Fill {
    pub(super) digest: Digest,
    wanted: Mutex<Wanted>,
    /// Set while nobody can join or end the download.
    has_readers: AtomicBool,
    state: watch::Sender<State>,
    exchange: Arc<Exchange>,
}

/// What somebody wants of a download.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Its bytes, stored or not.
    Bytes,
    /// That it is stored: what cannot be is not worth its transfer.
    Stored,
    /// Its bytes, and that they go to no file: the disk has just failed to give such a one back.
    Passing,
}

/// On whose behalf upstream may be asked.
#[derive(Default)]
struct Wanted {
    pending: VecDeque<RepositoryName>,
    asked: Vec<RepositoryName>,
}

#[derive(Clone, Default)]
struct State {
    /// Upstream's word to the repository it was said to; others may be given the blob all the same.
    refused: Vec<(RepositoryName, UpstreamError)>,
    opened: Option<Opened>,
    /// For everybody.
    failed: Option<FillError>,
    /// Nothing comes any more; what could be stored is.
    ended: bool,
}

/// A download whose headers have come.
#[derive(Clone)]
pub struct Opened {
    pub tail: Arc<Tail>,
    /// The repository that upstream gave it to.
    pub repository: RepositoryName,
    pub bypass: Option<BypassReason>,
    /// Where it begins: after what an earlier download left.
    pub begin: u64,
}

impl Fill {
    fn new(digest: Digest, repository: RepositoryName, interest: Interest) -> Fill {
        let wanted = Wanted { pending: [repository].into(), asked: Vec::new() };
        let has_readers = AtomicBool::new(interest != Interest::Stored);
        Fill { digest, wanted: Mutex::new(wanted), has_readers, state: watch::Sender::default(), exchange: Arc::default() }
    }

    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.exchange
    }

    /// Waits for upstream's answer, as far as it concerns this repository.
    ///
    /// # Errors
    /// When upstream refused it to this repository, or nobody gets it.
    pub async fn opened(&self, repository: &RepositoryName) -> Result<Opened, FillError> {
        let mut state = self.state.subscribe();
        let answer = |state: &State| {
            let refused = state.refused.iter().find(|(name, _)| name == repository);
            let refused = refused.map(|(_, error)| FillError::Upstream(error.clone()));
            let failed = refused.or_else(|| state.failed.clone());
            state.opened.clone().map(Ok).or(failed.map(Err))
        };
        let found = state.wait_for(|state| answer(state).is_some()).await;
        found.ok().and_then(|state| answer(&state)).unwrap_or(Err(FillError::Ended))
    }

    /// Why the download failed, once it has.
    pub fn failure(&self) -> Option<FillError> {
        self.state.borrow().failed.clone()
    }

    /// Waits until nothing comes any more, and what could be stored is. Says why it was not, as far as the store's refusal is why.
    pub async fn ended(&self) -> Option<BypassReason> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| state.ended).await;
        ended.ok().and_then(|state| state.opened.as_ref()?.bypass)
    }

    /// Whether anybody came for the bytes. Once its key has been released, nobody comes any more.
    pub(super) fn has_readers(&self) -> bool {
        self.has_readers.load(Ordering::Relaxed)
    }

    fn want(&self, repository: &RepositoryName, interest: Interest) {
        if interest != Interest::Stored {
            self.has_readers.store(true, Ordering::Relaxed);
        }
        let mut wanted = self.wanted.lock();
        if !wanted.asked.contains(repository) && !wanted.pending.contains(repository) {
            wanted.pending.push_back(repository.clone());
        }
    }

    fn next(&self) -> Option<RepositoryName> {
        let mut wanted = self.wanted.lock();
        let name = wanted.pending.pop_front()?;
        wanted.asked.push(name.clone());
        Some(name)
    }

    /// From now on nothing is stored.
    pub(super) fn passes_by(&self, reason: BypassReason) {
        self.state.send_modify(|state| {
            if let Some(opened) = &mut state.opened {
                opened.bypass = Some(reason);
            }
        });
    }

    /// Whoever still waits is told that nothing comes; after a proper end nobody does.
    fn abandon(&self) {
        self.state.send_modify(|state| {
            if let Some(opened) = state.opened.as_ref().filter(|opened| opened.tail.progress().phase == Phase::Receiving) {
                opened.tail.finish(Phase::Failed);
            }
            state.failed.get_or_insert(FillError::Ended);
            state.ended = true;
        });
    }

    fn fail(&self, error: FillError) {
        self.state.send_modify(|state| state.failed = Some(error));
    }
}

impl Fills {
    pub fn new(max: usize, queue_timeout: Duration, store: Arc<Store>, gate: Gate, metrics: Arc<Metrics>, rng: Arc<Rng>) -> Fills {
        let running = Group::new(DOWNLOADS_MAX, metrics.task_panics.clone());
        Fills { running, downloads: Downloads::new(max, queue_timeout, metrics), store, gate, rng }
    }

    /// The fill of this blob, if one is under way.
    pub fn running(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Fill>> {
        self.running.get(&(Arc::clone(repository.upstream_name()), *digest))
    }

    /// From now on nobody joins the download that this tail follows; it goes on for those who have.
    pub(in crate::mirror) fn leave(&self, repository: &Repository, digest: &Digest, tail: &Arc<Tail>) {
        let follows = |fill: &Fill| fill.state.borrow().opened.as_ref().is_some_and(|opened| Arc::ptr_eq(&opened.tail, tail));
        self.running.release_if(&(Arc::clone(repository.upstream_name()), *digest), follows);
    }

    /// Joins the download of a blob, or begins it. `size` is what a manifest says of it. `None` when it has been stored
    /// meanwhile. The flag is whether it was under way.
    pub fn join(
        self: &Arc<Fills>,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
        interest: Interest,
    ) -> Option<(Arc<Fill>, bool)> {
        let key = (Arc::clone(repository.upstream_name()), *digest);
        let name = repository.name();
        // It may have ended between the caller's look into the store and this one.
        let is_stored = interest != Interest::Passing;
        let make = || (!is_stored || !self.store.contains(digest)).then(|| Fill::new(*digest, name.clone(), interest));
        match self.running.join(key, |fill| fill.want(name, interest), make) {
            Joined::Needless => None,
            Joined::Full => {
                let fill = Fill::new(*digest, name.clone(), interest);
                fill.fail(FillError::Overloaded);
                fill.abandon();
                Some((Arc::new(fill), false))
            }
            Joined::Running(fill) => Some((fill, true)),
            Joined::New(entry) => {
                let fill = Arc::clone(entry.job());
                let task = Task {
                    fills: Arc::clone(self),
                    source: Arc::clone(&repository.source),
                    fill: Arc::clone(&fill),
                    entry,
                    listed: size.map(|size| (name.clone(), size)),
                    is_stored,
                };
                tokio::spawn(task.run());
                Some((fill, false))
            }
        }
    }
}

/// The task of one fill.
pub(super) struct Task {
    pub(super) fills: Arc<Fills>,
    pub(super) source: Arc<Source>,
    pub(super) fill: Arc<Fill>,
    pub(super) entry: Entry<Key, Fill>,
    /// The size that a manifest of this repository announced.
    listed: Option<(RepositoryName, u64)>,
    is_stored: bool,
}

/// How a download begins.
struct Begun {
    intake: Intake,
    /// What the readers read from, as far as it goes.
    file: Option<FileReader>,
    bypass: Option<BypassReason>,
}

/// However the task ends, by panic too, nobody waits for what will never come.
impl Drop for Task {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.source.metrics.filled(FillResult::Failed);
        }
        self.entry.release();
        self.fill.abandon();
    }
}

impl Task {
    async fn run(self) {
        match self.fills.downloads.place(self.source.name(), self.source.fills_max).await {
            Ok(_running) => self.ask().await,
            Err(Overloaded) => self.end(FillError::Overloaded),
        }
    }

    /// Asks for one repository after another, until one is given the blob.
    async fn ask(&self) {
        let mut held = match self.is_stored {
            true => self.fills.store.resume(self.source.name(), &self.fill.digest).await,
            false => None,
        };
        loop {
            let Some(name) = self.fill.next() else {
                if self.entry.release_if(|fill| fill.wanted.lock().pending.is_empty()) {
                    return self.fills.discard(held).await;
                }
                continue;
            };
            let received = held.as_ref().map_or(0, |(partial, _)| partial.len());
            match self.get(&name, received).await {
                Ok(stream) => match self.size(&name, &stream) {
                    Ok(size) => return self.receive(name, stream, size, held).await,
                    Err(error) => self.refuse(name, error),
                },
                // What the partial holds is not where upstream's blob goes on (it may even be all of it): from the start, then.
                Err(UpstreamError::Corrupt { .. }) if received > 0 => {
                    self.fills.discard(held.take()).await;
                    self.fill.wanted.lock().pending.push_front(name);
                }
                Err(error @ (UpstreamError::NotFound | UpstreamError::Denied { .. } | UpstreamError::CredentialRefused { .. })) => {
                    self.refuse(name, error);
                }
                Err(error) => {
                    // First: who asks from now on shall find it.
                    drop(held);
                    return self.end(FillError::Upstream(error));
                }
            }
        }
    }

    pub(super) async fn get(&self, name: &RepositoryName, offset: u64) -> Result<BlobStream, UpstreamError> {
        let call = Call::new(Instant::now() + HEADERS_TIMEOUT, Arc::clone(&self.fill.exchange));
        self.source.upstream.get_blob(name, &self.fill.digest, offset, &call).await
    }

    /// Nobody gets anything. Its key is released first, so that who asks from now on begins anew.
    pub(super) fn end(&self, error: FillError) {
        tracing::warn!(upstream = %self.source.name(), digest = %self.fill.digest, ?error, "a download failed");
        self.source.metrics.filled(FillResult::Failed);
        self.entry.release();
        self.fill.fail(error);
    }

    /// This repository gets nothing; others may.
    fn refuse(&self, name: RepositoryName, error: UpstreamError) {
        tracing::info!(upstream = %self.source.name(), repository = %name, digest = %self.fill.digest, %error, "a download was refused");
        self.fill.state.send_modify(|state| state.refused.push((name, error)));
    }

    /// The blob's size: upstream's word, else the manifest's. Where they differ, the repository of that manifest gets nothing.
    fn size(&self, name: &RepositoryName, stream: &BlobStream) -> Result<Option<u64>, UpstreamError> {
        let listed = self.listed.as_ref().filter(|(lister, _)| lister == name).map(|(_, size)| *size);
        match (stream.size, listed) {
            (Some(said), Some(listed)) if said != listed => {
                Err(UpstreamError::Corrupt { detail: format!("upstream says {said} bytes, a manifest says {listed}") })
            }
            (said, listed) => Ok(said.or(listed)),
        }
    }

    async fn receive(&self, name: RepositoryName, stream: BlobStream, size: Option<u64>, held: Option<(PartialBlob, Verifier)>) {
        let Begun { intake, file, bypass } = self.begin(held, size).await;
        let tail = Arc::new(Tail::new(file, intake.verifier.len(), size));
        if bypass.is_some() {
            tail.divert();
            self.entry.release();
        }
        if let Some(reason) = bypass.filter(|_| !self.fill.has_readers()) {
            return self.end(FillError::Unstored(reason));
        }
        let opened = Opened { tail: Arc::clone(&tail), repository: name.clone(), bypass, begin: intake.verifier.len() };
        self.fill.state.send_modify(|state| state.opened = Some(opened));
        let mut transfer = Transfer { task: self, name, tail, size, intake: Some(intake), breaks: 0 };
        let received = transfer.receive_all(stream).await;
        transfer.conclude(received).await;
    }

    /// The place for the bytes: a partial that goes on, a new one, or none.
    async fn begin(&self, held: Option<(PartialBlob, Verifier)>, size: Option<u64>) -> Begun {
        let Some((mut partial, verifier)) = held else {
            let verifier = Verifier::new(&self.fill.digest);
            if !self.is_stored {
                let intake = Intake { verifier, partial: None };
                return Begun { intake, file: None, bypass: Some(BypassReason::DiskError) };
            }
            return match self.fills.store.begin(self.source.name(), &self.fill.digest, size).await {
                Ok(partial) => Begun { file: Some(partial.reader()), intake: Intake { verifier, partial: Some(partial) }, bypass: None },
                Err(error) => Begun { intake: Intake { verifier, partial: None }, file: None, bypass: Some(self.bypass(&error)) },
            };
        };
        // Also where it cannot grow: upstream was asked for the rest only, so that readers need what it holds.
        let file = Some(partial.reader());
        let grown = self.fills.gate.run(move || {
            let room = partial.expect_size(size.unwrap_or_default());
            room.map(|()| partial)
        });
        match grown.await {
            Ok(partial) => Begun { intake: Intake { verifier, partial: Some(partial) }, file, bypass: None },
            Err(error) => Begun { intake: Intake { verifier, partial: None }, file, bypass: Some(self.bypass(&error)) },
        }
    }

    pub(super) fn bypass(&self, error: &StoreError) -> BypassReason {
        tracing::warn!(digest = %self.fill.digest, %error, "a blob passes through without being stored");
        match error {
            StoreError::Full => BypassReason::DiskFull,
            StoreError::Loading => BypassReason::Loading,
            StoreError::TooLarge => BypassReason::TooLarge,
            StoreError::Io { .. } | StoreError::Incomplete { .. } => BypassReason::DiskError,
        }
    }
}

impl Fills {
    /// Removes a partial that nobody can go on with.
    async fn discard(&self, held: Option<(PartialBlob, Verifier)>) {
        if let Some((partial, _)) = held {
            self.gate.run(move || partial.discard()).await;
        }
    }
}
