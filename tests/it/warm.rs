//! Warming: images that are complete here before anybody asks for them, and what of one is not to be had.

mod pinned;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use larder::config::{CredentialConfig, Secret, Visibility};
use larder::control::{self, Answer, Ask, Line};
use larder::mirror::{WarmProgress, Warmed};
use larder::oci::MediaType;
use serde_json::json;

use crate::eviction::all_of;
use crate::fills::{assert_whole, hub, path_in, until};
use crate::store::blob_file;
use crate::support::daemon::Daemon;
use crate::support::disk::FaultyDisk;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::registry::{Bearer, FakeRegistry, Fault, Image, Latch, any, get, head};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// What `larder pull` asks, and what it is told.
async fn warm(larder: &Larder, images: &[&str], platforms: &[&str]) -> Vec<Warmed> {
    warm_with_progress(larder, images, platforms).await.0
}

async fn warm_with_progress(larder: &Larder, images: &[&str], platforms: &[&str]) -> (Vec<Warmed>, Vec<WarmProgress>) {
    let images = images.iter().map(|image| control::image(image, &larder.config).expect("an image")).collect();
    let ask = Ask::Pull { images, platforms: platforms.iter().map(ToString::to_string).collect() };
    let (sender, mut lines) = tokio::sync::mpsc::channel(16);
    tokio::spawn(larder.app.control.clone().run(ask, sender));
    let mut progress = Vec::new();
    while let Some(line) = lines.recv().await {
        match line {
            Line::Warming(told) => progress.push(told),
            Line::Done(Answer::Pulled(warmed)) => return (warmed, progress),
            other => panic!("{other:?}"),
        }
    }
    panic!("no answer");
}

async fn warm_one(larder: &Larder, image: &str, platforms: &[&str]) -> Warmed {
    warm(larder, &[image], platforms).await.pop().expect("an answer")
}

fn why(warmed: &Warmed) -> String {
    assert!(!warmed.complete && !warmed.missing.is_empty(), "{warmed:?}");
    warmed.reasons().iter().map(|(why, ..)| *why).collect::<Vec<_>>().join("; ")
}

fn is_held(larder: &Larder, image: &Image) -> bool {
    all_of(image).iter().all(|digest| larder.app.store.contains(digest) && blob_file(larder.cache(), *digest).exists())
}

fn bytes_of(image: &Image) -> u64 {
    image.layers.iter().chain(&image.config).map(|blob| blob.bytes.len() as u64).sum()
}

/// An index of an image each for amd64, arm64 and arm, at `library/app:latest`.
fn push_index(registry: &FakeRegistry, seed: u64) -> (Image, [Image; 3]) {
    let images = [0, 1, 2].map(|n| registry.push_image("library/app", &format!("part{n}"), &[200 * KIB, 2 * KIB], seed * 10 + n));
    let index = registry.push_index("library/app", "latest", &images);
    (index, images)
}

/// As docker does, with the tag by HEAD.
async fn pulls(larder: &Larder, repository: &str, tag: &str, index: &Image, image: &Image) {
    let tag = larder.head(&format!("/v2/{repository}/manifests/{tag}")).await;
    assert_eq!(tag.header("docker-content-digest"), Some(index.digest.to_string().as_str()));
    for manifest in [index, image] {
        let answer = larder.get(&format!("/v2/{repository}/manifests/{}", manifest.digest)).await;
        assert_eq!((answer.status, answer.bytes()), (200, &manifest.bytes));
    }
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path_in(repository, blob.digest)).await, blob);
    }
}

#[tokio::test(start_paused = true)]
async fn a_warmed_image_is_pulled_with_upstream_down_and_costs_nothing_twice() {
    let (net, registry) = hub();
    let (index, images) = push_index(&registry, 1);
    let larder = Larder::start(&net);
    let (warmed, progress) = warm_with_progress(&larder, &["app"], &["linux/arm64/v8"]).await;
    assert_eq!(warmed[0].image, "docker.io/library/app:latest");
    assert_eq!((warmed[0].complete, warmed[0].digest.clone()), (true, Some(index.digest.to_string())), "{warmed:?}");
    assert_eq!((warmed[0].fetched_bytes, warmed[0].held_bytes), (bytes_of(&images[1]), 0));
    assert_eq!(progress[0], WarmProgress { images: 0, images_total: 1, fetched_bytes: 0 });
    assert!(is_held(&larder, &images[1]) && larder.app.store.contains(&index.digest));
    assert!(!larder.app.store.contains(&images[0].digest) && !larder.app.store.contains(&images[2].digest));
    let asked = [head().manifest(), get().manifest(), get().blob()].map(|what| registry.count(what));
    assert_eq!(asked, [1, 2, 3], "a HEAD for the tag, the index and the image, two layers and a configuration");

    registry.forget_requests();
    let again = warm_one(&larder, "docker.io/library/app:latest", &["linux/arm64"]).await;
    assert_eq!((again.complete, again.fetched_bytes, again.held_bytes), (true, 0, bytes_of(&images[1])));
    assert_eq!(registry.count(any()), 0);
    // Past its time, one HEAD.
    larder.clock.advance(Duration::from_secs(3600));
    assert!(warm_one(&larder, "app", &["linux/arm64"]).await.complete);
    assert_eq!((registry.count(any()), registry.count(head().manifest())), (1, 1));

    net.down("hub.test");
    pulls(&larder, "library/app", "latest", &index, &images[1]).await;
    assert_eq!(larder.metric("larder_requests_total{kind=\"blob\",outcome=\"hit\",upstream=\"docker.io\"}"), 3.0);
}

/// What is fetched for nobody counts as no pull.
#[tokio::test(start_paused = true)]
async fn by_digest_for_several_platforms_or_for_all() {
    let (net, registry) = hub();
    let (index, images) = push_index(&registry, 1);
    let larder = Larder::start(&net);
    let name = format!("app@{}", index.digest);
    assert!(warm_one(&larder, &name, &["linux/amd64", "linux/arm/v7"]).await.complete);
    assert!(is_held(&larder, &images[0]) && is_held(&larder, &images[2]) && !larder.app.store.contains(&images[1].digest));
    assert!(warm_one(&larder, &name, &["all"]).await.complete);
    assert!(images.iter().all(|image| is_held(&larder, image)));
    assert_eq!((registry.count(head().manifest()), registry.count(get().manifest())), (0, 4));
    let Answer::Stats(stats) = asked(&larder, Ask::Stats).await else { panic!("no stats") };
    assert_eq!((stats.week.pulls, stats.week.counted_gets), (0, 4));
}

async fn asked(larder: &Larder, ask: Ask) -> Answer {
    let (sender, mut lines) = tokio::sync::mpsc::channel(16);
    tokio::spawn(larder.app.control.clone().run(ask, sender));
    while let Some(line) = lines.recv().await {
        if let Line::Done(answer) = line {
            return answer;
        }
    }
    panic!("no answer");
}

#[tokio::test(start_paused = true)]
async fn without_a_platform_it_is_the_machine_s_own() {
    let (net, registry) = hub();
    let (_, images) = push_index(&registry, 1);
    let larder = Larder::start(&net);
    let own = match std::env::consts::ARCH {
        "x86_64" => Some(0),
        "aarch64" => Some(1),
        "arm" => Some(2),
        _ => None,
    };
    let warmed = warm_one(&larder, "app", &[]).await;
    assert_eq!(warmed.complete, own.is_some(), "{warmed:?}");
    for (n, image) in images.iter().enumerate() {
        assert_eq!(larder.app.store.contains(&image.digest), own == Some(n), "{n}");
    }
}

/// No client pulls what buildkit says about an image along with it.
#[tokio::test(start_paused = true)]
async fn attestations_are_left_out_but_of_all() {
    let (net, registry) = hub();
    let [image, said] = [1, 2].map(|seed| registry.push_image("library/app", &format!("part{seed}"), &[5 * KIB], seed));
    let entry = |image: &Image, os: &str, architecture: &str| {
        json!({ "mediaType": image.media_type, "digest": image.digest.to_string(), "size": image.bytes.len(),
            "platform": { "os": os, "architecture": architecture } })
    };
    let manifests = [entry(&image, "linux", "amd64"), entry(&said, "unknown", "unknown")];
    let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": manifests });
    registry.push_manifest("library/app", Some("latest"), MediaType::OCI_INDEX, index.to_string());
    let larder = Larder::start(&net);
    assert!(warm_one(&larder, "app", &["linux/amd64"]).await.complete);
    assert!(is_held(&larder, &image) && !larder.app.store.contains(&said.digest));
    assert!(warm_one(&larder, "app", &["all"]).await.complete);
    assert!(is_held(&larder, &said));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_to_be_had_is_named_with_its_reason_and_the_rest_comes() {
    let (net, registry) = hub();
    let (_, images) = push_index(&registry, 1);
    let good = registry.push_image("library/good", "latest", &[10 * KIB], 2);
    let broken = registry.push_image("library/broken", "latest", &[10 * KIB, 20 * KIB], 3);
    registry.delete_blob("library/broken", broken.layers[0].digest);
    let larder = Larder::start(&net);
    let warmed = warm(&larder, &["nothing", "broken", "good", "app"], &["linux/amd64", "linux/s390x"]).await;
    assert_eq!(warmed.iter().map(|one| one.complete).collect::<Vec<_>>(), [false, false, true, false]);
    assert_eq!(why(&warmed[0]), "docker.io has no such image");
    assert_eq!((why(&warmed[1]), warmed[1].missing[0].bytes), ("docker.io has no such blob".to_owned(), 10 * KIB as u64));
    assert_eq!(warmed[1].missing[0].digest, Some(broken.layers[0].digest.to_string()));
    assert!(larder.app.store.contains(&broken.layers[1].digest) && is_held(&larder, &good) && is_held(&larder, &images[0]));
    assert_eq!(why(&warmed[3]), "it is not there for linux/s390x, but for linux/amd64, linux/arm64, linux/arm/v7");
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_what_is_held_whole_is_complete_and_said_to_be_unconfirmed() {
    let (net, registry) = hub();
    let (_, images) = push_index(&registry, 1);
    let larder = Larder::start(&net);
    assert!(warm_one(&larder, "app", &["linux/amd64"]).await.complete);
    larder.clock.advance(Duration::from_secs(3600));
    net.down("hub.test");
    let warmed = warm(&larder, &["app", "other"], &["linux/amd64"]).await;
    assert_eq!((warmed[0].complete, warmed[0].note.as_deref()), (true, Some("not confirmed: docker.io cannot answer")));
    assert!(why(&warmed[1]).contains("docker.io unavailable"), "{warmed:?}");
    assert!(why(&warm_one(&larder, "app", &["linux/amd64", "linux/arm64"]).await).contains("docker.io unavailable"));
    net.up("hub.test");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(warm_one(&larder, "app", &["linux/amd64", "linux/arm64"]).await.complete);
    assert!(is_held(&larder, &images[1]));
}

#[tokio::test(start_paused = true)]
async fn a_pull_limit_that_is_reached_is_not_asked_against() {
    let (net, registry) = hub();
    let names: Vec<String> = (0..20).map(|n| format!("app{n}")).collect();
    for (name, n) in names.iter().zip(0..) {
        registry.push_image(&format!("library/{name}"), "latest", &[KIB], n);
    }
    registry.when(get().manifest()).from(3).then(Fault::too_many_requests(3600));
    let larder = Larder::start(&net);
    let warmed = warm(&larder, &names.iter().map(String::as_str).collect::<Vec<_>>(), &[]).await;
    let complete = warmed.iter().filter(|one| one.complete).count();
    assert_eq!(complete, 2);
    // Those that were under way when it was said.
    assert!(registry.count(get().manifest()) <= 2 + 4, "{}", registry.count(get().manifest()));
    let reason = warmed.iter().find(|one| !one.complete).map(why).expect("one");
    assert!(reason.contains("the limit of docker.io is reached"), "{reason}");
}

#[tokio::test(start_paused = true)]
async fn a_slow_word_on_a_held_tag_is_waited_for() {
    let (net, registry) = hub();
    registry.push_image("library/app", "latest", &[10 * KIB], 1);
    let larder = Larder::start(&net);
    assert!(warm_one(&larder, "app", &[]).await.complete);
    let new = registry.push_image("library/app", "latest", &[10 * KIB], 2);
    larder.clock.advance(Duration::from_secs(3600));
    // Clients get what is held after two seconds.
    registry.when(head().manifest()).then(Fault::Delay(Duration::from_secs(8)));
    let warmed = warm_one(&larder, "app", &[]).await;
    assert_eq!((warmed.complete, warmed.digest, warmed.note), (true, Some(new.digest.to_string()), None));
    assert!(is_held(&larder, &new));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_stored_is_not_downloaded() {
    let (net, registry) = hub();
    let large = registry.push_image("library/large", "latest", &[2 * MIB, KIB], 1);
    let many = registry.push_image("library/many", "latest", &[900 * KIB, 900 * KIB, 900 * KIB, 900 * KIB, 900 * KIB], 2);
    let larder = Setup::new(&net).cache(|cache| (cache.max_size, cache.max_blob_size) = (4 * MIB as u64, MIB as u64)).start();
    let warmed = warm(&larder, &["large", "many"], &[]).await;
    assert_eq!((why(&warmed[0]), warmed[0].missing.len()), ("it is larger than cache.max_blob_size".to_owned(), 1));
    assert_eq!(registry.count(get().blob().of(large.layers[0].digest)), 0);
    assert!(why(&warmed[1]).contains("no room for all of the image") && warmed[1].needs_bytes > 4 * MIB as u64, "{warmed:?}");
    assert!(many.layers.iter().all(|layer| registry.count(get().blob().of(layer.digest)) == 0));
}

#[tokio::test(start_paused = true)]
async fn a_download_for_nobody_ends_when_the_disk_refuses_it() {
    // Before its first byte, and in its midst.
    for space in [0, 3 * MIB as u64] {
        let (net, registry) = hub();
        let image = registry.push_image("library/app", "latest", &[30 * MIB], 1);
        let disk = FaultyDisk::new();
        let larder = Setup::new(&net).disk(Arc::new(disk.clone())).start();
        // The manifest and the configuration come first.
        assert_eq!(larder.get("/v2/library/app/manifests/latest").await.status, 200);
        larder.get(&path_in("library/app", image.config.as_ref().expect("one").digest)).await;
        until("it is stored", || larder.metric("larder_fills_in_flight") == 0.0).await;
        disk.fill_up_after(space);
        let begun = tokio::time::Instant::now();
        let warmed = warm_one(&larder, "app", &[]).await;
        assert!(why(&warmed).contains("no room") && warmed.missing[0].bytes == 30 * MIB as u64, "{warmed:?}");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert!(registry.body_bytes_sent() < 8 * MIB as u64, "{} bytes for nobody", registry.body_bytes_sent());
        disk.heal();
        assert!(warm_one(&larder, "app", &[]).await.complete);
        assert!(is_held(&larder, &image));
    }
}

#[tokio::test(start_paused = true)]
async fn invariant_09_a_client_that_joins_a_warming_download_gets_its_bytes_though_the_disk_is_full() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[9 * MIB], 1);
    let layer = &image.layers[0];
    let latch = Latch::new();
    registry.when(get().blob().of(layer.digest)).then(Fault::HoldAt(MIB as u64, latch.clone()));
    let disk = FaultyDisk::new();
    let larder = Arc::new(Setup::new(&net).disk(Arc::new(disk.clone())).start());
    let warming = {
        let larder = Arc::clone(&larder);
        tokio::spawn(async move { warm_one(&larder, "app", &[]).await })
    };
    registry.wait_for(get().blob().of(layer.digest), 1).await;
    let mut client = larder.client().await;
    let mut body = client.open(&path_in("library/app", layer.digest)).await;
    let first = body.read_exactly(MIB / 2).await.expect("a beginning");
    disk.fill_up_after(MIB as u64);
    latch.open();
    let rest = body.read_to_end().await.expect("all of it");
    assert!([&first[..], &rest[..]].concat() == layer.bytes);
    assert!(why(&warming.await.expect("an answer")).contains("no room"));
    assert_eq!(registry.count(get().blob().of(layer.digest)), 1);
}

#[tokio::test(start_paused = true)]
async fn clients_downloads_come_first() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100 * KIB, 100 * KIB, 100 * KIB], 1);
    let wanted = registry.push_image("library/wanted", "latest", &[100 * KIB], 2);
    let latch = Latch::new();
    for layer in &image.layers {
        registry.when(get().blob().of(layer.digest)).then(Fault::Hold(latch.clone()));
    }
    let mut setup = Setup::new(&net);
    setup.config.fills.max_concurrent = 4;
    let larder = Arc::new(setup.start());
    let warming = {
        let larder = Arc::clone(&larder);
        tokio::spawn(async move { warm_one(&larder, "app", &[]).await })
    };
    // Of the four downloads of the image, half of the places are filled.
    until("some are under way", || larder.metric("larder_fills_in_flight") == 2.0).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!((larder.metric("larder_fills_in_flight"), larder.metric("larder_fills_queued")), (2.0, 0.0));
    let begun = tokio::time::Instant::now();
    assert_whole(&larder.get(&path_in("library/wanted", wanted.layers[0].digest)).await, &wanted.layers[0]);
    assert!(begun.elapsed() < Duration::from_secs(1));
    latch.open();
    assert!(warming.await.expect("an answer").complete);
}

#[tokio::test(start_paused = true)]
async fn images_that_push_each_other_out_are_not_said_to_be_complete() {
    let (net, registry) = hub();
    let names: Vec<String> = (0..6).map(|n| format!("app{n}")).collect();
    let images: Vec<Image> =
        names.iter().zip(0..).map(|(name, n)| registry.push_image(&format!("library/{name}"), "latest", &[MIB], n)).collect();
    let larder = Setup::new(&net).cache(|cache| cache.max_size = 3 * MIB as u64).start();
    let warmed = warm(&larder, &names.iter().map(String::as_str).collect::<Vec<_>>(), &[]).await;
    for (one, image) in warmed.iter().zip(&images) {
        assert_eq!(one.complete, is_held(&larder, image), "{one:?}");
    }
    let complete = warmed.iter().filter(|one| one.complete).count();
    assert!((1..=2).contains(&complete), "{complete}");
    // Pushed out by another, or without room beside those that were coming; which, is a matter of moments.
    warmed.iter().filter(|one| !one.complete).for_each(|one| assert!(!why(one).is_empty()));
}

#[tokio::test(start_paused = true)]
async fn who_stops_asking_stops_what_has_not_begun() {
    let (net, registry) = hub();
    let image = registry.push_image("library/app", "latest", &[100 * KIB; 12], 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::Hold(latch.clone()));
    let larder = Larder::start(&net);
    let ask = Ask::Pull { images: vec!["docker.io/library/app:latest".into()], platforms: vec![] };
    let (sender, lines) = tokio::sync::mpsc::channel(16);
    let running = tokio::spawn(larder.app.control.clone().run(ask, sender));
    registry.wait_for(get().blob(), 8).await;
    drop(lines);
    running.await.expect("it ends");
    latch.open();
    until("what is under way has ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    let stored = image.layers.iter().chain(&image.config).filter(|blob| larder.app.store.contains(&blob.digest)).count();
    assert_eq!((registry.count(get().blob()), stored), (8, 8));
}

/// What an operator warms, clients read: it goes by their rights.
#[tokio::test(start_paused = true)]
async fn what_clients_may_not_have_is_not_warmed() {
    let (net, registry) = hub();
    let secret = registry.push_image("org/secret", "latest", &[10 * KIB], 1);
    registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "paid").private("org/secret"));
    let login = || vec![CredentialConfig::password("me", Secret::Inline("paid".into()))];
    let larder = Setup::new(&net).hub(|hub| hub.credentials = login()).start();
    let warmed = warm_one(&larder, "org/secret", &[]).await;
    assert!(why(&warmed).contains("docker.io refused access") && !larder.app.store.contains(&secret.digest), "{warmed:?}");
    let setup = larder.stop().await;
    let larder = setup.hub(|hub| hub.visibility = Visibility::Private).start();
    assert!(warm_one(&larder, "org/secret", &[]).await.complete);
}

#[tokio::test(start_paused = true)]
async fn invariant_14_a_warmed_image_does_not_borrow_a_private_blob() {
    for has_it in [false, true] {
        let (net, registry) = hub();
        let corp = FakeRegistry::new();
        net.host("corp.test", "93.184.216.35", &corp);
        corp.require_basic("me", "secret");
        let secret = corp.push_image("team/app", "latest", &[10 * KIB], 1);
        let mut private = upstream("corp.test", "corp.test");
        private.visibility = Visibility::Private;
        private.credentials = vec![CredentialConfig::password("me", Secret::Inline("secret".into()))];
        let larder = Setup::new(&net).upstream(private).start();
        assert!(warm_one(&larder, "corp.test/team/app", &[]).await.complete);
        let layer = &secret.layers[0];
        let layers = json!([{ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": layer.digest.to_string(), "size": layer.bytes.len() }]);
        let evil = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "layers": layers });
        registry.push_manifest("library/evil", Some("latest"), MediaType::OCI_MANIFEST, evil.to_string());
        if has_it {
            registry.push_blob("library/evil", layer.bytes.clone());
        }
        let warmed = warm_one(&larder, "evil", &[]).await;
        assert_eq!(warmed.complete, has_it, "{warmed:?}");
        assert_eq!((registry.count(head().blob()), registry.count(get().blob())), (1, 0));
        assert_eq!(larder.get(&path_in("library/evil", layer.digest)).await.status, if has_it { 200 } else { 404 });
    }
}

/// The binary, on the configuration that the daemon of this directory has.
fn run(directory: &Path, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).arg("--config").arg(directory.join("larder.yaml")).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary");
    // Who needs no input may be gone already.
    let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
    let Output { status, stdout, stderr } = child.wait_with_output().expect("an end");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code().expect("an exit"), text(stdout), text(stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_warms_a_running_daemon_or_a_stopped_directory() {
    let registry = FakeRegistry::new();
    let port = registry.listen_tcp().await;
    let names = ["one", "two", "three"];
    let images: Vec<Image> =
        names.iter().zip(1..).map(|(name, n)| registry.push_image(&format!("library/{name}"), "latest", &[90 * KIB], n)).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let daemon = Daemon::start(directory.path(), port).await;
    let pull = |arguments: &[&str], input: &str| run(directory.path(), &[&["pull"], arguments].concat(), input);
    let held = |image: &Image| all_of(image).iter().all(|digest| blob_file(&directory.path().join("cache"), *digest).exists());

    until("it can be asked", || directory.path().join("cache/control.sock").exists()).await;
    let (code, text, error) = pull(&["one"], "");
    assert_eq!((code, held(&images[0])), (0, true), "{text}{error}");
    assert!(text.starts_with("docker.io/library/one:latest: complete, 90.") && text.ends_with("here\n"), "{text}");
    assert!(text.lines().last().is_some_and(|line| line.starts_with("1 of 1 images are complete; ")), "{text}");
    assert!(error.contains("0 of 1 images, 0 B fetched"), "{error}");

    let list = "# the base\ntwo # for the build\n\n  docker.io/library/one:latest\none\n";
    let (code, text, error) = pull(&["-f", "-", "--json"], list);
    let told: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &told["complete"], &told["incomplete"], told["images"].as_array().map(Vec::len)), (0, &2.into(), &0.into(), Some(2)));
    assert!(told["held_bytes"].as_u64() > Some(90 * KIB as u64) && held(&images[1]), "{text}{error}");

    let file = directory.path().join("images.txt");
    std::fs::write(&file, "two\nnone:1\n").expect("a file");
    let (code, text, error) = pull(&["--file", file.to_str().expect("a path")], "");
    assert_eq!(code, 1);
    assert!(text.contains("docker.io/library/none:1: INCOMPLETE: docker.io has no such image\n1 of 2 images are complete"), "{text}");
    assert!(error.ends_with("1 of 2 images are incomplete\n"), "{error}");

    std::fs::write(&file, "two\nAlpine\n#\nquay.io/a/b:1\n").expect("a file");
    for (arguments, says) in [
        (
            &["-f", file.to_str().expect("a path")][..],
            &["images.txt:2: `Alpine", "images.txt:4: `quay.io/a/b:1`: quay.io is not an upstream"][..],
        ),
        (&["one", "--platform", "arm64"], &["--platform: `arm64` is no platform", "linux/arm64, or all"]),
        (&["one:*"], &["`one:*` is a pattern"]),
        (&["-f", "/nowhere"], &["/nowhere: No such file"]),
        (&["-f", "-"], &["no image is named"]),
        (&[], &["<REF>"]),
    ] {
        let (code, text, error) = pull(arguments, "# nothing\n");
        assert_eq!((code, text.as_str()), (2, ""), "{arguments:?} {error}");
        assert!(says.iter().all(|says| error.contains(says)), "{arguments:?}: {error}");
    }

    daemon.kill();
    registry.forget_requests();
    let (code, text, error) = pull(&["three", "one"], "");
    assert_eq!((code, held(&images[2])), (0, true), "{text}{error}");
    assert_eq!(registry.count(get().blob()), 2, "one layer and one configuration");
    let (code, text, _) = pull(&["three", "gone"], "");
    assert!(code == 1 && text.contains("docker.io/library/gone:latest: INCOMPLETE"), "{text}");
}
