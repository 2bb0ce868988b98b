//! What a cache directory goes through: links that somebody planted, a directory that is moved away, rights that go and come.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use larder::app::App;
use larder::cli::{self, Form};
use larder::control::{Answer, Ask, Stats};
use larder::metrics::Metrics;
use larder::store::{LockError, OpenError};
use tokio_util::sync::CancellationToken;

use crate::eviction::shared_disk;
use crate::fills::{assert_whole, hub, path, push, until};
use crate::store::{du, open_second};
use crate::support::disk::{FaultyDisk, Op};
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
async fn disk_fault_15_with_a_link_in_place_of_what_is_its_own_larder_does_not_start_and_says_why() {
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
async fn disk_fault_15_a_link_planted_while_larder_runs_is_followed_neither_to_read_nor_to_write() {
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

/// What `/readyz` of the admin listener says, and the gauge beside it.
fn readyz(larder: &Larder) -> (u16, String, f64) {
    let response = larder.app.admin.answer(&http::Request::builder().uri("/readyz").body(()).unwrap());
    let body = String::from_utf8(response.body().to_vec()).unwrap();
    (response.status().as_u16(), body, larder.metric("larder_cache_writable"))
}

fn well() -> (u16, String, f64) {
    (200, "ok\n".into(), 1.0)
}

fn degraded(why: &str) -> (u16, String, f64) {
    (200, format!("degraded: {why}\n"), 0.0)
}

/// A miss that is not stored, and a hit, if anything is held.
async fn pass_through(larder: &Larder, registry: &FakeRegistry, held: &Image, seed: u64) {
    let before = larder.files("blobs").len();
    let blob = push(registry, 2 * MIB, seed);
    let reply = larder.get(&path(blob.digest)).await;
    assert_whole(&reply, &blob);
    assert!(reply.header("cache-status").is_some_and(|said| said.contains("fwd=bypass")), "{:?}", reply.headers);
    let hit = larder.get(&path(held.layers[0].digest)).await;
    assert_whole(&hit, &held.layers[0]);
    assert_eq!(hit.header("cache-status"), Some("larder; hit"));
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    assert_eq!(larder.files("blobs").len(), before);
}

/// Also: disk_fault_01
#[tokio::test(start_paused = true)]
async fn disk_fault_04_a_cache_that_cannot_be_written_is_degraded_until_it_can_and_comes_back_by_itself() {
    for (full, why) in [(true, "the cache's disk is full"), (false, "the cache is read-only")] {
        let (net, registry) = hub();
        let image = image(&registry);
        let disk = FaultyDisk::new();
        let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
        pull(&larder, &image).await;
        assert_eq!(readyz(&larder), well());
        if full {
            disk.fill_up_after(0)
        } else {
            disk.read_only()
        }
        pass_through(&larder, &registry, &image, 5).await;
        assert_eq!(readyz(&larder), degraded(why));
        assert_eq!(larder.get("/readyz").await.text(), "ok\n", "the data port says the status only");
        larder.app.store.tend().await;
        assert_eq!(readyz(&larder), degraded(why));
        disk.heal();
        larder.app.store.tend().await;
        assert_eq!(readyz(&larder), well());
        let files = larder.files("blobs").len();
        let blob = push(&registry, 2 * MIB, 6);
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored", || larder.files("blobs").len() == files + 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn disk_fault_04_an_idle_larder_notices_within_a_minute_that_it_cannot_write() {
    let (net, _registry) = hub();
    let disk = FaultyDisk::new();
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
    disk.read_only();
    larder.clock.advance(std::time::Duration::from_secs(61));
    larder.app.store.tend().await;
    assert_eq!(readyz(&larder), degraded("the cache is read-only"));
}

/// Somebody else takes what `min_free` keeps: nothing could be stored, and that is said before a pull finds out.
#[tokio::test(start_paused = true)]
async fn disk_fault_01_an_idle_larder_that_has_nothing_left_to_evict_says_that_its_disk_is_full() {
    let (net, registry) = hub();
    let disk = FaultyDisk::new();
    let min_free = 10 * MIB as u64;
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).cache(|cache| cache.min_free = min_free).start();
    pull(&larder, &image(&registry)).await;
    let (others, _) = shared_disk(&disk, larder.cache(), 20 * MIB as u64);
    // What is held makes up for nine; nothing does for eleven, and with ten there is room for no fill.
    for (theirs, is_full) in [(0, false), (9, false), (11, true), (10, true), (8, false)] {
        others.store(theirs * MIB as u64, Ordering::SeqCst);
        larder.app.store.tend().await;
        let expected = if is_full { degraded("the cache's disk is full") } else { well() };
        assert_eq!(readyz(&larder), expected, "others have {theirs} MiB");
    }
}

#[tokio::test(start_paused = true)]
async fn disk_fault_04_a_cache_directory_that_is_moved_away_is_read_not_written_and_not_made_anew() {
    let (net, registry) = hub();
    let image = image(&registry);
    let larder = Larder::start(&net);
    pull(&larder, &image).await;
    let away = larder.cache().with_extension("away");
    std::fs::rename(larder.cache(), &away).unwrap();
    larder.app.store.tend().await;
    assert_eq!(readyz(&larder), degraded("the cache directory was moved or removed"));
    let before = content(&away.join("blobs"));
    pass_through(&larder, &registry, &image, 5).await;
    assert!(!larder.cache().exists() && content(&away.join("blobs")) == before);
    std::fs::rename(&away, larder.cache()).unwrap();
    larder.app.store.tend().await;
    assert_eq!(readyz(&larder), well());
    let blob = push(&registry, 2 * MIB, 6);
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    until("it is stored", || content(&larder.cache().join("blobs")).len() == before.len() + 1).await;
}

/// Also: disk_fault_02
#[tokio::test(start_paused = true)]
async fn disk_fault_02_what_cannot_be_put_aside_is_removed_or_goes_on_counting() {
    for op in [Some(Op::Remove), None] {
        let (net, registry) = hub();
        let blob = push(&registry, 2 * MIB, 1);
        let disk = FaultyDisk::new();
        let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored", || larder.files("blobs").len() == 1).await;
        disk.fail(Op::Rename, std::io::ErrorKind::Other);
        op.into_iter().for_each(|op| disk.fail(op, std::io::ErrorKind::Other));
        larder.app.store.quarantine(&blob.digest);
        larder.app.store.tend().await;
        assert_eq!(larder.files("blobs").len(), usize::from(op.is_some()));
        assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
    }
}

const EMPTIED: &str = "blobs/ or refs/ of the cache directory was removed; nothing is stored until larder is restarted";

/// As `rm -rf CACHE/*`.
fn empty(cache: &Path) {
    for entry in std::fs::read_dir(cache).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }.unwrap();
    }
}

/// Who holds the directory that a second larder does not get.
fn holder(larder: &Larder) -> u32 {
    match open_second(larder) {
        Err(OpenError::Locked(LockError::Held { pid, .. })) => pid,
        Err(error) => panic!("refused for another reason: {error}"),
        Ok(_) => panic!("a second larder in one directory"),
    }
}

async fn stats(larder: &Larder) -> Stats {
    match cli::answer(&larder.config, Ask::Stats, Form::Json).await {
        Ok(Answer::Stats(stats)) => *stats,
        other => panic!("{other:?}"),
    }
}

/// All of an image, whatever is stored of it.
async fn get_all(larder: &Larder, image: &Image) {
    pull(larder, image).await;
}

#[tokio::test(start_paused = true)]
async fn d5_a_cache_that_is_emptied_under_larder_is_noticed_and_nobody_else_begins_in_it() {
    let (net, registry) = hub();
    let image = image(&registry);
    let larder = Larder::start(&net);
    pull(&larder, &image).await;
    empty(larder.cache());
    // Before it was noticed, too: the file that names the process is gone.
    assert_eq!(holder(&larder), 0);
    assert_eq!(std::fs::read_dir(larder.cache()).unwrap().count(), 0, "whoever is refused leaves nothing behind");
    for _ in 0..2 {
        larder.app.store.tend().await;
        assert_eq!(readyz(&larder), degraded(EMPTIED));
        assert_eq!(holder(&larder), std::process::id());
        // What was held is fetched, and what is fetched is not stored.
        get_all(&larder, &image).await;
        let blob = push(&registry, 2 * MIB, 5);
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        assert_eq!(larder.files("blobs").len() + larder.files("refs").len() + larder.files("partial").len(), 0);
    }
    let larder = larder.stop().await.start();
    assert_eq!(readyz(&larder), well());
    pull(&larder, &image).await;
    assert!(larder.files("blobs").len() >= 3);
}

#[tokio::test(start_paused = true)]
async fn d5_a_folder_that_is_removed_is_noticed_until_it_is_back_or_made_anew() {
    for name in ["blobs", "refs", "partial", "quarantine"] {
        let (net, registry) = hub();
        let image = image(&registry);
        let larder = Larder::start(&net);
        pull(&larder, &image).await;
        let (folder, away) = (larder.cache().join(name), larder.cache().join("away"));
        std::fs::rename(&folder, &away).unwrap();
        larder.app.store.tend().await;
        if ["blobs", "refs"].contains(&name) {
            assert_eq!(readyz(&larder), degraded(EMPTIED), "{name}");
            get_all(&larder, &image).await;
            assert!(!folder.exists(), "{name} was made anew");
            std::fs::rename(&away, &folder).unwrap();
        } else {
            assert_eq!(readyz(&larder), well(), "{name}");
            assert!(folder.is_dir(), "{name} was not made anew");
            std::fs::remove_dir_all(&away).unwrap();
        }
        larder.app.store.tend().await;
        assert_eq!(readyz(&larder), well(), "{name}");
        let blob = push(&registry, 2 * MIB, 6);
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored", || larder.metric("larder_fills_in_flight") == 0.0).await;
        assert!(crate::store::blob_file(larder.cache(), blob.digest).exists(), "{name}");
        larder.clock.advance(std::time::Duration::from_secs(61));
        larder.app.store.tend().await;
        assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn d5_a_folder_in_whose_place_another_was_put_is_not_taken_for_it() {
    let (net, registry) = hub();
    let image = image(&registry);
    let larder = Larder::start(&net);
    pull(&larder, &image).await;
    std::fs::remove_dir_all(larder.cache().join("blobs")).unwrap();
    // So that it is another one for sure.
    std::fs::create_dir(larder.cache().join("blobs.new")).unwrap();
    std::fs::create_dir(larder.cache().join("in between")).unwrap();
    std::fs::rename(larder.cache().join("in between"), larder.cache().join("blobs")).unwrap();
    larder.app.store.tend().await;
    assert_eq!(readyz(&larder), degraded(EMPTIED));
    assert!(larder.files("blobs").is_empty());
}

#[tokio::test(start_paused = true)]
async fn d5_a_lock_file_that_is_removed_is_made_anew_and_opens_the_directory_to_nobody() {
    let (net, registry) = hub();
    let image = image(&registry);
    let larder = Larder::start(&net);
    pull(&larder, &image).await;
    let lock = larder.cache().join("lock");
    for _ in 0..2 {
        std::fs::remove_file(&lock).unwrap();
        assert_eq!(holder(&larder), 0);
        assert!(!lock.exists());
        larder.app.store.tend().await;
        assert_eq!((holder(&larder), readyz(&larder)), (std::process::id(), well()));
    }
    // The stop is as clean as any.
    let larder = larder.stop().await.start();
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&std::fs::read(&lock).unwrap()).unwrap()["doubt"], false);
    pull(&larder, &image).await;
    assert_eq!(registry.count(crate::support::registry::get().blob()), 3);
}

/// The command finds the daemon again, and the daemon says what has become of the cache.
#[tokio::test]
async fn d5_stats_finds_the_daemon_again_and_says_that_its_cache_was_emptied() {
    let (net, registry) = hub();
    let larder = Larder::start(&net);
    pull(&larder, &image(&registry)).await;
    let stop = CancellationToken::new();
    let _background = larder.app.background(stop.clone());
    let socket = larder.cache().join("control.sock");
    until("it listens", || socket.exists()).await;
    std::fs::remove_file(&socket).unwrap();
    until("it listens again", || socket.exists()).await;
    assert_eq!(stats(&larder).await.degraded, None);
    empty(larder.cache());
    until("it listens once more", || socket.exists()).await;
    until("it is noticed", || larder.app.store.trouble().is_some()).await;
    assert_eq!(stats(&larder).await.degraded.as_deref(), Some(EMPTIED));
}

/// A larder whose directory was moved away does not take another's socket with it when it stops.
#[tokio::test]
async fn d5_a_larder_whose_directory_was_moved_leaves_what_stands_in_its_place_alone() {
    let (net, registry) = hub();
    let image = image(&registry);
    let moved = Larder::start(&net);
    pull(&moved, &image).await;
    let away = moved.cache().with_extension("away");
    std::fs::rename(moved.cache(), &away).unwrap();
    let second = open_second(&moved).expect("a directory of its own");
    let _listener = second.listen().expect("a socket");
    let (socket, lock) = (moved.cache().join("control.sock"), moved.cache().join("lock"));
    let before = (second.socket_id(), std::fs::read(&lock).unwrap());
    moved.app.store.tend().await;
    assert!(moved.app.store.listen().is_err());
    moved.app.store.close(true);
    assert_eq!((second.socket_id(), std::fs::read(&lock).unwrap()), before);
    assert!(socket.exists());
}
