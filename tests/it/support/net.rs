//! A network in memory: names, addresses, and what answers at them. It is larder's `Connect`.
//!
//! ```ignore
//! let net = FakeNet::new();
//! net.host("registry.test", "203.0.113.1", &registry);   // DNS, and port 80
//! net.down("registry.test");
//! ```

mod certificate;
mod endpoint;
mod forgetful;
mod proxy;
pub mod script;

use parking_lot::{Mutex, MutexGuard};
use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use larder::config::UpstreamConfig;
use larder::upstream::connect::{BoxFuture, Connect, Stream};
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::registry::PIPE_BYTES;
use certificate::Authority;
pub use endpoint::Host;
use endpoint::{Endpoint, Shown};
use forgetful::{Forgetful, Forgotten};
pub use proxy::FakeProxy;

/// What DNS says of a name.
#[derive(Clone, Debug)]
pub enum Dns {
    Addresses(Vec<IpAddr>),
    /// NXDOMAIN, as getaddrinfo reports it.
    NotFound,
    /// SERVFAIL.
    TryAgain,
    /// The addresses, after so long.
    Late(Duration, Vec<IpAddr>),
    /// No answer, for ever.
    Silent,
}

impl Dns {
    pub fn addresses(texts: &[&str]) -> Dns {
        Dns::Addresses(texts.iter().map(|text| text.parse().expect("an IP address")).collect())
    }

    pub fn late(after: Duration, text: &str) -> Dns {
        Dns::Late(after, vec![text.parse().expect("an IP address")])
    }
}

/// A network; clones are the same network.
#[derive(Clone, Default)]
pub struct FakeNet {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    dialled: watch::Sender<usize>,
    directory: OnceLock<TempDir>,
}

impl Shared {
    fn directory(&self) -> &Path {
        self.directory.get_or_init(|| tempfile::tempdir().expect("a directory")).path()
    }
}

#[derive(Default)]
struct State {
    /// What is left of each name's answers; the last one stays.
    names: HashMap<String, VecDeque<Dns>>,
    endpoints: HashMap<SocketAddr, Endpoint>,
    /// At every address that has no endpoint of its own.
    elsewhere: Option<Endpoint>,
    /// Dropped to cut what is open to an address.
    cuts: HashMap<IpAddr, watch::Sender<()>>,
    /// Whether the way to an address has forgotten the connections of today.
    forgotten: HashMap<IpAddr, Forgotten>,
    down: HashSet<IpAddr>,
    latency: Duration,
    resolutions: Vec<String>,
    dials: Vec<SocketAddr>,
    open: HashMap<SocketAddr, Open>,
    authority: Option<Authority>,
    shown: HashMap<SocketAddr, Shown>,
}

/// Connections to one address and port.
#[derive(Clone, Copy, Default)]
struct Open {
    now: usize,
    most: usize,
}

/// A connection that counts as open until its far end ends.
struct Counted {
    net: FakeNet,
    address: SocketAddr,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.net.state().open.entry(self.address).or_default().now -= 1;
    }
}

/// How a test lays out its network.
impl FakeNet {
    pub fn new() -> FakeNet {
        FakeNet::default()
    }

    /// A name, its address, and a registry at port 80 there.
    pub fn host(&self, name: &str, address: &str, host: impl Into<Host>) {
        self.name(name, &[address]);
        self.serve(&socket(address, 80), host);
    }

    /// A name, its address, and a registry at port 443 there, with a certificate for the name from the network's authority.
    pub fn tls_host(&self, name: &str, address: &str, host: impl Into<Host>) {
        self.name(name, &[address]);
        self.serve_tls(&socket(address, 443), host, name);
    }

    pub fn name(&self, name: &str, addresses: &[&str]) {
        self.dns(name, [Dns::addresses(addresses)]);
    }

    /// DNS answers one after the other; the last one stays.
    pub fn dns(&self, name: &str, answers: impl IntoIterator<Item = Dns>) {
        self.state().names.insert(name.into(), answers.into_iter().collect());
    }

    pub fn serve(&self, address: &str, host: impl Into<Host>) {
        self.put(address, Endpoint::Plain(host.into()));
    }

    pub fn serve_tls(&self, address: &str, host: impl Into<Host>, certificate_name: &str) {
        let acceptor = self.authority(|authority| authority.acceptor(certificate_name));
        self.put_tls(address, host.into(), acceptor);
    }

    /// With a certificate that nobody vouches for.
    pub fn serve_tls_as_stranger(&self, address: &str, host: impl Into<Host>, certificate_name: &str) {
        let acceptor = self.authority(|authority| authority.stranger(certificate_name));
        self.put_tls(address, host.into(), acceptor);
    }

    /// With somebody's certificate, but not its key.
    pub fn serve_tls_as_impostor(&self, address: &str, host: impl Into<Host>, certificate_name: &str) {
        let acceptor = self.authority(|authority| authority.impostor(certificate_name));
        self.put_tls(address, host.into(), acceptor);
    }

    /// A client certificate, and it and its key in PEM.
    pub fn client_certificate(&self, name: &str) -> (Vec<u8>, String) {
        self.authority(|authority| authority.client(name))
    }

    /// A proxy, by name, address and port.
    pub fn proxy(&self, name: &str, address: &str, port: u16) -> FakeProxy {
        self.name(name, &[address]);
        let proxy = FakeProxy::new(self);
        self.put(&socket(address, port), Endpoint::Proxy(proxy.clone()));
        proxy
    }

    /// The certificate of the authority that signed every TLS host's.
    pub fn ca_pem(&self) -> String {
        self.authority(Authority::pem)
    }

    /// The same in a file, for `ca_file`.
    pub fn ca_file(&self) -> PathBuf {
        self.file("ca.pem", &self.ca_pem())
    }

    /// A file of this name in a directory that goes with the network.
    pub fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.shared.directory().join(name);
        std::fs::write(&path, content).expect("a file");
        path
    }

    /// The upstream is asked by TLS, on the word of the network's authority.
    pub fn over_tls(&self, upstream: &mut UpstreamConfig) {
        (upstream.urls[0].tls, upstream.urls[0].port) = (true, 443);
        upstream.ca_file = Some(self.ca_file());
    }

    /// Nobody answers a connection attempt there, not even with a refusal.
    pub fn black_hole(&self, address: &str) {
        self.put(address, Endpoint::BlackHole);
    }

    /// Connections are accepted, and nothing is ever said.
    pub fn mute(&self, address: &str) {
        self.put(address, Endpoint::Mute);
    }

    /// Answers the first bytes of a request with these bytes, whatever they are, and closes.
    pub fn raw(&self, address: &str, bytes: impl Into<Bytes>) {
        self.put(address, Endpoint::Raw(bytes.into()));
    }

    /// Hands the far ends of connections to the test.
    pub fn listen(&self, address: &str) -> mpsc::Receiver<DuplexStream> {
        let (sender, receiver) = mpsc::channel(16);
        self.put(address, Endpoint::Test(sender));
        receiver
    }

    /// Answers at every address of which nothing else was said.
    pub fn serve_elsewhere(&self, host: impl Into<Host>) {
        self.state().elsewhere = Some(Endpoint::Plain(host.into()));
    }

    /// Connections are refused, as at every address of which nothing was said.
    pub fn close(&self, address: &str) {
        self.state().endpoints.remove(&address.parse().expect("address:port"));
    }

    /// Every dial takes so long.
    pub fn latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// A host's open connections break, and new ones are refused until it is [`FakeNet::up`]. Takes a name or an address.
    pub fn down(&self, host: &str) {
        let addresses = self.addresses_of(host);
        let mut state = self.state();
        state.down.extend(&addresses);
        addresses.iter().filter_map(|address| state.cuts.remove(address)).for_each(drop);
    }

    pub fn up(&self, host: &str) {
        let addresses = self.addresses_of(host);
        self.state().down.retain(|address| !addresses.contains(address));
    }

    /// A NAT on the way restarts: the host's open connections are black holes from now on, and new ones work.
    pub fn forget(&self, host: &str) {
        let addresses = self.addresses_of(host);
        let mut state = self.state();
        addresses.iter().filter_map(|address| state.forgotten.remove(address)).for_each(|forgotten| forgotten.set());
    }

    fn addresses_of(&self, host: &str) -> Vec<IpAddr> {
        if let Ok(address) = host.parse() {
            return vec![address];
        }
        match self.state().names.get(host).and_then(VecDeque::front) {
            Some(Dns::Addresses(addresses)) => addresses.clone(),
            _ => panic!("{host} has no addresses"),
        }
    }

    fn authority<T>(&self, use_it: impl FnOnce(&Authority) -> T) -> T {
        use_it(self.state().authority.get_or_insert_with(Authority::new))
    }

    fn put_tls(&self, address: &str, host: Host, acceptor: TlsAcceptor) {
        let shown = Arc::clone(self.state().shown.entry(address.parse().expect("address:port")).or_default());
        self.put(address, Endpoint::Tls(host, acceptor, shown));
    }

    fn put(&self, address: &str, endpoint: Endpoint) {
        self.state().endpoints.insert(address.parse().expect("address:port"), endpoint);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }
}

/// What a test holds against larder afterwards.
impl FakeNet {
    /// Connection attempts to one address and port.
    pub fn dials(&self, address: &str) -> usize {
        let address: SocketAddr = address.parse().expect("address:port");
        self.dialled().iter().filter(|dialled| **dialled == address).count()
    }

    /// The most connections to one address and port that were open at a time.
    pub fn most_open(&self, address: &str) -> usize {
        let address: SocketAddr = address.parse().expect("address:port");
        self.state().open.get(&address).map_or(0, |open| open.most)
    }

    /// All connection attempts, in order.
    pub fn dialled(&self) -> Vec<SocketAddr> {
        self.state().dials.clone()
    }

    /// The client certificates of the TLS connections to one address and port, in order.
    pub fn client_certificates(&self, address: &str) -> Vec<Option<Vec<u8>>> {
        let shown = self.state().shown.get(&address.parse().expect("address:port")).cloned().unwrap_or_default();
        let shown = shown.lock();
        shown.clone()
    }

    /// All names looked up, in order.
    pub fn resolved(&self) -> Vec<String> {
        self.state().resolutions.clone()
    }

    /// Returns once `n` connections to an address were attempted. Panics after a minute of tokio's time.
    pub async fn wait_for_dials(&self, address: &str, n: usize) {
        let mut dialled = self.shared.dialled.subscribe();
        let enough = dialled.wait_for(|_| self.dials(address) >= n);
        if tokio::time::timeout(Duration::from_secs(60), enough).await.is_err() {
            panic!("waited for {n} dials to {address}; came: {:?}", self.dialled());
        }
    }
}

impl Connect for FakeNet {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let answer = self.look_up(host);
        Box::pin(async move {
            match answer {
                Dns::Addresses(addresses) => Ok(addresses),
                Dns::NotFound => Err(io::Error::other("failed to lookup address information: Name or service not known")),
                Dns::TryAgain => Err(io::Error::other("failed to lookup address information: Temporary failure in name resolution")),
                Dns::Late(after, addresses) => {
                    tokio::time::sleep(after).await;
                    Ok(addresses)
                }
                Dns::Silent => std::future::pending().await,
            }
        })
    }

    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let latency = self.note_dial(address);
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            match self.endpoint(address) {
                None => Err(io::ErrorKind::ConnectionRefused.into()),
                Some((Endpoint::BlackHole, _)) => std::future::pending().await,
                Some((endpoint, cut)) => {
                    let (near, far) = tokio::io::duplex(PIPE_BYTES);
                    let counted = self.count(address);
                    tokio::spawn(async move {
                        let _counted = counted;
                        Box::pin(endpoint.run(far, cut)).await;
                    });
                    let forgotten = self.state().forgotten.entry(address.ip()).or_default().clone();
                    Ok(Box::new(Forgetful::new(near, forgotten)) as Box<dyn Stream>)
                }
            }
        })
    }
}

impl FakeNet {
    fn look_up(&self, host: &str) -> Dns {
        let mut state = self.state();
        state.resolutions.push(host.into());
        if let Ok(address) = host.trim_matches(['[', ']']).parse() {
            return Dns::Addresses(vec![address]);
        }
        let Some(answers) = state.names.get_mut(host) else {
            return Dns::NotFound;
        };
        let next = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
        next.unwrap_or(Dns::NotFound)
    }

    fn note_dial(&self, address: SocketAddr) -> Duration {
        let mut state = self.state();
        state.dials.push(address);
        let (count, latency) = (state.dials.len(), state.latency);
        drop(state);
        self.shared.dialled.send_replace(count);
        latency
    }

    fn count(&self, address: SocketAddr) -> Counted {
        let mut state = self.state();
        let open = state.open.entry(address).or_default();
        open.now += 1;
        open.most = open.most.max(open.now);
        Counted { net: self.clone(), address }
    }

    /// What answers there now, and what tells that the host went down.
    fn endpoint(&self, address: SocketAddr) -> Option<(Endpoint, watch::Receiver<()>)> {
        let mut state = self.state();
        let endpoint = state.endpoints.get(&address).or(state.elsewhere.as_ref()).filter(|_| !state.down.contains(&address.ip()))?.clone();
        let cut = state.cuts.entry(address.ip()).or_default().subscribe();
        Some((endpoint, cut))
    }
}

fn socket(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().expect("an IP address"), port).to_string()
}
