//! Says in the log when a credential cannot be had, and when it can again: once each, for it is asked for all the time.

use std::sync::Arc;

use parking_lot::Mutex;
use prometheus::IntCounter;

use crate::upstream::UpstreamError;

/// Whose credential it is, and where a task for it is counted that panics.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) upstream: Arc<str>,
    pub(super) credential: Arc<str>,
    pub(super) panics: IntCounter,
}

/// What was said last.
pub(super) struct Health {
    place: Place,
    trouble: Mutex<Option<String>>,
}

impl Health {
    pub(super) fn new(place: &Place) -> Health {
        Health { place: place.clone(), trouble: Mutex::default() }
    }

    /// `trouble` is in larder's own words: nothing that a file holds or a program has said.
    pub(super) fn note(&self, trouble: Option<&str>) {
        let mut last = self.trouble.lock();
        if last.as_deref() == trouble {
            return;
        }
        *last = trouble.map(str::to_owned);
        drop(last);
        let Place { upstream, credential, .. } = &self.place;
        match trouble {
            Some(trouble) => tracing::warn!(%upstream, %credential, "the credential cannot be had: {trouble}"),
            None => tracing::info!(%upstream, %credential, "the credential can be had again"),
        }
    }

    /// The same of a result.
    pub(super) fn of<T>(&self, result: Result<T, UpstreamError>) -> Result<T, UpstreamError> {
        match &result {
            Ok(_) => self.note(None),
            Err(UpstreamError::CredentialRefused { detail }) => self.note(Some(detail)),
            Err(error) => self.note(Some(&error.to_string())),
        }
        result
    }
}
