//! An outage from a client's chair: what is held comes at once, and the truth as soon as there is one.

use std::time::Duration;

use tokio::time::Instant;

use super::{HOUR, LATEST, Scene, TTL, Trouble, line, pull};
use crate::support::net::Dns;
use crate::support::registry::{Fault, any, head};

const STALE: &str = "200 larder; hit; ttl=-3300; detail=stale-unavailable";
const AT_ONCE: Duration = Duration::from_millis(100);
/// Longer than a question with all its attempts.
const A_WHILE: Duration = Duration::from_secs(30);

const TROUBLES: [(&str, Trouble); 6] = [
    ("refused", |scene| scene.net.down("hub.test")),
    ("500", |scene| scene.registry.when(any()).then(Fault::status(500))),
    ("slow 500", |scene| scene.registry.when(any()).then(Fault::Delay(Duration::from_secs(1)))),
    ("hangs up", |scene| scene.registry.when(any()).then(Fault::Hangup)),
    ("silent", |scene| scene.registry.when(any()).then(Fault::Stall)),
    ("no DNS", |scene| {
        scene.net.down("hub.test");
        scene.net.dns("hub.test", [Dns::NotFound]);
    }),
];

#[tokio::test(start_paused = true)]
async fn from_the_first_failure_on_held_tags_come_at_once_until_upstream_answers() {
    for (name, break_it) in TROUBLES {
        let scene = Scene::new();
        let other = scene.registry.push_image("library/app", "other", &[10], 5);
        let other_path = "/v2/library/app/manifests/other";
        pull(&scene.larder, other_path, &other).await;
        let scene = scene.held_for(HOUR).await;
        break_it(&scene);
        if name == "slow 500" {
            scene.registry.when(any()).then(Fault::status(500));
        }
        let begun = Instant::now();
        assert_eq!(line(&scene.larder.get(LATEST).await), STALE, "{name}");
        assert!(begun.elapsed() <= Duration::from_millis(2001), "{name}: {:?}", begun.elapsed());
        // Another tag, too: it is the upstream that fails.
        for path in [LATEST, other_path].into_iter().cycle().take(100) {
            let begun = Instant::now();
            assert_eq!(line(&scene.larder.get(path).await), STALE, "{name}");
            assert!(begun.elapsed() < AT_ONCE, "{name}: {:?}", begun.elapsed());
        }
        // What was asked during the outage has failed by then.
        tokio::time::sleep(A_WHILE).await;
        scene.registry.behave();
        scene.net.name("hub.test", &["93.184.216.34"]);
        scene.net.up("hub.test");
        // The first that asks from now on still gets what is held, while the question that it caused is answered.
        assert_eq!(line(&scene.larder.get(LATEST).await), STALE, "{name}");
        // A host that was down is asked again within a quarter of a minute.
        let mut waited = 0;
        while line(&scene.larder.get(LATEST).await) != "200 larder; hit; ttl=300" {
            waited += 1;
            assert!(waited <= 16, "{name}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(
            line(&scene.larder.get(other_path).await),
            "200 larder; fwd=stale; detail=revalidated",
            "{name}: it is waited for again"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn during_an_outage_each_tag_is_asked_about_but_never_twice_at_a_time() {
    let scene = Scene::new().held_for(HOUR).await;
    scene.registry.when(any()).then(Fault::Stall);
    let mut clients = Vec::new();
    for _ in 0..50 {
        let mut client = scene.larder.client().await;
        clients.push(tokio::spawn(async move { line(&client.get(LATEST).send().await) }));
    }
    for client in clients {
        assert_eq!(client.await.unwrap(), STALE);
    }
    assert_eq!(scene.registry.count(head()), 1);
    // A question that has ended in silence is asked again by who comes next.
    tokio::time::sleep(A_WHILE).await;
    let before = scene.registry.count(head());
    assert_eq!(line(&scene.larder.get(LATEST).await), STALE);
    scene.registry.wait_for(head(), before + 1).await;
}

#[tokio::test(start_paused = true)]
async fn one_tag_that_is_slow_costs_the_others_nothing() {
    let scene = Scene::new();
    let other = scene.registry.push_image("library/app", "other", &[10], 5);
    let other_path = "/v2/library/app/manifests/other";
    pull(&scene.larder, other_path, &other).await;
    let scene = scene.held_for(TTL).await;
    scene.registry.when(any().of("latest")).then(Fault::Stall);
    let mut slow = scene.larder.client().await;
    let slow = tokio::spawn(async move { line(&slow.get(LATEST).send().await) });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(line(&scene.larder.get(other_path).await), "200 larder; fwd=stale; detail=revalidated");
    assert_eq!(slow.await.unwrap(), "200 larder; hit; ttl=0; detail=stale-unavailable");
    scene.larder.clock.advance(TTL);
    assert_eq!(line(&scene.larder.get(other_path).await), "200 larder; fwd=stale; detail=revalidated", "it answers, so it is waited for");
}

#[tokio::test(start_paused = true)]
async fn stale_says_why_in_header_and_metric() {
    let troubles: [(Trouble, &str); 3] = [
        (|scene| scene.registry.when(any()).then(Fault::status(500)), "unavailable"),
        (|scene| scene.registry.when(any()).then(Fault::too_many_requests(9)), "rate-limited"),
        (|scene| scene.registry.when(any()).then(Fault::login_page()), "corrupt"),
    ];
    for (trouble, reason) in troubles {
        let scene = Scene::new().held_for(HOUR).await;
        trouble(&scene);
        let reply = scene.larder.get(LATEST).await;
        assert_eq!(reply.header("cache-status"), Some(format!("larder; hit; ttl=-3300; detail=stale-{reason}").as_str()));
        assert_eq!(reply.header("age"), Some("3600"));
        for other in ["unavailable", "rate-limited", "corrupt", "deleted"] {
            let count = scene.larder.metric(&format!(r#"larder_stale_served_total{{reason="{other}",upstream="docker.io"}}"#));
            assert_eq!(count, f64::from(u8::from(other == reason)), "{reason}: {other}");
        }
    }
}
