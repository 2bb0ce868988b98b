//! A connection that something on its way may forget without a word, and what the system's sockets make of that.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::time::Sleep;

/// TCP_USER_TIMEOUT, as larder sets it on its sockets.
const USER_TIMEOUT: Duration = Duration::from_secs(4);

/// Clones are the same.
#[derive(Clone, Default)]
pub(super) struct Forgotten(Arc<AtomicBool>);

impl Forgotten {
    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Once forgotten, it takes what is written and brings nothing; what was written first is given up after
/// [`USER_TIMEOUT`].
pub(super) struct Forgetful {
    stream: DuplexStream,
    forgotten: Forgotten,
    given_up: Option<Pin<Box<Sleep>>>,
}

impl Forgetful {
    pub(super) fn new(stream: DuplexStream, forgotten: Forgotten) -> Forgetful {
        Forgetful { stream, forgotten, given_up: None }
    }
}

impl AsyncRead for Forgetful {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.forgotten.is_set() {
            return Pin::new(&mut self.stream).poll_read(context, buffer);
        }
        match &mut self.given_up {
            Some(given_up) => given_up.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Forgetful {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if !self.forgotten.is_set() {
            return Pin::new(&mut self.stream).poll_write(context, bytes);
        }
        // Who reads is in the same task, and is woken by this.
        let given_up = self.given_up.get_or_insert_with(|| Box::pin(tokio::time::sleep(USER_TIMEOUT)));
        let _ = given_up.as_mut().poll(context);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.forgotten.is_set() { Poll::Ready(Ok(())) } else { Pin::new(&mut self.stream).poll_flush(context) }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
