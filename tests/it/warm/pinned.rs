//! Pinned images: fetched when missing, and kept complete.

use std::sync::Arc;
use std::time::Duration;

use larder::mirror::Pinned;
use larder::store::Selected;
use tokio::time::Instant;

use super::{KIB, MIB, is_held, pulls, push_index, warm_one};
use crate::eviction::pins;
use crate::fills::{fills, hub};
use crate::store::pull;
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registry::{Fault, Image, any, get, head};

fn missing(larder: &Larder) -> f64 {
    larder.metric("larder_pinned_images_missing")
}

/// A larder with pins, and what keeps them, which the test drives itself.
fn pinning(setup: Setup, texts: &str) -> (Larder, Pinned) {
    let pinned = pins(texts);
    let larder = setup.cache(|cache| cache.pinned_images = pinned).start();
    let keeper = larder.app.pinned();
    (larder, keeper)
}

/// Past the time of every tag and every pause.
fn later(larder: &Larder) {
    larder.clock.advance(Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_pinned_image_is_fetched_when_missing_and_costs_a_head_from_then_on() {
    let (net, registry) = hub();
    let image = registry.push_image("library/base", "3.20", &[100 * KIB, 5 * KIB], 1);
    let (larder, mut pinned) = pinning(Setup::new(&net), "\"docker.io/base:3.20\"");
    pinned.look().await;
    assert_eq!((missing(&larder), registry.count(any())), (1.0, 0));
    pinned.round().await;
    assert_eq!((missing(&larder), is_held(&larder, &image)), (0.0, true));
    assert_eq!((registry.count(get().manifest()), registry.count(get().blob())), (1, 3));
    registry.forget_requests();
    for round in 1..4 {
        later(&larder);
        pinned.round().await;
        assert_eq!((registry.count(any()), registry.count(head().manifest())), (round, round));
    }
    // Somebody has been at it.
    larder.app.store.purge(&Selected::Object(image.layers[0].digest)).expect("a disk");
    assert!(pinned.look().await && missing(&larder) == 1.0);
    pinned.round().await;
    assert_eq!((missing(&larder), is_held(&larder, &image), registry.count(get().blob())), (0.0, true, 1));
    assert!(!pinned.look().await);
}

#[tokio::test(start_paused = true)]
async fn the_running_daemon_keeps_its_pins_by_itself() {
    let (net, registry) = hub();
    let image = registry.push_image("library/base", "3.20", &[100 * KIB], 1);
    let (larder, pinned) = pinning(Setup::new(&net), "\"docker.io/base:3.20\"");
    let keeping = tokio::spawn(pinned.run());
    registry.wait_for(get().blob(), 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(is_held(&larder, &image) && missing(&larder) == 0.0);
    larder.app.store.purge(&Selected::Object(image.layers[0].digest)).expect("a disk");
    let begun = Instant::now();
    registry.wait_for_within(Duration::from_secs(120), get().blob(), 3).await;
    assert!(begun.elapsed() <= Duration::from_secs(61), "{:?}", begun.elapsed());
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn a_pattern_fetches_no_tag_that_nobody_has_pulled_and_completes_what_was() {
    let (net, registry) = hub();
    let images: Vec<Image> = (0..3).map(|n| registry.push_image("library/base", &format!("3.{n}"), &[50 * KIB], n)).collect();
    let (larder, mut pinned) = pinning(Setup::new(&net), "\"docker.io/base:3.*\"");
    pinned.round().await;
    assert_eq!((missing(&larder), registry.count(any())), (0.0, 0));
    larder.get("/v2/library/base/manifests/3.1").await;
    pinned.look().await;
    assert_eq!(missing(&larder), 1.0);
    pinned.round().await;
    assert_eq!((missing(&larder), is_held(&larder, &images[1])), (0.0, true));
    assert!(!larder.app.store.contains(&images[0].digest));
}

#[tokio::test(start_paused = true)]
async fn a_pinned_tag_that_moved_is_followed_for_the_platforms_that_were_pulled() {
    let (net, registry) = hub();
    let (index, images) = push_index(&registry, 1);
    let (larder, mut pinned) = pinning(Setup::new(&net), "\"docker.io/app:latest\"");
    // Not this machine's alone: what a client has pulled counts.
    pulls(&larder, "library/app", "latest", &index, &images[2]).await;
    pinned.round().await;
    assert_eq!(missing(&larder), 0.0);
    assert!(is_held(&larder, &images[2]) && !larder.app.store.contains(&images[0].digest) && !larder.app.store.contains(&images[1].digest));
    let (_, new) = push_index(&registry, 2);
    later(&larder);
    registry.forget_requests();
    pinned.round().await;
    assert_eq!(missing(&larder), 0.0);
    assert!(is_held(&larder, &new[2]) && !larder.app.store.contains(&new[0].digest) && !larder.app.store.contains(&new[1].digest));
    assert_eq!((registry.count(get().manifest()), registry.count(get().blob())), (2, 3));
}

#[tokio::test(start_paused = true)]
async fn pinned_platforms_are_fetched_and_no_others() {
    let (net, registry) = hub();
    let (_, images) = push_index(&registry, 1);
    let setup = Setup::new(&net).cache(|cache| cache.pinned_platforms = vec!["linux/arm64".parse().expect("a platform")]);
    let (larder, mut pinned) = pinning(setup, "\"docker.io/app:latest\"");
    pinned.round().await;
    assert!(missing(&larder) == 0.0 && is_held(&larder, &images[1]));
    assert!(!larder.app.store.contains(&images[0].digest) && !larder.app.store.contains(&images[2].digest));
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_waited_out_and_a_limit_is_not_eaten() {
    let (net, registry) = hub();
    let names: Vec<String> = (0..5).map(|n| format!("\"docker.io/base{n}:1\"")).collect();
    for n in 0..5 {
        registry.push_image(&format!("library/base{n}"), "1", &[KIB], n);
    }
    let (larder, pinned) = pinning(Setup::new(&net), &names.join(", "));
    net.down("hub.test");
    let keeping = tokio::spawn(pinned.run());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let dials = net.dialled().len();
    assert!((1..=80).contains(&dials), "{dials} in an hour");
    assert_eq!(missing(&larder), 5.0);
    registry.when(get().manifest()).first(3).then(Fault::too_many_requests(1800));
    net.up("hub.test");
    tokio::time::sleep(Duration::from_secs(1500)).await;
    assert!((1..=3).contains(&registry.count(get().manifest())), "{}", registry.count(get().manifest()));
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(missing(&larder), 0.0);
    keeping.abort();
}

fn small(net: &FakeNet) -> Setup {
    Setup::new(net).cache(|cache| (cache.max_size, cache.max_blob_size) = (3 * MIB as u64, 3 * MIB as u64))
}

#[tokio::test(start_paused = true)]
async fn pins_that_do_not_fit_are_fetched_once_and_evict_none_of_each_other() {
    let (net, registry) = hub();
    let images: Vec<Image> = (0..3).map(|n| registry.push_image(&format!("library/base{n}"), "1", &[MIB, 100 * KIB], n)).collect();
    let (larder, pinned) = pinning(small(&net), "\"docker.io/base0:1\", \"docker.io/base1:1\", \"docker.io/base2:1\"");
    let keeping = tokio::spawn(pinned.run());
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    assert!(is_held(&larder, &images[0]) && is_held(&larder, &images[1]));
    assert_eq!((missing(&larder), registry.count(get().blob()), fills(&larder, "stored")), (1.0, 6, 6.0));
    assert!(registry.count(get().manifest()) <= 3, "{}", registry.count(get().manifest()));
    keeping.abort();
    // Clients are served past it.
    let other = registry.push_image("library/other", "latest", &[2 * MIB], 9);
    pull(&larder, "library/other", &other).await;
    assert!(is_held(&larder, &images[0]) && is_held(&larder, &images[1]));
}

/// What cannot even be recorded would cost a counted GET each time.
#[tokio::test(start_paused = true)]
async fn a_pin_that_the_disk_refuses_is_asked_for_more_and_more_rarely() {
    let (net, registry) = hub();
    registry.push_image("library/base", "1", &[KIB], 1);
    let disk = crate::support::disk::FaultyDisk::new();
    let (larder, pinned) = pinning(Setup::new(&net).disk(Arc::new(disk.clone())), "\"docker.io/base:1\"");
    disk.read_only();
    let keeping = tokio::spawn(pinned.run());
    tokio::time::sleep(Duration::from_secs(24 * 3600)).await;
    let gets = registry.count(get().manifest());
    assert!((2..=12).contains(&gets), "{gets} counted GETs in a day");
    disk.heal();
    tokio::time::sleep(Duration::from_secs(7 * 3600)).await;
    assert_eq!(missing(&larder), 0.0);
    keeping.abort();
}

#[tokio::test(start_paused = true)]
async fn what_was_warmed_and_is_pinned_outlives_what_was_warmed() {
    let (net, registry) = hub();
    let base = registry.push_image("library/base", "1", &[MIB], 1);
    let (larder, mut pinned) = pinning(small(&net), "\"docker.io/base:1\"");
    pinned.round().await;
    for n in 0..5 {
        registry.push_image(&format!("library/app{n}"), "latest", &[MIB], 10 + n);
        larder.clock.advance(Duration::from_secs(1200));
        assert!(warm_one(&larder, &format!("app{n}"), &[]).await.complete);
        assert!(is_held(&larder, &base));
    }
}
