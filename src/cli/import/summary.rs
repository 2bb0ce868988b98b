//! What an import has done: a line for people, a document for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::store::Way;

/// Files that were named, for the document; of more only the number is told.
const NAMED_MAX: usize = 1000;

/// Everything is counted once, whoever lists it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    pub blobs: Blobs,
    pub manifests: Counts,
    pub tags: Counts,
    /// Bytes of what was taken over, by whatever way.
    pub bytes: u64,
    pub seconds: f64,
    /// Images that found no room under `cache.max_size` and beside `cache.min_free`; they are the oldest.
    pub images_left_out: u64,
    /// What is damaged or cannot be used, and why.
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Blobs {
    pub reflinked: u64,
    pub hardlinked: u64,
    pub copied: u64,
    /// Were in the cache already.
    pub present: u64,
    pub damaged: u64,
    /// Larger than `cache.max_blob_size`.
    pub too_large: u64,
    /// Listed by a manifest, and never pulled through the old registry.
    pub missing: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counts {
    pub taken: u64,
    /// Were in the cache already, as they are there or younger.
    pub present: u64,
    /// Cannot be used; problems names them.
    pub skipped: u64,
}

impl Summary {
    pub(super) fn took(&mut self, way: Way, len: u64) {
        match way {
            Way::Reflinked => self.blobs.reflinked += 1,
            Way::Hardlinked => self.blobs.hardlinked += 1,
            Way::Copied => self.blobs.copied += 1,
        }
        self.bytes += len;
    }

    pub(super) fn problem(&mut self, problem: String) {
        if self.problems.len() < NAMED_MAX {
            self.problems.push(problem);
        }
    }

    pub(super) fn ended_after(&mut self, time: Duration) {
        self.seconds = (time.as_secs_f64() * 1000.0).round() / 1000.0;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Summary { blobs, manifests, tags, bytes, seconds, .. } = self;
        let taken = blobs.reflinked + blobs.hardlinked + blobs.copied;
        write!(
            f,
            "{taken} blobs taken ({} reflinked, {} hardlinked, {} copied), {} there already, {} damaged, {} too large, {} missing; \
             {} manifests taken, {} there already, {} skipped; {} tags taken, {} there already, {} skipped; {bytes} bytes in {seconds:.1} s",
            blobs.reflinked,
            blobs.hardlinked,
            blobs.copied,
            blobs.present,
            blobs.damaged,
            blobs.too_large,
            blobs.missing,
            manifests.taken,
            manifests.present,
            manifests.skipped,
            tags.taken,
            tags.present,
            tags.skipped,
        )
    }
}
