//! `explain`: which repository a text means, and what the mirror makes of it.

use super::{Control, Line, reference};
use crate::mirror::explain::Explanation;
use crate::mirror::{self, Root, Rule, Target, Unresolved};
use crate::server;

use super::ask::{Answer, Explained};

impl Control {
    pub(super) async fn explain(&self, text: &str) -> Line {
        let repositories = self.parts.mirror.repositories();
        let meant = match reference::parse(text, |name| repositories.knows(&Root::V2, Some(name))) {
            Ok(meant) => meant,
            Err(fault) => return Line::Refused(fault),
        };
        let (repository, rule) = match repositories.resolve_by(&meant.target, meant.host.as_deref(), None) {
            Ok(resolved) => resolved,
            Err(error) => return Line::Refused(unresolved(text, &meant.target, error, &repositories.names())),
        };
        let now = self.clock.now();
        let status = |error: &mirror::Error| {
            let answer = server::error::Error::Mirror(error.clone()).answer("", now);
            (answer.status.as_u16(), answer.code.as_str())
        };
        let explanation = self.parts.mirror.explain(&repository, &meant.asked, &status).await;
        let mut upstream = explanation.upstream.clone();
        upstream.chosen_by = if meant.by_name { "reference" } else { chosen_by(rule) }.to_owned();
        upstream.is_known = self.since.is_some();
        let explanation = Explanation { upstream, ..explanation };
        Line::Done(Answer::Explained(Box::new(Explained { notes: meant.notes, explanation })))
    }
}

fn chosen_by(rule: Rule) -> &'static str {
    match rule {
        Rule::Ns => "ns",
        Rule::Prefix => "path_prefix",
        Rule::NameComponent => "name_component",
        Rule::Host => "host",
        Rule::ListenerDefault => "listener_default",
        Rule::Default => "default",
    }
}

fn unresolved(text: &str, target: &Target, error: Unresolved, upstreams: &[&str]) -> String {
    let named = match (&target.ns, &target.root) {
        (Some(ns), _) => ns.as_str(),
        (None, Root::Prefix(prefix)) => prefix,
        (None, Root::V2 | Root::Bare) => target.as_str().split('/').next().unwrap_or_default(),
    };
    match error {
        Unresolved::UnknownUpstream => {
            let known = upstreams.join(", ");
            format!("`{text}`: no upstream `{named}` is configured; add `{named}: {{}}` to upstreams, or write one that is there: {known}")
        }
        Unresolved::Contradiction => format!("`{text}`: the path's prefix and ns name different upstreams; write one of them"),
        Unresolved::Name => format!("`{text}`: {error}; write one such as docker.io/library/alpine:3.20"),
    }
}
