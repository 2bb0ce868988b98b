//! The configuration as meant: typed, valid, no strings left to parse.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

/// Everything `serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub cache: CacheConfig,
    pub fills: FillsConfig,
    /// The key in `upstreams` for requests that name none.
    pub default_upstream: String,
    /// By the registry host as image names have it.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    pub log: LogConfig,
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: Vec<SocketAddr>,
    /// `Host` header (lower case, without port) → upstream.
    pub hosts: BTreeMap<String, String>,
    pub max_connections: usize,
    pub drain_timeout: Duration,
    /// Whoever may connect may read what private upstreams' credentials read.
    pub allow_anonymous_private: bool,
}

#[derive(Clone, Debug)]
pub struct AdminConfig {
    pub listen: SocketAddr,
}

#[derive(Clone, Debug)]
pub struct CacheConfig {
    pub path: PathBuf,
    /// Bytes in allocated blocks.
    pub max_size: u64,
    /// Bytes; a larger blob passes through unstored.
    pub max_blob_size: u64,
    pub revalidate_wait: Duration,
    pub negative_ttl: Duration,
    /// Bytes.
    pub memory_cache_size: u64,
}

#[derive(Clone, Debug)]
pub struct FillsConfig {
    pub max_concurrent: usize,
    pub max_concurrent_per_upstream: usize,
    pub queue_timeout: Duration,
}

/// One registry as larder may use it.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// The key it stands under; a metric label and a directory name.
    pub name: String,
    pub url: BaseUrl,
    /// Further first path components (and `ns` values) that mean this upstream.
    pub aliases: Vec<String>,
    pub credentials: Option<Credentials>,
    pub visibility: Visibility,
    /// Its own, else the cache's, else the default of the contract.
    pub tag_ttl: Duration,
    pub stale_if_error: Duration,
    /// `host` or `host:port` beyond the known ones that may receive the credentials.
    pub token_hosts: Vec<String>,
    pub allow_private_addresses: Vec<IpNet>,
    pub ca_file: Option<PathBuf>,
}

/// Who may read what the credentials can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    Public,
    Private,
}

/// Scheme, host, port, and a path before `/v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseUrl {
    pub tls: bool,
    /// Lower case; an IPv6 literal in brackets.
    pub host: String,
    pub port: u16,
    /// Empty, or begins with `/` and does not end with it.
    pub path: String,
}

/// A username and where its password is.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub username: String,
    pub password: Password,
}

#[derive(Clone, Debug)]
pub enum Password {
    Inline(SecretString),
    /// Read at each use; one trailing newline is not part of it.
    File(PathBuf),
}

#[derive(Clone, Debug)]
pub struct LogConfig {
    pub format: LogFormat,
    /// A `tracing` filter: `info`, or `larder=debug,hyper=warn`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Auto,
    Text,
    Json,
}
