//! Joining a download: the one place where that is done, for clients, for bodies that have lost their file, and for
//! prefetch.

use std::sync::Arc;
use std::time::Duration;

use super::error::FillError;
use super::fill::{Fill, Interest, Opened};
use super::fills::Fills;
use crate::labels::{BypassReason, Outcome};
use crate::mirror::Repository;
use crate::oci::{Digest, MIB, RepositoryName};
use crate::store::{Link, Phase, Tail};
use crate::upstream::{Exchange, UpstreamError};

/// A blob of at most so many bytes is verified before its headers leave, so that a wrong one is an error and not a
/// break.
const WHOLE_BYTES_MAX: u64 = MIB;
/// But no longer than this after upstream's headers.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(5);

/// A download after upstream's answer.
pub struct Download {
    fill: Arc<Fill>,
    opened: Opened,
    /// Whether it was under way.
    pub was_joined: bool,
}

impl Fills {
    /// Joins the download of a blob, or begins it, and waits for upstream's answer. `None` when the blob has been
    /// stored meanwhile.
    ///
    /// # Errors
    /// When upstream refused it to this repository, or nobody gets it.
    pub async fn open(&self, repository: &Repository, digest: &Digest, interest: Interest) -> Result<Option<Download>, FillError> {
        let listed = listed_size(self.store().link(&repository.key, digest));
        let Some((fill, was_joined)) = self.join(repository, digest, listed, interest) else { return Ok(None) };
        let opened = fill.opened(repository.name()).await?;
        Ok(Some(Download { fill, opened, was_joined }))
    }

    /// The size of a blob that is being downloaded; `None` where it is not, upstream has refused it, or nobody has
    /// said.
    pub async fn size_under_way(&self, repository: &Repository, digest: &Digest) -> Option<u64> {
        self.running(repository, digest)?.opened(repository.name()).await.ok()?.tail.progress().size
    }
}

impl Download {
    pub fn tail(&self) -> &Arc<Tail> {
        &self.opened.tail
    }

    pub fn exchange(&self) -> &Arc<Exchange> {
        self.fill.exchange()
    }

    /// Bytes; `None` while nobody has said.
    pub fn size(&self) -> Option<u64> {
        self.opened.tail.progress().size
    }

    /// The repository that upstream gave it to.
    pub fn given_to(&self) -> &RepositoryName {
        &self.opened.repository
    }

    pub fn outcome(&self) -> Outcome {
        match self.opened.bypass {
            Some(reason) => Outcome::Bypass(reason),
            None if self.was_joined => Outcome::Collapsed,
            None => Outcome::Miss,
        }
    }

    /// Why it failed, if it did before all of it was verified.
    pub fn failure(&self) -> Option<FillError> {
        self.fill.failure().filter(|_| self.opened.tail.progress().phase != Phase::Verified)
    }

    /// Waits for a small blob to be verified whole.
    ///
    /// # Errors
    /// When it is wrong, or the download failed.
    pub async fn settle(&self) -> Result<(), FillError> {
        if self.size().is_none_or(|size| size > WHOLE_BYTES_MAX) {
            return Ok(());
        }
        let mut progress = self.opened.tail.subscribe();
        let settled = tokio::time::timeout(WHOLE_TIMEOUT, progress.wait_for(|progress| progress.phase != Phase::Receiving)).await;
        match settled {
            Ok(Ok(progress)) if progress.phase == Phase::Verified => Ok(()),
            // Slow: the headers leave, and the end is held back as for a large blob.
            Err(_) => Ok(()),
            Ok(_) => {
                let ended = || FillError::Upstream(UpstreamError::Corrupt { detail: "the download ended".into() });
                Err(self.fill.failure().unwrap_or_else(ended))
            }
        }
    }

    /// Waits until nothing comes any more and what came is stored. Returns the bytes that came, which `received` gets
    /// as they come.
    ///
    /// # Errors
    /// Why it is not stored, where the store's refusal is why.
    pub async fn stored(&self, received: impl Fn(u64)) -> Result<u64, BypassReason> {
        let mut progress = self.opened.tail.subscribe();
        let mut ended = std::pin::pin!(self.fill.ended());
        let mut counted = self.opened.begin;
        let mut count = |now: u64| {
            received(now.saturating_sub(counted));
            counted = now.max(counted);
        };
        let bypass = loop {
            count(progress.borrow_and_update().received);
            tokio::select! {
                bypass = &mut ended => break bypass,
                changed = progress.changed() => if changed.is_err() { break ended.await },
            }
        };
        let end = progress.borrow().received;
        count(end);
        match bypass.or(self.opened.bypass) {
            Some(reason) => Err(reason),
            None => Ok(end.saturating_sub(self.opened.begin)),
        }
    }
}

/// What a manifest says of a blob's size, in bytes.
pub fn listed_size(link: Link) -> Option<u64> {
    match link {
        Link::Listed { size } | Link::Doubtful { size } => Some(size),
        Link::Unlisted => None,
    }
}
