//! What the registry holds. Content made from a seed is the same in every run.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use larder::oci::{Algorithm, Digest, MediaType};
use serde_json::{Value, json};

/// Bytes and their name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    pub digest: Digest,
    pub bytes: Bytes,
}

/// A manifest, of one image or of an index, as it was pushed.
#[derive(Clone, Debug)]
pub struct Image {
    pub digest: Digest,
    pub bytes: Bytes,
    pub media_type: &'static str,
    /// An index has none.
    pub config: Option<Blob>,
    pub layers: Vec<Blob>,
}

/// One family of media types.
pub(super) struct Format {
    index: &'static str,
    manifest: &'static str,
    config: &'static str,
    layer: &'static str,
}

pub(super) const OCI: Format = Format {
    index: MediaType::OCI_INDEX,
    manifest: MediaType::OCI_MANIFEST,
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar+gzip",
};

pub(super) const DOCKER: Format = Format {
    index: MediaType::DOCKER_LIST,
    manifest: MediaType::DOCKER_MANIFEST,
    config: "application/vnd.docker.container.image.v1+json",
    layer: "application/vnd.docker.image.rootfs.diff.tar.gzip",
};

/// The platforms of an index's images, in order; further ones have Windows versions in the field and "unknown" here.
const ARCHITECTURES: [&str; 5] = ["amd64", "arm64", "arm", "s390x", "ppc64le"];

#[derive(Clone)]
pub struct StoredManifest {
    pub media_type: String,
    pub digest: Digest,
    pub bytes: Bytes,
}

#[derive(Default)]
pub struct Repository {
    pub blobs: HashSet<Digest>,
    pub manifests: HashMap<Digest, StoredManifest>,
    pub tags: BTreeMap<String, Digest>,
}

/// Blobs are stored once, and belong to the repositories they were pushed to.
#[derive(Default)]
pub struct Content {
    blobs: HashMap<Digest, Bytes>,
    repositories: HashMap<String, Repository>,
}

impl Content {
    pub fn repository(&self, name: &str) -> Option<&Repository> {
        self.repositories.get(name)
    }

    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.repository(repository).filter(|repository| repository.blobs.contains(digest))?;
        self.blobs.get(digest).cloned()
    }

    /// Whoever's it is.
    pub fn any_blob(&self, digest: &Digest) -> Option<Bytes> {
        self.blobs.get(digest).cloned()
    }

    /// A reference with a colon is a digest.
    pub fn manifest(&self, repository: &str, reference: &str) -> Option<StoredManifest> {
        let repository = self.repository(repository)?;
        let digest = reference.parse().ok().or_else(|| repository.tags.get(reference).copied())?;
        repository.manifests.get(&digest).cloned()
    }

    fn change(&mut self, repository: &str) -> &mut Repository {
        self.repositories.entry(repository.to_owned()).or_default()
    }

    pub(super) fn push_blob(&mut self, algorithm: Algorithm, repository: &str, bytes: Bytes) -> Blob {
        let digest = Digest::of(algorithm, &bytes);
        self.change(repository).blobs.insert(digest);
        self.blobs.insert(digest, bytes.clone());
        Blob { digest, bytes }
    }

    pub(super) fn push_manifest(&mut self, repository: &str, tag: Option<&str>, media_type: &str, digest: Digest, bytes: Bytes) {
        let repository = self.change(repository);
        repository.manifests.insert(digest, StoredManifest { media_type: media_type.into(), digest, bytes });
        if let Some(tag) = tag {
            repository.tags.insert(tag.into(), digest);
        }
    }

    pub(super) fn push_image(
        &mut self,
        format: &Format,
        algorithm: Algorithm,
        repository: &str,
        tag: &str,
        layer_sizes: &[usize],
        seed: u64,
    ) -> Image {
        let mut random = fastrand::Rng::with_seed(seed);
        let layers: Vec<Blob> =
            layer_sizes.iter().map(|size| self.push_blob(algorithm, repository, random_bytes(&mut random, *size))).collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| layer.digest.to_string()).collect();
        let config = json!({ "architecture": "amd64", "os": "linux", "seed": seed, "rootfs": { "type": "layers", "diff_ids": diff_ids } });
        let config = self.push_blob(algorithm, repository, config.to_string().into());
        let document = json!({
            "schemaVersion": 2,
            "mediaType": format.manifest,
            "config": descriptor(format.config, &config.digest, config.bytes.len()),
            "layers": layers.iter().map(|layer| descriptor(format.layer, &layer.digest, layer.bytes.len())).collect::<Vec<_>>(),
        });
        self.finish(format.manifest, algorithm, repository, tag, &document, Some(config), layers)
    }

    pub(super) fn push_index(&mut self, format: &Format, repository: &str, tag: &str, images: &[Image]) -> Image {
        let entries = images.iter().enumerate().map(|(at, image)| {
            let mut entry = descriptor(image.media_type, &image.digest, image.bytes.len());
            entry["platform"] = json!({ "architecture": ARCHITECTURES.get(at).unwrap_or(&"unknown"), "os": "linux" });
            entry
        });
        let document = json!({ "schemaVersion": 2, "mediaType": format.index, "manifests": entries.collect::<Vec<_>>() });
        self.finish(format.index, Algorithm::Sha256, repository, tag, &document, None, Vec::new())
    }

    #[expect(clippy::too_many_arguments, reason = "the last step of two functions, with all they have made")]
    fn finish(
        &mut self,
        media_type: &'static str,
        algorithm: Algorithm,
        repository: &str,
        tag: &str,
        document: &Value,
        config: Option<Blob>,
        layers: Vec<Blob>,
    ) -> Image {
        let bytes = Bytes::from(serde_json::to_vec_pretty(document).expect("a value prints"));
        let digest = Digest::of(algorithm, &bytes);
        self.push_manifest(repository, Some(tag), media_type, digest, bytes.clone());
        Image { digest, bytes, media_type, config, layers }
    }

    pub(super) fn move_tag(&mut self, repository: &str, tag: &str, to: Digest) {
        let repository = self.change(repository);
        assert!(repository.manifests.contains_key(&to), "a tag can only move to a manifest that was pushed");
        repository.tags.insert(tag.into(), to);
    }

    pub(super) fn delete_tag(&mut self, repository: &str, tag: &str) {
        self.change(repository).tags.remove(tag).expect("a tag that exists");
    }

    pub(super) fn delete_blob(&mut self, repository: &str, digest: Digest) {
        assert!(self.change(repository).blobs.remove(&digest), "a blob that exists");
    }

    /// As in Distribution, the tags that name it go with it.
    pub(super) fn delete_manifest(&mut self, repository: &str, digest: Digest) {
        let repository = self.change(repository);
        repository.manifests.remove(&digest).expect("a manifest that exists");
        repository.tags.retain(|_, named| *named != digest);
    }
}

fn descriptor(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({ "mediaType": media_type, "digest": digest.to_string(), "size": size })
}

fn random_bytes(random: &mut fastrand::Rng, size: usize) -> Bytes {
    let mut bytes = vec![0; size];
    random.fill(&mut bytes);
    bytes.into()
}
