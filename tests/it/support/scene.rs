//! The scene that most tests begin with: `docker.io` at `hub.test`, with one image, and a larder before it.
//!
//! ```ignore
//! let scene = Scene::with(|setup| setup.hub(|hub| hub.tag_ttl = TTL));
//! assert_eq!(scene.larder.get(&scene.blob()).await.status, 200);
//!
//! let hub = Hub::unstarted(&[2000]);       // for tests that start larders of their own
//! let larder = hub.setup().cache(|cache| cache.max_size = 4 * MIB).start();
//! ```

use super::larder::{Larder, Setup};
use super::net::FakeNet;
use super::registry::{FakeRegistry, Image};

/// `docker.io`'s address.
pub const HUB: &str = "93.184.216.34";

/// A network with one registry, empty, at `hub.test`.
pub fn hub() -> (FakeNet, FakeRegistry) {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", HUB, &registry);
    (net, registry)
}

/// A larder in front of one registry that has `library/app:latest`.
pub struct Scene<L = Larder> {
    pub net: FakeNet,
    pub registry: FakeRegistry,
    pub larder: L,
    pub image: Image,
}

/// The same, where the test starts its larders itself.
pub type Hub = Scene<()>;

impl Scene {
    pub fn new() -> Scene {
        Scene::with(|setup| setup)
    }

    pub fn with(change: impl FnOnce(Setup) -> Setup) -> Scene {
        Hub::unstarted(&[1000]).start(change)
    }
}

impl Hub {
    /// The image has layers of these sizes.
    pub fn unstarted(layers: &[usize]) -> Hub {
        let (net, registry) = hub();
        let image = registry.push_image("library/app", "latest", layers, 1);
        Scene { net, registry, larder: (), image }
    }

    pub fn start(self, change: impl FnOnce(Setup) -> Setup) -> Scene {
        let larder = change(self.setup()).start();
        Scene { net: self.net, registry: self.registry, larder, image: self.image }
    }
}

impl<L> Scene<L> {
    pub fn setup(&self) -> Setup {
        Setup::new(&self.net)
    }

    /// The path of the image's first layer.
    pub fn blob(&self) -> String {
        format!("/v2/library/app/blobs/{}", self.image.layers[0].digest)
    }

    /// All of the image, as a client pulls it.
    pub async fn pull(&self, larder: &Larder) {
        let blobs = self.image.config.iter().chain(&self.image.layers).map(|blob| format!("blobs/{}", blob.digest));
        for path in std::iter::once("manifests/latest".to_owned()).chain(blobs) {
            assert_eq!(larder.get(&format!("/v2/library/app/{path}")).await.status, 200, "{path}");
        }
    }
}
