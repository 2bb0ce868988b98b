//! Artifacts that are no images.

use serde_json::json;

use super::*;
use crate::support::registry::get;

#[tokio::test]
async fn clients_17_artifacts_of_any_type_are_pulled_through_byte_for_byte_and_cached() {
    let oci = MediaType::OCI_MANIFEST;
    for (name, manifest_type, config_type, layer_type) in [
        ("a Helm chart", oci, "application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
        ("wasm", oci, "application/vnd.wasm.config.v0+json", "application/wasm"),
        ("a cosign bundle", oci, "application/vnd.oci.empty.v1+json", SIGNATURE),
        ("in-toto", oci, "application/vnd.oci.image.config.v1+json", "application/vnd.in-toto+json"),
        ("trivy-db", oci, "application/vnd.aquasec.trivy.config.v1+json", "application/vnd.aquasec.trivy.db.layer.v1.tar+gzip"),
        ("an ORAS artifact", "application/vnd.oci.artifact.manifest.v1+json", "application/json", "text/plain"),
        ("something new", "application/vnd.example.thing.v7+cbor", "application/json", "x/y"),
    ] {
        let scene = Scene::new();
        let layer = scene.registry.push_blob("library/app", format!("the content of {name}"));
        let config = scene.registry.push_blob("library/app", "{}");
        let document = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "artifactType": layer_type,
            "config": { "mediaType": config_type, "digest": config.to_string(), "size": 2 },
            "layers": [{ "mediaType": layer_type, "digest": layer.to_string(), "size": format!("the content of {name}").len() }],
        });
        // Unusual spaces, so that bytes made anew would differ.
        let bytes = format!("{{ {}\n", &document.to_string()[1..]);
        let digest = scene.registry.push_manifest("library/app", Some("artifact"), manifest_type, bytes.clone());
        for round in ["cold", "warm"] {
            let by_tag = scene.larder.get("/v2/library/app/manifests/artifact").await;
            assert_eq!((by_tag.status, by_tag.text()), (200, bytes.as_str()), "{name}, {round}");
            assert_eq!(by_tag.header("content-type"), Some(manifest_type), "{name}");
            assert_eq!(by_tag.header("docker-content-digest"), Some(digest.to_string().as_str()), "{name}");
            for (blob, content) in [(config, "{}".to_owned()), (layer, format!("the content of {name}"))] {
                let reply = scene.larder.get(&format!("/v2/library/app/blobs/{blob}")).await;
                assert_eq!((reply.status, reply.text()), (200, content.as_str()), "{name}, {round}");
            }
            assert_eq!(scene.registry.count(get()), 3, "{name}, {round}");
        }
        scene.net.down("hub.test");
        assert_eq!(scene.larder.get(&format!("/v2/library/app/manifests/{digest}")).await.text(), bytes, "{name}");
    }
}
