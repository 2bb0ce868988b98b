//! What is made from the table of keys: the example, the schema, and the configuration of files that were written before it.

use std::collections::BTreeSet;

use larder::config::{KEYS, Reload, Shape, example, recipes, schema};
use serde_json::Value;

use super::print::FULL;
use super::typed::typed;
use super::{EXAMPLE, load};
use crate::support::generated::check_generated;

const CHART_SCHEMA: &str = "helm/larder/values.schema.json";
const TEST: &str = "config::table::committed";

#[test]
fn committed_example_is_the_table_s() {
    check_generated("config.example.yaml", &example(), TEST);
}

#[test]
fn committed_chart_takes_what_larder_takes() {
    let mut chart: Value = serde_json::from_str(include_str!("../../../helm/larder/values.schema.json")).unwrap();
    let mut larder = schema();
    larder.as_object_mut().unwrap().remove("$schema");
    chart["definitions"]["larder"] = larder;
    assert_eq!(chart["properties"]["config"]["allOf"][0]["$ref"], "#/definitions/larder");
    check_generated(CHART_SCHEMA, &(serde_json::to_string_pretty(&chart).unwrap() + "\n"), TEST);
}

#[test]
fn every_recipe_is_a_configuration_without_warnings() {
    assert!(recipes().count() >= 3);
    for (title, text) in recipes() {
        let (_, warnings) = load(text, &[]).unwrap_or_else(|mistakes| panic!("{title}: {mistakes}"));
        assert!(warnings.iter().all(|warning| warning.key == "cache.max_size"), "{title}: {warnings:?}");
        assert!(EXAMPLE.contains(title) && text.lines().all(|line| EXAMPLE.contains(&format!("\n#   {line}\n"))), "{title}");
    }
}

#[test]
fn the_example_s_prose_is_not_too_wide() {
    for line in EXAMPLE.lines().filter(|line| line.trim_start().starts_with("# ")) {
        assert!(line.chars().count() <= 130, "{line}");
    }
}

/// Of a row: it is there once, it is explained, and what it says is in effect is what its kind takes.
#[test]
fn every_row_of_the_table_is_whole() {
    let mut paths = BTreeSet::new();
    for key in KEYS {
        let path = key.path;
        assert!(paths.insert(path), "{path} is there twice");
        assert!(key.doc.ends_with('.') && key.doc.len() > 10, "{path}: {}", key.doc);
        assert!(key.default.is_none() || key.example.is_none(), "{path} has a default, and needs no example");
        let shown = key.default.is_some() || key.example.is_some();
        assert!(shown || matches!(key.shape, Shape::Section | Shape::List | Shape::Names | Shape::Entries), "{path} shows nothing");
    }
}

#[test]
fn a_reload_reaches_all_but_what_a_process_is_made_of() {
    let restart: Vec<_> = KEYS.iter().filter(|key| key.reload == Reload::Restart).map(|key| key.path).collect();
    let expected = [
        "server.listen",
        "server.listen.address",
        "server.listen.default_upstream",
        "admin.listen",
        "cache.path",
        "cache.memory_cache_size",
    ];
    assert_eq!(restart, expected);
}

pub(super) const CORPUS: [(&str, &str, &str); 8] = [
    ("chart", include_str!("corpus/chart.yaml"), include_str!("corpus/chart.printed")),
    ("edge", include_str!("corpus/edge.yaml"), include_str!("corpus/edge.printed")),
    ("empty", include_str!("corpus/empty.yaml"), include_str!("corpus/empty.printed")),
    ("example", include_str!("corpus/example.yaml"), include_str!("corpus/example.printed")),
    ("fleet", include_str!("corpus/fleet.yaml"), include_str!("corpus/fleet.printed")),
    ("flow", include_str!("corpus/flow.yaml"), include_str!("corpus/flow.printed")),
    ("full", include_str!("corpus/full.yaml"), include_str!("corpus/full.printed")),
    ("private", include_str!("corpus/private.yaml"), include_str!("corpus/private.printed")),
];

/// The `.printed` are what `check-config --print` of larder 0.1.0 (e8c135f) said of these files in this environment. What larder acts on
/// and what it prints are both compared with that.
#[test]
fn files_from_before_the_table_mean_the_same() {
    for (name, text, printed) in CORPUS {
        let mut variables =
            vec![("CACHE_DIRECTORY", "/var/cache/larder"), ("HTTPS_PROXY", "http://u:hunter2@proxy.corp:1"), ("NO_PROXY", "a.io")];
        // Its default is the machine's.
        if matches!(name, "empty" | "example") {
            variables.push(("LARDER_CACHE__MAX_SIZE", "10GiB"));
        }
        let (config, _) = load(text, &variables).unwrap_or_else(|mistakes| panic!("{name}: {mistakes}"));
        let then: serde_yaml::Value = serde_yaml::from_str(printed).unwrap();
        let now = serde_yaml::from_str(&config.to_yaml().unwrap()).unwrap();
        assert_eq!(without_new(now), then, "{name}");
        assert_eq!(without_new(typed(&config)), without_patterns(then), "{name}");
    }
}

#[test]
fn what_is_printed_is_what_larder_acts_on() {
    for text in [FULL, EXAMPLE, ""].into_iter().chain(recipes().map(|(_, text)| text)).chain(CORPUS.iter().map(|(_, text, _)| *text)) {
        let (config, _) = load(text, &[("HTTPS_PROXY", "http://u:hunter2@proxy.corp:1")]).unwrap();
        let mut printed: serde_yaml::Value = serde_yaml::from_str(&config.to_yaml().unwrap()).unwrap();
        remove_fallbacks(&mut printed);
        assert_eq!(without_patterns(printed), typed(&config), "{text}");
    }
}

/// Without what larder 0.1.0 neither had nor printed.
fn without_new(mut value: serde_yaml::Value) -> serde_yaml::Value {
    remove_fallbacks(&mut value);
    value.as_mapping_mut().unwrap().remove("limits");
    value
}

/// The cache's own are no values of the configuration: they are in effect in the upstreams.
fn remove_fallbacks(value: &mut serde_yaml::Value) {
    for key in ["tag_ttl", "stale_if_error"] {
        value["cache"].as_mapping_mut().unwrap().remove(key);
    }
}

fn without_patterns(mut value: serde_yaml::Value) -> serde_yaml::Value {
    for upstream in value["upstreams"].as_mapping_mut().unwrap().values_mut() {
        upstream.as_mapping_mut().unwrap().remove("immutable_tags");
    }
    value
}
