//! What a URL means: every spelling of a repository is one repository, and what is none reaches neither network nor disk.

mod disk;
mod listeners;

use std::path::PathBuf;
use std::sync::Arc;

use http::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::disk::NotingDisk;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::net::FakeNet;
use crate::support::registry::{FakeRegistry, Image, any, get, head};

/// `docker.io` with an alias, `ghcr.test`, and `corp.test:5000`; two `Host` headers mean one of them.
struct Scene {
    net: FakeNet,
    hub: FakeRegistry,
    ghcr: FakeRegistry,
    corp: FakeRegistry,
    larder: Larder,
    disk: NotingDisk,
}

impl Scene {
    fn new() -> Scene {
        let (net, disk) = (FakeNet::new(), NotingDisk::default());
        let [hub, ghcr, corp] = std::array::from_fn(|_| FakeRegistry::new());
        for (host, address, registry) in
            [("hub.test", "93.184.216.34", &hub), ("ghcr.host", "93.184.216.35", &ghcr), ("corp.host", "93.184.216.36", &corp)]
        {
            net.host(host, address, registry);
        }
        let mut setup = Setup::new(&net).upstream(upstream("ghcr.test", "ghcr.host")).upstream(upstream("corp.test:5000", "corp.host"));
        setup = setup.hub(|hub| hub.aliases = vec!["dockerhub-proxy".into()]).disk(Arc::new(disk.clone()));
        for (host, name) in [("ghcr.mirror.corp", "ghcr.test"), ("hub.mirror.corp", "docker.io")] {
            setup.config.server.hosts.insert(host.into(), name.into());
        }
        Scene { net, hub, ghcr, corp, larder: setup.start(), disk }
    }

    /// Everything that a request might leave behind.
    fn traces(&self) -> (usize, Vec<String>, Vec<PathBuf>, Vec<PathBuf>, Vec<String>) {
        let text = self.larder.app.metrics.encode();
        let series = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()));
        (self.net.dialled().len(), self.net.resolved(), self.disk.touched(), self.larder.files(""), series.collect())
    }
}

/// Also: clients_03, clients_04, clients_05, clients_06, clients_07
#[tokio::test]
async fn clients_01_every_spelling_is_one_repository() {
    let scene = Scene::new();
    let image = scene.hub.push_image("library/app", "latest", &[1000], 1);
    let spellings = [
        ("/v2/library/app", "", None),
        ("/v2/app", "", None),
        ("/v2/docker.io/library/app", "", None),
        ("/v2/docker.io/app", "", None),
        ("/docker.io/v2/library/app", "", None),
        ("/docker.io/v2/app", "", None),
        ("/v2/library/app", "?ns=docker.io", Some("docker.io")),
        ("/v2/app", "?ns=docker.io", Some("docker.io")),
        ("/docker.io/v2/library/app", "?ns=docker.io", Some("docker.io")),
        ("/v2/docker.io/library/app", "?ns=docker.io", Some("docker.io")),
        ("/v2/library/app", "?ns=index.docker.io", Some("index.docker.io")),
        ("/index.docker.io/v2/library/app", "", None),
        ("/v2/registry-1.docker.io/library/app", "", None),
        ("/registry-1.docker.io/v2/library/app", "?ns=docker.io", Some("docker.io")),
        ("/v2/registry.hub.docker.com/library/app", "", None),
        ("/v2/app", "?ns=registry.hub.docker.com", Some("registry.hub.docker.com")),
        ("/v2/dockerhub-proxy/library/app", "", None),
        ("/dockerhub-proxy/v2/library/app", "", None),
        ("/v2/dockerhub-proxy/library/app", "?ns=docker.io", Some("docker.io")),
        ("/docker.io/library/app", "", None),
        ("/library/app", "?ns=docker.io", Some("docker.io")),
        ("/v2/library/app", "?foo=bar&ns=DOCKER.IO&x", Some("docker.io")),
        ("/v2/library/app", "?nonsense=%zz", None),
    ];
    for (path, query, ns) in spellings {
        for method in [Method::GET, Method::HEAD] {
            for (what, bytes) in
                [("manifests/latest".to_owned(), &image.bytes), (format!("blobs/{}", image.layers[0].digest), &image.layers[0].bytes)]
            {
                let path = format!("{path}/{what}{query}");
                let reply = scene.larder.client().await.request(method.clone(), &path).send().await;
                assert_eq!((reply.status, reply.header("oci-namespace")), (200, ns), "{method} {path}");
                assert!(method == Method::HEAD || reply.bytes() == bytes, "{path}");
            }
        }
    }
    assert_eq!((scene.hub.count(head()), scene.hub.count(get().manifest()), scene.hub.count(get().blob())), (1, 1, 1));
    assert_eq!((scene.ghcr.requests().len(), scene.corp.requests().len()), (0, 0));
}

async fn check_pull(scene: &Scene, host: &str, path: &str, image: &Image) {
    let mut client = scene.larder.client().await;
    let reply = client.get(path).host(host).send().await;
    assert_eq!((reply.status, reply.bytes()), (200, &image.bytes), "{host} {path}");
}

/// Also: clients_01, clients_02
#[tokio::test]
async fn other_upstreams_are_reached_by_name_port_and_host() {
    let scene = Scene::new();
    let plain = scene.ghcr.push_image("app", "latest", &[10], 1);
    let nested = scene.ghcr.push_image("docker.io/library/app", "latest", &[10], 2);
    let corp = scene.corp.push_image("team/app", "latest", &[10], 3);
    for path in ["/v2/ghcr.test/app", "/ghcr.test/v2/app", "/v2/app?ns=ghcr.test", "/ghcr.test/app"] {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        check_pull(&scene, "larder.test", &format!("{path}/manifests/latest?{query}"), &plain).await;
    }
    check_pull(&scene, "ghcr.mirror.corp", "/v2/app/manifests/latest", &plain).await;
    check_pull(&scene, "GHCR.mirror.corp:5000", "/v2/app/manifests/latest", &plain).await;
    check_pull(&scene, "hub.mirror.corp", "/v2/ghcr.test/app/manifests/latest", &plain).await;
    check_pull(&scene, "hub.mirror.corp", "/v2/app/manifests/latest?ns=ghcr.test", &plain).await;
    // With ns, another upstream's name is part of the repository's.
    check_pull(&scene, "larder.test", "/v2/docker.io/library/app/manifests/latest?ns=ghcr.test", &nested).await;
    for path in [
        "/v2/team/app/manifests/latest?ns=corp.test%3A5000",
        "/v2/team/app/manifests/latest?ns=corp.test:5000",
        "/v2/corp.test:5000/team/app/manifests/latest",
        "/corp.test:5000/v2/team/app/manifests/latest",
    ] {
        check_pull(&scene, "larder.test", path, &corp).await;
    }
    assert_eq!(scene.hub.requests().len(), 0);
}

/// Also: clients_02, upstream_fault_13
#[tokio::test]
async fn invariant_15_an_upstream_that_is_not_configured_is_404_and_leaves_no_trace() {
    let scene = Scene::new();
    let before = scene.traces();
    for path in [
        "/v2/library/app/manifests/latest?ns=evil.example",
        "/v2/library/app/manifests/latest?ns=169.254.169.254",
        "/v2/library/app/manifests/latest?ns=corp.test",
        "/evil.example/v2/library/app/manifests/latest",
        "/evil.example:8443/v2/library/app/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "/v2/evil.example:8443/app/manifests/latest",
        "/v2/localhost:5000/app/manifests/latest",
        "/evil.example/app/manifests/latest",
        "/v2/?ns=evil.example",
        "/evil.example/v2/",
    ] {
        let reply = scene.larder.get(path).await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (404, Some("NAME_UNKNOWN")), "{path}");
        assert_eq!(scene.larder.head(path).await.status, 404, "{path}");
    }
    assert_eq!(scene.traces(), before);
}

#[tokio::test]
async fn clients_02_a_prefix_and_an_ns_that_differ_are_refused() {
    let scene = Scene::new();
    for path in ["/docker.io/v2/library/app/manifests/latest?ns=ghcr.test", "/ghcr.test/v2/app/manifests/latest?ns=docker.io"] {
        let reply = scene.larder.get(path).await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (400, Some("NAME_INVALID")), "{path}");
    }
    assert!(scene.net.dialled().is_empty());
}

/// One request line as it is, and the whole answer: status, and the body's text.
async fn raw(larder: &Larder, target: &[u8]) -> (u16, String) {
    let mut stream = larder.connect();
    let request = [b"GET ", target, b" HTTP/1.1\r\nHost: larder.test\r\nConnection: close\r\n\r\n"].concat();
    stream.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("no status: {answer:?}"));
    (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
}

/// Also: clients_52, cve_2024_4956
#[tokio::test]
async fn invariant_15_hostile_paths_reach_neither_network_nor_disk() {
    let scene = Scene::new();
    let before = scene.traces();
    let sha = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let mut targets: Vec<String> = [
        "/v2/../../etc/passwd",
        "/v2/../manifests/latest",
        "/v2/a/../../b/manifests/latest",
        "/v2/library/../app/manifests/latest",
        "/v2/library/./app/manifests/latest",
        "/v2/library/app/manifests/../../../../etc/passwd",
        "/v2/library/app/manifests/..",
        "/v2/library/app/manifests/.",
        "/v2/library/app/manifests/",
        "/v2/library/app/manifests/a~",
        "/v2/library%2fapp/manifests/latest",
        "/v2/library%2Fapp/manifests/latest",
        "/v2/%2e%2e/app/manifests/latest",
        "/v2/library/app/manifests/%2e%2e%2fpasswd",
        "/v2/library/app%00/manifests/latest",
        "/v2/library/app/manifests/latest%00",
        "/v2/%2F%2F..%2F..%2Fetc%2Fpasswd",
        "/%2F%2F..%2F..%2Fetc%2Fpasswd",
        "/v2/library//app/manifests/latest",
        "/v2//library/app/manifests/latest",
        "//v2/library/app/manifests/latest",
        "/v2/library/app//manifests/latest",
        "/v2/Library/App/manifests/latest",
        "/v2/library/_tags/manifests/latest",
        "/v2/_manifests/app/manifests/latest",
        "/v2/library/app/manifests/sha256:..",
        "/v2/library/app/blobs/sha256:../../../etc/passwd",
        "/v2/library/app/blobs/latest",
        "/v2/library/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e",
        "/v2/library/app/blobs/sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855",
        "/v2/library/app/manifests/latest?ns=",
        "/v2/library/app/manifests/latest?ns=../..",
        "/v2/library/app/manifests/latest?ns=docker.io/../..",
        "/v2/library/app/manifests/latest?ns=docker.io%2f..",
        "/v2/library/app/manifests/latest?ns=docker.io%00",
        "/v2/library/app/manifests/latest?ns=docker.io&ns=ghcr.test",
        "/v2/library/app/manifests/latest?ns=http://docker.io",
        "/v2/library/app/manifests/latest?ns=user@docker.io",
        "/v2/library/app/manifests/latest?ns=docker.io:99999",
        "/../v2/library/app/manifests/latest",
        "/docker.io/../v2/library/app/manifests/latest",
        "/v2/_catalog",
        "/v2/library/app",
        "/etc/passwd",
        "/metrics",
    ]
    .map(str::to_owned)
    .into();
    targets.push(format!("/v2/{}/manifests/latest", "a".repeat(256)));
    targets.push(format!("/v2/{}manifests/latest", "a/".repeat(600)));
    targets.push(format!("/v2/library/app/manifests/{}", "a".repeat(129)));
    targets.push(format!("/v2/library/app/blobs/{sha}0"));
    targets.push(format!("/v2/library/app/manifests/latest?ns={}", "a".repeat(300)));
    for target in &targets {
        let (status, body) = raw(&scene.larder, target.as_bytes()).await;
        assert!(matches!(status, 400 | 404), "{status} {target}");
        let document: serde_json::Value = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{target}: {error}: {body}"));
        assert!(document["errors"][0]["code"].is_string(), "{target}: {body}");
    }
    // Not HTTP at all: hyper itself refuses.
    for target in [&b"/v2/library/app\0/manifests/latest"[..], b"/v2/library/app/manifests/\xff", b"/v2/a b/manifests/latest"] {
        assert!(matches!(raw(&scene.larder, target).await.0, 400 | 404), "{target:?}");
    }
    assert_eq!(scene.traces(), before);
}

/// Also: cve_2026_31801, cve_2026_41888
#[tokio::test]
async fn clients_47_larder_is_read_only() {
    let scene = Scene::new();
    let before = (scene.net.dialled().len(), scene.larder.files(""));
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE] {
        for path in [
            "/v2/",
            "/v2/library/app/blobs/uploads/",
            "/v2/library/app/manifests/latest",
            "/docker.io/v2/library/app/manifests/latest",
            "/v2/x",
        ] {
            let mut client = scene.larder.client().await;
            let reply = client.request(method.clone(), path).body("a body that nobody asked for").send().await;
            assert_eq!((reply.status, reply.header("allow")), (405, Some("GET, HEAD")), "{method} {path}");
            assert_eq!((reply.error_code().as_deref(), reply.header("content-type")), (Some("UNSUPPORTED"), Some("application/json")));
        }
    }
    assert_eq!((scene.net.dialled().len(), scene.larder.files("")), before);
}

#[tokio::test]
async fn clients_08_the_version_is_told_while_upstream_is_down() {
    let scene = Scene::new();
    for host in ["hub.test", "ghcr.host", "corp.host"] {
        scene.net.down(host);
    }
    for path in ["/v2/", "/v2", "/docker.io/v2/", "/ghcr.test/v2/", "/v2/?ns=docker.io", "/dockerhub-proxy/v2/"] {
        for method in [Method::GET, Method::HEAD] {
            let reply = scene.larder.client().await.request(method, path).header("authorization", "Basic eDp5").send().await;
            assert_eq!((reply.status, reply.header("docker-distribution-api-version")), (200, Some("registry/2.0")), "{path}");
            assert_eq!(
                (reply.header("content-length"), reply.header("www-authenticate"), reply.header("location")),
                (Some("2"), None, None)
            );
            assert_eq!(reply.header("oci-namespace"), path.contains("ns=").then_some("docker.io"), "{path}");
        }
    }
    assert!(scene.net.dialled().is_empty());
}

#[tokio::test]
async fn probes_answer_and_nothing_else_does() {
    let scene = Scene::new();
    for path in ["/livez", "/readyz", "/healthz", "/"] {
        assert_eq!((scene.larder.get(path).await.status, scene.larder.head(path).await.status), (200, 200), "{path}");
    }
    for path in ["/v2/_catalog", "/v1/", "/metrics", "/favicon.ico"] {
        let reply = scene.larder.get(path).await;
        assert_eq!((reply.status, reply.header("content-type")), (404, Some("application/json")), "{path}");
        assert!(reply.error_code().is_some());
    }
}

/// Also: clients_09
#[tokio::test]
async fn every_error_names_its_request_and_carries_no_challenge() {
    let scene = Scene::new();
    scene.ghcr.require_basic("me", "secret");
    let mut ids = std::collections::HashSet::new();
    for (path, status, code) in [
        ("/v2/library/none/manifests/latest", 404, "MANIFEST_UNKNOWN"),
        ("/v2/library/none/blobs/sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", 404, "BLOB_UNKNOWN"),
        ("/v2/ghcr.test/app/manifests/latest", 403, "DENIED"),
        ("/v2/A/manifests/latest", 400, "NAME_INVALID"),
        ("/v2/a/blobs/sha256:1", 400, "DIGEST_INVALID"),
        ("/v2/_catalog", 404, "UNSUPPORTED"),
    ] {
        let reply = scene.larder.get(path).await;
        assert_eq!((reply.status, reply.error_code().as_deref()), (status, Some(code)), "{path}");
        assert_eq!(reply.header("content-length"), Some(reply.bytes().len().to_string().as_str()));
        assert_eq!(
            (reply.header("www-authenticate"), reply.header("docker-distribution-api-version")),
            (None, Some("registry/2.0")),
            "{path}"
        );
        let document: serde_json::Value = serde_json::from_slice(reply.bytes()).unwrap();
        let message = document["errors"][0]["message"].as_str().unwrap();
        let id = message
            .strip_prefix("larder: ")
            .and_then(|rest| rest.split_once("(request ")?.1.strip_suffix(')'))
            .unwrap_or_else(|| panic!("{message}"));
        assert!(id.len() == 26 && ids.insert(id.to_owned()), "{message}");
    }
}

/// Also: clients_24, clients_25, clients_26, clients_27
#[tokio::test]
async fn clients_22_a_blob_s_headers_and_ranges_are_the_same_cold_and_warm() {
    let scene = Scene::new();
    for warm in [false, true] {
        let blob = &scene.hub.push_image("library/app", "latest", &[2_000_000], 1).layers[0];
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        let size = blob.bytes.len();
        let cases = [
            (None, 200, 0..size),
            (Some("bytes=0-"), 206, 0..size),
            (Some("bytes=1000-"), 206, 1000..size),
            (Some("bytes=0-0"), 206, 0..1),
            (Some("bytes=100-199"), 206, 100..200),
            (Some("bytes=-5"), 206, size - 5..size),
            (Some("bytes=5-99999999"), 206, 5..size),
            (Some("bytes=0-1,5-6"), 200, 0..size),
            (Some("bytes=nonsense"), 200, 0..size),
        ];
        for (range, status, expected) in cases {
            let fresh = Scene::new();
            let scene = if warm { &scene } else { &fresh };
            scene.hub.push_image("library/app", "latest", &[2_000_000], 1);
            let mut client = scene.larder.client().await;
            for method in [Method::GET, Method::HEAD] {
                let ask = client.request(method.clone(), &path);
                let reply = match range {
                    Some(range) => ask.header("range", range).send().await,
                    None => ask.send().await,
                };
                if method == Method::HEAD {
                    assert_eq!((reply.status, reply.bytes().len(), reply.header("content-length")), (200, 0, Some("2000000")));
                    continue;
                }
                let content_range = format!("bytes {}-{}/{size}", expected.start, expected.end - 1);
                assert_eq!(
                    (reply.status, reply.header("content-range")),
                    (status, (status == 206).then_some(&*content_range)),
                    "{range:?}"
                );
                assert!(reply.bytes() == &blob.bytes[expected.clone()], "{range:?}");
                assert_eq!(reply.header("content-length"), Some(expected.len().to_string().as_str()), "{range:?}");
                assert_eq!(reply.header("docker-content-digest"), Some(blob.digest.to_string().as_str()));
                assert_eq!(
                    (reply.header("accept-ranges"), reply.header("content-type")),
                    (Some("bytes"), Some("application/octet-stream"))
                );
                assert_eq!(
                    (reply.header("content-encoding"), reply.header("location"), reply.header("x-registry-supports-signatures")),
                    (None, None, None)
                );
            }
        }
        let mut client = scene.larder.client().await;
        let reply = client.get(&path).header("range", "bytes=2000000-").send().await;
        assert_eq!((reply.status, reply.header("content-range")), (416, Some("bytes */2000000")));
    }
    for request in scene.hub.seen(any()) {
        assert_eq!(request.header("accept-encoding"), Some("identity"));
    }
}
