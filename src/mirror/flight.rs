//! One job a key, whose outcome everybody gets. An entry lives exactly as long as its task, panic included (invariant 8):
//! the task owns the [`Entry`], and dropping it is what ends the flight.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use tokio::sync::watch;

use crate::metrics::Metrics;

/// The jobs that are under way.
pub struct Flights<K, T> {
    running: Arc<Mutex<HashMap<K, Arc<T>>>>,
    metrics: Arc<Metrics>,
}

/// What became of [`Flights::join`].
pub enum Joined<K: Eq + Hash, T> {
    Running(Arc<T>),
    /// Nobody is at it: the caller is to spawn the job, which owns the entry.
    New(Entry<K, T>),
    /// There is nothing to do.
    Needless,
}

impl<K: Eq + Hash + Clone, T> Flights<K, T> {
    pub fn new(metrics: Arc<Metrics>) -> Flights<K, T> {
        Flights { running: Arc::default(), metrics }
    }

    /// Joins the job of this key, or begins one, if `make` still finds something to do while nobody can join or end it.
    /// `visit` sees the running job while it cannot end.
    pub fn join(&self, key: K, visit: impl FnOnce(&T), make: impl FnOnce() -> Option<T>) -> Joined<K, T> {
        let mut running = self.running.lock();
        if let Some(flight) = running.get(&key) {
            visit(flight);
            return Joined::Running(Arc::clone(flight));
        }
        let Some(flight) = make().map(Arc::new) else { return Joined::Needless };
        running.insert(key.clone(), Arc::clone(&flight));
        Joined::New(Entry { running: Arc::clone(&self.running), metrics: Arc::clone(&self.metrics), key, flight })
    }

    /// Leaves the running job of this key to itself, if `is_stale`: who asks from now on begins anew.
    pub fn leave(&self, key: &K, is_stale: impl FnOnce(&T) -> bool) {
        let mut running = self.running.lock();
        if running.get(key).is_some_and(|flight| is_stale(flight)) {
            running.remove(key);
        }
    }

    /// The running job of this key.
    pub fn get(&self, key: &K) -> Option<Arc<T>> {
        self.running.lock().get(key).cloned()
    }
}

/// A job's place among the flights; dropped, the next who asks begins anew.
pub struct Entry<K: Eq + Hash, T> {
    running: Arc<Mutex<HashMap<K, Arc<T>>>>,
    metrics: Arc<Metrics>,
    key: K,
    flight: Arc<T>,
}

impl<K: Eq + Hash, T> Entry<K, T> {
    pub fn flight(&self) -> &Arc<T> {
        &self.flight
    }

    /// Ends the flight before its task ends, if `done` still says so while nobody can join.
    pub fn retire_if(&self, done: impl FnOnce(&T) -> bool) -> bool {
        let mut running = self.running.lock();
        let retires = done(&self.flight);
        if retires && running.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            running.remove(&self.key);
        }
        retires
    }

    /// Ends the flight before its task ends.
    pub fn retire(&self) {
        self.retire_if(|_| true);
    }
}

impl<K: Eq + Hash, T> Drop for Entry<K, T> {
    fn drop(&mut self) {
        self.retire();
        if std::thread::panicking() {
            self.metrics.task_panics.inc();
        }
    }
}

/// Flights of jobs that end in one value.
pub struct Questions<K, V>(Flights<K, watch::Sender<Option<V>>>);

/// A question under way; it goes on when the waiter doesn't.
pub struct Pending<V> {
    answer: watch::Receiver<Option<V>>,
    /// Whether somebody else had asked it before.
    pub joined: bool,
}

impl<K, V> Questions<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub fn new(metrics: Arc<Metrics>) -> Questions<K, V> {
        Questions(Flights::new(metrics))
    }

    /// The question, if it is under way.
    pub fn running(&self, key: &K) -> Option<Pending<V>> {
        Some(Pending { answer: self.0.get(key)?.subscribe(), joined: true })
    }

    /// Asks in a task of its own, or waits for whoever has asked the same.
    pub fn ask<F: Future<Output = V> + Send + 'static>(&self, key: K, work: impl FnOnce() -> F) -> Pending<V> {
        let nobody = || Pending { answer: watch::Sender::new(None).subscribe(), joined: false };
        match self.0.join(key, |_| (), || Some(watch::Sender::new(None))) {
            // A question always has something to ask; without an asker its answer is `None`.
            Joined::Needless => nobody(),
            Joined::Running(flight) => Pending { answer: flight.subscribe(), joined: true },
            Joined::New(entry) => {
                let answer = entry.flight().subscribe();
                let work = work();
                tokio::spawn(async move {
                    let value = work.await;
                    // First: who asks from now on shall not get an answer to a question of the past.
                    entry.retire();
                    entry.flight().send_replace(Some(value));
                });
                Pending { answer, joined: false }
            }
        }
    }
}

impl<V: Clone> Pending<V> {
    /// The answer; `None` when the task that was to find it panicked.
    pub async fn answer(&self) -> Option<V> {
        self.answer.clone().wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new([""; 0]))
    }

    #[tokio::test(start_paused = true)]
    async fn invariant_08_a_question_that_panics_is_asked_anew() {
        let metrics = metrics();
        let questions = Questions::<&str, u32>::new(Arc::clone(&metrics));
        #[expect(clippy::panic, reason = "the point of the test")]
        let broken = questions.ask("key", || async { panic!("on purpose") });
        let joined = questions.ask("key", || async { 2 });
        assert!(joined.joined);
        let both = tokio::time::timeout(Duration::from_secs(1), async { (broken.answer().await, joined.answer().await) });
        assert_eq!(both.await, Ok((None, None)), "whoever waits is told");
        let again = questions.ask("key", || async { 3 });
        assert!(!again.joined);
        assert_eq!(again.answer().await, Some(3));
        assert_eq!(metrics.task_panics.get(), 1);
    }

    #[tokio::test]
    async fn everybody_gets_the_one_answer_and_the_asker_may_leave() {
        let questions = Questions::<&str, u32>::new(metrics());
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let first = questions.ask("key", || async {
            let _ = wait.await;
            1
        });
        let second = questions.ask("key", || async { 2 });
        drop(first);
        go.send(()).expect("somebody waits");
        assert_eq!(second.answer().await, Some(1));
    }
}
