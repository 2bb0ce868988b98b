//! Whether a repository may have an object: the one place that says so (invariant 14). By its manifests, by upstream's
//! word of late, and, where upstream shows public repositories only, by what it shows to anybody (`public_access`).

mod public_access;

pub(super) use public_access::{Shown, Verdict};

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::deadline::CHECK_TIMEOUT;
use super::fetch::{Download, listed_size};
use super::{Asked, Error, Mirror, Repository, What};
use crate::oci::{Digest, MediaType};
use crate::store::{Link, RepositoryKey};
use crate::upstream::{Call, Exchange};

/// What a repository has to do with an object. Sizes are a manifest's word, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// One of its manifests gives it the object, or upstream has said so of late: it may have it.
    Member { size: Option<u64> },
    /// One of its manifests lists it, but a private upstream has it, too: upstream is asked once.
    Doubtful { size: u64 },
    /// Nothing says so: upstream is asked.
    Unknown,
}

/// What a look into the cache is for: a request keeps in RAM what it reads, who only wants to know leaves no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Use,
    Peek,
}

impl Membership {
    pub(super) fn is_member(self) -> bool {
        matches!(self, Membership::Member { .. })
    }

    pub(super) fn size(self) -> Option<u64> {
        match self {
            Membership::Member { size } => size,
            Membership::Doubtful { size } => Some(size),
            Membership::Unknown => None,
        }
    }
}

/// A manifest that is here.
pub(super) enum StoredManifest {
    /// It is one of this repository's.
    Own(MediaType),
    /// It is another repository's.
    Others(MediaType),
}

/// What came of asking whether a repository has a blob: its size, where upstream said so.
pub(super) type Confirmation = Result<(Option<u64>, Arc<Exchange>), Error>;

/// A repository's right to a blob, by upstream's word.
pub(super) struct Confirmed {
    /// Bytes, where upstream said so.
    pub(super) size: Option<u64>,
    pub(super) exchange: Arc<Exchange>,
    /// Whether somebody else had asked before.
    pub(super) joined: bool,
}

impl Mirror {
    /// A blob.
    pub(super) fn membership(&self, repository: &Repository, digest: &Digest) -> Membership {
        match self.store.link(&repository.key, digest) {
            Link::Listed { size } => Membership::Member { size: Some(size) },
            link if self.confirmed.contains_key(&right(repository, digest)) => Membership::Member { size: listed_size(link) },
            Link::Doubtful { size } => Membership::Doubtful { size },
            Link::Unlisted => Membership::Unknown,
        }
    }

    /// A manifest by digest, and whose it is, if it is here as one.
    pub(super) fn manifest_membership(&self, repository: &Repository, digest: &Digest) -> (Membership, Option<StoredManifest>) {
        if let Some(media_type) = self.store.media_type(&repository.key, digest) {
            return (Membership::Member { size: None }, Some(StoredManifest::Own(media_type)));
        }
        let membership = match self.store.link(&repository.key, digest) {
            Link::Listed { size } => Membership::Member { size: Some(size) },
            Link::Doubtful { size } => Membership::Doubtful { size },
            Link::Unlisted => Membership::Unknown,
        };
        let media_type = self.store.any_media_type(digest).filter(|_| self.store.contains(digest));
        (membership, media_type.map(StoredManifest::Others))
    }

    /// Whether a manifest is stored as one of this repository's.
    pub(super) fn is_own_manifest(&self, repository: &Repository, digest: &Digest) -> bool {
        self.store.contains(digest) && self.store.media_type(&repository.key, digest).is_some()
    }

    /// Whether one of the repository's manifests lists it: it is a part of something.
    pub(super) fn is_listed(&self, repository: &Repository, digest: &Digest) -> bool {
        self.store.link(&repository.key, digest) != Link::Unlisted
    }

    /// Whoever a download was not asked for has a right of their own, or none.
    pub(super) async fn entitle(self: &Arc<Mirror>, repository: &Repository, digest: &Digest, download: &Download) -> Result<(), Error> {
        if download.given_to() == repository.name() {
            self.confirmed.insert(right(repository, digest), download.size());
        } else if !self.membership(repository, digest).is_member() {
            self.confirm(repository, digest).await?;
        }
        Ok(())
    }

    /// The size that upstream has said of late a blob of this repository has.
    pub(super) fn confirmed_size(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        self.confirmed.get(&right(repository, digest)).flatten()
    }

    /// Asks upstream whether this repository has the blob, once for all who want to know, and remembers what it says.
    pub(super) async fn confirm(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<Confirmed, Error> {
        let asked = Asked::Blob(*digest);
        // Whoever asked may have been answered since the caller looked.
        let known = || match self.remembered(repository, &asked) {
            Err(error) => Some(Err(error)),
            Ok(()) => self.confirmed_size(repository, digest).map(|size| Ok((Some(size), Arc::default()))),
        };
        let asking = || Arc::clone(self).ask_for_blob(repository.clone(), *digest);
        let pending = self.confirmations.ask_unless(right(repository, digest), known, |_| Duration::ZERO, asking);
        let answer = pending.answer().await;
        let answer = answer.unwrap_or_else(|error| Err(Error::from_upstream(repository.upstream_name(), What::Blob, &error.into())));
        answer.map(|(size, exchange)| Confirmed { size, exchange, joined: pending.joined })
    }

    async fn ask_for_blob(self: Arc<Mirror>, repository: Repository, digest: Digest) -> Confirmation {
        let call = Call::until(Instant::now() + CHECK_TIMEOUT);
        match repository.source.upstream.head_blob(repository.name(), &digest, &call).await {
            Ok(size) => {
                self.confirmed.insert(right(&repository, &digest), size);
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
}

fn right(repository: &Repository, digest: &Digest) -> (RepositoryKey, Digest) {
    (repository.key.clone(), *digest)
}
