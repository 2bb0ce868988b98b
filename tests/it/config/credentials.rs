//! Credentials as operators write them.

use larder::config::{Config, CredentialKind, Secret, Visibility};
use secrecy::ExposeSecret;

use super::{check_mistakes, config, env, load};

pub(super) const KIND_KEYS: [&str; 10] = [
    "username",
    "password",
    "password_file",
    "identity_token",
    "identity_token_file",
    "registry_token",
    "registry_token_file",
    "docker_config",
    "docker_helper",
    "kubelet_provider",
];

fn text(credentials: &str) -> String {
    format!("upstreams:\n  docker.io:\n    credentials: {credentials}\n")
}

/// What is wrong with one mapping, from its key on.
#[track_caller]
fn check(entry: &str, expected: &[&str]) {
    let mistakes = load(&text(entry), &[]).map(|_| ()).expect_err(entry).to_string();
    let lines: Vec<_> = mistakes.lines().map(|line| line.split_once(": upstreams.docker.io.").map_or(line, |(_, rest)| rest)).collect();
    let fits = lines.len() == expected.len() && lines.iter().zip(expected).all(|(line, start)| line.starts_with(start));
    assert!(fits, "{entry}\n--- gives\n{mistakes}\n--- not\n{}", expected.join("\n"));
}

fn only_kind(entry: &str) -> CredentialKind {
    config(&text(entry)).upstreams["docker.io"].credentials[0].kind.clone()
}

#[test]
fn every_kind_is_taken() {
    let inline = |secret: &Secret| match secret {
        Secret::Inline(text) => text.expose_secret().to_owned(),
        Secret::File(path) => path.display().to_string(),
    };
    for (entry, expected) in [
        ("{username: u, password: p}", "password u p"),
        ("{username: u, password_file: /p}", "password u /p"),
        ("{identity_token: i}", "identity i"),
        ("{identity_token_file: /i}", "identity /i"),
        ("{registry_token: r}", "registry r"),
        ("{registry_token_file: /r}", "registry /r"),
        ("{docker_config: /c.json}", "config /c.json"),
        ("{docker_config: auto}", "search"),
        ("{docker_helper: ecr-login}", "helper ecr-login"),
        ("{docker_helper: my_Helper.v2}", "helper my_Helper.v2"),
        ("{kubelet_provider: /opt/p}", "provider /opt/p"),
        ("{kubelet_provider: [/opt/p, --flag, \"1.0\"]}", "provider /opt/p --flag 1.0"),
    ] {
        let got = match only_kind(entry) {
            CredentialKind::Password(credentials) => format!("password {} {}", credentials.username, inline(&credentials.password)),
            CredentialKind::IdentityToken(token) => format!("identity {}", inline(&token)),
            CredentialKind::RegistryToken(token) => format!("registry {}", inline(&token)),
            CredentialKind::DockerConfig(path) => format!("config {}", path.display()),
            CredentialKind::DockerConfigSearch => "search".into(),
            CredentialKind::DockerHelper(name) => format!("helper {name}"),
            CredentialKind::KubeletProvider(command) => format!("provider {}", command.join(" ")),
        };
        assert_eq!(got, expected);
    }
}

#[test]
fn an_entry_has_one_kind() {
    let kinds = "username with password_file or password; identity_token_file or identity_token; registry_token_file or registry_token; \
                 docker_config; docker_helper; kubelet_provider";
    check("{name: x}", &[&format!("credentials: has no kind; write one of {kinds}")]);
    check("[{username: u, password: p}, {}]", &[&format!("credentials[1]: has no kind; write one of {kinds}")]);
    check("[{username: u, password: p}, ~]", &[&format!("credentials[1]: has no kind; write one of {kinds}")]);
}

#[test]
fn two_kinds_are_a_mistake_that_lists_them() {
    check(
        "{username: u, password: p, docker_config: auto}",
        &["credentials.docker_config: stands beside username, and an entry has one kind; keep one of username with"],
    );
    check("[{docker_helper: x, identity_token: y}]", &["credentials[0].docker_helper: stands beside identity_token"]);
    check(
        "{identity_token: i, identity_token_file: /i}",
        &["credentials.identity_token: stands beside identity_token_file; keep one of the two"],
    );
    check("{registry_token: r, registry_token_file: /r}", &["credentials.registry_token: stands beside registry_token_file"]);
    // Where nothing is written, nothing is wrong.
    assert!(config(&text("{}")).upstreams["docker.io"].credentials.is_empty());
    assert!(config(&text("[]")).upstreams["docker.io"].credentials.is_empty());
}

#[test]
fn what_a_kind_cannot_be_is_told() {
    check("{identity_token: \"\"}", &["credentials.identity_token: is empty; write the token, or identity_token_file"]);
    check("{identity_token: 1e3}", &["credentials.identity_token: reads as a number or a boolean; put it in quotes"]);
    check("{registry_token_file: r}", &["credentials.registry_token_file: `r` is not an absolute path"]);
    check(
        "{docker_config: config.json}",
        &["credentials.docker_config: `config.json` is not an absolute path; a daemon may start anywhere, so begin with /; or write auto"],
    );
    for helper in ["/usr/bin/docker-credential-x", "../x", "a b", "\"\""] {
        check(&format!("{{docker_helper: {helper}}}"), &["credentials.docker_helper: `"]);
    }
    check(
        "{docker_helper: docker-credential-ecr-login}",
        &["credentials.docker_helper: `docker-credential-ecr-login` is the program; leave out docker-credential- and write ecr-login"],
    );
    check(
        "{kubelet_provider: ecr-credential-provider}",
        &["credentials.kubelet_provider: `ecr-credential-provider` is not an absolute path"],
    );
    check("{kubelet_provider: []}", &["credentials.kubelet_provider: names no program"]);
    check("{kubelet_provider: [/p, 1.0]}", &["credentials.kubelet_provider: reads as a number or a boolean; put it in quotes"]);
}

#[test]
fn a_list_s_entries_have_names_and_repositories() {
    let list =
        "[{username: a, password: a, repositories: [org/**, other/app]}, {username: b, password: b, name: ci}, {username: c, password: c}]";
    let config = config(&text(list));
    let credentials = &config.upstreams["docker.io"].credentials;
    assert_eq!(credentials.iter().map(|credential| credential.name.as_str()).collect::<Vec<_>>(), ["default", "ci", "3"]);
    assert_eq!(credentials[0].repositories, ["org/**", "other/app"]);
    assert!(credentials[1].repositories.is_empty());
    assert_eq!(config.upstreams["docker.io"].visibility, Visibility::Public);
}

#[test]
fn names_become_labels_so_they_are_plain_and_unique() {
    let two = |first: &str, second: &str| format!("[{{{first} docker_config: auto}}, {{{second} docker_helper: x}}]");
    check(&two("name: a,", "name: a,"), &["credentials[1].name: `a` is the name of an earlier entry"]);
    check(&two("name: \"2\",", ""), &["credentials[1].name: `2` is the name of an earlier entry"]);
    check(&two("", "name: default,"), &["credentials[1].name: `default` is the name of an earlier entry"]);
    check(&two("name: anonymous,", ""), &["credentials[0].name: `anonymous` is what requests without credentials are called"]);
    for name in ["CI", "a b", "\"\"", "é", "a.b", &"x".repeat(33)] {
        check(&two(&format!("name: {name},"), ""), &["credentials[0].name: `"]);
    }
    config(&text(&two(&format!("name: {},", "x".repeat(32)), "name: a_b-1,")));
}

#[test]
fn a_pattern_of_repositories_that_is_none_is_named() {
    check(
        "{docker_config: auto, repositories: [a/**, b/c**]}",
        &["credentials.repositories: `b/c**` is not a pattern of repositories: ** stands for whole components"],
    );
    check(
        "{docker_config: auto, repositories: Org/app}",
        &["credentials.repositories: `Org/app` is not a pattern of repositories: it holds more than lower-case letters"],
    );
    check("{docker_config: auto, repositories: []}", &["credentials.repositories: is an empty list, which matches nothing"]);
    check_mistakes(
        "upstreams:\n  docker.io:\n    credentials:\n      - docker_config: auto\n        repositories:\n          - a\n          - /b\n",
        &["config:7:13: upstreams.docker.io.credentials[0].repositories: `/b` is not a pattern"],
    );
}

#[test]
fn a_wrong_key_in_an_entry_is_told_with_its_place_and_the_right_one() {
    check_mistakes(
        "upstreams:\n  docker.io:\n    credentials:\n      - {username: u, password: p}\n      - docker_config: auto\n        repositry: [a]\n",
        &[
            "config:6:9: upstreams.docker.io.credentials[1].repositry: unknown key; did you mean upstreams.docker.io.credentials[1].repositories?",
        ],
    );
    check_mistakes(
        &text("[{docker_config: auto, docker_config: auto}]"),
        &["config:3:41: upstreams.docker.io.credentials[0].docker_config: is written twice"],
    );
    check_mistakes(&text("[hunter2]"), &["config:3:19: upstreams.docker.io.credentials[0]: must hold name, repositories, username"]);
    check_mistakes(&text("hunter2"), &["config:3:18: upstreams.docker.io.credentials: must hold name, repositories, username"]);
}

#[test]
fn systemd_s_credentials_are_found_by_their_variable() {
    let text = text("{username: u, password_file: $CREDENTIALS_DIRECTORY/hub/token}");
    let (loaded, _) = load(&text, &[("CREDENTIALS_DIRECTORY", "/run/credentials/larder.service")]).unwrap();
    let CredentialKind::Password(credentials) = &loaded.upstreams["docker.io"].credentials[0].kind else { panic!() };
    assert!(matches!(&credentials.password, Secret::File(path) if path.to_str() == Some("/run/credentials/larder.service/hub/token")));
    let unset = "config:3:47: upstreams.docker.io.credentials.password_file: `$CREDENTIALS_DIRECTORY/hub/token` cannot be found: CREDENTIALS_DIRECTORY is not set";
    check_mistakes(&text, &[unset]);
    for key in ["ca_file", "client_cert_file"] {
        let text = format!("upstreams: {{docker.io: {{{key}: $CREDENTIALS_DIRECTORY//x.pem}}}}");
        let (loaded, _) = load(&text, &[("CREDENTIALS_DIRECTORY", "/run/c")]).unwrap();
        let upstream = &loaded.upstreams["docker.io"];
        assert_eq!(upstream.ca_file.as_ref().or(upstream.client_cert_file.as_ref()).and_then(|path| path.to_str()), Some("/run/c/x.pem"));
        assert!(load(&text, &[]).unwrap_err().to_string().contains(&format!("{key}: `$CREDENTIALS_DIRECTORY//x.pem` cannot be found")));
    }
    check_mistakes(
        "cache: {path: $CREDENTIALS_DIRECTORY/x}",
        &["config:1:15: cache.path: `$CREDENTIALS_DIRECTORY/x` is not an absolute path"],
    );
}

#[test]
fn variables_set_one_mapping_and_reach_into_no_list() {
    let variables = [
        ("LARDER_UPSTREAMS__DOCKER_IO__CREDENTIALS__KUBELET_PROVIDER", "/opt/p,--flag"),
        ("LARDER_UPSTREAMS__DOCKER_IO__CREDENTIALS__REPOSITORIES", "a/**, b"),
        ("LARDER_UPSTREAMS__DOCKER_IO__CREDENTIALS__NAME", "cloud"),
    ];
    let (loaded, warnings) = load("", &variables).unwrap();
    let credential = &loaded.upstreams["docker.io"].credentials[0];
    assert_eq!((credential.name.as_str(), warnings.len()), ("cloud", 0));
    assert_eq!(credential.repositories, ["a/**", "b"]);
    assert!(matches!(&credential.kind, CredentialKind::KubeletProvider(command) if *command == ["/opt/p", "--flag"]));
    let list = text("[{docker_config: auto}]");
    let mistakes = load(&list, &[("LARDER_UPSTREAMS__DOCKER_IO__CREDENTIALS__USERNAME", "u")]).unwrap_err().to_string();
    let expected = "$LARDER_UPSTREAMS__DOCKER_IO__CREDENTIALS__USERNAME: upstreams.docker.io.credentials.username: has no place";
    assert!(mistakes.starts_with(expected), "{mistakes}");
    let mistakes = load(&list, &[("LARDER_UPSTREAMS__DOCKER_IO__CREDENTIALS", "u")]).unwrap().1;
    assert!(mistakes[0].message.contains("no key has this variable"), "{mistakes:?}");
}

#[test]
fn no_kind_s_secret_is_ever_shown() {
    for (entry, wrong) in [
        ("username: u, password: hunter2", "password: [hunter2]"),
        ("identity_token: hunter2", "identity_token: {hunter2: x}"),
        ("registry_token: hunter2", "registry_token: hunter2, registry_token_file: /x"),
        ("identity_token: hunter2", "identity_token: hunter2, registry_token: hunter2"),
    ] {
        for text in [text(&format!("{{{entry}}}")), text(&format!("[{{{entry}}}, {{docker_config: auto}}]"))] {
            let good = config(&text);
            let shown = format!("{}{good:?}", good.to_yaml().unwrap());
            assert!(shown.contains("REDACTED") && !shown.contains("hunter2"), "{shown}");
        }
        for text in [text(&format!("{{{wrong}}}")), text(&format!("[{{{wrong}}}]"))] {
            let mistakes = load(&text, &[]).unwrap_err();
            assert!(!format!("{mistakes} {mistakes:?}").contains("hunter2"), "{mistakes}");
        }
    }
}

#[test]
fn whatever_signs_in_makes_an_unknown_upstream_private() {
    let text = |upstream: &str| {
        format!(
            "{{default_upstream: r.corp, server: {{listen: [127.0.0.1:5000, {{address: \"0.0.0.0:5002\"}}]}}, upstreams: {{r.corp: {{{upstream}}}}}}}"
        )
    };
    for signs_in in [
        "credentials: {username: u, password: p}",
        "credentials: {identity_token: x}",
        "credentials: {registry_token_file: /x}",
        "credentials: {docker_config: auto}",
        "credentials: [{docker_config: /x}]",
        "credentials: {docker_helper: x}",
        "credentials: {kubelet_provider: /x}",
        "client_cert_file: /x",
    ] {
        let mistakes = load(&text(signs_in), &[]).unwrap_err().to_string();
        assert!(mistakes.contains("is private, and server.listen 0.0.0.0:5002 lets any machine read"), "{mistakes}");
        assert_eq!(config(&text(&format!("{signs_in}, visibility: public"))).upstreams["r.corp"].visibility, Visibility::Public);
    }
    config(&text(""));
}

#[test]
fn files_that_are_read_at_each_use_may_be_absent_at_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("larder.yaml");
    for key in ["identity_token_file", "registry_token_file", "docker_config", "kubelet_provider"] {
        for (file, reason) in [(directory.path().join("absent"), "No such file"), (directory.path().to_path_buf(), "it is a directory")] {
            std::fs::write(&path, text(&format!("[{{docker_config: auto}}, {{{key}: {}}}]", file.display()))).unwrap();
            let (_, warnings) = Config::load(Some(&path), env(&[("HOME", "/home/ada")])).unwrap();
            let line = warnings[0].line("f");
            assert!(line.contains(&format!("credentials[1].{key}: ")) && line.contains(reason), "{line}");
        }
    }
}
