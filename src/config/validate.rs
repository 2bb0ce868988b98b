//! From what is written to what is meant: defaults filled in, values judged, names resolved. Pure: what the machine has
//! to say comes in as [`Machine`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::pins;
use super::proxy::Proxies;
use super::section::{Findings, Section};
use super::tree::{Node, Value};
use super::upstreams::{Names, read_upstreams, refuse_open_private};
use super::value::{self, Fault, Share};
use super::{AdminConfig, CacheConfig, Config, FillsConfig, LimitsConfig, Listener, LogConfig, LogFormat, ServerConfig, VerifyOnRead};
use crate::oci::Platform;

/// Larger caches are asked for, not assumed.
pub(super) const DEFAULT_SIZE_MAX: u64 = 20 << 30;
/// Requests in flight to all upstreams, and to one: what registries take without limiting the rate.
const QUESTIONS: usize = 256;
const QUESTIONS_PER_UPSTREAM: usize = 32;
/// Less than this holds no image.
const SIZE_MIN: u64 = 1 << 20;
/// A client has its headers after 25 s or never; no wait within may be longer.
const WAIT_MAX: Duration = Duration::from_secs(25);
const HEADERS: &str = "a client gets its headers within 25s or gives up";

/// What the configuration leaves to the machine.
pub(super) struct Machine<'a> {
    /// The default of `cache.path`; `None` where the environment names no home.
    pub(super) cache_directory: Option<PathBuf>,
    /// The bytes of the file system that holds, or will hold, a directory.
    pub(super) disk_size: &'a dyn Fn(&Path) -> Option<u64>,
    /// Where systemd puts what `LoadCredential=` names.
    pub(super) credentials_directory: Option<PathBuf>,
    pub(super) proxies: Proxies,
}

impl Machine<'_> {
    /// A file's absolute path, or one in systemd's directory for credentials.
    pub(super) fn file(&self, text: &str) -> Result<PathBuf, Fault> {
        let Some(rest) = text.strip_prefix("$CREDENTIALS_DIRECTORY/") else { return value::absolute_path(text) };
        let directory = self.credentials_directory.as_ref().ok_or_else(|| {
            format!("`{text}` cannot be told: CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with LoadCredential=, elsewhere write an absolute path")
        })?;
        Ok(directory.join(rest.trim_start_matches('/')))
    }
}

/// The configuration that a tree means; only to be used when no mistakes were found.
pub(super) fn validate(tree: &Node, machine: &Machine<'_>, findings: &mut Findings) -> Config {
    let root = Section::root(tree);
    let (upstreams, names) = read_upstreams(&root, machine, findings);
    let default_upstream = read_default_upstream(&root, &names, findings);
    let server = read_server(&root.inner("server"), &names, findings);
    let admin = read_admin(&root, &server, findings);
    refuse_open_private(&root, &server, &upstreams, findings);
    let cache = read_cache(&root.inner("cache"), machine, &names, findings);
    let fills = read_fills(&root.inner("fills"), findings);
    let limits = read_limits(&root.inner("limits"), findings);
    let log = read_log(&root.inner("log"), findings);
    Config { server, admin, cache, fills, limits, default_upstream, upstreams, log }
}

fn read_default_upstream(root: &Section<'_>, names: &Names, findings: &mut Findings) -> String {
    let written = root.read("default_upstream", findings, |text| names.resolve(text));
    if let Some(name) = written {
        return name;
    }
    let default = Config::DEFAULT_UPSTREAM;
    if root.get("default_upstream").is_none() && !names.is_upstream(default) {
        let message = format!(
            "is {default} unless written, and upstreams has no such entry; write default_upstream: {}, or add `{default}: {{}}` to upstreams",
            names.first().unwrap_or("<host>")
        );
        findings.mistake(&root.origin("upstreams"), "default_upstream", message);
    }
    default.to_owned()
}

fn read_server(section: &Section<'_>, names: &Names, findings: &mut Findings) -> ServerConfig {
    let default = ServerConfig::default();
    ServerConfig {
        listen: read_listen(section, names, findings).unwrap_or(default.listen),
        hosts: read_hosts(section, names, findings),
        allow_anonymous_private: section
            .read("allow_anonymous_private", findings, value::boolean)
            .unwrap_or(default.allow_anonymous_private),
        max_connections: section
            .read("max_connections", findings, |text| value::count(text, 1, 1_000_000))
            .unwrap_or(default.max_connections),
        drain_timeout: section
            .read("drain_timeout", findings, |text| {
                value::duration_up_to(text, Duration::from_secs(3600), "a stop that takes longer is none")
            })
            .unwrap_or(default.drain_timeout),
    }
}

fn read_listen(section: &Section<'_>, names: &Names, findings: &mut Findings) -> Option<Vec<Listener>> {
    section.get("listen")?;
    let mut listeners: Vec<Listener> = Vec::new();
    for (entry, item) in section.items("listen") {
        let (origin, key) = (item.origin.clone(), section.key("listen"));
        let listener = match &item.value {
            Value::Text(text) | Value::Plain(text) => {
                value::socket_address(text).map(Listener::from).map_err(|fault| findings.mistake(&origin, &key, fault)).ok()
            }
            Value::Map(_) => read_listener(&entry, names, findings),
            Value::Null => {
                findings.mistake(&origin, &key, "takes addresses; this one is empty");
                None
            }
            // Told as a section that is none.
            Value::List(_) => None,
        };
        let Some(listener) = listener else { continue };
        // Port 0 is a new port each time.
        if listener.address.port() != 0 && listeners.iter().any(|earlier| earlier.address == listener.address) {
            findings.mistake(&origin, &key, format!("{} is written twice", listener.address));
        }
        listeners.push(listener);
    }
    if section.get("listen").is_some_and(Node::is_empty_list) {
        findings.mistake(&section.origin("listen"), &section.key("listen"), "is an empty list; write an address such as 127.0.0.1:5000");
    }
    Some(listeners)
}

fn read_listener(entry: &Section<'_>, names: &Names, findings: &mut Findings) -> Option<Listener> {
    if entry.get("address").is_none() {
        findings.mistake(&entry.origin("address"), &entry.key("address"), "is missing; write one such as 127.0.0.1:5000");
    }
    let address = entry.read("address", findings, value::socket_address);
    let default_upstream = entry.read("default_upstream", findings, |text| names.resolve(text));
    Some(Listener { address: address?, default_upstream })
}

fn read_hosts(section: &Section<'_>, names: &Names, findings: &mut Findings) -> BTreeMap<String, String> {
    let mut hosts = BTreeMap::new();
    let inner = section.inner("hosts");
    let Some(node) = section.get("hosts") else { return hosts };
    if !matches!(node.value, Value::Map(_)) {
        findings.mistake(&node.origin, &inner.path, format!("takes `host: upstream` pairs; it is {}", node.describe()));
    }
    for entry in node.entries() {
        let key = inner.key(&entry.key);
        match value::host_and_port(&entry.key) {
            Ok(host) if !host.contains(':') => {
                if let Some(upstream) = inner.read(&host, findings, |text| names.resolve(text)) {
                    hosts.insert(host, upstream);
                } else if inner.get(&host).is_none() {
                    findings.mistake(&entry.key_origin, &key, "names no upstream");
                }
            }
            Ok(_) => findings.mistake(&entry.key_origin, &key, "leave out the port; larder compares hosts alone"),
            Err(fault) => findings.mistake(&entry.key_origin, &key, fault),
        }
    }
    hosts
}

fn read_admin(root: &Section<'_>, server: &ServerConfig, findings: &mut Findings) -> AdminConfig {
    let section = root.inner("admin");
    let listen = section.read("listen", findings, value::socket_address).unwrap_or(AdminConfig::default().listen);
    if listen.port() != 0 && server.listen.iter().any(|other| other.address == listen) {
        let written = if section.get("listen").is_some() { section.origin("listen") } else { root.inner("server").origin("listen") };
        findings.mistake(&written, &section.key("listen"), format!("{listen} is one of server.listen; give admin another port"));
    }
    AdminConfig { listen }
}

fn read_cache(section: &Section<'_>, machine: &Machine<'_>, names: &Names, findings: &mut Findings) -> CacheConfig {
    let path = section.read("path", findings, value::absolute_path);
    if section.get("path").is_none() && machine.cache_directory.is_none() {
        let message = "has no default here, since neither CACHE_DIRECTORY, XDG_CACHE_HOME nor HOME is set; write one";
        findings.mistake(&section.origin("path"), &section.key("path"), message);
    }
    let path = path.or_else(|| machine.cache_directory.clone()).unwrap_or_default();
    let disk_size = (machine.disk_size)(&path);
    let max_size = read_max_size(section, disk_size, findings);
    let share = section.read("max_blob_size", findings, |text| within(value::share(text)?, max_size));
    let pins = section.list("pinned_images", findings, |text| pins::pinned_images(text, |host| names.resolve(host)));
    let platforms = section.list("pinned_platforms", findings, |text| text.parse::<Platform>().map_err(|error| error.to_string()));
    CacheConfig {
        keep_deleted_tags: section.read("keep_deleted_tags", findings, value::boolean).unwrap_or_default(),
        max_size,
        min_free: read_min_free(section, disk_size, findings),
        max_blob_size: share.unwrap_or(percent_of(max_size, CacheConfig::MAX_BLOB_PERCENT)),
        evict_unused_after: section.read("evict_unused_after", findings, value::duration).unwrap_or(CacheConfig::EVICT_UNUSED_AFTER),
        pinned_images: pins.into_iter().map(|(_, pinned)| pinned).collect(),
        pinned_platforms: platforms.into_iter().map(|(_, platform)| platform).collect(),
        revalidate_wait: section
            .read("revalidate_wait", findings, |text| value::duration_up_to(text, WAIT_MAX, HEADERS))
            .unwrap_or(CacheConfig::REVALIDATE_WAIT),
        negative_ttl: section.read("negative_ttl", findings, value::duration).unwrap_or(CacheConfig::NEGATIVE_TTL),
        memory_cache_size: section.read("memory_cache_size", findings, value::size).unwrap_or(CacheConfig::MEMORY_CACHE_SIZE),
        verify_on_read: section.read("verify_on_read", findings, verify_on_read).unwrap_or_default(),
        scrub_interval: section.read("scrub_interval", findings, value::duration).unwrap_or(CacheConfig::SCRUB_INTERVAL),
        path,
    }
}

fn verify_on_read(text: &str) -> Result<VerifyOnRead, Fault> {
    match text {
        "after-unclean-stop" => Ok(VerifyOnRead::AfterUncleanStop),
        "always" => Ok(VerifyOnRead::Always),
        "never" => Ok(VerifyOnRead::Never),
        _ => Err(format!("`{text}` is none of after-unclean-stop, always and never")),
    }
}

fn read_max_size(section: &Section<'_>, disk_size: Option<u64>, findings: &mut Findings) -> u64 {
    let at_least = |text: &str| {
        let size = value::size(text)?;
        if size < SIZE_MIN { Err(format!("`{text}` holds no image; write at least 1MiB")) } else { Ok(size) }
    };
    let written = section.read("max_size", findings, at_least);
    if let (Some(size), Some(disk)) = (written, disk_size)
        && size > disk
    {
        let message = format!("is more than the whole disk, which has {} GiB; the disk will fill up first", disk >> 30);
        findings.warning(&section.origin("max_size"), &section.key("max_size"), message);
    }
    let tenth = disk_size.map_or(DEFAULT_SIZE_MAX, |size| size / 10);
    written.unwrap_or(tenth.clamp(SIZE_MIN, DEFAULT_SIZE_MAX))
}

fn read_min_free(section: &Section<'_>, disk_size: Option<u64>, findings: &mut Findings) -> u64 {
    let written = section.read("min_free", findings, value::size);
    if let (Some(size), Some(disk)) = (written, disk_size)
        && size >= disk
    {
        let message = format!("is all of the disk, which has {} GiB; nothing will be stored", disk >> 30);
        findings.warning(&section.origin("min_free"), &section.key("min_free"), message);
    }
    written.unwrap_or(CacheConfig::MIN_FREE)
}

fn within(share: Share, max_size: u64) -> Result<u64, Fault> {
    match share {
        Share::Percent(percent) => Ok(percent_of(max_size, percent)),
        Share::Bytes(bytes) if bytes <= max_size => Ok(bytes),
        Share::Bytes(bytes) => Err(format!("{bytes} bytes is more than cache.max_size, {max_size}; write less, or a part such as 50%")),
    }
}

fn percent_of(whole: u64, percent: u64) -> u64 {
    // In two steps, so that no size overflows.
    whole / 100 * percent + whole % 100 * percent / 100
}

fn read_fills(section: &Section<'_>, findings: &mut Findings) -> FillsConfig {
    let default = FillsConfig::default();
    let mut count = |name| section.read(name, findings, |text| value::count(text, 1, 65_536));
    let max_concurrent = count("max_concurrent").unwrap_or(default.max_concurrent);
    // A smaller whole makes the unwritten part smaller too.
    let per_upstream = count("max_concurrent_per_upstream").unwrap_or(default.max_concurrent_per_upstream).min(max_concurrent);
    FillsConfig {
        max_concurrent,
        max_concurrent_per_upstream: per_upstream,
        queue_timeout: section
            .read("queue_timeout", findings, |text| value::duration_up_to(text, WAIT_MAX, HEADERS))
            .unwrap_or(default.queue_timeout),
    }
}

fn read_limits(section: &Section<'_>, findings: &mut Findings) -> LimitsConfig {
    let mut count = |name| section.read(name, findings, |text| value::count(text, 1, 65_536));
    let questions = count("questions").unwrap_or(QUESTIONS);
    // A smaller whole makes the unwritten part smaller too.
    let questions_per_upstream = count("questions_per_upstream").unwrap_or(QUESTIONS_PER_UPSTREAM).min(questions);
    LimitsConfig { questions, questions_per_upstream }
}

fn read_log(section: &Section<'_>, findings: &mut Findings) -> LogConfig {
    let default = LogConfig::default();
    let format = |text: &str| match text {
        "auto" => Ok(LogFormat::Auto),
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("`{text}` is not a format; write auto, text or json")),
    };
    LogConfig {
        format: section.read("format", findings, format).unwrap_or(default.format),
        level: section.read("level", findings, value::log_level).unwrap_or(default.level),
    }
}
