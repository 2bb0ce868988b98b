//! A disk that fails amid a body: it goes on from upstream, and its client notices nothing (invariant 9).

use std::io::ErrorKind;
use std::sync::Arc;

use crate::fills::{all_that_comes, assert_whole, fills, hub, path, push, requests, until};
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{Blob, Fault, Latch, any, get};

const MIB: usize = 1024 * 1024;
const HOLD_BACK: usize = 64 * 1024;
const READ_ERRORS: &str = r#"larder_cache_read_errors_total{reason="io"}"#;

fn on_faulty_disk(net: &FakeNet) -> (Larder, FaultyDisk) {
    let disk = FaultyDisk::new();
    (Setup::new(net).disk(Arc::new(disk.clone())).start(), disk)
}

/// A larder that holds the blob.
async fn holding(net: &FakeNet, blob: &Blob) -> (Larder, FaultyDisk) {
    let (larder, disk) = on_faulty_disk(net);
    assert_whole(&larder.get(&path(blob.digest)).await, blob);
    until("it is stored", || larder.files("blobs").len() == 1).await;
    (larder, disk)
}

/// Reads fail: for good, or until one has.
async fn fail_reads(larder: &Larder, disk: &FaultyDisk, for_good: bool) {
    disk.fail(Op::Read, ErrorKind::Other);
    if !for_good {
        until("a read has failed", || larder.metric(READ_ERRORS) >= 1.0).await;
        disk.heal();
    }
}

/// Also: disk_fault_02
#[tokio::test(start_paused = true)]
async fn invariant_09_a_stored_blob_that_fails_amid_its_body_goes_on_from_upstream() {
    // One read, or every one from now on, those of the new download's file among them.
    for fails_for_good in [false, true] {
        let (net, registry) = hub();
        let blob = push(&registry, 8 * MIB, 1);
        let (larder, disk) = holding(&net, &blob).await;
        let (mut one, mut other) = (larder.client().await, larder.client().await);
        let mut body = one.open(&path(blob.digest)).await;
        let mut part = other.get(&path(blob.digest)).range("1000-7000000").open().await;
        let beginning = body.read_exactly(MIB).await.expect("a beginning");
        let begun = part.read_exactly(MIB).await.expect("a beginning");
        let (body, part) = (tokio::spawn(body.read_to_end()), tokio::spawn(part.read_to_end()));
        fail_reads(&larder, &disk, fails_for_good).await;
        let rest = body.await.expect("no panic").expect("the rest");
        assert!([beginning, rest].concat() == blob.bytes, "for good: {fails_for_good}");
        let rest = part.await.expect("no panic").expect("the rest");
        assert!([begun, rest].concat() == blob.bytes[1000..=7_000_000], "for good: {fails_for_good}");
        assert!(larder.metric(READ_ERRORS) >= 1.0);
        // The first, one that both share, and at most one for each that goes to no file.
        assert!((2..=4).contains(&registry.count(get().blob())));
        disk.heal();
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored again", || larder.files("blobs").len() == 1).await;
        assert_eq!(larder.files("quarantine").len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_09_a_growing_blob_that_fails_amid_its_body_goes_on_from_upstream() {
    for fails_for_good in [false, true] {
        let (net, registry) = hub();
        let blob = push(&registry, 8 * MIB, 1);
        let latch = Latch::new();
        registry.when(get().blob()).first(1).then(Fault::HoldAt(5 * MIB as u64, latch.clone()));
        let (larder, disk) = on_faulty_disk(&net);
        let mut clients = (larder.client().await, larder.client().await);
        let mut bodies = (clients.0.open(&path(blob.digest)).await, clients.1.open(&path(blob.digest)).await);
        let beginning = bodies.0.read_exactly(MIB).await.expect("a beginning");
        let begun = bodies.1.read_exactly(2 * MIB).await.expect("a beginning");
        let (readers, waited) = (tokio::spawn(bodies.0.read_to_end()), tokio::spawn(bodies.1.read_to_end()));
        fail_reads(&larder, &disk, fails_for_good).await;
        until("the blob is asked for anew", || registry.count(get().blob()) >= 2).await;
        latch.open();
        let rest = readers.await.expect("no panic").expect("the rest");
        assert!([beginning, rest].concat() == blob.bytes, "for good: {fails_for_good}");
        let rest = waited.await.expect("no panic").expect("the rest");
        assert!([begun, rest].concat() == blob.bytes, "for good: {fails_for_good}");
        until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        assert!(larder.files("partial").is_empty());
        if fails_for_good {
            assert_eq!(fills(&larder, "stored"), 0.0, "what cannot be read back is not stored");
            assert!(larder.files("blobs").is_empty());
        }
        assert!(larder.metric(READ_ERRORS) >= 1.0);
        disk.heal();
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        until("it is stored", || larder.files("blobs").len() == 1).await;
    }
}

/// What a client has of a download that is still unproven must turn out right, too, whatever the second one says.
#[tokio::test(start_paused = true)]
async fn invariant_03_holds_for_a_body_of_two_downloads() {
    for first_is_right in [true, false] {
        let (net, registry) = hub();
        let blob = push(&registry, 8 * MIB, 1);
        let latch = Latch::new();
        registry.when(get().blob()).first(1).then(Fault::HoldAt(5 * MIB as u64, latch.clone()));
        if !first_is_right {
            registry.when(get().blob()).first(1).then(Fault::FlipBitAt(10));
        }
        let (larder, disk) = on_faulty_disk(&net);
        let mut client = larder.client().await;
        let mut body = client.open(&path(blob.digest)).await;
        body.read_exactly(MIB).await.expect("a beginning");
        let reading = tokio::spawn(async move { (all_that_comes(&mut body).await, body) });
        fail_reads(&larder, &disk, false).await;
        let (came, body) = reading.await.expect("no panic");
        assert_eq!(MIB + came.len(), blob.bytes.len() - HOLD_BACK, "the second download is whole, the first is not");
        latch.open();
        match body.read_to_end().await {
            Ok(rest) => assert!(first_is_right && rest == blob.bytes[blob.bytes.len() - HOLD_BACK..]),
            Err(broken) => assert!(!first_is_right && broken.received.is_empty()),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_download_that_lies_gives_no_body_its_end() {
    let (net, registry) = hub();
    let blob = push(&registry, 8 * MIB, 1);
    let (larder, disk) = holding(&net, &blob).await;
    registry.when(get().blob()).nth(1).then(Fault::FlipBitAt(8 * MIB as u64 - 1));
    let mut client = larder.client().await;
    let mut body = client.open(&path(blob.digest)).await;
    body.read_exactly(MIB).await.expect("a beginning");
    let reading = tokio::spawn(body.read_to_end());
    fail_reads(&larder, &disk, false).await;
    let broken = reading.await.expect("no panic").expect_err("half a lie");
    assert!(MIB + broken.received.len() <= blob.bytes.len() - HOLD_BACK);
    assert_eq!(requests(&larder, "error"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn with_upstream_down_too_the_connection_breaks() {
    let (net, registry) = hub();
    let blob = push(&registry, 8 * MIB, 1);
    let (larder, disk) = holding(&net, &blob).await;
    registry.when(any()).then(Fault::status(503));
    let mut client = larder.client().await;
    let mut body = client.open(&path(blob.digest)).await;
    body.read_exactly(MIB).await.expect("a beginning");
    let reading = tokio::spawn(body.read_to_end());
    fail_reads(&larder, &disk, false).await;
    assert!(reading.await.expect("no panic").is_err());
}
