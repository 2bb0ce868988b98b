//! The thread that owns the database: it alone waits for sled, and what goes wrong there ends here.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::database::{self, Changes, Database, Failure};
use super::{Message, READ_BATCH};

/// Records written at once.
const WRITE_BATCH: usize = 1000;
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// A database is begun anew at most so often: a disk that fails every write is not written to without end.
const RENEW_EVERY: Duration = Duration::from_secs(600);

pub(super) struct Owner {
    path: PathBuf,
    was_lost: Arc<AtomicBool>,
    /// `None` while there can be none.
    database: Option<Database>,
    /// When it was last tried to begin anew.
    renewed: Option<Instant>,
    flushed: Instant,
}

impl Owner {
    pub fn new(path: &Path, was_lost: Arc<AtomicBool>) -> Owner {
        Owner { path: path.to_owned(), was_lost, database: None, renewed: None, flushed: Instant::now() }
    }

    /// Until everybody has hung up.
    pub fn work(&mut self, messages: &Receiver<Message>) {
        self.open();
        loop {
            let message = match messages.recv_timeout(FLUSH_EVERY) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.renew_if_due();
            self.guarded(|owner, database| owner.step(database, message, messages));
        }
        self.guarded(|_, database| database.flush());
        // Closing writes, too.
        let database = self.database.take();
        if catch_unwind(AssertUnwindSafe(|| drop(database))).is_err() {
            tracing::warn!("the index was not closed; the next start will read the files");
        }
    }

    fn open(&mut self) {
        match Database::open(&self.path) {
            Ok((database, is_new)) => {
                self.database = Some(database);
                self.was_lost.fetch_or(is_new, Ordering::Relaxed);
            }
            Err(reason) => self.lose(&reason),
        }
    }

    /// Does something with the database, after which there may be none.
    fn guarded(&mut self, action: impl FnOnce(&mut Owner, &Database) -> Result<(), Failure>) {
        let Some(database) = self.database.take() else { return };
        let result = catch_unwind(AssertUnwindSafe(|| action(self, &database)));
        let reason = match result {
            Ok(Ok(())) => return self.database = Some(database),
            Ok(Err(reason)) => reason,
            Err(_) => "sled panicked".into(),
        };
        // sled keeps an I/O error for ever, so the database goes, not the operation.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(database)));
        self.lose(&reason);
    }

    fn lose(&mut self, reason: &str) {
        database::set_aside(&self.path, reason);
        self.was_lost.store(true, Ordering::Relaxed);
        self.renew_if_due();
    }

    fn renew_if_due(&mut self) {
        if self.database.is_some() || self.renewed.is_some_and(|then| then.elapsed() < RENEW_EVERY) {
            return;
        }
        self.renewed = Some(Instant::now());
        match Database::open(&self.path) {
            Ok((database, _)) => {
                self.database = Some(database);
                // Also what was put while there was none.
                self.was_lost.store(true, Ordering::Relaxed);
            }
            Err(reason) => {
                database::set_aside(&self.path, &reason);
                tracing::error!(reason, "no index can be kept for now; a start would read the files");
            }
        }
    }

    /// Works off what waits, and flushes when that is due.
    fn step(&mut self, database: &Database, first: Option<Message>, messages: &Receiver<Message>) -> Result<(), Failure> {
        let mut changes = Changes::default();
        let mut next = first;
        while let Some(message) = next {
            apply(database, &mut changes, message)?;
            next = if changes.len() < WRITE_BATCH { messages.try_recv().ok() } else { None };
        }
        database.write(changes)?;
        if self.flushed.elapsed() >= FLUSH_EVERY {
            database.flush()?;
            self.flushed = Instant::now();
        }
        Ok(())
    }
}

fn apply(database: &Database, changes: &mut Changes, message: Message) -> Result<(), Failure> {
    match message {
        Message::Put(digest, record) => changes.put(&digest, &record),
        Message::PutMany(records) => {
            for (digest, record) in records {
                changes.put(&digest, &record);
                write_if_many(database, changes)?;
            }
        }
        Message::Touch(used) => {
            for (digest, last_used) in used {
                database.touch(changes, &digest, last_used)?;
                write_if_many(database, changes)?;
            }
        }
        Message::Remove(digest) => changes.remove(&digest),
        Message::Read { after, answer } => {
            database.write(std::mem::take(changes))?;
            // Nobody may be listening any more.
            let _ = answer.send(database.read(&after, READ_BATCH)?);
        }
    }
    Ok(())
}

fn write_if_many(database: &Database, changes: &mut Changes) -> Result<(), Failure> {
    if changes.len() < WRITE_BATCH {
        return Ok(());
    }
    database.write(std::mem::take(changes))
}
