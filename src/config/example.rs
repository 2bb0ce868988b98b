//! `config.example.yaml`, made from the table of keys: every key with its default and its words, and recipes on top.

use super::KEYS;
use super::key::{Key, Keys, Kind, Longest, Shape, join};
use crate::oci::registries::{DOCKER_HUB, well_known};
use crate::units;

/// Columns of a line of prose.
const WIDTH: usize = 120;
const HEADER: &str = "\
# larder's configuration: every key, with its default, its unit and why one would change it. Made by larder's tests: change the
# table of keys, not this file.
# It goes to /etc/larder/larder.yaml, or where --config or LARDER_CONFIG says. Without a file, all of this is in effect.
# `larder check-config --print` shows what is. A line that begins with #key: has no fixed default; take the # away to use it.
#
# Sizes: 1024, 500MB, 20GiB. Durations: 30s, 5m, 1h, 7d. Every single value and plain list can be set in the environment too,
# over the file: LARDER_CACHE__MAX_SIZE=50GiB, LARDER_SERVER__LISTEN=127.0.0.1:5000,[::1]:5000,
# LARDER_UPSTREAMS__GHCR_IO__TAG_TTL=1m (capitals, `__` between the parts, `_` for every other character of a host).
# `larder config-schema` prints a JSON schema of this file, for editors.
";
/// Whole configurations to begin with: a title, and the text.
const RECIPES: [(&str, &str); 3] = [
    (
        "a CI fleet that pulls public images with a Docker Hub login, for its higher rate limit",
        "\
server:
  listen: 0.0.0.0:5000
cache:
  path: /var/cache/larder
  max_size: 200GiB
upstreams:
  docker.io:
    credentials: {username: ci-robot, password_file: /etc/larder/dockerhub-token}
  ghcr.io: {}
  quay.io: {}
",
    ),
    (
        "a private registry with its own CA; whoever reaches this port may read what the robot can read",
        "\
server:
  listen: 10.0.0.5:5000
  allow_anonymous_private: true
default_upstream: registry.corp.example
upstreams:
  registry.corp.example:
    ca_file: /etc/larder/corp-ca.pem
    credentials: {username: larder-robot, password_file: /etc/larder/corp-password}
  docker.io: {}
",
    ),
    (
        "a small machine at the edge: little disk and memory, and images that must outlive long outages",
        "\
cache:
  max_size: 8GiB
  min_free: 2GiB
  memory_cache_size: 16MiB
  stale_if_error: 90d
  evict_unused_after: 0
  pinned_images: [\"docker.io/library/alpine:3.*\"]
fills: {max_concurrent: 4, max_concurrent_per_upstream: 4}
",
    ),
];

/// The text of `config.example.yaml`.
pub fn example() -> String {
    write(Keys(KEYS))
}

/// The recipes by their titles, each a whole configuration.
pub fn recipes() -> impl Iterator<Item = (&'static str, &'static str)> {
    RECIPES.into_iter()
}

pub(super) fn write(keys: Keys<'_>) -> String {
    let mut text = HEADER.to_owned();
    for (number, (title, recipe)) in (1..).zip(RECIPES) {
        text += &format!("#\n# Recipe {number}: {title}.\n");
        recipe.lines().for_each(|line| text += &format!("#   {line}\n"));
    }
    let mut page = Page { keys, text };
    page.section("", 0, Form::InForce);
    page.text
}

/// Whether lines of keys are commented out.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    InForce,
    Commented,
}

struct Page<'a> {
    keys: Keys<'a>,
    text: String,
}

impl Page<'_> {
    fn section(&mut self, pattern: &str, indent: usize, form: Form) {
        for name in self.keys.children(pattern) {
            if indent == 0 {
                self.text.push('\n');
            }
            let inner = join(pattern, name);
            match self.keys.find(&inner) {
                _ if name == "*" => self.upstreams(&inner, indent),
                Some(key) if key.shape != Shape::Section => self.key(key, indent, form),
                section => {
                    section.iter().for_each(|key| self.prose(key.doc, indent));
                    self.line(&format!("{name}:"), indent, form);
                    self.section(&inner, indent + 2, form);
                }
            }
        }
    }

    /// One with every key, and the others that are there unless the section is written.
    fn upstreams(&mut self, pattern: &str, indent: usize) {
        self.line(&format!("{DOCKER_HUB}:"), indent, Form::InForce);
        self.section(pattern, indent + 2, Form::InForce);
        for host in well_known().filter(|host| *host != DOCKER_HUB) {
            self.line(&format!("{host}: {{}}"), indent, Form::InForce);
        }
    }

    fn key(&mut self, key: &Key, indent: usize, form: Form) {
        self.prose(&format!("{}{}", key.doc, bounds(key.kind)), indent);
        let name = key.name();
        let (value, form) = match (key.default, key.example, key.shape) {
            (Some(text), ..) => (format!(" {text}"), form),
            (None, Some(text), _) => (format!(" {text}"), Form::Commented),
            (None, None, Shape::List | Shape::OneOrMore) => (" []".to_owned(), form),
            (None, None, Shape::Names) => (" {}".to_owned(), form),
            (None, None, _) => (String::new(), Form::Commented),
        };
        self.line(&format!("{name}:{value}"), indent, form);
        if key.shape == Shape::Entries {
            self.section(key.path, indent + 2, Form::Commented);
        } else if self.keys.is_section(key.path) {
            self.prose("Or entries with keys of their own; both forms can stand in one list.", indent);
            self.line(&format!("{name}:"), indent, Form::Commented);
            self.entry(key.path, indent + 2);
        }
    }

    /// A list's only entry: its first key stands behind the dash.
    fn entry(&mut self, pattern: &str, indent: usize) {
        let begin = self.text.len();
        self.section(pattern, indent + 2, Form::Commented);
        let keys = self.text.split_off(begin);
        let (mut first, margin) = (true, " ".repeat(indent));
        for line in keys.lines() {
            match line.trim_start().strip_prefix('#') {
                Some(key) if first && !key.starts_with(' ') => {
                    self.text += &format!("{margin}#- {key}\n");
                    first = false;
                }
                Some(prose) if first => self.text += &format!("{margin}#{prose}\n"),
                _ => self.text += &format!("{line}\n"),
            }
        }
    }

    fn line(&mut self, text: &str, indent: usize, form: Form) {
        let mark = if form == Form::Commented { "#" } else { "" };
        self.text += &format!("{}{mark}{text}\n", " ".repeat(indent));
    }

    /// A comment, in lines that are not too wide.
    fn prose(&mut self, text: &str, indent: usize) {
        let margin = format!("{}#", " ".repeat(indent));
        let mut line = margin.clone();
        for word in text.split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH && line != margin {
                self.text += &format!("{line}\n");
                line.clone_from(&margin);
            }
            line += &format!(" {word}");
        }
        self.text += &format!("{line}\n");
    }
}

/// What a kind's bounds add to the words of a key.
pub(super) fn bounds(kind: Kind) -> String {
    match kind {
        Kind::Count { min, max } => format!(" From {min} to {max}."),
        Kind::Size { min } if min > 0 => format!(" At least {}.", units::exact_size(min)),
        Kind::Duration(Longest::Seconds(max, _)) => format!(" At most {}.", units::exact_duration(std::time::Duration::from_secs(max))),
        _ => String::new(),
    }
}
