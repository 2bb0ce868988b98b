//! A pull as a client sees it: one upstream transfer, the right bytes, and nothing asked twice.

use crate::support::larder::Larder;
use crate::support::registry::{get, head};
use crate::support::scene::hub;

#[tokio::test]
async fn an_image_is_pulled_once_and_then_served_from_the_cache() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[3_000_000, 100, 70_000], 1);
    let larder = Larder::start(&net);
    for round in 0..2 {
        let manifest = larder.get("/v2/library/app/manifests/latest").await;
        assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "round {round}");
        assert_eq!(manifest.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
        for layer in &image.layers {
            let blob = larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).await;
            assert_eq!((blob.status, blob.bytes()), (200, &layer.bytes));
        }
    }
    assert_eq!(registry.count(get().blob()), 3);
    assert_eq!((registry.count(head().manifest()), registry.count(get().manifest())), (1, 1));
}

#[tokio::test]
async fn a_pulled_image_outlives_its_upstream() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100], 1);
    let larder = Larder::start(&net);
    // As dockerd and containerd do: the tag by HEAD, then everything by digest.
    larder.head("/v2/library/app/manifests/latest").await;
    larder.get(&format!("/v2/library/app/manifests/{}", image.digest)).await;
    for blob in image.layers.iter().chain(&image.config) {
        larder.get(&format!("/v2/library/app/blobs/{}", blob.digest)).await;
        while !larder.app.store.contains(&blob.digest) {
            tokio::task::yield_now().await;
        }
    }
    net.down("hub.test");
    larder.clock.advance(std::time::Duration::from_secs(3600));
    let manifest = larder.head("/v2/library/app/manifests/latest").await;
    assert_eq!(manifest.header("cache-status"), Some("larder; hit; ttl=-3300; detail=stale-unavailable"));
    assert_eq!(larder.get("/v2/library/app/manifests/latest").await.bytes(), &image.bytes);
}

#[tokio::test]
async fn a_manifest_that_comes_late_does_not_turn_its_tag_back() {
    let (net, registry) = hub();
    let old = registry.push_image("library/app", "latest", &[100], 1);
    let new = registry.push_image("library/app", "next", &[100], 2);
    let larder = Larder::start(&net);
    larder.head("/v2/library/app/manifests/latest").await;
    registry.move_tag("library/app", "latest", new.digest);
    larder.clock.advance(std::time::Duration::from_secs(3600));
    larder.head("/v2/library/app/manifests/latest").await;
    for image in [&new, &old] {
        larder.get(&format!("/v2/library/app/manifests/{}", image.digest)).await;
    }
    assert_eq!(larder.get("/v2/library/app/manifests/latest").await.bytes(), &new.bytes);
}

#[tokio::test]
async fn what_larder_refuses_by_itself_says_nothing_of_the_cache() {
    let (net, _registry) = hub();
    let larder = Larder::start(&net);
    for path in ["/v2/UPPER/manifests/latest", "/v2/library/app/blobs/sha256:short", "/v2/_catalog"] {
        let reply = larder.get(path).await;
        assert!(matches!(reply.status, 400 | 404));
        assert_eq!((reply.header("cache-status"), reply.header("docker-distribution-api-version")), (None, Some("registry/2.0")));
    }
}
