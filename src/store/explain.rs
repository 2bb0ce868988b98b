//! What `larder explain` wants to know of objects. Looks without touching: nothing here is a use, and nothing that is read
//! stays in RAM.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::evict::{GRACE, Item, Ledger, Standing};
use super::refs::TagRecord;
use super::{RepositoryKey, Store, StoreError, check, disk, io_error};
use crate::oci::{Digest, MANIFEST_BYTES_MAX, Tag};

/// Items of the order that are counted at a time: pulls get the ledger in between.
const COUNTED_AT_ONCE: usize = 4096;

/// What is here of some objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// On disk.
    pub allocated: u64,
    /// Of it, what interrupted downloads have left.
    pub partial: u64,
}

/// Where an object stands in the order in which objects go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    pub digest: String,
    /// Allocated.
    pub bytes: u64,
    /// From 1; absent for what is pinned, which stands in no order.
    pub position: Option<u64>,
    /// Objects in the order.
    pub of: u64,
    /// What would go before it.
    pub bytes_before: u64,
    /// Of the time that larder ran.
    pub unused_seconds: u64,
    /// Until `cache.evict_unused_after` takes it; absent where it never does.
    pub unused_left_seconds: Option<u64>,
    /// What keeps it from going.
    pub kept: Option<Keeps>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keeps {
    Pinned,
    /// Somebody is reading it.
    Read,
    /// It belongs to an image that was pulled within ten minutes, and of which something is missing: it goes last.
    Grace,
}

impl Store {
    /// The record of a tag, if there is one. Blocks.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn peek_tag(&self, key: &(RepositoryKey, Tag)) -> Result<Option<Arc<TagRecord>>, StoreError> {
        if let Some(record) = self.refs.recent(key) {
            return Ok(Some(record));
        }
        let path = self.layout.tag(&key.0, &key.1);
        self.refs.read_tag(&path).map(|record| record.map(Arc::new)).map_err(|error| io_error("read", &path, error))
    }

    /// The bytes of a stored manifest; `None` where they are not held, cannot be read, or are damaged. Blocks.
    pub fn peek_manifest(&self, digest: &Digest) -> Option<Bytes> {
        if !self.contains(digest) {
            return None;
        }
        if let Some(bytes) = self.memory.get(digest) {
            return Some(bytes);
        }
        let bytes = disk::read_small(&*self.disk, &self.layout.blob(digest), MANIFEST_BYTES_MAX).ok()??;
        check(digest, &bytes).ok().map(|()| Bytes::from(bytes))
    }

    /// What is here of an object, for an upstream.
    pub fn holding(&self, upstream: &Arc<str>, digest: &Digest) -> Holding {
        let ledger = self.ledger();
        let allocated = |item| ledger.allocated(&item).unwrap_or_default();
        Holding { allocated: allocated(Item::Stored(*digest)), partial: allocated(Item::Partial(Arc::clone(upstream), *digest)) }
    }

    /// The other repositories that list or have some of these, and how many.
    pub fn others_with(&self, repository: &RepositoryKey, digests: &[Digest]) -> BTreeMap<String, u64> {
        let links = self.links();
        let mut others = BTreeMap::new();
        for other in digests.iter().flat_map(|digest| links.repositories_of(digest)).filter(|other| *other != repository) {
            *others.entry(format!("{}/{}", other.upstream, other.name)).or_default() += 1;
        }
        others
    }

    /// The pins that keep an object, and the tags by which they do.
    pub fn pinned_by(&self, digest: &Digest) -> Vec<(String, Tag)> {
        let pins = self.pins.lock();
        pins.keeping(&self.links(), digest)
    }

    /// `cache.evict_unused_after`; `None`: never.
    pub fn evicts_unused_after(&self) -> Option<Duration> {
        Some(self.evict_unused_after).filter(|after| !after.is_zero())
    }

    /// Which of these would go first. What is pinned never does.
    pub fn first_to_go(&self, digests: &[Digest]) -> Option<Digest> {
        let ledger = self.ledger();
        let standing =
            |digest: &Digest| Some((ledger.standing(&Item::Stored(*digest)).filter(|standing| !standing.is_pinned)?.place, *digest));
        digests.iter().filter_map(standing).min().map(|(_, digest)| digest)
    }

    /// Where an object stands; `None` when it is not held.
    pub fn place(&self, digest: &Digest) -> Option<Place> {
        let (standing, of) = {
            let ledger = self.ledger();
            (ledger.standing(&Item::Stored(*digest))?, ledger.ordered_count() as u64)
        };
        let (mut ahead, mut bytes_before, mut is_all) = (0, 0, standing.is_pinned);
        while !is_all {
            let skipped = usize::try_from(ahead).unwrap_or(usize::MAX);
            let (items, bytes, was_all) = self.ledger().ahead(skipped, standing.place, COUNTED_AT_ONCE);
            (ahead, bytes_before, is_all) = (ahead + items, bytes_before + bytes, was_all);
        }
        Some(Place {
            digest: digest.to_string(),
            bytes: standing.allocated,
            position: Some(ahead + 1).filter(|_| !standing.is_pinned),
            of,
            bytes_before,
            unused_seconds: self.uptime.now().since(standing.place.0).as_secs(),
            unused_left_seconds: self.unused_left(&standing).map(|left| left.as_secs()),
            kept: self.keeps(digest, &standing),
        })
    }

    /// Until `cache.evict_unused_after` takes what stands so; `None`: it never does.
    pub(super) fn unused_left(&self, standing: &Standing) -> Option<Duration> {
        let unused = self.uptime.now().since(standing.place.0);
        self.evicts_unused_after().filter(|_| !standing.is_pinned).map(|after| after.saturating_sub(unused))
    }

    /// What keeps an object from going, but for its turn.
    pub(super) fn keeps(&self, digest: &Digest, standing: &Standing) -> Option<Keeps> {
        if standing.is_pinned {
            return Some(Keeps::Pinned);
        }
        if standing.is_read {
            return Some(Keeps::Read);
        }
        let now = self.uptime.now();
        let ledger = self.ledger();
        let used = |ledger: &Ledger, digest: &Digest| ledger.last_used(&Item::Stored(*digest)).is_some_and(|used| now.since(used) < GRACE);
        let is_held = |digest: &Digest| ledger.contains(&Item::Stored(*digest));
        let is_half = used(&ledger, digest) && self.links().is_half_pulled(digest, |digest| used(&ledger, digest), is_held);
        is_half.then_some(Keeps::Grace)
    }
}
