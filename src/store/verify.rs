//! Looking at everything at once, because somebody asked: each stored file is hashed, each record compared with what is there.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::Sender;

use super::audit::{Event, Pace, Reply};
use super::hash::Verdict;
use super::{RepositoryKey, Store};
use crate::oci::{Digest, Tag};

/// Faults that are named; the others are counted.
const FAULTS_MAX: usize = 1000;
/// Files looked for in one turn of the gate.
const BATCH: usize = 1000;

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub objects: u64,
    pub objects_total: u64,
    /// Hashed.
    pub bytes: u64,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub objects: u64,
    /// Hashed.
    pub bytes: u64,
    /// The first of what is damaged or missing, by digest, and why.
    pub faults: BTreeMap<String, String>,
    pub damaged: u64,
    pub missing: u64,
    /// The disk would not say.
    pub unreadable: u64,
    /// Records of tags that name a manifest that is not there.
    pub tags_without_manifest: u64,
    /// Manifests of which something was never pulled, or has been evicted: that is normal.
    pub incomplete_manifests: u64,
    /// Faults were put aside, to be fetched again when somebody asks.
    pub repaired: bool,
}

impl Report {
    /// Whether something is wrong, and still is.
    pub fn is_bad(&self) -> bool {
        self.unreadable > 0 || !self.repaired && self.damaged + self.missing + self.tags_without_manifest > 0
    }

    fn judged(&mut self, digest: &Digest, verdict: &Verdict) {
        match verdict {
            Verdict::Intact => {}
            Verdict::Damaged(why) => {
                self.damaged += 1;
                self.fault(digest, why.clone());
            }
            Verdict::Unreadable(error) => self.unread(digest, error),
        }
    }

    /// What could not be looked at, or not be removed.
    fn unread(&mut self, what: &impl ToString, error: &io::Error) {
        self.unreadable += 1;
        self.fault(what, error.to_string());
    }

    fn fault(&mut self, what: &impl ToString, why: String) {
        if self.faults.len() < FAULTS_MAX {
            self.faults.insert(what.to_string(), why);
        }
    }
}

impl Store {
    /// Hashes everything that is held. With `repair`, what is damaged is put aside and the records of what is gone are
    /// dropped. Ends early when nobody listens any more.
    ///
    /// # Errors
    /// When `refs/` itself cannot be read.
    pub async fn verify(self: &Arc<Store>, repair: bool, listener: &Sender<Progress>) -> io::Result<Report> {
        let mut report = Report { repaired: repair, ..Report::default() };
        let mut progress = Progress { objects_total: self.ledger().stored_count() as u64, ..Progress::default() };
        let mut is_broken_off = false;
        let mut told = |event: Event<'_>| {
            match event {
                Event::Begun if listener.is_closed() => {
                    is_broken_off = true;
                    return Reply::Stop;
                }
                Event::Begun => {}
                Event::Hashed(bytes) => {
                    progress.bytes += bytes;
                    // Who is slow to listen misses a word.
                    let _ = listener.try_send(progress);
                }
                Event::Judged(digest, verdict) => {
                    progress.objects += 1;
                    report.judged(digest, verdict);
                    if repair {
                        return Reply::PutAside;
                    }
                }
                Event::Unread(directory, error) => report.unread(&directory.display(), error),
            }
            Reply::GoOn
        };
        let whole = self.audit(0, Pace::Full, &mut told).await;
        if is_broken_off {
            return Ok(report);
        }
        (report.objects, report.bytes) = (progress.objects, progress.bytes);
        self.find_missing(&mut report).await;
        let (store, mut report) = (Arc::clone(self), report);
        self.gate
            .run(move || {
                store.compare_records(&mut report)?;
                if whole && !report.is_bad() {
                    store.all_is_known();
                }
                Ok(report)
            })
            .await
    }

    /// What should be there by all we know, and has no file.
    async fn find_missing(self: &Arc<Store>, report: &mut Report) {
        let mut next = Some(0);
        while let Some(start) = next {
            let batch;
            (batch, next) = self.ledger().stored_from(start, BATCH);
            let store = Arc::clone(self);
            let look = move || {
                let gone = |digest: &Digest| {
                    let stat = store.disk.stat(&store.layout.blob(digest));
                    stat.is_err_and(|error| error.kind() == io::ErrorKind::NotFound) && store.contains(digest)
                };
                batch.into_iter().filter(gone).collect::<Vec<_>>()
            };
            for digest in self.gate.run(look).await {
                report.missing += 1;
                report.fault(&digest, "the file is gone".into());
                if report.repaired {
                    let store = Arc::clone(self);
                    self.gate.run(move || store.quarantine(&digest)).await;
                }
            }
        }
    }

    fn compare_records(&self, report: &mut Report) -> io::Result<()> {
        let unread = &mut |path: &Path, error: &io::Error| report.unread(&path.display(), error);
        let lost = self.tags_where(|_, digest| !self.contains(digest), unread)?;
        report.tags_without_manifest += lost.len() as u64;
        for key in lost.iter().filter(|_| report.repaired).collect::<Vec<_>>() {
            if let Err(error) = self.remove_tag(key) {
                report.unread(&self.layout.tag(&key.0, &key.1).display(), &error);
            }
        }
        let manifests: Vec<Digest> = self.links().manifests();
        let lacks = |digest: &Digest| self.children(digest).is_some_and(|children| children.iter().any(|(child, _)| !self.contains(child)));
        report.incomplete_manifests = manifests.iter().filter(|digest| lacks(digest)).count() as u64;
        Ok(())
    }

    /// The tags whose records name what is asked for. What cannot be read is left out, and said.
    fn tags_where(
        &self,
        what_it_names: impl Fn(&RepositoryKey, &Digest) -> bool,
        unreadable: &mut dyn FnMut(&Path, &io::Error),
    ) -> io::Result<Vec<(RepositoryKey, Tag)>> {
        let mut found = Vec::new();
        for repository in self.refs.repositories()? {
            let tags = self.refs.tags(&repository).inspect_err(|error| unreadable(&self.layout.tags(&repository), error));
            for tag in tags.unwrap_or_default() {
                let key = (repository.clone(), tag);
                match self.refs.tag_if_readable(&key) {
                    Ok(Some(record)) if what_it_names(&repository, &record.descriptor.digest) => found.push(key),
                    Ok(_) => {}
                    Err(error) => unreadable(&self.layout.tag(&key.0, &key.1), &error),
                }
            }
        }
        Ok(found)
    }

    /// Removes the records of tags whose manifest is not held (invariant 12), or not by that repository: with such a manifest
    /// the tag would not leave. Blocks.
    pub(super) fn drop_lost_tags(&self) -> io::Result<()> {
        let is_gone = |path: &Path| self.disk.stat(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        let is_lost = |repository: &RepositoryKey, digest: &Digest| {
            is_gone(&self.layout.blob(digest)) || is_gone(&self.layout.manifest_ref(repository, digest))
        };
        for key in self.tags_where(is_lost, &mut |_, _| {})? {
            if let Err(error) = self.remove_tag(&key) {
                self.walk.unreadable(&self.layout.tag(&key.0, &key.1), &error);
            }
        }
        Ok(())
    }
}
