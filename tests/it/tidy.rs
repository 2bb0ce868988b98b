//! What the tree promises about itself: who knows whom, what is pure, how long a file may be, which test guards which promise.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use larder::oci::registries::{REGISTRIES, Registry};

/// Longest file before a noun is hiding in it.
const LINES_MAX: usize = 400;
/// Files that decide and do nothing else: no runtime, no files, no HTTP library, `now` as an argument.
const PURE: &[&str] = &[
    "server/route.rs",
    "server/listing.rs",
    "server/range.rs",
    "mirror/freshness.rs",
    "labels.rs",
    "mirror/patience.rs",
    "queue/turns.rs",
    "mirror/warm/words.rs",
    "store/layout.rs",
    "store/evict.rs",
    "store/evict/items.rs",
    "store/evict/order.rs",
    "store/evict/plan.rs",
    "store/pins.rs",
    "store/links.rs",
    "store/links/interned.rs",
    "store/links/node.rs",
    "store/names.rs",
    "upstream/limits/pull_limit.rs",
    "upstream/limits/too_many_requests.rs",
    "upstream/auth/challenge.rs",
    "upstream/auth/token_hosts.rs",
    "upstream/connect/address.rs",
    "upstream/listing/link.rs",
    "upstream/http/meaning.rs",
    "upstream/http/url.rs",
    "upstream/diagnose/certificate.rs",
    "upstream/auth/credentials/docker_config.rs",
    "upstream/auth/credentials/helper.rs",
    "upstream/auth/credentials/kubelet.rs",
    "upstream/auth/credentials/pattern.rs",
    "upstream/auth/credentials/protocol.rs",
    "control/reference.rs",
    "cli/explanation.rs",
    "oci/registries.rs",
    "percent.rs",
    "units.rs",
    "config/key.rs",
    "config/patterns.rs",
    "config/proxy.rs",
    "config/validate.rs",
    "cli/online/advice.rs",
    "cli/online/words.rs",
];
/// HTTP's own types stay where HTTP is spoken.
const WITHOUT_HTTP: [&str; 2] = ["store", "mirror"];

/// All sources, by their path below `src`, without their tests.
fn sources() -> BTreeMap<String, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path: PathBuf = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_string_lossy().into_owned();
                let text = std::fs::read_to_string(&path).unwrap();
                let code = text.split("\n#[cfg(test)]\nmod tests").next().unwrap().to_owned();
                found.insert(name, code);
            }
        }
    }
    found.retain(|name, _| !name.contains("tests"));
    found
}

/// The code of a line, without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

#[test]
fn a_file_opens_with_what_it_is_for_and_has_one_noun() {
    for (name, text) in sources() {
        assert!(text.starts_with("//! "), "{name} does not say what it is for");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines");
    }
}

#[test]
fn pure_files_do_nothing() {
    let sources = sources();
    for name in PURE {
        let text = sources.get(*name).unwrap_or_else(|| panic!("{name} is gone"));
        for impure in ["tokio", "std::fs", "std::net::Tcp", "hyper", "Instant::now", "SystemTime::now"] {
            let line = text.lines().find(|line| code(line).contains(impure));
            assert_eq!(line, None, "{name} is to be pure");
        }
    }
}

/// A host in quotes anywhere else is a registry whose row does not say all of it.
#[test]
fn what_is_known_of_a_registry_stands_in_one_table() {
    let hosts = |row: &'static Registry| row.names.iter().chain(row.aliases).chain(row.token_hosts).chain(row.pull_limit_preview.iter());
    let sources = sources();
    let elsewhere = sources.iter().filter(|(name, _)| *name != "oci/registries.rs");
    let mut found = Vec::new();
    for (name, text) in elsewhere {
        for host in REGISTRIES.iter().flat_map(hosts) {
            let quoted = [format!("\"{host}\""), format!("\"https://{host}")];
            // Neither a comment nor an example of a value decides anything.
            let lines = text.lines().filter(|line| !line.trim_start().starts_with("//") && !line.contains(".example("));
            let lines = lines.filter(|line| quoted.iter().any(|quoted| line.contains(quoted)));
            found.extend(lines.map(|line| format!("{name}: {line}")));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn the_store_and_the_mirror_do_not_speak_http() {
    for (name, text) in sources() {
        for folder in WITHOUT_HTTP.iter().filter(|folder| name.starts_with(&format!("{folder}/")) || name == format!("{folder}.rs")) {
            for word in ["hyper", "http::"] {
                let line = text.lines().find(|line| code(line).contains(word));
                assert_eq!(line, None, "{folder} must not know {word}");
            }
        }
    }
}

#[test]
fn the_disk_is_the_store_s_and_the_network_upstream_s() {
    for (name, text) in sources() {
        let touches = |word: &str| text.lines().any(|line| code(line).contains(word));
        let may_read_files =
            ["store", "config", "cli/import", "cli/pull.rs", "upstream/auth/credentials/files.rs", "upstream/connect/tls.rs"]
                .iter()
                .any(|may| name.starts_with(may));
        assert!(may_read_files || !touches("std::fs::"), "{name} touches the disk");
        let may_connect = ["upstream/connect/seam.rs", "cli/healthcheck.rs"].contains(&name.as_str());
        assert!(may_connect || !touches("TcpStream::connect"), "{name} opens connections");
        // Whatever runs a program has to bound its time and its words, and to keep larder's variables from it.
        assert!(name == "upstream/auth/credentials/exec.rs" || !touches("Command::new"), "{name} runs programs");
    }
}

#[test]
fn nothing_is_unbounded() {
    for (name, text) in sources() {
        for unbounded in ["unbounded_channel", "mpsc::channel()", "mpsc::unbounded", "channel::<"] {
            let line = text.lines().find(|line| code(line).contains(unbounded));
            assert_eq!(line, None, "{name} has a channel without a limit");
        }
    }
}

/// Cargo.lock has what any platform and any feature could want; what is really built, cargo-deny looks at.
#[test]
fn credential_30_no_second_tls_library_is_in_the_tree() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let [lock, deny, ci] = ["Cargo.lock", "deny.toml", ".ci/lib.sh"].map(|file| std::fs::read_to_string(root.join(file)).unwrap());
    for library in ["native-tls", "openssl", "openssl-sys"] {
        assert!(!lock.contains(&format!("name = \"{library}\"")), "Cargo.lock has {library}");
    }
    for library in ["native-tls", "openssl-sys", "ring"] {
        assert!(deny.contains(&format!("{{ crate = \"{library}\"")), "deny.toml lets {library} in");
    }
    assert!(ci.contains("cargo deny --offline check --hide-inclusion-graph bans"));
}

/// Who reads a page for the first time reads no more than this of it.
const ARCHITECTURE_WORDS_MAX: usize = 2_500;
const QUESTIONS: usize = 25;

#[test]
fn architecture_is_short_and_answers_its_questions_with_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let words = page.split_whitespace().count();
    assert!(words <= ARCHITECTURE_WORDS_MAX, "{words} words");
    let table = page.split("## Where to look").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert_eq!(rows.len(), QUESTIONS);
    for file in rows.iter().flat_map(|row| row.split('`').skip(1).step_by(2)) {
        assert!(root.join(file).is_file(), "ARCHITECTURE.md names {file}, which does not exist");
    }
}

#[test]
fn every_test_that_architecture_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut tests = String::new();
    for folder in ["src", "tests"] {
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                if entry.path().is_dir() {
                    folders.push(entry.path())
                } else {
                    tests += &std::fs::read_to_string(entry.path()).unwrap_or_default()
                }
            }
        }
    }
    let table = page.split("## Invariants").nth(1).unwrap();
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ") && line.contains('`')).collect();
    assert!(rows.len() >= 20, "{} invariants have a test", rows.len());
    for name in rows.iter().filter_map(|row| row.rsplit('|').nth(1)).flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        let function = name.rsplit("::").next().unwrap();
        assert!(tests.contains(&format!("fn {function}(")), "ARCHITECTURE.md names {name}, which does not exist");
    }
}
