//! A tag that moved: one line in the log, one count, and since when the old one was known.

use std::time::Duration;

use super::{HOUR, LATEST, MOVES, Scene, TTL, line};
use crate::support::log::{Lines, listen_json};
use crate::support::registry::{Fault, any};

/// What was logged of tags that moved.
fn moves(log: &Lines) -> Vec<serde_json::Value> {
    let text = log.text();
    let events = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    events.map(|event| event["fields"].clone()).filter(|fields| fields["message"] == "a tag moved").collect()
}

#[tokio::test]
async fn a_moved_tag_is_one_event_that_says_from_what_to_what_and_since_when() {
    let (log, _guard) = listen_json();
    let scene = Scene::new().held_for(TTL).await;
    // It is confirmed, outlives a restart, and is confirmed again: it has been first seen when it was first seen.
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
    let Scene { net, registry, larder, image } = scene;
    let scene = Scene { net, registry, larder: larder.stop().await.start(), image };
    scene.larder.clock.advance(TTL);
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
    scene.larder.clock.advance(TTL);
    assert_eq!(moves(&log), Vec::<serde_json::Value>::new());
    let moved = scene.move_tag();
    for _ in 0..3 {
        assert_eq!(scene.larder.get(LATEST).await.bytes(), &moved.bytes);
    }
    let expected = serde_json::json!({
        "message": "a tag moved", "upstream": "docker.io", "repository": "library/app", "tag": "latest",
        "from": scene.image.digest.to_string(), "to": moved.digest.to_string(), "first_seen": "2026-11-21T00:00:00Z",
    });
    assert_eq!((moves(&log), scene.larder.metric(MOVES)), (vec![expected], 1.0));
    // And back: the first image counts anew.
    scene.registry.move_tag("library/app", "latest", scene.image.digest);
    scene.larder.clock.advance(HOUR);
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes);
    assert_eq!((moves(&log)[1]["first_seen"].as_str(), moves(&log).len()), (Some("2026-11-21T00:15:00Z"), 2));
}

#[tokio::test]
async fn a_record_without_first_seen_is_read_and_one_with_it_by_who_does_not_know_it() {
    let (log, _guard) = listen_json();
    let scene = Scene::new().held_for(TTL).await;
    let file = scene.larder.files("refs").into_iter().find(|file| file.ends_with("_tags/latest")).unwrap();
    let mut record: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let first_seen = record.remove("first_seen").unwrap();
    assert_eq!(record.keys().collect::<Vec<_>>(), ["checked_at", "digest", "media_type", "size"], "what larder 0.1.0 asks for");
    assert_eq!(first_seen, record["checked_at"]);
    let Scene { net, registry, larder, image } = scene;
    let setup = larder.stop().await;
    std::fs::write(&file, serde_json::to_vec(&record).unwrap()).unwrap();
    let scene = Scene { net, registry, larder: setup.start(), image };
    scene.move_tag();
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=updated");
    assert_eq!(moves(&log)[0]["first_seen"], "2026-11-21T00:00:00Z");
}

#[tokio::test]
async fn a_tag_that_is_only_heard_of_by_get_has_not_moved_when_its_bytes_are_the_same() {
    let scene = Scene::new().held_for(TTL).await;
    scene.registry.when(any()).then(Fault::WithoutHeader("docker-content-digest"));
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
    assert_eq!(scene.larder.metric(MOVES), 0.0);
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; hit; ttl=300");
}

#[tokio::test]
async fn a_move_that_cannot_be_stored_is_told_all_the_same() {
    let (log, _guard) = listen_json();
    let scene = Scene::new().held_for(TTL).await;
    let moved = scene.move_tag();
    let folder = scene.larder.cache().join("blobs/sha256").join(&moved.digest.hex()[..2]);
    assert!(!folder.exists(), "another seed, then");
    std::fs::write(folder, "in the way").unwrap();
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=updated");
    assert_eq!((moves(&log).len(), scene.larder.metric(MOVES)), (1, 1.0));
    scene.larder.clock.advance(Duration::from_secs(1));
}
