//! Keeps one database: writes what comes, flushes, and writes it anew when it has grown. Ends with its first failure,
//! since sled keeps an error for ever.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use super::database::{Changes, Database, Failure, caught};
use super::place::{self, Place};
use super::{Limits, Message, READ_BATCH};
use crate::clock::Clock;

/// Records written between two looks at anything else.
const WRITE_BATCH: usize = 1000;
/// After a rewrite that failed; most likely the disk is full.
const REWRITE_AGAIN_AFTER: Duration = Duration::from_secs(3600);

pub(super) struct Worker {
    database: Database,
    place: Place,
    /// What is to take its place, because it has grown.
    copy: Option<Copy>,
    limits: Limits,
    flushed: Duration,
    measured: Duration,
    #[cfg(test)]
    panics_elsewhere: bool,
}

/// A database in the making: it is given every change, and in portions what was there before.
struct Copy {
    database: Database,
    after: sled::IVec,
}

impl Worker {
    pub fn new(database: Database, place: Place, limits: Limits) -> Worker {
        let now = Clock::System.steady();
        Worker {
            database,
            place,
            copy: None,
            limits,
            flushed: now,
            measured: now,
            #[cfg(test)]
            panics_elsewhere: false,
        }
    }

    /// Until everybody has hung up.
    pub fn work(mut self, messages: &Receiver<Message>) -> (Place, Result<(), Failure>) {
        let result = caught(|| self.run(messages));
        #[cfg(test)]
        assert!(!self.panics_elsewhere, "on purpose");
        if let Some(copy) = self.copy {
            close(copy.database);
        }
        close(self.database);
        (self.place, result)
    }

    fn run(&mut self, messages: &Receiver<Message>) -> Result<(), Failure> {
        loop {
            let wait = if self.copy.is_some() { Duration::ZERO } else { self.limits.flush_every };
            match messages.recv_timeout(wait) {
                Ok(message) => self.take(message, messages)?,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return self.database.flush(),
            }
            self.tend()?;
            self.copy_on();
        }
    }

    /// Works off what waits, a batch at most.
    fn take(&mut self, first: Message, messages: &Receiver<Message>) -> Result<(), Failure> {
        let mut changes = Changes::default();
        let mut next = Some(first);
        while let Some(message) = next {
            self.apply(&mut changes, message)?;
            next = if changes.len() < WRITE_BATCH { messages.try_recv().ok() } else { None };
        }
        self.write(&mut changes)
    }

    fn apply(&mut self, changes: &mut Changes, message: Message) -> Result<(), Failure> {
        match message {
            Message::Put(digest, record) => changes.put(&digest, &record),
            Message::PutMany { records, done } => {
                for (digest, record) in records {
                    changes.put(&digest, &record);
                    self.write_if_many(changes)?;
                }
                self.write(changes)?;
                // Here and below: nobody may be listening any more.
                let _ = done.send(());
            }
            Message::Touch(used) => {
                for (digest, last_used) in used {
                    self.database.touch(changes, &digest, last_used)?;
                    self.write_if_many(changes)?;
                }
            }
            Message::Remove(digest) => changes.remove(&digest),
            Message::Read { after, answer } => {
                self.write(changes)?;
                let _ = answer.send(self.database.read(&after, READ_BATCH)?);
            }
            #[cfg(test)]
            Message::Panic => panic!("as sled does"),
            #[cfg(test)]
            Message::PanicElsewhere => {
                self.panics_elsewhere = true;
                return Err(Failure::Damaged("on purpose".into()));
            }
        }
        Ok(())
    }

    fn write_if_many(&mut self, changes: &mut Changes) -> Result<(), Failure> {
        if changes.len() < WRITE_BATCH { Ok(()) } else { self.write(changes) }
    }

    fn write(&mut self, changes: &mut Changes) -> Result<(), Failure> {
        let changes = std::mem::take(changes);
        self.database.write(&changes)?;
        if let Some(copy) = self.copy.take() {
            match caught(|| copy.database.write(&changes)) {
                Ok(()) => self.copy = Some(copy),
                Err(failure) => self.abandon(copy, &failure),
            }
        }
        Ok(())
    }

    /// Does what is due.
    fn tend(&mut self) -> Result<(), Failure> {
        let now = Clock::System.steady();
        if now.saturating_sub(self.flushed) >= self.limits.flush_every {
            self.database.flush()?;
            self.flushed = now;
        }
        if now.saturating_sub(self.measured) >= self.limits.measure_every && self.copy.is_none() {
            self.measured = now;
            self.copy_if_grown()?;
        }
        Ok(())
    }

    /// sled never gives back what its log once took.
    fn copy_if_grown(&mut self) -> Result<(), Failure> {
        let size = self.database.size_on_disk()?;
        let is_grown = |live: u64| size > self.limits.size_max.max(live.saturating_mul(self.limits.size_per_live));
        if !self.database.live().is_some_and(is_grown) {
            return Ok(());
        }
        let path = self.place.next();
        place::remove(&path);
        match caught(|| Database::open(&path)) {
            Ok((database, _)) => {
                tracing::info!(size, "the index has grown; it is written anew");
                self.copy = Some(Copy { database, after: sled::IVec::default() });
            }
            Err(failure) => self.put_off(&failure),
        }
        Ok(())
    }

    /// The next portion of the copy; after the last it takes over.
    fn copy_on(&mut self) {
        let Some(mut copy) = self.copy.take() else { return };
        let copied = caught(|| {
            let next = self.database.copy_to(&copy.database, &copy.after, READ_BATCH)?;
            if next.is_none() {
                copy.database.flush()?;
            }
            Ok(next)
        });
        match copied {
            Ok(Some(next)) => {
                copy.after = next;
                self.copy = Some(copy);
            }
            Ok(None) => {
                close(std::mem::replace(&mut self.database, copy.database));
                self.place.advance();
            }
            Err(failure) => self.abandon(copy, &failure),
        }
    }

    fn abandon(&mut self, copy: Copy, failure: &Failure) {
        close(copy.database);
        self.put_off(failure);
    }

    fn put_off(&mut self, failure: &Failure) {
        tracing::warn!(%failure, "the index could not be written anew; it stays as large as it is");
        self.measured = Clock::System.steady() + REWRITE_AGAIN_AFTER;
        place::remove(&self.place.next());
    }
}

/// Closing writes, too, and so may panic.
fn close(database: Database) {
    let closed = caught(|| {
        drop(database);
        Ok(())
    });
    if closed.is_err() {
        tracing::warn!("the index was not closed; the next start will read the files");
    }
}
