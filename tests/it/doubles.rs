//! The doubles do what they claim: honest where nothing is scripted, and each fault exactly as told.

mod auth;
mod faults;
mod honest;
mod net;
mod redirects;

use larder::oci::Digest;

use crate::support::client::Client;
use crate::support::registry::{FakeRegistry, Image};

const REPOSITORY: &str = "library/alpine";
const LAYER_BYTES: usize = 300_000;

/// A registry with one image, and its image.
fn stocked() -> (FakeRegistry, Image) {
    let registry = FakeRegistry::new();
    let image = registry.push_image(REPOSITORY, "3.20", &[LAYER_BYTES, 10], 1);
    (registry, image)
}

async fn client(registry: &FakeRegistry) -> Client {
    Client::over(registry.connect()).await
}

fn blob_path(digest: &Digest) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}")
}

fn manifest_path(reference: &str) -> String {
    format!("/v2/{REPOSITORY}/manifests/{reference}")
}
