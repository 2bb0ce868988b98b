//! Equal questions at once: upstream is asked one of them, and what it says is remembered, whoever asks and however.

use std::sync::Arc;
use std::time::Duration;

use crate::fills::{hub, path, push, until};
use crate::support::larder::Larder;
use crate::support::registry::{Fault, Latch, any, get, head};

const CLIENTS: usize = 500;

#[derive(Clone, Copy)]
enum Method {
    Get,
    Head,
}

/// So many clients ask while upstream thinks about it; the statuses of their answers.
async fn ask_at_once(larder: &Arc<Larder>, path: &str, method: Method, latch: &Latch) -> Vec<u16> {
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (larder, path) = (Arc::clone(larder), path.to_owned());
            tokio::spawn(async move {
                match method {
                    Method::Get => larder.get(&path).await.status,
                    Method::Head => larder.head(&path).await.status,
                }
            })
        })
        .collect();
    until("all have asked", || larder.metric("larder_requests_in_flight") == CLIENTS as f64).await;
    latch.open();
    let mut statuses = Vec::new();
    for client in clients {
        statuses.push(client.await.expect("no panic"));
    }
    statuses
}

#[tokio::test(start_paused = true)]
async fn a6_five_hundred_heads_of_a_blob_that_is_not_cached_are_one_question_and_the_next_is_none() {
    let (net, registry) = hub();
    let blob = push(&registry, 1000, 1);
    let larder = Arc::new(Larder::start(&net));
    let latch = Latch::new();
    registry.when(head()).then(Fault::Hold(latch.clone()));
    let statuses = ask_at_once(&larder, &path(blob.digest), Method::Head, &latch).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    assert_eq!(registry.count(any()), 1);
    let reply = larder.head(&path(blob.digest)).await;
    assert_eq!((reply.status, reply.header("content-length"), reply.header("cache-status")), (200, Some("1000"), Some("larder; hit")));
    assert_eq!(registry.count(any()), 1);
}

#[tokio::test(start_paused = true)]
async fn a6_five_hundred_requests_for_a_blob_that_is_not_there_are_one_question_and_the_next_is_none() {
    for method in [Method::Head, Method::Get] {
        let (net, registry) = hub();
        let blob = push(&registry, 1000, 1);
        registry.delete_blob("library/app", blob.digest);
        let larder = Arc::new(Larder::start(&net));
        let latch = Latch::new();
        registry.when(any().blob()).then(Fault::Hold(latch.clone()));
        let statuses = ask_at_once(&larder, &path(blob.digest), method, &latch).await;
        assert!(statuses.iter().all(|status| *status == 404), "{statuses:?}");
        assert_eq!(registry.count(any()), 1);
        assert_eq!((larder.get(&path(blob.digest)).await.status, larder.head(&path(blob.digest)).await.status), (404, 404));
        assert_eq!(registry.count(any()), 1, "it is remembered");
    }
}

#[tokio::test(start_paused = true)]
async fn a6_heads_of_a_manifest_by_digest_are_one_question_at_once_and_after_one_another() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100], 1);
    let larder = Arc::new(Larder::start(&net));
    let by_digest = format!("/v2/library/app/manifests/{}", image.digest);
    let latch = Latch::new();
    registry.when(head()).then(Fault::Hold(latch.clone()));
    let statuses = ask_at_once(&larder, &by_digest, Method::Head, &latch).await;
    assert!(statuses.iter().all(|status| *status == 200), "{statuses:?}");
    let reply = larder.head(&by_digest).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(image.media_type)));
    assert_eq!(registry.count(any()), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_head_said_holds_until_a_get_says_otherwise() {
    let (net, registry) = hub();
    let blob = push(&registry, 1000, 1);
    let image = registry.push_image("library/app", "latest", &[100], 1);
    let larder = Larder::start(&net);
    let by_digest = format!("/v2/library/app/manifests/{}", image.digest);
    for path in [&path(blob.digest), &by_digest] {
        assert_eq!(larder.head(path).await.status, 200);
    }
    registry.delete_blob("library/app", blob.digest);
    registry.delete_manifest("library/app", image.digest);
    for path in [&path(blob.digest), &by_digest] {
        assert_eq!(larder.head(path).await.status, 200, "it was said a moment ago");
        assert_eq!((larder.get(path).await.status, larder.head(path).await.status), (404, 404));
        // Longer than "not found" is remembered.
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(larder.head(path).await.status, 404);
    }
    assert_eq!((registry.count(head()), registry.count(get())), (4, 2));
}
