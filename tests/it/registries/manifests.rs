//! Manifests (A10 22–27): how they are asked for, and what of an answer is believed.

use std::time::Duration;

use larder::oci::{Algorithm, Digest};

use super::{before, push};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::{docker_hub, gitea, gitlab, nexus, quay};
use crate::support::registry::{FakeRegistry, Fault, any, get, head};

const TYPES: [&str; 4] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];

/// Quay converts what is not listed, and Distribution denies it.
#[tokio::test]
async fn registry_22_all_four_types_are_accepted_by_name_whatever_the_client_accepts() {
    let net = FakeNet::new();
    let (quay, gitlab) = (quay(&net), gitlab(&net));
    let mut expected = Vec::new();
    for registry in [&*quay as &FakeRegistry, &*gitlab] {
        let oci = registry.push_image("org/app", "oci", &[10], 1);
        let docker = registry.push_docker_image("org/app", "docker", &[10], 2);
        let index = registry.push_index("org/app", "index", std::slice::from_ref(&oci));
        let list = registry.push_docker_list("org/app", "list", std::slice::from_ref(&docker));
        expected = vec![("oci", oci), ("docker", docker), ("index", index), ("list", list)];
    }
    let larder = Setup::new(&net).upstream(quay.upstream()).upstream(gitlab.upstream()).start();
    for upstream in [quay.name(), gitlab.name()] {
        for (tag, image) in &expected {
            let path = format!("/v2/{upstream}/org/app/manifests/{tag}");
            let mut client = larder.client().await;
            let reply = client.get(&path).header("accept", "application/vnd.docker.distribution.manifest.v2+json").send().await;
            assert_eq!((reply.status, reply.bytes()), (200, &image.bytes), "{path}");
            assert_eq!(larder.head(&path).await.header("docker-content-digest"), Some(image.digest.to_string().as_str()));
        }
    }
    for request in quay.seen(any().manifest()).iter().chain(&gitlab.seen(any().manifest())) {
        let accept = request.header("accept").unwrap_or_default();
        let listed: Vec<&str> = accept.split(',').map(str::trim).collect();
        assert!(TYPES.iter().all(|media_type| listed.contains(media_type)), "{accept}");
    }
}

/// Also: upstream_fault_18
#[tokio::test]
async fn registry_23_what_is_served_hashes_to_its_name_and_schema_1_is_refused() {
    let net = FakeNet::new();
    let quay = quay(&net);
    let pushed = push(&quay, "org/app", 1);
    let larder = before(&net, &quay);
    let other = Digest::of(Algorithm::Sha256, b"other");
    // A tag's bytes are believed by the header, where HEAD said nothing.
    quay.when(head().manifest()).then(Fault::status(405));
    quay.when(get().manifest()).then(Fault::Header("docker-content-digest", other.to_string()));
    assert_eq!(larder.get(&pushed.tag("quay.io")).await.status, 502);
    quay.behave();
    quay.when(get().manifest()).then(Fault::FlipBitAt(20));
    assert_eq!(larder.get(&pushed.manifest("quay.io", &pushed.images[1])).await.status, 502);
    quay.behave();
    let schema_1 = r#"{"schemaVersion":1,"name":"org/app","tag":"old","fsLayers":[],"history":[],"signatures":[]}"#;
    quay.push_manifest("org/app", Some("old"), "application/vnd.docker.distribution.manifest.v1+prettyjws", schema_1);
    assert_eq!(larder.get("/v2/quay.io/org/app/manifests/old").await.status, 502);
    assert!(larder.files("blobs").is_empty());
    pushed.pull(&larder, "quay.io").await;
}

#[tokio::test]
async fn registry_24_an_expired_tag_costs_a_head_and_a_get_only_when_it_moved() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let (pushed, next) = (push(&hub, "library/app", 1), hub.push_image("library/app", "next", &[20], 9));
    let larder = before(&net, &hub);
    pushed.pull(&larder, "docker.io").await;
    let counted = hub.counted();
    for _ in 0..20 {
        larder.clock.advance(Duration::from_secs(3600));
        assert_eq!(larder.get(&pushed.tag("docker.io")).await.bytes(), &pushed.index.bytes);
    }
    assert_eq!(hub.counted(), counted);
    hub.forget_requests();
    hub.move_tag("library/app", "1", next.digest);
    larder.clock.advance(Duration::from_secs(3600));
    for _ in 0..2 {
        assert_eq!(larder.get(&pushed.tag("docker.io")).await.bytes(), &next.bytes);
    }
    assert_eq!((hub.counted(), hub.count(get().manifest().of(next.digest)), hub.count(head().manifest())), (counted + 1, 1, 1));
    // Back to what is held: nothing to get.
    hub.move_tag("library/app", "1", pushed.index.digest);
    larder.clock.advance(Duration::from_secs(3600));
    assert_eq!(larder.get(&pushed.tag("docker.io")).await.bytes(), &pushed.index.bytes);
    assert_eq!(hub.counted(), counted + 1);
}

#[tokio::test]
async fn registry_25_without_head_or_its_digest_a_get_tells() {
    for fault in [Fault::from(Fault::status(405)), Fault::from(Fault::status(501)), Fault::WithoutHeader("docker-content-digest")] {
        let (net, registry) = (FakeNet::new(), FakeRegistry::new());
        net.host("hub.test", "93.184.216.34", &registry);
        registry.when(head().manifest()).then(fault.clone());
        let image = registry.push_image("library/app", "1", &[10], 1);
        let larder = Larder::start(&net);
        for _ in 0..2 {
            let head = larder.head("/v2/library/app/manifests/1").await;
            assert_eq!((head.status, head.header("docker-content-digest")), (200, Some(image.digest.to_string().as_str())), "{fault:?}");
            larder.clock.advance(Duration::from_secs(3600));
        }
        assert_eq!(larder.get("/v2/library/app/manifests/1").await.bytes(), &image.bytes);
    }
}

#[tokio::test]
async fn registry_26_an_etag_is_never_a_digest() {
    for names_digests in [true, false] {
        let net = FakeNet::new();
        let nexus = nexus(&net);
        nexus.script(|nexus| nexus.names_digests = names_digests);
        let pushed = push(&nexus, "team/app", 1);
        let larder = before(&net, &nexus);
        pushed.pull(&larder, nexus.name()).await;
        larder.clock.advance(Duration::from_secs(3600));
        pushed.pull(&larder, nexus.name()).await;
        let etags = |reply: &crate::support::client::Reply| reply.header("etag").map(str::to_owned).unwrap_or_default();
        assert!(!etags(&larder.get(&pushed.tag(nexus.name())).await).contains("SHA1"));
        assert!(!etags(&larder.get(&pushed.layer(nexus.name())).await).contains("SHA1"));
    }
}

#[tokio::test]
async fn registry_27_gitea_s_redirects_of_manifests_and_blobs_are_followed_without_their_bodies() {
    let net = FakeNet::new();
    let gitea = gitea(&net);
    gitea.script(|gitea| gitea.serves_direct = true);
    let pushed = push(&gitea, "owner/app", 1);
    let larder = before(&net, &gitea);
    pushed.pull(&larder, gitea.name()).await;
    assert!(gitea.count(any().signed()) >= 5);
    assert_eq!(gitea.count(any().signed().with_header("authorization")), 0);
}
