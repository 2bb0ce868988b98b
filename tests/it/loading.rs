//! What is answered while a large cache directory is still being read: the same as later.

use parking_lot::{Condvar, Mutex};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder::config::Visibility;
use larder::store::disk::Disk;

use crate::fills::{hub, path, path_in, push, until};
use crate::store::{blob_file, du, pull};
use crate::support::disk::Op;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::registry::{FakeRegistry, Image};
use crate::support::watched::WatchedDisk;

const MIB: usize = 1024 * 1024;

/// A disk on which whoever wants to see all blobs waits until it is let.
#[derive(Default)]
pub struct SlowDisk {
    is_let: Arc<(Mutex<bool>, Condvar)>,
}

impl SlowDisk {
    pub fn disk(&self) -> Arc<dyn Disk> {
        let is_let = Arc::clone(&self.is_let);
        Arc::new(WatchedDisk::new(move |op, path| {
            if op == Op::List && path.ends_with("blobs/sha256") {
                is_let.1.wait_while(&mut is_let.0.lock(), |is_let| !*is_let);
            }
        }))
    }

    pub fn let_go(&self) {
        *self.is_let.0.lock() = true;
        self.is_let.1.notify_all();
    }
}

impl Drop for SlowDisk {
    /// A test that fails must not hang, too.
    fn drop(&mut self) {
        self.let_go();
    }
}

/// A larder that has `library/app` and as many others, stopped (or killed), and started again on a disk that does not say what
/// there is.
async fn restarted(setup: Setup, registry: &FakeRegistry, is_clean: bool) -> (Larder, SlowDisk, Image) {
    let image = registry.push_image("library/app", "latest", &[MIB], 1);
    let larder = setup.start();
    pull(&larder, "library/app", &image).await;
    larder.app.store.tend().await;
    let setup = if is_clean { larder.stop().await } else { larder.kill().await };
    let disk = SlowDisk::default();
    let larder = setup.disk(disk.disk()).start();
    registry.forget_requests();
    (larder, disk, image)
}

async fn all_is_read(larder: &Larder, disk: &SlowDisk) {
    disk.let_go();
    larder.app.store.loaded().await;
}

fn gauge(larder: &Larder) -> f64 {
    larder.metric("larder_cache_size_bytes")
}

#[tokio::test]
async fn what_is_held_is_served_before_the_directory_is_read() {
    for (has_index, is_clean) in [(true, true), (false, true), (true, false), (false, false)] {
        let (net, registry) = hub();
        let setup = Setup::new(&net);
        let index = setup.config.cache.path.join("index");
        let image = registry.push_image("library/app", "latest", &[MIB], 1);
        let larder = setup.start();
        pull(&larder, "library/app", &image).await;
        let setup = if is_clean { larder.stop().await } else { larder.kill().await };
        if !has_index {
            std::fs::remove_dir_all(&index).expect("an index");
        }
        let disk = SlowDisk::default();
        let larder = setup.disk(disk.disk()).start();
        registry.forget_requests();
        let was = gauge(&larder);
        for _ in 0..2 {
            pull(&larder, "library/app", &image).await;
        }
        let head = larder.head(&path_in("library/app", image.layers[0].digest)).await;
        assert_eq!((head.status, head.header("content-length")), (200, Some("1048576")));
        assert_eq!(registry.requests().len(), 0, "index: {has_index}, clean: {is_clean}");
        assert!(was < gauge_when_tended(&larder).await, "not everything had been read");
        all_is_read(&larder, &disk).await;
        let du = du(larder.cache());
        assert!((gauge(&larder) - du as f64).abs() <= 16_384.0, "{} for {du}, index: {has_index}, clean: {is_clean}", gauge(&larder));
        pull(&larder, "library/app", &image).await;
        assert_eq!(registry.requests().len(), 0);
    }
}

async fn gauge_when_tended(larder: &Larder) -> f64 {
    larder.app.store.tend().await;
    gauge(larder)
}

#[tokio::test]
async fn while_it_is_not_known_what_is_held_nothing_leaves_and_the_bound_holds() {
    for is_clean in [true, false] {
        let (net, registry) = hub();
        let setup = Setup::new(&net).cache(|cache| cache.max_size = 4 * MIB as u64);
        let (larder, disk, image) = restarted(setup, &registry, is_clean).await;
        let others: Vec<_> = (0..6).map(|n| push(&registry, MIB, 10 + n)).collect();
        let mut stored = 0;
        for blob in &others {
            let reply = larder.get(&path(blob.digest)).await;
            assert_eq!((reply.status, reply.bytes()), (200, &blob.bytes));
            until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
            match reply.header("cache-status") {
                Some("larder; fwd=uri-miss") => stored += 1,
                status => assert_eq!(status, Some("larder; fwd=bypass; detail=loading")),
            }
            assert!(du(larder.cache()) <= 4 * MIB as u64);
        }
        // What was held at a clean stop is known, and with it the room that is left.
        assert_eq!(stored, if is_clean { 2 } else { 0 });
        assert!(blob_file(larder.cache(), image.layers[0].digest).exists());
        all_is_read(&larder, &disk).await;
        let last = others.last().expect("a blob");
        let reply = larder.get(&path(last.digest)).await;
        assert_eq!((reply.bytes(), reply.header("cache-status")), (&last.bytes, Some("larder; fwd=uri-miss")));
        until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        assert!(blob_file(larder.cache(), last.digest).exists() && du(larder.cache()) <= 4 * MIB as u64);
    }
}

#[tokio::test]
async fn invariant_14_what_a_private_upstream_may_list_too_is_asked_for_until_all_is_read() {
    let (net, registry) = hub();
    net.host("private.test", "93.184.215.20", &registry);
    let mut private = upstream("private.example", "private.test");
    private.visibility = Visibility::Private;
    let (larder, disk, image) = restarted(Setup::new(&net).upstream(private), &registry, true).await;
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.requests().len(), 0, "docker.io has answered for all of it");
    all_is_read(&larder, &disk).await;

    let layer = image.layers[0].digest;
    std::fs::remove_file(confirmation(&larder, "docker.io", &layer.to_string())).expect("a confirmation");
    let disk = SlowDisk::default();
    let larder = larder.stop().await.disk(disk.disk()).start();
    for _ in 0..2 {
        pull(&larder, "library/app", &image).await;
    }
    let asked: Vec<_> = registry.requests().iter().map(|request| format!("{} {}", request.method, request.path)).collect();
    assert_eq!(asked, [format!("HEAD {}", path_in("library/app", layer))]);
}

fn confirmation(larder: &Larder, upstream: &str, digest: &str) -> PathBuf {
    larder.cache().join("refs").join(upstream).join("_blobs").join(digest.replace(':', "-"))
}

#[tokio::test]
async fn the_order_of_use_is_the_same_however_it_was_read() {
    let (net, registry) = hub();
    let larder = Setup::new(&net).cache(|cache| cache.max_size = 3 * MIB as u64 + 600_000).start();
    let blobs: Vec<_> = (0..4).map(|n| push(&registry, MIB, n)).collect();
    for blob in &blobs[..3] {
        larder.get(&path(blob.digest)).await;
        until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        larder.clock.advance(Duration::from_secs(100));
    }
    let disk = SlowDisk::default();
    let larder = larder.stop().await.disk(disk.disk()).start();
    // The first is used while the directory is read, so the second is the one to go.
    larder.get(&path(blobs[0].digest)).await;
    all_is_read(&larder, &disk).await;
    larder.get(&path(blobs[3].digest)).await;
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    let held: Vec<_> = blobs.iter().map(|blob| blob_file(larder.cache(), blob.digest).exists()).collect();
    assert_eq!(held, [true, false, true, true]);
}
