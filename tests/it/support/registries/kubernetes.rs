//! registry.k8s.io: nothing of its own, everything by redirects: manifests and tags to a regional registry, blobs to a bucket
//! by their digest, unsigned.

use std::time::Duration;

use http::Method;
use larder::oci::{Digest, ErrorCode};
use serde_json::json;

use super::tokens::{Shown, TokenServer};
use super::{Double, Place, inspect, inspect_query};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "registry.k8s.io";
const REGIONAL: &str = "us-west2-docker.pkg.dev";
const BUCKET: &str = "prod-registry-k8s-io-us-west-2.s3.dualstack.us-west-2.amazonaws.com";
const IMAGES: &str = "/v2/k8s-artifacts-prod/images/";

/// What `/v2/` says.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ping {
    /// As for years.
    Open,
    /// As the newest source has it: a challenge without a scope, whose token is a number to be traced by.
    Challenge,
}

pub struct Kubernetes {
    pub ping: Ping,
    tokens: TokenServer,
}

/// Kubernetes' registry on its real names.
pub fn registry_k8s_io(net: &FakeNet) -> Double<Kubernetes> {
    let mut tokens = TokenServer::new("https://registry.k8s.io/token", Some(API), Duration::from_secs(3600));
    tokens.prefix = "0123456789abcdef";
    let hosts = [(API, "34.96.108.209"), (REGIONAL, "142.250.141.82"), (BUCKET, "52.218.128.1")];
    Double::new(net, Kubernetes { ping: Ping::Open, tokens }, Place { name: API, host: API, path: "" }, &hosts)
}

impl Manners for Kubernetes {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect(request, state);
        if request.host != API && request.authorization().is_some() {
            state.violation(request, "Authorization taken along to another host");
            return Answer::new(400, "InvalidArgument");
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Answer::new(405, "Only GET and HEAD are allowed.\n");
        }
        match request.host.as_str() {
            REGIONAL => regional(request, state),
            BUCKET => bucket(request, state),
            API => self.api(request, state),
            _ => Answer::no_such_route(),
        }
    }
}

impl Kubernetes {
    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect_query(request, state, &["n", "last", "service", "scope"]);
        if request.kind == Kind::Token && self.ping == Ping::Challenge {
            let asked = self.tokens.asked(request, state);
            let token = self.tokens.give(None, &asked.scopes, |_| true);
            return Answer::new(200, json!({ "token": token, "expires_in": 3600 }).to_string()).with("content-type", "application/json");
        }
        if request.kind == Kind::Ping {
            let signed_in = request.authorization().is_some();
            return match self.ping {
                Ping::Challenge if !signed_in => Answer::error(401, ErrorCode::Unauthorized, "authentication required")
                    .with("www-authenticate", self.tokens.challenge(None, None)),
                _ => Answer::new(200, ""),
            };
        }
        let trace = match self.tokens.shown(request, state) {
            Shown::Token(_) => request.authorization().and_then(|header| header.strip_prefix("Bearer ")).map(|id| format!("?rid={id}")),
            Shown::Basic(_) => {
                state.violation(request, "a password that nobody asked for");
                None
            }
            Shown::Nothing | Shown::Dead => None,
        };
        let trace = trace.unwrap_or_default();
        let Some((repository, what, reference)) = request.parts() else {
            return Answer::no_such_route();
        };
        let target = match what {
            "blobs" => format!("https://{BUCKET}/containers/images/{reference}{trace}"),
            "manifests" | "tags" => format!("https://{REGIONAL}{IMAGES}{repository}/{what}/{reference}{trace}"),
            _ => return Answer::no_such_route(),
        };
        Answer::new(307, format!("<a href=\"{target}\">Temporary Redirect</a>.\n")).with("location", target)
    }
}

/// Artifact Registry, to which the names are others.
fn regional(request: &Request, state: &mut State) -> Answer {
    inspect_query(request, state, &["n", "last", "rid"]);
    let Some(rest) = request.path.strip_prefix(IMAGES) else {
        return Answer::no_such_route();
    };
    let inner = Request { path: format!("/v2/{rest}"), ..request.clone() };
    match inner.parts() {
        Some((repository, _, _)) if state.content.repository(repository).is_none() => {
            Answer::error(404, ErrorCode::NameUnknown, "Repository \"images\" not found")
        }
        Some(_) => state.content_of(&inner),
        None => Answer::no_such_route(),
    }
}

/// A bucket of all blobs; what is not there is a 403 to those who may not list it.
fn bucket(request: &Request, state: &mut State) -> Answer {
    let digest = request.path.strip_prefix("/containers/images/").and_then(|text| text.parse::<Digest>().ok());
    let held = digest.and_then(|digest| state.content.any_blob(&digest));
    inspect_query(request, state, &["rid"]);
    match held {
        Some(bytes) => {
            Answer::new(200, bytes).with("content-type", "binary/octet-stream").conditional(request, "\"9bb58f26192e4ba00f01e2e7b136bbd8\"")
        }
        None => Answer::new(403, "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code></Error>").with("content-type", "application/xml"),
    }
}
