//! The database itself: one tree, of which every record stands alone. Everything here blocks, and any of it may panic.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::{Portion, Record, codec};
use crate::oci::Digest;
use crate::store::uptime::DaemonTime;

/// Nothing reads the index while larder serves, but for what a touch changes.
const CACHE_BYTES: u64 = 16 << 20;
/// How long opening may take before the index is given up: sled has been seen to hang on damage. After a crash it reads
/// all of its log.
const OPEN_TIMEOUT: Duration = Duration::from_secs(60);
/// Under it stands the format: shorter than any hash.
const FORMAT_KEY: &[u8] = b"format";
const FORMAT: &[u8] = b"larder 1";

pub(super) struct Database {
    db: sled::Db,
}

/// Why it is no longer to be used: sled keeps an error for ever.
pub(super) type Failure = String;

/// What happened to some records since they were last written: `None` for removed.
#[derive(Default)]
pub(super) struct Changes(BTreeMap<sled::IVec, Option<Vec<u8>>>);

impl Changes {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn put(&mut self, digest: &Digest, record: &Record) {
        self.0.insert(codec::encode_key(digest).into(), Some(codec::encode(record)));
    }

    pub fn remove(&mut self, digest: &Digest) {
        self.0.insert(codec::encode_key(digest).into(), None);
    }
}

impl Database {
    /// Opens what is there, or makes it; also says whether it had to be made. On a thread of its own, so that a hang or
    /// a panic of sled's is an error like any other.
    pub fn open(path: &Path) -> Result<(Database, bool), Failure> {
        let (done, result) = mpsc::sync_channel(1);
        let path = path.to_owned();
        let work = move || {
            let attempt = catch_unwind(|| Database::open_here(&path));
            // Too late: to close it now would write into what has taken its place.
            if let Err(late) = done.send(attempt.unwrap_or_else(|_| Err("sled panicked".into()))) {
                std::mem::forget(late);
            }
        };
        std::thread::Builder::new().name("index-open".into()).spawn(work).map_err(|error| error.to_string())?;
        result.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| Err("sled did not open in time".into()))
    }

    fn open_here(path: &PathBuf) -> Result<(Database, bool), Failure> {
        // Flushed by its owner: sled's own timer has been seen to give up silently.
        let config = sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(CACHE_BYTES).flush_every_ms(None);
        let db = config.open().map_err(failure)?;
        let format = db.get(FORMAT_KEY).map_err(failure)?;
        if format.is_none() && db.is_empty() {
            db.insert(FORMAT_KEY, FORMAT).map_err(failure)?;
            return Ok((Database { db }, true));
        }
        if format.is_none_or(|format| format != FORMAT) {
            return Err("it is of another format".into());
        }
        Ok((Database { db }, false))
    }

    /// Adds a use to the changes.
    pub fn touch(&self, changes: &mut Changes, digest: &Digest, last_used: DaemonTime) -> Result<(), Failure> {
        let key = codec::encode_key(digest);
        let value = match changes.0.get(key) {
            Some(changed) => codec::with_time(changed.as_deref().unwrap_or_default(), last_used),
            None => codec::with_time(&self.db.get(key).map_err(failure)?.unwrap_or_default(), last_used),
        };
        changes.0.insert(key.into(), Some(value));
        Ok(())
    }

    pub fn write(&self, changes: Changes) -> Result<(), Failure> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes.0 {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        self.db.apply_batch(batch).map_err(failure)
    }

    pub fn read(&self, after: &[u8], limit: usize) -> Result<Portion, Failure> {
        let mut portion = Portion { records: Vec::new(), next: None };
        for entry in self.db.range::<&[u8], _>((Bound::Excluded(after), Bound::Unbounded)).take(limit) {
            let (key, value) = entry.map_err(failure)?;
            if let (Some(digest), Some(record)) = (codec::decode_key(&key), codec::decode(&value)) {
                portion.records.push((digest, record));
            }
            portion.next = Some(key);
        }
        Ok(portion)
    }

    pub fn flush(&self) -> Result<(), Failure> {
        self.db.flush().map(|_| ()).map_err(failure)
    }
}

fn failure(error: sled::Error) -> Failure {
    error.to_string()
}

/// Leaves it to be looked at; the one before it goes.
pub(super) fn set_aside(path: &Path, reason: &str) {
    let aside = path.with_extension("bad");
    tracing::warn!(reason, aside = %aside.display(), "the index is unusable; it is set aside and rebuilt from the files");
    let _ = remove(&aside);
    if std::fs::rename(path, &aside).is_err() {
        let _ = remove(path);
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}
