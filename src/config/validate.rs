//! From what is written to what is meant: defaults filled in, values judged, names resolved. Pure: what the machine has
//! to say comes in as [`Machine`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::effective::{Effective, Shown};
use super::key::Keys;
use super::machine::Machine;
use super::pins;
use super::section::{Findings, Section};
use super::tree::{Node, Value};
use super::upstreams::{Names, read_upstreams, refuse_open_private};
use super::value::{self, Fault, Share};
use super::{AdminConfig, CacheConfig, Config, FillsConfig, LimitsConfig, Listener, LogConfig, LogFormat, ServerConfig, VerifyOnRead};
use crate::oci::Platform;
use crate::units;

/// In the place of an address that is a mistake already.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);
/// Larger caches are asked for, not assumed.
pub(super) const DEFAULT_SIZE_MAX: u64 = 20 << 30;
/// Not even a small disk makes a cache smaller than that.
const DEFAULT_SIZE_MIN: u64 = 1 << 20;
/// The configuration that a tree means; only to be used when no mistakes were found.
pub(super) fn validate(tree: &Node, keys: Keys<'_>, machine: &Machine<'_>, findings: &mut Findings) -> Config {
    let root = Section::root(tree, keys);
    let (upstreams, names) = read_upstreams(&root, machine, findings);
    let default_upstream = read_default_upstream(&root, &names, findings);
    let server = read_server(&root.inner("server"), &names, findings);
    let admin = read_admin(&root, &server, findings);
    refuse_open_private(&root, &server, &upstreams, findings);
    let cache = read_cache(&root.inner("cache"), machine, &names, findings);
    let fills = read_fills(&root.inner("fills"), findings);
    let limits = read_limits(&root.inner("limits"), findings);
    let log = read_log(&root.inner("log"), findings);
    let effective = Effective::new(tree, keys, &findings.settled);
    Config { server, admin, cache, fills, limits, default_upstream, upstreams, log, effective }
}

fn read_default_upstream(root: &Section<'_>, names: &Names, findings: &mut Findings) -> String {
    let written = root.read("default_upstream", findings, |text| names.resolve(text));
    if let Some(name) = written {
        findings.settle("default_upstream".to_owned(), name.clone());
        return name;
    }
    let default = root.default("default_upstream");
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
    ServerConfig {
        listen: read_listen(section, names, findings),
        hosts: read_hosts(section, names, findings),
        allow_anonymous_private: section.boolean("allow_anonymous_private"),
        max_connections: section.count("max_connections"),
        drain_timeout: section.duration("drain_timeout").unwrap_or_default(),
    }
}

fn read_listen(section: &Section<'_>, names: &Names, findings: &mut Findings) -> Vec<Listener> {
    if section.get("listen").is_none() {
        return value::socket_address(section.default("listen")).map(Listener::from).into_iter().collect();
    }
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
            // Reported as a section without keys.
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
    listeners
}

fn read_listener(entry: &Section<'_>, names: &Names, findings: &mut Findings) -> Option<Listener> {
    if entry.get("address").is_none() {
        findings.mistake(&entry.origin("address"), &entry.key("address"), "is missing; write one such as 127.0.0.1:5000");
    }
    let default_upstream = entry.read("default_upstream", findings, |text| names.resolve(text));
    if let Some(name) = &default_upstream {
        findings.settle(entry.key("default_upstream"), name.clone());
    }
    Some(Listener { address: entry.address("address")?, default_upstream })
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
                    findings.settle(key, upstream.clone());
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
    let listen = section.address("listen").unwrap_or(NOWHERE);
    if listen.port() != 0 && server.listen.iter().any(|other| other.address == listen) {
        let written = if section.get("listen").is_some() { section.origin("listen") } else { root.inner("server").origin("listen") };
        findings.mistake(&written, &section.key("listen"), format!("{listen} is one of server.listen; give admin another port"));
    }
    AdminConfig { listen }
}

fn read_cache(section: &Section<'_>, machine: &Machine<'_>, names: &Names, findings: &mut Findings) -> CacheConfig {
    if section.get("path").is_none() && machine.cache_directory.is_none() {
        let message = "has no default here, since neither CACHE_DIRECTORY, XDG_CACHE_HOME nor HOME is set; write one";
        findings.mistake(&section.origin("path"), &section.key("path"), message);
    }
    let path = section.path("path").or_else(|| machine.cache_directory.clone()).unwrap_or_default();
    findings.settle(section.key("path"), path.to_string_lossy().into_owned());
    let disk_size = (machine.disk_size)(&path);
    let max_size = read_max_size(section, disk_size, findings);
    let pins = section.list("pinned_images", findings, |text| pins::pinned_images(text, |host| names.resolve(host)));
    let pinned_images: Vec<_> = pins.into_iter().map(|(_, pinned)| pinned).collect();
    findings.settle(section.key("pinned_images"), pinned_images.iter().collect::<Shown>());
    let platforms = section.list("pinned_platforms", findings, |text| text.parse::<Platform>().map_err(|error| error.to_string()));
    let pinned_platforms: Vec<_> = platforms.into_iter().map(|(_, platform)| platform).collect();
    findings.settle(section.key("pinned_platforms"), pinned_platforms.iter().collect::<Shown>());
    CacheConfig {
        keep_deleted_tags: section.boolean("keep_deleted_tags"),
        max_size,
        min_free: read_min_free(section, disk_size, findings),
        max_blob_size: read_max_blob_size(section, max_size, findings),
        evict_unused_after: section.duration("evict_unused_after").unwrap_or_default(),
        pinned_images,
        pinned_platforms,
        revalidate_wait: section.duration("revalidate_wait").unwrap_or_default(),
        negative_ttl: section.duration("negative_ttl").unwrap_or_default(),
        memory_cache_size: section.size("memory_cache_size").unwrap_or_default(),
        verify_on_read: section.choice("verify_on_read", &VerifyOnRead::WORDS).unwrap_or_default(),
        scrub_interval: section.duration("scrub_interval").unwrap_or_default(),
        path,
    }
}

fn read_max_size(section: &Section<'_>, disk_size: Option<u64>, findings: &mut Findings) -> u64 {
    let written = section.size("max_size");
    if let (Some(size), Some(disk)) = (written, disk_size)
        && size > disk
    {
        let message = format!("is more than the whole disk, which has {}; the disk will fill up first", units::size(disk));
        findings.warning(&section.origin("max_size"), &section.key("max_size"), message);
    }
    let tenth = disk_size.map_or(DEFAULT_SIZE_MAX, |size| size / 10);
    let size = written.unwrap_or(tenth.clamp(DEFAULT_SIZE_MIN, DEFAULT_SIZE_MAX));
    findings.settle(section.key("max_size"), units::exact_size(size));
    size
}

fn read_min_free(section: &Section<'_>, disk_size: Option<u64>, findings: &mut Findings) -> u64 {
    let size = section.size("min_free").unwrap_or_default();
    if section.get("min_free").is_some() && disk_size.is_some_and(|disk| size >= disk) {
        let disk = units::size(disk_size.unwrap_or_default());
        let message = format!("is all of the disk, which has {disk}; nothing will be stored");
        findings.warning(&section.origin("min_free"), &section.key("min_free"), message);
    }
    size
}

/// Bytes.
fn read_max_blob_size(section: &Section<'_>, max_size: u64, findings: &mut Findings) -> u64 {
    let (key, share) = (section.key("max_blob_size"), section.share("max_blob_size"));
    let size = share.map(|share| within(share, max_size)).transpose().unwrap_or_else(|fault| {
        findings.mistake(&section.origin("max_blob_size"), &key, fault);
        None
    });
    let size = size.unwrap_or_default();
    findings.settle(key, units::exact_size(size));
    size
}

fn within(share: Share, max_size: u64) -> Result<u64, Fault> {
    match share {
        Share::Percent(percent) => Ok(percent_of(max_size, percent)),
        Share::Bytes(bytes) if bytes <= max_size => Ok(bytes),
        Share::Bytes(bytes) => {
            Err(format!("{bytes} bytes is more than cache.max_size, {max_size}; write less, or a percentage such as 50%"))
        }
    }
}

fn percent_of(whole: u64, percent: u64) -> u64 {
    // In two steps, so that no size overflows.
    whole / 100 * percent + whole % 100 * percent / 100
}

fn read_fills(section: &Section<'_>, findings: &mut Findings) -> FillsConfig {
    let max_concurrent = section.count("max_concurrent");
    FillsConfig {
        max_concurrent,
        max_concurrent_per_upstream: read_part(section, "max_concurrent_per_upstream", max_concurrent, findings),
        queue_timeout: section.duration("queue_timeout").unwrap_or_default(),
    }
}

fn read_limits(section: &Section<'_>, findings: &mut Findings) -> LimitsConfig {
    let questions = section.count("questions");
    LimitsConfig { questions, questions_per_upstream: read_part(section, "questions_per_upstream", questions, findings) }
}

/// Of a whole: a smaller whole makes the part smaller, too.
fn read_part(section: &Section<'_>, name: &str, whole: usize, findings: &mut Findings) -> usize {
    let part = section.count(name).min(whole);
    findings.settle(section.key(name), part);
    part
}

fn read_log(section: &Section<'_>, findings: &mut Findings) -> LogConfig {
    LogConfig {
        format: section.choice("format", &LogFormat::WORDS).unwrap_or(LogFormat::Auto),
        level: section.read("level", findings, value::log_level).unwrap_or_else(|| section.default("level").to_owned()),
    }
}
