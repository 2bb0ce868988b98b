//! A disk that fails, and pulls that don't: what cannot be stored passes through, whole and verified (invariant 9).

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::fills::{all_that_comes, assert_whole, fills, hub, path, push, until};
use crate::store::du;
use crate::support::client::Reply;
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{Blob, Fault, Image, Latch, get};

const MIB: usize = 1024 * 1024;
const KIB: usize = 1024;
const HOLD_BACK: usize = 64 * KIB;
const DISK_FULL: Option<&str> = Some("larder; fwd=bypass; detail=disk-full");
const DISK_ERROR: Option<&str> = Some("larder; fwd=bypass; detail=disk-error");
const TOO_LARGE: Option<&str> = Some("larder; fwd=bypass; detail=too-large");

fn on_faulty_disk(net: &FakeNet) -> (Larder, FaultyDisk) {
    let disk = FaultyDisk::new();
    (Setup::new(net).disk(Arc::new(disk.clone())).start(), disk)
}

fn assert_nothing_stored(larder: &Larder) {
    assert!(larder.files("blobs").is_empty() && larder.files("partial").is_empty(), "{:?}", larder.files(""));
}

/// Also: disk_fault_01
#[tokio::test(start_paused = true)]
async fn invariant_09_a_full_disk_fails_no_pull() {
    for size in [0, 1000, 500 * KIB, MIB, 3 * MIB, 9 * MIB] {
        let (net, registry) = hub();
        let blob = push(&registry, size, 1);
        let (larder, disk) = on_faulty_disk(&net);
        disk.fill_up_after(0);
        let begun = Instant::now();
        for _ in 0..2 {
            let reply = larder.get(&path(blob.digest)).await;
            assert_whole(&reply, &blob);
            assert_eq!(reply.header("cache-status"), DISK_FULL, "{size} bytes");
        }
        assert!(begun.elapsed() < Duration::from_secs(1), "{size} bytes took {:?}", begun.elapsed());
        assert_nothing_stored(&larder);
        assert_eq!(fills(&larder, "bypassed"), 2.0);
        disk.heal();
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored", || larder.files("blobs").len() == 1).await;
    }
}

/// Also: disk_fault_04
#[tokio::test(start_paused = true)]
async fn invariant_09_a_read_only_disk_fails_no_pull() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[3 * MIB, 100], 1);
    let (larder, disk) = on_faulty_disk(&net);
    disk.read_only();
    for _ in 0..2 {
        assert_pulled(&larder, &image).await;
    }
    assert_nothing_stored(&larder);
}

async fn assert_pulled(larder: &Larder, image: &Image) {
    let manifest = larder.get("/v2/library/app/manifests/latest").await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes));
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path(blob.digest)).await, blob);
    }
}

/// Also: disk_fault_01
#[tokio::test(start_paused = true)]
async fn invariant_09_a_disk_that_fills_up_in_mid_fill_fails_no_pull() {
    // In the first batch, amid a later one, and within the part that is held back.
    for space in [1, 10_000, 1_500_000, 8 * MIB as u64 - 1000] {
        let (net, registry) = hub();
        let blob = push(&registry, 8 * MIB, 1);
        let (larder, disk) = on_faulty_disk(&net);
        disk.fill_up_after(space);
        let asks: Vec<_> = (0..8).map(|_| spawn_get(&larder, &blob)).collect();
        for ask in asks {
            assert_whole(&ask.await.expect("no panic"), &blob);
        }
        assert_eq!(registry.count(get().blob()), 1, "space for {space} bytes");
        assert_nothing_stored(&larder);
        assert_eq!(fills(&larder, "bypassed"), 1.0);
        disk.heal();
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored", || larder.files("blobs").len() == 1).await;
    }
}

fn spawn_get(larder: &Larder, blob: &Blob) -> tokio::task::JoinHandle<Reply> {
    let (client, path) = (larder.client(), path(blob.digest));
    // The connection is made here and now, so that all of them are there before the first byte.
    let mut client = futures_now(client);
    tokio::spawn(async move { client.get(&path).send().await })
}

/// The value of a future that waits for nothing.
fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_09_a_commit_that_fails_fails_no_pull() {
    for op in [Op::Rename, Op::Sync, Op::SyncDir, Op::Stat, Op::Create, Op::CreateDir, Op::Write, Op::Remove] {
        for size in [100 * KIB, 3 * MIB] {
            let (net, registry) = hub();
            let (blob, arriving) = (push(&registry, size, 1), push(&registry, 8 * MIB, 2));
            registry.when(get().blob().of(arriving.digest)).then(Fault::HoldAt(MIB as u64, Latch::new()));
            let (larder, disk) = on_faulty_disk(&net);
            // Another fill's promise, which no fault of this one may touch.
            let mut client = larder.client().await;
            let mut body = client.open(&path(arriving.digest)).await;
            body.read_exactly(MIB).await.expect("a beginning");
            disk.fail(op, ErrorKind::Other);
            for _ in 0..2 {
                assert_whole(&larder.get(&path(blob.digest)).await, &blob);
                until("it has ended", || larder.metric("larder_fills_in_flight") == 1.0).await;
            }
            disk.heal();
            for _ in 0..2 {
                assert_whole(&larder.get(&path(blob.digest)).await, &blob);
                until("it has ended", || larder.metric("larder_fills_in_flight") == 1.0).await;
            }
            larder.app.store.tend().await;
            let files = larder.files("blobs");
            assert_eq!(files.len(), 1, "{op:?}");
            let size = larder.metric("larder_cache_size_bytes");
            // What is arriving counts as it was promised. A directory whose size nobody could tell is not counted.
            let exact = (du(larder.cache()) - allocated(&larder.files("partial")) + 8 * MIB as u64) as f64;
            let unseen = if op == Op::Stat { 3.0 * 4096.0 } else { 0.0 };
            assert!((exact - unseen..=exact).contains(&size), "{op:?}: {size} is counted, {exact} is there");
        }
    }
}

fn allocated(files: &[std::path::PathBuf]) -> u64 {
    use std::os::unix::fs::MetadataExt;
    files.iter().map(|file| std::fs::metadata(file).map_or(0, |metadata| metadata.blocks() * 512)).sum()
}

#[tokio::test(start_paused = true)]
async fn a_failing_fsync_stores_nothing_under_a_blob_s_name() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    let (larder, disk) = on_faulty_disk(&net);
    disk.fail(Op::Sync, ErrorKind::Other);
    let reply = larder.get(&path(blob.digest)).await;
    assert_whole(&reply, &blob);
    until("it has ended", || fills(&larder, "bypassed") == 1.0).await;
    assert_nothing_stored(&larder);
    disk.fail(Op::Create, ErrorKind::Other);
    assert_eq!(larder.get(&path(blob.digest)).await.header("cache-status"), DISK_ERROR);
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_is_too_large_passes_through() {
    for chunked in [false, true] {
        let (net, registry) = hub();
        let (large, small) = (push(&registry, 4 * MIB, 1), push(&registry, 2 * MIB, 2));
        if chunked {
            registry.when(get().blob()).then(Fault::Chunked);
        }
        let larder = Setup::new(&net).cache(|cache| cache.max_blob_size = 3 * MIB as u64).start();
        let reply = larder.get(&path(large.digest)).await;
        assert_whole(&reply, &large);
        assert!(chunked || reply.header("cache-status") == TOO_LARGE);
        assert_whole(&larder.get(&path(small.digest)).await, &small);
        until("both have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        assert_eq!(larder.files("blobs").len(), 1, "chunked: {chunked}");
        assert!(larder.files("partial").is_empty());
    }
}

/// Also: disk_fault_12
#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_whole_cache_passes_through() {
    let (net, registry) = hub();
    let blob = push(&registry, 8 * MIB, 1);
    let larder = Setup::new(&net).cache(|cache| cache.max_size = 2 * MIB as u64).start();
    let reply = larder.get(&path(blob.digest)).await;
    assert_whole(&reply, &blob);
    assert_eq!(reply.header("cache-status"), DISK_FULL);
}

#[tokio::test(start_paused = true)]
async fn invariant_03_holds_for_what_passes_through() {
    for size in [500 * KIB, 2 * MIB + 5] {
        for right in [true, false] {
            let (net, registry) = hub();
            let blob = push(&registry, size, 1);
            let latch = Latch::new();
            registry.when(get().blob()).first(1).then(Fault::HoldAt(size as u64 - 1, latch.clone()));
            if !right {
                registry.when(get().blob()).first(1).then(Fault::FlipBitAt(size as u64 - 1));
            }
            let (larder, disk) = on_faulty_disk(&net);
            disk.fill_up_after(0);
            let mut client = larder.client().await;
            let mut body = client.open(&path(blob.digest)).await;
            let came = all_that_comes(&mut body).await;
            assert!(came == blob.bytes[..size - HOLD_BACK], "{} of {size} bytes came", came.len());
            latch.open();
            match body.read_to_end().await {
                Ok(rest) => assert!(right && rest == blob.bytes[size - HOLD_BACK..]),
                Err(broken) => assert!(!right && broken.received.is_empty()),
            }
            assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_in_bypass_is_dropped_and_the_others_go_on() {
    let (net, registry) = hub();
    let blob = push(&registry, 16 * MIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::Hold(latch.clone()));
    let (larder, disk) = on_faulty_disk(&net);
    disk.fill_up_after(0);
    let mut stalled = larder.client().await;
    let to_stall = tokio::spawn(async move {
        let body = stalled.open(&path(blob.digest)).await;
        (body, stalled)
    });
    let asks: Vec<_> = (0..3).map(|_| spawn_get(&larder, &blob)).collect();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    latch.open();
    let (mut body, _client) = to_stall.await.expect("no panic");
    assert!(body.read_exactly(1000).await.expect("a beginning") == blob.bytes[..1000]);
    for ask in asks {
        assert_whole(&ask.await.expect("no panic"), &blob);
    }
    assert!((10..15).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(body.read_to_end().await.is_err(), "what it missed is gone");
    assert_eq!(registry.count(get().blob()), 1);
}

/// Wherever the ring's edge falls within a chunk, nobody waits for a stalled reader for ever.
#[tokio::test(start_paused = true)]
async fn a_reader_that_stalls_anywhere_is_dropped() {
    for offset in [1, 100_000, 1_000_000] {
        let (net, registry) = hub();
        let blob = push(&registry, 12 * MIB, 1);
        let (larder, disk) = on_faulty_disk(&net);
        disk.fill_up_after(0);
        let mut client = larder.client().await;
        let mut body = client.open(&path(blob.digest)).await;
        body.read_exactly(offset).await.expect("a beginning");
        // Nobody else is there: it may stall for as long as it likes, or be dropped, but the download ends.
        let ended = timeout(Duration::from_secs(120), until("the fill ends", || larder.metric("larder_fills_in_flight") == 0.0)).await;
        assert!(ended.is_ok(), "stalled at {offset}");
        assert!(body.read_to_end().await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_in_bypass_sets_the_pace() {
    let (net, registry) = hub();
    let blob = push(&registry, 8 * MIB, 1);
    let (larder, disk) = on_faulty_disk(&net);
    disk.fill_up_after(0);
    let mut client = larder.client().await;
    let mut body = client.open(&path(blob.digest)).await;
    let mut read = 0;
    while read < blob.bytes.len() {
        let count = (128 * KIB).min(blob.bytes.len() - read);
        assert!(body.read_exactly(count).await.expect("the next bytes") == blob.bytes[read..read + count]);
        read += count;
        // The ring, the batch, and what the connections hold on the way.
        assert!(registry.body_bytes_sent() <= (read + 7 * MIB) as u64, "{} sent, {read} read", registry.body_bytes_sent());
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    assert_eq!(fills(&larder, "bypassed"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_in_bypass_gets_a_download_of_its_own() {
    let (net, registry) = hub();
    let blob = push(&registry, 16 * MIB, 1);
    let (larder, disk) = on_faulty_disk(&net);
    disk.fill_up_after(0);
    let mut client = larder.client().await;
    let mut first = client.open(&path(blob.digest)).await;
    let beginning = first.read_exactly(6 * MIB).await.expect("a beginning");
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    let rest = first.read_to_end().await.expect("the rest");
    assert!([beginning, rest].concat() == blob.bytes);
    assert_eq!(registry.count(get().blob()), 2);
}

#[tokio::test(start_paused = true)]
async fn a_download_in_bypass_that_nobody_reads_ends() {
    let (net, registry) = hub();
    let blob = push(&registry, 32 * MIB, 1);
    let (larder, disk) = on_faulty_disk(&net);
    disk.fill_up_after(0);
    let mut client = larder.client().await;
    let body = client.open(&path(blob.digest)).await;
    drop((body, client));
    until("it is given up", || fills(&larder, "failed") == 1.0).await;
    assert!(registry.body_bytes_sent() < 8 * MIB as u64);
}
