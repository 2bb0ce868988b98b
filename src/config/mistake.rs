//! What is wrong with a configuration, said so that it can be mended: the place, the key, the fault and the fix.

use std::fmt;
use std::path::PathBuf;

use super::tree::Origin;

/// A place in the file; both count from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub line: usize,
    pub column: usize,
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file; `None` if the line is not known.
    File(Option<Position>),
    Variable(String),
    /// In neither: a default that does not fit what was written.
    Nowhere,
}

/// One thing that keeps larder from starting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    pub place: Place,
    /// `cache.max_size`; empty when it is about the whole file.
    pub key: String,
    pub message: String,
}

/// One thing that is probably not meant.
pub type Warning = Mistake;

/// A mistake before its line is known.
pub(super) struct Finding {
    pub(super) origin: Origin,
    pub(super) key: String,
    pub(super) message: String,
}

impl Finding {
    pub(super) fn at(origin: &Origin, key: &str, message: impl Into<String>) -> Finding {
        Finding { origin: origin.clone(), key: key.to_owned(), message: message.into() }
    }

    pub(super) fn place(self, locate: impl Fn(usize) -> Option<Position>) -> Mistake {
        let place = match self.origin {
            Origin::File(number) => Place::File(locate(number)),
            Origin::Variable(name) => Place::Variable(name),
            Origin::BuiltIn => Place::Nowhere,
        };
        Mistake { place, key: self.key, message: self.message }
    }
}

/// Every mistake of a configuration, in the order of the file.
#[derive(Clone, Debug, thiserror::Error)]
pub struct Mistakes {
    pub file: Option<PathBuf>,
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.as_ref().map_or("config".into(), |path| path.to_string_lossy());
        let lines: Vec<_> = self.mistakes.iter().map(|mistake| mistake.line(&file)).collect();
        f.write_str(&lines.join("\n"))
    }
}

impl Mistake {
    /// `larder.yaml:12:3: cache.max_sise: unknown key…`, the form that editors jump to.
    pub fn line(&self, file: &str) -> String {
        let place = match &self.place {
            Place::File(Some(Position { line, column })) => format!("{file}:{line}:{column}"),
            Place::File(None) => file.to_owned(),
            Place::Variable(name) if *name == self.key => "environment".to_owned(),
            Place::Variable(name) => format!("${name}"),
            Place::Nowhere => "defaults".to_owned(),
        };
        let key = if self.key.is_empty() { String::new() } else { format!("{}: ", self.key) };
        format!("{place}: {key}{}", self.message)
    }
}
