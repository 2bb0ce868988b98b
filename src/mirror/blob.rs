//! GET and HEAD of a blob: stored, arriving, or yet to be asked for.

use std::sync::Arc;

use tokio::time::Instant;

use super::deadline::within;
use super::decide::{Decision, Question, Why};
use super::fetch::{BlobBody, BlobReader, FillError, Interest};
use super::membership::Confirmed;
use super::{Asked, Error, Mirror, Repository};
use crate::labels::Outcome;
use crate::oci::Digest;
use crate::store::{Phase, Vouched};
use crate::upstream::Exchange;

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
        self.admit(repository, || Asked::Blob(*digest)).await?;
        if let Some(answer) = self.stored(repository, digest).await?
            && let Some(answer) = self.vouched(answer).await
        {
            return Ok(answer);
        }
        let refused = |error: FillError| self.told(repository, Asked::Blob(*digest), error.into_error(repository.upstream_name()));
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
    pub fn reader(
        &self,
        repository: &Repository,
        digest: &Digest,
        answer: &BlobAnswer,
        start: u64,
        end: Option<u64>,
    ) -> Option<BlobReader> {
        self.fills.reader((repository, digest), answer.body.as_ref()?, (start, end), answer.outcome)
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
        self.admit(repository, || Asked::Blob(*digest)).await?;
        if let Some(answer) = self.stored(repository, digest).await? {
            return Ok(answer);
        }
        // A download under way knows as much as upstream would say, for whoever may know.
        let membership = self.membership(repository, digest);
        if membership.is_member()
            && let Some(size) = self.fills.size_under_way(repository, digest).await
        {
            return Ok(BlobAnswer { size: Some(size), body: None, outcome: Outcome::Collapsed, exchange: None });
        }
        if let Some(size) = self.confirmed_size(repository, digest) {
            return Ok(BlobAnswer { size: Some(size), body: None, outcome: Outcome::Hit, exchange: None });
        }
        let Confirmed { size, exchange, joined } = self.confirm(repository, digest).await?;
        let outcome = if joined { Outcome::Collapsed } else { Outcome::Miss };
        Ok(BlobAnswer { size: size.or(membership.size()), body: None, outcome, exchange: Some(exchange) })
    }

    /// The stored blob, if it is held and this repository may have it; upstream is asked where that is in doubt. `None` for what has
    /// to be downloaded.
    async fn stored(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<Option<BlobAnswer>, Error> {
        let (decision, membership) = self.blob_decision(repository, digest);
        let (mut size, mut exchange) = (membership.size(), None);
        match decision {
            Decision::Serve { why: Why::Held, .. } => {}
            Decision::Ask { question: Question::Head, .. } => {
                let confirmed = self.confirm(repository, digest).await?;
                size = confirmed.size.or(size);
                exchange = Some(confirmed.exchange);
            }
            Decision::Refuse { .. } => return Err(self.absent(repository, &Asked::Blob(*digest))),
            Decision::Serve { .. } | Decision::Ask { .. } => return Ok(None),
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

    fn lost(&self, repository: &Repository) -> Error {
        Error::Unavailable { upstream: Arc::clone(repository.upstream_name()), detail: "the blob was evicted while it was opened".into() }
    }
}
