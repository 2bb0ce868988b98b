//! One request's dealings with an upstream: until when, and what came of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// One request's dealings with an upstream: its deadline to headers, and what came of it for the access log.
#[derive(Clone, Debug)]
pub struct Call {
    pub deadline: Instant,
    pub exchange: Arc<Exchange>,
    /// Without any credential: what would upstream tell anybody?
    pub(super) anonymous: bool,
}

impl Call {
    pub fn until(deadline: Instant) -> Call {
        Call::new(deadline, Arc::default())
    }

    pub fn new(deadline: Instant, exchange: Arc<Exchange>) -> Call {
        Call { deadline, exchange, anonymous: false }
    }

    /// The same call, without any credential.
    pub fn anonymous(self) -> Call {
        Call { anonymous: true, ..self }
    }
}

/// What the access log says of an upstream's part. Counts requests to the registry and to where it redirects, not to token servers.
#[derive(Debug, Default)]
pub struct Exchange {
    status: AtomicU16,
    attempts: AtomicU32,
    millis: AtomicU64,
}

impl Exchange {
    /// The last status that came, if any came.
    pub fn status(&self) -> Option<u16> {
        Some(self.status.load(Ordering::Relaxed)).filter(|status| *status != 0)
    }

    /// Requests sent.
    pub fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Milliseconds spent waiting for headers.
    pub fn millis(&self) -> u64 {
        self.millis.load(Ordering::Relaxed)
    }

    pub(super) fn asked(&self, status: Option<u16>, elapsed: Duration) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.millis.fetch_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(status) = status {
            self.status.store(status, Ordering::Relaxed);
        }
    }
}
