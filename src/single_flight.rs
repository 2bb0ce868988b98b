//! One job a key, whose outcome everybody gets who asks meanwhile. An entry lives exactly as long as its task, panic included
//! (invariant 8): the task owns the [`Entry`], and dropping it is what takes the key off. Bounded: of more different jobs than
//! `max` none is begun. Knows no room of larder.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::sync::watch;

/// A question goes on for so long after the last who waited for it has left: longer than a registry takes that is well, so that what a
/// login's showing has told is heard.
const UNWANTED_FOR: Duration = Duration::from_secs(1);

/// Questions under way, one a key, each of which ends in one value.
pub struct Questions<K, V> {
    group: Group<K, watch::Sender<Option<V>>>,
    /// A question that nobody waits for is given up.
    is_for_waiters: bool,
}

/// A question under way.
pub struct Pending<V> {
    answer: Answer<V>,
    /// Whether somebody else had asked it before.
    pub joined: bool,
}

enum Answer<V> {
    Known(V),
    Coming(watch::Receiver<Option<V>>),
    Full,
}

/// Why a question has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// As many different ones as may be are under way; this one was not asked.
    #[error("too many other questions are under way")]
    Full,
    /// The task that asked ended without an answer: it panicked, or the runtime stopped.
    #[error("the task that asked ended without an answer")]
    Ended,
}

impl<K, V> Questions<K, V>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// At most `max` different questions at a time, each of which goes on when its waiters don't. `panics` counts the tasks that panic.
    pub fn new(max: usize, panics: IntCounter) -> Questions<K, V> {
        Questions { group: Group::new(max, panics), is_for_waiters: false }
    }

    /// The same, but a question is given up, with its place in whatever queue, a second after the last who waited for it has left.
    pub fn for_waiters(max: usize, panics: IntCounter) -> Questions<K, V> {
        Questions { is_for_waiters: true, ..Questions::new(max, panics) }
    }

    /// The question, if it is under way.
    pub fn running(&self, key: &K) -> Option<Pending<V>> {
        let running = self.group.running.lock();
        Some(Pending { answer: Answer::Coming(running.get(key)?.subscribe()), joined: true })
    }

    /// Asks in a task of its own, or waits for whoever has asked the same.
    pub fn ask<F: Future<Output = V> + Send + 'static>(&self, key: K, work: impl FnOnce() -> F) -> Pending<V> {
        self.ask_unless(key, || None, |_| Duration::ZERO, work)
    }

    /// The same, unless `known` has the answer while nobody can begin or end this question. Who asks within `hold` after an
    /// answer came gets that one, too.
    pub fn ask_unless<F: Future<Output = V> + Send + 'static>(
        &self,
        key: K,
        known: impl FnOnce() -> Option<V>,
        hold: impl FnOnce(&V) -> Duration + Send + 'static,
        work: impl FnOnce() -> F,
    ) -> Pending<V> {
        let mut found = None;
        let make = || {
            found = known();
            found.is_none().then(|| watch::Sender::new(None))
        };
        let mut running = None;
        // While it cannot be given up.
        let join = |job: &watch::Sender<Option<V>>| running = Some(job.subscribe());
        match self.group.join(key, join, make) {
            Joined::Running(_) => Pending { answer: running.map_or(Answer::Full, Answer::Coming), joined: true },
            Joined::New(entry) => {
                let answer = Answer::Coming(entry.job().subscribe());
                let (work, is_for_waiters) = (work(), self.is_for_waiters);
                tokio::spawn(async move {
                    let unwanted = async { if is_for_waiters { entry.unwanted().await } else { std::future::pending().await } };
                    let value = tokio::select! {
                        biased;
                        value = work => value,
                        () = unwanted => return,
                    };
                    let hold = hold(&value);
                    if hold.is_zero() {
                        // First: who asks from now on shall not get an answer to a question of the past.
                        entry.release();
                    }
                    entry.job().send_replace(Some(value));
                    tokio::time::sleep(hold).await;
                });
                Pending { answer, joined: false }
            }
            Joined::Needless => Pending { answer: found.map_or(Answer::Full, Answer::Known), joined: false },
            Joined::Full => Pending { answer: Answer::Full, joined: false },
        }
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.group.running.lock().is_empty()
    }
}

impl<V: Clone + Send + Sync + 'static> Pending<V> {
    /// The question goes on though nobody waits for it.
    pub fn goes_on(self) -> Pending<V> {
        if let (Answer::Coming(answer), false) = (&self.answer, self.joined) {
            let mut answer = answer.clone();
            tokio::spawn(async move { answer.wait_for(Option::is_some).await.is_ok() });
        }
        self
    }
}

impl<V: Clone> Pending<V> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// When the question could not be asked, or the task that asked it panicked.
    pub async fn answer(&self) -> Result<V, NoAnswer> {
        match &self.answer {
            Answer::Known(value) => Ok(value.clone()),
            Answer::Full => Err(NoAnswer::Full),
            Answer::Coming(answer) => {
                let mut answer = answer.clone();
                let value = answer.wait_for(Option::is_some).await.map_err(|_| NoAnswer::Ended)?;
                value.clone().ok_or(NoAnswer::Ended)
            }
        }
    }
}

/// Jobs under way, one a key. What a job is, and how those who wait for it hear of it, is its own.
pub struct Group<K, T> {
    running: Running<K, T>,
    max: usize,
    panics: IntCounter,
}

type Running<K, T> = Arc<Mutex<HashMap<K, Arc<T>>>>;

/// What became of [`Group::join`].
pub enum Joined<K: Eq + Hash, T> {
    Running(Arc<T>),
    /// Nobody is at it: the caller is to spawn the job, which owns the entry.
    New(Entry<K, T>),
    /// There is nothing to do.
    Needless,
    /// As many as may be are under way.
    Full,
}

impl<K: Eq + Hash + Clone, T> Group<K, T> {
    /// At most `max` jobs at a time. `panics` counts those that panic.
    pub fn new(max: usize, panics: IntCounter) -> Group<K, T> {
        Group { running: Arc::default(), max, panics }
    }

    /// Joins the job of this key, or begins one, if `make` still finds something to do while nobody can join or end it.
    /// `visit` sees the running job while it cannot end.
    pub fn join(&self, key: K, visit: impl FnOnce(&T), make: impl FnOnce() -> Option<T>) -> Joined<K, T> {
        let mut running = self.running.lock();
        if let Some(job) = running.get(&key) {
            visit(job);
            return Joined::Running(Arc::clone(job));
        }
        let Some(job) = make().map(Arc::new) else { return Joined::Needless };
        if running.len() >= self.max {
            return Joined::Full;
        }
        running.insert(key.clone(), Arc::clone(&job));
        Joined::New(Entry { running: Arc::clone(&self.running), panics: self.panics.clone(), key, job })
    }

    /// Takes the key of a running job off, if `is_stale` says so of it: it goes on, and who asks from now on begins anew.
    pub fn release_if(&self, key: &K, is_stale: impl FnOnce(&T) -> bool) {
        let mut running = self.running.lock();
        if running.get(key).is_some_and(|job| is_stale(job)) {
            running.remove(key);
        }
    }

    /// The running job of this key.
    pub fn get(&self, key: &K) -> Option<Arc<T>> {
        self.running.lock().get(key).cloned()
    }
}

/// A job's place in its group; dropped, the next who asks begins anew.
pub struct Entry<K: Eq + Hash, T> {
    running: Running<K, T>,
    panics: IntCounter,
    key: K,
    job: Arc<T>,
}

impl<K: Eq + Hash, T> Entry<K, T> {
    pub fn job(&self) -> &Arc<T> {
        &self.job
    }

    /// Takes the key off before the task ends, if `done` still says so while nobody can join.
    pub fn release_if(&self, done: impl FnOnce(&T) -> bool) -> bool {
        let mut running = self.running.lock();
        let releases = done(&self.job);
        // Another job may have begun since this one was released.
        if releases && running.get(&self.key).is_some_and(|job| Arc::ptr_eq(job, &self.job)) {
            running.remove(&self.key);
        }
        releases
    }

    /// Takes the key off before the task ends.
    pub fn release(&self) {
        self.release_if(|_| true);
    }
}

impl<K: Eq + Hash, V> Entry<K, watch::Sender<Option<V>>> {
    /// Ends when nobody has waited for a while; from then on nobody can join.
    async fn unwanted(&self) {
        loop {
            self.job.closed().await;
            tokio::time::sleep(UNWANTED_FOR).await;
            if self.release_if(|job| job.receiver_count() == 0) {
                return;
            }
        }
    }
}

impl<K: Eq + Hash, T> Drop for Entry<K, T> {
    fn drop(&mut self) {
        self.release();
        if std::thread::panicking() {
            self.panics.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 2;

    fn counter() -> IntCounter {
        IntCounter::new("panics", "of tasks").expect("a name")
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_a_question_that_panics_is_asked_anew() {
        let panics = counter();
        let questions = Questions::<&str, u32>::new(MAX, panics.clone());
        #[expect(clippy::panic, reason = "the point of the test")]
        let broken = questions.ask("key", || async { panic!("on purpose") });
        let joined = questions.ask("key", || async { 2 });
        assert!(joined.joined);
        let both = tokio::time::timeout(Duration::from_secs(1), async { (broken.answer().await, joined.answer().await) });
        assert_eq!(both.await, Ok((Err(NoAnswer::Ended), Err(NoAnswer::Ended))), "everybody who waits gets an answer");
        let again = questions.ask("key", || async { 3 });
        assert!(!again.joined);
        assert_eq!(again.answer().await, Ok(3));
        assert_eq!(panics.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_panic_before_the_task_begins_ends_the_question_too() {
        let panics = counter();
        let questions = Questions::<&str, u32>::new(MAX, panics.clone());
        let mut joined = None;
        let begin = std::panic::AssertUnwindSafe(|| {
            questions.ask("key", || -> std::future::Ready<u32> {
                joined = questions.running(&"key");
                #[expect(clippy::panic, reason = "the point of the test")]
                {
                    panic!("on purpose")
                }
            })
        });
        assert!(std::panic::catch_unwind(begin).is_err());
        assert_eq!(joined.expect("under way").answer().await, Err(NoAnswer::Ended));
        assert_eq!((questions.is_idle(), panics.get()), (true, 1));
    }

    #[test]
    fn whoever_waits_when_the_runtime_stops_is_told() {
        let runtime = || tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let questions = Questions::<&str, u32>::new(MAX, counter());
        let first = runtime();
        let pending = first.block_on(async { questions.ask("key", std::future::pending) });
        drop(first);
        assert_eq!(runtime().block_on(pending.answer()), Err(NoAnswer::Ended));
        assert!(questions.is_idle());
    }

    #[tokio::test]
    async fn everybody_gets_the_one_answer_and_the_asker_may_leave() {
        let questions = Questions::<&str, u32>::new(MAX, counter());
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let first = questions.ask("key", || async {
            let _ = wait.await;
            1
        });
        let second = questions.ask("key", || async { 2 });
        drop(first);
        go.send(()).expect("somebody waits");
        assert_eq!(second.answer().await, Ok(1));
    }

    #[tokio::test]
    async fn beyond_the_bound_nothing_is_begun_and_what_runs_can_be_joined() {
        let questions = Questions::<u32, u32>::new(MAX, counter());
        let (go, wait) = watch::channel(false);
        let ask = |key| {
            let mut wait = wait.clone();
            questions.ask(key, || async move {
                let _ = wait.wait_for(|go| *go).await;
                key
            })
        };
        let (first, second, third, joined) = (ask(1), ask(2), ask(3), ask(2));
        assert_eq!(third.answer().await, Err(NoAnswer::Full));
        go.send_replace(true);
        assert_eq!((first.answer().await, second.answer().await, joined.answer().await), (Ok(1), Ok(2), Ok(2)));
        assert_eq!(ask(3).answer().await, Ok(3), "there is room again");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_known_is_not_asked_and_an_answer_may_be_held() {
        let questions = Questions::<&str, u32>::new(MAX, counter());
        let known = questions.ask_unless("key", || Some(1), |_| Duration::ZERO, || async { 2 });
        assert_eq!((known.joined, known.answer().await), (false, Ok(1)));
        let ask = |answer| questions.ask_unless("key", || None, |_| Duration::from_secs(1), move || async move { answer });
        assert_eq!(ask(3).answer().await, Ok(3));
        assert_eq!(ask(4).answer().await, Ok(3), "it is held");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(ask(4).answer().await, Ok(4));
    }
}
