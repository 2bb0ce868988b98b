//! Letting go of what an operator names: tags, then the records of manifests, then bytes that nothing else lists. Safe beside
//! running pulls: whoever reads a file reads it to its end, and whoever asks next asks upstream.

use std::collections::HashSet;
use std::io;

use serde::{Deserialize, Serialize};

use super::evict::Item;
use super::{RepositoryKey, Store, disk};
use crate::oci::Digest;

/// What to let go of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selected {
    /// These bytes, whoever has them.
    Object(Digest),
    Of {
        /// Of `upstream/name`.
        repository: Wildcard,
        what: What,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Tags(Wildcard),
    Manifest(Digest),
    Everything,
}

/// A pattern of what to purge: `*` is any text, `/` included, so that `docker.io/*` is all of a registry. Unlike [`crate::oci::Glob`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wildcard(pub String);

impl Wildcard {
    pub fn matches(&self, text: &str) -> bool {
        let mut pieces = self.0.split('*');
        let Some(mut rest) = pieces.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let Some(last) = pieces.next_back() else { return rest.is_empty() };
        for piece in pieces {
            match rest.find(piece) {
                Some(at) => rest = &rest[at + piece.len()..],
                None => return false,
            }
        }
        rest.ends_with(last)
    }
}

/// What was let go of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    pub tags: u64,
    /// Records that a repository has a manifest.
    pub manifests: u64,
    /// Files under `blobs/`.
    pub objects: u64,
    /// Allocated by these.
    pub bytes: u64,
}

impl Store {
    /// Lets go of what was selected, and of what nothing else lists. Blocks.
    ///
    /// # Errors
    /// When something that was selected cannot be removed, with its path. Other repositories' part is done then; asking again tries the rest.
    pub fn purge(&self, selected: &Selected) -> io::Result<Purged> {
        let mut purged = Purged::default();
        match selected {
            Selected::Object(digest) => self.purge_object(digest, &mut purged)?,
            Selected::Of { repository, what } => {
                let mut failed = Ok(());
                for key in self.refs.repositories()? {
                    if repository.matches(&format!("{}/{}", key.upstream, key.name)) {
                        let done = self.purge_in(&key, what, &mut purged);
                        failed = failed.and(done);
                    }
                }
                failed?;
            }
        }
        Ok(purged)
    }

    /// The bytes, every record that names them, and what only they listed.
    fn purge_object(&self, digest: &Digest, purged: &mut Purged) -> io::Result<()> {
        let holders: Vec<_> = self.links().holders(digest).cloned().collect();
        for holder in holders {
            self.purge_in(&holder, &What::Manifest(*digest), purged)?;
        }
        self.remove_object(digest, purged)
    }

    fn purge_in(&self, repository: &RepositoryKey, what: &What, purged: &mut Purged) -> io::Result<()> {
        // With each, whether it goes although something else of the repository's names it.
        let mut doomed: Vec<(Digest, bool)> = match what {
            What::Tags(tags) => self.drop_tags(repository, tags, purged)?.into_iter().map(|digest| (digest, false)).collect(),
            What::Manifest(digest) => vec![(*digest, true)],
            What::Everything => {
                let named = self.drop_tags(repository, &Wildcard("*".into()), purged)?;
                let held = self.links().held_by(repository);
                named.into_iter().chain(held).map(|digest| (digest, true)).collect()
            }
        };
        while let Some((digest, regardless)) = doomed.pop() {
            if regardless || !self.is_wanted(repository, &digest)? {
                doomed.extend(self.let_go(repository, &digest, purged)?.into_iter().map(|child| (child, false)));
            }
        }
        Ok(())
    }

    /// What the tags named that went.
    fn drop_tags(&self, repository: &RepositoryKey, tags: &Wildcard, purged: &mut Purged) -> io::Result<Vec<Digest>> {
        let mut named = Vec::new();
        for tag in self.refs.tags(repository)?.into_iter().filter(|tag| tags.matches(tag.as_str())) {
            let key = (repository.clone(), tag);
            named.extend(self.refs.tag_if_readable(&key)?.map(|record| record.descriptor.digest));
            self.remove_tag(&key)?;
            purged.tags += 1;
        }
        named.sort_unstable();
        named.dedup();
        Ok(named)
    }

    /// Whether a tag or a manifest of the repository's names it.
    fn is_wanted(&self, repository: &RepositoryKey, digest: &Digest) -> io::Result<bool> {
        if self.links().is_listed(repository, digest) {
            return Ok(true);
        }
        for tag in self.refs.tags(repository)? {
            if self.refs.tag_if_readable(&(repository.clone(), tag))?.is_some_and(|record| record.descriptor.digest == *digest) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The repository has this manifest no longer; what nobody has, goes. Returns the manifests that it listed and the
    /// repository still has.
    fn let_go(&self, repository: &RepositoryKey, digest: &Digest, purged: &mut Purged) -> io::Result<Vec<Digest>> {
        let children = self.children(digest);
        let tags = self.refs.tags(repository)?.len();
        self.remove_manifest_ref(repository, digest)?;
        purged.tags += (tags - self.refs.tags(repository)?.len().min(tags)) as u64;
        if self.links_mut().unhold(repository, digest) {
            purged.manifests += 1;
        }
        if self.links().holders(digest).next().is_none() {
            self.remove_object(digest, purged)?;
        }
        let mut still_held = Vec::new();
        for (child, _) in children.iter().flat_map(|children| children.iter()) {
            if self.media_type(repository, child).is_some() {
                still_held.push(*child);
            } else if self.links().is_orphan(child) {
                self.remove_object(child, purged)?;
            }
        }
        Ok(still_held)
    }

    /// Removes an object, and whatever it alone listed.
    fn remove_object(&self, digest: &Digest, purged: &mut Purged) -> io::Result<()> {
        let mut doomed = vec![*digest];
        let mut seen = HashSet::new();
        while let Some(digest) = doomed.pop() {
            if !seen.insert(digest) {
                continue;
            }
            let children = self.children(&digest);
            {
                let _files = self.files.lock();
                let (held, item) = (self.contains(&digest), Item::Stored(digest));
                let freed = self.remove_item(&item);
                if let Err(error) = disk::remove_if_there(&*self.disk, &self.layout.blob(&digest)) {
                    if held {
                        // It occupies what it did, and nobody has it.
                        self.ledger().insert(item, freed, self.uptime.now());
                    }
                    return Err(error);
                }
                purged.bytes += freed;
                purged.objects += u64::from(held);
            }
            let links = self.links();
            doomed.extend(
                children.iter().flat_map(|children| children.iter()).map(|(child, _)| *child).filter(|child| links.is_orphan(child)),
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        let matches = |pattern: &str, text| Wildcard(pattern.into()).matches(text);
        for (pattern, text) in
            [("a", "a"), ("*", ""), ("*", "a/b"), ("a*", "a"), ("a*c", "abbc"), ("*b*", "abc"), ("a*b*a", "abba"), ("**", "x")]
        {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a", "ab"), ("a*a", "a"), ("a*c", "abb"), ("*b*", "ac"), ("", "a")] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }
}
