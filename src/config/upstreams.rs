//! The upstreams: the public registries larder knows, what is written about each, and what a name means.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;

use super::keys::nearest;
use super::proxy::{self, FromVariable, Proxies};
use super::section::{Findings, Section};
use super::tree::{Entry, Node, Origin, Value};
use super::validate::Machine;
use super::value::{self, Fault};
use super::{BaseUrl, CacheConfig, CredentialConfig, Patterns, ProxyUrl, Secret, ServerConfig, UpstreamConfig, Visibility};

/// Docker Hub's registry does not live at the host that its image names have.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";
/// One namespace with `docker.io`, whoever is asked.
const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// Registries anyone may read, mirrored when no upstreams are written.
pub const WELL_KNOWN: [&str; 14] = [
    "cgr.dev",
    "docker.elastic.co",
    DOCKER_HUB,
    "gcr.io",
    "ghcr.io",
    "lscr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.access.redhat.com",
    "registry.cleanstart.com",
    "registry.gitlab.com",
    "registry.k8s.io",
];

/// The entries larder brings along when the file has none.
pub(super) fn built_in() -> Node {
    let entry = |host: &str| Entry { key: host.to_owned(), key_origin: Origin::BuiltIn, node: Node::empty() };
    Node { origin: Origin::BuiltIn, value: Value::Map(WELL_KNOWN.into_iter().map(entry).collect()) }
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
    let fallback = Fallback {
        tag_ttl: cache.read("tag_ttl", findings, value::duration),
        stale_if_error: cache.read("stale_if_error", findings, value::duration).unwrap_or(CacheConfig::STALE_IF_ERROR),
    };
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
    if DOCKER_HUB_ALIASES.contains(&text) {
        return Err(format!("is one namespace with {DOCKER_HUB}; write {DOCKER_HUB} instead"));
    }
    value::registry_host(text)
}

fn read_upstream(name: &str, section: &Section<'_>, fallback: &Fallback, machine: &Machine<'_>, findings: &mut Findings) -> UpstreamConfig {
    let own_url = own_url(name);
    let url = section.read("url", findings, value::base_url).unwrap_or_else(|| own_url.clone());
    let well_known = WELL_KNOWN.contains(&name) && url == own_url;
    let credentials = read_credentials(&section.inner("credentials"), &url, findings);
    let private_by_default = credentials.is_some() && !well_known;
    let default_ttl = if well_known { CacheConfig::TAG_TTL_WELL_KNOWN } else { Duration::ZERO };
    let proxy = read_proxy(section, &url, &machine.proxies, findings);
    let unplaced = |items: Vec<(Origin, String)>| items.into_iter().map(|(_, item)| item).collect();
    UpstreamConfig {
        name: name.to_owned(),
        urls: vec![url],
        aliases: unplaced(section.list("aliases", findings, value::alias)),
        credentials: credentials.into_iter().collect(),
        visibility: section.read("visibility", findings, visibility).unwrap_or(if private_by_default {
            Visibility::Private
        } else {
            Visibility::Public
        }),
        tag_ttl: section.read("tag_ttl", findings, value::duration).or(fallback.tag_ttl).unwrap_or(default_ttl),
        stale_if_error: section.read("stale_if_error", findings, value::duration).unwrap_or(fallback.stale_if_error),
        token_hosts: unplaced(section.list("token_hosts", findings, value::host_and_port)),
        allow_private_addresses: section
            .list("allow_private_addresses", findings, value::network)
            .into_iter()
            .map(|(_, network)| network)
            .collect(),
        ca_file: section.read("ca_file", findings, value::absolute_path),
        immutable_tags: Patterns::default(),
        client_cert_file: None,
        proxy,
        no_proxy: machine.proxies.no_proxy.clone(),
        insecure_skip_verify: false,
    }
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

/// Where a registry lives unless something else is written.
fn own_url(name: &str) -> BaseUrl {
    let text = if name == DOCKER_HUB { DOCKER_HUB_URL.to_owned() } else { format!("https://{name}") };
    // A checked host makes a right URL; were it ever wrong, nothing could be connected to.
    value::base_url(&text).unwrap_or_else(|_| BaseUrl { tls: true, host: name.to_owned(), port: 443, path: String::new() })
}

fn visibility(text: &str) -> Result<Visibility, Fault> {
    match text {
        "public" => Ok(Visibility::Public),
        "private" => Ok(Visibility::Private),
        _ => Err(format!("`{text}` is neither public nor private")),
    }
}

fn read_credentials(section: &Section<'_>, url: &BaseUrl, findings: &mut Findings) -> Option<CredentialConfig> {
    let username = section.text("username", findings);
    let inline = section.text("password", findings);
    let file = section.read("password_file", findings, value::absolute_path);
    let written = |name| section.get(name).is_some();
    let any_password = written("password") || written("password_file");
    if !written("username") && !any_password {
        return None;
    }
    if username.is_some_and(|name| name.contains(':') || name.is_empty()) {
        findings.mistake(
            &section.origin("username"),
            &section.key("username"),
            "is empty or has a colon, which HTTP's Basic authentication cannot send",
        );
    }
    if !written("username") {
        findings.mistake(&section.origin("username"), &section.key("username"), "is missing; a password alone names nobody");
    }
    if !any_password {
        findings.mistake(
            &section.origin("password_file"),
            &section.key("password_file"),
            "is missing; write the path of a file that holds the password",
        );
    }
    if written("password") && written("password_file") {
        findings.mistake(&section.origin("password"), &section.key("password"), "stands beside password_file; keep one of the two");
    }
    if !url.tls && !url.is_loopback() {
        let message = "would cross the network in plain text, since url begins with http://; use https";
        findings.warning(&section.origin("username"), &section.path, message);
    }
    let password = match (file, inline) {
        (Some(path), _) => Secret::File(path),
        (None, inline) => Secret::Inline(SecretString::from(inline?)),
    };
    Some(CredentialConfig::password(username?, password))
}

/// Every name that means an upstream; no name may mean two.
fn name_all(section: &Section<'_>, upstreams: &BTreeMap<String, UpstreamConfig>, findings: &mut Findings) -> Names {
    let mut names: BTreeMap<_, _> = upstreams.keys().map(|name| (name.clone(), name.clone())).collect();
    if upstreams.contains_key(DOCKER_HUB) {
        names.extend(DOCKER_HUB_ALIASES.map(|alias| (alias.to_owned(), DOCKER_HUB.to_owned())));
    }
    for name in upstreams.keys() {
        let inner = section.inner(name);
        // Wrong aliases were told when they were read.
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
