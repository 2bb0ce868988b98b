//! How long an answer may take, and what that says of upstream.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::patience::Since;
use super::{Error, Repository};
use crate::single_flight::{NoAnswer, Pending};
use crate::upstream::UpstreamError;

/// How long upstream has for one question about a tag, a manifest by digest or a right to a blob.
pub const CHECK_TIMEOUT: Duration = Duration::from_secs(25);

/// No client waits longer for headers than its deadline.
///
/// # Errors
/// Those of `work`, and that it took too long.
pub async fn within<T>(repository: &Repository, deadline: Instant, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let timed_out =
        || Error::TimedOut { upstream: Arc::clone(repository.upstream_name()), detail: "no answer within the client's deadline".into() };
    tokio::time::timeout_at(deadline, work).await.unwrap_or_else(|_| Err(timed_out()))
}

/// What an answer, or none, says of upstream.
pub fn report_answer(repository: &Repository, since: Since, error: Option<&UpstreamError>) {
    match error {
        Some(UpstreamError::TimedOut { .. } | UpstreamError::Unavailable { .. } | UpstreamError::Busy { .. }) => {
            repository.source.patience.disappointed(since);
        }
        // It was not asked, or nobody knows what it said.
        Some(UpstreamError::Overloaded { .. } | UpstreamError::Internal { .. }) => {}
        _ => repository.source.patience.answered(),
    }
}

/// For who has something to serve: the answer, if it comes while its upstream is worth waiting for. The question goes
/// on.
pub async fn in_time<V: Clone>(repository: &Repository, pending: &Pending<V>, at_most: Duration) -> Option<Result<V, NoAnswer>> {
    let patience = &repository.source.patience;
    let since = patience.begin();
    let wait = if patience.is_lost() { Duration::ZERO } else { at_most };
    let answer = tokio::time::timeout(wait, pending.answer()).await;
    answer.inspect_err(|_| patience.disappointed(since)).ok()
}
