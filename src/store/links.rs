//! Whose bytes are whose: repository → manifest → blob. In RAM, built from `refs/` and the manifests' own bytes.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::RepositoryKey;
use crate::oci::{Digest, MediaType};

/// What a repository's manifests say about a digest (invariant 14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// One of its manifests lists it: it may be served. The size is that manifest's word, in bytes.
    Listed { size: u64 },
    /// One lists it, but so does another upstream's private repository, and this upstream has not confirmed that it has
    /// it: whoever can push a manifest anywhere could list it.
    Doubtful { size: u64 },
    /// None lists it.
    Unlisted,
}

/// What a manifest lists: digest and announced size in bytes.
pub type Children = Arc<[(Digest, u64)]>;

#[derive(Debug, Default)]
pub struct Links {
    private: HashSet<Arc<str>>,
    /// Not everything is entered yet: who else lists something is not known.
    is_loading: bool,
    children: HashMap<Digest, Children>,
    parents: HashMap<Digest, Vec<Digest>>,
    holders: HashMap<Digest, HashMap<RepositoryKey, MediaType>>,
    /// Of each repository.
    manifests: HashMap<RepositoryKey, HashSet<Digest>>,
    confirmed: HashMap<Digest, Vec<Arc<str>>>,
}

impl Links {
    /// `private` names the upstreams whose content is not everybody's.
    pub fn new(private: impl IntoIterator<Item = Arc<str>>) -> Links {
        Links { private: private.into_iter().collect(), ..Links::default() }
    }

    /// While this is so, what is not listed elsewhere may be yet.
    pub fn set_loading(&mut self, is_loading: bool) {
        self.is_loading = is_loading;
    }

    /// The repository has this manifest.
    pub fn hold(&mut self, repository: RepositoryKey, manifest: Digest, media_type: MediaType) {
        self.manifests.entry(repository.clone()).or_default().insert(manifest);
        self.holders.entry(manifest).or_default().insert(repository, media_type);
    }

    /// The manifest lists these.
    pub fn list(&mut self, manifest: Digest, children: Children) {
        if self.children.contains_key(&manifest) {
            return;
        }
        let once: HashSet<Digest> = children.iter().map(|(child, _)| *child).collect();
        for child in once {
            self.parents.entry(child).or_default().push(manifest);
        }
        self.children.insert(manifest, children);
    }

    /// The upstream has said, by answering for it, that it has this blob.
    pub fn confirm(&mut self, upstream: &Arc<str>, digest: Digest) {
        let upstreams = self.confirmed.entry(digest).or_default();
        if !upstreams.contains(upstream) {
            upstreams.push(Arc::clone(upstream));
        }
    }

    /// The media type under which a repository has a manifest; `None` when it has none of this digest.
    pub fn media_type(&self, repository: &RepositoryKey, manifest: &Digest) -> Option<&MediaType> {
        self.holders.get(manifest)?.get(repository)
    }

    /// The media type under which somebody has a manifest; `None` for what is none.
    pub fn any_media_type(&self, manifest: &Digest) -> Option<&MediaType> {
        self.holders.get(manifest)?.values().next()
    }

    pub fn manifest_count(&self) -> usize {
        self.holders.len()
    }

    pub fn holders(&self, manifest: &Digest) -> impl Iterator<Item = &RepositoryKey> + Clone {
        self.holders.get(manifest).into_iter().flat_map(HashMap::keys)
    }

    /// What a manifest lists; `None` for what is none.
    pub fn children(&self, manifest: &Digest) -> Option<Children> {
        self.children.get(manifest).cloned()
    }

    /// Every digest that somebody has as a manifest.
    pub fn manifests(&self) -> Vec<Digest> {
        self.holders.keys().copied().collect()
    }

    /// The manifests of a repository.
    pub fn held_by(&self, repository: &RepositoryKey) -> Vec<Digest> {
        self.manifests.get(repository).into_iter().flatten().copied().collect()
    }

    /// Whether one of the repository's manifests lists it.
    pub fn is_listed(&self, repository: &RepositoryKey, digest: &Digest) -> bool {
        self.parents(digest).iter().any(|parent| self.media_type(repository, parent).is_some())
    }

    /// Whether no manifest lists it, and it is none itself.
    pub fn is_orphan(&self, digest: &Digest) -> bool {
        self.parents(digest).is_empty() && !self.holders.contains_key(digest)
    }

    /// The repositories that have it, as a manifest or in one.
    pub fn repositories_of(&self, digest: &Digest) -> Vec<&RepositoryKey> {
        let parents = self.parents(digest).iter().flat_map(|parent| self.holders(parent));
        let mut found: Vec<_> = self.holders(digest).chain(parents).collect();
        found.sort_unstable();
        found.dedup();
        found
    }

    /// The repository has this manifest no longer; `false` when it had not.
    pub fn unhold(&mut self, repository: &RepositoryKey, manifest: &Digest) -> bool {
        let Some(holders) = self.holders.get_mut(manifest) else { return false };
        let held = holders.remove(repository).is_some();
        if holders.is_empty() {
            self.holders.remove(manifest);
        }
        self.leave(repository, manifest);
        held
    }

    fn leave(&mut self, repository: &RepositoryKey, manifest: &Digest) {
        if let Some(manifests) = self.manifests.get_mut(repository) {
            manifests.remove(manifest);
            if manifests.is_empty() {
                self.manifests.remove(repository);
            }
        }
    }

    /// Whether this is, or belongs to, an image that is being pulled: one of its manifests was used lately, and not all it
    /// lists is here. An index is no image: of its manifests most clients want one.
    pub fn is_half_pulled(&self, digest: &Digest, is_recent: impl Fn(&Digest) -> bool, is_held: impl Fn(&Digest) -> bool) -> bool {
        let is_index = |manifest: &Digest| self.any_media_type(manifest).is_some_and(MediaType::is_index);
        let mut images = self.parents(digest).iter().chain([digest]).filter(|manifest| is_recent(manifest) && !is_index(manifest));
        images.any(|manifest| self.children(manifest).is_some_and(|children| children.iter().any(|(child, _)| !is_held(child))))
    }

    /// The upstreams that confirmed a blob.
    pub fn confirmed(&self, digest: &Digest) -> &[Arc<str>] {
        self.confirmed.get(digest).map_or(&[], Vec::as_slice)
    }

    /// Whether one of the repository's manifests lists this digest, and whether that is enough.
    pub fn link(&self, repository: &RepositoryKey, digest: &Digest) -> Link {
        let Some(size) = self.listed_size(repository, digest) else {
            return Link::Unlisted;
        };
        let itself = self.confirmed(digest).iter().chain(self.holders(digest).map(|holder| &holder.upstream));
        let listers = self.parents(digest).iter().flat_map(|parent| self.holders(parent)).map(|holder| &holder.upstream);
        let elsewhere = |upstream: &Arc<str>| *upstream != repository.upstream && self.private.contains(upstream);
        let confirmed_here = itself.clone().any(|upstream| *upstream == repository.upstream);
        let may_be_elsewhere = self.is_loading && self.private.iter().any(|upstream| *upstream != repository.upstream);
        let is_doubtful = !confirmed_here && (may_be_elsewhere || itself.chain(listers).any(elsewhere));
        if is_doubtful { Link::Doubtful { size } } else { Link::Listed { size } }
    }

    fn parents(&self, digest: &Digest) -> &[Digest] {
        self.parents.get(digest).map_or(&[], Vec::as_slice)
    }

    fn listed_size(&self, repository: &RepositoryKey, digest: &Digest) -> Option<u64> {
        self.parents(digest)
            .iter()
            .filter(|parent| self.media_type(repository, parent).is_some())
            .find_map(|parent| self.children.get(parent)?.iter().find(|(child, _)| child == digest))
            .map(|(_, size)| *size)
    }

    /// The digest's bytes are gone; what it listed is no longer known.
    pub fn forget(&mut self, digest: &Digest) {
        for repository in self.holders.remove(digest).into_iter().flat_map(HashMap::into_keys) {
            self.leave(&repository, digest);
        }
        self.confirmed.remove(digest);
        for (child, _) in self.children.remove(digest).iter().flat_map(|children| children.iter()) {
            if let Some(parents) = self.parents.get_mut(child) {
                parents.retain(|parent| parent != digest);
                if parents.is_empty() {
                    self.parents.remove(child);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
