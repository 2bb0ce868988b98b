//! Listens, accepts, and lets go: every connection is a task with a limit, a deadline and an end. What is answered is the
//! handler's business; there is one server for clients and one for operators.

use std::error::Error as StdError;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::connection::Peer;
use self::transport::Transport;
use crate::metrics::Metrics;

pub mod admin;
pub mod body;
pub mod connection;
pub mod error;
pub mod handler;
pub mod listing;
pub mod range;
pub mod record;
pub mod response;
pub mod route;
pub mod transport;

pub use error::Error;

/// Connections the kernel completes before we accept them; it has its own maximum below.
const BACKLOG: i32 = 4096;
/// A rest when accepting fails for want of file descriptors or memory, which trying again at once will not mend.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound, not yet accepting.
pub struct Server {
    listeners: Vec<TcpListener>,
}

/// How many connections, and how long each may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_connections: usize,
    /// From the readiness for a request to the end of its head.
    pub head_timeout: Duration,
    /// While a client takes no byte of an answer.
    pub write_stall: Duration,
    /// From the stop to the end of the last answer.
    pub drain_timeout: Duration,
}

impl Limits {
    /// With the usual deadlines. TCP opens a full window in steps of half the client's buffer, so a client that reads
    /// 1 KiB/s takes nothing for two minutes at a time; a shorter stall limit cuts it off (measured).
    pub fn new(max_connections: usize, drain_timeout: Duration) -> Limits {
        Limits { max_connections, head_timeout: Duration::from_secs(60), write_stall: Duration::from_secs(300), drain_timeout }
    }
}

/// An address that cannot be listened on, and how to mend that.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; {}", self.remedy())]
pub struct BindError {
    pub address: SocketAddr,
    #[source]
    pub source: io::Error,
}

impl BindError {
    fn remedy(&self) -> String {
        let port = self.address.port();
        match self.source.kind() {
            io::ErrorKind::AddrInUse => format!("another process has the port (`ss -ltnp 'sport = :{port}'` names it), or choose another"),
            io::ErrorKind::PermissionDenied => format!("port {port} needs root or CAP_NET_BIND_SERVICE, or choose one above 1023"),
            io::ErrorKind::AddrNotAvailable => "this machine has no such address; 0.0.0.0 means all it has".to_owned(),
            _ => "choose another `listen` address".to_owned(),
        }
    }
}

impl Server {
    /// Binds all addresses or none; a connection's [`Peer::entry`] is its address's place among them. Needs a tokio runtime around it.
    ///
    /// # Errors
    /// With the first address that is not to be had.
    pub fn bind(addresses: &[SocketAddr]) -> Result<Server, BindError> {
        let bind = |address: &SocketAddr| {
            // `[::]` takes IPv4 too, unless somebody listed that by itself.
            let v6_only = addresses.iter().any(|other| other.is_ipv4() && other.port() == address.port());
            listen(*address, v6_only).map_err(|source| BindError { address: *address, source })
        };
        Ok(Server { listeners: addresses.iter().map(bind).collect::<Result<_, _>>()? })
    }

    /// Where it listens, with the ports the kernel chose.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.local_addr().ok()).collect()
    }

    /// Serves until `stop`, then accepts no more, and waits for what is under way, at most `drain_timeout`. Returns the
    /// number of connections that were broken off after that.
    pub async fn run<H, F, B>(self, handler: H, limits: Limits, metrics: Arc<Metrics>, stop: CancellationToken) -> usize
    where
        H: Fn(Peer, Request<()>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let connections = Arc::new(Connections::new(limits, metrics, stop));
        let mut accepting = JoinSet::new();
        for (entry, listener) in self.listeners.into_iter().enumerate() {
            accepting.spawn(accept(listener, entry, handler.clone(), Arc::clone(&connections)));
        }
        accepting.join_all().await;
        connections.drain().await
    }
}

fn listen(address: SocketAddr, v6_only: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A restart must not wait for the connections of the run before it.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(v6_only)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// What all of a server's connections share.
struct Connections {
    limits: Limits,
    metrics: Arc<Metrics>,
    permits: Arc<Semaphore>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Breaks off whatever is left.
    abort: CancellationToken,
}

impl Connections {
    fn new(limits: Limits, metrics: Arc<Metrics>, stop: CancellationToken) -> Connections {
        let permits = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
        Connections { limits, metrics, permits, tasks: TaskTracker::new(), stop, abort: CancellationToken::new() }
    }

    /// A place for one more connection.
    fn admit(&self) -> Option<Open> {
        match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => {
                self.metrics.connections.inc();
                Some(Open { metrics: Arc::clone(&self.metrics), _permit: permit })
            }
            Err(_) => {
                self.metrics.connection_rejected();
                None
            }
        }
    }

    async fn drain(&self) -> usize {
        self.tasks.close();
        if tokio::time::timeout(self.limits.drain_timeout, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tasks.len();
        self.abort.cancel();
        self.tasks.wait().await;
        left
    }
}

/// A connection's place in the count, given back however its task ends.
struct Open {
    metrics: Arc<Metrics>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.metrics.connections.dec();
        // The task dies alone: tokio stops the panic at its edge.
        if std::thread::panicking() {
            self.metrics.task_panics.inc();
        }
    }
}

/// Accepts until the stop; the listener closes with its end.
async fn accept<H, F, B>(listener: TcpListener, entry: usize, handler: H, connections: Arc<Connections>)
where
    H: Fn(Peer, Request<()>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            biased;
            () = connections.stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, client)) => {
                failing = false;
                let Some(open) = connections.admit() else { continue };
                let task = converse(stream, client, entry, handler.clone(), open, Arc::clone(&connections));
                connections.tasks.spawn(task);
            }
            // The client left while it waited in the kernel's queue.
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset) => {}
            Err(error) => {
                if !failing {
                    tracing::warn!("cannot accept connections: {error}; trying again ten times a second");
                }
                failing = true;
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One connection from its acceptance to its end.
async fn converse<H, F, B>(stream: TcpStream, client: SocketAddr, entry: usize, handler: H, _open: Open, connections: Arc<Connections>)
where
    H: Fn(Peer, Request<()>) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let limits = connections.limits;
    let prepared = stream.local_addr().and_then(|listener| Ok((listener, Transport::accepted(stream, limits.write_stall)?)));
    let (listener, transport) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return tracing::debug!(%client, "connection refused: {error}"),
    };
    let written = transport.written();
    let serving = connection::serve(transport, limits.head_timeout, Peer { client, listener, entry }, handler, &connections.stop);
    let ended = tokio::select! {
        ended = serving => ended,
        () = connections.abort.cancelled() => return,
    };
    if let Err(error) = ended {
        tracing::debug!(%client, written = written.load(Ordering::Relaxed), "connection ended: {error}");
    }
}

/// Raises the number of files the process may have open to what it is allowed, and returns it: every connection and every
/// blob being read is one, and the usual 1,024 are used up quickly. `None` means without limit.
///
/// # Errors
/// When the system refuses; the limit is then as it was.
pub fn raise_file_limit() -> io::Result<Option<u64>> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(maximum)
}
