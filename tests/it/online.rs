//! `check-config --online`: each kind of finding, what it is called, and what is to be changed.

mod found;
mod logins;

use std::collections::BTreeMap;
use std::sync::Arc;

use larder::cli::online::{Checked, check};
use larder::config::UpstreamConfig;
use larder::rng::Rng;

use crate::support::larder::{Setup, upstream};
use crate::support::net::FakeNet;
use crate::support::registry::FakeRegistry;

const OWN: &str = "93.184.216.34";

/// `corp.test` at `https://r.corp.test`.
struct Corp {
    net: FakeNet,
    registry: FakeRegistry,
}

impl Corp {
    fn new() -> Corp {
        let scene = Corp { net: FakeNet::new(), registry: FakeRegistry::new() };
        scene.net.tls_host("r.corp.test", OWN, &scene.registry);
        scene
    }

    fn upstream(&self) -> UpstreamConfig {
        let mut config = upstream("corp.test", "r.corp.test");
        self.net.over_tls(&mut config);
        config
    }
}

/// Asks these upstreams, and no others.
async fn online(net: &FakeNet, upstreams: impl IntoIterator<Item = UpstreamConfig>) -> Checked {
    let mut config = Setup::new(net).config;
    config.upstreams = upstreams.into_iter().map(|upstream| (upstream.name.clone(), upstream)).collect::<BTreeMap<_, _>>();
    check(&config, Arc::new(net.clone()), Arc::new(Rng::seeded(7))).await.expect("upstreams that can be set up")
}

/// Asks one, and checks whether it works.
async fn one(net: &FakeNet, upstream: UpstreamConfig, works: bool) -> String {
    let checked = online(net, [upstream]).await;
    assert_eq!((checked.verdict().is_ok(), checked.upstreams), (works, 1), "{}", checked.text);
    checked.text
}

/// The text holds each of these lines.
#[track_caller]
fn says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.lines().any(|said| said.trim() == *line), "no line {line:?} in:\n{text}");
    }
}
