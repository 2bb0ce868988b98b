//! Each fault goes wrong exactly as told.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{LAYER_BYTES, blob_path, client, manifest_path, stocked};
use crate::support::client::Reply;
use crate::support::registry::{FakeRegistry, Fault, Image, Latch, any, get, head};

const HOUR: Duration = Duration::from_secs(3600);

/// The first layer, asked for once with a fault scripted.
async fn pull_with(fault: impl Into<Fault>) -> (Image, Reply) {
    let (registry, image) = stocked();
    registry.when(get().blob()).then(fault);
    let reply = pull(&registry, &image).await;
    (image, reply)
}

async fn pull(registry: &FakeRegistry, image: &Image) -> Reply {
    client(registry).await.get(&blob_path(&image.layers[0].digest)).send().await
}

#[tokio::test]
async fn a_rule_is_for_its_turns_of_its_requests() {
    let (registry, image) = stocked();
    let layer = image.layers[0].digest;
    registry.when(get().blob().of(layer)).nth(2).then(Fault::status(503).header("retry-after", 7).body("busy"));
    registry.when(get().manifest()).first(1).then(Fault::status(500));
    registry.when(head()).from(2).then(Fault::status(502));
    let mut client = client(&registry).await;
    let mut blobs = Vec::new();
    for _ in 0..3 {
        blobs.push(client.get(&blob_path(&layer)).send().await);
    }
    assert_eq!(blobs.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200, 503, 200]);
    assert_eq!((blobs[1].header("retry-after"), blobs[1].text()), (Some("7"), "busy"));
    assert_eq!(client.get(&blob_path(&image.layers[1].digest)).send().await.status, 200);
    for status in [500, 200] {
        assert_eq!(client.get(&manifest_path("3.20")).accept_manifests().send().await.status, status);
    }
    for status in [200, 502, 502] {
        assert_eq!(client.head("/v2/").send().await.status, status);
    }
    registry.behave();
    assert_eq!(client.head("/v2/").send().await.status, 200);
}

#[tokio::test]
async fn canned_answers() {
    let (_, limited) = pull_with(Fault::too_many_requests(30)).await;
    assert_eq!((limited.status, limited.header("retry-after")), (429, Some("30")));
    assert_eq!(limited.error_code().as_deref(), Some("TOOMANYREQUESTS"));
    let (_, page) = pull_with(Fault::login_page()).await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let (_, moved) = pull_with(Fault::redirect(302, "http://elsewhere.test/x")).await;
    assert_eq!((moved.status, moved.header("location")), (302, Some("http://elsewhere.test/x")));
}

#[tokio::test]
async fn a_cut_leaves_exactly_n_bytes() {
    for n in [0, 1, 100_000, 299_999] {
        let (image, reply) = pull_with(Fault::CutAt(n)).await;
        let error = reply.body.expect_err("a broken body");
        assert!(error.received == image.layers[0].bytes[..n as usize], "{n}: {} bytes came", error.received.len());
    }
}

#[tokio::test]
async fn a_cut_at_the_end_leaves_a_whole_body_and_a_closed_connection() {
    let (registry, image) = stocked();
    registry.when(get().blob()).then(Fault::CutAt(LAYER_BYTES as u64));
    let mut client = client(&registry).await;
    let reply = client.get(&blob_path(&image.layers[0].digest)).send().await;
    assert_eq!(reply.bytes(), &image.layers[0].bytes);
    assert!(client.get("/v2/").try_send().await.is_err());
}

#[tokio::test]
async fn a_cut_waits_for_a_slow_reader() {
    let (registry, image) = stocked();
    registry.when(get().blob()).then(Fault::CutAt(200_000));
    let mut client = client(&registry).await;
    let mut streaming = client.open(&blob_path(&image.layers[0].digest)).await;
    let mut came = Vec::new();
    for _ in 0..20 {
        came.extend_from_slice(&streaming.read_exactly(10_000).await.expect("ten thousand bytes"));
        tokio::task::yield_now().await;
    }
    assert!(came == image.layers[0].bytes[..200_000]);
    assert!(streaming.read_to_end().await.is_err_and(|error| error.received.is_empty()));
}

#[tokio::test]
async fn a_hangup_says_nothing() {
    let (registry, _) = stocked();
    registry.when(any()).nth(1).then(Fault::Hangup);
    assert!(client(&registry).await.get("/v2/").try_send().await.is_err());
    assert_eq!(client(&registry).await.get("/v2/").send().await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn delays_and_drips_take_their_time() {
    let start = Instant::now();
    let (_, reply) = pull_with(Fault::Delay(Duration::from_secs(9))).await;
    assert_eq!((reply.status, start.elapsed().as_secs()), (200, 9));
    let start = Instant::now();
    let (image, reply) = pull_with(Fault::Drip { bytes: 1000, every: Duration::from_secs(1) }).await;
    assert_eq!(reply.bytes(), &image.layers[0].bytes);
    assert_eq!(start.elapsed().as_secs(), 299);
}

#[tokio::test(start_paused = true)]
async fn stalls_are_for_ever() {
    let (registry, image) = stocked();
    registry.when(get().ping()).then(Fault::Stall);
    registry.when(get().blob()).then(Fault::StallAt(100_000));
    assert!(timeout(HOUR, client(&registry).await.get("/v2/").try_send()).await.is_err());
    let mut client = client(&registry).await;
    let mut streaming = client.open(&blob_path(&image.layers[0].digest)).await;
    assert_eq!(streaming.read_exactly(100_000).await.expect("what came"), image.layers[0].bytes[..100_000]);
    assert!(timeout(HOUR, streaming.read_exactly(1)).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn latches_hold_until_opened() {
    let (registry, image) = stocked();
    let (headers, body) = (Latch::new(), Latch::new());
    registry.when(get().blob()).then(Fault::Hold(headers.clone()));
    registry.when(get().blob()).then(Fault::HoldAt(7, body.clone()));
    let mut client = client(&registry).await;
    let path = blob_path(&image.layers[0].digest);
    let mut opening = Box::pin(client.open(&path));
    assert!(timeout(HOUR, &mut opening).await.is_err());
    headers.open();
    let mut streaming = opening.await;
    assert_eq!(streaming.read_exactly(7).await.expect("what came"), image.layers[0].bytes[..7]);
    assert!(timeout(HOUR, streaming.read_exactly(1)).await.is_err());
    body.open();
    assert_eq!(streaming.read_to_end().await.expect("the rest"), image.layers[0].bytes[7..]);
}

#[tokio::test]
async fn a_flipped_bit_is_the_only_difference() {
    let (image, reply) = pull_with(Fault::FlipBitAt(1234)).await;
    let honest = &image.layers[0].bytes;
    let wrong: Vec<usize> = (0..LAYER_BYTES).filter(|at| honest[*at] != reply.bytes()[*at]).collect();
    assert_eq!((wrong, reply.bytes().len()), (vec![1234], LAYER_BYTES));
    assert_eq!(reply.header("docker-content-digest"), Some(image.layers[0].digest.to_string().as_str()));
}

#[tokio::test]
async fn lengths_lie() {
    let (image, longer) = pull_with(Fault::ContentLengthOff(10)).await;
    assert_eq!(longer.header("content-length"), Some("300010"));
    assert_eq!(longer.body.expect_err("a body that ends early").received, image.layers[0].bytes);
    let (image, shorter) = pull_with(Fault::ContentLengthOff(-10)).await;
    assert_eq!(shorter.bytes()[..], image.layers[0].bytes[..LAYER_BYTES - 10]);
    let (image, untold) = pull_with(Fault::Chunked).await;
    assert_eq!((untold.header("content-length"), untold.header("transfer-encoding")), (None, Some("chunked")));
    assert_eq!(untold.bytes(), &image.layers[0].bytes);
}

#[tokio::test]
async fn ranges_are_ignored_or_lied_about() {
    let (registry, image) = stocked();
    registry.when(get().blob()).nth(1).then(Fault::IgnoreRange);
    registry.when(get().blob()).nth(2).then(Fault::content_range("bytes 0-9/300000"));
    let mut client = client(&registry).await;
    let path = blob_path(&image.layers[0].digest);
    let whole = client.get(&path).range("100-").send().await;
    assert_eq!((whole.status, whole.bytes()), (200, &image.layers[0].bytes));
    assert_eq!(registry.requests()[0].header("range"), Some("bytes=100-"));
    let wrong = client.get(&path).range("100-109").send().await;
    assert_eq!((wrong.status, wrong.header("content-range")), (206, Some("bytes 0-9/300000")));
    assert_eq!(wrong.bytes()[..], image.layers[0].bytes[100..110]);
}

#[tokio::test]
async fn headers_and_bodies_are_exchanged() {
    let (registry, _) = stocked();
    registry.when(get().manifest()).then(Fault::Header("ratelimit-remaining", "99;w=21600".into()));
    registry.when(get().manifest()).then(Fault::WithoutHeader("docker-content-digest"));
    registry.when(get().manifest()).then(Fault::Body("{}".into()));
    let reply = client(&registry).await.get(&manifest_path("3.20")).accept_manifests().send().await;
    assert_eq!(reply.header("ratelimit-remaining"), Some("99;w=21600"));
    assert_eq!((reply.header("docker-content-digest"), reply.text()), (None, "{}"));
}
