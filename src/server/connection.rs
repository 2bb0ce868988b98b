//! One client connection, HTTP/1.1: what hyper may read, how much and how long. Knows no routes and no sockets.

use std::convert::Infallible;
use std::error::Error as StdError;
use std::future::Future;
use std::net::SocketAddr;
use std::time::Duration;

use http::header::{CONNECTION, EXPECT};
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// A request's head, all lines together; more is answered 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What hyper may buffer for a connection in each direction; its own 400 KiB is too much times 16,384.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// A body that nobody asked for is read so far, so that its sender gets to read the answer instead of a reset.
const DRAINED_BYTES_MAX: usize = 64 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub client: SocketAddr,
    /// Our end: the address that was dialled.
    pub listener: SocketAddr,
    /// Which of the configured listeners took it: what was dialled is another address where that is a wildcard's.
    pub entry: usize,
}

/// Serves requests until either side has enough, or `stop` asks for no more than the one under way. `head_timeout` bounds
/// the silence before a head as well as the head itself, so it is the keep-alive's idle limit too.
///
/// # Errors
/// When the connection ends otherwise than by agreement: broken, timed out, or not HTTP.
pub async fn serve<S, H, F, B>(stream: S, head_timeout: Duration, peer: Peer, handler: H, stop: &CancellationToken) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(Peer, Request<()>) -> F,
    F: Future<Output = Response<B>>,
    B: Body + 'static,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let service = service_fn(|request: Request<Incoming>| async { Ok::<_, Infallible>(answer(peer, &handler, request).await) });
    let mut http = http1::Builder::new();
    // Without the timer, hyper ignores its own head timeout; half_close(false) aborts the handler when the client has left.
    http.timer(TokioTimer::new()).header_read_timeout(head_timeout).half_close(false);
    http.max_header_size(HEAD_BYTES_MAX).max_buf_size(BUFFER_BYTES_MAX);
    let mut connection = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        ended = &mut connection => return ended,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Answers one request. Nothing that larder answers has a body, so one that comes along ends the connection.
async fn answer<H, F, B>(peer: Peer, handler: &H, request: Request<Incoming>) -> Response<B>
where
    H: Fn(Peer, Request<()>) -> F,
    F: Future<Output = Response<B>>,
{
    let (head, mut body) = request.into_parts();
    let has_body = !body.is_end_stream();
    // Who waits for a 100 before sending has sent nothing to drain; reading would ask for it.
    if has_body && !head.headers.contains_key(EXPECT) {
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, drain(&mut body)).await;
    }
    let mut response = handler(peer, Request::from_parts(head, ())).await;
    if has_body {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn drain(body: &mut Incoming) {
    let mut drained = 0;
    while drained < DRAINED_BYTES_MAX {
        let Some(Ok(frame)) = body.frame().await else { return };
        drained += frame.data_ref().map_or(0, bytes::Bytes::len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body_util::Full;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;

    const HEAD: Duration = Duration::from_secs(60);
    const GET: &[u8] = b"GET /v2/ HTTP/1.1\r\nHost: larder\r\n\r\n";

    /// A client's end, and the connection that serves it.
    fn open(stop: CancellationToken) -> (DuplexStream, JoinHandle<hyper::Result<()>>) {
        let (client, server) = tokio::io::duplex(1 << 20);
        let address = SocketAddr::from(([127, 0, 0, 1], 5000));
        let peer = Peer { client: address, listener: address, entry: 0 };
        let handler = |_, request: Request<()>| async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
            Response::new(Full::new(Bytes::from_static(b"answer")))
        };
        (client, tokio::spawn(async move { serve(server, HEAD, peer, handler, &stop).await }))
    }

    /// Sends, and returns what came back until the connection was closed, and when that was.
    async fn exchange(request: &[u8]) -> (String, u64) {
        let (mut client, _server) = open(CancellationToken::new());
        let started = Instant::now();
        client.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        (String::from_utf8(answer).unwrap(), started.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_closed() {
        for said in [&b""[..], b"\r\n", b"GET /v2/ HTTP/1.1\r\nHost: lar"] {
            assert_eq!(exchange(said).await, (String::new(), 60), "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_closed_and_a_busy_one_kept() {
        let (mut client, server) = open(CancellationToken::new());
        let started = Instant::now();
        let mut buffer = [0; 1024];
        for _ in 0..3 {
            client.write_all(GET).await.unwrap();
            assert!(client.read(&mut buffer).await.unwrap() > 0);
            tokio::time::sleep(HEAD - Duration::from_secs(1)).await;
        }
        assert_eq!(client.read(&mut buffer).await.unwrap(), 0);
        assert!(server.await.unwrap().unwrap_err().is_timeout());
        assert_eq!(started.elapsed().as_secs(), 3 * 59 + 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_without_end_is_431() {
        let mut request = b"GET / HTTP/1.1\r\nA: ".to_vec();
        request.resize(HEAD_BYTES_MAX + 8192, b'a');
        let (answer, _) = exchange(&request).await;
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    }

    /// Also: rustsec_2025_0037
    #[tokio::test(start_paused = true)]
    async fn a_body_nobody_asked_for_ends_the_connection_after_the_answer() {
        let whole = b"PUT /v2/a HTTP/1.1\r\nHost: larder\r\nContent-Length: 4\r\n\r\nbody";
        let half = b"PUT /v2/a HTTP/1.1\r\nHost: larder\r\nContent-Length: 400\r\n\r\nbody";
        let endless = [&b"PUT /v2/a HTTP/1.1\r\nHost: larder\r\nContent-Length: 400000\r\n\r\n"[..], &[0; 300_000]].concat();
        let waiting = b"PUT /v2/a HTTP/1.1\r\nHost: larder\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n";
        for (request, seconds) in [(&whole[..], 0), (half, 1), (&endless, 0), (waiting, 0)] {
            let (answer, after) = exchange(request).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\nconnection: close\r\n") && answer.ends_with("answer"), "{answer}");
            assert_eq!(after, seconds);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_finishes_the_request_under_way_and_no_other() {
        let stop = CancellationToken::new();
        let (mut client, server) = open(stop.clone());
        client.write_all(b"GET /slow HTTP/1.1\r\nHost: larder\r\n\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        stop.cancel();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("answer") && answer.contains("connection: close"), "{answer}");
        assert!(server.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn stopping_closes_the_silent_and_the_idle_at_once() {
        for said in [&b""[..], GET] {
            let stop = CancellationToken::new();
            let (mut client, server) = open(stop.clone());
            client.write_all(said).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
            let stopped = Instant::now();
            stop.cancel();
            assert!(server.await.unwrap().is_ok());
            assert_eq!(stopped.elapsed().as_secs(), 0);
        }
    }
}
