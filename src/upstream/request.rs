//! One question to an upstream: authenticated, redirected, put to one host and credential after another, repeated where that
//! may help, within the caller's deadline.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::account::{Account, Scope, closest};
use super::call::Call;
use super::endpoint::Endpoint;
use super::http::exchange::{Answer, Outgoing};
use super::http::meaning::{self, ATTEMPTS_MAX, Failure, LimitOf, Limited};
use super::limits::breaker::Backoff;
use super::limits::pull_limit::Budget;
use super::limits::throttle::Asking;
use super::{UnavailableReason, UpstreamError};
use crate::labels::UpstreamKind;
use crate::metrics::UpstreamMetrics;
use crate::oci::RepositoryName;
use crate::rng::Rng;

/// Most 401s that one attempt may work off: one each for the challenge, the refresh, the bare try, Basic, a renewed login,
/// and a refusal before the login was shown.
pub(super) const CHALLENGES_MAX: usize = 6;
/// A limit that does not say for how long: some are of a second, some of an hour.
const LIMITED: Backoff = Backoff { first: Duration::from_secs(5), max: Duration::from_mins(15) };
/// Docker Hub's window is six hours and rolls: some of it is free before. A probe an hour costs nothing, being a HEAD mostly.
const WINDOW_MAX: Duration = Duration::from_hours(1);

/// A question waits so long in all for rests to end: an upstream that restarts, a limit of some pulls a second. Less than who
/// holds a tag waits for the word on it, so that the word is the true reason.
pub(super) const RESTED_MAX: Duration = Duration::from_millis(1500);
const RESTED_JITTER: Duration = Duration::from_millis(50);

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) kind: UpstreamKind,
    pub(super) method: Method,
    pub(super) repository: &'a RepositoryName,
    /// What follows `/v2/`, its query included.
    pub(super) path: String,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<String>,
}

/// Asks on behalf of one upstream.
pub(super) struct Asker {
    /// In the order to try them.
    pub(super) endpoints: Vec<Endpoint>,
    /// Of each endpoint's accounts, in their order.
    pub(super) scopes: Vec<Scope>,
    pub(super) metrics: Arc<UpstreamMetrics>,
    pub(super) rng: Arc<Rng>,
}

/// How often a question was asked, and what to do next.
pub(super) struct Tries<'a> {
    asker: &'a Asker,
    deadline: Instant,
    attempts: u32,
    relocated: bool,
    /// Waited for rests to end.
    rested: Duration,
}

/// One host, asked with one credential.
struct Channel<'a> {
    asker: &'a Asker,
    endpoint: &'a Endpoint,
    account: &'a Account,
    deadline: Instant,
}

impl Asker {
    /// Asks until there is a success (2xx), the attempts are used up, or the answer is final.
    pub(super) async fn ask(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        let mut tries = self.tries(call);
        loop {
            match self.attempt(question, call).await {
                Ok(answer) => return Ok(answer),
                Err(failure) => tries.after(failure).await?,
            }
        }
    }

    pub(super) fn tries(&self, call: &Call) -> Tries<'_> {
        Tries { asker: self, deadline: call.deadline, attempts: 0, relocated: false, rested: Duration::ZERO }
    }

    /// Asks one host and credential after another, until one does not fail for a reason that is its own.
    pub(super) async fn attempt(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        let mut last = None;
        let mut rest: Option<Duration> = None;
        let mut was_asked = false;
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            let deadline = share(call.deadline, self.endpoints.len() - place);
            for account in self.accounts(endpoint, question.repository, call.anonymous) {
                let channel = Channel { asker: self, endpoint, account, deadline };
                let failure = match channel.attempt(question, call).await {
                    Err(Failure::Rests(error, left)) => {
                        rest = rest.into_iter().chain([left]).min();
                        Failure::Plain(error)
                    }
                    Err(failure) => {
                        was_asked = true;
                        failure
                    }
                    Ok(answer) => return Ok(answer),
                };
                match failure {
                    Failure::Plain(error) if error.is_of_one_host() => {
                        let ends_host = error.is_outage();
                        last = Some(worse(last, error));
                        if ends_host {
                            break;
                        }
                    }
                    told => return Err(told),
                }
            }
        }
        let nobody = || UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: "it has no url".into() };
        let error = last.unwrap_or_else(nobody);
        match rest.filter(|_| !was_asked) {
            Some(left) => Err(Failure::Rests(error, left)),
            None => Err(error.into()),
        }
    }

    /// Asks one host with one account, once, whatever repositories that account is for.
    pub(super) async fn ask_as(
        &self,
        endpoint: &Endpoint,
        account: &Account,
        question: &Question<'_>,
        call: &Call,
    ) -> Result<Answer, Failure> {
        Channel { asker: self, endpoint, account, deadline: call.deadline }.attempt(question, call).await
    }

    pub(super) fn accounts<'a>(&self, endpoint: &'a Endpoint, repository: &RepositoryName, anonymous: bool) -> Vec<&'a Account> {
        let chosen = if anonymous { Vec::new() } else { closest(&self.scopes, repository) };
        let accounts: Vec<&Account> = chosen.iter().filter_map(|place| endpoint.accounts.get(*place)).collect();
        if accounts.is_empty() { vec![&endpoint.anonymous] } else { accounts }
    }

    /// Counts a question that stays unanswered.
    pub(super) fn failed(&self, error: UpstreamError) -> UpstreamError {
        if let UpstreamError::Unavailable { reason: UnavailableReason::Blocked, detail } = &error {
            tracing::warn!(upstream = self.metrics.name(), detail, "refused to connect");
        }
        self.metrics.failed(error.reason());
        error
    }
}

/// Half of the time for the first of several hosts, so that a silent one leaves some for the next.
pub(super) fn share(deadline: Instant, hosts: usize) -> Instant {
    let now = Instant::now();
    if hosts > 1 { now + deadline.saturating_duration_since(now) / 2 } else { deadline }
}

/// Which of two failures tells more: a limit says when to come back.
pub(super) fn worse(last: Option<UpstreamError>, error: UpstreamError) -> UpstreamError {
    match (last, error) {
        (Some(UpstreamError::RateLimited { retry_after: one }), UpstreamError::RateLimited { retry_after: other }) => {
            UpstreamError::RateLimited { retry_after: one.into_iter().chain(other).min() }
        }
        (Some(limited @ UpstreamError::RateLimited { .. }), _) => limited,
        (_, error) => error,
    }
}

impl Channel<'_> {
    /// Asks once, the deadline around all of it, unless something is to rest.
    async fn attempt(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        let begun = Instant::now();
        let _host = self.endpoint.wire.health.enter(begun)?;
        let _pulls = if question.is_limited() { Some(self.account.limit.enter(begun)?) } else { None };
        let asked = tokio::time::timeout_at(self.deadline, self.authenticated(question, call, begun)).await;
        let asked = asked.unwrap_or_else(|_| {
            let detail = format!("no answer from {} before the request's deadline", self.endpoint.wire.origin);
            Err(UpstreamError::TimedOut { detail }.into())
        });
        match asked {
            Err(Failure::Limited(limited)) => Err(self.rest(question, &limited, begun).into()),
            told => told,
        }
    }

    async fn authenticated(&self, question: &Question<'_>, call: &Call, begun: Instant) -> Result<Answer, Failure> {
        let mut auth = self.account.auth.begin(question.repository).await?;
        let url = self.endpoint.url(&question.path);
        for _ in 0..CHALLENGES_MAX {
            let outgoing = Outgoing {
                kind: question.kind,
                method: question.method.clone(),
                url: url.clone(),
                accept: question.accept,
                range: question.range.clone(),
                authorization: auth.authorization(),
                form: None,
                deadline: self.deadline,
                exchange: Some(&call.exchange),
            };
            // What goes out without a token is refused, and no pull.
            if let Some(pace) = self.account.pace.as_ref().filter(|_| question.kind == UpstreamKind::Manifest)
                && outgoing.authorization.is_some()
            {
                let what = if question.method == Method::HEAD { Asking::Head } else { Asking::Get };
                pace.turn(what, self.deadline).await?;
            }
            let answer = self.endpoint.wire.ask(&outgoing).await?;
            let is_own = answer.url.origin == url.origin;
            if is_own && question.is_limited() {
                self.note_budget(question, &answer, begun);
            }
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                    auth.accepted();
                    return Ok(answer);
                }
                StatusCode::UNAUTHORIZED if is_own && !(answer.redirected && question.kind == UpstreamKind::Blob) => {
                    auth.refused(answer).await?;
                }
                status => {
                    let failure = question.refused(answer).await;
                    match &failure {
                        Failure::Plain(why) if is_own && status == StatusCode::FORBIDDEN && auth.expired(why).await => {}
                        // No refusal counts before larder has shown its login.
                        Failure::Plain(UpstreamError::NotFound | UpstreamError::Denied { .. }) if is_own && auth.show_login().await? => {}
                        Failure::Plain(UpstreamError::NotFound) if is_own => {
                            auth.accepted();
                            return Err(failure);
                        }
                        _ => return Err(failure),
                    }
                }
            }
        }
        let detail = format!("{} goes on asking for credentials", url.origin);
        Err(UpstreamError::Denied { detail }.into())
    }

    /// Docker Hub says with every manifest how many pulls are left; and whoever answers at all does not limit, but that a HEAD
    /// passes with none left: it tells what a GET would meet.
    fn note_budget(&self, question: &Question<'_>, answer: &Answer, begun: Instant) {
        let (status, budget) = (answer.status(), Budget::read(|name| answer.header(name)));
        let used_up = budget.as_ref().filter(|budget| question.method == Method::HEAD && budget.is_used_up());
        match (status.as_u16(), used_up) {
            (401 | 429 | 500.., _) => {}
            (_, Some(budget)) => self.account.limit.goes_on(begun, Instant::now(), budget.window.unwrap_or(WINDOW_MAX).min(WINDOW_MAX)),
            (_, None) => drop(self.account.limit.succeeded(begun)),
        }
        // A list is under no pull limit, and a 429 that tells of none is about another one.
        let tells = status.is_success() || status == StatusCode::TOO_MANY_REQUESTS && budget.is_some();
        if tells && question.kind == UpstreamKind::Manifest {
            self.asker.metrics.pull_limit(self.account.name(), budget.as_ref().map(Budget::figures).unwrap_or_default());
            self.account.budgeted(budget);
        }
    }

    /// Lets rest what was asked too often.
    fn rest(&self, question: &Question<'_>, limited: &Limited, begun: Instant) -> UpstreamError {
        let why = UpstreamError::RateLimited { retry_after: None };
        // A HEAD has no body that would tell which limit it met: the pull limit's window counts where that is used up.
        let budget = self.account.budget().filter(|budget| question.method != Method::HEAD || budget.is_used_up());
        let window = budget.and_then(|budget| budget.window).map(|window| window.min(WINDOW_MAX));
        let jitter = |rest| self.asker.rng.jitter(rest);
        let now = Instant::now();
        let ((rest, began), what) = match limited.of {
            LimitOf::Pulls => {
                let asked = limited.retry_after.or(window);
                (self.account.limit.begin(begun, now, &why, asked, LIMITED, jitter), "manifests with this credential")
            }
            LimitOf::Host => (self.endpoint.wire.limited(begun, now, &why, limited.retry_after, LIMITED, jitter), "this host"),
        };
        if began {
            let (upstream, host, credential, seconds) =
                (self.asker.metrics.name(), &self.endpoint.wire.origin.host, self.account.name(), rest.as_secs());
            tracing::warn!(upstream, host, credential, seconds, what, "upstream limits the rate; it is not asked before this time is over");
        }
        UpstreamError::RateLimited { retry_after: Some(rest) }
    }
}

impl Question<'_> {
    /// Whether it may count against a pull limit, or be refused by one. Blobs are neither.
    fn is_limited(&self) -> bool {
        self.kind != UpstreamKind::Blob
    }

    /// A blob's redirect leads to a store that knows links, not repositories. A manifest's leads to another registry, whose word counts.
    async fn refused(&self, answer: Answer) -> Failure {
        let to_a_store = answer.redirected && self.kind == UpstreamKind::Blob;
        let is_head = self.method == Method::HEAD;
        let is_limited = self.is_limited();
        answer
            .refused(|refused| {
                if to_a_store {
                    let meant = refused.meaning_behind_redirect();
                    return if is_head { refused.meaning_to_head(meant) } else { meant };
                }
                match refused.limited() {
                    // HEAD has no body that would tell which limit it is; a blob is under none but the host's.
                    Some(limited) if is_limited && is_head => Failure::Limited(Limited { of: LimitOf::Pulls, ..limited }),
                    Some(limited) if !is_limited => Failure::Limited(Limited { of: LimitOf::Host, ..limited }),
                    Some(limited) => Failure::Limited(limited),
                    None if is_head => refused.meaning_to_head(refused.meaning().into()),
                    None => refused.meaning().into(),
                }
            })
            .await
    }
}

impl Tries<'_> {
    /// Waits until it is time to ask again.
    ///
    /// # Errors
    /// With the failure, when it is final.
    pub(super) async fn after(&mut self, failure: Failure) -> Result<(), Failure> {
        self.attempts += 1;
        let now = Instant::now();
        let wait = match &failure {
            // A fresh link costs the registry one request and needs no pause.
            Failure::Location(_) if !self.relocated => {
                self.relocated = true;
                self.attempts -= 1;
                Duration::ZERO
            }
            Failure::Plain(error) if error.is_transient() && self.attempts < ATTEMPTS_MAX => {
                self.asker.rng.jitter(meaning::backoff(self.attempts))
            }
            // What is over soon, for a word or a blip, is waited for.
            Failure::Rests(_, left) if self.rested + *left <= RESTED_MAX => {
                self.attempts -= 1;
                self.rested += *left;
                *left + self.asker.rng.jitter(RESTED_JITTER)
            }
            Failure::Location(_) | Failure::Head(_) | Failure::Plain(_) | Failure::Limited(_) | Failure::Rests(..) => return Err(failure),
        };
        if now + wait >= self.deadline {
            return Err(failure);
        }
        self.asker.metrics.retried(failure.into_error().reason());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}
