//! One remote registry as larder may use it.

mod account;
mod auth;
mod call;
mod client;
pub mod connect;
mod diagnose;
mod endpoint;
mod error;
mod http;
mod limits;
mod listing;
mod request;
mod secret;

pub use self::http::body::BlobStream;
pub use auth::token_hosts::Trust;
pub use call::{Call, Exchange};
pub use client::{FetchedManifest, ManifestHead, Upstream};
pub use connect::tls::SetupError;
pub use diagnose::certificate::Certificate;
pub use diagnose::outlook::{AccountOutlook, HostOutlook, Outlook};
pub use diagnose::probe::{Ping, Report, TokenServer, Tried, Verdict};
pub use diagnose::survey::{Fault, FaultKind, Survey};
pub use error::{UnavailableReason, UpstreamError};
pub use limits::breaker::Open;
pub use limits::pull_limit::Budget;
pub use limits::questions::Questions;
pub use listing::{List, ListingPage, Page};
