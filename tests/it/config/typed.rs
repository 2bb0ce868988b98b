//! A configuration's typed values as YAML, field by field: what larder acts on, to compare with what `--print` says of it.
//! Patterns keep no text, so `immutable_tags` are left out.

use std::collections::BTreeMap;
use std::path::Path;

use larder::config::{
    Config, CredentialConfig, CredentialKind, Listener, LogFormat, ProxyUrl, Secret, UpstreamConfig, VerifyOnRead, Visibility,
};
use larder::units::{exact_duration as duration, exact_size as size};
use secrecy::ExposeSecret;
use serde::Serialize;

pub fn typed(config: &Config) -> serde_yaml::Value {
    serde_yaml::to_value(Document::from(config)).unwrap()
}

#[derive(Serialize)]
struct Document<'a> {
    server: Server<'a>,
    admin: Admin,
    cache: Cache<'a>,
    fills: Fills,
    limits: Limits,
    default_upstream: &'a str,
    upstreams: BTreeMap<&'a str, Upstream<'a>>,
    log: Log<'a>,
}

#[derive(Serialize)]
struct Server<'a> {
    listen: Vec<Listen<'a>>,
    hosts: &'a BTreeMap<String, String>,
    allow_anonymous_private: bool,
    max_connections: usize,
    drain_timeout: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Listen<'a> {
    Address(String),
    Entry { address: String, default_upstream: &'a str },
}

/// A list of one is written without its dash.
#[derive(Serialize)]
#[serde(untagged)]
enum OneOrMore<T> {
    One(T),
    More(Vec<T>),
}

#[derive(Serialize)]
struct Admin {
    listen: String,
}

#[derive(Serialize)]
struct Cache<'a> {
    path: &'a Path,
    max_size: String,
    min_free: String,
    max_blob_size: String,
    evict_unused_after: String,
    pinned_images: Vec<String>,
    pinned_platforms: Vec<String>,
    revalidate_wait: String,
    negative_ttl: String,
    keep_deleted_tags: bool,
    memory_cache_size: String,
    verify_on_read: &'static str,
    scrub_interval: String,
}

#[derive(Serialize)]
struct Fills {
    max_concurrent: usize,
    max_concurrent_per_upstream: usize,
    queue_timeout: String,
}

#[derive(Serialize)]
struct Limits {
    questions: usize,
    questions_per_upstream: usize,
}

#[derive(Serialize)]
struct Upstream<'a> {
    url: OneOrMore<String>,
    aliases: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<OneOrMore<Credential<'a>>>,
    visibility: &'static str,
    tag_ttl: String,
    stale_if_error: String,
    token_hosts: &'a [String],
    allow_private_addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_cert_file: Option<&'a Path>,
    proxy: String,
    insecure_skip_verify: bool,
}

/// One kind's keys are there, and no others.
#[derive(Serialize)]
struct Credential<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    repositories: &'a [String],
    #[serde(flatten)]
    kind: BTreeMap<&'static str, Word<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Word<'a> {
    Text(&'a str),
    Path(&'a Path),
    Words(&'a [String]),
}

#[derive(Serialize)]
struct Log<'a> {
    format: &'static str,
    level: &'a str,
}

impl<'a> From<&'a Config> for Document<'a> {
    fn from(config: &'a Config) -> Document<'a> {
        let Config { server, admin, cache, fills, limits, default_upstream, upstreams, log, effective: _ } = config;
        Document {
            server: Server {
                listen: server.listen.iter().map(Listen::from).collect(),
                hosts: &server.hosts,
                allow_anonymous_private: server.allow_anonymous_private,
                max_connections: server.max_connections,
                drain_timeout: duration(server.drain_timeout),
            },
            admin: Admin { listen: admin.listen.to_string() },
            cache: Cache {
                path: &cache.path,
                max_size: size(cache.max_size),
                min_free: size(cache.min_free),
                max_blob_size: size(cache.max_blob_size),
                evict_unused_after: duration(cache.evict_unused_after),
                pinned_images: cache.pinned_images.iter().map(ToString::to_string).collect(),
                pinned_platforms: cache.pinned_platforms.iter().map(ToString::to_string).collect(),
                revalidate_wait: duration(cache.revalidate_wait),
                negative_ttl: duration(cache.negative_ttl),
                keep_deleted_tags: cache.keep_deleted_tags,
                memory_cache_size: size(cache.memory_cache_size),
                verify_on_read: match cache.verify_on_read {
                    VerifyOnRead::AfterUncleanStop => "after-unclean-stop",
                    VerifyOnRead::Always => "always",
                    VerifyOnRead::Never => "never",
                },
                scrub_interval: duration(cache.scrub_interval),
            },
            fills: Fills {
                max_concurrent: fills.max_concurrent,
                max_concurrent_per_upstream: fills.max_concurrent_per_upstream,
                queue_timeout: duration(fills.queue_timeout),
            },
            limits: Limits { questions: limits.questions, questions_per_upstream: limits.questions_per_upstream },
            default_upstream,
            upstreams: upstreams.iter().map(|(name, upstream)| (name.as_str(), Upstream::from(upstream))).collect(),
            log: Log {
                format: match log.format {
                    LogFormat::Auto => "auto",
                    LogFormat::Text => "text",
                    LogFormat::Json => "json",
                },
                level: &log.level,
            },
        }
    }
}

impl<'a> From<&'a UpstreamConfig> for Upstream<'a> {
    fn from(upstream: &'a UpstreamConfig) -> Upstream<'a> {
        Upstream {
            url: upstream.urls.iter().map(ToString::to_string).collect(),
            aliases: &upstream.aliases,
            credentials: (!upstream.credentials.is_empty()).then(|| upstream.credentials.iter().map(Credential::from).collect()),
            visibility: match upstream.visibility {
                Visibility::Public => "public",
                Visibility::Private => "private",
            },
            tag_ttl: duration(upstream.tag_ttl),
            stale_if_error: duration(upstream.stale_if_error),
            token_hosts: &upstream.token_hosts,
            allow_private_addresses: upstream.allow_private_addresses.iter().map(ToString::to_string).collect(),
            ca_file: upstream.ca_file.as_deref(),
            client_cert_file: upstream.client_cert_file.as_deref(),
            proxy: upstream.proxy.as_ref().map_or_else(|| "none".to_owned(), proxy),
            insecure_skip_verify: upstream.insecure_skip_verify,
        }
    }
}

impl<'a> From<&'a Listener> for Listen<'a> {
    fn from(listener: &'a Listener) -> Listen<'a> {
        let address = listener.address.to_string();
        match &listener.default_upstream {
            None => Listen::Address(address),
            Some(default_upstream) => Listen::Entry { address, default_upstream },
        }
    }
}

impl<T> FromIterator<T> for OneOrMore<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> OneOrMore<T> {
        let mut items: Vec<_> = items.into_iter().collect();
        match items.pop() {
            Some(only) if items.is_empty() => OneOrMore::One(only),
            last => OneOrMore::More(items.into_iter().chain(last).collect()),
        }
    }
}

impl<'a> From<&'a CredentialConfig> for Credential<'a> {
    fn from(credential: &'a CredentialConfig) -> Credential<'a> {
        let kind = match &credential.kind {
            CredentialKind::Password(credentials) => BTreeMap::from([
                ("username", Word::Text(&credentials.username)),
                secret("password", "password_file", &credentials.password),
            ]),
            CredentialKind::IdentityToken(token) => BTreeMap::from([secret("identity_token", "identity_token_file", token)]),
            CredentialKind::RegistryToken(token) => BTreeMap::from([secret("registry_token", "registry_token_file", token)]),
            CredentialKind::DockerConfig(path) => BTreeMap::from([("docker_config", Word::Path(path))]),
            CredentialKind::DockerConfigSearch => BTreeMap::from([("docker_config", Word::Text("auto"))]),
            CredentialKind::DockerHelper(name) => BTreeMap::from([("docker_helper", Word::Text(name))]),
            CredentialKind::KubeletProvider(command) => BTreeMap::from([("kubelet_provider", Word::Words(command))]),
        };
        Credential { name: &credential.name, repositories: &credential.repositories, kind }
    }
}

fn secret<'a>(inline: &'static str, file: &'static str, secret: &'a Secret) -> (&'static str, Word<'a>) {
    match secret {
        Secret::Inline(_) => (inline, Word::Text("REDACTED")),
        Secret::File(path) => (file, Word::Path(path)),
    }
}

fn proxy(proxy: &ProxyUrl) -> String {
    let url = proxy.url.to_string();
    match proxy.userinfo.as_ref().and_then(|userinfo| userinfo.expose_secret().split_once(':')) {
        Some((username, _)) => url.replacen("://", &format!("://{}:REDACTED@", username.replace('@', "%40")), 1),
        None => url,
    }
}
