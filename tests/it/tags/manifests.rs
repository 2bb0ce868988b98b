//! Manifests as clients get them: the bytes that upstream has, whatever was accepted, of whatever type.

use bytes::Bytes;
use larder::oci::{Algorithm, Digest, MediaType};

use super::{LATEST, Scene, line};
use crate::support::registry::{Fault, any, get};

fn path(reference: impl std::fmt::Display) -> String {
    format!("/v2/library/app/manifests/{reference}")
}

/// Also: clients_13
#[tokio::test]
async fn clients_12_head_and_get_say_the_same_cold_and_warm_by_tag_and_digest() {
    for by_digest in [false, true] {
        let scene = Scene::new();
        let path = if by_digest { path(scene.image.digest) } else { LATEST.into() };
        for round in ["cold", "cold get", "warm"] {
            for method in [http::Method::HEAD, http::Method::GET] {
                let is_head = method == http::Method::HEAD;
                if round == "cold get" && is_head {
                    continue;
                }
                let reply = scene.larder.client().await.request(method, &path).send().await;
                assert_eq!(reply.status, 200, "{round}");
                assert_eq!(reply.header("content-type"), Some(MediaType::OCI_MANIFEST));
                assert_eq!(reply.header("content-length"), Some(scene.image.bytes.len().to_string().as_str()));
                assert_eq!(reply.header("docker-content-digest"), Some(scene.image.digest.to_string().as_str()));
                assert_eq!(reply.header("docker-distribution-api-version"), Some("registry/2.0"));
                assert_eq!(
                    (reply.header("transfer-encoding"), reply.header("content-encoding"), reply.header("www-authenticate")),
                    (None, None, None)
                );
                assert_eq!(reply.bytes(), if is_head { &[] } else { &scene.image.bytes[..] });
            }
        }
    }
}

/// Also: registry_22
#[tokio::test]
async fn clients_15_any_accept_gets_the_same_bytes_and_upstream_is_asked_for_all_types() {
    let scene = Scene::new();
    let images = [scene.image.clone(), scene.registry.push_image("library/app", "arm", &[5], 2)];
    let list = scene.registry.push_docker_list("library/app", "list", &images);
    let accepts = [None, Some("*/*"), Some("text/html, */*;q=.2"), Some("text/html"), Some(MediaType::DOCKER_MANIFEST), Some("nonsense")];
    for accept in accepts {
        for (tag, image) in [("latest", &scene.image), ("list", &list)] {
            let mut client = scene.larder.client().await;
            let ask = client.get(&format!("/v2/library/app/manifests/{tag}"));
            let reply = match accept {
                Some(accept) => ask.header("accept", accept).header("accept", "application/json").send().await,
                None => ask.send().await,
            };
            assert_eq!(
                (reply.status, reply.bytes(), reply.header("content-type")),
                (200, &image.bytes, Some(image.media_type)),
                "{accept:?}"
            );
        }
    }
    for request in scene.registry.seen(any().manifest()) {
        let accept = request.header("accept").unwrap();
        for media_type in [MediaType::OCI_INDEX, MediaType::OCI_MANIFEST, MediaType::DOCKER_LIST, MediaType::DOCKER_MANIFEST] {
            assert!(accept.contains(media_type), "{accept}");
        }
    }
}

#[tokio::test]
async fn a_whole_index_is_served_with_upstream_down() {
    let scene = Scene::new();
    let children: Vec<_> = (0..3).map(|n| scene.registry.push_image("library/app", &format!("child{n}"), &[100 + n as usize], n)).collect();
    let index = scene.registry.push_index("library/app", "multi", &children);
    for round in 0..2 {
        assert_eq!(scene.larder.get(&path("multi")).await.bytes(), &index.bytes);
        for child in &children {
            assert_eq!(scene.larder.head(&path(child.digest)).await.status, 200, "round {round}");
            assert_eq!(scene.larder.get(&path(child.digest)).await.bytes(), &child.bytes, "round {round}");
            let blob = format!("/v2/library/app/blobs/{}", child.layers[0].digest);
            assert_eq!(scene.larder.get(&blob).await.bytes(), &child.layers[0].bytes, "round {round}");
        }
        scene.net.down("hub.test");
    }
    assert_eq!(scene.registry.count(get().manifest()), 4);
}

#[tokio::test]
async fn a_held_manifest_is_never_asked_about_by_digest() {
    let scene = Scene::new();
    assert_eq!(scene.larder.get(LATEST).await.status, 200);
    scene.registry.forget_requests();
    scene.larder.clock.advance(std::time::Duration::from_secs(400 * 86_400));
    for reply in [scene.larder.get(&path(scene.image.digest)).await, scene.larder.head(&path(scene.image.digest)).await] {
        assert_eq!(line(&reply), "200 larder; hit");
    }
    assert_eq!(scene.registry.requests().len(), 0);
}

/// Also: clients_52
#[tokio::test]
async fn sha512_digests_are_served_and_verified() {
    let scene = Scene::new();
    let image = scene.registry.push_image_as(Algorithm::Sha512, "library/app", "long", &[50], 4);
    assert_eq!(scene.larder.get(&path(image.digest)).await.bytes(), &image.bytes);
    assert_eq!(scene.larder.get(&path("long")).await.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
    let layer = &image.layers[0];
    assert_eq!(scene.larder.get(&format!("/v2/library/app/blobs/{}", layer.digest)).await.bytes(), &layer.bytes);
}

#[tokio::test]
async fn clients_17_types_outside_the_image_set_pass_and_are_cached() {
    let scene = Scene::new();
    let layer = scene.registry.push_blob("library/app", &b"chart"[..]);
    let artifact = format!(
        r#"{{"schemaVersion":2,"artifactType":"application/vnd.in-toto+json","config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{layer}","size":5}},"layers":[{{"mediaType":"application/vnd.cncf.helm.chart.content.v1.tar+gzip","digest":"{layer}","size":5}}]}}"#
    );
    let bodies = [
        (MediaType::OCI_MANIFEST, artifact.as_str()),
        ("application/vnd.oci.artifact.manifest.v1+json", r#"{"mediaType":"application/vnd.oci.artifact.manifest.v1+json","blobs":[]}"#),
        ("application/vnd.dev.sigstore.bundle.v0.3+json", r#"{"verificationMaterial":{}}"#),
        ("application/vnd.wasm.config.v0+json", r#"{"layers":[]}"#),
    ];
    for (n, (media_type, body)) in bodies.into_iter().enumerate() {
        let tag = format!("artifact{n}");
        scene.registry.push_manifest("library/app", Some(&tag), media_type, body.to_owned());
        for round in 0..2 {
            let reply = scene.larder.get(&path(&tag)).await;
            assert_eq!((reply.status, reply.header("content-type")), (200, Some(media_type)), "{media_type}, {round}");
            assert_eq!(reply.text(), body);
        }
    }
    assert_eq!(scene.asked(), (4, 4));
    assert_eq!(scene.larder.get(&format!("/v2/library/app/blobs/{layer}")).await.text(), "chart");
}

/// Also: registry_23
#[tokio::test]
async fn clients_16_schema_1_is_refused_and_a_missing_type_is_mended() {
    let scene = Scene::new();
    let retired = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    scene.registry.push_manifest("library/app", Some("old"), retired, r#"{"schemaVersion":1,"fsLayers":[]}"#);
    assert_eq!(scene.larder.head(&path("old")).await.status, 502);
    let refused = scene.larder.get(&path("old")).await;
    assert_eq!(line(&refused), "502 UNAVAILABLE");
    assert!(refused.text().contains("docker.io has this image only as manifest schema 1, which Docker has retired"), "{}", refused.text());
    for fault in [
        Fault::WithoutHeader("content-type"),
        Fault::Header("content-type", "text/plain".into()),
        Fault::Header("content-type", format!("{}; charset=utf-8", MediaType::OCI_MANIFEST)),
    ] {
        let scene = Scene::new();
        scene.registry.when(any()).then(fault.clone());
        for reply in [scene.larder.head(LATEST).await, scene.larder.get(LATEST).await, scene.larder.head(LATEST).await] {
            assert_eq!((reply.status, reply.header("content-type")), (200, Some(MediaType::OCI_MANIFEST)), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_body_with_two_meanings_is_refused_however_it_is_asked_for() {
    let scene = Scene::new();
    let confused = [
        (MediaType::OCI_MANIFEST, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned()),
        (MediaType::OCI_INDEX, r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#.to_owned()),
        (MediaType::OCI_INDEX, format!(r#"{{"schemaVersion":2,"mediaType":"{}","manifests":[]}}"#, MediaType::OCI_MANIFEST)),
        (MediaType::OCI_MANIFEST, format!(r#"{{"schemaVersion":2,"mediaType":"{}","layers":[]}}"#, MediaType::OCI_INDEX)),
        (MediaType::OCI_MANIFEST, "<html>log in</html>".to_owned()),
    ];
    for (media_type, body) in confused {
        let digest = scene.registry.push_manifest("library/app", Some("confused"), media_type, body.clone());
        for reference in ["confused".to_owned(), digest.to_string()] {
            assert_eq!(line(&scene.larder.get(&path(&reference)).await), "502 UNAVAILABLE", "{media_type} {body}");
        }
    }
    assert!(scene.larder.files("refs").is_empty(), "{:?}", scene.larder.files("refs"));
}

#[tokio::test]
async fn a_login_page_is_no_manifest_and_no_404() {
    let scene = Scene::new();
    scene.registry.when(any()).then(Fault::login_page());
    assert_eq!(line(&scene.larder.get(LATEST).await), "502 UNAVAILABLE");
    assert_eq!(line(&scene.larder.get(&path(scene.image.digest)).await), "502 UNAVAILABLE");
}

/// Also: registry_23
#[tokio::test]
async fn wrong_bytes_by_digest_are_refused_and_not_kept() {
    let scene = Scene::new();
    scene.registry.when(get().manifest()).first(1).then(Fault::FlipBitAt(20));
    assert_eq!(line(&scene.larder.get(&path(scene.image.digest)).await), "502 UNAVAILABLE");
    assert!(scene.larder.files("blobs").is_empty());
    assert_eq!(scene.larder.get(&path(scene.image.digest)).await.bytes(), &scene.image.bytes);
    assert_eq!(scene.larder.metric(super::MISMATCHES), 1.0);
}

#[tokio::test]
async fn clients_18_what_is_missing_is_a_manifest_also_for_signature_tags() {
    let scene = Scene::new();
    let hex = "a".repeat(64);
    let digest = Digest::of(Algorithm::Sha256, b"nothing");
    for reference in
        ["none".to_owned(), format!("sha256-{hex}"), format!("sha256-{hex}.sig"), format!("sha256-{hex}.att"), digest.to_string()]
    {
        let reply = scene.larder.get(&path(&reference)).await;
        assert_eq!((line(&reply).as_str(), reply.header("content-type")), ("404 MANIFEST_UNKNOWN", Some("application/json")));
    }
    assert_eq!(line(&scene.larder.get("/v2/library/none/manifests/latest").await), "404 MANIFEST_UNKNOWN");
}

/// Also: clients_21
#[tokio::test]
async fn clients_20_range_and_conditions_are_not_for_manifests() {
    let scene = Scene::new();
    let etag = format!("\"{}\"", scene.image.digest);
    for _ in 0..2 {
        let mut client = scene.larder.client().await;
        let reply = client.get(LATEST).range("0-9").header("if-none-match", &etag).send().await;
        assert_eq!((reply.status, reply.bytes()), (200, &scene.image.bytes));
    }
    for request in scene.registry.requests() {
        assert_eq!((request.header("range"), request.header("if-none-match")), (None, None));
    }
}

#[tokio::test]
async fn a_manifest_beyond_4_mib_is_refused() {
    let scene = Scene::new();
    let padding = "x".repeat(4 << 20);
    let body = Bytes::from(format!(r#"{{"schemaVersion":2,"layers":[],"annotations":{{"x":"{padding}"}}}}"#));
    scene.registry.push_manifest("library/app", Some("huge"), MediaType::OCI_MANIFEST, body.clone());
    assert_eq!(line(&scene.larder.get(&path("huge")).await), "502 UNAVAILABLE");
    scene.registry.when(any()).then(Fault::Chunked);
    assert_eq!(line(&scene.larder.get(&path("huge")).await), "502 UNAVAILABLE");
}
