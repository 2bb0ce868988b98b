//! Blobs from upstream, and the one way to read a blob: [`Fills::open`] joins a download, [`BlobReader`] reads what is
//! stored or arriving, and goes on elsewhere when the disk fails. Knows no tags, no manifests and no HTTP.

mod download;
mod error;
mod fill;
mod fills;
mod job;
mod queue;
mod reader;
mod task;
mod transfer;

pub(super) use download::{Download, listed_size};
pub(super) use error::FillError;
pub(super) use fill::Interest;
pub(super) use fills::Fills;
pub(super) use reader::BlobBody;
pub use reader::BlobReader;
