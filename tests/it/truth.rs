//! The files are the truth: what is under `blobs/` and `refs/` is all that larder needs to know, and nothing else counts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};

use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{FakeRegistry, Fault, Image, get, head};

const MIB: usize = 1 << 20;

fn hub() -> (FakeNet, FakeRegistry) {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", "93.184.216.34", &registry);
    (net, registry)
}

async fn pull(larder: &Larder, repository: &str, image: &Image) {
    let manifest = larder.get(&format!("/v2/{repository}/manifests/latest")).await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{repository}");
    for blob in image.layers.iter().chain(&image.config) {
        let reply = larder.get(&format!("/v2/{repository}/blobs/{}", blob.digest)).await;
        assert_eq!((reply.status, reply.bytes() == &blob.bytes), (200, true), "{repository}");
    }
}

/// Returns once every download has been committed.
async fn settled(larder: &Larder) {
    for _ in 0..1000 {
        if larder.metric("larder_fills_in_flight") == 0.0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("downloads go on and on");
}

#[tokio::test]
async fn invariant_04_a_file_s_presence_is_never_a_lock() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[300_000], 1);
    let setup = Setup::new(&net);
    let cache = setup.config.cache.path.clone();
    let digest = image.layers[0].digest;
    let leave = |path: PathBuf, text: &str| {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    leave(cache.join("lock"), &format!(r#"{{"pid":{},"boot":"","clean":false}}"#, std::process::id()));
    leave(cache.join("partial/docker.io").join(digest.to_string().replace(':', "-")), "left behind");
    leave(cache.join("refs/docker.io/library/app/_tags/latest~"), "left behind");
    pull(&setup.start(), "library/app", &image).await;
}

/// A disk that counts what would change a blob in place.
struct Watching {
    writes: Arc<AtomicUsize>,
    /// Whether a download that begins panics.
    panics: bool,
}

impl Watching {
    fn opened_for_writing(&self, path: &Path) {
        if path.components().any(|part| part.as_os_str() == "blobs") {
            self.writes.fetch_add(1, Ordering::SeqCst);
        }
    }
}

impl Disk for Watching {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        assert!(!self.panics || !path.components().any(|part| part.as_os_str() == "partial"), "on purpose");
        self.opened_for_writing(path);
        SystemDisk.create(path)
    }
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        self.opened_for_writing(path);
        SystemDisk.reopen(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }
    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_dir(path)
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        SystemDisk.list(directory)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        SystemDisk.stat(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        SystemDisk.free_space(path)
    }
}

#[tokio::test]
async fn invariant_02_nothing_under_blobs_is_ever_opened_for_writing() {
    let (net, registry) = hub();
    let writes = Arc::new(AtomicUsize::new(0));
    let larder = Setup::new(&net)
        .disk(Arc::new(Watching { writes: Arc::clone(&writes), panics: false }))
        .cache(|cache| cache.max_size = 3 * MIB as u64)
        .start();
    for seed in 0..5 {
        let name = format!("library/app{seed}");
        let image = registry.push_image(&name, "latest", &[900_000, 100], seed);
        pull(&larder, &name, &image).await;
        pull(&larder, &name, &image).await;
    }
    settled(&larder).await;
    let larder = larder.kill().await.start();
    assert!(!larder.files("blobs").is_empty());
    assert_eq!(writes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn invariant_01_what_stands_under_blobs_hashes_to_its_name() {
    let (net, registry) = hub();
    let larder = Larder::start(&net);
    let image = registry.push_image("library/app", "latest", &[2 * MIB, 70_000, 0], 1);
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let files = larder.files("blobs/sha256");
    // Three layers, the configuration, the manifest.
    assert_eq!(files.len(), 5);
    for file in files {
        let digest = larder::oci::Digest::of(larder::oci::Algorithm::Sha256, &std::fs::read(&file).unwrap());
        assert_eq!(file.file_name().unwrap().to_string_lossy(), digest.hex());
    }
}

/// Also: upstream_fault_16
#[tokio::test]
async fn starting_asks_nobody() {
    let (net, _registry) = hub();
    let _larder = Larder::start(&net);
    assert_eq!((net.resolved(), net.dialled()), (Vec::new(), Vec::new()));
}

#[tokio::test]
async fn invariant_08_a_download_that_panics_leaves_nobody_waiting() {
    let (net, registry) = hub();
    let digest = registry.push_blob("library/app", vec![7; 3 * MIB]);
    let larder = Setup::new(&net).disk(Arc::new(Watching { writes: Arc::default(), panics: true })).start();
    for panics in 1..3_u64 {
        let path = format!("/v2/library/app/blobs/{digest}");
        let reply = tokio::time::timeout(std::time::Duration::from_secs(10), larder.get(&path)).await;
        assert_eq!(reply.expect("an answer at once").status, 502);
        assert_eq!(larder.app.metrics.task_panics.get(), panics);
        assert_eq!(larder.app.metrics.fills_in_flight.get(), 0, "and its turn is free again");
    }
}

#[tokio::test]
async fn a_blob_that_an_upstream_calls_a_manifest_stays_a_blob() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[5 * MIB], 1);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let layer = image.layers[0].digest;
    registry.push_image("library/app", "lie", &[100], 2);
    registry.when(head().manifest()).then(Fault::Header("docker-content-digest", layer.to_string()));
    larder.get("/v2/library/app/manifests/lie").await;
    assert!(larder.files("quarantine").is_empty());
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.count(get().blob().of(layer)), 1);
}
