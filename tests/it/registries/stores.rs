//! Blobs and the stores they come from (A10 27–34).

use std::time::Duration;

use super::{before, push};
use crate::support::larder::Setup;
use crate::support::log::listen;
use crate::support::net::FakeNet;
use crate::support::registries::{docker_hub, ghcr, gitea, nexus, quay, registry_k8s_io};
use crate::support::registry::{Fault, any, get, head};

#[tokio::test]
async fn registry_28_what_opens_the_registry_is_kept_from_its_stores() {
    let net = FakeNet::new();
    let (hub, kubernetes) = (docker_hub(&net), registry_k8s_io(&net));
    let (private, image) = (push(&hub, "acme/app", 1), push(&kubernetes, "pause", 2));
    hub.script(|hub| {
        hub.tokens.account("acme", "pat");
        hub.tokens.private("acme/app", &["acme"]);
    });
    let upstream = kubernetes.upstream_as("nobody", "needs-this");
    let larder = Setup::new(&net).upstream(hub.upstream_as("acme", "pat")).upstream(upstream).start();
    private.pull(&larder, "docker.io").await;
    image.pull(&larder, "registry.k8s.io").await;
    assert!(hub.count(any().host("production.cloudfront.docker.com")) >= 3);
    assert_eq!(hub.count(any().host("production.cloudfront.docker.com").with_header("authorization")), 0);
    assert_eq!(kubernetes.count(any().with_header("authorization")), 0);
}

/// The doubles' signatures hold "%2d", "+", an empty value and no order, and break when a byte of them changes.
#[tokio::test]
async fn registry_29_a_signed_query_is_sent_byte_for_byte() {
    let net = FakeNet::new();
    let quay = quay(&net);
    let pushed = push(&quay, "org/app", 1);
    pushed.pull(&before(&net, &quay), "quay.io").await;
    let signed = quay.seen(get().signed());
    assert_eq!(signed.len(), 3);
    assert!(
        signed
            .iter()
            .all(|request| request.query.contains("verify=1711%2d%2Ba%2Fb&") && request.query.ends_with("&X-Amz-Expires=&a=~%20z"))
    );
}

#[tokio::test(start_paused = true)]
async fn registry_30_a_link_that_died_is_asked_for_once_more_and_no_token_with_it() {
    let net = FakeNet::new();
    let ghcr = ghcr(&net);
    let pushed = push(&ghcr, "org/app", 1);
    let larder = before(&net, &ghcr);
    larder.head(&pushed.tag("ghcr.io")).await;
    ghcr.forget_requests();
    // The link lives shorter than the way to the store takes.
    ghcr.signatures_live(Duration::from_secs(5));
    ghcr.when(get().signed()).first(1).then(Fault::Delay(Duration::from_secs(6)));
    let reply = larder.get(&pushed.layer("ghcr.io")).await;
    assert_eq!(reply.status, 200);
    assert!(*reply.bytes() == pushed.images[0].layers[0].bytes);
    assert_eq!((ghcr.count(get().blob()), ghcr.count(get().signed()), ghcr.token_requests()), (2, 2, 0));
}

#[tokio::test]
async fn registry_31_a_store_without_head_tells_the_size_by_one_byte() {
    let net = FakeNet::new();
    let ghcr = ghcr(&net);
    let pushed = push(&ghcr, "org/app", 1);
    let reply = before(&net, &ghcr).head(&pushed.layer("ghcr.io")).await;
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("200000")));
    assert_eq!(ghcr.count(head().signed()), 1);
    assert_eq!(ghcr.seen(get().signed()).iter().map(|request| request.header("range")).collect::<Vec<_>>(), [Some("bytes=0-0")]);
}

/// Also: registry_30
#[tokio::test(start_paused = true)]
async fn registry_32_a_broken_blob_goes_on_by_range_from_a_fresh_link() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let pushed = push(&hub, "library/app", 1);
    hub.signatures_last(1);
    hub.when(get().signed()).first(2).then(Fault::CutAt(70_000));
    let larder = before(&net, &hub);
    assert!(*larder.get(&pushed.layer("docker.io")).await.bytes() == pushed.images[0].layers[0].bytes);
    let ranges: Vec<Option<String>> = hub.seen(get().signed()).iter().map(|request| request.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some("bytes=70000-".into()), Some("bytes=140000-".into())]);
    let mut links: Vec<String> = hub.seen(get().signed()).into_iter().map(|request| request.query).collect();
    links.dedup();
    assert_eq!(links.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn registry_32_gitea_ignores_the_range_and_is_read_on_from_the_same_place() {
    let net = FakeNet::new();
    let gitea = gitea(&net);
    let pushed = push(&gitea, "owner/app", 1);
    gitea.when(get().blob().with_header("authorization")).first(1).then(Fault::CutAt(70_000));
    let larder = before(&net, &gitea);
    assert!(*larder.get(&pushed.layer(gitea.name())).await.bytes() == pushed.images[0].layers[0].bytes);
    assert_eq!(gitea.seen(get().blob().with_header("range")).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn registry_32_another_range_than_the_one_asked_for_is_no_blob() {
    let net = FakeNet::new();
    let nexus = nexus(&net);
    let pushed = push(&nexus, "team/app", 1);
    nexus.when(get().blob().with_header("authorization")).first(1).then(Fault::CutAt(70_000));
    nexus.when(get().blob().with_header("range")).then(Fault::content_range("bytes 69999-199998/200000"));
    let larder = before(&net, &nexus);
    let reply = larder.get(&pushed.layer(nexus.name())).await;
    assert!(reply.status == 502 || reply.body.is_err(), "{reply:?}");
    assert!(larder.files("blobs").is_empty());
}

/// Also: credential_11
#[tokio::test(start_paused = true)]
async fn registry_33_no_signature_token_or_password_is_logged_counted_or_answered() {
    let (lines, _guards) = listen();
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    let (whole, broken) = (push(&hub, "acme/app", 1), push(&hub, "acme/broken", 2));
    hub.script(|hub| {
        hub.tokens.account("acme", "canary-a10-33");
        hub.tokens.private("acme/app", &["acme"]);
    });
    let larder = Setup::new(&net).upstream(hub.upstream_as("acme", "canary-a10-33")).start();
    whole.pull(&larder, "docker.io").await;
    let mut replies = Vec::new();
    for fault in [Fault::status(403), Fault::status(500), Fault::redirect(307, "http://clear.test/signed/object?sig=fake-signature-x")] {
        hub.when(any().signed()).then(fault);
        replies.push(larder.get(&broken.layer("docker.io")).await);
        hub.behave();
    }
    hub.when(any().signed()).then(Fault::CutAt(100));
    replies.push(larder.get(&broken.layer("docker.io")).await);
    hub.behave();
    hub.script(|hub| hub.tokens.account("acme", "another"));
    hub.script(|hub| hub.tokens.revoke());
    larder.clock.advance(Duration::from_secs(3600));
    replies.push(larder.get(&whole.tag("docker.io")).await);
    let logged = lines.text();
    assert!(logged.contains("docker.io"), "the log was heard");
    let answered: String = replies.iter().map(|reply| format!("{:?} {:?}", reply.headers, reply.body)).collect();
    for (what, text) in [("log", &logged), ("metrics", &larder.app.metrics.encode()), ("answers", &answered)] {
        for secret in ["fake-signature-", "fake-token-", "canary-a10-33", "YWNtZTpjYW5hcnktYTEwLTMz"] {
            assert!(!text.contains(secret), "{secret} in the {what}: {text}");
        }
    }
}

/// What a client sends of its own would be a violation at any double.
#[tokio::test]
async fn registry_34_nothing_of_a_client_s_request_reaches_a_registry_or_its_store() {
    let net = FakeNet::new();
    let (nexus, hub) = (nexus(&net), docker_hub(&net));
    let (one, two) = (push(&nexus, "team/app", 1), push(&hub, "library/app", 2));
    let larder = Setup::new(&net).upstream(nexus.upstream()).upstream(hub.upstream()).start();
    for (pushed, upstream) in [(&one, nexus.name()), (&two, hub.name())] {
        for path in [pushed.tag(upstream), pushed.layer(upstream), pushed.manifest(upstream, &pushed.images[0])] {
            let mut client = larder.client().await;
            let ask = client.get(&format!("{path}?ns={upstream}")).header("authorization", "Bearer client-secret");
            let ask =
                ask.header("x-forwarded-for", "10.1.2.3").header("x-forwarded-host", "mirror:5000").header("x-forwarded-proto", "http");
            let ask =
                ask.header("forwarded", "for=10.1.2.3").header("cookie", "a=b").header("via", "1.1 x").header("x-real-ip", "10.1.2.3");
            assert_eq!(ask.header("proxy-authorization", "Basic x").header("referer", "x").send().await.status, 200, "{path}");
        }
    }
    for request in nexus.requests().iter().chain(&hub.requests()) {
        assert!(!request.query.contains("ns="), "{request:?}");
    }
}
