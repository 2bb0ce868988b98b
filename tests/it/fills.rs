//! One download for any number of clients: who shares it, who gets how much of it when, and whom it belongs to.
//!
//! Time is paused: it moves on only when nothing else can happen, so that "nothing came for a second" is no guess.

mod lies;
mod queue;
mod restart;
mod resume;

use std::time::Duration;

use bytes::Bytes;
use larder::oci::{Algorithm, Digest};
use larder::store::HOLD_BACK;
use tokio::time::{Instant, timeout};

use crate::support::client::{Client, Reply, Streaming};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Blob, FakeRegistry, Fault, Latch, get, head};
pub use crate::support::scene::hub;

const REPOSITORY: &str = "library/app";
const MIB: usize = 1024 * 1024;
const KIB: usize = 1024;
/// Long enough for all that can happen to have happened.
const QUIET: Duration = Duration::from_secs(1);

/// A blob of `library/app` whose bytes follow from its size and seed.
pub fn push(registry: &FakeRegistry, size: usize, seed: u64) -> Blob {
    push_as(Algorithm::Sha256, registry, size, seed)
}

pub fn push_as(algorithm: Algorithm, registry: &FakeRegistry, size: usize, seed: u64) -> Blob {
    let mut bytes = vec![0; size];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let bytes = Bytes::from(bytes);
    Blob { digest: registry.push_blob_as(algorithm, REPOSITORY, bytes.clone()), bytes }
}

pub fn path(digest: Digest) -> String {
    path_in(REPOSITORY, digest)
}

pub fn path_in(repository: &str, digest: Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// Returns once `done`. Looks less and less often, as some of what is waited for takes minutes of paused time.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let mut pause = Duration::from_millis(1);
    for _ in 0..200 {
        if done() {
            return;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(250));
    }
    panic!("waited in vain until {what}");
}

pub fn requests(larder: &Larder, outcome: &str) -> f64 {
    larder.metric(&format!("larder_requests_total{{kind=\"blob\",outcome=\"{outcome}\",upstream=\"docker.io\"}}"))
}

pub fn fills(larder: &Larder, result: &str) -> f64 {
    larder.metric(&format!("larder_fills_total{{result=\"{result}\",upstream=\"docker.io\"}}"))
}

/// A whole body of the right bytes.
pub fn assert_whole(reply: &Reply, blob: &Blob) {
    assert_eq!(reply.status, 200);
    assert!(reply.bytes() == &blob.bytes, "{} bytes came, and not the right ones", reply.bytes().len());
}

/// Everything that comes now.
pub async fn all_that_comes(body: &mut Streaming) -> Vec<u8> {
    let mut came = Vec::new();
    while let Ok(Ok(bytes)) = timeout(QUIET, body.read_exactly(1)).await {
        came.extend_from_slice(&bytes);
    }
    came
}

async fn open(larder: &Larder, blob: &Blob) -> (Client, Streaming) {
    let mut client = larder.client().await;
    let body = client.open(&path(blob.digest)).await;
    (client, body)
}

#[tokio::test(start_paused = true)]
async fn invariant_06_many_clients_share_one_download() {
    let (net, registry) = hub();
    let blob = push(&registry, 8 * MIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(4 * MIB as u64, latch.clone()));
    let larder = Larder::start(&net);
    let mut clients = Vec::new();
    for _ in 0..64 {
        let (client, mut body) = open(&larder, &blob).await;
        assert_eq!((body.status, body.header("content-length")), (200, Some("8388608")));
        let first = body.read_exactly(64 * KIB).await.expect("bytes before upstream has sent half");
        assert!(first == blob.bytes[..64 * KIB]);
        clients.push((client, body));
    }
    latch.open();
    let mut statuses = Vec::new();
    let mut rests = Vec::new();
    for (client, body) in clients {
        statuses.push(body.header("cache-status").expect("a Cache-Status").to_owned());
        rests.push(tokio::spawn(async move { (body.read_to_end().await, client) }));
    }
    for rest in rests {
        let (rest, _) = rest.await.expect("no panic");
        assert!(rest.expect("a whole body") == blob.bytes[64 * KIB..]);
    }
    assert_eq!(registry.count(get().blob()), 1);
    assert_eq!(statuses.iter().filter(|status| *status == "larder; fwd=uri-miss").count(), 1);
    assert_eq!(statuses.iter().filter(|status| *status == "larder; fwd=uri-miss; collapsed").count(), 63);
    until("all are counted", || requests(&larder, "miss") + requests(&larder, "collapsed") > 63.5).await;
    assert_eq!((requests(&larder, "miss"), requests(&larder, "collapsed")), (1.0, 63.0));
    until("it is stored", || larder.files("blobs").len() == 1).await;
    assert_eq!(larder.get(&path(blob.digest)).await.header("cache-status"), Some("larder; hit"));
    assert_eq!(registry.count(get().blob()), 1);
}

#[tokio::test(start_paused = true)]
async fn invariant_06_clients_that_come_at_once_share_one_small_download() {
    let (net, registry) = hub();
    let blob = push(&registry, 5000, 1);
    let larder = Larder::start(&net);
    let mut asks = Vec::new();
    for _ in 0..32 {
        let mut client = larder.client().await;
        asks.push(tokio::spawn(async move { client.get(&path(blob.digest)).send().await }));
    }
    for ask in asks {
        assert_whole(&ask.await.expect("no panic"), &blob);
    }
    assert_eq!(registry.count(get().blob()), 1);
}

/// Also: clients_29
#[tokio::test(start_paused = true)]
async fn invariant_07_the_first_client_may_leave() {
    let (net, registry) = hub();
    let blob = push(&registry, 4 * MIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(2 * MIB as u64, latch.clone()));
    let larder = Larder::start(&net);
    let (client, mut first) = open(&larder, &blob).await;
    let (_others, other) = open(&larder, &blob).await;
    first.read_exactly(100 * KIB).await.expect("some bytes");
    drop((first, client));
    tokio::time::sleep(QUIET).await;
    latch.open();
    assert!(other.read_to_end().await.expect("a whole body") == blob.bytes);
    until("it is stored", || larder.files("blobs").len() == 1).await;
    assert_eq!(registry.count(get().blob()), 1);
}

/// Also: clients_29
#[tokio::test(start_paused = true)]
async fn invariant_07_all_may_leave_and_the_blob_is_stored() {
    let (net, registry) = hub();
    let blob = push(&registry, 4 * MIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(2 * MIB as u64, latch.clone()));
    let larder = Larder::start(&net);
    let (client, mut body) = open(&larder, &blob).await;
    body.read_exactly(100 * KIB).await.expect("some bytes");
    drop((body, client));
    tokio::time::sleep(QUIET).await;
    latch.open();
    until("it is stored", || fills(&larder, "stored") == 1.0).await;
    let second = larder.get(&path(blob.digest)).await;
    assert_whole(&second, &blob);
    assert_eq!(second.header("cache-status"), Some("larder; hit"));
    assert_eq!(registry.count(get().blob()), 1);
}

/// Also: clients_29
#[tokio::test(start_paused = true)]
async fn invariant_07_a_client_that_leaves_before_the_headers_stops_nothing() {
    let (net, registry) = hub();
    let blob = push(&registry, 4 * MIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::Hold(latch.clone()));
    let larder = Larder::start(&net);
    let mut client = larder.client().await;
    assert!(timeout(QUIET, client.open(&path(blob.digest))).await.is_err());
    drop(client);
    tokio::time::sleep(QUIET).await;
    latch.open();
    until("it is stored", || fills(&larder, "stored") == 1.0).await;
    assert_eq!(registry.count(get().blob()), 1);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_slows_nobody() {
    let (net, registry) = hub();
    let blob = push(&registry, 8 * MIB, 1);
    let larder = Larder::start(&net);
    let (_idle, unread) = open(&larder, &blob).await;
    let (_slow, mut slow) = open(&larder, &blob).await;
    slow.read_exactly(KIB).await.expect("a kibibyte");
    let begun = Instant::now();
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
    assert!(begun.elapsed() < QUIET, "{:?}", begun.elapsed());
    until("it is stored", || fills(&larder, "stored") == 1.0).await;
    // An hour later both still get everything.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(unread.read_to_end().await.expect("a whole body") == blob.bytes);
    assert!(slow.read_to_end().await.expect("a whole body") == blob.bytes[KIB..]);
    assert_eq!(registry.count(get().blob()), 1);
}

#[tokio::test(start_paused = true)]
async fn invariant_03_the_end_is_held_back_until_it_is_verified() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB + 5, 1);
    let size = blob.bytes.len();
    let open_part = size - usize::try_from(HOLD_BACK).expect("a small number");
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(size as u64 - 1, latch.clone()));
    let larder = Larder::start(&net);
    let (_first, mut body) = open(&larder, &blob).await;
    let came = all_that_comes(&mut body).await;
    assert_eq!(registry.body_bytes_sent(), size as u64 - 1);
    assert!(came == blob.bytes[..open_part], "{} of {open_part} bytes came", came.len());

    // A late client starts at byte 0 and gets as much.
    let (_late, mut late) = open(&larder, &blob).await;
    assert!(all_that_comes(&mut late).await == blob.bytes[..open_part]);

    // A range that ends where the held-back part begins does not wait; one byte further it does.
    let before = range(&larder, &blob, &format!("1000-{}", open_part - 1)).await;
    let before = before.read_to_end().await.expect("a range that does not wait");
    assert!(before == blob.bytes[1000..open_part]);
    let mut beyond = range(&larder, &blob, &format!("1000-{open_part}")).await;
    assert!(all_that_comes(&mut beyond).await == blob.bytes[1000..open_part]);
    let mut last = range(&larder, &blob, "-1").await;
    assert!(all_that_comes(&mut last).await.is_empty());

    latch.open();
    assert!(body.read_to_end().await.expect("the end") == blob.bytes[open_part..]);
    assert!(late.read_to_end().await.expect("the end") == blob.bytes[open_part..]);
    assert!(beyond.read_to_end().await.expect("the end") == blob.bytes[open_part..=open_part]);
    assert!(last.read_to_end().await.expect("the end") == blob.bytes[size - 1..]);
    assert_eq!(registry.count(get().blob()), 1);
}

async fn range(larder: &Larder, blob: &Blob, range: &str) -> Streaming {
    larder.client().await.get(&path(blob.digest)).range(range).open().await
}

/// Also: clients_24, clients_25
#[tokio::test(start_paused = true)]
async fn a_running_download_answers_ranges() {
    let (net, registry) = hub();
    let blob = push(&registry, 3 * MIB, 1);
    let (size, latch) = (blob.bytes.len(), Latch::new());
    registry.when(get().blob()).then(Fault::HoldAt(MIB as u64, latch.clone()));
    let larder = Larder::start(&net);
    let (_client, whole) = open(&larder, &blob).await;
    let part = larder.client().await.get(&path(blob.digest)).range("10-19").send().await;
    assert_eq!((part.status, part.bytes()), (206, &blob.bytes.slice(10..20)));
    assert_eq!(part.header("content-range"), Some(format!("bytes 10-19/{size}").as_str()));
    assert_eq!(part.header("content-length"), Some("10"));
    let outside = larder.client().await.get(&path(blob.digest)).range(&format!("{size}-")).send().await;
    assert_eq!((outside.status, outside.header("content-range")), (416, Some(format!("bytes */{size}").as_str())));
    // Not there yet: it waits for its bytes, not for an error.
    let ahead = range(&larder, &blob, &format!("{}-{}", 2 * MIB, 2 * MIB + 9)).await;
    latch.open();
    assert!(ahead.read_to_end().await.expect("the range") == blob.bytes[2 * MIB..2 * MIB + 10]);
    assert!(whole.read_to_end().await.expect("the whole") == blob.bytes);
    assert_eq!(registry.count(get().blob()), 1);
    assert_eq!(registry.seen(get().blob())[0].header("range"), None);
}

/// Also: clients_30
#[tokio::test(start_paused = true)]
async fn invariant_03_a_small_blob_waits_whole_but_not_for_ever() {
    let (net, registry) = hub();
    let blob = push(&registry, 500 * KIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(blob.bytes.len() as u64 - 1, latch.clone()));
    let larder = Larder::start(&net);
    let begun = Instant::now();
    let (_client, mut body) = open(&larder, &blob).await;
    assert!((Duration::from_secs(4)..Duration::from_secs(7)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(all_that_comes(&mut body).await == blob.bytes[..blob.bytes.len() - 64 * KIB]);
    latch.open();
    assert!(body.read_to_end().await.expect("the end") == blob.bytes[blob.bytes.len() - 64 * KIB..]);
}

#[tokio::test(start_paused = true)]
async fn a_blob_without_bytes_is_a_blob() {
    let (net, registry) = hub();
    let blob = push(&registry, 0, 1);
    let larder = Larder::start(&net);
    for status in ["larder; fwd=uri-miss", "larder; hit"] {
        let reply = larder.get(&path(blob.digest)).await;
        assert_whole(&reply, &blob);
        assert_eq!((reply.header("cache-status"), reply.header("content-length")), (Some(status), Some("0")));
        until("it is stored", || fills(&larder, "stored") == 1.0).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_answers_only_the_repository_it_was_said_to() {
    for (status, refused_first) in [(403, true), (404, true), (403, false), (404, false)] {
        let (net, registry) = hub();
        let blob = push(&registry, 3 * MIB, 1);
        let latch = Latch::new();
        registry.when(get().blob()).first(1).then(Fault::Hold(latch.clone()));
        let refused_path = path_in("library/other", blob.digest);
        if status == 403 {
            for matcher in [get(), head()] {
                registry.when(matcher.blob().of("library/other")).then(Fault::status(403));
            }
        } else {
            push_other(&registry);
        }
        let larder = Larder::start(&net);
        let mut paths = [refused_path, path(blob.digest)];
        if !refused_first {
            paths.reverse();
        }
        let mut asks = Vec::new();
        for path in paths {
            let mut client = larder.client().await;
            asks.push(tokio::spawn(async move { client.get(&path).send().await }));
            tokio::time::sleep(QUIET).await;
        }
        assert_eq!(registry.count(get().blob()), 1, "the second joins the first");
        latch.open();
        let mut replies = Vec::new();
        for ask in asks {
            replies.push(ask.await.expect("no panic"));
        }
        if !refused_first {
            replies.reverse();
        }
        let [refused, allowed] = &replies[..] else { panic!("two answers") };
        assert_eq!(refused.status, status, "refused first: {refused_first}");
        assert!(refused.bytes().len() < KIB);
        assert_whole(allowed, &blob);
        // And it stays so once the blob is stored.
        until("it is stored", || fills(&larder, "stored") == 1.0).await;
        assert_eq!(larder.get(&path_in("library/other", blob.digest)).await.status, status);
    }
}

/// So that `library/other` exists, without the blob in question.
fn push_other(registry: &FakeRegistry) {
    registry.push_blob("library/other", "something else");
}

#[tokio::test(start_paused = true)]
async fn a_download_that_must_wait_for_its_turn_waits() {
    let (net, registry) = hub();
    let (one, two) = (push(&registry, 2 * MIB, 1), push(&registry, 2 * MIB, 2));
    let latch = Latch::new();
    registry.when(get().blob().of(one.digest)).then(Fault::HoldAt(MIB as u64, latch.clone()));
    let mut setup = Setup::new(&net);
    setup.config.fills.max_concurrent = 1;
    let larder = setup.start();
    let (_client, first) = open(&larder, &one).await;
    let mut client = larder.client().await;
    let second = tokio::spawn(async move { client.get(&path(two.digest)).send().await });
    tokio::time::sleep(QUIET).await;
    assert_eq!(registry.count(get().blob().of(two.digest)), 0);
    assert_eq!((larder.metric("larder_fills_in_flight"), larder.metric("larder_fills_queued")), (1.0, 1.0));
    latch.open();
    assert!(first.read_to_end().await.expect("a whole body") == one.bytes);
    assert_whole(&second.await.expect("no panic"), &two);
    until("both have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    assert_eq!(larder.metric("larder_fills_queued"), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_download_without_a_turn_in_time_is_told_to_come_again() {
    for per_upstream in [false, true] {
        let (net, registry) = hub();
        let (one, two) = (push(&registry, 2 * MIB, 1), push(&registry, 2 * MIB, 2));
        let latch = Latch::new();
        registry.when(get().blob().of(one.digest)).then(Fault::HoldAt(MIB as u64, latch.clone()));
        let mut setup = Setup::new(&net);
        let fills = &mut setup.config.fills;
        *(if per_upstream { &mut fills.max_concurrent_per_upstream } else { &mut fills.max_concurrent }) = 1;
        let larder = setup.start();
        let (_client, first) = open(&larder, &one).await;
        let begun = Instant::now();
        let second = larder.get(&path(two.digest)).await;
        assert_eq!((second.status, second.error_code().as_deref()), (503, Some("UNAVAILABLE")));
        assert!(second.header("retry-after").is_some());
        assert_eq!(begun.elapsed().as_secs(), 20);
        latch.open();
        drop(first);
        assert_whole(&larder.get(&path(two.digest)).await, &two);
    }
}

/// Also: clients_40, upstream_fault_06
#[tokio::test(start_paused = true)]
async fn a_silent_upstream_is_a_504_within_25_seconds() {
    let (net, registry) = hub();
    let blob = push(&registry, 2 * MIB, 1);
    registry.when(get().blob()).then(Fault::Stall);
    let larder = Larder::start(&net);
    let begun = Instant::now();
    let reply = larder.get(&path(blob.digest)).await;
    assert_eq!((reply.status, reply.error_code().as_deref()), (504, Some("UNAVAILABLE")));
    assert!(begun.elapsed() <= Duration::from_secs(26), "{:?}", begun.elapsed());
    registry.behave();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_whole(&larder.get(&path(blob.digest)).await, &blob);
}
