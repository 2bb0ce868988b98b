//! What one key of the configuration is, and the questions one asks a table of them. Pure; knows no key by its name.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::value::{self, Fault, Share};
use crate::units;

/// One key: everything that is the same for whoever reads it, prints it, documents it or checks it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// From the root, its parts joined by dots; `*` stands for the name of an upstream.
    pub path: &'static str,
    pub shape: Shape,
    pub kind: Kind,
    /// What is in effect unless something is written, as one would write it. `None`: nothing, or what the machine or another
    /// key says; then `doc` says which.
    pub default: Option<&'static str>,
    /// What `config.example.yaml` shows, commented out, where there is no default.
    pub example: Option<&'static str>,
    pub reload: Reload,
    /// One or more sentences: what it does, and why one would change it.
    pub doc: &'static str,
}

/// What may stand under a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Further keys.
    Section,
    /// One value.
    One,
    /// Several values; one alone needs no list. In the environment with commas between.
    List,
    /// The same, and printed without a list where there is one.
    OneOrMore,
    /// A mapping whose keys are of the operator's choice; no environment variable can spell them.
    Names,
    /// A mapping, or a list of several. Variables set the keys of the one mapping.
    Entries,
}

/// What a value is, with its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Boolean,
    /// A whole number between two others, both included.
    Count { min: usize, max: usize },
    /// Bytes: `1024`, `500MB`, `20GiB`.
    Size { min: u64 },
    /// A size, or a percentage of another one.
    Share,
    /// `30s 5m 1h 7d`.
    Duration(Longest),
    /// One of these words.
    Choice(&'static [&'static str]),
    /// An IP address and a port.
    Address,
    /// An absolute path.
    Path,
    /// An absolute path, or one that begins with `$CREDENTIALS_DIRECTORY/`.
    File,
    /// Text that its reader judges.
    Text,
    /// The same, and shown to nobody.
    Secret,
}

/// The longest duration that a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Longest {
    /// [`value::DURATION_MAX`].
    Any,
    Seconds(u64, &'static str),
}

/// How far a reload of the configuration reaches a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// In effect at once.
    Live,
    /// Needs a new process: sockets, the cache's directory and the size of its memory are fixed when one starts.
    Restart,
}

/// Rows of the table.
impl Key {
    const fn new(path: &'static str, shape: Shape, kind: Kind, doc: &'static str) -> Key {
        Key { path, shape, kind, default: None, example: None, reload: Reload::Live, doc }
    }

    pub(super) const fn section(path: &'static str, doc: &'static str) -> Key {
        Key::new(path, Shape::Section, Kind::Text, doc)
    }

    pub(super) const fn one(path: &'static str, kind: Kind, doc: &'static str) -> Key {
        Key::new(path, Shape::One, kind, doc)
    }

    pub(super) const fn list(path: &'static str, kind: Kind, doc: &'static str) -> Key {
        Key::new(path, Shape::List, kind, doc)
    }

    pub(super) const fn shaped(self, shape: Shape) -> Key {
        Key { shape, ..self }
    }

    pub(super) const fn default(self, text: &'static str) -> Key {
        Key { default: Some(text), ..self }
    }

    pub(super) const fn example(self, text: &'static str) -> Key {
        Key { example: Some(text), ..self }
    }

    pub(super) const fn restart(self) -> Key {
        Key { reload: Reload::Restart, ..self }
    }
}

impl Key {
    /// Its last part.
    pub fn name(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or_default()
    }
}

/// What a text means to a kind. For another kind than the one that is asked for, it means nothing.
impl Kind {
    pub(super) fn boolean(self, text: &str) -> Result<bool, Fault> {
        if self == Kind::Boolean { value::boolean(text) } else { Err(self.is_not("a boolean")) }
    }

    pub(super) fn count(self, text: &str) -> Result<usize, Fault> {
        if let Kind::Count { min, max } = self { value::count(text, min, max) } else { Err(self.is_not("a number")) }
    }

    /// Bytes.
    pub(super) fn size(self, text: &str) -> Result<u64, Fault> {
        if let Kind::Size { min } = self { value::size_from(text, min) } else { Err(self.is_not("a size")) }
    }

    pub(super) fn share(self, text: &str) -> Result<Share, Fault> {
        if self == Kind::Share { value::share(text) } else { Err(self.is_not("a size or a percentage")) }
    }

    /// # Errors
    /// When the text is no duration, or longer than the key takes: one line that says so, and what to write.
    pub fn duration(self, text: &str) -> Result<Duration, String> {
        match self {
            Kind::Duration(Longest::Any) => value::duration(text),
            Kind::Duration(Longest::Seconds(max, why)) => value::duration_up_to(text, Duration::from_secs(max), why),
            _ => Err(self.is_not("a duration")),
        }
    }

    pub(super) fn address(self, text: &str) -> Result<SocketAddr, Fault> {
        if self == Kind::Address { value::socket_address(text) } else { Err(self.is_not("an address")) }
    }

    pub(super) fn path(self, text: &str) -> Result<PathBuf, Fault> {
        if self == Kind::Path { value::absolute_path(text) } else { Err(self.is_not("a path")) }
    }

    /// The one of `meanings`, which the kind's words are made from, that a text names.
    pub(super) fn choice<T: Copy>(self, text: &str, meanings: &[(&str, T)]) -> Result<T, Fault> {
        let Kind::Choice(words) = self else { return Err(self.is_not("a choice")) };
        let meant = meanings.iter().find(|(word, _)| *word == text).map(|(_, meaning)| *meaning);
        meant.ok_or_else(|| value::none_of(text, words))
    }

    fn is_not(self, what: &str) -> Fault {
        format!("cannot be read as {what}: the table of keys has it as {self:?}")
    }

    /// What is wrong with a text, as far as that shows without knowing anything else.
    pub(super) fn fault(self, text: &str) -> Option<Fault> {
        match self {
            Kind::Boolean => self.boolean(text).err(),
            Kind::Count { .. } => self.count(text).err(),
            Kind::Size { .. } => self.size(text).err(),
            Kind::Share => self.share(text).err(),
            Kind::Duration(_) => self.duration(text).err(),
            Kind::Choice(words) => (!words.contains(&text)).then(|| value::none_of(text, words)),
            Kind::Address => self.address(text).err(),
            Kind::Path => self.path(text).err(),
            Kind::File | Kind::Text | Kind::Secret => None,
        }
    }

    /// Whether only its reader can judge it.
    pub(super) fn is_left_to_reader(self) -> bool {
        matches!(self, Kind::File | Kind::Text | Kind::Secret)
    }

    /// A right text in the one form that it is printed in.
    pub(super) fn canonical(self, text: &str) -> String {
        let shown = match self {
            Kind::Size { .. } => self.size(text).map(units::exact_size),
            Kind::Duration(_) => self.duration(text).map(units::exact_duration),
            Kind::Address => self.address(text).map(|address| address.to_string()),
            Kind::Secret => Ok("REDACTED".to_owned()),
            Kind::Boolean | Kind::Count { .. } | Kind::Share | Kind::Choice(_) | Kind::Path | Kind::File | Kind::Text => {
                Ok(text.to_owned())
            }
        };
        shown.unwrap_or_else(|_| text.to_owned())
    }
}

/// A table of keys.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a>(pub(super) &'a [Key]);

impl<'a> Keys<'a> {
    pub(super) fn find(self, pattern: &str) -> Option<&'a Key> {
        self.0.iter().find(|key| key.path == pattern)
    }

    /// Whether further keys stand below.
    pub(super) fn is_section(self, pattern: &str) -> bool {
        self.0.iter().any(|key| key.path.strip_prefix(pattern).is_some_and(|rest| rest.starts_with('.')))
    }

    /// The names that may stand directly in a section, in the table's order; `*` where that is any.
    pub(super) fn children(self, pattern: &str) -> Vec<&'static str> {
        let prefix = join(pattern, "");
        let below = self.0.iter().filter_map(|key| key.path.strip_prefix(prefix.as_str()));
        let mut names = Vec::new();
        for name in below.filter_map(|rest| rest.split('.').next()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The pattern of what stands under a name in a section: `upstreams.*` for `docker.io` in `upstreams`.
    pub(super) fn below(self, pattern: &str, name: &str) -> String {
        join(pattern, if self.children(pattern) == ["*"] { "*" } else { name })
    }

    /// Whether an environment variable can set it: one value or plain values, but not in the entries of a list.
    pub(super) fn has_variable(self, key: &Key) -> bool {
        let in_a_list = || key.path.rsplit_once('.').and_then(|(parent, _)| self.find(parent)).is_some_and(|parent| parent.shape.is_list());
        (key.shape == Shape::One || key.shape.is_list()) && !in_a_list()
    }
}

impl Shape {
    pub(super) fn is_list(self) -> bool {
        matches!(self, Shape::List | Shape::OneOrMore)
    }
}

/// The full name of what stands in a section.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The name of a list's item, counting from 0.
pub(super) fn item(path: &str, place: usize) -> String {
    format!("{path}[{place}]")
}
