//! docker's and podman's files, and the helpers that they name.

use super::scripts::Scripts;
use super::*;

fn config(registry: &str, username: &str) -> String {
    format!(r#"{{"auths":{{"{registry}":{{"auth":"{}"}}}}}}"#, STANDARD.encode(format!("{username}:p")))
}

fn put(path: &Path, content: &str) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    std::fs::write(path, content).expect("a file");
}

#[tokio::test]
async fn credential_16_the_first_file_that_has_a_login_says_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path().to_str().expect("text");
    let path = |name: &str| directory.path().join(name);
    let variable = config("in-variable.example", "variable");
    let variables = [
        ("HOME", root.to_owned()),
        ("DOCKER_AUTH_CONFIG", variable),
        ("REGISTRY_AUTH_FILE", format!("{root}/named.json")),
        ("XDG_RUNTIME_DIR", format!("{root}/run")),
    ];
    let environment: Environment = variables.into_iter().collect();
    let login = async |registry: &str| written(&source(CredentialKind::DockerConfigSearch, registry, &environment, LIMITS), "a/b").await;
    put(&path("named.json"), &config("in-named.example", "named"));
    put(&path(".docker/config.json"), &config("https://index.docker.io/v1/", "docker"));
    put(&path("run/containers/auth.json"), &config("docker.io", "podman"));
    put(&path(".config/containers/auth.json"), &config("in-home.example/a", "home"));
    put(&path(".dockercfg"), r#"{"in-dockercfg.example":{"username":"old","password":"p"}}"#);
    for (registry, meant) in [
        ("in-variable.example", "b:variable:p"),
        ("in-named.example", "b:named:p"),
        ("docker.io", "b:docker:p"),
        ("in-home.example", "b:home:p"),
        ("in-dockercfg.example", "b:old:p"),
        ("nowhere.example", "anonymous"),
    ] {
        assert_eq!(login(registry).await, meant, "{registry}");
    }

    put(&path(".docker/config.json"), "hunter2");
    assert_eq!(login("docker.io").await, "b:podman:p");
    let why = login("nowhere.example").await;
    assert!(why.ends_with(".docker/config.json: it is not a JSON object (line 1, column 1)"), "{why}");
    std::fs::remove_file(path("named.json")).expect("it was there");
    let why = login("nowhere.example").await;
    assert!(why.contains("named.json: No such file"), "{why}");
}

#[tokio::test]
async fn a_variable_that_is_no_configuration_is_told_without_its_words() {
    let environment: Environment = [("DOCKER_AUTH_CONFIG", r#""hunter2""#)].into_iter().collect();
    let why = written(&source(CredentialKind::DockerConfigSearch, "ghcr.io", &environment, LIMITS), "a").await;
    assert!(why.starts_with("DOCKER_AUTH_CONFIG: it is not a JSON object") && !why.contains("hunter2"), "{why}");
}

#[tokio::test]
async fn a_configured_file_that_is_not_there_is_not_the_same_as_no_login() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("config.json");
    let source = source(CredentialKind::DockerConfig(path.clone()), "ghcr.io", &Environment::default(), LIMITS);
    assert!(written(&source, "a").await.contains("No such file"));
    put(&path, &config("quay.io", "me"));
    assert_eq!(written(&source, "a").await, "anonymous");
    put(&path, &config("ghcr.io", "me"));
    assert_eq!(written(&source, "a").await, "b:me:p");
}

#[tokio::test]
async fn credential_18_logins_of_one_file_are_chosen_by_the_repository() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("auth.json");
    put(
        &path,
        r#"{"auths":{"quay.io":{"username":"all","password":"p"},"quay.io/org/app":{"username":"app","password":"p"},"quay.io/org":{"auth":"!"}}}"#,
    );
    let source = source(CredentialKind::DockerConfig(path), "quay.io", &Environment::default(), LIMITS);
    assert_eq!(written(&source, "org/app").await, "b:app:p");
    assert_eq!(written(&source, "org/other").await, "b:all:p");
}

#[tokio::test]
async fn a_helper_that_a_file_names_is_asked_first_and_the_file_s_login_is_for_when_it_knows_none() {
    let scripts = Scripts::new();
    let path = scripts.path("config.json");
    let auths = r#""auths":{"quay.io":{"username":"inline","password":"p"}}"#;
    put(&path, &format!(r#"{{{auths},"credsStore":"store","credHelpers":{{"ghcr.io":"own"}}}}"#));
    scripts.write("docker-credential-own", r#"read url; printf '{"Username":"%s","Secret":"own"}' "$url""#);
    scripts.write("docker-credential-store", "echo credentials not found in native keychain; exit 1");
    let at = |registry: &str| source(CredentialKind::DockerConfig(path.clone()), registry, &scripts.environment(), LIMITS);
    assert_eq!(written(&at("ghcr.io"), "a").await, "b:ghcr.io:own");
    assert_eq!(written(&at("quay.io"), "a").await, "b:inline:p");
    assert_eq!(written(&at("gcr.io"), "a").await, "anonymous");
    scripts.write("docker-credential-store", "echo hunter2; exit 3");
    assert_eq!(written(&at("quay.io"), "a").await, "docker-credential-store failed: exit status: 3");

    scripts.write(
        "docker-credential-own",
        r#"echo run >>"${0%/*}/runs"; printf '{"Username":"me","Secret":"%s"}' "$(wc -l <"${0%/*}/runs")""#,
    );
    let source = at("ghcr.io");
    assert_eq!(written(&source, "a").await, "b:me:1");
    assert_eq!(written(&source, "a").await, "b:me:1");
    source.refused(&source.login(&repository("a")).await.expect("a login").version);
    assert_eq!(written(&source, "a").await, "b:me:2");
}

#[tokio::test]
async fn a_helper_s_name_in_a_file_cannot_name_another_program() {
    let scripts = Scripts::new();
    std::fs::create_dir(scripts.path("docker-credential-")).expect("a folder");
    scripts.write("evil", "echo run >\"${0%/*}/runs\"");
    let path = scripts.path("config.json");
    put(&path, r#"{"auths":{},"credsStore":"/../evil"}"#);
    let why = written(&source(CredentialKind::DockerConfig(path), "ghcr.io", &scripts.environment(), LIMITS), "a").await;
    assert!(why.ends_with("is no helper's name"), "{why}");
    assert_eq!(scripts.lines("runs"), Vec::<String>::new());
}
