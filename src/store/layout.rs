//! Every path below the cache directory, drawn once; pure.
//!
//! ```text
//! lock                                                 flock, with the holder's pid, boot and whether it stopped cleanly
//! control.sock                                         the daemon's, for stats, verify and purge
//! history.json                                         what the cache was good for, by the hour
//! blobs/sha256/ab/<hex>                                complete, verified, never changed in place; manifests too
//! refs/<upstream>/_blobs/<alg>-<hex>                   empty: this upstream has confirmed that it has this blob
//! refs/<upstream>/<repository>/_tags/<tag>             JSON: digest, media type, size, when last checked
//! refs/<upstream>/<repository>/_manifests/<alg>-<hex>  JSON: media type, size
//! refs/<upstream>/<repository>/_shown                  JSON: when upstream last showed the repository to anybody
//! partial/<upstream>/<alg>-<hex>                       being filled
//! quarantine/<alg>-<hex>                               found damaged
//! uptime                                               how long larder has run with this directory, in ms
//! index/                                               sled; can be deleted at any stop
//! ```
//!
//! Components of a repository name never begin with `_`, so that the marked folders can't collide with names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::oci::{Digest, RepositoryName, Tag};

/// The marked names below `refs/`.
pub const CONFIRMATIONS: &str = "_blobs";
pub const TAGS: &str = "_tags";
pub const MANIFESTS: &str = "_manifests";
const SHOWN: &str = "_shown";
/// What larder puts directly into the cache directory.
const ROOT_NAMES: [&str; 11] =
    ["lock", "control.sock", "history.json", "history.json~", "blobs", "refs", "partial", "quarantine", "uptime", "uptime~", "index"];
/// What it may have put there beside: an index that was unusable.
const ROOT_NAMES_OLD: [&str; 1] = ["index.bad"];

/// A repository as the store names it: the configured upstream and the canonical name there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryKey {
    pub upstream: Arc<str>,
    pub name: RepositoryName,
}

/// The cache directory.
#[derive(Clone, Debug)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    pub fn new(root: impl Into<PathBuf>) -> Layout {
        Layout { root: root.into() }
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    pub fn uptime(&self) -> PathBuf {
        self.root.join("uptime")
    }

    pub fn history(&self) -> PathBuf {
        self.root.join("history.json")
    }

    pub fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs().join(digest.algorithm().as_str()).join(&hex[..2]).join(hex)
    }

    pub fn refs(&self) -> PathBuf {
        self.root.join("refs")
    }

    pub fn confirmations(&self, upstream: &str) -> PathBuf {
        self.refs().join(upstream).join(CONFIRMATIONS)
    }

    pub fn confirmation(&self, upstream: &str, digest: &Digest) -> PathBuf {
        self.confirmations(upstream).join(file_name(digest))
    }

    fn repository(&self, repository: &RepositoryKey) -> PathBuf {
        self.refs().join(&*repository.upstream).join(repository.name.as_str())
    }

    pub fn tags(&self, repository: &RepositoryKey) -> PathBuf {
        self.repository(repository).join(TAGS)
    }

    pub fn tag(&self, repository: &RepositoryKey, tag: &Tag) -> PathBuf {
        self.tags(repository).join(tag.as_str())
    }

    pub fn manifest_refs(&self, repository: &RepositoryKey) -> PathBuf {
        self.repository(repository).join(MANIFESTS)
    }

    pub fn manifest_ref(&self, repository: &RepositoryKey, digest: &Digest) -> PathBuf {
        self.manifest_refs(repository).join(file_name(digest))
    }

    pub fn shown(&self, repository: &RepositoryKey) -> PathBuf {
        self.repository(repository).join(SHOWN)
    }

    pub fn partials(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub fn partial(&self, upstream: &str, digest: &Digest) -> PathBuf {
        self.partials().join(upstream).join(file_name(digest))
    }

    /// A manifest on its way into `blobs/`: never where a fill of the same digest writes (containerd asks for manifests as
    /// blobs, too), nor where another copy of it is being written.
    pub fn partial_manifest(&self, upstream: &str, digest: &Digest, copy: u64) -> PathBuf {
        self.partials().join(upstream).join(format!("{}~{copy}", file_name(digest)))
    }

    pub fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    pub fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(file_name(digest))
    }

    pub fn index(&self) -> PathBuf {
        self.root.join("index")
    }
}

/// Whether larder puts something of this name directly into the cache directory.
pub fn is_root_name(name: &str) -> bool {
    ROOT_NAMES.contains(&name) || ROOT_NAMES_OLD.contains(&name)
}

/// Whether a directory of this name directly below `blobs/<alg>/` is larder's.
pub fn is_shelf(name: &str) -> bool {
    name.len() == 2 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a directory of this name directly below `refs/` or `partial/` is an upstream's: a registry's host, in lower case.
pub fn is_upstream(name: &str) -> bool {
    let is_alphanumeric = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.as_bytes().first(), name.as_bytes().last()];
    ends.iter().all(|end| end.is_some_and(is_alphanumeric)) && name.bytes().all(|byte| is_alphanumeric(&byte) || b".-:".contains(&byte))
}

/// Whether `refs/<upstream>/<repository>/` has a record of this name, beside those in its folders.
pub fn is_own_record(name: &str) -> bool {
    name == SHOWN
}

/// The digest that a file below `partial/<upstream>/` is about, and whether a download could go on with it; `None` for names
/// larder does not write.
pub fn partial_of(file_name: &str) -> Option<(Digest, bool)> {
    match file_name.split_once('~') {
        None => Some((digest_of(file_name)?, true)),
        Some((digest, _)) => Some((digest_of(digest)?, false)),
    }
}

/// `<alg>-<hex>`: a digest where a colon would be awkward.
fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm().as_str(), digest.hex())
}

/// The digest that a file of this name is about; `None` for names larder does not write.
pub fn digest_of(file_name: &str) -> Option<Digest> {
    let (algorithm, hex) = file_name.split_once('-')?;
    Digest::from_parts(algorithm, hex).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_name_that_parses_leaves_the_cache_directory(upstream in "[a-z0-9.:-]{1,20}", name: String, tag: String, hex in "[0-9a-f]{64}") {
            let layout = Layout::new("/cache");
            let digest = Digest::from_parts("sha256", &hex).expect("64 hex digits");
            let mut paths = vec![layout.blob(&digest), layout.quarantined(&digest)];
            if let Ok(name) = name.parse() {
                let repository = RepositoryKey { upstream: upstream.as_str().into(), name };
                paths.push(layout.manifest_ref(&repository, &digest));
                paths.extend(tag.parse().ok().map(|tag| layout.tag(&repository, &tag)));
            }
            for path in paths {
                prop_assert!(path.starts_with("/cache/"));
                prop_assert!(!path.components().any(|part| part == std::path::Component::ParentDir));
            }
        }

        #[test]
        fn a_file_name_tells_its_digest(hex in "[0-9a-f]{128}") {
            let digest = Digest::from_parts("sha512", &hex).expect("128 hex digits");
            prop_assert_eq!(digest_of(&file_name(&digest)), Some(digest));
        }
    }

    #[test]
    fn names_that_larder_does_not_write_are_nobody_s() {
        for name in ["docker.io", "localhost:5000", "10.0.0.1:5000", "a-b.example"] {
            assert!(is_upstream(name), "{name}");
        }
        for name in ["", ".nfs0001", "lost+found", "A.io", "a_b", "docker.io~", "..", "-a", "a."] {
            assert!(!is_upstream(name), "{name}");
        }
        let digest = Digest::from_parts("sha256", &"0a".repeat(32)).expect("64 hex digits");
        let name = file_name(&digest);
        assert_eq!(partial_of(&name), Some((digest, true)));
        for leftover in [format!("{name}~7"), format!("{name}~7.link")] {
            assert_eq!(partial_of(&leftover), Some((digest, false)), "{leftover}");
        }
        for name in [".nfs0001", "sha256-0a", "sha256-0a~1", "~", ""] {
            assert_eq!(partial_of(name), None, "{name}");
        }
        assert!(is_shelf("0a") && !is_shelf("0A") && !is_shelf("0") && !is_shelf("0a0"));
        assert!(is_root_name("index.bad") && is_root_name("lock") && !is_root_name("lost+found"));
    }
}
