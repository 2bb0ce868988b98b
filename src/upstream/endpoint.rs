//! One of the hosts an upstream may be asked at.

use std::sync::Arc;

use super::account::Account;
use super::http::exchange::Wire;
use super::http::url::Url;

/// A host, and what is known of it.
pub(super) struct Endpoint {
    pub(super) wire: Arc<Wire>,
    /// Before `/v2`.
    pub(super) path: String,
    /// One for each credential, in the order of the configuration.
    pub(super) accounts: Vec<Account>,
    pub(super) anonymous: Account,
}

impl Endpoint {
    /// Of what follows `/v2/`.
    pub(super) fn url(&self, path: &str) -> Url {
        Url::new(self.wire.origin.clone(), format!("{}/v2/{path}", self.path))
    }
}
