//! Rows of the fault matrix that no other test holds: what an upstream does wrong, and what of it is felt.

use std::time::Duration;

use larder::oci::{Algorithm, Digest};
use tokio::time::Instant;

use super::{HOUR, Hub, LATEST, OTHER, line};
use crate::fills::{assert_whole, fills, hub, path, push, until};
use crate::support::larder::{Larder, Setup};
use crate::support::net::{Dns, FakeNet};
use crate::support::registries::docker_hub;
use crate::support::registry::{Fault, Latch, any, get, head};

const MIB: usize = 1024 * 1024;
const ADDRESS: &str = "93.184.216.34:80";

#[tokio::test(start_paused = true)]
async fn upstream_fault_04_no_odd_content_length_makes_a_body() {
    for length in ["-5", "5\r\nContent-Length: 6", "99999999999999999999999", "five", "0x5", "5, 6"] {
        let (net, registry) = hub();
        let blob = push(&registry, 5, 1);
        net.raw(ADDRESS, format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nwrong and more"));
        let larder = Larder::start(&net);
        let reply = larder.get(&path(blob.digest)).await;
        assert_eq!((reply.status, larder.files("blobs").len()), (502, 0), "{length:?}");
        net.serve(ADDRESS, &registry);
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_05_a_body_that_only_drips_is_given_up_and_its_place_is_free() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).then(Fault::Drip { bytes: 1, every: Duration::from_secs(1) });
    let larder = Larder::start(&net);
    let begun = Instant::now();
    assert!(larder.get(&path(blob.digest)).await.body.is_err());
    assert!(begun.elapsed() < Duration::from_secs(420), "{:?}", begun.elapsed());
    until("it has ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    assert_eq!((fills(&larder, "failed"), registry.count(get().blob())), (1.0, 6));
    registry.behave();
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_05_a_slow_download_has_all_the_time_it_needs() {
    let (net, registry) = hub();
    let blob = push(&registry, 4 * MIB, 1);
    registry.when(get().blob()).then(Fault::Drip { bytes: 2048, every: Duration::from_secs(1) });
    let larder = Larder::start(&net);
    let begun = Instant::now();
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    assert!(begun.elapsed() > Duration::from_secs(2000) && registry.count(get().blob()) == 1, "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_08_a_5xx_is_asked_about_twice_more_and_hides_nothing_that_is_held() {
    for status in [500, 502, 503, 504] {
        let scene = Hub::with_other();
        let larder = scene.setup().start();
        scene.pull(&larder).await;
        larder.clock.advance(HOUR);
        scene.registry.when(get()).then(Fault::status(status));
        scene.registry.forget_requests();
        let missing = format!("/v2/library/other/blobs/{}", Digest::of(Algorithm::Sha256, b"missing"));
        assert_eq!(line(&larder.get(&missing).await), "502 UNAVAILABLE", "{status}");
        assert_eq!(scene.registry.count(get()), 3, "{status}");
        scene.registry.when(any()).then(Fault::status(status));
        let held = larder.get(LATEST).await;
        assert_eq!(line(&held), "200 larder; hit; ttl=-3300; detail=stale-unavailable", "{status}");
        assert_eq!(held.header("age"), Some("3600"));
        assert_eq!(line(&larder.get(OTHER).await), "502 UNAVAILABLE", "{status}");
        assert_eq!(larder.metric(r#"larder_stale_served_total{reason="unavailable",upstream="docker.io"}"#), 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_09_token_and_link_that_expire_in_mid_blob_cost_one_of_each_and_nobody_notices() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let image = hub.push_image("library/app", "latest", &[300_000], 1);
    let larder = Setup::new(&net).upstream(hub.upstream()).start();
    let latch = Latch::new();
    hub.when(get().signed()).first(1).then(Fault::HoldAt(100_000, latch.clone()));
    hub.when(get().signed()).first(1).then(Fault::CutAt(150_000));
    let layer = &image.layers[0];
    let blob = path(layer.digest);
    let whole = async { larder.get(&blob).await };
    let expire = async {
        hub.wait_for(get().signed(), 1).await;
        hub.script(|hub| hub.tokens.revoke());
        hub.expire_signatures();
        hub.forget_requests();
        latch.open();
    };
    let (reply, ()) = tokio::join!(whole, expire);
    assert_whole(&reply, layer);
    assert_eq!(hub.token_requests(), 1);
    let (asked, signed) = (hub.seen(get().blob()), hub.seen(get().signed()));
    assert_eq!((asked.len(), signed.len()), (2, 1), "refused, and with the new token: {asked:#?}");
    assert_eq!(signed[0].header("range"), Some("bytes=150000-"));
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_14_a_name_without_an_address_hides_nothing_that_is_held() {
    for (dns, reason) in [(Dns::NotFound, "dns"), (Dns::TryAgain, "dns"), (Dns::Silent, "dns")] {
        let scene = Hub::with_other();
        let larder = scene.setup().start();
        scene.pull(&larder).await;
        larder.clock.advance(HOUR);
        // After an hour larder relies no more on what DNS said last.
        tokio::time::sleep(HOUR).await;
        scene.net.down("hub.test");
        scene.net.dns("hub.test", [dns.clone()]);
        scene.net.up("93.184.216.34");
        let begun = Instant::now();
        assert!(line(&larder.get(LATEST).await).ends_with("detail=stale-unavailable"), "{dns:?}");
        assert!(begun.elapsed() <= Duration::from_millis(2001), "{dns:?}: {:?}", begun.elapsed());
        assert_eq!(larder.get(&scene.blob()).await.status, 200);
        let begun = Instant::now();
        assert_eq!(line(&larder.get(OTHER).await), "502 UNAVAILABLE", "{dns:?}");
        assert!(begun.elapsed() <= Duration::from_secs(25), "{dns:?}: {:?}", begun.elapsed());
        assert!(larder.metric(&format!(r#"larder_upstream_errors_total{{reason="{reason}",upstream="docker.io"}}"#)) >= 1.0);
        scene.net.name("hub.test", &["93.184.216.34"]);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(larder.get(OTHER).await.status, 200, "{dns:?}: what was not found is not remembered");
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_16_a_start_with_the_upstream_down_serves_what_is_held() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.pull(&larder).await;
    let setup = larder.stop().await;
    let dials = scene.net.dials(ADDRESS);
    scene.net.black_hole(ADDRESS);
    let begun = Instant::now();
    let larder = setup.start();
    assert_eq!((larder.get("/readyz").await.status, line(&larder.get(LATEST).await)), (200, "200 larder; hit; ttl=300".into()));
    assert_eq!(larder.get(&scene.blob()).await.bytes(), &scene.image.layers[0].bytes);
    assert!(begun.elapsed() < Duration::from_secs(2) && scene.net.dials(ADDRESS) == dials, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn upstream_fault_18_a_tag_s_bytes_must_be_those_of_the_digest_that_came_with_them() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    let wrong = Digest::of(Algorithm::Sha256, b"something else");
    scene.registry.when(get().manifest().of("latest")).then(Fault::Header("docker-content-digest", wrong.to_string()));
    scene.registry.when(head()).then(Fault::Header("docker-content-digest", wrong.to_string()));
    assert_eq!(line(&larder.get(LATEST).await), "502 UNAVAILABLE");
    assert!(larder.files("blobs").is_empty() && larder.files("refs").is_empty());
    assert!(larder.metric(r#"larder_digest_mismatch_total{upstream="docker.io",where="manifest"}"#) >= 1.0);
    // Who asks by digest knows what the bytes must be, whatever the header says.
    scene.registry.behave();
    for fault in [Fault::Header("docker-content-digest", wrong.to_string()), Fault::WithoutHeader("docker-content-digest")] {
        scene.registry.when(get().manifest()).then(fault);
        let reply = scene.setup().start().get(&format!("/v2/library/app/manifests/{}", scene.image.digest)).await;
        assert_eq!((reply.status, reply.header("docker-content-digest")), (200, Some(scene.image.digest.to_string().as_str())));
        assert_eq!(reply.bytes(), &scene.image.bytes);
        scene.registry.behave();
    }
}

#[tokio::test(start_paused = true)]
async fn upstream_fault_20_a_tag_names_the_old_image_or_the_new_one_and_both_stay_whole() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    scene.pull(&larder).await;
    let new = scene.registry.push_image("library/app", "latest", &[1000], 5);
    assert_eq!(larder.get(LATEST).await.bytes(), &scene.image.bytes, "within its ttl");
    larder.clock.advance(HOUR);
    assert_eq!(larder.get(LATEST).await.bytes(), &new.bytes);
    let blob = |digest: &Digest| format!("/v2/library/app/blobs/{digest}");
    assert_eq!(larder.get(&blob(&new.layers[0].digest)).await.bytes(), &new.layers[0].bytes);
    scene.net.down("hub.test");
    let old = larder.get(&format!("/v2/library/app/manifests/{}", scene.image.digest)).await;
    assert_eq!(old.bytes(), &scene.image.bytes);
    assert_eq!(larder.get(&scene.blob()).await.bytes(), &scene.image.layers[0].bytes);
}
