//! The check of a tree against the table: no keys but the table's, and under each what its shape and its kind take.

use super::key::{Key, Keys, Shape, item, join};
use super::mistake::Finding;
use super::tree::{Entry, Node, Value};

/// Finds keys that mean nothing, keys written twice, sections without keys, and single values that their kind does not take.
pub(super) fn check(tree: &Node, keys: Keys<'_>) -> Vec<Finding> {
    let mut check = Check { keys, findings: Vec::new() };
    check.section(tree, &Section { pattern: String::new(), path: String::new() });
    check.findings
}

struct Check<'a> {
    keys: Keys<'a>,
    findings: Vec<Finding>,
}

/// A mapping with known keys: as in the table, and as written.
struct Section {
    pattern: String,
    path: String,
}

impl Check<'_> {
    fn section(&mut self, node: &Node, section: &Section) {
        let message = match &node.value {
            Value::Null => return,
            Value::Map(entries) => {
                self.duplicates(entries, &section.path);
                return entries.iter().for_each(|entry| self.entry(entry, section));
            }
            _ if section.path.is_empty() => "must be a mapping of keys, such as `cache: {max_size: 20GiB}`".to_owned(),
            _ => format!("must hold {}; it is {}", siblings(self.keys, &section.pattern), node.describe()),
        };
        self.findings.push(Finding::at(&node.origin, &section.path, message));
    }

    fn entry(&mut self, entry: &Entry, section: &Section) {
        let inner = Section { pattern: self.keys.below(&section.pattern, &entry.key), path: join(&section.path, &entry.key) };
        let is_section = self.keys.is_section(&inner.pattern);
        let key = self.keys.find(&inner.pattern);
        match key.map(|key| (key, key.shape)) {
            Some((key, Shape::One)) => self.value(key, &entry.node, &inner.path),
            Some((_, Shape::Names)) => self.duplicates(entry.node.entries(), &inner.path),
            Some((_, Shape::Entries)) => self.entries(&entry.node, &inner, false),
            // A plain value, or an entry with keys.
            Some((_, Shape::List | Shape::OneOrMore)) if is_section && entry.node.scalar().is_none() => {
                self.entries(&entry.node, &inner, true);
            }
            Some((_, Shape::List | Shape::OneOrMore)) => {}
            Some((_, Shape::Section)) => self.section(&entry.node, &inner),
            None if is_section => self.section(&entry.node, &inner),
            None => self.findings.push(Finding::at(&entry.key_origin, &inner.path, unknown(self.keys, section, &entry.key))),
        }
    }

    /// One mapping, or a list of such.
    fn entries(&mut self, node: &Node, section: &Section, or_scalars: bool) {
        let Value::List(items) = &node.value else { return self.section(node, section) };
        for (place, node) in items.iter().enumerate().filter(|(_, node)| !(or_scalars && node.scalar().is_some())) {
            self.section(node, &Section { pattern: section.pattern.clone(), path: item(&section.path, place) });
        }
    }

    fn value(&mut self, key: &Key, node: &Node, path: &str) {
        let fault = match node.scalar() {
            Some(text) => key.kind.fault(text),
            None if key.kind.is_left_to_reader() || matches!(node.value, Value::Null) => None,
            None => Some(format!("takes one value; it is {}", node.describe())),
        };
        self.findings.extend(fault.map(|fault| Finding::at(&node.origin, path, fault)));
    }

    fn duplicates(&mut self, entries: &[Entry], path: &str) {
        for (index, entry) in entries.iter().enumerate() {
            if entries[..index].iter().any(|earlier| earlier.key == entry.key) {
                let message = "is written twice; only one of them can count";
                self.findings.push(Finding::at(&entry.key_origin, &join(path, &entry.key), message));
            }
        }
    }
}

/// The message for a key that means nothing: with the key that is meant, as far as one can guess.
fn unknown(keys: Keys<'_>, section: &Section, name: &str) -> String {
    if let Some(near) = nearest(name, keys.children(&section.pattern)) {
        return format!("unknown key; did you mean {}?", join(&section.path, near));
    }
    match keys.0.iter().filter(|key| key.name() == name).min_by_key(|key| key.path.split('.').count()) {
        Some(key) => format!("unknown key here; did you mean {}?", key.path.replace('*', "<host>")),
        None => format!("unknown key; known here: {}", siblings(keys, &section.pattern)),
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

fn siblings(keys: Keys<'_>, pattern: &str) -> String {
    keys.children(pattern).join(", ").replace('*', "<host>")
}
