//! The hosts that a registry redirects to, as CDNs and object stores: one that limits the rate, or asks to come back later, is not asked again
//! until then. Each has a circuit breaker; they are known by their origins' text.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use moka::sync::Cache;
use tokio::time::Instant;

use super::breaker::Breaker;
use super::host_breaker::busy_wait;
use super::too_many_requests::{LIMITED, retry_after};
use crate::clock::Clock;
use crate::rng::Rng;
use crate::upstream::UpstreamError;

/// A registry names a handful; one that names a new one each time costs no more memory than these.
const TARGETS_MAX: u64 = 256;
/// Longer than any breaker stays open.
const FORGET_AFTER: Duration = Duration::from_hours(2);

/// The circuit breakers of one upstream's redirect targets.
pub struct RedirectTargets {
    breakers: Cache<String, Arc<Breaker>>,
    /// As it is logged.
    upstream: Arc<str>,
    rng: Arc<Rng>,
}

impl RedirectTargets {
    pub fn new(upstream: Arc<str>, rng: Arc<Rng>) -> RedirectTargets {
        RedirectTargets { breakers: Cache::builder().max_capacity(TARGETS_MAX).time_to_idle(FORGET_AFTER).build(), upstream, rng }
    }

    /// The breaker of an origin.
    pub fn breaker(&self, origin: &str) -> Arc<Breaker> {
        self.breakers.get_with_by_ref(origin, Arc::default)
    }

    /// Draws the conclusion from an answer of this origin to a question begun then.
    ///
    /// # Errors
    /// When it is to be left alone from now on, with how long.
    pub fn observe(&self, origin: &str, begun: Instant, status: StatusCode, headers: &HeaderMap) -> Result<(), UpstreamError> {
        let (breaker, now) = (self.breaker(origin), Clock::System.now());
        let (why, asked) = match (status, busy_wait(status, headers, now)) {
            (StatusCode::TOO_MANY_REQUESTS, _) => (UpstreamError::RateLimited { retry_after: None }, retry_after(headers, now)),
            (_, Some(wait)) => (UpstreamError::Busy { retry_after: wait, detail: format!("{origin} answered 503") }, Some(wait)),
            _ => {
                breaker.succeeded(begun, Instant::now());
                return Ok(());
            }
        };
        let (wait, is_new) = breaker.open(begun, Instant::now(), &why, asked, LIMITED, |wait| self.rng.jitter(wait));
        if is_new {
            let (upstream, seconds) = (&*self.upstream, wait.as_secs());
            tracing::warn!(upstream, origin, %why, seconds, "where upstream redirects to limits the rate; it is not asked before this time is over");
        }
        Err(why.with_retry_after(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_names_a_new_target_each_time_is_bounded() {
        let targets = RedirectTargets::new("r.example".into(), Arc::new(Rng::seeded(1)));
        for number in 0..10 * TARGETS_MAX {
            targets.breaker(&format!("https://{number}.example"));
        }
        targets.breakers.run_pending_tasks();
        assert!(targets.breakers.entry_count() <= TARGETS_MAX, "{}", targets.breakers.entry_count());
    }
}
