//! A response's body, and the account of it that ends in the access line.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use super::record::Record;
use crate::mirror::BlobReader;
use crate::task;

/// A body and its account. Dropped before its end, it was aborted.
pub struct Body {
    content: Content,
    record: Record,
}

/// Where the bytes come from.
pub enum Content {
    Bytes(Bytes),
    Blob(BlobReader),
}

impl Body {
    pub fn new(content: Content, record: Record) -> Body {
        Body { content, record }
    }

    /// The next chunk. A panic breaks the body as any error does: it is counted, and logged with the request's id.
    fn poll_chunk(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let polled = catch_unwind(AssertUnwindSafe(|| self.content.poll(context)));
        polled.unwrap_or_else(|panic| {
            self.content = Content::Bytes(Bytes::new());
            Poll::Ready(Some(Err(self.record.panicked(task::message(&*panic)))))
        })
    }
}

impl Content {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self {
            Content::Bytes(bytes) => {
                let bytes = std::mem::take(bytes);
                Poll::Ready((!bytes.is_empty()).then_some(Ok(bytes)))
            }
            Content::Blob(reader) => reader.poll_chunk(context),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let body = self.get_mut();
        let chunk = ready!(body.poll_chunk(context));
        if let Content::Blob(reader) = &body.content {
            body.record.outcome = reader.outcome();
        }
        match &chunk {
            Some(Ok(bytes)) => body.record.sent(bytes.len() as u64),
            Some(Err(error)) => body.record.broke(error),
            None => body.record.complete(),
        }
        Poll::Ready(chunk.map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.content {
            Content::Bytes(bytes) => bytes.is_empty(),
            Content::Blob(reader) => reader.is_at_end(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Bytes(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Content::Blob(reader) => reader.remaining().map(SizeHint::with_exact).unwrap_or_default(),
        }
    }
}
