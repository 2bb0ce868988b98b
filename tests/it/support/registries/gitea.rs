//! Gitea and Forgejo: two challenges without a scope, a reply of a token alone, blobs without ranges, and with direct serving
//! redirects that announce a body they never send.

use std::time::Duration;

use larder::oci::{Digest, ErrorCode};

use super::tokens::{Shown, TokenServer, reply};
use super::{Double, Place, inspect, inspect_query, store};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "gitea.corp.example";
const STORE: &str = "minio.corp.example";

pub struct Gitea {
    pub tokens: TokenServer,
    /// Blobs and manifests come from the store.
    pub serves_direct: bool,
}

/// A Gitea of one's own.
pub fn gitea(net: &FakeNet) -> Double<Gitea> {
    let tokens = TokenServer::new("https://gitea.corp.example/v2/token", Some("container_registry"), Duration::from_secs(86_400));
    let place = Place { name: API, host: API, path: "" };
    let double = Double::new(net, Gitea { tokens, serves_direct: false }, place, &[(API, "198.46.10.7"), (STORE, "198.46.10.8")]);
    double.signatures_live(Duration::from_secs(300));
    double
}

impl Manners for Gitea {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        if request.host == STORE {
            return store(request, state);
        }
        inspect(request, state);
        match request.kind {
            Kind::Token if self.tokens.is_at(request) => self.token(request, state),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags => {
                self.api(request, state).with("docker-distribution-api-version", "registry/2.0")
            }
            _ => Answer::no_such_route(),
        }
    }
}

impl Gitea {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let Ok(account) = self.tokens.login(request) else {
            return self.unauthorized();
        };
        let token = self.tokens.give(account, &asked.scopes, |_| true);
        reply(&token)
    }

    fn unauthorized(&self) -> Answer {
        let challenge = self.tokens.challenge(Some("*"), None);
        Answer::error(401, ErrorCode::Unauthorized, "authGroup.Verify")
            .also("www-authenticate", &challenge)
            .also("www-authenticate", "Basic")
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect_query(request, state, if request.kind == Kind::Tags { &["n", "last"] } else { &[] });
        let account = match self.tokens.shown(request, state) {
            Shown::Token(grant) => grant.account,
            Shown::Basic(Ok(user)) => Some(user),
            Shown::Basic(Err(_)) | Shown::Dead | Shown::Nothing => return self.unauthorized(),
        };
        let Some((repository, what, reference)) = request.parts().filter(|_| request.kind != Kind::Ping) else {
            return Answer::new(200, "");
        };
        if !self.tokens.may_read(account.as_deref(), repository) || state.content.repository(repository).is_none() {
            return Answer::error(404, ErrorCode::NameUnknown, "repository name not known to registry");
        }
        match what {
            "blobs" => self.blob(request, state, repository, reference),
            "manifests" => self.manifest(request, state, repository, reference),
            _ => state.content_of(request),
        }
    }

    fn blob(&self, request: &Request, state: &mut State, repository: &str, reference: &str) -> Answer {
        let held = reference.parse::<Digest>().ok().and_then(|digest| state.content.blob(repository, &digest));
        if let Some(bytes) = held.filter(|_| self.serves_direct) {
            return self.elsewhere(request, state, bytes, "application/octet-stream");
        }
        let mut whole = request.clone();
        whole.headers.remove("range");
        let mut answer = state.blob(&whole, repository, reference);
        answer.unset("accept-ranges");
        answer.unset("etag");
        answer
    }

    /// It sends what it has, whatever `Accept` says.
    fn manifest(&self, request: &Request, state: &mut State, repository: &str, reference: &str) -> Answer {
        let Some(stored) = state.content.manifest(repository, reference) else {
            return Answer::error(404, ErrorCode::ManifestUnknown, "manifest unknown");
        };
        if self.serves_direct {
            return self.elsewhere(request, state, stored.bytes, &stored.media_type);
        }
        Answer::new(200, stored.bytes).with("content-type", stored.media_type).with("docker-content-digest", stored.digest.to_string())
    }

    fn elsewhere(&self, request: &Request, state: &mut State, bytes: bytes::Bytes, media_type: &str) -> Answer {
        let size = bytes.len() as u64;
        state.redirects.redirect(request, "https://minio.corp.example", bytes, media_type).announcing(size)
    }
}
