//! What a tag gets: the contract's table from a client's side, and what each answer costs upstream.

mod complete;
mod keys;
mod manifests;
mod moves;
mod outage;
mod signatures;
mod upstream_word;

use std::sync::Arc;
use std::time::Duration;

use larder::clock::Timestamp;
use larder::config::{CredentialConfig, Secret, Visibility};
use larder::gate::Gate;

use crate::support::client::Reply;
use crate::support::larder::Larder;
use crate::support::net::Dns;
use crate::support::registry::{Fault, Image, Latch, Matcher, any, get, head};
use crate::support::scene::Scene;

const LATEST: &str = "/v2/library/app/manifests/latest";
const HOUR: Duration = Duration::from_secs(3600);
const TTL: Duration = Duration::from_secs(300);
const MISMATCHES: &str = r#"larder_digest_mismatch_total{upstream="docker.io",where="manifest"}"#;
const MOVES: &str = r#"larder_tag_moves_total{upstream="docker.io"}"#;

impl Scene {
    /// The tag is held with all its blobs, and upstream's last word on it is this old.
    async fn held_for(self, age: Duration) -> Scene {
        pull(&self.larder, LATEST, &self.image).await;
        self.registry.forget_requests();
        self.larder.clock.advance(age);
        self
    }

    fn move_tag(&self) -> Image {
        self.registry.push_image("library/app", "latest", &[1000], 2)
    }

    fn requests(&self, outcome: &str) -> f64 {
        self.larder.metric(&format!(r#"larder_requests_total{{kind="manifest",outcome="{outcome}",upstream="docker.io"}}"#))
    }

    /// HEADs and GETs that upstream got for manifests.
    fn asked(&self) -> (usize, usize) {
        (self.registry.count(head().manifest()), self.registry.count(get().manifest()))
    }
}

/// Returns once an image is stored whole.
async fn pull(larder: &Larder, manifest: &str, image: &Image) {
    assert_eq!(larder.get(manifest).await.bytes(), &image.bytes);
    let (repository, _) = manifest.split_once("/manifests/").unwrap();
    for blob in image.layers.iter().chain(&image.config) {
        assert_eq!(larder.get(&format!("{repository}/blobs/{}", blob.digest)).await.bytes(), &blob.bytes);
        while !larder.app.store.contains(&blob.digest) {
            tokio::task::yield_now().await;
        }
    }
}

/// Status and what explains it: `200 larder; hit; ttl=300`, `404 MANIFEST_UNKNOWN`.
fn line(reply: &Reply) -> String {
    match reply.status {
        200 => format!("200 {}", reply.header("cache-status").unwrap_or("no Cache-Status")),
        status => format!("{status} {}", reply.error_code().unwrap_or_default()),
    }
}

#[tokio::test]
async fn a_fresh_tag_costs_upstream_nothing() {
    let scene = Scene::new().held_for(Duration::from_secs(60)).await;
    for reply in [scene.larder.get(LATEST).await, scene.larder.head(LATEST).await] {
        assert_eq!((reply.status, reply.header("cache-status"), reply.header("age")), (200, Some("larder; hit; ttl=240"), None));
    }
    assert_eq!(scene.registry.requests().len(), 0);
    assert_eq!(scene.requests("hit"), 2.0);
}

#[tokio::test]
async fn registry_24_an_expired_tag_is_revalidated_by_one_head_and_then_fresh_again() {
    let scene = Scene::new().held_for(TTL).await;
    let reply = scene.larder.get(LATEST).await;
    assert_eq!((line(&reply).as_str(), reply.bytes()), ("200 larder; fwd=stale; detail=revalidated", &scene.image.bytes));
    assert_eq!(scene.asked(), (1, 0));
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit; ttl=300");
    assert_eq!(scene.registry.requests().len(), 1);
    assert_eq!((scene.requests("revalidated"), scene.larder.metric(MOVES)), (1.0, 0.0));
}

/// Also: upstream_fault_20
#[tokio::test]
async fn registry_24_a_moved_tag_is_fetched_by_digest_and_counted() {
    let scene = Scene::new().held_for(TTL).await;
    let moved = scene.move_tag();
    let reply = scene.larder.get(LATEST).await;
    assert_eq!((line(&reply).as_str(), reply.bytes()), ("200 larder; fwd=stale; detail=updated", &moved.bytes));
    assert_eq!(scene.asked(), (1, 1));
    assert_eq!(scene.registry.count(get().manifest().of(moved.digest)), 1);
    assert_eq!((scene.requests("updated"), scene.larder.metric(MOVES)), (1.0, 1.0));
    let again = scene.larder.get(LATEST).await;
    assert_eq!((line(&again).as_str(), again.bytes()), ("200 larder; hit; ttl=300", &moved.bytes));
}

#[tokio::test]
async fn a_tag_that_moved_to_a_held_manifest_costs_no_get() {
    let scene = Scene::new();
    let other = scene.registry.push_image("library/app", "other", &[10], 2);
    assert_eq!(scene.larder.get("/v2/library/app/manifests/other").await.status, 200);
    let scene = scene.held_for(TTL).await;
    scene.registry.move_tag("library/app", "latest", other.digest);
    let reply = scene.larder.get(LATEST).await;
    assert_eq!((line(&reply).as_str(), reply.bytes()), ("200 larder; fwd=stale; detail=updated", &other.bytes));
    assert_eq!(scene.asked(), (1, 0));
}

/// What goes wrong upstream.
type Trouble = fn(&Scene);

fn credential(scene: &Scene) {
    scene.registry.require_basic("me", "rotated");
}

fn unresolvable(scene: &Scene) {
    // Down first, so that no connection of the time before is left.
    scene.net.down("hub.test");
    scene.net.dns("hub.test", [Dns::NotFound]);
}

fn wrong_bytes(scene: &Scene) {
    scene.move_tag();
    scene.registry.when(get().manifest()).then(Fault::Body("{\"schemaVersion\":2}".into()));
}

const TROUBLES: [(&str, Trouble, [&str; 3]); 11] = [
    (
        "same digest",
        |_| (),
        ["200 larder; fwd=uri-miss", "200 larder; fwd=stale; detail=revalidated", "200 larder; fwd=stale; detail=revalidated"],
    ),
    (
        "another digest",
        |scene| drop(scene.move_tag()),
        ["200 larder; fwd=uri-miss", "200 larder; fwd=stale; detail=updated", "200 larder; fwd=stale; detail=updated"],
    ),
    ("404", |scene| scene.registry.delete_tag("library/app", "latest"), ["404 MANIFEST_UNKNOWN"; 3]),
    ("403", |scene| scene.registry.when(any().manifest()).then(Fault::status(403)), ["403 DENIED"; 3]),
    ("credential refused", credential, ["502 UNAVAILABLE", "200 larder; hit; ttl=-3300; detail=stale-unavailable", "502 UNAVAILABLE"]),
    (
        "429",
        |scene| scene.registry.when(any().manifest()).then(Fault::too_many_requests(30)),
        ["503 TOOMANYREQUESTS", "200 larder; hit; ttl=-3300; detail=stale-rate-limited", "503 TOOMANYREQUESTS"],
    ),
    (
        "500",
        |scene| scene.registry.when(any().manifest()).then(Fault::status(500)),
        ["502 UNAVAILABLE", "200 larder; hit; ttl=-3300; detail=stale-unavailable", "502 UNAVAILABLE"],
    ),
    (
        "connection refused",
        |scene| scene.net.down("hub.test"),
        ["502 UNAVAILABLE", "200 larder; hit; ttl=-3300; detail=stale-unavailable", "502 UNAVAILABLE"],
    ),
    ("no DNS", unresolvable, ["502 UNAVAILABLE", "200 larder; hit; ttl=-3300; detail=stale-unavailable", "502 UNAVAILABLE"]),
    (
        "silence",
        |scene| scene.registry.when(any()).then(Fault::Stall),
        ["504 UNAVAILABLE", "200 larder; hit; ttl=-3300; detail=stale-unavailable", "504 UNAVAILABLE"],
    ),
    ("wrong bytes", wrong_bytes, ["502 UNAVAILABLE", "200 larder; hit; ttl=-3300; detail=stale-corrupt", "502 UNAVAILABLE"]),
];

async fn troubled(trouble: Trouble, age: Option<Duration>) -> (Scene, Reply) {
    let credentials = CredentialConfig::password("me", Secret::Inline("secret".into()));
    let scene = Scene::with(|setup| setup.hub(|hub| (hub.credentials, hub.visibility) = (vec![credentials], Visibility::Private)));
    scene.registry.require_basic("me", "secret");
    let scene = match age {
        Some(age) => scene.held_for(age).await,
        None => scene,
    };
    trouble(&scene);
    let reply = scene.larder.get(LATEST).await;
    (scene, reply)
}

/// Also: clients_35, upstream_fault_08, upstream_fault_14
#[tokio::test(start_paused = true)]
async fn invariant_11_what_a_tag_gets_is_the_contract_s_table() {
    for (name, trouble, expected) in TROUBLES {
        let mut found = Vec::new();
        for age in [None, Some(HOUR), Some(8 * 24 * HOUR)] {
            let (scene, reply) = troubled(trouble, age).await;
            let is_stale = line(&reply).contains("detail=stale-");
            assert_eq!(reply.header("age"), is_stale.then_some("3600"), "{name}, {age:?}");
            assert_eq!(scene.requests("stale"), f64::from(u8::from(is_stale)), "{name}, {age:?}");
            assert_eq!(reply.header("retry-after"), (reply.status == 503).then_some("30"), "{name}, {age:?}");
            assert_eq!(scene.larder.metric(MISMATCHES) > 0.0, name == "wrong bytes", "{name}, {age:?}");
            if is_stale {
                assert_eq!(reply.bytes(), &scene.image.bytes, "{name}");
            }
            found.push(line(&reply));
        }
        assert_eq!(found, expected, "{name}: nothing held, within stale_if_error, beyond it");
    }
}

/// Also: registry_39, clients_35
#[tokio::test(start_paused = true)]
async fn invariant_10_not_found_is_said_only_when_upstream_said_so() {
    for (name, trouble, _) in TROUBLES {
        for age in [None, Some(HOUR), Some(8 * 24 * HOUR)] {
            let (scene, _) = troubled(trouble, age).await;
            let layer = scene.image.layers[0].digest;
            let other = scene.registry.push_image("library/app", "other", &[20], 3);
            if name.contains("digest") || name == "404" || name == "wrong bytes" {
                continue;
            }
            scene.registry.when(any().blob()).then(Fault::status(503));
            for path in [LATEST.into(), format!("/v2/library/app/manifests/{}", other.digest), format!("/v2/library/app/blobs/{layer}")] {
                for reply in [scene.larder.get(&path).await, scene.larder.head(&path).await] {
                    assert_ne!(reply.status, 404, "{name}, {age:?}: {path}");
                }
            }
        }
    }
}

/// Also: upstream_fault_19
#[tokio::test]
async fn a_deleted_tag_is_dropped_and_stays_gone_when_upstream_goes_down() {
    let scene = Scene::new().held_for(TTL).await;
    scene.registry.delete_tag("library/app", "latest");
    assert_eq!(line(&scene.larder.get(LATEST).await), "404 MANIFEST_UNKNOWN");
    assert!(scene.larder.files("refs").iter().all(|file| !file.ends_with("latest")), "{:?}", scene.larder.files("refs"));
    let by_digest = format!("/v2/library/app/manifests/{}", scene.image.digest);
    assert_eq!(scene.larder.get(&by_digest).await.bytes(), &scene.image.bytes, "the manifest itself is still there");
}

/// Also: registry_40
#[tokio::test(start_paused = true)]
async fn clients_41_head_404_and_get_404_cost_one_request_for_seconds_only() {
    let scene = Scene::new();
    let path = "/v2/library/app/manifests/none";
    assert_eq!(scene.larder.head(path).await.status, 404);
    let reply = scene.larder.get(path).await;
    assert_eq!((line(&reply).as_str(), reply.header("cache-status")), ("404 MANIFEST_UNKNOWN", Some("larder; hit; detail=negative")));
    assert_eq!((scene.registry.requests().len(), scene.requests("negative")), (1, 1.0));
    scene.registry.push_image("library/app", "none", &[1], 3);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(scene.larder.get(path).await.status, 404);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(scene.larder.get(path).await.status, 200);
}

/// Also: registry_40
#[tokio::test(start_paused = true)]
async fn clients_38_a_refusal_is_not_remembered() {
    let scene = Scene::new();
    scene.registry.when(any().manifest()).first(1).then(Fault::status(403));
    assert_eq!(line(&scene.larder.get(LATEST).await), "403 DENIED");
    assert_eq!(scene.larder.get(LATEST).await.status, 200);
}

/// What fifty clients get that all ask before upstream answers the first such question.
async fn fifty_clients(scene: Scene, question: Matcher) -> (Arc<Scene>, Vec<String>) {
    let latch = Latch::new();
    scene.registry.when(question).then(Fault::Hold(latch.clone()));
    let scene = Arc::new(scene);
    let clients: Vec<_> = (0..50)
        .map(|_| {
            let scene = Arc::clone(&scene);
            tokio::spawn(async move { line(&scene.larder.get(LATEST).await) })
        })
        .collect();
    while scene.larder.metric("larder_requests_in_flight") < 50.0 {
        tokio::task::yield_now().await;
    }
    latch.open();
    let mut lines = Vec::new();
    for client in clients {
        lines.push(client.await.unwrap());
    }
    (scene, lines)
}

#[tokio::test]
async fn fifty_clients_of_an_expired_tag_ask_upstream_once() {
    let scene = Scene::with(|mut setup| {
        setup.world.gate = Gate::Inline;
        setup
    });
    let scene = scene.held_for(TTL).await;
    let (scene, lines) = fifty_clients(scene, head()).await;
    assert_eq!(lines, ["200 larder; fwd=stale; detail=revalidated"; 50]);
    assert_eq!(scene.asked(), (1, 0));
}

#[tokio::test]
async fn fifty_clients_of_an_unheld_tag_cost_one_get() {
    let (scene, lines) = fifty_clients(Scene::new(), get()).await;
    for line in lines {
        assert!(
            ["200 larder; fwd=uri-miss", "200 larder; fwd=uri-miss; collapsed", "200 larder; hit; ttl=300"].contains(&line.as_str()),
            "{line}"
        );
    }
    assert_eq!(scene.asked(), (1, 1));
    assert_eq!(scene.requests("miss"), 1.0);
}

#[tokio::test]
async fn a_clock_that_was_set_back_makes_no_tag_fresh() {
    let scene = Scene::new().held_for(Duration::ZERO).await;
    let clock = &scene.larder.clock;
    clock.set(Timestamp(clock.now().0 - 60_000));
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
    clock.set(Timestamp(clock.now().0 - 60_000));
    scene.net.down("hub.test");
    let reply = scene.larder.get(LATEST).await;
    assert_eq!(line(&reply), "200 larder; hit; ttl=0; detail=stale-unavailable");
    clock.set(Timestamp(clock.now().0 - 8 * 86_400_000));
    assert_eq!(line(&scene.larder.get(LATEST).await), "502 UNAVAILABLE");
}

/// Also: upstream_fault_16
#[tokio::test]
async fn a_restart_keeps_what_tags_name_and_when_that_was_said() {
    for clean in [true, false] {
        let Scene { net, registry, larder, image } = Scene::new().held_for(Duration::from_secs(100)).await;
        let setup = if clean { larder.stop().await } else { larder.kill().await };
        net.down("hub.test");
        let larder = setup.start();
        let reply = larder.get(LATEST).await;
        assert_eq!((line(&reply).as_str(), reply.bytes()), ("200 larder; hit; ttl=200", &image.bytes), "clean: {clean}");
        assert_eq!(reply.header("content-type"), Some(image.media_type));
        larder.clock.advance(TTL);
        assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-100; detail=stale-unavailable");
        assert_eq!(registry.requests().len(), 0);
    }
}

/// Every tag's record names a manifest that is there.
fn check_records(larder: &Larder) -> usize {
    let files = larder.files("refs");
    let records = files.iter().filter(|file| file.parent().is_some_and(|parent| parent.ends_with("_tags")));
    records
        .map(|file| {
            let record: serde_json::Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let hex = record["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let blob = larder.cache().join(format!("blobs/sha256/{}/{hex}", &hex[..2]));
            assert!(blob.is_file(), "{} names {hex}, which is not stored", file.display());
        })
        .count()
}

#[tokio::test]
async fn invariant_12_a_manifest_that_cannot_be_stored_gets_no_tag_record() {
    let scene = Scene::new();
    let blobs = scene.larder.cache().join("blobs/sha256");
    std::fs::create_dir_all(scene.larder.cache().join("blobs")).unwrap();
    assert!(!blobs.exists(), "nothing is stored yet");
    std::fs::write(&blobs, "in the way").unwrap();
    for _ in 0..2 {
        let reply = scene.larder.get(LATEST).await;
        assert_eq!((line(&reply).as_str(), reply.bytes()), ("200 larder; fwd=uri-miss", &scene.image.bytes), "a cache fault fails nobody");
    }
    assert_eq!(check_records(&scene.larder), 0);
    std::fs::remove_file(&blobs).unwrap();
    assert_eq!(scene.larder.get(LATEST).await.status, 200);
    assert_eq!(check_records(&scene.larder), 1);
}

#[tokio::test]
async fn invariant_12_an_evicted_manifest_takes_its_tags_along() {
    let scene = Scene::with(|setup| setup.cache(|cache| (cache.max_size, cache.max_blob_size) = (400_000, 300_000)));
    let scene = scene.held_for(Duration::from_secs(1)).await;
    assert_eq!(check_records(&scene.larder), 1);
    let large = scene.registry.push_image("library/large", "latest", &[200_000, 200_001, 200_002], 9);
    for layer in &large.layers {
        scene.larder.clock.advance(Duration::from_secs(60));
        let reply = scene.larder.get(&format!("/v2/library/large/blobs/{}", layer.digest)).await;
        assert_eq!(reply.bytes(), &layer.bytes);
        // What is being committed can't be evicted for the next.
        while !scene.larder.files("blobs").iter().any(|file| file.ends_with(layer.digest.hex())) {
            tokio::task::yield_now().await;
        }
    }
    assert!(scene.larder.files("blobs").iter().all(|file| !file.ends_with(scene.image.digest.hex())));
    assert_eq!(check_records(&scene.larder), 0);
    scene.registry.forget_requests();
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes);
    assert_eq!(scene.asked(), (1, 1));
}
