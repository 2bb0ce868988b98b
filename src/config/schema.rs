//! The JSON schema (draft-07, which editors and Helm read) of the file, made from the table of keys. It says what can be said of each
//! key alone; what keys mean together, `check-config` says.

use serde_json::{Map, Value, json};

use super::KEYS;
use super::example::bounds;
use super::key::{Key, Keys, Kind, Shape, join};

/// `1024`, `500MB`, `64 MiB`.
const SIZE: &str = "^[0-9]+ *(([kKmMgGtT][iI]?)?[bB])?$";
const PERCENTAGE: &str = "^([1-9][0-9]?|100) *%$";
/// `30s`, `1h 30m`, `1.5s`, `0`: the units that [`crate::units::parse_duration`] knows.
const DURATION: &str = "^(0|( *[0-9]+(\\.[0-9]+)? *(nanos|nsec|ns|usec|us|µs|millis|msec|ms|seconds?|secs?|s|minutes?|mins?|m|\
    hours?|hrs?|h|days?|d|weeks?|wks?|w|months?|M|years?|yrs?|y) *)+)$";
const ADDRESS: &str = "^([0-9.]+|\\[[0-9a-fA-F:.%]+\\]):\
    ([0-9]{1,4}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$";

/// The schema of a `larder.yaml`.
pub fn schema() -> Value {
    write(Keys(KEYS))
}

pub(super) fn write(keys: Keys<'_>) -> Value {
    let mut schema = section(keys, "");
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("$schema".into(), json!("http://json-schema.org/draft-07/schema#"));
        schema.insert("title".into(), json!("larder.yaml"));
    }
    schema
}

/// A mapping with these keys, or nothing yet.
fn section(keys: Keys<'_>, pattern: &str) -> Value {
    let mut properties = Map::new();
    for name in keys.children(pattern) {
        let inner = join(pattern, name);
        if name == "*" {
            return json!({"type": ["object", "null"], "additionalProperties": section(keys, &inner)});
        }
        properties.insert(name.to_owned(), property(keys, &inner));
    }
    json!({"type": ["object", "null"], "additionalProperties": false, "properties": properties})
}

fn property(keys: Keys<'_>, pattern: &str) -> Value {
    let Some(key) = keys.find(pattern) else { return section(keys, pattern) };
    let mut schema = match key.shape {
        Shape::Section => section(keys, pattern),
        Shape::One => value(key.kind),
        Shape::List | Shape::OneOrMore => one_or_list(&item(keys, key)),
        Shape::Names => json!({"type": ["object", "null"], "additionalProperties": value(key.kind)}),
        Shape::Entries => one_or_list(&section(keys, pattern)),
    };
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("description".into(), json!(format!("{}{}", key.doc, bounds(key.kind))));
        if let Some(text) = key.default {
            schema.insert("default".into(), default(key.kind, text));
        }
    }
    schema
}

fn one_or_list(item: &Value) -> Value {
    json!({"anyOf": [item, {"type": "array", "items": item}]})
}

/// A plain value, or an entry with keys where the table has such.
fn item(keys: Keys<'_>, key: &Key) -> Value {
    let plain = value(key.kind);
    if keys.is_section(key.path) { json!({"anyOf": [plain, section(keys, key.path)]}) } else { plain }
}

fn value(kind: Kind) -> Value {
    match kind {
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Count { min, max } => json!({"type": "integer", "minimum": min, "maximum": max}),
        Kind::Size { min } => json!({"anyOf": [{"type": "integer", "minimum": min}, {"type": "string", "pattern": SIZE}]}),
        Kind::Share => json!({"anyOf": [
            {"type": "integer", "minimum": 0},
            {"type": "string", "pattern": SIZE},
            {"type": "string", "pattern": PERCENTAGE},
        ]}),
        Kind::Duration(_) => json!({"anyOf": [{"const": 0}, {"type": "string", "pattern": DURATION}]}),
        Kind::Choice(words) => json!({"enum": words}),
        Kind::Address => json!({"type": "string", "pattern": ADDRESS}),
        Kind::Path => json!({"type": "string", "pattern": "^/"}),
        Kind::File => json!({"type": "string", "pattern": "^(/|\\$CREDENTIALS_DIRECTORY/)"}),
        Kind::Text | Kind::Secret => json!({"type": "string"}),
    }
}

fn default(kind: Kind, text: &str) -> Value {
    match kind {
        Kind::Boolean => json!(text == "true"),
        Kind::Count { .. } => kind.count(text).map_or_else(|_| json!(text), |number| json!(number)),
        _ => json!(text),
    }
}
