//! GitHub's registry: a token server that refuses by itself, a ping whose scope is a placeholder, no expiry told, a store
//! without HEAD, no referrers.

use std::time::Duration;

use larder::oci::ErrorCode;

use super::tokens::{TokenServer, pair, pull};
use super::{Double, Place, inspect, inspect_query, store};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "ghcr.io";
const STORE: &str = "pkg-containers.githubusercontent.com";

pub struct Ghcr {
    /// Its accounts' passwords are their access tokens, which any username may use.
    pub tokens: TokenServer,
    /// What a stranger is told about a private or missing package: 401, or 403 as seen elsewhere.
    pub stranger_status: u16,
}

/// GHCR on its real names.
pub fn ghcr(net: &FakeNet) -> Double<Ghcr> {
    let tokens = TokenServer::new("https://ghcr.io/token", Some("ghcr.io"), Duration::from_secs(300));
    let place = Place { name: "ghcr.io", host: API, path: "" };
    let double = Double::new(net, Ghcr { tokens, stranger_status: 401 }, place, &[(API, "140.82.121.34"), (STORE, "185.199.108.154")]);
    double.redirect_blobs("https://pkg-containers.githubusercontent.com");
    double.blobs_without_head();
    double.signatures_live(Duration::from_secs(600));
    double
}

impl Manners for Ghcr {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        if request.host == STORE {
            return store(request, state);
        }
        inspect(request, state);
        match request.kind {
            Kind::Token if self.tokens.is_at(request) => self.token(request, state),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags => self.api(request, state),
            _ => Answer::no_such_route(),
        }
    }
}

impl Ghcr {
    /// Refuses whoever may not read what is asked for, and whoever comes with a dead access token.
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let denied = |status| {
            let code = if status == 401 { ErrorCode::Unauthorized } else { ErrorCode::Denied };
            Answer::error(status, code, "denied")
        };
        let account = match request.authorization() {
            None => None,
            Some(header) if header.starts_with("Bearer ") => {
                state.violation(request, "an access token sent as Bearer");
                return denied(401);
            }
            Some(header) => {
                let secret = pair(header).map(|(_, secret)| secret);
                match self.tokens.accounts.iter().find(|(_, password)| Some(*password) == secret.as_ref()) {
                    Some((user, _)) => Some(user.clone()),
                    None => return denied(403),
                }
            }
        };
        let stranger = account.is_none();
        let may = |scope: &String| {
            let repository = scope.strip_prefix("repository:").and_then(|rest| rest.strip_suffix(":pull")).unwrap_or_default();
            state.content.repository(repository).is_some() && self.tokens.may_read(account.as_deref(), repository)
        };
        if !asked.scopes.iter().all(may) {
            return denied(if stranger { self.stranger_status } else { 403 });
        }
        self.tokens.issue(account, &asked, state)
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect_query(request, state, if request.kind == Kind::Tags { &["n", "last"] } else { &[] });
        let repository = request.repository().filter(|_| request.kind != Kind::Ping);
        let scope = repository.map_or("repository:user/image:pull".into(), pull);
        self.tokens.refusal(request, state, Some(&scope)).unwrap_or_else(|| state.content_of(request))
    }
}
