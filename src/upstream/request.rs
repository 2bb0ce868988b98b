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
use super::http::meaning::{self, ATTEMPTS_MAX, Failure};
use super::limits::breaker::Permit;
use super::limits::questions::{Place, Questions};
use super::limits::throttle::Asking;
use super::limits::too_many_requests::Asked;
use super::{UnavailableReason, UpstreamError};
use crate::labels::UpstreamKind;
use crate::metrics::UpstreamMetrics;
use crate::oci::RepositoryName;
use crate::queue::Rank;
use crate::rng::Rng;

/// Most 401s that one attempt may work off: one each for the challenge, the refresh, the bare try, Basic, a renewed login,
/// and a refusal before the login was shown.
pub(super) const CHALLENGES_MAX: usize = 6;

/// A question waits so long in all for breakers to close: an upstream that restarts, a limit of some pulls a second. Less than who has a
/// cached tag waits for the answer, so that the true reason is reported.
pub(super) const OPEN_WAIT_MAX: Duration = Duration::from_millis(1500);
const OPEN_WAIT_JITTER: Duration = Duration::from_millis(50);

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) kind: UpstreamKind,
    pub(super) method: Method,
    pub(super) repository: &'a RepositoryName,
    /// What follows `/v2/`, its query included.
    pub(super) path: String,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<String>,
    /// A download, which has its place among the downloads and takes none among the questions.
    pub(super) is_download: bool,
}

/// Asks on behalf of one upstream.
pub(super) struct Asker {
    pub(super) upstream: Arc<str>,
    /// Those of all upstreams.
    pub(super) questions: Arc<Questions>,
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
    /// Waited for breakers to close.
    waited: Duration,
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
        Tries { asker: self, deadline: call.deadline, attempts: 0, relocated: false, waited: Duration::ZERO }
    }

    /// Asks one host and credential after another, until one does not fail for a reason that is its own.
    pub(super) async fn attempt(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        let mut last = None;
        let mut soonest: Option<Duration> = None;
        let mut was_asked = false;
        for (place, endpoint) in self.endpoints.iter().enumerate() {
            let deadline = share(call.deadline, self.endpoints.len() - place);
            for account in self.accounts(endpoint, question.repository, call.anonymous) {
                let channel = Channel { asker: self, endpoint, account, deadline };
                let failure = match channel.attempt(question, call).await {
                    Err(Failure::NotAsked(error, left)) => {
                        soonest = soonest.into_iter().chain([left]).min();
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
                    final_one => return Err(final_one),
                }
            }
        }
        let nobody = || UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: "it has no url".into() };
        let error = last.unwrap_or_else(nobody);
        match soonest.filter(|_| !was_asked) {
            Some(left) => Err(Failure::NotAsked(error, left)),
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

/// Which of two failures tells more: one that says when to come back, a limit before an outage, and of two the earlier time.
pub(super) fn worse(last: Option<UpstreamError>, error: UpstreamError) -> UpstreamError {
    match (last, error) {
        (Some(UpstreamError::RateLimited { retry_after: one }), UpstreamError::RateLimited { retry_after: other }) => {
            UpstreamError::RateLimited { retry_after: one.into_iter().chain(other).min() }
        }
        (Some(limited @ UpstreamError::RateLimited { .. }), _) => limited,
        (Some(UpstreamError::Busy { retry_after: one, detail }), UpstreamError::Busy { retry_after: other, .. }) => {
            UpstreamError::Busy { retry_after: one.min(other), detail }
        }
        (
            Some(later @ (UpstreamError::Busy { .. } | UpstreamError::Overloaded { .. })),
            UpstreamError::Unavailable { .. } | UpstreamError::TimedOut { .. },
        ) => later,
        (_, error) => error,
    }
}

impl Channel<'_> {
    /// Asks once, the deadline around all of it, unless a circuit breaker is open.
    async fn attempt(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        // Who would be refused at once takes no place.
        drop(self.permits(question, Instant::now())?);
        let place = self.place(question).await?;
        let begun = Instant::now();
        let _permits = self.permits(question, begun)?;
        let asked = tokio::time::timeout_at(self.deadline, self.authenticated(question, call, begun)).await;
        let asked = asked.unwrap_or_else(|_| {
            let detail = format!("no answer from {} before the request's deadline", self.endpoint.wire.origin);
            Err(UpstreamError::TimedOut { detail }.into())
        });
        match asked {
            Err(Failure::Limited(limited)) => Err(self.account.limited(question.asked(true), &limited, begun, &self.endpoint.wire).into()),
            asked => asked.map(|answer| answer.holding(place)),
        }
    }

    /// The host's and the credential's.
    fn permits(&self, question: &Question<'_>, now: Instant) -> Result<(Permit<'_>, Option<Permit<'_>>), Failure> {
        let host = self.endpoint.wire.host.enter(now)?;
        let limit = self.account.breaker(question.kind).map(|breaker| breaker.enter(now)).transpose()?;
        Ok((host, limit))
    }

    async fn place(&self, question: &Question<'_>) -> Result<Option<Place>, UpstreamError> {
        if question.is_download {
            return Ok(None);
        }
        let ends_a_pull = question.kind == UpstreamKind::Manifest && question.method == Method::GET;
        let rank = if ends_a_pull { Rank::Ahead } else { Rank::Usual };
        self.asker.questions.place(&self.asker.upstream, rank, self.deadline).await.map(Some)
    }

    async fn authenticated(&self, question: &Question<'_>, call: &Call, begun: Instant) -> Result<Answer, Failure> {
        let mut auth = self.account.auth.begin(question.repository, self.deadline).await?;
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
            let is_own = !answer.has_left;
            self.account.observe(question.asked(is_own), &answer, begun, &self.asker.metrics);
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => {
                    auth.accepted();
                    return Ok(answer);
                }
                StatusCode::UNAUTHORIZED if is_own && !(answer.redirected && question.kind == UpstreamKind::Blob) => {
                    auth.refused(answer).await?;
                }
                status => {
                    let failure = question.refused(answer, is_own).await;
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
}

impl Question<'_> {
    /// As far as a limit depends on it.
    fn asked(&self, is_own: bool) -> Asked {
        Asked { kind: self.kind, is_head: self.method == Method::HEAD, is_own }
    }

    /// A blob's redirect leads to a store that knows links, not repositories. A manifest's leads to another registry, whose answer counts.
    async fn refused(&self, answer: Answer, is_own: bool) -> Failure {
        let to_a_store = answer.redirected && self.kind == UpstreamKind::Blob;
        let asked = self.asked(is_own);
        answer
            .refused(|refused| {
                let meant = match refused.limited(asked) {
                    Some(limited) => return Failure::Limited(limited),
                    None if to_a_store => refused.meaning_behind_redirect(),
                    None => refused.meaning().into(),
                };
                if asked.is_head { refused.meaning_to_head(meant) } else { meant }
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
            // A breaker that closes soon, after a probe or a blip, is waited for.
            Failure::NotAsked(_, left) if self.waited + *left <= OPEN_WAIT_MAX => {
                self.attempts -= 1;
                self.waited += *left;
                *left + self.asker.rng.jitter(OPEN_WAIT_JITTER)
            }
            Failure::Location(_) | Failure::Head(_) | Failure::Plain(_) | Failure::Limited(_) | Failure::NotAsked(..) => {
                return Err(failure);
            }
        };
        if now + wait >= self.deadline {
            return Err(failure);
        }
        self.asker.metrics.retried(failure.into_error().reason());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_hosts_failures_the_one_that_says_when_to_come_back_is_reported() {
        let seconds = Duration::from_secs;
        let busy = |wait| UpstreamError::Busy { retry_after: seconds(wait), detail: String::new() };
        let limited = |wait| UpstreamError::RateLimited { retry_after: Some(seconds(wait)) };
        let down = || UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: String::new() };
        let both = |one, other| worse(Some(one), other);
        assert_eq!((both(busy(9), down()), both(down(), busy(9))), (busy(9), busy(9)));
        assert_eq!((both(busy(9), busy(5)), both(limited(9), limited(5))), (busy(5), limited(5)));
        assert_eq!((both(busy(5), limited(9)), both(limited(9), busy(5))), (limited(9), limited(9)));
        assert_eq!((both(limited(9), down()), worse(None, down())), (limited(9), down()));
        let full = || UpstreamError::Overloaded { retry_after: seconds(5) };
        assert_eq!((both(full(), down()), both(down(), full())), (full(), full()));
    }
}
