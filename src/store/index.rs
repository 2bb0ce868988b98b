//! The sled index: when each object was last used, and what each manifest lists. A hint that saves reading the files at
//! start, never a truth: it may be deleted at any stop, and a fault in it is never a fault for anybody else.
//!
//! sled 0.34 blocks, keeps its first error for ever, and may panic on damage; so one thread owns it, nobody waits for
//! it, and at the first error or panic it is set aside and begun anew.

use std::collections::HashMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;

use super::links::Children;
use super::uptime::DaemonTime;
use crate::oci::Digest;

/// Messages that may wait for the owner thread; more are dropped, since the files know it all.
const QUEUE_MAX: usize = 1024;
const CACHE_BYTES: u64 = 64 << 20;
const FLUSH_EVERY: Duration = Duration::from_secs(1);
/// How long opening may take before the index is given up: sled has been seen to hang on damage.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// What the index knows of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub last_used: DaemonTime,
    /// Of a manifest.
    pub children: Option<Children>,
}

enum Message {
    Put(Digest, Record),
    Touch(Vec<(Digest, DaemonTime)>),
    Remove(Digest),
    Stop,
}

/// The way to the owner thread.
pub struct Index {
    queue: SyncSender<Message>,
    owner: Option<JoinHandle<()>>,
}

impl Index {
    /// Opens the index and reads all of it; what cannot be read is set aside and begun anew.
    ///
    /// # Errors
    /// When not even an empty index can be made, or no thread.
    pub fn open(path: &Path) -> io::Result<(Index, HashMap<Digest, Record>)> {
        let (db, records) = match open_and_read(path) {
            Ok(opened) => opened,
            Err(reason) => {
                set_aside(path, &reason);
                (open(path).map_err(io::Error::other)?, HashMap::new())
            }
        };
        let (queue, messages) = mpsc::sync_channel(QUEUE_MAX);
        let path = path.to_owned();
        let owner = std::thread::Builder::new().name("index".into()).spawn(move || own(&path, db, &messages))?;
        Ok((Index { queue, owner: Some(owner) }, records))
    }

    pub fn put(&self, digest: Digest, record: Record) {
        self.send(Message::Put(digest, record));
    }

    pub fn touch(&self, used: Vec<(Digest, DaemonTime)>) {
        self.send(Message::Touch(used));
    }

    pub fn remove(&self, digest: Digest) {
        self.send(Message::Remove(digest));
    }

    /// A full queue means that the disk is slower than the clients; the hint is then lost, which costs nothing but a re-read.
    fn send(&self, message: Message) {
        if self.queue.try_send(message).is_err() {
            tracing::debug!("the index is behind; a hint was dropped");
        }
    }
}

impl Drop for Index {
    /// Writes what is queued, and flushes.
    fn drop(&mut self) {
        // Blocking, unlike `send`: this is the stop.
        let _ = self.queue.send(Message::Stop);
        if let Some(owner) = self.owner.take() {
            let _ = owner.join();
        }
    }
}

fn open(path: &Path) -> sled::Result<sled::Db> {
    sled::Config::new().path(path).mode(sled::Mode::LowSpace).cache_capacity(CACHE_BYTES).flush_every_ms(Some(1000)).open()
}

/// Opens and scans on a thread of its own, so that a hang or a panic of sled's is an error like any other.
fn open_and_read(path: &Path) -> Result<(sled::Db, HashMap<Digest, Record>), String> {
    let (done, result) = mpsc::sync_channel(1);
    let path = path.to_owned();
    let work = move || {
        let attempt = catch_unwind(|| {
            let db = open(&path).map_err(|error| error.to_string())?;
            let mut records = HashMap::new();
            for entry in db.iter() {
                let (key, value) = entry.map_err(|error| error.to_string())?;
                if let (Some(digest), Some(record)) = (decode_key(&key), decode(&value)) {
                    records.insert(digest, record);
                }
            }
            Ok((db, records))
        });
        let _ = done.send(attempt.unwrap_or_else(|_| Err("sled panicked".into())));
    };
    std::thread::Builder::new().name("index-open".into()).spawn(work).map_err(|error| error.to_string())?;
    result.recv_timeout(OPEN_TIMEOUT).unwrap_or_else(|_| Err("sled did not open in time".into()))
}

fn set_aside(path: &Path, reason: &str) {
    let aside = path.with_extension("bad");
    tracing::warn!(reason, aside = %aside.display(), "the index is unusable; it is set aside and rebuilt from the files");
    let _ = std::fs::remove_dir_all(&aside);
    if std::fs::rename(path, &aside).is_err() {
        let _ = std::fs::remove_dir_all(path);
    }
}

/// The owner thread. It flushes when idle, beside sled's own timer, which has been seen to give up silently.
fn own(path: &Path, db: sled::Db, messages: &Receiver<Message>) {
    let mut db = Some(db);
    loop {
        let step = catch_unwind(AssertUnwindSafe(|| {
            let Some(db) = &db else { return Ok(true) };
            match messages.recv_timeout(FLUSH_EVERY) {
                Ok(message) => apply(db, message),
                Err(RecvTimeoutError::Timeout) => db.flush().map(|_| true),
                Err(RecvTimeoutError::Disconnected) => Ok(false),
            }
        }));
        match step {
            Ok(Ok(true)) if db.is_some() => {}
            Ok(Ok(false)) => break,
            failed => {
                let reason = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "sled panicked".into(),
                };
                // sled keeps an I/O error for ever, so the database goes, not the operation.
                drop(db.take());
                set_aside(path, &reason);
                match open(path) {
                    Ok(fresh) => db = Some(fresh),
                    Err(error) => return tracing::error!(%error, "no index can be kept; the next start will read the files"),
                }
            }
        }
    }
    let flushed = catch_unwind(AssertUnwindSafe(|| db.map(|db| db.flush())));
    if !matches!(flushed, Ok(Some(Ok(_)))) {
        tracing::warn!("the index was not flushed; the next start will read the files");
    }
}

fn apply(db: &sled::Db, message: Message) -> sled::Result<bool> {
    match message {
        Message::Put(digest, record) => {
            db.insert(encode_key(&digest), encode(&record))?;
        }
        Message::Touch(used) => {
            for (digest, last_used) in used {
                // Only the leading time changes; what a manifest lists never does.
                db.update_and_fetch(encode_key(&digest), |old| {
                    let children = old.and_then(|old| old.get(8..)).unwrap_or_default();
                    Some([&last_used.0.to_be_bytes(), children].concat())
                })?;
            }
        }
        Message::Remove(digest) => {
            db.remove(encode_key(&digest))?;
        }
        Message::Stop => return Ok(false),
    }
    Ok(true)
}

/// The raw hash: its length tells the algorithm.
fn encode_key(digest: &Digest) -> &[u8] {
    digest.as_bytes()
}

fn decode_key(key: &[u8]) -> Option<Digest> {
    match key.len() {
        32 => key.try_into().ok().map(Digest::Sha256),
        64 => key.try_into().ok().map(Digest::Sha512),
        _ => None,
    }
}

/// Eight bytes of daemon time, then, for a manifest, what it lists as JSON.
fn encode(record: &Record) -> Vec<u8> {
    let mut value = record.last_used.0.to_be_bytes().to_vec();
    if let Some(children) = &record.children {
        let list: Vec<(String, u64)> = children.iter().map(|(digest, size)| (digest.to_string(), *size)).collect();
        value.extend(serde_json::to_vec(&list).unwrap_or_default());
    }
    value
}

fn decode(value: &[u8]) -> Option<Record> {
    let (time, children) = value.split_at_checked(8)?;
    let last_used = DaemonTime(u64::from_be_bytes(time.try_into().ok()?));
    let children = match children {
        [] => None,
        json => {
            let list: Vec<(String, u64)> = serde_json::from_slice(json).ok()?;
            Some(list.into_iter().map(|(digest, size)| Some((digest.parse().ok()?, size))).collect::<Option<_>>()?)
        }
    };
    Some(Record { last_used, children })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn what_was_put_is_there_after_a_restart() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("index");
        let record = Record { last_used: DaemonTime(7), children: Some([(digest("child"), 3)].into()) };
        {
            let (index, records) = Index::open(&path).expect("a new index");
            assert!(records.is_empty());
            index.put(digest("manifest"), record.clone());
            index.put(digest("gone"), record.clone());
            index.remove(digest("gone"));
            index.touch(vec![(digest("manifest"), DaemonTime(9)), (digest("blob"), DaemonTime(8))]);
        }
        let (_index, records) = Index::open(&path).expect("the index");
        let expected = [
            (digest("manifest"), Record { last_used: DaemonTime(9), ..record }),
            (digest("blob"), Record { last_used: DaemonTime(8), children: None }),
        ];
        assert_eq!(records, HashMap::from(expected));
    }

    #[test]
    fn a_damaged_index_is_set_aside() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("index");
        std::fs::write(&path, b"no database").expect("a file");
        let (_index, records) = Index::open(&path).expect("a fresh index");
        assert!(records.is_empty());
        assert!(path.with_extension("bad").exists());
    }
}
