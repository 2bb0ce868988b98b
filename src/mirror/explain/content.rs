//! What is here of an image, and when it would go.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::explanation::{Blobs, Content, Eviction, Image, Pin};
use crate::mirror::membership::Membership;
use crate::mirror::{Mirror, Repository, freshness};
use crate::oci::{Descriptor, Digest, Manifest};

/// Of an index, what tells its images apart.
#[derive(Default, Deserialize)]
struct Index {
    #[serde(default)]
    manifests: Vec<Listed>,
}

#[derive(Deserialize)]
struct Listed {
    digest: String,
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Platform {
    os: String,
    architecture: String,
    variant: Option<String>,
}

impl Mirror {
    /// What is here of a manifest and all it lists.
    pub(super) async fn explain_manifest(&self, repository: &Repository, descriptor: &Descriptor) -> Content {
        let digest = descriptor.digest;
        let is_whole = self.content(repository, descriptor).await == freshness::Content::Whole;
        let (mut images, mut platforms_missing) = (Vec::new(), Vec::new());
        if descriptor.media_type.is_index() {
            let platforms = self.platforms(&digest).await;
            for (child, _) in self.store.children(&digest).iter().flat_map(|children| children.iter()) {
                let platform = platforms.get(child).cloned();
                if self.may_serve_manifest(repository, child) {
                    images.push(self.explain_image(repository, child, platform).await);
                } else {
                    platforms_missing.push(platform.unwrap_or_else(|| child.to_string()));
                }
            }
        } else {
            images.push(self.explain_image(repository, &digest, None).await);
        }
        let all = self.closure(&digest);
        Content {
            digest: digest.to_string(),
            media_type: Some(descriptor.media_type.to_string()),
            bytes: all.iter().map(|digest| self.store.holding(repository.upstream_name(), digest).allocated).sum(),
            is_whole,
            images,
            platforms_missing,
            others: self.store.others_with(&repository.key, &all),
        }
    }

    /// What is here of a blob.
    pub(super) fn explain_blob(&self, repository: &Repository, digest: &Digest) -> Content {
        Content {
            digest: digest.to_string(),
            media_type: None,
            bytes: self.store.holding(repository.upstream_name(), digest).allocated,
            is_whole: true,
            images: Vec::new(),
            platforms_missing: Vec::new(),
            others: self.store.others_with(&repository.key, &[*digest]),
        }
    }

    pub(super) fn explain_eviction(&self, digest: &Digest) -> Eviction {
        let first = self.store.first_to_go(&self.closure(digest));
        let pins = self.store.pinned_by(digest).into_iter().map(|(pin, tag)| Pin { pin, tag: tag.to_string() });
        Eviction {
            first: first.and_then(|first| self.store.place(&first)),
            named: self.store.place(digest),
            unused_after_seconds: self.store.evicts_unused_after().map(|after| after.as_secs()),
            pins: pins.collect(),
        }
    }

    async fn explain_image(&self, repository: &Repository, manifest: &Digest, platform: Option<String>) -> Image {
        let mut image = Image {
            digest: manifest.to_string(),
            platform,
            is_whole: self.is_whole(repository, manifest).await,
            held: Blobs::default(),
            missing: Blobs::default(),
            foreign: 0,
            arriving: 0,
            doubtful: 0,
            partial_bytes: 0,
        };
        // A layer may stand there twice, and is here once.
        let children: BTreeMap<Digest, u64> = self.store.children(manifest).iter().flat_map(|children| children.iter()).copied().collect();
        let mut missing = Vec::new();
        for (child, size) in children {
            let holding = self.store.holding(repository.upstream_name(), &child);
            let is_held = self.store.contains(&child);
            let blobs = if is_held { &mut image.held } else { &mut image.missing };
            blobs.count += 1;
            blobs.bytes += size;
            if is_held {
                blobs.allocated += holding.allocated;
                image.doubtful += u64::from(matches!(self.membership(repository, &child), Membership::Doubtful { .. }));
            } else {
                image.partial_bytes += holding.partial;
                image.arriving += u64::from(self.fills.running(repository, &child).is_some());
                missing.push(child);
            }
        }
        image.foreign = self.foreign(manifest, &missing).await;
        image
    }

    /// How many of these clients get from elsewhere.
    async fn foreign(&self, manifest: &Digest, missing: &[Digest]) -> u64 {
        if missing.is_empty() {
            return 0;
        }
        let Some(bytes) = self.peek_manifest(manifest).await else { return 0 };
        let Ok(manifest) = Manifest::verified(bytes, None, manifest) else { return 0 };
        let is_foreign = |digest: &&Digest| {
            let mut listed = manifest.children().iter().filter(|child| child.digest == **digest);
            listed.any(|child| child.media_type.is_foreign())
        };
        missing.iter().filter(is_foreign).count() as u64
    }

    /// The platforms of an index's images.
    async fn platforms(&self, index: &Digest) -> BTreeMap<Digest, String> {
        let bytes = self.peek_manifest(index).await;
        let index: Index = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let platform = |listed: Listed| {
            let Platform { os, architecture, variant } = listed.platform?;
            let variant = variant.map(|variant| format!("/{variant}")).unwrap_or_default();
            Some((listed.digest.parse().ok()?, format!("{os}/{architecture}{variant}")))
        };
        index.manifests.into_iter().filter_map(platform).collect()
    }

    /// A manifest with all it lists, directly or by a manifest that it lists; each once.
    fn closure(&self, manifest: &Digest) -> Vec<Digest> {
        let below = |digest: &Digest| -> Vec<Digest> {
            self.store.children(digest).iter().flat_map(|children| children.iter()).map(|(child, _)| *child).collect()
        };
        let children = below(manifest);
        let mut all: Vec<Digest> = children.iter().flat_map(below).chain(children.iter().copied()).chain([*manifest]).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
