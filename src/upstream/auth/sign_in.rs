//! The sign-in without a scope, as `docker login` does it: it alone decides about a login, as no repository's rights are in the
//! way. Once for all who ask at a time, and remembered. It also knows what `/v2/` asks for, for registries whose repositories hide
//! instead of asking. What follows from its verdicts for a question is `unauthorized`'s business.

use std::sync::Arc;
use std::time::Duration;

use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::challenge::{self, Challenge};
use super::credentials::{Held, Login, Version};
use super::lockout::{SignedIn, Signer};
use super::token::{FETCH_TIMEOUT, NoToken, Tokens, Way};
use crate::labels::UpstreamKind;
use crate::single_flight::Questions;
use crate::upstream::UpstreamError;
use crate::upstream::http::exchange::{Answer, Outgoing, Wire};
use crate::upstream::http::url::Url;

/// How long the sign-in's word on a login, and what `/v2/` asks for, are taken as true.
pub const REMEMBERED: Duration = Duration::from_mins(5);
/// Different logins that are tried at a time; a program may give one for each repository.
const LOGINS_MAX: usize = 64;

/// Signs in with one credential at one host.
pub struct SignIn {
    wire: Arc<Wire>,
    /// `/v2/` of the registry.
    ping: Url,
    signer: Arc<Signer>,
    tokens: Arc<Tokens>,
    scheme: Mutex<Option<(Instant, Scheme)>>,
    scheme_questions: Questions<(), Result<Scheme, UpstreamError>>,
    running: Questions<Version, Result<SignedIn, UpstreamError>>,
}

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// A token, to be had there.
    Token { realm: Url, service: Option<String> },
    /// The login itself, with each question.
    Login,
    /// Something that it does not say, or that larder does not understand.
    Unnamed,
    /// Nothing: anybody may ask.
    Nothing,
}

impl SignIn {
    pub fn new(wire: &Arc<Wire>, ping: &Url, signer: &Arc<Signer>, tokens: &Arc<Tokens>, panics: &IntCounter) -> Arc<SignIn> {
        Arc::new(SignIn {
            wire: Arc::clone(wire),
            ping: ping.clone(),
            signer: Arc::clone(signer),
            tokens: Arc::clone(tokens),
            scheme: Mutex::default(),
            scheme_questions: Questions::new(1, panics.clone()),
            running: Questions::new(LOGINS_MAX, panics.clone()),
        })
    }

    /// Whether the login is good, by a sign-in at most `age_max` ago. `scheme`: what the registry has just asked for.
    ///
    /// # Errors
    /// `CredentialRefused`, when it is not: the login is held off from then on. Else when nobody could be asked.
    pub async fn verdict(self: &Arc<SignIn>, held: &Held, scheme: &Scheme, age_max: Duration) -> Result<SignedIn, UpstreamError> {
        if let Some(said) = self.signer.signed_in(held, age_max) {
            return Ok(said);
        }
        let (this, login, scheme) = (Arc::clone(self), held.clone(), scheme.clone());
        let pending = self.running.ask(held.version, || async move { this.try_login(&login, &scheme).await });
        pending.answer().await.unwrap_or_else(|no_answer| Err(no_answer.into()))
    }

    /// The registry's `/v2/`.
    pub fn ping(&self) -> &Url {
        &self.ping
    }

    /// What `/v2/` asks for.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn scheme(self: &Arc<SignIn>) -> Result<Scheme, UpstreamError> {
        if let Some(scheme) = self.known_scheme() {
            return Ok(scheme);
        }
        let this = Arc::clone(self);
        let pending = self.scheme_questions.ask((), || async move { this.ask_scheme().await });
        pending.answer().await.unwrap_or_else(|no_answer| Err(no_answer.into()))
    }

    fn known_scheme(&self) -> Option<Scheme> {
        self.scheme.lock().as_ref().filter(|(at, _)| at.elapsed() < REMEMBERED).map(|(_, scheme)| scheme.clone())
    }

    async fn ask_scheme(&self) -> Result<Scheme, UpstreamError> {
        let answer = self.ask(None).await?;
        if matches!(answer.status().as_u16(), 408 | 429 | 500..) {
            // It says nothing of what the registry asks for.
            return Err(answer.refused(|refused| refused.meaning()).await);
        }
        let scheme = if self.is_refusal(&answer) { Scheme::of(&challenges(&answer), &answer.url)? } else { Scheme::Nothing };
        answer.discard();
        *self.scheme.lock() = Some((Instant::now(), scheme.clone()));
        Ok(scheme)
    }

    async fn try_login(self: &Arc<SignIn>, held: &Held, scheme: &Scheme) -> Result<SignedIn, UpstreamError> {
        // Another question may have found out since this one was asked.
        self.signer.was_locked_out(held)?;
        let said = match scheme {
            Scheme::Token { realm, service } => self.by_token(held, realm, service.clone()).await,
            Scheme::Login => self.by_login(held).await,
            Scheme::Unnamed | Scheme::Nothing => Ok(SignedIn::Unknown),
        };
        match &said {
            Ok(said) => self.signer.note_sign_in(held, *said),
            Err(Refusal::Login(why)) => self.signer.lock_out(held, why),
            Err(Refusal::NotAsked(_)) => {}
        }
        said.map_err(Refusal::into_error)
    }

    async fn by_token(&self, held: &Held, realm: &Url, service: Option<String>) -> Result<SignedIn, Refusal> {
        let way = Arc::new(Way { realm: realm.clone(), service, scopes: Vec::new() });
        match self.tokens.fetch(&way, held).await {
            Ok(_) => Ok(SignedIn::Accepted),
            Err(NoToken::Refused(why)) => Err(Refusal::Login(why)),
            // It does not like a question without a scope.
            Err(NoToken::Failed(UpstreamError::Denied { .. } | UpstreamError::Corrupt { .. })) => Ok(SignedIn::Unknown),
            Err(NoToken::Failed(why)) => Err(Refusal::NotAsked(why)),
            // Without a scope the limit is the login's, and `fetch` has said so.
            Err(NoToken::Limited(limited)) => Err(Refusal::NotAsked(UpstreamError::RateLimited { retry_after: limited.retry_after })),
        }
    }

    /// 200 says that the login is good only where nobody else gets it.
    async fn by_login(self: &Arc<SignIn>, held: &Held) -> Result<SignedIn, Refusal> {
        let Some(authorization) = held.login.authorization()? else { return Ok(SignedIn::Unknown) };
        let answer = self.ask(Some(authorization)).await?;
        let (is_refused, is_success) = (self.is_refusal(&answer), answer.status().is_success());
        let offered = Scheme::of(&challenges(&answer), &answer.url);
        answer.discard();
        if is_refused {
            // A registry of tokens refuses every login that is sent as it is: its token server decides.
            if let (Login::Basic { .. }, Scheme::Token { realm, service }) = (&held.login, offered?) {
                return self.by_token(held, &realm, service).await;
            }
            let detail = format!("{} answered 401 to credential {}", self.ping, self.signer.name());
            return Err(Refusal::Login(UpstreamError::CredentialRefused { detail }));
        }
        Ok(if is_success && self.scheme().await? != Scheme::Nothing { SignedIn::Accepted } else { SignedIn::Unknown })
    }

    fn is_refusal(&self, answer: &Answer) -> bool {
        answer.status() == StatusCode::UNAUTHORIZED && answer.url.origin == self.ping.origin
    }

    async fn ask(&self, authorization: Option<HeaderValue>) -> Result<Answer, UpstreamError> {
        let outgoing = Outgoing {
            kind: UpstreamKind::Listing,
            method: Method::GET,
            url: self.ping.clone(),
            accept: None,
            range: None,
            authorization,
            form: None,
            deadline: Instant::now() + FETCH_TIMEOUT,
            exchange: None,
        };
        self.wire.ask(&outgoing).await
    }
}

/// Why a sign-in did not succeed.
enum Refusal {
    /// The login is not good.
    Login(UpstreamError),
    /// Nobody could be asked, or nobody may.
    NotAsked(UpstreamError),
}

impl Refusal {
    fn into_error(self) -> UpstreamError {
        let (Refusal::Login(why) | Refusal::NotAsked(why)) = self;
        why
    }
}

impl From<UpstreamError> for Refusal {
    fn from(why: UpstreamError) -> Refusal {
        Refusal::NotAsked(why)
    }
}

impl Scheme {
    /// What the challenges of a 401 ask for (RFC 9110 §11.6.1): a token where one of them offers it, else the login.
    ///
    /// # Errors
    /// `Corrupt`, when the token server's realm is no URL.
    pub fn of(challenges: &[Challenge], from: &Url) -> Result<Scheme, UpstreamError> {
        let Some(bearer) = bearer(challenges) else {
            return Ok(if challenges.is_empty() { Scheme::Unnamed } else { Scheme::Login });
        };
        let realm = Url::parse(&bearer.realm)
            .map_err(|error| UpstreamError::Corrupt { detail: format!("{from} named a token server that is {error}") })?;
        Ok(Scheme::Token { realm, service: bearer.service.clone() })
    }
}

/// The challenges of a 401.
pub fn challenges(answer: &Answer) -> Vec<Challenge> {
    let lines = answer.headers().get_all(WWW_AUTHENTICATE).into_iter();
    lines.filter_map(|line| line.to_str().ok()).flat_map(challenge::parse).collect()
}

/// The first that asks for a token.
pub fn bearer(challenges: &[Challenge]) -> Option<&challenge::Bearer> {
    challenges.iter().find_map(|challenge| match challenge {
        Challenge::Bearer(bearer) => Some(bearer),
        Challenge::Basic => None,
    })
}
