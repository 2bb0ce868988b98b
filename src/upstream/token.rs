//! Bearer tokens: fetched once for any number of waiters, kept for as long as they are good. A `Tokens` belongs to one
//! upstream and its one credential, so neither needs to be part of a key.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Method, StatusCode};
use moka::sync::Cache;
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::UnavailableReason;
use super::UpstreamError;
use super::credentials::{basic, sensitive};
use super::realm::{self, Trust};
use super::url::Url;
use super::wire::{Outgoing, Wire, broken};
use crate::config::Credentials;
use crate::metrics::UpstreamKind;
use crate::oci::KIB;

const TOKENS_MAX: u64 = 10_000;
/// The token protocol's lifetime for a token that names none, and the least that one gets.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
const LIFETIME_MAX: Duration = Duration::from_hours(24);
const RENEW_BEFORE: Duration = Duration::from_secs(10);
/// A refusal answers those who ask within this time; then the token server is asked again.
const REFUSAL_HOLD: Duration = Duration::from_secs(1);
/// A fetch serves many callers, so it has its own deadline and none of theirs.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);
const REPLY_BYTES_MAX: usize = 64 * KIB as usize;

/// What a token is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) realm: Url,
    pub(super) service: Option<String>,
    /// Sorted, without doubles.
    pub(super) scopes: Vec<String>,
}

/// `Bearer <token>`, and until when to use it.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    renew_at: Instant,
}

type Fetched = Result<Token, UpstreamError>;

/// The tokens of one upstream.
pub(super) struct Tokens {
    wire: Arc<Wire>,
    credentials: Option<Credentials>,
    token_hosts: Vec<String>,
    cache: Cache<TokenKey, Token>,
    /// One entry for each fetch under way or held; it lives as long as its task.
    flights: Mutex<HashMap<TokenKey, watch::Receiver<Option<Fetched>>>>,
}

impl Tokens {
    pub(super) fn new(wire: Arc<Wire>, credentials: Option<Credentials>, token_hosts: Vec<String>) -> Arc<Tokens> {
        let cache = Cache::new(TOKENS_MAX);
        Arc::new(Tokens { wire, credentials, token_hosts, cache, flights: Mutex::default() })
    }

    /// A token that is good now. Waits for the fetch that is under way, or begins one.
    pub(super) async fn get(self: &Arc<Tokens>, key: &TokenKey) -> Fetched {
        if let Some(token) = self.held(key) {
            return Ok(token);
        }
        let mut flight = match self.join(key) {
            Ok(token) => return Ok(token),
            Err(flight) => flight,
        };
        let landed = flight.wait_for(Option::is_some).await;
        let fetched = landed.ok().and_then(|fetched| fetched.clone());
        fetched.unwrap_or_else(|| Err(broken("the token's fetch was abandoned".into())))
    }

    /// A token that upstream refused is not used again; one that came since stays.
    pub(super) fn refuse(&self, key: &TokenKey, refused: &HeaderValue) {
        if self.cache.get(key).is_some_and(|token| token.header == *refused) {
            self.cache.invalidate(key);
        }
    }

    fn held(&self, key: &TokenKey) -> Option<Token> {
        self.cache.get(key).filter(|token| token.renew_at > Instant::now())
    }

    /// The flight of this key, or the token if it landed meanwhile.
    fn join(self: &Arc<Tokens>, key: &TokenKey) -> Result<Token, watch::Receiver<Option<Fetched>>> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(key) {
            return Err(flight.clone());
        }
        if let Some(token) = self.held(key) {
            return Ok(token);
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let entry = Entry { tokens: Arc::clone(self), key: key.clone() };
        tokio::spawn(async move { entry.fly(sender).await });
        Err(flight)
    }

    async fn fetch(&self, key: &TokenKey) -> Fetched {
        let deadline = Instant::now() + FETCH_TIMEOUT;
        let authorization = self.authorization(key).await?;
        let with_credentials = authorization.is_some();
        let outgoing = Outgoing {
            kind: UpstreamKind::Token,
            method: Method::GET,
            url: key.url(),
            accept: None,
            range: None,
            authorization,
            deadline,
            exchange: None,
        };
        let answer = self.wire.ask(&outgoing).await?;
        let received = Instant::now();
        if answer.status() != StatusCode::OK {
            return Err(answer.refused(|refused| refused.meaning_of_token_server(with_credentials)).await);
        }
        let body = answer.body(REPLY_BYTES_MAX).await?;
        read(&body, received).ok_or_else(|| UpstreamError::Corrupt { detail: format!("{} answered 200 without a token", key.realm) })
    }

    /// What the token server may see.
    async fn authorization(&self, key: &TokenKey) -> Result<Option<HeaderValue>, UpstreamError> {
        let trust = realm::judge(&self.wire.origin, &key.realm.origin, &self.token_hosts);
        let realm = &key.realm.origin;
        match (trust, &self.credentials) {
            (Trust::Credentials, Some(credentials)) => basic(credentials).await.map(Some),
            (Trust::Credentials | Trust::Nothing, None) => Ok(None),
            (Trust::Nothing, Some(_)) => {
                let detail = format!("tokens come from {realm}, which `token_hosts` does not list, so the password was not sent");
                Err(UpstreamError::CredentialRefused { detail })
            }
            (Trust::Insecure, Some(_)) => {
                let remedy = if self.wire.origin.tls { "no entry in `token_hosts` changes that" } else { "`token_hosts` does not list it" };
                let detail = format!("tokens come from {realm} without TLS, so the password was not sent; {remedy}");
                Err(UpstreamError::CredentialRefused { detail })
            }
            (Trust::Insecure, None) => {
                let detail = format!("tokens come from {realm} without TLS");
                Err(UpstreamError::Unavailable { reason: UnavailableReason::Blocked, detail })
            }
        }
    }
}

impl TokenKey {
    fn url(&self) -> Url {
        let service = self.service.iter().map(|service| ("service", service));
        let scopes = self.scopes.iter().map(|scope| ("scope", scope));
        service.chain(scopes).fold(self.realm.clone(), |url, (name, value)| url.with_parameter(name, value))
    }
}

/// A flight's place in the table, given up with its task, also when that panics.
struct Entry {
    tokens: Arc<Tokens>,
    key: TokenKey,
}

impl Entry {
    async fn fly(self, sender: watch::Sender<Option<Fetched>>) {
        let fetch = tokio::time::timeout(FETCH_TIMEOUT, self.tokens.fetch(&self.key)).await;
        let fetched = fetch.unwrap_or_else(|_| Err(UpstreamError::TimedOut { detail: format!("no token from {}", self.key.realm) }));
        if let Ok(token) = &fetched {
            self.tokens.cache.insert(self.key.clone(), token.clone());
        }
        let hold = fetched.as_ref().err().is_some_and(|error| !error.is_transient());
        sender.send_replace(Some(fetched));
        if hold {
            tokio::time::sleep(REFUSAL_HOLD).await;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tokens.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}

#[derive(Deserialize)]
struct Reply {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// Its life is counted from when it came: `issued_at` is another clock's word.
fn read(body: &[u8], received: Instant) -> Option<Token> {
    let reply: Reply = serde_json::from_slice(body).ok()?;
    let token = [reply.token, reply.access_token].into_iter().flatten().find(|token| !token.is_empty())?;
    let header = sensitive(&format!("Bearer {token}"))?;
    let lifetime = reply.expires_in.as_ref().and_then(seconds).unwrap_or(LIFETIME_MIN);
    Some(Token { header, renew_at: received + lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX) - RENEW_BEFORE })
}

fn seconds(value: &serde_json::Value) -> Option<Duration> {
    let number = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(number.min(LIFETIME_MAX.as_secs_f64())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lifetime(body: &str) -> Option<u64> {
        let now = Instant::now();
        read(body.as_bytes(), now).map(|token| (token.renew_at - now).as_secs())
    }

    #[tokio::test]
    async fn a_token_s_life_is_at_least_a_minute_and_renewed_early() {
        assert_eq!(lifetime(r#"{"token":"t","expires_in":300,"issued_at":"1999-01-01T00:00:00Z"}"#), Some(290));
        assert_eq!(lifetime(r#"{"access_token":"t"}"#), Some(50));
        assert_eq!(lifetime(r#"{"token":"","access_token":"t","expires_in":"120"}"#), Some(110));
        for odd in ["0", "-5", "1", "null", "\"soon\"", "{}"] {
            assert_eq!(lifetime(&format!(r#"{{"token":"t","expires_in":{odd}}}"#)), Some(50), "{odd}");
        }
        assert_eq!(lifetime(r#"{"token":"t","expires_in":1e300}"#), Some(86_390));
    }

    #[tokio::test]
    async fn a_reply_without_a_usable_token_is_none() {
        for body in ["", "{}", "<html>", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, "[]"] {
            assert_eq!(lifetime(body), None, "{body}");
        }
    }

    #[test]
    fn one_scope_parameter_for_each_entry() {
        let realm = Url::parse("https://a.example/token?x=1").expect("a URL");
        let key = TokenKey { realm, service: None, scopes: vec!["aws".into(), "repository:a/b:pull".into()] };
        assert_eq!(key.url().uri().expect("a URI").to_string(), "https://a.example/token?x=1&scope=aws&scope=repository%3Aa%2Fb%3Apull");
    }
}
