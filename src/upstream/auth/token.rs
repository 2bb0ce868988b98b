//! Bearer tokens: fetched once for any number of waiters, kept for as long as they are good. A `Tokens` belongs to one
//! host of an upstream and one credential there, so neither needs to be part of a key; the login that was used does.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use moka::sync::Cache;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::Instant;

use super::credentials::{Login, Version};
use super::lockout::{Offer, Place, Signer};
use super::token_hosts::{self, Trust};
use crate::labels::UpstreamKind;
use crate::oci::{KIB, RepositoryName};
use crate::percent;
use crate::rng::Rng;
use crate::upstream::UnavailableReason;
use crate::upstream::UpstreamError;
use crate::upstream::http::exchange::{Form, Outgoing, Wire, broken};
use crate::upstream::http::url::Url;
use crate::upstream::limits::breaker::{Backoff, Breaker, Open};
use crate::upstream::limits::too_many_requests::{Asked, Limited};
use crate::upstream::secret::sensitive;

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

/// Docker Hub says 429 here after too many failed logins, and does not say for how long.
const LIMITED: Backoff = Backoff { first: Duration::from_mins(1), max: Duration::from_hours(1) };
/// A token server that is down is left alone as a registry is.
const DOWN: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    pub realm: Url,
    pub service: Option<String>,
    /// Sorted, without doubles.
    pub scopes: Vec<String>,
}

/// What a token is for, and the login it was had with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenKey {
    pub way: Arc<Way>,
    pub version: Version,
}

/// `Bearer <token>`, and until when to use it.
#[derive(Clone, Debug)]
pub struct Token {
    pub header: HeaderValue,
    renew_at: Instant,
}

type Fetched = Result<Token, UpstreamError>;

/// The tokens of one credential at one host.
pub struct Tokens {
    wire: Arc<Wire>,
    signer: Arc<Signer>,
    token_hosts: Vec<String>,
    breaker: Breaker,
    rng: Arc<Rng>,
    cache: Cache<TokenKey, Token>,
    /// One entry for each fetch under way or held; it lives as long as its task.
    flights: Mutex<HashMap<TokenKey, watch::Receiver<Option<Fetched>>>>,
}

impl Tokens {
    pub fn new(wire: Arc<Wire>, signer: Arc<Signer>, token_hosts: Vec<String>, rng: Arc<Rng>) -> Arc<Tokens> {
        let cache = Cache::builder().max_capacity(TOKENS_MAX).time_to_live(LIFETIME_MAX).build();
        Arc::new(Tokens { wire, signer, token_hosts, breaker: Breaker::default(), rng, cache, flights: Mutex::default() })
    }

    /// A token that is good now. Waits for the fetch that is under way, or begins one.
    pub async fn get(self: &Arc<Tokens>, way: &Arc<Way>, offer: &Offer, repository: &RepositoryName) -> Fetched {
        let key = TokenKey { way: Arc::clone(way), version: offer.held.version };
        if let Some(token) = self.held(&key) {
            return Ok(token);
        }
        let mut flight = match self.join(&key, offer, repository) {
            Ok(token) => return Ok(token),
            Err(flight) => flight,
        };
        let landed = flight.wait_for(Option::is_some).await;
        let fetched = landed.ok().and_then(|fetched| fetched.clone());
        fetched.unwrap_or_else(|| Err(broken("the token's fetch was abandoned".into())))
    }

    /// A token that upstream refused is not used again; one that came since stays.
    pub fn refuse(&self, key: &TokenKey, refused: &HeaderValue) {
        if self.cache.get(key).is_some_and(|token| token.header == *refused) {
            self.cache.invalidate(key);
        }
    }

    /// An error while the token server is left alone for its limit.
    pub fn spared(&self) -> Result<(), UpstreamError> {
        match self.breaker.refusal(Instant::now()) {
            Some(error @ UpstreamError::RateLimited { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the token server is left alone, for who has no token yet.
    pub fn outlook(&self, way: Option<&Way>, now: Instant) -> Option<Open> {
        let is_held = || self.cache.iter().any(|(key, token)| way == Some(&*key.way) && token.renew_at > now);
        self.breaker.state(now).filter(|_| !is_held())
    }

    fn held(&self, key: &TokenKey) -> Option<Token> {
        self.cache.get(key).filter(|token| token.renew_at > Instant::now())
    }

    /// The flight of this key, or the token if it landed meanwhile.
    fn join(
        self: &Arc<Tokens>,
        key: &TokenKey,
        offer: &Offer,
        repository: &RepositoryName,
    ) -> Result<Token, watch::Receiver<Option<Fetched>>> {
        let mut flights = self.flights.lock();
        if let Some(flight) = flights.get(key) {
            return Err(flight.clone());
        }
        if let Some(token) = self.held(key) {
            return Ok(token);
        }
        let (sender, flight) = watch::channel(None);
        flights.insert(key.clone(), flight.clone());
        drop(flights);
        let entry = Entry { tokens: Arc::clone(self), key: key.clone(), offer: offer.clone(), repository: repository.clone() };
        tokio::spawn(async move { entry.fly(sender).await });
        Err(flight)
    }

    async fn fetch(&self, key: &TokenKey, offer: &Offer, repository: &RepositoryName) -> Fetched {
        let begun = Instant::now();
        let _permit = self.breaker.enter(begun).map_err(|open| open.why)?;
        let fetched = self.exchange(key, offer, repository, begun).await;
        match &fetched {
            // It has told, whatever it has told.
            Ok(_) | Err(UpstreamError::Denied { .. } | UpstreamError::CredentialRefused { .. }) => drop(self.breaker.succeeded(begun)),
            Err(error @ UpstreamError::Busy { retry_after, .. }) => {
                self.breaker.open(begun, Instant::now(), error, Some(*retry_after), DOWN, |wait| self.rng.jitter(wait));
            }
            Err(error) if error.is_transient() => {
                self.breaker.failed(begun, Instant::now(), error, DOWN, |wait| self.rng.jitter(wait));
            }
            Err(_) => {}
        }
        fetched
    }

    async fn exchange(&self, key: &TokenKey, offer: &Offer, repository: &RepositoryName, begun: Instant) -> Fetched {
        let login = &offer.held.login;
        self.trusted(&key.way.realm, matches!(login, Login::Anonymous))?;
        let _turn = self.signer.turn(offer, Place::TokenServer).await?;
        let answer = self.wire.ask(&key.way.outgoing(login, begun + FETCH_TIMEOUT)?).await?;
        let received = Instant::now();
        let realm = &key.way.realm;
        if answer.status() == StatusCode::OK {
            self.signer.accepted(&offer.held);
            let body = answer.body(REPLY_BYTES_MAX).await?;
            return read(&body, received).ok_or_else(|| UpstreamError::Corrupt { detail: format!("{realm} answered 200 without a token") });
        }
        let has_login = !matches!(login, Login::Anonymous);
        let by_post = matches!(login, Login::IdentityToken(_));
        match answer
            .refused(|refused| refused.limited(Asked::TOKEN).ok_or_else(|| refused.meaning_of_token_server(has_login, by_post)))
            .await
        {
            Ok(limited) => Err(self.limited(&limited, begun)),
            Err(error) => {
                if let UpstreamError::CredentialRefused { .. } = error {
                    // Whoever waits for this token looks for a newer login by itself.
                    self.signer.refused(&offer.held, repository, &error).await;
                }
                Err(error)
            }
        }
    }

    /// The token server has had enough of this credential.
    fn limited(&self, limited: &Limited, begun: Instant) -> UpstreamError {
        let why = UpstreamError::RateLimited { retry_after: None };
        let (wait, is_new) = self.breaker.open(begun, Instant::now(), &why, limited.retry_after, LIMITED, |wait| self.rng.jitter(wait));
        if is_new {
            let (upstream, credential, seconds) = (self.wire.metrics.name(), self.signer.name(), wait.as_secs());
            tracing::warn!(upstream, credential, seconds, "the token server limits the rate; it is not asked before this time is over");
        }
        UpstreamError::RateLimited { retry_after: Some(wait) }
    }

    /// Whether the token server may see what there is to see.
    fn trusted(&self, realm: &Url, anonymous: bool) -> Result<(), UpstreamError> {
        let trust = token_hosts::judge(&self.wire.origin, &realm.origin, &self.token_hosts);
        let realm = &realm.origin;
        match (trust, anonymous) {
            (Trust::Credentials, _) | (Trust::Nothing, true) => Ok(()),
            (Trust::Nothing, false) => {
                let detail = format!("tokens come from {realm}, which `token_hosts` does not list, so the password was not sent");
                Err(UpstreamError::CredentialRefused { detail })
            }
            (Trust::Insecure, false) => {
                let remedy = if self.wire.origin.tls { "no entry in `token_hosts` changes that" } else { "`token_hosts` does not list it" };
                let detail = format!("tokens come from {realm} without TLS, so the password was not sent; {remedy}");
                Err(UpstreamError::CredentialRefused { detail })
            }
            (Trust::Insecure, true) => {
                let detail = format!("tokens come from {realm} without TLS");
                Err(UpstreamError::Unavailable { reason: UnavailableReason::Blocked, detail })
            }
        }
    }
}

impl Way {
    /// GET, with Basic where there is a password; POST for an identity token, which has no other way.
    fn outgoing(&self, login: &Login, deadline: Instant) -> Result<Outgoing<'static>, UpstreamError> {
        let mut outgoing = Outgoing {
            kind: UpstreamKind::Token,
            method: Method::GET,
            url: self.url(),
            accept: None,
            range: None,
            authorization: None,
            form: None,
            deadline,
            exchange: None,
        };
        match login {
            Login::IdentityToken(token) => {
                (outgoing.method, outgoing.url) = (Method::POST, self.realm.clone());
                outgoing.form = Some(self.form(token));
            }
            Login::Basic { .. } => outgoing.authorization = login.authorization()?,
            Login::RegistryToken(_) | Login::Anonymous => {}
        }
        Ok(outgoing)
    }

    fn url(&self) -> Url {
        let service = self.service.iter().map(|service| ("service", service));
        let scopes = self.scopes.iter().map(|scope| ("scope", scope));
        service.chain(scopes).fold(self.realm.clone(), |url, (name, value)| url.with_parameter(name, value))
    }

    /// The refresh grant of OAuth2 (RFC 6749 §6), as Docker's token servers take it: one `scope` for all.
    fn form(&self, token: &SecretString) -> Form {
        let scope = self.scopes.join(" ");
        let mut fields = vec![("grant_type", "refresh_token"), ("client_id", "larder")];
        if !scope.is_empty() {
            fields.push(("scope", &scope));
        }
        fields.extend(self.service.iter().map(|service| ("service", service.as_str())));
        fields.push(("refresh_token", token.expose_secret()));
        Form(Bytes::from(fields.iter().map(|(name, value)| format!("{name}={}", percent::encode(value))).collect::<Vec<_>>().join("&")))
    }
}

/// A flight's place in the table, given up with its task, also when that panics.
struct Entry {
    tokens: Arc<Tokens>,
    key: TokenKey,
    offer: Offer,
    repository: RepositoryName,
}

impl Entry {
    async fn fly(self, sender: watch::Sender<Option<Fetched>>) {
        let fetch = tokio::time::timeout(FETCH_TIMEOUT, self.tokens.fetch(&self.key, &self.offer, &self.repository)).await;
        let fetched = fetch.unwrap_or_else(|_| Err(UpstreamError::TimedOut { detail: format!("no token from {}", self.key.way.realm) }));
        if let Ok(token) = &fetched {
            self.tokens.cache.insert(self.key.clone(), token.clone());
        }
        let hold = matches!(fetched, Err(UpstreamError::Denied { .. } | UpstreamError::Corrupt { .. }));
        sender.send_replace(Some(fetched));
        if hold {
            tokio::time::sleep(REFUSAL_HOLD).await;
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.tokens.flights.lock().remove(&self.key);
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
    let lifetime = reply.expires_in.as_ref().and_then(seconds).or_else(|| lifetime_of_jwt(&token)).unwrap_or(LIFETIME_MIN);
    Some(Token { header, renew_at: received + lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX) - RENEW_BEFORE })
}

/// `exp - iat` of a JWT, whoever signed it: a hint for how long to use it, where the reply has none (Quay, ACR).
fn lifetime_of_jwt(token: &str) -> Option<Duration> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    let (issued, expires) = (claims.get("iat")?.as_f64()?, claims.get("exp")?.as_f64()?);
    Duration::try_from_secs_f64((expires - issued).min(LIFETIME_MAX.as_secs_f64())).ok()
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

    /// Also: registry_09
    #[tokio::test]
    async fn registry_10_a_token_s_life_is_at_least_a_minute_and_renewed_early() {
        assert_eq!(lifetime(r#"{"token":"t","expires_in":300,"issued_at":"1999-01-01T00:00:00Z"}"#), Some(290));
        assert_eq!(lifetime(r#"{"access_token":"t"}"#), Some(50));
        assert_eq!(lifetime(r#"{"token":"","access_token":"t","expires_in":"120"}"#), Some(110));
        for odd in ["0", "-5", "1", "null", "\"soon\"", "{}"] {
            assert_eq!(lifetime(&format!(r#"{{"token":"t","expires_in":{odd}}}"#)), Some(50), "{odd}");
        }
        assert_eq!(lifetime(r#"{"token":"t","expires_in":1e300}"#), Some(86_390));
    }

    #[tokio::test]
    async fn registry_08_a_reply_without_a_usable_token_is_none() {
        for body in ["", "{}", "<html>", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, "[]"] {
            assert_eq!(lifetime(body), None, "{body}");
        }
    }

    /// Also: registry_04
    #[test]
    fn registry_06_one_scope_parameter_for_each_entry() {
        let realm = Url::parse("https://a.example/token?x=1").expect("a URL");
        let way = Way { realm, service: None, scopes: vec!["aws".into(), "repository:a/b:pull".into()] };
        assert_eq!(way.url().uri().expect("a URI").to_string(), "https://a.example/token?x=1&scope=aws&scope=repository%3Aa%2Fb%3Apull");
    }
}
