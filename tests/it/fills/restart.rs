//! What a killed larder leaves behind is continued, but not believed.

use std::path::PathBuf;

use tokio::runtime::Runtime;

use super::{Blob, FakeRegistry, Fault, Larder, Latch, MIB, assert_whole, get, hub, open, path, push, until};
use crate::loading::SlowDisk;
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::Setup;
use crate::support::net::FakeNet;

const HALF: usize = 2 * MIB;

/// A larder that was killed when it had received half of a blob.
struct Killed {
    net: FakeNet,
    registry: FakeRegistry,
    blob: Blob,
    setup: Setup,
}

impl Killed {
    /// A runtime that ends takes its tasks along, wherever they stand: as near to `kill -9` as a process can do to itself.
    fn half_way() -> Killed {
        let (net, registry) = hub();
        let blob = push(&registry, 2 * HALF, 1);
        registry.when(get().blob()).first(1).then(Fault::HoldAt(HALF as u64, Latch::new()));
        let life = Runtime::new().expect("a runtime");
        let larder = life.block_on(async {
            let larder = Larder::start(&net);
            let (_client, mut body) = open(&larder, &blob).await;
            body.read_exactly(HALF).await.expect("half of it");
            larder
        });
        life.shutdown_timeout(std::time::Duration::from_secs(10));
        let setup = Runtime::new().expect("a runtime").block_on(larder.kill());
        registry.forget_requests();
        Killed { net, registry, blob, setup }
    }

    fn partial(&self) -> PathBuf {
        let digest = self.blob.digest.to_string().replace(':', "-");
        self.setup.config.cache.path.join("partial/docker.io").join(digest)
    }

    /// Edits what the last holder wrote into the lock file.
    fn change_lock(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let lock = self.setup.config.cache.path.join("lock");
        let mut holder = serde_json::from_slice(&std::fs::read(&lock).expect("a lock file")).expect("JSON");
        change(&mut holder);
        std::fs::write(&lock, holder.to_string()).expect("a lock file");
    }
}

#[tokio::test]
async fn a_partial_download_is_continued() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    assert_eq!(std::fs::metadata(killed.partial()).expect("a partial").len(), HALF as u64);
    let larder = killed.setup.start();
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
    let requests = killed.registry.seen(get().blob());
    assert_eq!(requests.iter().map(|request| request.header("range")).collect::<Vec<_>>(), [Some("bytes=2097152-")]);
    until("it is stored", || larder.files("blobs").len() == 1 && larder.files("partial").is_empty()).await;
}

#[tokio::test]
async fn a_partial_whose_bytes_changed_never_becomes_a_whole_body() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    let mut bytes = std::fs::read(killed.partial()).expect("a partial");
    bytes[MIB] ^= 1;
    std::fs::write(killed.partial(), bytes).expect("a partial");
    let larder = killed.setup.start();
    assert!(larder.get(&path(killed.blob.digest)).await.body.is_err());
    until("it is gone", || larder.files("partial").is_empty()).await;
    assert!(larder.files("blobs").is_empty());
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
}

#[tokio::test]
async fn a_partial_that_is_longer_than_the_blob_is_begun_again() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    std::fs::write(killed.partial(), vec![7; 2 * HALF + 1]).expect("a partial");
    let larder = killed.setup.start();
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
}

#[tokio::test]
async fn a_partial_of_another_boot_is_discarded() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    killed.change_lock(|holder| {
        holder["boot"] = "another".into();
        holder["clean"] = false.into();
    });
    let (partial, larder) = (killed.partial(), killed.setup.start());
    assert!(!partial.exists());
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
    assert_eq!(killed.registry.seen(get().blob())[0].header("range"), None);
}

#[tokio::test]
async fn a_partial_survives_a_boot_after_a_clean_stop() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    killed.change_lock(|holder| {
        holder["boot"] = "another".into();
        holder["clean"] = true.into();
    });
    let larder = killed.setup.start();
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
    assert!(killed.registry.seen(get().blob())[0].header("range").is_some());
}

/// Invariant 9: a partial that cannot grow any more is served as far as it goes, and the rest passes by it.
#[tokio::test]
async fn invariant_09_a_partial_without_room_to_grow_still_serves() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    let larder = killed.setup.cache(|cache| cache.max_size = 3 * MIB as u64).start();
    let reply = larder.get(&path(killed.blob.digest)).await;
    assert_whole(&reply, &killed.blob);
    assert_eq!(reply.header("cache-status"), Some("larder; fwd=bypass; detail=disk-full"));
    drop(killed.net);
}

/// While it is not known what is held after a kill, nothing can grow: what an earlier download has left is served as far as it goes, and is
/// still there when it can.
#[tokio::test]
async fn d10_a_partial_download_is_kept_while_the_directory_is_being_read() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    let (partial, disk) = (killed.partial(), SlowDisk::default());
    let larder = killed.setup.disk(disk.disk()).start();
    for _ in 0..2 {
        let reply = larder.get(&path(killed.blob.digest)).await;
        assert_whole(&reply, &killed.blob);
        assert_eq!(reply.header("cache-status"), Some("larder; fwd=bypass; detail=loading"));
        until("the download has ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        assert_eq!(std::fs::metadata(&partial).expect("the partial").len(), HALF as u64);
    }
    disk.let_go();
    larder.app.store.loaded().await;
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
    let requests = killed.registry.seen(get().blob());
    assert_eq!(requests.iter().map(|request| request.header("range")).collect::<Vec<_>>(), [Some("bytes=2097152-"); 3]);
    until("it is stored", || larder.files("blobs").len() == 1 && larder.files("partial").is_empty()).await;
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), crate::store::du(larder.cache()) as f64);
}

/// A larder that has too many files open, or may not write, has found out nothing of the file.
#[tokio::test]
async fn d10_a_partial_that_cannot_be_opened_for_a_reason_of_larder_s_own_is_kept() {
    let killed = tokio::task::spawn_blocking(Killed::half_way).await.expect("no panic");
    let (partial, disk) = (killed.partial(), FaultyDisk::new());
    let larder = killed.setup.disk(std::sync::Arc::new(disk.clone())).start();
    for op in [Op::Reopen, Op::Create] {
        disk.fail(op, std::io::ErrorKind::PermissionDenied);
    }
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
    until("the download has ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    assert_eq!(std::fs::metadata(&partial).expect("the partial").len(), HALF as u64);
    disk.heal();
    assert_whole(&larder.get(&path(killed.blob.digest)).await, &killed.blob);
    let requests = killed.registry.seen(get().blob());
    assert_eq!(requests.iter().map(|request| request.header("range")).collect::<Vec<_>>(), [None, Some("bytes=2097152-")]);
}
