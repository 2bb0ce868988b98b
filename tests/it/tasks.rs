//! Work in the background that panics: it goes on, and `/readyz` names what keeps panicking.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use larder::gate::Gate;
use tokio_util::sync::CancellationToken;

use crate::eviction::pins;
use crate::fills::hub;
use crate::store::pull;
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{FakeRegistry, Image};

const PANICS: &str = "larder_task_panics_total";

fn readyz(larder: &Larder) -> (u16, String) {
    let request = Request::get("/readyz").body(()).expect("a request");
    let response = larder.app.admin.answer(&request);
    (response.status().as_u16(), String::from_utf8_lossy(response.body()).into_owned())
}

/// Minutes pass, on every clock, until this is so.
async fn minutes_pass_until(what: &str, larder: &Larder, done: impl Fn() -> bool) {
    for _ in 0..200 {
        if done() {
            return;
        }
        larder.clock.advance(Duration::from_secs(60));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    panic!("waited in vain until {what}");
}

fn image(registry: &FakeRegistry) -> Image {
    registry.push_image("library/app", "latest", &[1000], 1)
}

/// Each loop of the daemon, and an operation of the disk that it alone needs.
#[tokio::test(start_paused = true)]
async fn a16_every_loop_that_panics_goes_on_and_one_that_keeps_panicking_degrades_readyz() {
    let loops = [
        ("upkeep", Op::Create, "uptime~"),
        ("scrub", Op::List, "blobs/sha256/"),
        ("pinned", Op::List, "/_tags"),
        ("history", Op::Create, "history.json~"),
    ];
    for (name, op, below) in loops {
        let (net, registry) = hub();
        let disk = FaultyDisk::new();
        let pinned = pins("\"docker.io/app:*\"");
        let mut setup = Setup::new(&net).disk(Arc::new(disk.clone())).cache(|cache| cache.pinned_images = pinned);
        setup.world.gate = Gate::threads(4);
        let larder = setup.start();
        pull(&larder, "library/app", &image(&registry)).await;
        let _background = larder.app.background(CancellationToken::new());
        assert_eq!(readyz(&larder), (200, "ok\n".into()));

        disk.panic_at(op, below, 1);
        minutes_pass_until("it has panicked", &larder, || larder.metric(PANICS) == 1.0).await;
        assert_eq!(readyz(&larder), (200, "ok\n".into()), "{name}: once is no reason");
        disk.panic_at(op, below, 2);
        minutes_pass_until("it has panicked twice more", &larder, || larder.metric(PANICS) == 3.0).await;
        let (status, said) = readyz(&larder);
        assert!(status == 200 && said.starts_with(&format!("degraded: the background task {name} keeps failing")), "{name}: {said}");
        minutes_pass_until("it has recovered", &larder, || readyz(&larder) == (200, "ok\n".into())).await;
        assert_eq!(larder.metric(PANICS), 3.0);
        disk.panic_at(op, below, 1);
        if name != "scrub" {
            minutes_pass_until("it works on", &larder, || larder.metric(PANICS) == 4.0).await;
        }
    }
}

/// A cache with an image, stopped, and started again on a disk that panics so often when its blobs are listed.
async fn restarted(panics: usize) -> (Larder, FaultyDisk, FakeRegistry, Image) {
    let (net, registry) = hub();
    let image = image(&registry);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    let disk = FaultyDisk::new();
    disk.panic_at(Op::List, "blobs/sha256", panics);
    let larder = larder.stop().await.disk(Arc::new(disk.clone())).start();
    registry.forget_requests();
    (larder, disk, registry, image)
}

async fn loaded(larder: &Larder) {
    tokio::time::timeout(Duration::from_secs(30), larder.app.store.loaded()).await.expect("the loading ends");
}

#[tokio::test]
async fn a16_a_loader_that_panics_once_reads_everything_all_the_same() {
    let (larder, _disk, registry, image) = restarted(1).await;
    loaded(&larder).await;
    assert_eq!((larder.metric(PANICS), readyz(&larder)), (1.0, (200, "ok\n".into())));
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.requests().len(), 0);
    assert!((larder.metric("larder_cache_size_bytes") - crate::store::du(larder.cache()) as f64).abs() <= 16_384.0);
}

#[tokio::test]
async fn a16_a_loader_that_panics_every_time_does_not_load_for_ever_and_finds_it_when_it_can() {
    let (larder, disk, registry, image) = restarted(usize::MAX).await;
    loaded(&larder).await;
    assert_eq!(larder.metric(PANICS), 3.0);
    assert!(readyz(&larder).1.starts_with("degraded: the background task loader keeps failing"), "{:?}", readyz(&larder));
    disk.panic_at(Op::List, "blobs/sha256", 1);
    for panics in [4.0, 4.0] {
        larder.clock.advance(Duration::from_secs(120));
        larder.app.store.tend().await;
        assert_eq!(larder.metric(PANICS), panics);
    }
    assert!(larder.app.store.contains(&image.layers[0].digest));
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.requests().len(), 0);
}
