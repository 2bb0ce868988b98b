//! The thread that owns the database: it alone waits for sled, and what goes wrong there ends here.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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

pub(super) struct Owner {
    root: PathBuf,
    limits: Limits,
    clock: Clock,
    was_lost: Arc<AtomicBool>,
    place: Option<Place>,
    /// `None` while there can be none.
    database: Option<Database>,
    /// What is to take its place, because it has grown.
    copy: Option<Copy>,
    /// When it was last tried to begin anew.
    renewed: Option<Duration>,
    flushed: Duration,
    measured: Duration,
}

/// A database in the making: it is given every change, and in portions what was there before.
struct Copy {
    database: Database,
    after: sled::IVec,
}

impl Owner {
    pub fn new(root: &Path, limits: Limits, was_lost: Arc<AtomicBool>) -> Owner {
        let clock = Clock::System;
        let now = clock.steady();
        Owner {
            root: root.to_owned(),
            limits,
            clock,
            was_lost,
            place: None,
            database: None,
            copy: None,
            renewed: None,
            flushed: now,
            measured: now,
        }
    }

    /// Until everybody has hung up.
    pub fn work(&mut self, messages: &Receiver<Message>) {
        match self.open() {
            Ok((database, is_new)) => {
                self.database = Some(database);
                self.was_lost.fetch_or(is_new, Ordering::Relaxed);
            }
            Err(_) => self.renew_if_due(),
        }
        loop {
            let wait = if self.copy.is_some() { Duration::ZERO } else { self.limits.flush_every };
            let message = match messages.recv_timeout(wait) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            self.renew_if_due();
            // Where there is no database, messages are dropped: the one that comes is refilled.
            self.guarded(|owner, database| owner.step(database, message, messages));
            self.copy_on();
        }
        self.guarded(|_, database| database.flush());
        close(self.copy.take().map(|copy| copy.database));
        close(self.database.take());
    }

    /// Opens what is there, or sets it aside.
    fn open(&mut self) -> Result<(Database, bool), Failure> {
        let place = match &mut self.place {
            Some(place) => place,
            None => self.place.insert(Place::find(&self.root)?),
        };
        let opened = Database::open(&place.current());
        if let Err(failure) = &opened {
            give_up(place, failure);
        }
        opened
    }

    fn renew_if_due(&mut self) {
        let now = self.clock.steady();
        if self.database.is_some() || self.renewed.is_some_and(|then| now.saturating_sub(then) < self.limits.renew_every) {
            return;
        }
        self.renewed = Some(now);
        match self.open() {
            Ok((database, _)) => {
                self.database = Some(database);
                self.was_lost.store(true, Ordering::Relaxed);
            }
            Err(failure) => tracing::error!(%failure, "no index can be kept for now; a start would read the files"),
        }
    }

    /// Does something with the database, after which there may be another, or none.
    fn guarded(&mut self, action: impl FnOnce(&mut Owner, &Database) -> Result<(), Failure>) {
        let Some(database) = self.database.take() else { return };
        match caught(|| action(self, &database)) {
            Ok(()) => self.database = Some(database),
            Err(failure) => {
                close(Some(database));
                close(self.copy.take().map(|copy| copy.database));
                if let Some(place) = &mut self.place {
                    give_up(place, &failure);
                }
                self.renew_if_due();
            }
        }
    }

    /// Works off what waits, and does what is due.
    fn step(&mut self, database: &Database, first: Option<Message>, messages: &Receiver<Message>) -> Result<(), Failure> {
        let mut changes = Changes::default();
        let mut next = first;
        while let Some(message) = next {
            self.apply(database, &mut changes, message)?;
            next = if changes.len() < WRITE_BATCH { messages.try_recv().ok() } else { None };
        }
        self.write(database, &mut changes)?;
        let now = self.clock.steady();
        if now.saturating_sub(self.flushed) >= self.limits.flush_every {
            database.flush()?;
            self.flushed = now;
        }
        if now.saturating_sub(self.measured) >= self.limits.measure_every && self.copy.is_none() {
            self.measured = now;
            self.copy_if_grown(database)?;
        }
        Ok(())
    }

    fn apply(&mut self, database: &Database, changes: &mut Changes, message: Message) -> Result<(), Failure> {
        match message {
            Message::Put(digest, record) => changes.put(&digest, &record),
            Message::PutMany { records, done } => {
                for (digest, record) in records {
                    changes.put(&digest, &record);
                    self.write_if_many(database, changes)?;
                }
                self.write(database, changes)?;
                // Here and below: nobody may be listening any more.
                let _ = done.send(());
            }
            Message::Touch(used) => {
                for (digest, last_used) in used {
                    database.touch(changes, &digest, last_used)?;
                    self.write_if_many(database, changes)?;
                }
            }
            Message::Remove(digest) => changes.remove(&digest),
            Message::Read { after, answer } => {
                self.write(database, changes)?;
                let _ = answer.send(database.read(&after, READ_BATCH)?);
            }
        }
        Ok(())
    }

    fn write_if_many(&mut self, database: &Database, changes: &mut Changes) -> Result<(), Failure> {
        if changes.len() < WRITE_BATCH { Ok(()) } else { self.write(database, changes) }
    }

    fn write(&mut self, database: &Database, changes: &mut Changes) -> Result<(), Failure> {
        let changes = std::mem::take(changes);
        database.write(&changes)?;
        if let Some(copy) = self.copy.take() {
            match caught(|| copy.database.write(&changes)) {
                Ok(()) => self.copy = Some(copy),
                Err(failure) => self.abandon(copy, &failure),
            }
        }
        Ok(())
    }

    /// sled never gives back what its log once took.
    fn copy_if_grown(&mut self, database: &Database) -> Result<(), Failure> {
        let size = database.size_on_disk()?;
        let is_grown = |live: u64| size > self.limits.size_max.max(live.saturating_mul(self.limits.size_per_live));
        let (true, Some(place)) = (database.live().is_some_and(is_grown), &self.place) else { return Ok(()) };
        place::remove(&place.next());
        match Database::open(&place.next()) {
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
        let (Some(database), Some(mut copy)) = (&self.database, self.copy.take()) else { return };
        let copied = caught(|| {
            let next = database.copy_to(&copy.database, &copy.after, READ_BATCH)?;
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
                close(self.database.replace(copy.database));
                if let Some(place) = &mut self.place {
                    place.advance();
                }
            }
            Err(failure) => self.abandon(copy, &failure),
        }
    }

    fn abandon(&mut self, copy: Copy, failure: &Failure) {
        close(Some(copy.database));
        self.put_off(failure);
    }

    fn put_off(&mut self, failure: &Failure) {
        tracing::warn!(%failure, "the index could not be written anew; it stays as large as it is");
        self.measured = self.clock.steady() + REWRITE_AGAIN_AFTER;
        if let Some(place) = &self.place {
            place::remove(&place.next());
        }
    }
}

fn give_up(place: &mut Place, failure: &Failure) {
    tracing::warn!(%failure, path = %place.current().display(), "the index is unusable; it is rebuilt from the files");
    place.give_up(failure.is_odd());
}

/// Closing writes, too.
fn close(database: Option<Database>) {
    let closed = caught(|| {
        drop(database);
        Ok(())
    });
    if closed.is_err() {
        tracing::warn!("the index was not closed; the next start will read the files");
    }
}
