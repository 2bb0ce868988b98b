//! Quay: open to who comes without a token and closed to who comes with a bad one; converts manifests that are not listed;
//! pages of tags by an opaque cursor; nginx's own 429.

use std::time::Duration;

use http::Method;
use larder::oci::{Algorithm, Digest, ErrorCode};
use serde_json::json;

use super::tokens::{Shown, TokenServer, Wrong, pull, reply};
use super::{Double, Place, inspect, inspect_query, store};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Canned, Fault, Kind, Manners, Referrers, Request, State, accepts, query_value};

const API: &str = "quay.io";
const CDN: &str = "cdn01.quay.io";
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
const PAGE: usize = 100;

pub struct Quay {
    /// Its accounts are robots (`org+robot`).
    pub tokens: TokenServer,
}

/// Quay.io on its real names.
pub fn quay(net: &FakeNet) -> Double<Quay> {
    let tokens = TokenServer::new("https://quay.io/v2/auth", Some("quay.io"), Duration::from_secs(3600));
    let place = Place { name: API, host: API, path: "" };
    let double = Double::new(net, Quay { tokens }, place, &[(API, "50.16.103.189"), (CDN, "104.18.33.160")]);
    double.redirect_blobs_by(302, "https://cdn01.quay.io");
    double.signatures_live(Duration::from_secs(600));
    double.serve_referrers(Referrers::native());
    double
}

impl Quay {
    /// nginx's, before Quay is asked.
    pub fn too_many_requests() -> Canned {
        let page = "<html>\r\n<head><title>429 Too Many Requests</title></head>\r\n<body>\r\n<center><h1>429 Too Many Requests</h1></center>\r\n\
             <hr><center>nginx/1.12.1</center>\r\n</body>\r\n</html>\r\n";
        Fault::status(429).header("content-type", "text/html").header("server", "nginx/1.12.1").body(page)
    }
}

impl Manners for Quay {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        if request.host == CDN {
            return store(request, state);
        }
        inspect(request, state);
        match request.kind {
            Kind::Token if self.tokens.is_at(request) => self.token(request, state),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags | Kind::Referrers => self.api(request, state),
            _ => Answer::no_such_route(),
        }
    }
}

impl Quay {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let is_pull = |scope: &String| scope.starts_with("repository:") && scope.ends_with(":pull");
        if !asked.scopes.iter().all(is_pull) {
            return Answer::error(400, ErrorCode::Unsupported, "Unable to decode repository and actions");
        }
        match self.tokens.login(request) {
            Err(Wrong(user)) => Answer::error(401, ErrorCode::Unauthorized, &format!("Could not find robot with username: {user}")),
            Ok(None) if asked.scopes.is_empty() => Answer::error(401, ErrorCode::Unauthorized, "Requires authentication"),
            Ok(account) => {
                let content = &state.content;
                let token = self.tokens.give(account, &asked.scopes, |name| content.repository(name).is_some());
                reply(&token)
            }
        }
    }

    fn unauthorized(&self, request: &Request) -> Answer {
        let repository = request.repository().filter(|_| request.kind != Kind::Ping);
        let challenge = self.tokens.challenge(repository.map(pull).as_deref(), None);
        Answer::error(401, ErrorCode::Unauthorized, "access to the requested resource is not authorized")
            .with("www-authenticate", challenge)
    }

    /// What is missing is told to nobody but its readers, who are none.
    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        let shown = self.tokens.shown(request, state);
        let Some((repository, _, reference)) = request.parts().filter(|_| request.kind != Kind::Ping) else {
            return match shown {
                Shown::Token(_) => Answer::new(200, "true"),
                _ => self.unauthorized(request).saying("true"),
            };
        };
        let may = match &shown {
            Shown::Nothing => state.content.repository(repository).is_some() && self.tokens.may_read(None, repository),
            Shown::Token(grant) => grant.covers(repository),
            Shown::Dead => false,
            Shown::Basic(_) => {
                state.violation(request, "a password sent to the registry instead of its token server");
                false
            }
        };
        if !may {
            return self.unauthorized(request);
        }
        match request.kind {
            Kind::Blob => blob(request, state, repository, reference),
            Kind::Manifest => manifest(request, state, repository, reference),
            Kind::Referrers => {
                inspect_query(request, state, &["artifactType"]);
                state.content_of(request)
            }
            _ => tags(request, state, repository),
        }
    }
}

/// HEAD straight from the API, GET by a redirect that names the digest.
fn blob(request: &Request, state: &mut State, repository: &str, reference: &str) -> Answer {
    inspect_query(request, state, &[]);
    if request.method == Method::HEAD {
        let origin = state.redirects.blobs.take();
        let answer = state.blob(request, repository, reference);
        state.redirects.blobs = origin;
        return answer;
    }
    let answer = state.blob(request, repository, reference);
    if answer.status() == 302 { answer.with("docker-content-digest", reference).with("accept-ranges", "bytes") } else { answer }
}

/// By tag, a type that is not listed by its very name turns into schema 1, whose digest is another; by digest, never.
fn manifest(request: &Request, state: &mut State, repository: &str, reference: &str) -> Answer {
    inspect_query(request, state, &[]);
    let Some(stored) = state.content.manifest(repository, reference) else {
        return Answer::error(404, ErrorCode::ManifestUnknown, "manifest unknown");
    };
    let (media_type, digest, bytes) = if reference.contains(':') || accepts(request, &stored.media_type) {
        (stored.media_type, stored.digest, stored.bytes)
    } else {
        let document = json!({ "schemaVersion": 1, "name": repository, "tag": reference, "fsLayers": [], "history": [], "signatures": [] });
        let bytes = bytes::Bytes::from(document.to_string());
        (SCHEMA_1.to_owned(), Digest::of(Algorithm::Sha256, &bytes), bytes)
    };
    Answer::new(200, bytes).with("content-type", media_type).with("docker-content-digest", digest.to_string())
}

/// At most 100 at a time; the next page is at an absolute URL with a cursor of Quay's own.
fn tags(request: &Request, state: &mut State, name: &str) -> Answer {
    inspect_query(request, state, &["n", "next_page"]);
    let Some(repository) = state.content.repository(name) else {
        return Answer::error(404, ErrorCode::NameUnknown, "repository name not known to registry");
    };
    let most = query_value(&request.query, "n").and_then(|n| n.parse().ok()).unwrap_or(PAGE).clamp(1, PAGE);
    let cursor = |at: usize| format!("gAAAAABk%2B{at}%3D%3D");
    let begin =
        query_value(&request.query, "next_page").map_or(Some(0), |page| page.strip_prefix("gAAAAABk+")?.strip_suffix("==")?.parse().ok());
    let Some(begin) = begin else {
        let answer = Answer::error(400, ErrorCode::Unsupported, "invalid page token");
        state.violation(request, "a cursor that Quay did not make");
        return answer;
    };
    let page: Vec<&String> = repository.tags.keys().skip(begin).take(most).collect();
    let end = begin + page.len();
    let answer = Answer::new(200, json!({ "name": name, "tags": page }).to_string()).with("content-type", "application/json");
    if end >= repository.tags.len() {
        return answer;
    }
    answer.with("link", format!("<https://quay.io/v2/{name}/tags/list?n={most}&next_page={}>; rel=\"next\"", cursor(end)))
}
