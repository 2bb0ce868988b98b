//! The cache directory as an operator meets it: its bound, its order, and what becomes of it when somebody has been at it.

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder::config::VerifyOnRead;
use larder::gate::Gate;
use larder::metrics::Metrics;
use larder::oci::Digest;
use larder::store::disk::SystemDisk;
use larder::store::{LockError, OpenError, Options, Store};

use crate::fills::{assert_whole, fills, hub, path, path_in, push, until};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Blob, Image, any, get};

const MIB: usize = 1024 * 1024;
const KIB: usize = 1024;

pub async fn pull(larder: &Larder, repository: &str, image: &Image) {
    let manifest = larder.get(&format!("/v2/{repository}/manifests/latest")).await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{repository}");
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path_in(repository, blob.digest)).await, blob);
    }
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

pub fn blob_file(cache: &Path, digest: Digest) -> PathBuf {
    let hex = digest.hex();
    cache.join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// What files below these folders occupied at one instant: those that two looks both see, at the size of the first look,
/// were all there between the two, and no smaller.
fn occupied(cache: &Path) -> u64 {
    let look = || {
        let mut found = HashMap::new();
        let mut folders: Vec<_> = ["blobs", "partial", "quarantine", "refs"].map(|folder| cache.join(folder)).into();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                    Ok(metadata) => drop(found.insert(metadata.ino(), metadata.blocks() * 512)),
                    Err(_) => {}
                }
            }
        }
        found
    };
    let (first, second) = (look(), look());
    first.iter().filter(|(inode, _)| second.contains_key(inode)).map(|(_, bytes)| bytes).sum()
}

/// What the folders occupy with all below them, as `du` counts it, while nothing happens.
pub fn du(cache: &Path) -> u64 {
    du_with(cache, 0)
}

/// The same, where a directory occupies so much at least.
pub fn du_with(cache: &Path, directory: u64) -> u64 {
    let mut sum = 0;
    let mut folders: Vec<_> = ["blobs", "partial", "quarantine", "refs"].map(|folder| cache.join(folder)).into();
    while let Some(folder) = folders.pop() {
        sum += std::fs::metadata(&folder).map_or(0, |metadata| (metadata.blocks() * 512).max(directory));
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let metadata = entry.metadata().expect("a file");
            if metadata.is_dir() { folders.push(entry.path()) } else { sum += metadata.blocks() * 512 }
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_cache_never_grows_beyond_its_bound() {
    let (net, registry) = hub();
    let blobs: Vec<Blob> = (0..40).map(|n| push(&registry, (n % 5 + 1) * 300 * KIB + n, n as u64)).collect();
    let max_size = 4 * MIB as u64;
    let larder = Arc::new(Setup::new(&net).cache(|cache| cache.max_size = max_size).start());
    let (cache, stop) = (larder.cache().to_owned(), Arc::new(AtomicBool::new(false)));
    let stopped = Arc::clone(&stop);
    let watcher = std::thread::spawn(move || {
        let mut most = 0;
        while !stopped.load(Ordering::SeqCst) {
            most = most.max(occupied(&cache));
        }
        most
    });
    let queue = Arc::new(parking_lot::Mutex::new([blobs.clone(), blobs].concat()));
    let pullers: Vec<_> = (0..4)
        .map(|_| {
            let (larder, queue) = (Arc::clone(&larder), Arc::clone(&queue));
            tokio::spawn(async move {
                loop {
                    let Some(blob) = queue.lock().pop() else { return };
                    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
                }
            })
        })
        .collect();
    for puller in pullers {
        puller.await.expect("no panic");
    }
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    stop.store(true, Ordering::SeqCst);
    let most = watcher.join().expect("no panic");
    assert!(most > max_size / 2 && most <= max_size, "{most} of {max_size}");
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
    assert!(larder.metric("larder_cache_evictions_total{reason=\"size\"}") > 20.0);
}

#[tokio::test(start_paused = true)]
async fn a_manifest_s_pull_is_a_use_of_its_layers() {
    let (net, registry) = hub();
    let old = registry.push_image("library/old", "latest", &[MIB], 1);
    let new = registry.push_image("library/new", "latest", &[MIB], 2);
    let (next, larder) = (push(&registry, MIB, 3), Setup::new(&net).cache(|cache| cache.max_size = 2 * MIB as u64 + 250_000).start());
    pull(&larder, "library/old", &old).await;
    larder.clock.advance(Duration::from_secs(10));
    pull(&larder, "library/new", &new).await;
    larder.clock.advance(Duration::from_secs(10));
    // A client that has the layers already asks for the manifest alone.
    assert_eq!(larder.get("/v2/library/old/manifests/latest").await.status, 200);
    assert_whole(&larder.get(&path(next.digest)).await, &next);
    until("it is stored", || larder.metric("larder_fills_in_flight") == 0.0).await;
    assert!(blob_file(larder.cache(), old.layers[0].digest).exists());
    assert!(!blob_file(larder.cache(), new.layers[0].digest).exists());
}

#[tokio::test(start_paused = true)]
async fn what_is_being_read_is_not_evicted() {
    let (net, registry) = hub();
    let (read, rest): (Blob, Vec<Blob>) = (push(&registry, 2 * MIB, 0), (1..5).map(|n| push(&registry, 2 * MIB, n)).collect());
    let larder = Setup::new(&net).cache(|cache| cache.max_size = 4 * MIB as u64 + 8192).start();
    assert_whole(&larder.get(&path(read.digest)).await, &read);
    until("it is stored", || fills(&larder, "stored") == 1.0).await;
    let mut client = larder.client().await;
    let mut body = client.open(&path(read.digest)).await;
    assert_eq!(body.header("cache-status"), Some("larder; hit"));
    body.read_exactly(KIB).await.expect("a beginning");
    for blob in &rest {
        assert_whole(&larder.get(&path(blob.digest)).await, blob);
        until("it is stored", || larder.metric("larder_fills_in_flight") == 0.0).await;
        assert!(blob_file(larder.cache(), read.digest).exists());
    }
    assert!(body.read_to_end().await.expect("the rest") == read.bytes[KIB..]);
    // Then it may go.
    for blob in &rest {
        assert_whole(&larder.get(&path(blob.digest)).await, blob);
        until("it is stored", || larder.metric("larder_fills_in_flight") == 0.0).await;
    }
    assert!(!blob_file(larder.cache(), read.digest).exists());
}

/// Also: disk_fault_09
#[tokio::test]
async fn invariant_05_a_lost_index_loses_nothing() {
    let garbage: [fn(&Path); 3] = [
        |index| std::fs::remove_dir_all(index).expect("an index"),
        |index| {
            for file in files_below(index) {
                std::fs::write(file, vec![0x5a; 100_000]).expect("a file");
            }
        },
        |index| {
            for file in files_below(index) {
                std::fs::write(file, b"").expect("a file");
            }
        },
    ];
    for (n, damage) in garbage.into_iter().enumerate() {
        let (net, registry) = hub();
        let app = registry.push_image("library/app", "latest", &[2 * MIB, 1000, 100 * KIB], 1);
        // The same image in a second repository, and one of its own in a third.
        registry.push_image("library/twin", "latest", &[2 * MIB, 1000, 100 * KIB], 1);
        let other = registry.push_image("library/other", "latest", &[MIB], 2);
        let larder = Larder::start(&net);
        for (repository, image) in [("library/app", &app), ("library/twin", &app), ("library/other", &other)] {
            pull(&larder, repository, image).await;
        }
        let setup = larder.stop().await;
        damage(&setup.config.cache.path.join("index"));
        net.down("hub.test");
        let larder = setup.start();
        for (repository, image) in [("library/app", &app), ("library/twin", &app), ("library/other", &other)] {
            pull(&larder, repository, image).await;
        }
        for (repository, image) in [("library/other", &app), ("library/app", &other), ("library/none", &app)] {
            for blob in image.layers.iter().chain(&image.config) {
                assert_refused(&larder, &path_in(repository, blob.digest), n).await;
            }
            assert_refused(&larder, &format!("/v2/{repository}/manifests/{}", image.digest), n).await;
        }
    }
}

async fn assert_refused(larder: &Larder, path: &str, n: usize) {
    let reply = larder.get(path).await;
    assert!([404, 502].contains(&reply.status), "{n}: {path}: {}", reply.status);
    assert!(reply.bytes().len() < KIB);
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() { found.extend(files_below(&entry.path())) } else { found.push(entry.path()) }
    }
    found
}

#[tokio::test]
async fn a_clean_stop_keeps_everything() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[2 * MIB, 1000], 1);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    let kept: Vec<_> = ["blobs", "refs"].into_iter().flat_map(|folder| larder.files(folder)).collect();
    assert!(kept.len() >= 6, "{kept:?}");
    registry.forget_requests();
    net.down("hub.test");
    let larder = larder.stop().await.start();
    let found: Vec<_> = ["blobs", "refs"].into_iter().flat_map(|folder| larder.files(folder)).collect();
    assert_eq!(found, kept);
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.count(any()), 0);
}

/// What somebody does to a stored file by hand.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 4] = [
    ("deleted", |file| std::fs::remove_file(file).expect("a file")),
    ("truncated", |file| {
        let len = std::fs::metadata(file).expect("a file").len();
        std::fs::OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(len / 2)).expect("a file");
    }),
    ("lengthened", |file| {
        let mut bytes = std::fs::read(file).expect("a file");
        bytes.push(0);
        std::fs::write(file, bytes).expect("a file");
    }),
    ("emptied", |file| std::fs::write(file, b"").expect("a file")),
];

/// Also: disk_fault_03
#[tokio::test]
async fn a_blob_that_was_damaged_by_hand_is_fetched_again() {
    for (name, damage) in DAMAGES {
        for restarted in [true, false] {
            let (net, registry) = hub();
            let image = registry.push_image("library/app", "latest", &[2 * MIB, 10_000], 1);
            let mut larder = Larder::start(&net);
            pull(&larder, "library/app", &image).await;
            if restarted {
                let setup = larder.stop().await;
                image.layers.iter().for_each(|layer| damage(&blob_file(&setup.config.cache.path, layer.digest)));
                larder = setup.start();
            } else {
                damage(&blob_file(larder.cache(), image.layers[0].digest));
            }
            registry.forget_requests();
            pull(&larder, "library/app", &image).await;
            assert_eq!(registry.count(get().blob()), if restarted { 2 } else { 1 }, "{name}, restarted: {restarted}");
            assert_eq!(std::fs::read(blob_file(larder.cache(), image.layers[0].digest)).expect("a file"), image.layers[0].bytes);
        }
    }
}

/// Also: disk_fault_03
#[tokio::test]
async fn a_manifest_that_was_damaged_by_hand_is_fetched_again() {
    for (name, damage) in DAMAGES {
        for (restarted, expired) in [(true, false), (true, true), (false, true)] {
            let (net, registry) = hub();
            let image = registry.push_image("library/app", "latest", &[1000], 1);
            let no_memory = Setup::new(&net).cache(|cache| cache.memory_cache_size = 0);
            let mut larder = no_memory.start();
            pull(&larder, "library/app", &image).await;
            if restarted {
                let setup = larder.stop().await;
                damage(&blob_file(&setup.config.cache.path, image.digest));
                larder = setup.start();
            } else {
                damage(&blob_file(larder.cache(), image.digest));
            }
            if expired {
                larder.clock.advance(Duration::from_secs(3600));
            }
            for reference in ["latest".to_owned(), image.digest.to_string()] {
                let reply = larder.get(&format!("/v2/library/app/manifests/{reference}")).await;
                let when = format!("{name}, {reference}, restarted: {restarted}, expired: {expired}");
                assert_eq!(reply.status, 200, "{when}");
                assert_eq!(reply.bytes(), &image.bytes, "{when}");
            }
        }
    }
}

/// Also: disk_fault_15
#[tokio::test]
async fn a_link_that_somebody_planted_is_not_followed() {
    for size in [100, 2 * MIB] {
        let (net, registry) = hub();
        let blob = push(&registry, size, 1);
        let secrets = tempfile::tempdir().expect("a directory");
        let secret = secrets.path().join("secret");
        std::fs::write(&secret, "not to be served").expect("a file");
        let larder = Larder::start(&net);
        let setup = larder.stop().await;
        let cache = setup.config.cache.path.clone();
        let partial = cache.join("partial/docker.io").join(blob.digest.to_string().replace(':', "-"));
        for link in [blob_file(&cache, blob.digest), partial] {
            std::fs::create_dir_all(link.parent().expect("a folder")).expect("a folder");
            std::os::unix::fs::symlink(&secret, link).expect("a link");
        }
        let larder = setup.start();
        for _ in 0..2 {
            assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        }
        assert_eq!(std::fs::read(&secret).expect("a file"), b"not to be served");
    }
}

/// Opens the directory that a larder holds.
pub fn open_second(larder: &Larder) -> Result<Arc<Store>, OpenError> {
    let options = Options {
        path: larder.cache().to_owned(),
        max_size: 1 << 30,
        min_free: 0,
        evict_unused_after: Duration::ZERO,
        pins: Vec::new(),
        max_blob_size: 1 << 30,
        memory_cache_size: 1 << 20,
        verify_on_read: VerifyOnRead::default(),
        private_upstreams: HashSet::new(),
    };
    let metrics = Arc::new(Metrics::new(["docker.io"]));
    Store::open(options, Arc::new(SystemDisk), Gate::Inline, larder.clock.clone(), metrics)
}

/// Also: disk_fault_07
#[tokio::test]
async fn two_larders_never_share_a_directory() {
    let (net, _registry) = hub();
    let larder = Larder::start(&net);
    let Err(OpenError::Locked(LockError::Held { pid, .. })) = open_second(&larder) else { panic!("not refused") };
    assert_eq!(pid, std::process::id());
}

#[tokio::test(start_paused = true)]
async fn invariant_12_a_tag_s_record_goes_with_its_manifest() {
    let (net, registry) = hub();
    let images: Vec<Image> = (0..6).map(|n| registry.push_image(&format!("library/app{n}"), "latest", &[MIB], n)).collect();
    let larder = Setup::new(&net).cache(|cache| cache.max_size = 2 * MIB as u64 + 200_000).start();
    for (n, image) in images.iter().enumerate() {
        pull(&larder, &format!("library/app{n}"), image).await;
        larder.clock.advance(Duration::from_secs(10));
        assert_records_name_what_is_there(&larder);
    }
    assert!(!blob_file(larder.cache(), images[0].digest).exists(), "nothing was evicted");
    net.down("hub.test");
    assert_eq!(larder.get("/v2/library/app0/manifests/latest").await.status, 502);
    assert_eq!(larder.get("/v2/library/app5/manifests/latest").await.status, 200);
}

pub fn assert_records_name_what_is_there(larder: &Larder) {
    for record in larder.files("refs") {
        let folder = record.parent().and_then(Path::file_name).expect("a folder");
        let digest = if folder == "_tags" {
            let text = std::fs::read(&record).expect("a record");
            serde_json::from_slice::<serde_json::Value>(&text).expect("JSON")["digest"].as_str().expect("a digest").to_owned()
        } else {
            record.file_name().expect("a name").to_string_lossy().replace('-', ":")
        };
        let digest: Digest = digest.parse().expect("a digest");
        assert!(blob_file(larder.cache(), digest).exists(), "{} names what is gone", record.display());
    }
}
