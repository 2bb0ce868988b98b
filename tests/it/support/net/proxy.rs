//! An HTTP proxy in the network: tunnels by CONNECT, forwards whole URLs, and writes down what it was asked.

use parking_lot::Mutex;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use larder::upstream::connect::Stream;
use tokio::io::{AsyncWriteExt, DuplexStream};

use super::script::read_head;
use super::{Dns, FakeNet, Shared};
use crate::support::registry::PIPE_BYTES;

/// Clones are the same proxy.
#[derive(Clone)]
pub struct FakeProxy {
    net: Weak<Shared>,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// Of every request: its line and headers.
    heads: Vec<String>,
    password: Option<String>,
    connect_answer: Option<String>,
}

impl FakeProxy {
    pub(super) fn new(net: &FakeNet) -> FakeProxy {
        FakeProxy { net: Arc::downgrade(&net.shared), state: Arc::default() }
    }

    /// Every request must show this value of `Proxy-Authorization`.
    pub fn require(&self, authorization: &str) {
        self.state.lock().password = Some(authorization.into());
    }

    /// CONNECT gets these bytes, and the connection stays open.
    pub fn answer_connect(&self, bytes: &str) {
        self.state.lock().connect_answer = Some(bytes.into());
    }

    /// The line and headers of every request, in order.
    pub fn heads(&self) -> Vec<String> {
        self.state.lock().heads.clone()
    }

    /// The request lines without their version.
    pub fn asked(&self) -> Vec<String> {
        self.heads().iter().map(|head| head.split(" HTTP/").next().unwrap_or_default().to_owned()).collect()
    }

    /// On a port of loopback, for the real binary; what lies behind stays in memory.
    pub async fn listen_tcp(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port has an address");
        let proxy = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(proxy.clone().serve(stream));
            }
        });
        address
    }

    pub(super) async fn serve(self, mut stream: impl Stream) {
        // Whoever leaves in the middle knows why.
        let _ = self.requests(&mut stream).await;
    }

    async fn requests(&self, stream: &mut impl Stream) -> io::Result<()> {
        loop {
            let head = read_head(stream).await?;
            let (password, connect_answer) = {
                let mut state = self.state.lock();
                state.heads.push(head.clone());
                (state.password.clone(), state.connect_answer.clone())
            };
            let shown =
                head.lines().find_map(|line| line.to_ascii_lowercase().starts_with("proxy-authorization: ").then(|| line[21..].to_owned()));
            if password.is_some() && shown != password {
                let refusal = "HTTP/1.1 407 Authentication Required\r\nProxy-Authenticate: Basic realm=\"p\"\r\nContent-Length: 0\r\n\r\n";
                stream.write_all(refusal.as_bytes()).await?;
                continue;
            }
            if let Some(answer) = connect_answer.filter(|_| head.starts_with("CONNECT ")) {
                stream.write_all(answer.as_bytes()).await?;
                std::future::pending::<()>().await;
            }
            return self.pass_on(&head, stream).await;
        }
    }

    async fn pass_on(&self, head: &str, stream: &mut impl Stream) -> io::Result<()> {
        let (line, headers) = head.split_once("\r\n").unwrap_or_default();
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (authority, path) = if method == "CONNECT" {
            (target, "")
        } else {
            let rest = target.strip_prefix("http://").unwrap_or_else(|| panic!("a proxy was asked for {target}"));
            rest.find('/').map_or((rest, "/"), |at| rest.split_at(at))
        };
        let Some(mut far) = self.reach(authority) else {
            return stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n").await;
        };
        if method == "CONNECT" {
            stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
        } else {
            let headers: String =
                headers.lines().filter(|line| !line.to_ascii_lowercase().starts_with("proxy-")).map(|line| format!("{line}\r\n")).collect();
            far.write_all(format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}").as_bytes()).await?;
        }
        tokio::io::copy_bidirectional(stream, &mut far).await.map(drop)
    }

    /// By the network's own names, of which larder is to know nothing.
    fn reach(&self, authority: &str) -> Option<DuplexStream> {
        let net = FakeNet { shared: self.net.upgrade()? };
        let (host, port) = authority.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse().ok()?))).unwrap_or((authority, 80));
        let ip = match host.trim_matches(['[', ']']).parse() {
            Ok(ip) => ip,
            Err(_) => match net.state().names.get(host)?.front()? {
                Dns::Addresses(addresses) => *addresses.first()?,
                _ => return None,
            },
        };
        let (endpoint, cut) = net.endpoint(SocketAddr::new(ip, port))?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        // Another proxy behind this one would make the future's type endless.
        tokio::spawn(Box::pin(endpoint.run(far, cut)) as std::pin::Pin<Box<dyn Future<Output = ()> + Send>>);
        Some(near)
    }
}
