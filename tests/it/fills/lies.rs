//! An upstream that sends what it should not: no client ever gets a complete wrong body, nothing is stored, and the
//! next request succeeds.

use std::time::Duration;

use larder::oci::Algorithm;

use super::{
    Blob, Bytes, FakeRegistry, Fault, KIB, Larder, Latch, MIB, all_that_comes, assert_whole, get, hub, open, path, push, push_as, until,
};

fn mismatches(larder: &Larder) -> f64 {
    larder.metric("larder_digest_mismatch_total{upstream=\"docker.io\",where=\"blob\"}")
}

fn assert_nothing_stored(larder: &Larder) {
    assert!(larder.files("blobs").is_empty() && larder.files("partial").is_empty(), "{:?}", larder.files(""));
}

/// Also: clients_32, upstream_fault_03
#[tokio::test(start_paused = true)]
async fn one_wrong_bit_breaks_the_connection() {
    for algorithm in Algorithm::ALL {
        for offset in [0, 3 * MIB / 2, 3 * MIB - 1] {
            let (net, registry) = hub();
            let blob = push_as(algorithm, &registry, 3 * MIB, 1);
            registry.when(get().blob()).first(1).then(Fault::FlipBitAt(offset as u64));
            let larder = Larder::start(&net);
            let reply = larder.get(&path(blob.digest)).await;
            assert_eq!(reply.status, 200);
            let broken = reply.body.expect_err("a broken body");
            assert!(broken.received.len() <= 3 * MIB - 64 * KIB);
            until("it has ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
            assert_nothing_stored(&larder);
            assert_eq!(mismatches(&larder), 1.0);
            assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        }
    }
}

/// Also: clients_32, upstream_fault_03
#[tokio::test(start_paused = true)]
async fn a_small_blob_with_a_wrong_bit_is_a_502() {
    for algorithm in Algorithm::ALL {
        for size in [1, 100 * KIB, MIB] {
            let (net, registry) = hub();
            let blob = push_as(algorithm, &registry, size, 1);
            registry.when(get().blob()).first(1).then(Fault::FlipBitAt(size as u64 / 2));
            let larder = Larder::start(&net);
            let reply = larder.get(&path(blob.digest)).await;
            assert_eq!((reply.status, reply.error_code().as_deref()), (502, Some("UNAVAILABLE")));
            assert_nothing_stored(&larder);
            assert_eq!(mismatches(&larder), 1.0);
            assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        }
    }
}

/// Each lie, told of the first answer only, to a small blob and to a large one.
/// Also: clients_32, upstream_fault_03, upstream_fault_04, upstream_fault_17
#[tokio::test(start_paused = true)]
async fn no_lie_becomes_a_complete_body() {
    type Lie = (&'static str, fn() -> Fault);
    let lies: [Lie; 7] = [
        ("longer", || Fault::ContentLengthOff(10)),
        ("shorter", || Fault::ContentLengthOff(-10)),
        ("other bytes", || Fault::Body(Bytes::from_static(b"other bytes"))),
        ("no bytes", || Fault::Body(Bytes::new())),
        ("a login page", || Fault::login_page().into()),
        ("a part of it", || Fault::status(206).header("content-range", "bytes 0-3/4").body("part").into()),
        ("compressed", || Fault::Header("content-encoding", "gzip".into())),
    ];
    for (name, lie) in lies {
        for size in [100 * KIB, 3 * MIB] {
            let (net, registry) = hub();
            let blob = push(&registry, size, 1);
            registry.when(get().blob()).first(1).then(lie());
            let larder = Larder::start(&net);
            assert_refused_or_broken(&larder, &blob, name).await;
            until("it has ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
            assert!(larder.files("blobs").is_empty(), "{name}, {size} bytes");
            assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        }
    }
}

async fn assert_refused_or_broken(larder: &Larder, blob: &Blob, name: &str) {
    let reply = larder.get(&path(blob.digest)).await;
    match reply.status {
        200 => assert!(reply.body.is_err(), "{name}: a complete body of {} bytes", reply.bytes().len()),
        502 => assert_eq!(reply.error_code().as_deref(), Some("UNAVAILABLE"), "{name}"),
        status => panic!("{name}: {status}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_breaks_before_the_headers_is_tried_again() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::Hangup);
    assert_whole(&Larder::start(&net).get(&path(blob.digest)).await, &blob);
}

#[tokio::test(start_paused = true)]
async fn an_upstream_that_only_hangs_up_is_a_502() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).then(Fault::Hangup);
    let larder = Larder::start(&net);
    assert_eq!(larder.get(&path(blob.digest)).await.status, 502);
    assert_nothing_stored(&larder);
    registry.behave();
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
}

/// Also: upstream_fault_04
#[tokio::test(start_paused = true)]
async fn a_blob_without_a_length_comes_in_chunks() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).then(Fault::Chunked);
    let larder = Larder::start(&net);
    let reply = larder.get(&path(blob.digest)).await;
    assert_eq!(reply.header("content-length"), None);
    assert_whole(&reply, &blob);
}

#[tokio::test(start_paused = true)]
async fn a_range_of_a_blob_without_a_length_waits_for_its_size() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    registry.when(get().blob()).then(Fault::Chunked);
    let larder = Larder::start(&net);
    let part = larder.client().await.get(&path(blob.digest)).range("-10").send().await;
    assert_eq!((part.status, part.bytes()), (206, &blob.bytes.slice(3 * MIB - 10..)));
    assert_eq!(part.header("content-range"), Some("bytes 3145718-3145727/3145728"));
}

/// Of what has come, the last 64 KiB: any of it may be the end.
#[tokio::test(start_paused = true)]
async fn invariant_03_the_end_is_held_back_where_no_length_was_said() {
    let (net, registry) = hub();
    let size = 2 * MIB;
    let blob = push(&registry, size, 1);
    let latch = Latch::new();
    let lies = [Fault::Chunked, Fault::HoldAt(size as u64 - 1, latch.clone()), Fault::FlipBitAt(size as u64 - 1)];
    lies.into_iter().for_each(|lie| registry.when(get().blob()).first(1).then(lie));
    let larder = Larder::start(&net);
    let (_client, mut body) = open(&larder, &blob).await;
    let came = all_that_comes(&mut body).await;
    assert!(came == blob.bytes[..size - 1 - 64 * KIB], "{} of {size} bytes came", came.len());
    latch.open();
    let broken = body.read_to_end().await.expect_err("a broken body");
    assert!(came.len() + broken.received.len() <= size - 64 * KIB);
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
}

/// Also: upstream_fault_04
#[tokio::test(start_paused = true)]
async fn a_size_that_no_manifest_knows_of_is_a_502_before_the_headers() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[3 * MIB], 1);
    let larder = Larder::start(&net);
    assert_eq!(larder.get("/v2/library/app/manifests/latest").await.status, 200);
    for off in [-10, 10] {
        registry.when(get().blob()).first(1).then(Fault::ContentLengthOff(off));
        assert_eq!(larder.get(&path(image.layers[0].digest)).await.status, 502, "{off}");
        registry.behave();
    }
    assert_whole(&larder.get(&path(image.layers[0].digest)).await, &image.layers[0]);
}

/// Without a length from upstream the manifest's word is the size: a body that goes on is wrong.
#[tokio::test(start_paused = true)]
async fn the_manifest_s_size_holds_where_upstream_says_none() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[3 * MIB], 1);
    let layer = &image.layers[0];
    let larder = Larder::start(&net);
    assert_eq!(larder.get("/v2/library/app/manifests/latest").await.status, 200);
    let longer: Vec<u8> = [&layer.bytes[..], b"and more"].concat();
    for body in [Bytes::from(longer), layer.bytes.slice(..2 * MIB)] {
        lie_without_length(&registry, body);
        let reply = larder.get(&path(layer.digest)).await;
        assert_eq!(reply.header("content-length"), Some("3145728"));
        assert!(reply.body.is_err());
        registry.behave();
    }
    // A host that broke off so often is left alone for some seconds.
    tokio::time::sleep(Duration::from_secs(15)).await;
    registry.when(get().blob()).then(Fault::Chunked);
    let reply = larder.get(&path(layer.digest)).await;
    assert_eq!(reply.header("content-length"), Some("3145728"));
    assert_whole(&reply, layer);
}

fn lie_without_length(registry: &FakeRegistry, body: Bytes) {
    registry.when(get().blob()).then(Fault::Body(body));
    registry.when(get().blob()).then(Fault::Chunked);
    registry.when(get().blob().with_header("range")).then(Fault::Hangup);
}

/// A manifest that lies about a size takes the blob from nobody else.
#[tokio::test(start_paused = true)]
async fn a_manifest_that_lies_about_a_size_hurts_its_own_repository_only() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[3 * MIB], 1);
    let layer = &image.layers[0];
    registry.push_blob("library/liar", layer.bytes.clone());
    let text = String::from_utf8(image.bytes.to_vec()).expect("JSON");
    let lie = text.replace(&(3 * MIB).to_string(), "1000");
    registry.push_manifest("library/liar", Some("latest"), image.media_type, lie);
    let larder = Larder::start(&net);
    for repository in ["library/app", "library/liar"] {
        assert_eq!(larder.get(&format!("/v2/{repository}/manifests/latest")).await.status, 200);
    }
    let gate = Latch::new();
    registry.when(get().blob()).first(1).then(Fault::Hold(gate.clone()));
    let liar_path = format!("/v2/library/liar/blobs/{}", layer.digest);
    let open = async {
        until("both ask", || larder.metric("larder_requests_in_flight") == 2.0).await;
        gate.open();
    };
    let honest = async {
        registry.wait_for(get().blob(), 1).await;
        larder.get(&path(layer.digest)).await
    };
    let (lied, reply, ()) = tokio::join!(larder.get(&liar_path), honest, open);
    assert_eq!(lied.status, 502);
    assert_whole(&reply, layer);
}
