//! The configuration as written: scalars, lists and mappings, each numbered in the order of the text. The number is how
//! a mistake finds back to its line: see [`locate`](super::file::locate). Knows serde, but not YAML.

use std::cell::Cell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor};

/// A value and where it was written. Has no `Debug`: it may hold a password.
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) value: Value,
}

/// Where something was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The so-manieth key or value of the file.
    File(usize),
    /// An environment variable.
    Variable(String),
    /// Nowhere: larder brought it along.
    BuiltIn,
}

pub(super) enum Value {
    Null,
    Text(String),
    /// A number or a boolean, as text. A quoted one is [`Value::Text`].
    Plain(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_origin: Origin,
    pub(super) node: Node,
}

impl Node {
    /// An empty mapping that nobody wrote.
    pub(super) fn empty() -> Node {
        Node { origin: Origin::BuiltIn, value: Value::Map(Vec::new()) }
    }

    /// The entries of a mapping; none for anything else.
    pub(super) fn entries(&self) -> &[Entry] {
        if let Value::Map(entries) = &self.value { entries } else { &[] }
    }

    /// Whether it is a mapping, or nothing yet.
    pub(super) fn may_hold_keys(&self) -> bool {
        matches!(self.value, Value::Null | Value::Map(_))
    }

    /// The value under a key; something left empty counts as not written.
    pub(super) fn get(&self, key: &str) -> Option<&Node> {
        let entry = self.entries().iter().find(|entry| entry.key == key)?;
        (!matches!(entry.node.value, Value::Null)).then_some(&entry.node)
    }

    /// Puts a value at a path, making the mappings on the way. A path that leads through something else is left alone.
    #[must_use = "says whether it could"]
    pub(super) fn set(&mut self, path: &[&str], node: Node) -> bool {
        let Some((key, rest)) = path.split_first() else {
            *self = node;
            return true;
        };
        if matches!(self.value, Value::Null) {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else { return false };
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == *key) {
            return entry.node.set(rest, node);
        }
        let key_origin = node.origin.clone();
        let mut made = Node { origin: key_origin.clone(), value: Value::Map(Vec::new()) };
        let set = made.set(rest, node);
        entries.push(Entry { key: (*key).to_owned(), key_origin, node: made });
        set
    }

    /// The text of a single value.
    pub(super) fn scalar(&self) -> Option<&str> {
        if let Value::Text(text) | Value::Plain(text) = &self.value { Some(text) } else { None }
    }

    pub(super) fn is_empty_list(&self) -> bool {
        matches!(&self.value, Value::List(items) if items.is_empty())
    }

    /// What stands there, for a message.
    pub(super) fn describe(&self) -> &'static str {
        match self.value {
            Value::Null => "empty",
            Value::Text(_) => "text",
            Value::Plain(_) => "a number or a boolean",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Reads nodes, counting keys and values. Reading the same text again with `stop_at` fails at exactly that one, and
/// the parser's error then tells its line and column, which nothing else in serde does.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    pub(super) count: &'a Cell<usize>,
    pub(super) stop_at: Option<usize>,
}

impl Reader<'_> {
    fn begin<E: Error>(self) -> Result<Origin, E> {
        let number = self.count.replace(self.count.get() + 1);
        if self.stop_at == Some(number) { Err(E::custom("here")) } else { Ok(Origin::File(number)) }
    }

    fn scalar<E: Error>(self, value: Value) -> Result<Node, E> {
        Ok(Node { origin: self.begin()?, value })
    }
}

impl<'de> DeserializeSeed<'de> for Reader<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader<'_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, a list or a mapping, without a tag")
    }

    fn visit_unit<E: Error>(self) -> Result<Node, E> {
        self.scalar(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Node, E> {
        self.scalar(Value::Null)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Node, E> {
        self.scalar(Value::Text(text.to_owned()))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Node, E> {
        self.scalar(Value::Plain(value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Node, E> {
        self.scalar(Value::Plain(value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Node, E> {
        self.scalar(Value::Plain(value.to_string()))
    }

    fn visit_u128<E: Error>(self, value: u128) -> Result<Node, E> {
        self.scalar(Value::Plain(value.to_string()))
    }

    fn visit_i128<E: Error>(self, value: i128) -> Result<Node, E> {
        self.scalar(Value::Plain(value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Node, E> {
        self.scalar(Value::Plain(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let origin = self.begin()?;
        let mut list = Vec::new();
        while let Some(node) = items.next_element_seed(self)? {
            list.push(node);
        }
        Ok(Node { origin, value: Value::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let origin = self.begin()?;
        let mut entries = Vec::new();
        while let Some((key, key_origin)) = items.next_key_seed(Key(self))? {
            entries.push(Entry { key, key_origin, node: items.next_value_seed(self)? });
        }
        Ok(Node { origin, value: Value::Map(entries) })
    }
}

/// A key, as its text stands in the file: `10.0` is a name here, not a number.
struct Key<'a>(Reader<'a>);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = (String, Origin);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = (String, Origin);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok((text.to_owned(), self.0.begin()?))
    }
}
