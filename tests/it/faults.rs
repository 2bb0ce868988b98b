//! A disk that fails once, at every one of the operations of a life of a cache, or from one of them on: every pull is
//! answered whole, what is counted is what is there, and what comes after the next start is as if nothing had been.

use std::collections::HashMap;
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::Duration;

use larder::clock::{Clock, Timestamp};
use larder::config::VerifyOnRead;
use larder::gate::Gate;
use larder::rng::Rng;
use larder::store::{Selected, What, Wildcard};

use crate::fills::{hub, push, until};
use crate::store::{assert_records_name_what_is_there, du_with};
use crate::support::client::Reply;
use crate::support::disk::{DIRECTORY_BYTES, FaultyDisk, Harm, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{Blob, FakeRegistry, Fault, Image, get};

const KIB: usize = 1024;
const NOW: u64 = 1_795_219_200_000;

/// Upstream's content, the same in every life.
struct Scene {
    net: FakeNet,
    registry: FakeRegistry,
    index: Image,
    /// What the index lists.
    first: Image,
    second: Image,
    cut: Blob,
}

impl Scene {
    fn new() -> Scene {
        let (net, registry) = hub();
        // More than one chunk, so that there are reads amid a body; the second pushes the first out.
        let first = registry.push_image("library/app", "amd64", &[300 * KIB, 5 * KIB], 1);
        let other = registry.push_image("library/app", "arm64", &[KIB], 2);
        let index = registry.push_index("library/app", "latest", &[first.clone(), other]);
        let second = registry.push_image("library/app", "next", &[400 * KIB], 3);
        registry.push_blob("library/twin", first.layers[0].bytes.clone());
        let cut = push(&registry, 200 * KIB, 4);
        Scene { net, registry, index, first, second, cut }
    }

    /// A cache in which one image has room, and what was cut beside.
    fn setup(&self, disk: &FaultyDisk) -> Setup {
        self.registry.behave();
        self.registry.forget_requests();
        self.registry.move_tag("library/app", "latest", self.index.digest);
        let mut setup = Setup::new(&self.net).in_memory().disk(Arc::new(disk.clone())).cache(|cache| {
            cache.max_size = 800 * KIB as u64;
            cache.verify_on_read = VerifyOnRead::Always;
        });
        setup.world.gate = Gate::Inline;
        setup.world.clock = Clock::manual(Timestamp(NOW));
        setup
    }
}

/// One life of a cache on a disk that fails.
struct Life {
    scene: Arc<Scene>,
    disk: FaultyDisk,
    /// For whoever reads that a test failed.
    when: String,
}

impl Life {
    /// From an empty directory to a clean stop and a second start.
    async fn live(&self) -> Larder {
        let larder = self.start(self.scene.setup(&self.disk));
        self.fill(&larder).await;
        self.age(&larder).await;
        self.look_after(&larder).await;
        ended(&larder).await;
        let larder = self.start(larder.stop().await);
        self.pull(&larder, "latest", &self.scene.second).await;
        self.range(&larder, &self.scene.second.layers[0]).await;
        self.pull(&larder, &self.scene.first.digest.to_string(), &self.scene.first).await;
        ended(&larder).await;
        larder
    }

    /// A start that the disk does not allow says so; the next one finds a disk that does.
    fn start(&self, setup: Setup) -> Larder {
        setup.try_start().unwrap_or_else(|failed| {
            let (setup, failure) = *failed;
            assert!(self.disk.hit().is_some(), "{}: {failure}", self.when);
            self.disk.heal();
            setup.start()
        })
    }

    /// Cold, warm, in part, and in a second repository.
    async fn fill(&self, larder: &Larder) {
        let (scene, layer) = (&self.scene, &self.scene.first.layers[0]);
        self.manifest(larder, "latest", &scene.index).await;
        for _ in 0..2 {
            self.pull(larder, &scene.first.digest.to_string(), &scene.first).await;
        }
        assert_eq!(larder.head(&format!("/v2/library/app/blobs/{}", layer.digest)).await.status, 200, "{}", self.when());
        self.range(larder, layer).await;
        self.whole(larder, "library/twin", layer).await;
        self.resume(larder).await;
    }

    /// What broke off goes on.
    async fn resume(&self, larder: &Larder) {
        let (registry, cut) = (&self.scene.registry, &self.scene.cut);
        registry.when(get().blob().of(cut.digest)).nth(1).then(Fault::CutAt(100 * KIB as u64));
        registry.when(get().blob().of(cut.digest)).from(2).then(Fault::status(404));
        let path = format!("/v2/library/app/blobs/{}", cut.digest);
        if let Ok(broken) = larder.client().await.get(&path).try_send().await {
            assert!(broken.body.is_err() || broken.status != 200, "{}", self.when());
        }
        ended(larder).await;
        registry.behave();
        // "Not found" is remembered for a moment.
        tokio::time::sleep(Duration::from_secs(60)).await;
        self.whole(larder, "library/app", cut).await;
    }

    /// A tag that is confirmed, one that moves, and an image that pushes another one out.
    async fn age(&self, larder: &Larder) {
        larder.clock.advance(Duration::from_secs(700));
        self.manifest(larder, "latest", &self.scene.index).await;
        larder.clock.advance(Duration::from_secs(700));
        self.scene.registry.move_tag("library/app", "latest", self.scene.second.digest);
        self.pull(larder, "latest", &self.scene.second).await;
        ended(larder).await;
        larder.app.store.tend().await;
    }

    /// What operators and nights do.
    async fn look_after(&self, larder: &Larder) {
        let store = &larder.app.store;
        let selected = Selected::Of { repository: Wildcard("docker.io/library/app".into()), what: What::Tags(Wildcard("lat*".into())) };
        if let Err(error) = store.purge(&selected) {
            assert!(self.disk.hit().is_some(), "{}: {error}", self.when);
        }
        self.pull(larder, "latest", &self.scene.second).await;
        let (progress, _listener) = tokio::sync::mpsc::channel(1);
        let report = store.verify(true, &progress).await;
        assert!(report.is_ok_and(|report| !report.is_bad()) || self.disk.hit().is_some(), "{}", self.when);
        let scrubbing = tokio::spawn(Arc::clone(store).scrub(Duration::from_secs(86_400), Arc::new(Rng::seeded(3))));
        tokio::time::sleep(Duration::from_secs(3600)).await;
        scrubbing.abort();
        self.pull(larder, "latest", &self.scene.second).await;
    }

    async fn pull(&self, larder: &Larder, reference: &str, image: &Image) {
        self.manifest(larder, reference, image).await;
        for blob in image.layers.iter().chain(&image.config) {
            self.whole(larder, "library/app", blob).await;
        }
    }

    async fn manifest(&self, larder: &Larder, reference: &str, image: &Image) {
        let reply = larder.get(&format!("/v2/library/app/manifests/{reference}")).await;
        assert_eq!((reply.status, reply.bytes()), (200, &image.bytes), "{reference}: {}", self.when());
    }

    async fn whole(&self, larder: &Larder, repository: &str, blob: &Blob) {
        let path = format!("/v2/{repository}/blobs/{}", blob.digest);
        let reply = self.ask(larder, &path, None).await;
        assert!(reply.status == 200 && reply.bytes() == &blob.bytes, "{path} is {}: {}", reply.status, self.when());
    }

    async fn range(&self, larder: &Larder, blob: &Blob) {
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        let reply = self.ask(larder, &path, Some("1000-299999")).await;
        assert!(reply.status == 206 && reply.bytes() == &blob.bytes[1000..300_000], "{path}: {}", self.when());
    }

    async fn ask(&self, larder: &Larder, path: &str, range: Option<&str>) -> Reply {
        let mut client = larder.client().await;
        let ask = client.get(path);
        let reply = if let Some(range) = range { ask.range(range) } else { ask }.try_send().await;
        let reply = reply.unwrap_or_else(|error| panic!("{path}: {error}: {}", self.when()));
        assert!(reply.body.is_ok(), "{path} broke: {:?}: {}", reply.body.err(), self.when());
        reply
    }

    fn when(&self) -> String {
        format!("{}, struck: {:?}", self.when, self.disk.hit())
    }

    /// What is counted is what is there, now and after a start on a disk that works; and that has everything.
    async fn check(&self, larder: Larder) {
        let struck = self.when();
        self.disk.heal();
        // What could not be removed is tried again.
        self.exact(&larder, &struck).await;
        let setup = larder.stop().await;
        self.scene.registry.move_tag("library/app", "latest", self.scene.second.digest);
        let larder = setup.start();
        self.exact(&larder, &struck).await;
        assert_records_name_what_is_there(&larder);
        self.pull(&larder, "latest", &self.scene.second).await;
        self.pull(&larder, &self.scene.first.digest.to_string(), &self.scene.first).await;
        ended(&larder).await;
        self.exact(&larder, &struck).await;
    }

    async fn exact(&self, larder: &Larder, struck: &str) {
        // What could not be read at the start is read again after a minute.
        larder.clock.advance(Duration::from_secs(61));
        larder.app.store.tend().await;
        let (gauge, du) = (larder.metric("larder_cache_size_bytes"), du_with(larder.cache(), DIRECTORY_BYTES));
        assert_eq!(gauge, du as f64, "{struck}: {:#?}", larder.files("partial"));
        assert!(du <= larder.config.cache.max_size, "{struck}: {du}");
        assert_eq!(larder.metric("larder_task_panics_total"), 0.0, "{struck}");
    }
}

async fn ended(larder: &Larder) {
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

/// Lives once with that harm done; says to what kind of operation, if it came to that, and how it ended.
async fn live(scene: &Arc<Scene>, nth: impl RangeBounds<usize> + std::fmt::Debug, harm: Harm) -> Option<(Op, Result<(), String>)> {
    let disk = FaultyDisk::new();
    let when = format!("{harm:?} {nth:?}");
    let life = Life { scene: Arc::clone(scene), disk: disk.clone(), when: when.clone() };
    disk.harm(nth, harm);
    let lived = tokio::spawn(async move {
        let larder = life.live().await;
        life.check(larder).await;
    });
    let lived = lived.await.map_err(|failed| {
        let cause = failed.into_panic();
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default();
        format!("{when}, struck {:?}: {text}", disk.struck())
    });
    match disk.struck() {
        None => {
            assert_eq!(lived, Ok(()));
            None
        }
        Some((op, _)) => Some((op, lived)),
    }
}

/// A life for every operation of one, by `step`: a test for itself must not take too long.
async fn live_on(harm: Harm, first: usize, step: usize) {
    let (scene, mut struck, mut failures) = (Arc::new(Scene::new()), HashMap::<Op, usize>::new(), Vec::new());
    for n in (first..).step_by(step) {
        let Some((op, lived)) = live(&scene, n..=n, harm).await else { break };
        *struck.entry(op).or_default() += 1;
        failures.extend(lived.err());
    }
    let all = [Op::Create, Op::CreateDir, Op::Write, Op::Sync, Op::Rename, Op::SyncDir, Op::Stat, Op::Read, Op::Open, Op::Remove, Op::List];
    for op in all {
        assert!(struck.contains_key(&op) || !harm.strikes(op), "{harm:?} never struck {op:?}: {struck:?}");
    }
    assert!(failures.is_empty(), "{} of {struck:?} failed:\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test(start_paused = true)]
async fn invariant_09_no_single_disk_fault_fails_a_pull() {
    live_on(Harm::Error, 1, 2).await;
}

#[tokio::test(start_paused = true)]
async fn invariant_09_no_other_single_disk_fault_fails_a_pull() {
    live_on(Harm::Error, 2, 2).await;
}

/// Also: disk_fault_01, disk_fault_03
#[tokio::test(start_paused = true)]
async fn invariant_09_no_moment_without_space_and_no_file_that_is_cut_fails_a_pull() {
    live_on(Harm::Full, 1, 1).await;
    live_on(Harm::Cut, 1, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_disk_may_read_less_than_it_is_asked_for() {
    let scene = Arc::new(Scene::new());
    assert_eq!(live(&scene, 1.., Harm::Short).await, Some((Op::Read, Ok(()))));
}

/// From some of the operations on, nothing works any more, or nothing can be written.
/// Also: disk_fault_04
#[tokio::test(start_paused = true)]
async fn invariant_09_a_disk_that_dies_fails_no_pull() {
    let (scene, mut failures) = (Arc::new(Scene::new()), Vec::new());
    for harm in [Harm::Error, Harm::WriteError, Harm::Full] {
        let mut n = 1;
        while let Some((_, lived)) = live(&scene, n.., harm).await {
            failures.extend(lived.err());
            n += if harm == Harm::Error { 29 } else { 17 };
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

/// What panics costs whoever waits for it his answer, at once, and nobody else anything.
#[tokio::test(start_paused = true)]
async fn k8_p7_a_panic_costs_one_request_and_nobody_waits_in_vain() {
    let scene = Arc::new(Scene::new());
    for n in (1..).step_by(11) {
        let disk = FaultyDisk::new();
        let mut setup = scene.setup(&disk);
        setup.world.gate = Gate::threads(4);
        let larder = setup.start();
        disk.harm(n..=n, Harm::Panic);
        let paths = |image: &Image| {
            let blobs = image.layers.iter().chain(&image.config).map(|blob| (format!("blobs/{}", blob.digest), blob.bytes.clone()));
            blobs.chain([(format!("manifests/{}", image.digest), image.bytes.clone())]).collect::<Vec<_>>()
        };
        let all = [paths(&scene.index), paths(&scene.first), paths(&scene.second), paths(&scene.first)].concat();
        let mut failed = 0;
        for (path, bytes) in &all {
            let mut client = larder.client().await;
            let asked = client.get(&format!("/v2/library/app/{path}"));
            let asked = tokio::time::timeout(Duration::from_secs(5), asked.try_send()).await;
            let reply = asked.unwrap_or_else(|_| panic!("{path} hangs after {:?}", disk.hit()));
            let whole = reply.is_ok_and(|reply| reply.status == 200 && reply.body.is_ok_and(|body| body == bytes));
            failed += usize::from(!whole);
        }
        assert!(failed <= 1, "{failed} failed of one panic at {:?}", disk.hit());
        if disk.struck().is_none() {
            assert!(n > 100 && failed == 0, "{n}");
            return;
        }
        ended(&larder).await;
    }
}
