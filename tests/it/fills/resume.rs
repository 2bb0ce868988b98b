//! A transfer that breaks is taken up where it stopped, and no client can tell.

use std::time::Duration;

use super::{Blob, FakeRegistry, Fault, Larder, MIB, assert_whole, fills, get, hub, open, path, push, until};

const CUT: u64 = 1_000_003;

/// What the blob's requests asked for, in order.
fn ranges(registry: &FakeRegistry) -> Vec<Option<String>> {
    registry.seen(get().blob()).iter().map(|request| request.header("range").map(str::to_owned)).collect()
}

async fn assert_resumed(larder: &Larder, registry: &FakeRegistry, blob: &Blob) {
    let reply = larder.get(&path(blob.digest)).await;
    assert_whole(&reply, blob);
    assert_eq!(reply.header("cache-status"), Some("larder; fwd=uri-miss"));
    assert_eq!(ranges(registry), [None, Some(format!("bytes={CUT}-"))]);
    until("it is stored", || fills(larder, "stored") == 1.0).await;
    assert_eq!(larder.get(&path(blob.digest)).await.bytes(), &blob.bytes);
    assert_eq!(registry.count(get().blob()), 2);
}

/// Also: clients_31, upstream_fault_01
#[tokio::test(start_paused = true)]
async fn a_cut_is_invisible() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::CutAt(CUT));
    assert_resumed(&Larder::start(&net), &registry, &blob).await;
}

#[tokio::test(start_paused = true)]
async fn a_small_blob_that_is_cut_is_whole_too() {
    let (net, registry) = hub();
    let blob = push(&registry, 40_000, 1);
    registry.when(get().blob()).first(1).then(Fault::CutAt(39_999));
    assert_whole(&Larder::start(&net).get(&path(blob.digest)).await, &blob);
    assert_eq!(ranges(&registry), [None, Some("bytes=39999-".into())]);
}

#[tokio::test(start_paused = true)]
async fn many_cuts_are_invisible_too() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(11).then(Fault::CutAt(200_000));
    assert_whole(&Larder::start(&net).get(&path(blob.digest)).await, &blob);
    let expected: Vec<_> = (0..12).map(|n| (n > 0).then(|| format!("bytes={}-", n * 200_000))).collect();
    assert_eq!(ranges(&registry), expected);
}

/// Also: clients_31, upstream_fault_05
#[tokio::test(start_paused = true)]
async fn a_stall_is_invisible() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::StallAt(CUT));
    assert_resumed(&Larder::start(&net), &registry, &blob).await;
}

/// Also: upstream_fault_02
#[tokio::test(start_paused = true)]
async fn registry_32_an_upstream_that_ignores_the_range_is_read_on_from_the_same_place() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::CutAt(CUT));
    registry.when(get().blob()).from(2).then(Fault::IgnoreRange);
    assert_resumed(&Larder::start(&net), &registry, &blob).await;
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_in_mid_transfer_is_invisible() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::CutAt(CUT));
    registry.when(get().blob()).nth(2).then(Fault::status(503));
    registry.when(get().blob()).nth(3).then(Fault::Hangup);
    assert_whole(&Larder::start(&net).get(&path(blob.digest)).await, &blob);
}

/// Also: upstream_fault_09
#[tokio::test(start_paused = true)]
async fn registry_30_an_expired_link_is_asked_for_anew() {
    let (net, registry) = hub();
    net.host("cdn.test", "93.184.216.35", &registry);
    registry.redirect_blobs("http://cdn.test");
    registry.signatures_last(1);
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().signed()).first(1).then(Fault::CutAt(CUT));
    let larder = Larder::start(&net);
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    assert_eq!((registry.count(get().blob()), registry.count(get().signed())), (2, 2));
    let second = &registry.seen(get().signed())[1];
    assert_eq!(second.header("range"), Some(format!("bytes={CUT}-").as_str()));
}

#[tokio::test(start_paused = true)]
async fn a_link_that_has_expired_on_arrival_is_asked_for_once_more() {
    let (net, registry) = hub();
    net.host("cdn.test", "93.184.216.35", &registry);
    registry.redirect_blobs("http://cdn.test");
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().signed()).first(1).then(Fault::CutAt(CUT));
    registry.when(get().signed()).nth(2).then(Fault::status(403));
    let larder = Larder::start(&net);
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    assert_eq!((registry.count(get().blob()), registry.count(get().signed())), (3, 3));
}

/// Also: upstream_fault_02
#[tokio::test(start_paused = true)]
async fn registry_32_another_range_than_the_one_asked_for_breaks_the_body() {
    let size = 3 * MIB as u64;
    let wrong = [
        "bytes 5-9/10".to_owned(),
        format!("bytes {}-{}/{size}", CUT - 1, size - 1),
        format!("bytes {CUT}-{}/{}", size - 1, size + 1),
        "nonsense".to_owned(),
    ];
    for content_range in wrong {
        let (net, registry) = hub();
        let blob = push(&registry, 3 * MIB, 1);
        registry.when(get().blob()).first(1).then(Fault::CutAt(CUT));
        registry.when(get().blob()).nth(2).then(Fault::content_range(&content_range));
        let larder = Larder::start(&net);
        let broken = larder.get(&path(blob.digest)).await.body.expect_err(&content_range);
        assert!(broken.received == blob.bytes[..broken.received.len()], "{content_range}");
        assert!(larder.files("blobs").is_empty());
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    }
}

/// Also: clients_31, upstream_fault_01
#[tokio::test(start_paused = true)]
async fn what_cannot_be_resumed_breaks_and_is_taken_up_by_the_next_request() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::CutAt(CUT));
    registry.when(get().blob()).from(2).then(Fault::Hangup);
    let larder = Larder::start(&net);
    let (_client, body) = open(&larder, &blob).await;
    let broken = body.read_to_end().await.expect_err("an upstream that is gone");
    assert!(broken.received == blob.bytes[..broken.received.len()]);
    assert_eq!(fills(&larder, "failed"), 1.0);
    assert_eq!((larder.files("blobs").len(), larder.files("partial").len()), (0, 1));
    registry.behave();
    registry.forget_requests();
    // A host that broke off so often is left alone for some seconds.
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    assert_eq!(ranges(&registry), [Some(format!("bytes={CUT}-"))]);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_mid_transfer_breaks_the_body() {
    for status in [401, 403, 404, 429] {
        let (net, registry) = hub();
        let blob = push(&registry, 3 * MIB, 1);
        registry.when(get().blob()).first(1).then(Fault::CutAt(CUT));
        registry.when(get().blob()).from(2).then(Fault::status(status));
        let larder = Larder::start(&net);
        let (_client, body) = open(&larder, &blob).await;
        assert!(body.read_to_end().await.is_err(), "{status}");
        registry.behave();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    }
}
