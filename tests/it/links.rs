//! Whose bytes are whose: what is in the cache is served to a repository only if that repository has it.

use larder::config::{CredentialConfig, Secret, UpstreamConfig, Visibility};
use larder::oci::{Digest, MediaType};

use crate::support::larder::{Larder, Setup, upstream};
use crate::support::net::FakeNet;
use crate::support::registry::{FakeRegistry, Fault, Image, any, get, head};

/// `docker.io`, public, and `corp.test`, private, behind a password.
struct TwoUpstreams {
    net: FakeNet,
    hub: FakeRegistry,
    corp: FakeRegistry,
    larder: Larder,
}

fn corp() -> UpstreamConfig {
    let credentials = CredentialConfig::password("me", Secret::Inline("secret".into()));
    UpstreamConfig { visibility: Visibility::Private, credentials: vec![credentials], ..upstream("corp.test", "corp.test") }
}

impl TwoUpstreams {
    fn new() -> TwoUpstreams {
        let (net, hub, corp_registry) = (FakeNet::new(), FakeRegistry::new(), FakeRegistry::new());
        net.host("hub.test", "93.184.216.34", &hub);
        net.host("corp.test", "93.184.216.35", &corp_registry);
        corp_registry.require_basic("me", "secret");
        let larder = Setup::new(&net).upstream(corp()).start();
        TwoUpstreams { net, hub, corp: corp_registry, larder }
    }

    async fn status(&self, path: &str) -> u16 {
        self.larder.get(path).await.status
    }

    async fn pull(&self, repository: &str, image: &Image) {
        assert_eq!(self.larder.get(&format!("/v2/{repository}/manifests/latest")).await.bytes(), &image.bytes);
        for layer in image.layers.iter().chain(&image.config) {
            assert_eq!(self.larder.get(&blob(repository, &layer.digest)).await.bytes(), &layer.bytes);
        }
    }

    /// All upstreams are gone.
    fn outage(&self) {
        self.net.down("hub.test");
        self.net.down("corp.test");
    }
}

fn blob(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

fn manifest(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/manifests/{digest}")
}

/// A manifest in `repository:latest` of the hub that lists somebody else's blob.
fn list_foreign(registry: &FakeRegistry, repository: &str, digest: &Digest, size: usize) {
    let body = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","layers":[{{"mediaType":"a/b","digest":"{digest}","size":{size}}}]}}"#,
        MediaType::OCI_MANIFEST
    );
    registry.push_manifest(repository, Some("latest"), MediaType::OCI_MANIFEST, body);
}

/// Also: cve_2024_39897
#[tokio::test]
async fn invariant_14_a_blob_of_another_repository_is_served_only_on_upstream_s_word() {
    let scene = TwoUpstreams::new();
    let image = scene.hub.push_image("library/a", "latest", &[1000, 2000], 1);
    scene.pull("library/a", &image).await;
    scene.hub.forget_requests();
    let (denied, mounted) = (&image.layers[0], &image.layers[1]);
    scene.hub.push_blob("library/b", mounted.bytes.clone());

    for reply in [scene.larder.get(&blob("library/b", &denied.digest)).await, scene.larder.head(&blob("library/b", &denied.digest)).await] {
        assert_eq!(reply.status, 404);
    }
    assert_eq!((scene.hub.count(head().blob()), scene.hub.count(get().blob())), (1, 0), "404 is remembered, and nothing fetched");

    for _ in 0..3 {
        let reply = scene.larder.get(&blob("library/b", &mounted.digest)).await;
        assert_eq!((reply.status, reply.bytes()), (200, &mounted.bytes));
    }
    assert_eq!(
        (scene.hub.count(head().blob().of(mounted.digest)), scene.hub.count(get().blob())),
        (1, 0),
        "asked once, and nothing fetched"
    );
}

#[tokio::test(start_paused = true)]
async fn invariant_14_without_upstream_s_word_there_is_no_answer_and_no_404() {
    let scene = TwoUpstreams::new();
    let image = scene.hub.push_image("library/a", "latest", &[1000], 1);
    scene.pull("library/a", &image).await;
    scene.outage();
    for path in [blob("library/b", &image.layers[0].digest), manifest("library/b", &image.digest)] {
        assert_eq!(scene.status(&path).await, 502, "{path}");
        assert_eq!(scene.larder.head(&path).await.status, 502, "{path}");
    }
}

#[tokio::test]
async fn invariant_14_a_range_and_a_joined_fill_need_the_right_too() {
    let scene = TwoUpstreams::new();
    let image = scene.hub.push_image("library/a", "latest", &[3_000_000], 1);
    let layer = &image.layers[0];
    let latch = crate::support::registry::Latch::new();
    scene.hub.when(get().blob()).then(Fault::HoldAt(1_500_000, latch.clone()));
    let mut client = scene.larder.client().await;
    let mut first = client.open(&blob("library/a", &layer.digest)).await;
    first.read_exactly(1000).await.unwrap();
    let mut other = scene.larder.client().await;
    let reply = other.get(&blob("library/b", &layer.digest)).range("0-99").send().await;
    assert_eq!(reply.status, 404, "the fill belongs to another repository");
    let reply = other.head(&blob("library/b", &layer.digest)).send().await;
    assert_eq!(reply.status, 404);
    latch.open();
    assert_eq!(first.read_to_end().await.unwrap(), layer.bytes[1000..]);
}

/// Also: credential_27
#[tokio::test]
async fn invariant_14_a_private_upstream_s_blob_is_not_to_be_had_by_listing_it() {
    let scene = TwoUpstreams::new();
    let secret = scene.corp.push_image("team/app", "latest", &[5000], 1);
    scene.pull("corp.test/team/app", &secret).await;
    let layer = &secret.layers[0];
    list_foreign(&scene.hub, "evil/app", &layer.digest, layer.bytes.len());
    assert_eq!(scene.status("/v2/evil/app/manifests/latest").await, 200);
    let path = blob("evil/app", &layer.digest);
    assert_eq!((scene.status(&path).await, scene.larder.head(&path).await.status), (404, 404));
    let mut client = scene.larder.client().await;
    assert_eq!(client.get(&path).range("0-10").send().await.status, 404);
    assert_eq!(scene.status(&manifest("evil/app", &secret.digest)).await, 404, "nor its manifest");
    scene.outage();
    assert_eq!(scene.status(&blob("evil/other", &layer.digest)).await, 502);
    let again = scene.larder.get(&blob("corp.test/team/app", &layer.digest)).await;
    assert_eq!(again.bytes(), &layer.bytes, "whose it is, has it");
}

#[tokio::test]
async fn invariant_14_a_listed_blob_that_is_private_elsewhere_is_confirmed_once_also_across_a_restart() {
    let scene = TwoUpstreams::new();
    let base = scene.corp.push_image("team/app", "latest", &[5000], 1);
    scene.pull("corp.test/team/app", &base).await;
    let layer = &base.layers[0];
    list_foreign(&scene.hub, "library/app", &layer.digest, layer.bytes.len());
    scene.hub.push_blob("library/app", layer.bytes.clone());
    assert_eq!(scene.status("/v2/library/app/manifests/latest").await, 200);
    scene.hub.forget_requests();
    let path = blob("library/app", &layer.digest);
    for _ in 0..3 {
        assert_eq!(scene.larder.get(&path).await.bytes(), &layer.bytes);
    }
    assert_eq!((scene.hub.count(head().blob()), scene.hub.requests().len()), (1, 1));
    scene.outage();
    let larder = scene.larder.stop().await.start();
    assert_eq!(larder.get(&path).await.bytes(), &layer.bytes);
}

#[tokio::test]
async fn invariant_14_a_base_layer_pulled_publicly_first_is_served_to_both_in_an_outage() {
    let scene = TwoUpstreams::new();
    let base = scene.hub.push_image("library/base", "latest", &[4000], 1);
    scene.pull("library/base", &base).await;
    let layer = &base.layers[0];
    list_foreign(&scene.corp, "team/app", &layer.digest, layer.bytes.len());
    scene.corp.push_blob("team/app", layer.bytes.clone());
    assert_eq!(scene.status("/v2/corp.test/team/app/manifests/latest").await, 200);
    scene.outage();
    for repository in ["library/base", "corp.test/team/app"] {
        assert_eq!(scene.larder.get(&blob(repository, &layer.digest)).await.bytes(), &layer.bytes, "{repository}");
    }
    let larder = scene.larder.kill().await.start();
    for repository in ["library/base", "corp.test/team/app"] {
        assert_eq!(larder.get(&blob(repository, &layer.digest)).await.bytes(), &layer.bytes, "{repository} after a crash");
    }
}

#[tokio::test]
async fn invariant_14_a_manifest_that_an_index_of_the_repository_lists_is_served_in_an_outage() {
    let scene = TwoUpstreams::new();
    let child = scene.hub.push_image("library/base", "latest", &[4000], 1);
    scene.pull("library/base", &child).await;
    scene.hub.push_manifest("library/multi", None, child.media_type, child.bytes.clone());
    let index = scene.hub.push_index("library/multi", "latest", std::slice::from_ref(&child));
    assert_eq!(scene.larder.get("/v2/library/multi/manifests/latest").await.bytes(), &index.bytes);
    scene.outage();
    for method in [http::Method::HEAD, http::Method::GET] {
        let is_get = method == http::Method::GET;
        let reply = scene.larder.client().await.request(method, &manifest("library/multi", &child.digest)).send().await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some(child.media_type)));
        assert_eq!(reply.bytes(), if is_get { &child.bytes[..] } else { &[] });
    }
    let layer = &child.layers[0];
    assert_eq!(scene.larder.get(&blob("library/multi", &layer.digest)).await.bytes(), &layer.bytes, "and what it lists");
}

#[tokio::test]
async fn invariant_14_a_private_manifest_is_not_to_be_had_by_an_index_that_lists_it() {
    let scene = TwoUpstreams::new();
    let secret = scene.corp.push_image("team/app", "latest", &[5000], 1);
    scene.pull("corp.test/team/app", &secret).await;
    scene.hub.push_index("evil/app", "latest", std::slice::from_ref(&secret));
    assert_eq!(scene.status("/v2/evil/app/manifests/latest").await, 200);
    for path in [manifest("evil/app", &secret.digest), blob("evil/app", &secret.digest), blob("evil/app", &secret.layers[0].digest)] {
        assert_eq!((scene.status(&path).await, scene.larder.head(&path).await.status), (404, 404), "{path}");
    }
}

#[tokio::test]
async fn a_manifest_held_for_another_repository_costs_no_get() {
    let scene = TwoUpstreams::new();
    let image = scene.hub.push_image("library/a", "latest", &[10], 1);
    scene.pull("library/a", &image).await;
    scene.hub.push_manifest("library/b", None, image.media_type, image.bytes.clone());
    scene.hub.forget_requests();
    assert_eq!(scene.larder.get(&manifest("library/b", &image.digest)).await.bytes(), &image.bytes);
    assert_eq!((scene.hub.count(head().manifest()), scene.hub.count(get().manifest())), (1, 0));
    scene.outage();
    assert_eq!(scene.larder.get(&manifest("library/b", &image.digest)).await.bytes(), &image.bytes);
}

#[tokio::test]
async fn invariant_13_each_repository_is_refused_for_itself() {
    let scene = TwoUpstreams::new();
    let image = scene.corp.push_image("team/open", "latest", &[100], 1);
    scene.corp.push_image("team/closed", "latest", &[100], 1);
    scene.pull("corp.test/team/open", &image).await;
    scene.corp.when(any().of("team/closed")).then(Fault::status(403));
    for path in ["/v2/corp.test/team/closed/manifests/latest".to_owned(), manifest("corp.test/team/closed", &image.digest)] {
        assert_eq!(scene.status(&path).await, 403, "{path}");
    }
    assert_eq!(scene.status(&blob("corp.test/team/closed", &image.layers[0].digest)).await, 403);
    // However a spelling looks, what counts is the repository it means.
    assert_eq!(scene.status("/v2/team/closed/manifests/latest?ns=corp.test").await, 403);
    assert_eq!(scene.status("/corp.test/v2/team/closed/manifests/latest").await, 403);
}

#[tokio::test]
async fn clients_23_a_manifest_asked_for_as_a_blob_is_200_or_404() {
    let scene = TwoUpstreams::new();
    let image = scene.hub.push_image("library/a", "latest", &[10], 1);
    scene.pull("library/a", &image).await;
    assert_eq!(scene.larder.head(&blob("library/a", &image.digest)).await.status, 404);
    let layer = &image.layers[0];
    let (head, get) =
        (scene.larder.head(&blob("library/a", &layer.digest)).await, scene.larder.get(&blob("library/a", &layer.digest)).await);
    for name in ["content-length", "content-type", "docker-content-digest", "accept-ranges"] {
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    assert_eq!((head.status, head.bytes().len(), head.header("content-length")), (200, 0, Some("10")));
}
