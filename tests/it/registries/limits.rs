//! Refusals and limits (A10 35–40): what they are called, and what a client is told.

use std::sync::Arc;
use std::time::Duration;

use super::{before, push};
use crate::support::client::Client;
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::{Limit, Quay, docker_hub, harbor, quay};
use crate::support::registry::{FakeRegistry, Fault, Latch, any};

#[tokio::test]
async fn registry_36_any_429_leaves_what_is_held_and_tells_the_others_when_to_come_back() {
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
async fn registry_36_docker_hub_s_three_429s_are_one_to_a_client() {
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
async fn registry_39_a_mirror_s_500_about_a_limit_is_a_limit_and_no_failure_is_a_404() {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", "93.184.216.34", &registry);
    let image = registry.push_image("library/app", "1", &[10], 1);
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
        let larder = Larder::start(&net);
        // By digest, as it is a GET whose answer has a body; by tag it is a HEAD, which can't say more than its status.
        let reply = larder.get(&format!("/v2/library/app/manifests/{}", image.digest)).await;
        assert_eq!(reply.status, status, "{fault:?}");
        assert!(matches!(Larder::start(&net).get("/v2/library/app/manifests/1").await.status, 502 | 503), "{fault:?}");
    }
    net.down("hub.test");
    assert_eq!(Larder::start(&net).get("/v2/library/app/manifests/1").await.status, 502);
}

#[tokio::test]
async fn registry_40_a_policy_s_412_is_final_and_remembered_for_nobody() {
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

#[tokio::test(start_paused = true)]
async fn registry_40_a_404_is_one_upstream_s_word_and_for_seconds() {
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
    tokio::time::sleep(Duration::from_secs(11)).await;
    assert_eq!(larder.get(&path(harbor.name())).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn registry_35_after_a_429_nobody_is_asked_until_retry_after_and_then_one_asks_first() {
    let date = || httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(122));
    for retry_after in ["120".to_owned(), date()] {
        let net = FakeNet::new();
        let quay = quay(&net);
        let (held, missed) = (push(&quay, "org/app", 1), push(&quay, "org/other", 2));
        let larder = Arc::new(before(&net, &quay));
        held.pull(&larder, "quay.io").await;
        quay.when(any()).then(Quay::too_many_requests().header("retry-after", &retry_after));
        assert_eq!(larder.get(&missed.tag("quay.io")).await.status, 503);
        quay.forget_requests();
        for seconds in [0, 30, 80] {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            larder.clock.advance(Duration::from_secs(3600));
            held.pull(&larder, "quay.io").await;
            let reply = larder.get(&missed.tag("quay.io")).await;
            let wait: u64 = reply.header("retry-after").and_then(|text| text.parse().ok()).unwrap();
            assert!(reply.status == 503 && (1..=122).contains(&wait), "{retry_after}: {} {wait}", reply.status);
        }
        assert_eq!(quay.count(any()), 0, "{:#?}", quay.requests());
        // The probe is held up: whoever comes meanwhile is told to wait.
        quay.behave();
        let latch = Latch::new();
        quay.when(any()).first(1).then(Fault::Hold(latch.clone()));
        tokio::time::sleep(Duration::from_secs(15)).await;
        let probe = tokio::spawn({
            let (larder, path) = (Arc::clone(&larder), missed.tag("quay.io"));
            async move { larder.get(&path).await.status }
        });
        quay.wait_for(any(), 1).await;
        for tag in ["1-amd64", "1-arm64"] {
            assert_eq!(larder.get(&format!("/v2/quay.io/org/other/manifests/{tag}")).await.status, 503);
        }
        assert_eq!(quay.count(any()), 1);
        latch.open();
        assert_eq!(probe.await.unwrap(), 200);
        missed.pull(&larder, "quay.io").await;
    }
}

/// Docker Hub promises no `Retry-After`: the window it named is waited for, an hour of it at most.
#[tokio::test(start_paused = true)]
async fn registry_35_at_docker_hub_s_limit_its_window_is_waited_for() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let (held, missed) = (push(&hub, "library/app", 1), push(&hub, "library/other", 2));
    hub.script(|hub| hub.limit = Some(Limit::new(2, 1800)));
    let larder = before(&net, &hub);
    held.pull(&larder, "docker.io").await;
    assert_eq!(larder.get(&missed.tag("docker.io")).await.status, 503);
    hub.forget_requests();
    for _ in 0..17 {
        tokio::time::sleep(Duration::from_secs(100)).await;
        larder.clock.advance(Duration::from_secs(3600));
        held.pull(&larder, "docker.io").await;
        assert_eq!(larder.get(&missed.tag("docker.io")).await.status, 503);
    }
    assert_eq!(hub.count(any()), 0, "{:#?}", hub.requests());
    tokio::time::sleep(Duration::from_secs(200)).await;
    missed.pull(&larder, "docker.io").await;
}

#[tokio::test]
async fn registry_37_what_is_left_of_the_limit_is_a_metric_and_unlimited_is_none() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/app", 1);
    hub.script(|hub| {
        hub.limit = Some(Limit::new(100, 3600));
        hub.tokens.account("acme", "pat");
        hub.account_limits.insert("acme".into(), Limit::new(200, 21_600));
        hub.tokens.account("paid", "pat");
    });
    let at =
        |what: &str, credential: &str| format!("larder_upstream_ratelimit_{what}{{credential=\"{credential}\",upstream=\"docker.io\"}}");
    for (config, credential, limit, window) in
        [(hub.upstream(), "anonymous", 100.0, 3600.0), (hub.upstream_as("acme", "pat"), "default", 200.0, 21_600.0)]
    {
        let larder = Setup::new(&net).upstream(config).start();
        assert!(!larder.app.metrics.encode().contains("larder_upstream_ratelimit_limit{"));
        pushed.pull(&larder, "docker.io").await;
        assert_eq!(larder.metric(&at("limit", credential)), limit);
        assert_eq!(larder.metric(&at("remaining", credential)), limit - 2.0);
        assert_eq!(larder.metric(&at("window_seconds", credential)), window);
        // A HEAD tells it as well as a GET, and once it tells nothing there is nothing to tell.
        hub.script(|hub| {
            hub.limit = None;
            hub.account_limits.clear();
        });
        larder.clock.advance(Duration::from_secs(3600));
        assert_eq!(larder.head(&pushed.tag("docker.io")).await.status, 200);
        assert!(!larder.app.metrics.encode().contains("larder_upstream_ratelimit_limit{"));
        hub.script(|hub| hub.account_limits.insert("acme".into(), Limit::new(200, 21_600)));
    }
    let larder = Setup::new(&net).upstream(hub.upstream_as("paid", "pat")).start();
    pushed.pull(&larder, "docker.io").await;
    assert!(!larder.app.metrics.encode().contains("larder_upstream_ratelimit_limit{"));
}

#[tokio::test(start_paused = true)]
async fn registry_38_a_refused_login_is_held_off_for_that_credential_and_nobody_asks_in_its_stead() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/app", 1);
    hub.script(|hub| {
        hub.tokens.account("acme", "changed");
        hub.tokens.account("other", "pat");
    });
    let mut other = hub.upstream_as("other", "pat");
    other.name = "second.test".into();
    let larder = Setup::new(&net).upstream(hub.upstream_as("acme", "old")).upstream(other).start();
    for _ in 0..20 {
        let reply = larder.get(&pushed.tag("docker.io")).await;
        assert_eq!((reply.status, reply.header("www-authenticate")), (502, None));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    let logins = hub.seen(any().token());
    assert_eq!(logins.len(), 2, "the repository's, and the sign-in's: {logins:#?}");
    assert!(logins.iter().all(|login| login.authorization().is_some()));
    pushed.pull(&larder, "second.test").await;
    // Minutes later it is tried again, by then it is right.
    hub.script(|hub| hub.tokens.account("acme", "old"));
    tokio::time::sleep(Duration::from_secs(600)).await;
    pushed.pull(&larder, "docker.io").await;
    assert!(hub.seen(any().token()).iter().all(|login| login.authorization().is_some()));
}

#[tokio::test(start_paused = true)]
async fn registry_38_a_token_server_s_429_holds_off_logins_and_nobody_asks_in_its_stead() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/app", 1);
    hub.script(|hub| {
        hub.tokens.account("acme", "pat");
        hub.lock_out = (0, Duration::from_secs(600));
        hub.retry_after = Some("600".into());
    });
    // Somebody else has logged in badly.
    let mut stranger = Client::over(hub.connect()).await;
    let bad = stranger.get("/token?service=registry.docker.io").host("auth.docker.io").basic("acme", "bad");
    assert_eq!(bad.send().await.status, 401);
    hub.forget_requests();
    let larder = Setup::new(&net).upstream(hub.upstream_as("acme", "pat")).start();
    for _ in 0..10 {
        let reply = larder.get(&pushed.tag("docker.io")).await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (503, Some("TOOMANYREQUESTS")));
        tokio::time::sleep(Duration::from_secs(50)).await;
    }
    assert_eq!(hub.token_requests(), 2, "the repository's, and the sign-in's");
    tokio::time::sleep(Duration::from_secs(200)).await;
    pushed.pull(&larder, "docker.io").await;
    assert!(hub.seen(any().token()).iter().all(|login| login.authorization().is_some()));
}
