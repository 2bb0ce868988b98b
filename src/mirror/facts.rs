//! Gathers what is known before anybody is asked, and has it decided upon. A request uses what it reads, so that it
//! stays in RAM; who only wants to know peeks, and leaves no trace.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::decide::{self, Decision, TagFacts};
use super::membership::{Membership, Mode, StoredManifest};
use super::{Asked, Mirror, Repository};
use crate::oci::{Digest, Reference, Tag};
use crate::store::TagRecord;

impl Mirror {
    /// A blob, and what the repository has to do with it.
    pub(super) fn blob_decision(&self, repository: &Repository, digest: &Digest) -> (Decision, Membership) {
        let membership = self.membership(repository, digest);
        let absent_for = || self.absent_for(repository, &Asked::Blob(*digest));
        let is_arriving = || self.fills.running(repository, digest).is_some();
        (decide::blob(self.store.contains(digest), membership, absent_for, is_arriving), membership)
    }

    /// A manifest by digest, and whose it is, if it is here.
    pub(super) fn manifest_decision(&self, repository: &Repository, digest: &Digest) -> (Decision, Option<StoredManifest>) {
        let (membership, stored) = self.manifest_membership(repository, digest);
        let absent_for = || self.absent_for(repository, &Asked::Manifest(Reference::Digest(*digest)));
        (decide::manifest(stored.is_some(), membership, absent_for), stored)
    }

    /// A tag, from its record.
    pub(super) fn tag_decision(&self, repository: &Repository, tag: &Tag, record: Option<&TagRecord>) -> Decision {
        let facts = TagFacts { tag, record, rules: &repository.source.tags, now: self.clock.now() };
        let absent_for = || self.absent_for(repository, &Asked::Manifest(Reference::Tag(tag.clone())));
        decide::tag(&facts, absent_for, || self.remembered_head(repository, tag).map(|(_, left)| left))
    }

    /// The record of a tag. One whose manifest was evicted is none, nor is one that cannot be read.
    pub(super) async fn record(&self, repository: &Repository, tag: &Tag, mode: Mode) -> Option<Arc<TagRecord>> {
        let key = (repository.key.clone(), tag.clone());
        let record = match mode {
            Mode::Use => self.store.tag(&key).await.unwrap_or_else(|error| {
                tracing::error!(%tag, %error, "a tag's record could not be read");
                None
            }),
            Mode::Peek => {
                let store = Arc::clone(&self.store);
                self.gate.run(move || store.peek_tag(&key)).await.ok().flatten()
            }
        };
        record.filter(|record| self.store.contains(&record.descriptor.digest))
    }

    /// For how long it is remembered that upstream has no such thing.
    pub(super) fn absent_for(&self, repository: &Repository, asked: &Asked) -> Option<Duration> {
        let until = self.negative.get(&(repository.key.clone(), asked.clone()))?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }
}
