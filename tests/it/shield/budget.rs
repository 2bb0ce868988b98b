//! Docker Hub's pull limit: never reached where it need not be, never felt by who pulls what is held.

use std::time::Duration;

use tokio::time::Instant;

use super::fleet::{Fleet, pass, tag};
use super::{HOUR, credential, line, retry_after};
use crate::support::client::Client;
use crate::support::larder::Larder;
use crate::support::registries::Limit;
use crate::support::registry::{any, get, head};

const MINUTE: Duration = Duration::from_secs(60);
const WINDOW: u64 = 21_600;

fn gauge(larder: &Larder, what: &str, credential: &str) -> f64 {
    larder.metric(&format!("larder_upstream_ratelimit_{what}{{credential=\"{credential}\",upstream=\"docker.io\"}}"))
}

fn gauges(larder: &Larder, credential: &str) -> [f64; 3] {
    ["limit", "remaining", "window_seconds"].map(|what| gauge(larder, what, credential))
}

#[tokio::test(start_paused = true)]
async fn five_hundred_pulls_of_25_images_cost_25_of_30_and_later_ones_what_has_moved() {
    let mut fleet = Fleet::new(26);
    fleet.hub.script(|hub| hub.limit = Some(Limit::new(30, WINDOW)));
    let larder = fleet.setup().start();
    let pulled: Vec<usize> = (0..25).collect();
    let (whole, wrong) = fleet.pull_all(&larder, 20, &pulled).await;
    let counted = fleet.hub.counted();
    assert!(whole == 500 && counted <= 25, "{whole} of 500 pulls whole, {counted} counted GETs: {wrong:#?}");
    assert_eq!((fleet.gets(), gauges(&larder, "anonymous")), (25, [30.0, 5.0, 21_600.0]), "none was refused");
    pass(&larder, HOUR).await;
    let moved = [3, 7, 11, 20];
    moved.into_iter().for_each(|number| fleet.move_tag(number));
    let (whole, wrong) = fleet.pull_all(&larder, 20, &pulled).await;
    let cost = fleet.hub.counted() - counted;
    assert!(whole == 500 && cost == moved.len(), "{whole} of 500 pulls whole, {} moved, {cost} counted GETs: {wrong:#?}", moved.len());
    // `crane digest`, for hours: of what is held, and of the last image, of which nothing is.
    let heads = fleet.hub.count(head().manifest());
    for poll in 0..1000 {
        let number = poll % fleet.images.len();
        let reply = larder.head(&tag(number)).await;
        let digest = fleet.images[number].digest.to_string();
        assert_eq!((reply.status, reply.header("docker-content-digest")), (200, Some(digest.as_str())), "poll {poll}");
        pass(&larder, Duration::from_secs(20)).await;
    }
    let (cost, heads) = (fleet.hub.counted() - counted - moved.len(), fleet.hub.count(head().manifest()) - heads);
    assert!(cost == 0 && heads <= 1000, "1000 polls: {cost} counted GETs, {heads} HEADs");
    assert_eq!(fleet.gets(), 29, "none was refused");
}

/// Everything held by a larder, then no pull left for a whole window.
#[tokio::test(start_paused = true)]
async fn with_no_pull_left_for_a_window_what_is_held_is_served_and_upstream_hears_of_probes_alone() {
    let fleet = Fleet::new(30);
    fleet.hub.script(|hub| hub.limit = Some(Limit::new(100, WINDOW)));
    let larder = fleet.setup().start();
    let (held, missing): (Vec<usize>, Vec<usize>) = (0..30).partition(|number| *number < 25);
    assert_eq!(fleet.pull_all(&larder, 1, &held).await.0, 25);
    pass(&larder, HOUR).await;
    let begun = Instant::now();
    fleet.hub.script(|hub| hub.limit = Some(Limit::new(0, WINDOW)));
    assert_eq!(larder.get(&tag(25)).await.status, 503, "the one that finds out");
    fleet.hub.forget_requests();
    let mut rests = 0;
    while begun.elapsed() < Duration::from_secs(WINDOW) {
        for number in &missing {
            let asked = Instant::now();
            let reply = larder.get(&tag(*number)).await;
            assert_eq!(line(&reply), "503 TOOMANYREQUESTS");
            assert!((1..=3600).contains(&retry_after(&reply)) && asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
        }
        let (whole, wrong) = fleet.pull_all(&larder, 2, &held).await;
        assert_eq!(whole, 50, "after {:?}: {wrong:#?}", begun.elapsed());
        let reply = larder.head(&tag(24)).await;
        assert!(line(&reply).ends_with("detail=stale-rate-limited"), "after {:?}: {}", begun.elapsed(), line(&reply));
        assert!(reply.header("age").is_some());
        pass(&larder, 10 * MINUTE).await;
        rests = begun.elapsed().as_secs() / 3600;
        let probes = fleet.hub.count(any().manifest());
        assert!(probes as u64 <= rests, "{probes} requests after {rests} rests: {:#?}", fleet.hub.requests());
    }
    assert_eq!((rests, fleet.hub.count(any().manifest())), (6, 5), "{:#?}", fleet.hub.requests());
    assert_eq!(gauges(&larder, "anonymous"), [0.0, 0.0, 21_600.0]);
    assert!(larder.metric(r#"larder_stale_served_total{reason="rate-limited",upstream="docker.io"}"#) >= 36.0);
    // The window is over: one probe, and everything goes on.
    fleet.hub.script(|hub| hub.limit = Some(Limit::new(100, WINDOW)));
    fleet.hub.forget_requests();
    pass(&larder, HOUR).await;
    let all: Vec<usize> = (0..30).collect();
    let first = larder.head(&tag(0)).await;
    assert_eq!((line(&first), fleet.hub.count(any().manifest())), ("200 larder; fwd=stale; detail=revalidated".into(), 1));
    let (whole, wrong) = fleet.pull_all(&larder, 5, &all).await;
    assert!(whole == 150 && fleet.gets() == 5, "{whole} of 150 pulls whole, {} GETs: {wrong:#?}", fleet.gets());
    assert_eq!(gauges(&larder, "anonymous"), [100.0, 95.0, 21_600.0], "the old pulls are out of the window");
}

#[tokio::test(start_paused = true)]
async fn the_second_credential_takes_over_when_the_first_is_at_its_limit() {
    let fleet = Fleet::new(12);
    fleet.hub.script(|hub| {
        for (account, pulls) in [("acme", 3), ("spare", 7)] {
            hub.tokens.account(account, "pat");
            hub.account_limits.insert(account.into(), Limit::new(pulls, WINDOW));
        }
    });
    let credentials = vec![credential("first", "acme", "pat"), credential("second", "spare", "pat")];
    let larder = fleet.setup().hub(|hub| {
        hub.credentials = credentials;
        hub.visibility = larder::config::Visibility::Private;
    });
    let larder = larder.start();
    for number in 0..10 {
        fleet.pull(&larder, number).await.expect("a whole image");
    }
    assert_eq!(gauges(&larder, "first"), [3.0, 0.0, 21_600.0]);
    assert_eq!(gauges(&larder, "second"), [7.0, 0.0, 21_600.0]);
    assert_eq!((fleet.hub.counted(), fleet.gets()), (10, 11), "the first one was refused once: {:#?}", fleet.hub.seen(get().manifest()));
    // Both are at their limits: as with one.
    let reply = larder.get(&tag(10)).await;
    assert_eq!(line(&reply), "503 TOOMANYREQUESTS");
    fleet.hub.forget_requests();
    larder.clock.advance(HOUR);
    let held: Vec<usize> = (0..10).collect();
    assert_eq!(fleet.pull_all(&larder, 5, &held).await.0, 50);
    assert_eq!(line(&larder.get(&tag(11)).await), "503 TOOMANYREQUESTS");
    assert_eq!(fleet.hub.count(any()), 0, "{:#?}", fleet.hub.requests());
    // The first may pull again.
    tokio::time::sleep(Duration::from_secs(WINDOW)).await;
    fleet.pull(&larder, 10).await.expect("a whole image");
    assert_eq!(gauges(&larder, "first"), [3.0, 2.0, 21_600.0]);
    assert_eq!(fleet.hub.count(get().manifest()), 1);
}

/// A list is under no pull limit, and a 429 of another kind does not say that there is none.
#[tokio::test(start_paused = true)]
async fn what_is_left_is_remembered_over_answers_that_do_not_tell() {
    let fleet = Fleet::new(2);
    fleet.hub.script(|hub| hub.limit = Some(Limit::new(30, WINDOW)));
    let larder = fleet.setup().start();
    fleet.pull(&larder, 0).await.expect("a whole image");
    assert_eq!(larder.get("/v2/library/app0/tags/list").await.status, 200);
    assert_eq!(gauges(&larder, "anonymous"), [30.0, 29.0, 21_600.0]);
    fleet.hub.script(|hub| hub.abused = true);
    larder.clock.advance(HOUR);
    assert!(line(&larder.head(&tag(0)).await).ends_with("detail=stale-rate-limited"));
    assert_eq!(gauges(&larder, "anonymous"), [30.0, 29.0, 21_600.0]);
    // It was a HEAD, whose body would have said which limit; the pull limit's window is not waited for with pulls left.
    fleet.hub.script(|hub| hub.abused = false);
    tokio::time::sleep(Duration::from_secs(6)).await;
    fleet.pull(&larder, 1).await.expect("a whole image");
}

/// In any of its shapes, for an hour: everything held is served, misses are told, and nothing but probes goes out.
/// Also: upstream_fault_07
#[tokio::test(start_paused = true)]
async fn no_kind_of_429_is_felt_by_who_pulls_what_is_held() {
    for shape in ["pull limit", "abuse", "bad logins"] {
        let fleet = Fleet::new(12);
        fleet.hub.script(|hub| {
            hub.tokens.account("acme", "pat");
            hub.account_limits.insert("acme".into(), Limit::new(100, WINDOW));
        });
        let larder = fleet.setup().upstream(fleet.hub.upstream_as("acme", "pat")).start();
        let held: Vec<usize> = (0..10).collect();
        assert_eq!(fleet.pull_all(&larder, 1, &held).await.0, 10);
        pass(&larder, HOUR).await;
        fleet.hub.script(|hub| match shape {
            "pull limit" => drop(hub.account_limits.insert("acme".into(), Limit::new(0, WINDOW))),
            "abuse" => hub.abused = true,
            _ => hub.lock_out = (0, HOUR),
        });
        if shape == "bad logins" {
            let mut stranger = Client::over(fleet.hub.connect()).await;
            let bad = stranger.get("/token?service=registry.docker.io").host("auth.docker.io").basic("acme", "bad");
            assert_eq!(bad.send().await.status, 401);
        }
        assert_eq!(larder.get(&tag(10)).await.status, 503, "the one that finds out");
        fleet.hub.forget_requests();
        for minute in 0..60 {
            let asked = Instant::now();
            assert_eq!(line(&larder.get(&tag(10 + minute % 2)).await), "503 TOOMANYREQUESTS", "{shape}, minute {minute}");
            assert!(asked.elapsed() < Duration::from_secs(1), "{shape}: {:?}", asked.elapsed());
            let (whole, wrong) = fleet.pull_all(&larder, 1, &held).await;
            assert_eq!(whole, 10, "{shape}, minute {minute}: {wrong:#?}");
            pass(&larder, MINUTE - asked.elapsed()).await;
        }
        let probes = fleet.hub.count(any());
        let most = match shape {
            "pull limit" => 0,
            // 5 s, 10 s and so on, to a quarter of an hour.
            "abuse" => 12,
            // 1 min, 2 min and so on, to an hour; each a HEAD, and the token that it is told to fetch.
            _ => 2 * 6,
        };
        assert!(probes <= most, "{shape}: {probes} requests in an hour: {:#?}", fleet.hub.requests());
        fleet.hub.script(|hub| {
            hub.abused = false;
            hub.lock_out = (5, HOUR);
            hub.account_limits.insert("acme".into(), Limit::new(100, WINDOW));
        });
        pass(&larder, HOUR).await;
        assert_eq!(line(&larder.head(&tag(0)).await), "200 larder; fwd=stale; detail=revalidated", "{shape}: the probe");
        let all: Vec<usize> = (0..12).collect();
        let (whole, wrong) = fleet.pull_all(&larder, 5, &all).await;
        assert_eq!(whole, 60, "{shape}: {wrong:#?}");
    }
}
