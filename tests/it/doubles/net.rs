//! The network in memory resolves, refuses, swallows and breaks as told.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use larder::upstream::connect::{Connect, Stream};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::{blob_path, stocked};
use crate::support::client::Client;
use crate::support::net::{Dns, FakeNet};
use crate::support::registry::{FakeRegistry, Fault, any};

const ADDRESS: &str = "203.0.113.1";
const PORT_80: &str = "203.0.113.1:80";

async fn dial(net: &FakeNet, address: &str) -> io::Result<Box<dyn Stream>> {
    net.dial(address.parse().expect("address:port")).await
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

#[tokio::test]
async fn a_host_is_a_name_an_address_and_a_registry() {
    let (net, (registry, image)) = (FakeNet::new(), stocked());
    net.host("registry.test", ADDRESS, &registry);
    let addresses = net.resolve("registry.test").await.expect("an address");
    let stream = net.dial(SocketAddr::new(addresses[0], 80)).await.expect("a connection");
    let mut client = Client::over(stream).await;
    assert_eq!(client.get(&blob_path(&image.layers[0].digest)).send().await.bytes(), &image.layers[0].bytes);
    assert_eq!((net.dials(PORT_80), net.dials("203.0.113.1:81"), net.resolved()), (1, 0, vec!["registry.test".to_owned()]));
}

#[tokio::test(start_paused = true)]
async fn dns_fails_rebinds_and_falls_silent() {
    let net = FakeNet::new();
    net.dns(
        "rebinding.test",
        [Dns::addresses(&[ADDRESS]), Dns::addresses(&["127.0.0.1", "::1"]), Dns::NotFound, Dns::TryAgain, Dns::Silent],
    );
    assert_eq!(net.resolve("rebinding.test").await.expect("an address"), [ip(ADDRESS)]);
    assert_eq!(net.resolve("rebinding.test").await.expect("addresses"), [ip("127.0.0.1"), ip("::1")]);
    assert!(net.resolve("rebinding.test").await.is_err_and(|error| error.to_string().contains("not known")));
    assert!(net.resolve("rebinding.test").await.is_err_and(|error| error.to_string().contains("Temporary")));
    for _ in 0..2 {
        assert!(timeout(Duration::from_secs(3600), net.resolve("rebinding.test")).await.is_err());
    }
    assert!(net.resolve("unheard-of.test").await.is_err());
    assert_eq!(net.resolve("192.0.2.7").await.expect("itself"), [ip("192.0.2.7")]);
    assert_eq!(net.resolve("::1").await.expect("itself"), [ip("::1")]);
}

#[tokio::test(start_paused = true)]
async fn ports_refuse_swallow_or_keep_silent() {
    let net = FakeNet::new();
    assert!(dial(&net, PORT_80).await.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused));
    net.black_hole(PORT_80);
    assert!(timeout(Duration::from_secs(3600), dial(&net, PORT_80)).await.is_err());
    net.mute(PORT_80);
    let mut stream = dial(&net, PORT_80).await.expect("a connection");
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.expect("room");
    assert!(timeout(Duration::from_secs(3600), stream.read_u8()).await.is_err());
    net.close(PORT_80);
    assert!(dial(&net, PORT_80).await.is_err());
    net.serve(PORT_80, &FakeRegistry::new());
    net.latency(Duration::from_secs(2));
    let start = Instant::now();
    dial(&net, PORT_80).await.expect("a connection");
    assert_eq!((start.elapsed().as_secs(), net.dials(PORT_80)), (2, 5));
}

#[tokio::test]
async fn a_host_goes_down_and_comes_back() {
    let (net, (registry, image)) = (FakeNet::new(), stocked());
    net.host("registry.test", ADDRESS, &registry);
    let mut client = Client::over(dial(&net, PORT_80).await.expect("a connection")).await;
    let path = blob_path(&image.layers[0].digest);
    let mut streaming = client.open(&path).await;
    streaming.read_exactly(1).await.expect("a byte");
    net.down("registry.test");
    assert!(streaming.read_to_end().await.is_err());
    assert!(dial(&net, PORT_80).await.is_err());
    net.up("registry.test");
    let mut client = Client::over(dial(&net, PORT_80).await.expect("a connection")).await;
    assert_eq!(client.get(&path).send().await.status, 200);
    net.wait_for_dials(PORT_80, 3).await;
}

#[tokio::test]
async fn raw_bytes_and_a_test_s_own_server() {
    let net = FakeNet::new();
    net.raw(PORT_80, "HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab");
    let stream = dial(&net, PORT_80).await.expect("a connection");
    assert!(Client::over(stream).await.get("/").try_send().await.is_err());
    let mut connections = net.listen(PORT_80);
    let mut near = dial(&net, PORT_80).await.expect("a connection");
    let mut far = connections.recv().await.expect("its other end");
    near.write_all(b"x").await.expect("room");
    assert_eq!(far.read_u8().await.expect("a byte"), b'x');
}

/// A TLS client that trusts only these certificates.
async fn connect_tls(net: &FakeNet, pem: &str, name: &'static str) -> io::Result<Client> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("a certificate")).expect("an authority");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("protocol versions");
    let config = builder.with_root_certificates(roots).with_no_client_auth();
    let stream = dial(net, "203.0.113.1:443").await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    Ok(Client::over(connector.connect(ServerName::try_from(name).expect("a name"), stream).await?).await)
}

#[tokio::test]
async fn tls_has_a_certificate_for_the_name_from_the_network_s_authority() {
    let (net, (registry, image)) = (FakeNet::new(), stocked());
    net.tls_host("registry.test", ADDRESS, &registry);
    let mut client = connect_tls(&net, &net.ca_pem(), "registry.test").await.expect("a trusted connection");
    let path = blob_path(&image.layers[0].digest);
    assert_eq!(client.get(&path).send().await.bytes(), &image.layers[0].bytes);
    registry.when(any()).then(Fault::CutAt(100_000));
    assert_eq!(client.get(&path).send().await.body.expect_err("a broken body").received, image.layers[0].bytes[..100_000]);
    assert!(connect_tls(&net, &net.ca_pem(), "other.test").await.is_err());
    assert!(connect_tls(&net, &FakeNet::new().ca_pem(), "registry.test").await.is_err());
}
