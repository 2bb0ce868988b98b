//! GitLab: tokens from another host of the same owner, and a dash tag that is answered with the subject itself.

use std::time::Duration;

use larder::oci::ErrorCode;

use super::tokens::{TokenServer, pull};
use super::{Double, Place, inspect, inspect_query, store};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "registry.gitlab.com";
const AUTH: &str = "gitlab.com";
const CDN: &str = "cdn.registry.gitlab-static.net";

pub struct Gitlab {
    /// Its accounts are deploy tokens, personal tokens and users.
    pub tokens: TokenServer,
}

/// gitlab.com's registry on its real names.
pub fn gitlab(net: &FakeNet) -> Double<Gitlab> {
    let tokens = TokenServer::new("https://gitlab.com/jwt/auth", Some("container_registry"), Duration::from_secs(300));
    let hosts = [(API, "35.227.35.254"), (AUTH, "172.65.251.78"), (CDN, "34.149.22.228")];
    let double = Double::new(net, Gitlab { tokens }, Place { name: API, host: API, path: "" }, &hosts);
    double.redirect_blobs("https://cdn.registry.gitlab-static.net");
    double.signatures_live(Duration::from_secs(1200));
    double
}

impl Manners for Gitlab {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        if request.host == CDN {
            return store(request, state);
        }
        inspect(request, state);
        match (request.host.as_str(), request.kind) {
            (AUTH, Kind::Token) if self.tokens.is_at(request) => self.token(request, state),
            (API, Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags) => {
                self.api(request, state).with("docker-distribution-api-version", "registry/2.0")
            }
            _ => Answer::no_such_route(),
        }
    }
}

impl Gitlab {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let Ok(account) = self.tokens.login(request) else {
            return Answer::error(401, ErrorCode::Unauthorized, "HTTP Basic: Access denied");
        };
        self.tokens.issue(account, &asked, state)
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect_query(request, state, if request.kind == Kind::Tags { &["n", "last"] } else { &[] });
        let repository = request.repository().filter(|_| request.kind != Kind::Ping);
        let scope = repository.map(pull);
        self.tokens.refusal(request, state, scope.as_deref()).unwrap_or_else(|| self.content(request, state))
    }

    /// `sha256-<hex>` that nobody pushed is the manifest `sha256:<hex>`.
    fn content(&self, request: &Request, state: &mut State) -> Answer {
        let Some((repository, "manifests", reference)) = request.parts() else {
            return state.content_of(request);
        };
        let tags = state.content.repository(repository);
        let pushed = tags.is_some_and(|repository| repository.tags.contains_key(reference));
        match reference.strip_prefix("sha256-").filter(|_| !pushed) {
            Some(hex) => state.manifest(request, repository, &format!("sha256:{hex}")),
            None => state.content_of(request),
        }
    }
}
