//! What the configuration's keys change in the table: `immutable_tags`, `keep_deleted_tags`, `negative_ttl`.

use std::time::Duration;

use larder::config::Patterns;

use super::{HOUR, LATEST, Scene, TTL, line};
use crate::support::registry::{Fault, any};

const DELETED: &str = r#"larder_stale_served_total{reason="deleted",upstream="docker.io"}"#;

fn immutable(pattern: &str) -> Scene {
    Scene::with(|setup| setup.hub(|hub| hub.immutable_tags = Patterns::new(&[pattern.into()]).unwrap()))
}

#[tokio::test]
async fn a_held_immutable_tag_is_served_unasked_whatever_its_age() {
    let scene = immutable("lat.*").held_for(400 * 24 * HOUR).await;
    scene.move_tag();
    for reply in [scene.larder.get(LATEST).await, scene.larder.head(LATEST).await] {
        assert_eq!((line(&reply).as_str(), reply.header("age")), ("200 larder; hit", None));
    }
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes);
    scene.net.down("hub.test");
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit");
    assert_eq!(scene.registry.requests().len(), 0);
}

#[tokio::test]
async fn an_immutable_tag_is_first_fetched_as_any_other_and_others_stay_mutable() {
    let scene = immutable("v.*");
    assert_eq!(line(&scene.larder.get("/v2/library/app/manifests/v1").await), "404 MANIFEST_UNKNOWN");
    let scene = scene.held_for(TTL).await;
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
}

/// Also: upstream_fault_19
#[tokio::test(start_paused = true)]
async fn a_deleted_tag_is_kept_where_that_is_wished_and_marked() {
    for age in [HOUR, 8 * 24 * HOUR] {
        let scene = Scene::with(|setup| setup.cache(|cache| cache.keep_deleted_tags = true)).held_for(age).await;
        scene.registry.delete_tag("library/app", "latest");
        let expected = format!("200 larder; hit; ttl={}; detail=stale-deleted", 300 - i64::try_from(age.as_secs()).unwrap());
        for _ in 0..3 {
            let reply = scene.larder.get(LATEST).await;
            assert_eq!((line(&reply), reply.bytes()), (expected.clone(), &scene.image.bytes));
            assert_eq!(reply.header("age"), Some(age.as_secs().to_string().as_str()));
        }
        assert_eq!(scene.asked(), (1, 0), "upstream's 404 is remembered");
        assert_eq!((scene.larder.metric(DELETED), scene.requests("stale")), (3.0, 3.0));
        // It is pushed again: that is seen as soon as a new tag would be.
        let pushed = scene.move_tag();
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(scene.larder.get(LATEST).await.bytes(), &pushed.bytes);
        // What was never held is not there.
        assert_eq!(line(&scene.larder.get("/v2/library/app/manifests/none").await), "404 MANIFEST_UNKNOWN");
    }
}

#[tokio::test]
async fn a_kept_tag_survives_a_restart_and_an_outage() {
    let scene = Scene::with(|setup| setup.cache(|cache| cache.keep_deleted_tags = true)).held_for(HOUR).await;
    scene.registry.delete_tag("library/app", "latest");
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-deleted");
    let Scene { net, larder, .. } = scene;
    let larder = larder.stop().await.start();
    assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-deleted");
    let larder = larder.stop().await.start();
    net.down("hub.test");
    assert_eq!(line(&larder.get(LATEST).await), "200 larder; hit; ttl=-3300; detail=stale-unavailable");
}

/// Also: credential_25
#[tokio::test(start_paused = true)]
async fn upstream_fault_21_nothing_but_a_true_404_is_remembered() {
    let troubles = [401, 403, 407, 412, 429, 451, 500, 502, 503, 504, 400, 410].map(|status| Fault::from(Fault::status(status)));
    let signature = format!("/v2/library/app/manifests/sha256-{}.sig", "a".repeat(64));
    for fault in troubles.into_iter().chain([Fault::Hangup, Fault::Stall, Fault::login_page().into()]) {
        for path in [LATEST, &signature] {
            let scene = Scene::new();
            scene.registry.push_image("library/app", signature.rsplit('/').next().unwrap(), &[1], 9);
            scene.registry.when(any()).then(fault.clone());
            for reply in [scene.larder.get(path).await, scene.larder.head(path).await] {
                assert!(reply.status != 404 && reply.status != 200, "{fault:?}: {}", reply.status);
            }
            scene.registry.behave();
            // What a limit has laid to rest is asked again after that.
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert_eq!(scene.larder.get(path).await.status, 200, "{fault:?}");
        }
    }
}
