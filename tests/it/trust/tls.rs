//! What is allowed for an upstream's own hosts holds for those alone: a client certificate, and any certificate at all.

use std::time::Duration;

use super::{CDN, HUB, Hub, LATEST};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Bearer, any};

const OWN: &str = "93.184.216.34:443";

impl Hub {
    fn over_tls() -> Hub {
        let scene = Hub::with_2000_bytes();
        scene.net.tls_host("hub.test", HUB, &scene.registry);
        scene
    }

    fn setup_over_tls(&self) -> Setup {
        self.setup().hub(|hub| self.net.over_tls(hub))
    }

    async fn status_of_config_blob(&self, larder: &Larder) -> u16 {
        larder.get(&format!("/v2/library/app/blobs/{}", self.image.config.clone().unwrap().digest)).await.status
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_the_hosts_of_urls_and_to_nobody_else() {
    let scene = Hub::over_tls();
    let (certificate, pem) = scene.net.client_certificate("larder");
    let client_cert_file = scene.net.file("client.pem", &pem);
    for (name, address) in [("cdn.test", CDN), ("auth.test", "93.184.216.36")] {
        scene.net.tls_host(name, address, &scene.registry);
    }
    scene.net.serve_tls("93.184.216.34:8443", &scene.registry, "hub.test");
    scene.registry.require_bearer(Bearer::at("https://auth.test/token"));
    scene.registry.redirect_blobs("https://cdn.test");
    let larder = scene.setup_over_tls().hub(|hub| hub.client_cert_file = Some(client_cert_file)).start();
    scene.pull_by_head_and_get(&larder).await;
    // The same host on another port is another host.
    scene.registry.redirect_blobs("https://hub.test:8443");
    assert_eq!(scene.status_of_config_blob(&larder).await, 200);
    let shown = |address: &str| scene.net.client_certificates(address);
    assert!(!shown(OWN).is_empty() && shown(OWN).iter().all(|shown| *shown == Some(certificate.clone())));
    for address in ["93.184.216.35:443", "93.184.216.36:443", "93.184.216.34:8443"] {
        assert!(!shown(address).is_empty() && shown(address).iter().all(Option::is_none), "{address}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_certificate_is_renewed_when_its_file_changes_and_kept_when_the_file_is_bad() {
    let scene = Hub::over_tls();
    let (first, first_pem) = scene.net.client_certificate("first");
    let (second, second_pem) = scene.net.client_certificate("second");
    let path = scene.net.file("client.pem", &first_pem);
    let larder = scene.setup_over_tls().hub(|hub| (hub.client_cert_file, hub.tag_ttl) = (Some(path.clone()), Duration::ZERO)).start();
    let mut expected = Vec::new();
    for (content, shown) in [(None, &first), (Some(second_pem.as_str()), &second), (Some("half a fi"), &second), (Some(&first_pem), &first)]
    {
        if let Some(content) = content {
            // As Kubernetes does it: another file under the same name.
            std::fs::rename(scene.net.file("other.pem", content), &path).unwrap();
        }
        // Past the pool's idle time too, so that there is a handshake.
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(larder.get(LATEST).await.status, 200);
        expected.push(Some(shown.clone()));
        assert_eq!(scene.net.client_certificates(OWN), expected);
    }
}

#[tokio::test]
async fn insecure_skip_verify_is_for_the_hosts_of_urls_and_for_nobody_else() {
    let scene = Hub::over_tls();
    scene.net.serve_tls_as_stranger(OWN, &scene.registry, "another.test");
    assert_eq!(scene.setup_over_tls().start().get(LATEST).await.status, 502, "unless it is said, a stranger is one");
    assert_eq!(scene.registry.requests().len(), 0);
    let start = || scene.setup_over_tls().hub(|hub| hub.insecure_skip_verify = true).start();
    scene.pull_by_head_and_get(&start()).await;

    // Neither a redirect's target, on whatever port, nor a token server is believed for it.
    scene.net.name("cdn.test", &[CDN]);
    scene.net.serve_tls_as_stranger("93.184.216.35:443", &scene.registry, "cdn.test");
    scene.net.serve_tls_as_stranger("93.184.216.34:8443", &scene.registry, "hub.test");
    for origin in ["https://cdn.test", "https://hub.test:8443"] {
        scene.registry.redirect_blobs(origin);
        // One larder for both requests: the session with the hub's own port is there to be resumed.
        let larder = start();
        assert_eq!(larder.get(LATEST).await.status, 200);
        assert_eq!(larder.get(&scene.blob()).await.status, 502, "{origin}");
        assert!(larder.metric(r#"larder_upstream_errors_total{reason="tls",upstream="docker.io"}"#) >= 1.0, "{origin}");
    }
    assert_eq!(scene.registry.count(any().signed()), 0);
    scene.registry.require_bearer(Bearer::at("https://cdn.test/token"));
    assert_eq!(start().get(LATEST).await.status, 502);
    assert_eq!(scene.registry.token_requests(), 0);
}

#[tokio::test]
async fn insecure_skip_verify_still_wants_the_certificate_s_key() {
    let scene = Hub::over_tls();
    scene.net.serve_tls_as_impostor(OWN, &scene.registry, "hub.test");
    let larder = scene.setup_over_tls().hub(|hub| hub.insecure_skip_verify = true).start();
    assert_eq!(larder.get(LATEST).await.status, 502);
    assert_eq!(scene.registry.requests().len(), 0);
}

#[tokio::test]
async fn ca_file_vouches_for_redirects_and_token_servers_too() {
    let scene = Hub::over_tls();
    scene.net.tls_host("cdn.test", CDN, &scene.registry);
    scene.registry.redirect_blobs("https://cdn.test");
    scene.registry.require_bearer(Bearer::at("https://cdn.test/token"));
    scene.pull_by_head_and_get(&scene.setup_over_tls().start()).await;
    assert!(scene.registry.count(any().signed()) > 0 && scene.registry.token_requests() > 0);
}

#[tokio::test]
async fn upstream_fault_15_a_certificate_for_another_name_is_refused_and_http_is_no_way_out() {
    let scene = Hub::over_tls();
    scene.net.serve_tls(OWN, &scene.registry, "another.test");
    let larder = scene.setup_over_tls().start();
    assert_eq!(larder.get(LATEST).await.status, 502);
    assert_eq!((scene.registry.requests().len(), scene.net.dials(&format!("{HUB}:80"))), (0, 0));
    assert!(larder.metric(r#"larder_upstream_errors_total{reason="tls",upstream="docker.io"}"#) >= 1.0);
}
