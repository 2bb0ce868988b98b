//! Where the databases lie: `index/<number>`, so that one that was given up, and may still be written to by a thread
//! that hangs, never shares its files with what takes its place.

use std::io;
use std::path::{Path, PathBuf};

/// A database whose successor is complete.
const OLD: &str = "old";

pub(super) struct Place {
    root: PathBuf,
    number: u32,
}

impl Place {
    /// Of two databases the lower is whole and the higher was being made of it.
    ///
    /// # Errors
    /// When the directory cannot be read or made.
    pub fn find(root: &Path) -> io::Result<Place> {
        // Of an earlier larder, which had but one database.
        if root.is_file() || root.join("db").is_file() {
            remove(root);
        }
        std::fs::create_dir_all(root)?;
        let mut numbers: Vec<u32> = Vec::new();
        for entry in std::fs::read_dir(root)? {
            numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        let number = numbers.iter().copied().min().unwrap_or_default();
        let place = Place { root: root.to_owned(), number };
        for higher in numbers.into_iter().filter(|other| *other > number) {
            remove(&place.path(higher));
        }
        remove(&place.root.join(OLD));
        Ok(place)
    }

    pub fn current(&self) -> PathBuf {
        self.path(self.number)
    }

    pub fn next(&self) -> PathBuf {
        self.path(self.number.wrapping_add(1))
    }

    /// What lies in the next place takes over.
    pub fn advance(&mut self) {
        let old = self.root.join(OLD);
        // In one step: half a database that comes first would be read at the next start.
        if let Err(error) = std::fs::rename(self.current(), &old) {
            tracing::warn!(%error, "the index was rewritten, but the old one could not be removed");
        }
        remove(&old);
        self.number = self.number.wrapping_add(1);
    }

    /// The current one is unusable: kept to be looked at, in place of the one before it, or removed.
    pub fn give_up(&mut self, keep: bool) {
        let aside = self.root.with_extension("bad");
        if keep {
            remove(&aside);
        }
        if !keep || std::fs::rename(self.current(), &aside).is_err() {
            remove(&self.current());
        }
        remove(&self.next());
        self.number = self.number.wrapping_add(1);
    }

    fn path(&self, number: u32) -> PathBuf {
        self.root.join(number.to_string())
    }
}

/// What is not there, or cannot be removed, is in nobody's way.
pub(super) fn remove(path: &Path) {
    let removed = if path.is_file() { std::fs::remove_file(path) } else { std::fs::remove_dir_all(path) };
    if let Err(error) = removed
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "not removed");
    }
}
