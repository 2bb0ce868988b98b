//! One download of a blob: one upstream GET, any number of readers, owned by none of them (invariants 6 and 7).
//!
//! A fill asks the repositories that want the blob, one after another, until one is given it; then it receives, hashes,
//! writes and publishes. A transfer that breaks is taken up where it stopped; one that cannot be stored passes through.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

use super::flight::{Entry, Flights, Joined};
use super::outcome::BypassReason;
use super::{Error, Repository, Source, What};
use crate::gate::Gate;
use crate::metrics::{FillResult, Metrics};
use crate::oci::{Digest, MIB, RepositoryName};
use crate::rng::Rng;
use crate::store::{FileReader, PartialBlob, Phase, Store, StoreError, Tail, Verifier};
use crate::upstream::{BlobStream, Call, Exchange, UnavailableReason, UpstreamError};

/// From a fill's begin, and from each resumption, to upstream's headers.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(25);
/// Received bytes that may wait to be hashed and written.
const INTAKE_BYTES_MAX: u64 = MIB;
/// Breaks in a row, without a byte between them, after which a transfer is given up.
const BREAKS_MAX: u32 = 5;
/// Doubles with each break.
const BREAK_PAUSE: Duration = Duration::from_millis(100);

type Key = (Arc<str>, Digest);

/// The fills that are under way, and what they need.
pub struct Fills {
    flights: Flights<Key, Fill>,
    permits: Arc<Semaphore>,
    queue_timeout: Duration,
    store: Arc<Store>,
    gate: Gate,
    metrics: Arc<Metrics>,
    rng: Arc<Rng>,
}

/// One download as those who wait for it see it.
pub struct Fill {
    digest: Digest,
    wanted: Mutex<Wanted>,
    state: watch::Sender<State>,
    exchange: Arc<Exchange>,
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
}

/// A download whose headers have come.
#[derive(Clone)]
pub struct Opened {
    pub tail: Arc<Tail>,
    /// The repository that upstream gave it to.
    pub repository: RepositoryName,
    pub bypass: Option<BypassReason>,
}

#[derive(Clone, Debug)]
pub enum FillError {
    Upstream(UpstreamError),
    /// No turn within `fills.queue_timeout`.
    Overloaded,
}

impl FillError {
    pub fn into_error(self, upstream: &Arc<str>) -> Error {
        match self {
            FillError::Upstream(error) => Error::from_upstream(upstream, What::Blob, &error),
            FillError::Overloaded => Error::Overloaded,
        }
    }
}

impl Fill {
    fn new(digest: Digest, repository: RepositoryName) -> Fill {
        let wanted = Wanted { pending: [repository].into(), asked: Vec::new() };
        Fill { digest, wanted: Mutex::new(wanted), state: watch::Sender::default(), exchange: Arc::default() }
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
        found.ok().and_then(|state| answer(&state)).unwrap_or_else(|| Err(FillError::Upstream(broken("the download's task ended"))))
    }

    /// Why the download failed, once it has.
    pub fn failure(&self) -> Option<FillError> {
        self.state.borrow().failed.clone()
    }

    fn want(&self, repository: &RepositoryName) {
        let mut wanted = lock(&self.wanted);
        if !wanted.asked.contains(repository) && !wanted.pending.contains(repository) {
            wanted.pending.push_back(repository.clone());
        }
    }

    fn next(&self) -> Option<RepositoryName> {
        let mut wanted = lock(&self.wanted);
        let name = wanted.pending.pop_front()?;
        wanted.asked.push(name.clone());
        Some(name)
    }

    fn fail(&self, error: FillError) {
        self.state.send_modify(|state| state.failed = Some(error));
    }
}

impl Fills {
    pub fn new(max: usize, queue_timeout: Duration, store: Arc<Store>, gate: Gate, metrics: Arc<Metrics>, rng: Arc<Rng>) -> Fills {
        let flights = Flights::new(Arc::clone(&metrics));
        Fills { flights, permits: Arc::new(Semaphore::new(max)), queue_timeout, store, gate, metrics, rng }
    }

    /// The fill of this blob, if one is under way.
    pub fn running(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Fill>> {
        self.flights.get(&(Arc::clone(repository.upstream_name()), *digest))
    }

    /// Joins the download of a blob, or begins it. `size` is what a manifest says of it. `None` when it has been stored
    /// meanwhile. The flag is whether it was under way.
    pub fn join(self: &Arc<Fills>, repository: &Repository, digest: &Digest, size: Option<u64>) -> Option<(Arc<Fill>, bool)> {
        let key = (Arc::clone(repository.upstream_name()), *digest);
        let name = repository.name();
        match self.flights.join(key, |fill| fill.want(name), || Fill::new(*digest, name.clone())) {
            Joined::Running(fill) => Some((fill, true)),
            // It may have ended between the caller's look into the store and this one.
            Joined::New(_) if self.store.contains(digest) => None,
            Joined::New(entry) => {
                let fill = Arc::clone(entry.flight());
                let task =
                    Task { fills: Arc::clone(self), source: Arc::clone(&repository.source), fill: Arc::clone(&fill), entry, listed: size };
                tokio::spawn(task.run());
                Some((fill, false))
            }
        }
    }
}

/// The task of one fill.
struct Task {
    fills: Arc<Fills>,
    source: Arc<Source>,
    fill: Arc<Fill>,
    entry: Entry<Key, Fill>,
    /// The size that a manifest announced.
    listed: Option<u64>,
}

/// What has been received, and where it goes.
struct Intake {
    verifier: Verifier,
    partial: Option<PartialBlob>,
}

/// How a download begins.
struct Begun {
    intake: Intake,
    /// What the readers read from, as far as it goes.
    file: Option<FileReader>,
    bypass: Option<BypassReason>,
}

/// A batch that was hashed, and written if it could be.
struct Absorbed {
    intake: Intake,
    /// What went to no file.
    unstored: Vec<Bytes>,
    error: Option<StoreError>,
}

impl Task {
    async fn run(self) {
        let Some(_permits) = self.turn().await else {
            return self.end(FillError::Overloaded);
        };
        self.fills.metrics.fills_in_flight.inc();
        self.ask().await;
        self.fills.metrics.fills_in_flight.dec();
    }

    /// Waits for this fill's turn.
    async fn turn(&self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        self.fills.metrics.fills_queued.inc();
        let both = async {
            let own = Arc::clone(&self.source.fills).acquire_owned().await.ok()?;
            Some((own, Arc::clone(&self.fills.permits).acquire_owned().await.ok()?))
        };
        let permits = tokio::time::timeout(self.fills.queue_timeout, both).await.ok().flatten();
        self.fills.metrics.fills_queued.dec();
        permits
    }

    /// Asks for one repository after another, until one is given the blob.
    async fn ask(&self) {
        let mut held = self.fills.store.resume(self.source.name(), &self.fill.digest).await;
        loop {
            let Some(name) = self.fill.next() else {
                if self.entry.retire_if(|fill| lock(&fill.wanted).pending.is_empty()) {
                    return self.fills.discard(held).await;
                }
                continue;
            };
            let received = held.as_ref().map_or(0, |(partial, _)| partial.len());
            match self.get(&name, received).await {
                Ok(stream) => return self.receive(name, stream, held).await,
                // What the partial holds is not where upstream's blob goes on (it may even be all of it): from the start, then.
                Err(UpstreamError::Corrupt { .. }) if received > 0 => {
                    self.fills.discard(held.take()).await;
                    lock(&self.fill.wanted).pending.push_front(name);
                }
                Err(error @ (UpstreamError::NotFound | UpstreamError::Denied { .. } | UpstreamError::CredentialRefused { .. })) => {
                    self.fill.state.send_modify(|state| state.refused.push((name, error)));
                }
                Err(error) => {
                    // First: who asks from now on shall find it.
                    drop(held);
                    return self.end(FillError::Upstream(error));
                }
            }
        }
    }

    async fn get(&self, name: &RepositoryName, offset: u64) -> Result<BlobStream, UpstreamError> {
        let call = Call { deadline: Instant::now() + HEADERS_TIMEOUT, exchange: Arc::clone(&self.fill.exchange) };
        self.source.upstream.get_blob(name, &self.fill.digest, offset, &call).await
    }

    /// Nobody gets anything. The flight ends first, so that who asks from now on begins anew.
    fn end(&self, error: FillError) {
        tracing::warn!(upstream = %self.source.name(), digest = %self.fill.digest, ?error, "a download failed");
        self.source.metrics.filled(FillResult::Failed);
        self.entry.retire();
        self.fill.fail(error);
    }

    async fn receive(&self, name: RepositoryName, stream: BlobStream, held: Option<(PartialBlob, Verifier)>) {
        let size = match (stream.size, self.listed) {
            (Some(said), Some(listed)) if said != listed => {
                let detail = format!("upstream says {said} bytes, a manifest says {listed}");
                drop(held);
                return self.end(FillError::Upstream(UpstreamError::Corrupt { detail }));
            }
            (said, listed) => said.or(listed),
        };
        let Begun { intake, file, bypass } = self.begin(held, size).await;
        let tail = Arc::new(Tail::new(file, intake.verifier.len(), size));
        if bypass.is_some() {
            tail.divert();
            self.entry.retire();
        }
        let opened = Opened { tail: Arc::clone(&tail), repository: name.clone(), bypass };
        self.fill.state.send_modify(|state| state.opened = Some(opened));
        let mut transfer = Transfer { task: self, name, tail, size, intake: Some(intake), breaks: 0 };
        let received = transfer.receive_all(stream).await;
        transfer.conclude(received).await;
    }

    /// The place for the bytes: a partial that goes on, a new one, or none.
    async fn begin(&self, held: Option<(PartialBlob, Verifier)>, size: Option<u64>) -> Begun {
        let Some((mut partial, verifier)) = held else {
            let verifier = Verifier::new(&self.fill.digest);
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

    fn bypass(&self, error: &StoreError) -> BypassReason {
        tracing::warn!(digest = %self.fill.digest, %error, "a blob passes through without being stored");
        match error {
            StoreError::Full => BypassReason::DiskFull,
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

/// A download whose headers have come, until its last byte.
struct Transfer<'a> {
    task: &'a Task,
    name: RepositoryName,
    tail: Arc<Tail>,
    size: Option<u64>,
    /// `None` while a batch is being absorbed.
    intake: Option<Intake>,
    breaks: u32,
}

type Absorbing = Pin<Box<dyn Future<Output = Absorbed> + Send>>;

impl Transfer<'_> {
    /// Receives to the end, over as many connections as it takes.
    async fn receive_all(&mut self, mut stream: BlobStream) -> Result<(), UpstreamError> {
        loop {
            let before = self.tail.progress().received;
            let error = match self.pump(&mut stream).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if self.tail.progress().received > before {
                self.breaks = 0;
            }
            stream = self.resume(error).await?;
        }
    }

    /// A new connection to go on with, also when the URL that upstream redirected to has expired: it is asked for a new one.
    async fn resume(&mut self, mut error: UpstreamError) -> Result<BlobStream, UpstreamError> {
        let task = self.task;
        loop {
            self.breaks += 1;
            if !error.is_transient() || self.breaks > BREAKS_MAX {
                return Err(error);
            }
            task.source.metrics.retried(&error);
            let received = self.tail.progress().received;
            tracing::info!(upstream = %task.source.name(), digest = %task.fill.digest, received, %error, "a download broke; it goes on");
            tokio::time::sleep(task.fills.rng.jitter(BREAK_PAUSE * 2_u32.pow(self.breaks))).await;
            match task.get(&self.name, received).await {
                Ok(stream) if stream.size.is_some() && self.size.is_some() && stream.size != self.size => {
                    return Err(UpstreamError::Corrupt { detail: "the blob's size changed while it was downloaded".into() });
                }
                Ok(stream) => return Ok(stream),
                Err(next) => error = next,
            }
        }
    }

    /// Receives from one connection, while the batch before is hashed and written.
    async fn pump(&mut self, stream: &mut BlobStream) -> Result<(), UpstreamError> {
        let mut received = self.tail.progress().received;
        // An upstream that ignores Range begins again; what is here already is passed over.
        let mut skip = received.saturating_sub(stream.offset);
        let mut batch = Vec::new();
        let mut batch_bytes = 0;
        let mut absorbing: Option<Absorbing> = None;
        let mut ended: Option<Result<(), UpstreamError>> = None;
        loop {
            if absorbing.is_none() && !batch.is_empty() {
                if self.tail.is_diverted() && !self.tail.room().await {
                    return Err(UpstreamError::Corrupt { detail: "nobody reads this blob, and it cannot be stored".into() });
                }
                absorbing = self.absorb(std::mem::take(&mut batch));
                batch_bytes = 0;
            }
            let busy = absorbing.is_some();
            if let (false, Some(ended)) = (busy, ended.take_if(|_| !busy)) {
                return ended;
            }
            tokio::select! {
                absorbed = async { match &mut absorbing { Some(absorbing) => absorbing.await, None => std::future::pending().await } } => {
                    absorbing = None;
                    self.publish(absorbed);
                }
                chunk = stream.next(), if ended.is_none() && batch_bytes < INTAKE_BYTES_MAX => match chunk {
                    Ok(Some(mut chunk)) => {
                        let skipped = skip.min(chunk.len() as u64);
                        skip -= skipped;
                        let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(usize::MAX));
                        received += chunk.len() as u64;
                        batch_bytes += chunk.len() as u64;
                        if self.size.is_some_and(|size| received > size) {
                            ended = Some(Err(UpstreamError::Corrupt { detail: "the body is longer than the blob".into() }));
                        } else if !chunk.is_empty() {
                            batch.push(chunk);
                        }
                    }
                    Ok(None) if self.size.is_some_and(|size| received < size) => ended = Some(Err(broken("the body ended early"))),
                    Ok(None) => ended = Some(Ok(())),
                    Err(error) => ended = Some(Err(error)),
                },
            }
        }
    }

    /// Hashes a batch, each chunk while it is hot in cache, then writes it; both off the async workers.
    fn absorb(&mut self, batch: Vec<Bytes>) -> Option<Absorbing> {
        let mut intake = self.intake.take()?;
        let gate = self.task.fills.gate.clone();
        let work = move || {
            let mut unstored = Vec::new();
            let mut error = None;
            for chunk in batch {
                intake.verifier.update(&chunk);
                match intake.partial.as_mut().map(|partial| partial.append(&chunk)) {
                    Some(Ok(())) => {}
                    Some(Err(failed)) => {
                        error = Some(failed);
                        // Readers go on with what the file holds; its name is of no use any more.
                        if let Some(partial) = intake.partial.take() {
                            partial.discard();
                        }
                        unstored.push(chunk);
                    }
                    None => unstored.push(chunk),
                }
            }
            Absorbed { intake, unstored, error }
        };
        Some(Box::pin(async move { gate.run(work).await }))
    }

    fn publish(&mut self, absorbed: Absorbed) {
        let Absorbed { intake, unstored, error } = absorbed;
        let stored = intake.verifier.len() - unstored.iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        self.intake = Some(intake);
        if !self.tail.is_diverted() {
            self.tail.advance(stored);
        }
        if let Some(error) = error {
            let reason = self.task.bypass(&error);
            self.tail.divert();
            // Who comes now would find the beginning gone.
            self.task.entry.retire();
            self.task.fill.state.send_modify(|state| {
                if let Some(opened) = &mut state.opened {
                    opened.bypass = Some(reason);
                }
            });
        }
        self.tail.pass(unstored);
    }

    /// Verifies and commits, or lets everybody's connection break.
    async fn conclude(&mut self, received: Result<(), UpstreamError>) {
        let task = self.task;
        let Some(intake) = self.intake.take() else {
            return self.fail(broken("a batch was lost"));
        };
        let verified = match received {
            Ok(()) => intake.verifier.finish(&task.fill.digest).map_err(|mismatch| {
                task.source.metrics.mismatched("blob");
                tracing::error!(upstream = %task.source.name(), digest = %task.fill.digest, %mismatch, "upstream sent wrong bytes");
                UpstreamError::Corrupt { detail: mismatch.to_string() }
            }),
            Err(error) => Err(error),
        };
        match (verified, intake.partial) {
            (Ok(verified), Some(partial)) => {
                self.tail.finish(Phase::Verified);
                let (store, upstream, digest) = (Arc::clone(&task.fills.store), Arc::clone(task.source.name()), task.fill.digest);
                let commit = move || {
                    store.confirm(&upstream, &digest);
                    partial.commit(verified)
                };
                let stored = task.fills.gate.run(commit).await;
                if let Err(error) = &stored {
                    tracing::error!(digest = %task.fill.digest, %error, "a verified blob could not be stored");
                }
                task.source.metrics.filled(if stored.is_ok() { FillResult::Stored } else { FillResult::Bypassed });
            }
            (Ok(_), None) => {
                self.tail.finish(Phase::Verified);
                task.source.metrics.filled(FillResult::Bypassed);
            }
            (Err(error), partial) => {
                // What broke may go on later; what is wrong must not.
                if let Some(partial) = partial
                    && matches!(error, UpstreamError::Corrupt { .. })
                {
                    task.fills.gate.run(move || partial.discard()).await;
                }
                self.fail(error);
            }
        }
    }

    fn fail(&self, error: UpstreamError) {
        self.task.end(FillError::Upstream(error));
        self.tail.finish(Phase::Failed);
    }
}

fn broken(detail: &str) -> UpstreamError {
    UpstreamError::Unavailable { reason: UnavailableReason::Broken, detail: detail.into() }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
