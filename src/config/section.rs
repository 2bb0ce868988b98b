//! Reads typed values out of a tree, and collects what is wrong instead of stopping at it.

use super::keys;
use super::mistake::Finding;
use super::tree::{Node, Origin, Value};
use super::value::Fault;

/// What was found on the way.
#[derive(Default)]
pub(super) struct Findings {
    pub(super) mistakes: Vec<Finding>,
    pub(super) warnings: Vec<Finding>,
}

impl Findings {
    pub(super) fn mistake(&mut self, origin: &Origin, key: &str, message: impl Into<String>) {
        self.mistakes.push(Finding::at(origin, key, message));
    }

    pub(super) fn warning(&mut self, origin: &Origin, key: &str, message: impl Into<String>) {
        self.warnings.push(Finding::at(origin, key, message));
    }
}

/// A mapping, or the lack of one, at a path.
pub(super) struct Section<'a> {
    pub(super) path: String,
    node: Option<&'a Node>,
}

impl<'a> Section<'a> {
    pub(super) fn root(tree: &'a Node) -> Section<'a> {
        Section { path: String::new(), node: Some(tree) }
    }

    pub(super) fn inner(&self, name: &str) -> Section<'a> {
        Section { path: self.key(name), node: self.get(name) }
    }

    /// A key's mappings: the one that stands there, or those of a list. Anything else is told by `keys`.
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
        let section = move |(place, item)| (Section { path: keys::item(&self.key(name), place), node: Some(item) }, item);
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
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where a key was written, or else the section, or else nowhere.
    pub(super) fn origin(&self, name: &str) -> Origin {
        self.get(name).map_or_else(|| self.here(), |node| node.origin.clone())
    }

    /// Where the section itself was written.
    pub(super) fn here(&self) -> Origin {
        self.node.map_or(Origin::BuiltIn, |node| node.origin.clone())
    }

    /// The value of a key, if it is written and right.
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
