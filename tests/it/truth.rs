//! The files are the truth: what is under `blobs/` and `refs/` is all that larder needs to know, and nothing else counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::disk::Op;
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Fault, Image, get, head};
use crate::support::scene::hub;
use crate::support::watched::WatchedDisk;

const MIB: usize = 1 << 20;

async fn pull(larder: &Larder, repository: &str, image: &Image) {
    let manifest = larder.get(&format!("/v2/{repository}/manifests/latest")).await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{repository}");
    for blob in image.layers.iter().chain(&image.config) {
        let reply = larder.get(&format!("/v2/{repository}/blobs/{}", blob.digest)).await;
        assert_eq!((reply.status, reply.bytes() == &blob.bytes), (200, true), "{repository}");
    }
}

/// Returns once every download has been committed.
async fn settled(larder: &Larder) {
    for _ in 0..1000 {
        if larder.metric("larder_fills_in_flight") == 0.0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("downloads go on and on");
}

#[tokio::test]
async fn invariant_04_a_file_s_presence_is_never_a_lock() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[300_000], 1);
    let setup = Setup::new(&net);
    let cache = setup.config.cache.path.clone();
    let digest = image.layers[0].digest;
    let leave = |path: PathBuf, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    leave(cache.join("lock"), &format!(r#"{{"pid":{},"boot":"","clean":false}}"#, std::process::id()));
    leave(cache.join("partial/docker.io").join(digest.to_string().replace(':', "-")), "left behind");
    leave(cache.join("refs/docker.io/library/app/_tags/latest~"), "left behind");
    pull(&setup.start(), "library/app", &image).await;
}

/// Whether a blob is opened so that it could be changed in place.
fn opens_a_blob_for_writing(op: Op, path: &Path) -> bool {
    matches!(op, Op::Create | Op::Reopen) && path.components().any(|part| part.as_os_str() == "blobs")
}

#[tokio::test]
async fn invariant_02_nothing_under_blobs_is_ever_opened_for_writing() {
    let (net, registry) = hub();
    let writes = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&writes);
    let disk = WatchedDisk::new(move |op, path| _ = seen.fetch_add(usize::from(opens_a_blob_for_writing(op, path)), Ordering::SeqCst));
    let larder = Setup::new(&net).disk(Arc::new(disk)).cache(|cache| cache.max_size = 3 * MIB as u64).start();
    for seed in 0..5 {
        let name = format!("library/app{seed}");
        let image = registry.push_image(&name, "latest", &[900_000, 100], seed);
        pull(&larder, &name, &image).await;
        pull(&larder, &name, &image).await;
    }
    settled(&larder).await;
    let larder = larder.kill().await.start();
    assert!(!larder.files("blobs").is_empty());
    assert_eq!(writes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn invariant_01_what_stands_under_blobs_hashes_to_its_name() {
    let (net, registry) = hub();
    let larder = Larder::start(&net);
    let image = registry.push_image("library/app", "latest", &[2 * MIB, 70_000, 0], 1);
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let files = larder.files("blobs/sha256");
    // Three layers, the configuration, the manifest.
    assert_eq!(files.len(), 5);
    for file in files {
        let digest = larder::oci::Digest::of(larder::oci::Algorithm::Sha256, &std::fs::read(&file).unwrap());
        assert_eq!(file.file_name().unwrap().to_string_lossy(), digest.hex());
    }
}

/// Also: upstream_fault_16
#[tokio::test]
async fn starting_asks_nobody() {
    let (net, _registry) = hub();
    let _larder = Larder::start(&net);
    assert_eq!((net.resolved(), net.dialled()), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn invariant_08_a_download_that_panics_leaves_nobody_waiting() {
    let (net, registry) = hub();
    let digest = registry.push_blob("library/app", vec![7; 3 * MIB]);
    let begins = |op, path: &Path| op == Op::Create && path.components().any(|part| part.as_os_str() == "partial");
    let disk = WatchedDisk::new(move |op, path| assert!(!begins(op, path), "on purpose"));
    let larder = Setup::new(&net).disk(Arc::new(disk)).start();
    for panics in 1..3_u64 {
        let path = format!("/v2/library/app/blobs/{digest}");
        let reply = tokio::time::timeout(std::time::Duration::from_secs(10), larder.get(&path)).await;
        assert_eq!(reply.expect("an answer at once").status, 500);
        assert_eq!(larder.app.metrics.task_panics.get(), panics);
        assert_eq!(larder.app.metrics.fills_in_flight.get(), 0, "and its turn is free again");
    }
}

#[tokio::test]
async fn a_blob_that_an_upstream_calls_a_manifest_stays_a_blob() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[5 * MIB], 1);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let layer = image.layers[0].digest;
    registry.push_image("library/app", "lie", &[100], 2);
    registry.when(head().manifest()).then(Fault::Header("docker-content-digest", layer.to_string()));
    larder.get("/v2/library/app/manifests/lie").await;
    assert!(larder.files("quarantine").is_empty());
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.count(get().blob().of(layer)), 1);
}
