//! The statements larder is built to, each by its number, and the tests that hold it to them: `tests/STATEMENTS.md` is generated
//! from the names of the tests, and from the line `/// Also: …` above those that hold it to several.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use crate::support::generated::check_generated;

const PAGE: &str = "tests/STATEMENTS.md";
/// What a test's name begins with when it is about a statement and a digit follows.
const ABOUT: [&str; 9] =
    ["registry_", "credential_", "clients_", "client_", "upstream_fault_", "disk_fault_", "cve_", "rustsec_", "go_containerregistry_"];

/// A page of statements: what its numbers begin with, what it is about, and the statements, one a line.
const GROUPS: [(&str, &str, &str); 6] = [
    ("registry_", "Registries and their tokens, limits, redirects and failures", include_str!("statements/registries.txt")),
    ("credential_", "Credentials, cloud registries, signatures", include_str!("statements/credentials.txt")),
    ("clients_", "What clients need", include_str!("statements/clients.txt")),
    ("upstream_fault_", "Faults of upstream", include_str!("statements/upstream_faults.txt")),
    ("disk_fault_", "Faults of the disk", include_str!("statements/disk_faults.txt")),
    ("", "Advisories about others", include_str!("statements/advisories.txt")),
];

/// `NUMBER text`, `NUMBER text | none: why no test here`, or `NUMBER text | partly: what is missing`.
struct Statement {
    /// As tests write it: `clients_09`.
    id: String,
    number: &'static str,
    text: &'static str,
    note: Option<Note>,
}

enum Note {
    None(&'static str),
    Partly(&'static str),
}

impl Statement {
    fn read(prefix: &str, line: &'static str) -> Statement {
        let (number, rest) = line.split_once(' ').unwrap_or_else(|| panic!("no statement: {line}"));
        let (text, note) = rest.split_once(" | ").map_or((rest, None), |(text, note)| (text, Some(note)));
        let note = note.map(|note| match note.split_once(": ") {
            Some(("none", why)) => Note::None(why),
            Some(("partly", what)) => Note::Partly(what),
            _ => panic!("neither `none: …` nor `partly: …`: {line}"),
        });
        Statement { id: normal(&format!("{prefix}{number}")), number, text, note }
    }
}

/// Numbers have two digits at least: `clients_7` is `clients_07`. Where there is none, what is there.
fn normal(id: &str) -> String {
    let (prefix, number) = id.split_at(id.rfind(|letter: char| !letter.is_ascii_digit()).map_or(0, |at| at + 1));
    if number.len() == 1 { format!("{prefix}0{number}") } else { id.to_owned() }
}

fn groups() -> impl Iterator<Item = (&'static str, Vec<Statement>)> {
    GROUPS.iter().map(|(prefix, title, text)| (*title, text.lines().map(|line| Statement::read(prefix, line)).collect()))
}

/// Tests by the statement they are about.
#[derive(Default)]
struct Tests {
    of: BTreeMap<String, BTreeSet<String>>,
    mistakes: Vec<String>,
}

impl Tests {
    fn find() -> Tests {
        let known: BTreeSet<String> = groups().flat_map(|(_, statements)| statements).map(|statement| statement.id).collect();
        let mut tests = Tests::default();
        for folder in ["src", "tests"] {
            tests.read_folder(&root().join(folder), &known);
        }
        tests
    }

    fn read_folder(&mut self, folder: &Path, known: &BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                self.read_folder(&path, known);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                self.read(&std::fs::read_to_string(&path).unwrap(), known);
            }
        }
    }

    /// One file: what stands above a function is about it.
    fn read(&mut self, text: &str, known: &BTreeSet<String>) {
        let (mut also, mut is_test) = (Vec::new(), false);
        for line in text.lines().map(str::trim) {
            if let Some(ids) = line.strip_prefix("/// Also: ") {
                also.extend(ids.split(',').map(|id| normal(id.trim())));
            } else if line == "#[test]" || line.starts_with("#[tokio::test") {
                is_test = true;
            } else if !line.starts_with("//") && !line.starts_with("#[") {
                let name = line.trim_start_matches("async ").strip_prefix("fn ").and_then(|rest| rest.split('(').next());
                match name.filter(|_| is_test) {
                    Some(name) => self.add(name, &also, known),
                    None if also.is_empty() => {}
                    None => self.mistakes.push(format!("`Also: {}` stands above no test", also.join(", "))),
                }
                (also, is_test) = (Vec::new(), false);
            }
        }
    }

    fn add(&mut self, name: &str, also: &[String], known: &BTreeSet<String>) {
        let own = own_id(name, known);
        if own.is_none() && (name.starts_with("ghsa_") || ABOUT.iter().any(|about| begins(name, about))) {
            self.mistakes.push(format!("{name} begins with no number of a statement"));
        }
        for id in also.iter().filter(|id| !id.starts_with("invariant_")).chain(&own) {
            if !known.contains(id) {
                self.mistakes.push(format!("{name} is said to be about {id}, which is no statement"));
            }
            self.of.entry(id.clone()).or_default().insert(name.to_owned());
        }
    }
}

/// Many names begin with `clients_` or `registry_`: a digit must follow.
fn begins(name: &str, about: &str) -> bool {
    name.strip_prefix(about).is_some_and(|rest| rest.starts_with(|letter: char| letter.is_ascii_digit()))
}

/// The statement whose number a test's name begins with.
fn own_id(name: &str, known: &BTreeSet<String>) -> Option<String> {
    let mut ends = name.match_indices('_').map(|(at, _)| normal(&name[..at]));
    ends.rfind(|id| known.contains(id))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The page, and what is wrong with it.
fn page() -> (String, Vec<String>) {
    let Tests { of, mut mistakes } = Tests::find();
    let mut page = String::from(
        "# Statements, and the tests that hold larder to them\n\n\
         Generated from the names of the tests, and from `/// Also:` above them; `cargo test NAME` runs one.\n",
    );
    for (title, statements) in groups() {
        write!(page, "\n## {title}\n\n| | statement | tests |\n| --- | --- | --- |\n").unwrap();
        for Statement { id, number, text, note } in statements {
            let tests = of.get(&id).cloned().unwrap_or_default();
            match &note {
                Some(Note::None(_)) if !tests.is_empty() => mistakes.push(format!("{id} has a test: take its `none` away")),
                Some(Note::None(_)) => {}
                _ if tests.is_empty() => mistakes.push(format!("{id} has no test: {text}")),
                _ => {}
            }
            let tests = tests.iter().map(|name| format!("`{name}`"));
            let told = note.iter().map(|note| match note {
                Note::None(why) => format!("none here: {why}"),
                Note::Partly(what) => format!("({what})"),
            });
            writeln!(page, "| {number} | {text} | {} |", tests.chain(told).collect::<Vec<_>>().join("<br>")).unwrap();
        }
    }
    (page, mistakes)
}

#[test]
fn every_statement_has_its_tests_and_the_table_says_which() {
    let (page, mistakes) = page();
    assert!(mistakes.is_empty(), "{mistakes:#?}");
    check_generated(PAGE, &page, "statements");
}

#[test]
fn numbers_are_counted_to_their_end() {
    assert_eq!(groups().map(|(_, statements)| statements.len()).take(5).collect::<Vec<_>>(), [40, 30, 55, 22, 16]);
    for (prefix, _, text) in &GROUPS[..5] {
        for (at, line) in text.lines().enumerate() {
            assert!(line.starts_with(&format!("{} ", at + 1)), "{prefix}: {line}");
        }
    }
}

#[test]
fn a_test_is_found_by_its_name_and_by_what_stands_above_it() {
    let known = ["clients_07", "clients_15", "upstream_fault_01", "upstream_fault_11", "cve_2020_15157"].map(ToOwned::to_owned).into();
    let mut tests = Tests::default();
    let text = "/// Also: upstream_fault_01, invariant_09\n#[tokio::test(start_paused = true)]\nasync fn clients_7_is_so() {\n\
                #[test]\nfn upstream_fault_11_is_so() {\n    #[test]\n    fn upright() {\n    #[test]\n    fn clients_that_wait() {\nfn clients_15_is_no_test() {\n\
                #[test]\nfn cve_2020_15157_is_so() {\n";
    tests.read(text, &known);
    let found: Vec<_> = tests.of.iter().map(|(id, names)| format!("{id}: {}", names.iter().cloned().collect::<String>())).collect();
    let expected = [
        "clients_07: clients_7_is_so",
        "cve_2020_15157: cve_2020_15157_is_so",
        "upstream_fault_01: clients_7_is_so",
        "upstream_fault_11: upstream_fault_11_is_so",
    ];
    assert_eq!((found, tests.mistakes.len()), (expected.map(ToOwned::to_owned).into(), 0));
    tests.read("/// Also: clients_99\n#[test]\nfn clients_98_is_so() {\n/// Also: upstream_fault_01\nfn helper() {\n", &known);
    assert_eq!(tests.mistakes.len(), 3, "{:#?}", tests.mistakes);
}

/// Links of the README to tests: the name in code font, the file it stands in.
#[test]
fn every_test_that_the_readme_names_is_where_it_says() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let links = readme.split("[`").skip(1).filter_map(|rest| rest.split_once("`](")?.1.split_once(')').map(|(file, _)| (rest, file)));
    let mut count = 0;
    for (rest, file) in links.filter(|(_, file)| file.ends_with(".rs")) {
        let name = rest.split('`').next().unwrap();
        let text = std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("fn {name}(")), "{file} has no {name}");
        count += 1;
    }
    assert!(count >= 15, "README.md names {count} tests");
}
