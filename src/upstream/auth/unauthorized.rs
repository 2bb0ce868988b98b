//! What to send with a question, and what to do about a 401. Remembers how each repository wants to be asked, so that only
//! the first question in it costs a refusal. When a login may be shown is `lockout`'s rule, whether it is good `sign_in`'s.

mod login;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;
use moka::sync::Cache;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::challenge::{Bearer, Challenge};
use super::credentials::{Held, Login};
use super::lockout::{Signer, Turn};
use super::scope;
use super::sign_in::{self, Scheme, SignIn};
use super::token::{NoToken, Token, TokenKey, Tokens, Way};
use crate::config::UpstreamConfig;
use crate::oci::RepositoryName;
use crate::rng::Rng;
use crate::upstream::UpstreamError;
use crate::upstream::http::exchange::{Answer, Wire};
use crate::upstream::http::url::Url;
use crate::upstream::limits::breaker::Open;

const REPOSITORIES_MAX: u64 = 10_000;

/// How one host wants to be asked with one credential.
pub struct Auth {
    signer: Arc<Signer>,
    tokens: Arc<Tokens>,
    sign_in: Arc<SignIn>,
    /// Basic has been asked for: it holds for every repository of the registry.
    basic: AtomicBool,
    learned: Cache<RepositoryName, Arc<Way>>,
}

/// The authentication of one attempt, step by step. Each step can be taken once, so it ends.
pub struct Attempt<'a> {
    auth: &'a Auth,
    repository: &'a RepositoryName,
    /// Whether tokens are for the repository, or for nothing but to show that the login is good.
    is_scoped: bool,
    /// When the question is given up.
    deadline: Instant,
    login: Held,
    sent: Sent,
    refreshed: bool,
    bared: bool,
    renewed: bool,
    /// `/v2/` was looked at for what the repository does not ask for.
    asked_ping: bool,
    /// Kept while an unproven login is tried.
    turn: Turn<'a>,
}

#[derive(Clone)]
enum Sent {
    Nothing,
    /// The login itself: Basic, or a registry token.
    Login(HeaderValue),
    Bearer(TokenKey, HeaderValue),
}

impl Auth {
    /// `ping`: the registry's `/v2/`. `panics` counts the tasks that panic.
    pub fn new(config: &UpstreamConfig, signer: Signer, wire: &Arc<Wire>, ping: &Url, rng: &Arc<Rng>, panics: &IntCounter) -> Auth {
        let signer = Arc::new(signer);
        let tokens = Tokens::new(wire, signer.name(), &config.token_hosts, rng, panics);
        let sign_in = SignIn::new(wire, ping, &signer, &tokens, panics);
        Auth { signer, tokens, sign_in, basic: AtomicBool::new(false), learned: Cache::new(REPOSITORIES_MAX) }
    }

    /// The credential's name.
    pub fn credential(&self) -> &str {
        self.signer.name()
    }

    /// Whether the login is held off, and whether the token server is left alone: what keeps a question from being asked.
    pub fn outlook(&self, repository: &RepositoryName, now: Instant) -> (Option<Open>, Option<Open>) {
        (self.signer.held_off(repository, now), self.tokens.outlook(self.learned.get(repository).as_deref(), now))
    }

    /// Whether upstream has taken the login that was used last.
    pub fn is_accepted(&self) -> bool {
        self.signer.has_accepted_last()
    }

    /// Begins with what worked last time.
    pub async fn begin<'a>(&'a self, repository: &'a RepositoryName, deadline: Instant) -> Result<Attempt<'a>, UpstreamError> {
        let mut attempt = self.attempt(repository, true, deadline).await?;
        // What was learned without a login may name more than a login may ask for.
        let is_usable =
            |way: &Arc<Way>| attempt.is_anonymous() || scope::requested(repository, Some(&way.scopes.join(" ")), true) == way.scopes;
        let way = self.learned.get(repository).filter(is_usable);
        match (&attempt.login.login, way) {
            (Login::RegistryToken(_), _) => attempt.log_in().await?,
            (_, Some(way)) => attempt.bear(way).await?,
            (Login::Basic { .. }, None) if self.basic.load(Ordering::Relaxed) => attempt.log_in().await?,
            // Its first answer would be the way to where the login may not be shown now.
            (_, None) => {
                self.signer.check(&attempt.login, repository)?;
                self.tokens.check_limit()?;
            }
        }
        Ok(attempt)
    }

    /// Begins anew and, as `docker login` does, asks for tokens without a scope: no repository's rights are in the way. The
    /// repository only tells the source which login is meant.
    pub async fn sign_in<'a>(&'a self, repository: &'a RepositoryName, deadline: Instant) -> Result<Attempt<'a>, UpstreamError> {
        let mut attempt = self.attempt(repository, false, deadline).await?;
        if let Login::RegistryToken(_) = attempt.login.login {
            attempt.log_in().await?;
        }
        Ok(attempt)
    }

    async fn attempt<'a>(
        &'a self,
        repository: &'a RepositoryName,
        is_scoped: bool,
        deadline: Instant,
    ) -> Result<Attempt<'a>, UpstreamError> {
        Ok(Attempt {
            deadline,
            auth: self,
            repository,
            is_scoped,
            login: self.signer.login(repository).await?,
            sent: Sent::Nothing,
            refreshed: false,
            bared: false,
            renewed: false,
            asked_ping: false,
            turn: Turn::Free,
        })
    }
}

/// What came of a question.
impl<'a> Attempt<'a> {
    /// Whether the source holds no login for the repository.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.login.login, Login::Anonymous)
    }

    pub fn authorization(&self) -> Option<HeaderValue> {
        match &self.sent {
            Sent::Nothing => None,
            Sent::Login(header) | Sent::Bearer(_, header) => Some(header.clone()),
        }
    }

    /// The registry has answered with content, or that there is none.
    pub fn accepted(&mut self) {
        self.turn = Turn::Free;
        if let Sent::Login(_) = self.sent {
            self.auth.signer.accepted_for(&self.login, self.repository);
        }
    }

    /// Prepares the next try after the registry's own 401, or says why there is none.
    pub async fn refused(&mut self, answer: Answer) -> Result<(), UpstreamError> {
        let from = answer.url.clone();
        let challenges = sign_in::challenges(&answer);
        answer.discard();
        match (sign_in::bearer(&challenges), &self.sent) {
            (_, Sent::Login(_)) if matches!(self.login.login, Login::RegistryToken(_)) => self.login_refused(&from).await,
            (Some(bearer), _) => self.with_token(bearer, &challenges, &from).await,
            // Harbor says Basic, or nothing, to whatever had an Authorization it did not like: ask again without one.
            (None, Sent::Bearer(key, header)) if !self.bared => {
                self.auth.tokens.refuse(key, header);
                self.auth.learned.invalidate(self.repository);
                self.bared = true;
                self.sent = Sent::Nothing;
                Ok(())
            }
            (None, Sent::Login(_)) => self.login_refused(&from).await,
            (None, _) if !challenges.is_empty() => self.with_basic(&from).await,
            (None, _) => match self.show_login().await? {
                true => Ok(()),
                false => Err(denied(&from, "without a challenge that larder understands")),
            },
        }
    }

    /// The registry refuses (401 without a challenge, 403, or 404, as some hide what is private) and was not shown the login that
    /// there is for this repository: what it wants is asked at `/v2/`, once. Returns whether to ask again, with the login.
    ///
    /// # Errors
    /// When the login cannot be shown.
    pub async fn show_login(&mut self) -> Result<bool, UpstreamError> {
        let was_shown = self.asked_ping || !matches!(self.sent, Sent::Nothing);
        if was_shown || !self.is_scoped || self.is_anonymous() {
            return Ok(false);
        }
        self.asked_ping = true;
        match self.auth.sign_in.scheme().await {
            Ok(Scheme::Token { realm, service }) => {
                let scopes = scope::requested(self.repository, None, true);
                self.bear(Arc::new(Way { realm, service, scopes })).await?;
            }
            Ok(Scheme::Login) if matches!(self.login.login, Login::Basic { .. }) => {
                self.with_basic(&self.auth.sign_in.ping().clone()).await?
            }
            Ok(Scheme::Login | Scheme::Unnamed | Scheme::Nothing) => return Ok(false),
            // Not asked is not refused: what is cached may be served stale.
            Err(error) if error.says_nothing() => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "the registry refused without asking for the login, and /v2/ does not say how to show it");
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A login may have expired, which ECR tells by 403: looks for another, once. Returns whether there is one.
    pub async fn expired(&mut self, why: &UpstreamError) -> bool {
        let Sent::Login(_) = self.sent else { return false };
        if self.renewed {
            return false;
        }
        self.renewed = true;
        self.turn = Turn::Free;
        let Some(login) = self.auth.signer.renewed(&self.login, self.repository).await else { return false };
        self.login = login;
        self.log_in().await.inspect_err(|error| tracing::debug!(%error, %why, "no other login")).is_ok()
    }
}

/// What is sent next.
impl Attempt<'_> {
    async fn with_basic(&mut self, from: &Url) -> Result<(), UpstreamError> {
        match &self.login.login {
            Login::Basic { .. } => {
                self.auth.basic.store(true, Ordering::Relaxed);
                self.log_in().await
            }
            Login::Anonymous => Err(denied(from, "and wants a user name and password")),
            Login::IdentityToken(_) | Login::RegistryToken(_) => {
                let detail = format!("{from} wants a user name and password, and has no token server that takes a token");
                Err(UpstreamError::CredentialRefused { detail })
            }
        }
    }

    /// Sends the login itself.
    async fn log_in(&mut self) -> Result<(), UpstreamError> {
        self.prove(&Scheme::Login).await?;
        self.sent = self.login.login.authorization()?.map_or(Sent::Nothing, Sent::Login);
        Ok(())
    }

    async fn with_token(&mut self, bearer: &Bearer, challenges: &[Challenge], from: &Url) -> Result<(), UpstreamError> {
        let Scheme::Token { realm, service } = Scheme::of(challenges, from)? else {
            return Err(denied(from, "without a token server"));
        };
        let asked = |challenged| scope::requested(self.repository, challenged, !self.is_anonymous());
        let scopes = if self.is_scoped { asked(bearer.scope.as_deref()) } else { Vec::new() };
        let way = Way { realm, service, scopes };
        if let Sent::Bearer(used, header) = &self.sent {
            // The token is genuine and allows too little: another for the same scope would, too.
            let pointless = *used.way == way && bearer.error.as_deref() == Some("insufficient_scope");
            if self.refreshed || pointless {
                return Err(denied(from, "to a token for this repository"));
            }
            self.refreshed = true;
            self.auth.tokens.refuse(used, header);
        }
        self.bear(Arc::new(way)).await
    }

    /// A token, remembered as this repository's way. Where none is to be had the way is forgotten: the registry may name another
    /// by now. One that leads to a limit stays, as to look for another would be a question for nothing.
    async fn bear(&mut self, way: Arc<Way>) -> Result<(), UpstreamError> {
        let token = self.token(&way).await.inspect_err(|error| {
            if !matches!(error, UpstreamError::RateLimited { .. }) {
                self.auth.learned.invalidate(self.repository);
            }
        })?;
        self.turn = Turn::Free;
        self.auth.learned.insert(self.repository.clone(), Arc::clone(&way));
        self.sent = Sent::Bearer(TokenKey { way, version: self.login.version }, token.header);
        Ok(())
    }

    async fn token(&mut self, way: &Arc<Way>) -> Result<Token, UpstreamError> {
        let auth = self.auth;
        let scheme = Scheme::Token { realm: way.realm.clone(), service: way.service.clone() };
        loop {
            // After a lockout the one question that may go out has to find out whether the login is good.
            let cached = auth.tokens.cached(&TokenKey { way: Arc::clone(way), version: self.login.version });
            if let Some(token) = cached.filter(|_| matches!(auth.signer.was_locked_out(&self.login), Ok(false))) {
                return Ok(token);
            }
            self.prove(&scheme).await?;
            match auth.tokens.get(way, &self.login).await {
                Ok(token) => {
                    auth.signer.accepted_for(&self.login, self.repository);
                    return Ok(token);
                }
                Err(NoToken::Failed(why @ UpstreamError::Busy { .. })) => return Err(self.busy(why, &scheme).await),
                Err(NoToken::Failed(why)) => return Err(why),
                Err(NoToken::Refused(why)) => self.judge(why, &scheme).await?,
                Err(NoToken::Limited(limited)) => return Err(self.limited(&limited, &scheme).await),
            }
        }
    }
}

fn denied(from: &Url, why: &str) -> UpstreamError {
    UpstreamError::Denied { detail: format!("{from} answered 401 {why}") }
}
