//! A database: one tree, of which every record stands alone. Everything here blocks, and any of it may panic.
//!
//! Measured with a million records (benches/index): sled holds 50 MB for its pages, and its cache on top of that, of
//! which 8 MB serve as well as 64. Records are written one by one: while a batch of a thousand is applied to a tree that
//! grows, sled 0.34 frees nothing (3 GB for the million). Buckets of several records would save RAM and cost twice the disk.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use super::codec;
use super::{Portion, Record};
use crate::oci::Digest;
use crate::store::uptime::DaemonTime;

/// Nothing reads the index while larder serves, but for what a touch changes.
const CACHE_BYTES: u64 = 8 << 20;
/// How often a lock is tried that a database just closed may hold for a moment.
const LOCK_TRIES: u32 = 20;
const LOCK_WAIT: Duration = Duration::from_millis(50);
/// Under it stands the format: shorter than any hash.
const FORMAT_KEY: &[u8] = b"format";
const FORMAT: &[u8] = b"larder 1";

/// Why a database is no longer to be used: sled keeps an error for ever.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("{0}")]
    Damaged(String),
    #[error("the disk is full")]
    Full,
    #[error("it is of another format")]
    Format,
}

impl Failure {
    /// Whether there is something to be learnt from the files.
    pub fn is_odd(&self) -> bool {
        matches!(self, Failure::Damaged(_))
    }
}

impl From<sled::Error> for Failure {
    fn from(error: sled::Error) -> Failure {
        match error {
            sled::Error::Io(error) => error.into(),
            error => Failure::Damaged(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Failure::Full,
            _ => Failure::Damaged(error.to_string()),
        }
    }
}

/// Does something that may panic.
pub(super) fn caught<T>(action: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|_| Err(Failure::Damaged("sled panicked".into())))
}

/// What becomes of some records: `None` for removed.
#[derive(Default)]
pub(super) struct Changes(BTreeMap<sled::IVec, Option<sled::IVec>>);

impl Changes {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn put(&mut self, digest: &Digest, record: &Record) {
        self.0.insert(codec::encode_key(digest).into(), Some(codec::encode(record).into()));
    }

    pub fn remove(&mut self, digest: &Digest) {
        self.0.insert(codec::encode_key(digest).into(), None);
    }
}

pub(super) struct Database {
    db: sled::Db,
    /// Bytes of all keys and values; `None` until they were counted.
    live: Cell<Option<u64>>,
    counted: Cell<u64>,
}

impl Database {
    /// Opens what is there, or makes it; also says whether it had to be made.
    pub fn open(path: &Path) -> Result<(Database, bool), Failure> {
        // Flushed by its owner: sled's own timer has been seen to give up silently.
        let config = sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let mut opened = config.open();
        for _ in 0..LOCK_TRIES {
            let is_locked = matches!(&opened, Err(sled::Error::Io(error)) if error.to_string().starts_with("could not acquire lock"));
            if !is_locked {
                break;
            }
            std::thread::sleep(LOCK_WAIT);
            opened = config.open();
        }
        let db = opened?;
        let format = db.get(FORMAT_KEY)?;
        let is_new = format.is_none() && db.is_empty();
        if is_new {
            db.insert(FORMAT_KEY, FORMAT)?;
        } else if format.ok_or_else(|| Failure::Damaged("its format is lost".into()))? != FORMAT {
            return Err(Failure::Format);
        }
        Ok((Database { db, live: Cell::new(is_new.then_some(0)), counted: Cell::new(0) }, is_new))
    }

    /// Adds a use to the changes.
    pub fn touch(&self, changes: &mut Changes, digest: &Digest, last_used: DaemonTime) -> Result<(), Failure> {
        let key = codec::encode_key(digest);
        let old = match changes.0.get(key) {
            Some(changed) => changed.clone(),
            None => self.db.get(key)?,
        };
        let value = codec::with_time(old.as_deref().unwrap_or_default(), last_used);
        changes.0.insert(key.into(), Some(value.into()));
        Ok(())
    }

    pub fn write(&self, changes: &Changes) -> Result<(), Failure> {
        changes.0.iter().try_for_each(|(key, value)| self.write_one(key, value.as_ref()))
    }

    fn write_one(&self, key: &sled::IVec, value: Option<&sled::IVec>) -> Result<(), Failure> {
        let old = match value {
            Some(value) => self.db.insert(key, value)?,
            None => self.db.remove(key)?,
        };
        let len = |value: Option<&sled::IVec>| value.map_or(0, |value| (key.len() + value.len()) as u64);
        let live = self.live.get().map(|live| (live + len(value)).saturating_sub(len(old.as_ref())));
        self.live.set(live);
        Ok(())
    }

    /// What lies behind a key, and counts it.
    pub fn read(&self, after: &[u8], limit: usize) -> Result<Portion, Failure> {
        let mut portion = Portion { records: Vec::new(), next: None };
        let mut counted = if after.is_empty() { 0 } else { self.counted.get() };
        for entry in self.behind(after).take(limit) {
            let (key, value) = entry?;
            counted += (key.len() + value.len()) as u64;
            if let (Some(digest), Some(record)) = (codec::decode_key(&key), codec::decode(&value)) {
                portion.records.push((digest, record));
            }
            portion.next = Some(key);
        }
        self.counted.set(counted);
        if portion.next.is_none() {
            self.live.set(Some(counted));
        }
        Ok(portion)
    }

    /// Copies what lies behind a key, and says where to go on.
    pub fn copy_to(&self, other: &Database, after: &[u8], limit: usize) -> Result<Option<sled::IVec>, Failure> {
        let mut next = None;
        for entry in self.behind(after).take(limit) {
            let (key, value) = entry?;
            other.write_one(&key, Some(&value))?;
            next = Some(key);
        }
        Ok(next)
    }

    fn behind(&self, after: &[u8]) -> sled::Iter {
        self.db.range::<&[u8], _>((Bound::Excluded(after), Bound::Unbounded))
    }

    pub fn flush(&self) -> Result<(), Failure> {
        self.db.flush()?;
        Ok(())
    }

    pub fn size_on_disk(&self) -> Result<u64, Failure> {
        Ok(self.db.size_on_disk()?)
    }

    /// Bytes of all keys and values, once somebody has read them all.
    pub fn live(&self) -> Option<u64> {
        self.live.get()
    }
}
