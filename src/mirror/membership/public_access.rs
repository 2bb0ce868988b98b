//! Who may read what larder's own credential can read. Where a credential only raises the limit (`visibility: public`),
//! a client may read a repository if upstream shows it to anybody, which an anonymous HEAD tells.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Timestamp;
use crate::mirror::deadline::{CHECK_TIMEOUT, in_time, report_answer};
use crate::mirror::membership::Mode;
use crate::mirror::{Asked, Error, Mirror, Repository};
use crate::store::RepositoryKey;
use crate::upstream::{Call, UpstreamError};

/// How long a yes is good. A no is asked about each time: it is the rarer word, and may be mended any moment.
const SHOWN_FOR: Duration = Duration::from_hours(24);

/// In place of when a repository was shown, from the day that it no longer is.
const NEVER: Timestamp = Timestamp(0);

/// When upstream last showed a repository to anybody, if it did.
#[derive(Clone, Copy)]
pub(in crate::mirror) struct Shown(Option<Timestamp>);

impl Shown {
    /// Nobody needs to be asked.
    pub(in crate::mirror) fn is_good(self, now: Timestamp) -> bool {
        self.is_within(SHOWN_FOR, now)
    }

    pub(in crate::mirror) fn is_within(self, bound: Duration, now: Timestamp) -> bool {
        self.0.is_some_and(|shown| shown != NEVER && now.distance(shown) < bound)
    }

    /// Whether it did, and has not said otherwise since.
    fn was_ever(self) -> bool {
        self.0.is_some_and(|shown| shown != NEVER)
    }

    /// How long ago that was, and for how long more it is good; `None` where upstream has not said so, or has said
    /// otherwise since.
    pub(in crate::mirror) fn age(self, now: Timestamp) -> Option<(Duration, Duration)> {
        let age = now.distance(self.0.filter(|shown| *shown != NEVER)?);
        Some((age, SHOWN_FOR.saturating_sub(age)))
    }
}

/// What upstream says to nobody in particular.
pub(in crate::mirror) type Verdict = Result<(), UpstreamError>;

impl Mirror {
    /// Lets the clients of a repository in whose upstream shows public ones only, or says why not: what upstream says
    /// to anybody, it says to them.
    pub(in crate::mirror) async fn admit(self: &Arc<Mirror>, repository: &Repository, asked: impl FnOnce() -> Asked) -> Result<(), Error> {
        if !repository.source.upstream.shows_public_only() {
            return Ok(());
        }
        let (shown, now) = (self.shown(&repository.key, Mode::Use).await, self.clock.now());
        if shown.is_good(now) {
            return Ok(());
        }
        let asked = &asked();
        self.remembered(repository, asked)?;
        let key = (repository.key.clone(), asked.clone());
        let pending = self.verdicts.ask(key, || Arc::clone(self).ask_as_nobody(repository.clone(), asked.clone()));
        let may_stand = shown.is_within(repository.source.tags.stale_if_error, now);
        let pending = if may_stand { pending.goes_on() } else { pending };
        let verdict = match may_stand {
            true => in_time(repository, &pending, self.revalidate_wait).await,
            false => Some(pending.answer().await),
        };
        let no_word = || Err(UpstreamError::TimedOut { detail: "no word on the repository".into() });
        let verdict = verdict.map_or_else(no_word, |verdict| verdict?);
        match verdict {
            Ok(()) => Ok(()),
            // Upstream cannot say, and has said yes before.
            Err(error) if error.says_nothing() && may_stand => Ok(()),
            Err(error) => {
                let error = Error::from_upstream(repository.upstream_name(), asked.what(), &error);
                Err(self.told(repository, asked.clone(), error))
            }
        }
    }

    async fn ask_as_nobody(self: Arc<Mirror>, repository: Repository, asked: Asked) -> Verdict {
        let since = repository.source.patience.begin();
        let verdict = self.seen_by_anybody(&repository, &asked).await;
        report_answer(&repository, since, verdict.as_ref().err());
        match &verdict {
            Ok(()) => self.set_shown(&repository, self.clock.now()).await,
            // What upstream said before is no longer its last word.
            Err(UpstreamError::Denied { .. }) if self.shown(&repository.key, Mode::Use).await.was_ever() => {
                self.set_shown(&repository, NEVER).await;
            }
            Err(_) => {}
        }
        verdict
    }

    async fn seen_by_anybody(&self, repository: &Repository, asked: &Asked) -> Verdict {
        let call = Call::until(Instant::now() + CHECK_TIMEOUT).anonymous();
        let (upstream, name) = (&repository.source.upstream, repository.name());
        match asked {
            Asked::Manifest(reference) => {
                let head = upstream.head_manifest(name, reference, &call).await?;
                // A registry without HEAD has said nothing yet.
                if head.digest.is_none() {
                    upstream.get_manifest(name, reference, &call).await?;
                }
            }
            Asked::Blob(digest) => {
                upstream.head_blob(name, digest, &call).await?;
            }
        }
        Ok(())
    }

    async fn set_shown(&self, repository: &Repository, at: Timestamp) {
        self.shown.insert(repository.key.clone(), at);
        self.note(self.store.set_shown(&repository.key, at).await);
    }

    /// The last word on a repository.
    pub(in crate::mirror) async fn shown(&self, key: &RepositoryKey, mode: Mode) -> Shown {
        if let Some(shown) = self.shown.get(key) {
            return Shown(Some(shown));
        }
        let shown = self.store.shown(key).await;
        if let (Some(shown), Mode::Use) = (shown, mode) {
            self.shown.insert(key.clone(), shown);
        }
        Shown(shown)
    }
}
