//! What came of warming, for people and for programs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use crate::labels::{BypassReason, StaleReason};
use crate::mirror::Error;
use crate::oci::Digest;
use crate::units;

/// What became of one image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warmed {
    /// `host/name:tag` or `host/name@digest`.
    pub image: String,
    /// What the tag names, if that could be found out.
    #[serde(default)]
    pub digest: Option<String>,
    /// Whether all that was wanted is here.
    pub complete: bool,
    #[serde(default)]
    pub missing: Vec<Missing>,
    /// What is worth knowing of an image that is complete all the same.
    #[serde(default)]
    pub note: Option<String>,
    /// Of blobs, from upstream, for this image.
    #[serde(default)]
    pub fetched_bytes: u64,
    /// Of blobs that were here, or that somebody else was downloading.
    #[serde(default)]
    pub held_bytes: u64,
    /// How much room it would have taken, where there was not enough.
    #[serde(default)]
    pub needs_bytes: u64,
}

/// Something of an image that is not here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Absent where it is the image itself.
    #[serde(default)]
    pub digest: Option<String>,
    #[serde(default)]
    pub bytes: u64,
    pub why: String,
}

impl Missing {
    pub(super) fn because(why: impl Into<String>) -> Missing {
        Missing { digest: None, bytes: 0, why: why.into() }
    }

    pub(super) fn of(digest: Digest, bytes: u64, why: impl Into<String>) -> Missing {
        Missing { digest: Some(digest.to_string()), bytes, why: why.into() }
    }
}

impl Warmed {
    /// Nothing is known yet, and the worst to be told if nothing comes.
    pub(super) fn of(image: String) -> Warmed {
        Warmed { image, ..Warmed::default() }
    }

    /// An image of which nothing is to be had.
    pub fn refused(image: String, why: String) -> Warmed {
        Warmed::of(image).failed(Missing::because(why))
    }

    pub(super) fn fail(&mut self, missing: Missing) {
        self.complete = false;
        self.missing.push(missing);
    }

    pub(super) fn failed(mut self, missing: Missing) -> Warmed {
        self.fail(missing);
        self
    }

    /// Why it is incomplete, each reason once.
    pub fn reasons(&self) -> Vec<(&str, usize, u64)> {
        let mut reasons: Vec<(&str, usize, u64)> = Vec::new();
        for missing in &self.missing {
            match reasons.iter_mut().find(|(why, ..)| *why == missing.why) {
                Some((_, count, bytes)) => (*count, *bytes) = (*count + 1, *bytes + missing.bytes),
                None => reasons.push((&missing.why, 1, missing.bytes)),
            }
        }
        reasons
    }
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WarmProgress {
    pub images: u64,
    pub images_total: u64,
    pub fetched_bytes: u64,
}

/// How far it is, while it goes on.
#[derive(Debug, Default)]
pub struct WarmCount {
    images: AtomicU64,
    images_total: AtomicU64,
    fetched_bytes: AtomicU64,
}

impl WarmCount {
    pub fn progress(&self) -> WarmProgress {
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        WarmProgress { images: load(&self.images), images_total: load(&self.images_total), fetched_bytes: load(&self.fetched_bytes) }
    }

    pub(super) fn expect(&self, images: usize) {
        self.images_total.fetch_add(images as u64, Ordering::Relaxed);
    }

    pub(super) fn image_done(&self) {
        self.images.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fetched(&self, bytes: u64) {
        self.fetched_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

pub(super) fn error(error: &Error, what: &str) -> String {
    match error {
        Error::NotFound { upstream, .. } => format!("{upstream} has no such {what}"),
        Error::RateLimited { upstream, retry_after: Some(after) } => {
            let after = units::duration(*after);
            format!("the limit of {upstream} is reached, for {after} more")
        }
        Error::RateLimited { upstream, retry_after: None } => format!("the limit of {upstream} is reached"),
        Error::Overloaded => "clients' downloads left no place for it (fills.max_concurrent)".into(),
        error => error.to_string(),
    }
}

pub(super) fn bypass(reason: BypassReason) -> String {
    match reason {
        BypassReason::DiskFull => "there is no room for it: raise cache.max_size, or make room on the disk".into(),
        BypassReason::Loading => "the cache directory is still being read".into(),
        BypassReason::TooLarge => "it is larger than cache.max_blob_size".into(),
        BypassReason::DiskError => "the disk failed, as the log says".into(),
    }
}

pub(super) fn stale(reason: StaleReason, upstream: &Arc<str>) -> String {
    match reason {
        StaleReason::RateLimited => format!("not confirmed: the limit of {upstream} is reached"),
        StaleReason::Unavailable => format!("not confirmed: {upstream} cannot answer"),
        StaleReason::Corrupt => format!("not confirmed: {upstream} sent what is no manifest"),
        StaleReason::Deleted => format!("{upstream} has this tag no longer (cache.keep_deleted_tags)"),
    }
}
