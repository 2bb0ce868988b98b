//! A bad password: held off, told, never tried often enough to lock an account, and forgotten when it changes.

use larder::config::{CredentialConfig, CredentialKind, Credentials, Secret, Visibility};

use super::{HOUR, Hub, LATEST, OTHER, credential, line};
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::registry::{Bearer, FakeRegistry, Fault, any};

fn private(setup: Setup, credentials: Vec<CredentialConfig>) -> Larder {
    setup
        .hub(|hub| {
            hub.credentials = credentials;
            hub.visibility = Visibility::Private;
        })
        .start()
}

/// Requests that carried this authorization.
fn tried(registry: &FakeRegistry, scheme: &str) -> usize {
    registry.requests().iter().filter(|request| request.authorization().is_some_and(|sent| sent.starts_with(scheme))).count()
}

#[tokio::test(start_paused = true)]
/// Once for a repository, and once for none: only the sign-in without a scope decides about a login.
async fn a_bad_password_is_tried_twice_whether_50_ask_at_once_or_later() {
    for by_token in [true, false] {
        let scene = Hub::with_other();
        if by_token {
            scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "right"));
        } else {
            scene.registry.require_basic("me", "right");
        }
        let larder = private(scene.setup(), vec![credential("default", "me", "wrong")]);
        let mut clients = Vec::new();
        for number in 0..50 {
            let mut client = larder.client().await;
            clients.push(tokio::spawn(async move { client.get(&format!("/v2/library/app{number}/manifests/latest")).send().await }));
        }
        for client in clients {
            assert_eq!(client.await.expect("a client").status, 502);
        }
        assert_eq!(larder.get(LATEST).await.status, 502);
        assert_eq!(tried(&scene.registry, "Basic"), 2, "by_token: {by_token}");
        tokio::time::sleep(HOUR).await;
        assert_eq!(larder.get(LATEST).await.status, 502);
        assert_eq!(tried(&scene.registry, "Basic"), 3, "and once more after the hold-off");
        assert!(larder.metric(r#"larder_upstream_errors_total{reason="credential",upstream="docker.io"}"#) >= 50.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_password_that_goes_bad_serves_stale_and_works_again_when_its_file_changes() {
    let scene = Hub::with_other();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "old\n").expect("a file");
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "old"));
    let kind = CredentialKind::Password(Credentials { username: "me".into(), password: Secret::File(file.clone()) });
    let larder = private(scene.setup(), vec![CredentialConfig { name: "default".into(), repositories: Vec::new(), kind }]);
    scene.pull(&larder).await;
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "new"));
    larder.clock.advance(HOUR);
    tokio::time::sleep(HOUR).await;
    assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-unavailable");
    assert_eq!(line(&larder.get(OTHER).await), "502 UNAVAILABLE");
    scene.registry.forget_requests();
    assert_eq!(larder.get(OTHER).await.status, 502);
    assert_eq!(scene.registry.token_requests(), 0, "held off");
    std::fs::write(&file, "new\n").expect("a file");
    assert_eq!(larder.get(OTHER).await.status, 200, "at once");
    assert_eq!(scene.registry.token_requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rotated_password_is_read_again_once_after_a_401() {
    let scene = Hub::with_other();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "old").expect("a file");
    scene.registry.require_basic("me", "old");
    let kind = CredentialKind::Password(Credentials { username: "me".into(), password: Secret::File(file.clone()) });
    let larder = private(scene.setup(), vec![CredentialConfig { name: "default".into(), repositories: Vec::new(), kind }]);
    assert_eq!(larder.get(LATEST).await.status, 200);
    scene.registry.require_basic("me", "new");
    std::fs::write(&file, "new").expect("a file");
    assert_eq!(larder.get(OTHER).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_makes_way_for_the_next_of_the_same_repositories() {
    let scene = Hub::with_other();
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "right"));
    let larder = private(scene.setup(), vec![credential("one", "me", "wrong"), credential("two", "me", "right")]);
    assert_eq!((larder.get(LATEST).await.status, larder.get(OTHER).await.status), (200, 200));
    let logins = scene.registry.seen(any().token());
    let wrong = logins.iter().filter(|request| request.authorization() == logins[0].authorization()).count();
    assert_eq!(wrong, 2, "the repository's, and the sign-in's: {logins:#?}");
}

#[tokio::test]
async fn the_longest_match_is_used_alone() {
    let scene = Hub::with_other();
    scene.registry.push_image("org/app", "latest", &[100], 3);
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "right"));
    let org = CredentialConfig { repositories: vec!["org/**".into()], ..credential("org", "me", "wrong") };
    let larder = private(scene.setup(), vec![credential("all", "me", "right"), org]);
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert_eq!(larder.get("/v2/org/app/manifests/latest").await.status, 502, "the one for all is not tried");
}

#[tokio::test]
async fn registry_17_an_identity_token_is_exchanged_by_post() {
    let scene = Hub::with_other();
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").identity_token("refresh-me").credentials_required());
    let token = |token: &str| CredentialConfig {
        name: "default".into(),
        repositories: Vec::new(),
        kind: CredentialKind::IdentityToken(Secret::Inline(token.into())),
    };
    let larder = private(scene.setup(), vec![token("refresh-me")]);
    assert_eq!(larder.get(LATEST).await.status, 200);
    let asked = scene.registry.seen(any().token());
    assert_eq!((asked.len(), asked[0].method.as_str(), asked[0].query.as_str()), (1, "POST", ""));
    let body = String::from_utf8_lossy(&asked[0].body).into_owned();
    for field in
        ["grant_type=refresh_token", "refresh_token=refresh-me", "service=fake-registry", "scope=repository%3Alibrary%2Fapp%3Apull"]
    {
        assert!(body.split('&').any(|other| other == field), "{field} in {body}");
    }
    let larder = private(scene.setup(), vec![token("expired")]);
    assert_eq!(larder.get(LATEST).await.status, 502);
}

#[tokio::test]
async fn credential_20_a_registry_token_is_sent_as_it_is() {
    let scene = Hub::with_other();
    scene
        .registry
        .when(any().without_header("authorization"))
        .then(Fault::status(401).header("www-authenticate", "Bearer realm=\"http://hub.test/token\""));
    let kind = CredentialKind::RegistryToken(Secret::Inline("as-it-is".into()));
    let larder = private(scene.setup(), vec![CredentialConfig { name: "default".into(), repositories: Vec::new(), kind }]);
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert_eq!(scene.registry.token_requests(), 0);
    assert!(scene.registry.requests().iter().all(|request| request.authorization() == Some("Bearer as-it-is")));
}

/// A credential provider whose password is the number of times it was run.
fn counting(folder: &std::path::Path) -> CredentialKind {
    use std::os::unix::fs::PermissionsExt;
    let program = folder.join("plugin");
    let answer = r#"{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"Registry",
        "cacheDuration":"12h0m0s","auth":{"*.dkr.ecr.*.amazonaws.com":{"username":"AWS","password":"%s"}}}"#;
    let script = format!("#!/bin/sh\ncd \"${{0%/*}}\"; echo run >>runs; printf '{answer}' \"$(($(wc -l <runs)))\"\n");
    std::fs::write(&program, script).expect("a file");
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a program");
    CredentialKind::KubeletProvider(vec![program.to_str().expect("text").into()])
}

#[tokio::test]
async fn credential_07_a_login_that_expired_is_renewed_once_though_a_403_is_all_that_tells() {
    const NAME: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let expired = || Fault::status(403).body(r#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired."}]}"#);
    let directory = tempfile::tempdir().expect("a directory");
    let runs = || std::fs::read_to_string(directory.path().join("runs")).expect("a file").lines().count();
    let scene = Hub::with_other();
    let credentials = vec![CredentialConfig { name: "default".into(), repositories: Vec::new(), kind: counting(directory.path()) }];
    let larder = scene.setup().upstream(larder::config::UpstreamConfig {
        credentials,
        visibility: Visibility::Private,
        ..upstream(NAME, "hub.test")
    });
    let larder = larder.start();
    scene.registry.require_basic("AWS", "1");
    assert_eq!(larder.get(&format!("/{NAME}{LATEST}")).await.status, 200);
    scene.registry.require_basic("AWS", "2");
    scene.registry.when(any()).first(1).then(expired());
    scene.registry.forget_requests();
    assert_eq!(larder.get(&format!("/{NAME}{OTHER}")).await.status, 200);
    assert_eq!(runs(), 2);
    assert_eq!(tried(&scene.registry, "Basic"), 3, "refused, HEAD or GET again, and what follows");
    // A refusal that is none about the login costs no further run, and is one.
    scene.registry.when(any()).then(expired());
    scene.registry.forget_requests();
    assert_eq!(line(&larder.get(&format!("/{NAME}/v2/library/denied/manifests/latest")).await), "403 DENIED");
    assert_eq!((runs(), tried(&scene.registry, "Basic")), (2, 1));
}

#[tokio::test]
async fn a_thousand_clients_of_one_repository_cost_one_token() {
    let scene = Hub::with_other();
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "right").credentials_required());
    let larder = private(scene.setup(), vec![credential("default", "me", "right")]);
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..1000 {
        let mut client = larder.client().await;
        clients.spawn(async move { client.get(&format!("/v2/library/app/manifests/missing{number}")).send().await.status });
    }
    while let Some(status) = clients.join_next().await {
        assert_eq!(status.expect("a client"), 404);
    }
    assert_eq!(scene.registry.token_requests(), 1);
}
