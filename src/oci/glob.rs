//! The one dialect of patterns that operators write, of repositories and of tags: `*` is any text within a component, `**` as a whole
//! component is any components, `?` is one character of a component. Everything else stands for itself, or is refused.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};

/// What other dialects give a meaning: taking it literally would surprise, and no name holds it.
const REFUSED: [char; 7] = ['[', ']', '{', '}', '\\', '!', ','];

/// A pattern of names whose components are parted by `/`.
#[derive(Clone, Debug)]
pub struct Glob(GlobMatcher);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidGlob {
    #[error("a component is empty")]
    EmptyComponent,
    #[error("`{0}` has no meaning in a pattern; there are *, ** and ?")]
    Refused(char),
    #[error("{0}")]
    Other(String),
}

impl Glob {
    /// # Errors
    /// When a component is empty, or a character is one that other dialects know and this one does not.
    pub fn new(text: &str) -> Result<Glob, InvalidGlob> {
        if text.split('/').any(str::is_empty) {
            return Err(InvalidGlob::EmptyComponent);
        }
        if let Some(refused) = text.chars().find(|letter| REFUSED.contains(letter)) {
            return Err(InvalidGlob::Refused(refused));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).build();
        glob.map(|glob| Glob(glob.compile_matcher())).map_err(|error| InvalidGlob::Other(error.kind().to_string()))
    }

    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }

    /// Whether a text has anything but what stands for itself.
    pub fn is_pattern(text: &str) -> bool {
        text.contains(['*', '?'])
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stay_within_a_component_and_two_do_not() {
        for (pattern, hits, misses) in [
            ("org/*", &["org/app"][..], &["org/team/app", "org", "other/app"][..]),
            ("org/**", &["org/app", "org/team/app"], &["org", "organ/app"]),
            ("**", &["app", "org/app"], &[]),
            ("**/app", &["app", "org/app", "a/b/app"], &["apple", "app/x"]),
            ("a/**/b-*", &["a/b-1", "a/x/y/b-1"], &["a/x/c-1", "a/b-1/x"]),
            ("v?", &["v1", "va"], &["v", "v10"]),
            ("org/?pp", &["org/app"], &["org/pp", "org//pp"]),
            ("3.*", &["3.20", "3."], &["3", "13.1", "3x20"]),
            ("stable", &["stable"], &["stable2", "unstable"]),
        ] {
            let glob = Glob::new(pattern).unwrap();
            assert_eq!(glob.to_string(), pattern);
            assert!(hits.iter().all(|text| glob.matches(text)), "{pattern}");
            assert!(misses.iter().all(|text| !glob.matches(text)), "{pattern}");
        }
    }

    #[test]
    fn other_dialects_are_refused_and_not_taken_literally() {
        for (text, refused) in [("a[bc]", '['), ("a/{b,c}", '{'), ("a\\*", '\\'), ("!a", '!')] {
            assert_eq!(Glob::new(text).map(|_| ()), Err(InvalidGlob::Refused(refused)));
        }
        for text in ["", "/a", "a/", "a//b"] {
            assert_eq!(Glob::new(text).map(|_| ()), Err(InvalidGlob::EmptyComponent), "{text}");
        }
    }
}
