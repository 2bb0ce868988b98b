//! "Come back later", whoever says it: only what it is about is not asked, no longer than it says, and clients get a time to come back.

use std::time::Duration;

use super::{HOUR, Hub, LATEST, OTHER, line, retry_after};
use crate::support::larder::Larder;
use crate::support::registry::{Fault, any, get};

const TAGS: &str = "/v2/library/app/tags/list";
const CDN: &str = "cdn.test";

/// GETs of so many images that are not cached, all at once.
async fn pulls(larder: &Larder, count: usize) -> Vec<u16> {
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

/// Also: registry_35
#[tokio::test(start_paused = true)]
async fn lists_and_blobs_are_answered_while_pulls_are_limited_and_end_no_limit() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    assert_eq!(larder.get(LATEST).await.status, 200);
    scene.registry.when(any().manifest()).then(Fault::too_many_requests(600));
    assert_eq!(line(&larder.get(OTHER).await), "503 TOOMANYREQUESTS");
    scene.registry.forget_requests();
    for wait in [0, 300, 310] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        assert_eq!(larder.get(TAGS).await.status, 200, "no registry counts lists");
        let referrers = larder.get(&format!("/v2/library/app/referrers/{}", scene.image.digest)).await;
        assert!(matches!(referrers.status, 200 | 404), "{}", referrers.status);
        assert_eq!(larder.get(&scene.blob()).await.status, 200);
        assert!(pulls(&larder, 20).await.iter().all(|status| *status == 503));
    }
    assert_eq!(scene.registry.count(any().manifest()), 1, "its time was over once, and one found out: {:#?}", scene.registry.requests());
}

#[tokio::test(start_paused = true)]
async fn a_limit_of_lists_leaves_pulls_alone() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.registry.when(any().tags()).then(Fault::too_many_requests(600));
    for _ in 0..5 {
        let list = larder.get(TAGS).await;
        assert_eq!((line(&list).as_str(), (1..=600).contains(&retry_after(&list))), ("503 TOOMANYREQUESTS", true));
        assert_eq!(larder.get("/v2/library/other/tags/list").await.status, 503);
    }
    assert_eq!(scene.registry.count(any().tags()), 1);
    scene.pull(&larder).await;
    scene.registry.behave();
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(larder.get(TAGS).await.status, 200);
}

/// RFC 9110 §10.2.3 has dates by the clock of who writes them, and that may be wrong.
#[tokio::test(start_paused = true)]
async fn registry_35_a_date_by_a_wrong_clock_asks_for_what_is_between_it_and_the_answer_s() {
    let written = |seconds: u64| httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000 + seconds));
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    let limit = Fault::status(429).header("date", written(0)).header("retry-after", written(120));
    scene.registry.when(any().manifest()).then(limit);
    let limited = larder.get(OTHER).await;
    assert_eq!((line(&limited).as_str(), retry_after(&limited)), ("503 TOOMANYREQUESTS", 120));
}

/// Also: upstream_fault_08
#[tokio::test(start_paused = true)]
async fn a_host_that_asks_to_come_back_later_is_probed_each_half_minute() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.pull(&larder).await;
    // What has been read to its end is not yet stored.
    while larder.metric("larder_fills_in_flight") > 0.0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    larder.clock.advance(HOUR);
    scene.registry.when(any()).then(Fault::status(503).header("retry-after", "3600"));
    scene.registry.forget_requests();
    let first = larder.get(OTHER).await;
    assert_eq!((line(&first).as_str(), retry_after(&first)), ("503 UNAVAILABLE", 30));
    assert_eq!(scene.registry.count(any()), 1, "once");
    for half_minutes in 0..4 {
        assert_eq!(scene.registry.count(any()), 1 + half_minutes, "after {half_minutes} half minutes");
        for _ in 0..28 {
            assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-unavailable");
            let missing = larder.get(OTHER).await;
            assert_eq!((line(&missing).as_str(), (1..=30).contains(&retry_after(&missing))), ("503 UNAVAILABLE", true));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(scene.registry.count(any()), 1 + half_minutes, "left alone meanwhile");
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(pulls(&larder, 20).await.iter().all(|status| *status == 503));
    }
    scene.registry.behave();
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!((larder.get(OTHER).await.status, larder.get(LATEST).await.status), (200, 200));
}

#[tokio::test(start_paused = true)]
async fn a_shorter_time_is_waited_for_as_it_stands() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.registry.when(any()).then(Fault::status(503).header("retry-after", "7"));
    assert_eq!(retry_after(&larder.get(OTHER).await), 7);
    scene.registry.behave();
    assert_eq!(line(&larder.get(OTHER).await), "503 UNAVAILABLE");
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!(larder.get(OTHER).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_download_that_breaks_waits_as_long_as_it_is_asked_to_and_goes_on() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    let image = scene.registry.push_image("library/big", "latest", &[300_000], 7);
    let layer = &image.layers[0];
    scene.registry.when(get().blob().of(layer.digest)).first(1).then(Fault::CutAt(100_000));
    scene.registry.when(get().blob().of(layer.digest)).nth(2).then(Fault::status(503).header("retry-after", "7"));
    let reply = larder.get(&format!("/v2/library/big/blobs/{}", layer.digest)).await;
    assert_eq!(reply.bytes(), &layer.bytes);
    assert_eq!(scene.registry.count(get().blob()), 3);
}

/// The CDN's own limit, be it said with 429 or with 503: neither the registry nor its pulls are limited by it.
#[tokio::test(start_paused = true)]
async fn a_cdn_that_limits_the_rate_is_not_asked_again_before_its_time() {
    for (status, code, waits) in [(429, "TOOMANYREQUESTS", 600), (503, "UNAVAILABLE", 30)] {
        let scene = Hub::with_other();
        scene.net.host(CDN, "93.184.216.50", &scene.registry);
        scene.registry.redirect_blobs("http://cdn.test");
        let larder = scene.setup().start();
        assert_eq!(larder.get(LATEST).await.status, 200);
        scene.registry.when(any().host(CDN)).then(Fault::status(status).header("retry-after", "600"));
        let first = larder.get(&scene.blob()).await;
        assert_eq!((line(&first).as_str(), retry_after(&first)), (format!("503 {code}").as_str(), waits));
        for _ in 0..20 {
            let again = larder.get(&scene.blob()).await;
            assert_eq!((line(&again).as_str(), (1..=waits).contains(&retry_after(&again))), (format!("503 {code}").as_str(), true));
        }
        assert_eq!(scene.registry.count(any().host(CDN)), 1, "{status}");
        assert_eq!(larder.metric(r#"larder_upstream_circuit_open{upstream="docker.io"}"#), 0.0, "the registry is well");
        assert_eq!(larder.get(OTHER).await.status, 200);
        scene.registry.behave();
        tokio::time::sleep(Duration::from_secs(waits + 1)).await;
        assert_eq!(larder.get(&scene.blob()).await.bytes(), &scene.image.layers[0].bytes);
        assert_eq!(scene.registry.count(get().host(CDN)), 2, "{status}");
    }
}
