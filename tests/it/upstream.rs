//! Upstream's client by itself, on paused time, against hosts of which one function answers every request.

mod answers;
mod auth;
mod redirects;

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use larder::config::{CredentialConfig, Secret, UpstreamConfig};
use larder::metrics::Metrics;
use larder::oci::{Algorithm, Digest, Reference, RepositoryName};
use larder::rng::Rng;
use larder::upstream::connect::Network;
use larder::upstream::{Call, Questions, Upstream};
use tokio::time::Instant;

use crate::support::net::script::{Reply, Script, Seen, answer, head, redirect};
use crate::support::net::{Dns, FakeNet};

/// Where nobody answers.
const DEAD: &str = "203.0.113.99";
const BASIC: &str = "Basic bWU6aHVudGVyMg==";

/// A network in which one script answers at every address but [`DEAD`].
struct Peers {
    net: FakeNet,
    script: Script,
}

impl Peers {
    fn new(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Peers {
        let (net, script) = (FakeNet::new(), Script::new(answer));
        for (name, addresses) in [
            ("r.example", &["10.0.0.1"][..]),
            ("metadata.example", &["169.254.169.254"]),
            ("private.example", &["10.0.0.2"]),
            ("mixed.example", &["10.0.0.2", "203.0.113.1"]),
            ("dead.example", &[DEAD]),
            ("half.example", &[DEAD, "203.0.113.1"]),
            ("auth.example", &["203.0.113.1"]),
            ("cdn.example", &["203.0.113.1"]),
            ("other.example", &["203.0.113.1"]),
        ] {
            net.name(name, addresses);
        }
        net.dns("nowhere.example", [Dns::NotFound]);
        net.serve_elsewhere(&script);
        net.black_hole(&format!("{DEAD}:80"));
        Peers { net, script }
    }

    /// `<method> <host><target>` of every request, in order.
    fn log(&self) -> Vec<String> {
        self.script.log()
    }

    /// The requests with this `Host`, in order.
    fn to(&self, host: &str) -> Vec<Seen> {
        self.script.to(host)
    }
}

impl Deref for Peers {
    type Target = FakeNet;

    fn deref(&self) -> &FakeNet {
        &self.net
    }
}

fn config() -> UpstreamConfig {
    UpstreamConfig::new("r.example", vec!["http://r.example".parse().expect("a URL")])
}

fn signed_in(mut config: UpstreamConfig) -> UpstreamConfig {
    config.credentials = vec![CredentialConfig::password("me", Secret::Inline("hunter2".into()))];
    config
}

/// An upstream among these peers, and its metrics.
fn upstream(config: &UpstreamConfig, peers: &Peers) -> (Upstream, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new(["r.example"]));
    let upstream =
        Upstream::new(config, &Network::new(Arc::new(peers.net.clone())), Questions::new(256, 32), &metrics, Arc::new(Rng::seeded(1)))
            .expect("an upstream");
    (upstream, metrics)
}

fn repository() -> RepositoryName {
    "library/a".parse().expect("a name")
}

fn tag() -> Reference {
    "1".parse().expect("a tag")
}

fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"hello")
}

fn call() -> Call {
    Call::until(Instant::now() + Duration::from_secs(25))
}
