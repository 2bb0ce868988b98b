//! The keys of this version, and the check that a file holds no others.

use super::mistake::Finding;
use super::tree::{Entry, Node, Value};

/// What may stand under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Scalar,
    /// Several scalars; one alone is written in the environment with commas.
    List,
    /// Names of the operator's choice; no environment variable can spell it.
    Names,
    /// A mapping, or a list of several. Variables set the keys of the one mapping.
    Entries,
    /// In an entry of a list, where no variable reaches.
    Entry,
}

impl Kind {
    /// Whether an environment variable can set it.
    pub fn has_variable(self) -> bool {
        matches!(self, Kind::Scalar | Kind::List)
    }
}

/// Every key that means something. `*` stands for the name of an upstream. `config.example.yaml` explains each.
pub const KEYS: [(&str, Kind); 56] = [
    ("server.listen", Kind::List),
    ("server.listen.address", Kind::Entry),
    ("server.listen.default_upstream", Kind::Entry),
    ("server.hosts", Kind::Names),
    ("server.allow_anonymous_private", Kind::Scalar),
    ("server.max_connections", Kind::Scalar),
    ("server.drain_timeout", Kind::Scalar),
    ("admin.listen", Kind::Scalar),
    ("cache.path", Kind::Scalar),
    ("cache.max_size", Kind::Scalar),
    ("cache.min_free", Kind::Scalar),
    ("cache.max_blob_size", Kind::Scalar),
    ("cache.evict_unused_after", Kind::Scalar),
    ("cache.pinned_images", Kind::List),
    ("cache.pinned_platforms", Kind::List),
    ("cache.tag_ttl", Kind::Scalar),
    ("cache.stale_if_error", Kind::Scalar),
    ("cache.revalidate_wait", Kind::Scalar),
    ("cache.negative_ttl", Kind::Scalar),
    ("cache.keep_deleted_tags", Kind::Scalar),
    ("cache.memory_cache_size", Kind::Scalar),
    ("cache.verify_on_read", Kind::Scalar),
    ("cache.scrub_interval", Kind::Scalar),
    ("fills.max_concurrent", Kind::Scalar),
    ("fills.max_concurrent_per_upstream", Kind::Scalar),
    ("fills.queue_timeout", Kind::Scalar),
    ("limits.questions", Kind::Scalar),
    ("limits.questions_per_upstream", Kind::Scalar),
    ("default_upstream", Kind::Scalar),
    ("upstreams.*.url", Kind::List),
    ("upstreams.*.aliases", Kind::List),
    ("upstreams.*.credentials", Kind::Entries),
    ("upstreams.*.credentials.name", Kind::Scalar),
    ("upstreams.*.credentials.repositories", Kind::List),
    ("upstreams.*.credentials.username", Kind::Scalar),
    ("upstreams.*.credentials.password", Kind::Scalar),
    ("upstreams.*.credentials.password_file", Kind::Scalar),
    ("upstreams.*.credentials.identity_token", Kind::Scalar),
    ("upstreams.*.credentials.identity_token_file", Kind::Scalar),
    ("upstreams.*.credentials.registry_token", Kind::Scalar),
    ("upstreams.*.credentials.registry_token_file", Kind::Scalar),
    ("upstreams.*.credentials.docker_config", Kind::Scalar),
    ("upstreams.*.credentials.docker_helper", Kind::Scalar),
    ("upstreams.*.credentials.kubelet_provider", Kind::List),
    ("upstreams.*.visibility", Kind::Scalar),
    ("upstreams.*.tag_ttl", Kind::Scalar),
    ("upstreams.*.stale_if_error", Kind::Scalar),
    ("upstreams.*.immutable_tags", Kind::List),
    ("upstreams.*.token_hosts", Kind::List),
    ("upstreams.*.allow_private_addresses", Kind::List),
    ("upstreams.*.ca_file", Kind::Scalar),
    ("upstreams.*.client_cert_file", Kind::Scalar),
    ("upstreams.*.proxy", Kind::Scalar),
    ("upstreams.*.insecure_skip_verify", Kind::Scalar),
    ("log.format", Kind::Scalar),
    ("log.level", Kind::Scalar),
];

/// Finds keys that mean nothing, keys written twice, and sections that are none.
pub(super) fn check(tree: &Node) -> Vec<Finding> {
    let mut findings = Vec::new();
    check_section(tree, &Section { pattern: String::new(), path: String::new() }, &mut findings);
    findings
}

/// A mapping with known keys: as in [`KEYS`], and as written.
struct Section {
    pattern: String,
    path: String,
}

fn check_section(node: &Node, section: &Section, findings: &mut Vec<Finding>) {
    match &node.value {
        Value::Null => {}
        Value::Map(entries) => {
            find_duplicates(entries, &section.path, findings);
            for entry in entries {
                check_entry(entry, section, findings);
            }
        }
        _ if section.path.is_empty() => {
            findings.push(Finding::at(&node.origin, "", "must be a mapping of keys, such as `cache: {max_size: 20GiB}`"))
        }
        _ => findings.push(Finding::at(
            &node.origin,
            &section.path,
            format!("must hold {}; it is {}", siblings(&section.pattern), node.describe()),
        )),
    }
}

fn check_entry(entry: &Entry, section: &Section, findings: &mut Vec<Finding>) {
    let name = if section.pattern == "upstreams" { "*" } else { &entry.key };
    let inner = Section { pattern: join(&section.pattern, name), path: join(&section.path, &entry.key) };
    let kind = KEYS.iter().find(|(key, _)| *key == inner.pattern).map(|(_, kind)| *kind);
    match kind {
        Some(Kind::Names) => find_duplicates(entry.node.entries(), &inner.path, findings),
        Some(Kind::Entries) => check_entries(&entry.node, &inner, findings),
        // An address, or an entry with keys.
        Some(Kind::List) if is_section(&inner.pattern) && !is_scalar(&entry.node) => check_entries(&entry.node, &inner, findings),
        Some(Kind::Scalar | Kind::List | Kind::Entry) => {}
        None if is_section(&inner.pattern) => check_section(&entry.node, &inner, findings),
        None => findings.push(Finding::at(&entry.key_origin, &inner.path, unknown(section, &entry.key))),
    }
}

/// One mapping, or a list of such.
fn check_entries(node: &Node, section: &Section, findings: &mut Vec<Finding>) {
    let Value::List(items) = &node.value else { return check_section(node, section, findings) };
    let takes_scalars = KEYS.contains(&(section.pattern.as_str(), Kind::List));
    for (place, node) in items.iter().enumerate().filter(|(_, node)| !(takes_scalars && is_scalar(node))) {
        check_section(node, &Section { pattern: section.pattern.clone(), path: item(&section.path, place) }, findings);
    }
}

fn is_scalar(node: &Node) -> bool {
    matches!(node.value, Value::Text(_) | Value::Plain(_))
}

/// The name of a list's item, counting from 0.
pub(super) fn item(path: &str, place: usize) -> String {
    format!("{path}[{place}]")
}

fn find_duplicates(entries: &[Entry], path: &str, findings: &mut Vec<Finding>) {
    for (index, entry) in entries.iter().enumerate() {
        if entries[..index].iter().any(|earlier| earlier.key == entry.key) {
            findings.push(Finding::at(&entry.key_origin, &join(path, &entry.key), "is written twice; only one of them can count"));
        }
    }
}

fn is_section(pattern: &str) -> bool {
    KEYS.iter().any(|(key, _)| key.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.')))
}

/// The message for a key that means nothing: with the key that is meant, as far as one can guess.
fn unknown(section: &Section, name: &str) -> String {
    if let Some(near) = nearest(name, children(&section.pattern)) {
        return format!("unknown key; did you mean {}?", join(&section.path, near));
    }
    let elsewhere = KEYS.iter().filter(|(key, _)| key.rsplit('.').next() == Some(name)).min_by_key(|(key, _)| key.split('.').count());
    match elsewhere {
        Some((key, _)) => format!("unknown key here; did you mean {}?", key.replace('*', "<host>")),
        None => format!("unknown key; known here: {}", siblings(&section.pattern)),
    }
}

/// The name closest to what was written, if it is close enough for a slip of the hand.
pub(super) fn nearest<'a>(written: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&written.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

fn siblings(pattern: &str) -> String {
    children(pattern).join(", ")
}

/// The names that may stand directly in a section.
fn children(pattern: &str) -> Vec<&'static str> {
    let prefix = join(pattern, "");
    let mut names: Vec<_> =
        KEYS.iter().filter_map(|(key, _)| key.strip_prefix(prefix.as_str())).filter_map(|rest| rest.split('.').next()).collect();
    names.dedup();
    if names == ["*"] { vec!["<host>"] } else { names }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}
