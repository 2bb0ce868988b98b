//! What to change, by what was found. Pure: findings to the key to write.

use crate::config::UpstreamConfig;
use crate::oci::registries;
use crate::upstream::{Fault, FaultKind, Survey, UnavailableReason, UpstreamError};

/// Whom a connection was to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whom {
    /// The host of a `url`.
    Registry,
    /// A token server, or where the registry redirects to.
    Elsewhere,
}

/// The advice for one upstream.
pub(super) struct Advice<'a>(pub(super) &'a UpstreamConfig);

impl Advice<'_> {
    pub(super) fn key(&self, key: &str) -> String {
        format!("upstreams.{}.{key}", self.0.name)
    }

    /// For a connection that came to nothing.
    pub(super) fn for_connection(&self, survey: &Survey, fault: &Fault, whom: Whom) -> String {
        let ca_file = || format!("{}: the PEM file of the CA that signed its certificate", self.key("ca_file"));
        match (fault.kind, whom) {
            (FaultKind::Dns | FaultKind::Connect, _) if survey.proxy.is_some() => {
                format!("{}: a proxy that works, or `none`; HTTPS_PROXY and NO_PROXY say it for all", self.key("proxy"))
            }
            (FaultKind::Dns, Whom::Registry) => {
                format!("{}: a host that DNS knows; or mend this machine's resolver", self.key("url"))
            }
            (FaultKind::Dns, Whom::Elsewhere) => "this machine's resolver must know that host, too".into(),
            (FaultKind::Connect, _) => {
                format!("let this machine's firewall connect there, or {}: the proxy to go through", self.key("proxy"))
            }
            (FaultKind::Blocked, _) if survey.openable.is_empty() => "no key opens that; the registry must not lead there".into(),
            (FaultKind::Blocked, _) => {
                let addresses: Vec<_> = survey.openable.iter().map(ToString::to_string).collect();
                format!("add {} to {}, if that host is yours", addresses.join(", "), self.key("allow_private_addresses"))
            }
            (FaultKind::UnknownAuthority, _) => ca_file(),
            (FaultKind::OtherName, Whom::Registry) => format!("{}: a host name that its certificate is for", self.key("url")),
            (FaultKind::OutOfDate, _) => "its certificate must be renewed, unless this machine's clock is wrong".into(),
            (FaultKind::NotTls, Whom::Registry) => {
                format!("{}: http://… if it is to be without TLS, else the port that speaks it", self.key("url"))
            }
            (FaultKind::OtherName | FaultKind::NotTls, Whom::Elsewhere) => {
                "the registry must name a host that has a right certificate".into()
            }
            (FaultKind::Tls, _) => format!("its TLS must be mended; if it wants a client certificate, {}", self.key("client_cert_file")),
        }
    }

    /// For a token server that larder's credentials are kept from.
    pub(super) fn for_token_host(&self, host: &str) -> String {
        format!("add {host} to {}, if it may see the credentials", self.key("token_hosts"))
    }

    pub(super) fn for_redirect(&self, target: &str) -> String {
        format!("{}: {target}, if credentials are to be sent there", self.key("url"))
    }

    /// For an answer that is none to a question about a registry, or one about a credential (`credential`).
    pub(super) fn for_answer(&self, error: &UpstreamError, credential: Option<&str>) -> String {
        match (error, credential) {
            (UpstreamError::CredentialRefused { .. }, _) => self.for_credential(credential),
            (UpstreamError::Denied { .. }, Some(_)) => self.for_credential(credential),
            (UpstreamError::Denied { .. }, None) => {
                let login = self.0.urls.iter().find_map(|url| registries::find(&url.host)?.login);
                let example = login.map(|login| format!(", such as {login}")).unwrap_or_default();
                format!("{}: a login{example}, as it shows nothing to anybody", self.key("credentials"))
            }
            (UpstreamError::RateLimited { .. }, _) => {
                format!("wait, or write {} that have a higher limit", self.key("credentials"))
            }
            (UpstreamError::NotFound | UpstreamError::Corrupt { .. } | UpstreamError::SchemaOne, _) => {
                format!("{}: where the registry is, with what stands before /v2/", self.key("url"))
            }
            (UpstreamError::Unavailable { reason: UnavailableReason::Blocked, .. }, _) => {
                format!("add where it leads to {}", self.key("allow_private_addresses"))
            }
            (UpstreamError::Internal { .. }, _) => "report it as a bug of larder's, with what it printed".into(),
            (
                UpstreamError::Unavailable { .. }
                | UpstreamError::TimedOut { .. }
                | UpstreamError::Busy { .. }
                | UpstreamError::Overloaded { .. },
                _,
            ) => "the registry's operator must see to it; try again later".into(),
        }
    }

    pub(super) fn for_credential(&self, credential: Option<&str>) -> String {
        let name = credential.map(|name| format!(" `{name}`")).unwrap_or_default();
        format!("renew the credential{name} in {}", self.key("credentials"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn advised(told: impl FnOnce(&Advice<'_>) -> String) -> String {
        advised_for("r.corp", told)
    }

    fn advised_for(upstream: &str, told: impl FnOnce(&Advice<'_>) -> String) -> String {
        let text = format!("default_upstream: {upstream}\nupstreams: {{{upstream}: {{}}}}");
        let (config, _) = Config::from_yaml(&text, [("HOME".to_owned(), "/root".to_owned())]).expect("a configuration");
        told(&Advice(&config.upstreams[upstream]))
    }

    #[test]
    fn the_login_of_a_known_registry_has_an_example() {
        let denied = UpstreamError::Denied { detail: String::new() };
        for (upstream, example) in [
            ("made-up.example", "a login, such as {docker_helper: made-up}, as it"),
            ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", "a login, such as {docker_helper: ecr-login}, as it"),
            ("r.corp", "a login, as it"),
        ] {
            let advice = advised_for(upstream, |advice| advice.for_answer(&denied, None));
            assert!(advice.starts_with(&format!("upstreams.{upstream}.credentials: {example}")), "{advice}");
        }
    }

    #[test]
    fn each_fault_of_a_connection_has_its_remedy() {
        let private = Survey { openable: vec!["10.0.0.1".parse().expect("an address")], ..Survey::default() };
        let proxied = Survey { proxy: Some("http://proxy:3128".into()), ..Survey::default() };
        let plain = Survey::default();
        for (kind, survey, whom, remedy) in [
            (FaultKind::Dns, &plain, Whom::Registry, "upstreams.r.corp.url: a host that DNS knows"),
            (FaultKind::Dns, &plain, Whom::Elsewhere, "this machine's resolver"),
            (FaultKind::Dns, &proxied, Whom::Registry, "upstreams.r.corp.proxy: "),
            (FaultKind::Connect, &plain, Whom::Registry, "let this machine's firewall connect there"),
            (FaultKind::Connect, &proxied, Whom::Elsewhere, "upstreams.r.corp.proxy: "),
            (FaultKind::Blocked, &private, Whom::Elsewhere, "add 10.0.0.1 to upstreams.r.corp.allow_private_addresses"),
            (FaultKind::Blocked, &plain, Whom::Elsewhere, "no key opens that"),
            (FaultKind::UnknownAuthority, &plain, Whom::Registry, "upstreams.r.corp.ca_file: "),
            (FaultKind::UnknownAuthority, &plain, Whom::Elsewhere, "upstreams.r.corp.ca_file: "),
            (FaultKind::OtherName, &plain, Whom::Registry, "upstreams.r.corp.url: "),
            (FaultKind::OtherName, &plain, Whom::Elsewhere, "the registry must name"),
            (FaultKind::OutOfDate, &plain, Whom::Registry, "its certificate must be renewed"),
            (FaultKind::NotTls, &plain, Whom::Registry, "upstreams.r.corp.url: http://"),
            (
                FaultKind::Tls,
                &plain,
                Whom::Registry,
                "its TLS must be mended; if it wants a client certificate, upstreams.r.corp.client_cert_file",
            ),
        ] {
            let fault = Fault { kind, detail: String::new() };
            let told = advised(|advice| advice.for_connection(survey, &fault, whom));
            assert!(told.starts_with(remedy), "{kind:?} {whom:?}: {told}");
        }
    }

    #[test]
    fn each_answer_has_its_remedy() {
        let detail = String::new;
        let unavailable = |reason| UpstreamError::Unavailable { reason, detail: String::new() };
        for (error, credential, remedy) in [
            (
                UpstreamError::CredentialRefused { detail: detail() },
                Some("ci"),
                "renew the credential `ci` in upstreams.r.corp.credentials",
            ),
            (UpstreamError::Denied { detail: detail() }, Some("ci"), "renew the credential `ci` in upstreams.r.corp.credentials"),
            (UpstreamError::Denied { detail: detail() }, None, "upstreams.r.corp.credentials: a login"),
            (UpstreamError::RateLimited { retry_after: None }, None, "wait, or write upstreams.r.corp.credentials"),
            (UpstreamError::NotFound, None, "upstreams.r.corp.url: where the registry is"),
            (UpstreamError::Corrupt { detail: detail() }, None, "upstreams.r.corp.url: where the registry is"),
            (unavailable(UnavailableReason::Blocked), None, "add where it leads to upstreams.r.corp.allow_private_addresses"),
            (unavailable(UnavailableReason::Status), None, "the registry's operator"),
            (UpstreamError::TimedOut { detail: detail() }, None, "the registry's operator"),
        ] {
            let told = advised(|advice| advice.for_answer(&error, credential));
            assert!(told.starts_with(remedy), "{error}: {told}");
        }
    }
}
