//! How an answer's bytes leave: their pace, and a connection that can be cut at an exact byte.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use super::Latch;

/// Most bytes of one frame.
const FRAME_BYTES: usize = 16 * 1024;

/// When a body's bytes may leave.
#[derive(Clone, Debug, Default)]
pub(super) struct Pace {
    pub(super) cut_at: Option<u64>,
    pub(super) drip: Option<(usize, Duration)>,
    holds: Vec<(u64, Latch)>,
}

impl Pace {
    pub(super) fn hold_at(&mut self, offset: u64, latch: Latch) {
        self.holds.push((offset, latch));
    }

    /// How far the next frame may go from `offset`.
    fn frame_bytes(&self, offset: u64) -> usize {
        let most = self.drip.map_or(FRAME_BYTES, |(bytes, _)| bytes);
        let marks = self.holds.iter().map(|(at, _)| *at).chain(self.cut_at);
        let next_mark = marks.filter(|at| *at > offset).min().unwrap_or(u64::MAX);
        usize::try_from(next_mark - offset).unwrap_or(usize::MAX).min(most)
    }
}

enum Step {
    Bytes(Bytes),
    /// The bytes after which the connection closes. Told apart, since hyper asks for no more once Content-Length is reached.
    LastBytes(Bytes),
    Cut,
    End,
}

/// The rest of a body.
struct Rest {
    bytes: Bytes,
    offset: u64,
    pace: Pace,
}

impl Rest {
    async fn step(mut self) -> (Rest, Step) {
        for (_, latch) in self.pace.holds.iter().filter(|(at, _)| *at == self.offset) {
            latch.opened().await;
        }
        if self.pace.cut_at == Some(self.offset) {
            return (self, Step::Cut);
        }
        if self.bytes.is_empty() {
            return (self, Step::End);
        }
        if let Some((_, every)) = self.pace.drip.filter(|_| self.offset > 0) {
            tokio::time::sleep(every).await;
        }
        let frame = self.bytes.split_to(self.pace.frame_bytes(self.offset).min(self.bytes.len()));
        self.offset += frame.len() as u64;
        let held = self.pace.holds.iter().any(|(at, _)| *at == self.offset);
        let last = self.pace.cut_at == Some(self.offset) && !held;
        (self, if last { Step::LastBytes(frame) } else { Step::Bytes(frame) })
    }
}

type NextStep = Pin<Box<dyn Future<Output = (Rest, Step)> + Send>>;

/// A body that leaves at its pace.
pub(super) struct ScriptedBody {
    step: Option<NextStep>,
    cut: Cut,
    sent: Arc<AtomicU64>,
}

impl ScriptedBody {
    pub(super) fn empty(cut: Cut, sent: Arc<AtomicU64>) -> ScriptedBody {
        ScriptedBody { step: None, cut, sent }
    }

    pub(super) fn new(bytes: Bytes, pace: Pace, cut: Cut, sent: Arc<AtomicU64>) -> ScriptedBody {
        let rest = Rest { bytes, offset: 0, pace };
        ScriptedBody { step: Some(Box::pin(rest.step())), cut, sent }
    }

    fn send(&self, frame: Bytes) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.sent.fetch_add(frame.len() as u64, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(step) = self.step.as_mut() else {
            return Poll::Ready(None);
        };
        match ready!(step.as_mut().poll(context)) {
            (rest, Step::Bytes(frame)) => {
                self.step = Some(Box::pin(rest.step()));
                self.send(frame)
            }
            (_, Step::LastBytes(frame)) => {
                self.step = Some(Box::pin(std::future::pending()));
                self.cut.once_flushed();
                self.send(frame)
            }
            (_, Step::End) => {
                self.step = None;
                Poll::Ready(None)
            }
            (_, Step::Cut) => {
                self.step = Some(Box::pin(std::future::pending()));
                self.cut.once_flushed();
                Poll::Pending
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.step.is_none()
    }
}

/// Ends a connection: at once, or when all that was written has left. hyper drops unsent bytes when a body fails, which would
/// make "cut at byte n" mean "cut somewhere before byte n"; so the body waits and the connection below it is cut.
#[derive(Clone, Default)]
pub(super) struct Cut(Arc<CutState>);

#[derive(Default)]
struct CutState {
    wanted: AtomicBool,
    done: Notify,
}

impl Cut {
    pub(super) fn now(&self) {
        self.0.done.notify_one();
    }

    pub(super) fn once_flushed(&self) {
        self.0.wanted.store(true, Ordering::SeqCst);
    }

    pub(super) async fn happened(&self) {
        self.0.done.notified().await;
    }

    fn flushed(&self) {
        if self.0.wanted.load(Ordering::SeqCst) {
            self.now();
        }
    }
}

/// A stream that tells its `Cut` when everything written has left.
pub(super) struct Wire<S> {
    stream: S,
    cut: Cut,
}

impl<S> Wire<S> {
    pub(super) fn new(stream: S, cut: Cut) -> Wire<S> {
        Wire { stream, cut }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wire<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wire<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_flush(context))?;
        self.cut.flushed();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
