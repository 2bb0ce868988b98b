//! larder before the registries of the field, each a strict double: what upstreams.md A10 says must hold, by its numbers.
//! A double fails its test when larder sends what the real registry would refuse, or what no honest client sends.

mod limits;
mod lists;
mod manifests;
mod pace;
mod stores;
mod strict;
mod tokens;

use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::{Double, docker_hub, ghcr, gitea, gitlab, harbor, nexus, quay, registry_k8s_io};
use crate::support::registry::{FakeRegistry, Image, Manners, any};

/// An image for two platforms, tagged `1`.
struct Pushed {
    repository: String,
    index: Image,
    images: [Image; 2],
}

fn push(registry: &FakeRegistry, repository: &str, seed: u64) -> Pushed {
    let images = [
        registry.push_image(repository, "1-amd64", &[200_000, 300], seed * 10),
        registry.push_image(repository, "1-arm64", &[1000], seed * 10 + 1),
    ];
    let index = registry.push_index(repository, "1", &images);
    Pushed { repository: repository.into(), index, images }
}

impl Pushed {
    fn tag(&self, upstream: &str) -> String {
        format!("/v2/{upstream}/{}/manifests/1", self.repository)
    }

    fn manifest(&self, upstream: &str, image: &Image) -> String {
        format!("/v2/{upstream}/{}/manifests/{}", self.repository, image.digest)
    }

    fn layer(&self, upstream: &str) -> String {
        format!("/v2/{upstream}/{}/blobs/{}", self.repository, self.images[0].layers[0].digest)
    }

    /// As containerd does: the tag by HEAD, then the index, its manifest, config and layers by digest. All must be right.
    async fn pull(&self, larder: &Larder, upstream: &str) {
        let head = larder.head(&self.tag(upstream)).await;
        let digest = self.index.digest.to_string();
        assert_eq!((head.status, head.header("docker-content-digest")), (200, Some(digest.as_str())), "{upstream}");
        for image in [&self.index, &self.images[0]] {
            let manifest = larder.get(&self.manifest(upstream, image)).await;
            assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{upstream}");
            assert_eq!(manifest.header("content-type"), Some(image.media_type));
        }
        for blob in self.images[0].config.iter().chain(&self.images[0].layers) {
            let reply = larder.get(&format!("/v2/{upstream}/{}/blobs/{}", self.repository, blob.digest)).await;
            assert!(reply.status == 200 && *reply.bytes() == blob.bytes, "{upstream}: {} of {} bytes", reply.status, blob.bytes.len());
        }
    }
}

/// A larder before one double, which nobody signs in to.
fn before<M: Manners + 'static>(net: &FakeNet, double: &Double<M>) -> Larder {
    Setup::new(net).upstream(double.upstream()).start()
}

/// A cold pull is right, and a warm one asks nobody.
async fn cold_and_warm<M: Manners + 'static>(larder: &Larder, double: &Double<M>, pushed: &Pushed) {
    pushed.pull(larder, double.name()).await;
    assert!(double.count(any()) > 0);
    double.forget_requests();
    pushed.pull(larder, double.name()).await;
    assert_eq!(double.count(any()), 0, "{:#?}", double.requests());
    double.assert_clean();
}

#[tokio::test]
async fn docker_hub_is_pulled_from() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/app", 1);
    cold_and_warm(&before(&net, &hub), &hub, &pushed).await;
    assert_eq!(hub.counted(), 2);
}

#[tokio::test]
async fn docker_hub_is_pulled_from_with_an_account() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "acme/private", 1);
    hub.script(|hub| {
        hub.tokens.account("acme-robot", "dckr_pat_x");
        hub.tokens.private("acme/private", &["acme-robot"]);
    });
    let larder = Setup::new(&net).upstream(hub.upstream_as("acme-robot", "dckr_pat_x")).start();
    cold_and_warm(&larder, &hub, &pushed).await;
}

#[tokio::test]
async fn ghcr_is_pulled_from() {
    let net = FakeNet::new();
    let ghcr = ghcr(&net);
    let pushed = push(&ghcr, "org/app", 1);
    cold_and_warm(&before(&net, &ghcr), &ghcr, &pushed).await;
}

#[tokio::test]
async fn ghcr_is_pulled_from_with_an_access_token_and_any_user() {
    let net = FakeNet::new();
    let ghcr = ghcr(&net);
    let pushed = push(&ghcr, "org/private", 1);
    ghcr.script(|ghcr| {
        ghcr.tokens.account("octocat", "ghp_x");
        ghcr.tokens.private("org/private", &["octocat"]);
    });
    let larder = Setup::new(&net).upstream(ghcr.upstream_as("whoever", "ghp_x")).start();
    cold_and_warm(&larder, &ghcr, &pushed).await;
}

#[tokio::test]
async fn quay_is_pulled_from() {
    let net = FakeNet::new();
    let quay = quay(&net);
    let pushed = push(&quay, "org/app", 1);
    cold_and_warm(&before(&net, &quay), &quay, &pushed).await;
}

#[tokio::test]
async fn quay_is_pulled_from_with_a_robot() {
    let net = FakeNet::new();
    let quay = quay(&net);
    let pushed = push(&quay, "org/private", 1);
    quay.script(|quay| {
        quay.tokens.account("org+robot", "secret");
        quay.tokens.private("org/private", &["org+robot"]);
    });
    let larder = Setup::new(&net).upstream(quay.upstream_as("org+robot", "secret")).start();
    cold_and_warm(&larder, &quay, &pushed).await;
}

#[tokio::test]
async fn gitlab_is_pulled_from() {
    let net = FakeNet::new();
    let gitlab = gitlab(&net);
    let pushed = push(&gitlab, "group/project/app", 1);
    cold_and_warm(&before(&net, &gitlab), &gitlab, &pushed).await;
}

#[tokio::test]
async fn gitlab_is_pulled_from_with_a_deploy_token() {
    let net = FakeNet::new();
    let gitlab = gitlab(&net);
    let pushed = push(&gitlab, "group/project/app", 1);
    gitlab.script(|gitlab| {
        gitlab.tokens.account("gitlab+deploy-token-1", "gldt-x");
        gitlab.tokens.private("group/project/app", &["gitlab+deploy-token-1"]);
    });
    let larder = Setup::new(&net).upstream(gitlab.upstream_as("gitlab+deploy-token-1", "gldt-x")).start();
    cold_and_warm(&larder, &gitlab, &pushed).await;
}

#[tokio::test]
async fn harbor_is_pulled_from() {
    let net = FakeNet::new();
    let harbor = harbor(&net);
    let pushed = push(&harbor, "public/app", 1);
    cold_and_warm(&before(&net, &harbor), &harbor, &pushed).await;
}

#[tokio::test]
async fn harbor_is_pulled_from_with_a_robot() {
    let net = FakeNet::new();
    let harbor = harbor(&net);
    let pushed = push(&harbor, "team/app", 1);
    harbor.script(|harbor| {
        harbor.tokens.account("robot$team+ci", "secret");
        harbor.tokens.private("team/app", &["robot$team+ci"]);
    });
    let larder = Setup::new(&net).upstream(harbor.upstream_as("robot$team+ci", "secret")).start();
    cold_and_warm(&larder, &harbor, &pushed).await;
}

#[tokio::test]
async fn nexus_is_pulled_from_below_its_path() {
    let net = FakeNet::new();
    let nexus = nexus(&net);
    let pushed = push(&nexus, "team/app", 1);
    cold_and_warm(&before(&net, &nexus), &nexus, &pushed).await;
}

#[tokio::test]
async fn nexus_is_pulled_from_with_a_user() {
    let net = FakeNet::new();
    let nexus = nexus(&net);
    let pushed = push(&nexus, "team/app", 1);
    nexus.script(|nexus| {
        nexus.tokens.account("larder", "secret");
        nexus.tokens.private("team/app", &["larder"]);
    });
    let larder = Setup::new(&net).upstream(nexus.upstream_as("larder", "secret")).start();
    cold_and_warm(&larder, &nexus, &pushed).await;
}

#[tokio::test]
async fn gitea_is_pulled_from() {
    for private in [false, true] {
        let net = FakeNet::new();
        let gitea = gitea(&net);
        let pushed = push(&gitea, "owner/app", 1);
        gitea.script(|gitea| gitea.tokens.account("owner", "pat"));
        if private {
            gitea.script(|gitea| gitea.tokens.private("owner/app", &["owner"]));
        }
        let upstream = if private { gitea.upstream_as("owner", "pat") } else { gitea.upstream() };
        cold_and_warm(&Setup::new(&net).upstream(upstream).start(), &gitea, &pushed).await;
    }
}

#[tokio::test]
async fn registry_k8s_io_is_pulled_from() {
    let net = FakeNet::new();
    let kubernetes = registry_k8s_io(&net);
    let pushed = push(&kubernetes, "coredns/coredns", 1);
    cold_and_warm(&before(&net, &kubernetes), &kubernetes, &pushed).await;
    let short = push(&kubernetes, "pause", 2);
    cold_and_warm(&before(&net, &kubernetes), &kubernetes, &short).await;
}
