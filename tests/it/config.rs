//! The configuration as operators write it.

mod credentials;
mod known;
mod print;
mod reach;
mod schema;
mod table;
mod typed;

use std::net::SocketAddr;
use std::time::Duration;

use proptest::prelude::*;

use larder::config::{Config, CredentialKind, Credentials, KEYS, Key, Listener, Mistakes, Place, Secret, Shape, Visibility, Warning};
use larder::oci::registries::well_known;

const EXAMPLE: &str = include_str!("../../config.example.yaml");

fn home() -> Vec<(String, String)> {
    env(&[("HOME", "/home/ada")])
}

fn env(variables: &[(&str, &str)]) -> Vec<(String, String)> {
    variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn load(text: &str, variables: &[(&str, &str)]) -> Result<(Config, Vec<Warning>), Mistakes> {
    Config::from_yaml(text, home().into_iter().chain(env(variables)))
}

fn config(text: &str) -> Config {
    let (config, warnings) = load(text, &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(warnings, [], "{text}");
    config
}

/// The mistakes of a text, one a line.
#[track_caller]
fn check_mistakes(text: &str, expected: &[&str]) {
    let mistakes = load(text, &[]).map(|_| ()).expect_err(text).to_string();
    let lines: Vec<_> = mistakes.lines().collect();
    let fits = lines.len() == expected.len() && lines.iter().zip(expected).all(|(line, start)| line.starts_with(start));
    assert!(fits, "{text}\n--- gives\n{mistakes}\n--- not\n{}", expected.join("\n"));
}

#[test]
fn an_empty_file_mirrors_the_public_registries_on_loopback() {
    for text in ["", "# nothing yet\n", "server:\nupstreams:\n"] {
        let config = config(text);
        assert_eq!(config.server.listen, [Listener::from("127.0.0.1:5000".parse::<SocketAddr>().unwrap())]);
        assert_eq!(config.admin.listen, "127.0.0.1:5001".parse().unwrap());
        assert_eq!(config.default_upstream, "docker.io");
        assert_eq!(config.upstreams.keys().map(String::as_str).collect::<Vec<_>>(), well_known().collect::<Vec<_>>());
        assert_eq!(config.upstreams["docker.io"].urls[0].to_string(), "https://registry-1.docker.io");
        assert_eq!(config.upstreams["ghcr.io"].urls[0].to_string(), "https://ghcr.io");
        for upstream in config.upstreams.values() {
            assert_eq!((upstream.visibility, upstream.tag_ttl), (Visibility::Public, Duration::from_secs(300)));
            assert_eq!(upstream.stale_if_error, Duration::from_secs(7 * 24 * 3600));
        }
        assert!(config.cache.max_size <= 20 << 30);
        assert_eq!(config.cache.max_blob_size / 1000, config.cache.max_size / 2000);
    }
}

#[test]
fn the_cache_is_where_systemd_or_the_user_keeps_caches() {
    for (variables, path) in [
        (vec![("CACHE_DIRECTORY", "/var/cache/larder:/var/cache/other"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], "/var/cache/larder"),
        (vec![("XDG_CACHE_HOME", "/x"), ("HOME", "/h")], "/x/larder"),
        (vec![("XDG_CACHE_HOME", "relative"), ("HOME", "/h")], "/h/.cache/larder"),
        (vec![("HOME", "/h"), ("LARDER_CACHE__PATH", "/data")], "/data"),
    ] {
        let (config, _) = Config::from_yaml("", env(&variables)).unwrap();
        assert_eq!(config.cache.path.to_str(), Some(path));
    }
    let homeless = Config::from_yaml("", []).unwrap_err().to_string();
    assert!(homeless.contains("cache.path") && homeless.contains("write one"), "{homeless}");
}

/// The example with the keys that are commented out put in force.
fn example_in_full() -> String {
    let uncommented = |line: &str| {
        let rest = line.trim_start();
        let is_key =
            rest.strip_prefix('#').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase()) || rest.starts_with("- "));
        if is_key { line.replacen('#', "", 1) } else { line.to_owned() }
    };
    // A key cannot be there in both its forms.
    EXAMPLE.lines().filter(|line| *line != "  listen: 127.0.0.1:5000").map(uncommented).collect::<Vec<_>>().join("\n")
}

fn keys_of(value: &serde_yaml::Value, path: &str, keys: &mut Vec<String>) {
    for item in value.as_sequence().into_iter().flatten() {
        keys_of(item, path, keys);
    }
    for (key, value) in value.as_mapping().into_iter().flatten() {
        let path = format!("{path}{}", key.as_str().unwrap());
        keys.push(path.clone());
        keys_of(value, &format!("{path}."), keys);
    }
}

#[test]
fn the_example_shows_the_defaults() {
    assert_eq!(config(EXAMPLE).to_yaml().unwrap(), config("").to_yaml().unwrap());
}

#[test]
fn the_example_holds_every_key_and_each_works() {
    let text = example_in_full();
    let mut written = Vec::new();
    keys_of(&serde_yaml::from_str(&text).unwrap(), "", &mut written);
    for key in KEYS {
        let key = key.path.replace('*', "docker.io");
        assert!(written.contains(&key), "config.example.yaml lacks {key}");
    }
    // Of the ways to sign in only one can be in force.
    for kept in [
        &["username", "password"][..],
        &["username", "password_file"],
        &["identity_token"],
        &["identity_token_file"],
        &["registry_token"],
        &["registry_token_file"],
        &["docker_config"],
        &["docker_helper"],
        &["kubelet_provider"],
    ] {
        let is_other_kind = |line: &&str| {
            let name = line.trim_start().split(':').next().unwrap_or_default();
            credentials::KIND_KEYS.contains(&name) && !kept.contains(&name)
        };
        let text: Vec<_> = text.lines().filter(|line| !is_other_kind(line)).collect();
        config(&text.join("\n"));
    }
}

#[test]
fn every_key_of_the_example_is_explained() {
    let mut above = "";
    for line in EXAMPLE.lines() {
        let key = line.trim_start().trim_start_matches('#').trim_start_matches("- ");
        let name = key.split(':').next().unwrap_or_default();
        let is_leaf = KEYS.iter().any(|key| key.name() == name) && key.contains(": ");
        let explained = above.trim_start().starts_with('#');
        assert!(!is_leaf || explained, "nothing explains: {line}");
        above = line;
    }
}

#[test]
fn a_wrong_key_is_told_with_its_place_and_the_right_one() {
    check_mistakes("cache:\n  max_sise: 1GiB\n", &["config:2:3: cache.max_sise: unknown key; did you mean cache.max_size?"]);
    check_mistakes("chache: {max_size: 1GiB}\n", &["config:1:1: chache: unknown key; did you mean cache?"]);
    check_mistakes("server: {tag_ttl: 1m}\n", &["config:1:10: server.tag_ttl: unknown key here; did you mean cache.tag_ttl?"]);
    check_mistakes("tag_ttl: 1m\n", &["config:1:1: tag_ttl: unknown key here; did you mean cache.tag_ttl?"]);
    check_mistakes(
        "upstreams: {docker.io: {credentials: {usrname: x}}}\n",
        &["config:1:39: upstreams.docker.io.credentials.usrname: unknown key; did you mean upstreams.docker.io.credentials.username?"],
    );
    check_mistakes(
        "fills: {zzz: 1}\n",
        &["config:1:9: fills.zzz: unknown key; known here: max_concurrent, max_concurrent_per_upstream, queue_timeout"],
    );
    // Keys whose work comes in a later version do nothing yet, and are not taken.
    check_mistakes("server: {htpasswd_file: /x}\n", &["config:1:10: server.htpasswd_file: unknown key; known here: listen, hosts"]);
}

#[test]
fn all_mistakes_are_told_at_once_in_the_order_of_the_file() {
    let text = "\
server:
  listen: [127.0.0.1:5000, localhost]
  max_connections: many
cache:
  max_size: 10 gigs
  tag_ttl: 30
  revalidate_wait: 1h
  path: relative
log: {format: xml, level: inof}
default_upstream: quai.io
upstreams:
  quay.io: {url: quay.io, visibility: secret, allow_private_addresses: [10/8]}
  Harbor: {}
fills: 7
";
    check_mistakes(
        text,
        &[
            "config:2:28: server.listen: `localhost` is not an address and a port, such as 127.0.0.1:5000",
            "config:3:20: server.max_connections: `many` is not a number from 1 to 1000000",
            "config:5:13: cache.max_size: `10 gigs` is not a size",
            "config:6:12: cache.tag_ttl: `30` has no unit; write 30s",
            "config:7:20: cache.revalidate_wait: `1h` is too long; write at most 25s",
            "config:8:9: cache.path: `relative` is not an absolute path",
            "config:9:15: log.format: `xml` is none of auto, text and json",
            "config:9:27: log.level: `inof` is not a level",
            "config:10:19: default_upstream: `quai.io` is not an upstream; did you mean quay.io?",
            "config:12:18: upstreams.quay.io.url: is not an http or https URL",
            "config:12:39: upstreams.quay.io.visibility: `secret` is neither public nor private",
            "config:12:73: upstreams.quay.io.allow_private_addresses: `10/8` is not a network",
            "config:13:3: upstreams.Harbor: `Harbor` is not a host",
            "config:14:8: fills: must hold max_concurrent",
        ],
    );
}

#[test]
fn what_is_written_twice_or_is_no_yaml_is_a_mistake() {
    check_mistakes("cache: {tag_ttl: 1m}\ncache: {}\n", &["config:2:1: cache: is written twice"]);
    check_mistakes("server: {hosts: {a.b: docker.io, a.b: docker.io}}", &["config:1:34: server.hosts.a.b: is written twice"]);
    check_mistakes("upstreams: {docker.io: {}, docker.io: {}}", &["config:1:28: upstreams.docker.io: is written twice"]);
    check_mistakes("server: [\n", &["config:2:1: "]);
    check_mistakes("- a list\n", &["config:1:1: must be a mapping of keys"]);
    check_mistakes("log: {level: [info]}\n", &["config:1:14: log.level: takes one value; it is a list"]);
}

#[test]
fn a_file_that_is_no_configuration_gets_a_bounded_answer() {
    let text: String = (0..1000).map(|n| format!("key{n}: value\n")).collect();
    let mistakes = load(&text, &[]).unwrap_err();
    assert_eq!(mistakes.mistakes.len(), 51);
    assert!(mistakes.to_string().ends_with("and 950 more; is this larder's configuration?"));
}

#[test]
fn tags_are_trusted_for_as_long_as_the_contract_says() {
    let ttl = |text: &str, name: &str| config(text).upstreams[name].tag_ttl.as_secs();
    assert_eq!(ttl("upstreams: {docker.io: {}}", "docker.io"), 300);
    assert_eq!(ttl("upstreams: {docker.io: {url: \"https://registry-1.docker.io/\"}}", "docker.io"), 300);
    assert_eq!(ttl("upstreams: {docker.io: {url: \"http://127.0.0.1:5000\"}}", "docker.io"), 0);
    assert_eq!(ttl("{default_upstream: r.corp, upstreams: {r.corp: {}}}", "r.corp"), 0);
    assert_eq!(ttl("{cache: {tag_ttl: 1m}, default_upstream: r.corp, upstreams: {r.corp: {}}}", "r.corp"), 60);
    assert_eq!(ttl("{cache: {tag_ttl: 1m}, upstreams: {docker.io: {tag_ttl: 0s}}}", "docker.io"), 0);
}

#[test]
fn an_upstream_is_private_when_its_credentials_show_more_than_anyone_sees() {
    let visibility =
        |upstream: &str| config(&format!("{{default_upstream: {upstream}}}")).upstreams.into_values().next().unwrap().visibility;
    let credentials = "credentials: {username: u, password: p}";
    assert_eq!(visibility(&format!("docker.io, upstreams: {{docker.io: {{{credentials}}}}}")), Visibility::Public);
    assert_eq!(
        visibility(&format!("docker.io, upstreams: {{docker.io: {{url: \"https://hub.corp\", {credentials}}}}}")),
        Visibility::Private
    );
    assert_eq!(visibility(&format!("r.corp, upstreams: {{r.corp: {{{credentials}}}}}")), Visibility::Private);
    assert_eq!(visibility(&format!("r.corp, upstreams: {{r.corp: {{visibility: public, {credentials}}}}}")), Visibility::Public);
    assert_eq!(visibility("r.corp, upstreams: {r.corp: {}}"), Visibility::Public);
}

#[test]
fn private_images_are_not_opened_to_other_machines_by_oversight() {
    let text = |server: &str, upstream: &str| {
        format!(
            "server: {{listen: {server}}}\ndefault_upstream: r.corp\nupstreams: {{r.corp: {{{upstream} credentials: {{username: u, password: p}}}}}}\n"
        )
    };
    for open in ["0.0.0.0:5000", "[127.0.0.1:5000, \"[::]:5000\"]", "10.0.0.1:5000"] {
        let mistakes = load(&text(open, ""), &[]).unwrap_err().to_string();
        for key in ["upstreams.r.corp.visibility: public", "server.allow_anonymous_private: true"] {
            assert!(mistakes.contains(key), "{mistakes}");
        }
        assert_eq!(mistakes.lines().count(), 1, "{mistakes}");
    }
    config(&text("\"[::1]:5000\"", ""));
    config(&text("0.0.0.0:5000", "visibility: public,"));
    config(&text("0.0.0.0:5000, allow_anonymous_private: true", ""));
}

#[test]
fn a_name_means_one_upstream() {
    check_mistakes("upstreams: {ghcr.io: {}}", &["config:1:12: default_upstream: is docker.io unless written"]);
    check_mistakes("upstreams: {}", &["config:1:12: default_upstream: is docker.io unless written"]);
    check_mistakes(
        "upstreams: {docker.io: {}, index.docker.io: {}}",
        &["config:1:28: upstreams.index.docker.io: is one namespace with docker.io"],
    );
    check_mistakes(
        "upstreams: {docker.io: {aliases: [ghcr.io]}, ghcr.io: {}}",
        &["config:1:35: upstreams.docker.io.aliases: `ghcr.io` means ghcr.io already"],
    );
    check_mistakes(
        "upstreams: {docker.io: {aliases: [hub]}, ghcr.io: {aliases: [hub]}}",
        &["config:1:62: upstreams.ghcr.io.aliases: `hub` means docker.io already"],
    );
    check_mistakes(
        "upstreams: {docker.io: {aliases: [library]}}",
        &["config:1:35: upstreams.docker.io.aliases: `library` begins the names"],
    );
    check_mistakes(
        "server: {hosts: {a.corp: nowhere.io, \"b.corp:80\": docker.io, c.corp: }}",
        &[
            "config:1:26: server.hosts.a.corp: `nowhere.io` is not an upstream",
            "config:1:38: server.hosts.b.corp:80: leave out the port",
            "config:1:62: server.hosts.c.corp: names no upstream",
        ],
    );
    let config =
        config("{default_upstream: hub, server: {hosts: {m.corp: registry-1.docker.io}}, upstreams: {docker.io: {aliases: [hub]}}}");
    assert_eq!((config.default_upstream.as_str(), config.server.hosts["m.corp"].as_str()), ("docker.io", "docker.io"));
}

#[test]
fn credentials_are_whole_or_a_mistake() {
    let text = |credentials: &str| format!("upstreams:\n  docker.io:\n    credentials: {{{credentials}}}\n");
    check_mistakes(&text("username: u"), &["config:3:18: upstreams.docker.io.credentials.password_file: is missing"]);
    check_mistakes(&text("password: p"), &["config:3:18: upstreams.docker.io.credentials.username: is missing"]);
    check_mistakes(
        &text("username: u, password: p, password_file: /p"),
        &["config:3:42: upstreams.docker.io.credentials.password: stands beside password_file"],
    );
    check_mistakes(
        &text("username: u, password: 1.0"),
        &["config:3:42: upstreams.docker.io.credentials.password: reads as a number or a boolean; put it in quotes"],
    );
    check_mistakes(
        &text("username: \"a:b\", password: p"),
        &["config:3:29: upstreams.docker.io.credentials.username: is empty or has a colon"],
    );
    let config = config(&text("username: u, password_file: /p"));
    let CredentialKind::Password(Credentials { password: Secret::File(path), .. }) = &config.upstreams["docker.io"].credentials[0].kind
    else {
        panic!()
    };
    assert_eq!(path.to_str(), Some("/p"));
}

#[test]
fn a_secret_is_never_shown() {
    let secret = "hunter2";
    let good = config(&format!("upstreams: {{docker.io: {{credentials: {{username: u, password: {secret}}}}}}}"));
    let yaml = good.to_yaml().unwrap();
    assert!(yaml.contains("REDACTED") && !yaml.contains(secret), "{yaml}");
    assert!(!format!("{good:?}").contains(secret));
    for wrong in [
        "password: [hunter2]",
        "password: {hunter2: x}",
        "password: hunter2, password_file: /x",
        "password: hunter2, password: hunter2",
        "passwort: hunter2",
        "password_file: hunter2/../x\n# wrong, but a path",
    ] {
        let text = format!("upstreams: {{docker.io: {{credentials: {{username: u, {wrong}\n}}}}}}");
        let mistakes = load(&text, &[]).unwrap_err();
        let is_path = wrong.contains("password_file: hunter2");
        assert!(is_path || !format!("{mistakes} {mistakes:?}").contains(secret), "{mistakes}");
    }
    check_mistakes(
        "upstreams: {docker.io: {url: \"https://u:hunter2@a.io\"}}",
        &["config:1:30: upstreams.docker.io.url: holds a username or password; write them under credentials"],
    );
}

#[test]
fn a_password_over_plain_http_is_warned_of() {
    let text = "{default_upstream: r.corp, upstreams: {r.corp: {url: \"http://r.corp\", credentials: {username: u, password: p}}}}";
    let (_, warnings) = load(text, &[]).unwrap();
    assert!(warnings.len() == 1 && warnings[0].message.contains("plain text"), "{warnings:?}");
}

#[test]
fn the_environment_wins_over_the_file() {
    let text = "cache: {max_size: 1GiB}\nupstreams: {docker.io: {tag_ttl: 1m}, my-reg.corp:5000: }\n";
    let variables = [
        ("LARDER_CACHE__MAX_SIZE", "2GiB"),
        ("LARDER_SERVER__LISTEN", "127.0.0.1:1, [::1]:2"),
        ("LARDER_SERVER__MAX_CONNECTIONS", "7"),
        ("LARDER_ADMIN__LISTEN", "127.0.0.1:3"),
        ("LARDER_LOG__LEVEL", "debug"),
        ("LARDER_DEFAULT_UPSTREAM", "my-reg.corp:5000"),
        ("LARDER_UPSTREAMS__DOCKER_IO__TAG_TTL", "2m"),
        ("LARDER_UPSTREAMS__MY_REG_CORP_5000__CREDENTIALS__USERNAME", "robot"),
        ("LARDER_UPSTREAMS__MY_REG_CORP_5000__CREDENTIALS__PASSWORD", "1.0"),
        ("LARDER_FILLS__MAX_CONCURRENT", ""),
        ("LARDER_CONFIG", "/nowhere"),
    ];
    let (config, warnings) = load(text, &variables).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.cache.max_size, 2 << 30);
    assert_eq!(config.server.listen, ["127.0.0.1:1", "[::1]:2"].map(|address| Listener::from(address.parse::<SocketAddr>().unwrap())));
    assert_eq!((config.server.max_connections, config.fills.max_concurrent), (7, 64));
    assert_eq!((config.log.level.as_str(), config.default_upstream.as_str()), ("debug", "my-reg.corp:5000"));
    assert_eq!(config.upstreams["docker.io"].tag_ttl, Duration::from_secs(120));
    let CredentialKind::Password(credentials) = &config.upstreams["my-reg.corp:5000"].credentials[0].kind else { panic!() };
    assert_eq!(credentials.username, "robot");
}

/// Of `ghcr.io`, where there is one for each upstream.
fn variable(key: &Key) -> String {
    format!("LARDER_{}", key.path.replace('*', "GHCR_IO").replace('.', "__").to_uppercase())
}

/// One value, or several plain ones; in the entries of a list no variable reaches them.
fn has_variable(key: &Key) -> bool {
    matches!(key.shape, Shape::One | Shape::List | Shape::OneOrMore) && !key.path.starts_with("server.listen.")
}

#[test]
fn every_single_value_has_its_variable() {
    for key in KEYS.iter().filter(|key| has_variable(key)) {
        let variable = variable(key);
        // No value is right for all of them; that it is known shows in what is said of it, if anything is.
        match load("", &[(&variable, "\u{1}")]) {
            Ok((_, warnings)) => assert_eq!(warnings, [], "{variable} {key:?}"),
            Err(mistakes) => assert!(mistakes.to_string().starts_with(&format!("${variable}: ")), "{mistakes}"),
        }
    }
}

#[test]
fn mistakes_in_the_environment_name_the_variable() {
    let mistakes = load("", &[("LARDER_CACHE__TAG_TTL", "soon")]).unwrap_err();
    assert_eq!(mistakes.mistakes[0].place, Place::Variable("LARDER_CACHE__TAG_TTL".into()));
    assert!(mistakes.to_string().starts_with("$LARDER_CACHE__TAG_TTL: cache.tag_ttl: `soon` is not a duration"), "{mistakes}");
    let (_, warnings) = load("", &[("LARDER_CACHE__MAXSIZE", "1GiB"), ("LARDER_PORT", "tcp://10.0.0.1:5000")]).unwrap();
    let lines: Vec<_> = warnings.iter().map(|warning| warning.line("config")).collect();
    assert!(lines[0].contains("LARDER_CACHE__MAXSIZE: no key has this variable; did you mean LARDER_CACHE__MAX_SIZE?"), "{lines:?}");
    assert!(lines[1].contains("LARDER_PORT: no key has this variable"), "{lines:?}");
    let ambiguous =
        load("upstreams: {docker.io: {}, a-b.io: {}, a.b.io: {}}", &[("LARDER_UPSTREAMS__A_B_IO__TAG_TTL", "1m")]).unwrap_err().to_string();
    assert!(ambiguous.contains("upstreams.a-b.io.tag_ttl or upstreams.a.b.io.tag_ttl"), "{ambiguous}");
}

#[test]
fn sizes_that_cannot_be_are_told() {
    check_mistakes(
        "cache: {max_size: 1GiB, max_blob_size: 2GiB}",
        &["config:1:40: cache.max_blob_size: 2147483648 bytes is more than cache.max_size"],
    );
    check_mistakes("cache: {max_size: 10KiB}", &["config:1:19: cache.max_size: `10KiB` is too small; write at least 1MiB"]);
    let (_, warnings) = load("cache: {min_free: 100000TiB}", &[]).unwrap();
    assert!(warnings[0].message.contains("nothing will be stored"), "{warnings:?}");
    check_mistakes("{server: {listen: 127.0.0.1:5001}}", &["config:1:19: admin.listen: 127.0.0.1:5001 is one of server.listen"]);
    let (_, warnings) = load("cache: {max_size: 100000TiB}", &[]).unwrap();
    assert!(warnings[0].message.contains("more than the whole disk"), "{warnings:?}");
}

#[test]
fn questions_to_one_upstream_are_never_more_than_to_all() {
    let limits = |text: &str| {
        let limits = config(text).limits;
        (limits.questions, limits.questions_per_upstream)
    };
    assert_eq!(limits(""), (256, 32));
    assert_eq!(limits("limits: {questions: 9, questions_per_upstream: 8}"), (9, 8));
    assert_eq!(limits("limits: {questions: 5}"), (5, 5));
    check_mistakes(
        "limits: {questions: 0, questions_per_upstream: 65537}",
        &[
            "config:1:21: limits.questions: `0` is not a number from 1 to 65536",
            "config:1:48: limits.questions_per_upstream: `65537` is not a number from 1 to 65536",
        ],
    );
}

#[test]
fn pins_name_an_upstream_a_repository_and_tags() {
    let text = |pins: &str| format!("cache: {{pinned_images: {pins}}}\nupstreams: {{docker.io: {{aliases: [hub]}}}}\n");
    let pins = |written: &str| config(&text(written)).cache.pinned_images.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(pins("[]"), [""; 0]);
    assert_eq!(pins("[hub/alpine:3.*, \"docker.io/team/app:v?\"]"), ["docker.io/library/alpine:3.*", "docker.io/team/app:v?"]);
    assert_eq!(pins("docker.io/a/b:*"), ["docker.io/a/b:*"]);
    for (written, mistake) in [
        ("[alpine:3]", "`alpine:3` names no registry"),
        ("[hub/alpine]", "`hub/alpine` names no tags"),
        ("[quay.io/a:b]", "`quay.io` is not an upstream"),
        ("[\"hub/a:[b]\"]", "`hub/a:[b]` holds `[b]`, which is no pattern of tags"),
    ] {
        check_mistakes(&text(written), &[&format!("config:1:25: cache.pinned_images: {mistake}")]);
    }
}

#[test]
fn files_that_are_named_are_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("larder.yaml");
    let absent = directory.path().join("absent");
    let text =
        format!("upstreams:\n  docker.io:\n    ca_file: {0}\n    credentials: {{username: u, password_file: {0}}}\n", absent.display());
    std::fs::write(&path, &text).unwrap();
    let mistakes = Config::load(Some(&path), home()).unwrap_err().to_string();
    assert!(mistakes.starts_with(&format!("{}:3:14: upstreams.docker.io.ca_file: ", path.display())), "{mistakes}");
    std::fs::write(&path, text.replace("ca_file", "#ca_file")).unwrap();
    let (_, warnings) = Config::load(Some(&path), home()).unwrap();
    assert!(warnings[0].line("f").starts_with("f:4:47: upstreams.docker.io.credentials.password_file: "), "{warnings:?}");
    let none = Config::load(Some(&absent), home()).unwrap_err().to_string();
    assert!(none.contains("absent: cannot be read"), "{none}");
    std::fs::write(&path, "#".repeat(1024 * 1024 + 1)).unwrap();
    assert!(Config::load(Some(&path), home()).unwrap_err().to_string().contains("1 MiB"));
}

#[test]
fn a_certificate_file_must_hold_one() {
    let directory = tempfile::tempdir().unwrap();
    let (path, ca) = (directory.path().join("larder.yaml"), directory.path().join("ca.pem"));
    std::fs::write(&path, format!("upstreams: {{docker.io: {{ca_file: {}}}}}", ca.display())).unwrap();
    std::fs::write(&ca, "not PEM").unwrap();
    assert!(Config::load(Some(&path), home()).unwrap_err().to_string().contains("no certificate"));
    let made = rcgen::generate_simple_self_signed(vec!["r.corp".into()]).unwrap();
    std::fs::write(&ca, made.cert.pem()).unwrap();
    Config::load(Some(&path), home()).unwrap();
}

proptest! {
    /// The parser's C ancestry earns it no trust.
    #[test]
    fn no_text_is_too_strange(text in "[a-z0-9:{}\\[\\],*&!|>#'\"%@`\\- \n\t\u{0}é]{0,200}") {
        let _ = load(&text, &[]);
    }

    #[test]
    fn no_value_is_too_strange(key in 0..KEYS.len(), value in "\\PC{0,40}") {
        let (key, variable) = (&KEYS[key], variable(&KEYS[key]));
        prop_assert!(!has_variable(key) || load("", &[(&variable, &value)]).map_or_else(|mistakes| !mistakes.mistakes.is_empty(), |(_, warnings)| warnings.len() <= 1));
    }
}
