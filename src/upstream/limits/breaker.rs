//! A circuit breaker: closed, everybody may ask; open until a time, nobody; half-open, one question goes out and its answer decides
//! for all. For a host that is down, a limit that is reached, a login that was refused. Pure: it knows neither hosts nor credentials.

use parking_lot::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::upstream::UpstreamError;

/// Faults in a row, over at least [`FAULTS_FOR`], that open it: a blip shorter than that costs no pull.
const FAULTS_MAX: u32 = 5;
const FAULTS_FOR: Duration = Duration::from_secs(1);
/// A probe without an answer for this long is given up, and the next question is the probe.
const PROBE_LEASE: Duration = Duration::from_secs(25);
/// How soon to look again whether a probe has been answered.
const PROBE_POLL: Duration = Duration::from_millis(200);

/// How long to stay open when nobody says for how long: the first time, and at most.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    fn after(self, times_opened: u32) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(times_opened.min(16))).min(self.max)
    }
}

/// Closed, open until a time, or half-open. An answer to a question that had begun before it opened changes nothing.
#[derive(Debug, Default)]
pub struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    faults: u32,
    faulty_since: Option<Instant>,
    /// In a row, without a success between.
    times_opened: u32,
    probes: u64,
    succeeded_at: Option<Instant>,
    opening: Option<Opening>,
}

#[derive(Clone, Debug)]
struct Opening {
    since: Instant,
    until: Instant,
    /// The question that is out: half-open.
    probe: Option<u64>,
    why: UpstreamError,
}

/// A breaker that is not closed, as who asks is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub why: UpstreamError,
    /// Zero: the next question finds out whether it closes.
    pub left: Duration,
    /// Half-open: a question is out that will tell.
    pub is_probed: bool,
}

impl Open {
    /// When to ask again: while a probe is out its answer may come any moment.
    pub fn ask_again_in(&self) -> Duration {
        if self.is_probed { self.left.min(PROBE_POLL) } else { self.left }
    }
}

/// The right to ask. That of a probe which tells nothing, as it was never sent or was given up, passes to the next who asks.
#[must_use = "dropped, it says that nothing was asked"]
pub struct Permit<'a> {
    breaker: &'a Breaker,
    probe: Option<u64>,
}

impl Permit<'_> {
    /// The answer will be reported without it.
    pub fn detach(mut self) {
        self.probe = None;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let Some(probe) = self.probe else { return };
        if let Some(opening) = self.breaker.lock().opening.as_mut().filter(|opening| opening.probe == Some(probe)) {
            (opening.until, opening.probe) = (opening.since, None);
        }
    }
}

impl Opening {
    fn at(&self, now: Instant) -> Open {
        let left = self.until.saturating_duration_since(now);
        Open { why: self.why.clone().with_retry_after(left), left, is_probed: self.probe.is_some() && !left.is_zero() }
    }
}

impl Breaker {
    /// Permits a question if it is closed; when its time is over one question only, the probe.
    ///
    /// # Errors
    /// When it is open, or a probe is out.
    pub fn enter(&self, now: Instant) -> Result<Permit<'_>, Open> {
        let mut state = self.lock();
        let number = state.probes + 1;
        let Some(opening) = &mut state.opening else { return Ok(Permit { breaker: self, probe: None }) };
        if now < opening.until {
            return Err(opening.at(now));
        }
        (opening.until, opening.probe) = (now + PROBE_LEASE, Some(number));
        state.probes = number;
        Ok(Permit { breaker: self, probe: Some(number) })
    }

    /// Why who asks now is refused, without asking; nothing while a probe is out.
    pub fn refusal(&self, now: Instant) -> Option<UpstreamError> {
        self.state(now).filter(|open| !open.is_probed && !open.left.is_zero()).map(|open| open.why)
    }

    /// `None`: closed.
    pub fn state(&self, now: Instant) -> Option<Open> {
        self.lock().opening.as_ref().map(|opening| opening.at(now))
    }

    /// A question that began then has been answered. Returns whether that closed it.
    pub fn succeeded(&self, begun: Instant, now: Instant) -> bool {
        let mut state = self.lock();
        if state.is_late(begun) {
            return false;
        }
        let closed = state.opening.is_some();
        *state = State { probes: state.probes, succeeded_at: Some(now), ..State::default() };
        closed
    }

    /// A question that began then has failed. Some in a row open it, or one that was not answered while no other was. Returns whether
    /// this one did.
    pub fn failed(
        &self,
        begun: Instant,
        now: Instant,
        why: &UpstreamError,
        backoff: Backoff,
        jitter: impl Fn(Duration) -> Duration,
    ) -> bool {
        let mut state = self.lock();
        let is_silence = matches!(why, UpstreamError::TimedOut { .. });
        // It was this question that was not answered: others were.
        let is_outweighed = is_silence && state.succeeded_at.is_some_and(|answered| answered > begun);
        if state.is_late(begun) || is_outweighed {
            return false;
        }
        state.faults += 1;
        let since = *state.faulty_since.get_or_insert(now);
        let many = state.faults >= FAULTS_MAX && now - since >= FAULTS_FOR;
        if !(many || state.opening.is_some() || is_silence) {
            return false;
        }
        let is_new = state.opening.is_none();
        let wait = jitter(backoff.after(state.times_opened));
        state.open(now, wait, why);
        is_new
    }

    /// Opens it, or keeps it open for longer. `asked`: for how long, where that was said. Returns how long, and whether it was closed.
    pub fn open(
        &self,
        begun: Instant,
        now: Instant,
        why: &UpstreamError,
        asked: Option<Duration>,
        backoff: Backoff,
        jitter: impl Fn(Duration) -> Duration,
    ) -> (Duration, bool) {
        let mut state = self.lock();
        if let Some(opening) = state.opening.as_ref().filter(|_| state.is_late(begun)) {
            return (opening.until.saturating_duration_since(now), false);
        }
        let is_new = state.opening.is_none();
        let wait = asked.unwrap_or_else(|| jitter(backoff.after(state.times_opened)));
        state.open(now, wait, why);
        (wait, is_new)
    }

    /// The probe was answered, and the reason to be open is still there. Opens none that is closed.
    pub fn keep_open(&self, begun: Instant, now: Instant, wait: Duration) {
        let mut state = self.lock();
        if let Some(opening) = state.opening.clone().filter(|_| !state.is_late(begun)) {
            state.open(now, wait, &opening.why);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

impl State {
    fn is_late(&self, begun: Instant) -> bool {
        self.opening.as_ref().is_some_and(|opening| begun <= opening.since)
    }

    fn open(&mut self, now: Instant, wait: Duration, why: &UpstreamError) {
        self.times_opened = self.times_opened.saturating_add(1);
        self.opening = Some(Opening { since: now, until: now + wait, probe: None, why: why.clone() });
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

    fn fail(breaker: &Breaker, at: Instant, why: &UpstreamError) -> bool {
        breaker.failed(at, at, why, BACKOFF, |wait| wait)
    }

    fn open(breaker: &Breaker, at: Instant, asked: Option<u64>) -> (Duration, bool) {
        breaker.open(at, at, &limited(), asked.map(seconds), BACKOFF, |wait| wait)
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn left(breaker: &Breaker, at: Instant) -> Option<Duration> {
        breaker.enter(at).err().map(|open| open.ask_again_in())
    }

    #[test]
    fn a_blip_does_not_open_it_and_an_outage_does() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for _ in 0..50 {
            assert!(!fail(&breaker, start, &down()), "all within a moment");
        }
        assert!(breaker.enter(start).is_ok());
        let later = start + seconds(1);
        assert!(fail(&breaker, later, &down()));
        assert!(matches!(breaker.enter(later), Err(open) if open.why == down() && open.left == seconds(1)));
    }

    #[test]
    fn one_silence_is_enough() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        assert!(fail(&breaker, start, &UpstreamError::TimedOut { detail: String::new() }));
    }

    #[test]
    fn silence_opens_none_that_has_answered_others_meanwhile() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let silence = UpstreamError::TimedOut { detail: String::new() };
        let silent = |begun, now| breaker.failed(begun, now, &silence, BACKOFF, |wait| wait);
        assert!(!breaker.succeeded(start, start + seconds(5)));
        for number in 0..9 {
            assert!(!silent(start + seconds(number % 5), start + seconds(20)), "others were answered");
        }
        assert!(silent(start + seconds(5), start + seconds(20)), "nobody was answered since then");
    }

    #[test]
    fn one_probe_goes_out_and_decides_for_all() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        assert_eq!(open(&breaker, start, Some(60)), (seconds(60), true));
        let why = UpstreamError::RateLimited { retry_after: Some(seconds(40)) };
        assert!(matches!(breaker.enter(start + seconds(20)), Err(open) if open.why == why && open.left == seconds(40)));
        let back = start + seconds(60);
        let probe = breaker.enter(back);
        assert!(probe.is_ok());
        assert_eq!(left(&breaker, back), Some(PROBE_POLL), "nobody else, but the answer may come soon");
        assert_eq!(open(&breaker, back, None), (seconds(2), false), "longer each time");
        drop(probe);
        assert_eq!(left(&breaker, back), Some(seconds(2)), "it was answered");
        let back = back + seconds(2);
        let probe = breaker.enter(back);
        assert!(breaker.succeeded(back, back));
        drop(probe);
        assert!(breaker.enter(back).is_ok() && breaker.enter(back).is_ok());
    }

    #[test]
    fn a_probe_may_find_that_it_must_stay_open() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        breaker.keep_open(start, start, seconds(60));
        assert!(breaker.enter(start).is_ok(), "there was none");
        open(&breaker, start, Some(1));
        let back = start + seconds(1);
        assert_eq!(
            (breaker.refusal(start), breaker.refusal(back)),
            (Some(UpstreamError::RateLimited { retry_after: Some(seconds(1)) }), None)
        );
        let probe = breaker.enter(back);
        assert_eq!(breaker.refusal(back), None, "the answer may come any moment");
        breaker.keep_open(back, back, seconds(60));
        drop(probe);
        assert_eq!(left(&breaker, back), Some(seconds(60)));
    }

    #[test]
    fn a_probe_that_is_given_up_or_never_tells_makes_way() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        open(&breaker, start, Some(1));
        let back = start + seconds(1);
        drop(breaker.enter(back));
        assert!(breaker.enter(back).map(Permit::detach).is_ok(), "given up");
        assert!(left(&breaker, back + PROBE_LEASE - seconds(1)).is_some());
        assert!(breaker.enter(back + PROBE_LEASE).is_ok(), "never answered");
    }

    #[test]
    fn an_answer_to_a_question_from_before_it_opened_changes_nothing() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let later = start + seconds(3);
        open(&breaker, later, Some(60));
        assert!(!breaker.succeeded(start, later) && !breaker.succeeded(later, later) && left(&breaker, later).is_some(), "a late success");
        assert!(!fail(&breaker, start, &down()));
        assert_eq!(left(&breaker, later), Some(seconds(60)), "a late failure");
    }

    #[test]
    fn the_time_it_is_open_grows_to_its_bound() {
        let grown: Vec<u64> = (0..5).map(|opened| BACKOFF.after(opened).as_secs()).collect();
        assert_eq!(grown, [1, 2, 4, 5, 5]);
        assert_eq!(BACKOFF.after(u32::MAX), seconds(5));
    }
}
