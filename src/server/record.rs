//! The account of one request, from its first byte to its last: what metrics count and the access log tells.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::{HOST, RANGE, USER_AGENT};
use http::request::Parts;
use tokio::time::Instant;

use super::connection::Peer;
use crate::clock::Clock;
use crate::labels::Kind;
use crate::labels::Outcome;
use crate::log::{AccessLine, AccessLog};
use crate::metrics::{Metrics, UpstreamMetrics};
use crate::mirror::Repository;
use crate::oci::{Digest, ErrorCode, Reference, Tag};
use crate::store::RepositoryKey;
use crate::upstream::Exchange;

/// What becomes known of a request while it is answered. Dropping it ends the account.
pub struct Record {
    pub request_id: String,
    pub kind: Kind,
    pub ns: Option<String>,
    pub tag: Option<Tag>,
    pub digest: Option<Digest>,
    pub outcome: Outcome,
    pub error_code: Option<ErrorCode>,
    pub exchange: Option<Arc<Exchange>>,
    head: Parts,
    peer: Peer,
    repository: Option<RepositoryKey>,
    upstream: Arc<UpstreamMetrics>,
    started: Instant,
    status: u16,
    ttfb: Option<Duration>,
    bytes: u64,
    /// Bytes of the body that the client was promised; `None` while nobody knows.
    expected: Option<u64>,
    complete: bool,
    metrics: Arc<Metrics>,
    log: Option<AccessLog>,
    clock: Clock,
}

impl Record {
    pub fn begin(request_id: String, head: Parts, peer: Peer, metrics: &Arc<Metrics>, log: Option<AccessLog>, clock: &Clock) -> Record {
        metrics.requests_in_flight.inc();
        Record {
            request_id,
            kind: Kind::Other,
            ns: None,
            tag: None,
            digest: None,
            outcome: Outcome::Error,
            error_code: None,
            exchange: None,
            head,
            peer,
            repository: None,
            upstream: Arc::clone(metrics.unknown()),
            started: Instant::now(),
            status: 0,
            ttfb: None,
            bytes: 0,
            expected: None,
            complete: false,
            metrics: Arc::clone(metrics),
            log,
            clock: clock.clone(),
        }
    }

    pub fn head(&self) -> &Parts {
        &self.head
    }

    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When the request began.
    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.head.headers.get(name)?.to_str().ok()
    }

    pub fn resolved(&mut self, repository: &Repository) {
        self.repository = Some(repository.key.clone());
        self.upstream = Arc::clone(&repository.source.metrics);
    }

    pub fn refers(&mut self, reference: &Reference) {
        match reference {
            Reference::Tag(tag) => self.tag = Some(tag.clone()),
            Reference::Digest(digest) => self.digest = Some(*digest),
        }
    }

    /// The headers leave. `body` is the bytes that follow, if that is known: 0 for HEAD.
    pub fn responded(&mut self, status: u16, body: Option<u64>) {
        let elapsed = self.started.elapsed();
        (self.status, self.ttfb, self.expected) = (status, Some(elapsed), body);
        self.metrics.responded(self.kind, self.outcome, status, elapsed);
    }

    pub fn sent(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub fn complete(&mut self) {
        self.complete = true;
    }

    /// What gave the body panicked, which is counted; the connection breaks with this error.
    pub fn panicked(&self, message: &str) -> io::Error {
        self.metrics.task_panics.inc();
        io::Error::other(format!("a panic, which is a bug of larder's: {message}"))
    }

    pub fn broke(&mut self, error: &io::Error) {
        self.outcome = Outcome::Error;
        tracing::warn!(request_id = self.request_id, %error, "an answer broke off");
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.metrics.requests_in_flight.dec();
        let whole = self.complete || self.expected.is_some_and(|expected| self.bytes >= expected);
        if !whole && self.outcome != Outcome::Error {
            self.metrics.client_aborts.inc();
        }
        let duration = self.started.elapsed();
        self.metrics.finished(&self.upstream, self.kind, self.outcome, self.bytes, duration);
        let Some(log) = &self.log else { return };
        let exchange = self.exchange.as_deref();
        log.write(&AccessLine {
            time: self.clock.now(),
            request_id: &self.request_id,
            client: self.peer.client,
            identity: None,
            listener: self.peer.listener,
            host: self.header(&HOST),
            ns: self.ns.as_deref(),
            method: self.head.method.as_str(),
            kind: self.kind,
            upstream: self.repository.as_ref().map(|repository| &*repository.upstream),
            repository: self.repository.as_ref().map(|repository| repository.name.as_str()),
            tag: self.tag.as_ref().map(Tag::as_str),
            digest: self.digest,
            range: self.header(&RANGE),
            status: self.status,
            bytes: self.bytes,
            outcome: self.outcome,
            error_code: self.error_code,
            credential: None,
            duration,
            ttfb: self.ttfb,
            upstream_status: exchange.and_then(Exchange::status),
            upstream_duration: exchange.map(|exchange| Duration::from_millis(exchange.millis())),
            attempts: exchange.map_or(0, Exchange::attempts),
            aborted: !whole,
            user_agent: self.header(&USER_AGENT),
        });
    }
}
