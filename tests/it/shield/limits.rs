//! 429 in all its shapes: something rests, everything that is held is served, and one probe goes out.

use std::time::Duration;

use larder::oci::{Algorithm, Digest};
use tokio::time::Instant;

use super::{HOUR, Hub, LATEST, OTHER, credential, line, retry_after};
use crate::support::larder::Larder;
use crate::support::registry::{Bearer, Canned, Fault, any, get, head};

const REMAINING: &str = "larder_upstream_ratelimit_remaining";

fn series(larder: &Larder, name: &str) -> Vec<String> {
    larder.app.metrics.encode().lines().filter(|line| line.starts_with(name)).map(ToOwned::to_owned).collect()
}

/// As Docker Hub says it, with its headers and without a Retry-After.
fn hub_limit() -> Canned {
    Fault::too_many_requests(0).header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", "0;w=21600")
}

/// Also: clients_37, upstream_fault_07
#[tokio::test(start_paused = true)]
async fn registry_35_no_manifest_is_asked_for_before_retry_after_and_then_one() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.pull(&larder).await;
    larder.clock.advance(HOUR);
    scene.registry.when(any().manifest()).then(Fault::too_many_requests(600));
    scene.registry.forget_requests();
    assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-rate-limited");
    assert_eq!(scene.registry.count(any()), 1, "the one that was limited");
    for minutes in 1..10 {
        let held = larder.get(LATEST).await;
        assert!(line(&held).ends_with("detail=stale-rate-limited"), "{}", line(&held));
        let missing = larder.get(OTHER).await;
        assert_eq!(line(&missing), "503 TOOMANYREQUESTS");
        assert!((1..=600).contains(&retry_after(&missing)), "{}", retry_after(&missing));
        tokio::time::sleep(Duration::from_secs(minutes)).await;
    }
    assert_eq!(scene.registry.count(any()), 1, "and none since");
    tokio::time::sleep(Duration::from_secs(600)).await;
    // It is over: of all who ask at once, one finds out.
    let asked = futures_of(&larder, 20).await;
    assert!(asked.iter().all(|status| *status == 503), "{asked:?}");
    assert_eq!(scene.registry.count(any()), 2, "one probe, no stampede");
    scene.registry.behave();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(larder.get(OTHER).await.status, 200, "upstream allows it again");
    assert_eq!(larder.get(LATEST).await.status, 200);
}

/// So many GETs of an image that is not held, all at once.
async fn futures_of(larder: &Larder, count: usize) -> Vec<u16> {
    let mut clients = Vec::new();
    for number in 0..count {
        let mut client = larder.client().await;
        clients.push(tokio::spawn(async move { client.get(&format!("/v2/library/none{number}/manifests/latest")).send().await.status }));
    }
    let mut statuses = Vec::new();
    for client in clients {
        statuses.push(client.await.expect("a client"));
    }
    statuses
}

#[tokio::test(start_paused = true)]
async fn a_pull_limit_rests_for_its_window_an_hour_at_most_and_blobs_go_on() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    assert_eq!(larder.get(LATEST).await.status, 200);
    scene.registry.when(any().manifest()).then(hub_limit());
    assert_eq!(line(&larder.get(OTHER).await), "503 TOOMANYREQUESTS");
    let missing = larder.get(OTHER).await;
    assert!((3500..=3600).contains(&retry_after(&missing)), "{}", retry_after(&missing));
    scene.registry.forget_requests();
    // The image whose manifest had come before can be pulled to its end: blobs are under no pull limit.
    assert_eq!(larder.get(&scene.blob()).await.bytes(), &scene.image.layers[0].bytes);
    assert_eq!(scene.registry.count(any().manifest()), 0);
}

#[tokio::test(start_paused = true)]
async fn registry_36_a_limit_of_the_host_in_any_body_rests_all_of_it() {
    for body in ["Too Many Requests (HAP429).", "<html><h1>429 Too Many Requests</h1></html>", ""] {
        let scene = Hub::with_other();
        let larder = scene.setup().start();
        scene.pull(&larder).await;
        larder.clock.advance(HOUR);
        scene.registry.when(get()).then(Fault::status(429).header("content-type", "text/plain").body(body));
        // HEAD tells that the tag has not moved; the GET of a blob that is not held meets the limit.
        let missing = format!("/v2/library/other/blobs/{}", Digest::of(Algorithm::Sha256, b"other"));
        assert_eq!(line(&larder.get(&missing).await), "503 TOOMANYREQUESTS", "{body}");
        assert_eq!(larder.metric(r#"larder_upstream_circuit_open{upstream="docker.io"}"#), 1.0);
        scene.registry.forget_requests();
        assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-rate-limited", "{body}");
        assert_eq!((larder.get(&scene.blob()).await.status, larder.get(OTHER).await.status), (200, 503));
        assert_eq!(scene.registry.count(any()), 0, "nothing at all: {body}");
        scene.registry.behave();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(larder.get(OTHER).await.status, 200, "{body}");
        assert_eq!(larder.metric(r#"larder_upstream_circuit_open{upstream="docker.io"}"#), 0.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_names_no_time_rests_longer_each_time() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.registry.when(any()).then(Fault::too_many_requests(0));
    let mut rests = Vec::new();
    for _ in 0..12 {
        assert_eq!(larder.get(OTHER).await.status, 503);
        let begun = Instant::now();
        scene.registry.forget_requests();
        while scene.registry.count(any()) == 0 {
            tokio::time::sleep(Duration::from_millis(250)).await;
            larder.get(OTHER).await;
        }
        rests.push(begun.elapsed().as_secs());
    }
    assert!(rests[0] <= 6 && rests[3] > rests[0] && rests[6] > rests[3], "{rests:?}");
    assert!(rests.iter().all(|rest| *rest <= 901) && rests[11] > 400, "a quarter of an hour at most: {rests:?}");
}

#[tokio::test(start_paused = true)]
async fn registry_38_a_token_server_s_limit_holds_off_logins_and_nobody_slides_to_anonymous() {
    let scene = Hub::with_other();
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "secret"));
    let larder = scene.setup().hub(|hub| hub.credentials = vec![credential("default", "me", "secret")]);
    let larder = larder.hub(|hub| hub.visibility = larder::config::Visibility::Private).start();
    scene.registry.when(any().token()).then(Fault::status(429).body("too many failed login attempts for username or IP address"));
    assert_eq!(line(&larder.get(LATEST).await), "503 TOOMANYREQUESTS");
    assert_eq!(scene.registry.token_requests(), 2, "the repository's, and the sign-in's");
    for _ in 0..20 {
        let reply = larder.get(OTHER).await;
        assert_eq!(line(&reply), "503 TOOMANYREQUESTS");
        assert!(retry_after(&reply) >= 10, "{}", retry_after(&reply));
    }
    assert_eq!(scene.registry.token_requests(), 2, "not asked again");
    scene.registry.behave();
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert_eq!(larder.get(LATEST).await.status, 200);
    for request in scene.registry.seen(any().token()) {
        assert!(request.authorization().is_some(), "never as nobody: {request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn registry_39_a_500_about_too_many_requests_is_a_limit() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene
        .registry
        .when(any().manifest())
        .then(Fault::status(500).body(r#"{"errors":[{"code":"UNKNOWN","detail":"toomanyrequests: slow"}]}"#));
    // A HEAD has no body that would tell, so this is about what is asked for by digest.
    let digest = Digest::of(Algorithm::Sha256, b"any");
    assert_eq!(line(&larder.get(&format!("/v2/library/app/manifests/{digest}")).await), "503 TOOMANYREQUESTS");
}

#[tokio::test]
async fn the_budget_is_a_gauge_with_any_window_and_none_where_there_is_no_limit() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.registry.when(any().manifest()).first(1).then(Fault::Header("ratelimit-limit", "100;w=3600".into()));
    scene.registry.when(any().manifest()).first(1).then(Fault::Header("ratelimit-remaining", "41;w=3600".into()));
    assert_eq!(series(&larder, REMAINING), Vec::<String>::new());
    assert_eq!(larder.head(LATEST).await.status, 200);
    assert_eq!(series(&larder, REMAINING), [format!("{REMAINING}{{credential=\"anonymous\",upstream=\"docker.io\"}} 41")]);
    assert_eq!(series(&larder, "larder_upstream_ratelimit_window_seconds").len(), 1);
    assert_eq!(larder.metric(r#"larder_upstream_ratelimit_limit{credential="anonymous",upstream="docker.io"}"#), 100.0);
    assert_eq!(larder.head(OTHER).await.status, 200);
    assert_eq!(series(&larder, REMAINING), Vec::<String>::new(), "upstream names no limit any more");
    assert_eq!(scene.registry.count(head()), 2);
}
