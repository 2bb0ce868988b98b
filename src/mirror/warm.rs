//! Warming: an image is made complete here though no client asks for it. Everything goes by the mirror's own ways: its
//! freshness, its rights, one download a digest; what is here and fresh costs no question.

mod parts;
mod words;

pub use words::{Missing, WarmCount, WarmProgress, Warmed};

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::deadline::within;
use super::fetch::{FillError, Interest};
use super::manifest::{ManifestAnswer, Want};
use super::membership::Membership;
use super::{Asked, Error, Mirror, Repository};
use crate::labels::Outcome;
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Platform, Reference};
use crate::store::Store;
use parts::Parts;

/// Images at a time, of one who asks.
const IMAGES_MAX: usize = 4;
/// For a manifest: upstream has 25 s for each of the questions about it, of which there are three at most.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(80);
/// For a blob's headers, the wait for its turn included.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(60);

const UNSTORED: &str = "it could not be stored or kept: there is no room, or the disk fails, as the log says";

/// Which images of an index are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// Whatever it lists, attestations too.
    All,
    These(Vec<Platform>),
    /// Those of which something is here, and these as far as it has them; where that is none, the machine's own.
    Kept(Vec<Platform>),
}

impl Platforms {
    /// What an operator has written; nothing means the machine's own.
    ///
    /// # Errors
    /// One line: what is wrong, and how to write it.
    pub fn parse(texts: &[String]) -> Result<Platforms, String> {
        if texts.iter().any(|text| text == "all") {
            return Ok(Platforms::All);
        }
        let parsed = texts.iter().map(|text| text.parse().map_err(|error| format!("{error}, or all")));
        let these = parsed.collect::<Result<Vec<Platform>, String>>()?;
        Ok(Platforms::These(if these.is_empty() { vec![Platform::of_this_machine()] } else { these }))
    }
}

/// An image by its name.
#[derive(Clone)]
pub struct Image {
    pub repository: Repository,
    pub reference: Reference,
}

impl Image {
    /// The image of a canonical name: `host/name:tag` or `host/name@digest`.
    ///
    /// # Errors
    /// One line: what is wrong with it.
    pub fn parse(text: &str, repositories: &super::Repositories) -> Result<Image, String> {
        let (host, rest) = text.split_once('/').ok_or_else(|| format!("`{text}` names no registry"))?;
        let (name, reference) = match rest.split_once('@') {
            Some((name, digest)) => {
                (name, digest.parse().map(Reference::Digest).map_err(|error| format!("`{digest}` is no digest: {error}")))
            }
            None => {
                let (name, tag) = rest.rsplit_once(':').ok_or_else(|| format!("`{text}` names no tag"))?;
                (name, tag.parse().map(Reference::Tag).map_err(|error: crate::oci::InvalidName| error.to_string()))
            }
        };
        let name = name.parse().map_err(|error: crate::oci::InvalidName| error.to_string())?;
        let repository = repositories.named(host, &name).ok_or_else(|| format!("`{host}` is not one of the daemon's upstreams"))?;
        Ok(Image { repository, reference: reference? })
    }
}

impl std::fmt::Display for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let between = if matches!(self.reference, Reference::Digest(_)) { '@' } else { ':' };
        write!(f, "{}/{}{between}{}", self.repository.upstream_name(), self.repository.name(), self.reference)
    }
}

impl Mirror {
    /// Makes images complete, as far as that can be done, and tells of each what came of it, in their order. Who stops waiting
    /// stops it: downloads under way go on, and none begins.
    pub async fn warm(self: &Arc<Mirror>, images: Vec<Image>, platforms: &Platforms, count: &Arc<WarmCount>) -> Vec<Warmed> {
        count.expect(images.len());
        let places = Arc::new(Semaphore::new(IMAGES_MAX));
        let mut warmed: Vec<Warmed> = images.iter().map(|image| Warmed::of(image.to_string())).collect();
        let mut tasks = JoinSet::new();
        for (at, image) in images.iter().cloned().enumerate() {
            let (mirror, platforms, count, places) = (Arc::clone(self), platforms.clone(), Arc::clone(count), Arc::clone(&places));
            tasks.spawn(async move {
                let _place = places.acquire_owned().await;
                let warmed = mirror.warm_one(&image, &platforms, &count).await;
                count.image_done();
                (at, warmed)
            });
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((at, one)) => warmed[at] = one,
                Err(error) => tracing::error!(%error, "the task of an image ended"),
            }
        }
        for one in warmed.iter_mut().filter(|one| !one.complete && one.missing.is_empty()) {
            one.fail(Missing::because("larder failed, as its log says"));
        }
        // The last may have pushed out the first.
        for (one, image) in warmed.iter_mut().zip(&images).filter(|(one, _)| one.complete) {
            if !self.is_complete(image, platforms).await {
                one.fail(Missing::because("it was evicted for another: all of this together does not fit into cache.max_size"));
            }
        }
        warmed
    }

    async fn warm_one(self: &Arc<Mirror>, image: &Image, platforms: &Platforms, count: &Arc<WarmCount>) -> Warmed {
        let mut warmed = Warmed::of(image.to_string());
        let (answer, manifest) = match self.whole_manifest(image).await {
            Ok(found) => found,
            Err(error) => return warmed.failed(Missing::because(words::error(&error, "image"))),
        };
        let Descriptor { digest, size, .. } = *manifest.descriptor();
        warmed.digest = Some(digest.to_string());
        if let Outcome::Stale(reason) = answer.outcome {
            warmed.note = Some(words::stale(reason, image.repository.upstream_name()));
        }
        if !self.is_own_manifest(&image.repository, &digest) {
            warmed.needs_bytes = Store::cost(size) + Store::record_cost();
            return warmed.failed(Missing::of(digest, size, UNSTORED));
        }
        let Parts { manifests, blobs, missing } = self.parts(&image.repository, manifest, platforms, parts::Way::Ask).await;
        missing.into_iter().for_each(|missing| warmed.fail(missing));
        self.warm_blobs(image, blobs, count, &mut warmed).await;
        // The images first, then what lists them, so that they age as a whole.
        manifests.iter().rev().for_each(|manifest| self.store.touch_image(manifest));
        warmed.complete = warmed.missing.is_empty();
        warmed
    }

    /// The manifest of an image, on upstream's word as far as that is to be had: nobody waits here who had better be served.
    async fn whole_manifest(self: &Arc<Mirror>, image: &Image) -> Result<(ManifestAnswer, Manifest), Error> {
        let Image { repository, reference } = image;
        let find = || within(repository, Instant::now() + MANIFEST_TIMEOUT, self.find_manifest(repository, reference, Want::Body));
        let mut answer = find().await?;
        if let (Outcome::Stale(_), Reference::Tag(tag)) = (answer.outcome, reference)
            && let Some(pending) = self.checks.running(&(repository.key.clone(), tag.clone()))
        {
            let _ = pending.answer().await;
            answer = find().await?;
        }
        let Descriptor { media_type, digest, .. } = &answer.descriptor;
        let bytes = answer.bytes.clone().ok_or_else(|| self.gone(repository))?;
        let manifest = Manifest::verified(bytes, Some(media_type.as_str()), digest).map_err(|_| self.gone(repository))?;
        Ok((answer, manifest))
    }

    /// Downloads what is not here, if all of it can be stored: a part of an image is of no use to anybody.
    async fn warm_blobs(self: &Arc<Mirror>, image: &Image, blobs: Vec<Descriptor>, count: &Arc<WarmCount>, warmed: &mut Warmed) {
        let (mut held, mut wanted) = (Vec::new(), Vec::new());
        for blob in blobs {
            match self.is_at_hand(&image.repository, &blob.digest).await {
                Ok(true) => held.push(blob),
                Ok(false) if self.store.takes(blob.size).is_err() => {
                    warmed.fail(Missing::of(blob.digest, blob.size, "it is larger than cache.max_blob_size"));
                }
                Ok(false) => wanted.push(blob),
                Err(error) => warmed.fail(Missing::of(blob.digest, blob.size, words::error(&error, "blob"))),
            }
        }
        warmed.held_bytes = held.iter().map(|blob| blob.size).sum();
        let cost: u64 = wanted.iter().map(|blob| Store::cost(blob.size)).sum();
        let beside = held.iter().map(|blob| blob.digest).collect();
        if !wanted.is_empty() && !self.store.has_room_beside(cost, beside).await {
            warmed.needs_bytes = cost;
            let why = "there is no room for all of the image: raise cache.max_size, or make room on the disk";
            return wanted.iter().for_each(|blob| warmed.fail(Missing::of(blob.digest, blob.size, why)));
        }
        let mut tasks = JoinSet::new();
        for blob in wanted {
            let (mirror, repository, count) = (Arc::clone(self), image.repository.clone(), Arc::clone(count));
            tasks.spawn(async move {
                let downloaded = mirror.download(&repository, &blob, &count).await;
                (blob, downloaded)
            });
        }
        while let Some(done) = tasks.join_next().await {
            match done {
                Ok((blob, Ok(Came::Own(bytes)))) => {
                    warmed.fetched_bytes += bytes;
                    warmed.held_bytes += blob.size - bytes.min(blob.size);
                }
                Ok((blob, Ok(Came::Otherwise))) => warmed.held_bytes += blob.size,
                Ok((blob, Err(why))) => warmed.fail(Missing::of(blob.digest, blob.size, why)),
                Err(error) => warmed.fail(Missing::because(format!("a download's task ended: {error}"))),
            }
        }
    }

    /// Whether a blob is stored, and this repository may have it; upstream is asked where that is in doubt.
    async fn is_at_hand(self: &Arc<Mirror>, repository: &Repository, digest: &Digest) -> Result<bool, Error> {
        if !self.store.contains(digest) {
            return Ok(false);
        }
        if !self.membership(repository, digest).is_member() {
            self.confirm(repository, digest).await?;
        }
        Ok(true)
    }

    /// Downloads a blob, or waits for the download that is under way. The error is in an operator's words.
    async fn download(self: &Arc<Mirror>, repository: &Repository, blob: &Descriptor, count: &WarmCount) -> Result<Came, String> {
        let told = |error: Error| words::error(&error, "blob");
        let _of_upstream = repository.source.warming.acquire().await;
        let _of_all = self.warming.acquire().await;
        self.fills.calm().await;
        let asked = Asked::Blob(blob.digest);
        self.remembered(repository, &asked).map_err(told)?;
        let opening = async { Ok(self.fills.open(repository, &blob.digest, Interest::Stored).await) };
        let download = match within(repository, Instant::now() + HEADERS_TIMEOUT, opening).await.map_err(told)? {
            Ok(Some(download)) => download,
            Ok(None) => return Ok(Came::Otherwise),
            Err(FillError::Unstored(reason)) => return Err(words::bypass(reason)),
            Err(error) => return Err(told(self.told(repository, asked, error.into_error(repository.upstream_name())))),
        };
        let is_own = !download.was_joined;
        let counted = |bytes| {
            if is_own {
                count.fetched(bytes)
            }
        };
        let bytes = download.stored(counted).await.map_err(words::bypass)?;
        if !self.store.contains(&blob.digest) {
            let failed = |failure: FillError| told(failure.into_error(repository.upstream_name()));
            return Err(download.failure().map_or_else(|| UNSTORED.into(), failed));
        }
        // It may have come long after its headers.
        self.entitle(repository, &blob.digest, &download).await.map_err(told)?;
        Ok(if is_own { Came::Own(bytes) } else { Came::Otherwise })
    }

    /// Whether an image is here with all that these platforms take of it; nobody is asked.
    pub(super) async fn is_complete(self: &Arc<Mirror>, image: &Image, platforms: &Platforms) -> bool {
        let Some(manifest) = self.held(image).await else { return false };
        let Parts { blobs, missing, .. } = self.parts(&image.repository, manifest, platforms, parts::Way::Look).await;
        let is_doubtful = |digest: &Digest| matches!(self.membership(&image.repository, digest), Membership::Doubtful { .. });
        missing.is_empty() && blobs.iter().all(|blob| self.store.contains(&blob.digest) && !is_doubtful(&blob.digest))
    }

    /// The manifest that is here for an image.
    pub(super) async fn held(self: &Arc<Mirror>, image: &Image) -> Option<Manifest> {
        let digest = match &image.reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(tag) => {
                let key = (image.repository.key.clone(), tag.clone());
                self.store.tag(&key).await.ok()??.descriptor.digest
            }
        };
        self.held_part(&image.repository, &digest).await
    }

    /// A manifest that is here for a repository.
    async fn held_part(&self, repository: &Repository, digest: &Digest) -> Option<Manifest> {
        let media_type: MediaType = self.store.media_type(&repository.key, digest).filter(|_| self.store.contains(digest))?;
        let bytes = self.store.manifest(digest).await.ok()??;
        Manifest::verified(bytes, Some(media_type.as_str()), digest).ok()
    }
}

/// How a blob came that was not here.
enum Came {
    /// So many bytes were downloaded for this; the others were here, from a download that broke off.
    Own(u64),
    /// By somebody else's download.
    Otherwise,
}
