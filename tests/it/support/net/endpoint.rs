//! What answers at an address.

use parking_lot::Mutex;
use std::sync::Arc;

use bytes::Bytes;
use larder::upstream::connect::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::proxy::FakeProxy;
use super::script::Script;
use crate::support::registry::FakeRegistry;

/// The client certificate of each TLS connection.
pub(super) type Shown = Arc<Mutex<Vec<Option<Vec<u8>>>>>;

/// Who answers HTTP, with or without TLS.
#[derive(Clone)]
pub enum Host {
    Registry(FakeRegistry),
    Script(Script),
}

impl From<&FakeRegistry> for Host {
    fn from(registry: &FakeRegistry) -> Host {
        Host::Registry(registry.clone())
    }
}

impl From<&Script> for Host {
    fn from(script: &Script) -> Host {
        Host::Script(script.clone())
    }
}

impl Host {
    async fn serve(self, stream: impl Stream + 'static) {
        match self {
            Host::Registry(registry) => registry.serve(stream).await,
            Host::Script(script) => script.serve(stream).await,
        }
    }
}

#[derive(Clone)]
pub(super) enum Endpoint {
    Plain(Host),
    Tls(Host, TlsAcceptor, Shown),
    Proxy(FakeProxy),
    BlackHole,
    Mute,
    Raw(Bytes),
    Test(mpsc::Sender<DuplexStream>),
}

impl Endpoint {
    /// Serves one connection until it ends or the host goes down. A stream handed to the test is the test's to break.
    pub(super) async fn run(self, stream: DuplexStream, mut cut: watch::Receiver<()>) {
        tokio::select! {
            () = self.serve(stream) => {}
            _ = cut.changed() => {}
        }
    }

    async fn serve(self, mut stream: DuplexStream) {
        match self {
            Endpoint::Plain(host) => host.serve(stream).await,
            Endpoint::Proxy(proxy) => proxy.serve(stream).await,
            Endpoint::Tls(host, acceptor, shown) => {
                // A client that does not trust the certificate leaves during the handshake; it knows why.
                if let Ok(stream) = acceptor.accept(stream).await {
                    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).map(|first| first.to_vec());
                    shown.lock().push(certificate);
                    host.serve(stream).await;
                }
            }
            Endpoint::Raw(bytes) => {
                let _ = stream.read(&mut [0; 16 * 1024]).await;
                let _ = stream.write_all(&bytes).await;
            }
            Endpoint::Test(sender) => {
                let _ = sender.send(stream).await;
            }
            Endpoint::Mute | Endpoint::BlackHole => std::future::pending().await,
        }
    }
}
