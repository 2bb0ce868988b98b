//! The real binary at its most talkative: whatever a library of ours logs, it logs no secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::{CANARY, CDN, HUB, USER};
use crate::support::daemon::{Daemon, command};
use crate::support::net::FakeNet;
use crate::support::registry::{Bearer, FakeRegistry, any};

/// Also: registry_33, credential_11
#[tokio::test]
async fn invariant_16_the_daemon_at_trace_level_tells_no_secret() {
    let (net, registry) = (FakeNet::new(), FakeRegistry::new());
    for (name, address) in [("hub.test", HUB), ("cdn.test", CDN)] {
        net.tls_host(name, address, &registry);
    }
    let image = registry.push_image("library/app", "latest", &[100_000], 1);
    registry.require_bearer(Bearer::at("https://hub.test/token").credentials(USER, CANARY).credentials_required());
    registry.redirect_blobs("https://cdn.test");
    let proxied = format!("Basic {}", STANDARD.encode(format!("proxy-user:{CANARY}")));
    let fake_proxy = net.proxy("proxy.test", "10.9.9.9", 3128);
    fake_proxy.require(&proxied);
    let proxy = fake_proxy.listen_tcp().await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, pem) = net.client_certificate("larder");
    let (ca_file, client_cert_file) = (net.ca_file(), net.file("client.pem", &pem));
    let text = format!(
        "cache: {{path: '{}', max_size: 1GiB}}\n\
         upstreams:\n  docker.io:\n    url: https://hub.test\n    visibility: private\n    proxy: http://proxy-user:{CANARY}@{proxy}\n    \
         ca_file: {}\n    client_cert_file: {}\n    \
         credentials: {{username: {USER}, password: {CANARY}}}\nlog: {{level: trace}}\n",
        directory.path().join("cache").display(),
        ca_file.display(),
        client_cert_file.display(),
    );
    let daemon = Daemon::serve(directory.path(), &text).await;
    let mut told = String::new();
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    for (path, status) in [("/v2/library/app/manifests/latest", 200), (blob.as_str(), 200), ("/v2/library/none/manifests/latest", 404)] {
        let reply = daemon.client().await.get(path).send().await;
        assert_eq!(reply.status, status, "{path}: {}", daemon.printed());
        told += &format!("{:?}{}", reply.headers, String::from_utf8_lossy(reply.bytes()));
    }
    told += daemon.admin("/metrics").await.text();
    assert!(registry.requests().iter().all(|request| request.header("proxy-authorization").is_none()) && !fake_proxy.heads().is_empty());
    assert_eq!(net.client_certificates(&format!("{HUB}:443"))[0], Some(certificate));
    assert!(registry.count(any().signed()) > 0 && registry.token_requests() > 0);
    let logged = daemon.kill();
    let printed = command(&["check-config", "--print"], &directory.path().join("larder.yaml")).output().unwrap();
    told += &String::from_utf8_lossy(&[printed.stdout, printed.stderr].concat());
    assert!(logged.contains("TRACE") && told.contains("REDACTED"), "all was heard: {logged}");
    told += &logged;
    let encoded = STANDARD.encode(format!("{USER}:{CANARY}"));
    let mut secrets = vec![CANARY, &encoded, &proxied[6..], "fake-token-", "verify=1711", "X-Amz-Expires"];
    let key = pem.split_once("-----BEGIN PRIVATE KEY-----").unwrap().1;
    secrets.extend(key.lines().filter(|line| line.len() > 30 && !line.starts_with('-')));
    assert!(secrets.len() > 7, "the key has lines");
    for secret in secrets {
        let line = told.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}
