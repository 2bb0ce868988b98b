//! Docker Hub: `library/`, tokens of 300 s, a pull limit told with every manifest, three kinds of 429, two CDNs.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use http::Method;
use larder::oci::ErrorCode;
use serde_json::json;
use tokio::time::Instant;

use super::tokens::{Grant, Shown, TokenServer, Wrong, pull};
use super::{Double, Place, inspect, inspect_query, store};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "registry-1.docker.io";
const AUTH: &str = "auth.docker.io";
const CLOUDFRONT: &str = "production.cloudfront.docker.com";
const CLOUDFLARE: &str = "production.cloudflare.docker.com";
/// What it says of an account instead of an address.
const SOURCE: &str = "2f9f2b2e-7a43-4c5e-8f67-0d7f3c1f6b11";

/// So many manifests in any such time.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    pub pulls: usize,
    pub window: Duration,
}

impl Limit {
    pub fn new(pulls: usize, window_seconds: u64) -> Limit {
        Limit { pulls, window: Duration::from_secs(window_seconds) }
    }
}

pub struct DockerHub {
    pub tokens: TokenServer,
    /// Of those who have no account. None: unlimited, and no headers about it.
    pub limit: Option<Limit>,
    /// Of accounts; who is not here is unlimited.
    pub account_limits: HashMap<String, Limit>,
    /// Every request of any kind is answered by 429 in plain text.
    pub abused: bool,
    /// What 429s say in `Retry-After`; nothing, unless told.
    pub retry_after: Option<String>,
    /// Bad logins until a user is locked out, and for how long.
    pub lock_out: (usize, Duration),
    bad_logins: HashMap<String, (usize, Instant)>,
    /// When each account, or the one address, had a manifest.
    pulls: HashMap<Option<String>, VecDeque<Instant>>,
    counted: usize,
}

/// Docker Hub on its real names.
pub fn docker_hub(net: &FakeNet) -> Double<DockerHub> {
    let tokens = TokenServer::new("https://auth.docker.io/token", Some("registry.docker.io"), Duration::from_secs(300));
    let hub = DockerHub {
        tokens,
        limit: None,
        account_limits: HashMap::new(),
        abused: false,
        retry_after: None,
        lock_out: (5, Duration::from_secs(3600)),
        bad_logins: HashMap::new(),
        pulls: HashMap::new(),
        counted: 0,
    };
    let hosts = [(API, "34.194.164.123"), (AUTH, "54.198.86.24"), (CLOUDFRONT, "13.32.99.10"), (CLOUDFLARE, "104.16.99.215")];
    let place = Place { name: "docker.io", host: API, path: "" };
    let double = Double::new(net, hub, place, &hosts);
    double.redirect_blobs("https://production.cloudfront.docker.com");
    double.signatures_live(Duration::from_secs(1200));
    double
}

impl Double<DockerHub> {
    /// Manifests that were counted as pulls so far.
    pub fn counted(&self) -> usize {
        self.manners().counted
    }
}

impl Manners for DockerHub {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        if matches!(request.host.as_str(), CLOUDFRONT | CLOUDFLARE) {
            return store(request, state);
        }
        inspect(request, state);
        if self.abused {
            return self.limited(Answer::new(429, "Too Many Requests (HAP429).\n").with("content-type", "text/plain"));
        }
        match request.host.as_str() {
            AUTH if self.tokens.is_at(request) => self.token(request, state),
            API => self.api(request, state).with("docker-distribution-api-version", "registry/2.0"),
            _ => Answer::no_such_route(),
        }
    }
}

impl DockerHub {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        if let Some(answer) = self.locked_out(request) {
            return answer;
        }
        match self.tokens.login(request) {
            Ok(account) => {
                let content = &state.content;
                let token = self.tokens.give(account, &asked.scopes, |name| name.contains('/') && content.repository(name).is_some());
                let reply =
                    json!({ "token": token, "access_token": token, "expires_in": 300, "issued_at": "2026-11-21T00:00:00.123456789Z" });
                Answer::new(200, reply.to_string()).with("content-type", "application/json")
            }
            Err(Wrong(user)) => {
                let bad = self.bad_logins.entry(user).or_insert((0, Instant::now()));
                *bad = (bad.0 + 1, Instant::now());
                let body = json!({ "details": "incorrect username or password" });
                Answer::new(401, body.to_string()).with("content-type", "application/json")
            }
        }
    }

    fn locked_out(&self, request: &Request) -> Option<Answer> {
        let (user, _) = super::tokens::pair(request.authorization()?)?;
        let (count, last) = self.bad_logins.get(&user)?;
        let (most, time) = self.lock_out;
        let text = "too many failed login attempts for username or IP address";
        let answer = || Answer::new(429, json!({ "details": text }).to_string()).with("content-type", "application/json");
        (*count >= most && *last + time > Instant::now()).then(|| self.limited(answer()))
    }

    fn limited(&self, answer: Answer) -> Answer {
        match &self.retry_after {
            Some(value) => answer.with("retry-after", value),
            None => answer,
        }
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        let grant = match self.tokens.shown(request, state) {
            Shown::Token(grant) => grant,
            Shown::Nothing => return self.unauthorized(request, None),
            Shown::Dead => return self.unauthorized(request, Some("invalid_token")),
            Shown::Basic(_) => {
                state.violation(request, "a password sent to the registry instead of its token server");
                return self.unauthorized(request, None);
            }
        };
        let Some(repository) = request.repository().filter(|_| request.kind != Kind::Ping) else {
            return Answer::new(200, "{}").with("content-type", "application/json");
        };
        if !grant.covers(repository) {
            return self.unauthorized(request, Some("insufficient_scope"));
        }
        match request.kind {
            Kind::Manifest => self.manifest(request, state, &grant),
            Kind::Blob => {
                inspect_query(request, state, &[]);
                state.content_of(request)
            }
            Kind::Tags => {
                inspect_query(request, state, &["n", "last"]);
                state.content_of(request)
            }
            _ => Answer::no_such_route(),
        }
    }

    /// 401, with the scope of the repository whatever is amiss.
    fn unauthorized(&self, request: &Request, error: Option<&str>) -> Answer {
        let repository = request.repository().filter(|_| request.kind != Kind::Ping);
        let challenge = self.tokens.challenge(repository.map(pull).as_deref(), error);
        Answer::error(401, ErrorCode::Unauthorized, "authentication required").with("www-authenticate", challenge)
    }

    /// A GET counts if it gets something, a HEAD never does; both tell what is left.
    fn manifest(&mut self, request: &Request, state: &mut State, grant: &Grant) -> Answer {
        inspect_query(request, state, &[]);
        let account = &grant.account;
        let limit = account.as_ref().map_or(self.limit, |account| self.account_limits.get(account).copied());
        let used = limit.map_or(0, |limit| self.used(account, limit.window));
        let is_get = request.method == Method::GET;
        if let Some(limit) = limit.filter(|limit| is_get && used >= limit.pulls) {
            let whom = if account.is_none() { "unauthenticated " } else { "" };
            let text = format!("You have reached your {whom}pull rate limit. https://www.docker.com/increase-rate-limit");
            return self.told(self.limited(Answer::error(429, ErrorCode::TooManyRequests, &text)), account, limit, used);
        }
        let answer = state.content_of(request);
        if is_get && answer.status() == 200 {
            self.counted += 1;
            self.pulls.entry(account.clone()).or_default().push_back(Instant::now());
        }
        match limit {
            Some(limit) => self.told(answer, account, limit, self.used(account, limit.window)),
            None => answer,
        }
    }

    fn used(&self, account: &Option<String>, window: Duration) -> usize {
        let now = Instant::now();
        self.pulls.get(account).map_or(0, |pulls| pulls.iter().filter(|pull| now < **pull + window).count())
    }

    fn told(&self, answer: Answer, account: &Option<String>, limit: Limit, used: usize) -> Answer {
        let (pulls, window) = (limit.pulls, limit.window.as_secs());
        answer
            .with("ratelimit-limit", format!("{pulls};w={window}"))
            .with("ratelimit-remaining", format!("{};w={window}", pulls.saturating_sub(used)))
            .with("docker-ratelimit-source", if account.is_none() { "203.0.113.77" } else { SOURCE })
    }
}
