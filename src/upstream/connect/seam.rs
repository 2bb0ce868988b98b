//! The seam to the network: names to addresses, addresses to byte streams. What may be connected to is judged between the two.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// A byte stream to a host.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A future that a trait object can return.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes to a host: the system's resolver and sockets, or a test's.
pub trait Connect: Send + Sync {
    /// The addresses of a name, in the order to try them.
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
    /// A stream to one address.
    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>>;
}

/// The system's resolver and TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnect;

/// An idle connection that a load balancer dropped silently is noticed after about a minute.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(30);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// What the peer does not acknowledge for so long is lost, and the connection with it: reads fail with `ETIMEDOUT` (RFC 5482,
/// tcp(7)). A NAT that restarted forgets connections without a word; four seconds are three retransmissions and more at any
/// round-trip time of this planet.
const USER_TIMEOUT: Duration = Duration::from_secs(4);
/// Look-ups at a time. Each takes one of tokio's blocking threads (512) until getaddrinfo returns, for half a minute when all
/// nameservers are dead, and disk work needs some of them.
const LOOK_UPS_MAX: usize = 64;
/// Of the process, as its blocking threads are.
static LOOK_UPS: Semaphore = Semaphore::const_new(LOOK_UPS_MAX);

impl Connect for TcpConnect {
    fn resolve<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let turn = LOOK_UPS.acquire().await.map_err(io::Error::other)?;
            let host = host.to_owned();
            // The turn goes with the thread: who stops waiting does not stop getaddrinfo.
            let look_up = move || {
                let _turn = turn;
                (host.as_str(), 0).to_socket_addrs().map(Iterator::collect::<Vec<SocketAddr>>)
            };
            let mut addresses: Vec<IpAddr> = Vec::new();
            for address in tokio::task::spawn_blocking(look_up).await?? {
                if !addresses.contains(&address.ip()) {
                    addresses.push(address.ip());
                }
            }
            Ok(addresses)
        })
    }

    fn dial(&self, address: SocketAddr) -> BoxFuture<'_, io::Result<Box<dyn Stream>>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY);
            let socket = SockRef::from(&stream);
            socket.set_tcp_keepalive(&keepalive)?;
            socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
            Ok(Box::new(stream) as Box<dyn Stream>)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listener_on_this_machine_is_reached() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addresses = TcpConnect.resolve("127.0.0.1").await.expect("an address");
        assert_eq!(addresses, [IpAddr::from([127, 0, 0, 1])]);
        assert!(TcpConnect.dial(listener.local_addr().expect("an address")).await.is_ok());
    }
}
