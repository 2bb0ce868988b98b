//! What only the real process shows: `kill -9` under load, memory under many clients. `tests/slow/run` asks for the full
//! numbers by environment; here they are small.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder::oci::{Algorithm, Digest, Hasher};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::support::client::Client;
use crate::support::daemon::Daemon;
use crate::support::registry::{FakeRegistry, Fault, Latch, get};

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

/// Also: d5
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_or_wrong_after_kill_9_under_load() {
    let rounds = setting("LARDER_KILL_ROUNDS", 5);
    let mut rng = fastrand::Rng::with_seed(setting("LARDER_KILL_SEED", 11));
    let registry = FakeRegistry::new();
    let upstream = registry.listen_tcp().await;
    // Slow enough to be killed in the middle.
    registry.when(get().blob()).then(Fault::Drip { bytes: 256 * 1024, every: Duration::from_millis(8) });
    let directory = tempfile::tempdir().expect("a directory");
    let mut continued = 0;
    for round in 0..rounds {
        // New content each round, beside what the rounds before have left.
        let repository = format!("library/app{round}");
        let image = registry.push_image(&repository, "latest", &[3 * MIB as usize, 2 * MIB as usize, 300_000, 5 * MIB as usize], round);
        let survivors = committed(directory.path());
        let partials = std::fs::read_dir(directory.path().join("cache/partial/docker.io")).map_or(0, Iterator::count);
        let daemon = Daemon::start(directory.path(), upstream).await;
        assert!(daemon.took < Duration::from_secs(2), "round {round}: listening after {:?}", daemon.took);
        if round > 0 {
            continued += check_survivors(&daemon, &registry, round - 1, &survivors, partials).await;
        }
        let mut clients = JoinSet::new();
        for client in 0..6 {
            let blobs: Vec<_> = image.layers.iter().map(|layer| layer.digest).collect();
            let (address, repository, offset) = (daemon.address, repository.clone(), client % blobs.len());
            clients.spawn(async move {
                let stream = tokio::net::TcpStream::connect(address).await?;
                let mut client = Client::over(stream).await;
                let _ = client.get(&format!("/v2/{repository}/manifests/latest")).try_send().await;
                for digest in blobs.iter().cycle().skip(offset).take(blobs.len()) {
                    let Ok(reply) = client.get(&path(&repository, digest)).try_send().await else { break };
                    if let Ok(body) = reply.body {
                        assert!(reply.status != 200 || Digest::of(Algorithm::Sha256, &body) == *digest, "a complete wrong body");
                    }
                }
                std::io::Result::Ok(())
            });
        }
        // The moment of the kill is the point of the test, not a wait for something.
        tokio::time::sleep(Duration::from_millis(rng.u64(20..250))).await;
        daemon.kill();
        clients.join_all().await;
    }
    assert!(continued > 0 || rounds < 3, "no partial download was ever continued");
}

/// Every committed blob of the last round is still served, without a word to upstream; what was interrupted goes on.
async fn check_survivors(daemon: &Daemon, registry: &FakeRegistry, round: u64, survivors: &BTreeSet<Digest>, partials: usize) -> usize {
    let repository = format!("library/app{round}");
    let image = registry.push_image(&repository, "latest", &[3 * MIB as usize, 2 * MIB as usize, 300_000, 5 * MIB as usize], round);
    registry.forget_requests();
    let mut client = daemon.client().await;
    for layer in image.layers.iter().filter(|layer| survivors.contains(&layer.digest)) {
        let before = registry.count(get().blob());
        let reply = client.get(&path(&repository, &layer.digest)).send().await;
        assert_eq!((reply.status, reply.bytes() == &layer.bytes), (200, true), "a committed blob");
        assert_eq!(registry.count(get().blob()), before, "a committed blob was fetched again");
    }
    for layer in &image.layers {
        let reply = client.get(&path(&repository, &layer.digest)).send().await;
        assert_eq!((reply.status, reply.bytes() == &layer.bytes), (200, true), "a blob after a restart");
    }
    let resumed = registry.seen(get().blob().with_header("range")).len();
    assert!(resumed <= partials, "{resumed} resumed of {partials} partials");
    resumed
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
