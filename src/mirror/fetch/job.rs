//! What a download's task and its transfer share: the parts they work with, and the ways in which they end.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::FillError;
use super::fill::Fill;
use super::queue::Downloads;
use crate::gate::Gate;
use crate::labels::{BypassReason, FillResult};
use crate::mirror::Source;
use crate::oci::{Digest, RepositoryName};
use crate::rng::Rng;
use crate::single_flight::Entry;
use crate::store::{Store, StoreError};
use crate::upstream::{BlobStream, Call, UpstreamError};

/// From a download's begin, and from each resumption, to upstream's headers.
pub(in crate::mirror) const HEADERS_TIMEOUT: Duration = Duration::from_secs(25);

/// One at a time of each.
pub(super) type Key = (Arc<str>, Digest);

/// What all downloads work with.
pub(super) struct Means {
    pub(super) downloads: Downloads,
    pub(super) store: Arc<Store>,
    pub(super) gate: Gate,
    pub(super) rng: Arc<Rng>,
}

/// One download, for its task.
pub(super) struct Job {
    pub(super) means: Arc<Means>,
    pub(super) source: Arc<Source>,
    pub(super) fill: Arc<Fill>,
    pub(super) entry: Entry<Key, Fill>,
}

/// However the task ends, by panic too, nobody waits for what will never come.
impl Drop for Job {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.source.metrics.filled(FillResult::Failed);
        }
        self.entry.release();
        self.fill.abandon();
    }
}

impl Job {
    pub(super) async fn get(&self, name: &RepositoryName, offset: u64) -> Result<BlobStream, UpstreamError> {
        let call = Call::new(Instant::now() + HEADERS_TIMEOUT, Arc::clone(self.fill.exchange()));
        self.source.upstream.get_blob(name, &self.fill.digest, offset, &call).await
    }

    /// Nobody gets anything. Its key is released first, so that who asks from now on begins anew.
    pub(super) fn end(&self, error: FillError) {
        tracing::warn!(upstream = %self.source.name(), digest = %self.fill.digest, ?error, "a download failed");
        self.source.metrics.filled(FillResult::Failed);
        self.entry.release();
        self.fill.fail(error);
    }

    pub(super) fn bypass(&self, error: &StoreError) -> BypassReason {
        tracing::warn!(digest = %self.fill.digest, %error, "a blob passes through without being stored");
        match error {
            StoreError::Full => BypassReason::DiskFull,
            StoreError::Loading => BypassReason::Loading,
            StoreError::TooLarge => BypassReason::TooLarge,
            StoreError::Io { .. } | StoreError::Incomplete { .. } => BypassReason::DiskError,
        }
    }
}
