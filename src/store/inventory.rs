//! What is held, counted: by upstream, by repository, and what would go next.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::evict::{Item, Standing};
use super::explain::Keeps;
use super::names::Id;
use super::{RepositoryKey, Store, disk};

/// Repositories that are listed, those with the most bytes first; the totals count all.
const REPOSITORIES_MAX: usize = 1000;
/// Of `history.json`; more is not ours.
const HISTORY_BYTES_MAX: u64 = 1 << 20;
/// Objects that would go next.
const NEXT_MAX: usize = 10;

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// Allocated, what is promised to downloads included.
    pub bytes: u64,
    pub max_bytes: u64,
    pub objects: u64,
    pub upstreams: BTreeMap<String, Held>,
    pub repositories: Vec<(String, Held)>,
    pub repositories_total: u64,
    /// The least recently used, which leave first when room is wanted.
    pub next: Vec<Next>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub tags: u64,
    pub manifests: u64,
    /// Allocated by all that is listed, each object once; what others list too is counted there as well.
    pub bytes: u64,
}

/// An object that would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    pub digest: String,
    pub bytes: u64,
    /// Of the time that larder ran.
    pub unused_seconds: u64,
    /// Until `cache.evict_unused_after` takes it, room or not; absent where it never does.
    pub unused_left_seconds: Option<u64>,
    /// What keeps it at present, though it is its turn.
    pub kept: Option<Keeps>,
    /// Some of the repositories that have it.
    pub of: Vec<String>,
}

impl Store {
    /// What an earlier run wrote down of what the cache was good for; `None` also when it cannot be read. Blocks.
    pub fn read_history(&self) -> Option<Vec<u8>> {
        disk::read_small(&*self.disk, &self.layout.history(), HISTORY_BYTES_MAX).ok()?
    }

    /// Blocks.
    ///
    /// # Errors
    /// When the disk fails; what was there before then stays.
    pub fn write_history(&self, bytes: &[u8]) -> io::Result<()> {
        disk::replace(&*self.disk, &self.layout.history(), bytes)
    }

    /// Blocks.
    ///
    /// What of the records cannot be read was reported, and is left out.
    ///
    /// # Errors
    /// When `refs/` itself cannot be read.
    pub fn inventory(&self) -> io::Result<Inventory> {
        let mut inventory = {
            let ledger = self.ledger();
            Inventory { bytes: ledger.size(), max_bytes: ledger.max_size(), objects: ledger.stored_count() as u64, ..Inventory::default() }
        };
        let mut by_upstream: BTreeMap<Arc<str>, Vec<bool>> = BTreeMap::new();
        for repository in self.refs.repositories()? {
            let (held, closure) = self.held_by(&repository);
            let upstream = inventory.upstreams.entry(repository.upstream.to_string()).or_default();
            upstream.tags += held.tags;
            upstream.manifests += held.manifests;
            // What a repository lists that another one has listed is the upstream's once.
            let seen = by_upstream.entry(Arc::clone(&repository.upstream)).or_default();
            let mut is_new = |id: &Id| {
                seen.resize(seen.len().max(id.index() + 1), false);
                !std::mem::replace(&mut seen[id.index()], true)
            };
            upstream.bytes += self.ledger().allocated_by(closure.into_iter().filter(|id| is_new(id)));
            inventory.repositories.push((name(&repository), held));
        }
        inventory.repositories_total = inventory.repositories.len() as u64;
        inventory.repositories.sort_by(|(one, a), (two, b)| b.bytes.cmp(&a.bytes).then_with(|| one.cmp(two)));
        inventory.repositories.truncate(REPOSITORIES_MAX);
        inventory.next = self.next_to_go();
        Ok(inventory)
    }

    fn held_by(&self, repository: &RepositoryKey) -> (Held, Vec<Id>) {
        // Numbers may become others' between the two locks: then one that came or went just now is miscounted.
        let (manifests, closure) = self.links().closure_of(repository);
        let bytes = self.ledger().allocated_by(closure.iter().copied());
        let tags = self.refs.tags(repository).map_or(0, |tags| tags.len()) as u64;
        (Held { tags, manifests: manifests as u64, bytes }, closure)
    }

    fn next_to_go(&self) -> Vec<Next> {
        let (now, next) = (self.uptime.now(), self.ledger().next_to_go(NEXT_MAX));
        let describe = |(item, standing): (Item, Standing)| {
            let (digest, kept, of) = match item {
                Item::Stored(digest) => {
                    let kept = self.keeps(&digest, &standing);
                    (digest, kept, self.links().repositories_of(&digest).iter().take(3).map(|key| name(key)).collect())
                }
                Item::Partial(upstream, digest) => (digest, None, vec![format!("an interrupted download of {upstream}")]),
            };
            Next {
                digest: digest.to_string(),
                bytes: standing.allocated,
                unused_seconds: now.since(standing.place.0).as_secs(),
                unused_left_seconds: self.unused_left(&standing).map(|left| left.as_secs()),
                kept,
                of,
            }
        };
        next.into_iter().map(describe).collect()
    }
}

fn name(repository: &RepositoryKey) -> String {
    format!("{}/{}", repository.upstream, repository.name)
}
