//! Names to addresses, above the seam: a look-up has its own time, goes on when whoever asked has left, and is shared
//! by all who ask for the same name; its last good answer is kept for the time when DNS fails. Judges no address.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use moka::sync::Cache;
use prometheus::IntCounter;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use super::seam::Connect;
use crate::single_flight::{Group, Joined};

/// A look-up's own time, apart from the connection's. A resolver that asks a dead nameserver first (glibc: 5 s each)
/// gets past two of them, and what is left of a client's 25 s is enough for the rest.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// When a look-up is given up and the next who asks begins another. Until then those who repeat a question learn at
/// once that there is no answer, and do not wait again.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(20);
/// The last good answer is used when a new one takes longer. Healthy resolvers answer in a tenth of it.
const SLOW_AFTER: Duration = Duration::from_millis(500);
/// How long the last good answer may be used. Most names' TTL is shorter; an address that has moved by then refuses
/// or fails TLS.
const KEPT_FOR: Duration = Duration::from_hours(1);
/// Names whose last answer is kept. Redirects and challenges name hosts of others' choice.
const NAMES_MAX: u64 = 1024;
/// Names that are looked up at a time; further ones fail at once. Only [`super::seam`]'s few are asked of the system
/// meanwhile.
const RUNNING_MAX: usize = 256;

/// Why there are no addresses of a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookUpError {
    /// The resolver's own words: SERVFAIL, NXDOMAIN, no resolver.
    #[error("{0}")]
    Failed(Arc<str>),
    #[error("the name has no address")]
    NoAddress,
    #[error("DNS gave no answer in {0:?}")]
    Slow(Duration),
    #[error("too many names are being looked up")]
    TooMany,
}

type Answer = Result<Vec<IpAddr>, LookUpError>;

/// The names that larder connects to.
pub struct Names {
    connect: Arc<dyn Connect>,
    last_good: Cache<String, Arc<LastGood>>,
    running: Group<String, Running>,
}

struct LastGood {
    addresses: Vec<IpAddr>,
    at: Instant,
    /// It was used instead of a new answer, and a warning has said so.
    was_used: AtomicBool,
}

/// A look-up under way, as its task has it.
struct Running {
    begun: Instant,
    answer: watch::Sender<Option<Answer>>,
}

/// A look-up under way, as somebody waits for it.
struct LookUp {
    begun: Instant,
    answer: watch::Receiver<Option<Answer>>,
}

impl Running {
    fn join(&self) -> LookUp {
        LookUp { begun: self.begun, answer: self.answer.subscribe() }
    }
}

impl Names {
    /// `panics` counts look-ups whose task panics.
    pub fn new(connect: Arc<dyn Connect>, panics: IntCounter) -> Names {
        Names { connect, last_good: Cache::new(NAMES_MAX), running: Group::new(RUNNING_MAX, panics) }
    }

    /// The addresses of a name, in the resolver's order: what DNS says now or, where it is slow or fails, what it
    /// said within the last hour.
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
        let new = || Some(Running { begun: Instant::now(), answer: watch::Sender::new(None) });
        match self.running.join(host.to_owned(), |_| (), new) {
            Joined::Running(running) => Ok(running.join()),
            Joined::New(entry) => {
                let (look_up, names, host) = (entry.job().join(), Arc::clone(self), host.to_owned());
                tokio::spawn(async move {
                    let answer = names.ask(&host).await;
                    // First: who asks from now on shall not get an answer to a question of the past.
                    entry.release();
                    entry.job().answer.send_replace(Some(answer));
                });
                Ok(look_up)
            }
            Joined::Full | Joined::Needless => Err(LookUpError::TooMany),
        }
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::upstream::connect::seam::{BoxFuture, Stream};

    const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));

    /// Answers after the time that the name says in seconds; counts.
    #[derive(Default)]
    struct Resolver(AtomicUsize);

    impl Connect for Resolver {
        fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                #[expect(clippy::panic, reason = "the point of the test")]
                let seconds = host.parse().unwrap_or_else(|_| panic!("on purpose"));
                tokio::time::sleep(Duration::from_secs(seconds)).await;
                Ok(vec![ADDRESS])
            })
        }

        fn dial(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
            Box::pin(std::future::pending())
        }
    }

    fn names() -> (Arc<Resolver>, Arc<Names>) {
        let resolver = Arc::new(Resolver::default());
        let connect = Arc::clone(&resolver) as Arc<dyn Connect>;
        let panics = IntCounter::new("panics", "of tasks").expect("a counter");
        (resolver, Arc::new(Names::new(connect, panics)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_goes_on_when_who_asked_has_left() {
        let (resolver, names) = names();
        assert!(timeout(Duration::from_secs(1), names.look_up("5")).await.is_err(), "it takes 5 s");
        let begun = Instant::now();
        assert_eq!(names.look_up("5").await, Ok(vec![ADDRESS]));
        assert_eq!((begun.elapsed(), resolver.0.load(Ordering::Relaxed)), (Duration::from_secs(4), 1));
    }

    #[tokio::test(start_paused = true)]
    async fn who_repeats_a_question_that_has_no_answer_learns_it_at_once() {
        let (resolver, names) = names();
        let begun = Instant::now();
        for _ in 0..3 {
            assert_eq!(names.look_up("99").await, Err(LookUpError::Slow(ANSWER_TIMEOUT)));
            assert_eq!(begun.elapsed(), ANSWER_TIMEOUT);
        }
        tokio::time::sleep(GIVEN_UP_AFTER - ANSWER_TIMEOUT + Duration::from_millis(1)).await;
        assert_eq!(names.look_up("99").await, Err(LookUpError::Slow(ANSWER_TIMEOUT)));
        assert_eq!(resolver.0.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_comes_late_is_kept_for_the_next() {
        let (_, names) = names();
        assert_eq!(names.look_up("18").await, Err(LookUpError::Slow(ANSWER_TIMEOUT)));
        tokio::time::sleep(Duration::from_secs(4)).await;
        let begun = Instant::now();
        assert_eq!((names.look_up("18").await, begun.elapsed()), (Ok(vec![ADDRESS]), SLOW_AFTER));
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_looked_up_by_the_hundreds_and_not_without_bound() {
        let (resolver, names) = names();
        for number in 0..RUNNING_MAX {
            names.running(&format!("9{number}")).expect("room");
        }
        assert!(matches!(names.running("1"), Err(LookUpError::TooMany)));
        tokio::time::sleep(GIVEN_UP_AFTER + Duration::from_millis(1)).await;
        assert_eq!(names.look_up("1").await, Ok(vec![ADDRESS]));
        assert_eq!(resolver.0.load(Ordering::Relaxed), RUNNING_MAX + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_up_that_panics_is_begun_anew() {
        let (resolver, names) = names();
        for _ in 0..2 {
            assert!(matches!(names.look_up("panics").await, Err(LookUpError::Failed(_))));
        }
        assert_eq!(resolver.0.load(Ordering::Relaxed), 2);
    }
}
