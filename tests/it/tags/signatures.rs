//! The tags in which cosign and referrers live: they change when somebody signs, so that little of them is remembered.

use std::time::Duration;

use larder::config::Patterns;

use super::{HOUR, LATEST, Scene, Trouble, line, pull};
use crate::support::registry::{Fault, Image, any};

const SUFFIXES: [&str; 4] = ["", ".sig", ".att", ".sbom"];

fn tag(scene: &Scene, suffix: &str) -> String {
    format!("sha256-{}{suffix}", scene.image.digest.hex())
}

fn path(scene: &Scene, suffix: &str) -> String {
    format!("/v2/library/app/manifests/{}", tag(scene, suffix))
}

fn sign(scene: &Scene, suffix: &str, seed: u64) -> Image {
    scene.registry.push_image("library/app", &tag(scene, suffix), &[100], seed)
}

async fn pass(scene: &Scene, time: Duration) {
    scene.larder.clock.advance(time);
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn credential_24_a_later_signature_is_seen_within_30_seconds_and_after_a_404_within_5() {
    for suffix in SUFFIXES {
        let scene = Scene::with(|setup| {
            setup
                .hub(|hub| (hub.tag_ttl, hub.immutable_tags) = (HOUR, Patterns::new(&[".*".into()]).unwrap()))
                .cache(|cache| cache.negative_ttl = HOUR)
        });
        let path = path(&scene, suffix);
        assert_eq!(line(&scene.larder.get(&path).await), "404 MANIFEST_UNKNOWN");
        let first = sign(&scene, suffix, 10);
        pass(&scene, Duration::from_secs(4)).await;
        assert_eq!(line(&scene.larder.get(&path).await), "404 MANIFEST_UNKNOWN", "{suffix}: remembered for a moment");
        pass(&scene, Duration::from_secs(2)).await;
        assert_eq!(scene.larder.get(&path).await.bytes(), &first.bytes, "{suffix}");
        let second = sign(&scene, suffix, 11);
        pass(&scene, Duration::from_secs(29)).await;
        assert_eq!(line(&scene.larder.get(&path).await), "200 larder; hit; ttl=1", "{suffix}");
        pass(&scene, Duration::from_secs(2)).await;
        assert_eq!(scene.larder.get(&path).await.bytes(), &second.bytes, "{suffix}");
        // An image keeps to what is configured.
        assert_eq!(scene.larder.get(LATEST).await.status, 200);
        scene.move_tag();
        pass(&scene, 2 * HOUR).await;
        assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit", "immutable");
    }
}

/// Also: clients_41
#[tokio::test(start_paused = true)]
async fn clients_41_head_404_and_get_404_of_a_signature_cost_one_request() {
    let scene = Scene::new();
    for (at, suffix) in SUFFIXES.into_iter().enumerate() {
        let path = path(&scene, suffix);
        assert_eq!(scene.larder.head(&path).await.status, 404);
        assert_eq!(line(&scene.larder.get(&path).await), "404 MANIFEST_UNKNOWN");
        assert_eq!(scene.registry.requests().len(), at + 1, "{suffix}");
    }
}

#[tokio::test(start_paused = true)]
async fn credential_25_a_question_that_failed_deletes_no_signature_and_invents_no_absence() {
    let troubles: [(&str, Trouble); 5] = [
        ("502 UNAVAILABLE", |scene| scene.registry.when(any()).then(Fault::status(503))),
        ("502 UNAVAILABLE", |scene| scene.net.down("hub.test")),
        ("504 UNAVAILABLE", |scene| scene.registry.when(any()).then(Fault::Stall)),
        ("503 TOOMANYREQUESTS", |scene| scene.registry.when(any()).then(Fault::too_many_requests(3))),
        ("403 DENIED", |scene| scene.registry.when(any()).then(Fault::status(403))),
    ];
    for (answer, trouble) in troubles {
        let scene = Scene::new();
        let (held, unheld) = (path(&scene, ".sig"), path(&scene, ".att"));
        let signature = sign(&scene, ".sig", 10);
        pull(&scene.larder, &held, &signature).await;
        pass(&scene, Duration::from_secs(60)).await;
        trouble(&scene);
        let reply = scene.larder.get(&held).await;
        if answer != "403 DENIED" {
            assert_eq!((reply.status, reply.header("age"), reply.bytes()), (200, Some("60"), &signature.bytes), "{answer}");
        } else {
            assert_eq!(line(&reply), answer);
        }
        assert_eq!(line(&scene.larder.get(&unheld).await), answer);
        let kept = scene.larder.files("refs").iter().any(|file| file.ends_with(tag(&scene, ".sig")));
        assert!(kept, "{answer}: the record is still there");
    }
}

#[tokio::test]
async fn credential_26_a_digest_and_the_tag_of_its_signatures_are_two_things() {
    let scene = Scene::new();
    let by_digest = format!("/v2/library/app/manifests/{}", scene.image.digest);
    let by_tag = path(&scene, "");
    assert_eq!(line(&scene.larder.get(&by_tag).await), "404 MANIFEST_UNKNOWN");
    assert_eq!(scene.larder.get(&by_digest).await.bytes(), &scene.image.bytes, "the 404 was the tag's");
    let scene = Scene::new();
    let signatures = sign(&scene, "", 10);
    for _ in 0..2 {
        assert_eq!(scene.larder.get(&by_tag).await.bytes(), &signatures.bytes);
        assert_eq!(scene.larder.get(&by_digest).await.bytes(), &scene.image.bytes);
    }
    let Scene { net, larder, image, .. } = scene;
    net.down("hub.test");
    let larder = larder.kill().await.start();
    assert_eq!(larder.get(&by_tag).await.bytes(), &signatures.bytes);
    assert_eq!(larder.get(&by_digest).await.bytes(), &image.bytes);
}
