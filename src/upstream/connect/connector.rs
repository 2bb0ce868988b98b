//! Connections for hyper's pool: resolve, judge every address, dial, TLS. The judgement stands between the resolver and the
//! socket, where no second look-up can change the answer; where a proxy resolves, the name itself is judged.

use std::future::Future;
use std::io;
use std::net::IpAddr;
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
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;
use tower_service::Service;

use super::address::{self, Refusal};
use super::network::{Network, Peer, Taken};
use super::proxy::{self, Proxy};
use super::seam::Stream;
use super::tls::Tls;
use crate::metrics::Metrics;
use crate::upstream::{UnavailableReason, UpstreamError};

/// From the first packet to an address to the end of the TLS handshake, whatever number of addresses it takes. The look-up before it
/// has a time of its own: [`super::dns::ANSWER_TIMEOUT`].
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

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
    pub network: Arc<Network>,
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
            let stream = connector.open(&place).await?;
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

    /// Whom the connection is made to: the proxy, where there is one.
    fn peer(&self) -> Peer<'a> {
        self.proxy.map_or(Peer { host: self.host, port: self.port }, |proxy| Peer { host: proxy.host(), port: proxy.port() })
    }

    fn failed(&self, reason: UnavailableReason, why: impl std::fmt::Display) -> UpstreamError {
        let authority = self.uri.authority().map_or("", |authority| authority.as_str());
        let way = self.proxy.map(|proxy| format!(" through {proxy}")).unwrap_or_default();
        UpstreamError::Unavailable { reason, detail: format!("{authority}{way}: {why}") }
    }
}

impl Connector {
    async fn open(&self, place: &Place<'_>) -> Result<Box<dyn Stream>, UpstreamError> {
        let addresses = self.permitted(place, self.addresses(place).await?)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let (stream, taken) = self.dial(place, &addresses, deadline).await?;
        let opened = timeout_at(deadline, self.establish(place, stream)).await;
        let opened = opened.unwrap_or_else(|_| Err(place.failed(UnavailableReason::Connect, "no connection in 5 s")));
        self.network.note(place.peer(), taken, opened.is_ok());
        opened
    }

    /// The tunnel and TLS, where there is to be one.
    async fn establish(&self, place: &Place<'_>, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, UpstreamError> {
        let stream = self.tunnelled(place, stream).await?;
        if proxy::is_forwarded(place.uri) {
            return Ok(stream);
        }
        let secured = self.secured(place, stream).await.map_err(|error| place.failed(UnavailableReason::Tls, error))?;
        Ok(Box::new(secured))
    }

    /// The addresses to connect to: the host's, not judged yet, or the proxy's. The operator named the proxy: its own address is
    /// nobody's to judge, but the name that it is to resolve is.
    pub async fn addresses(&self, place: &Place<'_>) -> Result<Vec<IpAddr>, UpstreamError> {
        if let (Some(_), Reach::Global(allowed)) = (place.proxy, &self.reach) {
            address::judge_name(place.host, allowed).map_err(|refusal| self.blocked(place, &[refusal]))?;
        }
        self.network.addresses(place.peer().host).await.map_err(|error| place.failed(UnavailableReason::Dns, error))
    }

    /// The addresses that may be dialled: a proxy's all.
    ///
    /// # Errors
    /// When none may.
    pub fn permitted(&self, place: &Place<'_>, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, UpstreamError> {
        let (Reach::Global(allowed), None) = (&self.reach, place.proxy) else {
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

    /// A stream to one of the addresses.
    pub async fn dial(
        &self,
        place: &Place<'_>,
        addresses: &[IpAddr],
        deadline: Instant,
    ) -> Result<(Box<dyn Stream>, Taken), UpstreamError> {
        let dialled = self.network.dial(place.peer(), addresses, deadline).await;
        dialled.map_err(|error| place.failed(UnavailableReason::Connect, error))
    }

    /// Through the proxy, where there is one and TLS is spoken behind it.
    pub async fn tunnelled(&self, place: &Place<'_>, mut stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, UpstreamError> {
        if let Some(proxy) = place.proxy.filter(|_| !proxy::is_forwarded(place.uri)) {
            proxy.tunnel(place.uri, &mut stream).await.map_err(|error| place.failed(UnavailableReason::Connect, error))?;
        }
        Ok(stream)
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
