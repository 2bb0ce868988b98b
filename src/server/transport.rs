//! What lies between a client's socket and hyper: the deadline that hyper lacks, for peers that stop reading, and a count
//! of the bytes that left. Knows nothing of HTTP; TLS will be another stream inside.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Asked of a silent peer after so long, and again so often.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
/// What the kernel queues beyond what the peer has room for. It bounds memory, and shows progress earlier: measured on a
/// client that reads 4 KiB/s, the longest pause between writes is 45 s with it, 95 s with the kernel's own choice.
const UNSENT_BYTES_MAX: u32 = 64 * 1024;

/// A stream whose writes fail when the peer accepts nothing for too long.
pub struct Transport<S> {
    stream: S,
    write_stall: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
    /// Whether `stalled` counts: the timer is kept when it doesn't, so that a slow client costs one allocation.
    stalling: bool,
    written: Arc<AtomicU64>,
}

impl Transport<TcpStream> {
    /// Takes an accepted connection and sets its options.
    ///
    /// # Errors
    /// When the socket refuses one, since a connection without them may stay for ever.
    pub fn accepted(stream: TcpStream, write_stall: Duration) -> io::Result<Transport<TcpStream>> {
        let socket = SockRef::from(&stream);
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(4))?;
        // Covers what our timer can't: bytes the kernel still holds after we have closed. Longer than ours, since it counts
        // a full window too, which a slow reader has nearly always.
        socket.set_tcp_user_timeout(Some(write_stall * 2))?;
        socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
        Ok(Transport::new(stream, write_stall))
    }
}

impl<S> Transport<S> {
    pub fn new(stream: S, write_stall: Duration) -> Transport<S> {
        Transport { stream, write_stall, stalled: None, stalling: false, written: Arc::default() }
    }

    /// The count of bytes that the peer's side has accepted, to be read also while the stream is in use.
    pub fn written(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.written)
    }

    /// Passes on a write's progress, or turns its want of progress into an error.
    fn progress<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalling = false;
            return written;
        }
        let deadline = Instant::now() + self.write_stall;
        let timer = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if !self.stalling {
            timer.as_mut().reset(deadline);
            self.stalling = true;
        }
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }

    fn count(&self, written: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(bytes)) = written {
            self.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Transport<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Transport<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.count(&written);
        self.progress(cx, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, slices: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.count(&written);
        self.progress(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.progress(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.progress(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const STALL: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_reading_is_given_up() {
        let (client, server) = tokio::io::duplex(16);
        let mut transport = Transport::new(server, STALL);
        let started = Instant::now();
        let error = transport.write_all(&[0; 64]).await.unwrap_err();
        assert_eq!((error.kind(), started.elapsed().as_secs()), (io::ErrorKind::TimedOut, 60));
        assert_eq!(transport.written().load(Ordering::Relaxed), 16);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_served_to_the_end() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut transport = Transport::new(server, STALL);
        let written = transport.written();
        let reader = tokio::spawn(async move {
            let mut read = 0;
            let mut buffer = [0; 8];
            while read < 160 {
                tokio::time::sleep(STALL - Duration::from_secs(1)).await;
                read += client.read(&mut buffer).await.unwrap();
            }
            read
        });
        transport.write_all(&[0; 160]).await.unwrap();
        assert_eq!((reader.await.unwrap(), written.load(Ordering::Relaxed)), (160, 160));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_between_writes_is_no_stall() {
        let (mut client, server) = tokio::io::duplex(16);
        let mut transport = Transport::new(server, STALL);
        for _ in 0..3 {
            let (sent, received) = tokio::join!(transport.write_all(&[1; 32]), async {
                let mut buffer = [0; 32];
                client.read_exact(&mut buffer).await
            });
            assert!(sent.is_ok() && received.is_ok());
            tokio::time::sleep(STALL * 2).await;
        }
    }

    #[tokio::test]
    async fn an_accepted_socket_has_its_options_and_writes_vectored() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let transport = Transport::accepted(stream, STALL).unwrap();
        let socket = SockRef::from(&transport.stream);
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(STALL * 2));
        assert!(transport.is_write_vectored());
    }
}
