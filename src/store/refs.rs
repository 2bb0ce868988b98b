//! What repositories have: small files under `refs/`, the truth about tags and media types, with a cache in front.

use std::io;
use std::path::Path;
use std::sync::Arc;

use moka::sync::Cache;
use serde::{Deserialize, Serialize};

use super::disk::{self, Disk};
use super::layout::{self, Layout, RepositoryKey};
use super::records::Records;
use super::walk::Walk;
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
    walk: Arc<Walk>,
    layout: Layout,
    tags: Cache<(RepositoryKey, Tag), Arc<TagRecord>>,
}

impl Refs {
    pub(super) fn new(disk: Arc<dyn Disk>, records: Arc<Records>, walk: Arc<Walk>, layout: Layout) -> Refs {
        Refs { disk, records, walk, layout, tags: Cache::new(TAGS_IN_MEMORY_MAX) }
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
    /// When they cannot be read, which was reported.
    pub fn tags(&self, repository: &RepositoryKey) -> io::Result<Vec<Tag>> {
        Ok(self.walk.tags(repository)?.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// The record of a tag, as [`Refs::tag`]; `None` also where larder may not read it, or something else stands in its place, which
    /// is reported: such a record names nothing.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn tag_if_readable(&self, key: &(RepositoryKey, Tag)) -> io::Result<Option<Arc<TagRecord>>> {
        self.tag(key).or_else(|error| {
            let path = self.layout.tag(&key.0, &key.1);
            let is_for_ever = error.kind() == io::ErrorKind::PermissionDenied || disk::is_obstructed(&error);
            self.walk.unreadable(&path, &error);
            if is_for_ever { Ok(None) } else { Err(disk::at(&path, error)) }
        })
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
            if self.tag_if_readable(&key)?.is_some_and(|record| record.descriptor.digest == *digest) {
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
    /// When `refs/` itself cannot be read; what below it cannot be was reported, and is left out.
    pub fn repositories(&self) -> io::Result<Vec<RepositoryKey>> {
        let mut found = Vec::new();
        for upstream in self.walk.upstreams(&self.layout.refs())? {
            self.walk.refs(&upstream, &mut |directory| {
                found.extend(directory.repository.filter(|_| directory.has_tags || directory.has_manifests));
                Ok(())
            })?;
        }
        found.sort_unstable();
        Ok(found)
    }

    /// Calls `found` for every record of a manifest and every confirmation, as the files have them. Counts what is there, and
    /// removes what a crash has left half written. What cannot be read was reported, and is left out.
    ///
    /// # Errors
    /// Those of `found`.
    pub fn walk(&self, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        for upstream in self.walk.upstreams(&self.layout.refs()).unwrap_or_default() {
            self.records.found(&self.layout.confirmations(&upstream));
            self.walk.confirmations(&upstream, &mut |digest| found(Found::Confirmation { upstream: Arc::clone(&upstream), digest }))?;
            self.walk.refs(&upstream, &mut |directory| {
                self.records.found(&directory.path);
                directory.records.iter().for_each(|path| self.count_record(path));
                let Some(repository) = &directory.repository else { return Ok(()) };
                if directory.has_tags {
                    self.count_records(&self.layout.tags(repository), &self.walk.tags(repository).unwrap_or_default());
                }
                if !directory.has_manifests {
                    return Ok(());
                }
                let manifests = self.walk.manifests(repository).unwrap_or_default();
                self.count_records(&self.layout.manifest_refs(repository), &manifests);
                self.read_manifests(repository, &manifests, found)
            })?;
        }
        Ok(())
    }

    fn count_records(&self, directory: &Path, names: &[String]) {
        self.records.found(directory);
        names.iter().for_each(|name| self.count_record(&directory.join(name)));
    }

    fn count_record(&self, path: &Path) {
        if disk::is_temporary(path) { self.records.remove_temporary(path) } else { self.records.found(path) }
    }

    /// Calls `found` for every record of a manifest that a repository has. A record that cannot be read was reported, and is left out.
    ///
    /// # Errors
    /// Those of `found`, and when the folder cannot be read, which was reported.
    pub fn manifests(&self, repository: &RepositoryKey, found: &mut dyn FnMut(Found) -> io::Result<()>) -> io::Result<()> {
        self.read_manifests(repository, &self.walk.manifests(repository)?, found)
    }

    fn read_manifests(
        &self,
        repository: &RepositoryKey,
        names: &[String],
        found: &mut dyn FnMut(Found) -> io::Result<()>,
    ) -> io::Result<()> {
        for digest in names.iter().filter_map(|name| layout::digest_of(name)) {
            let path = self.layout.manifest_ref(repository, &digest);
            match self.read(&path) {
                Err(error) => self.walk.unreadable(&path, &error),
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
    Manifest { repository: RepositoryKey, descriptor: Descriptor },
    Confirmation { upstream: Arc<str>, digest: Digest },
}
