//! Nexus: a path before `/v2`, a realm built from what the proxy in front said, opaque tokens, and an ETag that is a SHA-1.

use std::time::Duration;

use larder::oci::ErrorCode;

use super::tokens::{Shown, TokenServer};
use super::{Double, Place, inspect, inspect_query};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "nexus.corp.example";
const PATH: &str = "/repository/docker";
const REALM: &str = "https://nexus.corp.example/v2/token";

pub struct Nexus {
    pub tokens: TokenServer,
    /// Manifests say their digest; some ways through it lose that header.
    pub names_digests: bool,
}

/// A Nexus of one's own, its Docker repository at a path.
pub fn nexus(net: &FakeNet) -> Double<Nexus> {
    let mut tokens = TokenServer::new(REALM, Some(REALM), Duration::from_secs(300));
    tokens.prefix = "DockerToken.a3b1c5d7-";
    let place = Place { name: API, host: API, path: PATH };
    Double::new(net, Nexus { tokens, names_digests: true }, place, &[(API, "198.46.10.6")])
}

impl Manners for Nexus {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect(request, state);
        let at_its_path = request.path.starts_with("/repository/docker/v2/");
        match request.kind {
            Kind::Token if self.tokens.is_at(request) => self.token(request, state),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags if at_its_path => {
                self.api(request, state).with("docker-distribution-api-version", "registry/2.0")
            }
            _ => Answer::new(404, "<html><title>404 - Nexus Repository Manager</title></html>").with("content-type", "text/html"),
        }
    }
}

impl Nexus {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let Ok(account) = self.tokens.login(request) else {
            return Answer::error(401, ErrorCode::Unauthorized, "access to the requested resource is not authorized");
        };
        self.tokens.issue(account, &asked, state)
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect_query(request, state, if request.kind == Kind::Tags { &["n", "last"] } else { &[] });
        let shown = self.tokens.shown(request, state);
        let repository = request.repository().filter(|_| request.kind != Kind::Ping);
        // Its tokens say who somebody is, and nothing of what for.
        let may = match &shown {
            Shown::Token(grant) => repository.is_none_or(|name| self.tokens.may_read(grant.account.as_deref(), name)),
            Shown::Basic(Ok(user)) => repository.is_none_or(|name| self.tokens.may_read(Some(user), name)),
            Shown::Basic(Err(_)) | Shown::Dead | Shown::Nothing => false,
        };
        if !may {
            let challenge = self.tokens.challenge(None, None);
            return Answer::error(401, ErrorCode::Unauthorized, "access to the requested resource is not authorized")
                .with("www-authenticate", challenge);
        }
        let answer = state.content_of(request);
        if !matches!(answer.status(), 200 | 206) || request.kind == Kind::Tags {
            return answer;
        }
        let digest = request.parts().and_then(|(repository, _, reference)| {
            let stored = state.content.manifest(repository, reference).map(|stored| stored.digest.to_string());
            stored.or_else(|| Some(reference.to_owned()))
        });
        // Forty digits, and of the right bytes: whoever takes it for a digest is sure to be wrong.
        let hex: String = digest.unwrap_or_default().chars().rev().take(40).collect();
        let mut answer = answer.with("etag", format!("\"{{SHA1{{{hex}}}}}\""));
        if !self.names_digests {
            answer.unset("docker-content-digest");
        }
        answer
    }
}
