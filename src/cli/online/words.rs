//! The lines about one upstream. Pure. What a server said of itself may hold anything and is printed without its control
//! characters; findings hold no secrets and no queries.

use std::fmt;

use super::advice::{Advice, Whom};
use crate::config::UpstreamConfig;
use crate::units::duration;
use crate::upstream::{Budget, Fault, FaultKind, Ping, Report, Survey, TokenServer, Tried, Trust, UpstreamError, Verdict};

const DETAIL_CHARACTERS_MAX: usize = 300;

/// What is printed of one upstream.
#[derive(Debug)]
pub(super) struct Block {
    name: String,
    pub(super) works: bool,
    lines: Vec<(&'static str, String)>,
}

/// The block of an upstream, from a report on each of its URLs.
pub(super) fn block(upstream: &UpstreamConfig, reports: &[Report]) -> Block {
    let mut writer = Writer { advice: Advice(upstream), works: true, lines: Vec::new(), changes: Vec::new() };
    reports.iter().for_each(|report| writer.report(report));
    let Writer { works, mut lines, changes, .. } = writer;
    lines.extend(changes.into_iter().map(|change| ("change", change)));
    Block { name: upstream.name.clone(), works, lines }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, if self.works { "ok" } else { "does not work" })?;
        for (label, text) in &self.lines {
            let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
            writeln!(f, "  {label:<7} {text}")?;
        }
        Ok(())
    }
}

struct Writer<'a> {
    advice: Advice<'a>,
    works: bool,
    lines: Vec<(&'static str, String)>,
    changes: Vec<String>,
}

impl Writer<'_> {
    fn report(&mut self, report: &Report) {
        self.line("url", report.url.clone());
        self.connection(&report.connection, report.url.starts_with("https:"));
        match &report.ping {
            Some(Err(error)) => self.no_registry(error),
            Some(Ok(ping)) => {
                self.redirect(report);
                if let Some(server) = &report.token_server {
                    self.token_server(server, &report.tried);
                }
                report.tried.iter().for_each(|tried| self.tried(tried, *ping, report));
            }
            None => {}
        }
    }

    fn connection(&mut self, survey: &Survey, tls: bool) {
        if let Some(proxy) = &survey.proxy {
            self.line("proxy", proxy.clone());
        }
        if !survey.addresses.is_empty() {
            self.line("dns", listed(&survey.addresses));
        }
        match &survey.fault {
            Some(fault) => {
                self.line(label(fault.kind), told(fault));
                self.fails(self.advice.for_connection(survey, fault, Whom::Registry));
            }
            None if tls => self.line("tls", self.certificate(survey)),
            None => self.line("tls", "none: the url begins with http://".into()),
        }
    }

    fn certificate(&self, survey: &Survey) -> String {
        let certificate = survey.certificate.clone().unwrap_or_default();
        let by = certificate.issuer.map(|issuer| format!(", signed by {issuer}")).unwrap_or_default();
        let until = certificate.until.map(|until| format!(", good until {until}")).unwrap_or_default();
        let verdict = if self.advice.0.insecure_skip_verify { "not verified (insecure_skip_verify)" } else { "ok" };
        format!("{verdict}{by}{until}")
    }

    fn no_registry(&mut self, error: &UpstreamError) {
        let text = match error {
            UpstreamError::NotFound => "404 to /v2/: there is no registry".into(),
            error => short(error),
        };
        self.line("answer", text);
        self.fails(self.advice.for_answer(error, None));
    }

    fn redirect(&mut self, report: &Report) {
        let Some((target, survey)) = &report.redirect else { return };
        match &survey.fault {
            Some(fault) => {
                self.line("answer", format!("/v2/ redirects to {target}, {}", way(survey, fault)));
                self.fails(self.advice.for_connection(survey, fault, Whom::Elsewhere));
            }
            None => {
                self.line("answer", format!("/v2/ redirects to {target}"));
                if !self.advice.0.credentials.is_empty() {
                    self.fails(self.advice.for_redirect(target));
                }
            }
        }
    }

    fn token_server(&mut self, server: &TokenServer, tried: &[Tried]) {
        let host = &server.host;
        if let Some((survey, fault)) = server.connection.as_ref().and_then(|survey| Some((survey, survey.fault.as_ref()?))) {
            self.line("tokens", format!("from {host}, {}", way(survey, fault)));
            self.fails(self.advice.for_connection(survey, fault, Whom::Elsewhere));
        }
        let has_credentials = tried.iter().any(|tried| tried.credential.is_some());
        match server.trust {
            Trust::Credentials => {}
            Trust::Nothing if !has_credentials => {}
            Trust::Nothing => {
                self.line("tokens", format!("from {host}, which nobody vouches for: no credential was sent there"));
                self.fails(self.advice.for_token_host(host));
            }
            Trust::Insecure => {
                self.line("tokens", format!("from {host} without TLS, which larder does not ask"));
                self.fails("the registry must name a token server with https://".into());
            }
        }
    }

    fn tried(&mut self, tried: &Tried, ping: Ping, report: &Report) {
        let who = tried.credential.as_ref().map_or_else(|| "anonymous".to_owned(), |name| format!("credential `{name}`"));
        let tokens = report.token_server.as_ref().map(|server| format!(", tokens from {}", server.host)).unwrap_or_default();
        let kept_back = report.token_server.as_ref().is_some_and(|server| server.trust != Trust::Credentials);
        match &tried.verdict {
            Ok(Verdict::Accepted) if tried.credential.is_none() => self.line("auth", format!("{who}{tokens}")),
            Ok(Verdict::Accepted) => self.line("auth", format!("{who} accepted{tokens}")),
            Ok(Verdict::NotAsked) => self.line("auth", format!("{who} not asked for: /v2/ is open to anybody")),
            Ok(Verdict::NotTried) if ping == Ping::Redirected && tried.credential.is_none() => {}
            Ok(Verdict::NotTried) => self.line("auth", format!("{who} not tried")),
            Ok(Verdict::NoLogin) => {
                self.line("auth", format!("{who} holds no login for this registry"));
                self.fails(self.advice.for_credential(tried.credential.as_deref()));
            }
            // Told with the token server.
            Err(UpstreamError::CredentialRefused { .. }) if kept_back => self.line("auth", format!("{who} not sent")),
            Err(error) => {
                self.line("auth", format!("{who}: {}", short(error)));
                self.fails(self.advice.for_answer(error, tried.credential.as_deref()));
            }
        }
        match (&tried.budget, &tried.verdict) {
            (Some(budget), _) => self.budget(budget),
            (None, Ok(Verdict::Accepted)) => self.line("budget", "no limit told".into()),
            (None, _) => {}
        }
    }

    fn budget(&mut self, budget: &Budget) {
        let number = |number: Option<u64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
        let window = budget.window.map(|window| format!(" in {}", duration(window))).unwrap_or_default();
        let source = budget.source.as_ref().map(|source| format!(", counted to {source}")).unwrap_or_default();
        self.line("budget", format!("{} of {} pulls left{window}{source}", number(budget.remaining), number(budget.limit)));
        if budget.remaining == Some(0) {
            // larder goes on by what it holds: no failure.
            self.changes.push(self.advice.for_answer(&UpstreamError::RateLimited { retry_after: None }, None));
        }
    }

    fn line(&mut self, label: &'static str, text: String) {
        self.lines.push((label, text));
    }

    fn fails(&mut self, change: String) {
        self.works = false;
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }
}

fn label(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Dns => "dns",
        FaultKind::Connect | FaultKind::Blocked => "connect",
        FaultKind::UnknownAuthority | FaultKind::OtherName | FaultKind::OutOfDate | FaultKind::NotTls | FaultKind::Tls => "tls",
    }
}

fn told(fault: &Fault) -> String {
    match fault.kind {
        FaultKind::UnknownAuthority => "its certificate is signed by nobody whom this machine believes".into(),
        FaultKind::OtherName => format!("its certificate is for another host: {}", cut(&fault.detail)),
        FaultKind::OutOfDate => format!("its certificate is not valid today: {}", cut(&fault.detail)),
        FaultKind::NotTls => "it does not speak TLS".into(),
        FaultKind::Tls | FaultKind::Dns | FaultKind::Connect | FaultKind::Blocked => cut(&fault.detail),
    }
}

/// A way to another host, which is written beside it.
fn way(survey: &Survey, fault: &Fault) -> String {
    match fault.kind {
        FaultKind::Blocked if !survey.addresses.is_empty() => {
            format!("at {}, which is no public address: it is not asked", listed(&survey.addresses))
        }
        _ => format!("which cannot be asked: {}", told(fault)),
    }
}

fn short(error: &UpstreamError) -> String {
    match error {
        UpstreamError::RateLimited { retry_after: Some(wait) } => format!("rate limit reached, for {} yet", duration(*wait)),
        UpstreamError::CredentialRefused { detail } | UpstreamError::Denied { detail } => format!("refused: {}", cut(detail)),
        error => cut(&error.to_string()),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(DETAIL_CHARACTERS_MAX).collect()
}

fn listed<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
