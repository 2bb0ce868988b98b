//! Leaving something alone for a while: a host that is down, a credential at its limit, a login that was refused. Pure.
//!
//! While it rests nobody asks. When the time is over one question goes out as a probe, and what becomes of it decides for all.

use parking_lot::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::UpstreamError;
use crate::upstream::http::meaning::Failure;

/// Faults in a row, over at least [`FAULTS_FOR`], after which a host is left alone: a blip shorter than that costs no pull.
const FAULTS_MAX: u32 = 5;
const FAULTS_FOR: Duration = Duration::from_secs(1);
/// A probe that tells nothing within this time makes way for another.
const PROBE_LEASE: Duration = Duration::from_secs(25);
/// How soon to look again what became of a probe.
const PROBE_POLL: Duration = Duration::from_millis(200);

/// How long to rest when nobody says: the first time, and at most.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    fn after(self, rests: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(rests.min(16))).min(self.max)
    }
}

/// Something that may have to rest. A question that had begun before a rest began says nothing about it.
#[derive(Debug, Default)]
pub struct Rest(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: u32,
    faulty_since: Option<Instant>,
    /// In a row, without a success between.
    rests: u32,
    probes: u64,
    resting: Option<Resting>,
}

#[derive(Clone, Debug)]
struct Resting {
    since: Instant,
    until: Instant,
    /// The question that is out.
    probe: Option<u64>,
    why: UpstreamError,
}

/// A rest as it is told to people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rests {
    pub why: UpstreamError,
    /// Zero: the next question finds out whether it is over.
    pub left: Duration,
    /// A question is out that will tell.
    pub is_probed: bool,
}

/// The right to ask. That of a probe which tells nothing, as it was never sent or was given up, passes to the next who asks.
#[must_use = "dropped, it says that nothing was asked"]
pub struct Pass<'a> {
    rest: &'a Rest,
    probe: Option<u64>,
}

impl Pass<'_> {
    /// The answer will come to somebody else.
    pub fn hand_over(mut self) {
        self.probe = None;
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        let Some(probe) = self.probe else { return };
        if let Some(resting) = self.rest.state().resting.as_mut().filter(|resting| resting.probe == Some(probe)) {
            (resting.until, resting.probe) = (resting.since, None);
        }
    }
}

impl Resting {
    /// The reason, as it concerns whoever asks so long before the end.
    fn why_for(&self, left: Duration) -> UpstreamError {
        match &self.why {
            UpstreamError::RateLimited { .. } => UpstreamError::RateLimited { retry_after: Some(left) },
            why => why.clone(),
        }
    }
}

impl Rest {
    /// Lets a question pass, unless it is to rest; after a rest, one question only.
    ///
    /// # Errors
    /// With the reason for the rest, and how long it is yet; while a probe is out, that may be any moment.
    pub fn enter(&self, now: Instant) -> Result<Pass<'_>, Failure> {
        let mut state = self.state();
        let number = state.probes + 1;
        let Some(resting) = &mut state.resting else { return Ok(Pass { rest: self, probe: None }) };
        let left = resting.until.saturating_duration_since(now);
        if !left.is_zero() {
            return Err(Failure::Rests(resting.why_for(left), if resting.probe.is_some() { left.min(PROBE_POLL) } else { left }));
        }
        (resting.until, resting.probe) = (now + PROBE_LEASE, Some(number));
        state.probes = number;
        Ok(Pass { rest: self, probe: Some(number) })
    }

    /// What who asks now would be told, without asking; nothing while a probe is out.
    pub fn told(&self, now: Instant) -> Option<UpstreamError> {
        let state = self.state();
        let resting = state.resting.as_ref().filter(|resting| resting.probe.is_none() && now < resting.until)?;
        Some(resting.why_for(resting.until - now))
    }

    /// How things stand, for who only wants to know; `None`: nothing rests.
    pub fn outlook(&self, now: Instant) -> Option<Rests> {
        let state = self.state();
        let resting = state.resting.as_ref()?;
        let left = resting.until.saturating_duration_since(now);
        Some(Rests { why: resting.why_for(left), left, is_probed: resting.probe.is_some() && !left.is_zero() })
    }

    /// A question that began then has been answered. Returns whether that ended a rest.
    pub fn succeeded(&self, begun: Instant) -> bool {
        let mut state = self.state();
        if state.is_late(begun) {
            return false;
        }
        let ended = state.resting.is_some();
        *state = State { probes: state.probes, ..State::default() };
        ended
    }

    /// A question that began then has failed. After some in a row, or one that took very long, a rest begins. Returns whether
    /// this began one.
    pub fn failed(
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
    pub fn begin(
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
    pub fn goes_on(&self, begun: Instant, now: Instant, rest: Duration) {
        let mut state = self.state();
        if let Some(resting) = state.resting.clone().filter(|_| !state.is_late(begun)) {
            state.begin(now, rest, &resting.why);
        }
    }

    /// Forgets all.
    pub fn clear(&self) {
        let mut state = self.state();
        *state = State { probes: state.probes, ..State::default() };
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn is_late(&self, begun: Instant) -> bool {
        self.resting.as_ref().is_some_and(|resting| begun <= resting.since)
    }

    fn begin(&mut self, now: Instant, rest: Duration, why: &UpstreamError) {
        self.rests = self.rests.saturating_add(1);
        self.resting = Some(Resting { since: now, until: now + rest, probe: None, why: why.clone() });
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

    fn limited() -> UpstreamError {
        UpstreamError::RateLimited { retry_after: None }
    }

    fn fail(rest: &Rest, at: Instant, why: &UpstreamError) -> bool {
        rest.failed(at, at, why, BACKOFF, |rest| rest)
    }

    fn begin(rest: &Rest, at: Instant, asked: Option<u64>) -> (Duration, bool) {
        rest.begin(at, at, &limited(), asked.map(seconds), BACKOFF, |rest| rest)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn left(rest: &Rest, at: Instant) -> Option<Duration> {
        match rest.enter(at) {
            Err(Failure::Rests(_, left)) => Some(left),
            _ => None,
        }
    }

    #[test]
    fn a_blip_is_no_reason_to_rest_and_an_outage_is() {
        let (rest, start) = (Rest::default(), Instant::now());
        for _ in 0..50 {
            assert!(!fail(&rest, start, &down()), "all within a moment");
        }
        assert!(rest.enter(start).is_ok());
        let later = start + seconds(1);
        assert!(fail(&rest, later, &down()));
        assert!(matches!(rest.enter(later), Err(Failure::Rests(why, left)) if why == down() && left == seconds(1)));
    }

    #[test]
    fn one_silence_is_enough() {
        let (rest, start) = (Rest::default(), Instant::now());
        assert!(fail(&rest, start, &UpstreamError::TimedOut { detail: String::new() }));
    }

    #[test]
    fn one_probe_goes_out_and_decides_for_all() {
        let (rest, start) = (Rest::default(), Instant::now());
        assert_eq!(begin(&rest, start, Some(60)), (seconds(60), true));
        let told = UpstreamError::RateLimited { retry_after: Some(seconds(40)) };
        assert!(matches!(rest.enter(start + seconds(20)), Err(Failure::Rests(why, left)) if why == told && left == seconds(40)));
        let back = start + seconds(60);
        let probe = rest.enter(back);
        assert!(probe.is_ok());
        assert_eq!(left(&rest, back), Some(PROBE_POLL), "nobody else, but the word may come soon");
        assert_eq!(begin(&rest, back, None), (seconds(2), false), "longer each time");
        drop(probe);
        assert_eq!(left(&rest, back), Some(seconds(2)), "it has told");
        let back = back + seconds(2);
        let probe = rest.enter(back);
        assert!(rest.succeeded(back));
        drop(probe);
        assert!(rest.enter(back).is_ok() && rest.enter(back).is_ok());
    }

    #[test]
    fn a_probe_may_find_that_the_rest_must_go_on() {
        let (rest, start) = (Rest::default(), Instant::now());
        rest.goes_on(start, start, seconds(60));
        assert!(rest.enter(start).is_ok(), "there was none");
        begin(&rest, start, Some(1));
        let back = start + seconds(1);
        assert_eq!((rest.told(start), rest.told(back)), (Some(UpstreamError::RateLimited { retry_after: Some(seconds(1)) }), None));
        let probe = rest.enter(back);
        assert_eq!(rest.told(back), None, "the word may come any moment");
        rest.goes_on(back, back, seconds(60));
        drop(probe);
        assert_eq!(left(&rest, back), Some(seconds(60)));
    }

    #[test]
    fn a_probe_that_is_given_up_or_never_tells_makes_way() {
        let (rest, start) = (Rest::default(), Instant::now());
        begin(&rest, start, Some(1));
        let back = start + seconds(1);
        drop(rest.enter(back));
        assert!(rest.enter(back).map(Pass::hand_over).is_ok(), "given up");
        assert!(left(&rest, back + PROBE_LEASE - seconds(1)).is_some());
        assert!(rest.enter(back + PROBE_LEASE).is_ok(), "never told");
    }

    #[test]
    fn who_asked_before_the_rest_says_nothing_about_it() {
        let (rest, start) = (Rest::default(), Instant::now());
        let later = start + seconds(3);
        begin(&rest, later, Some(60));
        assert!(!rest.succeeded(start) && !rest.succeeded(later) && left(&rest, later).is_some(), "a late success");
        assert!(!fail(&rest, start, &down()));
        assert_eq!(left(&rest, later), Some(seconds(60)), "a late failure");
    }

    #[test]
    fn a_rest_grows_to_its_bound() {
        let grown: Vec<u64> = (0..5).map(|rests| BACKOFF.after(rests).as_secs()).collect();
        assert_eq!(grown, [1, 2, 4, 5, 5]);
        assert_eq!(BACKOFF.after(u32::MAX), seconds(5));
    }
}
