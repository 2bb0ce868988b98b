//! Who may come in: anybody, those with a password, or those with a token from the token endpoint.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use larder::oci::ErrorCode;
use serde_json::json;
use tokio::time::Instant;

use super::answer::Answer;
use super::distribution::{query_value, query_values};
use super::{Kind, Request};

#[derive(Default)]
pub(super) enum Auth {
    #[default]
    Open,
    Basic {
        user: String,
        password: String,
    },
    Bearer(Box<Tokens>),
}

/// How a token server is set up: `Bearer::at("http://auth.test/token").credentials("user", "secret")`.
#[derive(Clone, Debug)]
pub struct Bearer {
    realm: String,
    service: Option<String>,
    /// The challenge's scope, if it is not the honest one.
    challenge_scope: Option<String>,
    /// What the reply says, if anything.
    expires_in: Option<u64>,
    /// What holds.
    lifetime: Duration,
    field: &'static str,
    credentials: Option<(String, String)>,
    credentials_required: bool,
    identity_token: Option<String>,
    private: HashSet<String>,
}

impl Bearer {
    /// A token endpoint at this URL, whose path holds "token" or ends in "/auth". It may have a query of its own.
    pub fn at(realm: &str) -> Bearer {
        Bearer {
            realm: realm.into(),
            service: Some("fake-registry".into()),
            challenge_scope: None,
            expires_in: Some(300),
            lifetime: Duration::from_secs(300),
            field: "token",
            credentials: None,
            credentials_required: false,
            identity_token: None,
            private: HashSet::new(),
        }
    }

    pub fn service(self, service: Option<&str>) -> Bearer {
        Bearer { service: service.map(Into::into), ..self }
    }

    /// Challenges name this scope (`repository:user/image:pull`, `*`, or nothing) instead of the one needed.
    pub fn challenge_scope(self, scope: &str) -> Bearer {
        Bearer { challenge_scope: Some(scope.into()), ..self }
    }

    /// Tokens last so many seconds, and the reply says so.
    pub fn expires_in(self, seconds: u64) -> Bearer {
        Bearer { expires_in: Some(seconds), lifetime: Duration::from_secs(seconds), ..self }
    }

    /// The reply says nothing about how long tokens last.
    pub fn without_expiry(self) -> Bearer {
        Bearer { expires_in: None, ..self }
    }

    /// Tokens last this long, whatever the reply says.
    pub fn really_lasting(self, lifetime: Duration) -> Bearer {
        Bearer { lifetime, ..self }
    }

    /// The reply has the token in `access_token`.
    pub fn in_access_token(self) -> Bearer {
        Bearer { field: "access_token", ..self }
    }

    /// The one user. Other credentials are refused; none at all get an anonymous token.
    pub fn credentials(self, user: &str, password: &str) -> Bearer {
        Bearer { credentials: Some((user.into(), password.into())), ..self }
    }

    /// No anonymous tokens.
    pub fn credentials_required(self) -> Bearer {
        Bearer { credentials_required: true, ..self }
    }

    /// What `grant_type=refresh_token` takes.
    pub fn identity_token(self, token: &str) -> Bearer {
        Bearer { identity_token: Some(token.into()), ..self }
    }

    /// An anonymous token does not open this repository.
    pub fn private(mut self, repository: &str) -> Bearer {
        self.private.insert(repository.into());
        self
    }

    fn challenge(&self, repository: Option<&str>, error: Option<&str>) -> String {
        let honest = repository.map(pull_scope);
        let scope = self.challenge_scope.clone().or(honest).filter(|scope| !scope.is_empty());
        let fields = [("service", self.service.clone()), ("scope", scope), ("error", error.map(Into::into))];
        let mut text = format!("Bearer realm=\"{}\"", self.realm);
        for (name, value) in fields {
            value.iter().for_each(|value| text.push_str(&format!(",{name}=\"{value}\"")));
        }
        text
    }

    /// Whether a request to a token endpoint came to this one, with its query in front.
    fn is_at(&self, request: &Request) -> bool {
        let (_, rest) = self.realm.split_once("://").unwrap_or_default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        place == format!("{}{}", request.host, request.path) && request.query.starts_with(query)
    }

    /// Whether somebody asks by name.
    fn identify(&self, request: &Request) -> Result<bool, Refused> {
        let form = std::str::from_utf8(&request.body).unwrap_or_default();
        let known = if request.method != Method::POST {
            let Some(header) = request.authorization() else {
                return if self.credentials_required { Err(Refused) } else { Ok(false) };
            };
            self.credentials.as_ref().is_some_and(|(user, password)| header == basic(user, password))
        } else if query_value(form, "grant_type").as_deref() == Some("refresh_token") {
            self.identity_token.is_some() && query_value(form, "refresh_token") == self.identity_token
        } else {
            self.credentials.is_some() && query_value(form, "username").zip(query_value(form, "password")) == self.credentials
        };
        if known { Ok(true) } else { Err(Refused) }
    }
}

/// Wrong credentials, or none where some are needed.
struct Refused;

/// A token server and the tokens it gave.
pub(super) struct Tokens {
    bearer: Bearer,
    issued: usize,
    valid: HashMap<String, Grant>,
}

struct Grant {
    scopes: HashSet<String>,
    until: Instant,
}

impl From<Bearer> for Tokens {
    fn from(bearer: Bearer) -> Tokens {
        Tokens { bearer, issued: 0, valid: HashMap::new() }
    }
}

impl Tokens {
    fn give(&mut self, request: &Request) -> Answer {
        if !self.bearer.is_at(request) {
            return Answer::no_such_route();
        }
        let fields = match request.method {
            Method::POST => std::str::from_utf8(&request.body).unwrap_or_default(),
            _ => request.query.as_str(),
        };
        if query_value(fields, "service") != self.bearer.service {
            return Answer::error(400, ErrorCode::Unsupported, "unknown service");
        }
        let Ok(known) = self.bearer.identify(request) else {
            return Answer::error(401, ErrorCode::Unauthorized, "incorrect username or password");
        };
        let asked = query_values(fields, "scope");
        let asked = asked.iter().flat_map(|scopes| scopes.split(' '));
        let may = |scope: &&str| known || !self.bearer.private.iter().any(|repository| **scope == pull_scope(repository));
        let scopes = asked.filter(may).map(str::to_owned).collect();
        self.issued += 1;
        let token = format!("fake-token-{}", self.issued);
        self.valid.insert(token.clone(), Grant { scopes, until: Instant::now() + self.bearer.lifetime });
        let mut reply = json!({ self.bearer.field: token });
        if let Some(seconds) = self.bearer.expires_in {
            reply["expires_in"] = seconds.into();
        }
        Answer::new(200, reply.to_string()).with("content-type", "application/json")
    }

    /// What is wrong with a request, in the words of RFC 6750; empty if it is only that no token came.
    fn fault(&self, request: &Request) -> Option<&'static str> {
        let Some(token) = request.authorization().and_then(|header| header.strip_prefix("Bearer ")) else {
            return Some("");
        };
        match (self.valid.get(token), request.repository().map(pull_scope)) {
            (None, _) => Some("invalid_token"),
            (Some(grant), _) if grant.until <= Instant::now() => Some("invalid_token"),
            (Some(grant), Some(scope)) if !grant.scopes.contains(&scope) => Some("insufficient_scope"),
            (Some(_), _) => None,
        }
    }
}

impl Auth {
    pub(super) fn token(&mut self, request: &Request) -> Answer {
        match self {
            Auth::Bearer(tokens) => tokens.give(request),
            Auth::Open | Auth::Basic { .. } => Answer::no_such_route(),
        }
    }

    pub(super) fn revoke_tokens(&mut self) {
        if let Auth::Bearer(tokens) = self {
            tokens.valid.clear();
        }
    }

    /// The 401, unless the request may pass.
    pub(super) fn refusal(&self, request: &Request) -> Option<Answer> {
        let challenge = match self {
            Auth::Open => return None,
            Auth::Basic { user, password } if request.authorization() == Some(&basic(user, password)) => return None,
            Auth::Basic { .. } => "Basic realm=\"fake-registry\"".to_owned(),
            Auth::Bearer(tokens) => {
                let error = tokens.fault(request)?;
                let repository = request.repository().filter(|_| request.kind != Kind::Ping);
                tokens.bearer.challenge(repository, Some(error).filter(|error| !error.is_empty()))
            }
        };
        Some(Answer::error(401, ErrorCode::Unauthorized, "authentication required").with("www-authenticate", challenge))
    }
}

fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// The header's value for a name and a password.
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}
