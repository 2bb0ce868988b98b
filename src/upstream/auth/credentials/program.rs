//! A helper or a credential provider: run once for any number of waiters, its answer kept in memory for as long as it is
//! good. A run belongs to nobody's request. While an answer is being renewed, and where that fails, the old one serves.

use parking_lot::{Mutex, MutexGuard};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::environment::Environment;
use super::exec::{self, Limits};
use super::health::{Health, Place};
use super::pattern::Image;
use super::protocol::{Answer, Question, Scope};
use super::{Held, Version, helper, kubelet, refused};
use crate::upstream::UpstreamError;

/// Answers that are for one repository, and their failures.
const ANSWERS_MAX: u64 = 1_000;
const RUNS_MAX: usize = 4;
/// For a place among the runs, and for the run.
const WAIT_MAX: Duration = Duration::from_secs(20);
/// A failure answers those who ask within this time: a program that hangs is not run for each of a thousand clients.
const FAILURE_HOLD: Duration = Duration::from_secs(10);
/// A program that gives the same login again after that was refused is not asked for another sooner than this.
const REFUSAL_HOLD: Duration = Duration::from_mins(5);
/// The first answer tells whom it is for; those it is not for ask once more.
const ROUNDS_MAX: usize = 3;

pub(super) enum Protocol {
    /// The helper's name.
    Helper(String),
    /// The program and its arguments.
    Kubelet(Vec<String>),
}

pub(super) struct Program {
    protocol: Protocol,
    /// What a helper is asked to do.
    get: [String; 1],
    environment: Environment,
    limits: Limits,
    health: Health,
    runs: Semaphore,
    answers: Cache<Key, Arc<Kept>>,
    failures: Cache<Key, (Instant, UpstreamError)>,
    /// When a refused login was dropped.
    dropped: Cache<Version, Instant>,
    flights: Mutex<Flights>,
}

/// A repository; none: the whole registry.
type Key = Option<String>;
type Landed = Result<Arc<Kept>, UpstreamError>;
type Flight = watch::Receiver<Option<Landed>>;

#[derive(Default)]
struct Flights {
    /// The last answer's. Until it is known one run goes ahead alone, so that a thousand images of one registry cost one.
    scope: Scope,
    /// One entry for each run under way; it lives as long as its task.
    under_way: HashMap<Key, Flight>,
}

/// An answer and since when.
struct Kept {
    answer: Answer,
    key: Key,
    since: Instant,
}

enum Step {
    Done(Result<Held, UpstreamError>),
    Wait(Flight),
}

impl Program {
    pub(super) fn new(protocol: Protocol, environment: &Environment, limits: Limits, place: &Place) -> Arc<Program> {
        Arc::new(Program {
            protocol,
            get: ["get".into()],
            environment: environment.clone(),
            limits,
            health: Health::new(place),
            runs: Semaphore::new(RUNS_MAX),
            answers: Cache::new(ANSWERS_MAX),
            failures: Cache::new(ANSWERS_MAX),
            dropped: Cache::new(ANSWERS_MAX),
            flights: Mutex::default(),
        })
    }

    /// What it said, or says now.
    pub(super) async fn login(self: &Arc<Program>, image: &Image) -> Result<Held, UpstreamError> {
        let waited = timeout(WAIT_MAX, self.wait(image)).await;
        waited.unwrap_or_else(|_| Err(refused(format!("{} is asked for too many repositories at a time", self.name()))))
    }

    /// Forgets the answer that held this login, unless the program has just confirmed it.
    pub(super) fn refused(&self, version: &Version) {
        let now = Instant::now();
        if self.dropped.get(version).is_some_and(|dropped| now < dropped + REFUSAL_HOLD) {
            return;
        }
        for (key, kept) in &self.answers {
            if kept.answer.versions().any(|held| held == *version) {
                self.answers.invalidate(&*key);
                self.dropped.insert(*version, now);
            }
        }
    }

    async fn wait(self: &Arc<Program>, image: &Image) -> Result<Held, UpstreamError> {
        for _ in 0..ROUNDS_MAX {
            let mut flight = match self.step(image) {
                Step::Done(result) => return result,
                Step::Wait(flight) => flight,
            };
            let landed = flight.wait_for(Option::is_some).await.ok().and_then(|landed| landed.clone());
            let kept = landed.unwrap_or_else(|| Err(refused(format!("the run of {} was abandoned", self.name()))))?;
            if kept.is_for(image) {
                return Ok(kept.answer.login(image));
            }
        }
        Err(refused(format!("{} does not make up its mind whom its answers are for", self.name())))
    }

    fn step(self: &Arc<Program>, image: &Image) -> Step {
        let now = Instant::now();
        let mut flights = self.flights();
        let key = flights.scope.key(image);
        let failure = self.failures.get(&key).filter(|(since, _)| now < *since + FAILURE_HOLD);
        match (self.kept(image, now), failure) {
            (Some(kept), failure) => {
                if kept.since + kept.answer.lifetime.renew <= now && failure.is_none() {
                    self.depart(&mut flights, key, image);
                }
                Step::Done(Ok(kept.answer.login(image)))
            }
            (None, Some((_, error))) => Step::Done(Err(error)),
            (None, None) => Step::Wait(self.depart(&mut flights, key, image)),
        }
    }

    fn kept(&self, image: &Image, now: Instant) -> Option<Arc<Kept>> {
        let keys = [Scope::Repository, Scope::Registry].map(|scope| scope.key(image));
        let mut answers = keys.iter().filter_map(|key| self.answers.get(key));
        answers.find(|kept| now < kept.since + kept.answer.lifetime.expire)
    }

    /// The flight that is under way, or a new one.
    fn depart(self: &Arc<Program>, flights: &mut Flights, key: Key, image: &Image) -> Flight {
        if let Some(flight) = flights.under_way.get(&key) {
            return flight.clone();
        }
        let (sender, flight) = watch::channel(None);
        flights.under_way.insert(key.clone(), flight.clone());
        let (entry, image) = (Entry { program: Arc::clone(self), key }, image.clone());
        tokio::spawn(async move { entry.fly(&image, &sender).await });
        flight
    }

    async fn ask(&self, image: &Image) -> Result<Answer, String> {
        let Question { program, arguments, input } = match &self.protocol {
            Protocol::Helper(name) if helper::is_name(name) => helper::question(name, &self.get, image),
            Protocol::Helper(_) => return Err("is no helper's name".into()),
            Protocol::Kubelet(command) => kubelet::question(command, image).ok_or("is not written")?,
        };
        let _permit = self.runs.acquire().await.map_err(|_| "is run no more")?;
        let finished =
            exec::run(&program, arguments, &input, &self.environment, self.limits).await.map_err(|failure| failure.to_string())?;
        let succeeded = finished.status.success();
        let answer = match &self.protocol {
            Protocol::Helper(_) => helper::answer(&finished.output, succeeded),
            Protocol::Kubelet(_) => kubelet::answer(&finished.output, succeeded),
        };
        answer.map_err(|why| if succeeded { why.into() } else { format!("{why}: {}", finished.status) })
    }

    fn name(&self) -> String {
        match &self.protocol {
            Protocol::Helper(name) => format!("docker-credential-{name}"),
            Protocol::Kubelet(command) => command.first().cloned().unwrap_or_else(|| "the credential provider".into()),
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock()
    }
}

impl Scope {
    fn key(self, image: &Image) -> Key {
        match self {
            Scope::Registry => None,
            Scope::Repository => Some(image.repository().to_owned()),
        }
    }
}

impl Kept {
    fn is_for(&self, image: &Image) -> bool {
        self.key.as_deref().is_none_or(|repository| repository == image.repository())
    }
}

/// A flight's place in the table, given up with its task, also when that panics.
struct Entry {
    program: Arc<Program>,
    key: Key,
}

impl Entry {
    async fn fly(self, image: &Image, sender: &watch::Sender<Option<Landed>>) {
        let program = &self.program;
        let asked = timeout(WAIT_MAX, program.ask(image)).await.unwrap_or_else(|_| Err("waited too long for its turn".into()));
        let now = Instant::now();
        let landed = match asked {
            Ok(answer) => {
                program.health.note(None);
                program.flights().scope = answer.scope;
                let kept = Arc::new(Kept { key: answer.scope.key(image), answer, since: now });
                program.answers.insert(kept.key.clone(), Arc::clone(&kept));
                Ok(kept)
            }
            Err(why) => {
                let detail = format!("{} {why}", program.name());
                program.health.note(Some(&detail));
                let error = refused(detail);
                program.failures.insert(self.key.clone(), (now, error.clone()));
                Err(error)
            }
        };
        sender.send_replace(Some(landed));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.program.flights().under_way.remove(&self.key);
    }
}

#[cfg(test)]
impl Program {
    /// Nothing runs.
    pub(super) fn rests(&self) -> bool {
        self.flights().under_way.is_empty()
    }
}
