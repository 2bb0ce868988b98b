//! Signed URLs are as strict as an object store's.

use http::Method;

use super::{REPOSITORY, blob_path, client, manifest_path, stocked};
use crate::support::client::{Client, Reply};
use crate::support::registry::{any, get};

const REGISTRY: &str = "registry.test";
const CDN: &str = "cdn.test";

/// Where the registry sends a request for a path.
async fn location(client: &mut Client, method: Method, path: &str) -> String {
    let reply = client.request(method, path).host(REGISTRY).accept_manifests().send().await;
    assert_eq!(reply.status, 307);
    reply.header("location").and_then(|url| url.strip_prefix("http://cdn.test")).expect("a URL at the CDN").to_owned()
}

async fn at_cdn(client: &mut Client, target: &str) -> Reply {
    client.get(target).host(CDN).send().await
}

#[tokio::test]
async fn blobs_and_manifests_come_from_the_other_host() {
    let (registry, image) = stocked();
    registry.redirect_blobs("http://cdn.test");
    registry.redirect_manifests("http://cdn.test");
    let mut client = client(&registry).await;
    let target = location(&mut client, Method::GET, &blob_path(&image.layers[0].digest)).await;
    assert_eq!(at_cdn(&mut client, &target).await.bytes(), &image.layers[0].bytes);
    let part = client.get(&target).host(CDN).range("5-9").send().await;
    assert_eq!((part.status, &part.bytes()[..]), (206, &image.layers[0].bytes[5..10]));
    let target = location(&mut client, Method::GET, &manifest_path("3.20")).await;
    assert_eq!(at_cdn(&mut client, &target).await.header("content-type"), Some(image.media_type));
    assert_eq!((registry.count(get().signed()), registry.count(any().host(CDN))), (3, 3));
    assert_eq!(client.get(&format!("/v2/{REPOSITORY}/blobs/sha256:x")).send().await.status, 400);
}

#[tokio::test]
async fn a_signature_binds_method_host_and_query_and_no_token_comes_along() {
    let (registry, image) = stocked();
    registry.redirect_blobs("http://cdn.test");
    let mut client = client(&registry).await;
    let target = location(&mut client, Method::GET, &blob_path(&image.layers[0].digest)).await;
    assert_eq!(client.head(&target).host(CDN).send().await.status, 403);
    assert_eq!(client.get(&target).host(REGISTRY).send().await.status, 403);
    assert_eq!(at_cdn(&mut client, &target.replace("%2d", "-")).await.status, 403);
    assert_eq!(client.get(&target).host(CDN).header("authorization", "Bearer x").send().await.status, 400);
    assert_eq!(at_cdn(&mut client, &target).await.status, 200);
    let target = location(&mut client, Method::HEAD, &blob_path(&image.layers[0].digest)).await;
    assert_eq!(client.head(&target).host(CDN).send().await.status, 200);
}

#[tokio::test]
async fn signatures_expire_after_their_uses_or_when_told() {
    let (registry, image) = stocked();
    registry.redirect_blobs("http://cdn.test");
    registry.signatures_last(1);
    let mut client = client(&registry).await;
    let path = blob_path(&image.layers[0].digest);
    let target = location(&mut client, Method::GET, &path).await;
    assert_eq!(at_cdn(&mut client, &target).await.status, 200);
    assert_eq!(at_cdn(&mut client, &target).await.status, 403);
    let target = location(&mut client, Method::GET, &path).await;
    registry.expire_signatures();
    assert_eq!(at_cdn(&mut client, &target).await.status, 403);
    let target = location(&mut client, Method::GET, &path).await;
    assert_eq!(at_cdn(&mut client, &target).await.status, 200);
}

#[tokio::test]
async fn a_redirect_to_the_same_host_keeps_the_token() {
    let (registry, image) = stocked();
    registry.redirect_blobs("http://cdn.test");
    let mut client = client(&registry).await;
    let reply = client.get(&blob_path(&image.layers[0].digest)).host(CDN).send().await;
    let target = reply.header("location").expect("a URL").replace("http://cdn.test", "");
    assert_eq!(client.get(&target).host(CDN).header("authorization", "Bearer x").send().await.status, 200);
}
