//! Connections for hyper's pool: resolve, judge every address, dial, TLS. The judgement stands between the resolver and the
//! socket, where no second look-up can change the answer.

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
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::address;
use super::connect::{Connect, Stream};
use super::{UnavailableReason, UpstreamError};
use crate::metrics::Metrics;

/// From the resolver's first packet to the end of the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// One address of several gets this long, so that one dead address leaves time for another.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// Which addresses a connection may go to.
#[derive(Clone)]
pub(super) enum Reach {
    /// The configured URL's own host: the operator named it.
    Anywhere,
    /// Where a redirect or a challenge points: global addresses, and these.
    Global(Arc<[IpNet]>),
}

/// Makes the connections of one pool.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) connect: Arc<dyn Connect>,
    pub(super) tls: TlsConnector,
    pub(super) reach: Reach,
    pub(super) metrics: Arc<Metrics>,
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
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, connector.open(&uri)).await;
            let stream = connected.unwrap_or_else(|_| Err(failed(UnavailableReason::Connect, &uri, "no connection in 5 s")))?;
            Ok(TokioIo::new(Wired(stream)))
        })
    }
}

impl Connector {
    async fn open(&self, uri: &Uri) -> Result<Box<dyn Stream>, UpstreamError> {
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let host = uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
        let addresses = self.permitted(uri, self.addresses(uri, host).await?)?;
        let stream = self.dial(uri, &addresses, port).await?;
        if tls { self.handshake(uri, host, stream).await } else { Ok(stream) }
    }

    async fn addresses(&self, uri: &Uri, host: &str) -> Result<Vec<IpAddr>, UpstreamError> {
        if let Ok(literal) = host.parse() {
            return Ok(vec![literal]);
        }
        let resolved = self.connect.resolve(host).await.map_err(|error| failed(UnavailableReason::Dns, uri, error))?;
        if resolved.is_empty() { Err(failed(UnavailableReason::Dns, uri, "the name has no address")) } else { Ok(resolved) }
    }

    /// The addresses that may be dialled; an error when none may.
    fn permitted(&self, uri: &Uri, addresses: Vec<IpAddr>) -> Result<Vec<IpAddr>, UpstreamError> {
        let Reach::Global(allowed) = &self.reach else {
            return Ok(addresses);
        };
        let mut permitted = Vec::new();
        for address in addresses {
            match address::judge(address, allowed) {
                Ok(()) => permitted.push(address),
                Err(refusal) => self.metrics.dial_blocked(refusal.label()),
            }
        }
        if permitted.is_empty() {
            let hint = "its address is not a public one, and `allow_private_addresses` does not list it";
            return Err(failed(UnavailableReason::Blocked, uri, hint));
        }
        Ok(permitted)
    }

    async fn dial(&self, uri: &Uri, addresses: &[IpAddr], port: u16) -> Result<Box<dyn Stream>, UpstreamError> {
        let mut last = failed(UnavailableReason::Connect, uri, "no address to connect to");
        for (index, address) in addresses.iter().enumerate() {
            let is_last = index + 1 == addresses.len();
            let limit = if is_last { CONNECT_TIMEOUT } else { DIAL_TIMEOUT };
            let dialled = tokio::time::timeout(limit, self.connect.dial(SocketAddr::new(*address, port))).await;
            match dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = failed(UnavailableReason::Connect, uri, error),
            }
        }
        Err(last)
    }

    async fn handshake(&self, uri: &Uri, host: &str, stream: Box<dyn Stream>) -> Result<Box<dyn Stream>, UpstreamError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|error| failed(UnavailableReason::Tls, uri, error))?;
        let stream = self.tls.connect(name, stream).await.map_err(|error| failed(UnavailableReason::Tls, uri, error))?;
        Ok(Box::new(stream))
    }
}

/// `uri` holds only scheme and authority here.
fn failed(reason: UnavailableReason, uri: &Uri, why: impl std::fmt::Display) -> UpstreamError {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    UpstreamError::Unavailable { reason, detail: format!("{authority}: {why}") }
}

/// A stream as hyper's pool wants it.
pub(super) struct Wired(Box<dyn Stream>);

impl Connection for Wired {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Wired {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Wired {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }
}
