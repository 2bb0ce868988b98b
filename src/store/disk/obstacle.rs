//! What errors tell of a path: that something which larder did not put there stands at it, or in the way to it. Touches no disk.

use std::io;
use std::path::{Path, PathBuf};

/// A symbolic link was found where larder follows none; nobody but an attacker or a mistaken administrator put it there.
#[derive(Debug, thiserror::Error)]
#[error("a symbolic link stands in the way to {0}; larder follows none in its cache directory")]
pub struct Planted(PathBuf);

impl Planted {
    pub(in crate::store) fn at(path: &Path) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, Planted(path.to_owned()))
    }

    fn of(error: &io::Error) -> Option<&Planted> {
        error.get_ref()?.downcast_ref()
    }
}

/// Something that larder did not put there is in the way: that says nothing of the disk.
pub(in crate::store) fn is_obstructed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotADirectory | io::ErrorKind::IsADirectory | io::ErrorKind::DirectoryNotEmpty)
        || Planted::of(error).is_some()
}

/// What is in the way to `path`, as far as the error says it.
pub(in crate::store) fn obstacle<'a>(path: &'a Path, error: &'a io::Error) -> &'a Path {
    Planted::of(error).map_or(path, |planted| &planted.0)
}

/// The same error, which says what it is about.
pub(in crate::store) fn at(path: &Path, error: io::Error) -> io::Error {
    // A link that was found says its own path.
    if Planted::of(&error).is_some() { error } else { io::Error::new(error.kind(), format!("{}: {error}", path.display())) }
}
