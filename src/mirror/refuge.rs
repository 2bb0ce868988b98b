//! Where a body goes on that has lost its file: in a new download of the blob, whose content is verified as a whole before
//! the body's end goes out. What was sent before came from a file that was verified when it was stored, or from a download
//! that must turn out right, too. So a disk that fails amid a blob fails no pull (invariant 9).

use std::sync::Arc;

use tokio::time::Instant;

use super::blob::{listed_size, within};
use super::fetch::{HEADERS_TIMEOUT, Interest};
use super::{Error, Mirror, Repository};
use crate::labels::Outcome;
use crate::oci::Digest;
use crate::store::{Blob, Lost, TailReader};

/// How often a reader may come too late for the beginning of what is not stored.
const TRIES: usize = 3;

/// Who may have which blob from where: all it takes to fetch it again.
#[derive(Clone)]
pub struct Refuge {
    mirror: Arc<Mirror>,
    repository: Repository,
    digest: Digest,
}

/// Where a body is: from where to where it still goes.
type Place = (u64, Option<u64>);

/// The rest of a body.
pub enum Rest {
    Stored(Arc<Blob>),
    Arriving(TailReader),
}

impl Mirror {
    /// For a body that this repository may have.
    pub fn refuge(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Refuge {
        Refuge { mirror: Arc::clone(self), repository: repository.clone(), digest: *digest }
    }
}

impl Refuge {
    /// The blob from elsewhere than the file that failed: a stored one, or that of the download that `lost` followed. The last
    /// time from no file at all.
    ///
    /// # Errors
    /// When upstream cannot give it.
    pub async fn rest(&self, lost: Option<&Lost>, place: Place, is_last: bool) -> Result<(Rest, Outcome), Error> {
        let Refuge { mirror, repository, digest } = self;
        tracing::warn!(%digest, start = place.0, "the file of a blob failed while it was served; it goes on from upstream");
        if let Some(Lost { tail, .. }) = lost {
            mirror.store.unreadable(*digest, tail).await;
            mirror.fills.leave(repository, digest, tail);
        }
        within(repository, Instant::now() + HEADERS_TIMEOUT, self.fetch(lost, place, is_last)).await
    }

    async fn fetch(&self, lost: Option<&Lost>, place: Place, is_last: bool) -> Result<(Rest, Outcome), Error> {
        let Refuge { mirror, repository, digest } = self;
        for _ in 0..TRIES {
            let link = mirror.store.link(&repository.key, digest);
            let size = listed_size(link);
            let interest = if is_last { Interest::Passing } else { Interest::Bytes };
            let Some((fill, joined)) = mirror.fills.join(repository, digest, size, interest) else {
                match mirror.store.blob(digest).await {
                    Ok(Some(blob)) if is_right(lost).await => return Ok((Rest::Stored(Arc::new(blob)), Outcome::Hit)),
                    Ok(Some(_)) => break,
                    Ok(None) | Err(_) => continue,
                }
            };
            let opened = fill.opened(repository.name()).await.map_err(|error| error.into_error(repository.upstream_name()))?;
            let outcome = match opened.bypass {
                Some(reason) => Outcome::Bypass(reason),
                None if joined => Outcome::Collapsed,
                None => Outcome::Miss,
            };
            if let Some(reader) = opened.tail.reader(place.0, place.1) {
                return Ok((
                    Rest::Arriving(match lost {
                        Some(lost) => reader.after(lost),
                        None => reader,
                    }),
                    outcome,
                ));
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
