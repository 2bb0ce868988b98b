//! What to send with a question, and what to do about a 401. Remembers how each repository wants to be asked, so that only
//! the first question in it costs a refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;
use moka::sync::Cache;
use tokio::time::Instant;

use super::challenge::{self, Bearer, Challenge};
use super::credentials::Login;
use super::lockout::{Offer, Place, Signer, Turn};
use super::token::{TokenKey, Tokens, Way};
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
    offer: Offer,
    sent: Sent,
    refreshed: bool,
    bared: bool,
    renewed: bool,
    /// Held while an unproven login is tried.
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
    pub fn new(config: &UpstreamConfig, signer: Arc<Signer>, wire: &Arc<Wire>, rng: &Arc<Rng>) -> Auth {
        let tokens = Tokens::new(Arc::clone(wire), Arc::clone(&signer), config.token_hosts.clone(), Arc::clone(rng));
        Auth { signer, tokens, basic: AtomicBool::new(false), learned: Cache::new(REPOSITORIES_MAX) }
    }

    /// The credential's name.
    pub fn credential(&self) -> &str {
        self.signer.name()
    }

    /// Whether the login is held off, and whether the token server is left alone: what keeps a question from being asked.
    pub fn outlook(&self, repository: &RepositoryName, now: Instant) -> (Option<Open>, Option<Open>) {
        (self.signer.held_off(now), self.tokens.outlook(self.learned.get(repository).as_deref(), now))
    }

    /// Begins with what worked last time.
    pub async fn begin<'a>(&'a self, repository: &'a RepositoryName) -> Result<Attempt<'a>, UpstreamError> {
        let mut attempt = self.attempt(repository, true).await?;
        let way = self.learned.get(repository);
        match (&attempt.offer.held.login, way) {
            (Login::RegistryToken(_), _) => attempt.log_in().await?,
            (_, Some(way)) => attempt.bear(way).await?,
            (Login::Basic { .. }, None) if self.basic.load(Ordering::Relaxed) => attempt.log_in().await?,
            // Its first answer would be the way to a token server that is to be left alone.
            (_, None) => self.tokens.spared()?,
        }
        Ok(attempt)
    }

    /// Begins anew and, as `docker login` does, asks for tokens without a scope: no repository's rights are in the way. The
    /// repository only tells the source which login is meant.
    pub async fn sign_in<'a>(&'a self, repository: &'a RepositoryName) -> Result<Attempt<'a>, UpstreamError> {
        let mut attempt = self.attempt(repository, false).await?;
        if let Login::RegistryToken(_) = attempt.offer.held.login {
            attempt.log_in().await?;
        }
        Ok(attempt)
    }

    async fn attempt<'a>(&'a self, repository: &'a RepositoryName, is_scoped: bool) -> Result<Attempt<'a>, UpstreamError> {
        let offer = self.signer.login(repository).await?;
        Ok(Attempt {
            auth: self,
            repository,
            is_scoped,
            offer,
            sent: Sent::Nothing,
            refreshed: false,
            bared: false,
            renewed: false,
            turn: Turn::Free,
        })
    }
}

impl<'a> Attempt<'a> {
    /// Whether the source holds no login for the repository.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.offer.held.login, Login::Anonymous)
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
            self.auth.signer.accepted(&self.offer.held);
        }
    }

    /// Prepares the next try after the registry's own 401, or says why there is none.
    pub async fn refused(&mut self, answer: Answer) -> Result<(), UpstreamError> {
        let from = answer.url.to_string();
        let lines = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
        let challenges: Vec<Challenge> = lines.filter_map(|line| line.to_str().ok()).flat_map(challenge::parse).collect();
        answer.discard();
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        match (bearer, &self.sent) {
            (_, Sent::Login(_)) if matches!(self.offer.held.login, Login::RegistryToken(_)) => self.renew(&from).await,
            (Some(bearer), _) => self.with_token(bearer, &from).await,
            // Harbor says Basic, or nothing, to whatever had an Authorization it did not like: ask again without one.
            (None, Sent::Bearer(key, header)) if !self.bared => {
                self.auth.tokens.refuse(key, header);
                self.auth.learned.invalidate(self.repository);
                self.bared = true;
                self.sent = Sent::Nothing;
                Ok(())
            }
            (None, Sent::Login(_)) => self.renew(&from).await,
            (None, _) if challenges.is_empty() => Err(denied(&from, "without a challenge that larder understands")),
            (None, _) => self.with_basic(&from).await,
        }
    }

    /// A login may have expired, which ECR tells by 403: looks for another, once. Returns whether there is one.
    pub async fn expired(&mut self, why: &UpstreamError) -> bool {
        let Sent::Login(_) = self.sent else { return false };
        if self.renewed {
            return false;
        }
        self.renewed = true;
        self.turn = Turn::Free;
        let Some(offer) = self.auth.signer.renewed(&self.offer.held, self.repository).await else { return false };
        self.offer = offer;
        self.log_in().await.inspect_err(|error| tracing::debug!(%error, %why, "no other login")).is_ok()
    }

    async fn with_basic(&mut self, from: &str) -> Result<(), UpstreamError> {
        match &self.offer.held.login {
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
        self.turn = Turn::Free;
        self.turn = self.auth.signer.turn(&self.offer, Place::Registry).await?;
        self.sent = self.offer.held.login.authorization()?.map_or(Sent::Nothing, Sent::Login);
        Ok(())
    }

    /// The registry refused the login itself: there may be another by now.
    async fn renew(&mut self, from: &str) -> Result<(), UpstreamError> {
        self.turn = Turn::Free;
        let error = UpstreamError::CredentialRefused { detail: format!("{from} answered 401 to credential {}", self.auth.credential()) };
        let again = self.auth.signer.refused(&self.offer.held, self.repository, &error).await;
        match again.filter(|_| !self.renewed) {
            Some(offer) => {
                self.renewed = true;
                self.offer = offer;
                self.log_in().await
            }
            None => Err(error),
        }
    }

    async fn with_token(&mut self, bearer: &Bearer, from: &str) -> Result<(), UpstreamError> {
        let realm = Url::parse(&bearer.realm)
            .map_err(|error| UpstreamError::Corrupt { detail: format!("{from} named a token server that is {error}") })?;
        let scopes = if self.is_scoped { scopes(self.repository, bearer.scope.as_deref()) } else { Vec::new() };
        let way = Way { realm, service: bearer.service.clone(), scopes };
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
        // The token's fetch takes a turn of its own.
        self.turn = Turn::Free;
        let auth = self.auth;
        let mut token = auth.tokens.get(&way, &self.offer, self.repository).await;
        if let Err(UpstreamError::CredentialRefused { .. }) = token
            && !self.renewed
            && let Ok(offer) = auth.signer.login(self.repository).await
            && offer.held.version != self.offer.held.version
        {
            self.renewed = true;
            self.offer = offer;
            token = auth.tokens.get(&way, &self.offer, self.repository).await;
        }
        let token = token.inspect_err(|error| {
            if !matches!(error, UpstreamError::RateLimited { .. }) {
                auth.learned.invalidate(self.repository);
            }
        })?;
        auth.learned.insert(self.repository.clone(), Arc::clone(&way));
        self.sent = Sent::Bearer(TokenKey { way, version: self.offer.held.version }, token.header);
        Ok(())
    }
}

fn denied(from: &str, why: &str) -> UpstreamError {
    UpstreamError::Denied { detail: format!("{from} answered 401 {why}") }
}

/// The scopes to ask for: the challenge's, unless it names none, everything, or GHCR's placeholder.
fn scopes(repository: &RepositoryName, challenged: Option<&str>) -> Vec<String> {
    let mut scopes: Vec<String> = challenged
        .unwrap_or_default()
        .split_ascii_whitespace()
        .filter(|scope| *scope != "*" && !scope.starts_with("repository:user/image:"))
        .map(str::to_owned)
        .collect();
    if scopes.is_empty() {
        scopes.push(format!("repository:{repository}:pull"));
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registry_05_a_scope_of_our_own_stands_in_for_none() {
        let repository: RepositoryName = "a/b".parse().expect("a name");
        let own = ["repository:a/b:pull"];
        for challenged in [None, Some(""), Some("*"), Some("repository:user/image:pull")] {
            assert_eq!(scopes(&repository, challenged), own, "{challenged:?}");
        }
        assert_eq!(scopes(&repository, Some("aws")), ["aws"]);
        assert_eq!(scopes(&repository, Some("z repository:a/b:pull z")), ["repository:a/b:pull", "z"]);
    }
}
