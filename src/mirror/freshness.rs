//! How long a tag is believed, and what is answered when upstream does not confirm it: two tables, pure.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::config::Patterns;
use crate::labels::{Outcome, StaleReason};
use crate::oci::Tag;
use crate::store::TagRecord;
use crate::upstream::UpstreamError;

/// Signatures, attestations and referrers by tag grow whenever somebody signs: this is how long one may go unseen.
const SIGNATURE_TTL_MAX: Duration = Duration::from_secs(30);
/// Who verifies right after somebody signed shall not be told for long that nobody did.
const SIGNATURE_NEGATIVE_TTL_MAX: Duration = Duration::from_secs(5);

/// What the configuration says about an upstream's tags.
#[derive(Clone, Debug, Default)]
pub struct TagRules {
    pub tag_ttl: Duration,
    pub stale_if_error: Duration,
    /// Tags that never move once they are held.
    pub immutable: Patterns,
    /// Serve a held tag that upstream has no longer.
    pub keep_deleted: bool,
}

impl TagRules {
    /// How long upstream's word on a tag is good.
    pub fn ttl(&self, tag: &Tag) -> Duration {
        if is_signature(tag) { self.tag_ttl.min(SIGNATURE_TTL_MAX) } else { self.tag_ttl }
    }

    /// What the record of a tag is worth. Signatures are no constants, whatever `immutable_tags` says: `.*` means images.
    pub fn judge(&self, tag: &Tag, record: Option<&TagRecord>, now: Timestamp) -> Freshness {
        match record {
            Some(_) if self.immutable.matches(tag.as_str()) && !is_signature(tag) => Freshness::Fresh { ttl: None },
            _ => judge(record, now, self.ttl(tag)),
        }
    }
}

/// How long a tag's absence is remembered.
pub fn negative_ttl(tag: &Tag, negative_ttl: Duration) -> Duration {
    if is_signature(tag) { negative_ttl.min(SIGNATURE_NEGATIVE_TTL_MAX) } else { negative_ttl }
}

/// The tags in which cosign keeps what it knows of a digest, and the referrers of one where upstream has no API for them:
/// `sha256-<hex>`, `sha256-<hex>.sig`. Longer digests are cut to 64 digits: tags have no room for more.
fn is_signature(tag: &Tag) -> bool {
    let Some((algorithm, rest)) = tag.as_str().split_once('-') else { return false };
    let (hex, suffix) = rest.split_once('.').unwrap_or((rest, ""));
    matches!(algorithm, "sha256" | "sha512")
        && hex.len() == 64
        && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        && (hex == rest || matches!(suffix, "sig" | "att" | "sbom"))
}

/// What a tag's record is worth without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve it; it is good for so long yet, or (`None`) for good.
    Fresh {
        ttl: Option<Duration>,
    },
    /// Ask upstream first.
    Expired,
    Absent,
}

/// What is held for an expired tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Nothing,
    /// Upstream's word is younger than `stale_if_error`.
    Within,
    Beyond,
}

/// What upstream said of a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    Same,
    /// Another digest, whose bytes are here and verify.
    Moved,
    NotFound,
    Denied,
    CredentialRefused,
    RateLimited,
    Unavailable,
    Corrupt,
}

/// What of a held tag's content is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// All that a client goes on to ask for; of an index, for one platform at least.
    Whole,
    /// A manifest is here, or one of an index's, but not all its blobs.
    BlobsMissing,
    /// None of the manifests that an index lists.
    ManifestsMissing,
}

/// What the client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The manifest, old or new.
    Serve(Outcome),
    /// Upstream's failure, as an error.
    Refuse,
    /// As `Refuse`, and the record goes.
    Forget,
}

/// A record is fresh for `tag_ttl` after upstream's last word. One from the future (the clock was set back) is expired.
fn judge(record: Option<&TagRecord>, now: Timestamp, tag_ttl: Duration) -> Freshness {
    let Some(record) = record else { return Freshness::Absent };
    match now.since(record.checked_at).and_then(|age| tag_ttl.checked_sub(age)) {
        Some(ttl) if !ttl.is_zero() => Freshness::Fresh { ttl: Some(ttl) },
        _ => Freshness::Expired,
    }
}

/// Whether a record may stand in while upstream cannot answer.
pub fn held(record: Option<&TagRecord>, now: Timestamp, stale_if_error: Duration) -> Held {
    match record {
        None => Held::Nothing,
        Some(record) if distance(record, now) <= stale_if_error => Held::Within,
        Some(_) => Held::Beyond,
    }
}

/// How far away upstream's last word is. A record from the future counts, too, so that a clock that was wrong makes no tag
/// immortal.
pub fn distance(record: &TagRecord, now: Timestamp) -> Duration {
    now.since(record.checked_at).or_else(|| record.checked_at.since(now)).unwrap_or_default()
}

/// Whether what is held may still stand in, once it is known how much of it is here: a manifest whose content can be
/// completed neither from the cache nor from upstream is worse than an error, which clients can fall back from.
pub fn stands_in(held: Held, said: Said, content: Content) -> Held {
    let completes = match said {
        Said::CredentialRefused | Said::Unavailable => content == Content::Whole,
        // No registry counts blobs, and a blob's digest tells a lie; a manifest could not be had.
        Said::RateLimited | Said::Corrupt => content != Content::ManifestsMissing,
        Said::Same | Said::Moved | Said::NotFound | Said::Denied => true,
    };
    if held == Held::Within && !completes { Held::Beyond } else { held }
}

/// The contract's table.
pub fn answer(held: Held, said: Said, keep_deleted: bool) -> Answer {
    let stale = |reason| match held {
        Held::Within => Answer::Serve(Outcome::Stale(reason)),
        Held::Nothing | Held::Beyond => Answer::Refuse,
    };
    match said {
        Said::Same => Answer::Serve(Outcome::Revalidated),
        Said::Moved if held == Held::Nothing => Answer::Serve(Outcome::Miss),
        Said::Moved => Answer::Serve(Outcome::Updated),
        Said::NotFound if held == Held::Nothing => Answer::Refuse,
        Said::NotFound if keep_deleted => Answer::Serve(Outcome::Stale(StaleReason::Deleted)),
        Said::NotFound => Answer::Forget,
        Said::Denied => Answer::Refuse,
        Said::CredentialRefused | Said::Unavailable => stale(StaleReason::Unavailable),
        Said::RateLimited => stale(StaleReason::RateLimited),
        Said::Corrupt => stale(StaleReason::Corrupt),
    }
}

impl From<&UpstreamError> for Said {
    fn from(error: &UpstreamError) -> Said {
        match error {
            UpstreamError::NotFound => Said::NotFound,
            UpstreamError::Denied { .. } => Said::Denied,
            UpstreamError::CredentialRefused { .. } => Said::CredentialRefused,
            UpstreamError::RateLimited { .. } => Said::RateLimited,
            UpstreamError::Unavailable { .. }
            | UpstreamError::TimedOut { .. }
            | UpstreamError::Busy { .. }
            | UpstreamError::Overloaded { .. }
            | UpstreamError::Internal { .. } => Said::Unavailable,
            UpstreamError::Corrupt { .. } | UpstreamError::SchemaOne => Said::Corrupt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Descriptor, Digest};

    const HOUR: Duration = Duration::from_secs(3600);

    fn record(checked_at: u64) -> TagRecord {
        let descriptor = Descriptor { media_type: "a/b".parse().expect("a type"), digest: Digest::of(Algorithm::Sha256, b""), size: 0 };
        TagRecord::new(descriptor, Timestamp(checked_at))
    }

    #[test]
    fn invariant_11_the_table_of_the_contract() {
        use Answer::{Forget, Refuse, Serve};
        use Said::{Corrupt, CredentialRefused, Denied, Moved, NotFound, RateLimited, Same, Unavailable};
        let stale = |reason| Serve(Outcome::Stale(reason));
        let rows = [
            // said, nothing held, within, beyond
            (Moved, Serve(Outcome::Miss), Serve(Outcome::Updated), Serve(Outcome::Updated)),
            (NotFound, Refuse, Forget, Forget),
            (Denied, Refuse, Refuse, Refuse),
            (CredentialRefused, Refuse, stale(StaleReason::Unavailable), Refuse),
            (RateLimited, Refuse, stale(StaleReason::RateLimited), Refuse),
            (Unavailable, Refuse, stale(StaleReason::Unavailable), Refuse),
            (Corrupt, Refuse, stale(StaleReason::Corrupt), Refuse),
        ];
        for (said, nothing, within, beyond) in rows {
            let row = [Held::Nothing, Held::Within, Held::Beyond].map(|held| answer(held, said, false));
            assert_eq!(row, [nothing, within, beyond], "{said:?}");
            let kept = stale(StaleReason::Deleted);
            let expected = if said == NotFound { [nothing, kept, kept] } else { row };
            assert_eq!([Held::Nothing, Held::Within, Held::Beyond].map(|held| answer(held, said, true)), expected, "{said:?}, kept");
        }
        for held in [Held::Within, Held::Beyond] {
            assert_eq!(answer(held, Same, false), Serve(Outcome::Revalidated));
        }
    }

    #[test]
    fn clients_39_what_cannot_be_completed_does_not_stand_in() {
        use Said::{Corrupt, CredentialRefused, Denied, Moved, NotFound, RateLimited, Same, Unavailable};
        let rows = [
            // said, whole, blobs missing, manifests missing
            (Unavailable, [true, false, false]),
            (CredentialRefused, [true, false, false]),
            (RateLimited, [true, true, false]),
            (Corrupt, [true, true, false]),
            (Same, [true; 3]),
            (Moved, [true; 3]),
            (NotFound, [true; 3]),
            (Denied, [true; 3]),
        ];
        let contents = [Content::Whole, Content::BlobsMissing, Content::ManifestsMissing];
        for (said, expected) in rows {
            assert_eq!(contents.map(|content| stands_in(Held::Within, said, content) == Held::Within), expected, "{said:?}");
            for held in [Held::Nothing, Held::Beyond] {
                assert_eq!(contents.map(|content| stands_in(held, said, content)), [held; 3], "{said:?}");
            }
        }
    }

    fn tag(text: &str) -> Tag {
        text.parse().expect("a tag")
    }

    #[test]
    fn an_immutable_tag_is_fresh_for_good_once_it_is_held() {
        let immutable = Patterns::new(&[r"v\d+".into()]).expect("a pattern");
        let rules = TagRules { tag_ttl: Duration::from_secs(5), immutable, ..TagRules::default() };
        let record = record(1_000);
        let at = |text: &str, now| rules.judge(&tag(text), Some(&record), Timestamp(now));
        assert_eq!(at("v1", u64::MAX), Freshness::Fresh { ttl: None });
        assert_eq!(at("v1", 0), Freshness::Fresh { ttl: None }, "a record from the future");
        assert_eq!(at("v1-rc", 6_000), Freshness::Expired, "the whole tag must match");
        assert_eq!(at("v1-rc", 1_000), Freshness::Fresh { ttl: Some(Duration::from_secs(5)) });
        assert_eq!(rules.judge(&tag("v1"), None, Timestamp(0)), Freshness::Absent);
    }

    #[test]
    fn credential_24_what_cosign_keeps_in_tags_has_a_short_memory() {
        let hex = "0123456789abcdef".repeat(4);
        let rules = TagRules { tag_ttl: HOUR, immutable: Patterns::new(&[".*".into()]).expect("a pattern"), ..TagRules::default() };
        let old = record(0);
        for text in
            ["", ".sig", ".att", ".sbom"].map(|suffix| format!("sha256-{hex}{suffix}")).into_iter().chain([format!("sha512-{hex}.sig")])
        {
            let tag = tag(&text);
            assert_eq!((rules.ttl(&tag).as_secs(), negative_ttl(&tag, HOUR).as_secs()), (30, 5), "{text}");
            assert_eq!(rules.judge(&tag, Some(&old), Timestamp(30_000)), Freshness::Expired, "{text} is never immutable");
            let shorter = TagRules { tag_ttl: Duration::from_secs(3), ..TagRules::default() };
            assert_eq!((shorter.ttl(&tag).as_secs(), negative_ttl(&tag, Duration::from_secs(2)).as_secs()), (3, 2), "{text}");
        }
        for text in ["latest", "sha256-abc", "1.2.3", "sha256"].map(String::from).into_iter().chain([
            format!("sha256-{hex}.exe"),
            format!("sha256-{hex}."),
            format!("sha256-{}", hex.to_uppercase()),
            format!("md5-{hex}"),
        ]) {
            assert_eq!((rules.ttl(&tag(&text)), negative_ttl(&tag(&text), HOUR)), (HOUR, HOUR), "{text}");
        }
    }

    #[test]
    fn a_tag_is_fresh_for_its_ttl_and_not_a_moment_longer() {
        let record = record(1_000);
        let at = |now| judge(Some(&record), Timestamp(now), Duration::from_secs(5));
        assert_eq!(at(1_000), Freshness::Fresh { ttl: Some(Duration::from_secs(5)) });
        assert_eq!(at(5_999), Freshness::Fresh { ttl: Some(Duration::from_millis(1)) });
        assert_eq!(at(6_000), Freshness::Expired);
        assert_eq!(at(999), Freshness::Expired, "a record from the future");
        assert_eq!(judge(Some(&record), Timestamp(1_000), Duration::ZERO), Freshness::Expired);
        assert_eq!(judge(None, Timestamp(0), HOUR), Freshness::Absent);
    }

    #[test]
    fn no_clock_makes_a_tag_immortal() {
        let hour = 3_600_000;
        let at = |checked_at, now| held(Some(&record(checked_at)), Timestamp(now), HOUR);
        assert_eq!(at(0, hour), Held::Within);
        assert_eq!(at(0, hour + 1), Held::Beyond);
        assert_eq!(at(hour, 0), Held::Within);
        assert_eq!(at(hour + 1, 0), Held::Beyond);
    }
}
