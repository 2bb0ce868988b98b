//! What repositories have: small files under `refs/`, the truth about tags and media types, with a cache in front.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::disk::{self, Disk};
use super::layout::{self, Layout, RepositoryKey};
use super::records::Records;
use crate::clock::Timestamp;
use crate::oci::{Descriptor, Digest, Tag};

/// Most bytes of a file under `refs/`; more is not ours.
const RECORD_BYTES_MAX: u64 = 4096;
/// Tag records held in RAM.
const TAGS_IN_MEMORY_MAX: u64 = 100_000;

/// Which manifest a tag named, and when upstream last said so. The manifest is in the store (invariant 12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    pub descriptor: Descriptor,
    pub checked_at: Timestamp,
    /// When upstream first said so, without another word in between.
    pub first_seen: Timestamp,
}

impl TagRecord {
    /// Upstream's word of a moment, the first of its kind as far as is known.
    pub fn new(descriptor: Descriptor, checked_at: Timestamp) -> TagRecord {
        TagRecord { descriptor, checked_at, first_seen: checked_at }
    }
}

/// A record as it stands in its file.
#[derive(Serialize, Deserialize)]
struct Written {
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    media_type: String,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    checked_at: Option<Timestamp>,
    /// Absent in what larder 0.1.0 wrote, and passed over by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_seen: Option<Timestamp>,
}

/// Readers and writers of `refs/`. All but [`Refs::recent`] block.
pub struct Refs {
    disk: Arc<dyn Disk>,
    records: Arc<Records>,
    layout: Layout,
    tags: Cache<(RepositoryKey, Tag), Arc<TagRecord>>,
}

impl Refs {
    pub fn new(disk: Arc<dyn Disk>, records: Arc<Records>, layout: Layout) -> Refs {
        Refs { disk, records, layout, tags: Cache::new(TAGS_IN_MEMORY_MAX) }
    }

    /// The record, if it is in RAM. Touches no disk.
    pub fn recent(&self, key: &(RepositoryKey, Tag)) -> Option<Arc<TagRecord>> {
        self.tags.get(key)
    }

    /// The record of a tag. A file that cannot be understood is no record.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn tag(&self, key: &(RepositoryKey, Tag)) -> io::Result<Option<Arc<TagRecord>>> {
        if let Some(record) = self.tags.get(key) {
            return Ok(Some(record));
        }
        let record = self.read_tag(&self.layout.tag(&key.0, &key.1))?.map(Arc::new);
        if let Some(record) = &record {
            self.tags.insert(key.clone(), Arc::clone(record));
        }
        Ok(record)
    }

    /// The record as the file has it, which is not kept in RAM.
    pub(super) fn read_tag(&self, path: &Path) -> io::Result<Option<TagRecord>> {
        let Some(written) = self.read(path)? else { return Ok(None) };
        let read = || {
            let descriptor =
                Descriptor { media_type: written.media_type.parse().ok()?, digest: written.digest?.parse().ok()?, size: written.size };
            let checked_at = written.checked_at?;
            Some(TagRecord { descriptor, checked_at, first_seen: written.first_seen.unwrap_or(checked_at) })
        };
        Ok(read())
    }

    /// Writes a tag's record. What reads it next, reads the new one, even if the disk fails.
    ///
    /// # Errors
    /// When the disk fails; the record then lives in RAM only.
    pub fn set_tag(&self, key: &(RepositoryKey, Tag), record: TagRecord) -> io::Result<()> {
        let written = Written {
            digest: Some(record.descriptor.digest.to_string()),
            media_type: record.descriptor.media_type.to_string(),
            size: record.descriptor.size,
            checked_at: Some(record.checked_at),
            first_seen: Some(record.first_seen),
        };
        self.tags.insert(key.clone(), Arc::new(record));
        self.write(&self.layout.tag(&key.0, &key.1), &written)
    }

    /// A record that is not to be written: it lives in RAM only.
    pub fn remember_tag(&self, key: &(RepositoryKey, Tag), record: TagRecord) {
        self.tags.insert(key.clone(), Arc::new(record));
    }

    /// The tags of a repository that have records, as the files have them.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn tags(&self, repository: &RepositoryKey) -> io::Result<Vec<Tag>> {
        let entries = self.disk.list(&self.layout.tags(repository))?;
        Ok(entries.into_iter().filter_map(|entry| entry.name.parse().ok()).collect())
    }

    /// Removes a tag's record.
    ///
    /// # Errors
    /// When the disk fails; the record is then still on disk.
    pub fn drop_tag(&self, key: &(RepositoryKey, Tag)) -> io::Result<()> {
        self.tags.invalidate(key);
        self.records.remove(&self.layout.tag(&key.0, &key.1))
    }

    /// Records that a repository has a manifest.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn add_manifest(&self, repository: &RepositoryKey, descriptor: &Descriptor) -> io::Result<()> {
        let written = Written {
            digest: None,
            media_type: descriptor.media_type.to_string(),
            size: descriptor.size,
            checked_at: None,
            first_seen: None,
        };
        self.write(&self.layout.manifest_ref(repository, &descriptor.digest), &written)
    }

    /// Removes a repository's record of a manifest, and first every tag that names it (invariant 12).
    ///
    /// # Errors
    /// When the disk fails.
    pub fn drop_manifest(&self, repository: &RepositoryKey, digest: &Digest) -> io::Result<()> {
        for tag in self.tags(repository)? {
            let key = (repository.clone(), tag);
            if self.tag(&key)?.is_some_and(|record| record.descriptor.digest == *digest) {
                self.drop_tag(&key)?;
            }
        }
        self.records.remove(&self.layout.manifest_ref(repository, digest))
    }

    /// Records that an upstream has a blob.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn add_confirmation(&self, upstream: &str, digest: &Digest) -> io::Result<()> {
        self.records.create_empty(&self.layout.confirmation(upstream, digest))
    }

    /// Removes what [`Refs::add_confirmation`] wrote.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn drop_confirmation(&self, upstream: &str, digest: &Digest) -> io::Result<()> {
        self.records.remove(&self.layout.confirmation(upstream, digest))
    }

    /// When upstream last showed a repository to anybody. A file that cannot be understood says nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn shown(&self, repository: &RepositoryKey) -> io::Result<Option<Timestamp>> {
        let bytes = disk::read_small(&*self.disk, &self.layout.shown(repository), RECORD_BYTES_MAX)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    /// Writes it down.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn set_shown(&self, repository: &RepositoryKey, at: Timestamp) -> io::Result<()> {
        let bytes = serde_json::to_vec(&at).map_err(io::Error::other)?;
        self.records.replace(&self.layout.shown(repository), &bytes)
    }

    /// Every repository of which there is a record.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn repositories(&self) -> io::Result<Vec<RepositoryKey>> {
        let mut found = Vec::new();
        for upstream in self.disk.list(&self.layout.refs())? {
            let upstream: Arc<str> = upstream.name.into();
            let mut names = vec![String::new()];
            while let Some(name) = names.pop() {
                for entry in self.disk.list(&self.layout.refs().join(&*upstream).join(&name))?.into_iter().filter(|entry| entry.is_dir) {
                    match (entry.name.as_str(), name.parse()) {
                        ("_tags" | "_manifests", Ok(parsed)) => found.push(RepositoryKey { upstream: Arc::clone(&upstream), name: parsed }),
                        (marked, _) if marked.starts_with('_') => {}
                        (below, _) => names.push(if name.is_empty() { below.to_owned() } else { format!("{name}/{below}") }),
                    }
                }
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Calls `found` for every record of a manifest and every confirmation, as the files have them. Counts what is there, and
    /// removes what a crash has left half written. Goes on where something cannot be read.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn walk(&self, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        for upstream in self.entries(&self.layout.refs(), found)? {
            let name: Arc<str> = upstream.name.as_str().into();
            let confirmations = self.layout.confirmations(&name);
            self.records.found(&confirmations);
            let mut stopped = Ok(());
            let visited = self.disk.visit(&confirmations, &mut |entry| {
                let Some(digest) = layout::digest_of(&entry.name) else { return Ok(()) };
                stopped = found(Found::Confirmation { upstream: Arc::clone(&name), digest });
                stopped.as_ref().map_err(|error| error.kind().into()).copied()
            });
            stopped?;
            visited.or_else(|error| found(Found::Unreadable { path: confirmations, error }))?;
            self.walk_repositories(&name, "", found)?;
        }
        Ok(())
    }

    fn walk_repositories(&self, upstream: &Arc<str>, name: &str, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        let directory = self.layout.refs().join(&**upstream).join(name);
        self.records.found(&directory);
        for entry in self.entries(&directory, found)? {
            let path = directory.join(&entry.name);
            match entry.name.as_str() {
                "_tags" | "_manifests" => self.count_records(&path, found)?,
                _ if !entry.is_dir => self.count_record(&path),
                _ => {}
            }
            if !entry.is_dir || entry.name.starts_with('_') {
                continue;
            }
            let name = if name.is_empty() { entry.name } else { format!("{name}/{}", entry.name) };
            if let Ok(parsed) = name.parse() {
                let repository = RepositoryKey { upstream: Arc::clone(upstream), name: parsed };
                self.manifests(&repository, found)?;
            }
            self.walk_repositories(upstream, &name, found)?;
        }
        Ok(())
    }

    fn count_records(&self, directory: &Path, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        self.records.found(directory);
        self.entries(directory, found)?.iter().for_each(|entry| self.count_record(&directory.join(&entry.name)));
        Ok(())
    }

    fn count_record(&self, path: &Path) {
        if !disk::is_temporary(path) {
            self.records.found(path);
        } else if let Err(error) = self.records.remove_temporary(path) {
            tracing::warn!(path = %path.display(), %error, "what a crash has left could not be removed");
        }
    }

    /// Calls `found` for every record of a manifest that a repository has. Goes on where one cannot be read.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn manifests(&self, repository: &RepositoryKey, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        for entry in self.entries(&self.layout.manifest_refs(repository), found)? {
            let Some(digest) = layout::digest_of(&entry.name) else { continue };
            let path = self.layout.manifest_ref(repository, &digest);
            match self.read(&path) {
                Err(error) => found(Found::Unreadable { path, error })?,
                Ok(None) => {}
                Ok(Some(written)) => {
                    if let Ok(media_type) = written.media_type.parse() {
                        let descriptor = Descriptor { media_type, digest, size: written.size };
                        found(Found::Manifest { repository: repository.clone(), descriptor })?;
                    }
                }
            }
        }
        Ok(())
    }

    /// What a directory holds; nothing, when it cannot be read, which is then said.
    fn entries(&self, directory: &Path, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<Vec<disk::Entry>> {
        self.disk.list(directory).or_else(|error| {
            found(Found::Unreadable { path: directory.to_owned(), error })?;
            Ok(Vec::new())
        })
    }

    fn read(&self, path: &Path) -> io::Result<Option<Written>> {
        let bytes = disk::read_small(&*self.disk, path, RECORD_BYTES_MAX)?;
        Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
    }

    fn write(&self, path: &Path, written: &Written) -> io::Result<()> {
        let bytes = serde_json::to_vec(written).map_err(io::Error::other)?;
        self.records.replace(path, &bytes)
    }
}

/// One record under `refs/`.
#[derive(Debug)]
pub enum Found {
    Manifest {
        repository: RepositoryKey,
        descriptor: Descriptor,
    },
    Confirmation {
        upstream: Arc<str>,
        digest: Digest,
    },
    /// Something that could not be read.
    Unreadable {
        path: PathBuf,
        error: io::Error,
    },
}
