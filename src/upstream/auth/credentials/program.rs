//! A helper or a credential provider: run once for any number of waiters, its answer kept in memory for as long as it is
//! good. A run belongs to nobody's request. While an answer is being renewed, and where that fails, the old one serves.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::environment::Environment;
use super::exec::{self, Limits};
use super::health::{Health, Place};
use super::pattern::Image;
use super::protocol::{Answer, Question, Scope};
use super::{Held, Version, helper, kubelet, refused};
use crate::single_flight::{Pending, Questions};
use crate::upstream::UpstreamError;

/// Answers that are for one repository, and their failures.
const ANSWERS_MAX: u64 = 1_000;
const RUNS_MAX: usize = 4;
/// Repositories that a run is under way or waited for at a time.
const ASKED_MAX: usize = 1_000;
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
    /// The last answer's. Until it is known one run goes ahead alone, so that a thousand images of one registry cost one.
    scope: Mutex<Scope>,
    asked: Questions<Key, Answered>,
}

/// A repository; none: the whole registry.
type Key = Option<String>;
type Answered = Result<Arc<Kept>, UpstreamError>;

/// An answer and since when.
struct Kept {
    answer: Answer,
    key: Key,
    since: Instant,
}

enum Step {
    Done(Result<Held, UpstreamError>),
    Wait(Pending<Answered>),
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
            scope: Mutex::default(),
            asked: Questions::new(ASKED_MAX, place.panics.clone()),
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
            let pending = match self.step(image) {
                Step::Done(result) => return result,
                Step::Wait(pending) => pending,
            };
            let answered = pending.answer().await;
            let kept = answered.unwrap_or_else(|no_answer| Err(refused(format!("{} gave no answer: {no_answer}", self.name()))))?;
            if kept.is_for(image) {
                return Ok(kept.answer.login(image));
            }
        }
        Err(refused(format!("{} does not make up its mind whom its answers are for", self.name())))
    }

    fn step(self: &Arc<Program>, image: &Image) -> Step {
        let now = Instant::now();
        let key = self.scope.lock().key(image);
        let failure = self.failures.get(&key).filter(|(since, _)| now < *since + FAILURE_HOLD);
        match (self.kept(image, now), failure) {
            (Some(kept), failure) => {
                if kept.since + kept.answer.lifetime.renew <= now && failure.is_none() {
                    // Nobody waits for it.
                    drop(self.ask_for(key, image));
                }
                Step::Done(Ok(kept.answer.login(image)))
            }
            (None, Some((_, error))) => Step::Done(Err(error)),
            (None, None) => Step::Wait(self.ask_for(key, image)),
        }
    }

    fn kept(&self, image: &Image, now: Instant) -> Option<Arc<Kept>> {
        let keys = [Scope::Repository, Scope::Registry].map(|scope| scope.key(image));
        let mut answers = keys.iter().filter_map(|key| self.answers.get(key));
        answers.find(|kept| now < kept.since + kept.answer.lifetime.expire)
    }

    /// The run that is under way, or a new one.
    fn ask_for(self: &Arc<Program>, key: Key, image: &Image) -> Pending<Answered> {
        let (program, image, whose) = (Arc::clone(self), image.clone(), key.clone());
        self.asked.ask(key, || async move { program.run(whose, &image).await })
    }

    async fn run(&self, key: Key, image: &Image) -> Answered {
        let asked = timeout(WAIT_MAX, self.ask(image)).await.unwrap_or_else(|_| Err("waited too long for its turn".into()));
        let now = Instant::now();
        match asked {
            Ok(answer) => {
                self.health.note(None);
                *self.scope.lock() = answer.scope;
                let kept = Arc::new(Kept { key: answer.scope.key(image), answer, since: now });
                self.answers.insert(kept.key.clone(), Arc::clone(&kept));
                Ok(kept)
            }
            Err(why) => {
                let detail = format!("{} {why}", self.name());
                self.health.note(Some(&detail));
                let error = refused(detail);
                self.failures.insert(key, (now, error.clone()));
                Err(error)
            }
        }
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

#[cfg(test)]
impl Program {
    /// Nothing runs.
    pub(super) fn rests(&self) -> bool {
        self.asked.is_idle()
    }
}
