//! Distribution's configuration as larder's: what has a meaning here, and for everything else why it was dropped. Pure.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use crate::config::{BaseUrl, KEYS, settings};
use crate::oci::registries::{self, Access};
use crate::units;

/// What Distribution's own variables begin with: `REGISTRY_PROXY_REMOTEURL` is `proxy.remoteurl`.
const PREFIX: &str = "REGISTRY_";
const EVICT_UNUSED_AFTER: &str = "cache.evict_unused_after";
/// Where Distribution's `filesystem` driver keeps its blobs unless told.
const ROOT_DIRECTORY: &str = "/var/lib/registry";
const DRAIN_TIMEOUT: &str = "server.drain_timeout";

/// A larder.yaml, and what to know about it.
#[derive(Debug)]
pub struct Translation {
    pub yaml: String,
    pub notes: Vec<String>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untranslatable {
    #[error("not YAML: {0}")]
    Syntax(String),
    #[error(
        "no proxy.remoteurl: this registry is not a mirror but one to push to, which larder is not; where the registry is \
         configured by variables, set REGISTRY_PROXY_REMOTEURL for this command, too"
    )]
    NoProxy,
    #[error("proxy.remoteurl {0}")]
    Url(String),
    #[error("what it says makes no configuration of larder's: {0}")]
    Refused(String),
}

/// Keys that larder has no use for, by what they begin with, and why. The first that fits is meant.
const DROPPED: [(&str, &str); 24] = [
    ("version", ""),
    ("log.accesslog", "every request is a line of larder's log"),
    ("log.", "larder's log lines have fields of their own"),
    ("storage.filesystem", "blobs being read and written at a time are bounded by larder itself"),
    ("storage.cache", "larder keeps what is used often in memory by itself: cache.memory_cache_size"),
    ("storage.delete", "a mirror takes no deletions; the least recently used leaves at cache.max_size"),
    ("storage.maintenance", "there are no uploads to purge"),
    ("storage.redirect", "larder sends the bytes itself"),
    ("storage.tag", "larder bounds its work by itself"),
    ("storage.", "larder keeps its cache in local files, and takes over only a filesystem's"),
    ("http.tls", "larder serves plain HTTP; put a TLS proxy in front of it"),
    ("http.secret", "there are no uploads to sign"),
    ("http.host", "larder's links are relative to what the client asked"),
    ("http.relativeurls", "larder's links are relative to what the client asked"),
    ("http.prefix", "larder serves at /v2 and at /<registry>/v2; let a proxy in front remove a prefix"),
    ("http.headers", "larder sets its own headers"),
    ("http.http2", "clients of registries speak HTTP/1.1"),
    ("http.h2c", "clients of registries speak HTTP/1.1"),
    ("http.debug.prometheus", "/metrics is always there, at admin.listen"),
    ("auth", "larder asks no client for a password; so it listens on loopback until you write server.listen"),
    ("redis", "larder needs no other process"),
    ("notifications", "larder posts no events; its log has a line for each request"),
    ("health", "/livez and /readyz are always there, at admin.listen"),
    ("middleware", "there is none"),
];

/// Translates a configuration. Variables of Distribution's in `environment` count, as they do there.
///
/// # Errors
/// When it is not YAML, or not a mirror's.
pub fn translate(text: &str, environment: impl IntoIterator<Item = (String, String)>) -> Result<Translation, Untranslatable> {
    let mut notes = Vec::new();
    let mut written = BTreeMap::new();
    for setting in settings(text).map_err(Untranslatable::Syntax)? {
        written.insert(setting.key, setting.value.unwrap_or_default());
    }
    let variables: BTreeMap<_, _> = environment.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    for (name, value) in variables {
        let key = name[PREFIX.len()..].to_lowercase().replace('_', ".");
        notes.push(format!("{key} is taken from the environment ({name})"));
        written.insert(key, value);
    }
    let mut source = Source { written, notes };
    let yaml = source.translate()?;
    source.name_the_rest();
    Ok(Translation { yaml, notes: source.notes })
}

/// What is left to translate, and what there was to say.
struct Source {
    written: BTreeMap<String, String>,
    notes: Vec<String>,
}

impl Source {
    /// A value, which is then dealt with; an empty one counts as not written.
    fn take(&mut self, key: &str) -> Option<String> {
        self.written.remove(key).filter(|value| !value.is_empty())
    }

    fn has(&self, prefix: &str) -> bool {
        self.written.keys().any(|key| key == prefix || key.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')))
    }

    fn dropped(&mut self, key: &str, why: &str) {
        self.notes.push(format!("dropped: {key}: {why}"));
    }

    fn translate(&mut self) -> Result<String, Untranslatable> {
        let url = self.take("proxy.remoteurl").ok_or(Untranslatable::NoProxy)?;
        // What Distribution ignores at the end.
        let url: BaseUrl = url.trim_end_matches('/').trim_end_matches("/v2").parse().map_err(Untranslatable::Url)?;
        let upstream = upstream_name(&url);
        let credentials = self.credentials(&upstream);
        let may_be_private =
            !credentials.is_empty() && !registries::find(&upstream).is_some_and(|registry| registry.access == Access::Public);
        let mut yaml = String::from("# Translated from a Distribution registry's configuration. Every key: config.example.yaml.\n");
        yaml += &self.server(may_be_private);
        yaml += &self.cache(&upstream);
        yaml += &format!("default_upstream: {}\nupstreams:\n  {}:\n", quoted(&upstream), quoted(&upstream));
        yaml += &format!("    url: {}\n", quoted(&url.to_string()));
        yaml += &credentials;
        yaml += &self.log();
        Ok(yaml)
    }

    fn server(&mut self, may_be_private: bool) -> String {
        let mut yaml = String::from("server:\n");
        let address = self.take("http.addr").and_then(|text| self.address("http.addr", &text));
        if let Some(net) = self.take("http.net").filter(|net| net != "tcp") {
            self.dropped("http.net", &format!("larder listens on TCP, not {net}"));
        }
        let loopback = |address: &SocketAddr| SocketAddr::from(([127, 0, 0, 1], address.port()));
        // Distribution would take any port.
        let address = address.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 5000)));
        let closed = self.has("auth") || may_be_private;
        let shown = if closed && !address.ip().is_loopback() { loopback(&address) } else { address };
        if shown != address {
            let why = if may_be_private {
                "what the credentials read may be private"
            } else {
                "the old registry asked its clients for a password"
            };
            self.notes.push(format!(
                "server.listen is {shown}, not {address}: {why}, and larder asks nobody for one. If whoever reaches larder may read all of it, \
                 write {address}, and server.allow_anonymous_private: true"
            ));
            yaml += &format!("  # The old registry listened on {address}.\n");
        }
        yaml += &format!("  listen: {}\n", quoted(&shown.to_string()));
        if let Some(text) = self.take("http.draintimeout") {
            match duration(DRAIN_TIMEOUT, &text) {
                Some(duration) => yaml += &format!("  drain_timeout: {}\n", units::exact_duration(duration)),
                None => self.dropped("http.draintimeout", "larder takes at most 1h"),
            }
        }
        if let Some(address) = self.take("http.debug.addr").and_then(|text| self.address("http.debug.addr", &text)) {
            if address.port() == shown.port() {
                self.dropped("http.debug.addr", "has the port of http.addr");
            } else {
                yaml += &format!("admin:\n  listen: {}\n", quoted(&address.to_string()));
            }
        }
        yaml
    }

    /// `:5000`, `localhost:5000`, `10.0.0.1:5000`.
    fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let full = match text.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => text.replace("localhost:", "127.0.0.1:"),
        };
        let address = full.parse().ok();
        if address.is_none() {
            self.dropped(key, &format!("{text} is not an address and a port; larder listens on its usual one"));
        }
        address
    }

    fn cache(&mut self, upstream: &str) -> String {
        let mut yaml = String::new();
        let in_files = self.has("storage.filesystem");
        self.written.remove("storage.filesystem");
        let directory = self.take("storage.filesystem.rootdirectory").or_else(|| in_files.then(|| ROOT_DIRECTORY.to_owned()));
        match directory {
            Some(directory) => {
                self.notes.push(format!(
                    "what the old registry has stored, larder can take over: larder import registry2 {directory} --upstream {upstream}"
                ));
                yaml += &format!("# Then: larder import registry2 {} --upstream {upstream}\n", directory.replace(['\n', '\r'], " "));
            }
            None if self.has("storage") => {
                self.notes.push("what the old registry has stored cannot be taken over: it is not in local files".into())
            }
            None => {}
        }
        let ttl = self.take("proxy.ttl");
        match ttl.as_deref().map(|text| duration(EVICT_UNUSED_AFTER, text)) {
            None => yaml += "# cache.max_size is 20GiB or 10 % of the disk unless written: say what the mirror may have.\n",
            Some(Some(ttl)) => {
                yaml += "cache:\n  # The old registry forgot what it had for so long; larder, what nobody used for so long.\n";
                yaml += &format!("  evict_unused_after: {}\n", units::exact_duration(ttl));
            }
            Some(_) => self.dropped("proxy.ttl", "larder takes no such duration for cache.evict_unused_after"),
        }
        yaml
    }

    /// The credentials' part of the upstream. The password is not repeated: one file with it is enough.
    fn credentials(&mut self, upstream: &str) -> String {
        let (username, password) = (self.take("proxy.username"), self.take("proxy.password"));
        let exec = self.take("proxy.exec.command");
        if self.take("proxy.exec.lifetime").is_some() {
            self.dropped("proxy.exec.lifetime", "a helper is asked again when what it said expires");
        }
        if let Some(name) = exec.as_deref().and_then(|command| command.rsplit('/').next()?.strip_prefix("docker-credential-")) {
            self.notes.push(format!("docker-credential-{name} must be in larder's PATH"));
            return format!("    credentials:\n      docker_helper: {}\n", quoted(name));
        }
        if exec.is_some() {
            self.dropped("proxy.exec.command", "larder runs credential helpers by their name, docker-credential-<name>");
        }
        let Some(username) = username else {
            if password.is_some() {
                self.dropped("proxy.password", "there is no proxy.username");
            }
            return String::new();
        };
        if username.contains(':') {
            self.dropped("proxy.username", "holds a colon, which HTTP's Basic authentication cannot send");
            return String::new();
        }
        let file = format!("/etc/larder/{}-password", upstream.replace(':', "-"));
        self.notes.push(format!("write proxy.password into {file}, readable by larder alone; it is not repeated here"));
        format!(
            "    credentials:\n      username: {}\n      # Write proxy.password into this file.\n      password_file: {}\n",
            quoted(&username),
            quoted(&file)
        )
    }

    fn log(&mut self) -> String {
        let mut yaml = String::new();
        let level = self.take("loglevel");
        match self.take("log.level").or(level).as_deref() {
            None => {}
            Some(level @ ("error" | "warn" | "info" | "debug" | "trace")) => yaml += &format!("  level: {level}\n"),
            Some("warning") => yaml += "  level: warn\n",
            Some("fatal" | "panic") => yaml += "  level: error\n",
            Some(other) => self.dropped("log.level", &format!("{other} is none of error, warn, info and debug")),
        }
        match self.take("log.formatter").as_deref() {
            Some("text") => yaml += "  format: text\n",
            Some("json") => yaml += "  format: json\n",
            Some("logstash") => {
                self.notes.push("log.formatter is json, not logstash".into());
                yaml += "  format: json\n";
            }
            _ => {}
        }
        if yaml.is_empty() { yaml } else { format!("log:\n{yaml}") }
    }

    /// Nothing goes without a word: once for each group of keys.
    fn name_the_rest(&mut self) {
        let mut told: Vec<String> = Vec::new();
        for key in std::mem::take(&mut self.written).into_keys() {
            let fits =
                |prefix: &str| prefix.ends_with('.') && key.starts_with(prefix) || key == prefix || key.starts_with(&format!("{prefix}."));
            let (group, why) = match DROPPED.iter().find(|(prefix, _)| fits(prefix)) {
                Some((_, "")) => continue,
                Some((prefix, why)) if !prefix.ends_with('.') => ((*prefix).to_owned(), *why),
                Some((_, why)) => (key.split('.').take(2).collect::<Vec<_>>().join("."), *why),
                None => (key.split('.').take(2).collect::<Vec<_>>().join("."), "larder has nothing like it"),
            };
            if !told.contains(&group) {
                self.dropped(&group, why);
                told.push(group);
            }
        }
    }
}

/// A duration, if the key takes it.
fn duration(key: &str, text: &str) -> Option<Duration> {
    KEYS.iter().find(|known| known.path == key)?.kind.duration(text).ok()
}

/// The registry as image names have it.
fn upstream_name(url: &BaseUrl) -> String {
    let usual = if url.tls { 443 } else { 80 };
    // What has no dot is a host only with its port.
    let plain = url.port == usual && (url.host.contains('.') || url.host == "localhost");
    if plain { registries::canonical(&url.host).to_owned() } else { format!("{}:{}", url.host, url.port) }
}

/// A YAML scalar, whatever is in it: a JSON string is one.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
