//! One question to an upstream: authenticated, redirected, repeated where that may help, within the caller's deadline.

use std::sync::Arc;

use http::{Method, StatusCode};
use tokio::time::Instant;

use super::auth::Auth;
use super::call::Call;
use super::retry::{self, ATTEMPTS_MAX, Failure};
use super::url::Url;
use super::wire::{Answer, Outgoing, Wire};
use super::{UnavailableReason, UpstreamError};
use crate::metrics::UpstreamKind;
use crate::oci::RepositoryName;
use crate::rng::Rng;

/// Most 401s that one attempt may work off: one each for the challenge, the refresh, the bare try, and Basic.
const CHALLENGES_MAX: usize = 4;

/// What is asked.
pub(super) struct Question<'a> {
    pub(super) kind: UpstreamKind,
    pub(super) method: Method,
    pub(super) repository: &'a RepositoryName,
    pub(super) url: Url,
    pub(super) accept: Option<&'static str>,
    pub(super) range: Option<String>,
}

/// Asks on behalf of one upstream.
pub(super) struct Asker {
    pub(super) wire: Arc<Wire>,
    pub(super) auth: Auth,
    pub(super) rng: Arc<Rng>,
}

/// How often a question was asked, and what to do next.
pub(super) struct Tries<'a> {
    asker: &'a Asker,
    deadline: Instant,
    attempts: u32,
    relocated: bool,
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
        Tries { asker: self, deadline: call.deadline, attempts: 0, relocated: false }
    }

    /// Asks once, the call's deadline around all of it.
    pub(super) async fn attempt(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        let attempt = tokio::time::timeout_at(call.deadline, self.authenticated(question, call));
        attempt.await.unwrap_or_else(|_| {
            let detail = format!("no answer from {} before the request's deadline", question.url.origin);
            Err(UpstreamError::TimedOut { detail }.into())
        })
    }

    async fn authenticated(&self, question: &Question<'_>, call: &Call) -> Result<Answer, Failure> {
        let mut auth = self.auth.begin(question.repository).await?;
        for _ in 0..CHALLENGES_MAX {
            let outgoing = question.outgoing(auth.authorization(), call);
            let answer = self.wire.ask(&outgoing).await?;
            let is_own = answer.url.origin == question.url.origin;
            match answer.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(answer),
                StatusCode::UNAUTHORIZED if is_own && !(answer.redirected && question.kind == UpstreamKind::Blob) => {
                    auth.refused(answer).await?;
                }
                _ => return Err(question.refused(answer).await),
            }
        }
        let detail = format!("{} goes on asking for credentials", question.url.origin);
        Err(UpstreamError::Denied { detail }.into())
    }
}

impl Question<'_> {
    fn outgoing<'a>(&self, authorization: Option<http::HeaderValue>, call: &'a Call) -> Outgoing<'a> {
        Outgoing {
            kind: self.kind,
            method: self.method.clone(),
            url: self.url.clone(),
            accept: self.accept,
            range: self.range.clone(),
            authorization,
            deadline: call.deadline,
            exchange: Some(&call.exchange),
        }
    }

    /// A blob's redirect leads to a store that knows links, not repositories. A manifest's leads to another registry, whose word counts.
    async fn refused(&self, answer: Answer) -> Failure {
        let to_a_store = answer.redirected && self.kind == UpstreamKind::Blob;
        let is_head = self.method == Method::HEAD;
        answer
            .refused(|refused| {
                let meant = if to_a_store { refused.meaning_behind_redirect() } else { refused.meaning().into() };
                if is_head { refused.meaning_to_head(meant) } else { meant }
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
                std::time::Duration::ZERO
            }
            Failure::Plain(error) if error.is_transient() && self.attempts < ATTEMPTS_MAX => {
                self.asker.rng.jitter(retry::backoff(self.attempts))
            }
            Failure::Location(_) | Failure::Head(_) | Failure::Plain(_) => return Err(failure),
        };
        if now + wait >= self.deadline {
            return Err(failure);
        }
        self.asker.wire.metrics.retried(&failure.into_error());
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

impl Asker {
    /// Counts a question that stays unanswered.
    pub(super) fn failed(&self, error: UpstreamError) -> UpstreamError {
        if let UpstreamError::Unavailable { reason: UnavailableReason::Blocked, detail } = &error {
            tracing::warn!(upstream = self.wire.metrics.name(), detail, "refused to connect");
        }
        self.wire.metrics.failed(&error);
        error
    }
}
