//! Waiting for upstream's word on a tag: how long, who, and what a HEAD is remembered for.

use std::time::Duration;

use tokio::time::Instant;

use super::{HOUR, LATEST, Scene, TTL, line};
use crate::support::registry::{Fault, Latch, any, get, head};

const STALE: &str = "200 larder; hit; ttl=-3300; detail=stale-unavailable";

#[tokio::test(start_paused = true)]
async fn a_silent_upstream_costs_a_held_tag_two_seconds_once() {
    let scene = Scene::new().held_for(HOUR).await;
    let latch = Latch::new();
    scene.registry.when(any()).first(1).then(Fault::Hold(latch.clone()));
    let begun = Instant::now();
    assert_eq!(line(&scene.larder.get(LATEST).await), STALE);
    assert_eq!(begun.elapsed().as_secs(), 2);
    for _ in 0..3 {
        let begun = Instant::now();
        assert_eq!(line(&scene.larder.get(LATEST).await), STALE);
        assert!(begun.elapsed() < Duration::from_millis(100), "nobody waits again: {:?}", begun.elapsed());
    }
    assert_eq!(scene.asked(), (1, 0), "the one question goes on");
    // The answer comes late, and still counts.
    latch.open();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit; ttl=300");
    assert_eq!(scene.asked(), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_answered_again_is_waited_for_again() {
    let scene = Scene::new().held_for(HOUR).await;
    scene.registry.when(any()).first(1).then(Fault::Delay(Duration::from_secs(3)));
    assert_eq!(line(&scene.larder.get(LATEST).await), STALE);
    tokio::time::sleep(Duration::from_secs(2)).await;
    scene.larder.clock.advance(HOUR);
    scene.registry.when(any()).then(Fault::Delay(Duration::from_secs(1)));
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
}

#[tokio::test(start_paused = true)]
async fn a_host_that_refuses_after_its_silence_is_heard() {
    let scene = Scene::new().held_for(HOUR).await;
    scene.registry.when(any()).first(1).then(Fault::Stall);
    assert_eq!(line(&scene.larder.get(LATEST).await), STALE);
    scene.registry.behave();
    scene.registry.when(any()).then(Fault::status(403));
    // The silent question ends, and so does one that is refused: from then on the refusal is what clients get.
    tokio::time::sleep(Duration::from_secs(30)).await;
    let first = line(&scene.larder.get(LATEST).await);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(line(&scene.larder.get(LATEST).await), "403 DENIED", "after {first}");
}

#[tokio::test(start_paused = true)]
async fn a_tag_too_old_to_serve_stale_waits_for_upstream_as_long_as_an_unheld_one() {
    let scene = Scene::new().held_for(8 * 24 * HOUR).await;
    scene.registry.when(any()).then(Fault::Delay(Duration::from_secs(5)));
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
}

/// Also: clients_40, upstream_fault_06
#[tokio::test(start_paused = true)]
async fn an_unheld_tag_is_answered_within_25_seconds_of_silence() {
    let scene = Scene::new();
    scene.registry.when(any()).then(Fault::Stall);
    for method in [http::Method::GET, http::Method::HEAD] {
        let begun = Instant::now();
        let reply = scene.larder.client().await.request(method, LATEST).send().await;
        assert_eq!(reply.status, 504);
        assert!(begun.elapsed() <= Duration::from_secs(26), "{:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_client_that_leaves_does_not_end_the_question() {
    let scene = Scene::new().held_for(TTL).await;
    let latch = Latch::new();
    scene.registry.when(head()).then(Fault::Hold(latch.clone()));
    let mut client = scene.larder.client().await;
    tokio::select! {
        _ = client.get(LATEST).try_send() => panic!("upstream has not answered"),
        () = scene.registry.wait_for(head(), 1) => {}
    }
    drop(client);
    latch.open();
    while !line(&scene.larder.get(LATEST).await).contains("hit; ttl=300") {
        tokio::task::yield_now().await;
    }
    assert_eq!(scene.asked(), (1, 0));
}

#[tokio::test]
async fn heads_of_an_unheld_tag_cost_one_head_and_the_get_asks_for_that_digest() {
    let scene = Scene::new();
    for _ in 0..3 {
        let reply = scene.larder.head(LATEST).await;
        assert_eq!(reply.status, 200);
        assert_eq!(reply.header("docker-content-digest"), Some(scene.image.digest.to_string().as_str()));
        assert_eq!(reply.header("content-length"), Some(scene.image.bytes.len().to_string().as_str()));
        assert_eq!(reply.header("content-type"), Some(scene.image.media_type));
    }
    assert_eq!(scene.asked(), (1, 0));
    assert!(scene.larder.files("blobs").is_empty());
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes);
    assert_eq!((scene.asked(), scene.registry.count(get().of(scene.image.digest))), ((1, 1), 1));
}

/// Also: upstream_fault_20
#[tokio::test]
async fn clients_14_after_a_head_the_digest_it_named_can_be_had_though_the_tag_moved() {
    let scene = Scene::new();
    assert_eq!(scene.larder.head(LATEST).await.status, 200);
    scene.move_tag();
    let by_digest = format!("/v2/library/app/manifests/{}", scene.image.digest);
    assert_eq!(scene.larder.get(&by_digest).await.bytes(), &scene.image.bytes);
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes, "HEAD and GET agree");
}

#[tokio::test(start_paused = true)]
async fn a_head_is_remembered_for_the_tag_s_ttl_and_not_twice_that() {
    let scene = Scene::new();
    let pass = async |time: Duration| {
        scene.larder.clock.advance(time);
        tokio::time::sleep(time).await;
    };
    assert_eq!(scene.larder.head(LATEST).await.status, 200);
    pass(Duration::from_secs(200)).await;
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes);
    let moved = scene.move_tag();
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit; ttl=100", "upstream's last word was the HEAD's");
    pass(Duration::from_secs(101)).await;
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &moved.bytes);
}

#[tokio::test]
async fn with_a_ttl_of_zero_every_pull_is_asked_about_and_none_is_fetched_twice() {
    let scene = Scene::with(|setup| setup.hub(|hub| hub.tag_ttl = Duration::ZERO));
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=uri-miss");
    for _ in 0..3 {
        assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
    }
    assert_eq!(scene.asked(), (4, 1));
}

#[tokio::test]
async fn registry_25_an_upstream_without_head_is_asked_by_get() {
    let scene = Scene::new();
    scene.registry.when(head()).then(Fault::status(405));
    for method in [http::Method::HEAD, http::Method::GET] {
        let reply = scene.larder.client().await.request(method, LATEST).send().await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(scene.image.media_type)));
    }
    assert_eq!(scene.registry.count(get().manifest()), 1);
}

#[tokio::test]
async fn registry_25_a_registry_that_names_no_digest_is_believed_by_its_bytes() {
    let scene = Scene::new();
    scene.registry.when(any()).then(Fault::WithoutHeader("docker-content-digest"));
    let reply = scene.larder.get(LATEST).await;
    assert_eq!(reply.bytes(), &scene.image.bytes);
    assert_eq!(reply.header("docker-content-digest"), Some(scene.image.digest.to_string().as_str()));
}
