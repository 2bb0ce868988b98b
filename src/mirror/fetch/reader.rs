//! One client's reading of a blob, wherever its bytes are: stored, arriving, or, once the disk has failed amid it, in a
//! new download (failover). That one is verified as a whole before the body's end goes out; what was sent before came
//! from a file that was verified when it was stored, or from a download that must turn out right, too. So a disk that
//! fails fails no pull (invariant 9).

use std::future::Future;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::time::Instant;

use super::fill::Interest;
use super::fills::Fills;
use super::job::HEADERS_TIMEOUT;
use crate::labels::Outcome;
use crate::mirror::deadline::within;
use crate::mirror::{Error, Repository};
use crate::oci::Digest;
use crate::store::{Blob, Lost, Tail, TailReader, Unreadable};

/// How often a body may lose its file: a stored one, then that of the new download. The last time it goes on from no
/// file at all.
const FAILOVERS_MAX: u8 = 2;
/// How often a reader may come too late for the beginning of what is not stored.
const TRIES: usize = 3;

/// Where a blob's bytes are.
pub enum BlobBody {
    Stored(Arc<Blob>),
    Arriving(Arc<Tail>),
}

/// Reads a part of a blob, chunk by chunk.
pub struct BlobReader {
    at: At,
    outcome: Outcome,
    blob: Refetch,
    failovers: u8,
}

/// All it takes to fetch a blob again.
#[derive(Clone)]
struct Refetch {
    fills: Arc<Fills>,
    repository: Repository,
    digest: Digest,
}

/// A stored blob shows its file, so that a transport that can send files needs a change in one place only.
enum At {
    Stored { blob: Arc<Blob>, range: Range<u64>, reading: Option<Reading> },
    Arriving(TailReader),
    Waiting(NextChunk),
    FailingOver(FailingOver),
    Ended,
}

type Reading = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;
type NextChunk = Pin<Box<dyn Future<Output = (TailReader, Option<io::Result<Bytes>>)> + Send>>;
type FailingOver = Pin<Box<dyn Future<Output = Result<(At, Outcome), Error>> + Send>>;

impl Fills {
    /// A reader of `start..end` of a blob that this repository may have; without an end, to the end of the blob. `None`
    /// when what it wants has passed by.
    pub fn reader(
        self: &Arc<Fills>,
        (repository, digest): (&Repository, &Digest),
        body: &BlobBody,
        (start, end): (u64, Option<u64>),
        outcome: Outcome,
    ) -> Option<BlobReader> {
        let at = match body {
            BlobBody::Stored(blob) => At::stored(Arc::clone(blob), start, end),
            BlobBody::Arriving(tail) => At::Arriving(tail.reader(start, end)?),
        };
        let blob = Refetch { fills: Arc::clone(self), repository: repository.clone(), digest: *digest };
        Some(BlobReader { at, outcome, blob, failovers: 0 })
    }
}

impl BlobReader {
    /// How the bytes come, which a failover changes.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// Bytes that are still to come, when that is known.
    pub fn remaining(&self) -> Option<u64> {
        match &self.at {
            At::Stored { range, .. } => Some(range.end - range.start),
            At::Arriving(reader) => reader.remaining(),
            At::Waiting(_) | At::FailingOver(_) | At::Ended => None,
        }
    }

    /// Whether nothing comes any more.
    pub fn is_at_end(&self) -> bool {
        match &self.at {
            At::Stored { range, reading, .. } => range.is_empty() && reading.is_none(),
            At::Arriving(_) | At::Waiting(_) | At::FailingOver(_) => false,
            At::Ended => true,
        }
    }

    /// The next chunk; `None` at the end of what was asked for. An error must break the body: it is not all of it.
    pub fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            if let At::FailingOver(moving) = &mut self.at {
                match ready!(moving.as_mut().poll(context)) {
                    Ok((at, outcome)) => (self.at, self.outcome) = (at, outcome),
                    Err(error) => {
                        self.at = At::Ended;
                        return Poll::Ready(Some(Err(io::Error::other(error))));
                    }
                }
            }
            let chunk = ready!(self.at.poll(context));
            match &chunk {
                Some(Err(error)) if self.fail_over(error) => {}
                _ => return Poll::Ready(chunk),
            }
        }
    }

    /// What the disk would not give comes from upstream; every other error ends the body.
    fn fail_over(&mut self, error: &io::Error) -> bool {
        let is_unreadable = error.get_ref().is_some_and(|error| error.is::<Unreadable>());
        if self.failovers == FAILOVERS_MAX {
            return false;
        }
        let (lost, place) = match std::mem::replace(&mut self.at, At::Ended) {
            At::Stored { range, .. } => (None, (range.start, Some(range.end))),
            At::Arriving(reader) if is_unreadable => {
                let place = reader.place();
                (Some(reader.into_lost()), place)
            }
            _ => return false,
        };
        self.failovers += 1;
        let interest = if self.failovers == FAILOVERS_MAX { Interest::Passing } else { Interest::Bytes };
        let blob = self.blob.clone();
        self.at = At::FailingOver(Box::pin(async move { blob.elsewhere(lost.as_ref(), place, interest).await }));
        true
    }
}

impl At {
    fn stored(blob: Arc<Blob>, start: u64, end: Option<u64>) -> At {
        let range = start..end.unwrap_or(blob.len());
        At::Stored { blob, range, reading: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let At::Stored { blob, range, reading } = self {
            return poll_stored(blob, range, reading, context);
        }
        loop {
            match std::mem::replace(self, At::Ended) {
                At::Arriving(mut reader) => {
                    *self = At::Waiting(Box::pin(async move {
                        let chunk = reader.next().await;
                        (reader, chunk)
                    }));
                }
                At::Waiting(mut waiting) => {
                    let Poll::Ready((reader, chunk)) = waiting.as_mut().poll(context) else {
                        *self = At::Waiting(waiting);
                        return Poll::Pending;
                    };
                    if chunk.is_some() {
                        *self = At::Arriving(reader);
                    }
                    return Poll::Ready(chunk);
                }
                At::Stored { .. } | At::FailingOver(_) | At::Ended => return Poll::Ready(None),
            }
        }
    }
}

/// What the page cache has is read in place; for the rest the worker does not wait.
fn poll_stored(
    blob: &Arc<Blob>,
    range: &mut Range<u64>,
    reading: &mut Option<Reading>,
    context: &mut Context<'_>,
) -> Poll<Option<io::Result<Bytes>>> {
    let chunk = match reading {
        Some(future) => ready!(future.as_mut().poll(context)),
        None if range.is_empty() => return Poll::Ready(None),
        None => match blob.read_now(range) {
            Some(chunk) => Ok(chunk),
            None => {
                let (blob, range) = (Arc::clone(blob), range.clone());
                let future = reading.insert(Box::pin(async move { blob.read(&range).await }));
                ready!(future.as_mut().poll(context))
            }
        },
    };
    *reading = None;
    if let Ok(chunk) = &chunk {
        range.start += chunk.len() as u64;
    }
    Poll::Ready(Some(chunk))
}

impl Refetch {
    /// The rest of the blob from elsewhere than the file that failed: a stored one, or that of the download that `lost`
    /// followed.
    async fn elsewhere(&self, lost: Option<&Lost>, place: (u64, Option<u64>), interest: Interest) -> Result<(At, Outcome), Error> {
        let Refetch { fills, repository, digest } = self;
        tracing::warn!(%digest, start = place.0, "the file of a blob failed while it was served; it goes on from upstream");
        if let Some(Lost { tail, .. }) = lost {
            fills.store().unreadable(*digest, tail).await;
            fills.leave(repository, digest, tail);
        }
        within(repository, Instant::now() + HEADERS_TIMEOUT, self.open(lost, place, interest)).await
    }

    async fn open(&self, lost: Option<&Lost>, (start, end): (u64, Option<u64>), interest: Interest) -> Result<(At, Outcome), Error> {
        let Refetch { fills, repository, digest } = self;
        for _ in 0..TRIES {
            let opened = fills.open(repository, digest, interest).await;
            let Some(download) = opened.map_err(|error| error.into_error(repository.upstream_name()))? else {
                match fills.store().blob(digest).await {
                    Ok(Some(blob)) if is_right(lost).await => return Ok((At::stored(Arc::new(blob), start, end), Outcome::Hit)),
                    Ok(Some(_)) => break,
                    Ok(None) | Err(_) => continue,
                }
            };
            if let Some(reader) = download.tail().reader(start, end) {
                let reader = if let Some(lost) = lost { reader.after(lost) } else { reader };
                return Ok((At::Arriving(reader), download.outcome()));
            }
        }
        Err(Error::Overloaded)
    }
}

async fn is_right(lost: Option<&Lost>) -> bool {
    match lost {
        Some(lost) => lost.is_right().await,
        None => true,
    }
}
