//! What stays and what goes: bounds, pins, age, order, and what a failing disk makes of them.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder::clock::Timestamp;
use larder::config::{Config, PinnedImages};

use crate::fills::{assert_whole, fills, hub, path, path_in, push, until};
use crate::store::{assert_records_name_what_is_there, blob_file, du, pull};
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Blob, FakeRegistry, Image};

const MIB: usize = 1024 * 1024;
const KIB: usize = 1024;
const YEAR: u64 = 365 * 86_400 * 1000;

async fn pull_blob(larder: &Larder, blob: &Blob) {
    assert_whole(&larder.get(&path(blob.digest)).await, blob);
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

fn is_held(larder: &Larder, blob: &Blob) -> bool {
    blob_file(larder.cache(), blob.digest).exists()
}

fn is_aside(larder: &Larder, blob: &Blob) -> bool {
    larder.cache().join("quarantine").join(blob.digest.to_string().replace(':', "-")).exists()
}

pub fn all_of(image: &Image) -> Vec<larder::oci::Digest> {
    image.layers.iter().chain(&image.config).map(|blob| blob.digest).chain([image.digest]).collect()
}

fn is_whole(larder: &Larder, image: &Image) -> bool {
    all_of(image).iter().all(|digest| blob_file(larder.cache(), *digest).exists())
}

fn evictions(larder: &Larder, reason: &str) -> f64 {
    larder.metric(&format!("larder_cache_evictions_total{{reason=\"{reason}\"}}"))
}

pub fn pins(texts: &str) -> Vec<PinnedImages> {
    let text = format!("cache: {{path: /nowhere, pinned_images: [{texts}]}}");
    Config::from_yaml(&text, []).expect("a configuration").0.cache.pinned_images
}

fn blobs(registry: &FakeRegistry, count: u64, size: usize) -> Vec<Blob> {
    (0..count).map(|n| push(registry, size, n)).collect()
}

/// A disk of `size` bytes for the cache and for others: how many bytes those have, and how many are free.
pub fn shared_disk(disk: &FaultyDisk, cache: &Path, size: u64) -> (Arc<AtomicU64>, Arc<dyn Fn() -> u64 + Send + Sync>) {
    let others = Arc::new(AtomicU64::new(0));
    let (theirs, cache): (_, PathBuf) = (Arc::clone(&others), cache.to_owned());
    let free: Arc<dyn Fn() -> u64 + Send + Sync> = Arc::new(move || size.saturating_sub(theirs.load(Ordering::SeqCst) + du(&cache)));
    let told = Arc::clone(&free);
    disk.free_space_is(move || told());
    (others, free)
}

#[tokio::test(start_paused = true)]
async fn disk_fault_13_min_free_holds_whoever_else_writes() {
    let (net, registry) = hub();
    let blobs = blobs(&registry, 8, 2 * MIB);
    let disk = FaultyDisk::new();
    let min_free = 10 * MIB as u64;
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).cache(|cache| cache.min_free = min_free).start();
    let (others, free) = shared_disk(&disk, larder.cache(), 20 * MIB as u64);
    for blob in &blobs {
        pull_blob(&larder, blob).await;
        larder.clock.advance(Duration::from_secs(3));
        assert!(free() >= min_free, "{}", free());
    }
    assert!(evictions(&larder, "min_free") >= 3.0 && evictions(&larder, "size") == 0.0);
    assert!(is_held(&larder, &blobs[7]) && !is_held(&larder, &blobs[0]));
    others.store(5 * MIB as u64, Ordering::SeqCst);
    larder.app.store.tend().await;
    assert!(free() >= min_free && is_held(&larder, &blobs[7]), "{}", free());
    // Nothing that larder could let go of would help now: pulls go on, and nothing is stored.
    others.store(30 * MIB as u64, Ordering::SeqCst);
    larder.app.store.tend().await;
    let stored = fills(&larder, "stored");
    pull_blob(&larder, &blobs[0]).await;
    assert_eq!(fills(&larder, "stored"), stored);
    others.store(0, Ordering::SeqCst);
    larder.clock.advance(Duration::from_secs(3));
    pull_blob(&larder, &blobs[0]).await;
    assert!(is_held(&larder, &blobs[0]), "storing did not resume");
}

#[tokio::test(start_paused = true)]
async fn disk_fault_08_what_is_unused_for_long_goes_by_daemon_time_alone() {
    let (net, registry) = hub();
    let (old, new) = (push(&registry, 100 * KIB, 1), push(&registry, 100 * KIB, 2));
    let hour = Duration::from_secs(3600);
    let larder = Setup::new(&net).cache(|cache| cache.evict_unused_after = hour).start();
    pull_blob(&larder, &old).await;
    larder.clock.advance(hour / 2);
    pull_blob(&larder, &new).await;
    larder.clock.set(Timestamp(larder.clock.now().0 + 10 * YEAR));
    larder.app.store.tend().await;
    assert!(is_held(&larder, &old) && is_held(&larder, &new));
    larder.clock.advance(hour * 2 / 3);
    larder.app.store.tend().await;
    assert!(!is_held(&larder, &old) && is_held(&larder, &new));
    assert_eq!((evictions(&larder, "unused"), evictions(&larder, "size")), (1.0, 0.0));
    // Switched off for ten years, and then for minus twenty.
    let setup = larder.stop().await;
    setup.world.clock.advance(Duration::from_millis(10 * YEAR));
    let larder = setup.start();
    larder.clock.set(Timestamp(larder.clock.now().0 - 20 * YEAR));
    larder.app.store.tend().await;
    assert!(is_held(&larder, &new));
    larder.clock.advance(hour / 2);
    larder.app.store.tend().await;
    assert!(!is_held(&larder, &new), "it is immortal");
}

#[tokio::test(start_paused = true)]
async fn what_no_hint_tells_of_is_neither_immortal_nor_evicted_at_once() {
    for lost in [&["index"][..], &["uptime"], &["index", "uptime"]] {
        let (net, registry) = hub();
        let blob = push(&registry, 100 * KIB, 1);
        let day = Duration::from_secs(86_400);
        let larder = Setup::new(&net).cache(|cache| cache.evict_unused_after = day).start();
        larder.clock.advance(day * 100);
        pull_blob(&larder, &blob).await;
        let setup = larder.stop().await;
        for name in lost {
            let path = setup.config.cache.path.join(name);
            let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
            removed.expect("it was there");
        }
        let mut larder = setup.start();
        for _ in 0..3 {
            larder.app.store.tend().await;
            assert!(is_held(&larder, &blob), "{lost:?}");
            larder.clock.advance(day / 4);
            larder = larder.stop().await.start();
        }
        larder.clock.advance(day / 3);
        larder.app.store.tend().await;
        assert!(!is_held(&larder, &blob), "{lost:?}: immortal");
    }
}

#[tokio::test(start_paused = true)]
async fn disk_fault_08_a_clock_that_jumps_changes_no_order() {
    for years in [10i64, -10] {
        for restarted in [false, true] {
            let (net, registry) = hub();
            let blobs = blobs(&registry, 5, MIB);
            let mut larder = Setup::new(&net).cache(|cache| cache.max_size = 3 * MIB as u64 + 300_000).start();
            let jump = |larder: &Larder, years: i64| {
                larder.clock.set(Timestamp(larder.clock.now().0.saturating_add_signed(years * YEAR.cast_signed())));
            };
            pull_blob(&larder, &blobs[0]).await;
            jump(&larder, years);
            larder.clock.advance(Duration::from_secs(1));
            pull_blob(&larder, &blobs[1]).await;
            jump(&larder, -2 * years);
            larder.clock.advance(Duration::from_secs(1));
            pull_blob(&larder, &blobs[2]).await;
            larder.clock.advance(Duration::from_secs(1));
            pull_blob(&larder, &blobs[0]).await;
            if restarted {
                let setup = larder.stop().await;
                larder = setup.start();
                jump(&larder, years);
            }
            for (next, gone) in [(3, 1), (4, 2)] {
                pull_blob(&larder, &blobs[next]).await;
                let held: Vec<_> = blobs.iter().map(|blob| is_held(&larder, blob)).collect();
                assert!(!held[gone] && held[0] && held[next], "{years}, restarted: {restarted}: {held:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pinned_image_stays_with_all_it_lists_and_fails_no_pull() {
    let (net, registry) = hub();
    let parts = [registry.push_image("library/base", "amd64", &[MIB], 1), registry.push_image("library/base", "arm64", &[KIB], 2)];
    let index = registry.push_index("library/base", "3.1", &parts);
    let others: Vec<Image> = (0..6).map(|n| registry.push_image(&format!("library/app{n}"), "latest", &[MIB], 10 + n)).collect();
    let pinned = pins("\"docker.io/base:3.*\"");
    let mut larder = Setup::new(&net)
        .cache(|cache| {
            cache.max_size = 3 * MIB as u64;
            cache.pinned_images = pinned;
            cache.evict_unused_after = Duration::from_secs(3600);
        })
        .start();
    assert_eq!(larder.get("/v2/library/base/manifests/3.1").await.status, 200);
    assert_eq!(larder.get(&format!("/v2/library/base/manifests/{}", parts[0].digest)).await.status, 200);
    for blob in parts[0].layers.iter().chain(&parts[0].config) {
        assert_whole(&larder.get(&path_in("library/base", blob.digest)).await, blob);
    }
    for restarted in [false, true] {
        if restarted {
            larder = larder.stop().await.start();
        }
        for (n, image) in others.iter().enumerate() {
            larder.clock.advance(Duration::from_secs(1200));
            pull(&larder, &format!("library/app{n}"), image).await;
            larder.app.store.tend().await;
            assert!(is_whole(&larder, &parts[0]) && blob_file(larder.cache(), index.digest).exists(), "{n}, restarted: {restarted}");
        }
        assert!(is_whole(&larder, &others[5]) && !is_whole(&larder, &others[0]));
    }
    // No other tag pins it any more.
    registry.push_manifest("library/base", Some("3.1"), "application/vnd.oci.image.manifest.v1+json", others[0].bytes.clone());
    larder.clock.advance(Duration::from_secs(1200));
    assert_eq!(larder.get("/v2/library/base/manifests/3.1").await.bytes(), &others[0].bytes);
    larder.clock.advance(Duration::from_secs(3600));
    larder.app.store.tend().await;
    assert!(!is_whole(&larder, &parts[0]) && blob_file(larder.cache(), others[0].digest).exists());
}

#[tokio::test(start_paused = true)]
async fn where_only_pins_could_make_room_a_pull_passes_through() {
    let (net, registry) = hub();
    let base = registry.push_image("library/base", "latest", &[MIB, MIB], 1);
    let other = push(&registry, 2 * MIB, 2);
    let pinned = pins("\"docker.io/base:*\"");
    let larder = Setup::new(&net)
        .cache(|cache| {
            cache.max_size = 3 * MIB as u64;
            cache.pinned_images = pinned;
        })
        .start();
    pull(&larder, "library/base", &base).await;
    pull_blob(&larder, &other).await;
    assert!(is_whole(&larder, &base) && !is_held(&larder, &other));
}

#[tokio::test(start_paused = true)]
async fn disk_fault_11_what_is_being_pulled_leaves_last_for_ten_minutes() {
    for (waited, survives) in [(60, true), (660, false)] {
        let (net, registry) = hub();
        let half = registry.push_image("library/half", "latest", &[MIB, MIB], 1);
        let whole = registry.push_image("library/whole", "latest", &[MIB], 2);
        let next = push(&registry, MIB, 3);
        let larder = Setup::new(&net).cache(|cache| cache.max_size = 2 * MIB as u64 + 300_000).start();
        assert_eq!(larder.get("/v2/library/half/manifests/latest").await.status, 200);
        assert_whole(&larder.get(&path_in("library/half", half.layers[0].digest)).await, &half.layers[0]);
        larder.clock.advance(Duration::from_secs(waited));
        pull(&larder, "library/whole", &whole).await;
        larder.clock.advance(Duration::from_secs(1));
        pull_blob(&larder, &next).await;
        assert_eq!(is_held(&larder, &half.layers[0]), survives, "after {waited} s");
        assert_eq!(is_held(&larder, &whole.layers[0]), !survives, "after {waited} s");
    }
}

#[tokio::test(start_paused = true)]
async fn headroom_is_kept_in_the_background_so_that_a_miss_waits_for_no_unlink() {
    let (net, registry) = hub();
    let blobs = blobs(&registry, 120, 64 * KIB);
    let max_size = 6 * MIB as u64;
    let larder = Setup::new(&net).cache(|cache| cache.max_size = max_size).start();
    for blob in &blobs[..110] {
        pull_blob(&larder, blob).await;
    }
    larder.app.store.tend().await;
    let size = larder.metric("larder_cache_size_bytes");
    assert!(size <= (max_size - max_size / 32) as f64, "{size}");
    let evicted = evictions(&larder, "size");
    pull_blob(&larder, &blobs[111]).await;
    assert_eq!(evictions(&larder, "size"), evicted);
}

#[tokio::test(start_paused = true)]
async fn disk_fault_16_what_cannot_be_removed_stays_counted_and_fails_no_pull() {
    let (net, registry) = hub();
    let blobs = blobs(&registry, 6, MIB);
    let disk = FaultyDisk::new();
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).cache(|cache| cache.max_size = 3 * MIB as u64 + 200_000).start();
    for blob in &blobs[..3] {
        pull_blob(&larder, blob).await;
    }
    disk.fail(Op::Remove, std::io::ErrorKind::Other);
    pull_blob(&larder, &blobs[3]).await;
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
    assert_eq!(evictions(&larder, "size"), 0.0);
    assert!(blobs[..3].iter().all(|blob| is_held(&larder, blob)) && !is_held(&larder, &blobs[3]));
    disk.heal();
    for blob in &blobs[3..] {
        pull_blob(&larder, blob).await;
        assert!(is_held(&larder, blob));
    }
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
}

#[tokio::test(start_paused = true)]
async fn quarantine_counts_and_its_oldest_leaves_when_it_is_too_much() {
    let (net, registry) = hub();
    let blobs = blobs(&registry, 3, 400 * KIB);
    let mut larder = Setup::new(&net).cache(|cache| cache.max_size = 20 * MIB as u64).start();
    let aside = |larder: &Larder| blobs.iter().map(|blob| is_aside(larder, blob)).collect::<Vec<_>>();
    for (n, left) in [(0, [true, false, false]), (1, [true, true, false]), (2, [false, true, true])] {
        for _ in 0..2 {
            pull_blob(&larder, &blobs[n]).await;
            larder.app.store.quarantine(&blobs[n].digest);
        }
        for restarted in [false, true] {
            if restarted {
                larder = larder.stop().await.start();
            }
            assert_eq!(aside(&larder), left);
            larder.app.store.tend().await;
            assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn disk_fault_13_the_gauge_is_what_du_says() {
    let (net, registry) = hub();
    let images: Vec<Image> = (0..60)
        .map(|n: u64| registry.push_image(&format!("library/app{n}"), "latest", &[100 * KIB + 997 * n as usize, 5 * KIB], n))
        .collect();
    let mut larder = Setup::new(&net).cache(|cache| cache.max_size = 5 * MIB as u64).start();
    for (n, image) in images.iter().enumerate() {
        pull(&larder, &format!("library/app{n}"), image).await;
        if n % 20 == 19 {
            larder = larder.stop().await.start();
        }
        larder.app.store.tend().await;
        let (gauge, du) = (larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
        assert!((gauge - du).abs() <= du / 100.0, "{gauge} is not {du}");
        assert!(du <= 5.0 * MIB as f64);
    }
    assert!(!is_whole(&larder, &images[0]));
}

#[tokio::test(start_paused = true)]
async fn disk_fault_16_a_crash_at_any_step_of_an_eviction_leaves_nothing_to_clean() {
    for steps in 0.. {
        let (net, registry) = hub();
        let images: Vec<Image> = (0..4).map(|n: u64| registry.push_image("library/app", &format!("v{n}"), &[MIB, 10 * KIB], n)).collect();
        let disk = FaultyDisk::new();
        let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
        for (n, image) in images.iter().enumerate() {
            pull_tag(&larder, "library/app", &format!("v{n}"), image).await;
            larder.clock.advance(Duration::from_secs(700));
        }
        // The first two have to go.
        let setup = larder.stop().await.cache(|cache| cache.evict_unused_after = Duration::from_secs(1500));
        let larder = setup.start();
        disk.die_after(steps);
        larder.app.store.tend().await;
        let died = disk.is_dead();
        let setup = larder.kill().await;
        disk.heal();
        let larder = setup.cache(|cache| cache.evict_unused_after = Duration::ZERO).start();
        assert_records_name_what_is_there(&larder);
        larder.app.store.tend().await;
        assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64, "after {steps} steps");
        assert!(is_whole(&larder, &images[2]) && is_whole(&larder, &images[3]), "after {steps} steps");
        for (n, image) in images.iter().enumerate() {
            pull_tag(&larder, "library/app", &format!("v{n}"), image).await;
            assert!(is_whole(&larder, image), "after {steps} steps");
        }
        assert_records_name_what_is_there(&larder);
        if !died {
            assert!(steps > 20, "only {steps} steps");
            return;
        }
    }
}

async fn pull_tag(larder: &Larder, repository: &str, tag: &str, image: &Image) {
    let manifest = larder.get(&format!("/v2/{repository}/manifests/{tag}")).await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{tag}");
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path_in(repository, blob.digest)).await, blob);
    }
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}
