//! The YAML file: the only place that names serde_yaml, so that another parser would be a change in one file.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeSeed;

use super::mistake::Position;
use super::tree::{Node, Reader};

/// The parser is transliterated C; it gets no more than an operator would write by hand.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The file's text.
pub(super) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than 1 MiB, which no configuration is"));
    }
    Ok(text)
}

/// Text that is not YAML, or more of it than larder takes.
pub(super) struct SyntaxError {
    pub(super) position: Option<Position>,
    pub(super) message: String,
}

/// The tree of a text; an empty text is an empty tree.
pub(super) fn parse(text: &str) -> Result<Node, SyntaxError> {
    visit(text, None).map_err(|error| {
        let position = position(&error);
        let mut message = error.to_string();
        if let Some(Position { line, column }) = position {
            // The place stands once, in front.
            message = message.replace(&format!(" at line {line} column {column}"), "");
        }
        SyntaxError { position, message }
    })
}

/// The line and column of a tree's so-manieth key or value, found by reading the text again up to there: mistakes are rare.
pub(super) fn locate(text: &str, number: usize) -> Option<Position> {
    visit(text, Some(number)).err().as_ref().and_then(position)
}

/// A value as YAML.
pub(super) fn emit(value: &impl Serialize) -> Result<String, String> {
    serde_yaml::to_string(value).map_err(|error| error.to_string())
}

fn visit(text: &str, stop_at: Option<usize>) -> Result<Node, serde_yaml::Error> {
    let count = Cell::new(0);
    Reader { count: &count, stop_at }.deserialize(serde_yaml::Deserializer::from_str(text))
}

fn position(error: &serde_yaml::Error) -> Option<Position> {
    error.location().map(|location| Position { line: location.line(), column: location.column() })
}

#[cfg(test)]
mod tests {
    use super::super::tree::{Origin, Value};
    use super::*;

    fn number(origin: &Origin) -> usize {
        let Origin::File(number) = origin else { panic!("{origin:?}") };
        *number
    }

    fn at(text: &str, origin: &Origin) -> (usize, usize) {
        let position = locate(text, number(origin)).unwrap();
        (position.line, position.column)
    }

    #[test]
    fn every_key_and_value_finds_back_to_its_place() {
        let text = "# a comment\ncache:\n  path: /x\n\nserver: {listen: [a, \"b\"]}\nsame: &it 5\nagain: *it\n";
        let Ok(tree) = parse(text) else { panic!() };
        let [cache, server, ..] = tree.entries() else { panic!() };
        assert_eq!(at(text, &cache.key_origin), (2, 1));
        assert_eq!(at(text, &cache.node.entries()[0].key_origin), (3, 3));
        assert_eq!(at(text, &cache.node.entries()[0].node.origin), (3, 9));
        let Value::List(list) = &server.node.entries()[0].node.value else { panic!() };
        assert_eq!(at(text, &list[1].origin), (5, 22));
    }

    #[test]
    fn what_is_not_yaml_is_told_with_its_place() {
        let error = parse("server:\n  listen: [a\n").err().unwrap();
        assert!(error.position.is_some_and(|position| position.line == 3 || position.line == 2), "{}", error.message);
        assert!(!error.message.contains("at line 3 column 1"), "{}", error.message);
        assert!(parse("a: !tag b").is_err());
        assert!(parse("a: 1\n---\nb: 2\n").is_err());
    }

    #[test]
    fn an_empty_text_is_an_empty_tree() {
        for text in ["", "\n\n", "# nothing yet\n", "---\n"] {
            let Ok(tree) = parse(text) else { panic!("{text:?}") };
            assert!(tree.entries().is_empty());
        }
    }

    #[test]
    fn an_alias_bomb_is_refused() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for n in 1..12 {
            let reference = vec![format!("*a{}", n - 1); 10].join(", ");
            text += &format!("a{n}: &a{n} [{reference}]\n");
        }
        assert!(parse(&text).is_err());
    }
}
