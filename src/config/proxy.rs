//! The proxy that requests go through, and the hosts that are reached without it: `HTTPS_PROXY`, `NO_PROXY` and their
//! like, by the rules that curl and Go share. Pure.

use std::net::IpAddr;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretString};

use super::BaseUrl;
use super::environment::Variables;
use super::value::{self, Fault};
use crate::percent;

/// The word that says: no proxy, whatever the environment says.
const NONE: &str = "none";

/// A proxy that requests go through.
#[derive(Clone, Debug)]
pub struct ProxyUrl {
    /// Always plain http, with no path: https is tunnelled through it by CONNECT.
    pub url: BaseUrl,
    /// `username:password`, as Basic authentication takes them: percent-decoded.
    pub userinfo: Option<SecretString>,
}

impl ProxyUrl {
    /// As it may be shown: without the password.
    pub(super) fn redacted(&self) -> String {
        let Some(userinfo) = &self.userinfo else { return self.url.to_string() };
        let username = userinfo.expose_secret().split_once(':').map_or("", |(username, _)| username);
        format!("{}", self.url).replacen("://", &format!("://{}:REDACTED@", percent::encode(username)), 1)
    }
}

/// `http://[user:password@]host[:port]`. A fault never quotes the text, which may hold a password.
pub(super) fn proxy_url(text: &str) -> Result<ProxyUrl, Fault> {
    let example = "write one such as http://proxy.example.com:3128";
    let Some(rest) = text.strip_prefix("http://") else {
        return Err(format!("is not the http URL of a proxy, nor the word none; {example} (what goes to https hosts is tunnelled in it)"));
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let (userinfo, host) = match rest[..authority.len()].rsplit_once('@') {
        Some((userinfo, host)) => (Some(decode_userinfo(userinfo)?), host),
        None => (None, authority),
    };
    let url = value::base_url(&format!("http://{host}{}", &rest[authority.len()..])).map_err(|_| format!("is not a URL; {example}"))?;
    if !url.path.is_empty() {
        return Err(format!("has a path, which a proxy has not; {example}"));
    }
    Ok(ProxyUrl { url, userinfo })
}

/// What the key says: a proxy, or none.
pub(super) fn setting(text: &str) -> Result<Option<ProxyUrl>, Fault> {
    if text == NONE { Ok(None) } else { proxy_url(text).map(Some) }
}

/// As `--print` shows it.
pub(super) fn shown(proxy: Option<&ProxyUrl>) -> String {
    proxy.map_or_else(|| NONE.to_owned(), ProxyUrl::redacted)
}

fn decode_userinfo(text: &str) -> Result<SecretString, Fault> {
    let (username, password) = text.split_once(':').unwrap_or((text, ""));
    let fault = || "has a username or password that is not percent-encoded text".to_owned();
    let (username, password) = (percent::decode(username).ok_or_else(fault)?, percent::decode(password).ok_or_else(fault)?);
    if username.contains(':') {
        return Err("has a colon in its username, which HTTP's Basic authentication cannot send".into());
    }
    Ok(SecretString::from(format!("{username}:{password}")))
}

/// What the environment says about proxies.
#[derive(Default)]
pub(super) struct Proxies {
    https: Option<FromVariable>,
    http: Option<FromVariable>,
    pub(super) no_proxy: NoProxy,
}

/// A proxy and the variable that names it.
pub(super) struct FromVariable {
    pub(super) variable: &'static str,
    pub(super) proxy: Result<ProxyUrl, Fault>,
}

impl Proxies {
    pub(super) fn new(variables: &Variables) -> Proxies {
        let first = |names: &[&'static str]| {
            names.iter().find_map(|name| Some((*name, variables.get(*name).map(|value| value.trim()).filter(|value| !value.is_empty())?)))
        };
        let proxy = |names: &[&'static str]| first(names).map(|(variable, text)| FromVariable { variable, proxy: from_variable(text) });
        Proxies {
            https: proxy(&["HTTPS_PROXY", "https_proxy"]),
            // In capitals it is what a CGI server makes of a client's `Proxy` header.
            http: proxy(&["http_proxy"]),
            no_proxy: first(&["NO_PROXY", "no_proxy"]).map(|(_, text)| NoProxy::new(text)).unwrap_or_default(),
        }
    }

    /// For an upstream whose own configuration says nothing.
    pub(super) fn for_url(&self, url: &BaseUrl) -> Option<&FromVariable> {
        if url.tls { self.https.as_ref() } else { self.http.as_ref() }
    }
}

/// `host:port` is common there, and means http.
fn from_variable(text: &str) -> Result<ProxyUrl, Fault> {
    if text.contains("://") { proxy_url(text) } else { proxy_url(&format!("http://{text}")) }
}

/// The hosts that are reached without a proxy.
#[derive(Clone, Debug, Default)]
pub struct NoProxy(Vec<Exception>);

#[derive(Clone, Debug)]
enum Exception {
    All,
    /// A single address is the smallest network.
    Network(IpNet, Option<u16>),
    /// A host and all within it; no leading dot.
    Domain(String, Option<u16>),
}

impl NoProxy {
    /// `NO_PROXY`'s text: `*`, hosts, domains with or without a leading dot, addresses, networks, each but these and `*`
    /// with a port if it likes, between commas. Anything else covers nothing, as in curl.
    pub fn new(text: &str) -> NoProxy {
        NoProxy(text.split(',').filter_map(|entry| exception(&entry.trim().to_ascii_lowercase())).collect())
    }

    /// Whether a host, as a URL has it, is to be reached directly. This machine always is.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = unbracketed(host).trim_end_matches('.').to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
            return true;
        }
        let on_port = |of: &Option<u16>| of.is_none_or(|of| of == port);
        self.0.iter().any(|exception| match exception {
            Exception::All => true,
            Exception::Network(network, of) => on_port(of) && address.is_some_and(|address| network.contains(&address)),
            Exception::Domain(domain, of) => on_port(of) && is_within(&host, domain),
        })
    }
}

fn exception(entry: &str) -> Option<Exception> {
    if entry == "*" {
        return Some(Exception::All);
    }
    if let Ok(network) = entry.parse::<IpNet>() {
        return Some(Exception::Network(network, None));
    }
    let (host, port) = match entry.rsplit_once(':') {
        // A bare IPv6 address ends like a port.
        _ if entry.parse::<IpAddr>().is_ok() => (entry, None),
        Some((host, port)) => (host, Some(port.parse().ok()?)),
        None => (entry, None),
    };
    if let Ok(address) = unbracketed(host).parse::<IpAddr>() {
        return Some(Exception::Network(IpNet::from(address.to_canonical()), port));
    }
    let domain = host.strip_prefix('*').unwrap_or(host).trim_matches('.');
    (!domain.is_empty()).then(|| Exception::Domain(domain.to_owned(), port))
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host)
}

fn is_within(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_means_what_curl_and_go_mean_by_it() {
        let list =
            "example.com, .dot.corp,*.star.corp,10.0.0.0/8,192.0.2.7,[2001:db8::1]:8443,2001:db8:1::/48,ported.corp:5000,,nonsense:x";
        let no_proxy = NoProxy::new(list);
        for (host, port) in [
            ("example.com", 443),
            ("registry.example.com", 443),
            ("Registry.EXAMPLE.com.", 443),
            ("dot.corp", 80),
            ("a.dot.corp", 80),
            ("a.b.star.corp", 80),
            ("10.200.3.4", 443),
            ("[::ffff:10.1.2.3]", 443),
            ("192.0.2.7", 5000),
            ("[2001:db8::1]", 8443),
            ("[2001:db8:1:2::3]", 443),
            ("ported.corp", 5000),
            ("a.ported.corp", 5000),
            ("localhost", 5000),
            ("127.3.2.1", 443),
            ("[::1]", 443),
        ] {
            assert!(no_proxy.covers(host, port), "{host}:{port}");
        }
        for (host, port) in [
            ("notexample.com", 443),
            ("example.com.evil.io", 443),
            ("192.0.2.8", 443),
            ("[2001:db8::1]", 443),
            ("ported.corp", 443),
            ("11.0.0.1", 443),
            ("10.evil.io", 443),
            ("nonsense", 443),
        ] {
            assert!(!no_proxy.covers(host, port), "{host}:{port}");
        }
        assert!(NoProxy::new("a, *").covers("anything.io", 443));
        assert!(NoProxy::default().covers("127.0.0.1", 443) && !NoProxy::default().covers("docker.io", 443));
    }

    #[test]
    fn a_proxy_s_url_is_read_and_shown_without_its_password() {
        for (text, userinfo, shown) in [
            ("http://proxy.corp:3128", None, "http://proxy.corp:3128"),
            ("http://proxy.corp/", None, "http://proxy.corp"),
            ("http://[2001:db8::1]:8080", None, "http://[2001:db8::1]:8080"),
            ("http://ada:hunter2@proxy.corp:3128", Some("ada:hunter2"), "http://ada:REDACTED@proxy.corp:3128"),
            ("http://ada@proxy.corp:3128", Some("ada:"), "http://ada:REDACTED@proxy.corp:3128"),
            ("http://a%40b:p%3a%2f@p@proxy.corp:1", Some("a@b:p:/@p"), "http://a%40b:REDACTED@proxy.corp:1"),
        ] {
            let proxy = proxy_url(text).unwrap();
            assert_eq!(proxy.userinfo.as_ref().map(ExposeSecret::expose_secret), userinfo, "{text}");
            assert_eq!(proxy.redacted(), shown);
            assert_eq!(proxy_url(shown).unwrap().url, proxy.url);
        }
    }

    #[test]
    fn what_is_no_proxy_is_told_without_its_password() {
        for text in [
            "",
            "proxy.corp:3128",
            "https://u:hunter2@proxy.corp",
            "socks5://u:hunter2@proxy.corp",
            "http://u:hunter2@",
            "http://u:hunter2@proxy.corp:0",
            "http://u:hunter2@proxy.corp/path",
            "http://u:hunter2@proxy.corp?x",
            "http://u%3a:hunter2@proxy.corp",
            "http://u:hunter2%@proxy.corp",
            "http://u:hunter2%ff@proxy.corp",
        ] {
            let fault = proxy_url(text).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(!fault.contains("hunter2"), "{fault}");
        }
    }

    #[test]
    fn the_environment_is_read_as_curl_and_go_read_it() {
        let proxies = |variables: &[(&str, &str)]| {
            Proxies::new(&variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
        };
        let of = |variables: &[(&str, &str)], url: &str| {
            let url = value::base_url(url).unwrap();
            proxies(variables).for_url(&url).map(|found| (found.variable, found.proxy.as_ref().unwrap().redacted()))
        };
        let found = |variable, url: &str| Some((variable, url.to_owned()));
        assert_eq!(of(&[("https_proxy", "p.corp:1")], "https://a.io"), found("https_proxy", "http://p.corp:1"));
        assert_eq!(of(&[("https_proxy", "http://b:1"), ("HTTPS_PROXY", "http://a:1")], "https://a.io"), found("HTTPS_PROXY", "http://a:1"));
        assert_eq!(of(&[("HTTPS_PROXY", " "), ("https_proxy", "http://b:1")], "https://a.io"), found("https_proxy", "http://b:1"));
        assert_eq!(of(&[("http_proxy", "http://b:1")], "http://a.io"), found("http_proxy", "http://b:1"));
        assert_eq!(of(&[("HTTP_PROXY", "http://evil:1"), ("HTTPS_PROXY", "http://b:1")], "http://a.io"), None);
        assert_eq!(of(&[("http_proxy", "http://b:1")], "https://a.io"), None);
        assert!(proxies(&[("no_proxy", "a.io")]).no_proxy.covers("a.io", 443));
    }
}
