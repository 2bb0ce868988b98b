//! The sled index: when each object was last used, and what each manifest lists. A hint that saves reading the files at
//! start, never a truth: it may be deleted at any stop, and a fault in it is never a fault for anybody else.
//!
//! sled 0.34 blocks, keeps its first error for ever, and may panic or hang on damage; so one thread owns it (`owner`),
//! nobody on the way to a client waits for that, and at the first error or panic it is set aside and begun anew.

mod codec;
mod database;
mod owner;
mod place;
#[cfg(test)]
mod tests;
mod worker;

use parking_lot::Mutex;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;

use super::links::Children;
use super::uptime::DaemonTime;
use crate::clock::Clock;
use crate::oci::Digest;
use crate::task::Supervisor;
use owner::Owner;

/// What a test may have otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// So much is lost by a crash.
    pub flush_every: Duration,
    /// A database is begun anew at most so often: a disk that fails every write is not written to without end.
    pub renew_every: Duration,
    pub measure_every: Duration,
    /// Bytes on disk above which it is written anew,
    pub size_max: u64,
    /// unless its content is more than a so-manieth of that.
    pub size_per_live: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            flush_every: Duration::from_secs(1),
            renew_every: Duration::from_secs(600),
            measure_every: Duration::from_secs(60),
            size_max: 400 << 20,
            size_per_live: 6,
        }
    }
}

/// Messages that may wait for the owner thread, while sled is opened or writes; more are dropped, since the files know
/// it all.
const QUEUE_MAX: usize = 4096;
/// Records per answer while the index is read.
const READ_BATCH: usize = 1000;
/// How long an answer may take: the first waits for sled to open, and maybe for it to open another.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(150);
/// How often a full queue is tried by who waits for it.
const QUEUE_TRIED_EVERY: Duration = Duration::from_millis(10);
/// How long a stop waits for what is queued.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// What the index knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub last_used: DaemonTime,
    /// Of a manifest.
    pub children: Option<Children>,
}

/// A part of what is there, and where to go on; `None` when that was all.
struct Portion {
    records: Vec<(Digest, Record)>,
    next: Option<sled::IVec>,
}

enum Message {
    Put(Digest, Record),
    /// Answers once they are written.
    PutMany {
        records: Vec<(Digest, Record)>,
        done: SyncSender<()>,
    },
    Touch(Vec<(Digest, DaemonTime)>),
    Remove(Digest),
    /// Asks for what lies behind a key; no answer when that cannot be read.
    Read {
        after: sled::IVec,
        answer: SyncSender<Portion>,
    },
    #[cfg(test)]
    Panic,
    /// Where no panic of sled is expected.
    #[cfg(test)]
    PanicElsewhere,
}

/// The way to the owner thread.
pub struct Index {
    /// Closed by the stop.
    queue: Option<SyncSender<Message>>,
    /// Hangs up when the owner has ended.
    ended: Mutex<Receiver<()>>,
    /// Content was lost since somebody asked.
    was_lost: Arc<AtomicBool>,
}

impl Index {
    /// Returns at once; the index is opened behind it. One that cannot be kept takes what it is given, and forgets it.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn open(path: &Path, tasks: &Supervisor) -> io::Result<Index> {
        Index::open_with(path, Limits::default(), tasks)
    }

    /// # Errors
    /// When there can be no thread.
    pub fn open_with(path: &Path, limits: Limits, tasks: &Supervisor) -> io::Result<Index> {
        let (queue, messages) = mpsc::sync_channel(QUEUE_MAX);
        let (end, ended) = mpsc::sync_channel(0);
        let was_lost = Arc::new(AtomicBool::new(false));
        let mut owner = Owner::new(path, limits, Arc::clone(&was_lost));
        let tasks = tasks.clone();
        let work = move || {
            let messages = Arc::new(Mutex::new(messages));
            while let Err(pause) = tasks.attempt("index", || owner.work(&messages)) {
                owner.panicked();
                std::thread::sleep(pause);
            }
            drop(end);
        };
        std::thread::Builder::new().name("index".into()).spawn(work)?;
        Ok(Index { queue: Some(queue), ended: Mutex::new(ended), was_lost })
    }

    /// Hands over every record, in no order that means anything. Blocks, but holds nobody up: what is written meanwhile
    /// is written, and may be among what is found.
    ///
    /// `false` when this was not all there should be; [`Index::take_loss`] has then been asked. What was found until
    /// then is as good a hint as any. `true` promises nothing: after a crash, or on a damaged disk, sled may lack records.
    pub fn read(&self, found: &mut dyn FnMut(Digest, Record)) -> bool {
        let mut after = sled::IVec::default();
        while let Some(portion) = self.ask(|answer| Message::Read { after, answer }) {
            for (digest, record) in portion.records {
                found(digest, record);
            }
            match portion.next {
                Some(next) => after = next,
                None => return !self.take_loss(),
            }
        }
        self.take_loss();
        false
    }

    /// Whether the index was begun anew since this was last asked, or found missing, and so lacks what it was not given
    /// since. Whoever is told puts all there is with [`Index::put_many`].
    pub fn take_loss(&self) -> bool {
        self.was_lost.swap(false, Ordering::Relaxed)
    }

    pub fn put(&self, digest: Digest, record: Record) {
        self.send(Message::Put(digest, record));
    }

    /// Blocks until they are written: for whoever has more to put than the queue may hold. `false` when they were not, nor
    /// would be what comes next.
    pub fn put_many(&self, records: Vec<(Digest, Record)>) -> bool {
        self.ask(|done| Message::PutMany { records, done }).is_some()
    }

    /// These were used. What the index did not know is taken for a blob.
    pub fn touch(&self, used: Vec<(Digest, DaemonTime)>) {
        self.send(Message::Touch(used));
    }

    pub fn remove(&self, digest: Digest) {
        self.send(Message::Remove(digest));
    }

    /// A full queue means that the disk is slower than the clients; the hint is then lost, which costs nothing but a re-read.
    fn send(&self, message: Message) {
        if self.queue.as_ref().is_some_and(|queue| queue.try_send(message).is_err()) {
            tracing::debug!("the index is behind; a hint was dropped");
        }
    }

    /// The owner's answer; `None` when there is no database, or it hangs. Blocks.
    fn ask<T>(&self, question: impl FnOnce(SyncSender<T>) -> Message) -> Option<T> {
        let (answer, answered) = mpsc::sync_channel(1);
        let queue = self.queue.as_ref()?;
        let mut message = question(answer);
        let deadline = Clock::System.steady() + ANSWER_TIMEOUT;
        while let Err(error) = queue.try_send(message) {
            let TrySendError::Full(unsent) = error else { return None };
            if Clock::System.steady() > deadline {
                return None;
            }
            message = unsent;
            std::thread::sleep(QUEUE_TRIED_EVERY);
        }
        answered.recv_timeout(ANSWER_TIMEOUT).ok()
    }
}

impl Drop for Index {
    /// Writes what is queued, and flushes.
    fn drop(&mut self) {
        self.queue = None;
        if self.ended.lock().recv_timeout(STOP_TIMEOUT) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::warn!("the index was not closed in time; the next start may read the files");
        }
    }
}
