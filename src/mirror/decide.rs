//! What becomes of a question, from what is known before anybody is asked: serve, ask upstream, or refuse. Pure.
//! Requests act on it, and `explain` prints it. What costs a look is asked for only where it matters.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::freshness::{self, Answer, Freshness, Said, TagRules};
use super::membership::Membership;
use crate::clock::Timestamp;
use crate::labels::Outcome;
use crate::oci::Tag;
use crate::store::TagRecord;

/// What is done next. `left` is for how long that holds, where that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// From what is here.
    Serve {
        why: Why,
        outcome: Outcome,
        left: Option<Duration>,
    },
    /// Upstream has said a moment ago that there is none.
    Refuse {
        left: Duration,
    },
    Ask {
        question: Question,
        why: Why,
        left: Option<Duration>,
    },
}

/// What upstream is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    None,
    Head,
    /// GET by the digest that HEAD names, unless its bytes are here.
    HeadThenGet,
    HeadThenGetIfMoved,
    Get,
}

/// Why that is next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    Fresh,
    /// `immutable_tags`
    Immutable,
    /// By digest: it cannot change.
    Held,
    /// A download of it is under way.
    Arriving,
    Expired,
    /// Nothing is cached.
    Absent,
    /// A HEAD of a moment ago has said what the tag names.
    Named,
    /// It is here, but nothing says that this repository has it.
    Unlisted,
    /// One of the repository's manifests lists it, and a private upstream has it.
    Doubtful,
    /// Upstream has said a moment ago that there is none.
    AbsenceRemembered,
    /// All that could be asked rests.
    Rests,
    /// Upstream has not shown the repository to anybody, and cannot be asked.
    NotShown,
}

/// A blob. `absent_for`: for how long it is remembered that there is none.
pub fn blob(
    is_stored: bool,
    membership: Membership,
    absent_for: impl FnOnce() -> Option<Duration>,
    is_arriving: impl FnOnce() -> bool,
) -> Decision {
    if is_stored && membership.is_member() {
        return serve(Why::Held, Outcome::Hit);
    }
    if let Some(left) = absent_for() {
        return Decision::Refuse { left };
    }
    match is_stored {
        true => confirm(membership),
        false if membership.is_member() && is_arriving() => serve(Why::Arriving, Outcome::Collapsed),
        false => ask(Question::Get, Why::Absent),
    }
}

/// A manifest by digest. `is_stored`: as a manifest, for this repository or another.
pub fn manifest(is_stored: bool, membership: Membership, absent_for: impl FnOnce() -> Option<Duration>) -> Decision {
    if is_stored && membership.is_member() {
        return serve(Why::Held, Outcome::Hit);
    }
    match absent_for() {
        Some(left) => Decision::Refuse { left },
        None if is_stored => confirm(membership),
        None => ask(Question::Get, Why::Absent),
    }
}

/// What is known of a tag: its record, where the manifest that it names is here.
pub struct TagFacts<'a> {
    pub tag: &'a Tag,
    pub record: Option<&'a TagRecord>,
    pub rules: &'a TagRules,
    pub now: Timestamp,
}

/// A tag. `named_for`: for how long a HEAD's word is good that said what the tag names.
pub fn tag(facts: &TagFacts<'_>, absent_for: impl FnOnce() -> Option<Duration>, named_for: impl FnOnce() -> Option<Duration>) -> Decision {
    let TagFacts { tag, record, rules, now } = *facts;
    if let Freshness::Fresh { ttl } = rules.judge(tag, record, now) {
        let why = if ttl.is_some() { Why::Fresh } else { Why::Immutable };
        return Decision::Serve { why, outcome: Outcome::Hit, left: ttl };
    }
    if let Some(left) = absent_for() {
        match freshness::answer(freshness::held(record, now, rules.stale_if_error), Said::NotFound, rules.keep_deleted) {
            Answer::Serve(outcome) => return Decision::Serve { why: Why::AbsenceRemembered, outcome, left: Some(left) },
            Answer::Refuse => return Decision::Refuse { left },
            // The record came since then, and is younger than that word.
            Answer::Forget => {}
        }
    }
    if record.is_some() {
        return ask(Question::HeadThenGetIfMoved, Why::Expired);
    }
    match named_for() {
        Some(left) => Decision::Ask { question: Question::Get, why: Why::Named, left: Some(left) },
        None => ask(Question::HeadThenGet, Why::Absent),
    }
}

/// What is here, and upstream is asked whether this repository has it.
fn confirm(membership: Membership) -> Decision {
    ask(Question::Head, if membership == Membership::Unknown { Why::Unlisted } else { Why::Doubtful })
}

fn serve(why: Why, outcome: Outcome) -> Decision {
    Decision::Serve { why, outcome, left: None }
}

fn ask(question: Question, why: Why) -> Decision {
    Decision::Ask { question, why, left: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBER: Membership = Membership::Member { size: Some(1) };
    const DOUBTFUL: Membership = Membership::Doubtful { size: 1 };
    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_blob_is_served_only_to_whom_it_belongs() {
        let refuse = Decision::Refuse { left: MINUTE };
        let rows = [
            // stored, membership, remembered as absent, arriving
            (true, MEMBER, true, false, serve(Why::Held, Outcome::Hit)),
            (true, DOUBTFUL, false, false, ask(Question::Head, Why::Doubtful)),
            (true, Membership::Unknown, false, false, ask(Question::Head, Why::Unlisted)),
            (true, DOUBTFUL, true, false, refuse),
            (true, Membership::Unknown, true, false, refuse),
            (false, MEMBER, true, true, refuse),
            (false, MEMBER, false, true, serve(Why::Arriving, Outcome::Collapsed)),
            (false, Membership::Unknown, false, true, ask(Question::Get, Why::Absent)),
            (false, MEMBER, false, false, ask(Question::Get, Why::Absent)),
        ];
        for (is_stored, membership, is_absent, is_arriving, expected) in rows {
            let decided = blob(is_stored, membership, || is_absent.then_some(MINUTE), || is_arriving);
            assert_eq!(decided, expected, "{is_stored} {membership:?} {is_absent} {is_arriving}");
            if !is_arriving {
                assert_eq!(
                    manifest(is_stored, membership, || is_absent.then_some(MINUTE)),
                    expected,
                    "{is_stored} {membership:?} {is_absent}"
                );
            }
        }
    }
}
