//! What a response's body is made of, and the account of it that ends in the access line.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::record::Record;
use crate::labels::Outcome;
use crate::mirror::{Refuge, Rest};
use crate::store::{Blob, TailReader, Unreadable};
use crate::task;

/// How often a body may lose its file: a stored one, then that of the new download.
const MOVES_MAX: u8 = 2;

/// A body and its account. Dropped before its end, it was aborted.
pub struct Body {
    content: Content,
    record: Record,
    /// Where it goes on if the disk fails.
    refuge: Option<Refuge>,
    moves: u8,
}

/// A stored blob shows its file, so that a transport that can send files needs a change in one place only.
pub enum Content {
    Bytes(Bytes),
    File {
        blob: Arc<Blob>,
        range: Range<u64>,
        reading: Option<Reading>,
    },
    Tail(Tailing),
    /// On its way to its refuge.
    Moving(Moving),
}

type Moving = Pin<Box<dyn Future<Output = io::Result<(Content, Outcome)>> + Send>>;
type NextChunk = Pin<Box<dyn Future<Output = (TailReader, Option<io::Result<Bytes>>)> + Send>>;
type Reading = Pin<Box<dyn Future<Output = io::Result<Bytes>> + Send>>;

/// A reader of a growing blob, either at rest or waiting for the next chunk.
pub enum Tailing {
    Idle(TailReader),
    Waiting(NextChunk),
    Failed(TailReader),
    Ended,
}

impl Body {
    pub fn new(content: Content, record: Record, refuge: Option<Refuge>) -> Body {
        Body { content, record, refuge, moves: 0 }
    }

    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Content::Moving(moving) = &mut self.content {
            match ready!(moving.as_mut().poll(context)) {
                Ok((content, outcome)) => (self.content, self.record.outcome) = (content, outcome),
                Err(error) => {
                    self.content = Content::Bytes(Bytes::new());
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
        self.content.poll(context)
    }

    /// What the disk would not give comes from upstream; every other error ends the body.
    fn flee(&mut self, error: &io::Error) -> bool {
        let Some(refuge) = self.refuge.clone().filter(|_| self.moves < MOVES_MAX) else { return false };
        let (lost, place) = match std::mem::replace(&mut self.content, Content::Bytes(Bytes::new())) {
            Content::File { range, .. } => (None, (range.start, Some(range.end))),
            Content::Tail(Tailing::Failed(reader)) if is_unreadable(error) => {
                let place = reader.place();
                (Some(reader.into_lost()), place)
            }
            _ => return false,
        };
        self.moves += 1;
        let is_last = self.moves == MOVES_MAX;
        self.content = Content::Moving(Box::pin(async move {
            let rest = refuge.rest(lost.as_ref(), place, is_last).await;
            let (rest, outcome) = rest.map_err(io::Error::other)?;
            let content = match rest {
                Rest::Stored(blob) => {
                    let range = place.0..place.1.unwrap_or(blob.len());
                    Content::file(blob, range)
                }
                Rest::Arriving(reader) => Content::Tail(Tailing::Idle(reader)),
            };
            Ok((content, outcome))
        }));
        true
    }
}

fn is_unreadable(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Unreadable>())
}

impl Content {
    pub fn file(blob: Arc<Blob>, range: Range<u64>) -> Content {
        Content::File { blob, range, reading: None }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Content::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)))
            }
            Content::File { blob, range, reading } => {
                let chunk = ready!(poll_file(blob, range, reading, context));
                if let Some(Ok(chunk)) = &chunk {
                    range.start += chunk.len() as u64;
                }
                Poll::Ready(chunk)
            }
            Content::Tail(tailing) => tailing.poll(context),
            Content::Moving(_) => Poll::Ready(None),
        }
    }
}

/// What the page cache has is read in place; for the rest the worker does not wait.
fn poll_file(
    blob: &Arc<Blob>,
    range: &Range<u64>,
    reading: &mut Option<Reading>,
    context: &mut Context<'_>,
) -> Poll<Option<io::Result<Bytes>>> {
    if reading.is_none() {
        if range.is_empty() {
            return Poll::Ready(None);
        }
        if let Some(chunk) = blob.read_now(range) {
            return Poll::Ready(Some(Ok(chunk)));
        }
        let (blob, range) = (Arc::clone(blob), range.clone());
        *reading = Some(Box::pin(async move { blob.read(&range).await }));
    }
    match reading {
        Some(future) => {
            let chunk = ready!(future.as_mut().poll(context));
            *reading = None;
            Poll::Ready(Some(chunk))
        }
        None => Poll::Ready(None),
    }
}

impl Tailing {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match std::mem::replace(self, Tailing::Ended) {
                Tailing::Ended | Tailing::Failed(_) => return Poll::Ready(None),
                Tailing::Idle(mut reader) => {
                    *self = Tailing::Waiting(Box::pin(async move {
                        let chunk = reader.next().await;
                        (reader, chunk)
                    }));
                }
                Tailing::Waiting(mut waiting) => match waiting.as_mut().poll(context) {
                    Poll::Pending => {
                        *self = Tailing::Waiting(waiting);
                        return Poll::Pending;
                    }
                    Poll::Ready((reader, chunk)) => {
                        match &chunk {
                            Some(Ok(_)) => *self = Tailing::Idle(reader),
                            Some(Err(_)) => *self = Tailing::Failed(reader),
                            None => {}
                        }
                        return Poll::Ready(chunk);
                    }
                },
            }
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = self.get_mut();
        let chunk = loop {
            let polled = catch_unwind(AssertUnwindSafe(|| body.poll_chunk(context)));
            let chunk = ready!(polled.unwrap_or_else(|panic| {
                body.content = Content::Bytes(Bytes::new());
                Poll::Ready(Some(Err(body.record.panicked(task::message(&*panic)))))
            }));
            match &chunk {
                Some(Err(error)) if body.flee(error) => continue,
                Some(Ok(bytes)) => body.record.sent(bytes.len() as u64),
                Some(Err(error)) => body.record.broke(error),
                None => body.record.complete(),
            }
            break chunk;
        };
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::File { range, reading, .. } => range.is_empty() && reading.is_none(),
            Content::Tail(tailing) => matches!(tailing, Tailing::Ended),
            Content::Moving(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::File { range, .. } => SizeHint::with_exact(range.end - range.start),
            Content::Tail(Tailing::Idle(reader)) => reader.remaining().map(SizeHint::with_exact).unwrap_or_default(),
            Content::Tail(_) | Content::Moving(_) => SizeHint::default(),
        }
    }
}
