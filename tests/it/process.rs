//! What only the real process shows: `kill -9` under load, memory under many clients. `tests/slow/run` asks for the full
//! numbers by environment; here they are small.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::Method;
use larder::oci::{Algorithm, Digest, Hasher};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::store::du;
use crate::support::client::Client;
use crate::support::daemon::Daemon;
use crate::support::registry::{Blob, FakeRegistry, Fault, Image, Latch, get};
use rustix::process::Signal;

/// A number that `tests/slow/run` raises.
fn setting(name: &str, small: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(small)
}

const MIB: u64 = 1 << 20;

/// The blobs that are committed: what stands under `blobs/`.
fn committed(directory: &Path) -> BTreeSet<Digest> {
    let root = directory.join("cache/blobs/sha256");
    let shelves = std::fs::read_dir(root).into_iter().flatten().flatten();
    let files = shelves.flat_map(|shelf| std::fs::read_dir(shelf.path()).into_iter().flatten().flatten());
    files.map(|file| Digest::from_parts("sha256", &file.file_name().to_string_lossy()).expect("a digest")).collect()
}

fn path(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// What there is to pull.
struct Upstream {
    registry: FakeRegistry,
    address: SocketAddr,
    images: Vec<(String, Vec<Image>)>,
}

const IMAGES: u64 = 10;
/// Of ten repositories with two images each, of which three fit.
const CACHE_MIB: u64 = 4;

impl Upstream {
    async fn new() -> Upstream {
        let registry = FakeRegistry::new();
        let address = registry.listen_tcp().await;
        // Slow enough to be killed in the middle.
        registry.when(get().blob()).then(Fault::Drip { bytes: 64 * 1024, every: Duration::from_millis(2) });
        let images = (0..IMAGES).map(|n| {
            let name = format!("library/app{n}");
            let sizes = [(500 + 37 * n as usize) * 1024, 200 * 1024, 40 * 1024];
            let images = (0..2).map(|m| registry.push_image(&name, "latest", &sizes, 2 * n + m)).collect();
            (name, images)
        });
        let images = images.collect();
        Upstream { registry, address, images }
    }

    fn blobs(&self) -> impl Iterator<Item = (&str, &Blob)> {
        self.images.iter().flat_map(|(name, images)| {
            images.iter().flat_map(move |image| image.layers.iter().chain(&image.config).map(move |blob| (name.as_str(), blob)))
        })
    }

    /// A tag of one of the repositories names the other of its images.
    fn move_a_tag(&self, rng: &mut fastrand::Rng) {
        let (name, images) = &self.images[rng.usize(..self.images.len())];
        self.registry.move_tag(name, "latest", images[rng.usize(..2)].digest);
    }

    /// One client that pulls one image after another, until the daemon dies under it. Counts what came whole.
    async fn pull_on(self: Arc<Upstream>, address: SocketAddr, mut rng: fastrand::Rng) -> Option<usize> {
        let mut whole = 0;
        let mut client = Client::over(TcpStream::connect(address).await.ok()?).await;
        loop {
            // Some are asked for more often than others.
            let (name, images) = &self.images[rng.usize(..self.images.len()).min(rng.usize(..self.images.len()))];
            let Ok(manifest) = client.get(&format!("/v2/{name}/manifests/latest")).try_send().await else { return Some(whole) };
            let Ok(bytes) = manifest.body else { return Some(whole) };
            let image = images.iter().find(|image| image.bytes == bytes);
            let image = image.unwrap_or_else(|| panic!("{} and wrong bytes of a manifest of {name}", manifest.status));
            for blob in image.layers.iter().chain(&image.config) {
                let ask = client.get(&path(name, &blob.digest));
                let range = rng.u8(..5) == 0;
                let Ok(reply) = if range { ask.range("1000-1999") } else { ask }.try_send().await else { return Some(whole) };
                let Ok(bytes) = reply.body else { return Some(whole) };
                let expected = if reply.status == 206 { blob.bytes.get(1000..2000) } else { Some(&blob.bytes[..]) };
                assert!([200, 206, 416].contains(&reply.status), "{}", reply.status);
                assert!(reply.status == 416 || expected == Some(&bytes[..]), "a complete wrong body, status {}", reply.status);
                whole += 1;
            }
        }
    }
}

/// Also: disk_fault_16
#[tokio::test(flavor = "multi_thread")]
async fn disk_fault_05_nothing_is_lost_or_wrong_after_kill_9_under_pulls_and_evictions() {
    let rounds = setting("LARDER_KILL_ROUNDS", 25);
    let seed = setting("LARDER_KILL_SEED", 11);
    let mut rng = fastrand::Rng::with_seed(seed);
    let upstream = Arc::new(Upstream::new().await);
    let directory = tempfile::tempdir().expect("a directory");
    let settings = format!("max_size: {CACHE_MIB}MiB");
    let (begun, mut tally) = (Instant::now(), Tally::default());
    for round in 0..rounds {
        let held = du(&directory.path().join("cache"));
        assert!(held <= CACHE_MIB * MIB, "round {round}: {held} bytes");
        let survivors = committed(directory.path());
        let daemon = Daemon::start_with(directory.path(), upstream.address, &settings, "1s").await;
        let ready = Duration::from_millis(setting("LARDER_READY_MS", 5000));
        assert!(daemon.took < ready, "round {round}: listening after {:?}", daemon.took);
        tally.slowest = tally.slowest.max(daemon.took);
        check_accounts(&daemon, directory.path(), round).await;
        check_survivors(&daemon, &upstream, directory.path(), &survivors, round).await;
        tally.survivors += survivors.len();
        let clients: Vec<_> = (0..6).map(|_| tokio::spawn(Arc::clone(&upstream).pull_on(daemon.address, rng.fork()))).collect();
        // The moment of the kill is the point of the test, not a wait for something.
        let pause = |rng: &mut fastrand::Rng| tokio::time::sleep(Duration::from_millis(rng.u64(10..150)));
        pause(&mut rng).await;
        upstream.move_a_tag(&mut rng);
        match round % 5 {
            1 => {
                let purged = format!("/v1/purge?docker.io/library/app{}", rng.u64(..IMAGES));
                assert!(daemon.control(directory.path(), Method::POST, &purged).await["done"].is_object(), "round {round}");
            }
            3 => {
                let report = daemon.control(directory.path(), Method::POST, "/v1/verify?repair=false").await;
                let report = &report["done"]["verified"];
                assert!(report["damaged"] == 0 && report["unreadable"] == 0, "round {round}: {report}");
            }
            _ => {}
        }
        pause(&mut rng).await;
        tally.evicted += daemon.metric("larder_cache_evictions_total{reason=\"size\"}").await;
        daemon.kill();
        for client in clients {
            tally.whole += client.await.expect("no wrong bytes").unwrap_or_default();
        }
    }
    let seen = upstream.registry.seen(get().blob().with_header("range")).len();
    let _ = writeln!(std::io::stderr(), "seed {seed}: {rounds} kills in {:?}: {tally:?}, {seen} resumed", begun.elapsed());
    assert!(tally.evicted > rounds as f64 && tally.survivors > 0 && tally.whole > 0, "{tally:?}");
    assert!(seen > 0 || rounds < 20, "no partial download was ever continued");
}

/// What all rounds saw.
#[derive(Debug, Default)]
struct Tally {
    /// Blobs that were committed when the kill came, each served again without a GET.
    survivors: usize,
    evicted: f64,
    /// Bodies that came whole while the kill was on its way.
    whole: usize,
    slowest: Duration,
}

/// The gauge and `stats` say what a walk says, as soon as all is counted.
async fn check_accounts(daemon: &Daemon, directory: &Path, round: u64) {
    let patience = Instant::now() + Duration::from_secs(15);
    loop {
        let walked = du(&directory.join("cache")) as f64;
        let gauge = daemon.metric("larder_cache_size_bytes").await;
        let stats = daemon.control(directory, Method::GET, "/v1/stats").await;
        let held = stats["done"]["stats"]["held"]["bytes"].as_f64().unwrap_or_else(|| panic!("no bytes in {stats}"));
        if (gauge - walked).abs() <= walked / 100.0 && (held - walked).abs() <= walked / 100.0 {
            return;
        }
        assert!(Instant::now() < patience, "round {round}: gauge {gauge}, stats {held}, on disk {walked}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Every blob that was committed is served, without a GET of a blob upstream.
async fn check_survivors(daemon: &Daemon, upstream: &Upstream, directory: &Path, survivors: &BTreeSet<Digest>, round: u64) {
    assert_eq!(&committed(directory), survivors, "round {round}: lost by the start");
    let before = upstream.registry.count(get().blob());
    let mut client = daemon.client().await;
    for (name, blob) in upstream.blobs().filter(|(_, blob)| survivors.contains(&blob.digest)) {
        let reply = client.get(&path(name, &blob.digest)).send().await;
        assert!(reply.status == 200 && reply.bytes() == &blob.bytes, "round {round}: {} for a committed blob", reply.status);
    }
    for (name, image) in upstream.images.iter().flat_map(|(name, images)| images.iter().map(move |image| (name, image))) {
        if survivors.contains(&image.digest) {
            let reply = client.get(&format!("/v2/{name}/manifests/{}", image.digest)).send().await;
            assert!(reply.status == 200 && reply.bytes() == &image.bytes, "round {round}: {} for a manifest", reply.status);
        }
    }
    assert_eq!(upstream.registry.count(get().blob()), before, "round {round}: a committed blob was fetched again");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_signal_but_those_that_mean_it_ends_the_daemon_without_a_drain() {
    let registry = FakeRegistry::new();
    let upstream = registry.listen_tcp().await;
    let directory = tempfile::tempdir().expect("a directory");
    for stop in [Signal::TERM, Signal::INT] {
        let daemon = Daemon::start(directory.path(), upstream).await;
        for signal in [Signal::HUP, Signal::USR1, Signal::USR2, Signal::XFSZ, Signal::PIPE, Signal::HUP] {
            daemon.signal(signal);
            assert_eq!(daemon.client().await.get("/v2/").send().await.status, 200, "after {signal:?}");
        }
        daemon.signal(stop);
        let status = daemon.ended().await;
        assert_eq!(status.code(), Some(0), "{stop:?}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_of_one_cold_blob_cost_one_upstream_get_and_flat_memory() {
    let clients = setting("LARDER_CLIENTS", 64);
    let size = setting("LARDER_BLOB_MIB", 24) * MIB;
    let registry = FakeRegistry::new();
    let upstream = registry.listen_tcp().await;
    let image = registry.push_image("library/big", "latest", &[usize::try_from(size).expect("a size")], 3);
    let layer = image.layers[0].clone();
    let half = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(size / 2, half.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Arc::new(Daemon::start(directory.path(), upstream).await);
    daemon.client().await.get("/v2/library/big/manifests/latest").send().await;

    // One reads a KiB, then nothing until the others have everything, then on.
    let mut slow = daemon.client().await.open(&path("library/big", &layer.digest)).await;
    slow.read_exactly(1024).await.expect("the first KiB");
    let began = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for _ in 0..clients {
        let (daemon, began, digest) = (Arc::clone(&daemon), Arc::clone(&began), layer.digest);
        readers.spawn(async move {
            let mut body = daemon.client().await.open(&path("library/big", &digest)).await;
            let mut hasher = Hasher::new(Algorithm::Sha256);
            let mut left = size;
            while left > 0 {
                let chunk = body.read_exactly(usize::try_from(left.min(65_536)).expect("small")).await.expect("the next bytes");
                if left == size {
                    began.fetch_add(1, Ordering::SeqCst);
                }
                left -= chunk.len() as u64;
                hasher.update(&chunk);
            }
            assert_eq!(hasher.finish(), digest);
        });
    }
    // Everybody has begun to read while upstream has sent but half.
    let patience = Instant::now() + Duration::from_secs(60);
    while began.load(Ordering::SeqCst) < clients {
        assert!(Instant::now() < patience, "{} of {clients} clients have begun", began.load(Ordering::SeqCst));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    half.open();
    readers.join_all().await;
    slow.read_exactly(1024).await.expect("the slow client is served on");
    assert_eq!(registry.count(get().blob().of(layer.digest)), 1);
    let (peak, bound) = (daemon.peak_memory(), 64 * MIB + clients * 128 * 1024);
    let _ = writeln!(std::io::stderr(), "peak memory {} MiB, bound {} MiB", peak / MIB, bound / MIB);
    assert!(peak <= bound, "peak memory {} MiB, bound {} MiB", peak / MIB, bound / MIB);
}
