//! A network of scripted HTTP peers: every request is recorded and answered by one function of it.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use crate::config::{BaseUrl, CredentialConfig, NoProxy, Patterns, Secret, UpstreamConfig, Visibility};
use crate::metrics::Metrics;
use crate::oci::{Algorithm, Digest, Reference, RepositoryName};
use crate::rng::Rng;
use crate::upstream::connect::{BoxFuture, Connect, Stream};
use crate::upstream::{Call, Questions, Upstream};

/// A request as a peer saw it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) host: String,
    pub(super) method: String,
    pub(super) target: String,
    pub(super) head: String,
    /// From 1, of the requests with this host, method and target.
    pub(super) nth: usize,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What a peer answers.
pub(super) enum Reply {
    /// Bytes, and the connection stays open.
    Raw(String),
    /// Bytes, and the connection closes.
    Cut(String),
    /// Bytes after a while.
    Late(Duration, String),
}

pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Reply::Raw(format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n{lines}\r\n{body}", body.len()))
}

/// To a HEAD: a length and no body.
pub(super) fn head(status: u16, headers: &[(&str, &str)]) -> Reply {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Reply::Raw(format!("HTTP/1.1 {status} Said\r\n{lines}\r\n"))
}

pub(super) fn redirect(to: &str) -> Reply {
    answer(307, &[("Location", to)], "")
}

/// Where nobody answers.
const DEAD: &str = "203.0.113.99";

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

pub(super) struct Net {
    script: Box<Script>,
    names: HashMap<&'static str, Vec<IpAddr>>,
    pub(super) dialled: Mutex<Vec<SocketAddr>>,
    pub(super) seen: Mutex<Vec<Seen>>,
    tls: Option<TlsAcceptor>,
    weak: std::sync::Weak<Net>,
}

impl Net {
    pub(super) fn new(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Arc<Net> {
        Net::with_tls(None, script)
    }

    pub(super) fn with_tls(tls: Option<TlsAcceptor>, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Arc<Net> {
        let names = [
            ("r.example", vec!["10.0.0.1"]),
            ("metadata.example", vec!["169.254.169.254"]),
            ("private.example", vec!["10.0.0.2"]),
            ("mixed.example", vec!["10.0.0.2", "203.0.113.1"]),
            ("dead.example", vec![DEAD]),
            ("half.example", vec![DEAD, "203.0.113.1"]),
        ];
        let parsed = |addresses: Vec<&str>| addresses.into_iter().map(|address| address.parse().expect("an address")).collect();
        let names = names.map(|(name, addresses)| (name, parsed(addresses))).into();
        Arc::new_cyclic(|weak| Net {
            script: Box::new(script),
            names,
            dialled: Mutex::default(),
            seen: Mutex::default(),
            tls,
            weak: weak.clone(),
        })
    }

    /// `<method> <host><target>` of every request, in order.
    pub(super) fn log(&self) -> Vec<String> {
        self.seen.lock().iter().map(|seen| format!("{} {}{}", seen.method, seen.host, seen.target)).collect()
    }

    pub(super) fn to(&self, host: &str) -> Vec<Seen> {
        self.seen.lock().iter().filter(|seen| seen.host == host).cloned().collect()
    }

    fn reply(&self, head: String) -> Reply {
        let mut words = head.split([' ', '\r']);
        let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let mut seen = Seen { host: String::new(), method, target, head, nth: 0 };
        seen.host = seen.header("host").unwrap_or_default().to_owned();
        let mut all = self.seen.lock();
        let same = |other: &&Seen| (&other.host, &other.method, &other.target) == (&seen.host, &seen.method, &seen.target);
        seen.nth = 1 + all.iter().filter(same).count();
        all.push(seen.clone());
        drop(all);
        (self.script)(&seen)
    }
}

async fn serve(net: Arc<Net>, mut stream: impl Stream) -> io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        match net.reply(String::from_utf8_lossy(&head).into_owned()) {
            Reply::Raw(bytes) => stream.write_all(bytes.as_bytes()).await?,
            Reply::Cut(bytes) => {
                stream.write_all(bytes.as_bytes()).await?;
                return stream.shutdown().await;
            }
            Reply::Late(wait, bytes) => {
                tokio::time::sleep(wait).await;
                stream.write_all(bytes.as_bytes()).await?;
            }
        }
    }
}

impl Connect for Net {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        let public = || vec!["203.0.113.1".parse().expect("an address")];
        let addresses = self.names.get(host).cloned().unwrap_or_else(public);
        Box::pin(async move { if host == "nowhere.example" { Err(io::Error::other("no such name")) } else { Ok(addresses) } })
    }

    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        let net = self.weak.upgrade().expect("the net");
        Box::pin(async move {
            if address.ip().to_string() == DEAD {
                return std::future::pending().await;
            }
            net.dialled.lock().push(address);
            let (ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(64 * 1024);
            let tls = net.tls.clone().filter(|_| address.port() == 443);
            tokio::spawn(async move {
                match tls {
                    Some(tls) => serve(net, tls.accept(theirs).await?).await,
                    None => serve(net, theirs).await,
                }
            });
            Ok(Box::new(ours) as Box<dyn Stream>)
        })
    }
}

pub(super) fn config() -> UpstreamConfig {
    UpstreamConfig {
        name: "r.example".into(),
        urls: vec![BaseUrl { tls: false, host: "r.example".into(), port: 80, path: String::new() }],
        aliases: Vec::new(),
        credentials: Vec::new(),
        visibility: Visibility::Public,
        tag_ttl: Duration::ZERO,
        stale_if_error: Duration::ZERO,
        token_hosts: Vec::new(),
        allow_private_addresses: Vec::new(),
        ca_file: None,
        immutable_tags: Patterns::default(),
        client_cert_file: None,
        proxy: None,
        no_proxy: NoProxy::default(),
        insecure_skip_verify: false,
    }
}

pub(super) fn signed_in(mut config: UpstreamConfig) -> UpstreamConfig {
    config.credentials = vec![CredentialConfig::password("me", Secret::Inline("hunter2".into()))];
    config
}

pub(super) const BASIC: &str = "Basic bWU6aHVudGVyMg==";

/// An upstream on this net, and its metrics.
pub(super) fn upstream(config: &UpstreamConfig, net: &Arc<Net>) -> (Upstream, Arc<Metrics>) {
    let metrics = Arc::new(Metrics::new(["r.example"]));
    let connect: Arc<dyn Connect> = Arc::clone(net) as Arc<dyn Connect>;
    let upstream = Upstream::new(config, connect, Questions::new(256, 32), &metrics, Arc::new(Rng::seeded(1))).expect("an upstream");
    (upstream, metrics)
}

pub(super) fn repository() -> RepositoryName {
    "library/a".parse().expect("a name")
}

pub(super) fn tag() -> Reference {
    "1".parse().expect("a tag")
}

pub(super) fn digest() -> Digest {
    Digest::of(Algorithm::Sha256, b"hello")
}

pub(super) fn call() -> Call {
    Call::until(Instant::now() + Duration::from_secs(25))
}
