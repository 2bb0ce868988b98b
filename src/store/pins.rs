//! Which images are never evicted. Pure: tags come in as they are recorded, what manifests list is looked up in the links.

use std::collections::{HashMap, HashSet};

use super::RepositoryKey;
use super::links::Links;
use crate::oci::{Digest, Glob, Tag};

/// The images of these tags stay.
#[derive(Clone, Debug)]
pub struct Pin {
    pub repository: RepositoryKey,
    pub tags: Glob,
}

#[derive(Debug, Default)]
pub struct Pins {
    pins: Vec<Pin>,
    /// What the tags that are pinned name at present.
    named: HashMap<(RepositoryKey, Tag), Digest>,
}

impl Pins {
    pub fn new(pins: Vec<Pin>) -> Pins {
        Pins { pins, named: HashMap::new() }
    }

    /// The repositories with pins, each once.
    pub fn repositories(&self) -> HashSet<RepositoryKey> {
        self.pins.iter().map(|pin| pin.repository.clone()).collect()
    }

    /// A tag names this manifest. Whether that changes what is pinned.
    pub fn name(&mut self, key: &(RepositoryKey, Tag), digest: Digest) -> bool {
        let is_pinned = self.pins.iter().any(|pin| pin.repository == key.0 && pin.tags.matches(key.1.as_str()));
        is_pinned && self.named.insert(key.clone(), digest) != Some(digest)
    }

    /// A tag names nothing any more.
    pub fn unname(&mut self, key: &(RepositoryKey, Tag)) -> bool {
        self.named.remove(key).is_some()
    }

    /// The manifest is gone, and with it the tags that named it.
    pub fn forget(&mut self, digest: &Digest) -> bool {
        let count = self.named.len();
        self.named.retain(|_, named| named != digest);
        self.named.len() < count
    }

    /// The repository has this manifest no longer, nor tags that name it.
    pub fn forget_in(&mut self, repository: &RepositoryKey, digest: &Digest) -> bool {
        let count = self.named.len();
        self.named.retain(|(other, _), named| other != repository || named != digest);
        self.named.len() < count
    }

    /// The pins that keep a digest, as they are written in `cache.pinned_images`, and the tags by which they do, in order.
    pub fn keeping(&self, links: &Links, digest: &Digest) -> Vec<(String, Tag)> {
        let keeps = |named: &Digest| below(links, vec![*named]).contains(digest);
        let pins = |key: &(RepositoryKey, Tag)| {
            let pin = self.pins.iter().find(|pin| pin.repository == key.0 && pin.tags.matches(key.1.as_str()))?;
            let RepositoryKey { upstream, name } = &pin.repository;
            Some((format!("{upstream}/{name}:{}", pin.tags), key.1.clone()))
        };
        let mut keeping: Vec<_> = self.named.iter().filter(|(_, named)| keeps(named)).filter_map(|(key, _)| pins(key)).collect();
        keeping.sort_unstable();
        keeping
    }

    /// The pinned manifests with all they list, and what the manifests among that list. What of it is not held yet is pinned
    /// as soon as it is.
    pub fn closure(&self, links: &Links) -> HashSet<Digest> {
        below(links, self.named.values().copied().collect())
    }
}

/// These, and all that they list, directly or not.
fn below(links: &Links, mut rest: Vec<Digest>) -> HashSet<Digest> {
    let mut found = HashSet::new();
    while let Some(digest) = rest.pop() {
        if found.insert(digest) {
            rest.extend(links.children(&digest).iter().flat_map(|children| children.iter()).map(|(child, _)| *child));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(text: &str) -> Digest {
        Digest::of(Algorithm::Sha256, text.as_bytes())
    }

    #[test]
    fn a_pinned_tag_pins_its_closure_and_nothing_else() {
        let repository = RepositoryKey { upstream: "docker.io".into(), name: "library/app".parse().expect("a name") };
        let tags = Glob::new("3.*").expect("a glob");
        let mut pins = Pins::new(vec![Pin { repository: repository.clone(), tags }]);
        let mut links = Links::new([]);
        links.list(digest("index"), [(digest("amd64"), 1), (digest("arm64"), 1)].into());
        links.list(digest("amd64"), [(digest("layer"), 1)].into());
        links.list(digest("other"), [(digest("other layer"), 1)].into());
        let key = |tag: &str| (repository.clone(), tag.parse::<Tag>().expect("a tag"));
        assert!(!pins.name(&key("latest"), digest("other")));
        assert!(pins.name(&key("3.1"), digest("index")));
        assert!(!pins.name(&key("3.1"), digest("index")), "nothing new");
        assert_eq!(pins.closure(&links), ["index", "amd64", "arm64", "layer"].map(digest).into());
        for part in ["index", "amd64", "layer"] {
            assert_eq!(
                pins.keeping(&links, &digest(part)),
                [("docker.io/library/app:3.*".to_owned(), "3.1".parse().expect("a tag"))],
                "{part}"
            );
        }
        assert_eq!(pins.keeping(&links, &digest("other layer")), []);
        assert!(pins.name(&key("3.1"), digest("other")), "it moved");
        assert_eq!(pins.closure(&links), ["other", "other layer"].map(digest).into());
        assert!(pins.unname(&key("3.1")) && !pins.unname(&key("3.1")));
        assert!(pins.name(&key("3.2"), digest("index")) && pins.forget(&digest("index")));
        assert_eq!(pins.closure(&links), HashSet::new());
        let elsewhere = RepositoryKey { upstream: "ghcr.io".into(), ..repository.clone() };
        assert!(pins.name(&key("3.2"), digest("index")) && !pins.forget_in(&elsewhere, &digest("index")));
        assert!(pins.forget_in(&repository, &digest("index")) && !pins.unname(&key("3.2")));
    }
}
