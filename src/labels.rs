//! The closed enums that the access log, the metrics and the headers share: one word each, the same everywhere. Pure.

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

/// What a request is about, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Manifest,
    Blob,
    /// `/v2/`, listings, health, and whatever is not found.
    Other,
}

impl Kind {
    pub const LABELS: [&'static str; 3] = ["manifest", "blob", "other"];

    pub fn as_str(self) -> &'static str {
        Kind::LABELS[self as usize]
    }
}

/// What upstream is asked for, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum UpstreamKind {
    Manifest,
    Blob,
    Token,
    Listing,
}

impl UpstreamKind {
    pub const LABELS: [&'static str; 4] = ["manifest", "blob", "token", "listing"];

    pub fn as_str(self) -> &'static str {
        UpstreamKind::LABELS[self as usize]
    }
}

/// How a fill ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillResult {
    Stored,
    Bypassed,
    Failed,
}

impl FillResult {
    pub const LABELS: [&'static str; 3] = ["stored", "bypassed", "failed"];
}

/// Why upstream did not answer a question: the `reason` label of `upstream_errors_total` and `upstream_retries_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorReason {
    NotFound,
    Denied,
    Credential,
    RateLimited,
    Timeout,
    Corrupt,
    Dns,
    Connect,
    Tls,
    /// An address that larder may not connect to.
    Blocked,
    Status,
    Broken,
}

impl ErrorReason {
    pub const LABELS: [&'static str; 12] =
        ["not_found", "denied", "credential", "rate_limited", "timeout", "corrupt", "dns", "connect", "tls", "blocked", "status", "broken"];

    pub fn as_str(self) -> &'static str {
        ErrorReason::LABELS[self as usize]
    }
}
