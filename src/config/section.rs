//! Reads typed values out of a tree, and collects what is wrong instead of stopping at it.

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

    pub(super) fn get(&self, name: &str) -> Option<&'a Node> {
        self.node?.get(name)
    }

    /// The full name of a key in here.
    pub(super) fn key(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }

    /// Where a key was written, or else the section, or else nowhere.
    pub(super) fn origin(&self, name: &str) -> Origin {
        self.get(name).or(self.node).map_or(Origin::BuiltIn, |node| node.origin.clone())
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
        let Some(node) = self.get(name) else { return Vec::new() };
        let items = if let Value::List(items) = &node.value { items.as_slice() } else { std::slice::from_ref(node) };
        let mut parsed = Vec::new();
        for item in items {
            let result = match &item.value {
                Value::Text(text) | Value::Plain(text) => parse(text),
                Value::Null | Value::List(_) | Value::Map(_) => Err(format!("takes plain values; this one is {}", item.describe())),
            };
            match result {
                Ok(value) => parsed.push((item.origin.clone(), value)),
                Err(fault) => findings.mistake(&item.origin, &self.key(name), fault),
            }
        }
        parsed
    }
}
