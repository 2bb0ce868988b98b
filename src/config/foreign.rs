//! Another program's YAML as a flat list of keys and values: what `import-config` translates from.

use super::file;
use super::tree::{Node, Value};

/// A value and the keys that lead to it, joined by dots; an item of a list has its number for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub key: String,
    /// `None` where nothing is written, or an empty list or mapping.
    pub value: Option<String>,
}

/// All values of a text, in its order.
///
/// # Errors
/// When the text is not YAML: where and why.
pub fn settings(text: &str) -> Result<Vec<Setting>, String> {
    let tree = file::parse(text).map_err(|error| match error.position {
        Some(position) => format!("{}:{}: {}", position.line, position.column, error.message),
        None => error.message,
    })?;
    let mut found = Vec::new();
    flatten(String::new(), &tree, &mut found);
    Ok(found)
}

fn flatten(key: String, node: &Node, found: &mut Vec<Setting>) {
    let inner = |part: &str| if key.is_empty() { part.to_owned() } else { format!("{key}.{part}") };
    match &node.value {
        Value::Map(entries) if !entries.is_empty() => entries.iter().for_each(|entry| flatten(inner(&entry.key), &entry.node, found)),
        Value::List(items) if !items.is_empty() => {
            items.iter().enumerate().for_each(|(number, item)| flatten(inner(&number.to_string()), item, found));
        }
        Value::Text(text) | Value::Plain(text) => found.push(Setting { key, value: Some(text.clone()) }),
        Value::Null | Value::Map(_) | Value::List(_) if key.is_empty() => {}
        Value::Null | Value::Map(_) | Value::List(_) => found.push(Setting { key, value: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_under_all_their_keys() {
        let found = settings("http: {addr: ':5000', headers: {X: [nosniff]}}\nredis:\nversion: 0.1\n").unwrap();
        let pairs: Vec<_> = found.iter().map(|setting| (setting.key.as_str(), setting.value.as_deref())).collect();
        let expected = [("http.addr", Some(":5000")), ("http.headers.X.0", Some("nosniff")), ("redis", None), ("version", Some("0.1"))];
        assert_eq!(pairs, expected);
        assert_eq!(settings(""), Ok(Vec::new()));
        assert!(settings("http: [").is_err());
    }
}
