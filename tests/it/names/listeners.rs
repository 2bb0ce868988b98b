//! Listeners with an upstream of their own: what names no registry means another one by each door.

use std::sync::Arc;

use larder::config::Listener;
use larder::log::{AccessLog, LogWriter};
use larder::metrics::Metrics;
use larder::server::{Limits, Server};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::client::Client;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::net::FakeNet;
use crate::support::registry::FakeRegistry;
use crate::trust::Lines;

/// `docker.io` is the global default, `ghcr.test` the second listener's; `corp.test` has a `Host`. Each has another `team/app:1`.
struct Scene {
    setup: Setup,
    hub: String,
    ghcr: String,
    corp: String,
}

impl Scene {
    fn new(second: &str) -> Scene {
        let net = FakeNet::new();
        let mut digests = Vec::new();
        for (seed, (host, address)) in
            [("hub.test", "93.184.216.34"), ("ghcr.host", "93.184.216.35"), ("corp.host", "93.184.216.36")].into_iter().enumerate()
        {
            let registry = FakeRegistry::new();
            net.host(host, address, &registry);
            digests.push(registry.push_image("team/app", "1", &[100], seed as u64).digest.to_string());
        }
        let mut setup = Setup::new(&net).upstream(upstream("ghcr.test", "ghcr.host")).upstream(upstream("corp.test", "corp.host"));
        setup.config.server.hosts.insert("corp.mirror".into(), "corp.test".into());
        let second = Listener { address: second.parse().unwrap(), default_upstream: Some("ghcr.test".into()) };
        setup.config.server.listen.push(second);
        let [hub, ghcr, corp] = digests.try_into().unwrap();
        Scene { setup, hub, ghcr, corp }
    }
}

/// The digest of what `path` means by way of a listener.
async fn digest(larder: &Larder, entry: usize, path: &str, host: &str) -> String {
    let mut client = Client::over(larder.connect_to(entry)).await;
    let reply = client.get(path).host(host).send().await;
    assert_eq!(reply.status, 200, "{path}");
    reply.header("docker-content-digest").unwrap().to_owned()
}

#[tokio::test]
async fn a_listener_s_own_default_upstream_is_for_what_names_none() {
    let Scene { setup, hub, ghcr, corp } = Scene::new("127.0.0.1:0");
    let larder = setup.start();
    let path = "/v2/team/app/manifests/1";
    assert_eq!(digest(&larder, 0, path, "mirror").await, hub);
    assert_eq!(digest(&larder, 1, path, "mirror").await, ghcr);
    for entry in [0, 1] {
        assert_eq!(digest(&larder, entry, path, "corp.mirror").await, corp, "a Host comes before");
        assert_eq!(digest(&larder, entry, &format!("{path}?ns=docker.io"), "corp.mirror").await, hub, "and ns before that");
        assert_eq!(digest(&larder, entry, "/ghcr.test/v2/team/app/manifests/1", "mirror").await, ghcr);
        assert_eq!(digest(&larder, entry, "/v2/corp.test/team/app/manifests/1", "mirror").await, corp);
    }
}

#[tokio::test]
async fn a_listener_on_every_address_is_known_by_its_place_and_not_by_what_was_dialled() {
    let Scene { setup, hub, ghcr, .. } = Scene::new("0.0.0.0:0");
    let addresses: Vec<_> = setup.config.server.listen.iter().map(|listener| listener.address).collect();
    let clients = Server::bind(&addresses).unwrap();
    let operators = Server::bind(&["127.0.0.1:0".parse().unwrap()]).unwrap();
    let ports: Vec<u16> = clients.addresses().iter().map(|address| address.port()).collect();
    let stop = CancellationToken::new();
    let limits = Limits::new(16, std::time::Duration::from_secs(5));
    let (lines, metrics) = (Lines::default(), Metrics::new([""; 0]));
    let (writer, flush) = LogWriter::start(lines.clone(), metrics.log_lines_dropped.clone()).unwrap();
    let mut app = Arc::into_inner(setup.start().app).unwrap();
    Arc::get_mut(&mut app.handler).unwrap().log = Some(AccessLog::new(writer, false));
    let running = tokio::spawn(app.run(clients, operators, limits, stop.clone()));
    let dialled: Vec<_> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    for (port, expected) in ports.into_iter().zip([hub, ghcr]) {
        let mut client = Client::over(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
        let reply = client.get("/v2/team/app/manifests/1").send().await;
        assert_eq!(reply.header("docker-content-digest"), Some(expected.as_str()), "port {port}");
    }
    stop.cancel();
    running.await.unwrap();
    drop(flush);
    let text = lines.text();
    let logged: Vec<_> = text.lines().filter_map(|line| line.split(' ').find_map(|field| field.strip_prefix("listener="))).collect();
    assert_eq!(logged, dialled, "{text}");
}

#[test]
#[should_panic(expected = "no larder: the configuration names an upstream that it does not describe")]
fn a_listener_cannot_mean_an_upstream_that_is_not_there() {
    let Scene { mut setup, .. } = Scene::new("127.0.0.1:0");
    setup.config.server.listen[1].default_upstream = Some("nowhere.test".into());
    setup.start();
}
