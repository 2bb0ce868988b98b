//! Bearer tokens: fetched once for any number of waiters, kept for as long as they are good. A `Tokens` belongs to one
//! host of an upstream and one credential there, so neither needs to be part of a key; the login that was used does.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode};
use moka::sync::Cache;
use prometheus::IntCounter;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use tokio::time::Instant;

use super::credentials::{Held, Login, Version};
use super::lockout::LIMITED;
use super::token_hosts::{self, Trust};
use crate::labels::UpstreamKind;
use crate::oci::KIB;
use crate::percent;
use crate::rng::Rng;
use crate::single_flight::Questions;
use crate::upstream::UnavailableReason;
use crate::upstream::UpstreamError;
use crate::upstream::http::exchange::{Form, Outgoing, Wire};
use crate::upstream::http::meaning::Refused;
use crate::upstream::http::url::Url;
use crate::upstream::limits::breaker::{Backoff, Breaker, Open};
use crate::upstream::limits::too_many_requests::{Asked, Limited};
use crate::upstream::secret::sensitive;

const TOKENS_MAX: u64 = 10_000;
/// Different tokens that are fetched at a time: one for each question that may be out, and what their callers have left behind.
const FETCHES_MAX: usize = 1_000;
/// The token protocol's lifetime for a token that names none, and the least that one gets.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
const LIFETIME_MAX: Duration = Duration::from_hours(24);
const RENEW_BEFORE: Duration = Duration::from_secs(10);
/// A refusal answers those who ask within this time; then the token server is asked again.
const REFUSAL_HOLD: Duration = Duration::from_secs(1);
/// A fetch serves many callers, so it has its own deadline and none of theirs.
pub(super) const FETCH_TIMEOUT: Duration = Duration::from_secs(20);
const REPLY_BYTES_MAX: usize = 64 * KIB as usize;

/// A token server that is down is left alone as a registry is.
const DOWN: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Way {
    pub realm: Url,
    pub service: Option<String>,
    /// Sorted, without doubles. None: the token only shows that the login is good.
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

/// Why there is no token.
#[derive(Clone, Debug)]
pub enum NoToken {
    /// By what the error itself is.
    Failed(UpstreamError),
    /// The token server refuses the login, at least for these scopes: `CredentialRefused`.
    Refused(UpstreamError),
    /// It limits the rate: of this login, or of these scopes.
    Limited(Limited),
}

type Fetched = Result<Token, NoToken>;

/// The tokens of one credential at one host.
pub struct Tokens {
    wire: Arc<Wire>,
    credential: String,
    token_hosts: Vec<String>,
    breaker: Breaker,
    rng: Arc<Rng>,
    cache: Cache<TokenKey, Token>,
    fetches: Questions<TokenKey, Fetched>,
}

impl Tokens {
    pub fn new(wire: &Arc<Wire>, credential: &str, token_hosts: &[String], rng: &Arc<Rng>, panics: &IntCounter) -> Arc<Tokens> {
        Arc::new(Tokens {
            wire: Arc::clone(wire),
            credential: credential.to_owned(),
            token_hosts: token_hosts.to_vec(),
            breaker: Breaker::default(),
            rng: Arc::clone(rng),
            cache: Cache::builder().max_capacity(TOKENS_MAX).time_to_live(LIFETIME_MAX).build(),
            fetches: Questions::new(FETCHES_MAX, panics.clone()),
        })
    }

    /// A token that is good now. Waits for the fetch that is under way, or begins one.
    ///
    /// # Errors
    /// When there is none to be had: a refusal is answered to all who ask within a second.
    pub async fn get(self: &Arc<Tokens>, way: &Arc<Way>, held: &Held) -> Fetched {
        let key = TokenKey { way: Arc::clone(way), version: held.version };
        let (this, login) = (Arc::clone(self), held.clone());
        let known = || self.cached(&key).map(Ok);
        let fetch = || {
            let key = key.clone();
            async move {
                let fetched = this.fetch(&key.way, &login).await;
                if let Ok(token) = &fetched {
                    this.cache.insert(key, token.clone());
                }
                fetched
            }
        };
        let pending = self.fetches.ask_unless(key.clone(), known, hold, fetch);
        pending.answer().await.unwrap_or_else(|no_answer| Err(NoToken::Failed(no_answer.into())))
    }

    /// A token that is good now, if there is one.
    pub fn cached(&self, key: &TokenKey) -> Option<Token> {
        self.cache.get(key).filter(|token| token.renew_at > Instant::now())
    }

    /// A token that upstream refused is not used again; one that came since stays.
    pub fn refuse(&self, key: &TokenKey, refused: &HeaderValue) {
        if self.cache.get(key).is_some_and(|token| token.header == *refused) {
            self.cache.invalidate(key);
        }
    }

    /// # Errors
    /// While the token server limits the rate of this login.
    pub fn check_limit(&self) -> Result<(), UpstreamError> {
        match self.breaker.refusal(Instant::now()) {
            Some(error @ UpstreamError::RateLimited { .. }) => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether the token server is left alone, for who has no token yet.
    pub fn outlook(&self, way: Option<&Way>, now: Instant) -> Option<Open> {
        let has_token = || self.cache.iter().any(|(key, token)| way == Some(&*key.way) && token.renew_at > now);
        self.breaker.state(now).filter(|_| !has_token())
    }

    /// A new token. Its time-out begins here: nobody waits for a turn any more.
    ///
    /// # Errors
    /// When the token server gives none, or may not be asked.
    pub async fn fetch(&self, way: &Way, held: &Held) -> Fetched {
        let begun = Instant::now();
        let before = self.breaker.state(begun);
        let was_open = before.is_some();
        let was_limited = matches!(before, Some(Open { why: UpstreamError::RateLimited { .. }, .. }));
        let is_for_everybody = way.scopes.is_empty() || matches!(held.login, Login::Anonymous);
        let _permit = self.breaker.enter(begun).map_err(|open| NoToken::Failed(open.why))?;
        let exchange = tokio::time::timeout(FETCH_TIMEOUT, self.exchange(way, &held.login, begun)).await;
        let silence = || NoToken::Failed(UpstreamError::TimedOut { detail: format!("no token from {}", way.realm) });
        let fetched = exchange.unwrap_or_else(|_| Err(silence()));
        match &fetched {
            // It has answered, whatever it has answered.
            Ok(_) | Err(NoToken::Refused(_) | NoToken::Failed(UpstreamError::Denied { .. })) => {
                self.breaker.succeeded(begun, Instant::now());
            }
            // It says so of these scopes; whether of the login too, who has one finds out by the sign-in.
            Err(NoToken::Failed(UpstreamError::Busy { .. })) if !was_open && !is_for_everybody => {}
            Err(NoToken::Failed(error @ UpstreamError::Busy { retry_after, .. })) => {
                self.breaker.open(begun, Instant::now(), error, Some(*retry_after), DOWN, |wait| self.rng.jitter(wait));
            }
            Err(NoToken::Failed(error)) if error.is_transient() => {
                self.breaker.failed(begun, Instant::now(), error, DOWN, |wait| self.rng.jitter(wait));
            }
            // The probe found that the limit goes on; nobody is limited by scopes who has no login, or asked for none.
            Err(NoToken::Limited(limited)) if was_limited || is_for_everybody => {
                return Err(NoToken::Failed(self.limit(limited, begun)));
            }
            Err(NoToken::Failed(_) | NoToken::Limited(_)) => {}
        }
        fetched
    }

    /// The token server limits the rate of this login, whatever it asks for: it is left alone. Returns the error for who asked.
    pub fn limit(&self, limited: &Limited, begun: Instant) -> UpstreamError {
        let why = UpstreamError::RateLimited { retry_after: None };
        let (wait, is_new) = self.breaker.open(begun, Instant::now(), &why, limited.retry_after, LIMITED, |wait| self.rng.jitter(wait));
        if is_new {
            let (upstream, credential, seconds) = (self.wire.metrics.name(), &self.credential, wait.as_secs());
            tracing::warn!(upstream, credential, seconds, "the token server limits the rate; it is not asked before this time is over");
        }
        UpstreamError::RateLimited { retry_after: Some(wait) }
    }

    async fn exchange(&self, way: &Way, login: &Login, begun: Instant) -> Fetched {
        self.trusted(&way.realm, matches!(login, Login::Anonymous)).map_err(NoToken::Failed)?;
        let outgoing = way.outgoing(login, begun + FETCH_TIMEOUT).map_err(NoToken::Failed)?;
        let answer = self.wire.ask(&outgoing).await.map_err(NoToken::Failed)?;
        let received = Instant::now();
        if answer.status() == StatusCode::OK {
            let body = answer.body(REPLY_BYTES_MAX).await.map_err(NoToken::Failed)?;
            let detail = || format!("{} answered 200 without a token", way.realm);
            return read(&body, received).ok_or_else(|| NoToken::Failed(UpstreamError::Corrupt { detail: detail() }));
        }
        Err(answer.refused(|refused| way.meaning(login, refused)).await)
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
    /// What the token server means by an answer that is no token.
    fn meaning(&self, login: &Login, refused: &Refused<'_>) -> NoToken {
        if let Some(limited) = refused.limited(Asked::TOKEN) {
            return NoToken::Limited(limited);
        }
        let has_login = !matches!(login, Login::Anonymous);
        match refused.meaning_of_token_server(has_login, matches!(login, Login::IdentityToken(_))) {
            why @ UpstreamError::CredentialRefused { .. } => NoToken::Refused(why),
            // Without a scope there is no repository that could be denied: GHCR says 403 to an access token that is over.
            UpstreamError::Denied { detail } if has_login && self.scopes.is_empty() && refused.status == 403 => {
                NoToken::Refused(UpstreamError::CredentialRefused { detail })
            }
            why => NoToken::Failed(why),
        }
    }

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
                (outgoing.method, outgoing.url) = (Method::POST, self.realm.clone().without_parameter("scope"));
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
        // What is asked for is this list, not what the realm's own query would add to it.
        let realm = self.realm.clone().without_parameter("scope");
        service.chain(scopes).fold(realm, |url, (name, value)| url.with_parameter(name, value))
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

/// How long a failure answers who asks for the same.
fn hold(fetched: &Fetched) -> Duration {
    match fetched {
        Err(NoToken::Failed(UpstreamError::Denied { .. } | UpstreamError::Corrupt { .. })) => REFUSAL_HOLD,
        _ => Duration::ZERO,
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
