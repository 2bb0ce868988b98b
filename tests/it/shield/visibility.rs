//! `visibility: public`: a paid token in front of anonymous clients raises the limit, and shows them nothing that is private.

use std::time::Duration;

use larder::config::Visibility;
use tokio::time::Instant;

use super::{HOUR, Hub, LATEST, credential, line};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Bearer, Fault, any, head};

const SECRET: &str = "/v2/org/secret/manifests/latest";

/// `org/secret` is for `me` alone; all else is for everybody.
fn scene() -> (Hub, Setup) {
    let scene = Hub::with_other();
    scene.registry.push_image("org/secret", "latest", &[500], 9);
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "paid").private("org/secret"));
    let setup = scene.setup().hub(|hub| hub.credentials = vec![credential("default", "me", "paid")]);
    (scene, setup)
}

async fn layer_of_secret(scene: &Hub, larder: &Larder) -> u16 {
    let image = scene.registry.push_image("org/secret", "latest", &[500], 9);
    larder.get(&format!("/v2/org/secret/blobs/{}", image.layers[0].digest)).await.status
}

/// Also: credential_27
#[tokio::test]
async fn public_images_are_pulled_with_the_credential_and_private_ones_are_not_shown() {
    let (scene, setup) = scene();
    let larder = setup.start();
    scene.pull(&larder).await;
    let with_login = scene.registry.seen(any().token()).iter().filter(|request| request.authorization().is_some()).count();
    assert!(with_login > 0, "the limit is the account's");
    assert_eq!(line(&larder.get(SECRET).await), "403 DENIED");
    assert_eq!(larder.head(SECRET).await.status, 403);
    assert_eq!(layer_of_secret(&scene, &larder).await, 403);
    assert_eq!(scene.registry.count(any().manifest().of("org/secret").with_header("x")), 0);
}

/// Also: credential_27
#[tokio::test]
async fn what_was_stored_while_it_was_everybody_s_is_not_shown_to_the_clients_of_a_private_repository() {
    let (scene, setup) = scene();
    let private = setup.hub(|hub| hub.visibility = Visibility::Private).start();
    assert_eq!(private.get(SECRET).await.status, 200, "whoever reaches a private upstream reads what its credential reads");
    assert_eq!(layer_of_secret(&scene, &private).await, 200);
    let larder = private.stop().await.hub(|hub| hub.visibility = Visibility::Public).start();
    assert_eq!(larder.get(SECRET).await.status, 403, "on a hit as on a miss");
    assert_eq!(layer_of_secret(&scene, &larder).await, 403);
}

#[tokio::test]
async fn one_anonymous_head_a_day_tells_and_a_restart_forgets_nothing() {
    let (scene, setup) = scene();
    let larder = setup.start();
    scene.pull(&larder).await;
    scene.registry.forget_requests();
    scene.pull(&larder).await;
    let larder = larder.stop().await.start();
    scene.pull(&larder).await;
    assert_eq!(scene.registry.count(any().manifest()), 0, "the verdict is kept, over a restart too");
    larder.clock.advance(25 * HOUR);
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert_eq!(scene.registry.count(head().manifest().of("library/app")), 4, "asked as nobody, and as ourselves, each after a challenge");
}

#[tokio::test(start_paused = true)]
async fn an_outage_hides_nothing_that_was_shown_before_and_shows_nothing_that_was_not() {
    let (scene, setup) = scene();
    let larder = setup.start();
    scene.pull(&larder).await;
    larder.clock.advance(25 * HOUR);
    scene.net.down("hub.test");
    assert!(line(&larder.get(LATEST).await).contains("stale-unavailable"));
    assert_eq!(larder.get(&scene.blob()).await.status, 200);
    assert_eq!(larder.get(SECRET).await.status, 502);
    scene.net.up("hub.test");
    tokio::time::sleep(Duration::from_secs(60)).await;
    scene.registry.when(any()).then(Fault::too_many_requests(60));
    assert_eq!(larder.get(SECRET).await.status, 503);
}

/// `library/app` was pulled while everybody might read it; a day later its blob is refused.
async fn hidden_since() -> (Hub, Larder) {
    let (scene, setup) = scene();
    let larder = setup.start();
    scene.pull(&larder).await;
    let hidden = Bearer::at("http://hub.test/token").credentials("me", "paid").private("library/app");
    scene.registry.require_bearer(hidden);
    larder.clock.advance(25 * HOUR);
    assert_eq!(larder.get(&scene.blob()).await.status, 403);
    (scene, larder)
}

#[tokio::test]
async fn a_repository_that_became_private_is_hidden_within_a_day() {
    let (_, larder) = hidden_since().await;
    assert_eq!(larder.get(LATEST).await.status, 403);
}

#[tokio::test(start_paused = true)]
async fn what_upstream_has_since_denied_is_not_shown_in_an_outage_either() {
    let (scene, larder) = hidden_since().await;
    scene.net.down("hub.test");
    for _ in 0..2 {
        assert_eq!((larder.get(&scene.blob()).await.status, larder.get(LATEST).await.status), (502, 502));
    }
    let larder = larder.stop().await.start();
    assert_eq!(larder.get(&scene.blob()).await.status, 502, "nor after a restart");
}

#[tokio::test(start_paused = true)]
async fn the_question_who_may_see_it_makes_nobody_wait_for_a_silent_upstream() {
    let (scene, setup) = scene();
    let larder = setup.start();
    scene.pull(&larder).await;
    larder.clock.advance(25 * HOUR);
    scene.net.down("hub.test");
    scene.net.up("hub.test");
    scene.net.black_hole("93.184.216.34:80");
    let begun = Instant::now();
    assert_eq!(larder.get(&scene.blob()).await.status, 200);
    assert!(begun.elapsed() <= Duration::from_millis(2001), "{:?}", begun.elapsed());
    for _ in 0..100 {
        let begun = Instant::now();
        assert_eq!(larder.get(&scene.blob()).await.status, 200);
        assert!(line(&larder.get(LATEST).await).contains("stale-unavailable"));
        assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test]
async fn lists_are_those_that_anybody_gets() {
    let (scene, setup) = scene();
    let larder = setup.start();
    assert_eq!(larder.get("/v2/library/app/tags/list").await.status, 200);
    assert_eq!(line(&larder.get("/v2/org/secret/tags/list").await), "403 DENIED");
    assert_eq!(larder.get(&format!("/v2/org/secret/referrers/{}", scene.image.digest)).await.status, 403);
}
