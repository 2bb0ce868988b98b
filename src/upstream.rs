//! One remote registry as larder may use it.

mod address;
mod auth;
mod body;
mod call;
mod challenge;
mod client;
pub mod connect;
mod connector;
mod credentials;
mod error;
mod link;
mod listing;
mod realm;
mod request;
mod retry;
mod tls;
mod token;
mod url;
mod wire;

pub use body::BlobStream;
pub use call::{Call, Exchange};
pub use client::{FetchedManifest, ManifestHead, Upstream};
pub use error::{UnavailableReason, UpstreamError};
pub use listing::{List, ListingPage, Page};
pub use tls::SetupError;
#[cfg(test)]
mod tests;
