//! Where larder connects: an answer of somebody else's leads to public addresses only.

use super::{BLOCKED_METADATA, BLOCKED_PRIVATE, CANARY, CDN, HUB, Hub, LATEST, USER};
use crate::support::larder::Setup;
use crate::support::net::Dns;
use crate::support::registry::{Bearer, Fault, get};

/// Also: upstream_fault_11, credential_13
#[tokio::test]
async fn invariant_17_a_redirect_leads_to_no_private_address() {
    for address in
        ["10.0.0.5", "127.0.0.1", "192.168.1.1", "169.254.1.1", "100.64.0.1", "::1", "fd00::5", "::ffff:10.0.0.5", "64:ff9b::a00:5"]
    {
        let scene = Hub::with_2000_bytes();
        scene.net.host("cdn.test", address, &scene.registry);
        scene.registry.redirect_blobs("http://cdn.test");
        let larder = Setup::new(&scene.net).start();
        assert_eq!(larder.get(LATEST).await.status, 200);
        let reply = larder.get(&scene.blob()).await;
        assert_eq!((reply.status, reply.header("location")), (502, None), "{address}");
        assert!(!reply.text().contains(address) && !reply.text().contains("cdn.test"), "{}", reply.text());
        assert!(larder.metric(BLOCKED_PRIVATE) >= 1.0, "{address}");
        assert!(scene.net.dialled().iter().all(|dialled| dialled.ip().to_string() == HUB), "{address}: {:?}", scene.net.dialled());
    }
}

/// Also: upstream_fault_11
#[tokio::test]
async fn invariant_17_addresses_in_figures_are_judged_too() {
    for origin in ["http://10.0.0.5", "http://127.0.0.1:5001", "http://[::1]", "http://[::ffff:127.0.0.1]", "http://localhost"] {
        let scene = Hub::with_2000_bytes();
        scene.net.name("localhost", &["127.0.0.1"]);
        scene.registry.when(get().blob()).then(Fault::redirect(307, &format!("{origin}/secret")));
        let larder = Setup::new(&scene.net).start();
        assert_eq!(larder.get(&scene.blob()).await.status, 502, "{origin}");
        assert!(larder.metric(BLOCKED_PRIVATE) >= 1.0, "{origin}");
        assert!(scene.net.dialled().iter().all(|dialled| dialled.ip().to_string() == HUB), "{origin}: {:?}", scene.net.dialled());
    }
}

#[tokio::test]
async fn invariant_17_private_addresses_that_are_allowed_are_reached_and_metadata_services_never() {
    let scene = Hub::with_2000_bytes();
    scene.net.host("cdn.test", "10.0.0.5", &scene.registry);
    scene.registry.redirect_blobs("http://cdn.test");
    let allow = |networks: &[&str]| {
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        Setup::new(&scene.net).hub(|hub| hub.allow_private_addresses = networks).start()
    };
    scene.pull_by_head_and_get(&allow(&["10.0.0.0/8"])).await;
    assert_eq!(allow(&["192.168.0.0/16"]).get(&scene.blob()).await.status, 502);

    let dialled = scene.net.dialled().len();
    scene.net.host("cdn.test", "169.254.169.254", &scene.registry);
    let larder = allow(&["0.0.0.0/0", "::/0"]);
    assert_eq!(larder.get(&scene.blob()).await.status, 502);
    assert!(larder.metric(BLOCKED_METADATA) >= 1.0);
    assert!(scene.net.dialled()[dialled..].iter().all(|dialled| dialled.ip().to_string() == HUB));
}

/// Also: upstream_fault_11
#[tokio::test]
async fn invariant_17_what_dns_says_is_judged_at_every_connection() {
    let scene = Hub::with_2000_bytes();
    scene.net.host("cdn.test", CDN, &scene.registry);
    scene.net.serve("10.0.0.5:80", &scene.registry);
    scene.registry.redirect_blobs("http://cdn.test");
    // Of two addresses, the public one alone; later the name turns.
    scene.net.dns("cdn.test", [Dns::addresses(&["10.0.0.5", CDN]), Dns::addresses(&["10.0.0.5"])]);
    let larder = Setup::new(&scene.net).start();
    assert_eq!(larder.get(&scene.blob()).await.bytes(), &scene.image.layers[0].bytes);
    let config = scene.image.config.clone().unwrap();
    scene.net.down(CDN);
    let reply = larder.get(&format!("/v2/library/app/blobs/{}", config.digest)).await;
    assert_eq!(reply.status, 502);
    assert_eq!((scene.net.dials("10.0.0.5:80"), scene.net.dials(&format!("{CDN}:80"))), (0, 1));
}

#[tokio::test]
async fn invariant_17_a_token_server_inside_is_not_asked_unless_it_is_the_registry_s_own() {
    let scene = Hub::with_2000_bytes();
    scene.net.host("auth.test", "10.0.0.7", &scene.registry);
    scene.registry.require_bearer(Bearer::at("http://auth.test/token"));
    let larder = Setup::new(&scene.net).hub(|hub| hub.token_hosts = vec!["auth.test".into()]).start();
    assert_eq!(larder.get(LATEST).await.status, 502);
    assert_eq!(scene.net.dials("10.0.0.7:80"), 0);
    assert!(larder.metric(BLOCKED_PRIVATE) >= 1.0);
}

#[tokio::test]
async fn invariant_17_a_configured_url_may_be_private_with_all_that_is_at_its_own_origin() {
    let scene = Hub::with_2000_bytes();
    scene.net.host("hub.test", "10.1.2.3", &scene.registry);
    scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials(USER, CANARY).private("library/app"));
    scene.registry.redirect_blobs("http://hub.test");
    let larder = scene.signed_in().start();
    scene.pull_by_head_and_get(&larder).await;
    assert_eq!(larder.metric(BLOCKED_PRIVATE), 0.0);
    // A connection that was made to it is not used for anybody else's redirect there by number.
    scene.registry.redirect_blobs("http://10.1.2.3");
    let config = scene.image.config.clone().unwrap();
    assert_eq!(larder.get(&format!("/v2/library/app/blobs/{}", config.digest)).await.status, 502);
}
