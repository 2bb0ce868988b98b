//! By way of a proxy: tunnels for TLS, whole URLs without; its password goes to it alone, and it is asked for no inner host.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use larder::config::{NoProxy, ProxyUrl, UpstreamConfig};

use super::{BLOCKED_METADATA, BLOCKED_PRIVATE, CDN, HUB, Hub, LATEST, basic, check_clean, check_replies};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeProxy;
use crate::support::registry::Bearer;

const PROXY: &str = "10.9.9.9";
const PROXY_PORT: &str = "10.9.9.9:3128";
/// Of the same characters as the credentials' canary, so that `check_clean` finds it.
const USERINFO: &str = "proxy-user:canary-5f3a";

fn proxy_url(userinfo: Option<&str>) -> ProxyUrl {
    ProxyUrl { url: "http://proxy.test:3128".parse().unwrap(), userinfo: userinfo.map(Into::into) }
}

fn proxied(hub: &mut UpstreamConfig) {
    hub.proxy = Some(proxy_url(Some(USERINFO)));
}

fn proxy_basic() -> String {
    format!("Basic {}", STANDARD.encode(USERINFO))
}

struct Proxied {
    scene: Hub,
    proxy: FakeProxy,
}

impl Proxied {
    fn new() -> Proxied {
        let scene = Hub::with_2000_bytes();
        let proxy = scene.net.proxy("proxy.test", PROXY, 3128);
        proxy.require(&proxy_basic());
        Proxied { scene, proxy }
    }

    fn setup(&self, tls: bool) -> Setup {
        let setup = self.scene.signed_in().hub(proxied);
        if !tls {
            return setup;
        }
        self.scene.net.tls_host("hub.test", HUB, &self.scene.registry);
        setup.hub(|hub| self.scene.net.over_tls(hub))
    }

    /// Whether nothing but the proxy was looked up or dialled.
    fn check_only_the_proxy_was_reached(&self) {
        assert!(self.scene.net.resolved().iter().all(|name| name == "proxy.test"), "{:?}", self.scene.net.resolved());
        assert!(self.scene.net.dialled().iter().all(|dialled| dialled.to_string() == PROXY_PORT), "{:?}", self.scene.net.dialled());
    }

    fn check_no_host_saw_its_password(&self) {
        for request in self.scene.registry.requests() {
            let authorization = request.authorization();
            assert!(authorization.is_none_or(|sent| sent == basic() || sent.starts_with("Bearer ")), "{request:?}");
            assert_eq!(request.header("proxy-authorization"), None, "{request:?}");
        }
    }
}

fn check_says_nothing(larder: &Larder, proxy_failure: &str) {
    assert!(!proxy_failure.contains(&STANDARD.encode(USERINFO)));
    check_clean("a failure", proxy_failure);
    check_clean("metrics", &larder.app.metrics.encode());
}

#[tokio::test]
async fn tls_goes_through_a_tunnel_to_registry_token_server_and_cdn_alike() {
    let proxied = Proxied::new();
    let scene = &proxied.scene;
    let larder = proxied.setup(true).hub(|hub| hub.token_hosts = vec!["auth.test".into()]).start();
    scene.net.tls_host("auth.test", "93.184.216.36", &scene.registry);
    scene.net.tls_host("cdn.test", CDN, &scene.registry);
    scene.registry.require_bearer(Bearer::at("https://auth.test/token").credentials(super::USER, super::CANARY).private("library/app"));
    scene.registry.redirect_blobs("https://cdn.test");
    let replies = scene.pull_by_head_and_get(&larder).await;
    check_replies(&larder, &replies);
    let mut asked = proxied.proxy.asked();
    asked.sort();
    asked.dedup();
    assert_eq!(asked, ["CONNECT auth.test:443", "CONNECT cdn.test:443", "CONNECT hub.test:443"]);
    for head in proxied.proxy.heads() {
        assert!(head.contains(&format!("Proxy-Authorization: {}\r\n", proxy_basic())) && head.contains("\r\nHost: "), "{head}");
        assert!(!head.contains("\r\nAuthorization:") && !head.contains("/v2/"), "{head}");
    }
    proxied.check_only_the_proxy_was_reached();
    proxied.check_no_host_saw_its_password();
}

#[tokio::test]
async fn without_tls_the_proxy_gets_whole_urls_and_its_password_with_each() {
    let proxied = Proxied::new();
    let scene = &proxied.scene;
    scene.net.host("cdn.test", CDN, &scene.registry);
    scene.registry.require_basic(super::USER, super::CANARY);
    scene.registry.redirect_blobs("http://cdn.test");
    let larder = proxied.setup(false).start();
    let replies = scene.pull_by_head_and_get(&larder).await;
    check_replies(&larder, &replies);
    let asked = proxied.proxy.asked();
    assert!(asked.contains(&format!("HEAD http://hub.test{LATEST}")), "{asked:?}");
    assert!(asked.iter().any(|line| line.starts_with("GET http://cdn.test/") && line.contains('?')), "{asked:?}");
    let names = |head: &String, name: &str| head.to_ascii_lowercase().lines().any(|line| line.starts_with(name));
    for head in proxied.proxy.heads() {
        assert!(names(&head, "proxy-authorization: basic "), "{head}");
        assert!(!(head.contains("http://cdn.test/") && names(&head, "authorization:")), "{head}");
    }
    proxied.check_only_the_proxy_was_reached();
    proxied.check_no_host_saw_its_password();
}

#[tokio::test]
async fn what_no_proxy_covers_is_reached_directly_and_without_the_proxy_s_password() {
    let proxied = Proxied::new();
    let scene = &proxied.scene;
    scene.net.host("cdn.inner.test", CDN, &scene.registry);
    scene.registry.redirect_blobs("http://cdn.inner.test");
    let larder = proxied.setup(false).hub(|hub| hub.no_proxy = NoProxy::new(".inner.test")).start();
    scene.pull_by_head_and_get(&larder).await;
    assert!(proxied.proxy.asked().iter().all(|line| line.contains("http://hub.test/")));
    assert!(scene.net.dials(&format!("{CDN}:80")) > 0 && scene.net.dials(&format!("{HUB}:80")) == 0);
    proxied.check_no_host_saw_its_password();
    // What is reached directly is judged by its address as ever.
    scene.net.host("cdn.inner.test", "10.0.0.5", &scene.registry);
    let config = scene.image.config.clone().unwrap();
    scene.net.down(CDN);
    assert_eq!(larder.get(&format!("/v2/library/app/blobs/{}", config.digest)).await.status, 502);
    assert_eq!(scene.net.dials("10.0.0.5:80"), 0);
}

#[tokio::test]
async fn upstream_fault_11_invariant_17_a_proxy_is_asked_for_no_inner_host() {
    for (host, series) in [
        ("10.0.0.5", BLOCKED_PRIVATE),
        ("[fd00::5]", BLOCKED_PRIVATE),
        ("[::ffff:10.0.0.5]", BLOCKED_PRIVATE),
        ("2130706433", BLOCKED_PRIVATE),
        ("127.1", BLOCKED_PRIVATE),
        ("0x7f000001", BLOCKED_PRIVATE),
        ("0.0.0.0", BLOCKED_PRIVATE),
        ("a.localhost", BLOCKED_PRIVATE),
        ("store.corp.internal", BLOCKED_PRIVATE),
        ("169.254.169.254", BLOCKED_METADATA),
        ("169.254.169.254.", BLOCKED_METADATA),
        ("metadata.google.internal", BLOCKED_METADATA),
    ] {
        for tls in [false, true] {
            let proxied = Proxied::new();
            let larder = proxied.setup(tls).start();
            let scheme = if tls { "https" } else { "http" };
            proxied.scene.registry.redirect_blobs(&format!("{scheme}://{host}"));
            let reply = larder.get(&proxied.scene.blob()).await;
            assert_eq!(reply.status, 502, "{host}");
            assert!(!reply.text().contains(host) && larder.metric(series) >= 1.0, "{host}: {}", reply.text());
            assert!(proxied.proxy.heads().iter().all(|head| head.contains("hub.test")), "{host}: {:?}", proxied.proxy.asked());
            proxied.check_only_the_proxy_was_reached();
        }
    }
}

#[tokio::test]
async fn invariant_17_an_upstream_in_figures_may_be_private_behind_a_proxy_too() {
    let proxied = Proxied::new();
    proxied.scene.net.serve("10.1.2.3:5000", &proxied.scene.registry);
    let larder = proxied.setup(false).hub(|hub| hub.urls = vec!["http://10.1.2.3:5000".parse().unwrap()]).start();
    proxied.scene.pull_by_head_and_get(&larder).await;
    assert!(proxied.proxy.asked()[0].starts_with("HEAD http://10.1.2.3:5000/v2/"));
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_opens_no_tunnel_is_named_without_its_password() {
    let huge = format!("HTTP/1.1 200 OK\r\nX-Filler: {}\r\n\r\n", "x".repeat(16 * 1024));
    for (answer, why) in [
        ("HTTP/1.1 403 Forbidden\r\nX-Echo: canary-5f3a\r\n\r\n", "403 to CONNECT"),
        ("HTTP/1.1 502 Bad Gateway\r\n\r\n", "502 to CONNECT"),
        ("HTTP/1.1 307 Go\r\nLocation: http://evil.test/\r\n\r\n", "307 to CONNECT"),
        ("HTTP/1.1 407 Who are you\r\n\r\n", "user name and password that it accepts"),
        ("SSH-2.0-OpenSSH_9.6\r\n\r\n", "not answer CONNECT in HTTP"),
        ("HTTP/1.1 200 OK\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", "not answer CONNECT in HTTP"),
        (huge.as_str(), "more than 16 KiB"),
        ("HTTP/1.1 200", "no connection in 5 s"),
    ] {
        let proxied = Proxied::new();
        proxied.proxy.answer_connect(answer);
        let (log, _guard) = super::listen();
        let larder = proxied.setup(true).start();
        let begun = tokio::time::Instant::now();
        let reply = larder.get(LATEST).await;
        assert!(matches!(reply.status, 502 | 504), "{answer}: {}", reply.status);
        assert!(begun.elapsed() < Duration::from_secs(25), "{answer}");
        let text = log.text();
        assert!(text.contains(why) && text.contains("the proxy http://proxy.test:3128"), "{answer}: {text}");
        check_says_nothing(&larder, &(text + reply.text()));
        assert_eq!(proxied.scene.registry.requests().len(), 0);
        assert!(larder.metric(r#"larder_upstream_errors_total{reason="connect",upstream="docker.io"}"#) >= 1.0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_s_refusal_is_no_word_about_the_image() {
    for tls in [false, true] {
        let proxied = Proxied::new();
        let (log, _guard) = super::listen();
        let larder = proxied.setup(tls).hub(|hub| hub.proxy = Some(proxy_url(Some("proxy-user:wrong-canary-5f3a")))).start();
        let reply = larder.get(LATEST).await;
        assert_eq!(reply.status, 502, "tls: {tls}");
        let text = log.text();
        assert!(text.contains("the proxy http://proxy.test:3128: it wants a user name and password"), "{text}");
        check_says_nothing(&larder, &(text + reply.text()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_is_down_is_the_one_that_is_blamed() {
    let proxied = Proxied::new();
    proxied.scene.net.down("proxy.test");
    let (log, _guard) = super::listen();
    let larder = proxied.setup(true).start();
    assert_eq!(larder.get(LATEST).await.status, 502);
    assert!(log.text().contains("through the proxy http://proxy.test:3128: connection refused"), "{}", log.text());
    assert_eq!(proxied.scene.net.dials(&format!("{HUB}:443")), 0, "no way around the proxy");
}
