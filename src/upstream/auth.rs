//! What to send with a question, and what to do about a 401. Remembers how each repository wants to be asked, so that only
//! the first question in it costs a refusal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderValue;
use http::header::WWW_AUTHENTICATE;
use moka::sync::Cache;

use super::UpstreamError;
use super::challenge::{self, Bearer, Challenge};
use super::credentials::basic;
use super::token::{TokenKey, Tokens};
use super::url::Url;
use super::wire::{Answer, Wire};
use crate::config::{CredentialKind, Credentials, UpstreamConfig};
use crate::oci::RepositoryName;

const REPOSITORIES_MAX: u64 = 10_000;

/// How one upstream wants to be asked.
pub(super) struct Auth {
    credentials: Option<Credentials>,
    tokens: Arc<Tokens>,
    /// Basic has been asked for: it holds for every repository of the registry.
    basic: AtomicBool,
    learned: Cache<RepositoryName, Arc<TokenKey>>,
}

/// The authentication of one attempt, step by step. Each step can be taken once, so it ends.
pub(super) struct Attempt<'a> {
    auth: &'a Auth,
    repository: &'a RepositoryName,
    sent: Sent,
    refreshed: bool,
    bared: bool,
}

#[derive(Clone)]
enum Sent {
    Nothing,
    Basic(HeaderValue),
    Bearer(Arc<TokenKey>, HeaderValue),
}

impl Auth {
    pub(super) fn new(config: &UpstreamConfig, wire: &Arc<Wire>) -> Auth {
        let credentials = config.credentials.first().and_then(|credential| match &credential.kind {
            CredentialKind::Password(credentials) => Some(credentials.clone()),
            _ => None,
        });
        let tokens = Tokens::new(Arc::clone(wire), credentials.clone(), config.token_hosts.clone());
        Auth { credentials, tokens, basic: AtomicBool::new(false), learned: Cache::new(REPOSITORIES_MAX) }
    }

    /// Begins with what worked last time.
    pub(super) async fn begin<'a>(&'a self, repository: &'a RepositoryName) -> Result<Attempt<'a>, UpstreamError> {
        let sent = match (self.learned.get(repository), &self.credentials) {
            (Some(key), _) => self.bearer(repository, key).await?,
            (None, Some(credentials)) if self.basic.load(Ordering::Relaxed) => Sent::Basic(basic(credentials).await?),
            (None, _) => Sent::Nothing,
        };
        Ok(Attempt { auth: self, repository, sent, refreshed: false, bared: false })
    }

    /// A token, remembered as this repository's way. Where none is to be had the way is forgotten: the registry may name another by now.
    async fn bearer(&self, repository: &RepositoryName, key: Arc<TokenKey>) -> Result<Sent, UpstreamError> {
        let token = self.tokens.get(&key).await.inspect_err(|_| self.learned.invalidate(repository))?;
        self.learned.insert(repository.clone(), Arc::clone(&key));
        Ok(Sent::Bearer(key, token.header))
    }
}

impl Attempt<'_> {
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        match &self.sent {
            Sent::Nothing => None,
            Sent::Basic(header) | Sent::Bearer(_, header) => Some(header.clone()),
        }
    }

    /// Prepares the next try after the registry's own 401, or says why there is none.
    pub(super) async fn refused(&mut self, answer: Answer) -> Result<(), UpstreamError> {
        let from = answer.url.to_string();
        let lines = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
        let challenges: Vec<Challenge> = lines.filter_map(|line| line.to_str().ok()).flat_map(challenge::parse).collect();
        answer.discard();
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer),
            Challenge::Basic => None,
        });
        self.sent = match (bearer, &self.sent) {
            (Some(bearer), _) => self.with_token(bearer, &from).await?,
            // Harbor says Basic, or nothing, to whatever had an Authorization it did not like: ask again without one.
            (None, Sent::Bearer(key, header)) if !self.bared => {
                self.auth.tokens.refuse(key, header);
                self.auth.learned.invalidate(self.repository);
                self.bared = true;
                Sent::Nothing
            }
            (None, _) if challenges.is_empty() => return Err(denied(&from, "without a challenge that larder understands")),
            (None, sent) => self.with_basic(sent, &from).await?,
        };
        Ok(())
    }

    async fn with_basic(&self, sent: &Sent, from: &str) -> Result<Sent, UpstreamError> {
        let Some(credentials) = &self.auth.credentials else {
            return Err(denied(from, "and wants a user name and password"));
        };
        if let Sent::Basic(_) = sent {
            return Err(UpstreamError::CredentialRefused { detail: format!("{from} answered 401 to the user name and password") });
        }
        self.auth.basic.store(true, Ordering::Relaxed);
        Ok(Sent::Basic(basic(credentials).await?))
    }

    async fn with_token(&mut self, bearer: &Bearer, from: &str) -> Result<Sent, UpstreamError> {
        let realm = Url::parse(&bearer.realm)
            .map_err(|error| UpstreamError::Corrupt { detail: format!("{from} named a token server that is {error}") })?;
        let key = Arc::new(TokenKey { realm, service: bearer.service.clone(), scopes: scopes(self.repository, bearer.scope.as_deref()) });
        if let Sent::Bearer(used, header) = &self.sent {
            // The token is genuine and allows too little: another for the same scope would, too.
            let pointless = *used == key && bearer.error.as_deref() == Some("insufficient_scope");
            if self.refreshed || pointless {
                return Err(denied(from, "to a token for this repository"));
            }
            self.refreshed = true;
            self.auth.tokens.refuse(used, header);
        }
        self.auth.bearer(self.repository, key).await
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
    fn a_scope_of_our_own_stands_in_for_none() {
        let repository: RepositoryName = "a/b".parse().expect("a name");
        let own = ["repository:a/b:pull"];
        for challenged in [None, Some(""), Some("*"), Some("repository:user/image:pull")] {
            assert_eq!(scopes(&repository, challenged), own, "{challenged:?}");
        }
        assert_eq!(scopes(&repository, Some("aws")), ["aws"]);
        assert_eq!(scopes(&repository, Some("z repository:a/b:pull z")), ["repository:a/b:pull", "z"]);
    }
}
