//! When a login may be tried. A bad password tried for every pull locks the account out; so a refused login is held off for
//! minutes, or until the secret changes, and an unproven one is tried by one question at a time.

use parking_lot::{Mutex, MutexGuard};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncGuard, Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::credentials::{Held, Login, Source, Version};
use crate::oci::RepositoryName;
use crate::rng::Rng;
use crate::upstream::UpstreamError;
use crate::upstream::limits::breaker::{Backoff, Breaker, Open};

/// Docker Hub locks an account for an hour after some failures within minutes.
const HOLD_OFF: Backoff = Backoff { first: Duration::from_mins(5), max: Duration::from_hours(1) };
/// Questions to a token server at a time. So many, at most, fail with a password that has just gone bad.
const TURNS: usize = 4;
const RENEWED_FOR: Duration = Duration::from_mins(1);

/// Hands out one credential's login, or that of nobody.
pub struct Signer {
    source: Option<Arc<Source>>,
    known: Mutex<Known>,
    breaker: Breaker,
    proving: AsyncMutex<()>,
    turns: Semaphore,
    rng: Arc<Rng>,
}

#[derive(Default)]
struct Known {
    proven: Option<Version>,
    renewed_at: Option<Instant>,
    refused: Option<(Version, UpstreamError)>,
    refusals: u64,
}

/// A login that may be tried.
#[derive(Clone)]
pub struct Offer {
    pub held: Held,
    /// So many had been refused when it was made.
    refusals: u64,
}

/// A place among those who try a login, held until the answer has come.
#[expect(dead_code, reason = "holding it is all it is for")]
pub enum Turn<'a> {
    /// None is needed.
    Free,
    /// Nobody else tries while this one finds out whether the login is good.
    Proving(AsyncGuard<'a, ()>),
    Sharing(SemaphorePermit<'a>),
}

/// Where a login is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It goes along with every question: a proven one needs no turn.
    Registry,
    TokenServer,
}

impl Signer {
    pub fn new(source: Option<Arc<Source>>, rng: Arc<Rng>) -> Signer {
        Signer {
            source,
            known: Mutex::default(),
            breaker: Breaker::default(),
            proving: AsyncMutex::default(),
            turns: Semaphore::new(TURNS),
            rng,
        }
    }

    pub fn name(&self) -> &str {
        self.source.as_ref().map_or("anonymous", |source| source.name())
    }

    /// The login for a repository, now.
    ///
    /// # Errors
    /// When it cannot be had, or upstream has refused this very one of late.
    pub async fn login(&self, repository: &RepositoryName) -> Result<Offer, UpstreamError> {
        let refusals = self.known().refusals;
        let Some(source) = &self.source else { return Ok(Offer { held: Login::Anonymous.into(), refusals }) };
        let held = source.login(repository).await?;
        if self.has_refused(&held).is_some() {
            // Its outcome comes by `accepted` or `refused`.
            self.breaker.enter(Instant::now()).map_err(|open| open.why)?.detach();
        }
        Ok(Offer { held, refusals })
    }

    /// Waits for the turn to try a login: alone, while nobody knows whether it is good.
    ///
    /// # Errors
    /// When it was refused meanwhile.
    pub async fn turn(&self, offer: &Offer, place: Place) -> Result<Turn<'_>, UpstreamError> {
        if matches!(offer.held.login, Login::Anonymous) {
            return Ok(Turn::Free);
        }
        let mut turn = Turn::Free;
        if !self.is_proven(offer) {
            turn = Turn::Proving(self.proving.lock().await);
        }
        if self.is_proven(offer) {
            turn = match place {
                Place::Registry => Turn::Free,
                // The semaphore is never closed.
                Place::TokenServer => self.turns.acquire().await.map_or(Turn::Free, Turn::Sharing),
            };
        }
        let is_newly_refused = self.known().refusals != offer.refusals;
        match self.has_refused(&offer.held).filter(|_| is_newly_refused) {
            Some(why) => Err(why),
            None => Ok(turn),
        }
    }

    fn is_proven(&self, offer: &Offer) -> bool {
        self.known().proven == Some(offer.held.version)
    }

    /// Upstream took it.
    pub fn accepted(&self, held: &Held) {
        let mut known = self.known();
        if known.proven != Some(held.version) {
            known.proven = Some(held.version);
            known.refused = None;
            self.breaker.clear();
        }
    }

    /// Upstream refused it: from now on it is held off. Returns another, where there is one by now: a file was rotated, a
    /// program gives a new one.
    pub async fn refused(&self, held: &Held, repository: &RepositoryName, why: &UpstreamError) -> Option<Offer> {
        let source = self.source.as_ref()?;
        self.hold_off(held, why);
        source.refused(&held.version);
        let again = source.login(repository).await.ok().filter(|again| again.version != held.version)?;
        Some(Offer { held: again, refusals: self.known().refusals })
    }

    /// Another login than this one, which may have expired although upstream does not say so. Asked for once a minute at most: a
    /// program may be costly, and most refusals are not about the login.
    pub async fn renewed(&self, held: &Held, repository: &RepositoryName) -> Option<Offer> {
        let source = self.source.as_ref()?;
        let now = Instant::now();
        if self.known().renewed_at.is_some_and(|renewed| now - renewed < RENEWED_FOR) {
            return None;
        }
        self.known().renewed_at = Some(now);
        source.refused(&held.version);
        let again = source.login(repository).await.ok().filter(|again| again.version != held.version)?;
        Some(Offer { held: again, refusals: self.known().refusals })
    }

    /// How long a login that was refused is held off, unless there is another by now, for which nobody looks here.
    pub fn held_off(&self, now: Instant) -> Option<Open> {
        let is_refused = self.known().refused.is_some();
        self.breaker.state(now).filter(|_| is_refused)
    }

    fn hold_off(&self, held: &Held, why: &UpstreamError) {
        let mut known = self.known();
        known.refusals += 1;
        known.proven = known.proven.filter(|proven| *proven != held.version);
        known.refused = Some((held.version, why.clone()));
        let now = Instant::now();
        let (wait, _) = self.breaker.open(now, now, why, None, HOLD_OFF, |wait| self.rng.jitter(wait));
        let (credential, seconds) = (self.name(), wait.as_secs());
        tracing::error!(credential, %why, seconds, "upstream refused a credential; it is not tried again until it changes or this time is over");
    }

    fn has_refused(&self, held: &Held) -> Option<UpstreamError> {
        self.known().refused.as_ref().filter(|(version, _)| *version == held.version).map(|(_, why)| why.clone())
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock()
    }
}
