//! What an image consists of: its manifests, and the blobs that they list.

use std::collections::HashSet;
use std::sync::Arc;

use super::{Image, Missing, Platforms, UNSTORED, words};
use crate::mirror::{Error, Mirror, Repository};
use crate::oci::{Descriptor, Digest, IndexEntry, Manifest, Platform, Reference, index_entries, select};

/// Whether upstream may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Ask,
    Look,
}

/// All of an image that is wanted.
#[derive(Default)]
pub(super) struct Parts {
    /// What lists others comes before them.
    pub manifests: Vec<Digest>,
    /// Each once.
    pub blobs: Vec<Descriptor>,
    /// Manifests that are not to be had.
    pub missing: Vec<Missing>,
}

impl Mirror {
    pub(super) async fn parts(self: &Arc<Mirror>, repository: &Repository, top: Manifest, platforms: &Platforms, way: Way) -> Parts {
        let mut parts = Parts::default();
        let mut seen = HashSet::from([top.descriptor().digest]);
        let mut rest = vec![top];
        while let Some(manifest) = rest.pop() {
            parts.manifests.push(manifest.descriptor().digest);
            if !manifest.descriptor().media_type.is_index() {
                let own = manifest.children().iter().filter(|child| !child.media_type.is_foreign() && seen.insert(child.digest));
                parts.blobs.extend(own.cloned());
                continue;
            }
            for child in self.chosen(&index_entries(&manifest), platforms, &mut parts.missing) {
                if !seen.insert(child.digest) {
                    continue;
                }
                if !child.media_type.is_manifest() {
                    parts.blobs.push(child);
                    continue;
                }
                match self.part(repository, &child, way).await {
                    Ok(manifest) => rest.push(manifest),
                    Err(why) => parts.missing.push(Missing::of(child.digest, child.size, why)),
                }
            }
        }
        parts
    }

    /// What of an index is wanted. Attestations are not, but by who wants all: no client pulls them along with an image.
    fn chosen(&self, entries: &[IndexEntry], platforms: &Platforms, missing: &mut Vec<Missing>) -> Vec<Descriptor> {
        let wanted = match platforms {
            Platforms::All => return entries.iter().map(|entry| entry.descriptor.clone()).collect(),
            Platforms::These(these) => these.clone(),
            Platforms::Kept(these) => {
                let has = |platform: &Platform| select(entries, std::slice::from_ref(platform)).1.is_empty();
                let mut kept = self.held_platforms(entries);
                kept.extend(these.iter().filter(|platform| has(platform)).cloned());
                if kept.is_empty() { vec![Platform::of_this_machine()] } else { kept }
            }
        };
        let (selected, absent) = select(entries, &wanted);
        for platform in absent {
            let others: Vec<String> = entries.iter().filter_map(|entry| Some(entry.platform.as_ref()?.to_string())).collect();
            missing.push(Missing::because(format!("it is not there for {platform}, but for {}", others.join(", "))));
        }
        selected.into_iter().map(|entry| entry.descriptor.clone()).collect()
    }

    /// The platforms of an index of which the manifest is here.
    pub(in crate::mirror) fn held_platforms(&self, entries: &[IndexEntry]) -> Vec<Platform> {
        let held = entries.iter().filter(|entry| !entry.is_attestation && self.store.contains(&entry.descriptor.digest));
        held.filter_map(|entry| entry.platform.clone()).collect()
    }

    /// A manifest that an index lists, and that is stored. The error is in an operator's words.
    async fn part(self: &Arc<Mirror>, repository: &Repository, child: &Descriptor, way: Way) -> Result<Manifest, String> {
        if let Some(manifest) = self.held_part(repository, &child.digest).await {
            return Ok(manifest);
        }
        if way == Way::Look {
            return Err("it is not here".into());
        }
        let image = Image { repository: repository.clone(), reference: Reference::Digest(child.digest) };
        let (_, manifest) = self.whole_manifest(&image).await.map_err(|error: Error| words::error(&error, "manifest"))?;
        if !self.is_own_manifest(repository, &child.digest) {
            return Err(UNSTORED.into());
        }
        Ok(manifest)
    }
}
