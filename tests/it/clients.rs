//! What every client in the field relies on, whatever it is: the statements of clients.md that no other file is about.

use std::collections::BTreeMap;
use std::time::Duration;

use http::Method;
use larder::oci::Digest;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::fills::{fills, hub, path, push, until};
use crate::support::client::Reply;
use crate::support::larder::Larder;
use crate::support::registry::{Fault, Latch, Referrers, TagPages, any, get};
use crate::support::scene::{Hub, Scene};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
const NOTHING: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// One of each that can be asked for, and one that is not there.
impl Scene {
    /// With another tag, and a signature.
    fn for_clients() -> Scene {
        let hub = Hub::unstarted(&[3000]);
        hub.registry.push_image("library/app", "other", &[10], 2);
        hub.registry.serve_referrers(Referrers::native());
        hub.registry.push_referrer("library/app", hub.image.digest, "application/vnd.example", "signed");
        hub.start(|setup| setup)
    }

    fn digest(&self) -> Digest {
        self.image.layers[0].digest
    }

    /// Every kind of question, with its range if it has one, and the status it has.
    fn questions(&self) -> Vec<(String, Option<&'static str>, u16)> {
        let manifests = "/v2/library/app/manifests";
        vec![
            ("/v2/".into(), None, 200),
            (format!("{manifests}/latest"), None, 200),
            (format!("{manifests}/{}", self.image.digest), None, 200),
            (format!("{manifests}/none"), None, 404),
            (format!("{manifests}/{NOTHING}"), None, 404),
            (self.blob(), None, 200),
            (self.blob(), Some("bytes=10-19"), 206),
            (self.blob(), Some("bytes=3000-"), 416),
            (format!("/v2/library/app/blobs/{NOTHING}"), None, 404),
            ("/v2/library/app/tags/list?n=1".into(), None, 200),
            (format!("/v2/library/app/referrers/{}", self.image.digest), None, 200),
            ("/v2/A/manifests/latest".into(), None, 400),
            ("/v2/_catalog".into(), None, 404),
            ("/livez".into(), None, 200),
        ]
    }

    async fn ask(&self, path: &str, range: Option<&str>, headers: &[(&str, &str)]) -> Reply {
        let mut client = self.larder.client().await;
        let headers = headers.iter().copied().chain(range.map(|range| ("range", range)));
        headers.fold(client.get(path), |ask, (name, value)| ask.header(name, value)).send().await
    }
}

#[tokio::test]
async fn clients_19_a_malformed_digest_is_400_digest_invalid() {
    let scene = Scene::for_clients();
    let upper = NOTHING.to_uppercase().replace("SHA256", "sha256").replace('0', "A");
    for digest in ["sha256:totallywrong", "sha256:", "sha256:12", "md5:d41d8cd98f00b204e9800998ecf8427e", &format!("{NOTHING}0"), &upper] {
        for kind in ["blobs", "manifests", "referrers"] {
            let path = format!("/v2/library/app/{kind}/{digest}");
            let reply = scene.larder.get(&path).await;
            assert_eq!((reply.status, reply.error_code().as_deref()), (400, Some("DIGEST_INVALID")), "{path}");
            assert_eq!(reply.header("content-type"), Some("application/json"), "{path}");
            assert_eq!(scene.larder.head(&path).await.status, 400, "{path}");
        }
    }
    assert!(scene.net.dialled().is_empty());
}

/// As every registry answers, and the released conformance suites expect: no registry has a tag of such a name.
#[tokio::test]
async fn e9_a_malformed_tag_is_404_and_asks_nobody() {
    let scene = Scene::for_clients();
    for tag in [".INVALID_MANIFEST_NAME", "-a", &"a".repeat(129), "a+b", "latest@", ""] {
        let path = format!("/v2/library/app/manifests/{tag}");
        let reply = scene.larder.get(&path).await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (404, Some("MANIFEST_UNKNOWN")), "{path}");
        assert!(reply.text().contains("invalid tag"), "{}", reply.text());
        assert_eq!(scene.larder.head(&path).await.status, 404, "{path}");
    }
    let bad_name = scene.larder.get("/v2/library/APP/manifests/.x").await;
    assert_eq!((bad_name.status, bad_name.error_code().as_deref()), (400, Some("NAME_INVALID")));
    assert!(scene.net.dialled().is_empty());
}

#[tokio::test(start_paused = true)]
async fn clients_28_ranges_and_plain_gets_of_one_cold_blob_cost_one_download_and_get_their_bytes_as_they_come() {
    let (net, registry) = hub();
    let blob = push(&registry, 4 * MIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::HoldAt(2 * MIB as u64, latch.clone()));
    let larder = Larder::start(&net);
    let mut clients = Vec::new();
    for number in 0..20 {
        let start = if number % 3 == 0 { 0 } else { number * 10_000 };
        let mut client = larder.client().await;
        let ask = client.get(&path(blob.digest));
        let mut body = if number % 3 == 0 { ask.open().await } else { ask.range(&format!("{start}-")).open().await };
        assert_eq!(body.status, if number % 3 == 0 { 200 } else { 206 });
        assert_eq!(body.header("content-length"), Some((4 * MIB - start).to_string().as_str()));
        let first = body.read_exactly(64 * KIB).await.expect("bytes while upstream has sent half");
        assert!(first == blob.bytes[start..start + 64 * KIB]);
        clients.push((start, body, client));
    }
    latch.open();
    for (start, body, _client) in clients {
        assert!(body.read_to_end().await.expect("a whole body") == blob.bytes[start + 64 * KIB..]);
    }
    assert_eq!(registry.count(get().blob()), 1);
    assert_eq!(registry.seen(get().blob())[0].header("range"), None);
    until("it is stored", || fills(&larder, "stored") == 1.0).await;
}

#[tokio::test(start_paused = true)]
async fn clients_28_a_thousand_clients_of_one_cold_blob_cost_one_download() {
    let (net, registry) = hub();
    let blob = push(&registry, 100 * KIB, 1);
    let latch = Latch::new();
    registry.when(get().blob()).then(Fault::Hold(latch.clone()));
    let larder = Larder::start(&net);
    let mut clients = JoinSet::new();
    for _ in 0..1000 {
        let mut client = larder.client().await;
        clients.spawn(async move { client.get(&path(blob.digest)).send().await });
    }
    until("all have asked", || larder.metric("larder_requests_in_flight") == 1000.0).await;
    latch.open();
    for reply in clients.join_all().await {
        assert!(reply.status == 200 && *reply.bytes() == blob.bytes);
    }
    assert_eq!(registry.requests().len(), 1);
}

/// Also: upstream_fault_05
#[tokio::test(start_paused = true)]
async fn clients_30_however_slowly_upstream_sends_nobody_waits_a_minute_for_a_byte() {
    for size in [200 * KIB, 1200 * KIB] {
        let (net, registry) = hub();
        let blob = push(&registry, size, 1);
        registry.when(get().blob()).then(Fault::Drip { bytes: 2 * KIB, every: Duration::from_secs(1) });
        let larder = Larder::start(&net);
        let mut client = larder.client().await;
        let mut last = Instant::now();
        let mut body = client.open(&path(blob.digest)).await;
        assert!(last.elapsed() <= Duration::from_secs(10), "headers came after {:?}", last.elapsed());
        for at in (0..size).step_by(KIB) {
            let bytes = body.read_exactly(KIB).await.expect("bytes");
            assert!(bytes == blob.bytes[at..at + KIB]);
            assert!(last.elapsed() < Duration::from_secs(60), "{:?} before byte {at} of {size}", last.elapsed());
            last = Instant::now();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clients_34_nothing_is_promised_before_upstream_has_said_yes() {
    for (upstream_says, clients_get) in [(404, 404), (403, 403), (500, 502)] {
        for range in [None, Some("bytes=0-"), Some("bytes=5-9")] {
            let scene = Scene::for_clients();
            let latch = Latch::new();
            scene.registry.when(any().blob()).then(Fault::Hold(latch.clone()));
            scene.registry.when(any().blob()).then(Fault::status(upstream_says));
            let blob = scene.blob();
            let mut answer = std::pin::pin!(scene.ask(&blob, range, &[]));
            let early = timeout(Duration::from_secs(5), &mut answer).await;
            assert!(early.is_err(), "upstream has not answered: {early:?}");
            latch.open();
            assert_eq!(answer.await.status, clients_get, "{upstream_says} {range:?}");
        }
    }
}

#[tokio::test]
async fn clients_48_reading_is_never_405() {
    let scene = Scene::for_clients();
    let paths = ["/v2", "/v2/x", "/v2/library/app/blobs/uploads/", "/v2/library/app/blobs/uploads/1", "/v2/library/app", "/", "/v1/", "/x"];
    let paths = paths.into_iter().map(ToOwned::to_owned).chain(scene.questions().into_iter().map(|(path, ..)| path));
    for path in paths {
        for method in [Method::GET, Method::HEAD] {
            let reply = scene.larder.client().await.request(method.clone(), &path).send().await;
            assert!(matches!(reply.status, 200 | 400 | 404), "{method} {path}: {}", reply.status);
        }
    }
}

#[tokio::test]
async fn clients_49_what_upstream_says_besides_is_not_passed_on() {
    let names = ["x-registry-supports-signatures", "www-authenticate", "set-cookie", "location", "strict-transport-security", "warning"];
    let scene = Scene::for_clients();
    for name in names {
        scene.registry.when(any()).then(Fault::Header(name, "1".into()));
    }
    for round in ["cold", "warm"] {
        for (path, range, status) in scene.questions() {
            let reply = scene.ask(&path, range, &[]).await;
            assert_eq!(reply.status, status, "{round} {path}");
            for name in names {
                assert_eq!(reply.header(name), None, "{round} {path}");
            }
        }
    }
}

#[tokio::test]
async fn clients_50_requests_follow_each_other_on_a_connection_and_connections_are_many() {
    let scene = std::sync::Arc::new(Scene::for_clients());
    let mut connections = JoinSet::new();
    for number in 0..64 {
        let scene = std::sync::Arc::clone(&scene);
        connections.spawn(async move {
            let mut client = scene.larder.client().await;
            let mut questions = scene.questions();
            let count = questions.len();
            questions.rotate_left(number % count);
            for (path, range, status) in questions {
                let ask = client.get(&path);
                let reply = if let Some(range) = range { ask.header("range", range) } else { ask }.send().await;
                assert_eq!((reply.status, reply.header("connection")), (status, None), "{path}");
                let head = client.head(&path).send().await;
                assert_eq!(head.status, if range.is_some() { 200 } else { status }, "{path}");
            }
        });
    }
    connections.join_all().await;
    assert_eq!(scene.registry.count(get().blob().of(scene.digest())), 1);
}

#[tokio::test]
async fn clients_51_no_answer_holds_an_absolute_url() {
    let scene = Scene::for_clients();
    scene.net.host("cdn.test", "93.184.216.35", &scene.registry);
    scene.registry.redirect_blobs("http://cdn.test");
    scene.registry.page_tags(TagPages::of(1).absolute("http://hub.test"));
    let proxied = [("x-forwarded-proto", "https"), ("x-forwarded-host", "mirror.corp"), ("forwarded", "proto=https;host=mirror.corp")];
    for (path, range, status) in scene.questions() {
        let reply = scene.ask(&path, range, &proxied).await;
        assert_eq!(reply.status, status, "{path}");
        for (name, value) in &reply.headers {
            let value = String::from_utf8_lossy(value.as_bytes());
            for absolute in ["http:", "https:", "//", "mirror.corp", "hub.test", "larder.test"] {
                assert!(!value.contains(absolute), "{path}: {name}: {value}");
            }
        }
        if path.contains("tags/list") {
            assert_eq!(reply.header("link"), Some("</v2/library/app/tags/list?n=1&last=latest>; rel=\"next\""));
        }
    }
}

#[tokio::test]
async fn clients_53_nothing_depends_on_the_user_agent() {
    let agents =
        ["", "docker/29.7.2 go/go1.26", "containerd/2.3.4", "containers/5.39 (github.com/containers/image)", "curl/8.14", "Mozilla/5.0"];
    let said = |reply: &Reply| {
        let headers: BTreeMap<String, String> = reply
            .headers
            .iter()
            .filter(|(name, _)| !["date", "x-request-id"].contains(&name.as_str()))
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect();
        // An error's message ends with its request's id.
        let end = reply.bytes().windows(8).position(|word| word == b"(request").unwrap_or(reply.bytes().len());
        (reply.status, headers, reply.bytes().slice(..end))
    };
    let scene = Scene::for_clients();
    for (path, range, _) in scene.questions() {
        scene.ask(&path, range, &[]).await;
        until("all is stored", || !path.contains("blobs/") || scene.larder.metric("larder_fills_in_flight") == 0.0).await;
        let usual = said(&scene.ask(&path, range, &[]).await);
        for agent in agents {
            assert_eq!(said(&scene.ask(&path, range, &[("user-agent", agent)]).await), usual, "{agent}: {path}");
        }
    }
    let asked_as: Vec<_> = scene.registry.requests().iter().map(|request| request.header("user-agent").map(ToOwned::to_owned)).collect();
    assert!(asked_as.iter().all(|agent| agent.as_ref().is_some_and(|agent| agent.starts_with("larder/"))), "{asked_as:?}");
}
