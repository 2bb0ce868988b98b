//! One remote registry as larder may use it.

mod account;
mod address;
mod auth;
mod body;
mod budget;
mod call;
mod certificate;
mod challenge;
mod client;
pub mod connect;
mod connector;
mod credentials;
mod endpoint;
mod error;
mod link;
mod listing;
mod outlook;
mod pace;
mod pool;
mod probe;
mod proxy;
mod realm;
mod request;
mod rest;
mod retry;
mod signer;
mod survey;
mod tls;
mod token;
mod url;
mod wire;

pub use body::BlobStream;
pub use budget::Budget;
pub use call::{Call, Exchange};
pub use certificate::Certificate;
pub use client::{FetchedManifest, ManifestHead, Upstream};
pub use error::{UnavailableReason, UpstreamError};
pub use listing::{List, ListingPage, Page};
pub use outlook::{AccountOutlook, HostOutlook, Outlook};
pub use probe::{Ping, Report, TokenServer, Tried, Verdict};
pub use realm::Trust;
pub use rest::Rests;
pub use survey::{Fault, FaultKind, Survey};
pub use tls::SetupError;
#[cfg(test)]
mod tests;
