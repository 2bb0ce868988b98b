//! How long an answer may take.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Error, Repository};

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
