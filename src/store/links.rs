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
    children: HashMap<Digest, Children>,
    parents: HashMap<Digest, Vec<Digest>>,
    holders: HashMap<Digest, HashMap<RepositoryKey, MediaType>>,
    confirmed: HashMap<Digest, Vec<Arc<str>>>,
}

impl Links {
    /// `private` names the upstreams whose content is not everybody's.
    pub fn new(private: impl IntoIterator<Item = Arc<str>>) -> Links {
        Links { private: private.into_iter().collect(), ..Links::default() }
    }

    /// The repository has this manifest.
    pub fn hold(&mut self, repository: RepositoryKey, manifest: Digest, media_type: MediaType) {
        self.holders.entry(manifest).or_default().insert(repository, media_type);
    }

    /// The manifest lists these.
    pub fn list(&mut self, manifest: Digest, children: Children) {
        if self.children.contains_key(&manifest) {
            return;
        }
        for (child, _) in children.iter() {
            let parents = self.parents.entry(*child).or_default();
            if !parents.contains(&manifest) {
                parents.push(manifest);
            }
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

    pub fn children(&self, manifest: &Digest) -> Option<&Children> {
        self.children.get(manifest)
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
        if !confirmed_here && itself.chain(listers).any(elsewhere) { Link::Doubtful { size } } else { Link::Listed { size } }
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

    /// Whether this is, or belongs to, an image that is being pulled: one of its manifests was used lately, and not all it
    /// lists is here. An index is no image: of its manifests most clients want one.
    pub fn is_half_pulled(&self, digest: &Digest, is_recent: impl Fn(&Digest) -> bool, is_held: impl Fn(&Digest) -> bool) -> bool {
        let is_index = |manifest: &Digest| self.any_media_type(manifest).is_some_and(MediaType::is_index);
        let mut images = self.parents(digest).iter().chain([digest]).filter(|manifest| is_recent(manifest) && !is_index(manifest));
        images.any(|manifest| self.children(manifest).is_some_and(|children| children.iter().any(|(child, _)| !is_held(child))))
    }

    /// The digest's bytes are gone; what it listed is no longer known.
    pub fn forget(&mut self, digest: &Digest) {
        self.holders.remove(digest);
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
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    fn repository(upstream: &str, name: &str) -> RepositoryKey {
        RepositoryKey { upstream: upstream.into(), name: name.parse().expect("a name") }
    }

    /// `upstream/app` has a manifest of its own that lists `layer`.
    fn hold(links: &mut Links, upstream: &str) -> RepositoryKey {
        let repository = repository(upstream, "app");
        let manifest = digest(upstream);
        links.hold(repository.clone(), manifest, "a/b".parse().expect("a type"));
        links.list(manifest, [(digest("layer"), 7)].into());
        repository
    }

    #[test]
    fn an_image_is_half_pulled_while_something_it_lists_is_missing() {
        let mut links = Links::new([]);
        let held = |missing: &'static str| move |digest: &Digest| *digest != self::digest(missing);
        links.list(digest("image"), [(digest("config"), 1), (digest("layer"), 1)].into());
        links.hold(repository("docker.io", "app"), digest("index"), MediaType::OCI_INDEX.parse().expect("a type"));
        links.list(digest("index"), [(digest("image"), 1), (digest("other image"), 1)].into());
        for part in ["image", "config", "layer"] {
            assert!(links.is_half_pulled(&digest(part), |_| true, held("config")), "{part}");
            assert!(!links.is_half_pulled(&digest(part), |_| true, held("other image")), "{part}");
            assert!(!links.is_half_pulled(&digest(part), |_| false, held("config")), "{part}");
        }
        assert!(!links.is_half_pulled(&digest("index"), |_| true, held("other image")));
        assert!(!links.is_half_pulled(&digest("something else"), |_| true, held("config")));
    }

    #[test]
    fn invariant_14_only_a_repository_whose_manifest_lists_it_may_serve_a_blob() {
        let mut links = Links::new([]);
        let app = hold(&mut links, "docker.io");
        assert_eq!(links.link(&app, &digest("layer")), Link::Listed { size: 7 });
        assert_eq!(links.link(&repository("docker.io", "other"), &digest("layer")), Link::Unlisted);
        assert_eq!(links.link(&app, &digest("another layer")), Link::Unlisted);
        links.forget(&digest("docker.io"));
        assert_eq!(links.link(&app, &digest("layer")), Link::Unlisted);
    }

    #[test]
    fn invariant_14_listing_what_a_private_upstream_has_is_not_enough() {
        let mut links = Links::new(["private.example".into()]);
        let (public, private) = (hold(&mut links, "docker.io"), hold(&mut links, "private.example"));
        let layer = digest("layer");
        assert_eq!(links.link(&public, &layer), Link::Doubtful { size: 7 });
        assert_eq!(links.link(&private, &layer), Link::Listed { size: 7 });
        links.confirm(&"docker.io".into(), layer);
        assert_eq!(links.link(&public, &layer), Link::Listed { size: 7 });
    }

    #[test]
    fn invariant_14_a_private_blob_that_no_manifest_lists_is_private_too() {
        let mut links = Links::new(["private.example".into()]);
        let public = hold(&mut links, "docker.io");
        links.confirm(&"private.example".into(), digest("layer"));
        assert_eq!(links.link(&public, &digest("layer")), Link::Doubtful { size: 7 });
    }
}
