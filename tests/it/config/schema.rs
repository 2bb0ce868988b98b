//! The JSON schema: whole, and true to what larder takes. What it says of a file is judged here by the few words that it uses.

use larder::config::{KEYS, Kind, recipes, schema};
use regex::Regex;
use serde_json::Value;

use super::{EXAMPLE, example_in_full, load, table::CORPUS};

/// The schema's part for a key.
fn schema_of(path: &str) -> Value {
    let mut part = schema();
    for name in path.split('.') {
        // An entry of a list stands beside the plain value.
        let sections =
            |part: &Value| part["anyOf"].as_array().and_then(|forms| forms.iter().find(|form| form["properties"].is_object()).cloned());
        part = match part["anyOf"][0].get("anyOf") {
            Some(_) => part["anyOf"][0].clone(),
            None => part,
        };
        let section = sections(&part).unwrap_or(part);
        part = if name == "*" { section["additionalProperties"].clone() } else { section["properties"][name].clone() };
    }
    part
}

#[test]
fn the_schema_has_every_key_with_its_words_bounds_and_default() {
    for key in KEYS {
        let part = schema_of(key.path);
        assert!(part["description"].as_str().is_some_and(|text| text.starts_with(key.doc)), "{}: {part}", key.path);
        assert_eq!(part["default"].is_null(), key.default.is_none(), "{}: {part}", key.path);
        match key.kind {
            Kind::Count { min, max } => assert_eq!((&part["minimum"], &part["maximum"]), (&min.into(), &max.into())),
            Kind::Choice(words) => assert_eq!(part["enum"], serde_json::json!(words)),
            Kind::Boolean => assert_eq!(part["type"], "boolean"),
            _ => {}
        }
    }
    assert_eq!(schema_of("cache")["additionalProperties"], false);
}

/// Whether a value fits a schema.
fn fits(value: &Value, schema: &Value) -> bool {
    schema.as_object().unwrap().iter().all(|(word, rule)| match word.as_str() {
        "type" => rule.as_array().map_or_else(|| is(value, rule), |names| names.iter().any(|name| is(value, name))),
        "const" => value == rule,
        "enum" => rule.as_array().unwrap().contains(value),
        "minimum" => value.as_u64().is_none_or(|number| Some(number) >= rule.as_u64()),
        "maximum" => value.as_u64().is_none_or(|number| Some(number) <= rule.as_u64()),
        "pattern" => value.as_str().is_none_or(|text| Regex::new(rule.as_str().unwrap()).unwrap().is_match(text)),
        "anyOf" => rule.as_array().unwrap().iter().any(|form| fits(value, form)),
        "items" => value.as_array().is_none_or(|items| items.iter().all(|item| fits(item, rule))),
        "properties" => entries(value).all(|(key, value)| rule.get(key).is_none_or(|rule| fits(value, rule))),
        "additionalProperties" => entries(value)
            .filter(|(key, _)| schema["properties"].get(key).is_none())
            .all(|(_, value)| if let Some(allowed) = rule.as_bool() { allowed } else { fits(value, rule) }),
        "$schema" | "title" | "description" | "default" => true,
        other => panic!("the schema has a word that nothing judges here: {other}"),
    })
}

fn is(value: &Value, name: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "null" => value.is_null(),
        other => panic!("{other}"),
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn file_fits(text: &str) -> bool {
    fits(&serde_yaml::from_str(text).unwrap(), &schema())
}

#[test]
fn the_schema_takes_what_larder_takes() {
    let full = example_in_full();
    let texts = CORPUS.iter().map(|(_, text, _)| *text).chain(recipes().map(|(_, text)| text)).chain([EXAMPLE, &full]);
    for text in texts {
        assert!(file_fits(text), "{text}");
    }
    let units = ["1ns", "1us", "1ms", "1s", "2secs", "1min", "3mins", "1hr", "2hrs", "1day", "2days", "1week", "2wks", "1month", "1year"];
    for text in units.into_iter().chain(["1.5s", "1h 30m", "1h30m", "7d", "0"]) {
        let text = format!("cache: {{stale_if_error: {text}}}");
        assert!(load(&text, &[]).is_ok() && file_fits(&text), "{text}");
    }
    for text in ["10GiB", "10 gib", "500mb", "64 MB", "1073741824", "1073741824b"] {
        let text = format!("cache: {{max_size: {text}}}");
        assert!(load(&text, &[]).is_ok() && file_fits(&text), "{text}");
    }
    for (text, variables) in [("", &[][..]), (EXAMPLE, &[("HTTPS_PROXY", "http://u:p@p.corp:1")])] {
        let printed = load(text, variables).unwrap().0.to_yaml().unwrap();
        assert!(file_fits(&printed), "{printed}");
    }
}

#[test]
fn the_schema_refuses_what_larder_refuses() {
    for text in [
        "cache: {max_sise: 1GiB}",
        "cache: {max_size: 10 gigs}",
        "cache: {max_size: 20G}",
        "cache: {max_size: 200Gi}",
        "cache: {max_size: 1.5GiB}",
        "cache: {tag_ttl: 20GiB}",
        "cache: {tag_ttl: 5 m x}",
        "server: {listen: \"127.0.0.1:99999\"}",
        "cache: {max_blob_size: 101%}",
        "cache: {tag_ttl: 30}",
        "cache: {path: relative}",
        "cache: {verify_on_read: sometimes}",
        "limits: {questions: 0}",
        "fills: 7",
        "server: {listen: localhost}",
        "server: {listen: [{adress: \"127.0.0.1:1\"}]}",
        "upstreams: {docker.io: {visibility: secret}}",
        "upstreams: {docker.io: {credentials: [{passwort: x}]}}",
        "upstreams: {docker.io: {ca_file: ca.pem}}",
        "- a list",
    ] {
        assert!(load(text, &[]).is_err() && !file_fits(text), "{text}");
    }
}
