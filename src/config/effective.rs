//! What is in effect, key by key: what is written, else the table's default, else what larder made of it. `check-config --print`
//! shows it as YAML, which can be loaded again; secrets are left out before it is kept.

use std::collections::BTreeMap;

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::file;
use super::key::{Key, Keys, Kind, Shape, item, join};
use super::tree::{Node, Value};

/// Every value as it is in effect, without secrets.
#[derive(Clone, Debug, Default)]
pub struct Effective(Vec<(String, Shown)>);

/// A value as it may be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    Text(String),
    Number(usize),
    Boolean(bool),
    List(Vec<Shown>),
    Map(Vec<(String, Shown)>),
}

impl Effective {
    /// `settled` holds the values that are neither written nor the table's, by their full names.
    pub(super) fn new(tree: &Node, keys: Keys<'_>, settled: &BTreeMap<String, Shown>) -> Effective {
        let collector = Collector { keys, settled };
        Effective(collector.section(Some(tree), &Place { pattern: String::new(), path: String::new() }))
    }

    /// As YAML.
    ///
    /// # Errors
    /// When the text could not be written.
    pub fn to_yaml(&self) -> Result<String, String> {
        file::emit(&Pairs(&self.0))
    }
}

struct Collector<'a> {
    keys: Keys<'a>,
    settled: &'a BTreeMap<String, Shown>,
}

/// Where a value stands: as the table has it, and in full.
struct Place {
    pattern: String,
    path: String,
}

impl Collector<'_> {
    fn section(&self, node: Option<&Node>, at: &Place) -> Vec<(String, Shown)> {
        let mut names: Vec<&str> = self.keys.children(&at.pattern);
        if names == ["*"] {
            names = node.map(sorted_names).unwrap_or_default();
        }
        let inner = |name: &str| Place { pattern: self.keys.below(&at.pattern, name), path: join(&at.path, name) };
        let shown = |name: &str| Some((name.to_owned(), self.value(node.and_then(|node| node.get(name)), &inner(name))?));
        names.into_iter().filter_map(shown).collect()
    }

    /// `None` where nothing is in effect.
    fn value(&self, node: Option<&Node>, at: &Place) -> Option<Shown> {
        if let Some(settled) = self.settled.get(&at.path) {
            return Some(settled.clone());
        }
        let section = || Some(Shown::Map(self.section(node, at)));
        let Some(key) = self.keys.find(&at.pattern) else { return section() };
        match key.shape {
            Shape::Section => section(),
            Shape::One => node.and_then(Node::scalar).or(key.default).map(|text| key.kind.shown(text)),
            Shape::List => Some(Shown::List(self.items(key, node, at))),
            Shape::OneOrMore => Some(one_or_more(self.items(key, node, at))),
            Shape::Names => Some(Shown::Map(node.map(|node| self.names(key, node, at)).unwrap_or_default())),
            Shape::Entries => Some(self.items(key, node, at)).filter(|items| !items.is_empty()).map(one_or_more),
        }
    }

    fn items(&self, key: &Key, node: Option<&Node>, at: &Place) -> Vec<Shown> {
        let item = |node: &Node, path: String| match node.scalar() {
            Some(text) => Some(key.kind.shown(text)),
            None => self.entry(node, &Place { pattern: at.pattern.clone(), path }),
        };
        match node {
            None => key.default.map(|text| key.kind.shown(text)).into_iter().collect(),
            Some(Node { value: Value::List(items), .. }) => {
                items.iter().enumerate().filter_map(|(place, node)| item(node, self::item(&at.path, place))).collect()
            }
            Some(node) => item(node, at.path.clone()).into_iter().collect(),
        }
    }

    /// Only with what is in effect in it: an empty list would be one more way to sign in.
    fn entry(&self, node: &Node, at: &Place) -> Option<Shown> {
        let mut pairs = self.section(Some(node), at);
        pairs.retain(|(_, shown)| !matches!(shown, Shown::List(items) if items.is_empty()));
        (!pairs.is_empty()).then_some(Shown::Map(pairs))
    }

    fn names(&self, key: &Key, node: &Node, at: &Place) -> Vec<(String, Shown)> {
        let settled = |name: &str| self.settled.get(&join(&at.path, name)).cloned();
        let shown = |name: &str| settled(name).or_else(|| Some(key.kind.shown(node.get(name)?.scalar()?)));
        sorted_names(node).into_iter().filter_map(|name| Some((name.to_owned(), shown(name)?))).collect()
    }
}

/// What the operator named, in the alphabet's order.
fn sorted_names(node: &Node) -> Vec<&str> {
    let mut names: Vec<_> = node.entries().iter().map(|entry| entry.key.as_str()).collect();
    names.sort_unstable();
    names
}

impl Kind {
    fn shown(self, text: &str) -> Shown {
        match self {
            Kind::Boolean => self.boolean(text).map_or_else(|_| Shown::from(text.to_owned()), Shown::Boolean),
            Kind::Count { .. } => self.count(text).map_or_else(|_| Shown::from(text.to_owned()), Shown::Number),
            _ => Shown::Text(self.canonical(text)),
        }
    }
}

/// A list of one is written without its dash.
fn one_or_more(mut items: Vec<Shown>) -> Shown {
    match items.pop() {
        Some(only) if items.is_empty() => only,
        last => Shown::List(items.into_iter().chain(last).collect()),
    }
}

impl From<String> for Shown {
    fn from(text: String) -> Shown {
        Shown::Text(text)
    }
}

impl From<usize> for Shown {
    fn from(number: usize) -> Shown {
        Shown::Number(number)
    }
}

impl<T: ToString> FromIterator<T> for Shown {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Shown {
        Shown::List(items.into_iter().map(|item| Shown::Text(item.to_string())).collect())
    }
}

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Shown::Text(text) => text.serialize(serializer),
            Shown::Number(number) => number.serialize(serializer),
            Shown::Boolean(value) => value.serialize(serializer),
            Shown::List(items) => items.serialize(serializer),
            Shown::Map(pairs) => Pairs(pairs).serialize(serializer),
        }
    }
}

/// A mapping, in this order.
struct Pairs<'a>(&'a [(String, Shown)]);

impl Serialize for Pairs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}
