//! What an operator wants to know of an upstream before a client asks: can each host be reached, what does it want, and does
//! it take each credential? Each is tried once; one that is refused is not tried at the next host.

use std::collections::HashSet;

use http::header::CONTENT_TYPE;
use http::{Method, StatusCode};
use tokio::time::{Instant, timeout_at};

use super::survey::Survey;
use crate::labels::UpstreamKind;
use crate::oci::{RepositoryName, registries};
use crate::upstream::account::{Account, Scope};
use crate::upstream::auth::sign_in::{bearer, challenges};
use crate::upstream::auth::token_hosts::{self, Trust};
use crate::upstream::call::Call;
use crate::upstream::client::{MANIFEST_ACCEPT, Upstream};
use crate::upstream::endpoint::Endpoint;
use crate::upstream::http::exchange::{Answer, Outgoing};
use crate::upstream::http::meaning::Failure;
use crate::upstream::http::url::Url;
use crate::upstream::limits::pull_limit::Budget;
use crate::upstream::request::{CHALLENGES_MAX, Question, share};
use crate::upstream::{UnavailableReason, UpstreamError};

/// Stands for a repository where only a login is asked for. It is not sent.
const ANY_REPOSITORY: &str = "any";

/// What one URL of an upstream is like.
#[derive(Clone, Debug)]
pub struct Report {
    pub url: String,
    pub connection: Survey,
    /// What `/v2/` says to nobody in particular; `None` where there was no connection.
    pub ping: Option<Result<Ping, UpstreamError>>,
    /// Where `/v2/` redirects to, and the way there.
    pub redirect: Option<(String, Survey)>,
    pub token_server: Option<TokenServer>,
    /// One for each credential, or that of nobody.
    pub tried: Vec<Tried>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// 200.
    Open,
    /// 401: tokens are asked for.
    Token,
    /// 401: a user name and password are asked for.
    Password,
    /// 401, without a word on what is asked for.
    Mute,
    Redirected,
}

/// Where tokens come from.
#[derive(Clone, Debug)]
pub struct TokenServer {
    /// `host[:port]`
    pub host: String,
    /// What may be sent there.
    pub trust: Trust,
    /// The way there, where it is not the registry itself.
    pub connection: Option<Survey>,
}

/// One credential, and what became of it.
#[derive(Clone, Debug)]
pub struct Tried {
    /// `None` is nobody's.
    pub credential: Option<String>,
    pub verdict: Result<Verdict, UpstreamError>,
    pub budget: Option<Budget>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// Anybody may ask here, so nobody was asked for it.
    NotAsked,
    /// Its source holds no login for this registry.
    NoLogin,
    /// It could not be tried for a reason that is told elsewhere, or was refused by another URL.
    NotTried,
}

impl Upstream {
    /// Asks every host, with every credential, the least that tells. Costs nothing of a pull limit.
    pub async fn probe(&self, deadline: Instant) -> Vec<Report> {
        let endpoints = &self.asker.endpoints;
        let (mut reports, mut refused) = (Vec::new(), HashSet::new());
        for (place, endpoint) in endpoints.iter().enumerate() {
            let deadline = share(deadline, endpoints.len() - place);
            let report = Probe { upstream: self, endpoint, deadline }.report(&refused).await;
            let bad = report.tried.iter().filter(|tried| tried.verdict.is_err()).filter_map(|tried| tried.credential.clone());
            refused.extend(bad);
            reports.push(report);
        }
        reports
    }
}

/// The questions to one host.
struct Probe<'a> {
    upstream: &'a Upstream,
    endpoint: &'a Endpoint,
    deadline: Instant,
}

impl Probe<'_> {
    async fn report(&self, refused: &HashSet<String>) -> Report {
        let wire = &self.endpoint.wire;
        let url = Url::new(wire.origin.clone(), self.endpoint.path.clone()).to_string();
        let connection = wire.connector(&wire.origin).survey(&wire.origin, self.deadline).await;
        let mut report = Report { url, connection, ping: None, redirect: None, token_server: None, tried: Vec::new() };
        if report.connection.fault.is_some() {
            return report;
        }
        let ping = self.ping(&mut report).await;
        let reached = ping.is_ok() && report.detours().all(|detour| detour.fault.is_none());
        report.ping = Some(ping);
        for (account, scope) in self.accounts() {
            let is_bad = scope.is_some() && refused.contains(account.name());
            let verdict = match &report.ping {
                Some(Ok(ping)) if reached && !is_bad => self.verdict(account, scope, *ping).await,
                _ => Ok(Verdict::NotTried),
            };
            let credential = scope.map(|_| account.name().to_owned());
            report.tried.push(Tried { credential, verdict, budget: account.budget() });
        }
        report
    }

    fn accounts(&self) -> Vec<(&Account, Option<&Scope>)> {
        let Endpoint { accounts, anonymous, .. } = self.endpoint;
        if accounts.is_empty() {
            return vec![(anonymous, None)];
        }
        accounts.iter().zip(self.upstream.asker.scopes.iter().map(Some)).collect()
    }

    /// What `/v2/` says without a credential.
    async fn ping(&self, report: &mut Report) -> Result<Ping, UpstreamError> {
        let answer = self.within(self.endpoint.wire.ask_here(&self.question(None))).await?;
        if let Some(target) = answer.location()? {
            report.redirect =
                Some((target.origin.to_string(), self.endpoint.wire.connector(&target.origin).survey(&target.origin, self.deadline).await));
            answer.discard();
            return Ok(Ping::Redirected);
        }
        match answer.status() {
            status if status.is_success() => {
                let is_page = answer.header(CONTENT_TYPE).is_some_and(|kind| kind.starts_with("text/html"));
                let url = answer.url.clone();
                answer.discard();
                if is_page { Err(UpstreamError::Corrupt { detail: format!("{url} is a web page") }) } else { Ok(Ping::Open) }
            }
            StatusCode::UNAUTHORIZED => self.challenged(answer, report).await,
            _ => Err(answer.refused(|refused| refused.meaning()).await),
        }
    }

    async fn challenged(&self, answer: Answer, report: &mut Report) -> Result<Ping, UpstreamError> {
        let challenges = challenges(&answer);
        let from = answer.url.to_string();
        answer.discard();
        let realm = bearer(&challenges).map(|bearer| bearer.realm.as_str());
        let Some(realm) = realm else {
            return Ok(if challenges.is_empty() { Ping::Mute } else { Ping::Password });
        };
        let realm = Url::parse(realm)
            .map_err(|error| UpstreamError::Corrupt { detail: format!("{from} named a token server that is {error}") })?
            .origin;
        let wire = &self.endpoint.wire;
        let trust = token_hosts::judge(&wire.origin, &realm, &self.upstream.token_hosts);
        let connection = if realm == wire.origin || trust == Trust::Insecure {
            None
        } else {
            Some(wire.connector(&realm).survey(&realm, self.deadline).await)
        };
        let host = if realm.is_default_port() { realm.host } else { format!("{}:{}", realm.host, realm.port) };
        report.token_server = Some(TokenServer { host, trust, connection });
        Ok(Ping::Token)
    }

    async fn verdict(&self, account: &Account, scope: Option<&Scope>, ping: Ping) -> Result<Verdict, UpstreamError> {
        let registry = registries::find(&self.endpoint.wire.origin.host);
        if let Some(repository) = registry.and_then(|registry| registry.pull_limit_preview) {
            return self.within(self.preview(repository, account, scope)).await;
        }
        match (scope, ping) {
            (Some(scope), _) => self.within(self.sign_in(account, scope, ping)).await,
            (None, Ping::Open | Ping::Token) => Ok(Verdict::Accepted),
            (None, Ping::Redirected) => Ok(Verdict::NotTried),
            (None, Ping::Password) => Err(UpstreamError::Denied { detail: "it wants a user name and password".into() }),
            (None, Ping::Mute) => Err(UpstreamError::Denied { detail: "it answers 401 and does not say what it wants".into() }),
        }
    }

    /// The registry's own way to learn what is left.
    async fn preview(&self, repository: &str, account: &Account, scope: Option<&Scope>) -> Result<Verdict, UpstreamError> {
        let repository = name(repository)?;
        if scope.is_some() && account.auth.sign_in(&repository, self.deadline).await?.is_anonymous() {
            return Ok(Verdict::NoLogin);
        }
        let question = Question {
            kind: UpstreamKind::Manifest,
            method: Method::HEAD,
            repository: &repository,
            path: format!("{repository}/manifests/latest"),
            accept: Some(MANIFEST_ACCEPT),
            range: None,
            is_download: false,
        };
        let asked = self.upstream.asker.ask_as(self.endpoint, account, &question, &Call::until(self.deadline)).await;
        match asked.map_err(Failure::into_error) {
            Ok(answer) => answer.discard(),
            // The image may be gone one day: that is said to an accepted login, too.
            Err(UpstreamError::NotFound) => {}
            Err(error) => return Err(error),
        }
        Ok(if scope.is_none() || account.auth.is_accepted() { Verdict::Accepted } else { Verdict::NotAsked })
    }

    /// As `docker login` does it: `/v2/`, a token for no repository, `/v2/`.
    async fn sign_in(&self, account: &Account, scope: &Scope, ping: Ping) -> Result<Verdict, UpstreamError> {
        let repository = scope.example().map_or_else(|| name(ANY_REPOSITORY), Ok)?;
        let mut auth = account.auth.sign_in(&repository, self.deadline).await?;
        if auth.is_anonymous() {
            return Ok(Verdict::NoLogin);
        }
        if ping == Ping::Open {
            return Ok(Verdict::NotAsked);
        }
        for _ in 0..CHALLENGES_MAX {
            let answer = self.endpoint.wire.ask(&self.question(auth.authorization())).await?;
            match answer.status() {
                status if status.is_success() => {
                    account.remember(Budget::read(|name| answer.header(name)));
                    answer.discard();
                    if auth.authorization().is_none() {
                        return Ok(Verdict::NotAsked);
                    }
                    auth.accepted();
                    return Ok(Verdict::Accepted);
                }
                // It was not shown the login: what it says is not about it.
                _ if answer.has_left => {
                    answer.discard();
                    return Ok(Verdict::NotTried);
                }
                StatusCode::UNAUTHORIZED => auth.refused(answer).await?,
                _ => return Err(answer.refused(|refused| refused.meaning()).await),
            }
        }
        Err(UpstreamError::Denied { detail: "it goes on asking for credentials".into() })
    }

    /// `GET /v2/`
    fn question(&self, authorization: Option<http::HeaderValue>) -> Outgoing<'static> {
        Outgoing {
            kind: UpstreamKind::Listing,
            method: Method::GET,
            url: self.endpoint.url(""),
            accept: None,
            range: None,
            authorization,
            form: None,
            deadline: self.deadline,
            exchange: None,
        }
    }

    async fn within<T>(&self, asking: impl Future<Output = Result<T, UpstreamError>>) -> Result<T, UpstreamError> {
        let silence = || UpstreamError::TimedOut { detail: format!("no answer from {} in time", self.endpoint.wire.origin) };
        timeout_at(self.deadline, asking).await.unwrap_or_else(|_| Err(silence()))
    }
}

impl Report {
    /// The ways to other hosts.
    pub fn detours(&self) -> impl Iterator<Item = &Survey> {
        let token_server = self.token_server.as_ref().and_then(|server| server.connection.as_ref());
        token_server.into_iter().chain(self.redirect.as_ref().map(|(_, survey)| survey))
    }
}

fn name(text: &str) -> Result<RepositoryName, UpstreamError> {
    text.parse().map_err(|_| UpstreamError::Unavailable { reason: UnavailableReason::Broken, detail: format!("{text} is no repository") })
}
