//! Several URLs of one upstream, and a host that is down: asked no more than it must be, by nobody who has something to serve.

use std::time::Duration;

use larder::config::BaseUrl;
use tokio::time::Instant;

use super::{HOUR, Hub, LATEST, OTHER, line};
use crate::support::larder::Larder;
use crate::support::registry::{FakeRegistry, Fault, any, get};

const CIRCUIT: &str = r#"larder_upstream_circuit_open{upstream="docker.io"}"#;

fn url(host: &str) -> BaseUrl {
    BaseUrl { tls: false, host: host.into(), port: 80, path: String::new() }
}

/// With a second registry at `spare.test` that has the same images.
fn two(scene: &Hub) -> (FakeRegistry, Larder) {
    let spare = FakeRegistry::new();
    scene.net.host("spare.test", "93.184.216.40", &spare);
    spare.push_image("library/app", "latest", &[1000], 1);
    spare.push_image("library/other", "latest", &[1000], 2);
    let larder = scene.setup().hub(|hub| hub.urls.push(url("spare.test"))).start();
    (spare, larder)
}

/// Also: upstream_fault_22
#[tokio::test(start_paused = true)]
async fn the_first_url_is_asked_while_it_answers_and_the_second_when_it_does_not() {
    let scene = Hub::with_other();
    let (spare, larder) = two(&scene);
    scene.pull(&larder).await;
    assert_eq!(spare.count(any()), 0);
    assert_eq!(larder.get("/v2/library/none/manifests/latest").await.status, 404, "the first one's word");
    assert_eq!(spare.count(any()), 0, "which is not doubted");
    for fault in [Fault::status(503).into(), Fault::Hangup, Fault::too_many_requests(60).into()] {
        let scene = Hub::with_other();
        let (spare, larder) = two(&scene);
        scene.registry.when(any()).then(fault);
        scene.pull(&larder).await;
        assert!(spare.count(any()) >= 3);
        assert_eq!(larder.metric(r#"larder_upstream_retries_total{reason="status",upstream="docker.io"}"#), 0.0, "at once");
    }
}

/// Also: upstream_fault_22
#[tokio::test(start_paused = true)]
async fn a_silent_first_url_leaves_time_for_the_second() {
    let scene = Hub::with_other();
    let (spare, larder) = two(&scene);
    scene.net.mute("93.184.216.34:80");
    let begun = Instant::now();
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(larder.get(OTHER).await.status, 200);
    assert!(begun.elapsed() < Duration::from_secs(1), "from then on it is passed over: {:?}", begun.elapsed());
    assert!(spare.count(get().manifest()) == 2 && scene.registry.count(any()) == 0);
}

#[tokio::test(start_paused = true)]
async fn a_download_goes_on_at_the_second_url() {
    let scene = Hub::with_other();
    let (spare, larder) = two(&scene);
    let image = scene.registry.push_image("library/big", "latest", &[300_000], 7);
    spare.push_image("library/big", "latest", &[300_000], 7);
    let layer = &image.layers[0];
    scene.registry.when(get().blob().of(layer.digest)).nth(1).then(Fault::CutAt(100_000));
    scene.registry.when(get().blob().of(layer.digest)).from(1).then(Fault::status(503));
    let begin = Fault::CutAt(100_000);
    scene.registry.behave();
    scene.registry.when(get().blob().of(layer.digest)).first(1).then(begin);
    scene.registry.when(get().blob().of(layer.digest)).from(2).then(Fault::status(503));
    let reply = larder.get(&format!("/v2/library/big/blobs/{}", layer.digest)).await;
    assert_eq!(reply.bytes(), &layer.bytes);
    let asked = spare.seen(get().blob());
    assert_eq!(asked.len(), 1);
    assert!(asked[0].header("range").is_some_and(|range| range.starts_with("bytes=")), "{:?}", asked[0]);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_down_is_left_alone_but_for_probes_and_comes_back_by_itself() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.pull(&larder).await;
    larder.clock.advance(HOUR);
    scene.net.down("hub.test");
    for _ in 0..4 {
        assert_eq!(line(&larder.get(OTHER).await), "502 UNAVAILABLE");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(larder.metric(CIRCUIT), 1.0);
    let dials = scene.net.dials("93.184.216.34:80");
    let begun = Instant::now();
    for _ in 0..600 {
        assert_eq!(larder.get(OTHER).await.status, 502, "never a 404 for what exists");
        assert!(line(&larder.get(LATEST).await).contains("stale-unavailable"));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let probes = scene.net.dials("93.184.216.34:80") - dials;
    assert!(probes as u64 <= begun.elapsed().as_secs() / 8 + 8, "{probes} connections in {:?}", begun.elapsed());
    scene.net.up("hub.test");
    let mut waited = 0;
    while larder.get(OTHER).await.status != 200 {
        waited += 1;
        assert!(waited < 32, "it comes back within half a minute");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(larder.metric(CIRCUIT), 0.0);
}

#[tokio::test(start_paused = true)]
async fn one_image_that_the_registry_cannot_give_is_no_outage() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.registry.when(any().manifest().of("library/other")).then(Fault::status(500));
    for _ in 0..20 {
        assert_eq!(larder.get(OTHER).await.status, 502);
    }
    assert_eq!((larder.metric(CIRCUIT), larder.get(LATEST).await.status), (0.0, 200));
}
