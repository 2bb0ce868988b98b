//! A Distribution registry's root directory, as its `filesystem` driver lays it out; a proxy's is the same. Read only.
//!
//! ```text
//! docker/registry/v2/blobs/sha256/ab/<hex>/data
//! docker/registry/v2/repositories/<name>/_manifests/tags/<tag>/current/link      sha256:<hex>
//! docker/registry/v2/repositories/<name>/_manifests/revisions/sha256/<hex>/link  sha256:<hex>
//! docker/registry/v2/repositories/<name>/_layers/sha256/<hex>/link               sha256:<hex>
//! ```

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::oci::{Algorithm, Digest, MANIFEST_BYTES_MAX, Tag};

/// A digest and a newline, with room to spare.
const LINK_BYTES_MAX: u64 = 256;

/// The part below `v2`.
pub(super) struct Tree {
    root: PathBuf,
}

/// A link that leads somewhere, and when it was written: with each confirmation by upstream, for tags.
pub(super) struct Link {
    pub(super) digest: Digest,
    pub(super) written: SystemTime,
}

impl Tree {
    /// # Errors
    /// When the directory holds no such tree.
    pub(super) fn open(directory: &Path) -> Result<Tree, String> {
        let root = directory.join("docker/registry/v2");
        match fs::metadata(root.join("repositories")) {
            Ok(found) if found.is_dir() => Ok(Tree { root }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(format!("{}: {error}", root.display())),
            _ => Err(format!(
                "{} is no registry's directory: there is no docker/registry/v2/repositories in it; it is what the registry's \
                 configuration calls storage.filesystem.rootdirectory, often /var/lib/registry",
                directory.display()
            )),
        }
    }

    pub(super) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs").join(digest.algorithm().as_str()).join(&hex[..2]).join(hex).join("data")
    }

    /// Bytes of a blob; `None` when it is not there.
    pub(super) fn blob_len(&self, digest: &Digest) -> Option<u64> {
        fs::symlink_metadata(self.blob(digest)).ok().map(|metadata| metadata.len())
    }

    /// The bytes under a manifest's digest, unverified.
    pub(super) fn manifest(&self, digest: &Digest) -> io::Result<Vec<u8>> {
        read(&self.blob(digest), MANIFEST_BYTES_MAX)
    }

    /// The names of all repositories, in order.
    pub(super) fn repositories(&self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut names = vec![String::new()];
        while let Some(name) = names.pop() {
            for entry in list(&self.root.join("repositories").join(&name))? {
                match (entry.as_str(), name.is_empty()) {
                    ("_manifests", false) => found.push(name.clone()),
                    (entry, _) if entry.starts_with('_') => {}
                    (entry, true) => names.push(entry.to_owned()),
                    (entry, false) => names.push(format!("{name}/{entry}")),
                }
            }
        }
        found.sort();
        Ok(found)
    }

    pub(super) fn tags(&self, repository: &str) -> io::Result<Vec<(Tag, Link)>> {
        let folder = self.repository(repository).join("_manifests/tags");
        let tags = list(&folder)?.into_iter().filter_map(|name| name.parse::<Tag>().ok());
        Ok(tags.filter_map(|tag| link(&folder.join(tag.as_str()).join("current/link")).map(|link| (tag, link))).collect())
    }

    /// The manifests that a repository has; a deleted one has a folder left, and no link.
    pub(super) fn revisions(&self, repository: &str) -> io::Result<Vec<Link>> {
        links(&self.repository(repository).join("_manifests/revisions"))
    }

    /// The blobs that a repository has, or that upstream has given it.
    pub(super) fn layers(&self, repository: &str) -> io::Result<Vec<Link>> {
        links(&self.repository(repository).join("_layers"))
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name)
    }
}

fn links(folder: &Path) -> io::Result<Vec<Link>> {
    let mut found = Vec::new();
    for algorithm in Algorithm::ALL {
        let folder = folder.join(algorithm.as_str());
        for hex in list(&folder)? {
            let Ok(digest) = Digest::from_parts(algorithm.as_str(), &hex) else { continue };
            found.extend(link(&folder.join(hex).join("link")).filter(|link| link.digest == digest));
        }
    }
    Ok(found)
}

/// What cannot be read or understood leads nowhere.
fn link(path: &Path) -> Option<Link> {
    let text = String::from_utf8(read(path, LINK_BYTES_MAX).ok()?).ok()?;
    let written = fs::metadata(path).and_then(|metadata| metadata.modified()).ok()?;
    Some(Link { digest: text.trim().parse().ok()?, written })
}

/// A whole small file.
fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(bytes) }
}

/// The names in a folder; none where there is no folder.
fn list(folder: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(Vec::new()),
        entries => entries.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", folder.display())))?,
    };
    // What is no Unicode is no name of a registry's.
    entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
}
