//! One remote registry as larder may use it.

pub mod connect;
mod error;

pub use error::{UnavailableReason, UpstreamError};
