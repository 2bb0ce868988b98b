//! Where nothing is scripted, the registry answers as Distribution does.

use larder::oci::{Algorithm, Digest, Manifest, MediaType};

use super::{LAYER_BYTES, REPOSITORY, blob_path, client, manifest_path, stocked};
use crate::support::client::Client;
use crate::support::registry::{FakeRegistry, any, get, head};

#[tokio::test]
async fn content_is_the_same_in_every_run_and_larder_can_read_it() {
    let ((_, one), (_, two)) = (stocked(), stocked());
    assert_eq!(one.bytes, two.bytes);
    let manifest = Manifest::verified(one.bytes.clone(), Some(one.media_type), &one.digest).expect("a manifest");
    let listed: Vec<Digest> = manifest.children().iter().map(|child| child.digest).collect();
    let config = one.config.expect("an image has a config").digest;
    assert_eq!(listed, [one.layers[0].digest, one.layers[1].digest, config]);
}

#[tokio::test]
async fn blobs_have_their_headers_on_get_and_head() {
    let (registry, image) = stocked();
    let (layer, mut client) = (&image.layers[0], client(&registry).await);
    let reply = client.get(&blob_path(&layer.digest)).send().await;
    assert_eq!((reply.status, reply.bytes()), (200, &layer.bytes));
    let head_reply = client.head(&blob_path(&layer.digest)).send().await;
    for reply in [&reply, &head_reply] {
        assert_eq!(reply.header("docker-content-digest"), Some(layer.digest.to_string().as_str()));
        assert_eq!(reply.header("content-length"), Some("300000"));
        assert_eq!(reply.header("accept-ranges"), Some("bytes"));
    }
    assert!(head_reply.bytes().is_empty());
    assert_eq!((registry.count(get().blob()), registry.count(head().blob().of(layer.digest))), (1, 1));
    assert_eq!(registry.body_bytes_sent(), LAYER_BYTES as u64);
}

#[tokio::test]
async fn ranges_are_206_or_416() {
    let (registry, image) = stocked();
    let (layer, mut client) = (&image.layers[0], client(&registry).await);
    for (range, start, end) in
        [("0-99", 0, 100), ("299990-", 299_990, 300_000), ("-5", 299_995, 300_000), ("299999-400000", 299_999, 300_000)]
    {
        let reply = client.get(&blob_path(&layer.digest)).range(range).send().await;
        assert_eq!((reply.status, &reply.bytes()[..]), (206, &layer.bytes[start..end]), "{range}");
        assert_eq!(reply.header("content-range"), Some(format!("bytes {start}-{}/300000", end - 1).as_str()));
    }
    for range in ["300000-", "9-5", "x-y", "-0"] {
        let reply = client.get(&blob_path(&layer.digest)).range(range).send().await;
        assert_eq!((reply.status, reply.header("content-range")), (416, Some("bytes */300000")), "{range}");
    }
    let stale = client.get(&blob_path(&layer.digest)).range("0-9").header("if-range", "\"other\"").send().await;
    assert_eq!(stale.status, 200);
}

#[tokio::test]
async fn manifests_answer_only_to_an_accept_that_lists_them() {
    let (registry, image) = stocked();
    let mut client = client(&registry).await;
    let reply = client.get(&manifest_path("3.20")).accept_manifests().send().await;
    assert_eq!((reply.status, reply.bytes()), (200, &image.bytes));
    assert_eq!(reply.header("content-type"), Some(MediaType::OCI_MANIFEST));
    assert_eq!(reply.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
    for accept in ["*/*", MediaType::DOCKER_MANIFEST, MediaType::OCI_INDEX] {
        let reply = client.get(&manifest_path(&image.digest.to_string())).header("accept", accept).send().await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (404, Some("MANIFEST_UNKNOWN")), "{accept}");
    }
    let held = client.get(&manifest_path("3.20")).accept_manifests().header("if-none-match", &format!("\"{}\"", image.digest)).send().await;
    assert_eq!(held.status, 304);
}

#[tokio::test]
async fn a_docker_list_that_is_not_accepted_turns_into_its_first_image() {
    let registry = FakeRegistry::new();
    let images = [registry.push_docker_image(REPOSITORY, "amd64", &[1], 1), registry.push_docker_image(REPOSITORY, "arm64", &[1], 2)];
    let list = registry.push_docker_list(REPOSITORY, "latest", &images);
    let mut client = client(&registry).await;
    let by_tag = client.get(&manifest_path("latest")).send().await;
    assert_eq!(by_tag.header("docker-content-digest"), Some(images[0].digest.to_string().as_str()));
    let by_digest = client.get(&manifest_path(&list.digest.to_string())).send().await;
    assert_eq!(by_digest.bytes(), &list.bytes);
}

#[tokio::test]
async fn what_is_unknown_is_named_by_its_code() {
    let (registry, image) = stocked();
    registry.push_blob("team/other", "elsewhere");
    let mut client = client(&registry).await;
    let elsewhere = Digest::of(Algorithm::Sha256, b"elsewhere");
    for (path, status, code) in [
        (blob_path(&elsewhere), 404, "BLOB_UNKNOWN"),
        (format!("/v2/{REPOSITORY}/blobs/sha256:x"), 400, "DIGEST_INVALID"),
        (manifest_path("missing"), 404, "MANIFEST_UNKNOWN"),
        (format!("/v2/team/missing/manifests/{}", image.digest), 404, "MANIFEST_UNKNOWN"),
        ("/v2/team/missing/tags/list".into(), 404, "NAME_UNKNOWN"),
    ] {
        let reply = client.get(&path).send().await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (status, Some(code)), "{path}");
    }
    assert_eq!(client.get("/v2/").send().await.text(), "{}");
    assert_eq!(client.get("/v3/").send().await.status, 404);
    assert_eq!(client.request(http::Method::PUT, &manifest_path("3.20")).body("x").send().await.status, 405);
    assert_eq!(registry.requests().last().map(|request| request.body.clone()), Some("x".into()));
}

#[tokio::test]
async fn tags_move_vanish_and_come_in_pages() {
    let (registry, first) = stocked();
    let second = registry.push_image(REPOSITORY, "edge", &[5], 2);
    let mut client = client(&registry).await;
    let page = client.get(&format!("/v2/{REPOSITORY}/tags/list?n=1")).send().await;
    assert_eq!(page.text(), r#"{"name":"library/alpine","tags":["3.20"]}"#);
    assert_eq!(page.header("link"), Some(r#"</v2/library/alpine/tags/list?last=3.20&n=1>; rel="next""#));
    let page = client.get(&format!("/v2/{REPOSITORY}/tags/list?n=1&last=3.20")).send().await;
    assert_eq!((page.text(), page.header("link")), (r#"{"name":"library/alpine","tags":["edge"]}"#, None));

    registry.move_tag(REPOSITORY, "3.20", second.digest);
    assert_eq!(client.get(&manifest_path("3.20")).accept_manifests().send().await.bytes(), &second.bytes);
    registry.delete_tag(REPOSITORY, "3.20");
    assert_eq!(client.get(&manifest_path("3.20")).accept_manifests().send().await.status, 404);
    assert_eq!(client.get(&manifest_path(&first.digest.to_string())).accept_manifests().send().await.status, 200);
    registry.delete_blob(REPOSITORY, first.layers[0].digest);
    assert_eq!(client.get(&blob_path(&first.layers[0].digest)).send().await.status, 404);
    registry.delete_manifest(REPOSITORY, first.digest);
    assert_eq!(client.get(&manifest_path(&first.digest.to_string())).accept_manifests().send().await.status, 404);
}

#[tokio::test]
async fn sha512_names_work_as_sha256_ones_do() {
    let registry = FakeRegistry::new();
    let image = registry.push_image_as(Algorithm::Sha512, REPOSITORY, "3.20", &[100], 1);
    let mut client = client(&registry).await;
    assert_eq!(image.layers[0].digest.algorithm(), Algorithm::Sha512);
    assert_eq!(client.get(&blob_path(&image.layers[0].digest)).send().await.bytes(), &image.layers[0].bytes);
    let reply = client.get(&manifest_path(&image.digest.to_string())).accept_manifests().send().await;
    assert_eq!(reply.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
}

#[tokio::test]
async fn it_serves_a_socket_too() {
    let (registry, image) = stocked();
    let address = registry.listen_tcp().await;
    let mut client = Client::over(tokio::net::TcpStream::connect(address).await.expect("a connection")).await;
    let reply = client.get(&blob_path(&image.layers[0].digest)).host("registry.test").send().await;
    assert_eq!(reply.bytes(), &image.layers[0].bytes);
    assert_eq!(registry.count(any().host("registry.test")), 1);
}

#[tokio::test(start_paused = true)]
async fn a_test_can_wait_for_requests_that_come_later() {
    let (registry, _) = stocked();
    let mut later = client(&registry).await;
    let asking = tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(30)).await;
        later.get("/v2/").send().await;
        later.get("/v2/").send().await
    });
    registry.wait_for(get().ping(), 2).await;
    assert_eq!(registry.count(any()), 2);
    asking.await.expect("an answer");
}
