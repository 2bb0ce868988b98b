//! The thread that owns the index: it has a database kept by a `worker`, and begins anew what that cannot keep.
//!
//! The worker also opens the database, so that one allocator arena serves both: what a start needs for a moment is used
//! again (with two threads it was 50 MB more).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::Duration;

use parking_lot::Mutex;

use super::database::{Database, Failure, caught};
use super::place::Place;
use super::worker::Worker;
use super::{Limits, Message};
use crate::clock::Clock;

/// How long opening may take before the index is given up: sled has been seen to hang on damage. After a crash it reads
/// all of its log.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);

pub(super) struct Owner {
    root: PathBuf,
    limits: Limits,
    was_lost: Arc<AtomicBool>,
    place: Option<Place>,
    /// When it was last begun anew.
    renewed: Option<Duration>,
}

/// Shared, so that they outlive a panic of whoever receives them; one thread at a time does.
type Messages = Arc<Mutex<Receiver<Message>>>;

/// There is no database any more.
struct Lost;

impl Owner {
    pub fn new(root: &Path, limits: Limits, was_lost: Arc<AtomicBool>) -> Owner {
        Owner { root: root.to_owned(), limits, was_lost, place: None, renewed: None }
    }

    /// Until everybody has hung up.
    pub fn work(&mut self, messages: &Messages) {
        while self.keep(messages).is_err() {
            // Meanwhile messages are dropped: who owns the index fills the next one.
            while let Some(left) = self.until_renewal() {
                if matches!(messages.lock().recv_timeout(left), Err(RecvTimeoutError::Disconnected)) {
                    return;
                }
            }
            self.renewed = Some(Clock::System.steady());
        }
    }

    /// After a panic: what was said meanwhile may be lost, and where the database is has to be found again.
    pub fn panicked(&mut self) {
        self.place = None;
        self.was_lost.store(true, Ordering::Relaxed);
    }

    fn until_renewal(&self) -> Option<Duration> {
        let passed = Clock::System.steady().saturating_sub(self.renewed?);
        self.limits.renew_every.checked_sub(passed).filter(|left| !left.is_zero())
    }

    /// Has a database kept until everybody has hung up.
    ///
    /// # Errors
    /// When there is one no longer.
    fn keep(&mut self, messages: &Messages) -> Result<(), Lost> {
        let place = match self.place.take() {
            Some(place) => place,
            None => match Place::find(&self.root) {
                Ok(place) => place,
                Err(error) => return self.lost(None, &error.into()),
            },
        };
        let (opened, is_open) = mpsc::sync_channel(1);
        let (hand_over, handed) = mpsc::sync_channel(1);
        let (path, limits, theirs) = (place.current(), self.limits, Arc::clone(messages));
        let work = move || {
            let (database, is_new) = caught(|| Database::open(&path)).map_err(|failure| opened.send(Err(failure))).ok()?;
            let _ = opened.send(Ok(is_new));
            let Ok(place) = handed.recv() else {
                // Too late; to close it would write what nobody asked for.
                std::mem::forget(database);
                return None;
            };
            Some(Worker::new(database, place, limits).work(&theirs.lock()))
        };
        let thread = match std::thread::Builder::new().name("index-db".into()).spawn(work) {
            Ok(thread) => thread,
            Err(error) => return self.lost(Some(place), &error.into()),
        };
        let hangs = |_| Err(Failure::Damaged("sled did not open in time".into()));
        match is_open.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(hangs) {
            Ok(is_new) => self.was_lost.fetch_or(is_new || self.renewed.is_some(), Ordering::Relaxed),
            Err(failure) => return self.lost(Some(place), &failure),
        };
        let _ = hand_over.send(place);
        match thread.join() {
            Ok(Some((place, Err(failure)))) => self.lost(Some(place), &failure),
            Ok(_) => Ok(()),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    fn lost(&mut self, place: Option<Place>, failure: &Failure) -> Result<(), Lost> {
        tracing::warn!(%failure, path = %self.root.display(), "the index is unusable; it is rebuilt from the files");
        self.place = place;
        if let Some(place) = &mut self.place {
            place.give_up(failure.is_odd());
        }
        Err(Lost)
    }
}
