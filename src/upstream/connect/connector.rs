//! Connections for hyper's pool: resolve, judge every address, dial, TLS. The judgement stands between the resolver and the
//! socket, where no second look-up can change the answer; where a proxy resolves, the name itself is judged.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::address::{self, Refusal};
use super::proxy::{self, Proxy};
use super::seam::{Connect, Stream};
use super::tls::Tls;
use crate::metrics::Metrics;
use crate::upstream::{UnavailableReason, UpstreamError};

/// From the resolver's first packet to the end of the TLS handshake.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One address of several gets this long, so that one dead address leaves time for another.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Which addresses a connection may go to.
#[derive(Clone)]
pub enum Reach {
    /// The configured URL's own host: the operator named it.
    Anywhere,
    /// Where a redirect or a challenge points: global addresses, and these.
    Global(Arc<[IpNet]>),
}

/// Makes the connections of one pool.
#[derive(Clone)]
pub struct Connector {
    pub connect: Arc<dyn Connect>,
    pub tls: Tls,
    pub reach: Reach,
    pub proxy: Option<Arc<Proxy>>,
    pub metrics: Arc<Metrics>,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Wired>;
    type Error = UpstreamError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, UpstreamError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), UpstreamError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let place = Place::of(&uri, connector.proxy.as_deref());
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, connector.open(&place)).await;
            let stream = connected.unwrap_or_else(|_| Err(place.failed(UnavailableReason::Connect, "no connection in 5 s")))?;
            let is_forwarded = place.proxy.is_some() && proxy::is_forwarded(&uri);
            Ok(TokioIo::new(Wired { stream, is_forwarded }))
        })
    }
}

/// Where a connection is to lead, and by which way.
pub struct Place<'a> {
    /// Holds only scheme and authority.
    uri: &'a Uri,
    pub host: &'a str,
    pub port: u16,
    pub proxy: Option<&'a Proxy>,
}

impl<'a> Place<'a> {
    pub fn of(uri: &'a Uri, proxy: Option<&'a Proxy>) -> Place<'a> {
        let (host, port) = proxy::host_and_port(uri);
        Place { uri, host, port, proxy: proxy.filter(|proxy| proxy.takes(uri)) }
    }

    fn failed(&self, reason: UnavailableReason, why: impl std::fmt::Display) -> UpstreamError {
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let way = self.proxy.map(|proxy| format!(" through {proxy}")).unwrap_or_default();
        UpstreamError::Unavailable { reason, detail: format!("{authority}{way}: {why}") }
    }
}

impl Connector {
    async fn open(&self, place: &Place<'_>) -> Result<Box<dyn Stream>, UpstreamError> {
        let stream = match place.proxy {
            None => {
                let addresses = self.permitted(place, self.addresses(place, place.host).await?)?;
                self.dial(place, &addresses, place.port).await?
            }
            Some(proxy) => self.by_way_of(proxy, place).await?,
        };
        if proxy::is_forwarded(place.uri) { Ok(stream) } else { self.handshake(place, stream).await }
    }

    /// A connection to the proxy, which the operator named: its own address is nobody's to judge.
    pub async fn by_way_of(&self, proxy: &Proxy, place: &Place<'_>) -> Result<Box<dyn Stream>, UpstreamError> {
        if let Reach::Global(allowed) = &self.reach {
            address::judge_name(place.host, allowed).map_err(|refusal| self.blocked(place, &[refusal]))?;
        }
        let addresses = self.addresses(place, proxy.host()).await?;
        let mut stream = self.dial(place, &addresses, proxy.port()).await?;
        if !proxy::is_forwarded(place.uri) {
            proxy.tunnel(place.uri, &mut stream).await.map_err(|error| place.failed(UnavailableReason::Connect, error))?;
        }
        Ok(stream)
    }

    pub async fn addresses(&self, place: &Place<'_>, host: &str) -> Result<Vec<IpAddr>, UpstreamError> {
        if let Ok(literal) = host.parse() {
            return Ok(vec![literal]);
        }
        let resolved = self.connect.resolve(host).await.map_err(|error| place.failed(UnavailableReason::Dns, error))?;
        if resolved.is_empty() { Err(place.failed(UnavailableReason::Dns, "the name has no address")) } else { Ok(resolved) }
    }

    /// The addresses that may be dialled; an error when none may.
    pub fn permitted(&self, place: &Place<'_>, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, UpstreamError> {
        let Reach::Global(allowed) = &self.reach else {
            return Ok(addresses);
        };
        let (mut permitted, mut refusals) = (Vec::new(), Vec::new());
        for address in addresses {
            match address::judge(address, allowed) {
                Ok(()) => permitted.push(address),
                Err(refusal) => refusals.push(refusal),
            }
        }
        let blocked = self.blocked(place, &refusals);
        if permitted.is_empty() { Err(blocked) } else { Ok(permitted) }
    }

    /// Counts what was refused.
    fn blocked(&self, place: &Place<'_>, refusals: &[Refusal]) -> UpstreamError {
        for refusal in refusals {
            self.metrics.dial_blocked(refusal.label());
        }
        let hint = match place.proxy {
            None => "its address is not a public one, and `allow_private_addresses` does not list it",
            Some(_) => {
                "it is not a public host, and no proxy is asked for one; `allow_private_addresses` opens addresses, `NO_PROXY` names"
            }
        };
        place.failed(UnavailableReason::Blocked, hint)
    }

    pub async fn dial(&self, place: &Place<'_>, addresses: &[IpAddr], port: u16) -> Result<Box<dyn Stream>, UpstreamError> {
        let mut last = place.failed(UnavailableReason::Connect, "no address to connect to");
        for (index, address) in addresses.iter().enumerate() {
            let is_last = index + 1 == addresses.len();
            let limit = if is_last { CONNECT_TIMEOUT } else { DIAL_TIMEOUT };
            let dialled = tokio::time::timeout(limit, self.connect.dial(SocketAddr::new(*address, port))).await;
            match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = place.failed(UnavailableReason::Connect, error),
            }
        }
        Err(last)
    }

    async fn handshake(&self, place: &Place<'_>, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, UpstreamError> {
        let secured = self.secured(place, stream).await.map_err(|error| place.failed(UnavailableReason::Tls, error))?;
        Ok(Box::new(secured))
    }

    pub async fn secured(&self, place: &Place<'_>, stream: Box<dyn Stream>) -> io::Result<TlsStream<Box<dyn Stream>>> {
        let name = ServerName::try_from(place.host.to_owned()).map_err(io::Error::other)?;
        self.tls.connector().await.connect(name, stream).await
    }
}

/// A stream as hyper's pool wants it.
pub struct Wired {
    stream: Box<dyn Stream>,
    /// The other end is a proxy that reads whole URLs.
    is_forwarded: bool,
}

impl Connection for Wired {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_forwarded)
    }
}

impl AsyncRead for Wired {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wired {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
