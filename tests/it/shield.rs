//! What larder does when an upstream limits it, refuses its login or is gone: it asks no more than it must, and serves what it has.

mod budget;
mod conventions;
mod faults;
mod fleet;
mod hidden;
mod hosts;
mod later;
mod limits;
mod logins;
mod outage;
mod questions;
mod verdicts;
mod visibility;

use std::time::Duration;

use larder::config::{CredentialConfig, CredentialKind, Credentials, Secret};

use crate::support::client::Reply;
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{FakeRegistry, Image};

const LATEST: &str = "/v2/library/app/manifests/latest";
const OTHER: &str = "/v2/library/other/manifests/latest";
const HOUR: Duration = Duration::from_secs(3600);

/// One registry at `hub.test` that has `library/app` and `library/other`.
struct Scene {
    net: FakeNet,
    registry: FakeRegistry,
    image: Image,
}

impl Scene {
    fn new() -> Scene {
        let (net, registry) = (FakeNet::new(), FakeRegistry::new());
        net.host("hub.test", "93.184.216.34", &registry);
        let image = registry.push_image("library/app", "latest", &[1000], 1);
        registry.push_image("library/other", "latest", &[1000], 2);
        Scene { net, registry, image }
    }

    fn setup(&self) -> Setup {
        Setup::new(&self.net)
    }

    fn blob(&self) -> String {
        format!("/v2/library/app/blobs/{}", self.image.layers[0].digest)
    }

    /// All of the image, as a client pulls it.
    async fn pull(&self, larder: &Larder) {
        let blobs = self.image.config.iter().chain(&self.image.layers).map(|blob| format!("/v2/library/app/blobs/{}", blob.digest));
        for path in std::iter::once(LATEST.to_owned()).chain(blobs) {
            assert_eq!(larder.get(&path).await.status, 200, "{path}");
        }
    }
}

fn credential(name: &str, user: &str, password: &str) -> CredentialConfig {
    let credentials = Credentials { username: user.into(), password: Secret::Inline(password.into()) };
    CredentialConfig { name: name.into(), repositories: Vec::new(), kind: CredentialKind::Password(credentials) }
}

/// Status and `Cache-Status`, or the error's code.
fn line(reply: &Reply) -> String {
    let told = reply.header("cache-status").map(ToOwned::to_owned).filter(|_| reply.status < 400);
    format!("{} {}", reply.status, told.or_else(|| reply.error_code()).unwrap_or_default())
}

fn retry_after(reply: &Reply) -> u64 {
    reply.header("retry-after").expect("a Retry-After").parse().expect("seconds")
}
