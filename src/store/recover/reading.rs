//! What is found: objects by the index and by their files, partials, records. What cannot be read was reported by the walk, and is left out.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::Pace;
use crate::clock::Timestamp;
use crate::oci::{Algorithm, Descriptor, Digest, MANIFEST_BYTES_MAX, Manifest};
use crate::store::disk::FileKind;
use crate::store::evict::Item;
use crate::store::index::Record;
use crate::store::links::Children;
use crate::store::partial::BLOCK;
use crate::store::refs::Found;
use crate::store::uptime::DaemonTime;
use crate::store::walk::PartialFile;
use crate::store::{RepositoryKey, Store, check, disk};

/// A use may be written down before the daemon time is, but not by more than this.
const BELIEVED: Duration = Duration::from_secs(3600);
/// Files that are looked at while the file lock is held: a fraction of a millisecond.
const BATCH: usize = 64;
/// Hints for the index that are sent at a time.
const HINTS: usize = 1000;

impl Store {
    /// What the index knows of an object, whose file may be gone.
    pub(super) fn expect(&self, digest: Digest, record: Record) {
        let latest = self.loading.last_stop.map(|last_stop| last_stop.plus(BELIEVED));
        let is_believed = latest.is_some_and(|latest| record.last_used <= latest);
        let last_used = if is_believed { record.last_used } else { self.loading.begun };
        // Daemon time goes on from the last use that is known.
        self.uptime.at_least(last_used);
        let mut ledger = self.ledger();
        ledger.expect(digest, last_used);
        if !is_believed {
            // Or the next start would not believe it again, and it would never age.
            ledger.touch(&Item::Stored(digest), last_used);
        }
        drop(ledger);
        if let Some(children) = record.children {
            self.links_mut().list(digest, children);
        }
    }

    /// The index may be told of what it does not know, if it knows anything.
    pub(super) fn find_blobs(&self, pace: &mut Pace<'_>, are_hints_wanted: bool) -> io::Result<()> {
        let mut hints = Vec::new();
        self.records.found(&self.layout.blobs());
        for algorithm in Algorithm::ALL {
            self.records.found(&self.layout.blobs().join(algorithm.as_str()));
            for shelf in self.walk.shelves(algorithm) {
                self.records.found(&shelf);
                let undeleted = self.records.undeleted(&shelf);
                for batch in self.walk.shelf(algorithm, &shelf).unwrap_or_default().chunks(BATCH) {
                    pace.rest()?;
                    self.enter_blobs(algorithm, &shelf, batch, &undeleted, &mut hints);
                }
                if hints.len() >= HINTS {
                    self.tell_found(std::mem::take(&mut hints), are_hints_wanted);
                }
            }
        }
        self.tell_found(hints, are_hints_wanted);
        Ok(())
    }

    fn tell_found(&self, hints: Vec<(Digest, DaemonTime)>, are_hints_wanted: bool) {
        if are_hints_wanted && !hints.is_empty() {
            self.index.touch(hints);
        }
    }

    fn enter_blobs(
        &self,
        algorithm: Algorithm,
        shelf: &Path,
        batch: &[disk::Entry],
        undeleted: &HashSet<PathBuf>,
        hints: &mut Vec<(Digest, DaemonTime)>,
    ) {
        let _files = self.files.lock();
        for (entry, stat) in batch.iter().zip(self.disk.stats(shelf, batch)) {
            let Ok(digest) = Digest::from_parts(algorithm.as_str(), &entry.name) else { continue };
            if !undeleted.is_empty() && undeleted.contains(&shelf.join(&entry.name)) {
                continue;
            }
            match self.enter_found(&digest, stat) {
                Ok(true) => hints.push((digest, self.loading.begun)),
                Ok(false) => {}
                Err(error) => self.walk.unreadable(&self.layout.blob(&digest), &error),
            }
        }
    }

    /// Enters an object, if there is a file; says whether its last use had to be made up. The file lock is held.
    pub(super) fn enter_blob(&self, digest: &Digest) -> io::Result<bool> {
        self.enter_found(digest, self.disk.stat(&self.layout.blob(digest)))
    }

    fn enter_found(&self, digest: &Digest, stat: io::Result<disk::Stat>) -> io::Result<bool> {
        let stat = match stat {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            stat => stat?,
        };
        if stat.kind != FileKind::File {
            self.clear_away(digest);
            return Ok(false);
        }
        // In the old order, as far as the file's own time tells it.
        let otherwise = (self.loading.begun, Timestamp::from(stat.modified).0);
        Ok(self.ledger().find(Item::Stored(*digest), stat.allocated, otherwise))
    }

    /// What stands under a blob's name and is no file was not put there by larder. It would be in the way of the blob, so it is put
    /// aside; where that cannot be done, it is left out. The file lock is held.
    fn clear_away(&self, digest: &Digest) {
        let path = self.layout.blob(digest);
        match self.put_aside(digest) {
            Ok(()) => self.walk.foreign(&path, "it is no file; it was moved to quarantine/"),
            Err(error) => self.walk.foreign(&path, &format!("it is no file, and could not be moved to quarantine/: {error}")),
        }
    }

    /// Partials of the same boot or of a clean stop are continued by whoever asks for them; others may hold anything.
    pub(super) fn find_partials(&self) {
        self.records.found(&self.layout.partials());
        for upstream in self.walk.upstreams(&self.layout.partials()).unwrap_or_default() {
            self.records.found(&self.layout.partials().join(&*upstream));
            for PartialFile { path, digest, is_resumable } in self.walk.partials(&upstream) {
                if !is_resumable || !self.lock.partials_are_durable {
                    self.records.discard(&path, BLOCK);
                    continue;
                }
                match self.disk.stat(&path) {
                    Ok(stat) => {
                        let last_used = (self.loading.begun, Timestamp::from(stat.modified).0);
                        self.ledger().find(Item::Partial(Arc::clone(&upstream), digest), stat.allocated, last_used);
                    }
                    Err(error) => self.walk.unreadable(&path, &error),
                }
            }
        }
    }

    pub(super) fn find_refs(&self, pace: &mut Pace<'_>) -> io::Result<()> {
        let (mut lost, mut unfounded) = (Vec::new(), Vec::new());
        self.records.found(&self.layout.refs());
        self.refs.walk(&mut |found| {
            pace.rest()?;
            match found {
                Found::Confirmation { upstream, digest } if self.contains(&digest) => self.links_mut().confirm(&upstream, digest),
                Found::Confirmation { upstream, digest } => unfounded.push((upstream, digest)),
                Found::Manifest { repository, descriptor } => {
                    let digest = descriptor.digest;
                    match self.enter_manifest(&repository, descriptor) {
                        Ok(true) => {}
                        Ok(false) => lost.push((repository, digest)),
                        Err(error) => self.walk.unreadable(&self.layout.blob(&digest), &error),
                    }
                }
            }
            Ok(())
        })?;
        if !self.records.finish_loading() {
            self.walk.should_read_again();
        }
        // Only now that they count can they be counted off.
        for (repository, digest) in lost {
            self.drop_lost(&repository, &digest).unwrap_or_else(|error| self.walk.unreadable(&self.layout.blob(&digest), &error));
        }
        for (upstream, digest) in unfounded {
            self.drop_unfounded(&upstream, &digest);
        }
        Ok(())
    }

    /// Says whose a manifest is and what it lists; `false` when there is no such manifest.
    pub(super) fn enter_manifest(&self, repository: &RepositoryKey, descriptor: Descriptor) -> io::Result<bool> {
        let path = self.layout.blob(&descriptor.digest);
        if !self.contains(&descriptor.digest) {
            return match self.disk.stat(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                // Unreadable a moment ago, or leaving at this moment.
                stat => stat.map(|_| true),
            };
        }
        if self.children(&descriptor.digest).is_none() {
            match self.read_children(&descriptor)? {
                Some(children) => self.links_mut().list(descriptor.digest, children),
                None => return Ok(false),
            }
        }
        self.links_mut().hold(repository.clone(), descriptor.digest, descriptor.media_type);
        Ok(true)
    }

    /// What a manifest lists, from its bytes, which are checked; `None` for what is none.
    fn read_children(&self, descriptor: &Descriptor) -> io::Result<Option<Children>> {
        let digest = descriptor.digest;
        let bytes = match disk::read_small(&*self.disk, &self.layout.blob(&digest), MANIFEST_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return Ok(None),
            read => read?,
        };
        let verified = |bytes| Manifest::verified(Bytes::from(bytes), Some(descriptor.media_type.as_str()), &digest).ok();
        let Some(manifest) = bytes.and_then(verified) else { return Ok(None) };
        let children: Children = manifest.children().iter().map(|child| (child.digest, child.size)).collect();
        let last_used = self.ledger().last_used(&Item::Stored(digest)).unwrap_or_default();
        self.index.put(digest, Record { last_used, children: Some(Arc::clone(&children)) });
        Ok(Some(children))
    }

    /// A record names no manifest. A crash came between unlinking it and its record, somebody has removed the file, or it is
    /// damaged.
    fn drop_lost(&self, repository: &RepositoryKey, digest: &Digest) -> io::Result<()> {
        if self.contains(digest) {
            let bytes = match disk::read_small(&*self.disk, &self.layout.blob(digest), MANIFEST_BYTES_MAX) {
                // No manifest, and no worse a blob for that.
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => return self.refs.drop_manifest(repository, digest),
                read => read?,
            };
            if bytes.is_some_and(|bytes| check(digest, &bytes).is_err()) {
                tracing::error!(%digest, "a stored manifest is damaged");
                self.quarantine(digest);
            }
            return self.refs.drop_manifest(repository, digest);
        }
        // Under this lock it comes back, and its record after it.
        let _files = self.files.lock();
        if self.contains(digest) { Ok(()) } else { self.refs.drop_manifest(repository, digest) }
    }

    /// A crash came between what upstream said of a blob and the blob. What it says at this moment is in RAM first.
    fn drop_unfounded(&self, upstream: &Arc<str>, digest: &Digest) {
        let is_news = self.links().confirmed(digest).contains(upstream);
        if !is_news && let Err(error) = self.refs.drop_confirmation(upstream, digest) {
            tracing::warn!(%digest, %error, "a confirmation of what is gone could not be removed");
        }
    }

    /// What the tags name, as far as it matters now.
    pub(super) fn find_tags(&self) -> io::Result<()> {
        if !self.lock.partials_are_durable {
            // Of what was removed in order, a power cut may have undone the first and not the last.
            self.drop_lost_tags()?;
        }
        self.find_pins();
        Ok(())
    }

    /// What the pinned tags name.
    fn find_pins(&self) {
        let repositories = self.pins.lock().repositories();
        for repository in repositories {
            for tag in self.refs.tags(&repository).unwrap_or_default() {
                let key = (repository.clone(), tag);
                // What cannot be read was reported.
                if let Ok(Some(record)) = self.refs.tag_if_readable(&key) {
                    self.pins.lock().name(&key, record.descriptor.digest);
                }
            }
        }
    }

    /// Those of [`Store::find_partials`], once more.
    pub(super) fn count_partial_directories(&self) {
        self.records.found(&self.layout.partials());
        for upstream in self.walk.upstreams(&self.layout.partials()).unwrap_or_default() {
            self.records.found(&self.layout.partials().join(&*upstream));
        }
    }
}
