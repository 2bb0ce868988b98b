//! How a request was answered: one closed word for the log field, the metric label and the `Cache-Status` header.

/// The contract's closed enum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// From the cache, without a word to upstream.
    Hit,
    /// Fetched for this request.
    Miss,
    /// Joined a fetch that another request had begun.
    Collapsed,
    /// A held tag that upstream confirmed.
    Revalidated,
    /// A held tag that upstream had moved.
    Updated,
    /// A held tag that upstream did not confirm.
    Stale(StaleReason),
    /// Passed through without being stored.
    Bypass(BypassReason),
    /// "Not found", remembered.
    Negative,
    /// Refused by upstream or by policy.
    Denied,
    /// Everything else that is not an answer.
    Error,
}

/// Why a tag is served without upstream's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StaleReason {
    RateLimited,
    Unavailable,
    Corrupt,
    /// Upstream has it no longer, and `keep_deleted_tags` keeps it.
    Deleted,
}

/// Why a blob is not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BypassReason {
    /// The disk refused, or nothing may be evicted to make room.
    DiskFull,
    /// The cache directory is still being read, and how much room there is not known.
    Loading,
    /// Larger than `cache.max_blob_size`.
    TooLarge,
    /// The disk failed otherwise.
    DiskError,
}

impl Outcome {
    pub const LABELS: [&'static str; 10] =
        ["hit", "miss", "collapsed", "revalidated", "updated", "stale", "bypass", "negative", "denied", "error"];

    /// The label in metrics and log.
    pub fn as_str(self) -> &'static str {
        Outcome::LABELS[self.index()]
    }

    /// Its place in [`Outcome::LABELS`].
    pub fn index(self) -> usize {
        match self {
            Outcome::Hit => 0,
            Outcome::Miss => 1,
            Outcome::Collapsed => 2,
            Outcome::Revalidated => 3,
            Outcome::Updated => 4,
            Outcome::Stale(_) => 5,
            Outcome::Bypass(_) => 6,
            Outcome::Negative => 7,
            Outcome::Denied => 8,
            Outcome::Error => 9,
        }
    }

    /// The reason beside the outcome, where it has one.
    pub fn reason(self) -> Option<&'static str> {
        match self {
            Outcome::Stale(reason) => Some(reason.as_str()),
            Outcome::Bypass(reason) => Some(reason.as_str()),
            _ => None,
        }
    }

    /// `Cache-Status` (RFC 9211) as it is known when the headers leave. `ttl` is the remaining freshness of a tag in
    /// seconds, negative when it is past.
    pub fn cache_status(self, ttl: Option<i64>) -> String {
        let ttl = ttl.map(|seconds| format!("; ttl={seconds}")).unwrap_or_default();
        match self {
            Outcome::Hit => format!("larder; hit{ttl}"),
            Outcome::Miss => "larder; fwd=uri-miss".into(),
            Outcome::Collapsed => "larder; fwd=uri-miss; collapsed".into(),
            Outcome::Revalidated => "larder; fwd=stale; detail=revalidated".into(),
            Outcome::Updated => "larder; fwd=stale; detail=updated".into(),
            Outcome::Stale(reason) => format!("larder; hit{ttl}; detail=stale-{}", reason.as_str()),
            Outcome::Bypass(reason) => format!("larder; fwd=bypass; detail={}", reason.as_str()),
            Outcome::Negative => "larder; hit; detail=negative".into(),
            Outcome::Denied => "larder; fwd=uri-miss; detail=denied".into(),
            Outcome::Error => "larder; fwd=uri-miss; detail=error".into(),
        }
    }
}

impl StaleReason {
    pub const LABELS: [&'static str; 4] = ["rate-limited", "unavailable", "corrupt", "deleted"];

    pub fn as_str(self) -> &'static str {
        StaleReason::LABELS[self as usize]
    }
}

impl BypassReason {
    pub fn as_str(self) -> &'static str {
        match self {
            BypassReason::DiskFull => "disk-full",
            BypassReason::Loading => "loading",
            BypassReason::TooLarge => "too-large",
            BypassReason::DiskError => "disk-error",
        }
    }
}
