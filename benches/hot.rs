//! The pure parts that every request, or every byte, passes.
#![allow(clippy::expect_used, missing_docs, reason = "a benchmark")]

use std::hint::black_box;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::Method;
use larder::clock::Timestamp;
use larder::labels::Kind;
use larder::labels::Outcome;
use larder::log::AccessLine;
use larder::oci::{Algorithm, Digest, Manifest};
use larder::server::range::Selection;
use larder::server::route::Route;
use larder::store::Verifier;

fn requests(criterion: &mut Criterion) {
    let digest = Digest::of(Algorithm::Sha256, b"layer");
    let path = format!("/v2/library/alpine/blobs/{digest}");
    criterion.bench_function("route: a blob", |bencher| {
        bencher.iter(|| Route::parse(&Method::GET, black_box(&path), None).expect("a route"));
    });
    let query = Some("ns=docker.io");
    criterion.bench_function("route: a tag with ns", |bencher| {
        bencher.iter(|| Route::parse(&Method::GET, black_box("/v2/library/alpine/manifests/3.22"), query).expect("a route"));
    });
    criterion.bench_function("range: open-ended", |bencher| {
        bencher.iter(|| Selection::of(black_box(Some("bytes=8388608-")), 1 << 30));
    });
    let peer = SocketAddr::from(([127, 0, 0, 1], 5000));
    let line = AccessLine {
        time: Timestamp(1_795_219_200_000),
        request_id: "01M7Y5VV2NC13JMG7WJECFF8PA",
        client: peer,
        identity: None,
        listener: peer,
        host: Some("127.0.0.1:5000"),
        ns: None,
        method: "GET",
        kind: Kind::Manifest,
        upstream: Some("docker.io"),
        repository: Some("library/alpine"),
        tag: Some("3.22"),
        digest: Some(digest),
        range: None,
        status: 200,
        bytes: 1853,
        outcome: Outcome::Hit,
        error_code: None,
        credential: None,
        duration: Duration::from_micros(31),
        ttfb: Some(Duration::from_micros(12)),
        upstream_status: None,
        upstream_duration: None,
        attempts: 0,
        aborted: false,
        user_agent: Some("containerd/2.3.4"),
    };
    criterion.bench_function("access line: JSON", |bencher| bencher.iter(|| black_box(&line).format(true)));
}

fn content(criterion: &mut Criterion) {
    let layer = Digest::of(Algorithm::Sha256, b"layer");
    let layers: Vec<String> = (0..12).map(|size| format!(r#"{{"mediaType":"a/b","digest":"{layer}","size":{size}}}"#)).collect();
    let body = format!(r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","layers":[{}]}}"#, layers.join(","));
    let bytes = Bytes::from(body);
    let digest = Digest::of(Algorithm::Sha256, &bytes);
    criterion.bench_function("manifest: verify and read", |bencher| {
        bencher.iter(|| Manifest::verified(bytes.clone(), None, &digest).expect("a manifest"));
    });

    let chunk = vec![7; 256 * 1024];
    let mut group = criterion.benchmark_group("hash 256 KiB");
    group.throughput(Throughput::Bytes(chunk.len() as u64));
    for algorithm in Algorithm::ALL {
        let digest = Digest::of(algorithm, b"");
        group.bench_function(algorithm.as_str(), |bencher| {
            let mut verifier = Verifier::new(&digest);
            bencher.iter(|| verifier.update(black_box(&chunk)));
        });
    }
    group.finish();
}

criterion_group!(benches, requests, content);
criterion_main!(benches);
