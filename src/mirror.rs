//! Answers pulls; the only place that knows both the store and the upstreams.

mod blob;
mod complete;
mod deadline;
mod decide;
mod error;
pub mod explain;
mod facts;
mod fetch;
mod freshness;
mod listing;
mod manifest;
mod membership;
mod patience;
mod pinned;
mod repository;
mod tag;
mod warm;

pub use blob::BlobAnswer;
pub use error::{Error, What};
pub use fetch::BlobReader;
pub use freshness::TagRules;
pub use listing::{Listing, ReferrersPage, TagPage, Tags};
pub use manifest::{ManifestAnswer, Want};
pub use pinned::{Pinned, PinnedImages};
pub use repository::{Repositories, Repository, Root, Rule, Source, Target, Unresolved};
pub use warm::{Image, Missing, Platforms, WarmCount, WarmProgress, Warmed};

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::clock::{Clock, Timestamp};
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::oci::{Descriptor, Digest, Reference, Tag};
use crate::rng::Rng;
use crate::single_flight::Questions;
use crate::store::{RepositoryKey, Store, StoreError, TagRecord};
use fetch::Fills;
use listing::Listings;
use manifest::{Fetched, Peeked};
use membership::{Confirmation, Verdict};
use tag::Checked;

/// Answers that are remembered for moments, each kind.
const REMEMBERED_MAX: u64 = 50_000;
/// Different questions of a kind under way; beyond them clients are told to come again. As many as `server.max_connections` lets
/// in by default, so that none is turned away but where one connection asks many at once; each takes a few KiB.
const QUESTIONS_MAX: usize = 16_384;
/// How long an upstream's word that a repository has a blob, or a manifest by digest, is good where nothing that is held says so.
const CONFIRMED_TTL: Duration = Duration::from_secs(3600);

/// The mirror: repositories in front, store and upstreams behind.
pub struct Mirror {
    repositories: Repositories,
    store: Arc<Store>,
    gate: Gate,
    clock: Clock,
    revalidate_wait: Duration,
    negative_ttl: Duration,
    fills: Arc<Fills>,
    checks: Questions<(RepositoryKey, Tag), Checked>,
    fetches: Questions<(RepositoryKey, Digest), Fetched>,
    peeks: Questions<(RepositoryKey, Reference), Peeked>,
    /// "Not found", as upstream said it a moment ago.
    negative: Cache<(RepositoryKey, Asked), Instant>,
    /// What a HEAD said of a tag that is not held.
    heads: Cache<(RepositoryKey, Tag), Arc<TagRecord>>,
    /// Tags that a HEAD has said to name a manifest that is not stored yet.
    names: Cache<(RepositoryKey, Digest), Arc<[Tag]>>,
    verdicts: Questions<(RepositoryKey, Asked), Verdict>,
    /// When upstream last showed a repository to anybody.
    shown: Cache<RepositoryKey, Timestamp>,
    confirmations: Questions<(RepositoryKey, Digest), Confirmation>,
    /// Blobs that upstream has said a repository has, with their size as far as it said so: a HEAD's answer, and a right to what
    /// no manifest lists.
    confirmed: Cache<(RepositoryKey, Digest), Option<u64>>,
    /// What a HEAD said of a manifest by digest that is not held.
    described: Cache<(RepositoryKey, Digest), Descriptor>,
    listings: Listings,
    /// For downloads that no client waits for.
    warming: Semaphore,
}

/// What upstream was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Asked {
    Manifest(Reference),
    Blob(Digest),
}

impl Asked {
    fn what(&self) -> What {
        match self {
            Asked::Manifest(_) => What::Manifest,
            Asked::Blob(_) => What::Blob,
        }
    }
}

/// What [`Mirror::new`] needs to know.
pub struct Options {
    pub revalidate_wait: Duration,
    pub negative_ttl: Duration,
    pub fills_max: usize,
    pub fill_queue_timeout: Duration,
}

impl Mirror {
    pub fn new(
        options: &Options,
        repositories: Repositories,
        store: Arc<Store>,
        gate: Gate,
        clock: Clock,
        metrics: &Arc<Metrics>,
        rng: Arc<Rng>,
    ) -> Arc<Mirror> {
        let fills = Fills::new(options.fills_max, options.fill_queue_timeout, Arc::clone(&store), gate.clone(), Arc::clone(metrics), rng);
        let listings = Listings::new(&clock, metrics);
        let panics = || metrics.task_panics.clone();
        Arc::new(Mirror {
            repositories,
            store,
            gate,
            clock,
            revalidate_wait: options.revalidate_wait,
            negative_ttl: options.negative_ttl,
            fills: Arc::new(fills),
            checks: Questions::for_waiters(QUESTIONS_MAX, panics()),
            fetches: Questions::for_waiters(QUESTIONS_MAX, panics()),
            peeks: Questions::for_waiters(QUESTIONS_MAX, panics()),
            negative: Cache::new(REMEMBERED_MAX),
            heads: Cache::new(REMEMBERED_MAX),
            names: Cache::new(REMEMBERED_MAX),
            verdicts: Questions::for_waiters(QUESTIONS_MAX, panics()),
            shown: Cache::new(REMEMBERED_MAX),
            confirmations: Questions::for_waiters(QUESTIONS_MAX, panics()),
            confirmed: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(CONFIRMED_TTL).build(),
            described: Cache::builder().max_capacity(REMEMBERED_MAX).time_to_live(CONFIRMED_TTL).build(),
            listings,
            warming: repository::prefetch_places(options.fills_max),
        })
    }

    pub fn repositories(&self) -> &Repositories {
        &self.repositories
    }

    /// "Not found", if upstream said so within `negative_ttl`.
    fn remembered(&self, repository: &Repository, asked: &Asked) -> Result<(), Error> {
        self.absent_for(repository, asked).map_or(Ok(()), |_| Err(self.absent(repository, asked)))
    }

    /// "Not found", as upstream has said it a moment ago.
    fn absent(&self, repository: &Repository, asked: &Asked) -> Error {
        Error::NotFound { upstream: Arc::clone(repository.upstream_name()), what: asked.what(), remembered: true }
    }

    /// Passes an error on; "not found", and nothing else, is remembered. What upstream said before of the same, by a HEAD, is
    /// its last word no longer.
    fn told(&self, repository: &Repository, asked: Asked, error: Error) -> Error {
        match &asked {
            Asked::Blob(digest) if error.is_refusal() => self.confirmed.invalidate(&(repository.key.clone(), *digest)),
            Asked::Manifest(Reference::Digest(digest)) if error.is_refusal() => {
                self.described.invalidate(&(repository.key.clone(), *digest));
            }
            Asked::Blob(_) | Asked::Manifest(_) => {}
        }
        if matches!(error, Error::NotFound { remembered: false, .. }) {
            self.missing(repository, asked);
        }
        error
    }

    /// Upstream has just said that there is no such thing.
    fn missing(&self, repository: &Repository, asked: Asked) {
        let ttl = match &asked {
            Asked::Manifest(Reference::Tag(tag)) => freshness::negative_ttl(tag, self.negative_ttl),
            Asked::Manifest(Reference::Digest(_)) | Asked::Blob(_) => self.negative_ttl,
        };
        self.negative.insert((repository.key.clone(), asked), Instant::now() + ttl);
    }

    /// A cache fault is noted, and fails nobody (invariant 9).
    fn note(&self, written: Result<(), StoreError>) {
        if let Err(error) = written {
            tracing::error!(%error, "the cache could not be written");
        }
    }
}
