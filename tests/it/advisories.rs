//! What has gone wrong in other registries, clients and mirrors, as far as it concerns the dealings with an upstream: a test
//! for each advisory, by its id.

use larder::config::{BaseUrl, CredentialConfig, CredentialKind, Secret, UpstreamConfig, Visibility};

use crate::support::client::Reply;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::log::listen;
use crate::support::registry::{Bearer, FakeRegistry, Fault, Request, any, get};
use crate::support::scene::{HUB, Hub};

const USER: &str = "larder-robot";
const CANARY: &str = "canary-77b1";
const ELSEWHERE: &str = "93.184.216.35";
const LATEST: &str = "/v2/library/app/manifests/latest";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Hub {
    /// `hub.test` and `evil.test`, with and without TLS.
    fn beside_evil() -> Hub {
        let scene = Hub::unstarted(&[2000]);
        for (name, address) in [("hub.test", HUB), ("evil.test", ELSEWHERE)] {
            scene.net.host(name, address, &scene.registry);
            scene.net.tls_host(name, address, &scene.registry);
        }
        scene
    }

    /// Signed in at the hub.
    fn setup_with_password(&self, tls: bool) -> Setup {
        let ca_file = self.net.ca_file();
        self.setup().hub(|hub| {
            hub.credentials = vec![CredentialConfig::password(USER, Secret::Inline(CANARY.into()))];
            hub.visibility = Visibility::Private;
            hub.urls = vec![base(if tls { "https://hub.test" } else { "http://hub.test" })];
            hub.ca_file = Some(ca_file);
        })
    }

    fn check_nobody_but_the_hub_was_dialled(&self, why: &str) {
        assert!(self.net.dialled().iter().all(|dialled| dialled.ip().to_string() == HUB), "{why}: {:?}", self.net.dialled());
    }
}

fn base(text: &str) -> BaseUrl {
    text.parse().unwrap()
}

async fn refused(larder: &Larder, path: &str) -> Reply {
    let reply = larder.get(path).await;
    assert_eq!(reply.status, 502, "{path}: {}", reply.text());
    reply
}

/// Distribution's proxy and oras-go asked whatever token server a challenge named, with the password.
/// Also: cve_2026_48978, ghsa_3p65_76g6_3w7r, ghsa_xf85_363p_868w, upstream_fault_12
#[tokio::test(start_paused = true)]
async fn cve_2026_33540_a_challenge_does_not_choose_who_gets_the_password() {
    for realm in [
        "https://evil.test/token",
        "https://auth.hub.test/token",
        "https://hub.test.evil.test/token",
        "https://hub.test:8443/token",
        "http://hub.test/token",
        "https://hub.test@evil.test/token",
        "https://93.184.216.34/token",
        "//evil.test/token",
        "https://evil.test/token#https://hub.test/token",
        "https://169.254.169.254/token",
    ] {
        let scene = Hub::beside_evil();
        for name in ["auth.hub.test", "hub.test.evil.test"] {
            scene.net.tls_host(name, ELSEWHERE, &scene.registry);
        }
        scene.net.serve_tls("93.184.216.34:8443", &scene.registry, "hub.test");
        let challenge = format!("Bearer realm=\"{realm}\",service=\"s\",scope=\"repository:library/app:pull\"");
        scene.registry.when(any()).then(Fault::status(401).header("www-authenticate", challenge));
        let (log, _guard) = listen();
        // A refresh token, which oras-go let go as well, is worth more than a password: it outlives it.
        for kind in [None, Some(CredentialKind::IdentityToken(Secret::Inline(CANARY.into())))] {
            let change = |hub: &mut UpstreamConfig| hub.credentials[0].kind = kind.clone().unwrap_or(hub.credentials[0].kind.clone());
            let larder = scene.setup_with_password(true).hub(change).start();
            let reply = refused(&larder, LATEST).await;
            scene.check_nobody_but_the_hub_was_dialled(realm);
            assert_eq!(scene.net.dials("93.184.216.34:8443") + scene.net.dials("93.184.216.34:80"), 0, "{realm}");
            let is_silent = |request: &Request| request.authorization().is_none() && request.body.is_empty();
            assert!(scene.registry.requests().iter().all(is_silent), "{realm}");
            assert!(!log.text().contains(CANARY) && !reply.text().contains(CANARY), "{realm}");
            assert!(!reply.text().contains("evil.test"), "{}", reply.text());
        }
    }
}

/// "ContainerDrip", and after it oras-go and regclient: what a redirect led to got the registry's credentials, at once or
/// when it asked for them.
/// Also: ghsa_vh4v_2xq2_g5cg, cve_2026_49349, registry_28, upstream_fault_10
#[tokio::test(start_paused = true)]
async fn cve_2020_15157_what_a_redirect_leads_to_gets_no_credentials_though_it_asks() {
    for challenge in ["Basic realm=\"evil\"", "Bearer realm=\"https://evil.test/token\"", "Bearer realm=\"https://hub.test/token\""] {
        for bearer in [false, true] {
            let scene = Hub::beside_evil();
            if bearer {
                scene.registry.require_bearer(Bearer::at("https://hub.test/token").credentials(USER, CANARY).credentials_required());
            } else {
                scene.registry.require_basic(USER, CANARY);
            }
            scene.registry.redirect_blobs("https://evil.test");
            scene.registry.redirect_manifests("https://evil.test");
            let asking = Fault::status(401).header("www-authenticate", challenge);
            scene.registry.when(any().host("evil.test")).then(asking);
            let larder = scene.setup_with_password(true).start();
            for path in [LATEST.to_owned(), scene.blob()] {
                assert!(matches!(larder.get(&path).await.status, 403 | 502), "{challenge} {path}");
            }
            let evil = scene.registry.seen(any().host("evil.test"));
            assert!(!evil.is_empty());
            for request in evil {
                assert_eq!((request.authorization(), request.header("cookie")), (None, None), "{request:?}");
                assert!(!format!("{request:?}").contains(CANARY), "{request:?}");
            }
        }
    }
}

/// oras-go trusted an upload's `Location`. larder pushes nothing; every URL of an upstream's is treated alike.
#[tokio::test(start_paused = true)]
async fn cve_2026_50151_a_location_is_anybody_s_word() {
    for location in [
        "https://me:canary-77b1@hub.test/x",
        "https://hub.test@evil.test/x",
        "file:///etc/passwd",
        "unix:///var/run/docker.sock",
        "gopher://evil.test:25/x",
        "http://hub.test/x",
        "https://",
        "https:///x",
        "//",
        "https://hub.test:99999/x",
        "https://hub.test\\@evil.test/x",
    ] {
        let scene = Hub::beside_evil();
        scene.registry.when(any()).then(Fault::redirect(307, location));
        let larder = scene.setup_with_password(true).start();
        for path in [LATEST.to_owned(), scene.blob()] {
            let reply = refused(&larder, &path).await;
            assert!(reply.header("location").is_none() && !reply.text().contains(CANARY), "{location}");
        }
        scene.check_nobody_but_the_hub_was_dialled(location);
        assert!(scene.registry.requests().iter().all(|request| request.path.starts_with("/v2/")), "{location}");
    }
}

/// containers/image checked no certificate at the token server where it checked none at the registry.
#[tokio::test]
async fn cve_2019_10214_a_token_server_s_certificate_is_checked_though_the_registry_s_is_not() {
    let scene = Hub::beside_evil();
    scene.net.serve_tls_as_stranger("93.184.216.34:443", &scene.registry, "hub.test");
    scene.net.serve_tls_as_stranger("93.184.216.35:443", &scene.registry, "evil.test");
    scene.registry.require_bearer(Bearer::at("https://evil.test/token").credentials(USER, CANARY).credentials_required());
    let larder =
        scene.setup_with_password(true).hub(|hub| (hub.insecure_skip_verify, hub.token_hosts) = (true, vec!["evil.test".into()])).start();
    refused(&larder, LATEST).await;
    assert!(scene.registry.count(any().host("hub.test")) > 0 && scene.registry.token_requests() == 0);
    assert!(scene.registry.requests().iter().all(|request| request.authorization().is_none()));
}

/// containers/image put a digest that an upstream made up into paths and requests.
#[tokio::test]
async fn cve_2024_3727_a_digest_of_an_upstream_s_is_a_digest_or_nothing() {
    for digest in [
        "../../../../../../tmp/larder-cve",
        "sha256:../../../../tmp/x",
        "sha256:abc",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "",
        "sha256:%2e%2e%2f",
    ] {
        let scene = Hub::beside_evil();
        scene.registry.when(any().manifest()).then(Fault::Header("docker-content-digest", digest.into()));
        let larder = scene.setup_with_password(false).start();
        let reply = larder.get(LATEST).await;
        assert_eq!((reply.status, reply.bytes()), (200, &scene.image.bytes), "{digest}");
        assert_eq!(reply.header("docker-content-digest"), Some(scene.image.digest.to_string().as_str()), "{digest}");

        let config = format!(r#"{{"mediaType":"{OCI_MANIFEST}","digest":"{digest}","size":10}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{config},"layers":[{config}]}}"#);
        scene.registry.push_manifest("library/odd", Some("latest"), OCI_MANIFEST, manifest);
        larder.get("/v2/library/odd/manifests/latest").await;
        let odd = |text: &str| text.contains("..") || text.contains("%2e") || text.contains("md5");
        assert!(scene.registry.requests().iter().all(|request| !odd(&request.path)), "{:?}", scene.registry.requests());
        assert!(larder.files("").iter().all(|file| !odd(&file.strip_prefix(larder.cache()).unwrap().to_string_lossy())), "{digest}");
        assert!(!std::path::Path::new("/tmp/larder-cve").exists());
    }
}

/// regclient forgot, here and there, that a digest had been asked for.
#[tokio::test]
async fn ghsa_qv35_3gw6_8q4j_what_is_asked_for_by_digest_has_that_digest() {
    let scene = Hub::beside_evil();
    let other = scene.registry.push_image("library/other", "latest", &[2000], 2);
    scene.registry.when(get().manifest()).then(Fault::Body(other.bytes.clone()));
    scene.registry.when(get().blob()).then(Fault::Body(other.layers[0].bytes.clone()));
    let larder = scene.setup_with_password(false).start();
    for path in [format!("/v2/library/app/manifests/{}", scene.image.digest), scene.blob(), LATEST.to_owned()] {
        refused(&larder, &path).await;
    }
    scene.registry.behave();
    assert_eq!(larder.get(&format!("/v2/library/app/manifests/{}", scene.image.digest)).await.bytes(), &scene.image.bytes);
}

/// Quay, Nexus, Dragonfly and Claircore fetched from wherever a request told them to.
/// Also: cve_2026_0600, cve_2022_27907, cve_2025_59346, cve_2026_54637, cve_2026_10517, upstream_fault_13, invariant_15
#[tokio::test]
async fn cve_2026_32591_no_request_says_whom_larder_asks() {
    let scene = Hub::beside_evil();
    let larder = scene.setup_with_password(false).start();
    let (dials, names) = (scene.net.dialled().len(), scene.net.resolved().len());
    let before = larder.app.metrics.encode().lines().count();
    for ns in [
        "evil.test",
        "169.254.169.254",
        "http%3A%2F%2Fevil.test",
        "127.0.0.1%3A5001",
        "%5B%3A%3A1%5D",
        "me%3Apw%40evil.test",
        "evil.test%0D%0AX%3A1",
        "hub.test",
    ] {
        let reply = larder.get(&format!("/v2/library/app/manifests/1?ns={ns}")).await;
        assert!(matches!(reply.status, 400 | 404), "{ns}: {}", reply.status);
    }
    for path in ["/evil.test/v2/library/app/manifests/latest", "/169.254.169.254/v2/library/app/manifests/latest"] {
        assert_eq!(larder.get(path).await.status, 404, "{path}");
    }
    let reply = larder
        .client()
        .await
        .get("/v2/library/app/manifests/none")
        .header("x-forwarded-host", "evil.test")
        .header("forwarded", "host=evil.test")
        .send()
        .await;
    assert_eq!(reply.status, 404);
    assert!(scene.net.dialled()[dials..].iter().all(|dialled| dialled.to_string() == format!("{HUB}:80")));
    assert!(scene.net.resolved()[names..].iter().all(|name| name == "hub.test"), "{:?}", scene.net.resolved());
    let text = larder.app.metrics.encode();
    assert!(!text.contains("evil") && !text.contains("169.254"), "before: {before} lines");
}

/// go-containerregistry's guards against inner addresses fell one after the other: to no check at all, to `0.0.0.0`, to a
/// redirect of the token server, to figures in odd spellings, to names of inner addresses, to a layer's `urls`.
/// Also: go_containerregistry_2284, go_containerregistry_2291, go_containerregistry_2302, go_containerregistry_2425, go_containerregistry_2440, upstream_fault_11
#[tokio::test]
async fn go_containerregistry_2243_no_answer_leads_inside() {
    let inner = [
        ("0.0.0.0", "0.0.0.0"),
        ("[::]", "::"),
        ("2130706433", "127.0.0.1"),
        ("127.1", "127.0.0.1"),
        ("0x7f000001", "127.0.0.1"),
        ("localtest.test", "127.0.0.1"),
        ("meta.test", "169.254.169.254"),
        ("mapped.test", "::ffff:169.254.169.254"),
        ("ula.test", "fd00:ec2::254"),
        ("10.0.0.5", "10.0.0.5"),
    ];
    for (host, address) in inner {
        let scene = Hub::beside_evil();
        if !host.starts_with('[') {
            // As the system's resolver reads them.
            scene.net.name(host, &[address]);
        }
        let start = || {
            let larder = scene.setup_with_password(false);
            larder.hub(|hub| hub.credentials.clear()).start()
        };
        // A redirect, a token server, a redirect of a token server.
        scene.registry.when(get().blob()).then(Fault::redirect(307, &format!("http://{host}/x")));
        refused(&start(), &scene.blob()).await;
        scene.registry.behave();
        scene.registry.require_bearer(Bearer::at(&format!("http://{host}/token")));
        refused(&start(), LATEST).await;
        scene.registry.require_bearer(Bearer::at("http://hub.test/token"));
        scene.registry.when(any().token()).then(Fault::redirect(307, &format!("http://{host}/token")));
        refused(&start(), LATEST).await;
        scene.check_nobody_but_the_hub_was_dialled(host);
    }
}

/// The same chain's last link, CVE-2020-15157's first.
#[tokio::test]
async fn go_containerregistry_2440_the_urls_of_a_layer_are_nobody_s_to_fetch() {
    let scene = Hub::beside_evil();
    let layer = larder::oci::Digest::of(larder::oci::Algorithm::Sha256, b"a foreign layer");
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    let descriptor =
        format!(r#"{{"mediaType":"{foreign}","digest":"{layer}","size":15,"urls":["http://evil.test/layer","http://10.0.0.5/x"]}}"#);
    let manifest = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{descriptor},"layers":[{descriptor}]}}"#);
    scene.registry.push_manifest("library/windows", Some("latest"), OCI_MANIFEST, manifest);
    let larder = scene.setup_with_password(false).start();
    assert_eq!(larder.get("/v2/library/windows/manifests/latest").await.status, 200);
    assert_eq!(larder.get(&format!("/v2/library/windows/blobs/{layer}")).await.status, 404);
    scene.check_nobody_but_the_hub_was_dialled("urls");
    assert!(!scene.net.resolved().contains(&"evil.test".into()));
}

/// Distribution read whatever length it was sent.
#[tokio::test]
async fn cve_2017_11468_no_answer_is_read_beyond_its_limit() {
    const HUGE: usize = 32 << 20;
    for what in ["a manifest", "a token", "a refusal"] {
        let scene = Hub::beside_evil();
        let junk = vec![b' '; HUGE];
        match what {
            "a manifest" => {
                // Without a length, so that the limit is found while reading.
                scene.registry.push_manifest("library/app", Some("latest"), OCI_MANIFEST, junk);
                scene.registry.when(get().manifest()).then(Fault::Chunked);
            }
            "a token" => {
                scene.registry.require_bearer(Bearer::at("http://hub.test/token"));
                scene.registry.when(any().token()).then(Fault::status(200).body(junk));
            }
            _ => scene.registry.when(any()).then(Fault::status(500).body(junk)),
        }
        let larder = scene.setup_with_password(false).hub(|hub| hub.credentials.clear()).start();
        refused(&larder, LATEST).await;
        assert!(scene.registry.body_bytes_sent() < 3 * (6 << 20), "{what}: {}", scene.registry.body_bytes_sent());
    }
}

/// One document could be read as an image and as an index of others.
/// Also: ghsa_qq97_vm5h_rrhg
#[tokio::test]
async fn cve_2021_41190_a_document_of_two_meanings_is_refused() {
    let both = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{}},"layers":[],"manifests":[]}}"#);
    let other = format!(r#"{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[]}}"#);
    for document in [both, other] {
        let scene = Hub::beside_evil();
        scene.registry.push_manifest("library/two", Some("latest"), OCI_MANIFEST, document);
        let larder = scene.setup_with_password(false).start();
        refused(&larder, "/v2/library/two/manifests/latest").await;
    }
}

/// zot, Harbor and Dragonfly wrote secrets into their logs.
/// Also: ghsa_prh4_vhfh_24mj, cve_2026_49254, registry_33, credential_11
#[tokio::test(start_paused = true)]
async fn cve_2025_48374_no_secret_is_logged_at_any_level() {
    let (log, _guard) = listen();
    for fault in [None, Some(Fault::from(Fault::status(403))), Some(Fault::status(500).into()), Some(Fault::Hangup)] {
        let scene = Hub::beside_evil();
        scene.registry.require_bearer(Bearer::at("https://hub.test/token").credentials(USER, CANARY).credentials_required());
        scene.registry.redirect_blobs("https://evil.test");
        let (_, pem) = scene.net.client_certificate("larder");
        let client_cert_file = scene.net.file("client.pem", &pem);
        let proxy = scene.net.proxy("proxy.test", "10.9.9.9", 3128);
        let larder = scene.setup_with_password(true).hub(|hub| {
            hub.client_cert_file = Some(client_cert_file);
            let userinfo = Some(format!("proxy-user:{CANARY}").into());
            hub.proxy = Some(larder::config::ProxyUrl { url: base("http://proxy.test:3128"), userinfo });
        });
        let debugged = format!("{:?}", larder.config);
        let larder = larder.start();
        if let Some(fault) = &fault {
            scene.registry.when(any().signed()).then(fault.clone());
        }
        let replies = [larder.get(LATEST).await, larder.get(&scene.blob()).await];
        assert_eq!((replies[0].status, replies[1].status == 200), (200, fault.is_none()), "{fault:?}");
        assert!(scene.registry.count(any().signed()) > 0 && !proxy.heads().is_empty());
        let told: String = replies.iter().map(|reply| format!("{:?}{}", reply.headers, String::from_utf8_lossy(reply.bytes()))).collect();
        let told = told + &larder.app.metrics.encode() + &log.text() + &debugged;
        let encoded = |text: String| base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text);
        let mut secrets = vec![CANARY.to_owned(), "fake-token-".into(), "verify=1711".into(), "X-Amz-Expires".into()];
        secrets.extend([encoded(format!("{USER}:{CANARY}")), encoded(format!("proxy-user:{CANARY}"))]);
        secrets.extend(pem.lines().filter(|line| line.len() > 30 && !line.starts_with('-')).map(str::to_owned));
        for secret in secrets {
            assert!(!told.contains(&secret), "{fault:?}: {secret} in {told}");
        }
    }
    assert!(log.text().contains("TRACE") || log.text().contains("DEBUG"), "the log was heard");
}

/// pingora-cache's key was the path alone, so that one host's content was served for another's.
#[tokio::test]
async fn rustsec_2026_0035_one_path_of_two_upstreams_is_two_things() {
    let scene = Hub::beside_evil();
    let other = FakeRegistry::new();
    let theirs = other.push_image("library/app", "latest", &[2000], 2);
    scene.net.host("quay.test", "93.184.216.36", &other);
    let larder = scene.setup_with_password(false).upstream(upstream("quay.test", "quay.test")).start();
    for _ in 0..2 {
        assert_eq!(larder.get(LATEST).await.bytes(), &scene.image.bytes);
        assert_eq!(larder.get(&format!("{LATEST}?ns=quay.test")).await.bytes(), &theirs.bytes);
    }
    let foreign = format!("/v2/library/app/manifests/{}?ns=quay.test", scene.image.digest);
    assert_eq!(larder.get(&foreign).await.status, 404);
}

/// No advisory: a coded body would be hashed as it is, or blow up when it is decoded.
#[tokio::test]
async fn upstream_fault_17_a_coded_body_is_refused_and_not_kept() {
    for coding in ["gzip", "br", "gzip, gzip"] {
        let scene = Hub::beside_evil();
        scene.registry.when(any()).then(Fault::Header("content-encoding", coding.into()));
        let larder = scene.setup_with_password(false).start();
        for path in [LATEST.to_owned(), scene.blob(), format!("/v2/library/app/manifests/{}", scene.image.digest)] {
            refused(&larder, &path).await;
        }
        assert!(scene.registry.requests().iter().all(|request| request.header("accept-encoding") == Some("identity")));
        assert!(larder.files("blobs").is_empty());
    }
}
