//! The conventions by which users already have their logins, from a client's side: each is used, renewed, rotated, and fails alone.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use larder::config::{CredentialConfig, CredentialKind, Secret, Visibility};
use tempfile::TempDir;

use super::{Hub, LATEST, OTHER, line};
use crate::support::larder::Larder;
use crate::support::registry::{Bearer, Fault, any};

fn start(scene: &Hub, kind: CredentialKind) -> Larder {
    let credential = CredentialConfig { name: "default".into(), repositories: Vec::new(), kind };
    scene.setup().hub(|hub| (hub.credentials, hub.visibility) = (vec![credential], Visibility::Private)).start()
}

/// An executable. Written by another process: what a fork of this one holds open for writing cannot be run.
fn script(path: &Path, body: &str) {
    let mut shell = Command::new("sh");
    shell.args(["-c", r#"cat >"$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#]).arg(path);
    let mut shell = shell.stdin(Stdio::piped()).spawn().expect("a shell");
    write!(shell.stdin.take().expect("its input"), "#!/bin/sh\n{body}\n").expect("it reads");
    assert!(shell.wait().expect("its end").success());
}

/// A kubelet credential provider that says the password which stands in the file beside it, and counts its runs.
fn provider(directory: &TempDir, password: &str) -> CredentialKind {
    let path = directory.path().join("provider");
    std::fs::write(directory.path().join("password"), password).expect("a file");
    script(
        &path,
        r#"cd "${0%/*}"; cat >request; echo run >>runs
printf '{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","cacheDuration":"12h0m0s","auth":{"docker.io":{"username":"AWS","password":"%s"}}}' "$(cat password)""#,
    );
    CredentialKind::KubeletProvider(vec![path.to_string_lossy().into_owned()])
}

fn runs(directory: &TempDir) -> usize {
    std::fs::read_to_string(directory.path().join("runs")).unwrap_or_default().lines().count()
}

#[tokio::test]
async fn a_kubelet_provider_is_run_once_for_many_pulls() {
    let (scene, directory) = (Hub::with_other(), tempfile::tempdir().expect("a directory"));
    scene.registry.require_basic("AWS", "twelve-hours");
    let larder = start(&scene, provider(&directory, "twelve-hours"));
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..50 {
        let mut client = larder.client().await;
        let path = if number % 2 == 0 { LATEST } else { OTHER };
        clients.spawn(async move { client.get(path).send().await.status });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.expect("a client"), 200);
    }
    assert_eq!(runs(&directory), 1);
    let request = std::fs::read_to_string(directory.path().join("request")).expect("a request");
    assert!(request.contains("CredentialProviderRequest") && request.contains("docker.io/library/"), "{request}");
}

#[tokio::test]
async fn credential_07_a_403_to_a_login_that_has_expired_renews_it_once() {
    let (scene, directory) = (Hub::with_other(), tempfile::tempdir().expect("a directory"));
    scene.registry.require_basic("AWS", "first");
    let larder = start(&scene, provider(&directory, "first"));
    assert_eq!(larder.get(LATEST).await.status, 200);
    std::fs::write(directory.path().join("password"), "second").expect("a file");
    scene.registry.require_basic("AWS", "second");
    // ECR says 403, not 401, to a password that is older than twelve hours.
    scene.registry.when(any()).first(1).then(Fault::status(403));
    assert_eq!(larder.get(OTHER).await.status, 200);
    assert_eq!(runs(&directory), 2);
    scene.registry.behave();
    scene.registry.when(any()).then(Fault::status(403));
    assert_eq!(line(&larder.get("/v2/library/third/manifests/latest").await), "403 DENIED");
    assert_eq!(line(&larder.get("/v2/library/fourth/manifests/latest").await), "403 DENIED");
    assert_eq!(runs(&directory), 2, "a refusal that is one costs no run");
}

#[tokio::test]
async fn a_program_s_login_that_is_refused_is_asked_for_anew_at_once_and_once() {
    let (scene, directory) = (Hub::with_other(), tempfile::tempdir().expect("a directory"));
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("AWS", "second").credentials_required());
    let kind = provider(&directory, "first");
    let path = directory.path().join("provider");
    let body = std::fs::read_to_string(&path).expect("the script");
    // By its second run the password has been rotated.
    script(&path, &body.replace("$(cat password)", "$([ $(wc -l <runs) = 1 ] && echo first || cat password)"));
    std::fs::write(directory.path().join("password"), "second").expect("a file");
    let larder = start(&scene, kind);
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert_eq!((runs(&directory), scene.registry.token_requests()), (2, 3), "two for the login that was refused");
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("AWS", "third").credentials_required());
    for _ in 0..5 {
        assert_eq!(larder.get(OTHER).await.status, 502, "it says the same again");
    }
    assert_eq!(scene.registry.token_requests(), 5, "the repository's, the sign-in's, and then it is held off");
}

#[tokio::test]
async fn credential_19_a_program_that_fails_is_our_fault_and_nobody_slides_to_anonymous() {
    for body in ["exit 1", "echo canary-5f3a; exit 1", "echo canary-5f3a"] {
        let (scene, directory) = (Hub::with_other(), tempfile::tempdir().expect("a directory"));
        let path = directory.path().join("provider");
        script(&path, body);
        let larder = start(&scene, CredentialKind::KubeletProvider(vec![path.to_string_lossy().into_owned()]));
        let reply = larder.get(LATEST).await;
        assert_eq!(line(&reply), "502 UNAVAILABLE", "{body}");
        assert!(!reply.text().contains("canary"), "{}", reply.text());
        assert_eq!(scene.registry.count(any()), 0, "nobody is asked as nobody");
    }
}

#[tokio::test]
async fn credential_16_docker_s_and_kubernetes_files_are_read_and_read_again() {
    let entry = |password: &str| format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(format!("me:{password}")));
    for (name, before, after) in [
        ("config.json", r#"{"auths":{"https://index.docker.io/v1/":"#, "}}"),
        ("auth.json", r#"{"auths":{"docker.io/library":"#, "}}"),
        (".dockerconfigjson", r#"{"auths":{"broken":{"auth":"%"},"registry-1.docker.io":"#, "}}"),
        (".dockercfg", r#"{"index.docker.io":"#, "}"),
    ] {
        let (scene, directory) = (Hub::with_other(), tempfile::tempdir().expect("a directory"));
        let write = |generation: &str, password: &str| {
            let volume = directory.path();
            std::fs::create_dir_all(volume.join(generation)).expect("a folder");
            std::fs::write(volume.join(generation).join(name), format!("{before}{}{after}", entry(password))).expect("a file");
            // As Kubernetes publishes a secret: all at once, by a link.
            std::os::unix::fs::symlink(generation, volume.join("..new")).expect("a link");
            std::fs::rename(volume.join("..new"), volume.join("..data")).expect("a swap");
        };
        write("one", "old");
        scene.registry.require_basic("me", "old");
        let larder = start(&scene, CredentialKind::DockerConfig(directory.path().join("..data").join(name)));
        assert_eq!(larder.get(LATEST).await.status, 200, "{name}");
        write("two", "new");
        scene.registry.require_basic("me", "new");
        assert_eq!(larder.get(OTHER).await.status, 200, "{name}: rotated");
    }
}

#[tokio::test]
async fn credential_20_an_identity_token_from_docker_s_file_is_exchanged_and_a_registry_token_is_sent() {
    let scene = Hub::with_other();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("config.json");
    let write = |field: &str, token: &str| {
        std::fs::write(&file, format!(r#"{{"auths":{{"docker.io":{{"{field}":"{token}"}}}}}}"#)).expect("a file")
    };
    write("identitytoken", "refresh-me");
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").identity_token("refresh-me").credentials_required());
    let larder = start(&scene, CredentialKind::DockerConfig(file.clone()));
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert_eq!(scene.registry.seen(any().token())[0].method.as_str(), "POST");
    write("registrytoken", "as-it-is");
    scene.registry.open_to_all();
    scene.registry.forget_requests();
    assert_eq!(larder.get(OTHER).await.status, 200);
    assert!(scene.registry.requests().iter().all(|request| request.authorization() == Some("Bearer as-it-is")));
}

#[tokio::test]
async fn a_token_file_is_read_at_each_use() {
    let scene = Hub::with_other();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("token");
    std::fs::write(&file, "one\n").expect("a file");
    let larder = start(&scene, CredentialKind::RegistryToken(Secret::File(file.clone())));
    assert_eq!(larder.get(LATEST).await.status, 200);
    std::fs::write(&file, "two\n").expect("a file");
    assert_eq!(larder.get(OTHER).await.status, 200);
    let sent: Vec<_> = scene.registry.requests().iter().filter_map(|request| request.authorization().map(str::to_owned)).collect();
    assert!(sent.first().is_some_and(|sent| sent == "Bearer one") && sent.last().is_some_and(|sent| sent == "Bearer two"), "{sent:?}");
    std::fs::remove_file(&file).expect("it was there");
    assert_eq!(line(&larder.get("/v2/library/third/manifests/latest").await), "502 UNAVAILABLE");
}
