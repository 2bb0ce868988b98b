//! What a cache directory goes through: links that somebody planted, a directory that is moved away, rights that go and come.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use larder::app::App;
use larder::metrics::Metrics;
use tokio_util::sync::CancellationToken;

use crate::fills::{assert_whole, hub, path, push, until};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{FakeRegistry, Image};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Why larder does not start.
fn refusal(setup: &Setup) -> String {
    let metrics = Arc::new(Metrics::new(setup.config.upstreams.keys()));
    let built = App::build(&setup.config, setup.world.clone(), metrics, None, CancellationToken::new());
    built.err().expect("it does not start").to_string()
}

/// All files below a directory, with their content.
fn content(of: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let (mut found, mut folders) = (Vec::new(), vec![of.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push((path.clone(), std::fs::read(&path).unwrap())) }
        }
    }
    found.sort();
    found
}

async fn pull(larder: &Larder, image: &Image) {
    let manifest = larder.get("/v2/library/app/manifests/latest").await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes));
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path(blob.digest)).await, blob);
    }
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

fn image(registry: &FakeRegistry) -> Image {
    registry.push_image("library/app", "latest", &[2 * MIB, 100 * KIB], 1)
}

#[tokio::test(start_paused = true)]
async fn d15_with_a_link_in_place_of_what_is_its_own_larder_does_not_start_and_says_why() {
    let (net, registry) = hub();
    let larder = Larder::start(&net);
    pull(&larder, &image(&registry)).await;
    let mut setup = larder.stop().await;
    let cache = setup.config.cache.path.clone();
    let elsewhere = tempfile::tempdir().unwrap();
    for name in ["blobs", "refs", "partial", "quarantine", "index", "lock", "uptime", "control.sock", "history.json"] {
        let (own, aside) = (cache.join(name), elsewhere.path().join(name));
        let _ = std::fs::rename(&own, &aside);
        let before = content(elsewhere.path());
        symlink(&aside, &own).unwrap();
        let said = refusal(&setup);
        assert!(said.contains(own.to_str().unwrap()) && said.contains("symbolic link"), "{name}: {said}");
        assert!(content(elsewhere.path()) == before, "{name} was followed");
        std::fs::remove_file(&own).unwrap();
        let _ = std::fs::rename(&aside, &own);
    }
    // The directory itself may be wherever a link leads.
    let link = elsewhere.path().join("cache");
    symlink(&cache, &link).unwrap();
    setup.config.cache.path = link;
    let larder = setup.start();
    pull(&larder, &image(&registry)).await;
    assert_eq!(registry.requests().iter().filter(|request| request.path.contains("/blobs/")).count(), 3);
}

#[tokio::test(start_paused = true)]
async fn d15_a_link_planted_while_larder_runs_is_followed_neither_to_read_nor_to_write() {
    for place in [
        "blobs/sha256",
        "refs/docker.io",
        "refs/docker.io/library/app/_tags",
        "refs/docker.io/_blobs",
        "partial/docker.io",
        "blobs/sha256/??",
        "blobs/sha256/??/*",
    ] {
        let (net, registry) = hub();
        let image = image(&registry);
        // Nothing is read from RAM.
        let larder = Setup::new(&net).cache(|cache| cache.memory_cache_size = 0).start();
        pull(&larder, &image).await;
        let elsewhere = tempfile::tempdir().unwrap();
        let digest = image.layers[0].digest;
        let place = place.replace("??", &digest.hex()[..2]).replace('*', &digest.hex());
        let (own, aside) = (larder.cache().join(&place), elsewhere.path().join("aside"));
        std::fs::rename(&own, &aside).unwrap();
        if aside.is_file() {
            std::fs::write(&aside, "a trap").unwrap();
        }
        let before = content(elsewhere.path());
        symlink(&aside, &own).unwrap();
        for n in 0..2 {
            pull(&larder, &image).await;
            let other = push(&registry, 2 * MIB, 7 + n);
            assert_whole(&larder.get(&path(other.digest)).await, &other);
            until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        }
        assert!(content(elsewhere.path()) == before, "{place} was followed");
    }
}
