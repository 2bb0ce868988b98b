//! The effective configuration as YAML: what `check-config --print` shows. Secrets are left out, and it can be loaded again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;

use super::{Config, CredentialConfig, CredentialKind, LogFormat, Secret as ConfiguredSecret, UpstreamConfig, Visibility, file, proxy};

impl Config {
    /// Every value as it is in effect. `cache.tag_ttl` and `cache.stale_if_error` show in the upstreams that take them.
    ///
    /// # Errors
    /// When a path is not Unicode, which YAML must be.
    pub fn to_yaml(&self) -> Result<String, String> {
        file::emit(&Document::from(self))
    }
}

#[derive(Serialize)]
struct Document<'a> {
    server: Server<'a>,
    admin: Admin,
    cache: Cache<'a>,
    fills: Fills,
    default_upstream: &'a str,
    upstreams: BTreeMap<&'a str, Upstream<'a>>,
    log: Log<'a>,
}

#[derive(Serialize)]
struct Server<'a> {
    listen: Vec<String>,
    hosts: &'a BTreeMap<String, String>,
    allow_anonymous_private: bool,
    max_connections: usize,
    drain_timeout: String,
}

#[derive(Serialize)]
struct Admin {
    listen: String,
}

#[derive(Serialize)]
struct Cache<'a> {
    path: &'a Path,
    max_size: String,
    max_blob_size: String,
    revalidate_wait: String,
    negative_ttl: String,
    memory_cache_size: String,
}

#[derive(Serialize)]
struct Fills {
    max_concurrent: usize,
    max_concurrent_per_upstream: usize,
    queue_timeout: String,
}

#[derive(Serialize)]
struct Upstream<'a> {
    url: String,
    aliases: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<Secret<'a>>,
    visibility: &'static str,
    tag_ttl: String,
    stale_if_error: String,
    token_hosts: &'a [String],
    allow_private_addresses: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ca_file: Option<&'a Path>,
    proxy: String,
}

#[derive(Serialize)]
struct Secret<'a> {
    username: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password_file: Option<&'a Path>,
}

#[derive(Serialize)]
struct Log<'a> {
    format: &'static str,
    level: &'a str,
}

impl<'a> From<&'a Config> for Document<'a> {
    fn from(config: &'a Config) -> Document<'a> {
        let Config { server, admin, cache, fills, default_upstream, upstreams, log } = config;
        Document {
            server: Server {
                listen: server.listen.iter().map(|listener| listener.address.to_string()).collect(),
                hosts: &server.hosts,
                allow_anonymous_private: server.allow_anonymous_private,
                max_connections: server.max_connections,
                drain_timeout: duration(server.drain_timeout),
            },
            admin: Admin { listen: admin.listen.to_string() },
            cache: Cache {
                path: &cache.path,
                max_size: size(cache.max_size),
                max_blob_size: size(cache.max_blob_size),
                revalidate_wait: duration(cache.revalidate_wait),
                negative_ttl: duration(cache.negative_ttl),
                memory_cache_size: size(cache.memory_cache_size),
            },
            fills: Fills {
                max_concurrent: fills.max_concurrent,
                max_concurrent_per_upstream: fills.max_concurrent_per_upstream,
                queue_timeout: duration(fills.queue_timeout),
            },
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
            url: upstream.urls.first().map(ToString::to_string).unwrap_or_default(),
            aliases: &upstream.aliases,
            credentials: upstream.credentials.first().and_then(secret),
            visibility: match upstream.visibility {
                Visibility::Public => "public",
                Visibility::Private => "private",
            },
            tag_ttl: duration(upstream.tag_ttl),
            stale_if_error: duration(upstream.stale_if_error),
            token_hosts: &upstream.token_hosts,
            allow_private_addresses: upstream.allow_private_addresses.iter().map(ToString::to_string).collect(),
            ca_file: upstream.ca_file.as_deref(),
            proxy: proxy::shown(upstream.proxy.as_ref()),
        }
    }
}

fn secret(credential: &CredentialConfig) -> Option<Secret<'_>> {
    let CredentialKind::Password(credentials) = &credential.kind else { return None };
    let (password, password_file) = match &credentials.password {
        ConfiguredSecret::Inline(_) => (Some("REDACTED"), None),
        ConfiguredSecret::File(path) => (None, Some(path.as_path())),
    };
    Some(Secret { username: &credentials.username, password, password_file })
}

/// In the largest unit that leaves nothing over.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    let whole = units.into_iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

fn duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}
