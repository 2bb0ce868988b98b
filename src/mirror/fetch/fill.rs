//! One download as those who wait for it see it: on whose behalf upstream is asked, what it said, and how far it is.
//! Knows no task and no network.

use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::watch;

use super::error::FillError;
use crate::labels::BypassReason;
use crate::oci::{Digest, RepositoryName};
use crate::store::{Phase, Tail};
use crate::upstream::{Exchange, UpstreamError};

/// One download.
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
    pub(super) fn new(digest: Digest, repository: RepositoryName, interest: Interest) -> Fill {
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

    /// Waits until nothing comes any more, and what could be stored is. Says why it was not, as far as the store's
    /// refusal is why.
    pub async fn ended(&self) -> Option<BypassReason> {
        let mut state = self.state.subscribe();
        let ended = state.wait_for(|state| state.ended).await;
        ended.ok().and_then(|state| state.opened.as_ref()?.bypass)
    }

    /// Whether anybody came for the bytes. Once its key has been released, nobody comes any more.
    pub(super) fn has_readers(&self) -> bool {
        self.has_readers.load(Ordering::Relaxed)
    }

    pub(super) fn want(&self, repository: &RepositoryName, interest: Interest) {
        if interest != Interest::Stored {
            self.has_readers.store(true, Ordering::Relaxed);
        }
        let mut wanted = self.wanted.lock();
        if !wanted.asked.contains(repository) && !wanted.pending.contains(repository) {
            wanted.pending.push_back(repository.clone());
        }
    }

    pub(super) fn next(&self) -> Option<RepositoryName> {
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

    /// Whoever still waits learns that nothing comes; after a proper end nobody does.
    pub(super) fn abandon(&self) {
        self.state.send_modify(|state| {
            if let Some(opened) = state.opened.as_ref().filter(|opened| opened.tail.progress().phase == Phase::Receiving) {
                opened.tail.finish(Phase::Failed);
            }
            state.failed.get_or_insert(FillError::Ended);
            state.ended = true;
        });
    }

    pub(super) fn fail(&self, error: FillError) {
        self.state.send_modify(|state| state.failed = Some(error));
    }

    /// This repository gets nothing; others may.
    pub(super) fn refuse(&self, name: RepositoryName, error: UpstreamError) {
        self.state.send_modify(|state| state.refused.push((name, error)));
    }

    /// Upstream's answer has come.
    pub(super) fn open(&self, opened: Opened) {
        self.state.send_modify(|state| state.opened = Some(opened));
    }

    /// The repository is to be asked for once more, before others.
    pub(super) fn ask_again(&self, name: RepositoryName) {
        self.wanted.lock().pending.push_front(name);
    }

    /// Whether every repository that wants it has been asked for.
    pub(super) fn is_asked_out(&self) -> bool {
        self.wanted.lock().pending.is_empty()
    }

    /// Whether this tail is what its readers read.
    pub(super) fn follows(&self, tail: &Arc<Tail>) -> bool {
        self.state.borrow().opened.as_ref().is_some_and(|opened| Arc::ptr_eq(&opened.tail, tail))
    }
}
