//! `larder healthcheck`: asks the running daemon whether it is ready, for images that hold no shell and no curl.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::exit::ExitError;

/// Less than the five seconds after which Docker would call the check itself broken.
const DEADLINE: Duration = Duration::from_secs(3);
/// `HTTP/1.1 200` and no more.
const STATUS_BYTES: usize = 12;

/// Succeeds when `/readyz` of the admin listener says 200.
///
/// # Errors
/// The answer that came instead, or why none came.
pub fn run(admin: SocketAddr) -> Result<(), ExitError> {
    let failed = |why: String| ExitError::Failed(format!("not ready: {why}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| failed(error.to_string()))?;
    let address = reachable(admin);
    let answer = runtime.block_on(async { tokio::time::timeout(DEADLINE, status_line(address)).await });
    match answer {
        Err(_) => Err(failed(format!("{address} did not answer within {} s", DEADLINE.as_secs()))),
        Ok(Err(error)) => Err(failed(format!("{address}: {error}"))),
        Ok(Ok(status)) if &status[8..] == b" 200" => Ok(()),
        Ok(Ok(status)) => Err(failed(format!("{address} answered {}", String::from_utf8_lossy(&status).escape_debug()))),
    }
}

async fn status_line(address: SocketAddr) -> std::io::Result<[u8; STATUS_BYTES]> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET /readyz HTTP/1.1\r\nHost: {address}\r\nUser-Agent: larder-healthcheck\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut status = [0; STATUS_BYTES];
    stream.read_exact(&mut status).await?;
    Ok(status)
}

/// Who listens on every address is asked on the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}
