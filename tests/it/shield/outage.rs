//! An upstream that is gone in one way after the other, while 50 clients pull what is held and what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::fleet::{Fleet, tag};
use super::line;
use crate::support::larder::Larder;
use crate::support::net::Dns;
use crate::support::registry::{Fault, any};

const API: &str = "registry-1.docker.io";
/// Every host of Docker Hub, and its address.
const HOSTS: [(&str, &str); 4] = [
    (API, "34.194.164.123"),
    ("auth.docker.io", "54.198.86.24"),
    ("production.cloudfront.docker.com", "13.32.99.10"),
    ("production.cloudflare.docker.com", "104.16.99.215"),
];
const CLIENTS: usize = 50;
const HELD: usize = 25;
/// `revalidate_wait`.
const WAIT: Duration = Duration::from_secs(2);
const AT_ONCE: Duration = Duration::from_millis(100);
/// How long each trouble lasts.
const LASTS: Duration = Duration::from_secs(120);
const TO_HEADERS: Duration = Duration::from_secs(25);
/// The longest rest of a host that is down, and a probe that had gone out before it came back.
const RECOVERY: Duration = Duration::from_secs(30 + 5);

/// What a client was given, how long it took, and how long the trouble had lasted by then.
struct Seen {
    held: bool,
    after: Duration,
    took: Duration,
    line: String,
}

struct Trouble {
    name: &'static str,
    begin: fn(&Fleet),
    /// What who asks for something else than what is held may be told.
    misses: &'static [&'static str],
}

const BROKEN: &[&str] = &["502 UNAVAILABLE"];
const SILENT: &[&str] = &["502 UNAVAILABLE", "504 UNAVAILABLE"];

const TROUBLES: [Trouble; 8] = [
    Trouble { name: "refused", begin: |fleet| HOSTS.iter().for_each(|(_, address)| fleet.net.down(address)), misses: BROKEN },
    Trouble {
        name: "black hole",
        begin: |fleet| {
            // What is open goes silent, too.
            fleet.hub.when(any()).then(Fault::Stall);
            each(|address| fleet.net.black_hole(address));
        },
        misses: SILENT,
    },
    Trouble {
        name: "mute",
        begin: |fleet| {
            fleet.hub.when(any()).then(Fault::Stall);
            each(|address| fleet.net.mute(address));
        },
        misses: SILENT,
    },
    Trouble { name: "silent", begin: |fleet| fleet.hub.when(any()).then(Fault::Stall), misses: SILENT },
    Trouble { name: "500", begin: |fleet| fleet.hub.when(any()).then(Fault::status(500)), misses: BROKEN },
    Trouble {
        name: "TLS",
        begin: |fleet| {
            cut(fleet);
            HOSTS.iter().for_each(|(name, address)| fleet.net.serve_tls_as_stranger(&format!("{address}:443"), &fleet.hub, name));
        },
        misses: BROKEN,
    },
    Trouble {
        name: "no DNS",
        begin: |fleet| {
            cut(fleet);
            HOSTS.iter().for_each(|(name, _)| fleet.net.dns(name, [Dns::TryAgain]));
        },
        misses: BROKEN,
    },
    Trouble {
        name: "silent DNS",
        begin: |fleet| {
            cut(fleet);
            HOSTS.iter().for_each(|(name, _)| fleet.net.dns(name, [Dns::Silent]));
        },
        misses: BROKEN,
    },
];

fn each(then: impl Fn(&str)) {
    HOSTS.iter().for_each(|(_, address)| then(&format!("{address}:443")));
}

/// Open connections break.
fn cut(fleet: &Fleet) {
    for (_, address) in HOSTS {
        fleet.net.down(address);
        fleet.net.up(address);
    }
}

/// All is as before.
fn mend(fleet: &Fleet) {
    fleet.hub.behave();
    for (name, address) in HOSTS {
        fleet.net.up(address);
        fleet.net.tls_host(name, address, &fleet.hub);
    }
}

/// Also: upstream_fault_06, upstream_fault_08, upstream_fault_14, upstream_fault_15
#[tokio::test(start_paused = true)]
async fn in_any_outage_what_is_held_comes_at_once_and_nothing_is_called_missing() {
    let mut fleet = Fleet::new(HELD);
    // Every pull of a tag has to ask.
    let larder = fleet.setup().hub(|hub| hub.tag_ttl = Duration::ZERO).start();
    let larder = Arc::new(larder);
    let held: Vec<usize> = (0..HELD).collect();
    let (whole, wrong) = fleet.pull_all(&larder, 2, &held).await;
    assert_eq!(whole, 50, "{wrong:#?}");
    let mut figures = Vec::new();
    for Trouble { name, begin, misses } in TROUBLES {
        let unheld = fleet.images.len()..fleet.images.len() + 10;
        unheld.clone().for_each(|_| fleet.push());
        if name.ends_with("DNS") {
            // For an hour larder would use what DNS said last.
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        begin(&fleet);
        let seen = clients(&larder, unheld.clone()).await;
        let figure = judge(name, misses, seen);
        mend(&fleet);
        let mended = Instant::now();
        loop {
            let replies = [larder.head(&tag(0)).await, larder.head(&tag(unheld.start)).await];
            if replies.iter().all(|reply| reply.status == 200 && !line(reply).contains("stale-")) {
                break;
            }
            assert!(mended.elapsed() < RECOVERY, "{name}: {:?} after its end: {:?}", mended.elapsed(), replies.map(|reply| line(&reply)));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        figures.push(format!("{figure}; recovered after {:?}", mended.elapsed()));
        let all: Vec<usize> = held.iter().copied().chain(unheld).collect();
        let (whole, wrong) = fleet.pull_all(&larder, 1, &all).await;
        assert_eq!(whole, all.len(), "{wrong:#?} after {figures:#?}");
    }
}

/// Each client asks for something held and for something that is not, again and again, while the trouble lasts.
async fn clients(larder: &Arc<Larder>, unheld: std::ops::Range<usize>) -> Vec<Seen> {
    let over = Arc::new(AtomicBool::new(false));
    let begun = Instant::now();
    let mut clients = JoinSet::new();
    for number in 0..CLIENTS {
        for held in [true, false] {
            let (mut client, over) = (larder.client().await, Arc::clone(&over));
            let path = tag(if held { number % HELD } else { unheld.start + number % unheld.len() });
            clients.spawn(async move {
                let mut seen = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let asked = Instant::now();
                    let reply = client.get(&path).accept_manifests().send().await;
                    let after = asked - begun;
                    seen.push(Seen { held, after, took: asked.elapsed(), line: line(&reply) });
                    tokio::time::sleep(Duration::from_millis(900 + number as u64)).await;
                }
                seen
            });
        }
    }
    tokio::time::sleep(LASTS).await;
    over.store(true, Ordering::Relaxed);
    clients.join_all().await.into_iter().flatten().collect()
}

/// The figures, which are as they should be.
fn judge(name: &str, misses: &[&str], seen: Vec<Seen>) -> String {
    let (held, missed): (Vec<Seen>, Vec<Seen>) = seen.into_iter().partition(|seen| seen.held);
    for seen in &held {
        let is_right = seen.line.starts_with("200 larder; hit; ") && seen.line.ends_with("detail=stale-unavailable");
        assert!(is_right && seen.took <= WAIT + AT_ONCE, "{name}, after {:?}: {} in {:?}", seen.after, seen.line, seen.took);
    }
    let late: Vec<Duration> = held.iter().filter(|seen| seen.after >= WAIT + Duration::from_secs(1)).map(|seen| seen.took).collect();
    let p99 = percentile(late, 99);
    assert!(p99 < AT_ONCE, "{name}: p99 of what is held: {p99:?}");
    for seen in &missed {
        assert!(seen.took <= TO_HEADERS, "{name}, after {:?}: {} in {:?}", seen.after, seen.line, seen.took);
        assert!(misses.contains(&seen.line.as_str()), "{name}, after {:?}: {}", seen.after, seen.line);
    }
    let (asked, missed) = (held.len(), missed.into_iter().map(|seen| seen.took).collect::<Vec<_>>());
    let (most, half) = (percentile(missed.clone(), 100), percentile(missed.clone(), 50));
    format!("{name}: {asked} of what is held, p99 {p99:?}; {} of what is not, p50 {half:?}, at most {most:?}", missed.len())
}

fn percentile(mut times: Vec<Duration>, percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}
