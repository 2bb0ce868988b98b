//! What follows from a row of the table of registries, seen on a made-up one that the tests' table has.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::connect::{Network, TcpConnect};
use super::{Questions, Upstream};
use crate::config::{BaseUrl, Config, UpstreamConfig, Visibility};
use crate::metrics::Metrics;
use crate::oci::registries::tests::MADE_UP;
use crate::rng::Rng;
use crate::upstream::auth::token_hosts::{Trust, judge};
use crate::upstream::http::url::{Origin, Url};
use crate::upstream::limits::throttle::{Asking, Pace};

const NAME: &str = "made-up.example";
const API: &str = "api.made-up.example";

fn configured(yaml: &str) -> Config {
    Config::from_yaml(yaml, [("HOME".to_owned(), "/root".to_owned())]).expect("a configuration").0
}

#[test]
fn a_row_is_an_upstream_with_its_url_its_names_and_its_defaults() {
    let config = configured("");
    let upstream = &config.upstreams[NAME];
    assert_eq!(upstream.urls[0].to_string(), "https://api.made-up.example");
    assert_eq!((upstream.visibility, upstream.tag_ttl), (Visibility::Public, Duration::from_secs(300)));
    for name in [NAME, API, "old.made-up.example"] {
        assert_eq!(config.upstream(name).map(|upstream| upstream.name.as_str()), Some(NAME), "{name}");
    }
    let signed_in = configured(&format!("default_upstream: {API}\nupstreams: {{{NAME}: {{credentials: {{docker_helper: x}}}}}}"));
    assert_eq!((signed_in.default_upstream.as_str(), signed_in.upstreams[NAME].visibility), (NAME, Visibility::Public));
    let pinned = configured("cache: {pinned_images: ['old.made-up.example/app:1']}");
    assert_eq!(pinned.cache.pinned_images[0].to_string(), "made-up.example/base/app:1");
}

#[test]
fn a_row_says_which_token_servers_get_the_credentials() {
    let origin = |text: &str| -> Origin { Url::parse(text).expect("a URL").origin };
    let trust = |registry: &str, realm: &str| judge(&origin(registry), &origin(realm), &[]);
    assert_eq!(trust("https://api.made-up.example", "https://login.made-up.example/token"), Trust::Credentials);
    assert_eq!(trust("https://api.made-up.example", "https://login.made-up.example:8443/token"), Trust::Nothing);
    assert_eq!(trust("https://api.made-up.example", "https://auth.docker.io/token"), Trust::Nothing);
    assert_eq!(trust("https://quay.io", "https://login.made-up.example/token"), Trust::Nothing);
}

#[tokio::test(start_paused = true)]
async fn a_row_says_how_far_apart_anonymous_questions_are() {
    let (pace, begun) = (Pace::of_anonymous(API).expect("a pace"), Instant::now());
    for _ in 0..3 {
        pace.turn(Asking::Get, begun + Duration::from_secs(25)).await.expect("a turn");
    }
    assert_eq!(begun.elapsed(), MADE_UP.anonymous_interval.expect("an interval") * 2);
}

#[test]
fn a_row_says_how_long_a_page_may_be_wherever_the_upstream_s_name_or_url_has_its_host() {
    let page_size = |name: &str, host: &str| {
        let urls = vec![BaseUrl { tls: false, host: host.into(), port: 80, path: String::new() }];
        let (config, metrics) = (UpstreamConfig::new(name, urls), Arc::new(Metrics::new([name])));
        let upstream = Upstream::new(
            &config,
            &Network::new(Arc::new(TcpConnect), metrics.task_panics.clone()),
            Questions::new(256, 32),
            &metrics,
            Arc::new(Rng::from_entropy()),
        );
        upstream.expect("an upstream").page_size_max()
    };
    assert_eq!(page_size(NAME, API), Some(50));
    assert_eq!(page_size("r.example", API), Some(50), "an upstream with a name of one's own");
    assert_eq!(page_size(NAME, "mirror.example"), Some(50));
    assert_eq!(page_size("r.example", "r.example"), None);
    assert_eq!(page_size("r.example", "123456789012.dkr.ecr.eu-west-1.amazonaws.com"), Some(1000));
}
