//! How many questions are put to upstreams at a time, in all and to each: `limits.questions` and `limits.questions_per_upstream`. Downloads of
//! blobs have places of their own; a token is fetched in the place of the question that needs it.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::queue::{Queue, Rank, Running};
use crate::upstream::UpstreamError;

/// What is left to a question when its turn comes: less would not be answered.
const TIME_TO_ASK: Duration = Duration::from_secs(5);
/// When who found no place is to come again: some hundred questions have been answered by then.
const RETRY_AFTER: Duration = Duration::from_secs(5);

/// All questions to all upstreams. A place is given up with the answer, or with who waits for it.
pub struct Questions {
    queue: Arc<Queue>,
    per_upstream: usize,
}

/// A question's place; dropped, it is the next one's.
pub type Place = Running;

impl Questions {
    /// At most `all` at a time, of these `per_upstream` to one upstream.
    pub fn new(all: usize, per_upstream: usize) -> Arc<Questions> {
        Arc::new(Questions { queue: Arc::new(Queue::new(all, |_, _| {})), per_upstream })
    }

    /// Waits for a place, as long as the question could still be answered before `deadline`; freed places go round the upstreams. A
    /// `rank` is within one: a manifest's GET goes ahead, as it ends what a HEAD began, and a thousand new HEADs would keep all of them from
    /// an end.
    ///
    /// # Errors
    /// When none comes free by then; at once, when too many wait already.
    pub async fn place(&self, upstream: &Arc<str>, rank: Rank, deadline: Instant) -> Result<Place, UpstreamError> {
        let left = deadline.saturating_duration_since(Instant::now());
        let wait = left - TIME_TO_ASK.min(left / 2);
        let place = self.queue.turn(upstream, self.per_upstream, rank, wait).await;
        place.map_err(|_| UpstreamError::Overloaded { retry_after: RETRY_AFTER })
    }
}
