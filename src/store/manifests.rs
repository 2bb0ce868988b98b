//! Manifests and tags: their bytes are blobs like any other, and `refs/` says which repository has them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::blobs::Lease;
use super::evict::Item;
use super::hash::Verifier;
use super::index::Record;
use super::partial::PartialBlob;
use super::refs::TagRecord;
use super::{RepositoryKey, Store, StoreError, TOUCH_INTERVAL, check, io_error, links};
use crate::clock::Timestamp;
use crate::oci::{Digest, MANIFEST_BYTES_MAX, Manifest, MediaType, Tag};

impl Store {
    /// The bytes of a stored manifest; `None` when they are not held.
    ///
    /// # Errors
    /// As [`Store::blob`].
    pub async fn manifest(self: &Arc<Store>, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        if let Some(bytes) = self.memory.get(digest) {
            return Ok(Some(bytes));
        }
        // Something larger is no manifest, whatever an upstream calls it, and no worse a blob for that.
        let Some(blob) = self.blob(digest).await?.filter(|blob| blob.len() <= MANIFEST_BYTES_MAX) else { return Ok(None) };
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < blob.len() {
            let rest = bytes.len() as u64..blob.len();
            let chunk = blob.read(&rest).await.map_err(|error| io_error("read", &self.layout.blob(digest), error))?;
            bytes.extend_from_slice(&chunk);
        }
        let bytes = Bytes::from(bytes);
        let (store, digest) = (Arc::clone(self), *digest);
        self.gate
            .run(move || match check(&digest, &bytes) {
                Ok(()) => {
                    store.memory.insert(digest, bytes.clone());
                    Ok(Some(bytes))
                }
                Err(error) => {
                    store.metrics.read_failed("corrupt");
                    store.quarantine(&digest);
                    Err(io_error("read", &store.layout.blob(&digest), error))
                }
            })
            .await
    }

    /// The media type of a manifest that this repository has; `None` when it has none of this digest.
    pub fn media_type(&self, repository: &RepositoryKey, manifest: &Digest) -> Option<MediaType> {
        self.links().media_type(repository, manifest).cloned()
    }

    /// What a stored manifest lists; `None` for what is none.
    pub fn children(&self, manifest: &Digest) -> Option<links::Children> {
        self.links().children(manifest)
    }

    /// The media type of a manifest that any repository has.
    pub fn any_media_type(&self, manifest: &Digest) -> Option<MediaType> {
        self.links().any_media_type(manifest).cloned()
    }

    /// Stores a manifest, then records that the repository has it.
    ///
    /// # Errors
    /// When it cannot be written; then nothing is recorded.
    pub async fn put_manifest(self: &Arc<Store>, repository: &RepositoryKey, manifest: &Manifest) -> Result<(), StoreError> {
        let (store, repository, manifest) = (Arc::clone(self), repository.clone(), manifest.clone());
        self.gate.run(move || store.write_manifest(&repository, &manifest)).await
    }

    pub(super) fn write_manifest(self: &Arc<Store>, repository: &RepositoryKey, manifest: &Manifest) -> Result<(), StoreError> {
        let descriptor = manifest.descriptor();
        let lease = |digest| Lease::take(&self.ledger, digest);
        let mut held = lease(descriptor.digest);
        if held.is_none() {
            let mut partial = PartialBlob::of_manifest(self, &repository.upstream, descriptor)?;
            let mut verifier = Verifier::new(&descriptor.digest);
            verifier.update(manifest.bytes());
            let verified = verifier.finish(&descriptor.digest);
            let verified = verified.map_err(|_| StoreError::Incomplete { digest: descriptor.digest, len: descriptor.size })?;
            partial.append(manifest.bytes()).and_then(|()| partial.commit(verified))?;
            held = lease(descriptor.digest);
        }
        // While it is leased it cannot be evicted, so that no record names what is gone.
        let _held = held.ok_or(StoreError::Full)?;
        let path = self.layout.manifest_ref(repository, &descriptor.digest);
        let add = || self.refs.add_manifest(repository, descriptor).map_err(|error| self.write_error("write", &path, error));
        self.with_record_room(add)?;
        let children: links::Children = manifest.children().iter().map(|child| (child.digest, child.size)).collect();
        self.index.put(descriptor.digest, Record { last_used: self.uptime.now(), children: Some(Arc::clone(&children)) });
        let mut links = self.links_mut();
        links.list(descriptor.digest, children);
        links.hold(repository.clone(), descriptor.digest, descriptor.media_type.clone());
        drop(links);
        if !self.contains(&descriptor.digest) {
            // Purged or put aside between the two, which a lease does not stop: the record would name nothing.
            self.links_mut().unhold(repository, &descriptor.digest);
            let removed = self.remove_manifest_ref(repository, &descriptor.digest);
            return removed.map_err(|error| self.write_error("remove", &path, error));
        }
        if self.ledger().is_pinned(&Item::Stored(descriptor.digest)) {
            self.repin();
        }
        self.memory.insert(descriptor.digest, manifest.bytes().clone());
        Ok(())
    }

    /// A manifest was pulled: that is a use of everything it lists, so that an image ages as a whole. The manifest comes
    /// last, since what it lists can't be served without it; by a millisecond, which is what outlives a restart.
    pub fn touch_image(&self, manifest: &Digest) {
        let now = self.uptime.now();
        let item = Item::Stored(*manifest);
        let mut ledger = self.ledger();
        let recently = ledger.last_used(&item).is_some_and(|used| now.since(used) < TOUCH_INTERVAL);
        if recently {
            return;
        }
        let children = self.links().children(manifest);
        for (child, _) in children.iter().flat_map(|children| children.iter()) {
            ledger.touch(&Item::Stored(*child), now);
        }
        ledger.touch(&item, now.plus(Duration::from_millis(1)));
    }

    /// The record of a tag, if it is in RAM.
    pub fn recent_tag(&self, key: &(RepositoryKey, Tag)) -> Option<Arc<TagRecord>> {
        self.refs.recent(key)
    }

    /// The record of a tag.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn tag(self: &Arc<Store>, key: &(RepositoryKey, Tag)) -> Result<Option<Arc<TagRecord>>, StoreError> {
        if let Some(record) = self.recent_tag(key) {
            return Ok(Some(record));
        }
        let (store, key) = (Arc::clone(self), key.clone());
        self.gate
            .run(move || store.refs.tag_if_readable(&key).map_err(|error| io_error("read", &store.layout.tag(&key.0, &key.1), error)))
            .await
    }

    /// The tags of a repository that have records; none when the disk fails.
    pub async fn tags(self: &Arc<Store>, repository: &RepositoryKey) -> Vec<Tag> {
        let (store, repository) = (Arc::clone(self), repository.clone());
        self.gate.run(move || store.refs.tags(&repository)).await.unwrap_or_default()
    }

    /// Writes the record of a tag whose manifest is stored (invariant 12).
    ///
    /// # Errors
    /// When the disk fails; until the next stop the record is known all the same.
    pub async fn put_tag(self: &Arc<Store>, key: &(RepositoryKey, Tag), record: TagRecord) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(self), key.clone());
        self.gate.run(move || store.write_tag(&key, record)).await
    }

    pub(super) fn write_tag(&self, key: &(RepositoryKey, Tag), record: TagRecord) -> Result<(), StoreError> {
        let digest = record.descriptor.digest;
        let _held = Lease::take(&self.ledger, digest).ok_or(StoreError::Full)?;
        let path = self.layout.tag(&key.0, &key.1);
        let write = || self.refs.set_tag(key, record.clone()).map_err(|error| self.write_error("write", &path, error));
        let written = self.with_record_room(write).inspect_err(|_| self.refs.remember_tag(key, record.clone()));
        if self.pins.lock().name(key, digest) {
            self.repin();
        }
        if !self.contains(&digest) {
            // Purged or put aside meanwhile, which a lease does not stop.
            return self.remove_tag(key).map_err(|error| self.write_error("remove", &path, error));
        }
        written
    }

    /// Removes a repository's record of a manifest, the tags that name it, and what they pin.
    pub(super) fn remove_manifest_ref(&self, repository: &RepositoryKey, digest: &Digest) -> io::Result<()> {
        if self.pins.lock().forget_in(repository, digest) {
            self.repin();
        }
        self.refs.drop_manifest(repository, digest)
    }

    /// Removes the record of a tag, and what it pins.
    pub(super) fn remove_tag(&self, key: &(RepositoryKey, Tag)) -> io::Result<()> {
        if self.pins.lock().unname(key) {
            self.repin();
        }
        self.refs.drop_tag(key)
    }

    /// Removes the record of a tag.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn drop_tag(self: &Arc<Store>, key: &(RepositoryKey, Tag)) -> Result<(), StoreError> {
        let (store, key) = (Arc::clone(self), key.clone());
        let path = self.layout.tag(&key.0, &key.1);
        self.gate.run(move || store.remove_tag(&key).map_err(|error| store.write_error("remove", &path, error))).await
    }

    /// When upstream last showed a repository to anybody; `None` also when the disk fails, as then upstream can be asked.
    pub async fn shown(self: &Arc<Store>, repository: &RepositoryKey) -> Option<Timestamp> {
        let (store, repository) = (Arc::clone(self), repository.clone());
        self.gate.run(move || store.refs.shown(&repository)).await.ok().flatten()
    }

    /// Upstream has shown a repository to anybody.
    ///
    /// # Errors
    /// When the disk fails.
    pub async fn set_shown(self: &Arc<Store>, repository: &RepositoryKey, at: Timestamp) -> Result<(), StoreError> {
        let (store, repository) = (Arc::clone(self), repository.clone());
        let write = move || {
            let path = store.layout.shown(&repository);
            store.with_record_room(|| store.refs.set_shown(&repository, at).map_err(|error| store.write_error("write", &path, error)))
        };
        self.gate.run(write).await
    }
}
