//! GET and HEAD of a blob: stored, arriving, or yet to be asked for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::deadline::{CHECK_TIMEOUT, within};
use super::fetch::{BlobBody, BlobReader, Download, FillError, Interest, listed_size};
use super::{Asked, Error, Mirror, Repository, What};
use crate::labels::Outcome;
use crate::oci::Digest;
use crate::store::{Link, Phase, Vouched};
use crate::upstream::{Call, Exchange};

/// A blob that may be served.
pub struct BlobAnswer {
    /// Bytes; `None` while nobody has said.
    pub size: Option<u64>,
    /// `None` for HEAD where nothing is held.
    pub(super) body: Option<BlobBody>,
    pub outcome: Outcome,
    pub exchange: Option<Arc<Exchange>>,
}

impl BlobAnswer {
    /// The blob's size in bytes, once that is known: while nobody has said, it is when all of it has come. `None` when the download
    /// fails.
    pub async fn whole_size(&self) -> Option<u64> {
        match &self.body {
            Some(BlobBody::Arriving(tail)) if self.size.is_none() => {
                let mut progress = tail.subscribe();
                let end = progress.wait_for(|progress| progress.phase != Phase::Receiving).await.ok()?;
                (end.phase == Phase::Verified).then_some(end.received)
            }
            _ => self.size,
        }
    }
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
        let refused = |error: FillError| self.told(repository, asked.clone(), error.into_error(repository.upstream_name()));
        let download = match self.fills.open(repository, digest, Interest::Bytes).await.map_err(refused)? {
            Some(download) => download,
            None => match self.stored(repository, digest).await? {
                // Stored between the two looks, and hashed as it came.
                Some(answer) => return Ok(answer),
                // Held, but not to be had just now.
                None => {
                    let passing = self.fills.open(repository, digest, Interest::Passing).await.map_err(refused)?;
                    passing.ok_or_else(|| self.lost(repository))?
                }
            },
        };
        self.entitle(repository, digest, &download).await?;
        download.settle().await.map_err(|error| error.into_error(repository.upstream_name()))?;
        let (size, outcome, exchange) = (download.size(), download.outcome(), Arc::clone(download.exchange()));
        Ok(BlobAnswer { size, body: Some(BlobBody::Arriving(Arc::clone(download.tail()))), outcome, exchange: Some(exchange) })
    }

    /// A reader of a part of a blob, as [`Mirror::blob`] has answered: from `start` to `end`, or without one to the blob's end. `None`
    /// when that has passed by, of what is not stored; asked once more, it gets a download of its own.
    pub fn reader(&self, repository: &Repository, digest: &Digest, answer: &BlobAnswer, start: u64, end: Option<u64>) -> Option<BlobReader> {
        self.fills.reader((repository, digest), answer.body.as_ref()?, (start, end), answer.outcome)
    }

    /// Whoever a fill was not asked for has a right of their own, or none.
    pub(super) async fn entitle(self: &Arc<Mirror>, repository: &Repository, digest: &Digest, download: &Download) -> Result<(), Error> {
        if download.given_to() == repository.name() {
            self.confirmed.insert(self.right(repository, digest), download.size());
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
        // A download under way knows as much as upstream would say, for whoever may know.
        if self.may_have(repository, digest, link)
            && let Some(size) = self.fills.size_under_way(repository, digest).await
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
