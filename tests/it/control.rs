//! `stats`, `verify` and `purge`: of a running daemon over its socket, and of a stopped directory.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use larder::cli::{self, Form};
use larder::control::{self, Answer, Ask};
use larder::store::{Keeps, Purged, Report, Selected};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::eviction::pins;
use crate::fills::{assert_whole, hub, path_in, until};
use crate::selfcare::{blob_file, flip};
use crate::store::du;
use crate::support::daemon::Daemon;
use crate::support::disk::{FaultyDisk, Op};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{FakeRegistry, Image, get};

const KIB: usize = 1024;

async fn pull(larder: &Larder, repository: &str, image: &Image) {
    let manifest = larder.get(&format!("/v2/{repository}/manifests/latest")).await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{repository}");
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path_in(repository, blob.digest)).await, blob);
    }
}

async fn settled(larder: &Larder) {
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
}

/// Answers at `control.sock` until the token goes.
fn listen(larder: &Larder) -> CancellationToken {
    let stop = CancellationToken::new();
    let control = larder.app.control.clone();
    let server = control::Server::new(control.listen().expect("a socket")).expect("a server");
    tokio::spawn(server.run(control, stop.clone()));
    stop
}

async fn ask(larder: &Larder, ask: Ask) -> Answer {
    cli::answer(&larder.config, ask, Form::Json).await.expect("an answer")
}

async fn purge(larder: &Larder, what: &str) -> Purged {
    let what = control::canonical(what, &larder.config).expect("a target");
    match ask(larder, Ask::Purge(what)).await {
        Answer::Purged(purged) => purged,
        other => panic!("{other:?}"),
    }
}

async fn verify(larder: &Larder, repair: bool) -> Report {
    match ask(larder, Ask::Verify { repair }).await {
        Answer::Verified(report) => report,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_and_purge_a_hundred_times_beside_200_pulls_fail_no_pull() {
    let (net, registry) = hub();
    // The first two are one image, the others share its largest layer.
    let seeds = [1, 1, 2, 3];
    let names: Vec<String> = (0..seeds.len()).map(|n| format!("library/app{n}")).collect();
    let images: Vec<Image> =
        names.iter().zip(seeds).map(|(name, seed)| registry.push_image(name, "latest", &[100 * KIB, 2000], seed)).collect();
    let larder = Arc::new(Setup::new(&net).start());
    let stop = listen(&larder);
    let (done, pulls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut pullers = JoinSet::new();
    for n in 0..4 {
        let (larder, names, images) = (Arc::clone(&larder), names.clone(), images.clone());
        let (done, pulls) = (Arc::clone(&done), Arc::clone(&pulls));
        pullers.spawn(async move {
            for at in (0..names.len()).cycle().skip(n) {
                pull(&larder, &names[at], &images[at]).await;
                pulls.fetch_add(1, Ordering::SeqCst);
                if done.load(Ordering::SeqCst) {
                    return;
                }
            }
        });
    }
    let mut gone = 0;
    for round in 0..100_usize {
        // Pulls between two rounds, so that there is something to purge.
        let before = pulls.load(Ordering::SeqCst);
        let pulled = async {
            while pulls.load(Ordering::SeqCst) < before + 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), pulled).await.expect("pulls go on");
        let name = &names[round % names.len()];
        let what = match round % 5 {
            0 => format!("{name}:latest"),
            1 => format!("{name}@{}", images[round % names.len()].digest),
            2 => images[round % names.len()].layers[0].digest.to_string(),
            3 => format!("{name}:l*"),
            _ => "docker.io/*".to_owned(),
        };
        gone += purge(&larder, &what).await.objects;
        let report = verify(&larder, round % 2 == 0).await;
        assert_eq!((report.damaged, report.missing, report.unreadable), (0, 0, 0), "round {round}: {report:?}");
    }
    done.store(true, Ordering::SeqCst);
    while let Some(puller) = pullers.join_next().await {
        puller.expect("no failed pull");
    }
    settled(&larder).await;
    assert!(pulls.load(Ordering::SeqCst) >= 200);
    assert!(gone > 100, "{gone} objects in 100 rounds");
    // Nothing is left that names what is not there, and nothing is counted that is not there.
    let purged = purge(&larder, "*").await;
    assert!(purged.objects > 0);
    assert_eq!(larder.files("blobs").len(), 0);
    assert_eq!(larder.files("refs").iter().filter(|file| !file.ends_with("_shown")).count(), 0, "{:?}", larder.files("refs"));
    larder.app.store.tend().await;
    assert_eq!((larder.metric("larder_cache_size_bytes"), larder.files("blobs").len()), (du(larder.cache()) as f64, 0));
    stop.cancel();
}

#[tokio::test]
async fn purge_lets_go_of_what_nothing_else_lists() {
    let (net, registry) = hub();
    let shared = registry.push_image("library/one", "latest", &[100 * KIB, 3000], 1);
    registry.push_image("library/two", "latest", &[100 * KIB, 3000], 1);
    let own = registry.push_image("library/three", "latest", &[90 * KIB], 2);
    let larder = Larder::start(&net);
    for (name, image) in [("library/one", &shared), ("library/two", &shared), ("library/three", &own)] {
        pull(&larder, name, image).await;
    }
    settled(&larder).await;
    let stop = listen(&larder);
    let held = |image: &Image| blob_file(larder.cache(), image.layers[0].digest).exists();

    let purged = purge(&larder, "one:latest").await;
    assert_eq!((purged.tags, purged.manifests, purged.objects), (1, 1, 0), "two still has it");
    assert!(held(&shared));
    assert_eq!(purge(&larder, "one:latest").await, Purged::default());
    let purged = purge(&larder, &format!("two@{}", shared.digest)).await;
    assert_eq!((purged.tags, purged.manifests, purged.objects), (1, 1, 4), "a manifest, a configuration and two layers");
    assert!(purged.bytes > 100 * KIB as u64 && !held(&shared) && held(&own));
    let purged = purge(&larder, &own.digest.to_string()).await;
    assert_eq!((purged.tags, purged.manifests, purged.objects), (1, 1, 3));
    assert!(!held(&own));

    net.down("hub.test");
    assert_eq!(larder.get("/v2/library/three/manifests/latest").await.status, 502, "it is gone");
    stop.cancel();
}

#[tokio::test]
async fn purge_of_one_tag_leaves_what_another_names() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100 * KIB], 1);
    registry.push_image("library/app", "same", &[100 * KIB], 1);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    larder.get("/v2/library/app/manifests/same").await;
    settled(&larder).await;
    let stop = listen(&larder);
    let purged = purge(&larder, "app:latest").await;
    assert_eq!((purged.tags, purged.manifests, purged.objects), (1, 0, 0));
    let purged = purge(&larder, "app:s*").await;
    assert_eq!((purged.tags, purged.manifests, purged.objects), (1, 1, 3));
    stop.cancel();
}

#[tokio::test]
async fn what_was_pinned_and_is_purged_pins_nothing() {
    for by_digest in [false, true] {
        let (net, registry) = hub();
        let image = registry.push_image("library/app", "latest", &[500 * KIB], 1);
        registry.push_image("library/twin", "latest", &[500 * KIB], 1);
        let setup = Setup::new(&net).cache(|cache| (cache.max_size, cache.pinned_images) = (2 << 20, pins("\"docker.io/app:*\"")));
        let larder = setup.start();
        for name in ["library/app", "library/twin"] {
            pull(&larder, name, &image).await;
        }
        settled(&larder).await;
        let fill_up = async |from: u64| {
            for n in from..from + 5 {
                let other = registry.push_image("library/other", "latest", &[500 * KIB], n);
                larder.clock.advance(Duration::from_secs(3600));
                pull(&larder, "library/other", &other).await;
                settled(&larder).await;
            }
            blob_file(larder.cache(), image.layers[0].digest).exists()
        };
        assert!(fill_up(10).await, "it is pinned");
        let stop = listen(&larder);
        let what = if by_digest { format!("app@{}", image.digest) } else { "app:latest".to_owned() };
        assert_eq!(purge(&larder, &what).await.objects, 0, "the twin has it");
        assert!(!fill_up(20).await, "{what}: it is pinned for ever");
        stop.cancel();
    }
}

/// It stays counted and can be let go of once more.
#[tokio::test]
async fn what_cannot_be_purged_stays_counted() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100 * KIB], 1);
    let disk = FaultyDisk::new();
    let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let layer = Selected::Object(image.layers[0].digest);
    disk.fail(Op::Remove, std::io::ErrorKind::Other);
    assert!(larder.app.store.purge(&layer).is_err());
    larder.app.store.tend().await;
    assert_eq!(larder.metric("larder_cache_size_bytes"), du(larder.cache()) as f64);
    disk.heal();
    assert_eq!(larder.app.store.purge(&layer).expect("a disk").objects, 1);
    assert!(!blob_file(larder.cache(), image.layers[0].digest).exists());
}

#[tokio::test]
async fn disk_fault_10_what_is_read_while_it_is_purged_is_read_to_its_end() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[3 << 20], 1);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let stop = listen(&larder);
    let mut client = larder.client().await;
    let mut body = client.open(&path_in("library/app", image.layers[0].digest)).await;
    assert_eq!(body.header("cache-status"), Some("larder; hit"));
    body.read_exactly(KIB).await.expect("a beginning");
    assert_eq!(purge(&larder, "*").await.objects, 3);
    assert!(!blob_file(larder.cache(), image.layers[0].digest).exists());
    assert!(body.read_to_end().await.expect("the rest") == image.layers[0].bytes[KIB..]);
    stop.cancel();
}

#[tokio::test]
async fn verify_names_what_is_wrong_and_repair_makes_it_right() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100 * KIB, 90 * KIB, 80 * KIB], 1);
    let larder = Larder::start(&net);
    pull(&larder, "library/app", &image).await;
    settled(&larder).await;
    let stop = listen(&larder);
    assert!(!verify(&larder, false).await.is_bad());
    flip(&blob_file(larder.cache(), image.layers[0].digest));
    std::fs::remove_file(blob_file(larder.cache(), image.layers[1].digest)).expect("a file");
    for repair in [false, true] {
        let report = verify(&larder, repair).await;
        assert_eq!((report.damaged, report.missing, report.is_bad()), (1, 1, !repair), "{report:?}");
        let named: Vec<_> = report.faults.keys().cloned().collect();
        let mut damaged = [0, 1].map(|n| image.layers[n].digest.to_string());
        damaged.sort();
        assert_eq!(named, damaged);
    }
    assert_eq!(larder.files("quarantine").len(), 1);
    let report = verify(&larder, false).await;
    assert_eq!((report.is_bad(), report.incomplete_manifests), (false, 1));
    registry.forget_requests();
    pull(&larder, "library/app", &image).await;
    assert_eq!(registry.count(get().blob()), 2);
    stop.cancel();
}

#[tokio::test]
async fn stats_say_what_is_held_and_what_would_go_next() {
    let (net, registry) = hub();
    let old = registry.push_image("library/old", "latest", &[100 * KIB], 1);
    let new = registry.push_image("library/new", "latest", &[200 * KIB], 2);
    let larder = Setup::new(&net).cache(|cache| cache.evict_unused_after = Duration::from_secs(3600)).start();
    for (name, image) in [("library/old", &old), ("library/new", &new), ("library/new", &new)] {
        pull(&larder, name, image).await;
        settled(&larder).await;
        larder.clock.advance(Duration::from_secs(10));
    }
    let stop = listen(&larder);
    let Answer::Stats(stats) = ask(&larder, Ask::Stats).await else { panic!("no stats") };
    let hub = stats.held.upstreams["docker.io"];
    assert_eq!((hub.tags, hub.manifests, stats.held.objects), (2, 2, 6));
    let files = larder.files("blobs").iter().map(|file| std::fs::metadata(file).expect("a file").blocks() * 512).sum::<u64>();
    assert_eq!((hub.bytes, stats.held.bytes), (files, du(larder.cache())), "records and directories are no repository's");
    let names: Vec<_> = stats.held.repositories.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["docker.io/library/new", "docker.io/library/old"]);
    assert_eq!((&*stats.held.next[0].of, stats.held.next[0].unused_seconds), (&["docker.io/library/old".to_owned()][..], 30));
    assert_eq!((stats.held.next[0].unused_left_seconds, stats.held.next[0].kept), (Some(3570), None), "an hour, but for what has passed");
    let reader = larder.app.store.blob(&new.layers[0].digest).await.expect("a file").expect("held");
    let Answer::Stats(read) = ask(&larder, Ask::Stats).await else { panic!("no stats") };
    let next = read.held.next.iter().find(|next| next.digest == reader.digest().to_string());
    assert_eq!(next.and_then(|next| next.kept), Some(Keeps::Read));
    drop(reader);
    let traffic = stats.traffic.expect("of a running daemon");
    assert_eq!((traffic.requests, traffic.hits), (9, 3));
    assert!(traffic.sent_bytes > traffic.received_bytes && traffic.received_bytes > 300 * KIB as u64);
    stop.cancel();
}

#[tokio::test(start_paused = true)]
async fn what_the_cache_was_good_for_outlives_a_restart() {
    let (net, registry) = hub();
    let images = [1, 2].map(|seed| registry.push_image("library/app", &format!("arch{seed}"), &[100 * KIB], seed));
    let index = registry.push_index("library/app", "latest", &images);
    let mut larder = Larder::start(&net);
    for day in 0..3 {
        if day > 0 {
            larder.app.control.write_history();
            larder = larder.stop().await.start();
            larder.clock.advance(Duration::from_secs(86_400));
        }
        if day == 2 {
            net.down("hub.test");
        }
        for _ in 0..2 {
            assert_eq!(larder.get("/v2/library/app/manifests/latest").await.bytes(), &index.bytes);
            larder.get(&format!("/v2/library/app/manifests/{}", images[0].digest)).await;
            for blob in images[0].layers.iter().chain(&images[0].config) {
                assert_whole(&larder.get(&path_in("library/app", blob.digest)).await, blob);
            }
            settled(&larder).await;
        }
    }
    let stop = listen(&larder);
    let Answer::Stats(stats) = ask(&larder, Ask::Stats).await else { panic!("no stats") };
    let week = stats.week;
    // The index each time, not the image of it beside; one GET each of the two, and one outage.
    assert_eq!((week.pulls, week.counted_gets, week.hidden_minutes), (6, 2, 1), "{week:?}");
    assert!(week.saved_bytes() > 5 * 100 * KIB as u64 && week.saved_bytes() < 6 * 110 * KIB as u64, "{week:?}");
    larder.app.control.write_history();
    larder.clock.advance(Duration::from_secs(8 * 86_400));
    let Answer::Stats(stats) = ask(&larder, Ask::Stats).await else { panic!("no stats") };
    assert_eq!(stats.week.pulls, 0);
    stop.cancel();
}

/// The binary, on the configuration that the daemon of this directory has.
fn run(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).arg("--config").arg(directory.join("larder.yaml")).env_clear();
    let Output { status, stdout, stderr } = command.output().expect("the binary");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("an exit"), text(stdout), text(stderr))
}

async fn daemon_with_an_image(directory: &Path) -> (Daemon, FakeRegistry, Image) {
    let registry = FakeRegistry::new();
    let upstream = registry.listen_tcp().await;
    let image = registry.push_image("library/app", "latest", &[100 * KIB, 90 * KIB], 1);
    let daemon = Daemon::start(directory, upstream).await;
    let mut client = daemon.client().await;
    client.get("/v2/library/app/manifests/latest").send().await;
    for layer in &image.layers {
        assert_whole(&client.get(&path_in("library/app", layer.digest)).send().await, layer);
    }
    let stored = || image.layers.iter().all(|layer| blob_file(&directory.join("cache"), layer.digest).exists());
    until("it is stored", stored).await;
    (daemon, registry, image)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_is_asked_over_a_socket_of_its_own_user() {
    let directory = tempfile::tempdir().expect("a directory");
    let (daemon, _registry, image) = daemon_with_an_image(directory.path()).await;
    let socket = directory.path().join("cache/control.sock");
    assert_eq!(std::fs::metadata(&socket).expect("a socket").permissions().mode() & 0o777, 0o600);

    let (code, text, _) = run(directory.path(), &["stats"]);
    assert!(code == 0 && text.contains("docker.io/library/app") && text.contains("requests"), "{text}");
    let (code, text, _) = run(directory.path(), &["stats", "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &stats["held"]["upstreams"]["docker.io"]["manifests"]), (0, &1.into()));

    flip(&blob_file(&directory.path().join("cache"), image.layers[0].digest));
    let (code, text, error) = run(directory.path(), &["verify"]);
    assert!(code == 1 && text.contains(&image.layers[0].digest.to_string()) && error.contains("--repair"), "{text}{error}");
    let (code, text, _) = run(directory.path(), &["verify", "--repair", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["damaged"], &report["repaired"]), (0, &1.into(), &true.into()));
    assert_eq!(run(directory.path(), &["verify"]).0, 0);

    let (code, text, _) = run(directory.path(), &["purge", "app:*"]);
    assert!(code == 0 && text.starts_with("1 tags, 1 manifests"), "{text}");
    assert_eq!(run(directory.path(), &["purge", "app"]).0, 2);
    // A second daemon: it has its own ports, and no way to this directory.
    let config = std::fs::read_to_string(directory.path().join("larder.yaml")).expect("a configuration");
    let cache = config.lines().filter(|line| line.starts_with("cache:")).collect::<String>();
    let second = tempfile::tempdir().expect("a directory");
    let text = format!("server: {{listen: '127.0.0.1:0'}}\nadmin: {{listen: '127.0.0.1:0'}}\n{cache}\n");
    std::fs::write(second.path().join("larder.yaml"), text).expect("a configuration");
    let (code, _, error) = run(second.path(), &["serve"]);
    assert!(code == 4 && error.contains("in use by process"), "{code} {error}");
    assert!(socket.exists(), "the second has not touched it");
    assert_eq!(run(directory.path(), &["stats"]).0, 0);
    daemon.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_directory_is_asked_by_taking_its_lock() {
    let directory = tempfile::tempdir().expect("a directory");
    let (daemon, _registry, image) = daemon_with_an_image(directory.path()).await;
    daemon.kill();
    let cache = directory.path().join("cache");
    assert!(cache.join("control.sock").exists(), "nobody has tidied up");
    flip(&blob_file(&cache, image.layers[1].digest));

    let (code, text, _) = run(directory.path(), &["stats"]);
    assert!(code == 0 && text.contains("docker.io/library/app") && !text.contains("requests"), "{text}");
    let doubt = || std::fs::read_to_string(cache.join("lock")).expect("a lock").contains("\"doubt\":true");
    assert!(doubt(), "it was killed, and stats has hashed nothing");
    assert_eq!(run(directory.path(), &["verify"]).0, 1);
    assert_eq!(run(directory.path(), &["verify", "--repair"]).0, 0);
    assert!(!doubt(), "everything has been hashed");
    let (code, text, _) = run(directory.path(), &["purge", "docker.io/*"]);
    assert!(code == 0 && text.starts_with("1 tags, 1 manifests"), "{text}");
    assert!(!blob_file(&cache, image.layers[0].digest).exists());
    let nowhere = tempfile::tempdir().expect("a directory");
    std::fs::write(nowhere.path().join("larder.yaml"), format!("cache: {{path: '{}/none'}}", nowhere.path().display())).expect("a file");
    let (code, _, error) = run(nowhere.path(), &["stats"]);
    assert!(code == 5 && error.contains("no cache directory") && !nowhere.path().join("none").exists(), "{error}");
}
