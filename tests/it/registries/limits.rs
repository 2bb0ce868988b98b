//! Refusals and limits (A10 35–40): what they are called, and what a client is told.

use std::time::Duration;

use super::{before, push};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::{Limit, Quay, docker_hub, harbor, quay};
use crate::support::registry::{FakeRegistry, Fault, any};

#[tokio::test]
async fn upstreams_a10_36_any_429_leaves_what_is_held_and_tells_the_others_when_to_come_back() {
    for fault in [Quay::too_many_requests(), Fault::status(429), Fault::status(429).body("Too Many Requests (HAP429).\n")] {
        let net = FakeNet::new();
        let quay = quay(&net);
        let (held, missed) = (push(&quay, "org/app", 1), push(&quay, "org/other", 2));
        let larder = before(&net, &quay);
        held.pull(&larder, "quay.io").await;
        quay.when(any()).then(fault.clone());
        for hours in [0, 1] {
            larder.clock.advance(Duration::from_secs(hours * 3600));
            held.pull(&larder, "quay.io").await;
            for path in [missed.tag("quay.io"), missed.layer("quay.io")] {
                let reply = larder.get(&path).await;
                assert_eq!((reply.status, reply.error_code().as_deref()), (503, Some("TOOMANYREQUESTS")), "{fault:?}");
                let wait: u64 = reply.header("retry-after").and_then(|text| text.parse().ok()).unwrap();
                assert!((1..=3600).contains(&wait), "{wait}");
            }
        }
    }
}

#[tokio::test]
async fn upstreams_a10_36_docker_hub_s_three_429s_are_one_to_a_client() {
    // The pull limit.
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let (held, missed) = (push(&hub, "library/app", 1), push(&hub, "library/other", 2));
    hub.script(|hub| hub.limit = Some(Limit::new(2, 21_600)));
    let larder = before(&net, &hub);
    held.pull(&larder, "docker.io").await;
    assert_eq!(hub.counted(), 2);
    assert_eq!(larder.get(&missed.tag("docker.io")).await.status, 503);
    larder.clock.advance(Duration::from_secs(3600));
    held.pull(&larder, "docker.io").await;
    assert_eq!(hub.counted(), 2);
    // The limit on abuse.
    let hub = docker_hub(&net);
    let larder = before(&net, &hub);
    hub.script(|hub| hub.abused = true);
    let reply = larder.get(&missed.tag("docker.io")).await;
    assert_eq!((reply.status, reply.error_code().as_deref()), (503, Some("TOOMANYREQUESTS")));
    // The token server's.
    let hub = docker_hub(&net);
    let missed = push(&hub, "library/other", 2);
    let larder = before(&net, &hub);
    hub.when(any().token()).then(Fault::status(429).body("too many failed login attempts for username or IP address"));
    assert_eq!(larder.get(&missed.tag("docker.io")).await.status, 503);
}

#[tokio::test]
async fn upstreams_a10_39_a_mirror_s_500_about_a_limit_is_a_limit_and_no_failure_is_a_404() {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", "93.184.216.34", &registry);
    registry.push_image("library/app", "1", &[10], 1);
    let body =
        r#"{"errors":[{"code":"UNKNOWN","message":"unknown error","detail":"toomanyrequests: You have reached your pull rate limit"}]}"#;
    for (fault, status) in [
        (Fault::status(500).body(body), 503),
        (Fault::status(500), 502),
        (Fault::status(502), 502),
        (Fault::status(503), 502),
        (Fault::status(504), 502),
        (Fault::status(429), 503),
        (Fault::status(418), 502),
    ] {
        registry.behave();
        registry.when(any()).then(fault.clone());
        let reply = Larder::start(&net).get("/v2/library/app/manifests/1").await;
        assert_eq!(reply.status, status, "{fault:?}");
    }
    net.down("hub.test");
    assert_eq!(Larder::start(&net).get("/v2/library/app/manifests/1").await.status, 502);
}

#[tokio::test]
async fn upstreams_a10_40_a_policy_s_412_is_final_and_remembered_for_nobody() {
    let net = FakeNet::new();
    let harbor = harbor(&net);
    let (barred, free) = (push(&harbor, "team/app", 1), push(&harbor, "team/free", 2));
    harbor.script(|harbor| harbor.barred.insert("team/app".into()));
    let larder = before(&net, &harbor);
    let path = barred.manifest(harbor.name(), &barred.images[0]);
    let reply = larder.get(&path).await;
    assert_eq!((reply.status, reply.error_code().as_deref()), (403, Some("DENIED")));
    assert_eq!(harbor.count(any().manifest()), 1, "{:#?}", harbor.requests());
    harbor.when(any().manifest().of("team/app")).then(Fault::status(403));
    assert_eq!(larder.get(&path).await.status, 403);
    assert_eq!(harbor.count(any().manifest()), 2, "{:#?}", harbor.requests());
    harbor.behave();
    harbor.script(|harbor| harbor.barred.clear());
    barred.pull(&larder, harbor.name()).await;
    free.pull(&larder, harbor.name()).await;
}

#[tokio::test]
async fn upstreams_a10_40_a_404_is_one_upstream_s_word_and_for_seconds() {
    let net = FakeNet::new();
    let harbor = harbor(&net);
    let pushed = push(&harbor, "team/app", 1);
    let mut second = harbor.upstream();
    second.name = "second.test".into();
    let larder = Setup::new(&net).upstream(harbor.upstream()).upstream(second).start();
    let path = |upstream: &str| format!("/v2/{upstream}/team/app/manifests/late");
    assert_eq!(larder.get(&path(harbor.name())).await.status, 404);
    harbor.push_manifest("team/app", Some("late"), pushed.index.media_type, pushed.index.bytes.clone());
    assert_eq!(larder.get(&path("second.test")).await.status, 200);
    larder.clock.advance(Duration::from_secs(11));
    assert_eq!(larder.get(&path(harbor.name())).await.status, 200);
}
