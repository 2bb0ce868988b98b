//! GET and HEAD of a blob: stored, arriving, or yet to be asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fetch::{Fill, FillError, Interest, Opened};
use super::manifest::CHECK_TIMEOUT;
use super::{Asked, Error, Mirror, Repository, What};
use crate::labels::Outcome;
use crate::oci::{Digest, MIB};
use crate::store::{Blob, Link, Phase, Tail, Vouched};
use crate::upstream::{Call, Exchange, UpstreamError};

/// A blob of at most so many bytes is verified before its headers leave, so that a wrong one is an error and not a break.
const WHOLE_BYTES_MAX: u64 = MIB;
/// But no longer than this after upstream's headers.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A blob that may be served.
pub struct BlobAnswer {
    /// Bytes; `None` while nobody has said.
    pub size: Option<u64>,
    /// `None` for HEAD where nothing is held.
    pub body: Option<BlobBody>,
    pub outcome: Outcome,
    pub exchange: Option<Arc<Exchange>>,
}

pub enum BlobBody {
    Stored(Arc<Blob>),
    Arriving(Arc<Tail>),
}

/// What came of asking whether a repository has a blob: its size, where upstream said so.
pub(super) type Confirmation = Result<(Option<u64>, Arc<Exchange>), Error>;

/// A repository's right to a blob, by upstream's word.
pub(super) struct Confirmed {
    /// Bytes, where upstream said so.
    pub(super) size: Option<u64>,
    exchange: Arc<Exchange>,
    /// Whether somebody else had asked before.
    joined: bool,
}

impl Mirror {
    /// A blob as this repository may have it.
    ///
    /// # Errors
    /// When it has no such blob, or upstream cannot say.
    pub async fn blob(self: &Arc<Mirror>, repository: &Repository, digest: &Digest, deadline: Instant) -> Result<BlobAnswer, Error> {
        within(repository, deadline, self.find_blob(repository, digest)).await
    }

    async fn find_blob(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<BlobAnswer, Error> {
        self.store.look(&repository.key, Some(digest)).await;
        if repository.source.upstream.shows_public_only() {
            self.admit(repository, &Asked::Blob(*digest)).await?;
        }
        if let Some(answer) = self.stored(repository, digest).await?
            && let Some(answer) = self.vouched(answer).await
        {
            return Ok(answer);
        }
        let asked = Asked::Blob(*digest);
        self.remembered(repository, &asked)?;
        let link = self.store.link(&repository.key, digest);
        let (fill, joined) = match self.fills.join(repository, digest, listed_size(link), Interest::Bytes) {
            Some(joined) => joined,
            None => match self.stored(repository, digest).await? {
                // Stored between the two looks, and hashed as it came.
                Some(answer) => return Ok(answer),
                // Held, but not to be had just now.
                None => {
                    let passing = self.fills.join(repository, digest, listed_size(link), Interest::Passing);
                    passing.ok_or_else(|| self.lost(repository))?
                }
            },
        };
        let opened = fill.opened(repository.name()).await;
        let opened = opened.map_err(|error| self.told(repository, asked, error.into_error(repository.upstream_name())))?;
        self.entitle(repository, digest, &opened).await?;
        settle(&fill, &opened).await.map_err(|error| error.into_error(repository.upstream_name()))?;
        let outcome = match opened.bypass {
            Some(reason) => Outcome::Bypass(reason),
            None if joined => Outcome::Collapsed,
            None => Outcome::Miss,
        };
        let size = opened.tail.progress().size;
        Ok(BlobAnswer { size, body: Some(BlobBody::Arriving(opened.tail)), outcome, exchange: Some(Arc::clone(fill.exchange())) })
    }

    /// Whoever a fill was not asked for has a right of their own, or none.
    pub(super) async fn entitle(self: &Arc<Mirror>, repository: &Repository, digest: &Digest, opened: &Opened) -> Result<(), Error> {
        if opened.repository == *repository.name() {
            self.confirmed.insert(self.right(repository, digest), opened.tail.progress().size);
        } else if !self.may_have(repository, digest, self.store.link(&repository.key, digest)) {
            self.confirm(repository, digest).await?;
        }
        Ok(())
    }

    /// What HEAD says of a blob; it never begins a download.
    ///
    /// # Errors
    /// As [`Mirror::blob`].
    pub async fn blob_head(self: &Arc<Mirror>, repository: &Repository, digest: &Digest, deadline: Instant) -> Result<BlobAnswer, Error> {
        within(repository, deadline, self.find_blob_head(repository, digest)).await
    }

    async fn find_blob_head(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<BlobAnswer, Error> {
        self.store.look(&repository.key, Some(digest)).await;
        if repository.source.upstream.shows_public_only() {
            self.admit(repository, &Asked::Blob(*digest)).await?;
        }
        if let Some(answer) = self.stored(repository, digest).await? {
            return Ok(answer);
        }
        let link = self.store.link(&repository.key, digest);
        // A fill under way knows as much as upstream would say, for whoever may know.
        let running = self.fills.running(repository, digest).filter(|_| self.may_have(repository, digest, link));
        if let Some(fill) = running
            && let Ok(opened) = fill.opened(repository.name()).await
            && let Some(size) = opened.tail.progress().size
        {
            return Ok(BlobAnswer { size: Some(size), body: None, outcome: Outcome::Collapsed, exchange: None });
        }
        self.remembered(repository, &Asked::Blob(*digest))?;
        if let Some(Some(size)) = self.confirmed.get(&self.right(repository, digest)) {
            return Ok(BlobAnswer { size: Some(size), body: None, outcome: Outcome::Hit, exchange: None });
        }
        let Confirmed { size, exchange, joined } = self.confirm(repository, digest).await?;
        let outcome = if joined { Outcome::Collapsed } else { Outcome::Miss };
        Ok(BlobAnswer { size: size.or(listed_size(link)), body: None, outcome, exchange: Some(exchange) })
    }

    /// The stored blob, if it is held and this repository may have it.
    async fn stored(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<Option<BlobAnswer>, Error> {
        if !self.store.contains(digest) {
            return Ok(None);
        }
        let mut exchange = None;
        let link = self.store.link(&repository.key, digest);
        let mut size = listed_size(link);
        if !self.may_have(repository, digest, link) {
            self.remembered(repository, &Asked::Blob(*digest))?;
            let confirmed = self.confirm(repository, digest).await?;
            size = confirmed.size.or(size);
            exchange = Some(confirmed.exchange);
        }
        match self.store.blob(digest).await {
            // Either somebody has been at the file, or what was said of its size is wrong: the bytes tell.
            Ok(Some(blob)) if size.is_some_and(|size| size != blob.len()) && !self.store.is_intact(&blob).await => Ok(None),
            Ok(blob) => Ok(blob.map(|blob| BlobAnswer {
                size: Some(blob.len()),
                body: Some(BlobBody::Stored(Arc::new(blob))),
                outcome: Outcome::Hit,
                exchange,
            })),
            // A cache fault is a miss (invariant 9).
            Err(error) => {
                tracing::error!(%digest, %error, "a stored blob could not be opened");
                Ok(None)
            }
        }
    }

    /// A stored blob as far as it is to be believed; `None` when it was damaged, and is not held any more.
    async fn vouched(&self, answer: BlobAnswer) -> Option<BlobAnswer> {
        let Some(BlobBody::Stored(blob)) = answer.body else { return Some(answer) };
        let body = match self.store.vouch(blob).await {
            Vouched::Stored(blob) => BlobBody::Stored(blob),
            Vouched::Arriving(tail) => BlobBody::Arriving(tail),
            Vouched::Damaged => return None,
        };
        Some(BlobAnswer { body: Some(body), ..answer })
    }

    /// Whether a manifest of the repository's gives it the blob, or upstream has said so of late.
    pub(super) fn may_have(&self, repository: &Repository, digest: &Digest, link: Link) -> bool {
        matches!(link, Link::Listed { .. }) || self.confirmed.contains_key(&self.right(repository, digest))
    }

    /// Asks upstream whether this repository has the blob (invariant 14), once for all who want to know, and remembers what it
    /// says.
    pub(super) async fn confirm(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<Confirmed, Error> {
        let (key, asked) = (self.right(repository, digest), Asked::Blob(*digest));
        // Whoever asked may have been answered since the caller looked.
        let known = || match self.remembered(repository, &asked) {
            Err(error) => Some(Err(error)),
            Ok(()) => self.confirmed.get(&key).flatten().map(|size| Ok((Some(size), Arc::default()))),
        };
        let asking = || Arc::clone(self).ask_for_blob(repository.clone(), *digest);
        let pending = self.confirmations.ask_unless(key.clone(), known, |_| Duration::ZERO, asking);
        let answer = pending.answer().await;
        let answer = answer.unwrap_or_else(|error| Err(Error::from_upstream(repository.upstream_name(), What::Blob, &error.into())));
        answer.map(|(size, exchange)| Confirmed { size, exchange, joined: pending.joined })
    }

    async fn ask_for_blob(self: Arc<Mirror>, repository: Repository, digest: Digest) -> Confirmation {
        let call = Call::until(Instant::now() + CHECK_TIMEOUT);
        match repository.source.upstream.head_blob(repository.name(), &digest, &call).await {
            Ok(size) => {
                self.confirmed.insert(self.right(&repository, &digest), size);
                if self.store.contains(&digest) {
                    let (store, upstream) = (Arc::clone(&self.store), Arc::clone(repository.upstream_name()));
                    self.gate.run(move || store.confirm(&upstream, &digest)).await;
                }
                Ok((size, call.exchange))
            }
            Err(error) => {
                let error = Error::from_upstream(repository.upstream_name(), What::Blob, &error);
                Err(self.told(&repository, Asked::Blob(digest), error))
            }
        }
    }

    fn right(&self, repository: &Repository, digest: &Digest) -> (crate::store::RepositoryKey, Digest) {
        (repository.key.clone(), *digest)
    }

    fn lost(&self, repository: &Repository) -> Error {
        Error::Unavailable { upstream: Arc::clone(repository.upstream_name()), detail: "the blob was evicted while it was opened".into() }
    }
}

pub(super) fn listed_size(link: Link) -> Option<u64> {
    match link {
        Link::Listed { size } | Link::Doubtful { size } => Some(size),
        Link::Unlisted => None,
    }
}

/// Waits for a small blob to be verified whole.
async fn settle(fill: &Fill, opened: &Opened) -> Result<(), FillError> {
    if opened.tail.progress().size.is_none_or(|size| size > WHOLE_BYTES_MAX) {
        return Ok(());
    }
    let mut progress = opened.tail.subscribe();
    let settled = tokio::time::timeout(WHOLE_TIMEOUT, progress.wait_for(|progress| progress.phase != Phase::Receiving)).await;
    match settled {
        Ok(Ok(progress)) if progress.phase == Phase::Verified => Ok(()),
        // Slow: the headers leave, and the end is held back as for a large blob.
        Err(_) => Ok(()),
        Ok(_) => {
            Err(fill.failure().unwrap_or(FillError::Upstream(UpstreamError::Corrupt { detail: "the download ended".into() })))
        }
    }
}

/// No client waits longer for headers than its deadline.
pub(super) async fn within<T>(
    repository: &Repository,
    deadline: Instant,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let timed_out =
        || Error::TimedOut { upstream: Arc::clone(repository.upstream_name()), detail: "no answer within the client's deadline".into() };
    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| Err(timed_out()))
}
