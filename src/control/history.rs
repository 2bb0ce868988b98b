//! What the cache was good for in the last days, across restarts: tallies by the hour, in one small file. Pure.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::metrics::Totals;
use crate::units::size;

const HOUR_MILLIS: u64 = 3_600_000;
const WEEK_HOURS: u64 = 7 * 24;
/// Hours kept. A clock that jumps may leave some of its own behind, which go when these are too many.
const HOURS_MAX: usize = 400;
/// How often the line is told.
const TELL_HOURS: u64 = 24;

/// What happened in some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Images asked for and served.
    pub pulls: u64,
    /// GETs of manifests, which registries count and limit.
    pub counted_gets: u64,
    pub sent_bytes: u64,
    pub received_bytes: u64,
    /// Minutes in which somebody got a tag that upstream could not confirm, for an outage or a limit.
    pub hidden_minutes: u64,
}

impl Tally {
    /// What happened within a minute, from two looks at the totals.
    pub fn between(before: &Totals, after: &Totals) -> Tally {
        Tally {
            pulls: after.pulls - before.pulls.min(after.pulls),
            counted_gets: after.counted_gets - before.counted_gets.min(after.counted_gets),
            sent_bytes: after.sent_bytes - before.sent_bytes.min(after.sent_bytes),
            received_bytes: after.received_bytes - before.received_bytes.min(after.received_bytes),
            hidden_minutes: u64::from(after.unconfirmed > before.unconfirmed),
        }
    }

    /// Bytes that clients got and upstreams did not send.
    pub fn saved_bytes(&self) -> u64 {
        self.sent_bytes.saturating_sub(self.received_bytes)
    }

    /// The file may say anything, so that sums may be too large.
    pub fn add(&mut self, other: &Tally) {
        self.pulls = self.pulls.saturating_add(other.pulls);
        self.counted_gets = self.counted_gets.saturating_add(other.counted_gets);
        self.sent_bytes = self.sent_bytes.saturating_add(other.sent_bytes);
        self.received_bytes = self.received_bytes.saturating_add(other.received_bytes);
        self.hidden_minutes = self.hidden_minutes.saturating_add(other.hidden_minutes);
    }
}

/// What the mirror was good for in a week, as one line.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { pulls, counted_gets, hidden_minutes, .. } = self;
        let saved = size(self.saved_bytes());
        write!(
            f,
            "7 days: {pulls} pulls, {counted_gets} counted upstream GETs, {saved} not downloaded, {hidden_minutes} outage minutes hidden"
        )
    }
}

/// Tallies by the hour of wall time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    hours: BTreeMap<u64, Tally>,
    /// The hour in which it was told last.
    told: Option<u64>,
}

impl History {
    pub fn add(&mut self, now: Timestamp, tally: &Tally) {
        let hour = hour(now);
        if *tally != Tally::default() {
            self.hours.entry(hour).or_default().add(tally);
        }
        while self.hours.len() > HOURS_MAX {
            // What lies farthest away, in either direction.
            let ends = [self.hours.keys().next(), self.hours.keys().next_back()];
            let farthest = ends.into_iter().flatten().copied().max_by_key(|other| other.abs_diff(hour));
            farthest.map(|hour| self.hours.remove(&hour));
        }
    }

    /// The last seven days.
    pub fn week(&self, now: Timestamp) -> Tally {
        let now = hour(now);
        let mut week = Tally::default();
        for (_, tally) in self.hours.range(now.saturating_sub(WEEK_HOURS - 1)..=now) {
            week.add(tally);
        }
        week
    }

    /// Whether it is time to tell, once a day; then it counts as told.
    pub fn is_due(&mut self, now: Timestamp) -> bool {
        let now = hour(now);
        // A clock that was set back must not silence it for long.
        let due = self.told.is_some_and(|told| now.abs_diff(told) >= TELL_HOURS);
        if due || self.told.is_none() {
            self.told = Some(now);
        }
        due
    }
}

fn hour(time: Timestamp) -> u64 {
    time.0 / HOUR_MILLIS
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_219_200_000);

    fn at(hours: i64) -> Timestamp {
        Timestamp(NOW.0.saturating_add_signed(hours * 3_600_000))
    }

    fn pulls(pulls: u64) -> Tally {
        Tally { pulls, ..Tally::default() }
    }

    #[test]
    fn a_week_is_what_the_last_seven_days_had() {
        let mut history = History::default();
        for (hours, count) in [(-168, 1), (-167, 10), (-1, 100), (0, 1000), (0, 1000), (5, 10_000)] {
            history.add(at(hours), &pulls(count));
        }
        assert_eq!(history.week(NOW).pulls, 2110);
        assert_eq!(history.week(at(9 * 24)).pulls, 0);
    }

    #[test]
    fn a_file_with_absurd_numbers_makes_no_sum_overflow() {
        let most = u64::MAX;
        let text = format!(
            r#"{{"hours":{{"{}":{{"pulls":{most},"counted_gets":{most},"sent_bytes":{most},"received_bytes":{most},"hidden_minutes":{most}}}}},"told":{most}}}"#,
            hour(NOW)
        );
        let mut history: History = serde_json::from_str(&text).unwrap();
        history.add(NOW, &Tally { pulls: 1, counted_gets: 1, sent_bytes: 1, received_bytes: 1, hidden_minutes: 1 });
        assert_eq!((history.week(NOW).pulls, history.week(Timestamp(most)).pulls, history.is_due(NOW)), (most, 0, true));
    }

    #[test]
    fn a_clock_that_jumps_makes_it_neither_grow_nor_fall_silent() {
        let mut history = History::default();
        for hours in (0..1000).chain(80_000..81_000).chain(0..50) {
            history.add(at(hours), &pulls(1));
        }
        assert!(history.hours.len() <= HOURS_MAX);
        assert_eq!(history.week(at(49)).pulls, 50, "what is near stays");
        assert!(!history.is_due(at(90_000)), "it has only begun");
        assert!(history.is_due(at(0)) && !history.is_due(at(23)) && history.is_due(at(24)));
    }

    #[test]
    fn a_minute_is_hidden_if_somebody_got_what_upstream_could_not_confirm() {
        let before = Totals { pulls: 1, counted_gets: 1, sent_bytes: 10, received_bytes: 10, unconfirmed: 4 };
        let after = Totals { pulls: 3, sent_bytes: 30, received_bytes: 15, unconfirmed: 9, ..before };
        let tally = Tally::between(&before, &after);
        assert_eq!(tally, Tally { pulls: 2, counted_gets: 0, sent_bytes: 20, received_bytes: 5, hidden_minutes: 1 });
        assert_eq!(tally.saved_bytes(), 15);
        assert_eq!(Tally::between(&after, &after), Tally::default());
    }
}
