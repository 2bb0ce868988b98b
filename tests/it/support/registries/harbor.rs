//! Harbor: `Basic` for whoever showed something and was refused, an empty challenge for a project that is not there, HEAD only
//! for who is signed in, policies that answer 412.

use std::collections::HashSet;
use std::time::Duration;

use http::Method;
use larder::oci::ErrorCode;
use serde_json::json;

use super::tokens::{Shown, TokenServer, pull};
use super::{Double, Place, inspect, inspect_query};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Referrers, Request, State};

const API: &str = "harbor.corp.example";

pub struct Harbor {
    /// Its accounts are users and robots (`robot$name`, `robot$project+name`).
    pub tokens: TokenServer,
    /// What the reply says of when the token was made; nothing, as some versions do, unless told.
    pub issued_at: Option<String>,
    /// Images that a scan or signature policy keeps in.
    pub barred: HashSet<String>,
}

/// A Harbor of one's own.
pub fn harbor(net: &FakeNet) -> Double<Harbor> {
    let tokens = TokenServer::new("https://harbor.corp.example/service/token", Some("harbor-registry"), Duration::from_secs(1800));
    let harbor = Harbor { tokens, issued_at: None, barred: HashSet::new() };
    let double = Double::new(net, harbor, Place { name: API, host: API, path: "" }, &[(API, "198.46.10.5")]);
    double.serve_referrers(Referrers::native());
    double
}

impl Manners for Harbor {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect(request, state);
        match request.kind {
            Kind::Token if self.tokens.is_at(request) => self.token(request, state),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags | Kind::Referrers => {
                self.api(request, state).with("docker-distribution-api-version", "registry/2.0")
            }
            _ => Answer::no_such_route(),
        }
    }
}

impl Harbor {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let Ok(account) = self.tokens.login(request) else {
            return Answer::error(401, ErrorCode::Unauthorized, "unauthorized: unauthorized");
        };
        let content = &state.content;
        let token = self.tokens.give(account, &asked.scopes, |name| content.repository(name).is_some());
        let mut reply = json!({ "token": token, "access_token": "", "expires_in": 1800 });
        if let Some(time) = &self.issued_at {
            reply["issued_at"] = time.clone().into();
        }
        Answer::new(200, reply.to_string()).with("content-type", "application/json; charset=utf-8")
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        let known: &[&str] = match request.kind {
            Kind::Tags => &["n", "last"],
            Kind::Referrers => &["artifactType"],
            _ => &[],
        };
        inspect_query(request, state, known);
        let shown = self.tokens.shown(request, state);
        let Some(repository) = request.repository().filter(|_| request.kind != Kind::Ping) else {
            return match shown {
                Shown::Token(_) | Shown::Basic(Ok(_)) => Answer::new(200, "{}"),
                _ => self.unauthorized(request, None),
            };
        };
        let may = match &shown {
            Shown::Nothing => request.method != Method::HEAD && self.tokens.may_read(None, repository),
            Shown::Token(grant) => grant.covers(repository),
            Shown::Basic(Ok(user)) => self.tokens.may_read(Some(user), repository),
            Shown::Basic(Err(_)) | Shown::Dead => false,
        };
        if !may {
            return self.unauthorized(request, Some(repository).filter(|name| state.content.repository(name).is_some()));
        }
        if request.kind == Kind::Manifest && self.barred.contains(repository) {
            let body = json!({ "errors": [{ "code": "PROJECTPOLICYVIOLATION", "message": "current image without vulnerability scanning cannot be pulled" }] });
            return Answer::new(412, body.to_string()).with("content-type", "application/json; charset=utf-8");
        }
        state.content_of(request)
    }

    /// `known`: the repository, if its project is there.
    fn unauthorized(&self, request: &Request, known: Option<&str>) -> Answer {
        let challenge = match known {
            _ if request.authorization().is_some() => "Basic realm=\"harbor\"".to_owned(),
            None if request.kind != Kind::Ping => String::new(),
            known => self.tokens.challenge(known.map(pull).as_deref(), None),
        };
        Answer::error(401, ErrorCode::Unauthorized, "unauthorized to access repository").with("www-authenticate", challenge)
    }
}
