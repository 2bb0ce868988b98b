//! Repository names, tags and references, as the distribution-spec's grammar has them ("Pulling manifests").

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::{Digest, InvalidDigest};

/// Most characters of a repository name; the spec asks for no more of "hostname plus name".
const REPOSITORY_NAME_LENGTH_MAX: usize = 255;
/// Most characters of a tag (distribution-spec).
const TAG_LENGTH_MAX: usize = 128;

/// Text that the distribution-spec's grammar does not allow where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error(
        "invalid repository name: lower-case letters and digits, joined by '.', '_', '__' or '-', in components split by '/'; at most 255 characters"
    )]
    Repository,
    #[error("invalid tag: letters, digits, '_', '.' and '-', not beginning with '.' or '-'; at most 128 characters")]
    Tag,
    #[error("invalid reference: {0}")]
    Digest(InvalidDigest),
}

/// A repository's name within its registry: `library/alpine`. Safe as a relative path: no component is empty, `.`, `..` or begins with `_`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<RepositoryName, InvalidName> {
        let fits = text.len() <= REPOSITORY_NAME_LENGTH_MAX && text.split('/').all(is_component);
        if fits { Ok(RepositoryName(text.into())) } else { Err(InvalidName::Repository) }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    alphanumeric(*first)
        && alphanumeric(*last)
        && bytes
            .split(|byte| alphanumeric(*byte))
            .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

/// A tag: a name in a repository that may move from one manifest to another.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Tag, InvalidName> {
        let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let fits = text.len() <= TAG_LENGTH_MAX
            && text.bytes().next().is_some_and(word)
            && text.bytes().all(|byte| word(byte) || byte == b'.' || byte == b'-');
        if fits { Ok(Tag(text.into())) } else { Err(InvalidName::Tag) }
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

impl FromStr for Reference {
    type Err = InvalidName;

    /// A colon tells a digest from a tag: no tag holds one.
    fn from_str(text: &str) -> Result<Reference, InvalidName> {
        if text.contains(':') { text.parse().map(Reference::Digest).map_err(InvalidName::Digest) } else { text.parse().map(Reference::Tag) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reference::Tag(tag) => tag.fmt(f),
            Reference::Digest(digest) => digest.fmt(f),
        }
    }
}

macro_rules! shows_as_text {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}
shows_as_text!(RepositoryName Tag);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_spec_s_names_are_accepted() {
        for name in ["alpine", "library/alpine", "a/b/c/d", "my-org/my--app", "a_b/c__d", "a.b", "0"] {
            assert!(name.parse::<RepositoryName>().is_ok(), "{name}");
        }
        for tag in ["latest", "_x", "1.2.3-rc.1", "V", "sha256-0123.sig"] {
            assert!(tag.parse::<Tag>().is_ok(), "{tag}");
        }
    }

    #[test]
    fn what_could_leave_the_cache_directory_is_refused() {
        let long = "a".repeat(256);
        for name in [
            "", "/", "..", ".", "a/..", "../a", "a//b", "/a", "a/", "A", "a___b", "a..b", "-a", "a-", "_tags", "a/_tags", "a\0", "a b",
            "a%2e", "ä", &long,
        ] {
            assert_eq!(name.parse::<RepositoryName>(), Err(InvalidName::Repository), "{name}");
        }
        let long = "a".repeat(129);
        for tag in ["", ".", "..", "-a", "a/b", "a\0", "a%2f", "ä", &long] {
            assert_eq!(tag.parse::<Tag>(), Err(InvalidName::Tag), "{tag}");
        }
    }

    proptest! {
        #[test]
        fn a_generated_name_parses_to_itself(name in "[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,9}){0,3}(/[a-z0-9]{1,9}){0,3}") {
            prop_assert_eq!(name.parse::<RepositoryName>().map(|parsed| parsed.to_string()), Ok(name));
        }

        #[test]
        fn a_parsed_name_is_a_safe_relative_path(text in "[a-z0-9._/-]{0,20}") {
            if text.parse::<RepositoryName>().is_ok() {
                prop_assert!(text.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '_'])));
            }
        }

        #[test]
        fn a_reference_prints_as_it_was_read(text: String) {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string(), text);
            }
        }
    }
}
