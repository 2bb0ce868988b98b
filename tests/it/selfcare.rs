//! A cache that looks after itself: what rots on disk is found, put aside and fetched again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder::config::VerifyOnRead;
use larder::oci::Digest;
use larder::rng::Rng;
use tokio::task::JoinHandle;

use crate::fills::{assert_whole, hub, path, push, until};
use crate::store::du;
use crate::support::disk::FaultyDisk;
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{Blob, FakeRegistry, get};

const MIB: usize = 1 << 20;
const DAY: Duration = Duration::from_secs(86_400);

pub fn blob_file(cache: &Path, digest: Digest) -> PathBuf {
    let hex = digest.hex();
    cache.join("blobs/sha256").join(&hex[..2]).join(hex)
}

/// One bit of the middle, as a disk would do it: in place, the length and the time of writing unchanged.
pub fn flip(file: &Path) {
    use std::os::unix::fs::FileExt;
    let open = std::fs::OpenOptions::new().read(true).write(true).open(file).expect("a file");
    let middle = open.metadata().expect("a file").len() / 2;
    let mut byte = [0];
    open.read_exact_at(&mut byte, middle).expect("a byte");
    open.write_all_at(&[byte[0] ^ 1], middle).expect("a byte");
}

fn truncate(file: &Path) {
    let len = std::fs::metadata(file).expect("a file").len();
    std::fs::OpenOptions::new().write(true).open(file).and_then(|file| file.set_len(len / 2)).expect("a file");
}

fn remove(file: &Path) {
    std::fs::remove_file(file).expect("a file");
}

/// Not to be followed, though what it leads to has the right bytes.
fn plant_link(file: &Path) {
    let aside = file.with_extension("aside");
    std::fs::rename(file, &aside).expect("a file");
    std::os::unix::fs::symlink(&aside, file).expect("a link");
}

/// What becomes of a stored file.
type Damage = fn(&Path);

const DAMAGES: [(&str, Damage); 4] = [("flipped", flip), ("truncated", truncate), ("removed", remove), ("replaced by a link", plant_link)];

async fn pull(larder: &Larder, blob: &Blob) {
    assert_whole(&larder.get(&path(blob.digest)).await, blob);
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

/// Begins to scrub, and lets the first minutes pass, in which it waits.
async fn scrub(larder: &Larder, interval: Duration) -> JoinHandle<()> {
    let scrubbing = tokio::spawn(Arc::clone(&larder.app.store).scrub(interval, Arc::new(Rng::seeded(3))));
    tokio::time::sleep(Duration::from_secs(180)).await;
    scrubbing
}

fn scrubbed(larder: &Larder, result: &str) -> f64 {
    larder.metric(&format!("larder_scrub_objects_total{{result=\"{result}\"}}"))
}

fn mode(net: &FakeNet, mode: VerifyOnRead) -> Setup {
    Setup::new(net).cache(|cache| cache.verify_on_read = mode)
}

/// A larder that holds one blob of 2 MiB, and has been killed.
async fn killed_with_a_blob(mode_of: VerifyOnRead) -> (FakeNet, FakeRegistry, Blob, Setup) {
    let (net, registry) = hub();
    let blob = push(&registry, 2 * MIB, 1);
    let larder = mode(&net, mode_of).start();
    pull(&larder, &blob).await;
    registry.forget_requests();
    (net, registry, blob, larder.kill().await)
}

#[tokio::test(start_paused = true)]
async fn the_scrub_finds_what_is_damaged_and_it_is_fetched_again() {
    let (net, registry) = hub();
    let blobs: Vec<Blob> = (0..6).map(|n| push(&registry, MIB / 2 * (n + 1), n as u64)).collect();
    let larder = Larder::start(&net);
    for blob in &blobs {
        pull(&larder, blob).await;
    }
    flip(&blob_file(larder.cache(), blobs[1].digest));
    truncate(&blob_file(larder.cache(), blobs[3].digest));
    plant_link(&blob_file(larder.cache(), blobs[4].digest));
    let scrubbing = scrub(&larder, DAY).await;
    until("a pass has ended", || larder.metric("larder_scrub_last_success_timestamp_seconds") > 0.0).await;
    scrubbing.abort();
    assert_eq!((scrubbed(&larder, "ok"), scrubbed(&larder, "damaged"), scrubbed(&larder, "error")), (3.0, 3.0, 0.0));
    assert_eq!(larder.files("quarantine").len(), 3);
    registry.forget_requests();
    for blob in &blobs {
        pull(&larder, blob).await;
    }
    assert_eq!(registry.count(get().blob()), 3);
}

#[tokio::test(start_paused = true)]
async fn the_scrub_is_slow_and_comes_once_in_its_interval() {
    let (net, registry) = hub();
    let larder = Larder::start(&net);
    for n in 0..3 {
        pull(&larder, &push(&registry, 4 * MIB, n)).await;
    }
    let scrubbing = tokio::spawn(Arc::clone(&larder.app.store).scrub(DAY, Arc::new(Rng::seeded(3))));
    while scrubbed(&larder, "ok") == 0.0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let begun = tokio::time::Instant::now();
    until("a pass has ended", || scrubbed(&larder, "ok") == 3.0).await;
    // The other 8 MiB at 1 MiB/s.
    assert!(begun.elapsed() >= Duration::from_secs(8), "{:?}", begun.elapsed());
    tokio::time::sleep(DAY / 2).await;
    assert_eq!(scrubbed(&larder, "ok"), 3.0);
    tokio::time::sleep(DAY / 2).await;
    until("the next pass has ended", || scrubbed(&larder, "ok") == 6.0).await;
    scrubbing.abort();
}

#[tokio::test]
async fn disk_fault_06_after_an_unclean_stop_the_first_read_finds_the_damage() {
    for (name, damage) in DAMAGES {
        let (_net, registry, blob, setup) = killed_with_a_blob(VerifyOnRead::AfterUncleanStop).await;
        damage(&blob_file(&setup.config.cache.path, blob.digest));
        let larder = setup.start();
        pull(&larder, &blob).await;
        assert_eq!(registry.count(get().blob()), 1, "{name}");
        pull(&larder, &blob).await;
        assert_eq!(registry.count(get().blob()), 1, "{name}");
        assert_eq!(larder.files("quarantine").len(), usize::from(name != "removed"), "{name}");
    }
}

#[tokio::test]
async fn after_an_unclean_stop_what_is_sound_is_hashed_once_and_served() {
    let (_net, registry, blob, setup) = killed_with_a_blob(VerifyOnRead::AfterUncleanStop).await;
    let larder = setup.start();
    let reply = larder.get(&path(blob.digest)).await;
    assert_eq!(reply.header("cache-status"), Some("larder; hit"));
    assert_whole(&reply, &blob);
    // Known by now: what happens to it from here on is for the scrub to find, or the client.
    flip(&blob_file(larder.cache(), blob.digest));
    let reply = larder.get(&path(blob.digest)).await;
    assert!(reply.status == 200 && reply.bytes() != &blob.bytes);
    assert_eq!(registry.count(get().blob()), 0);
}

#[tokio::test(start_paused = true)]
async fn the_doubt_outlives_a_clean_stop_and_ends_with_a_whole_scrub() {
    let (_net, registry, blob, setup) = killed_with_a_blob(VerifyOnRead::AfterUncleanStop).await;
    let setup = setup.start().stop().await;
    flip(&blob_file(&setup.config.cache.path, blob.digest));
    let larder = setup.start();
    pull(&larder, &blob).await;
    assert_eq!(registry.count(get().blob()), 1);
    let scrubbing = scrub(&larder, DAY).await;
    until("a pass has ended", || larder.metric("larder_scrub_last_success_timestamp_seconds") > 0.0).await;
    scrubbing.abort();
    let _ = scrubbing.await;
    let setup = larder.stop().await;
    flip(&blob_file(&setup.config.cache.path, blob.digest));
    let larder = setup.start();
    assert!(larder.metric("larder_scrub_last_success_timestamp_seconds") > 0.0, "it is remembered");
    assert!(larder.get(&path(blob.digest)).await.bytes() != &blob.bytes, "hashed although nothing is in doubt");
}

#[tokio::test]
async fn disk_fault_02_with_always_every_read_from_disk_finds_the_damage() {
    for (name, damage) in DAMAGES {
        let (net, registry) = hub();
        let blob = push(&registry, 2 * MIB, 1);
        let larder = mode(&net, VerifyOnRead::Always).start();
        for round in 1..=3 {
            pull(&larder, &blob).await;
            assert_eq!(registry.count(get().blob()), round, "{name}");
            damage(&blob_file(larder.cache(), blob.digest));
        }
        // Many at once: one hashing, one download, no failed pull.
        let ask = path(blob.digest);
        let (one, two, three) = tokio::join!(larder.get(&ask), larder.get(&ask), larder.get(&ask));
        [one, two, three].iter().for_each(|reply| assert_whole(reply, &blob));
        assert_eq!(registry.count(get().blob()), 4, "{name}");
        let setup = larder.stop().await;
        damage(&blob_file(&setup.config.cache.path, blob.digest));
        pull(&setup.start(), &blob).await;
        assert_eq!(registry.count(get().blob()), 5, "{name}");
    }
}

#[tokio::test]
async fn with_never_nothing_is_hashed_again() {
    let (_net, registry, blob, setup) = killed_with_a_blob(VerifyOnRead::Never).await;
    flip(&blob_file(&setup.config.cache.path, blob.digest));
    assert!(setup.start().get(&path(blob.digest)).await.bytes() != &blob.bytes);
    assert_eq!(registry.count(get().blob()), 0);
}

#[tokio::test]
async fn what_is_put_aside_counts_and_stays_little() {
    let (net, registry) = hub();
    let max_size = 40 * MIB as u64;
    let larder = mode(&net, VerifyOnRead::Always).cache(|cache| cache.max_size = max_size).start();
    for n in 0..5 {
        let blob = push(&registry, MIB, n);
        pull(&larder, &blob).await;
        flip(&blob_file(larder.cache(), blob.digest));
        pull(&larder, &blob).await;
    }
    let bytes = |files: Vec<PathBuf>| {
        files.iter().map(|file| std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(file).expect("a file")) * 512).sum::<u64>()
    };
    let aside = bytes(larder.files("quarantine"));
    assert!(aside > 0 && aside <= max_size / 20, "{aside}");
    let larder = larder.stop().await.start();
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
}

#[tokio::test(start_paused = true)]
async fn what_takes_too_long_to_hash_is_served_as_far_as_it_is_hashed_and_its_end_never_before() {
    for damaged in [false, true] {
        let (net, registry) = hub();
        let blob = push(&registry, 20 * MIB, 1);
        let disk = FaultyDisk::new();
        let larder = mode(&net, VerifyOnRead::Always).disk(Arc::new(disk.clone())).start();
        pull(&larder, &blob).await;
        if damaged {
            flip(&blob_file(larder.cache(), blob.digest));
        }
        disk.hold_reads_from(9 * MIB as u64);
        let mut client = larder.client().await;
        let ask = path(blob.digest);
        let opening = tokio::spawn(async move { client.open(&ask).await });
        // Time stands still while a thread waits for the disk, and goes on by hand.
        while disk.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(Duration::from_secs(9)).await;
        for _ in 0..1000 {
            tokio::task::yield_now().await;
        }
        assert!(!opening.is_finished(), "headers before it was hashed or ten seconds had passed");
        tokio::time::advance(Duration::from_secs(2)).await;
        let mut body = opening.await.expect("an answer");
        assert_eq!(body.header("cache-status"), Some("larder; hit"));
        assert!(body.read_exactly(8 * MIB).await.expect("what is hashed") == blob.bytes[..8 * MIB]);
        disk.release();
        match body.read_to_end().await {
            Ok(rest) => assert!(!damaged && rest == blob.bytes[8 * MIB..]),
            Err(_) => assert!(damaged, "broken for nothing"),
        }
        pull(&larder, &blob).await;
        assert_eq!(registry.count(get().blob()), if damaged { 2 } else { 1 });
    }
}
