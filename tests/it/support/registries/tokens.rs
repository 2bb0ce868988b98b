//! A token server as strict as the field's: a token is for one account, for what was asked and may be had, and for a while.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use larder::oci::ErrorCode;
use serde_json::json;
use tokio::time::Instant;

use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Request, State, query_pairs};

/// Fields that a token request may have.
const FIELDS: [&str; 8] = ["service", "scope", "account", "client_id", "grant_type", "refresh_token", "access_type", "offline_token"];

pub struct TokenServer {
    /// The whole URL.
    pub realm: String,
    pub service: Option<String>,
    pub lifetime: Duration,
    /// What a token begins with.
    pub prefix: &'static str,
    /// Users and their passwords.
    pub accounts: HashMap<String, String>,
    /// What `grant_type=refresh_token` takes, and whose it is.
    pub identity_tokens: HashMap<String, String>,
    /// Who may read the repositories that not everybody may.
    private: HashMap<String, HashSet<String>>,
    issued: HashMap<String, Grant>,
    count: usize,
}

#[derive(Clone)]
pub struct Grant {
    /// Nobody's, if anonymous.
    pub account: Option<String>,
    scopes: HashSet<String>,
    until: Instant,
}

/// What a token request wants.
pub struct Asked {
    pub service: Option<String>,
    pub scopes: Vec<String>,
}

/// Credentials that are wrong, and whose they claim to be.
pub struct Wrong(pub String);

/// What a request to the registry showed.
pub enum Shown {
    Nothing,
    /// A user whose password is right, or not.
    Basic(Result<String, Wrong>),
    /// A token that is over, or that nobody gave out.
    Dead,
    Token(Grant),
}

impl Grant {
    pub fn covers(&self, repository: &str) -> bool {
        self.scopes.contains(&pull(repository))
    }
}

impl TokenServer {
    pub fn new(realm: &str, service: Option<&str>, lifetime: Duration) -> TokenServer {
        TokenServer {
            realm: realm.into(),
            service: service.map(Into::into),
            lifetime,
            prefix: "fake-token-",
            accounts: HashMap::new(),
            identity_tokens: HashMap::new(),
            private: HashMap::new(),
            issued: HashMap::new(),
            count: 0,
        }
    }

    pub fn account(&mut self, user: &str, password: &str) {
        self.accounts.insert(user.into(), password.into());
    }

    /// From now on only these may read it.
    pub fn private(&mut self, repository: &str, users: &[&str]) {
        self.private.insert(repository.into(), users.iter().map(|user| (*user).to_owned()).collect());
    }

    pub fn may_read(&self, account: Option<&str>, repository: &str) -> bool {
        let readers = self.private.get(repository);
        readers.is_none_or(|readers| account.is_some_and(|account| readers.contains(account)))
    }

    /// All tokens so far stop working.
    pub fn revoke(&mut self) {
        self.issued.values_mut().for_each(|grant| grant.until = Instant::now());
    }

    /// Whether a request is for this server.
    pub fn is_at(&self, request: &Request) -> bool {
        let (_, place) = self.realm.split_once("://").unwrap_or_default();
        place == format!("{}{}", request.host, request.path)
    }

    /// `Bearer realm=…`, as the registry says it.
    pub fn challenge(&self, scope: Option<&str>, error: Option<&str>) -> String {
        let mut text = format!("Bearer realm=\"{}\"", self.realm);
        for (name, value) in [("service", self.service.as_deref()), ("scope", scope), ("error", error)] {
            value.iter().for_each(|value| text.push_str(&format!(",{name}=\"{value}\"")));
        }
        text
    }

    /// Reads a token request, and notes what is odd about it.
    pub fn asked(&self, request: &Request, state: &mut State) -> Asked {
        let posted = request.method == Method::POST;
        let fields = if posted { std::str::from_utf8(&request.body).unwrap_or_default() } else { &request.query };
        let pairs = query_pairs(fields);
        let value = |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        for (name, _) in pairs.iter().filter(|(name, _)| !FIELDS.contains(&name.as_str())) {
            state.violation(request, format!("a token asked for with {name}"));
        }
        if posted && (value("grant_type").as_deref() != Some("refresh_token") || request.authorization().is_some()) {
            state.violation(request, "a POST for something else than an identity token");
        }
        if posted && request.header("content-type") != Some("application/x-www-form-urlencoded") {
            state.violation(request, "a POST that is no form");
        }
        let scopes: Vec<String> = pairs.iter().filter(|(key, _)| key == "scope").map(|(_, value)| value.clone()).collect();
        if !posted && scopes.iter().any(|scope| scope.contains(' ')) {
            state.violation(request, "several scopes in one parameter");
        }
        let scopes: Vec<String> = scopes.iter().flat_map(|scope| scope.split(' ')).map(str::to_owned).collect();
        if scopes.iter().any(|scope| scope.contains("push") || scope.contains("delete") || scope.ends_with(":*")) {
            state.violation(request, "more than reading asked for");
        }
        let service = value("service");
        if service != self.service {
            state.violation(request, format!("a token for the service {service:?}"));
        }
        Asked { service, scopes }
    }

    /// Who asks for a token: nobody in particular, a user, or somebody who is wrong about it.
    pub fn login(&self, request: &Request) -> Result<Option<String>, Wrong> {
        if request.method == Method::POST {
            let form = query_pairs(std::str::from_utf8(&request.body).unwrap_or_default());
            let token = form.into_iter().find(|(key, _)| key == "refresh_token").map(|(_, value)| value).unwrap_or_default();
            return self.identity_tokens.get(&token).cloned().map(Some).ok_or(Wrong("an identity token".into()));
        }
        match request.authorization() {
            None => Ok(None),
            Some(header) => self.basic(header).map(Some),
        }
    }

    fn basic(&self, header: &str) -> Result<String, Wrong> {
        let (user, password) = pair(header).ok_or(Wrong("no user".into()))?;
        if self.accounts.get(&user) == Some(&password) { Ok(user) } else { Err(Wrong(user)) }
    }

    /// A token for what was asked and may be had: a smaller grant is a token all the same.
    pub fn give(&mut self, account: Option<String>, scopes: &[String], exists: impl Fn(&str) -> bool) -> String {
        let granted = scopes.iter().filter(|scope| {
            let repository = scope.strip_prefix("repository:").and_then(|rest| rest.strip_suffix(":pull"));
            repository.is_some_and(|repository| exists(repository) && self.may_read(account.as_deref(), repository))
        });
        let scopes = granted.cloned().collect();
        self.count += 1;
        let token = format!("{}{:016x}", self.prefix, self.count);
        self.issued.insert(token.clone(), Grant { account, scopes, until: Instant::now() + self.lifetime });
        token
    }

    /// The reply of a token server that gives a token for as much of what was asked for as may be had.
    pub fn issue(&mut self, account: Option<String>, asked: &Asked, state: &State) -> Answer {
        let token = self.give(account, &asked.scopes, |name| state.content.repository(name).is_some());
        reply(&token)
    }

    /// What a registry that takes tokens alone says to a request that showed none for its repository. `None`: it may go on.
    pub fn refusal(&self, request: &Request, state: &mut State, scope: Option<&str>) -> Option<Answer> {
        let repository = request.repository().filter(|_| request.kind != Kind::Ping);
        let error = match self.shown(request, state) {
            Shown::Token(grant) if repository.is_none_or(|repository| grant.covers(repository)) => return None,
            Shown::Token(_) => Some("insufficient_scope"),
            Shown::Dead => Some("invalid_token"),
            Shown::Nothing => None,
            Shown::Basic(_) => {
                state.violation(request, "a password sent to the registry instead of its token server");
                None
            }
        };
        let challenge = self.challenge(scope, error);
        Some(Answer::error(401, ErrorCode::Unauthorized, "authentication required").with("www-authenticate", challenge))
    }

    /// What a request to the registry showed. A token that nobody gave out is a client's own, passed on.
    pub fn shown(&self, request: &Request, state: &mut State) -> Shown {
        let Some(header) = request.authorization() else {
            return Shown::Nothing;
        };
        let Some(token) = header.strip_prefix("Bearer ") else {
            return Shown::Basic(self.basic(header));
        };
        match self.issued.get(token) {
            None => {
                state.violation(request, "a token that nobody gave out");
                Shown::Dead
            }
            Some(grant) if grant.until <= Instant::now() => Shown::Dead,
            Some(grant) => Shown::Token(grant.clone()),
        }
    }
}

/// A token server's reply that has a token and nothing else.
pub fn reply(token: &str) -> Answer {
    Answer::new(200, json!({ "token": token }).to_string()).with("content-type", "application/json")
}

pub fn pull(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

/// The two halves of Basic.
pub fn pair(header: &str) -> Option<(String, String)> {
    let bytes = STANDARD.decode(header.strip_prefix("Basic ")?).ok()?;
    let text = String::from_utf8(bytes).ok()?;
    text.split_once(':').map(|(user, password)| (user.to_owned(), password.to_owned()))
}
