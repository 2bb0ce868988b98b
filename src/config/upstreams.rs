//! The upstreams: what is written about each, and what a name means.

use std::collections::BTreeMap;
use std::time::Duration;

use super::check::nearest;
use super::credentials::{read_credentials, read_file};
use super::effective::Shown;
use super::machine::Machine;
use super::proxy::{self, FromVariable, Proxies};
use super::section::{Findings, Section};
use super::tree::{Entry, Node, Origin, Value};
use super::value::{self, Fault};
use super::{BaseUrl, Patterns, ProxyUrl, ServerConfig, UpstreamConfig, Visibility};
use crate::oci::registries::{self, Access};
use crate::units;

/// For the well-known registries at their own URL. Elsewhere zero: a pull gets an image that was pushed a minute ago.
const TAG_TTL_WELL_KNOWN: Duration = Duration::from_secs(5 * 60);

/// The entries larder brings along when the file has none.
pub(super) fn built_in() -> Node {
    let entry = |host: &str| Entry { key: host.to_owned(), key_origin: Origin::BuiltIn, node: Node::empty() };
    Node { origin: Origin::BuiltIn, value: Value::Map(registries::well_known().map(entry).collect()) }
}

/// Which upstream a name or alias means.
pub(super) struct Names {
    upstream_by_name: BTreeMap<String, String>,
}

impl Names {
    pub(super) fn resolve(&self, name: &str) -> Result<String, Fault> {
        let known = self.upstream_by_name.get(name);
        known.cloned().ok_or_else(|| match nearest(name, self.upstream_by_name.keys().map(String::as_str)) {
            Some(near) => format!("`{name}` is not an upstream; did you mean {near}?"),
            None => format!("`{name}` is not an upstream; add `{name}: {{}}` to upstreams, or write one that is there"),
        })
    }

    pub(super) fn is_upstream(&self, name: &str) -> bool {
        self.upstream_by_name.contains_key(name)
    }

    /// Any upstream, for an example.
    pub(super) fn first(&self) -> Option<&str> {
        self.upstream_by_name.values().next().map(String::as_str)
    }
}

/// What the cache's section says for upstreams that don't say it themselves.
struct Fallback {
    tag_ttl: Option<Duration>,
    stale_if_error: Duration,
}

pub(super) fn read_upstreams(
    root: &Section<'_>,
    machine: &Machine<'_>,
    findings: &mut Findings,
) -> (BTreeMap<String, UpstreamConfig>, Names) {
    let cache = root.inner("cache");
    let fallback = Fallback { tag_ttl: cache.duration("tag_ttl"), stale_if_error: cache.duration("stale_if_error").unwrap_or_default() };
    let section = root.inner("upstreams");
    let entries = root.get("upstreams").map(Node::entries).unwrap_or_default();
    let mut upstreams = BTreeMap::new();
    for entry in entries {
        match upstream_name(&entry.key) {
            Ok(name) => {
                let upstream = read_upstream(&name, &section.inner(&name), &fallback, machine, findings);
                upstreams.insert(name, upstream);
            }
            Err(fault) => findings.mistake(&entry.key_origin, &section.key(&entry.key), fault),
        }
    }
    let names = name_all(&section, &upstreams, findings);
    (upstreams, names)
}

fn upstream_name(text: &str) -> Result<String, Fault> {
    let name = registries::canonical(text);
    if name != text {
        return Err(format!("is one namespace with {name}; write {name} instead"));
    }
    value::registry_host(text)
}

fn read_upstream(name: &str, section: &Section<'_>, fallback: &Fallback, machine: &Machine<'_>, findings: &mut Findings) -> UpstreamConfig {
    let (registry, own_url) = (registries::find(name), [own_url(name)]);
    let urls = read_urls(section, findings).unwrap_or_else(|| own_url.to_vec());
    let at_home = urls == own_url;
    let well_known = at_home && registry.is_some_and(|registry| registry.access == Access::Public);
    let credentials = read_credentials(section, &urls, machine, findings);
    let [ca_file, client_cert_file] = ["ca_file", "client_cert_file"].map(|key| read_file(section, key, machine, findings));
    if let Some(registry) = registry.filter(|registry| at_home && credentials.is_empty() && registry.access == Access::Credentials) {
        let example = registry.login.map(|login| format!(", such as credentials: {login}")).unwrap_or_default();
        let message = format!("is a registry that shows nothing without credentials; write some{example}");
        findings.warning(&section.here(), &section.path, message);
    }
    // A client certificate opens as much as a password does.
    let signs_in = !credentials.is_empty() || client_cert_file.is_some();
    let private_by_default = signs_in && !well_known;
    let default_visibility = if private_by_default { Visibility::Private } else { Visibility::Public };
    let default_ttl = if well_known { TAG_TTL_WELL_KNOWN } else { Duration::ZERO };
    let upstream = UpstreamConfig {
        name: name.to_owned(),
        aliases: unplaced(section.list("aliases", findings, value::alias)),
        credentials,
        visibility: section.choice("visibility", &Visibility::WORDS).unwrap_or(default_visibility),
        tag_ttl: section.duration("tag_ttl").or(fallback.tag_ttl).unwrap_or(default_ttl),
        stale_if_error: section.duration("stale_if_error").unwrap_or(fallback.stale_if_error),
        immutable_tags: read_immutable_tags(section, findings),
        token_hosts: unplaced(section.list("token_hosts", findings, value::host_and_port)),
        allow_private_addresses: unplaced(section.list("allow_private_addresses", findings, value::network)),
        ca_file,
        client_cert_file,
        proxy: urls.first().and_then(|url| read_proxy(section, url, &machine.proxies, findings)),
        no_proxy: machine.proxies.no_proxy.clone(),
        insecure_skip_verify: read_skip_verify(section, &urls, findings),
        urls,
    };
    settle(section, &upstream, findings);
    upstream
}

/// What the registry's name, the cache's section or the environment made of what is written.
fn settle(section: &Section<'_>, upstream: &UpstreamConfig, findings: &mut Findings) {
    let urls = match upstream.urls.as_slice() {
        [only] => Shown::from(only.to_string()),
        several => several.iter().collect(),
    };
    findings.settle(section.key("url"), urls);
    findings.settle(section.key("visibility"), upstream.visibility.word().to_owned());
    findings.settle(section.key("tag_ttl"), units::exact_duration(upstream.tag_ttl));
    findings.settle(section.key("stale_if_error"), units::exact_duration(upstream.stale_if_error));
    findings.settle(section.key("allow_private_addresses"), upstream.allow_private_addresses.iter().collect::<Shown>());
    findings.settle(section.key("proxy"), proxy::shown(upstream.proxy.as_ref()));
}

/// Where a registry lives unless something else is written.
fn own_url(name: &str) -> BaseUrl {
    // A checked host makes a right URL; were it ever wrong, nothing could be connected to.
    let unusable = |_| BaseUrl { tls: true, host: name.to_owned(), port: 443, path: String::new() };
    value::base_url(&registries::own_url(name)).unwrap_or_else(unusable)
}

fn unplaced<T>(items: Vec<(Origin, T)>) -> Vec<T> {
    items.into_iter().map(|(_, item)| item).collect()
}

/// None if none is written, or none that is right.
fn read_urls(section: &Section<'_>, findings: &mut Findings) -> Option<Vec<BaseUrl>> {
    let mut urls: Vec<BaseUrl> = Vec::new();
    for (origin, url) in section.list("url", findings, value::base_url) {
        if urls.contains(&url) {
            findings.mistake(&origin, &section.key("url"), format!("{url} is written twice; a second one is for when the first is down"));
        }
        urls.push(url);
    }
    if section.get("url").is_some_and(Node::is_empty_list) {
        findings.mistake(&section.origin("url"), &section.key("url"), "is an empty list; write a URL, or leave it out");
    }
    (!urls.is_empty()).then_some(urls)
}

fn read_immutable_tags(section: &Section<'_>, findings: &mut Findings) -> Patterns {
    let alone = |text: &str| Patterns::new(&[text.to_owned()]).map(|_| text.to_owned());
    let expressions = unplaced(section.texts("immutable_tags", findings, alone));
    Patterns::new(&expressions).unwrap_or_else(|fault| {
        findings.mistake(&section.origin("immutable_tags"), &section.key("immutable_tags"), fault);
        Patterns::default()
    })
}

/// Never without a word: whoever sits on the path reads the credentials and serves what they like.
fn read_skip_verify(section: &Section<'_>, urls: &[BaseUrl], findings: &mut Findings) -> bool {
    let key = "insecure_skip_verify";
    let skip = section.boolean(key);
    if skip && !urls.iter().any(|url| url.tls) {
        findings.mistake(&section.origin(key), &section.key(key), "has nothing to skip, since url begins with http://; leave it out");
    } else if skip {
        let message = "takes any certificate of this upstream: whoever can reach the network between sees the credentials, \
                       and answers for tags as they like; write ca_file with the registry's CA instead";
        findings.warning(&section.origin(key), &section.key(key), message);
    }
    skip
}

/// What is written, else what the environment says.
fn read_proxy(section: &Section<'_>, url: &BaseUrl, proxies: &Proxies, findings: &mut Findings) -> Option<ProxyUrl> {
    if section.get("proxy").is_some() {
        return section.read("proxy", findings, proxy::setting).flatten();
    }
    let FromVariable { variable, proxy } = proxies.for_url(url)?;
    match proxy {
        Ok(proxy) => return Some(proxy.clone()),
        // Once, not for each upstream.
        Err(_) if findings.mistakes.iter().any(|earlier| earlier.key == *variable) => {}
        Err(fault) => {
            let message = format!("{fault}; or write {}: none", section.key("proxy"));
            findings.mistake(&Origin::Variable((*variable).to_owned()), variable, message);
        }
    }
    None
}

/// Every name that means an upstream; no name may mean two.
fn name_all(section: &Section<'_>, upstreams: &BTreeMap<String, UpstreamConfig>, findings: &mut Findings) -> Names {
    let mut names: BTreeMap<_, _> = upstreams.keys().map(|name| (name.clone(), name.clone())).collect();
    for registry in upstreams.keys().filter_map(|name| registries::find(name)) {
        let Some(name) = registry.name() else { continue };
        names.extend(registry.further_hosts().iter().map(|host| ((*host).to_owned(), name.to_owned())));
    }
    for name in upstreams.keys() {
        let inner = section.inner(name);
        // Wrong aliases were reported when they were read.
        for (origin, alias) in inner.list("aliases", &mut Findings::default(), value::alias) {
            if let Some(taken) = names.insert(alias.clone(), name.clone()) {
                findings.mistake(
                    &origin,
                    &inner.key("aliases"),
                    format!("`{alias}` means {taken} already; a name can mean only one upstream"),
                );
            }
        }
    }
    // What the file gives to another upstream is that one's.
    for name in upstreams.keys() {
        for alias in registries::further_names(name) {
            names.entry(alias.to_owned()).or_insert_with(|| name.clone());
        }
    }
    Names { upstream_by_name: names }
}

/// Private images on an open port without authentication are a leak that nobody notices, so larder doesn't start like that.
pub(super) fn refuse_open_private(
    root: &Section<'_>,
    server: &ServerConfig,
    upstreams: &BTreeMap<String, UpstreamConfig>,
    findings: &mut Findings,
) {
    let Some(open) = server.listen.iter().map(|listener| listener.address).find(|address| !address.ip().to_canonical().is_loopback())
    else {
        return;
    };
    if server.allow_anonymous_private {
        return;
    }
    let section = root.inner("upstreams");
    for upstream in upstreams.values().filter(|upstream| upstream.visibility == Visibility::Private) {
        let key = section.inner(&upstream.name).key("visibility");
        let message = format!(
            "is private, and server.listen {open} lets any machine read, unauthenticated, what this upstream's credentials read; \
             write {key}: public if anonymous clients may see only its public images, \
             or server.allow_anonymous_private: true if whoever reaches larder may read them, or listen on 127.0.0.1"
        );
        findings.mistake(&section.inner(&upstream.name).origin("visibility"), &key, message);
    }
}
