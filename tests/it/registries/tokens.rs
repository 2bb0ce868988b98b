//! Tokens (A10 1–21): from whom they are had, for what, how long they are used, and what a refusal means.

use std::sync::Arc;
use std::time::Duration;

use larder::config::{CredentialKind, Secret};
use tokio::task::JoinSet;

use super::{before, push};
use crate::support::larder::{Larder, Setup};
use crate::support::net::FakeNet;
use crate::support::registries::{Ping, docker_hub, ghcr, gitea, gitlab, harbor, quay, registry_k8s_io};
use crate::support::registry::{Bearer, FakeRegistry, Fault, Request, any, get, head, post};

/// The scopes that tokens were asked for, as they came.
fn scopes(requests: &[Request]) -> Vec<String> {
    let scope = |request: &Request| crate::support::registry::query_values(&request.query, "scope").join(" ");
    requests.iter().map(scope).collect()
}

#[tokio::test]
async fn registry_02_gitea_s_second_challenge_line_hides_no_token_server() {
    let net = FakeNet::new();
    let gitea = gitea(&net);
    let pushed = push(&gitea, "owner/app", 1);
    gitea.script(|gitea| gitea.tokens.account("owner", "pat"));
    let larder = Setup::new(&net).upstream(gitea.upstream_as("owner", "pat")).start();
    pushed.pull(&larder, gitea.name()).await;
    assert_eq!(gitea.token_requests(), 1);
    let to_the_registry = gitea.seen(any().manifest());
    assert!(to_the_registry.iter().all(|request| request.authorization().is_none_or(|sent| sent.starts_with("Bearer "))));
}

#[tokio::test]
async fn registry_03_an_empty_challenge_and_none_at_all_are_refusals_and_no_loop() {
    let net = FakeNet::new();
    let harbor = harbor(&net);
    let pushed = push(&harbor, "public/app", 1);
    let larder = before(&net, &harbor);
    for nothing_at_all in [false, true] {
        if nothing_at_all {
            harbor.when(any().manifest()).then(Fault::status(401));
        }
        harbor.forget_requests();
        let reply = larder.get(&format!("/v2/{}/nowhere/app{nothing_at_all}/manifests/1", harbor.name())).await;
        assert_eq!((reply.status, reply.header("www-authenticate")), (403, None));
        assert!(harbor.count(any()) <= 2, "{:#?}", harbor.requests());
    }
    harbor.behave();
    pushed.pull(&larder, harbor.name()).await;
}

#[tokio::test]
async fn registry_04_a_realm_keeps_its_own_query() {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", "93.184.216.34", &registry);
    registry.require_bearer(Bearer::at("http://hub.test/token?tenant=a%2Fb&empty="));
    let image = registry.push_image("library/app", "1", &[10], 1);
    let reply = Larder::start(&net).get("/v2/library/app/manifests/1").await;
    assert_eq!(reply.bytes(), &image.bytes);
    let queries: Vec<String> = registry.seen(any().token()).into_iter().map(|request| request.query).collect();
    assert_eq!(queries, ["tenant=a%2Fb&empty=&service=fake-registry&scope=repository%3Alibrary%2Fapp%3Apull"]);
}

/// Also: registry_06
#[tokio::test]
async fn registry_05_a_scope_of_its_own_is_asked_for_where_the_challenge_has_none() {
    for challenged in ["", "*", "repository:user/image:pull"] {
        let (net, registry) = (FakeNet::new(), FakeRegistry::new());
        net.host("hub.test", "93.184.216.34", &registry);
        registry.require_bearer(Bearer::at("http://hub.test/token").service(None).challenge_scope(challenged));
        let image = registry.push_image("library/app", "1", &[10], 1);
        assert_eq!(Larder::start(&net).get("/v2/library/app/manifests/1").await.bytes(), &image.bytes, "{challenged}");
        let asked = registry.seen(any().token());
        assert_eq!(asked.iter().map(|request| request.query.as_str()).collect::<Vec<_>>(), ["scope=repository%3Alibrary%2Fapp%3Apull"]);
    }
}

#[tokio::test]
async fn registry_07_one_part_names_are_library_names_in_path_and_scope() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/alpine", 1);
    let larder = before(&net, &hub);
    for path in ["/v2/alpine/manifests/1", "/v2/docker.io/alpine/manifests/1", "/v2/library/alpine/manifests/1"] {
        assert_eq!(larder.get(path).await.bytes(), &pushed.index.bytes, "{path}");
    }
    assert_eq!(scopes(&hub.seen(any().token())), ["repository:library/alpine:pull"]);
    assert!(hub.seen(any().manifest()).iter().all(|request| request.path.starts_with("/v2/library/alpine/")));
}

#[tokio::test]
async fn registry_08_either_name_of_the_token_does_and_a_reply_with_neither_is_an_error() {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", "93.184.216.34", &registry);
    registry.require_bearer(Bearer::at("http://hub.test/token").in_access_token());
    let image = registry.push_image("library/app", "1", &[10], 1);
    registry.when(any().token()).first(1).then(Fault::Body(r#"{"expires_in":300}"#.into()));
    let larder = Larder::start(&net);
    assert_eq!(larder.get("/v2/library/app/manifests/1").await.status, 502);
    // A refusal that was held must be over.
    let other = registry.push_image("library/other", "1", &[10], 2);
    assert_eq!(larder.get("/v2/library/other/manifests/1").await.bytes(), &other.bytes);
    assert_eq!(registry.token_requests(), 2);
    assert_eq!(image.layers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn registry_09_a_token_that_tells_no_end_is_used_for_most_of_a_minute() {
    let net = FakeNet::new();
    let ghcr = ghcr(&net);
    let pushed = push(&ghcr, "org/app", 1);
    let larder = before(&net, &ghcr);
    larder.head(&pushed.tag("ghcr.io")).await;
    for (seconds, tokens) in [(0, 1), (45, 1), (16, 2)] {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        larder.clock.advance(Duration::from_secs(3600));
        assert_eq!(larder.head(&pushed.tag("ghcr.io")).await.status, 200);
        assert_eq!(ghcr.token_requests(), tokens, "{seconds} s later");
    }
}

#[tokio::test(start_paused = true)]
async fn registry_10_when_a_token_was_issued_by_another_clock_is_no_matter() {
    for issued_at in [None, Some("1999-12-31T23:59:59Z"), Some("2099-01-01T00:00:00Z"), Some("yesterday")] {
        let net = FakeNet::new();
        let harbor = harbor(&net);
        let pushed = push(&harbor, "team/app", 1);
        harbor.script(|harbor| harbor.issued_at = issued_at.map(str::to_owned));
        let larder = before(&net, &harbor);
        for (seconds, tokens) in [(0, 1), (1700, 1), (200, 2)] {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            larder.clock.advance(Duration::from_secs(3600));
            assert_eq!(larder.head(&pushed.tag(harbor.name())).await.status, 200);
            assert_eq!(harbor.token_requests(), tokens, "{issued_at:?}, {seconds} s later");
        }
    }
}

/// Also: credential_06
#[tokio::test]
async fn registry_11_fifty_misses_in_one_repository_cost_one_token() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let blobs: Vec<_> = (0..50u8).map(|n| hub.push_blob("library/app", vec![n; 2000])).collect();
    let larder = Arc::new(before(&net, &hub));
    let mut pulls = JoinSet::new();
    for digest in blobs {
        let larder = Arc::clone(&larder);
        pulls.spawn(async move { larder.get(&format!("/v2/library/app/blobs/{digest}")).await.status });
    }
    assert_eq!(pulls.join_all().await, [200; 50]);
    assert_eq!(hub.token_requests(), 1);
}

/// Also: credential_15
#[tokio::test]
async fn registry_12_no_token_is_shared_between_upstreams_and_their_credentials() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "acme/private", 1);
    hub.script(|hub| {
        hub.tokens.account("acme", "dckr_pat_a");
        hub.tokens.account("other", "dckr_pat_o");
        hub.tokens.private("acme/private", &["acme"]);
    });
    let mut second = hub.upstream_as("other", "dckr_pat_o");
    second.name = "second.test".into();
    let mut third = hub.upstream();
    third.name = "third.test".into();
    let larder = Setup::new(&net).upstream(hub.upstream_as("acme", "dckr_pat_a")).upstream(second).upstream(third).start();
    pushed.pull(&larder, "docker.io").await;
    for upstream in ["second.test", "third.test"] {
        assert_eq!(larder.get(&pushed.tag(upstream)).await.status, 403, "{upstream}");
        assert_eq!(larder.get(&pushed.layer(upstream)).await.status, 403, "{upstream}");
    }
    let who: Vec<bool> = hub.seen(any().token()).iter().map(|request| request.authorization().is_some()).collect();
    assert!(who.len() >= 3 && who.contains(&false), "{who:?}");
}

#[tokio::test(start_paused = true)]
async fn registry_13_a_failed_token_fetch_is_forgotten_after_a_moment() {
    for failure in [Fault::status(503), Fault::status(403), Fault::status(200).body("<html>")] {
        let net = FakeNet::new();
        let gitlab = gitlab(&net);
        let pushed = push(&gitlab, "group/app", 1);
        let larder = before(&net, &gitlab);
        gitlab.when(any().token()).then(failure.clone());
        assert!(larder.get(&pushed.tag(gitlab.name())).await.status >= 403, "{failure:?}");
        gitlab.behave();
        tokio::time::sleep(Duration::from_secs(30)).await;
        larder.clock.advance(Duration::from_secs(30));
        pushed.pull(&larder, gitlab.name()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn registry_14_a_401_to_a_token_is_one_refresh_and_then_a_refusal() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/app", 1);
    let larder = before(&net, &hub);
    pushed.pull(&larder, "docker.io").await;
    hub.script(|hub| hub.tokens.revoke());
    hub.forget_requests();
    larder.clock.advance(Duration::from_secs(3600));
    assert_eq!(larder.head(&pushed.tag("docker.io")).await.status, 200);
    assert_eq!((hub.count(head().manifest()), hub.token_requests()), (2, 1));

    let never = Fault::status(401)
        .header("www-authenticate", r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/app:pull",error="invalid_token""#);
    hub.when(any().manifest()).then(never);
    hub.forget_requests();
    larder.clock.advance(Duration::from_secs(3600));
    let refused = larder.get(&pushed.tag("docker.io")).await;
    assert_eq!((refused.status, refused.error_code().as_deref(), refused.header("www-authenticate")), (403, Some("DENIED"), None));
    assert!(hub.count(any().manifest()) <= 3 && hub.token_requests() <= 2, "{:#?}", hub.requests());
}

/// What Docker Hub says of a repository that is not there: the same scope once more, and no token would help.
#[tokio::test]
async fn registry_15_the_same_scope_again_is_final_and_another_one_is_asked_for() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let larder = before(&net, &hub);
    let reply = larder.get("/v2/docker.io/acme/missing/manifests/1").await;
    assert_eq!((reply.status, reply.header("www-authenticate")), (403, None));
    assert_eq!((hub.token_requests(), hub.count(any().manifest())), (1, 2), "{:#?}", hub.requests());

    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    net.host("hub.test", "93.184.216.34", &registry);
    registry.require_bearer(Bearer::at("http://hub.test/token").challenge_scope("repository:base/image:pull"));
    registry.push_image("library/app", "1", &[10], 1);
    let more =
        r#"Bearer realm="http://hub.test/token",service="fake-registry",scope="repository:library/app:pull",error="insufficient_scope""#;
    registry.when(any().manifest().with_header("authorization")).first(1).then(Fault::status(401).header("www-authenticate", more));
    assert_eq!(Larder::start(&net).get("/v2/library/app/manifests/1").await.status, 200);
    assert_eq!(scopes(&registry.seen(any().token())), ["repository:base/image:pull", "repository:library/app:pull"]);
}

#[tokio::test(start_paused = true)]
async fn registry_16_harbor_s_basic_to_a_stale_token_is_no_end_and_no_loop() {
    let net = FakeNet::new();
    let harbor = harbor(&net);
    let pushed = push(&harbor, "team/app", 1);
    harbor.script(|harbor| {
        harbor.tokens.account("robot$team+ci", "secret");
        harbor.tokens.private("team/app", &["robot$team+ci"]);
    });
    for larder in [before(&net, &harbor), Setup::new(&net).upstream(harbor.upstream_as("robot$team+ci", "secret")).start()] {
        let signed_in = !larder.config.upstreams[harbor.name()].credentials.is_empty();
        let before = larder.head(&pushed.tag(harbor.name())).await.status;
        assert_eq!(before, if signed_in { 200 } else { 403 });
        harbor.script(|harbor| harbor.tokens.revoke());
        harbor.forget_requests();
        larder.clock.advance(Duration::from_secs(3600));
        let after = larder.head(&pushed.tag(harbor.name())).await.status;
        assert_eq!(after, before);
        assert!(harbor.count(any()) <= 6, "{:#?}", harbor.requests());
    }
}

#[tokio::test(start_paused = true)]
async fn registry_19_a_403_of_the_token_server_is_about_one_repository() {
    for status in [401, 403] {
        let net = FakeNet::new();
        let ghcr = ghcr(&net);
        let (open, closed) = (push(&ghcr, "org/app", 1), push(&ghcr, "org/private", 2));
        ghcr.script(|ghcr| {
            ghcr.tokens.private("org/private", &["octocat"]);
            ghcr.stranger_status = status;
        });
        let larder = before(&net, &ghcr);
        for _ in 0..2 {
            let refused = larder.get(&closed.tag("ghcr.io")).await;
            assert_eq!((refused.status, refused.error_code().as_deref(), refused.header("www-authenticate")), (403, Some("DENIED"), None));
            open.pull(&larder, "ghcr.io").await;
            larder.clock.advance(Duration::from_secs(3600));
        }
    }
}

/// Also: registry_28
#[tokio::test]
async fn registry_20_what_the_ping_says_is_no_matter() {
    for ping in [Ping::Open, Ping::Challenge] {
        let net = FakeNet::new();
        let kubernetes = registry_k8s_io(&net);
        kubernetes.script(|kubernetes| kubernetes.ping = ping);
        let pushed = push(&kubernetes, "pause", 1);
        pushed.pull(&before(&net, &kubernetes), kubernetes.name()).await;
    }
    // GHCR's ping names a placeholder, which no token is given for.
    let net = FakeNet::new();
    let ghcr = ghcr(&net);
    let pushed = push(&ghcr, "org/app", 1);
    pushed.pull(&before(&net, &ghcr), "ghcr.io").await;
    assert_eq!(scopes(&ghcr.seen(any().token())), ["repository:org/app:pull"]);
}

#[tokio::test(start_paused = true)]
async fn registry_21_quay_needs_no_token_for_what_is_public_and_a_bad_one_is_replaced() {
    let net = FakeNet::new();
    let quay = quay(&net);
    let (open, closed) = (push(&quay, "org/app", 1), push(&quay, "org/private", 2));
    quay.script(|quay| {
        quay.tokens.account("org+robot", "secret");
        quay.tokens.private("org/private", &["org+robot"]);
    });
    open.pull(&before(&net, &quay), "quay.io").await;
    assert_eq!((quay.token_requests(), quay.count(any().with_header("authorization"))), (0, 0));

    let larder = Setup::new(&net).upstream(quay.upstream_as("org+robot", "secret")).start();
    closed.pull(&larder, "quay.io").await;
    quay.script(|quay| quay.tokens.revoke());
    quay.forget_requests();
    larder.clock.advance(Duration::from_secs(3600));
    assert_eq!(larder.head(&closed.tag("quay.io")).await.status, 200);
    assert_eq!((quay.count(get().manifest()), quay.token_requests()), (0, 1));
    assert_eq!(larder.get("/v2/quay.io/org/missing/manifests/1").await.status, 403);
}

#[tokio::test]
async fn registry_18_a_realm_elsewhere_or_in_clear_gets_no_password() {
    for realm in ["http://auth.docker.io/token", "https://evil.example/token"] {
        let net = FakeNet::new();
        let hub = docker_hub(&net);
        net.host("evil.example", "93.184.216.40", &hub);
        let pushed = push(&hub, "library/app", 1);
        hub.script(|hub| {
            hub.tokens.account("acme", "canary-a10-18");
            hub.tokens.realm = realm.into();
        });
        let larder = Setup::new(&net).upstream(hub.upstream_as("acme", "canary-a10-18")).start();
        assert_eq!(larder.get(&pushed.tag("docker.io")).await.status, 502, "{realm}");
        assert_eq!((hub.token_requests(), hub.count(any().with_header("authorization"))), (0, 0));
        assert_eq!(net.dials("93.184.216.40:80") + net.dials("93.184.216.40:443"), 0);
    }
}

/// Also: credential_20
#[tokio::test]
async fn registry_17_an_identity_token_is_posted_and_a_server_without_post_is_told_of() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "acme/app", 1);
    hub.script(|hub| {
        hub.tokens.identity_tokens.insert("id/token+1 =".into(), "acme".into());
        hub.tokens.private("acme/app", &["acme"]);
    });
    let mut config = hub.upstream_as("unused", "unused");
    config.credentials[0].kind = CredentialKind::IdentityToken(Secret::Inline("id/token+1 =".to_owned().into()));
    let larder = Setup::new(&net).upstream(config.clone()).start();
    pushed.pull(&larder, "docker.io").await;
    assert_eq!((hub.count(post().token()), hub.count(get().token())), (1, 0));
    for status in [404, 405] {
        let larder = Setup::new(&net).upstream(config.clone()).start();
        hub.when(post().token()).then(Fault::status(status));
        hub.forget_requests();
        let reply = larder.get(&pushed.tag("docker.io")).await;
        assert!(reply.status == 502 && !reply.text().contains("id/token"), "{}", reply.text());
        // There is nothing to fall back to: nobody's token would not open it.
        assert_eq!((hub.count(post().token()), hub.count(get().token())), (2, 0), "{status}: the repository's, and the sign-in's");
        hub.behave();
    }
}
