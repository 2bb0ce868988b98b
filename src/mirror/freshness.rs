//! How long a tag is believed, and what is answered when upstream does not confirm it: two tables, pure.

use std::time::Duration;

use super::outcome::{Outcome, StaleReason};
use crate::clock::Timestamp;
use crate::store::TagRecord;
use crate::upstream::UpstreamError;

/// What a tag's record is worth without asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// Serve it; it is good for so long yet.
    Fresh {
        ttl: Duration,
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
pub fn judge(record: Option<&TagRecord>, now: Timestamp, tag_ttl: Duration) -> Freshness {
    let Some(record) = record else { return Freshness::Absent };
    match now.since(record.checked_at).and_then(|age| tag_ttl.checked_sub(age)) {
        Some(ttl) if !ttl.is_zero() => Freshness::Fresh { ttl },
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

/// The contract's table.
pub fn answer(held: Held, said: Said) -> Answer {
    let stale = |reason| match held {
        Held::Within => Answer::Serve(Outcome::Stale(reason)),
        Held::Nothing | Held::Beyond => Answer::Refuse,
    };
    match said {
        Said::Same => Answer::Serve(Outcome::Revalidated),
        Said::Moved if held == Held::Nothing => Answer::Serve(Outcome::Miss),
        Said::Moved => Answer::Serve(Outcome::Updated),
        Said::NotFound if held == Held::Nothing => Answer::Refuse,
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
            UpstreamError::Unavailable { .. } | UpstreamError::TimedOut { .. } => Said::Unavailable,
            UpstreamError::Corrupt { .. } => Said::Corrupt,
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
        TagRecord { descriptor, checked_at: Timestamp(checked_at) }
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
            let row = [Held::Nothing, Held::Within, Held::Beyond].map(|held| answer(held, said));
            assert_eq!(row, [nothing, within, beyond], "{said:?}");
        }
        for held in [Held::Within, Held::Beyond] {
            assert_eq!(answer(held, Same), Serve(Outcome::Revalidated));
        }
    }

    #[test]
    fn a_tag_is_fresh_for_its_ttl_and_not_a_moment_longer() {
        let record = record(1_000);
        let at = |now| judge(Some(&record), Timestamp(now), Duration::from_secs(5));
        assert_eq!(at(1_000), Freshness::Fresh { ttl: Duration::from_secs(5) });
        assert_eq!(at(5_999), Freshness::Fresh { ttl: Duration::from_millis(1) });
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
