//! Who gets to see what: clients' secrets go nowhere, larder's own only where they belong, and no redirect leads inside.

mod addresses;
mod canary;
mod kinds;
mod proxy;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use larder::config::{CredentialConfig, Secret, Visibility};

use crate::support::client::Reply;
use crate::support::larder::{Larder, Setup};
use crate::support::log::listen;
use crate::support::registry::{Bearer, Fault, any};
use crate::support::scene::{HUB, Hub};

const USER: &str = "larder-robot";
const CANARY: &str = "canary-5f3a";
const LATEST: &str = "/v2/library/app/manifests/latest";
const CDN: &str = "93.184.216.35";
const BLOCKED_PRIVATE: &str = r#"larder_blocked_dials_total{reason="private"}"#;
const BLOCKED_METADATA: &str = r#"larder_blocked_dials_total{reason="metadata"}"#;

impl Hub {
    fn with_2000_bytes() -> Hub {
        Hub::unstarted(&[2000])
    }

    /// With the canary as the password for `docker.io`.
    fn signed_in(&self) -> Setup {
        let credentials = CredentialConfig::password(USER, Secret::Inline(CANARY.into()));
        self.setup().hub(|hub| (hub.credentials, hub.visibility) = (vec![credentials], Visibility::Private))
    }

    /// HEAD and GET of the tag, HEAD and GET of the layer.
    async fn pull_by_head_and_get(&self, larder: &Larder) -> Vec<Reply> {
        let replies =
            vec![larder.head(LATEST).await, larder.get(LATEST).await, larder.head(&self.blob()).await, larder.get(&self.blob()).await];
        assert_eq!(replies.iter().map(|reply| reply.status).collect::<Vec<_>>(), [200; 4]);
        assert_eq!((replies[1].bytes(), replies[3].bytes()), (&self.image.bytes, &self.image.layers[0].bytes));
        replies
    }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("{USER}:{CANARY}")))
}

/// No trace of the password, plain or encoded.
fn check_clean(what: &str, text: &str) {
    let encoded = STANDARD.encode(format!("{USER}:{CANARY}"));
    assert!(!text.contains(CANARY) && !text.contains(&encoded) && !text.contains("fake-token-"), "{what}: {text}");
}

fn check_replies(larder: &Larder, replies: &[Reply]) {
    for reply in replies {
        check_clean("an answer's headers", &format!("{:?}", reply.headers));
        check_clean("an answer's body", &String::from_utf8_lossy(reply.bytes()));
    }
    check_clean("metrics", &larder.app.metrics.encode());
}

/// Also: registry_34
#[tokio::test]
async fn clients_11_what_a_client_sends_of_its_own_never_reaches_upstream() {
    let scene = Hub::with_2000_bytes();
    scene.net.host("cdn.test", CDN, &scene.registry);
    scene.registry.redirect_blobs("http://cdn.test");
    scene.registry.require_bearer(Bearer::at("http://hub.test/token"));
    let larder = Setup::new(&scene.net).start();
    for path in [LATEST.to_owned(), format!("{}?ns=docker.io", scene.blob()), "/v2/library/none/manifests/latest?ns=docker.io".into()] {
        let mut client = larder.client().await;
        let ask = client.get(&path).header("authorization", "Bearer client-secret").header("proxy-authorization", "Basic client-secret");
        let ask =
            ask.header("cookie", "session=client-secret").header("x-forwarded-for", "client-secret").header("user-agent", "client-secret");
        let reply = ask.header("x-registry-auth", "client-secret").header("referer", "client-secret").send().await;
        assert!(matches!(reply.status, 200 | 404), "{path}");
        assert_eq!((reply.header("www-authenticate"), reply.header("set-cookie")), (None, None));
    }
    assert!(scene.registry.count(any().token()) > 0 && scene.registry.count(any().signed()) > 0);
    for request in scene.registry.requests() {
        assert!(!format!("{request:?}").contains("client-secret") && !request.query.contains("ns="), "{request:?}");
    }
}

/// Also: registry_28, credential_09
#[tokio::test]
async fn invariant_16_a_basic_password_goes_to_its_registry_and_nowhere_else() {
    let scene = Hub::with_2000_bytes();
    scene.net.host("cdn.test", CDN, &scene.registry);
    scene.registry.require_basic(USER, CANARY);
    scene.registry.redirect_blobs("http://cdn.test");
    scene.registry.redirect_manifests("http://cdn.test");
    let larder = scene.signed_in().start();
    let mut replies = scene.pull_by_head_and_get(&larder).await;
    replies.push(larder.get("/v2/library/none/manifests/latest").await);
    check_replies(&larder, &replies);
    assert!(scene.registry.count(any().host("cdn.test")) >= 3);
    for request in scene.registry.requests() {
        match request.host.as_str() {
            "hub.test" => assert!(request.authorization().is_none_or(|sent| sent == basic())),
            _ => assert_eq!(request.authorization(), None, "{request:?}"),
        }
    }
}

#[tokio::test]
async fn invariant_16_a_bearer_password_goes_to_the_token_server_alone() {
    let scene = Hub::with_2000_bytes();
    for (name, address) in [("cdn.test", CDN), ("auth.test", "93.184.216.36")] {
        scene.net.host(name, address, &scene.registry);
    }
    scene.registry.require_bearer(Bearer::at("http://auth.test/token").credentials(USER, CANARY).private("library/app"));
    scene.registry.redirect_blobs("http://cdn.test");
    let larder = scene.signed_in().hub(|hub| hub.token_hosts = vec!["auth.test".into()]).start();
    let replies = scene.pull_by_head_and_get(&larder).await;
    check_replies(&larder, &replies);
    assert_eq!(
        scene.registry.seen(any().token()).iter().map(|request| request.authorization().map(str::to_owned)).collect::<Vec<_>>(),
        [Some(basic())]
    );
    for request in scene.registry.seen(any().host("hub.test")) {
        assert!(request.authorization().is_none_or(|sent| sent.starts_with("Bearer ")), "{request:?}");
    }
    assert!(scene.registry.seen(any().host("cdn.test")).iter().all(|request| request.authorization().is_none()));
}

/// Also: registry_28
#[tokio::test]
async fn invariant_16_another_port_of_the_same_host_is_another_origin() {
    let scene = Hub::with_2000_bytes();
    scene.net.serve(&format!("{HUB}:8080"), &scene.registry);
    scene.registry.require_basic(USER, CANARY);
    scene.registry.redirect_blobs("http://hub.test:8080");
    scene.pull_by_head_and_get(&scene.signed_in().start()).await;
    let elsewhere = scene.registry.seen(any().host("hub.test:8080"));
    assert!(!elsewhere.is_empty() && elsewhere.iter().all(|request| request.authorization().is_none()));
}

/// Also: registry_18, upstream_fault_12
#[tokio::test]
async fn invariant_16_a_token_server_that_nobody_vouches_for_gets_no_password() {
    for tls in [false, true] {
        let scene = Hub::with_2000_bytes();
        let mut setup = scene.signed_in();
        if tls {
            scene.net.tls_host("hub.test", HUB, &scene.registry);
            scene.net.tls_host("evil.test", CDN, &scene.registry);
            setup = setup.hub(|hub| scene.net.over_tls(hub));
        } else {
            scene.net.host("evil.test", CDN, &scene.registry);
        }
        let scheme = if tls { "https" } else { "http" };
        scene.registry.require_bearer(Bearer::at(&format!("{scheme}://evil.test/token")).credentials(USER, CANARY));
        let larder = setup.start();
        let reply = larder.get(LATEST).await;
        assert_eq!(reply.status, 502, "tls: {tls}");
        check_replies(&larder, &[reply]);
        for request in scene.registry.requests() {
            assert_eq!(request.authorization(), None, "tls: {tls}");
            check_clean("a request", &format!("{request:?}"));
        }
        assert_eq!(scene.registry.token_requests(), 0);
    }
}

/// Also: registry_18, credential_09
#[tokio::test]
async fn invariant_16_over_tls_a_listed_token_host_gets_the_password_and_no_clear_text_does() {
    let scene = Hub::with_2000_bytes();
    scene.net.tls_host("hub.test", HUB, &scene.registry);
    scene.net.tls_host("auth.test", CDN, &scene.registry);
    scene.net.host("clear.test", "93.184.216.36", &scene.registry);
    let start = |scene: &Hub| {
        let setup = scene.signed_in().hub(|hub| {
            scene.net.over_tls(hub);
            hub.token_hosts = vec!["auth.test".into(), "clear.test".into()];
        });
        setup.start()
    };
    scene.registry.require_bearer(Bearer::at("https://auth.test/token").credentials(USER, CANARY).private("library/app"));
    scene.pull_by_head_and_get(&start(&scene)).await;
    scene.registry.forget_requests();
    scene.registry.require_bearer(Bearer::at("http://clear.test/token").credentials(USER, CANARY));
    assert_eq!(start(&scene).get(LATEST).await.status, 502);
    assert_eq!((scene.net.dials("93.184.216.36:80"), scene.registry.token_requests()), (0, 0));
    // Nor does a redirect lead out of TLS.
    scene.registry.open_to_all();
    scene.registry.redirect_blobs("http://clear.test");
    let larder = start(&scene);
    assert_eq!(larder.get(LATEST).await.status, 200);
    assert_eq!(larder.get(&scene.blob()).await.status, 502);
    assert_eq!(scene.net.dials("93.184.216.36:80"), 0);
}

/// Also: registry_33
#[tokio::test(start_paused = true)]
async fn invariant_16_no_failure_prints_the_password() {
    let (lines, _guard) = listen();
    for fault in [Fault::status(401), Fault::status(403), Fault::status(500), Fault::status(400), Fault::too_many_requests(5)] {
        for bearer in [false, true] {
            let scene = Hub::with_2000_bytes();
            if bearer {
                scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials(USER, CANARY).credentials_required());
            } else {
                scene.registry.require_basic(USER, CANARY);
            }
            let larder = scene.signed_in().start();
            let mut replies = scene.pull_by_head_and_get(&larder).await;
            larder.clock.advance(Duration::from_secs(3600));
            // A peer that repeats what it was sent is the worst there is.
            let echo = format!("{} {CANARY}", basic());
            scene.registry.when(any()).then(fault.clone());
            scene
                .registry
                .when(any())
                .then(Fault::Header("www-authenticate", format!("Bearer realm=\"http://hub.test/token?{CANARY}\",error=\"x\"")));
            scene.registry.when(any()).then(Fault::Header("x-echo", echo.clone()));
            scene.registry.when(any()).then(Fault::Body(format!(r#"{{"errors":[{{"code":"X","message":"{echo}"}}]}}"#).into()));
            for path in [
                LATEST,
                "/v2/library/other/manifests/latest",
                "/v2/library/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            ] {
                replies.push(larder.get(path).await);
            }
            check_replies(&larder, &replies);
        }
    }
    let text = lines.text();
    assert!(text.contains("upstream did not confirm a tag"), "the log was heard: {text}");
    check_clean("the log", &text);
}

#[tokio::test(start_paused = true)]
async fn clients_33_a_redirect_is_never_a_client_s_business() {
    for status in [301, 302, 303, 307, 308] {
        let scene = Hub::with_2000_bytes();
        scene.registry.when(any().manifest()).then(Fault::redirect(status, "http://93.184.216.40/elsewhere"));
        scene.registry.when(any().blob()).then(Fault::redirect(status, "relative/../loop"));
        let larder = Setup::new(&scene.net).start();
        for path in [LATEST.to_owned(), scene.blob()] {
            for reply in [larder.get(&path).await, larder.head(&path).await] {
                assert!(!(300..400).contains(&reply.status), "{status} {path}");
                assert_eq!(reply.header("location"), None);
            }
        }
    }
}

#[tokio::test]
async fn registry_11_twenty_pulls_cost_one_token_for_each_repository() {
    let scene = Hub::with_2000_bytes();
    let other = scene.registry.push_image("library/other", "latest", &[100, 200], 2);
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials(USER, CANARY).private("library/app"));
    let larder = Arc::new(scene.signed_in().hub(|hub| hub.tag_ttl = Duration::ZERO).start());
    let pulls: Vec<_> = (0..20)
        .map(|n| {
            let larder = Arc::clone(&larder);
            let repository = if n % 2 == 0 { "library/app" } else { "library/other" };
            let digests: Vec<_> = if n % 2 == 0 { &scene.image } else { &other }.layers.iter().map(|layer| layer.digest).collect();
            tokio::spawn(async move {
                assert_eq!(larder.get(&format!("/v2/{repository}/manifests/latest")).await.status, 200);
                for digest in digests {
                    assert_eq!(larder.get(&format!("/v2/{repository}/blobs/{digest}")).await.status, 200);
                }
            })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    assert_eq!(scene.registry.token_requests(), 2);
}

#[tokio::test]
async fn registry_14_a_token_that_is_refused_is_renewed_once() {
    let scene = Hub::with_2000_bytes();
    scene.registry.require_bearer(Bearer::at("http://hub.test/token"));
    let larder = Setup::new(&scene.net).start();
    assert_eq!(larder.get(LATEST).await.status, 200);
    scene.registry.revoke_tokens();
    assert_eq!(larder.get(&scene.blob()).await.bytes(), &scene.image.layers[0].bytes);
    assert_eq!(scene.registry.token_requests(), 2);
    // A registry that likes no token is not asked for ever.
    scene.registry.forget_requests();
    let refusal = Fault::status(401).header("www-authenticate", "Bearer realm=\"http://hub.test/token\",service=\"fake-registry\"");
    scene.registry.when(any().manifest()).then(refusal);
    assert_eq!(larder.get("/v2/library/fresh/manifests/latest").await.status, 403);
    assert!(scene.registry.token_requests() <= 2, "{}", scene.registry.token_requests());
}
