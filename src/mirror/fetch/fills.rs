//! The downloads that are under way: one upstream GET each, any number of readers, owned by none of them (invariants 6
//! and 7).

use std::sync::Arc;
use std::time::Duration;

use super::error::FillError;
use super::fill::{Fill, Interest};
use super::job::{Job, Key, Means};
use super::queue::Downloads;
use super::task::Task;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::mirror::Repository;
use crate::oci::Digest;
use crate::rng::Rng;
use crate::single_flight::{Group, Joined};
use crate::store::{Store, Tail};

/// Downloads under way or waiting for their turn. `Downloads` bounds them for each upstream; this bounds them for all.
const DOWNLOADS_MAX: usize = 16_384;

/// All of them.
pub struct Fills {
    running: Group<Key, Fill>,
    means: Arc<Means>,
}

impl Fills {
    pub fn new(max: usize, queue_timeout: Duration, store: Arc<Store>, gate: Gate, metrics: Arc<Metrics>, rng: Arc<Rng>) -> Fills {
        let running = Group::new(DOWNLOADS_MAX, metrics.task_panics.clone());
        let downloads = Downloads::new(max, queue_timeout, metrics);
        Fills { running, means: Arc::new(Means { downloads, store, gate, rng }) }
    }

    /// The fill of this blob, if one is under way.
    pub fn running(&self, repository: &Repository, digest: &Digest) -> Option<Arc<Fill>> {
        self.running.get(&(Arc::clone(repository.upstream_name()), *digest))
    }

    /// From now on nobody joins the download that this tail follows; it goes on for those who have.
    pub(super) fn leave(&self, repository: &Repository, digest: &Digest, tail: &Arc<Tail>) {
        self.running.release_if(&(Arc::clone(repository.upstream_name()), *digest), |fill| fill.follows(tail));
    }

    /// Joins the download of a blob, or begins it. `size` is what a manifest says of it. `None` when it has been stored
    /// meanwhile. The flag is whether it was under way.
    pub(super) fn join(
        &self,
        repository: &Repository,
        digest: &Digest,
        size: Option<u64>,
        interest: Interest,
    ) -> Option<(Arc<Fill>, bool)> {
        let key = (Arc::clone(repository.upstream_name()), *digest);
        let name = repository.name();
        // It may have ended between the caller's look into the store and this one.
        let is_stored = interest != Interest::Passing;
        let make = || (!is_stored || !self.means.store.contains(digest)).then(|| Fill::new(*digest, name.clone(), interest));
        match self.running.join(key, |fill| fill.want(name, interest), make) {
            Joined::Needless => None,
            Joined::Full => {
                let fill = Fill::new(*digest, name.clone(), interest);
                fill.fail(FillError::Overloaded);
                fill.abandon();
                Some((Arc::new(fill), false))
            }
            Joined::Running(fill) => Some((fill, true)),
            Joined::New(entry) => {
                let fill = Arc::clone(entry.job());
                let job = Job { means: Arc::clone(&self.means), source: Arc::clone(&repository.source), fill: Arc::clone(&fill), entry };
                tokio::spawn(Task { job, listed: size.map(|size| (name.clone(), size)), is_stored }.run());
                Some((fill, false))
            }
        }
    }

    /// Waits while clients' downloads wait for their turn or take most of the places, for a minute at most.
    pub async fn calm(&self) {
        self.means.downloads.calm().await;
    }

    pub(super) fn store(&self) -> &Arc<Store> {
        &self.means.store
    }
}
