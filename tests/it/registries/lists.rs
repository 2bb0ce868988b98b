//! Lists of tags and of referrers, as each registry has them or not.

use serde_json::Value;

use super::{before, push};
use crate::support::net::FakeNet;
use crate::support::registries::{ghcr, gitlab, harbor, quay};
use crate::support::registry::any;

/// Quay's pages hold 100 at most and go on at an absolute URL by a cursor of its own.
#[tokio::test]
async fn credential_28_quay_s_pages_are_followed_and_no_page_is_linked_to_outside() {
    let net = FakeNet::new();
    let quay = quay(&net);
    let pushed = push(&quay, "org/app", 1);
    for n in 0..247 {
        quay.push_manifest("org/app", Some(&format!("v{n:03}")), pushed.index.media_type, pushed.index.bytes.clone());
    }
    let reply = before(&net, &quay).get("/v2/quay.io/org/app/tags/list").await;
    let document: Value = serde_json::from_str(reply.text()).unwrap();
    assert_eq!((reply.status, document["tags"].as_array().unwrap().len(), reply.header("link")), (200, 250, None));
    assert_eq!(quay.count(any().tags()), 3);
}

/// Also: credential_22
#[tokio::test]
async fn credential_23_a_registry_without_referrers_is_404_and_one_without_a_referrer_200() {
    let net = FakeNet::new();
    let (ghcr, gitlab) = (ghcr(&net), gitlab(&net));
    for (registry, larder) in [(&*ghcr, before(&net, &ghcr)), (&*gitlab, before(&net, &gitlab))] {
        let pushed = push(registry, "org/app", 1);
        let name = larder.config.upstreams.keys().find(|name| name.as_str() != "docker.io").unwrap().clone();
        let reply = larder.get(&format!("/v2/{name}/org/app/referrers/{}", pushed.index.digest)).await;
        assert_eq!(reply.status, 404, "{name}");
    }
    let harbor = harbor(&net);
    let pushed = push(&harbor, "team/app", 1);
    let larder = before(&net, &harbor);
    let path = |image: &crate::support::registry::Image| format!("/v2/{}/team/app/referrers/{}", harbor.name(), image.digest);
    let signature = harbor.push_referrer("team/app", pushed.index.digest, "application/vnd.example.signature", "signed");
    let signed = larder.get(&format!("{}?artifactType=application/vnd.example.signature", path(&pushed.index))).await;
    assert!(signed.status == 200 && signed.text().contains(&signature.to_string()), "{}", signed.text());
    assert_eq!(
        (signed.header("oci-filters-applied"), signed.header("content-type")),
        (Some("artifactType"), Some("application/vnd.oci.image.index.v1+json"))
    );
    let none = larder.get(&path(&pushed.images[0])).await;
    let document: Value = serde_json::from_str(none.text()).unwrap();
    assert_eq!((none.status, document["manifests"].as_array().unwrap().len()), (200, 0));
}
