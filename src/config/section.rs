//! Reads typed values out of a tree, and collects what is wrong instead of stopping at it. What kind a value is, and what it is
//! when nobody wrote it, is the table's word.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::effective::Shown;
use super::key::{self, Keys, Kind};
use super::mistake::Finding;
use super::tree::{Node, Origin, Value};
use super::value::{Fault, Share};

/// What was found on the way.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) mistakes: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
    /// By the full name of a key: what is in effect, where that is neither what is written nor the table's default.
    pub(super) settled: BTreeMap<String, Shown>,
}

impl Findings {
    pub(super) fn mistake(&mut self, origin: &Origin, key: &str, message: impl Into<String>) {
        self.mistakes.push(Finding::at(origin, key, message));
    }

    pub(super) fn warning(&mut self, origin: &Origin, key: &str, message: impl Into<String>) {
        self.warnings.push(Finding::at(origin, key, message));
    }

    /// A key means something else than its text says, as `--print` has to show.
    pub(super) fn settle(&mut self, key: String, shown: impl Into<Shown>) {
        self.settled.insert(key, shown.into());
    }
}

/// A mapping, or the lack of one, at a path.
pub(super) struct Section<'a> {
    pub(super) path: String,
    /// The same as the table has it.
    pattern: String,
    keys: Keys<'a>,
    node: Option<&'a Node>,
}

impl<'a> Section<'a> {
    pub(super) fn root(tree: &'a Node, keys: Keys<'a>) -> Section<'a> {
        Section { path: String::new(), pattern: String::new(), keys, node: Some(tree) }
    }

    pub(super) fn inner(&self, name: &str) -> Section<'a> {
        Section { path: self.key(name), pattern: self.keys.below(&self.pattern, name), keys: self.keys, node: self.get(name) }
    }

    /// A key's mappings: the one that stands there, or those of a list. Anything else is reported by `unknown`.
    pub(super) fn entries(&self, name: &str) -> Vec<Section<'a>> {
        let Some(node) = self.get(name) else { return Vec::new() };
        match &node.value {
            Value::Map(_) => vec![self.inner(name)],
            Value::List(items) => self.numbered(name, items).filter(|(_, item)| item.may_hold_keys()).map(|(section, _)| section).collect(),
            Value::Null | Value::Text(_) | Value::Plain(_) => Vec::new(),
        }
    }

    /// The items of a list, each with itself as a section; what is no list is a list of one.
    pub(super) fn items(&self, name: &str) -> Vec<(Section<'a>, &'a Node)> {
        match self.get(name) {
            None => Vec::new(),
            Some(Node { value: Value::List(items), .. }) => self.numbered(name, items).collect(),
            Some(node) => vec![(self.inner(name), node)],
        }
    }

    fn numbered(&self, name: &str, items: &'a [Node]) -> impl Iterator<Item = (Section<'a>, &'a Node)> {
        let inner = self.inner(name);
        let section = move |(place, item)| {
            let path = key::item(&inner.path, place);
            (Section { path, pattern: inner.pattern.clone(), keys: inner.keys, node: Some(item) }, item)
        };
        items.iter().enumerate().map(section)
    }

    /// Whether a key has one mapping.
    pub(super) fn has_mapping(&self, name: &str) -> bool {
        self.get(name).is_some_and(|node| matches!(node.value, Value::Map(_)))
    }

    /// Whether something is written in here under a key that means nothing here.
    pub(super) fn has_unknown(&self, is_known: impl Fn(&str) -> bool) -> bool {
        self.node.is_some_and(|node| node.entries().iter().any(|entry| !is_known(&entry.key)))
    }

    /// Whether nothing is written in here.
    pub(super) fn is_empty(&self) -> bool {
        self.node.is_none_or(|node| node.entries().iter().all(|entry| matches!(entry.node.value, Value::Null)))
    }

    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        self.node?.get(name)
    }

    /// The full name of a key in here.
    pub(super) fn key(&self, name: &str) -> String {
        key::join(&self.path, name)
    }

    /// Where a key was written, or else the section, or else nowhere.
    pub(super) fn origin(&self, name: &str) -> Origin {
        self.get(name).map_or_else(|| self.here(), |node| node.origin.clone())
    }

    /// Where the section itself was written.
    pub(super) fn here(&self) -> Origin {
        self.node.map_or(Origin::BuiltIn, |node| node.origin.clone())
    }

    pub(super) fn boolean(&self, name: &str) -> bool {
        self.value(name, Kind::boolean).unwrap_or_default()
    }

    pub(super) fn count(&self, name: &str) -> usize {
        self.value(name, Kind::count).unwrap_or_default()
    }

    /// Bytes; `None` if nothing is written, and the table has no default.
    pub(super) fn size(&self, name: &str) -> Option<u64> {
        self.value(name, Kind::size)
    }

    pub(super) fn share(&self, name: &str) -> Option<Share> {
        self.value(name, Kind::share)
    }

    /// `None` if nothing is written, and the table has no default.
    pub(super) fn duration(&self, name: &str) -> Option<Duration> {
        self.value(name, Kind::duration)
    }

    pub(super) fn address(&self, name: &str) -> Option<SocketAddr> {
        self.value(name, Kind::address)
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name, Kind::path)
    }

    /// `meanings` are those that the kind's words are made from.
    pub(super) fn choice<T: Copy>(&self, name: &str, meanings: &[(&str, T)]) -> Option<T> {
        self.value(name, |kind, text| kind.choice(text, meanings))
    }

    /// What is written, or else the table's default. What is wrong with it, `check` reports; here it is as if it were not
    /// written, so that nothing else seems wrong because of it.
    fn value<T>(&self, name: &str, parse: impl Fn(Kind, &str) -> Result<T, Fault>) -> Option<T> {
        let key = self.keys.find(&key::join(&self.pattern, name))?;
        let written = self.get(name).and_then(Node::scalar).and_then(|text| parse(key.kind, text).ok());
        written.or_else(|| key.default.and_then(|text| parse(key.kind, text).ok()))
    }

    /// The table's default, as one would write it.
    pub(super) fn default(&self, name: &str) -> &'static str {
        self.keys.find(&key::join(&self.pattern, name)).and_then(|key| key.default).unwrap_or_default()
    }

    /// The value of a key that its reader judges, if it is written and right.
    pub(super) fn read<T>(&self, name: &str, findings: &mut Findings, parse: impl FnOnce(&str) -> Result<T, Fault>) -> Option<T> {
        let node = self.get(name)?;
        let parsed = match &node.value {
            Value::Text(text) | Value::Plain(text) => parse(text),
            Value::Null | Value::List(_) | Value::Map(_) => Err(format!("takes one value; it is {}", node.describe())),
        };
        parsed.map_err(|fault| findings.mistake(&node.origin, &self.key(name), fault)).ok()
    }

    /// Text that must arrive as it was written: YAML would make 1 of `1.0`, and 16 of `0x10`.
    pub(super) fn text(&self, name: &str, findings: &mut Findings) -> Option<&'a str> {
        let node = self.get(name)?;
        match &node.value {
            Value::Text(text) => return Some(text),
            Value::Plain(_) => findings.mistake(&node.origin, &self.key(name), "reads as a number or a boolean; put it in quotes"),
            Value::Null | Value::List(_) | Value::Map(_) => {
                findings.mistake(&node.origin, &self.key(name), format!("takes text; it is {}", node.describe()));
            }
        }
        None
    }

    /// The right ones of a list's items, each with its place; a scalar is a list of one.
    pub(super) fn list<T>(&self, name: &str, findings: &mut Findings, parse: impl Fn(&str) -> Result<T, Fault>) -> Vec<(Origin, T)> {
        self.list_of(name, findings, |item| match &item.value {
            Value::Text(text) | Value::Plain(text) => parse(text),
            Value::Null | Value::List(_) | Value::Map(_) => Err(format!("takes plain values; this one is {}", item.describe())),
        })
    }

    /// A list of what must arrive as it was written, as [`Section::text`] has it.
    pub(super) fn texts<T>(&self, name: &str, findings: &mut Findings, parse: impl Fn(&str) -> Result<T, Fault>) -> Vec<(Origin, T)> {
        self.list_of(name, findings, |item| match &item.value {
            Value::Text(text) => parse(text),
            Value::Plain(_) => Err("reads as a number or a boolean; put it in quotes".into()),
            Value::Null | Value::List(_) | Value::Map(_) => Err(format!("takes texts; this one is {}", item.describe())),
        })
    }

    fn list_of<T>(&self, name: &str, findings: &mut Findings, parse: impl Fn(&Node) -> Result<T, Fault>) -> Vec<(Origin, T)> {
        let Some(node) = self.get(name) else { return Vec::new() };
        let items = if let Value::List(items) = &node.value { items.as_slice() } else { std::slice::from_ref(node) };
        let mut parsed = Vec::new();
        for item in items {
            match parse(item) {
                Ok(value) => parsed.push((item.origin.clone(), value)),
                Err(fault) => findings.mistake(&item.origin, &self.key(name), fault),
            }
        }
        parsed
    }
}
