//! What is found out about credentials, without locking an account and without costing a pull.

use larder::config::{BaseUrl, CredentialConfig, Secret, UpstreamConfig, Visibility};

use super::{Corp, one, online, says};
use crate::support::larder::upstream;
use crate::support::net::FakeNet;
use crate::support::registries::{Double, Limit, docker_hub, ghcr, gitea, gitlab, harbor, nexus, quay, registry_k8s_io};
use crate::support::registry::{Bearer, FakeRegistry, Fault, Manners, any, get, head};

const OWN: &str = "93.184.216.34";

/// Questions that showed a credential or a token.
fn signed_in(registry: &FakeRegistry) -> usize {
    registry.seen(any()).iter().filter(|request| request.authorization().is_some()).count()
}

#[tokio::test]
async fn docker_hub_s_budget_is_told_and_costs_none() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    hub.push_image("ratelimitpreview/test", "latest", &[10], 1);
    hub.script(|hub| hub.limit = Some(Limit::new(100, 21_600)));
    let text = one(&net, hub.upstream(), true).await;
    let lines = [
        "docker.io: ok",
        "url     https://registry-1.docker.io",
        "dns     34.194.164.123",
        "auth    anonymous, tokens from auth.docker.io",
        "budget  100 of 100 pulls left in 6h, counted to 203.0.113.77",
    ];
    says(&text, &lines);
    assert_eq!((hub.counted(), hub.count(get().manifest()), hub.count(head().manifest()) > 0), (0, 0, true));
    // Nothing left is no failure: what is held is served.
    hub.script(|hub| hub.limit = Some(Limit::new(0, 21_600)));
    let text = one(&net, hub.upstream(), true).await;
    says(&text, &["budget  0 of 0 pulls left in 6h, counted to 203.0.113.77"]);
    assert!(text.contains("change  wait, or write upstreams.docker.io.credentials that have a higher limit"), "{text}");
}

#[tokio::test]
async fn docker_hub_s_accounts_are_tried_one_by_one_and_a_bad_one_once() {
    let net = FakeNet::new();
    let hub = docker_hub(&net);
    hub.push_image("ratelimitpreview/test", "latest", &[10], 1);
    hub.script(|hub| hub.tokens.account("ci", "good"));
    let credential = |name: &str, password: &str| {
        let credential = CredentialConfig::password("ci", Secret::Inline(password.to_owned().into()));
        CredentialConfig { name: name.into(), ..credential }
    };
    let mut config = hub.upstream();
    config.credentials = vec![credential("one", "good"), credential("two", "canary-bad")];
    let text = one(&net, config, false).await;
    let lines = [
        "docker.io: does not work",
        "auth    credential `one` accepted, tokens from auth.docker.io",
        "change  renew the credential `two` in upstreams.docker.io.credentials",
    ];
    says(&text, &lines);
    assert!(text.contains("credential `two`: refused: ") && !text.contains("canary-bad"), "{text}");
    let tokens = hub.seen(any().token());
    assert_eq!(
        tokens.iter().filter(|request| request.authorization().is_some()).count(),
        3,
        "one question for each, and one sign-in for the bad one"
    );
}

/// Signs in to a double as nobody, as somebody and as an impostor.
async fn logins<M: Manners + 'static>(net: &FakeNet, double: &Double<M>, user: &str) {
    let (good, bad) = (double.upstream_as(user, "good"), double.upstream_as(user, "canary-bad"));
    says(&one(net, double.upstream(), true).await, &[&format!("{}: ok", double.name())]);
    let text = one(net, good, true).await;
    assert!(text.contains("auth    credential `default` accepted"), "{text}");
    double.forget_requests();
    let text = one(net, bad, false).await;
    assert!(text.contains("auth    credential `default`: refused: ") && !text.contains("canary-bad"), "{text}");
    says(&text, &[&format!("change  renew the credential `default` in upstreams.{}.credentials", double.name())]);
    assert_eq!(signed_in(double), 1, "{}: {:#?}", double.name(), double.requests());
    double.assert_clean();
}

#[tokio::test]
async fn every_registry_of_the_field_tells_a_good_login_from_a_bad_one() {
    let net = FakeNet::new();
    let (ghcr, quay, gitlab, harbor, nexus, gitea) = (ghcr(&net), quay(&net), gitlab(&net), harbor(&net), nexus(&net), gitea(&net));
    ghcr.script(|ghcr| ghcr.tokens.account("octocat", "good"));
    quay.script(|quay| quay.tokens.account("org+robot", "good"));
    gitlab.script(|gitlab| gitlab.tokens.account("deploy-token-1", "good"));
    harbor.script(|harbor| harbor.tokens.account("robot$team+ci", "good"));
    nexus.script(|nexus| nexus.tokens.account("larder", "good"));
    gitea.script(|gitea| gitea.tokens.account("owner", "good"));
    logins(&net, &ghcr, "octocat").await;
    logins(&net, &quay, "org+robot").await;
    logins(&net, &gitlab, "deploy-token-1").await;
    logins(&net, &harbor, "robot$team+ci").await;
    logins(&net, &nexus, "larder").await;
    logins(&net, &gitea, "owner").await;
}

#[tokio::test]
async fn a_registry_that_asks_for_nothing_is_well() {
    let net = FakeNet::new();
    let kubernetes = registry_k8s_io(&net);
    says(&one(&net, kubernetes.upstream(), true).await, &["registry.k8s.io: ok"]);
}

/// `corp.test` at `http://r.corp.test`, with the canary for a password.
fn corp(net: &FakeNet) -> (FakeRegistry, UpstreamConfig) {
    let registry = FakeRegistry::new();
    net.host("r.corp.test", OWN, &registry);
    let mut config = upstream("corp.test", "r.corp.test");
    config.credentials = vec![CredentialConfig::password("ci", Secret::Inline("canary-1".into()))];
    config.visibility = Visibility::Private;
    (registry, config)
}

#[tokio::test]
async fn basic_is_tried_and_a_login_that_nobody_asks_for_is_told() {
    let net = FakeNet::new();
    let (registry, config) = corp(&net);
    says(&one(&net, config.clone(), true).await, &["auth    credential `default` not asked for: /v2/ is open to anybody"]);
    registry.require_basic("ci", "canary-1");
    says(&one(&net, config.clone(), true).await, &["auth    credential `default` accepted", "tls     none: the url begins with http://"]);
    registry.require_basic("ci", "another");
    registry.forget_requests();
    let text = one(&net, config.clone(), false).await;
    says(&text, &["change  renew the credential `default` in upstreams.corp.test.credentials"]);
    assert_eq!(signed_in(&registry), 1);
    let nobody = UpstreamConfig { credentials: Vec::new(), ..config };
    let lines = [
        "auth    anonymous: refused: it wants a user name and password",
        "change  upstreams.corp.test.credentials: a login, as it shows nothing to anybody",
    ];
    says(&one(&net, nobody, false).await, &lines);
}

#[tokio::test]
async fn a_password_file_that_is_not_there_is_named() {
    let net = FakeNet::new();
    let (registry, mut config) = corp(&net);
    registry.require_basic("ci", "canary-1");
    config.credentials = vec![CredentialConfig::password("ci", Secret::File("/nowhere/password".into()))];
    let text = one(&net, config, false).await;
    assert!(text.contains("auth    credential `default`: refused: password file /nowhere/password: "), "{text}");
}

#[tokio::test]
async fn a_credential_that_one_url_refuses_is_not_tried_at_the_next() {
    let net = FakeNet::new();
    let (registry, mut config) = corp(&net);
    let second = FakeRegistry::new();
    net.host("second.corp.test", "93.184.216.35", &second);
    registry.require_basic("ci", "another");
    second.require_basic("ci", "another");
    config.urls.push(BaseUrl { host: "second.corp.test".into(), ..config.urls[0].clone() });
    let text = one(&net, config, false).await;
    says(&text, &["url     http://second.corp.test", "auth    credential `default` not tried"]);
    assert_eq!([&registry, &second].map(signed_in), [1, 0]);
}

/// `corp.test` with tokens from `auth.test`.
fn with_token_server(address: &str) -> (Corp, UpstreamConfig) {
    let scene = Corp::new();
    scene.net.tls_host("auth.test", address, &scene.registry);
    scene.registry.require_bearer(Bearer::at("https://auth.test/token").credentials("ci", "canary-1"));
    let mut config = scene.upstream();
    config.credentials = vec![CredentialConfig::password("ci", Secret::Inline("canary-1".into()))];
    (scene, config)
}

#[tokio::test]
async fn registry_18_a_token_server_that_nobody_vouches_for_is_to_be_listed() {
    let (scene, mut config) = with_token_server("93.184.216.36");
    let lines = [
        "tokens  from auth.test, which nobody vouches for: no credential was sent there",
        "auth    credential `default` not sent",
        "change  add auth.test to upstreams.corp.test.token_hosts, if it may see the credentials",
    ];
    says(&one(&scene.net, config.clone(), false).await, &lines);
    assert_eq!(scene.registry.token_requests(), 0);
    config.token_hosts = vec!["auth.test".into()];
    says(&one(&scene.net, config.clone(), true).await, &["auth    credential `default` accepted, tokens from auth.test"]);
    (config.token_hosts, config.credentials) = Default::default();
    says(&one(&scene.net, config, true).await, &["auth    anonymous, tokens from auth.test"]);
}

#[tokio::test]
async fn a_token_server_without_tls_is_nobody_s_choice() {
    let (scene, mut config) = with_token_server("93.184.216.36");
    scene.registry.require_bearer(Bearer::at("http://auth.test/token").credentials("ci", "canary-1"));
    config.token_hosts = vec!["auth.test".into()];
    let lines =
        ["tokens  from auth.test without TLS, which larder does not ask", "change  the registry must name a token server with https://"];
    says(&one(&scene.net, config.clone(), false).await, &lines);
    config.credentials.clear();
    says(&one(&scene.net, config, false).await, &lines);
    assert_eq!((scene.net.dials("93.184.216.36:80"), scene.registry.token_requests()), (0, 0));
}

#[tokio::test]
async fn a_token_server_at_a_private_address_is_to_be_allowed() {
    let (scene, mut config) = with_token_server("10.1.2.3");
    config.token_hosts = vec!["auth.test".into()];
    let lines = [
        "tokens  from auth.test, at 10.1.2.3, which is no public address: it is not asked",
        "auth    credential `default` not tried",
        "change  add 10.1.2.3 to upstreams.corp.test.allow_private_addresses, if that host is yours",
    ];
    says(&one(&scene.net, config.clone(), false).await, &lines);
    assert_eq!((scene.net.dials("10.1.2.3:443"), scene.registry.token_requests()), (0, 0));
    config.allow_private_addresses = vec!["10.1.2.3/32".parse().unwrap()];
    one(&scene.net, config.clone(), true).await;
    // The clouds' own is opened by nothing.
    scene.net.name("auth.test", &["169.254.169.254"]);
    config.allow_private_addresses = vec!["169.254.0.0/16".parse().unwrap()];
    says(&one(&scene.net, config, false).await, &["change  no key opens that; the registry must not lead there"]);
}

#[tokio::test]
async fn a_limit_is_told_with_its_end() {
    let net = FakeNet::new();
    let (registry, mut config) = corp(&net);
    config.credentials.clear();
    registry.when(any()).then(Fault::too_many_requests(90));
    says(&one(&net, config, false).await, &["answer  rate limit reached, for 1m 30s yet"]);
}

#[tokio::test]
async fn no_finding_holds_a_secret() {
    let net = FakeNet::new();
    let (registry, config) = corp(&net);
    registry.require_bearer(Bearer::at("http://r.corp.test/token?sig=canary-2").credentials("ci", "another"));
    for fault in [None, Some(Fault::status(401)), Some(Fault::status(403)), Some(Fault::status(500))] {
        if let Some(fault) = fault {
            registry.when(any()).then(fault);
            registry.when(any()).then(Fault::Header("www-authenticate", "Bearer realm=\"http://r.corp.test/token?sig=canary-2\"".into()));
            registry.when(any()).then(Fault::Header("docker-ratelimit-source", "canary-1".into()));
        }
        let checked = online(&net, [config.clone()]).await;
        let said = format!("{} {}", checked.text, checked.verdict().expect_err("it does not work"));
        assert!(!said.contains("canary") && !said.contains('\u{1b}'), "{said}");
    }
}

/// What another host says about a login that it was not shown is not about the login.
#[tokio::test]
async fn a_host_that_the_ping_is_redirected_to_says_nothing_of_the_credential() {
    for challenge in ["Basic realm=\"other\"", "Bearer realm=\"https://other.test/token\""] {
        let scene = Corp::new();
        let other = FakeRegistry::new();
        scene.net.tls_host("other.test", "93.184.216.77", &other);
        scene.registry.when(any().ping()).then(Fault::redirect(307, "https://other.test/v2/"));
        other.when(any()).then(Fault::status(401).header("www-authenticate", challenge));
        let mut config = scene.upstream();
        config.credentials = vec![CredentialConfig::password("ci", Secret::Inline("canary".to_owned().into()))];
        let text = one(&scene.net, config, false).await;
        assert!(!text.contains("renew the credential") && !text.contains("canary"), "{text}");
        assert_eq!(signed_in(&other), 0, "{challenge}");
    }
}
