//! What is found on the way to a registry.

use std::time::Duration;

use larder::config::{ProxyUrl, UpstreamConfig};
use tokio::time::Instant;

use super::{Corp, OWN, one, online, says};
use crate::support::larder::upstream;
use crate::support::net::Dns;
use crate::support::registry::{Fault, any};

#[tokio::test]
async fn a_registry_that_is_well_is_told_in_five_lines() {
    let scene = Corp::new();
    let text = one(&scene.net, scene.upstream(), true).await;
    says(&text, &["corp.test: ok", "url     https://r.corp.test", "dns     93.184.216.34", "auth    anonymous", "budget  no limit told"]);
    assert!(text.contains("  tls     ok, ") && text.contains("good until 4096-01-01"), "{text}");
    assert!(!text.contains("change"), "{text}");
}

#[tokio::test]
async fn upstream_fault_15_what_is_wrong_with_a_certificate_is_told_with_the_key_that_mends_it() {
    let scene = Corp::new();
    let own = format!("{OWN}:443");
    let stranger = UpstreamConfig { ca_file: None, ..scene.upstream() };
    let lines = [
        "corp.test: does not work",
        "tls     its certificate is signed by nobody whom this machine believes",
        "change  upstreams.corp.test.ca_file: the PEM file of the CA that signed its certificate",
    ];
    says(&one(&scene.net, stranger.clone(), false).await, &lines);
    assert_eq!(scene.registry.requests().len(), 0);
    let text = one(&scene.net, UpstreamConfig { insecure_skip_verify: true, ..stranger }, true).await;
    assert!(text.contains("tls     not verified (insecure_skip_verify), "), "{text}");
    scene.registry.forget_requests();
    scene.net.serve_tls(&own, &scene.registry, "another.test");
    let text = one(&scene.net, scene.upstream(), false).await;
    assert!(text.contains("its certificate is for another host: ") && text.contains("another.test"), "{text}");
    says(&text, &["change  upstreams.corp.test.url: a host name that its certificate is for"]);
    scene.net.raw(&own, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    says(&one(&scene.net, scene.upstream(), false).await, &["tls     it does not speak TLS"]);
    assert_eq!(scene.registry.requests().len(), 0);
}

#[tokio::test]
async fn a_name_without_an_address_and_a_closed_port_are_told() {
    let scene = Corp::new();
    scene.net.close(&format!("{OWN}:443"));
    let text = one(&scene.net, scene.upstream(), false).await;
    assert!(text.contains("dns     93.184.216.34\n  connect r.corp.test: connection refused"), "{text}");
    assert!(text.contains("change  let this machine's firewall connect there, or upstreams.corp.test.proxy: "), "{text}");
    scene.net.dns("r.corp.test", [Dns::NotFound]);
    let text = one(&scene.net, scene.upstream(), false).await;
    assert!(text.contains("dns     r.corp.test: failed to lookup address information"), "{text}");
    assert!(text.contains("change  upstreams.corp.test.url: a host that DNS knows"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn silent_upstreams_are_asked_at_once_and_told_in_order_within_25_seconds() {
    let scene = Corp::new();
    scene.net.black_hole("93.184.216.40:80");
    scene.net.mute("93.184.216.41:80");
    scene.net.name("deaf.test", &["93.184.216.40"]);
    scene.net.name("mute.test", &["93.184.216.41"]);
    scene.net.dns("lost.test", [Dns::Silent]);
    let mut two = upstream("two.test", "deaf.test");
    two.urls.push(upstream("", "mute.test").urls.remove(0));
    let upstreams = [upstream("a.test", "mute.test"), upstream("b.test", "lost.test"), scene.upstream(), two];
    let begun = Instant::now();
    let checked = online(&scene.net, upstreams).await;
    assert!(begun.elapsed() <= Duration::from_secs(25), "{:?}", begun.elapsed());
    let heads: Vec<_> = checked.text.lines().filter(|line| !line.is_empty() && !line.starts_with(' ')).collect();
    assert_eq!(heads, ["a.test: does not work", "b.test: does not work", "corp.test: ok", "two.test: does not work"]);
    let failure = checked.verdict().expect_err("some fail");
    assert_eq!(failure.to_string(), "3 of 4 upstreams do not work as configured: a.test, b.test, two.test");
    assert_eq!(failure.code(), 1);
}

#[tokio::test]
async fn what_is_no_registry_is_told() {
    let page = Fault::Header("content-type", "text/html; charset=utf-8".into());
    for (fault, line, change) in [
        (Fault::from(Fault::status(404)), "answer  404 to /v2/: there is no registry", "upstreams.corp.test.url: where the registry is"),
        (page, "answer  upstream answered wrongly: ", "upstreams.corp.test.url: where the registry is"),
        (Fault::from(Fault::status(503)), "answer  upstream unavailable: ", "the registry's operator must see to it"),
        (Fault::from(Fault::status(403)), "answer  refused: ", "upstreams.corp.test.credentials: a login"),
    ] {
        let scene = Corp::new();
        scene.registry.when(any()).then(fault);
        let text = one(&scene.net, scene.upstream(), false).await;
        assert!(text.contains(line) && text.contains(&format!("  change  {change}")), "{text}");
    }
}

#[tokio::test]
async fn a_redirect_inside_is_told_and_not_followed() {
    let scene = Corp::new();
    scene.net.tls_host("inside.test", "192.168.7.9", &scene.registry);
    scene.registry.when(any().host("r.corp.test")).then(Fault::redirect(307, "https://inside.test/v2/?sig=canary"));
    let lines = [
        "answer  /v2/ redirects to https://inside.test, at 192.168.7.9, which is no public address: it is not asked",
        "change  add 192.168.7.9 to upstreams.corp.test.allow_private_addresses, if that host is yours",
    ];
    says(&one(&scene.net, scene.upstream(), false).await, &lines);
    assert_eq!(scene.net.dials("192.168.7.9:443"), 0);
    let opened = UpstreamConfig { allow_private_addresses: vec!["192.168.0.0/16".parse().unwrap()], ..scene.upstream() };
    says(&one(&scene.net, opened, true).await, &["answer  /v2/ redirects to https://inside.test"]);
}

#[tokio::test]
async fn the_proxy_is_named_without_its_password() {
    let scene = Corp::new();
    let proxy = scene.net.proxy("proxy.corp.test", "10.0.0.9", 3128);
    // user:canary
    proxy.require("Basic dXNlcjpjYW5hcnk=");
    let by = |userinfo: &str| {
        let proxy = ProxyUrl { url: "http://proxy.corp.test:3128".parse().unwrap(), userinfo: Some(userinfo.into()) };
        UpstreamConfig { proxy: Some(proxy), ..scene.upstream() }
    };
    let text = one(&scene.net, by("user:canary"), true).await;
    says(&text, &["proxy   http://proxy.corp.test:3128", "auth    anonymous"]);
    assert!(!text.contains("canary") && !text.contains("dns"), "{text}");
    let text = one(&scene.net, by("user:wrong"), false).await;
    assert!(text.contains("(407)") && text.contains("change  upstreams.corp.test.proxy: a proxy that works"), "{text}");
}
