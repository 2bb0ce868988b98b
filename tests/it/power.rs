//! Power that fails at any moment of a life of pulls, evictions, moved tags, purges and restarts, on a disk that then has
//! what was synced and any part of the rest. `LARDER_POWER_SEEDS` asks for more lives, `LARDER_POWER_SEED` for a certain one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder::config::VerifyOnRead;
use larder::gate::Gate;
use larder::oci::{Algorithm, Digest};
use larder::store::disk::Disk;
use larder::store::{Selected, What, Wildcard};
use serde_json::Value;

use crate::fills::{hub, until};
use crate::support::larder::{Larder, Setup};
use crate::support::log::listen;
use crate::support::net::FakeNet;
use crate::support::power::{Order, PowerDisk};
use crate::support::registry::{FakeRegistry, Fault, Image, get};

const KIB: usize = 1024;
const REPOSITORIES: u64 = 5;
const STEPS: usize = 14;
const COUNTED: [&str; 4] = ["blobs", "partial", "quarantine", "refs"];

/// A life, up to now.
struct Life {
    _net: FakeNet,
    registry: FakeRegistry,
    /// What each repository's tag may name.
    images: Vec<(String, Vec<Image>)>,
    rng: fastrand::Rng,
    seed: u64,
    disk: PowerDisk,
    /// What nobody may lose: blobs, tags and manifests' records that were there when nothing was under way, by inode.
    acknowledged: BTreeMap<PathBuf, usize>,
}

impl Life {
    fn new(seed: u64) -> (Life, Setup) {
        let (net, registry) = hub();
        let images = (0..REPOSITORIES).map(|n| {
            let name = format!("library/app{n}");
            // The first layer is everybody's.
            let sizes = |m: u64| [40 * KIB, (5 + 7 * n + m) as usize * KIB, 700 * (m as usize + 1)];
            let images = (0..2).map(|m| registry.push_image(&name, "latest", &sizes(m), 1)).collect();
            (name, images)
        });
        let images = images.collect();
        let mut rng = fastrand::Rng::with_seed(seed);
        let verify = [VerifyOnRead::Never, VerifyOnRead::AfterUncleanStop][rng.usize(..2)];
        let mut setup = Setup::new(&net).in_memory().cache(|cache| {
            cache.max_size = 480 * KIB as u64;
            cache.verify_on_read = verify;
        });
        std::fs::create_dir_all(&setup.config.cache.path).expect("a directory");
        let disk = PowerDisk::new(&setup.config.cache.path);
        (setup.world.disk, setup.world.gate) = (Arc::new(disk.clone()), Gate::Inline);
        (Life { _net: net, registry, images, rng, seed, disk, acknowledged: BTreeMap::new() }, setup)
    }

    /// Two cuts in the midst of what goes on, and what is found after each.
    async fn live(mut self, setup: Setup) {
        let mut larder = setup.start();
        for _ in 0..2 {
            let operations = self.rng.usize(1..1500);
            self.disk.pull_the_plug_after(operations);
            let mut stage = Ok(larder);
            for _ in 0..STEPS {
                stage = match stage {
                    Ok(larder) => self.step(larder).await,
                    off => off,
                };
                if self.disk.is_dead() {
                    break;
                }
                self.acknowledge();
            }
            let setup = match stage {
                Ok(larder) => larder.kill().await,
                Err(setup) => setup,
            };
            larder = self.boot(setup);
            self.check(&larder).await;
            self.acknowledge();
        }
    }

    /// Something that happens to a cache. What fails when the power does is nobody's fault.
    async fn step(&mut self, larder: Larder) -> Result<Larder, Setup> {
        let store = &larder.app.store;
        match self.rng.u8(..16) {
            0 => larder.clock.advance(Duration::from_secs(90)),
            1 => store.tend().await,
            2 => {
                let n = self.rng.usize(..self.images.len());
                let what = if self.rng.bool() { What::Everything } else { What::Tags(Wildcard("*".into())) };
                let purged = store.purge(&Selected::Of { repository: Wildcard(format!("docker.io/library/app{n}")), what });
                assert!(purged.is_ok() || self.disk.is_dead(), "seed {}: {purged:?}", self.seed);
            }
            3 => return self.restart(larder, true).await,
            4 => return self.restart(larder, false).await,
            5 => self.break_off(&larder).await,
            6..9 => {
                let (name, images) = &self.images[self.rng.usize(..self.images.len())];
                self.registry.move_tag(name, "latest", images[self.rng.usize(..2)].digest);
                larder.clock.advance(Duration::from_secs(700));
                self.pull(&larder).await;
            }
            _ => self.pull(&larder).await,
        }
        self.ended(&larder).await;
        Ok(larder)
    }

    async fn pull(&mut self, larder: &Larder) {
        let n = self.rng.usize(..self.images.len());
        self.pull_from(larder, n).await;
    }

    async fn pull_from(&self, larder: &Larder, n: usize) {
        let (name, images) = &self.images[n];
        let Some(bytes) = self.get(larder, &format!("/v2/{name}/manifests/latest")).await else { return };
        let image = images.iter().find(|image| image.bytes == bytes);
        let image = image.unwrap_or_else(|| panic!("seed {}: a manifest of other bytes", self.seed));
        for blob in image.layers.iter().chain(&image.config) {
            let Some(bytes) = self.get(larder, &format!("/v2/{name}/blobs/{}", blob.digest)).await else { return };
            assert!(bytes == blob.bytes, "seed {}: a blob of other bytes", self.seed);
        }
    }

    /// A whole body; `None` only when the power is gone, or where upstream breaks off.
    async fn get(&self, larder: &Larder, path: &str) -> Option<bytes::Bytes> {
        let reply = larder.client().await.get(path).try_send().await;
        match reply {
            Ok(reply) if reply.status == 200 && reply.body.is_ok() => reply.body.ok(),
            broken => {
                assert!(self.disk.is_dead(), "seed {}: {path}: {broken:?}", self.seed);
                None
            }
        }
    }

    /// A download that ends half way, and will be gone on with by whoever asks.
    async fn break_off(&mut self, larder: &Larder) {
        let (name, images) = &self.images[self.rng.usize(..self.images.len())];
        let layer = &images[0].layers[0];
        self.registry.when(get().blob()).nth(1).then(Fault::CutAt(self.rng.u64(1..20 * KIB as u64)));
        self.registry.when(get().blob()).from(2).then(Fault::status(404));
        let _ = larder.client().await.get(&format!("/v2/{name}/blobs/{}", layer.digest)).try_send().await;
        self.ended(larder).await;
        self.registry.behave();
        tokio::time::sleep(Duration::from_secs(60)).await;
    }

    async fn ended(&self, larder: &Larder) {
        until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    }

    /// Of the process alone: what was written is there. A clean stop syncs the file system.
    async fn restart(&self, larder: Larder, is_clean: bool) -> Result<Larder, Setup> {
        let setup = if is_clean { larder.stop().await } else { larder.kill().await };
        if self.disk.is_dead() {
            return Err(setup);
        }
        if is_clean {
            self.disk.sync_all();
        }
        setup.try_start().map_err(|failed| {
            let (setup, failure) = *failed;
            assert!(self.disk.is_dead(), "seed {}: {failure}", self.seed);
            setup
        })
    }

    /// Nothing is under way: what is there now has been told to somebody.
    fn acknowledge(&mut self) {
        let files = self.disk.files("").into_iter().filter(|(path, ..)| is_promised(path));
        self.acknowledged = files.map(|(path, node, _)| (path, node)).collect();
    }

    /// The power has failed, and comes back.
    fn boot(&mut self, mut setup: Setup) -> Larder {
        let before: BTreeMap<_, _> = self.disk.files("").into_iter().map(|(path, node, _)| (path, node)).collect();
        let order = if self.rng.bool() { Order::Kept } else { Order::Lost };
        self.disk = self.disk.after_power_cut(&mut self.rng, order);
        let found: BTreeMap<_, _> = self.disk.files("").into_iter().map(|(path, _, bytes)| (path, bytes)).collect();
        for (path, node) in &self.acknowledged {
            // Unless it has left since.
            let is_owed = before.get(path) == Some(node);
            assert!(!is_owed || found.contains_key(path), "seed {}, {order:?}: {} is lost", self.seed, path.display());
        }
        for (path, bytes) in &found {
            self.assert_right(path, bytes);
        }
        let cache = &setup.config.cache.path;
        let lock: Value = serde_json::from_slice(&std::fs::read(cache.join("lock")).expect("a lock")).expect("JSON");
        let mut lock = lock.as_object().expect("an object").clone();
        lock.extend([("boot".into(), "another".into()), ("clean".into(), false.into())]);
        std::fs::write(cache.join("lock"), Value::Object(lock).to_string()).expect("a lock");
        if self.rng.u8(..3) == 0 {
            std::fs::remove_dir_all(cache.join("index")).expect("an index");
        }
        setup.world.disk = Arc::new(self.disk.clone());
        setup.start()
    }

    /// What stands under its last name has the bytes it should.
    fn assert_right(&self, path: &Path, bytes: &[u8]) {
        let name = path.file_name().expect("a name").to_string_lossy();
        let told = || format!("seed {}: {} with {} bytes", self.seed, path.display(), bytes.len());
        if path.starts_with("blobs") {
            assert_eq!(Digest::of(Algorithm::Sha256, bytes).hex(), name, "{}", told());
        } else if path.starts_with("refs") && !name.ends_with('~') {
            let is_confirmation = path.components().any(|part| part.as_os_str() == "_blobs");
            assert!(is_confirmation && bytes.is_empty() || serde_json::from_slice::<Value>(bytes).is_ok(), "{}", told());
        }
    }

    /// What the start has made of it: exact, consistent, and as good as new.
    async fn check(&mut self, larder: &Larder) {
        self.assert_consistent(larder).await;
        self.registry.forget_requests();
        for (path, bytes) in self.held() {
            let body = self.get(larder, &path).await;
            assert!(body.is_some_and(|body| body == bytes), "seed {}: {path}", self.seed);
        }
        assert_eq!(self.registry.count(get().blob()), 0, "seed {}: what is there was fetched again", self.seed);
        for n in 0..self.images.len() {
            self.pull_from(larder, n).await;
        }
        self.ended(larder).await;
        self.assert_consistent(larder).await;
    }

    /// The blobs that are stored, by the paths under which somebody asks for them.
    fn held(&self) -> Vec<(String, bytes::Bytes)> {
        let stored: Vec<_> = self.disk.files("blobs").into_iter().map(|(path, ..)| path).collect();
        let mut held = Vec::new();
        for (name, images) in &self.images {
            for blob in images.iter().flat_map(|image| image.layers.iter().chain(&image.config)) {
                if stored.iter().any(|path| path.ends_with(blob.digest.hex())) {
                    held.push((format!("/v2/{name}/blobs/{}", blob.digest), blob.bytes.clone()));
                }
            }
        }
        held
    }

    async fn assert_consistent(&self, larder: &Larder) {
        larder.app.store.tend().await;
        let (gauge, walked) = (larder.metric("larder_cache_size_bytes"), self.disk.allocated(&COUNTED));
        assert_eq!(gauge, walked as f64, "seed {}: {:#?}", self.seed, self.disk.files("").iter().map(|file| &file.0).collect::<Vec<_>>());
        assert_eq!(larder.metric("larder_task_panics_total"), 0.0, "seed {}", self.seed);
        let stored: Vec<_> = self.disk.files("blobs").into_iter().map(|(path, ..)| path).collect();
        for (path, _, bytes) in self.disk.files("refs") {
            let digest = if path.parent().is_some_and(|folder| folder.ends_with("_tags")) {
                serde_json::from_slice::<Value>(&bytes).expect("JSON")["digest"].as_str().expect("a digest").to_owned()
            } else {
                path.file_name().expect("a name").to_string_lossy().replace('-', ":")
            };
            let (_, hex) = digest.split_once(':').unwrap_or_else(|| panic!("seed {}: {}", self.seed, path.display()));
            assert!(stored.iter().any(|path| path.ends_with(hex)), "seed {}: {} names what is gone", self.seed, path.display());
        }
    }
}

/// Blobs, and the records of tags and manifests; a confirmation is only a saving.
fn is_promised(path: &Path) -> bool {
    let is_record = ["_tags", "_manifests"].iter().any(|folder| path.parent().is_some_and(|parent| parent.ends_with(folder)));
    path.starts_with("blobs") || is_record
}

#[tokio::test(start_paused = true)]
async fn disk_fault_06_after_a_power_cut_at_any_moment_nothing_acknowledged_is_lost_and_nothing_wrong_is_served() {
    let setting = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let only = setting("LARDER_POWER_SEED");
    let seeds = only.map_or_else(|| 0..setting("LARDER_POWER_SEEDS").unwrap_or(60), |seed| seed..seed + 1);
    let mut failures = Vec::new();
    for seed in seeds {
        let (life, setup) = Life::new(seed);
        let lived = tokio::spawn(life.live(setup)).await;
        failures.extend(lived.err().map(|failed| match failed.into_panic().downcast::<String>() {
            Ok(text) => *text,
            Err(_) => format!("seed {seed}"),
        }));
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

/// Nothing that a first start made is gone, whatever of it was written: not the cache directory, nor those above it.
#[tokio::test]
async fn d6_a_first_start_makes_durable_every_directory_that_it_makes() {
    let (net, _registry) = hub();
    let top = tempfile::tempdir().expect("a directory");
    let mut setup = Setup::new(&net);
    setup.config.cache.path = top.path().join("not/yet/there");
    std::fs::create_dir_all(&setup.config.cache.path).expect("a directory");
    let disk = PowerDisk::new(top.path());
    (setup.world.disk, setup.world.gate) = (Arc::new(disk.clone()), Gate::Inline);
    let larder = setup.start();
    let mut rng = fastrand::Rng::with_seed(6);
    for order in [Order::Kept, Order::Lost].repeat(20) {
        let after = disk.after_power_cut(&mut rng, order);
        for name in ["blobs", "refs", "partial", "quarantine"] {
            assert!(after.stat(&larder.cache().join(name)).is_ok(), "{name} is gone");
        }
    }
}

#[tokio::test]
async fn d6_a_first_start_warns_of_nothing() {
    let (net, _registry) = hub();
    let top = tempfile::tempdir().expect("a directory");
    for below in ["cache", "not/yet/there"] {
        let (lines, _guard) = listen();
        let mut setup = Setup::new(&net);
        setup.config.cache.path = top.path().join(below);
        drop(setup.start());
        let said = lines.text();
        assert!(said.lines().all(|line| !line.contains("WARN") && !line.contains("ERROR")), "{below}: {said}");
    }
}
