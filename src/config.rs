//! The configuration as meant: typed, valid, no strings left to parse.
//!
//! `keys` is the table of keys: kind, default, bounds and words of each, once. `file` reads YAML into a `tree`, `environment`
//! writes over it, `check` compares it with the table, `validate` and `upstreams` say what it means, `effective` shows that,
//! `example` and `schema` are the table for people and for editors. Every mistake is reported, with its place and its fix.

mod check;
mod credentials;
mod effective;
mod environment;
mod example;
mod file;
mod files;
mod foreign;
mod key;
mod keys;
mod load;
mod machine;
mod mistake;
mod patterns;
mod pins;
mod proxy;
mod schema;
mod section;
mod tree;
mod upstreams;
mod validate;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::oci::{Platform, registries};

pub use credentials::{CredentialConfig, CredentialKind, Credentials, Secret};
pub use effective::Effective;
pub use example::{example, recipes};
pub use foreign::{Setting, settings};
pub use key::{Key, Kind, Longest, Reload, Shape};
pub use keys::KEYS;
pub use load::{DEFAULT_FILE, find_file};
pub use mistake::{Mistake, Mistakes, Place, Position, Warning};
pub use patterns::Patterns;
pub use pins::PinnedImages;
pub use proxy::{NoProxy, ProxyUrl};
pub use schema::schema;

/// Everything `serve` needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub cache: CacheConfig,
    pub fills: FillsConfig,
    pub limits: LimitsConfig,
    /// The key in `upstreams` for requests that name none.
    pub default_upstream: String,
    /// By the registry host as image names have it.
    pub upstreams: BTreeMap<String, UpstreamConfig>,
    pub log: LogConfig,
    /// All of it for people, as it was when it was loaded.
    pub effective: Effective,
}

impl Config {
    /// Every value as it was in effect when the configuration was loaded, without secrets; it can be loaded again.
    ///
    /// # Errors
    /// When the text could not be written.
    pub fn to_yaml(&self) -> Result<String, String> {
        self.effective.to_yaml()
    }

    /// The upstream that a name or an alias means.
    pub fn upstream(&self, name: &str) -> Option<&UpstreamConfig> {
        let aliased = || self.upstreams.values().find(|upstream| upstream.aliases.iter().any(|alias| alias == name));
        let known = || self.upstreams.values().find(|upstream| registries::further_names(&upstream.name).any(|further| further == name));
        self.upstreams.get(name).or_else(aliased).or_else(known)
    }
}

#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: Vec<Listener>,
    /// `Host` header (lower case, without port) → upstream.
    pub hosts: BTreeMap<String, String>,
    /// The operator's word that whoever reaches larder may read private upstreams.
    pub allow_anonymous_private: bool,
    pub max_connections: usize,
    pub drain_timeout: Duration,
}

/// An address for clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// The upstream of requests that name none and come in here, else the global one.
    pub default_upstream: Option<String>,
}

impl From<SocketAddr> for Listener {
    fn from(address: SocketAddr) -> Listener {
        Listener { address, default_upstream: None }
    }
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
    /// Bytes of the disk that stay free, whoever else writes to it.
    pub min_free: u64,
    /// Bytes; a larger blob passes through unstored.
    pub max_blob_size: u64,
    /// Time that larder runs, not wall time; zero is never.
    pub evict_unused_after: Duration,
    pub pinned_images: Vec<PinnedImages>,
    /// Those of the pinned images that are fetched; none: those that were pulled, else the machine's own.
    pub pinned_platforms: Vec<Platform>,
    pub revalidate_wait: Duration,
    pub negative_ttl: Duration,
    /// Serve a cached tag although upstream says that it is deleted.
    pub keep_deleted_tags: bool,
    /// Bytes.
    pub memory_cache_size: u64,
    pub verify_on_read: VerifyOnRead,
    /// Everything in the cache is hashed once in so long; zero: never.
    pub scrub_interval: Duration,
}

/// When a stored blob is hashed again before it is served from disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyOnRead {
    /// Once, if the stop before was not clean.
    #[default]
    AfterUncleanStop,
    Always,
    Never,
}

impl VerifyOnRead {
    const WORDS: [(&str, VerifyOnRead); 3] =
        [("after-unclean-stop", VerifyOnRead::AfterUncleanStop), ("always", VerifyOnRead::Always), ("never", VerifyOnRead::Never)];
}

#[derive(Clone, Debug)]
pub struct FillsConfig {
    pub max_concurrent: usize,
    pub max_concurrent_per_upstream: usize,
    pub queue_timeout: Duration,
}

/// Requests to upstreams that are no downloads of blobs: for manifests, tags, lists and tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Requests in flight to all upstreams together, at least 1.
    pub questions: usize,
    /// Of these, to one upstream: at least 1, and never more than `questions`.
    pub questions_per_upstream: usize,
}

/// One registry as larder may use it.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// The key it stands under; a metric label and a directory name.
    pub name: String,
    /// At least one; tried in this order when one is down or limits the rate.
    pub urls: Vec<BaseUrl>,
    /// Further first path components (and `ns` values) that mean this upstream.
    pub aliases: Vec<String>,
    /// None: anonymous.
    pub credentials: Vec<CredentialConfig>,
    pub visibility: Visibility,
    /// Its own, else the cache's, else the default of the contract.
    pub tag_ttl: Duration,
    pub stale_if_error: Duration,
    /// Tags that never move once they are cached: upstream is not asked about them again.
    pub immutable_tags: Patterns,
    /// `host` or `host:port` beyond the known ones that may receive the credentials.
    pub token_hosts: Vec<String>,
    pub allow_private_addresses: Vec<IpNet>,
    pub ca_file: Option<PathBuf>,
    /// PEM: the certificate chain and its key, shown to the hosts of `urls` alone.
    pub client_cert_file: Option<PathBuf>,
    /// The one that is written, else the environment's. Not for hosts that `no_proxy` covers.
    pub proxy: Option<ProxyUrl>,
    /// Asked at each connection: redirects and token servers have other hosts than `urls`.
    pub no_proxy: NoProxy,
    /// Any certificate will do at the hosts of `urls`, and only there.
    pub insecure_skip_verify: bool,
}

impl UpstreamConfig {
    /// A public registry at these URLs, tried in this order, with every other key left out of the file.
    pub fn new(name: impl Into<String>, urls: Vec<BaseUrl>) -> UpstreamConfig {
        UpstreamConfig {
            name: name.into(),
            urls,
            aliases: Vec::new(),
            credentials: Vec::new(),
            visibility: Visibility::Public,
            tag_ttl: Duration::ZERO,
            stale_if_error: keys::default_duration("cache.stale_if_error"),
            immutable_tags: Patterns::default(),
            token_hosts: Vec::new(),
            allow_private_addresses: Vec::new(),
            ca_file: None,
            client_cert_file: None,
            proxy: None,
            no_proxy: NoProxy::default(),
            insecure_skip_verify: false,
        }
    }
}

/// Who may read what the credentials can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    Public,
    Private,
}

impl Visibility {
    const WORDS: [(&str, Visibility); 2] = [("public", Visibility::Public), ("private", Visibility::Private)];

    fn word(self) -> &'static str {
        match self {
            Visibility::Public => "public",
            Visibility::Private => "private",
        }
    }
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

impl BaseUrl {
    /// Whether it names this machine, as far as one can know without asking DNS.
    pub fn is_loopback(&self) -> bool {
        let literal = self.host.trim_start_matches('[').trim_end_matches(']');
        self.host == "localhost" || literal.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback())
    }
}

impl FromStr for BaseUrl {
    type Err = String;

    /// The fault does not repeat the text, which may hold a password.
    fn from_str(text: &str) -> Result<BaseUrl, String> {
        value::base_url(text)
    }
}

impl fmt::Display for BaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual_port) = if self.tls { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port != usual_port {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)
    }
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

impl LogFormat {
    const WORDS: [(&str, LogFormat); 3] = [("auto", LogFormat::Auto), ("text", LogFormat::Text), ("json", LogFormat::Json)];
}
