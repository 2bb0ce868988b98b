//! Downloads of blobs: one a digest and upstream at a time, owned by none of those who read it.

mod error;
mod fill;
mod queue;
mod transfer;

pub(super) use error::FillError;
pub(super) use fill::{Fill, Fills, HEADERS_TIMEOUT, Interest, Opened};
