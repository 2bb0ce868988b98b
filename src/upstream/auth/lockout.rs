//! When a login may be shown. A bad password that is tried for every pull locks the account out, and one repository's refusal
//! says nothing about the others. So a refused login is held off for everybody only after the sign-in without a scope has refused
//! it too (`sign_in`); until that is known, the doubt stays with the repository that refused.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncGuard};
use tokio::time::Instant;

use super::credentials::{Held, Login, Source, Version};
use crate::oci::RepositoryName;
use crate::rng::Rng;
use crate::upstream::UpstreamError;
use crate::upstream::limits::breaker::{Backoff, Breaker, Open};

/// Docker Hub locks an account for an hour after some failures within minutes.
const HOLD_OFF: Backoff = Backoff { first: Duration::from_mins(5), max: Duration::from_hours(1) };
/// Docker Hub says 429 to logins after too many that failed, and does not say for how long.
pub(super) const LIMITED: Backoff = Backoff { first: Duration::from_mins(1), max: Duration::from_hours(1) };
/// How long a repository stays denied to an accepted login without being asked again: each question costs a token.
const DENIED_FOR: Duration = Duration::from_mins(1);
/// So many repositories refuse a login that nobody has accepted, where the sign-in cannot tell, until it is held off for all.
const REFUSING_MAX: usize = 3;
const RENEWED_FOR: Duration = Duration::from_mins(1);
/// How long a question waits for another that tries an unproven login; longer than a registry takes that is well.
const TURN_WAIT_MAX: Duration = Duration::from_secs(15);
/// What is left to a question when its turn comes: less would not be answered.
const TIME_TO_SIGN_IN: Duration = Duration::from_secs(5);
const TURN_RETRY_AFTER: Duration = Duration::from_secs(5);
/// Logins of one source: a program may give one for each repository.
const LOGINS_MAX: u64 = 1_000;
const REPOSITORIES_MAX: u64 = 10_000;

/// Hands out one credential's login, or that of nobody.
pub struct Signer {
    source: Option<Arc<Source>>,
    logins: Cache<Version, Arc<Mutex<Standing>>>,
    /// Refused for these repositories alone.
    refusals: Cache<(Version, RepositoryName), Arc<Breaker>>,
    last: Mutex<Last>,
    proving: AsyncMutex<()>,
    rng: Arc<Rng>,
}

#[derive(Default)]
struct Last {
    renewed_at: Option<Instant>,
    /// The login that was handed out last.
    version: Option<Version>,
}

/// What is known of one login.
#[derive(Default)]
struct Standing {
    /// Upstream took it, here or at the sign-in.
    is_accepted: bool,
    sign_in: Option<(Instant, SignedIn)>,
    refused_by: Vec<RepositoryName>,
    /// Refused by the sign-in: held off for everybody.
    lockout: Option<Arc<Breaker>>,
}

/// What the sign-in without a scope has said of a login that it did not refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignedIn {
    Accepted,
    /// It says the same to anybody, or says nothing of use.
    Unknown,
}

/// A place among those who try an unproven login, held until the answer has come.
#[expect(dead_code, reason = "holding it is all it is for")]
pub enum Turn<'a> {
    /// None is needed.
    Free,
    /// Nobody else tries while this one finds out whether the login is good.
    Proving(AsyncGuard<'a, ()>),
}

impl Signer {
    pub fn new(source: Option<Arc<Source>>, rng: Arc<Rng>) -> Signer {
        Signer {
            source,
            logins: Cache::new(LOGINS_MAX),
            refusals: Cache::new(REPOSITORIES_MAX),
            last: Mutex::default(),
            proving: AsyncMutex::default(),
            rng,
        }
    }

    pub fn name(&self) -> &str {
        self.source.as_ref().map_or("anonymous", |source| source.name())
    }

    /// The login for a repository, now.
    ///
    /// # Errors
    /// When it cannot be had, or is held off for everybody.
    pub async fn login(&self, repository: &RepositoryName) -> Result<Held, UpstreamError> {
        let Some(source) = &self.source else { return Ok(Login::Anonymous.into()) };
        let held = source.login(repository).await?;
        self.last.lock().version = Some(held.version);
        let lockout = self.logins.get(&held.version).and_then(|standing| standing.lock().lockout.clone());
        if let Some(lockout) = lockout {
            // The outcome is reported by `accepted` or `lock_out`.
            lockout.enter(Instant::now()).map_err(|open| open.why)?.detach();
        }
        Ok(held)
    }

    /// Another login than this one, where the source has one by now: a file was rotated, a program has run again.
    pub async fn other(&self, held: &Held, repository: &RepositoryName) -> Option<Held> {
        self.login(repository).await.ok().filter(|other| other.version != held.version)
    }

    /// Another login than this one, which was refused: a program is run again for it.
    pub async fn replaced(&self, held: &Held, repository: &RepositoryName) -> Option<Held> {
        self.source.as_ref()?.refused(&held.version);
        self.other(held, repository).await
    }

    /// The same, where a refusal does not say that it is the login's. Once a minute at most: a program may be costly, and most
    /// refusals are not about the login.
    pub async fn renewed(&self, held: &Held, repository: &RepositoryName) -> Option<Held> {
        let now = Instant::now();
        {
            let mut last = self.last.lock();
            if last.renewed_at.is_some_and(|renewed| now - renewed < RENEWED_FOR) {
                return None;
            }
            last.renewed_at = Some(now);
        }
        self.replaced(held, repository).await
    }

    /// Why this login is not shown for this repository now, if it is not.
    ///
    /// # Errors
    /// With what was answered the last time: denied, in doubt, or limited.
    pub fn check(&self, held: &Held, repository: &RepositoryName) -> Result<(), UpstreamError> {
        let refusal = self.refusals.get(&(held.version, repository.clone()));
        match refusal.and_then(|breaker| breaker.refusal(Instant::now())) {
            // The sign-in has decided since: asked again, the repository's refusal is about the repository.
            Some(UpstreamError::CredentialRefused { .. }) if self.signed_in(held, Duration::MAX) == Some(SignedIn::Accepted) => Ok(()),
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    pub fn is_accepted(&self, held: &Held) -> bool {
        matches!(held.login, Login::Anonymous) || self.standing(held).lock().is_accepted
    }

    /// Whether upstream has taken the login that was handed out last.
    pub fn has_accepted_last(&self) -> bool {
        let standing = self.last.lock().version.and_then(|version| self.logins.get(&version));
        standing.is_some_and(|standing| standing.lock().is_accepted)
    }

    /// Waits for the turn to show a login that nobody has accepted yet: alone.
    ///
    /// # Errors
    /// `Overloaded`, when others take too long over it, or leave too little time until `deadline`.
    pub async fn turn(&self, deadline: Instant) -> Result<Turn<'_>, UpstreamError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = TURN_WAIT_MAX.min(left - TIME_TO_SIGN_IN.min(left / 2));
        let waited = tokio::time::timeout(wait, self.proving.lock()).await;
        waited.map(Turn::Proving).map_err(|_| UpstreamError::Overloaded { retry_after: TURN_RETRY_AFTER })
    }

    /// Whether the sign-in has refused the login before, so that it is the one to ask again.
    ///
    /// # Errors
    /// With that refusal, while the login is locked out.
    pub fn was_locked_out(&self, held: &Held) -> Result<bool, UpstreamError> {
        let lockout = self.standing(held).lock().lockout.clone();
        match lockout.as_ref().and_then(|lockout| lockout.refusal(Instant::now())) {
            Some(why) => Err(why),
            None => Ok(lockout.is_some()),
        }
    }

    /// What the last sign-in has said, if it is not older than this.
    pub fn signed_in(&self, held: &Held, age_max: Duration) -> Option<SignedIn> {
        self.standing(held).lock().sign_in.filter(|(at, _)| at.elapsed() < age_max).map(|(_, said)| said)
    }

    /// Upstream took the login.
    pub fn accepted(&self, held: &Held) {
        if !self.is_accepted(held) {
            let standing = self.standing(held);
            let mut standing = standing.lock();
            *standing = Standing { is_accepted: true, sign_in: standing.sign_in, ..Standing::default() };
        }
    }

    /// Upstream took the login for this repository.
    pub fn accepted_for(&self, held: &Held, repository: &RepositoryName) {
        if matches!(held.login, Login::Anonymous) {
            return;
        }
        self.accepted(held);
        self.refusals.invalidate(&(held.version, repository.clone()));
    }

    /// The sign-in did not refuse the login.
    pub fn note_sign_in(&self, held: &Held, said: SignedIn) {
        if said == SignedIn::Accepted {
            self.accepted(held);
        }
        self.standing(held).lock().sign_in = Some((Instant::now(), said));
    }

    /// An accepted login was refused for this repository.
    pub fn denied(&self, held: &Held, repository: &RepositoryName, why: &UpstreamError) {
        // What it said while the login was in doubt is void.
        self.refusals.invalidate(&(held.version, repository.clone()));
        self.refuse(held, repository, why, Some(DENIED_FOR), HOLD_OFF);
    }

    /// The rate is limited for this repository. Returns for how long.
    pub fn limited(&self, held: &Held, repository: &RepositoryName, retry_after: Option<Duration>) -> Duration {
        self.refuse(held, repository, &UpstreamError::RateLimited { retry_after: None }, retry_after, LIMITED)
    }

    /// The token server asks to come back later, for this repository.
    pub fn busy(&self, held: &Held, repository: &RepositoryName, why: &UpstreamError, retry_after: Duration) {
        self.refuse(held, repository, why, Some(retry_after), LIMITED);
    }

    /// A repository refused the login, and the sign-in cannot say whether another will: the doubt stays with this repository, until
    /// too many refuse a login that nobody has accepted.
    pub fn doubt(&self, held: &Held, repository: &RepositoryName, why: &UpstreamError) {
        if !matches!(why, UpstreamError::RateLimited { .. }) {
            let seconds = self.refuse(held, repository, why, None, HOLD_OFF).as_secs();
            let credential = self.name();
            tracing::error!(credential, %repository, %why, seconds, "upstream refused a credential for a repository; it is not tried there before this time is over");
        }
        let standing = self.standing(held);
        let mut guard = standing.lock();
        if guard.is_accepted {
            return;
        }
        if matches!(why, UpstreamError::CredentialRefused { .. }) && !guard.refused_by.contains(repository) {
            guard.refused_by.push(repository.clone());
        }
        let is_refused_by_all = guard.refused_by.len() >= REFUSING_MAX;
        drop(guard);
        if is_refused_by_all {
            self.lock_out(held, why);
        }
    }

    /// The sign-in refused the login: from now on it is held off for everybody.
    pub fn lock_out(&self, held: &Held, why: &UpstreamError) {
        let standing = self.standing(held);
        let mut standing = standing.lock();
        let lockout = standing.lockout.take().unwrap_or_default();
        *standing = Standing {
            lockout: Some(Arc::clone(&lockout)),
            // Where the sign-in cannot tell, one refusal more is enough the next time.
            refused_by: std::mem::take(&mut standing.refused_by),
            ..Standing::default()
        };
        let now = Instant::now();
        let (wait, _) = lockout.open(now, now, why, None, HOLD_OFF, |wait| self.rng.jitter(wait));
        let (credential, seconds) = (self.name(), wait.as_secs());
        tracing::error!(credential, %why, seconds, "upstream refused a credential; it is not tried again until it changes or this time is over");
    }

    /// How long the login that was used last is not shown for this repository, unless there is another by now.
    pub fn held_off(&self, repository: &RepositoryName, now: Instant) -> Option<Open> {
        let version = self.last.lock().version?;
        let lockout = self.logins.get(&version).and_then(|standing| standing.lock().lockout.clone());
        let refusal = || self.refusals.get(&(version, repository.clone())).filter(|breaker| breaker.refusal(now).is_some());
        lockout.or_else(refusal)?.state(now)
    }

    fn refuse(&self, held: &Held, repository: &RepositoryName, why: &UpstreamError, asked: Option<Duration>, backoff: Backoff) -> Duration {
        let breaker = self.refusals.get_with((held.version, repository.clone()), Arc::default);
        let now = Instant::now();
        match breaker.state(now) {
            // Of several who were refused at once the first has said it.
            Some(open) if !open.left.is_zero() => open.left,
            _ => breaker.open(now, now, why, asked, backoff, |wait| self.rng.jitter(wait)).0,
        }
    }

    fn standing(&self, held: &Held) -> Arc<Mutex<Standing>> {
        self.logins.get_with(held.version, Arc::default)
    }
}
