//! The edge over real sockets: how connections are taken, limited, drained and broken off.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail as its checks do")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use larder::metrics::Metrics;
use larder::server::admin::Admin;
use larder::server::connection::Peer;
use larder::server::{Limits, Server, raise_file_limit};
use larder::shutdown::Readiness;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::support::daemon::hold_port;

/// Nothing here should take so long; a test that hangs says where.
const PATIENCE: Duration = Duration::from_secs(20);
const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

struct Edge {
    address: SocketAddr,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    /// Lets the requests for `/wait` be answered.
    release: watch::Sender<bool>,
    /// One message for each request that came.
    arrived: mpsc::Receiver<()>,
    served: JoinHandle<usize>,
}

impl Edge {
    fn start(limits: impl FnOnce(&mut Limits)) -> Edge {
        let mut all = Limits::new(16, PATIENCE);
        limits(&mut all);
        let server = Server::bind(&[LOOPBACK]).unwrap();
        let address = server.addresses()[0];
        let (metrics, stop) = (Arc::new(Metrics::new(["docker.io"])), CancellationToken::new());
        let (release, released) = watch::channel(false);
        let (arrival, arrived) = mpsc::channel(16);
        let handler = move |peer: Peer, request: Request<()>| {
            let (mut released, arrival) = (released.clone(), arrival.clone());
            async move {
                assert_eq!(peer.listener, address);
                arrival.send(()).await.unwrap();
                let body = match request.uri().path() {
                    "/panic" => panic!("as asked"),
                    "/wait" => released.wait_for(|released| *released).await.map(|_| Bytes::from_static(b"waited")).unwrap(),
                    "/large" => Bytes::from(vec![0; 32 << 20]),
                    _ => Bytes::from_static(b"answer"),
                };
                Response::new(Full::new(body))
            }
        };
        let served = tokio::spawn(server.run(handler, all, Arc::clone(&metrics), stop.clone()));
        Edge { address, metrics, stop, release, arrived, served }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Asks on a connection of its own, to be closed after the answer.
    async fn ask(&self, path: &str) -> String {
        let mut client = self.connect().await;
        send(&mut client, path).await;
        rest(&mut client).await
    }

    /// What the server did until every connection was gone: the number it broke off.
    async fn finish(self) -> usize {
        self.stop.cancel();
        let left = timeout(PATIENCE, self.served).await.unwrap().unwrap();
        assert_eq!(self.metrics.connections.get(), 0);
        left
    }
}

async fn send(client: &mut TcpStream, path: &str) {
    client.write_all(format!("GET {path} HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n").as_bytes()).await.unwrap();
}

/// Everything until the connection ends, gently or not.
async fn rest(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = timeout(PATIENCE, client.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn connections_beyond_the_limit_are_closed_at_once() {
    let mut edge = Edge::start(|limits| limits.max_connections = 1);
    let mut first = edge.connect().await;
    send(&mut first, "/wait").await;
    edge.arrived.recv().await.unwrap();

    assert_eq!(rest(&mut edge.connect().await).await, "");
    assert!(edge.metrics.encode().contains("larder_connections_rejected_total{reason=\"limit\"} 1\n"));
    assert_eq!(edge.metrics.connections.get(), 1);

    edge.release.send(true).unwrap();
    assert!(rest(&mut first).await.ends_with("waited"));
    assert_eq!(edge.finish().await, 0);
}

#[tokio::test]
async fn a_panic_costs_one_connection_and_is_counted() {
    let edge = Edge::start(|_| ());
    assert_eq!(edge.ask("/panic").await, "");
    assert!(edge.ask("/").await.ends_with("answer"));
    assert_eq!(edge.metrics.task_panics.get(), 1);
    assert_eq!(edge.finish().await, 0);
}

#[tokio::test]
async fn a_drain_waits_for_what_is_under_way_and_takes_no_more() {
    let mut edge = Edge::start(|_| ());
    let (mut busy, mut silent) = (edge.connect().await, edge.connect().await);
    send(&mut busy, "/wait").await;
    edge.arrived.recv().await.unwrap();

    edge.stop.cancel();
    assert_eq!(rest(&mut silent).await, "");
    // The port closes with the accept loop; a client that is told so by a refusal goes elsewhere.
    while TcpStream::connect(edge.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    assert!(!edge.served.is_finished());
    edge.release.send(true).unwrap();
    assert!(rest(&mut busy).await.ends_with("waited"));
    assert_eq!(edge.finish().await, 0);
}

#[tokio::test]
async fn a_drain_ends_in_time() {
    let mut edge = Edge::start(|limits| limits.drain_timeout = Duration::from_millis(50));
    let mut busy = edge.connect().await;
    send(&mut busy, "/wait").await;
    edge.arrived.recv().await.unwrap();
    assert_eq!(edge.finish().await, 1);
    assert_eq!(rest(&mut busy).await, "");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_let_go() {
    let mut edge = Edge::start(|limits| limits.write_stall = Duration::from_millis(200));
    let mut client = edge.connect().await;
    send(&mut client, "/large").await;
    edge.arrived.recv().await.unwrap();
    let gone = async {
        while edge.metrics.connections.get() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.unwrap();
    assert!(rest(&mut client).await.len() < 32 << 20);
    assert_eq!(edge.finish().await, 0);
}

#[tokio::test]
async fn a_silent_client_is_let_go() {
    let edge = Edge::start(|limits| limits.head_timeout = Duration::from_millis(100));
    assert_eq!(rest(&mut edge.connect().await).await, "");
    assert_eq!(edge.finish().await, 0);
}

#[tokio::test]
async fn an_address_in_use_is_named_with_its_remedy() {
    let taken = Server::bind(&[LOOPBACK]).unwrap();
    let address = taken.addresses()[0];
    let error = Server::bind(&[LOOPBACK, address]).err().unwrap();
    assert_eq!(error.address, address);
    let text = error.to_string();
    assert!(text.contains(&address.to_string()) && text.contains("another process has the port"), "{text}");
}

#[tokio::test]
async fn both_families_can_share_a_port() {
    // Some machines have no IPv6; there is nothing to share then.
    let Ok((_held, first)) = hold_port("[::]:0") else { return };
    let port = first.port();
    let both = [SocketAddr::from(([0, 0, 0, 0], port)), SocketAddr::from(([0u16; 8], port))];
    assert_eq!(Server::bind(&both).unwrap().addresses(), both);
}

#[tokio::test]
async fn the_admin_port_outlives_the_stop() {
    let stop = CancellationToken::new();
    let metrics = Arc::new(Metrics::new(["docker.io"]));
    let admin = Admin { metrics: Arc::clone(&metrics), readiness: Readiness::starting(stop.clone()), degraded: Arc::new(|| None) };
    admin.readiness.ready();
    let server = Server::bind(&[LOOPBACK]).unwrap();
    let address = server.addresses()[0];
    let end = CancellationToken::new();
    let handler = move |_: Peer, request: Request<()>| {
        let response = admin.answer(&request).map(Full::new);
        async { response }
    };
    let served = tokio::spawn(server.run(handler, Limits::new(16, PATIENCE), metrics, end.clone()));

    for (path, status) in [("/readyz", "200 OK"), ("/metrics", "200 OK"), ("/v2/", "404 Not Found")] {
        let mut client = TcpStream::connect(address).await.unwrap();
        send(&mut client, path).await;
        let answer = rest(&mut client).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{answer}");
    }
    stop.cancel();
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"HEAD /readyz HTTP/1.1\r\nHost: larder\r\nConnection: close\r\n\r\n").await.unwrap();
    let answer = rest(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("content-length: 9\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    end.cancel();
    assert_eq!(timeout(PATIENCE, served).await.unwrap().unwrap(), 0);
}

#[test]
fn the_file_limit_is_raised_as_far_as_it_goes() {
    let raised = raise_file_limit().unwrap();
    assert_eq!(rustix::process::getrlimit(rustix::process::Resource::Nofile).current, raised);
}
