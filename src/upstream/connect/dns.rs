//! Names to addresses, above the seam: a look-up has its own time, goes on when whoever asked has left, and is shared by all who
//! ask for the same name; its last good answer is kept for the time when DNS fails. Judges no address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::seam::Connect;

/// A look-up's own time, apart from the connection's. A resolver that asks a dead nameserver first (glibc: 5 s each) gets past two of
/// them, and what is left of a client's 25 s is enough for the rest.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// When a look-up is given up and the next who asks begins another. Until then those who repeat a question learn at once that there
/// is no answer, and do not wait again.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(20);
/// The last good answer is used when a new one takes longer. Healthy resolvers answer in a tenth of it.
const SLOW_AFTER: Duration = Duration::from_millis(500);
/// How long the last good answer may be used. Most names' TTL is shorter; an address that has moved by then refuses or fails TLS.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// Names whose last answer is kept. Redirects and challenges name hosts of others' choice.
const NAMES_MAX: u64 = 1024;
/// Names that are looked up at a time; further ones fail at once. Only [`super::seam`]'s few are asked of the system meanwhile.
const RUNNING_MAX: usize = 256;

/// Why there are no addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookUpError {
    /// The resolver's own words: SERVFAIL, NXDOMAIN, no resolver.
    #[error("{0}")]
    Failed(Arc<str>),
    #[error("the name has no address")]
    NoAddress,
    #[error("DNS gave no answer in {} s", .0.as_secs())]
    Slow(Duration),
    #[error("too many names are being looked up")]
    TooMany,
}

type Answer = Result<Vec<IpAddr>, LookUpError>;

/// The names that larder connects to.
pub struct Names {
    connect: Arc<dyn Connect>,
    last_good: Cache<String, Arc<LastGood>>,
    running: Mutex<HashMap<String, LookUp>>,
}

struct LastGood {
    addresses: Vec<IpAddr>,
    at: Instant,
    /// It was used instead of a new answer, and a warning has said so.
    was_used: AtomicBool,
}

/// A look-up under way.
#[derive(Clone)]
struct LookUp {
    begun: Instant,
    answer: watch::Receiver<Option<Answer>>,
}

impl Names {
    pub fn new(connect: Arc<dyn Connect>) -> Names {
        Names { connect, last_good: Cache::new(NAMES_MAX), running: Mutex::default() }
    }

    /// The addresses of a name, in the resolver's order: what DNS says now or, where it is slow or fails, what it said within the
    /// last hour.
    ///
    /// # Errors
    /// When DNS has no answer within [`ANSWER_TIMEOUT`], and had none before.
    pub async fn look_up(self: &Arc<Self>, host: &str) -> Answer {
        let last_good = self.last_good.get(host).filter(|last| last.at.elapsed() < KEPT_FOR);
        let limit = if last_good.is_some() { SLOW_AFTER } else { ANSWER_TIMEOUT };
        let answer = match self.running(host) {
            Ok(look_up) => look_up.answer_within(limit).await,
            Err(error) => Err(error),
        };
        match (answer, last_good) {
            (Err(error), Some(last)) => {
                if !last.was_used.swap(true, Ordering::Relaxed) {
                    let age_seconds = last.at.elapsed().as_secs();
                    tracing::warn!(host, why = %error, age_seconds, "cannot look up the host; using its last known addresses");
                }
                Ok(last.addresses.clone())
            }
            (answer, _) => answer,
        }
    }

    /// Joins the look-up of this name, or begins one in a task of its own.
    fn running(self: &Arc<Self>, host: &str) -> Result<LookUp, LookUpError> {
        let mut running = self.running.lock();
        if let Some(look_up) = running.get(host) {
            return Ok(look_up.clone());
        }
        if running.len() >= RUNNING_MAX {
            return Err(LookUpError::TooMany);
        }
        let (sender, answer) = watch::channel(None);
        let look_up = LookUp { begun: Instant::now(), answer };
        running.insert(host.to_owned(), look_up.clone());
        let entry = Entry { names: Arc::clone(self), host: host.to_owned() };
        tokio::spawn(async move {
            let answer = entry.names.ask(&entry.host).await;
            // First: who asks from now on shall not get an answer to a question of the past.
            drop(entry);
            sender.send_replace(Some(answer));
        });
        Ok(look_up)
    }

    /// Asks the resolver, and keeps a good answer.
    async fn ask(&self, host: &str) -> Answer {
        let begun = Instant::now();
        let answered = timeout(GIVEN_UP_AFTER, self.connect.resolve(host)).await;
        let addresses =
            answered.map_err(|_| LookUpError::Slow(GIVEN_UP_AFTER))?.map_err(|error| LookUpError::Failed(error.to_string().into()))?;
        if addresses.is_empty() {
            return Err(LookUpError::NoAddress);
        }
        let was_used = self.last_good.get(host).is_some_and(|last| last.was_used.load(Ordering::Relaxed));
        // An answer that came late ends no trouble.
        let is_well = begun.elapsed() <= SLOW_AFTER;
        if was_used && is_well {
            tracing::info!(host, "the host can be looked up again");
        }
        let last = LastGood { addresses: addresses.clone(), at: Instant::now(), was_used: AtomicBool::new(was_used && !is_well) };
        self.last_good.insert(host.to_owned(), Arc::new(last));
        Ok(addresses)
    }
}

impl LookUp {
    /// `limit` counts from when the look-up began, whoever began it.
    async fn answer_within(mut self, limit: Duration) -> Answer {
        match timeout_at(self.begun + limit, self.answer.wait_for(Option::is_some)).await {
            Ok(Ok(answer)) => answer.clone().unwrap_or(Err(LookUpError::NoAddress)),
            // Its task is gone without an answer.
            Ok(Err(_)) => Err(LookUpError::Failed("the look-up was broken off".into())),
            Err(_) => Err(LookUpError::Slow(limit)),
        }
    }
}

/// A look-up's place among those that run, given up with its task, also when that panics.
struct Entry {
    names: Arc<Names>,
    host: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.names.running.lock().remove(&self.host);
    }
}
