//! What an upstream lists. Nothing of it is stored: an answer is remembered for moments, so that many who ask cost one question,
//! and kept in memory for the time when upstream cannot answer. What is kept is bounded in bytes, whatever there is of it.

mod referrers;
mod tags;

pub use referrers::ReferrersPage;
pub use tags::{TagPage, Tags};

use std::collections::hash_map::RandomState;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::freshness::{self, Answer, Held, Said};
use super::{Error, QUESTIONS_MAX, Repository, What};
use crate::clock::{Clock, Timestamp};
use crate::labels::Outcome;
use crate::metrics::Metrics;
use crate::oci::MIB;
use crate::single_flight::{NoAnswer, Questions};
use crate::store::RepositoryKey;
use crate::upstream::{Call, Exchange, UpstreamError};
use referrers::{ReferrersKey, Referring};
use tags::{Collected, PageKey};

/// How long upstream's word is passed on without asking again. A signature that was just added is to be seen soon.
const TTL: Duration = Duration::from_secs(30);
/// The same for "there is none": an image may be signed a moment after somebody looked.
const ABSENT_TTL: Duration = Duration::from_secs(5);
/// How long upstream has for one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);
/// Lists that are being fetched at a time. Each may be some megabytes.
const FETCHES_MAX: usize = 32;
/// What is left of a page's time when its turn comes: less would not be answered.
const TIME_TO_ASK: Duration = Duration::from_secs(5);
/// When who got no turn is to come again.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// What all answers of a kind that are kept may take.
const KEPT_BYTES_MAX: u64 = 32 * MIB;
/// What keeping the smallest answer takes.
const KEPT_BYTES_MIN: usize = 512;

/// A list, or a page of it, as it may be passed on.
pub struct Listing<T> {
    pub content: T,
    pub outcome: Outcome,
    /// Seconds of freshness left, negative when it is past; none for what was just fetched.
    pub ttl: Option<i64>,
    /// Of what is stale: since upstream said it.
    pub age: Option<Duration>,
    pub exchange: Option<Arc<Exchange>>,
}

impl<T> Listing<T> {
    fn map<U>(self, change: impl FnOnce(T) -> U) -> Listing<U> {
        let Listing { content, outcome, ttl, age, exchange } = self;
        Listing { content: change(content), outcome, ttl, age, exchange }
    }

    fn fetched(content: T, joined: bool, exchange: Arc<Exchange>) -> Listing<T> {
        let outcome = if joined { Outcome::Collapsed } else { Outcome::Miss };
        Listing { content, outcome, ttl: None, age: None, exchange: Some(exchange) }
    }
}

/// All that is known of lists.
pub(super) struct Listings {
    tags: Memory<RepositoryKey, Collected>,
    /// Pages of lists that are too long to be kept.
    pages: Questions<PageKey, Heard<Arc<TagPage>>>,
    referrers: Memory<ReferrersKey, Referring>,
    fetches: Arc<Semaphore>,
}

impl Listings {
    pub(super) fn new(clock: &Clock, metrics: &Arc<Metrics>) -> Listings {
        Listings {
            tags: Memory::new(clock, metrics),
            pages: Questions::for_waiters(QUESTIONS_MAX, metrics.task_panics.clone()),
            referrers: Memory::new(clock, metrics),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
        }
    }

    /// What asks upstream, with a place among those that do, and the account of it.
    fn asking<T, F>(&self, ask: impl FnOnce(Call) -> F + Send + 'static) -> impl Future<Output = Heard<T>> + Send + 'static
    where
        F: Future<Output = Result<T, UpstreamError>> + Send,
    {
        let fetches = Arc::clone(&self.fetches);
        let call = Call::until(Instant::now() + PAGE_TIMEOUT);
        async move {
            let exchange = Arc::clone(&call.exchange);
            let result = match tokio::time::timeout_at(call.deadline - TIME_TO_ASK, fetches.acquire()).await {
                Ok(_place) => ask(call).await,
                Err(_) => Err(UpstreamError::Overloaded { retry_after: RETRY_AFTER }),
            };
            Heard { result, exchange }
        }
    }
}

/// What came of a question.
#[derive(Clone)]
struct Heard<V> {
    result: Result<V, UpstreamError>,
    exchange: Arc<Exchange>,
}

impl<V> Heard<V> {
    fn failed(error: UpstreamError) -> Heard<V> {
        Heard { result: Err(error), exchange: Arc::default() }
    }
}

impl<V> From<NoAnswer> for Heard<V> {
    fn from(error: NoAnswer) -> Heard<V> {
        Heard::failed(error.into())
    }
}

/// What an answer and its question take, and how long it is good.
trait Weighed {
    fn bytes(&self) -> usize;

    fn ttl(&self) -> Duration {
        TTL
    }
}

impl Weighed for RepositoryKey {
    fn bytes(&self) -> usize {
        self.name.as_str().len()
    }
}

/// Upstream's answers to one kind of question.
struct Memory<K, V> {
    questions: Questions<K, Heard<V>>,
    kept: Cache<K, Kept<V>>,
    clock: Clock,
}

/// An answer. That there is nothing is one, too.
#[derive(Clone)]
struct Kept<V> {
    value: Option<V>,
    said_at: Timestamp,
    ttl: Duration,
}

impl<V> Kept<V> {
    /// How long it is good yet. What comes from the future (the clock was set back) is not good.
    fn left(&self, now: Timestamp) -> Option<Duration> {
        let age = now.since(self.said_at)?;
        self.ttl.checked_sub(age).filter(|left| !left.is_zero())
    }

    /// Also into the future, so that a clock that was wrong makes nothing immortal.
    fn age(&self, now: Timestamp) -> Duration {
        now.since(self.said_at).or_else(|| self.said_at.since(now)).unwrap_or_default()
    }
}

impl<K, V> Memory<K, V>
where
    K: Weighed + Clone + Eq + Hash + Send + Sync + 'static,
    V: Weighed + Clone + Send + Sync + 'static,
{
    fn new(clock: &Clock, metrics: &Arc<Metrics>) -> Memory<K, V> {
        let weigh = |key: &K, kept: &Kept<V>| {
            let bytes = KEPT_BYTES_MIN + key.bytes() + kept.value.as_ref().map_or(0, Weighed::bytes);
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let kept = Cache::builder().weigher(weigh).max_capacity(KEPT_BYTES_MAX).build_with_hasher(RandomState::new());
        Memory { questions: Questions::for_waiters(QUESTIONS_MAX, metrics.task_panics.clone()), kept, clock: clock.clone() }
    }

    /// What is known and good, without asking.
    fn fresh(&self, key: &K, repository: &Repository, what: What) -> Option<Result<Listing<V>, Error>> {
        let kept = self.kept.get(key)?;
        let ttl = Some(seconds(kept.left(self.clock.now())?));
        let upstream = Arc::clone(repository.upstream_name());
        Some(match kept.value {
            Some(content) => Ok(Listing { content, outcome: Outcome::Hit, ttl, age: None, exchange: None }),
            None => Err(Error::NotFound { upstream, what, remembered: true }),
        })
    }

    /// Upstream's answer: `asking` is begun if nobody is at it. Who has an older answer waits `patience` for it.
    async fn hear<F>(
        &self,
        key: K,
        repository: &Repository,
        what: What,
        patience: Duration,
        asking: impl FnOnce() -> F,
    ) -> Result<Listing<V>, Error>
    where
        F: Future<Output = Heard<V>> + Send + 'static,
    {
        let now = self.clock.now();
        let older = self.kept.get(&key).filter(|kept| kept.value.is_some() && kept.age(now) <= repository.source.tags.stale_if_error);
        let pending = self.questions.ask(key.clone(), || self.remembering(key, repository, now, asking()));
        let joined = pending.joined;
        // Whoever asks next gets its answer.
        let pending = if older.is_some() { pending.goes_on() } else { pending };
        let heard = match &older {
            None => pending.answer().await,
            Some(_) => match tokio::time::timeout(patience, pending.answer()).await {
                Ok(heard) => heard,
                Err(_) => Ok(Heard::failed(UpstreamError::TimedOut { detail: "no word from upstream on a list".into() })),
            },
        };
        let Heard { result, exchange } = heard.unwrap_or_else(Heard::from);
        let error = match result {
            Ok(content) => return Ok(Listing::fetched(content, joined, exchange)),
            Err(error) => error,
        };
        let held = if older.is_some() { Held::Within } else { Held::Nothing };
        match (freshness::answer(held, Said::from(&error), false), older) {
            (Answer::Serve(outcome), Some(Kept { value: Some(content), said_at, ttl })) => {
                let age = Kept { value: Some(()), said_at, ttl }.age(now);
                let ttl = (seconds(ttl) - seconds(age)).min(0);
                Ok(Listing { content, outcome, ttl: Some(ttl), age: Some(age), exchange: Some(exchange) })
            }
            _ => Err(Error::from_upstream(repository.upstream_name(), what, &error)),
        }
    }

    /// The question, with its answer kept. It is as old as its beginning.
    fn remembering<F>(&self, key: K, repository: &Repository, now: Timestamp, asking: F) -> impl Future<Output = Heard<V>> + Send + 'static
    where
        F: Future<Output = Heard<V>> + Send + 'static,
    {
        let (kept, repository) = (self.kept.clone(), repository.clone());
        async move {
            let heard = asking.await;
            match &heard.result {
                Ok(value) => kept.insert(key, Kept { value: Some(value.clone()), said_at: now, ttl: value.ttl() }),
                Err(UpstreamError::NotFound) => kept.insert(key, Kept { value: None, said_at: now, ttl: ABSENT_TTL }),
                Err(error) => {
                    // What was just refused is not given out when upstream goes down.
                    if matches!(error, UpstreamError::Denied { .. }) {
                        kept.invalidate(&key);
                    }
                    tracing::warn!(upstream = %repository.upstream_name(), repository = %repository.name(), %error, "upstream did not list");
                }
            }
            heard
        }
    }
}

/// A page's query comes to larder's clients and back, where `ns` says which upstream is meant: that is not for upstream to say.
fn check_cursor(query: Option<&str>) -> Result<(), UpstreamError> {
    let names_upstream = query.into_iter().flat_map(|query| query.split('&')).any(|pair| pair == "ns" || pair.starts_with("ns="));
    if names_upstream { Err(UpstreamError::Corrupt { detail: "a listing's next page names an upstream".into() }) } else { Ok(()) }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
