//! What stands in the cache directory and is not larder's, or cannot be read or removed, at every level of it: nothing fails because of it, it
//! is neither counted nor evicted, and each path is reported once.

use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder::gate::Gate;
use larder::rng::Rng;
use larder::store::disk::{Disk, SystemDisk};
use larder::store::{Purged, Report, Selected, What, Wildcard};
use rustix::fs::{CWD, FileType, Mode};

use crate::fills::{hub, push, until};
use crate::store::{blob_file, du_with, pull};
use crate::support::disk::{DIRECTORY_BYTES, FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::log::{Lines, listen};
use crate::support::net::FakeNet;
use crate::support::registry::{FakeRegistry, Image, any, get};

const HOUR: Duration = Duration::from_secs(3600);
const APP: &str = "library/app";

/// A cache that holds an image, stopped.
struct Cache {
    _net: FakeNet,
    registry: FakeRegistry,
    image: Image,
    setup: Setup,
}

impl Cache {
    async fn new() -> Cache {
        let (net, registry) = hub();
        let image = registry.push_image(APP, "latest", &[200_000, 3000], 1);
        let mut setup = Setup::new(&net).in_memory().cache(|cache| cache.memory_cache_size = 0);
        setup.world.gate = Gate::Inline;
        let larder = setup.start();
        pull(&larder, APP, &image).await;
        let setup = larder.stop().await;
        Cache { _net: net, registry, image, setup }
    }

    fn path(&self, below: &str) -> PathBuf {
        self.setup.config.cache.path.join(below)
    }

    /// Every directory that larder has, the cache's own first.
    fn levels(&self) -> Vec<PathBuf> {
        let shelf = format!("blobs/sha256/{}", &self.image.layers[0].digest.hex()[..2]);
        let fixed = ["", "blobs", "blobs/sha256", &shelf, "refs", "refs/docker.io", "refs/docker.io/_blobs", "refs/docker.io/library"];
        let below = ["refs/docker.io/library/app", "refs/docker.io/library/app/_tags", "refs/docker.io/library/app/_manifests"];
        let others = ["partial", "partial/docker.io", "quarantine", "index"];
        fixed.iter().chain(&below).chain(&others).map(|below| self.path(below)).collect()
    }
}

/// What somebody has put there.
type Stray = fn(&Path);

/// Everything that can stand in a directory. A directory that is not empty is also what nobody can unlink.
const STRAYS: [(&str, Stray); 5] = [
    (".nfs0001", |path| std::fs::write(path, "not larder's").expect("a file")),
    ("Directory", |path| {
        std::fs::create_dir(path).expect("a directory");
        std::fs::write(path.join("inside"), "not larder's").expect("a file");
    }),
    // Not bound: a path may be longer than an address.
    ("Socket", |path| make(path, FileType::Socket)),
    ("Pipe", |path| make(path, FileType::Fifo)),
    ("Link", |path| symlink("/etc", path).expect("a link")),
];

fn make(path: &Path, kind: FileType) {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o600), 0).expect("a file");
}

/// What operators, nights and clients do: says what came of it.
async fn work(larder: &Larder, cache: &Image) -> (Report, Purged) {
    let store = &larder.app.store;
    store.inventory().expect("stats");
    let (listener, _listening) = tokio::sync::mpsc::channel(1);
    let report = store.verify(true, &listener).await.expect("verify");
    let before = larder.metric("larder_scrub_last_success_timestamp_seconds");
    let scrubbing = tokio::spawn(Arc::clone(store).scrub(HOUR, Arc::new(Rng::seeded(3))));
    larder.clock.advance(HOUR);
    tokio::time::sleep(HOUR * 2).await;
    scrubbing.abort();
    assert!(before <= larder.metric("larder_scrub_last_success_timestamp_seconds"));
    for _ in 0..3 {
        store.tend().await;
        larder.clock.advance(HOUR);
    }
    pull(larder, APP, cache).await;
    let selected = Selected::Of { repository: Wildcard("docker.io/*".into()), what: What::Everything };
    let purged = store.purge(&selected).expect("purge");
    pull(larder, APP, cache).await;
    (report, purged)
}

/// Reports of this path.
fn said_of(lines: &Lines, path: &Path) -> usize {
    let path = path.to_str().expect("a path");
    // A longer path begins with it, too.
    let names = |line: &str| line.match_indices(path).any(|(at, _)| !line[at + path.len()..].starts_with(['/', '~', '-']));
    lines.text().lines().filter(|line| line.contains(" WARN larder::store::") && names(line)).count()
}

fn readyz(larder: &Larder) -> String {
    let response = larder.app.admin.answer(&http::Request::builder().uri("/readyz").body(()).unwrap());
    String::from_utf8(response.body().to_vec()).unwrap()
}

/// On a disk on which a directory occupies so much at least.
async fn live_with_strays(level: usize, name: &str, plant: Stray, disk: Arc<dyn Disk>, directory_bytes: u64) {
    let cache = Cache::new().await;
    let directory = cache.levels()[level].clone();
    std::fs::create_dir_all(&directory).expect("a directory");
    let occupied = du_with(&cache.path(""), directory_bytes);
    let stray = directory.join(name);
    plant(&stray);
    let when = stray.display();
    let (lines, _guards) = listen();
    let larder = cache.setup.disk(disk).try_start().unwrap_or_else(|failed| panic!("{when}: no start: {}", failed.1));
    cache.registry.forget_requests();
    pull(&larder, APP, &cache.image).await;
    assert_eq!(cache.registry.count(get().blob()), 0, "{when}: what is held is served");
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), occupied as f64, "{when}: counted");
    let held = larder.app.store.inventory().expect("stats").upstreams["docker.io"];
    assert_eq!((held.tags, held.manifests), (1, 1), "{when}");
    let (report, purged) = work(&larder, &cache.image).await;
    // The manifest, its configuration and two layers.
    assert_eq!((report.objects, report.is_bad(), purged.tags, purged.manifests, purged.objects), (4, false, 1, 1, 4), "{when}");
    assert_eq!(readyz(&larder), "ok\n", "{when}");
    let larder = larder.stop().await.start();
    pull(&larder, APP, &cache.image).await;
    assert!(std::fs::symlink_metadata(&stray).is_ok(), "{when} is gone");
    // Two starts in this process, each a life of its own.
    assert_eq!(said_of(&lines, &stray), 2, "{when}:\n{}", lines.text());
}

#[tokio::test(start_paused = true)]
async fn d3_what_is_not_larder_s_fails_nothing_at_any_level() {
    let levels = Cache::new().await.levels().len();
    for level in 0..levels {
        for (name, plant) in STRAYS {
            live_with_strays(level, name, plant, Arc::new(SystemDisk), 0).await;
        }
    }
}

/// By way of the double, whose paths follow links where the system's do not.
#[tokio::test(start_paused = true)]
async fn d3_what_is_not_larder_s_fails_nothing_on_another_disk_either() {
    let levels = Cache::new().await.levels().len();
    for level in 0..levels {
        let (name, plant) = STRAYS[level % STRAYS.len()];
        live_with_strays(level, name, plant, Arc::new(FaultyDisk::new()), DIRECTORY_BYTES).await;
    }
}

/// The samples of the trial, word for word.
#[tokio::test(start_paused = true)]
async fn d3_a_leftover_of_nfs_a_directory_and_what_cannot_be_removed_in_partial_stop_no_start() {
    let mut cache = Cache::new().await;
    let leftover = cache.path(&format!("partial/docker.io/sha256-{}~7", cache.image.layers[0].digest.hex()));
    std::fs::create_dir_all(cache.path("partial/docker.io/Directory")).unwrap();
    std::fs::write(cache.path("partial/.nfs0001"), "").unwrap();
    std::fs::write(&leftover, [7; 5000]).unwrap();
    let disk = FaultyDisk::new();
    disk.fail_at(Op::Remove, &leftover, ErrorKind::PermissionDenied);
    cache.setup = cache.setup.disk(Arc::new(disk.clone()));
    let (lines, _guards) = listen();
    let larder = cache.setup.start();
    assert_eq!((said_of(&lines, &leftover), said_of(&lines, &larder.cache().join("partial/.nfs0001"))), (1, 1), "{}", lines.text());
    // It is larder's, and occupies what it does until it can be removed.
    let (report, _) = work(&larder, &cache.image).await;
    assert!(!report.is_bad());
    assert_eq!(said_of(&lines, &leftover), 1, "{}", lines.text());
    // The directory that is not larder's is not counted.
    let occupied = || (du_with(larder.cache(), DIRECTORY_BYTES) - DIRECTORY_BYTES) as f64;
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), occupied());
    disk.heal();
    larder.app.store.tend().await;
    assert!(!leftover.exists());
    assert_eq!(larder.metric("larder_cache_size_bytes"), occupied());
}

/// Names that are larder's, and something else that bears them.
#[tokio::test(start_paused = true)]
async fn d3_what_stands_in_the_place_of_larder_s_own_fails_nothing() {
    for own in [
        "blob",
        "tag",
        "manifest",
        "partial",
        "quarantined",
        "_shown",
        "_tags",
        "_manifests",
        "_blobs",
        "shelf",
        "refs/docker.io",
        "partial/docker.io",
    ] {
        for (kind, plant) in STRAYS {
            let cache = Cache::new().await;
            let hex = cache.image.layers[0].digest.hex();
            let below = match own {
                "blob" => format!("blobs/sha256/{}/{hex}", &hex[..2]),
                "shelf" => format!("blobs/sha256/{}", &hex[..2]),
                "tag" => "refs/docker.io/library/app/_tags/latest".into(),
                "manifest" => format!("refs/docker.io/library/app/_manifests/sha256-{}", cache.image.digest.hex()),
                "partial" => format!("partial/docker.io/sha256-{hex}"),
                "quarantined" => format!("quarantine/sha256-{hex}"),
                marked if marked.starts_with("_blobs") => "refs/docker.io/_blobs".into(),
                marked if marked.starts_with('_') => format!("refs/docker.io/library/app/{marked}"),
                other => other.to_owned(),
            };
            let place = cache.path(&below);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            let _ = std::fs::remove_file(&place).or_else(|_| std::fs::remove_dir_all(&place));
            plant(&place);
            let when = format!("{kind} in place of {own}");
            // By name and kind that is a download to go on with, and found out to be none (`fills::restart`).
            if (own, kind) == ("partial", ".nfs0001") {
                continue;
            }
            let (lines, _guards) = listen();
            let larder = cache.setup.try_start().unwrap_or_else(|failed| panic!("{when}: no start: {}", failed.1));
            pull(&larder, APP, &cache.image).await;
            let store = &larder.app.store;
            store.inventory().unwrap_or_else(|error| panic!("{when}: stats: {error}"));
            let (listener, _listening) = tokio::sync::mpsc::channel(1);
            store.verify(true, &listener).await.unwrap_or_else(|error| panic!("{when}: verify: {error}"));
            let scrubbing = tokio::spawn(Arc::clone(store).scrub(HOUR, Arc::new(Rng::seeded(3))));
            tokio::time::sleep(HOUR * 2).await;
            scrubbing.abort();
            for _ in 0..3 {
                larder.clock.advance(HOUR);
                store.tend().await;
                pull(&larder, APP, &cache.image).await;
            }
            let selected = Selected::Of { repository: Wildcard("docker.io/*".into()), what: What::Everything };
            store.purge(&selected).unwrap_or_else(|error| panic!("{when}: purge: {error}"));
            pull(&larder, APP, &cache.image).await;
            assert_eq!(readyz(&larder), "ok\n", "{when}");
            assert!(said_of(&lines, &place) <= 1, "{when}:\n{}", lines.text());
        }
    }
}

/// A blob's place is free again: what stood there was put aside, and the blob was fetched and stored.
#[tokio::test(start_paused = true)]
async fn d3_a_directory_in_place_of_a_blob_is_put_aside_and_the_blob_is_stored() {
    let cache = Cache::new().await;
    let digest = cache.image.layers[0].digest;
    let place = blob_file(&cache.setup.config.cache.path, digest);
    std::fs::remove_file(&place).unwrap();
    (STRAYS[1].1)(&place);
    let larder = cache.setup.start();
    pull(&larder, APP, &cache.image).await;
    assert_eq!(std::fs::read(&place).unwrap(), cache.image.layers[0].bytes);
    let aside = larder.cache().join(format!("quarantine/sha256-{}/inside", digest.hex()));
    assert_eq!(std::fs::read(aside).unwrap(), b"not larder's");
}

fn is_shelf(directory: &Path) -> bool {
    directory.parent().is_some_and(|parent| parent.ends_with("blobs/sha256"))
}

/// Foreign owners, and a disk that does not give one directory or file: what is below is left out until it can be read, and is found then.
#[tokio::test(start_paused = true)]
async fn d3_what_cannot_be_read_fails_nothing_and_is_found_when_it_can_be() {
    for kind in [ErrorKind::PermissionDenied, ErrorKind::Other] {
        let levels = Cache::new().await.levels();
        for level in 1..levels.len() {
            let cache = Cache::new().await;
            let directory = cache.levels()[level].clone();
            let disk = FaultyDisk::new();
            std::fs::create_dir_all(&directory).unwrap();
            disk.fail_at(Op::List, &directory, kind);
            let when = format!("{kind:?} of {}", directory.display());
            let (lines, _guards) = listen();
            let setup = cache.setup.disk(Arc::new(disk.clone()));
            let larder = setup.try_start().unwrap_or_else(|failed| panic!("{when}: no start: {}", failed.1));
            pull(&larder, APP, &cache.image).await;
            let store = &larder.app.store;
            // The folder of all records is the one that stats, verify and purge cannot do without; they say which it is.
            let of_all = directory.ends_with("refs");
            let answers = |said: std::io::Result<()>, what: &str| match said {
                Err(error) if of_all => assert!(error.to_string().contains(directory.to_str().unwrap()), "{when}: {what}: {error}"),
                said => said.unwrap_or_else(|error| panic!("{when}: {what}: {error}")),
            };
            answers(store.inventory().map(drop), "stats");
            let (listener, _listening) = tokio::sync::mpsc::channel(1);
            let verified = store.verify(false, &listener).await;
            // What should hold blobs or tags and was not looked at is no word that all is well.
            if is_shelf(&directory) || directory.ends_with("_tags") {
                let report = verified.as_ref().expect("verify");
                let is_named = report.faults.contains_key(directory.to_str().unwrap());
                assert!(report.unreadable > 0 && report.is_bad() && is_named, "{when}: {report:?}");
            }
            answers(verified.map(drop), "verify");
            let scrubbing = tokio::spawn(Arc::clone(store).scrub(HOUR, Arc::new(Rng::seeded(3))));
            tokio::time::sleep(HOUR * 2).await;
            scrubbing.abort();
            for _ in 0..5 {
                larder.clock.advance(HOUR);
                store.tend().await;
            }
            assert!(said_of(&lines, &directory) <= 1, "{when}:\n{}", lines.text());
            disk.heal();
            larder.clock.advance(HOUR);
            store.tend().await;
            cache.registry.forget_requests();
            pull(&larder, APP, &cache.image).await;
            assert_eq!(cache.registry.count(get().blob()), 0, "{when}: {:?}", cache.registry.requests());
            assert_eq!(store.inventory().unwrap().upstreams["docker.io"].tags, 1, "{when}");
        }
    }
}

/// One record of a tag that larder may not read or remove, beside one that it may: the other goes, and what does not go is named.
#[tokio::test(start_paused = true)]
async fn d3_a_purge_goes_on_past_what_it_cannot_remove_and_names_it() {
    let (net, registry) = hub();
    for name in ["library/a", "library/b", "library/c"] {
        registry.push_image(name, "latest", &[1000], name.len() as u64);
    }
    let disk = FaultyDisk::new();
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
    for name in ["library/a", "library/b", "library/c"] {
        assert_eq!(larder.get(&format!("/v2/{name}/manifests/latest")).await.status, 200);
    }
    let tag = |name: &str| larder.cache().join(format!("refs/docker.io/library/{name}/_tags/latest"));
    disk.fail_at(Op::Remove, &tag("a"), ErrorKind::PermissionDenied);
    let selected = Selected::Of { repository: Wildcard("docker.io/*".into()), what: What::Everything };
    let said = larder.app.store.purge(&selected).expect_err("one is still there").to_string();
    assert!(said.contains(tag("a").to_str().unwrap()), "{said}");
    assert_eq!([tag("a").exists(), tag("b").exists(), tag("c").exists()], [true, false, false]);
    disk.heal();
    larder.app.store.purge(&selected).expect("a purge");
    assert!(!tag("a").exists());
}

/// Only the first are named, and then how many more there are.
#[tokio::test(start_paused = true)]
async fn d3_very_many_strays_fill_no_log() {
    let cache = Cache::new().await;
    let directory = cache.path("blobs/sha256/00");
    std::fs::create_dir_all(&directory).unwrap();
    (0..250).for_each(|n| std::fs::write(directory.join(format!("stray{n}")), "").unwrap());
    let (lines, _guards) = listen();
    let larder = cache.setup.start();
    for _ in 0..3 {
        work(&larder, &cache.image).await;
    }
    let named = lines.text().lines().filter(|line| line.contains("/stray")).count();
    let counted: Vec<String> = lines.text().lines().filter(|line| line.contains("more=150")).map(str::to_owned).collect();
    assert_eq!((named, counted.len()), (100, 1), "{counted:?}");
}

/// What cannot be used at all stays an error, and says where.
#[tokio::test(start_paused = true)]
async fn d3_a_directory_that_cannot_be_used_at_all_is_refused_with_its_path() {
    for own in ["blobs", "refs", "partial", "quarantine"] {
        let cache = Cache::new().await;
        let place = cache.path(own);
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::write(&place, "in its place").unwrap();
        let failed = cache.setup.try_start().err().expect("no start").1.to_string();
        assert!(failed.contains(place.to_str().unwrap()), "{failed}");
    }
    let cache = Cache::new().await;
    let disk = FaultyDisk::new();
    disk.fail_at(Op::List, &cache.path(""), ErrorKind::Other);
    let failed = cache.setup.disk(Arc::new(disk)).try_start().err().expect("no start").1.to_string();
    assert!(failed.contains("cache"), "{failed}");
}

/// Beside traffic, too: a stray in a folder of tags keeps nothing from being evicted.
#[tokio::test(start_paused = true)]
async fn d3_what_is_not_larder_s_keeps_nothing_from_being_evicted() {
    let cache = Cache::new().await;
    for folder in ["refs/docker.io/library/app/_tags", "refs/docker.io/library/app/_manifests", "partial/docker.io"] {
        std::fs::create_dir_all(cache.path(folder)).unwrap();
        STRAYS.iter().for_each(|(name, plant)| plant(&cache.path(folder).join(name)));
    }
    let larder = cache.setup.cache(|cache| cache.max_size = 1 << 20).start();
    larder.clock.advance(HOUR);
    for n in 0..4 {
        let blob = push(&cache.registry, 400_000, 20 + n);
        larder.get(&format!("/v2/{APP}/blobs/{}", blob.digest)).await;
        until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
        larder.clock.advance(HOUR);
    }
    assert!(!blob_file(larder.cache(), cache.image.digest).exists(), "nothing was evicted");
    assert_eq!(larder.metric("larder_cache_write_errors_total{reason=\"io\"}"), 0.0);
    assert!(cache.registry.count(any()) > 0);
}
