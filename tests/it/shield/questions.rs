//! Questions to upstreams are bounded: a crowd of clients is no crowd to a registry.

use std::sync::Arc;
use std::time::Duration;

use larder::queue::Rank;
use larder::upstream::Questions;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Hub, LATEST, line, retry_after};
use crate::fills::until;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::registry::{FakeRegistry, Fault, Latch, any};

const HUB: &str = "93.184.216.34:80";
const CLIENTS: usize = 3000;
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A GET each, all at once; their statuses.
async fn crowd(larder: &Larder, paths: impl IntoIterator<Item = String>) -> JoinSet<u16> {
    let mut crowd = JoinSet::new();
    for path in paths {
        let mut client = larder.client().await;
        crowd.spawn(async move { client.get(&path).send().await.status });
    }
    crowd
}

/// A manifest of its own, so that each costs a GET.
fn other_bytes(number: usize) -> String {
    format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{{"n":"{number}"}}}}"#
    )
}

fn tags(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|number| format!("/v2/library/app/manifests/{number}"))
}

#[tokio::test(start_paused = true)]
async fn three_thousand_clients_of_as_many_tags_are_32_connections_and_all_are_answered() {
    let scene = Hub::with_other();
    for number in 0..CLIENTS {
        scene.registry.push_manifest("library/app", Some(&number.to_string()), INDEX, other_bytes(number));
    }
    let larder = scene.setup().start();
    let statuses = crowd(&larder, tags(CLIENTS)).await.join_all().await;
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), CLIENTS);
    let most = scene.net.most_open(HUB);
    assert!((2..=32).contains(&most), "{most} connections at once");
}

#[tokio::test(start_paused = true)]
async fn lists_and_heads_of_blobs_are_questions_too() {
    let scene = Hub::with_other();
    let larder = scene.setup().start();
    let latch = Latch::new();
    scene.registry.when(any()).then(Fault::Hold(latch.clone()));
    let lists = (0..100).map(|number| format!("/v2/library/list{number}/tags/list"));
    let _asking = crowd(&larder, tags(100).chain(lists)).await;
    scene.registry.wait_for(any(), 32).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((scene.registry.count(any()), scene.net.most_open(HUB)), (32, 32));
    latch.open();
}

/// An upstream that is slow does not keep another one's questions waiting.
#[tokio::test(start_paused = true)]
async fn one_upstream_s_crowd_leaves_places_for_the_others() {
    let scene = Hub::with_other();
    let other = FakeRegistry::new();
    scene.net.host("other.test", "93.184.216.40", &other);
    other.push_image("library/app", "latest", &[10], 3);
    let mut setup: Setup = scene.setup().upstream(upstream("other.example", "other.test"));
    setup.config.limits.questions = 4;
    setup.config.limits.questions_per_upstream = 3;
    let larder = setup.start();
    let latch = Latch::new();
    scene.registry.when(any()).then(Fault::Hold(latch.clone()));
    let _asking = crowd(&larder, tags(50)).await;
    scene.registry.wait_for(any(), 3).await;
    assert_eq!(larder.get("/v2/other.example/library/app/manifests/latest").await.status, 200);
    assert_eq!(scene.registry.count(any()), 3);
    latch.open();
}

/// Half of them in vain, as each costs a second and there is one place: none is left to the deadline, and what is begun is ended.
#[tokio::test(start_paused = true)]
async fn who_cannot_be_asked_for_in_time_is_told_when_to_come_back() {
    let scene = Hub::with_other();
    for number in 0..30 {
        scene.registry.push_manifest("library/app", Some(&number.to_string()), INDEX, other_bytes(number));
    }
    let mut setup = scene.setup();
    setup.config.limits.questions_per_upstream = 1;
    let larder = setup.start();
    scene.registry.when(any()).then(Fault::Delay(Duration::from_secs(1)));
    let begun = Instant::now();
    let mut asking = JoinSet::new();
    for path in tags(30) {
        let mut client = larder.client().await;
        asking.spawn(async move { client.get(&path).send().await });
    }
    let replies = asking.join_all().await;
    assert!(begun.elapsed() <= Duration::from_secs(25), "{:?}", begun.elapsed());
    let served = replies.iter().filter(|reply| reply.status == 200).count();
    assert!((8..=12).contains(&served), "a HEAD and a GET each, for 20 s: {served}");
    for reply in replies.iter().filter(|reply| reply.status != 200) {
        assert_eq!((line(reply).as_str(), retry_after(reply)), ("503 UNAVAILABLE", 5));
    }
    scene.registry.behave();
    assert_eq!(larder.get(LATEST).await.status, 200, "all places are free again");
}

/// A client that hangs up gives up its place in the queue.
#[tokio::test(start_paused = true)]
async fn who_left_is_forgotten() {
    let questions = Questions::new(1, 1);
    let hub: Arc<str> = "docker.io".into();
    let deadline = Instant::now() + Duration::from_secs(25);
    let running = questions.place(&hub, Rank::Usual, deadline).await.expect("a place");
    let gone = tokio::time::timeout(Duration::from_secs(1), questions.place(&hub, Rank::Usual, deadline)).await;
    assert!(gone.is_err(), "it hangs up");
    let mut stays = Box::pin(questions.place(&hub, Rank::Usual, deadline));
    assert!(tokio::time::timeout(Duration::from_secs(1), &mut stays).await.is_err());
    drop(running);
    assert!(stays.await.is_ok());
}

/// More than may be asked at a time; upstream answers none of them.
#[tokio::test(start_paused = true)]
async fn clients_that_leave_take_their_questions_out_of_the_queue_and_give_their_places_up() {
    let digest = |number: usize| format!("sha256:{number:064x}");
    type PathOf<'a> = &'a dyn Fn(usize) -> String;
    let kinds: [(&str, bool, PathOf); 6] = [
        ("tags", false, &|number| format!("/v2/leaver/app/manifests/{number}")),
        ("heads of tags", true, &|number| format!("/v2/leaver/app/manifests/{number}")),
        ("manifests", false, &|number| format!("/v2/leaver/app/manifests/{}", digest(number))),
        ("heads of blobs", true, &|number| format!("/v2/leaver/app/blobs/{}", digest(number))),
        ("lists", false, &|number| format!("/v2/leaver/app{number}/tags/list")),
        ("referrers", false, &|number| format!("/v2/leaver/app/referrers/{}", digest(number))),
    ];
    for (kind, is_head, path) in kinds {
        let scene = Hub::with_other();
        let larder = scene.setup().start();
        let latch = Latch::new();
        scene.registry.when(any().of("leaver")).then(Fault::Hold(latch.clone()));
        let mut leaving = JoinSet::new();
        for number in 0..300 {
            let (mut client, path) = (larder.client().await, path(number));
            leaving.spawn(async move { if is_head { client.head(&path).send().await } else { client.get(&path).send().await }.status });
        }
        until("as many are asked as may be", || scene.registry.count(any().of("leaver")) >= 32).await;
        leaving.shutdown().await;
        let begun = Instant::now();
        assert_eq!(larder.get(LATEST).await.status, 200, "{kind}");
        assert!(begun.elapsed() <= Duration::from_secs(2), "{kind}: {:?}", begun.elapsed());
        latch.open();
        until("nothing is under way", || larder.metric("larder_requests_in_flight") == 0.0).await;
        assert_eq!(scene.registry.count(any().of("leaver")), 32, "{kind}: nobody waits for the others");
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_that_gets_no_turn_is_told_when_to_come_back_and_is_no_fault_of_upstream() {
    let scene = Hub::with_other();
    for number in 0..1000 {
        scene.registry.push_image(&format!("library/list{number}"), "latest", &[10], number);
    }
    let larder = scene.setup().start();
    scene.registry.when(any()).then(Fault::Delay(Duration::from_millis(900)));
    let lists = (0..1000).map(|number| format!("/v2/library/list{number}/tags/list"));
    let statuses = crowd(&larder, lists).await.join_all().await;
    let count = |status: u16| statuses.iter().filter(|other| **other == status).count();
    assert!(count(503) > 0 && count(200) + count(503) == 1000, "200: {}, 503: {}, 504: {}", count(200), count(503), count(504));
    assert!(!larder.app.metrics.encode().contains(r#"larder_upstream_errors_total{upstream="docker.io""#), "it was not asked");
}

/// The registry answers everything but one repository.
#[tokio::test(start_paused = true)]
async fn one_repository_that_is_never_answered_takes_no_other_one_along() {
    let scene = Hub::with_other();
    for number in 0..80 {
        scene.registry.push_image("library/good", &number.to_string(), &[10], 1000 + number);
    }
    scene.registry.when(any().of("hanging")).then(Fault::Hold(Latch::new()));
    let larder = Arc::new(scene.setup().start());
    let mut polling = JoinSet::new();
    for poller in 0..6 {
        let larder = Arc::clone(&larder);
        polling.spawn(async move {
            tokio::time::sleep(Duration::from_secs(4 * poller)).await;
            loop {
                assert_eq!(larder.get(&format!("/v2/hanging/app{poller}/manifests/latest")).await.status / 100, 5);
            }
        });
    }
    for number in 0..80 {
        let reply = larder.get(&format!("/v2/library/good/manifests/{number}")).await;
        assert_eq!(reply.status, 200, "pull {number}: {}", reply.text());
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
