//! What one repository, or one scope, says about a login stays there: the sign-in without a scope alone decides for all.

use std::time::Duration;

use larder::config::{CredentialConfig, CredentialKind, Secret, Visibility};
use tokio::time::Instant;

use super::{HOUR, Hub, LATEST, credential, line, retry_after};
use crate::support::larder::Larder;
use crate::support::registry::{Bearer, FakeRegistry, Fault, Latch, any, get, post};

const GOOD_A: &str = "/v2/good/a/manifests/latest";
const GOOD_B: &str = "/v2/good/b/manifests/latest";
const DENIED: &str = "/v2/denied/x/manifests/latest";
const REALM: &str = "http://hub.test/token";

/// `good/a`, `good/b` and `denied/x` behind one login.
fn scene() -> Hub {
    let scene = Hub::with_other();
    for (seed, repository) in ["good/a", "good/b", "denied/x"].into_iter().enumerate() {
        scene.registry.push_image(repository, "latest", &[100], 10 + seed as u64);
    }
    scene
}

fn private(scene: &Hub, kind: CredentialKind) -> Larder {
    let credential = CredentialConfig { name: "default".into(), repositories: Vec::new(), kind };
    scene.setup().hub(|hub| (hub.credentials, hub.visibility) = (vec![credential], Visibility::Private)).start()
}

fn password() -> CredentialKind {
    credential("default", "me", "right").kind
}

/// Basic, and `denied/x` refuses it.
fn basic(registry: &FakeRegistry) {
    registry.require_basic("me", "right");
    let refusal = Fault::status(401).header("www-authenticate", "Basic realm=\"fake-registry\"");
    registry.when(any().of("/denied/x/")).then(refusal);
}

/// Tokens, and the token server refuses the scope of `denied/x`.
fn token(registry: &FakeRegistry, refusal: impl Into<Fault>) {
    registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    registry.when(get().token().of("denied")).then(refusal);
}

/// Requests that showed the login.
fn shown(registry: &FakeRegistry) -> usize {
    let is_login = |header: &str| header.starts_with("Basic") || header == "Bearer as-it-is";
    registry.requests().iter().filter(|request| request.authorization().is_some_and(is_login)).count()
}

async fn is_denied_alone(larder: &Larder, registry: &FakeRegistry, what: &str) {
    assert_eq!(larder.get(GOOD_A).await.status, 200, "{what}: accepted");
    assert_eq!(line(&larder.get(DENIED).await), "403 DENIED", "{what}");
    assert_eq!(larder.get(GOOD_B).await.status, 200, "{what}: another repository");
    registry.forget_requests();
    for _ in 0..10 {
        assert_eq!(line(&larder.get(DENIED).await), "403 DENIED", "{what}");
    }
    assert_eq!(registry.count(any()), 0, "{what}: remembered");
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(line(&larder.get(DENIED).await), "403 DENIED", "{what}: asked again");
    assert!(shown(registry) <= 1, "{what}: without another sign-in: {:#?}", registry.requests());
}

#[tokio::test(start_paused = true)]
async fn a_repository_that_refuses_an_accepted_login_is_denied_and_the_others_go_on() {
    let refused = || Fault::status(401).body(r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#);
    let scene = scene();
    basic(&scene.registry);
    is_denied_alone(&private(&scene, password()), &scene.registry, "Basic").await;
    scene.registry.behave();
    token(&scene.registry, refused());
    is_denied_alone(&private(&scene, password()), &scene.registry, "a token").await;
}

#[tokio::test(start_paused = true)]
async fn an_identity_token_that_is_refused_for_one_scope_stays_good_for_the_others() {
    for status in [400, 401] {
        let scene = scene();
        scene.registry.require_bearer(Bearer::at(REALM).identity_token("refresh-me").credentials_required());
        // The scope is in the body, so it is the second form: `good/a`, `denied/x`, the sign-in, `good/b`.
        scene.registry.when(post().token()).nth(2).then(Fault::status(status).body(r#"{"error":"invalid_grant"}"#));
        let larder = private(&scene, CredentialKind::IdentityToken(Secret::Inline("refresh-me".into())));
        assert_eq!(larder.get(GOOD_A).await.status, 200);
        assert_eq!(line(&larder.get(DENIED).await), "403 DENIED", "{status}");
        assert_eq!(larder.get(GOOD_B).await.status, 200, "{status}");
        let forms = scene.registry.seen(post().token());
        let scopes: Vec<bool> = forms.iter().map(|form| String::from_utf8_lossy(&form.body).contains("scope=")).collect();
        assert_eq!(scopes, [true, true, false, true], "one sign-in, without a scope");
    }
}

#[tokio::test(start_paused = true)]
async fn a_registry_token_that_is_refused_by_one_repository_stays_good_for_the_others() {
    let scene = scene();
    let challenge = || Fault::status(401).header("www-authenticate", "Bearer realm=\"http://hub.test/token\"");
    scene.registry.when(any().without_header("authorization")).then(challenge());
    scene.registry.when(any().of("/denied/x/")).then(challenge());
    let larder = private(&scene, CredentialKind::RegistryToken(Secret::Inline("as-it-is".into())));
    is_denied_alone(&larder, &scene.registry, "a registry token").await;
    assert_eq!(scene.registry.token_requests(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_one_scope_holds_up_that_repository_alone() {
    let scene = scene();
    token(&scene.registry, Fault::status(429).header("retry-after", 3600));
    let larder = private(&scene, password());
    assert_eq!(larder.get(GOOD_A).await.status, 200);
    let limited = larder.get(DENIED).await;
    assert_eq!((line(&limited).as_str(), retry_after(&limited)), ("503 TOOMANYREQUESTS", 3600));
    assert_eq!(larder.get(GOOD_B).await.status, 200);
    scene.registry.forget_requests();
    tokio::time::sleep(Duration::from_secs(1800)).await;
    assert_eq!(retry_after(&larder.get(DENIED).await), 1800);
    assert_eq!(scene.registry.count(any()), 0, "not asked before that");
    scene.registry.behave();
    tokio::time::sleep(Duration::from_secs(1801)).await;
    assert_eq!(larder.get(DENIED).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_the_login_holds_up_every_repository_after_one_sign_in() {
    let scene = scene();
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right"));
    let larder = private(&scene, password());
    assert_eq!(larder.get(GOOD_A).await.status, 200);
    scene.registry.when(any().token()).then(Fault::status(429).header("retry-after", 600));
    scene.registry.forget_requests();
    for path in [GOOD_B, DENIED, GOOD_B, DENIED] {
        assert_eq!(line(&larder.get(path).await), "503 TOOMANYREQUESTS");
    }
    assert_eq!(scene.registry.token_requests(), 2, "the repository's, and the sign-in's");
}

/// The first question of all goes to the repository that refuses: nobody has accepted the login yet.
#[tokio::test(start_paused = true)]
async fn a_login_that_nobody_has_accepted_is_decided_by_the_sign_in_at_once() {
    for (what, limited) in [("Basic", false), ("a token", false), ("a token", true)] {
        let scene = scene();
        match (what, limited) {
            ("Basic", _) => basic(&scene.registry),
            (_, true) => token(&scene.registry, Fault::status(429).header("retry-after", 3600)),
            _ => token(&scene.registry, Fault::status(401)),
        }
        let larder = private(&scene, password());
        let denied = if limited { "503 TOOMANYREQUESTS" } else { "403 DENIED" };
        assert_eq!(line(&larder.get(DENIED).await), denied, "{what}");
        assert_eq!(shown(&scene.registry), 2, "{what}: the repository's, and the sign-in's");
        assert_eq!(larder.get(GOOD_A).await.status, 200, "{what}");
        assert_eq!(larder.get(GOOD_B).await.status, 200, "{what}");
        assert_eq!(line(&larder.get(DENIED).await), denied, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn good_repositories_are_served_while_a_denied_one_is_asked_for_all_the_time() {
    for by_token in [true, false] {
        let scene = scene();
        if by_token {
            token(&scene.registry, Fault::status(401))
        } else {
            basic(&scene.registry)
        }
        let larder = private(&scene, password());
        assert_eq!(larder.get(GOOD_A).await.status, 200);
        let mut clients = tokio::task::JoinSet::new();
        for path in [GOOD_A, DENIED, GOOD_B].into_iter().cycle().take(90) {
            let mut client = larder.client().await;
            clients.spawn(async move { (path, client.get(path).send().await.status) });
        }
        for (path, status) in clients.join_all().await {
            assert_eq!(status, if path == DENIED { 403 } else { 200 }, "{path}, by token: {by_token}");
        }
    }
}

/// Where `/v2/` says the same to everybody, nobody can say whether the login is good elsewhere.
#[tokio::test(start_paused = true)]
async fn where_the_ping_cannot_tell_the_doubt_stays_with_the_repository() {
    for ping in [200, 404, 503] {
        let scene = scene();
        basic(&scene.registry);
        scene.registry.when(any().ping()).then(Fault::status(ping));
        let larder = private(&scene, password());
        assert_eq!(larder.get(GOOD_A).await.status, 200);
        assert_eq!(line(&larder.get(DENIED).await), "502 UNAVAILABLE", "{ping}");
        assert_eq!(larder.get(GOOD_B).await.status, 200, "{ping}");
        scene.registry.forget_requests();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(line(&larder.get(DENIED).await), "502 UNAVAILABLE", "{ping}");
        assert_eq!(shown(&scene.registry), 0, "{ping}: held off there");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_password_is_shown_twice_at_most_however_many_repositories_ask() {
    for (by_token, ping_is_open) in [(true, false), (false, false), (false, true)] {
        let scene = scene();
        if by_token {
            scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "another"));
        } else {
            scene.registry.require_basic("me", "another");
        }
        if ping_is_open {
            scene.registry.when(any().ping()).then(Fault::status(200));
        }
        let larder = private(&scene, password());
        for number in 0..50 {
            assert_eq!(larder.get(&format!("/v2/team/app{number}/manifests/latest")).await.status, 502);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        // Where the ping cannot tell: the sign-in, and the three repositories that are asked before it is held off for all.
        let most = if ping_is_open { 4 } else { 2 };
        assert!(shown(&scene.registry) <= most, "by token: {by_token}, open: {ping_is_open}: {}", shown(&scene.registry));
        scene.registry.forget_requests();
        tokio::time::sleep(HOUR).await;
        for number in 0..100 {
            assert_eq!(larder.get(&format!("/v2/team/app{number}/manifests/latest")).await.status, 502);
        }
        let most = if ping_is_open { 2 } else { 1 };
        assert!(shown(&scene.registry) <= most, "by token: {by_token}, open: {ping_is_open}: {}", shown(&scene.registry));
    }
}

/// At a registry of tokens every login that is sent as it is gets 401: its token server decides.
#[tokio::test(start_paused = true)]
async fn a_repository_that_asks_for_basic_where_others_ask_for_tokens_is_denied_alone() {
    let scene = scene();
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    let refusal = Fault::status(401).header("www-authenticate", "Basic realm=\"fake-registry\"");
    scene.registry.when(any().of("/denied/x/")).then(refusal);
    let larder = private(&scene, password());
    assert_eq!(larder.get(GOOD_A).await.status, 200);
    assert_eq!(line(&larder.get(DENIED).await), "403 DENIED");
    assert_eq!(larder.get(GOOD_B).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_password_that_goes_bad_is_found_out_by_the_sign_in_and_served_stale() {
    let scene = scene();
    scene.registry.require_basic("me", "right");
    let larder = private(&scene, password());
    scene.pull(&larder).await;
    // What has been read to its end is not yet stored.
    while larder.metric("larder_fills_in_flight") > 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    scene.registry.require_basic("me", "another");
    larder.clock.advance(HOUR);
    tokio::time::sleep(HOUR).await;
    scene.registry.forget_requests();
    for _ in 0..5 {
        assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-unavailable");
        assert_eq!(line(&larder.get(GOOD_B).await), "502 UNAVAILABLE");
    }
    assert_eq!(shown(&scene.registry), 2, "a repository, and the sign-in");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_and_twenty_cold_repositories_behind_a_slow_token_server_are_served_within_seconds() {
    const REPOSITORIES: u64 = 120;
    let scene = scene();
    for number in 0..REPOSITORIES {
        scene.registry.push_image(&format!("cold/app{number}"), "latest", &[100], 100 + number);
    }
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    scene.registry.when(any().token()).then(Fault::Delay(Duration::from_secs(1)));
    let larder = private(&scene, password());
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for number in 0..REPOSITORIES {
        let mut client = larder.client().await;
        clients.spawn(async move { client.get(&format!("/v2/cold/app{number}/manifests/latest")).send().await.status });
    }
    let statuses = clients.join_all().await;
    let good = statuses.iter().filter(|status| **status == 200).count();
    assert_eq!(good, 120, "{statuses:?}");
    assert!(begun.elapsed() <= Duration::from_secs(8), "{:?}", begun.elapsed());
}

/// Their questions were under way when the login went bad, and are refused one after the other.
#[tokio::test(start_paused = true)]
async fn refusals_that_come_late_ask_for_no_further_sign_in() {
    for by_token in [true, false] {
        let scene = scene();
        let wants = |registry: &FakeRegistry, password: &str| match by_token {
            true => registry.require_bearer(Bearer::at(REALM).credentials("me", password).credentials_required()),
            false => registry.require_basic("me", password),
        };
        wants(&scene.registry, "right");
        let larder = private(&scene, password());
        assert_eq!(larder.get(GOOD_A).await.status, 200);
        wants(&scene.registry, "another");
        let mut clients = tokio::task::JoinSet::new();
        for number in 0..12 {
            let name = format!("app{number}x");
            let slow = if by_token { get().token().of(&name) } else { any().of(&name) };
            scene.registry.when(slow).then(Fault::Delay(Duration::from_millis(500 * number)));
            let mut client = larder.client().await;
            clients.spawn(async move { client.get(&format!("/v2/late/{name}/manifests/latest")).send().await.status });
        }
        let statuses = clients.join_all().await;
        assert!(statuses.iter().all(|status| *status == 502), "{statuses:?}");
        let sign_ins = match by_token {
            true => scene.registry.seen(get().token()).iter().filter(|seen| !seen.query.contains("scope=")).count(),
            false => scene.registry.seen(get().ping()).iter().filter(|seen| seen.authorization().is_some()).count(),
        };
        assert_eq!(sign_ins, 1, "by token: {by_token}: {:#?}", scene.registry.requests());
    }
}

/// The first tries the login, and leaves the second too little time for its own question; the other host is down.
#[tokio::test(start_paused = true)]
async fn who_cannot_wait_for_an_unproven_login_is_told_when_to_come_back() {
    let scene = scene();
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    scene.registry.when(any().token()).then(Fault::Delay(Duration::from_secs(12)));
    scene.net.name("closed.test", &["203.0.113.7"]);
    scene.net.close("203.0.113.7:80");
    let credential = CredentialConfig { name: "default".into(), repositories: Vec::new(), kind: password() };
    let setup = scene.setup().hub(|hub| {
        (hub.credentials, hub.visibility) = (vec![credential], Visibility::Private);
        hub.urls.push("http://closed.test".parse().expect("a URL"));
    });
    let larder = setup.start();
    let (first, second) = tokio::join!(larder.get(GOOD_A), larder.get(GOOD_B));
    let (served, waited) = if first.status == 200 { (first, second) } else { (second, first) };
    assert_eq!((line(&served).as_str(), line(&waited).as_str(), retry_after(&waited)), ("200 larder; fwd=uri-miss", "503 UNAVAILABLE", 5));
}

/// One scope hangs, and its question is the one that tries the login.
#[tokio::test(start_paused = true)]
async fn a_scope_that_is_never_answered_does_not_keep_a_login_from_being_accepted_for_the_others() {
    let scene = scene();
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    scene.registry.when(any().token().of("denied")).then(Fault::Hold(Latch::new()));
    let larder = private(&scene, password());
    let mut hanging = larder.client().await;
    let hanging = tokio::spawn(async move { hanging.get(DENIED).send().await.status });
    while scene.registry.token_requests() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let begun = Instant::now();
    assert_eq!(larder.get(GOOD_A).await.status, 200);
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(larder.get(GOOD_B).await.status, 200);
    assert!(begun.elapsed() <= Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(hanging.await.expect("no panic"), 504);
    let sign_ins = scene.registry.seen(get().token()).iter().filter(|seen| !seen.query.contains("scope=")).count();
    assert_eq!(sign_ins, 1);
}

/// 503 with `Retry-After` for one scope, as 429.
#[tokio::test(start_paused = true)]
async fn a_token_server_that_is_busy_for_one_scope_holds_up_that_repository_alone() {
    let scene = scene();
    token(&scene.registry, Fault::status(503).header("retry-after", 20));
    let larder = private(&scene, password());
    assert_eq!(larder.get(GOOD_A).await.status, 200);
    let busy = larder.get(DENIED).await;
    assert_eq!((line(&busy).as_str(), retry_after(&busy)), ("503 UNAVAILABLE", 20));
    assert_eq!(larder.get(GOOD_B).await.status, 200);
    scene.registry.forget_requests();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(retry_after(&larder.get(DENIED).await), 10);
    assert_eq!(scene.registry.count(any()), 0, "not asked before that");
    scene.registry.when(any().token()).then(Fault::status(503).header("retry-after", 60));
    scene.registry.push_image("good/c", "latest", &[100], 30);
    assert_eq!(line(&larder.get("/v2/good/c/manifests/latest").await), "503 UNAVAILABLE", "of everybody");
    scene.registry.forget_requests();
    scene.registry.push_image("good/d", "latest", &[100], 31);
    assert_eq!(line(&larder.get("/v2/good/d/manifests/latest").await), "503 UNAVAILABLE");
    assert_eq!(scene.registry.count(any().token()), 0, "left alone");
}
