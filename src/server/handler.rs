//! The whole decision, in the order of a request's life: parse → resolve → mirror → respond. A client's `Authorization`
//! is not looked at: it may be anybody's (moby sends Docker Hub's to its mirrors), and goes nowhere.

use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, RANGE};
use http::request::Parts;
use http::uri::Authority;
use http::{Method, Request, Response, Version};
use tokio::time::Instant;
use ulid::Ulid;

use super::body::{Body, Content};
use super::connection::Peer;
use super::listing::Query;
use super::range::{ByteRange, Selection};
use super::record::Record;
use super::response::{self, Answered};
use super::route::{Route, RouteError};
use super::{Error, admin};
use crate::clock::Clock;
use crate::labels::Kind;
use crate::labels::Outcome;
use crate::log::AccessLog;
use crate::metrics::Metrics;
use crate::mirror::{self, BlobAnswer, Mirror, Repository, Tags, Target, Unresolved, Want};
use crate::oci::{Digest, InvalidName, Reference};
use crate::rng::Rng;
use crate::shutdown::Readiness;
use crate::task;

/// From a request to its headers, queues, tokens, redirects and retries included: containerd gives up after 30 s.
const HEADERS_TIMEOUT: Duration = Duration::from_secs(25);
/// A reader of a blob that is not stored may come too late for its beginning; then it gets a download of its own.
const BLOB_TRIES: usize = 3;

/// Answers clients.
pub struct Handler {
    pub mirror: Arc<Mirror>,
    /// The `default_upstream` of each listener, in their order.
    pub defaults: Vec<Option<String>>,
    pub metrics: Arc<Metrics>,
    pub log: Option<AccessLog>,
    pub readiness: Readiness,
    pub rng: Arc<Rng>,
    pub clock: Clock,
}

impl Handler {
    /// Answers one request; its account ends with the response's body.
    pub async fn handle(self: Arc<Handler>, peer: Peer, request: Request<()>) -> Response<Body> {
        let (head, ()) = request.into_parts();
        let request_id = Ulid::from_parts(self.clock.now().0, self.rng.u128()).to_string();
        let mut record = Record::begin(request_id, head, peer, &self.metrics, self.log.clone(), &self.clock);
        let answered = match task::catch(self.answer(&mut record)).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => self.refuse(&mut record, &error),
            Err(detail) => {
                self.metrics.task_panics.inc();
                self.refuse(&mut record, &Error::Internal { detail })
            }
        };
        let is_head = record.head().method == Method::HEAD;
        let body = if is_head { Some(0) } else { answered.length };
        record.responded(answered.head.status().as_u16(), body);
        let content = if is_head { Content::Bytes(bytes::Bytes::new()) } else { answered.content };
        answered.head.map(|()| Body::new(content, record))
    }

    async fn answer(&self, record: &mut Record) -> Result<Answered, Error> {
        let Parts { method, uri, .. } = record.head();
        let want = if *method == Method::HEAD { Want::Head } else { Want::Body };
        match Route::parse(method, uri.path(), uri.query())? {
            Route::Probe(probe) => {
                record.outcome = Outcome::Hit;
                Ok(Answered::plain(admin::probe(probe, &self.readiness)))
            }
            Route::Version { root, ns } => {
                let is_known = self.mirror.repositories().knows(&root, ns.as_deref());
                record.ns = ns;
                if !is_known {
                    return Err(Error::Mirror(mirror::Error::UnknownUpstream));
                }
                record.outcome = Outcome::Hit;
                Ok(response::version(record.ns.as_deref()))
            }
            Route::Manifest { target, reference } => {
                record.kind = Kind::Manifest;
                record.refers(&reference);
                let repository = self.resolve(record, target)?;
                self.manifest(record, &repository, &reference, want).await
            }
            Route::Blob { target, digest } => {
                record.kind = Kind::Blob;
                record.digest = Some(digest);
                let repository = self.resolve(record, target)?;
                match want {
                    Want::Head => self.blob_head(record, &repository, &digest).await,
                    Want::Body => self.blob(record, &repository, &digest).await,
                }
            }
            Route::Tags { target } => self.tags(record, target).await,
            Route::Referrers { target, digest } => {
                record.digest = Some(digest);
                self.referrers(record, target, &digest).await
            }
        }
    }

    async fn tags(&self, record: &mut Record, target: Target) -> Result<Answered, Error> {
        let query = Query::parse(record.head().uri.query())?;
        let window = query.window()?;
        let name = target.as_str().to_owned();
        let repository = self.resolve(record, target)?;
        let listing = self.mirror.tags(&repository, query.passed_on.as_deref(), deadline(record)).await?;
        record.outcome = listing.outcome;
        record.exchange.clone_from(&listing.exchange);
        let (tags, next) = match &listing.content {
            Tags::Whole(all) => window.of(all),
            // Not every upstream takes 0 for a number.
            Tags::Page(_) if window.is_empty() => Default::default(),
            Tags::Page(page) => (page.tags.as_slice(), page.next.clone()),
        };
        let link = next.map(|next| query.link(record.head().uri.path(), &next));
        Ok(response::tags(&name, tags, &listing, link, record.ns.as_deref()))
    }

    async fn referrers(&self, record: &mut Record, target: Target, digest: &Digest) -> Result<Answered, Error> {
        let query = Query::parse(record.head().uri.query())?;
        let repository = self.resolve(record, target)?;
        let listing = self.mirror.referrers(&repository, digest, query.passed_on.as_deref(), deadline(record)).await?;
        record.outcome = listing.outcome;
        record.exchange.clone_from(&listing.exchange);
        let link = listing.content.next.as_deref().map(|next| query.link(record.head().uri.path(), next));
        Ok(response::referrers(&listing, link, record.ns.as_deref()))
    }

    fn resolve(&self, record: &mut Record, target: Target) -> Result<Repository, Error> {
        let authority = record.header(&HOST).and_then(|host| host.parse::<Authority>().ok());
        let host = authority.map(|authority| authority.host().to_ascii_lowercase());
        let default = self.defaults.get(record.peer().entry).and_then(Option::as_deref);
        let resolved = self.mirror.repositories().resolve(&target, host.as_deref(), default);
        record.ns = target.ns;
        let repository = resolved.map_err(|error| match error {
            Unresolved::UnknownUpstream => Error::Mirror(mirror::Error::UnknownUpstream),
            Unresolved::Contradiction => Error::Contradiction,
            Unresolved::Name => Error::Route(RouteError::Name(InvalidName::Repository)),
        })?;
        record.resolved(&repository);
        Ok(repository)
    }

    async fn manifest(&self, record: &mut Record, repository: &Repository, reference: &Reference, want: Want) -> Result<Answered, Error> {
        let manifest = self.mirror.manifest(repository, reference, want, deadline(record)).await?;
        record.outcome = manifest.outcome;
        record.digest = Some(manifest.descriptor.digest);
        record.exchange.clone_from(&manifest.exchange);
        Ok(response::manifest(manifest, record.ns.as_deref()))
    }

    async fn blob_head(&self, record: &mut Record, repository: &Repository, digest: &Digest) -> Result<Answered, Error> {
        let blob = self.mirror.blob_head(repository, digest, deadline(record)).await?;
        self.describe(record, &blob);
        Ok(response::blob(digest, blob.size, Selection::Whole, blob.outcome, record.ns.as_deref(), None))
    }

    async fn blob(&self, record: &mut Record, repository: &Repository, digest: &Digest) -> Result<Answered, Error> {
        for _ in 0..BLOB_TRIES {
            let blob = self.mirror.blob(repository, digest, deadline(record)).await?;
            self.describe(record, &blob);
            let size = self.size(record, &blob).await?;
            let selection = size.map_or(Selection::Whole, |size| Selection::of(record.header(&RANGE), size));
            let (start, end) = match selection {
                Selection::Unsatisfiable => return Err(Error::RangeNotSatisfiable { size: size.unwrap_or_default() }),
                Selection::Part { start, end_inclusive } => (start, Some(end_inclusive + 1)),
                Selection::Whole => (0, size),
            };
            if let Some(reader) = self.mirror.reader(repository, digest, &blob, start, end) {
                let content = Some(Content::Blob(reader));
                return Ok(response::blob(digest, size, selection, blob.outcome, record.ns.as_deref(), content));
            }
        }
        Err(Error::Mirror(mirror::Error::Overloaded))
    }

    fn describe(&self, record: &mut Record, blob: &BlobAnswer) {
        record.outcome = blob.outcome;
        record.exchange.clone_from(&blob.exchange);
    }

    /// The blob's size. Who asks for a range of a blob whose size nobody said waits for it, and so does who could not tell
    /// a broken body from a short one (HTTP/1.0 has no chunks).
    async fn size(&self, record: &Record, blob: &BlobAnswer) -> Result<Option<u64>, Error> {
        let ranged = record.header(&RANGE).and_then(ByteRange::parse).is_some();
        if blob.size.is_some() || !ranged && record.head().version >= Version::HTTP_11 {
            return Ok(blob.size);
        }
        let known = tokio::time::timeout_at(deadline(record), blob.whole_size()).await;
        known.map_err(|_| Error::Deadline)?.map(Some).ok_or(Error::Deadline)
    }

    fn refuse(&self, record: &mut Record, error: &Error) -> Answered {
        record.outcome = match error {
            Error::Mirror(mirror::Error::NotFound { remembered: true, .. }) => Outcome::Negative,
            Error::Mirror(mirror::Error::NotFound { remembered: false, .. }) => Outcome::Miss,
            Error::Mirror(mirror::Error::Denied { .. }) => Outcome::Denied,
            _ => Outcome::Error,
        };
        if let Error::Internal { .. } | Error::Mirror(mirror::Error::Internal { .. }) = error {
            tracing::error!(request_id = record.request_id, %error, "a request was answered 500 after a panic, which is a bug");
        }
        let answer = error.answer(&record.request_id, self.clock.now());
        record.error_code = Some(answer.code);
        let mut answered = Answered::plain(answer.into_response());
        // What larder refuses by itself went neither to the cache nor past it.
        match error {
            Error::Mirror(_) | Error::Deadline | Error::Internal { .. } => {
                response::mark(&mut answered, record.outcome, None, record.ns.as_deref())
            }
            Error::Route(_) | Error::Contradiction | Error::RangeNotSatisfiable { .. } => {
                response::sign(&mut answered, record.ns.as_deref())
            }
        }
        answered
    }
}

fn deadline(record: &Record) -> Instant {
    record.started() + HEADERS_TIMEOUT
}
