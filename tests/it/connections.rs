//! Ways to an upstream that are half broken: dead addresses, dead nameservers, connections that a NAT forgot.

use std::time::Duration;

use larder::config::{ProxyUrl, UpstreamConfig};
use tokio::time::Instant;

use crate::support::larder::{Larder, Setup};
use crate::support::log::listen;
use crate::support::net::{Dns, FakeNet};
use crate::support::registry::{Bearer, FakeRegistry, Fault, any};

const LATEST: &str = "/v2/library/app/manifests/latest";
const OTHER: &str = "/v2/library/other/manifests/latest";
const THIRD: &str = "/v2/library/third/manifests/latest";
const GOOD: &str = "93.184.216.34";
/// Longer than an idle connection is kept: the next question needs a new one.
const IDLE: Duration = Duration::from_secs(40);

struct Scene {
    net: FakeNet,
    registry: FakeRegistry,
}

impl Scene {
    fn new() -> Scene {
        let (net, registry) = (FakeNet::new(), FakeRegistry::new());
        net.host("hub.test", GOOD, &registry);
        for (seed, name) in ["library/app", "library/other", "library/third"].into_iter().enumerate() {
            registry.push_image(name, "latest", &[1000], seed as u64);
        }
        Scene { net, registry }
    }

    fn start(&self) -> Larder {
        Setup::new(&self.net).start()
    }

    /// Puts `count` addresses that nobody answers at before the good one of a host.
    fn before(&self, host: &str, good: &str, count: usize, family: Family, port: u16) {
        let dead: Vec<String> = (1..=count)
            .map(|number| match family {
                Family::Other => format!("2606:4700::{number:x}"),
                Family::Same => format!("203.0.113.{number}"),
            })
            .collect();
        for address in &dead {
            self.net.black_hole(&if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") });
        }
        let all: Vec<&str> = dead.iter().map(String::as_str).chain([good]).collect();
        self.net.name(host, &all);
    }
}

#[derive(Clone, Copy, Debug)]
enum Family {
    Other,
    Same,
}

/// How long a pull takes that must succeed.
async fn pulled(larder: &Larder, path: &str) -> Duration {
    let begun = Instant::now();
    let reply = larder.get(path).await;
    assert_eq!(reply.status, 200, "{path} after {:?}: {}", begun.elapsed(), reply.text());
    begun.elapsed()
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

#[tokio::test(start_paused = true)]
async fn dead_addresses_cost_a_quarter_of_a_second_each_and_the_next_connection_nothing() {
    for count in [1, 2, 3, 8] {
        for family in [Family::Other, Family::Same] {
            let scene = Scene::new();
            scene.before("hub.test", GOOD, count, family, 80);
            let larder = scene.start();
            let most = match family {
                Family::Other => seconds(1.0),
                Family::Same => seconds(0.25 * count as f64 + 0.5),
            };
            let first = pulled(&larder, LATEST).await;
            assert!(first <= most, "{count} dead of the {family:?} family: {first:?}");
            tokio::time::sleep(IDLE).await;
            let dials = scene.net.dials("93.184.216.34:80");
            let next = pulled(&larder, OTHER).await;
            assert!(next <= seconds(0.3), "{count} dead of the {family:?} family, later: {next:?}");
            assert_eq!(scene.net.dials("93.184.216.34:80"), dials + 1, "a new connection");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn dead_addresses_of_token_servers_stores_and_proxies_cost_no_more() {
    for part in ["auth.test", "cdn.test", "proxy.test"] {
        let scene = Scene::new();
        let mut change: fn(&mut UpstreamConfig) = |_| ();
        match part {
            "auth.test" => {
                scene.net.host(part, "93.184.216.35", &scene.registry);
                scene.registry.require_bearer(Bearer::at("http://auth.test/token"));
                scene.before(part, "93.184.216.35", 3, Family::Other, 80);
                change = |hub| hub.token_hosts = vec!["auth.test".into()];
            }
            "cdn.test" => {
                scene.net.host(part, "93.184.216.35", &scene.registry);
                scene.registry.redirect_blobs("http://cdn.test");
                scene.before(part, "93.184.216.35", 3, Family::Other, 80);
            }
            _ => {
                drop(scene.net.proxy(part, "93.184.216.35", 3128));
                scene.before(part, "93.184.216.35", 3, Family::Other, 3128);
                change = |hub| {
                    let url = "http://proxy.test:3128".parse().expect("a URL");
                    hub.proxy = Some(ProxyUrl { url, userinfo: None });
                };
            }
        }
        let image = scene.registry.push_image("library/blobs", "latest", &[1000], 9);
        let larder = Setup::new(&scene.net).hub(change).start();
        pulled(&larder, "/v2/library/blobs/manifests/latest").await;
        let begun = Instant::now();
        pulled(&larder, &format!("/v2/library/blobs/blobs/{}", image.layers[0].digest)).await;
        assert!(begun.elapsed() <= seconds(1.0), "{part}: {:?}", begun.elapsed());
        assert!(scene.net.dials(&format!("[2606:4700::1]:{}", if part == "proxy.test" { 3128 } else { 80 })) > 0, "{part}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_failure_names_every_address_and_what_became_of_it() {
    let scene = Scene::new();
    let (log, _guard) = listen();
    scene.net.close("93.184.216.34:80");
    scene.before("hub.test", GOOD, 2, Family::Other, 80);
    assert_eq!(scene.start().get(LATEST).await.status, 502);
    let text = log.text();
    let why = "hub.test: no connection in 5 s: connection refused (93.184.216.34); no answer (2606:4700::1, 2606:4700::2)";
    assert!(text.contains(why), "{text}");
}

/// A host that takes connections and never says a word: its other address is tried next.
#[tokio::test(start_paused = true)]
async fn an_address_that_speaks_no_tls_goes_last_for_a_while() {
    let scene = Scene::new();
    scene.net.serve_tls("93.184.216.34:443", &scene.registry, "hub.test");
    scene.net.name("hub.test", &["2606:4700::1", GOOD]);
    scene.net.mute("[2606:4700::1]:443");
    let ca = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(ca.path(), scene.net.ca_pem()).expect("a file");
    let setup = Setup::new(&scene.net).hub(|hub| {
        (hub.urls[0].tls, hub.urls[0].port, hub.ca_file) = (true, 443, Some(ca.path().to_owned()));
    });
    let larder = setup.start();
    let first = pulled(&larder, LATEST).await;
    assert!(first >= seconds(5.0) && first <= seconds(6.0), "{first:?}");
    tokio::time::sleep(IDLE).await;
    let next = pulled(&larder, OTHER).await;
    assert!(next <= seconds(0.3), "{next:?}");
}

/// Refusing to shake hands costs no time, so only the order in which they are dialled is seen.
#[tokio::test(start_paused = true)]
async fn addresses_that_speak_no_tls_all_go_behind_the_one_that_does() {
    for bad in [2, 3] {
        let scene = Scene::new();
        scene.net.serve_tls("93.184.216.34:443", &scene.registry, "hub.test");
        let bad: Vec<String> = (1..=bad).map(|number| format!("203.0.113.{number}")).collect();
        let all: Vec<&str> = bad.iter().map(String::as_str).chain([GOOD]).collect();
        scene.net.name("hub.test", &all);
        for address in &bad {
            scene.net.serve_tls(&format!("{address}:443"), &scene.registry, "another.test");
        }
        let ca = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(ca.path(), scene.net.ca_pem()).expect("a file");
        let setup = Setup::new(&scene.net).hub(|hub| {
            (hub.urls[0].tls, hub.urls[0].port, hub.ca_file) = (true, 443, Some(ca.path().to_owned()));
        });
        let larder = setup.start();
        let mut statuses = Vec::new();
        while !statuses.contains(&200) {
            assert!(statuses.len() <= bad.len(), "{statuses:?}");
            statuses.push(larder.get(LATEST).await.status);
            tokio::time::sleep(IDLE).await;
        }
        let dials = |address: &str| scene.net.dials(&format!("{address}:443"));
        let before: Vec<usize> = bad.iter().map(|address| dials(address)).collect();
        assert!(before.iter().all(|dials| *dials <= 2), "{before:?}");
        for path in [OTHER, THIRD] {
            tokio::time::sleep(IDLE).await;
            pulled(&larder, path).await;
        }
        let after: Vec<usize> = bad.iter().map(|address| dials(address)).collect();
        assert_eq!(after, before, "none of the bad ones is dialled again");
    }
}

#[tokio::test(start_paused = true)]
async fn slow_nameservers_are_waited_for_and_then_no_more() {
    for after in [4.0, 5.0, 10.0, 14.0] {
        let scene = Scene::new();
        scene.net.dns("hub.test", [Dns::late(seconds(after), GOOD)]);
        let larder = scene.start();
        let first = pulled(&larder, LATEST).await;
        assert!(first >= seconds(after) && first <= seconds(after + 0.1), "{after}: {first:?}");
        tokio::time::sleep(IDLE).await;
        let next = pulled(&larder, OTHER).await;
        assert!(next <= seconds(0.6), "{after}, later: {next:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_up_is_one_for_all_and_outlives_who_asked() {
    let scene = Scene::new();
    scene.net.dns("hub.test", [Dns::late(seconds(5.0), GOOD), Dns::Silent]);
    let larder = scene.start();
    let (one, other, third) = tokio::join!(larder.get(LATEST), larder.get(OTHER), larder.get(THIRD));
    assert_eq!([one.status, other.status, third.status], [200; 3]);
    assert_eq!(scene.net.resolved(), ["hub.test"]);
}

#[tokio::test(start_paused = true)]
async fn when_dns_fails_the_last_good_answer_is_used_for_an_hour_with_one_warning() {
    for dns in [Dns::NotFound, Dns::TryAgain, Dns::Silent, Dns::Addresses(Vec::new())] {
        let scene = Scene::new();
        let (log, _guard) = listen();
        scene.net.dns("hub.test", [Dns::addresses(&[GOOD]), dns.clone()]);
        let larder = scene.start();
        pulled(&larder, LATEST).await;
        for path in [OTHER, THIRD] {
            tokio::time::sleep(IDLE).await;
            let took = pulled(&larder, path).await;
            assert!(took <= seconds(0.6), "{dns:?}: {took:?}");
        }
        assert_eq!(log.text().matches("using its last known addresses").count(), 1, "{dns:?}: {}", log.text());
        scene.registry.push_image("library/late", "latest", &[10], 30);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert_eq!(larder.get("/v2/library/late/manifests/latest").await.status, 502, "{dns:?}: after an hour");
    }
}

#[tokio::test(start_paused = true)]
async fn connections_that_a_nat_forgot_cost_one_question_four_seconds_and_the_others_nothing() {
    let scene = Scene::new();
    let larder = scene.start();
    // Three connections at once, idle from then on.
    scene.registry.when(any()).then(Fault::Delay(seconds(0.1)));
    let (one, other, third) = tokio::join!(larder.get(LATEST), larder.get(OTHER), larder.get(THIRD));
    assert_eq!([one.status, other.status, third.status], [200; 3]);
    assert_eq!(scene.net.dials("93.184.216.34:80"), 3);
    scene.registry.behave();
    scene.registry.forget_requests();
    for name in ["a", "b", "c"] {
        scene.registry.push_image(&format!("library/{name}"), "latest", &[10], 40);
    }
    scene.net.forget("hub.test");
    let path = |name: &str| format!("/v2/library/{name}/manifests/latest");
    let first = pulled(&larder, &path("a")).await;
    assert!(first >= seconds(4.0) && first <= seconds(4.5), "{first:?}");
    for name in ["b", "c"] {
        let next = pulled(&larder, &path(name)).await;
        assert!(next <= seconds(0.1), "{name}: {next:?}");
    }
    let asked: Vec<String> = scene.registry.requests().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    let unique: std::collections::BTreeSet<&String> = asked.iter().collect();
    assert_eq!(unique.len(), asked.len(), "what did not arrive is put once more, and nothing else: {asked:?}");
    assert_eq!(larder.metric(r#"larder_upstream_circuit_open{upstream="docker.io"}"#), 0.0);
}

#[tokio::test(start_paused = true)]
async fn a_registry_that_takes_its_time_is_not_asked_twice() {
    let scene = Scene::new();
    let larder = scene.start();
    pulled(&larder, LATEST).await;
    scene.registry.forget_requests();
    scene.registry.when(any()).first(1).then(Fault::Delay(seconds(19.0)));
    let took = pulled(&larder, OTHER).await;
    assert!(took >= seconds(19.0), "{took:?}");
    let asked: Vec<String> = scene.registry.requests().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    let unique: std::collections::BTreeSet<&String> = asked.iter().collect();
    assert_eq!((unique.len(), scene.net.dials("93.184.216.34:80")), (asked.len(), 1), "{asked:?}");
}
