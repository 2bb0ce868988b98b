//! The environment over the file: `LARDER_CACHE__MAX_SIZE` stands for `cache.max_size`,
//! `LARDER_UPSTREAMS__GHCR_IO__TAG_TTL` for `upstreams.ghcr.io.tag_ttl`.

use std::collections::BTreeMap;

use super::check::nearest;
use super::key::{Key, Keys};
use super::mistake::Finding;
use super::tree::{Node, Origin, Value};

/// The environment as larder needs it.
pub(super) type Variables = BTreeMap<String, String>;

/// Where the configuration is, for which there is no key.
pub(super) const FILE_VARIABLE: &str = "LARDER_CONFIG";
const PREFIX: &str = "LARDER_";

/// What the environment had to say, besides values.
#[derive(Default)]
pub(super) struct Overlay {
    pub(super) mistakes: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

/// Writes the variables over the tree. The upstreams must be in the tree already: no variable can make one, since
/// `MY_REGISTRY` may be `my.registry` or `my-registry`. An empty variable counts as not set.
pub(super) fn overlay(tree: &mut Node, variables: &Variables, keys: Keys<'_>) -> Overlay {
    let mut result = Overlay::default();
    let upstreams = tree.get("upstreams").map(|node| node.entries().iter().map(|entry| entry.key.clone()).collect()).unwrap_or_default();
    let settable = settable(&upstreams, keys);
    let set = variables.iter().filter(|(name, value)| name.starts_with(PREFIX) && *name != FILE_VARIABLE && !value.is_empty());
    for (name, value) in set {
        let origin = Origin::Variable(name.clone());
        match settable.get(name).map(Vec::as_slice) {
            None => result.warnings.push(Finding::at(&origin, name, unknown(name, &settable))),
            Some([target]) => {
                let path: Vec<_> = target.path.iter().map(String::as_str).collect();
                if !tree.set(&path, node(value, target.key, origin.clone())) {
                    let message = "has no place, since what the file has there is no single mapping; write it in the file";
                    result.mistakes.push(Finding::at(&origin, &path.join("."), message));
                }
            }
            Some(targets) => {
                let keys: Vec<_> = targets.iter().map(|target| target.path.join(".")).collect();
                result.mistakes.push(Finding::at(&origin, name, format!("may mean {}; write it in the file instead", keys.join(" or "))));
            }
        }
    }
    result
}

/// A key that a variable can set.
struct Target<'a> {
    path: Vec<String>,
    key: &'a Key,
}

fn settable<'a>(upstreams: &Vec<String>, keys: Keys<'a>) -> BTreeMap<String, Vec<Target<'a>>> {
    let mut targets = BTreeMap::<String, Vec<Target<'a>>>::new();
    for key in keys.0.iter().filter(|key| keys.has_variable(key)) {
        if !key.path.contains('*') {
            let path: Vec<_> = key.path.split('.').map(str::to_owned).collect();
            targets.entry(spell(&path)).or_default().push(Target { path, key });
            continue;
        }
        for upstream in upstreams {
            let path: Vec<_> = key.path.split('.').map(|part| if part == "*" { upstream.clone() } else { part.to_owned() }).collect();
            targets.entry(spell(&path)).or_default().push(Target { path, key });
        }
    }
    targets
}

/// The variable of a path: capitals, `__` between the parts, `_` for what no variable may hold.
fn spell(path: &[String]) -> String {
    let parts: Vec<String> = path
        .iter()
        .map(|part| part.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect())
        .collect();
    format!("{PREFIX}{}", parts.join("__"))
}

fn node(value: &str, key: &Key, origin: Origin) -> Node {
    let text = |text: &str| Node { origin: origin.clone(), value: Value::Text(text.trim().to_owned()) };
    if key.shape.is_list() {
        return Node { origin: origin.clone(), value: Value::List(value.split(',').map(text).collect()) };
    }
    // As it is: a password may begin with a space.
    Node { origin, value: Value::Text(value.to_owned()) }
}

fn unknown(name: &str, settable: &BTreeMap<String, Vec<Target<'_>>>) -> String {
    match nearest(name, settable.keys().map(String::as_str)) {
        Some(near) => format!("no key has this variable; did you mean {near}?"),
        None => "no key has this variable".to_owned(),
    }
}
