//! What upstreams list, as clients get it: tags, referrers, and artifacts that are no images.

mod artifacts;
mod referrers;
mod tags;

use std::collections::BTreeSet;
use std::time::Duration;

use larder::oci::MediaType;

use crate::support::client::Reply;
use crate::support::larder::upstream;
use crate::support::registry::{Fault, Referrers, any};
use crate::support::scene::Scene;

const TAGS: &str = "/v2/library/app/tags/list";
const SIGNATURE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SBOM: &str = "application/spdx+json";
/// What an answer is remembered for.
const TTL: Duration = Duration::from_secs(30);
/// What "there is none" is remembered for.
const ABSENT_TTL: Duration = Duration::from_secs(5);

impl Scene {
    /// The image has these tags, and `latest`.
    fn tagged(self, tags: impl IntoIterator<Item = String>) -> Scene {
        tags.into_iter().for_each(|tag| self.registry.move_tag("library/app", &tag, self.image.digest));
        self
    }

    fn referrers(&self) -> String {
        format!("/v2/library/app/referrers/{}", self.image.digest)
    }

    fn sign(&self, text: &str) -> String {
        self.registry.push_referrer("library/app", self.image.digest, SIGNATURE, text).to_string()
    }

    /// Requests that upstream got for lists.
    fn lists_asked_for(&self) -> usize {
        self.registry.count(any().tags()) + self.registry.count(any().referrers())
    }

    /// All pages, by following links.
    async fn follow(&self, path: &str) -> Vec<Reply> {
        let mut pages = Vec::new();
        let mut next = Some(path.to_owned());
        while let Some(path) = next {
            assert!(path.starts_with('/') && pages.len() < 2000, "{path}");
            let reply = self.larder.get(&path).await;
            assert_eq!(reply.status, 200, "{path}: {}", reply.text());
            next = link(&reply);
            pages.push(reply);
        }
        pages
    }
}

/// The target of `Link`, which must have the one form that every client reads.
fn link(reply: &Reply) -> Option<String> {
    let text = reply.header("link")?;
    let target = text.strip_prefix('<').and_then(|text| text.strip_suffix(r#">; rel="next""#));
    Some(target.unwrap_or_else(|| panic!("{text}")).to_owned())
}

fn tags(reply: &Reply) -> Vec<String> {
    let document: serde_json::Value = serde_json::from_slice(reply.bytes()).expect("a list of tags");
    document["tags"].as_array().expect("never null").iter().map(|tag| tag.as_str().expect("a tag").to_owned()).collect()
}

fn tags_of(pages: &[Reply]) -> Vec<String> {
    pages.iter().flat_map(tags).collect()
}

/// Digests of an index.
fn digests(reply: &Reply) -> BTreeSet<String> {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some(MediaType::OCI_INDEX)), "{}", reply.text());
    let document: serde_json::Value = serde_json::from_slice(reply.bytes()).expect("an index");
    document["manifests"].as_array().expect("never null").iter().map(|entry| entry["digest"].as_str().expect("a digest").into()).collect()
}

/// Status and what explains it.
fn line(reply: &Reply) -> String {
    match reply.status {
        200 => format!("200 {}", reply.header("cache-status").unwrap_or("no Cache-Status")),
        status => format!("{status} {}", reply.error_code().unwrap_or_default()),
    }
}

/// What an upstream says instead of an answer, and what that becomes.
fn failures() -> [(&'static str, Fault, &'static str); 6] {
    [
        ("401", Fault::status(401).header("www-authenticate", "Basic realm=\"hub\"").into(), "403 DENIED"),
        ("a bare 401", Fault::status(401).into(), "403 DENIED"),
        ("403", Fault::status(403).into(), "403 DENIED"),
        ("429", Fault::too_many_requests(7).into(), "503 TOOMANYREQUESTS"),
        ("503", Fault::status(503).into(), "502 UNAVAILABLE"),
        ("silence", Fault::Stall, "504 UNAVAILABLE"),
    ]
}

#[tokio::test(start_paused = true)]
async fn credential_25_no_failure_is_remembered_as_absence() {
    for (name, fault, told) in failures() {
        let scene = Scene::new();
        scene.registry.serve_referrers(Referrers::native());
        scene.registry.when(any().tags()).then(fault.clone());
        scene.registry.when(any().referrers()).then(fault);
        for path in [TAGS.to_owned(), scene.referrers()] {
            let reply = scene.larder.get(&path).await;
            assert_eq!((line(&reply).as_str(), reply.header("www-authenticate")), (told, None), "{name}: {path}");
            assert_eq!(reply.header("retry-after").is_some(), told.starts_with("503"), "{name}");
        }
        scene.registry.behave();
        // What upstream's limit has laid to rest is asked again after that.
        tokio::time::sleep(Duration::from_secs(30)).await;
        for path in [TAGS.to_owned(), scene.referrers()] {
            assert_eq!(line(&scene.larder.get(&path).await), "200 larder; fwd=uri-miss", "{name}: {path}");
        }
    }
}

/// Also: clients_35
#[tokio::test(start_paused = true)]
async fn credential_29_while_upstream_cannot_answer_the_last_whole_list_is_served_with_its_age() {
    for (name, fault, told) in failures() {
        let scene = Scene::new();
        scene.registry.serve_referrers(Referrers::native());
        let signature = scene.sign("one");
        let paths = [TAGS.to_owned(), scene.referrers()];
        for path in &paths {
            assert_eq!(scene.larder.get(path).await.status, 200);
        }
        scene.larder.clock.advance(Duration::from_secs(100));
        scene.registry.when(any()).then(fault);
        for path in &paths {
            let reply = scene.larder.get(path).await;
            if told.starts_with("403") {
                assert_eq!(line(&reply), told, "{name}: {path}");
                scene.net.down("hub.test");
                assert_eq!(line(&scene.larder.get(path).await), "502 UNAVAILABLE", "what was refused is not served afterwards");
                scene.net.up("hub.test");
                continue;
            }
            let why = if told.contains("TOOMANY") { "rate-limited" } else { "unavailable" };
            assert_eq!(line(&reply), format!("200 larder; hit; ttl=-70; detail=stale-{why}"), "{name}: {path}");
            assert_eq!(reply.header("age"), Some("100"), "{name}: {path}");
            match path == TAGS {
                true => assert_eq!(tags(&reply), ["latest"]),
                false => assert_eq!(digests(&reply), BTreeSet::from([signature.clone()])),
            }
        }
        scene.larder.clock.advance(Duration::from_secs(7 * 86_400));
        for path in &paths {
            assert_eq!(line(&scene.larder.get(path).await), told, "{name}: {path}, beyond stale_if_error");
        }
    }
}

#[tokio::test]
async fn fifty_clients_of_a_list_cost_one_question() {
    let scene = std::sync::Arc::new(Scene::new());
    scene.registry.serve_referrers(Referrers::native());
    for path in [TAGS.to_owned(), scene.referrers()] {
        scene.registry.forget_requests();
        scene.registry.behave();
        let latch = crate::support::registry::Latch::new();
        scene.registry.when(any()).then(Fault::Hold(latch.clone()));
        let clients: Vec<_> = (0..50)
            .map(|_| {
                let (scene, path) = (std::sync::Arc::clone(&scene), path.clone());
                tokio::spawn(async move { scene.larder.get(&path).await })
            })
            .collect();
        while scene.larder.metric("larder_requests_in_flight") < 50.0 {
            tokio::task::yield_now().await;
        }
        latch.open();
        for client in clients {
            assert_eq!(client.await.unwrap().status, 200);
        }
        assert_eq!(scene.lists_asked_for(), 1, "{path}");
    }
    let asked =
        |outcome| scene.larder.metric(&format!(r#"larder_requests_total{{kind="other",outcome="{outcome}",upstream="docker.io"}}"#));
    assert_eq!(asked("miss"), 2.0);
    assert_eq!(scene.larder.metric(r#"larder_upstream_requests_total{code="2xx",kind="listing",upstream="docker.io"}"#), 2.0);
}

/// Also: clients_6
#[tokio::test]
async fn clients_1_every_spelling_reaches_the_same_list_by_get_and_head() {
    let scene = Scene::with(|setup| setup.upstream(upstream("ghcr.io", "ghcr.test")));
    scene.registry.serve_referrers(Referrers::native());
    scene.sign("one");
    let digest = scene.image.digest;
    for (front, query) in [
        ("/v2/library/app", ""),
        ("/v2/app", ""),
        ("/docker.io/v2/library/app", ""),
        ("/v2/docker.io/app", ""),
        ("/docker.io/library/app", ""),
        ("/v2/library/app", "?ns=docker.io"),
        ("/v2/app", "?ns=registry-1.docker%2Eio&unknown=x"),
    ] {
        for path in [format!("{front}/tags/list{query}"), format!("{front}/referrers/{digest}{query}")] {
            let (get, head) = (scene.larder.get(&path).await, scene.larder.head(&path).await);
            assert_eq!((get.status, head.status), (200, 200), "{path}");
            assert_eq!(head.bytes().len(), 0);
            let length = get.bytes().len().to_string();
            for reply in [&get, &head] {
                assert_eq!(reply.header("content-length"), Some(length.as_str()), "{path}");
                assert_eq!(reply.header("content-type"), get.header("content-type"), "{path}");
                assert_eq!(reply.header("transfer-encoding"), None);
            }
            let ns = query.strip_prefix("?ns=").and_then(|ns| ns.split('&').next()).map(|ns| ns.replace("%2E", "."));
            assert_eq!(get.header("oci-namespace").map(str::to_owned), ns, "{path}");
        }
    }
    let paths: Vec<String> = scene.registry.requests().into_iter().map(|request| format!("{}?{}", request.path, request.query)).collect();
    let referrers = format!("{}?", scene.referrers());
    assert_eq!(paths, [format!("{TAGS}?n=1000"), referrers.clone(), format!("{referrers}unknown=x")]);
    for path in ["/v2/app/tags/list?ns=quay.io", "/v2/quay.io:443/app/tags/list", "/quay.io/app/tags/list"] {
        assert_eq!(line(&scene.larder.get(path).await), "404 NAME_UNKNOWN", "{path}");
    }
    assert_eq!(line(&scene.larder.get("/docker.io/v2/app/tags/list?ns=ghcr.io").await), "400 NAME_INVALID");
}

/// Cloud registries link to themselves by absolute URLs; followed as they are, clients would go round larder.
#[tokio::test]
async fn credential_28_a_link_that_leads_elsewhere_is_no_answer() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native());
    let referrers = scene.referrers();
    for path in [TAGS, referrers.as_str()] {
        for target in [
            "http://evil.test{path}?n=1&last=a".to_owned(),
            "https://hub.test{path}?n=1&last=a".to_owned(),
            "http://hub.test:8080{path}?n=1&last=a".to_owned(),
            "//evil.test{path}?n=1".to_owned(),
            "/v2/library/other/tags/list?n=1&last=a".to_owned(),
            "{path}/../list?n=1".to_owned(),
            "{path}".to_owned(),
            "{path}?".to_owned(),
            format!("{{path}}?last={}", "x".repeat(3000)),
            "http://user:secret@hub.test{path}?n=1".to_owned(),
        ] {
            let target = target.replace("{path}", path);
            scene.registry.behave();
            scene.registry.when(any()).then(Fault::Header("link", format!("<{target}>; rel=\"next\"")));
            assert_eq!(line(&scene.larder.get(path).await), "502 UNAVAILABLE", "{path}: {target}");
        }
    }
    scene.registry.behave();
    let paged = Fault::Header("link", format!("<{referrers}?token=x&ns=ghcr.io>; rel=\"next\""));
    scene.registry.when(any()).then(paged);
    assert_eq!(line(&scene.larder.get(&referrers).await), "502 UNAVAILABLE", "an upstream that names another");
    assert_eq!(scene.net.resolved().iter().filter(|name| *name != "hub.test").count(), 0);
}
