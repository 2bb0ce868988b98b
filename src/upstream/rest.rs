//! Leaving something alone for a while: a host that is down, a credential at its limit, a login that was refused. Pure.
//!
//! While it rests nobody asks. When the time is over one question goes out as a probe, and what becomes of it decides for all.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::UpstreamError;

/// Faults in a row, over at least [`FAULTS_FOR`], after which a host is left alone: a blip shorter than that costs no pull.
const FAULTS_MAX: u32 = 5;
const FAULTS_FOR: Duration = Duration::from_secs(1);
/// A probe that tells nothing within this time makes way for another.
const PROBE_LEASE: Duration = Duration::from_secs(25);

/// How long to rest when nobody says: the first time, and at most.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    pub(super) first: Duration,
    pub(super) max: Duration,
}

impl Backoff {
    fn after(self, rests: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(rests.min(16))).min(self.max)
    }
}

/// Something that may have to rest. A question that had begun before a rest began says nothing about it.
#[derive(Debug, Default)]
pub(super) struct Rest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: u32,
    faulty_since: Option<Instant>,
    /// In a row, without a success between.
    rests: u32,
    resting: Option<Resting>,
}

#[derive(Clone, Debug)]
struct Resting {
    since: Instant,
    until: Instant,
    why: UpstreamError,
}

impl Rest {
    /// Lets a question pass, unless it is to rest; after a rest, one question only.
    ///
    /// # Errors
    /// With the reason for the rest, and how long it will last.
    pub(super) fn enter(&self, now: Instant) -> Result<(), UpstreamError> {
        let mut state = self.state();
        let Some(resting) = &mut state.resting else { return Ok(()) };
        if now < resting.until {
            return Err(remaining(&resting.why, resting.until - now));
        }
        resting.until = now + PROBE_LEASE;
        Ok(())
    }

    /// What who asks now would be told, without asking.
    pub(super) fn told(&self, now: Instant) -> Option<UpstreamError> {
        let state = self.state();
        let resting = state.resting.as_ref().filter(|resting| now < resting.until)?;
        Some(remaining(&resting.why, resting.until - now))
    }

    /// How long it is to rest yet.
    #[cfg(test)]
    fn rests(&self, now: Instant) -> Option<Duration> {
        self.state().resting.as_ref().and_then(|resting| resting.until.checked_duration_since(now)).filter(|rest| !rest.is_zero())
    }

    /// A question that began then has been answered. Returns whether that ended a rest.
    pub(super) fn succeeded(&self, begun: Instant) -> bool {
        let mut state = self.state();
        if state.is_late(begun) {
            return false;
        }
        let ended = state.resting.is_some();
        *state = State::default();
        ended
    }

    /// A question that began then has failed. After some in a row, or one that took very long, a rest begins. Returns whether
    /// this began one.
    pub(super) fn failed(
        &self,
        begun: Instant,
        now: Instant,
        why: &UpstreamError,
        backoff: Backoff,
        jitter: impl Fn(Duration) -> Duration,
    ) -> bool {
        let mut state = self.state();
        if state.is_late(begun) {
            return false;
        }
        state.faults += 1;
        let since = *state.faulty_since.get_or_insert(now);
        let many = state.faults >= FAULTS_MAX && now - since >= FAULTS_FOR;
        if !(many || state.resting.is_some() || matches!(why, UpstreamError::TimedOut { .. })) {
            return false;
        }
        let began = state.resting.is_none();
        let rest = jitter(backoff.after(state.rests));
        state.begin(now, rest, why);
        began
    }

    /// Begins a rest, or lengthens it. `asked`: how long, where that was said. Returns how long it is, and whether it began.
    pub(super) fn begin(
        &self,
        begun: Instant,
        now: Instant,
        why: &UpstreamError,
        asked: Option<Duration>,
        backoff: Backoff,
        jitter: impl Fn(Duration) -> Duration,
    ) -> (Duration, bool) {
        let mut state = self.state();
        if let Some(resting) = state.resting.as_ref().filter(|_| state.is_late(begun)) {
            return (resting.until.saturating_duration_since(now), false);
        }
        let began = state.resting.is_none();
        let rest = asked.unwrap_or_else(|| jitter(backoff.after(state.rests)));
        state.begin(now, rest, why);
        (rest, began)
    }

    /// The probe was answered, and the reason for the rest has not gone. Begins none.
    pub(super) fn goes_on(&self, begun: Instant, now: Instant, rest: Duration) {
        let mut state = self.state();
        if let Some(resting) = state.resting.clone().filter(|_| !state.is_late(begun)) {
            state.begin(now, rest, &resting.why);
        }
    }

    /// Forgets all.
    pub(super) fn clear(&self) {
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn is_late(&self, begun: Instant) -> bool {
        self.resting.as_ref().is_some_and(|resting| begun < resting.since)
    }

    fn begin(&mut self, now: Instant, rest: Duration, why: &UpstreamError) {
        self.rests = self.rests.saturating_add(1);
        self.resting = Some(Resting { since: now, until: now + rest, why: why.clone() });
    }
}

/// The reason, as it concerns whoever asks in the midst of it.
fn remaining(why: &UpstreamError, rest: Duration) -> UpstreamError {
    match why {
        UpstreamError::RateLimited { .. } => UpstreamError::RateLimited { retry_after: Some(rest) },
        why => why.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::UnavailableReason;

    const BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(5) };

    fn down() -> UpstreamError {
        UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: "refused".into() }
    }

    fn fail(rest: &Rest, at: Instant, why: &UpstreamError) -> bool {
        rest.failed(at, at, why, BACKOFF, |rest| rest)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_blip_is_no_reason_to_rest_and_an_outage_is() {
        let (rest, start) = (Rest::default(), Instant::now());
        for _ in 0..50 {
            assert!(!fail(&rest, start, &down()), "all within a moment");
        }
        assert_eq!(rest.enter(start), Ok(()));
        assert!(fail(&rest, start + seconds(1), &down()));
        assert_eq!(rest.enter(start + seconds(1)), Err(down()));
        assert_eq!(rest.rests(start + seconds(1)), Some(seconds(1)));
    }

    #[test]
    fn one_silence_is_enough() {
        let (rest, start) = (Rest::default(), Instant::now());
        assert!(fail(&rest, start, &UpstreamError::TimedOut { detail: String::new() }));
    }

    #[test]
    fn one_probe_goes_out_and_decides_for_all() {
        let (rest, start) = (Rest::default(), Instant::now());
        let limited = UpstreamError::RateLimited { retry_after: None };
        assert_eq!(rest.begin(start, start, &limited, Some(seconds(60)), BACKOFF, |rest| rest), (seconds(60), true));
        let in_between = UpstreamError::RateLimited { retry_after: Some(seconds(40)) };
        assert_eq!((rest.told(start + seconds(20)), rest.enter(start + seconds(20))), (Some(in_between.clone()), Err(in_between)));
        let back = start + seconds(60);
        assert_eq!(rest.told(back), None);
        assert_eq!(rest.enter(back), Ok(()), "the probe");
        assert!(rest.enter(back).is_err(), "nobody else");
        rest.begin(back, back, &limited, None, BACKOFF, |rest| rest);
        assert_eq!(rest.rests(back), Some(seconds(2)), "longer each time");
        let back = back + seconds(2);
        assert_eq!(rest.enter(back), Ok(()));
        assert!(rest.succeeded(back));
        assert_eq!((rest.enter(back), rest.enter(back)), (Ok(()), Ok(())));
    }

    #[test]
    fn a_probe_may_find_that_the_rest_must_go_on() {
        let (rest, start) = (Rest::default(), Instant::now());
        rest.goes_on(start, start, seconds(60));
        assert_eq!(rest.enter(start), Ok(()), "there was none");
        rest.begin(start, start, &down(), Some(seconds(1)), BACKOFF, |rest| rest);
        let back = start + seconds(1);
        assert_eq!(rest.enter(back), Ok(()));
        rest.goes_on(back, back, seconds(60));
        assert_eq!((rest.rests(back), rest.enter(back)), (Some(seconds(60)), Err(down())));
    }

    #[test]
    fn a_probe_that_never_tells_makes_way() {
        let (rest, start) = (Rest::default(), Instant::now());
        rest.begin(start, start, &down(), Some(seconds(1)), BACKOFF, |rest| rest);
        let back = start + seconds(1);
        assert_eq!(rest.enter(back), Ok(()));
        assert!(rest.enter(back + PROBE_LEASE - seconds(1)).is_err());
        assert_eq!(rest.enter(back + PROBE_LEASE), Ok(()));
    }

    #[test]
    fn who_asked_before_the_rest_says_nothing_about_it() {
        let (rest, start) = (Rest::default(), Instant::now());
        let later = start + seconds(3);
        rest.begin(later, later, &down(), Some(seconds(60)), BACKOFF, |rest| rest);
        assert!(!rest.succeeded(start) && rest.enter(later).is_err(), "a late success");
        assert!(!fail(&rest, start, &down()));
        assert_eq!(rest.rests(later), Some(seconds(60)), "a late failure");
    }

    #[test]
    fn a_rest_grows_to_its_bound() {
        let grown: Vec<u64> = (0..5).map(|rests| BACKOFF.after(rests).as_secs()).collect();
        assert_eq!(grown, [1, 2, 4, 5, 5]);
        assert_eq!(BACKOFF.after(u32::MAX), seconds(5));
    }
}
