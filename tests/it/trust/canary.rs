//! The real binary at its most talkative: whatever a library of ours logs, it logs no secret.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpStream;

use super::{CANARY, CDN, HUB, USER};
use crate::support::client::{Client, Reply};
use crate::support::net::FakeNet;
use crate::support::registry::{Bearer, FakeRegistry, any};

/// A child process that ends with its test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn larder(arguments: &[&str], config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).arg("--config").arg(config).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_lowercase();
        if text.starts_with("larder_") || text.ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command
}

async fn get(address: SocketAddr, path: &str) -> Reply {
    Client::over(TcpStream::connect(address).await.unwrap()).await.get(path).send().await
}

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
    let free = || std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (address, admin) = (free(), free());
    let directory = tempfile::tempdir().unwrap();
    let (config, log) = (directory.path().join("larder.yaml"), directory.path().join("log"));
    let (ca_file, client_cert_file) = (directory.path().join("ca.pem"), directory.path().join("client.pem"));
    let (certificate, pem) = net.client_certificate("larder");
    std::fs::write(&ca_file, net.ca_pem()).unwrap();
    std::fs::write(&client_cert_file, &pem).unwrap();
    let text = format!(
        "server: {{listen: '{address}'}}\nadmin: {{listen: '{admin}'}}\ncache: {{path: '{}', max_size: 1GiB}}\n\
         upstreams:\n  docker.io:\n    url: https://hub.test\n    visibility: private\n    proxy: http://proxy-user:{CANARY}@{proxy}\n    \
         ca_file: {}\n    client_cert_file: {}\n    \
         credentials: {{username: {USER}, password: {CANARY}}}\nlog: {{level: trace}}\n",
        directory.path().join("cache").display(),
        ca_file.display(),
        client_cert_file.display(),
    );
    std::fs::write(&config, text).unwrap();
    let out = std::fs::File::create(&log).unwrap();
    let daemon = larder(&["serve"], &config).stdout(out.try_clone().unwrap()).stderr(out).spawn().unwrap();
    let daemon = Running(daemon);
    let listening = async {
        while TcpStream::connect(address).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), listening).await.expect("a daemon");
    let mut told = String::new();
    let blob = format!("/v2/library/app/blobs/{}", image.layers[0].digest);
    for (path, status) in [("/v2/library/app/manifests/latest", 200), (blob.as_str(), 200), ("/v2/library/none/manifests/latest", 404)] {
        let reply = get(address, path).await;
        assert_eq!(reply.status, status, "{path}: {}", std::fs::read_to_string(&log).unwrap());
        told += &format!("{:?}{}", reply.headers, String::from_utf8_lossy(reply.bytes()));
    }
    told += get(admin, "/metrics").await.text();
    assert!(registry.requests().iter().all(|request| request.header("proxy-authorization").is_none()) && !fake_proxy.heads().is_empty());
    assert_eq!(net.client_certificates(&format!("{HUB}:443"))[0], Some(certificate));
    assert!(registry.count(any().signed()) > 0 && registry.token_requests() > 0);
    drop(daemon);
    let printed = larder(&["check-config", "--print"], &config).output().unwrap();
    told += &String::from_utf8_lossy(&[printed.stdout, printed.stderr].concat());
    let logged = std::fs::read_to_string(&log).unwrap();
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
