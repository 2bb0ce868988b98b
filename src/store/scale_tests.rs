//! What a million objects take in RAM, and how long one waits for them. To be run in release, alone:
//! `cargo test --release --lib store::scale -- --ignored --nocapture --test-threads 1`.
#![allow(clippy::print_stdout, clippy::disallowed_methods, reason = "figures for people")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::disk::SystemDisk;
use super::evict::plan::Demand;
use super::evict::{Item, Ledger};
use super::links::{Link, Links};
use super::uptime::DaemonTime;
use super::{Options, RepositoryKey, Store};
use crate::clock::Clock;
use crate::config::VerifyOnRead;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::oci::{Digest, MediaType};

const MANIFESTS: u64 = 100_000;
const BLOBS: u64 = 1_000_000;
const REPOSITORIES: u64 = 10_000;
/// Manifests that list the same layers, and how many layers.
const OF_ONE_BASE: u64 = 1_000;
const BASE: u64 = 5;
const RSS_MAX: u64 = 180 << 20;

/// The numbers of one manifest's children; each blob but the base has one parent.
fn children(manifest: u64) -> Vec<u64> {
    let own = manifest * (BLOBS / MANIFESTS)..(manifest + 1) * (BLOBS / MANIFESTS);
    let base = if manifest < OF_ONE_BASE { 0..BASE } else { 0..0 };
    base.chain(own).collect()
}

/// A digest like any other, without a list of them.
fn digest(n: u64) -> Digest {
    let mut hash = [0; 32];
    let mut state = n;
    for chunk in hash.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state = state.wrapping_mul(3);
        chunk.copy_from_slice(&(mixed ^ (mixed >> 31)).to_be_bytes());
    }
    Digest::Sha256(hash)
}

fn manifest(n: u64) -> Digest {
    digest(BLOBS + n)
}

fn repository(n: u64) -> RepositoryKey {
    let name = format!("team{}/application{n}", n % 50).parse().expect("a name");
    RepositoryKey { upstream: if n.is_multiple_of(10) { "private.example" } else { "docker.io" }.into(), name }
}

fn rss() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("a Linux");
    let pages: u64 = statm.split(' ').nth(1).expect("a field").parse().expect("a number");
    pages * rustix::param::page_size() as u64
}

fn timed<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let (start, before) = (Instant::now(), rss());
    let done = work();
    println!("{what:44} {:9.1} ms {:+8.1} MB", start.elapsed().as_secs_f64() * 1e3, (rss() as f64 - before as f64) / 1e6);
    done
}

fn stores() -> (Ledger, Links) {
    let ledger = Ledger::new(u64::MAX >> 1);
    let links = Links::with_names(ledger.names(), ["private.example".into()]);
    (ledger, links)
}

fn fill_links(links: &mut Links) {
    let media_type: MediaType = MediaType::OCI_MANIFEST.parse().expect("a type");
    for n in 0..MANIFESTS {
        let children = children(n).into_iter().map(|child| (digest(child), 40_000 + child)).collect();
        links.list(manifest(n), children);
        links.hold(repository(n % REPOSITORIES), manifest(n), media_type.as_str().parse().expect("a type"));
    }
}

#[test]
#[ignore = "a million objects; for release, alone"]
fn a_million_blobs_take_less_than_180_mib() {
    let before = rss();
    let (mut ledger, mut links) = stores();
    let all = 0..BLOBS + MANIFESTS;
    let start = Instant::now();
    timed("expected, as the index says", || all.clone().for_each(|n| ledger.expect(digest(n), DaemonTime(n % 100_000))));
    // Directories are listed in the order of digests, which is none.
    let nth = |n: u64| n * 700_001 % (BLOBS + MANIFESTS);
    timed("found, as files", || {
        for n in all.clone().map(nth) {
            assert!(!ledger.find(Item::Stored(digest(n)), 40_960, (DaemonTime(0), n)), "it was expected");
        }
    });
    assert!(ledger.finish_loading().is_empty());
    timed("manifests listed and held", || fill_links(&mut links));
    timed("blobs confirmed", || (0..BLOBS).for_each(|n| links.confirm(&"docker.io".into(), digest(n))));
    let (taken, seconds) = (rss() - before, start.elapsed().as_secs_f64());
    let each = taken as f64 / (BLOBS + MANIFESTS) as f64;
    println!("{:.1} MB, {each:.0} bytes an object, in {seconds:.1} s\n", taken as f64 / 1e6);

    let all_of = |link: Link| assert!(!matches!(link, Link::Unlisted));
    timed("1000 links to a base layer", || (0..1000).for_each(|n| all_of(links.link(&repository(n), &digest(2)))));
    timed("1000 links to a layer", || (0..1000).for_each(|n| all_of(links.link(&repository(n), &digest(n * 10 + 3)))));
    timed("10,000 repositories and what they hold", || {
        (0..REPOSITORIES).for_each(|n| assert_eq!(links.held_by(&repository(n)).len() as u64, MANIFESTS / REPOSITORIES));
    });
    timed("a plan of 100 victims", || {
        let demand = Demand { size: 100 * 40_960, ..Demand::default() };
        assert_eq!(ledger.plan(demand, usize::MAX, DaemonTime(u64::MAX), &|_, _| false).victims.len(), 100);
    });
    timed("everything used once", || all.clone().map(nth).for_each(|n| ledger.touch(&Item::Stored(digest(n)), DaemonTime(200_000 + n))));
    timed("what was used, for the index", || assert_eq!(ledger.take_touched().len() as u64, BLOBS + MANIFESTS));
    timed("a tenth evicted, and filled anew", || {
        for n in (0..BLOBS + MANIFESTS).step_by(10) {
            assert_eq!(ledger.remove(&Item::Stored(digest(n))), Some(40_960));
            links.forget(&digest(n));
            ledger.insert(Item::Stored(digest(n + 5_000_000)), 40_960, DaemonTime(2_000_000));
            links.confirm(&"docker.io".into(), digest(n + 5_000_000));
        }
    });
    let after = rss() - before;
    println!("{:.1} MB in the end", after as f64 / 1e6);
    assert!(taken.max(after) <= RSS_MAX, "{taken} bytes, then {after}");
}

#[test]
#[ignore = "a million objects; for release, alone"]
fn an_inventory_of_a_million_blobs_is_made_in_seconds() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options {
        path: directory.path().to_owned(),
        max_size: u64::MAX >> 1,
        min_free: 0,
        evict_unused_after: Duration::ZERO,
        pins: Vec::new(),
        max_blob_size: 1 << 30,
        memory_cache_size: 1 << 20,
        verify_on_read: VerifyOnRead::Never,
        private_upstreams: ["private.example".into()].into(),
    };
    let metrics = Arc::new(Metrics::new(["docker.io"]));
    let store = Store::open(options, Arc::new(SystemDisk), Gate::Inline, Clock::System, metrics).expect("a store");
    for n in 0..BLOBS + MANIFESTS {
        store.ledger().find(Item::Stored(digest(n)), 40_960, (DaemonTime(0), n));
    }
    fill_links(&mut store.links_mut());
    for n in 0..REPOSITORIES {
        let repository = repository(n);
        for tag in 0..10 {
            let path = store.layout.tag(&repository, &format!("v{tag}").parse().expect("a tag"));
            std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            std::fs::write(path, "").expect("a file");
        }
    }
    let start = Instant::now();
    let inventory = timed("an inventory", || store.inventory().expect("records"));
    assert!(start.elapsed() < Duration::from_secs(10));
    assert_eq!((inventory.repositories_total, inventory.objects), (REPOSITORIES, BLOBS + MANIFESTS));
    assert_eq!(inventory.upstreams.values().map(|held| held.tags).sum::<u64>(), REPOSITORIES * 10);
    assert_eq!(inventory.upstreams.values().map(|held| held.manifests).sum::<u64>(), MANIFESTS);
    // The base layers are blobs of the first image, and listed at both upstreams.
    assert_eq!(inventory.upstreams.values().map(|held| held.bytes).sum::<u64>(), (BLOBS + MANIFESTS + BASE) * 40_960);
}

#[test]
fn a_base_layer_of_very_many_images_is_linked_and_let_go_in_time() {
    let (_, mut links) = stores();
    let children: Arc<[(Digest, u64)]> = (0..BASE).map(|n| (digest(n), 7)).collect();
    let media_type: MediaType = MediaType::OCI_MANIFEST.parse().expect("a type");
    for n in 0..MANIFESTS / 10 {
        links.list(manifest(n), Arc::clone(&children));
        links.hold(repository(n), manifest(n), media_type.clone());
    }
    for n in 0..MANIFESTS / 10 {
        assert!(!matches!(links.link(&repository(n), &digest(0)), Link::Unlisted));
        links.confirm(&"docker.io".into(), digest(0));
    }
    (0..MANIFESTS / 10).for_each(|n| links.forget(&manifest(n)));
    assert!(links.is_orphan(&digest(0)) && links.manifest_count() == 0);
}
