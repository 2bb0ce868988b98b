//! A panic while a request is answered: its client gets 500 with the request's id at once, the log and a counter tell
//! of it, and whoever asks next is served.

use std::sync::Arc;

use crate::fills::{assert_whole, path, push, until};
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::log::listen;
use crate::support::registry::head;
use crate::support::scene::{Hub, Scene, hub};

const MIB: usize = 1024 * 1024;
const PANICS: &str = "larder_task_panics_total";

/// What panics, the operation of the disk at which it does, and what is asked for then.
struct Panic {
    whose: &'static str,
    op: Op,
    below: &'static str,
    path: fn(&Scene) -> String,
    /// Whether it is here already.
    is_held: bool,
}

fn latest(_: &Scene) -> String {
    "/v2/library/app/manifests/latest".into()
}

fn by_digest(scene: &Scene) -> String {
    format!("/v2/library/app/manifests/{}", scene.image.digest)
}

const TASKS: [Panic; 5] = [
    Panic { whose: "the request's own", op: Op::Open, below: "blobs/", path: Scene::blob, is_held: true },
    Panic { whose: "a tag's question", op: Op::Create, below: "_tags/", path: latest, is_held: false },
    Panic { whose: "a manifest's question", op: Op::Create, below: "_manifests/", path: by_digest, is_held: false },
    Panic { whose: "a download's", op: Op::Create, below: "partial/", path: Scene::blob, is_held: false },
    Panic { whose: "a download's, amid it", op: Op::Write, below: "partial/", path: Scene::blob, is_held: false },
];

/// A larder on a disk that can panic; what it holds is not in RAM.
async fn start(is_held: bool) -> (Scene, FaultyDisk) {
    let disk = FaultyDisk::new();
    let mut scene = Hub::unstarted(&[200_000]).start(|setup| setup.disk(Arc::new(disk.clone())));
    if is_held {
        scene.pull(&scene.larder).await;
        until("it is stored", || scene.larder.app.store.contains(&scene.image.layers[0].digest)).await;
        scene.larder = scene.larder.stop().await.start();
    }
    (scene, disk)
}

async fn ended(larder: &Larder) {
    until("downloads have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

#[tokio::test(start_paused = true)]
async fn d8_a_panic_is_answered_500_counted_and_logged_and_the_next_request_is_served() {
    for Panic { whose, op, below, path, is_held } in TASKS {
        let (scene, disk) = start(is_held).await;
        let (log, _guard) = listen();
        disk.panic_at(op, below, 1);
        let reply = scene.larder.get(&path(&scene)).await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (500, Some("UNKNOWN")), "{whose}");
        let body = String::from_utf8_lossy(reply.bytes()).into_owned();
        let (_, id) = body.split_once("(request ").unwrap_or_else(|| panic!("{whose}: no request id in {body}"));
        let id = &id[..26];
        assert!(!body.contains("script"), "{whose}: a panic's words are for the log alone: {body}");
        let told = log.text();
        let line = told.lines().find(|line| line.contains(id) && line.contains("ERROR"));
        assert!(line.is_some_and(|line| line.contains("panic")), "{whose}: {told}");
        assert_eq!(scene.larder.metric(PANICS), 1.0, "{whose}");
        ended(&scene.larder).await;
        assert_eq!(scene.larder.get(&path(&scene)).await.status, 200, "{whose}");
        assert_eq!(scene.larder.metric(PANICS), 1.0, "{whose}");
    }
}

/// Headers have left: the connection breaks, which no client takes for an end.
#[tokio::test(start_paused = true)]
async fn d8_a_panic_amid_a_body_breaks_it_and_is_counted_and_logged() {
    let (net, registry) = hub();
    let disk = FaultyDisk::new();
    let blob = push(&registry, 8 * MIB, 1);
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    until("it is stored", || larder.app.store.contains(&blob.digest)).await;
    let (log, _guard) = listen();
    let mut client = larder.client().await;
    let mut body = client.open(&path(blob.digest)).await;
    body.read_exactly(MIB).await.expect("a beginning");
    disk.panic_at(Op::Read, "blobs/", 1);
    assert!(body.read_to_end().await.is_err(), "what is not whole must not look so");
    assert_eq!(larder.metric(PANICS), 1.0);
    let told = log.text();
    assert!(told.lines().any(|line| line.contains("an answer broke off") && line.contains("a panic by script")), "{told}");
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
}

/// What is held stands in for a tag whose question panicked, as it does for every upstream that says nothing.
#[tokio::test(start_paused = true)]
async fn d8_a_panic_makes_no_cached_tag_unavailable() {
    let (scene, disk) = start(true).await;
    scene.larder.clock.advance(std::time::Duration::from_secs(3600));
    scene.registry.forget_requests();
    disk.panic_at(Op::Create, "_tags/", 1);
    let reply = scene.larder.get(&latest(&scene)).await;
    assert_eq!((reply.status, reply.header("cache-status")), (200, Some("larder; hit; ttl=-3300; detail=stale-unavailable")));
    assert_eq!(scene.larder.metric(PANICS), 1.0);
    assert_eq!(scene.registry.count(head().manifest()), 1, "upstream was asked, and has answered");
}
