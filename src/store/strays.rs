//! What stands in the cache directory and is not larder's, or cannot be read: a warning for each path, once in the life of a process. Knows
//! neither what larder's names are nor what is done about what is not one.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;

/// Paths that are named: whoever unpacks an archive into the cache directory fills no log with it.
const NAMED_MAX: usize = 100;
/// Paths that are counted beyond these, by a hash each: half a megabyte.
const COUNTED_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Strays {
    reported: Mutex<Reported>,
}

#[derive(Default)]
struct Reported {
    named: HashSet<PathBuf>,
    counted: HashSet<u64>,
    hasher: RandomState,
    is_count_logged: bool,
}

impl Strays {
    /// Something that larder did not put there, and what of it tells that.
    pub(super) fn foreign(&self, path: &Path, what: &str) {
        if self.is_news(path) {
            let path = path.display();
            tracing::warn!(%path, what, "found in the cache directory and not larder's; left as it is, neither counted nor evicted");
        }
    }

    /// Something that cannot be read, or only not as what it should be.
    pub(super) fn unreadable(&self, path: &Path, error: &io::Error) {
        if self.is_news(path) {
            tracing::warn!(path = %path.display(), %error, "cannot be read; left out until it can be, which is tried again");
        }
    }

    /// The directory was walked: says, once, how many more there are than were named.
    pub(super) fn walked(&self) {
        let mut reported = self.reported.lock();
        let more = reported.counted.len();
        if more > 0 && !std::mem::replace(&mut reported.is_count_logged, true) {
            tracing::warn!(more, "further paths in the cache directory are not larder's, or cannot be read; they are not named");
        }
    }

    /// Whether a path has to be named.
    fn is_news(&self, path: &Path) -> bool {
        let mut reported = self.reported.lock();
        if reported.named.contains(path) {
            return false;
        }
        if reported.named.len() < NAMED_MAX {
            return reported.named.insert(path.to_owned());
        }
        if reported.counted.len() < COUNTED_MAX {
            let hash = reported.hasher.hash_one(path);
            reported.counted.insert(hash);
        }
        false
    }
}
