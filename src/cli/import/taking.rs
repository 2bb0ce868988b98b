//! The work of an import: image by image, the newest tag first; of each its blobs, then its manifests, then its tags, so
//! that an end at any moment leaves nothing that names what is not there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use super::summary::Summary;
use super::tree::Tree;
use crate::clock::{Clock, Timestamp};
use crate::config::{CacheConfig, UpstreamConfig};
use crate::oci::{Digest, Manifest, Tag, registries};
use crate::store::{BlobError, RepositoryKey, Store, StoreError, TagRecord};
use crate::units;

const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// A repository of the registry, as larder will name it.
struct Source {
    key: RepositoryKey,
    revisions: HashMap<Digest, SystemTime>,
    /// What upstream has given it.
    layers: HashSet<Digest>,
}

/// A manifest to take, with what it lists.
struct Image {
    source: usize,
    root: Digest,
    tags: Vec<(Tag, SystemTime)>,
    newest: SystemTime,
}

/// What became of an image.
enum Took {
    /// All of it that is there and good, maybe none.
    Done,
    /// There is no room for it.
    Full,
}

pub(super) struct Taking<'a> {
    tree: &'a Tree,
    store: Arc<Store>,
    cache: &'a CacheConfig,
    upstream: &'a UpstreamConfig,
    name: Arc<str>,
    clock: Clock,
    copy: bool,
    tell: &'a mut dyn FnMut(&str),
    told: Instant,
    /// Images done, and how many there are.
    progress: (usize, usize),
    summary: Summary,
    blobs_seen: HashSet<Digest>,
    manifests_seen: HashSet<(usize, Digest)>,
    /// The manifests of all that was taken or completed, the newest first.
    taken: Vec<Digest>,
}

impl<'a> Taking<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        store: Arc<Store>,
        (cache, upstream): (&'a CacheConfig, &'a UpstreamConfig),
        clock: Clock,
        copy: bool,
        tell: &'a mut dyn FnMut(&str),
    ) -> Taking<'a> {
        let name = upstream.name.as_str().into();
        let (blobs_seen, manifests_seen) = (HashSet::new(), HashSet::new());
        let (told, summary, taken) = (Instant::now(), Summary::default(), Vec::new());
        Taking { tree, store, cache, upstream, name, clock, copy, tell, told, progress: (0, 0), summary, blobs_seen, manifests_seen, taken }
    }

    /// # Errors
    /// When a disk fails in a way that concerns more than one file.
    pub(super) fn run(&mut self) -> Result<(), super::ImportError> {
        let (sources, images) = self.survey()?;
        let total = images.len();
        for (done, image) in images.iter().enumerate() {
            self.progress = (done, total);
            if let Took::Full = self.take(&sources, image)? {
                self.summary.images_left_out = (total - done) as u64;
                return Ok(());
            }
        }
        self.progress = (total, total);
        self.take_the_rest(&sources)?;
        Ok(())
    }

    /// Puts what was taken into its order of use, and tells what it was.
    pub(super) fn end(mut self) -> Summary {
        self.taken.reverse();
        self.store.rank_images(&self.taken);
        self.summary
    }

    /// What there is: first what has tags, by the newest of them; then what has none.
    fn survey(&mut self) -> io::Result<(Vec<Source>, Vec<Image>)> {
        let (mut sources, mut images): (Vec<Source>, Vec<Image>) = (Vec::new(), Vec::new());
        for name in self.tree.repositories()? {
            let Some(key) = self.key(&name) else {
                self.problem(format!("{name}: not a repository's name"));
                continue;
            };
            let revisions = self.tree.revisions(&name)?.into_iter().map(|link| (link.digest, link.written)).collect();
            let layers = self.tree.layers(&name)?.into_iter().map(|link| link.digest).collect();
            let mut tagged: HashMap<Digest, Vec<(Tag, SystemTime)>> = HashMap::new();
            for (tag, link) in self.tree.tags(&name)? {
                tagged.entry(link.digest).or_default().push((tag, link.written));
            }
            let source = sources.len();
            images.extend(tagged.into_iter().map(|(root, tags)| {
                let newest = tags.iter().map(|(_, written)| *written).max().unwrap_or(SystemTime::UNIX_EPOCH);
                Image { source, root, tags, newest }
            }));
            sources.push(Source { key, revisions, layers });
        }
        let tagged: HashSet<_> = images.iter().map(|image| (image.source, image.root)).collect();
        for (source, content) in sources.iter().enumerate() {
            let untagged = content.revisions.iter().filter(|(digest, _)| !tagged.contains(&(source, **digest)));
            images.extend(untagged.map(|(root, written)| Image { source, root: *root, tags: Vec::new(), newest: *written }));
        }
        images.sort_by(|a, b| (a.tags.is_empty(), b.newest, a.root).cmp(&(b.tags.is_empty(), a.newest, b.root)));
        Ok((sources, images))
    }

    /// As larder names it: Docker Hub's official images have a first component, whether the old registry was told or not.
    fn key(&self, name: &str) -> Option<RepositoryKey> {
        let name = registries::full_repository(&self.name, name).parse().ok()?;
        Some(RepositoryKey { upstream: Arc::clone(&self.name), name })
    }

    fn take(&mut self, sources: &[Source], image: &Image) -> Result<Took, StoreError> {
        let source = &sources[image.source];
        let manifests = self.manifests(source, image);
        let Some(root) = manifests.last().filter(|manifest| manifest.descriptor().digest == image.root) else {
            self.summary.tags.skipped += image.tags.len() as u64;
            return Ok(Took::Done);
        };
        let descriptor = root.descriptor().clone();
        let cost = self.cost(source, image, &manifests);
        if cost > 0 && !self.store.has_room(cost) {
            return Ok(Took::Full);
        }
        let mut anything = false;
        for manifest in &manifests {
            for digest in blobs(manifest) {
                match self.take_blob(source, &digest) {
                    Ok(new) => anything |= new,
                    Err(StoreError::Full) => return Ok(self.disk_full()),
                    Err(error) => return Err(error),
                }
            }
        }
        for manifest in &manifests {
            let first = self.manifests_seen.insert((image.source, manifest.descriptor().digest));
            match self.store.import_manifest(&source.key, manifest) {
                Ok(true) => {
                    anything = true;
                    self.summary.manifests.taken += 1;
                    self.summary.bytes += manifest.descriptor().size;
                }
                Ok(false) => self.summary.manifests.present += u64::from(first),
                Err(StoreError::Full) => return Ok(self.disk_full()),
                Err(error) => return Err(error),
            }
        }
        let now = self.clock.now();
        for (tag, written) in &image.tags {
            let record = TagRecord::new(descriptor.clone(), checked_at((*written).into(), now, self.upstream.tag_ttl));
            let taken = match self.store.import_tag(&(source.key.clone(), tag.clone()), record) {
                Err(StoreError::Full) => return Ok(self.disk_full()),
                taken => taken?,
            };
            *if taken { &mut self.summary.tags.taken } else { &mut self.summary.tags.present } += 1;
        }
        if anything {
            self.taken.extend(manifests.iter().rev().map(|manifest| manifest.descriptor().digest));
        }
        Ok(Took::Done)
    }

    /// A manifest and, before it, those that it lists and the repository has; none if another image brought it already.
    fn manifests(&mut self, source: &Source, image: &Image) -> Vec<Manifest> {
        let (mut found, mut visited) = (Vec::new(), HashSet::new());
        let mut wanted = vec![image.root];
        while let Some(digest) = wanted.pop() {
            // A tag may name again what an index of this repository has brought.
            let again = digest == image.root && !image.tags.is_empty();
            let skip = !again && self.manifests_seen.contains(&(image.source, digest));
            if skip || !source.revisions.contains_key(&digest) || !visited.insert(digest) {
                continue;
            }
            match self.read(&digest) {
                Ok(manifest) => {
                    if manifest.descriptor().media_type.is_index() {
                        wanted.extend(manifest.children().iter().map(|child| child.digest));
                    }
                    found.push(manifest);
                }
                Err(why) if self.manifests_seen.insert((image.source, digest)) => {
                    self.summary.manifests.skipped += 1;
                    self.problem(format!("{}@{digest}: {why}", source.key.name));
                }
                Err(_) => {}
            }
        }
        found.reverse();
        found
    }

    fn read(&self, digest: &Digest) -> Result<Manifest, String> {
        let bytes = self.tree.manifest(digest).map_err(|error| error.to_string())?;
        Manifest::verified(Bytes::from(bytes), None, digest).map_err(|error| error.to_string())
    }

    /// What the cache will hold more than now.
    fn cost(&self, source: &Source, image: &Image, manifests: &[Manifest]) -> u64 {
        let mut wanted: HashMap<Digest, u64> = HashMap::new();
        for manifest in manifests {
            wanted.insert(manifest.descriptor().digest, manifest.descriptor().size);
            wanted.extend(blobs(manifest).filter_map(|digest| Some((digest, self.tree.blob_len(&digest)?))));
        }
        let new = wanted.into_iter().filter(|(digest, len)| *len <= self.cache.max_blob_size && !self.store.contains(digest));
        let files: u64 = new.map(|(_, len)| Store::cost(len)).sum();
        let is_new = |manifest: &&Manifest| self.store.media_type(&source.key, &manifest.descriptor().digest).is_none();
        let records = match manifests.iter().filter(is_new).count() {
            0 => 0,
            new => new + image.tags.len(),
        };
        files + Store::record_cost() * records as u64
    }

    /// `true` when it was taken over now.
    fn take_blob(&mut self, source: &Source, digest: &Digest) -> Result<bool, StoreError> {
        self.tell_progress();
        let first = self.blobs_seen.insert(*digest);
        let new = first && !self.store.contains(digest) && self.import(digest)?;
        if first && !new && self.store.contains(digest) {
            self.summary.blobs.present += 1;
        }
        if source.layers.contains(digest) && self.store.contains(digest) {
            self.store.import_confirmation(&self.name, digest);
        }
        Ok(new)
    }

    fn import(&mut self, digest: &Digest) -> Result<bool, StoreError> {
        if self.tree.blob_len(digest).is_none() {
            self.summary.blobs.missing += 1;
            return Ok(false);
        }
        let path = self.tree.blob(digest);
        match self.store.import_blob(&self.name, digest, &path, self.copy) {
            Ok((way, len)) => {
                self.summary.took(way, len);
                return Ok(true);
            }
            Err(BlobError::Store(StoreError::TooLarge)) => self.summary.blobs.too_large += 1,
            Err(BlobError::Store(error)) => return Err(error),
            Err(error @ (BlobError::Damaged | BlobError::Unreadable(_))) => {
                self.summary.blobs.damaged += 1;
                self.problem(format!("{}: {error}", path.display()));
            }
        }
        Ok(false)
    }

    /// What upstream has given, and no manifest lists at present: one that comes will.
    fn take_the_rest(&mut self, sources: &[Source]) -> Result<(), StoreError> {
        for source in sources {
            for digest in &source.layers {
                let cost = self.tree.blob_len(digest).map_or(0, Store::cost);
                if !self.store.contains(digest) && !self.store.has_room(cost) {
                    return Ok(());
                }
                match self.take_blob(source, digest) {
                    Err(StoreError::Full) => return Ok(()),
                    taken => taken?,
                };
            }
        }
        Ok(())
    }

    fn disk_full(&mut self) -> Took {
        self.problem("the disk has no more room".to_owned());
        Took::Full
    }

    fn problem(&mut self, problem: String) {
        (self.tell)(&problem);
        self.summary.problem(problem);
    }

    fn tell_progress(&mut self) {
        if self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            let (done, total) = self.progress;
            (self.tell)(&format!("{done} of {total} images, {} taken", units::size(self.summary.bytes)));
        }
    }
}

/// What a manifest lists that is no manifest.
fn blobs(manifest: &Manifest) -> impl Iterator<Item = Digest> {
    let children = if manifest.descriptor().media_type.is_index() { &[] } else { manifest.children() };
    children.iter().map(|child| child.digest)
}

/// When upstream last confirmed a tag, as far as the registry's file tells; never so late that the first pull would not ask.
fn checked_at(written: Timestamp, now: Timestamp, tag_ttl: Duration) -> Timestamp {
    let expired = Timestamp(now.0.saturating_sub(u64::try_from(tag_ttl.as_millis()).unwrap_or(u64::MAX)));
    written.min(expired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_comes_as_expired_and_no_older_than_it_is() {
        let (now, ttl) = (Timestamp(1_000_000), Duration::from_secs(300));
        for (written, expected) in [(5, 5), (999_999, 700_000), (700_001, 700_000), (2_000_000, 700_000)] {
            assert_eq!(checked_at(Timestamp(written), now, ttl), Timestamp(expected), "{written}");
        }
        assert_eq!(checked_at(now, now, Duration::ZERO), now);
        assert_eq!(checked_at(now, now, Duration::MAX), Timestamp(0));
    }
}
