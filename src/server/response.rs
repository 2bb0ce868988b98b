//! Headers and bodies of good answers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT_RANGES, AGE, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, LINK};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::body::Content;
use super::range::Selection;
use crate::labels::Outcome;
use crate::mirror::{Listing, ManifestAnswer, ReferrersPage};
use crate::oci::{Digest, MediaType, Tag};

const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// distribution-spec, "Registry Proxying".
const NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// An answer before its account is attached.
pub struct Answered {
    pub head: Response<()>,
    pub content: Content,
    /// Bytes of the body, when known.
    pub length: Option<u64>,
}

impl Answered {
    /// An answer whose bytes are at hand.
    pub fn plain(response: Response<Bytes>) -> Answered {
        let (head, body) = response.into_parts();
        let length = Some(body.len() as u64);
        Answered { head: Response::from_parts(head, ()), content: Content::Bytes(body), length }
    }

    fn set(&mut self, name: HeaderName, value: impl TryInto<HeaderValue>) {
        // Digests, media types and numbers: visible ASCII by their types.
        if let Ok(value) = value.try_into() {
            self.head.headers_mut().insert(name, value);
        }
    }
}

/// `GET /v2/`: yes, this is a registry.
pub fn version(ns: Option<&str>) -> Answered {
    let mut answered = Answered::plain(Response::new(Bytes::from_static(b"{}")));
    answered.set(CONTENT_TYPE, "application/json");
    answered.set(CONTENT_LENGTH, "2");
    sign(&mut answered, ns);
    answered
}

/// What every answer says: which protocol, and which namespace was asked about.
pub fn sign(answered: &mut Answered, ns: Option<&str>) {
    answered.set(API_VERSION, "registry/2.0");
    if let Some(ns) = ns {
        answered.set(NAMESPACE, ns);
    }
}

/// What every answer about content says of how it came to be, beside that.
pub fn mark(answered: &mut Answered, outcome: Outcome, ttl: Option<i64>, ns: Option<&str>) {
    sign(answered, ns);
    answered.set(CACHE_STATUS, outcome.cache_status(ttl));
}

pub fn manifest(manifest: ManifestAnswer, ns: Option<&str>) -> Answered {
    let ManifestAnswer { descriptor, bytes, outcome, ttl, age, .. } = manifest;
    let mut answered = Answered::plain(Response::new(bytes.unwrap_or_default()));
    mark(&mut answered, outcome, ttl, ns);
    answered.set(CONTENT_TYPE, descriptor.media_type.as_str());
    answered.set(CONTENT_LENGTH, HeaderValue::from(descriptor.size));
    answered.set(CONTENT_DIGEST, descriptor.digest.to_string());
    if let Some(age) = age {
        answered.set(AGE, HeaderValue::from(age.as_secs()));
    }
    answered
}

/// A blob, or a part of it; without content for HEAD.
pub fn blob(
    digest: &Digest,
    size: Option<u64>,
    selection: Selection,
    outcome: Outcome,
    ns: Option<&str>,
    content: Option<Content>,
) -> Answered {
    let length = size.map(|size| selection.length(size));
    let mut answered = Answered { head: Response::new(()), content: content.unwrap_or(Content::Bytes(Bytes::new())), length };
    mark(&mut answered, outcome, None, ns);
    answered.set(CONTENT_TYPE, "application/octet-stream");
    answered.set(CONTENT_DIGEST, digest.to_string());
    answered.set(ACCEPT_RANGES, "bytes");
    if let Some(length) = length {
        answered.set(CONTENT_LENGTH, HeaderValue::from(length));
    }
    if let (Selection::Part { .. }, Some(size)) = (selection, size) {
        *answered.head.status_mut() = StatusCode::PARTIAL_CONTENT;
        if let Some(range) = selection.content_range(size) {
            answered.set(CONTENT_RANGE, range);
        }
    }
    answered
}

/// Some of a repository's tags. `name` is as the client spelled it.
pub fn tags<T>(name: &str, tags: &[Tag], listing: &Listing<T>, link: Option<String>, ns: Option<&str>) -> Answered {
    let tags: Vec<&str> = tags.iter().map(Tag::as_str).collect();
    let body = serde_json::json!({ "name": name, "tags": tags }).to_string();
    list(body.into(), "application/json", listing, link, ns)
}

/// What refers to a manifest. The type is the spec's alone: clients compare it as a plain string.
pub fn referrers(listing: &Listing<Arc<ReferrersPage>>, link: Option<String>, ns: Option<&str>) -> Answered {
    let mut answered = list(listing.content.bytes.clone(), MediaType::OCI_INDEX, listing, link, ns);
    if let Some(filters) = &listing.content.filters_applied {
        answered.set(FILTERS_APPLIED, filters.as_str());
    }
    answered
}

fn list<T>(body: Bytes, media_type: &'static str, listing: &Listing<T>, link: Option<String>, ns: Option<&str>) -> Answered {
    let length = body.len();
    let mut answered = Answered::plain(Response::new(body));
    mark(&mut answered, listing.outcome, listing.ttl, ns);
    answered.set(CONTENT_TYPE, media_type);
    answered.set(CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(link) = link {
        answered.set(LINK, link);
    }
    if let Some(age) = listing.age {
        answered.set(AGE, HeaderValue::from(age.as_secs()));
    }
    answered
}
