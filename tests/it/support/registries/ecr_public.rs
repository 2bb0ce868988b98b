//! Amazon's public registry: always a token, of the scope `aws` whatever is asked for, and a manifest a second for nobody in
//! particular (ten for an account, which nobody here needs).

use std::time::Duration;

use larder::oci::ErrorCode;
use tokio::time::Instant;

use super::tokens::{Shown, TokenServer, reply};
use super::{Double, Place, inspect, inspect_query};
use crate::support::net::FakeNet;
use crate::support::registry::answer::Answer;
use crate::support::registry::{Kind, Manners, Request, State};

const API: &str = "public.ecr.aws";

pub struct EcrPublic {
    pub tokens: TokenServer,
    /// When it gave nobody in particular a manifest, or refused to.
    pub pulls: Vec<Instant>,
    /// Of those it refused.
    pub too_fast: usize,
}

pub fn ecr_public(net: &FakeNet) -> Double<EcrPublic> {
    let tokens = TokenServer::new("https://public.ecr.aws/token/", Some(API), Duration::from_secs(43_200));
    let place = Place { name: API, host: API, path: "" };
    Double::new(net, EcrPublic { tokens, pulls: Vec::new(), too_fast: 0 }, place, &[(API, "75.2.101.78")])
}

impl Manners for EcrPublic {
    fn answer(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect(request, state);
        match request.kind {
            Kind::Token if self.tokens.is_at(request) => self.token(request, state),
            Kind::Ping | Kind::Manifest | Kind::Blob | Kind::Tags => self.api(request, state),
            _ => Answer::no_such_route(),
        }
    }
}

impl EcrPublic {
    fn token(&mut self, request: &Request, state: &mut State) -> Answer {
        let asked = self.tokens.asked(request, state);
        let Ok(account) = self.tokens.login(request) else {
            return Answer::error(401, ErrorCode::Unauthorized, "Not Authorized");
        };
        if asked.scopes.iter().any(|scope| scope != "aws") || asked.scopes.is_empty() && account.is_none() {
            state.violation(request, "a scope that it does not know");
        }
        let token = self.tokens.give(account, &[], |_| true);
        reply(&token)
    }

    fn api(&mut self, request: &Request, state: &mut State) -> Answer {
        inspect_query(request, state, if request.kind == Kind::Tags { &["n", "last"] } else { &[] });
        let Shown::Token(grant) = self.tokens.shown(request, state) else {
            let challenge = self.tokens.challenge(Some("aws"), None);
            return Answer::error(401, ErrorCode::Unauthorized, "Not Authorized").with("www-authenticate", challenge);
        };
        if request.kind == Kind::Manifest && grant.account.is_none() {
            let now = Instant::now();
            let is_too_fast = self.pulls.last().is_some_and(|last| now < *last + Duration::from_secs(1));
            self.pulls.push(now);
            if is_too_fast {
                self.too_fast += 1;
                return Answer::error(429, ErrorCode::TooManyRequests, "Rate exceeded");
            }
        }
        state.content_of(request)
    }
}
