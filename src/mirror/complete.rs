//! What of a held tag's content is here. Asked only when a tag is about to be served stale, so that nobody is sent for
//! layers that are nowhere to be had: podman, CRI-O, kaniko and Jib don't look elsewhere once they have the manifest.

use std::sync::Arc;

use bytes::Bytes;

use super::freshness::Content;
use super::membership::Membership;
use super::{Mirror, Repository};
use crate::oci::{Descriptor, Digest, Manifest};

impl Mirror {
    /// An image is whole with all its blobs, an index with one whole image: which platforms are wanted here, only what was
    /// pulled can tell.
    pub(super) async fn content(&self, repository: &Repository, descriptor: &Descriptor) -> Content {
        if !descriptor.media_type.is_index() {
            return if self.is_whole(repository, &descriptor.digest).await { Content::Whole } else { Content::BlobsMissing };
        }
        let children = self.store.children(&descriptor.digest).unwrap_or_default();
        let mut content = if children.is_empty() { Content::Whole } else { Content::ManifestsMissing };
        for (child, _) in children.iter() {
            if !self.may_serve_manifest(repository, child) {
                continue;
            }
            if self.is_whole(repository, child).await {
                return Content::Whole;
            }
            content = Content::BlobsMissing;
        }
        content
    }

    /// Whether a manifest by digest would be served without a question to upstream.
    pub(super) fn may_serve_manifest(&self, repository: &Repository, digest: &Digest) -> bool {
        let (membership, held) = self.manifest_membership(repository, digest);
        membership.is_member() && held.is_some() && self.store.contains(digest)
    }

    /// Whether all that a manifest lists would be served without a question to upstream.
    pub(super) async fn is_whole(&self, repository: &Repository, manifest: &Digest) -> bool {
        let Some(children) = self.store.children(manifest) else { return false };
        // What is not linked yet will be when the manifest is pulled.
        let is_doubtful = |digest: &Digest| matches!(self.membership(repository, digest), Membership::Doubtful { .. });
        let missing: Vec<Digest> =
            children.iter().map(|(child, _)| *child).filter(|child| !self.store.contains(child) || is_doubtful(child)).collect();
        missing.is_empty() || self.are_foreign(manifest, &missing).await
    }

    /// Whether clients get all these from elsewhere. That stands in the manifest alone.
    async fn are_foreign(&self, manifest: &Digest, missing: &[Digest]) -> bool {
        let Some(bytes) = self.peek_manifest(manifest).await else { return false };
        let Ok(manifest) = Manifest::verified(bytes, None, manifest) else { return false };
        missing.iter().all(|digest| manifest.children().iter().any(|child| child.digest == *digest && child.media_type.is_foreign()))
    }

    /// A manifest's bytes, to look at: that is no use of them.
    pub(super) async fn peek_manifest(&self, manifest: &Digest) -> Option<Bytes> {
        let (store, manifest) = (Arc::clone(&self.store), *manifest);
        self.gate.run(move || store.peek_manifest(&manifest)).await
    }
}
