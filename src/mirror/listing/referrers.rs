//! What refers to a manifest: signatures, attestations, SBOMs. Upstream's answer is passed on as it is, since clients tell
//! "none" from "no such API" and verify by it; only what cannot be an answer is refused.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::super::deadline::within;
use super::{Listing, Weighed, check_cursor};
use crate::mirror::{Error, Mirror, Repository, What};
use crate::oci::{Digest, MediaType};
use crate::store::RepositoryKey;
use crate::upstream::{Call, Exchange, List, ListingPage, Page, UpstreamError};

/// Of which manifest, and the query byte for byte: the filter, or a cursor.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct ReferrersKey {
    repository: RepositoryKey,
    digest: Digest,
    query: Option<Box<str>>,
}

/// An index of what refers to a manifest, or a page of it.
pub struct ReferrersPage {
    pub bytes: Bytes,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
    /// The next page's query, byte for byte.
    pub next: Option<String>,
}

/// A page that all who ask for it share.
pub(super) type Referring = Arc<ReferrersPage>;

impl Weighed for ReferrersKey {
    fn bytes(&self) -> usize {
        self.repository.bytes() + self.query.as_deref().map_or(0, str::len)
    }
}

impl Weighed for Referring {
    fn bytes(&self) -> usize {
        self.bytes.len() + self.next.as_deref().map_or(0, str::len)
    }
}

impl Mirror {
    /// What refers to a manifest. `query` is passed on as it is.
    ///
    /// # Errors
    /// When upstream has no such API, or cannot say and no answer is kept.
    pub async fn referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: Option<&str>,
        deadline: Instant,
    ) -> Result<Listing<Arc<ReferrersPage>>, Error> {
        within(repository, deadline, self.list_referrers(repository, digest, query)).await
    }

    async fn list_referrers(
        &self,
        repository: &Repository,
        digest: &Digest,
        query: Option<&str>,
    ) -> Result<Listing<Arc<ReferrersPage>>, Error> {
        let memory = &self.listings.referrers;
        let key = ReferrersKey { repository: repository.key.clone(), digest: *digest, query: query.map(Into::into) };
        if let Some(known) = memory.fresh(&key, repository, What::Referrers) {
            return known;
        }
        let (asked_of, asked) = (repository.clone(), key.clone());
        let asking = || self.listings.asking(move |call| async move { get(&asked_of, &asked, &call).await.map(Arc::new) });
        memory.hear(key, repository, What::Referrers, self.revalidate_wait, asking).await
    }
}

async fn get(repository: &Repository, key: &ReferrersKey, call: &Call) -> Result<ReferrersPage, UpstreamError> {
    let query = key.query.as_deref();
    let page = Page { repository: repository.name(), list: List::Referrers(key.digest), query };
    match repository.source.upstream.get_page(&page, call).await {
        Ok(page) => read(page),
        Err(error) if is_first(query) && has_no_api(&error, &call.exchange) => Err(UpstreamError::NotFound),
        Err(error) => Err(error),
    }
}

/// Nothing but a filter is asked for. What a cursor is answered tells nothing about the API.
fn is_first(query: Option<&str>) -> bool {
    query.into_iter().flat_map(|query| query.split('&')).all(|pair| pair.starts_with("artifactType="))
}

/// Clients go on to the tag `sha256-…` at a 404; registries without the API say other things, too, that would stop them.
fn has_no_api(error: &UpstreamError, exchange: &Exchange) -> bool {
    let about_the_question = matches!(error, UpstreamError::Corrupt { .. } | UpstreamError::Unavailable { .. });
    about_the_question && matches!(exchange.status(), Some(400 | 405 | 406 | 501))
}

#[derive(Deserialize)]
struct Index {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    #[serde(rename = "manifests")]
    _manifests: Vec<IgnoredAny>,
}

/// Passes an index. A login page that is sent with 200 would otherwise be an image without signatures.
fn read(page: ListingPage) -> Result<ReferrersPage, UpstreamError> {
    let ListingPage { bytes, content_type, filters_applied, next } = page;
    check_cursor(next.as_deref())?;
    let corrupt = |detail: String| UpstreamError::Corrupt { detail };
    let index: Index = serde_json::from_slice(&bytes).map_err(|error| corrupt(format!("referrers that are no index: {error}")))?;
    let media_type: Option<MediaType> = content_type.as_deref().and_then(|text| text.parse().ok());
    let is_index = match media_type {
        Some(told) if !told.says_nothing() => told.as_str() == MediaType::OCI_INDEX,
        _ => index.media_type.as_deref() == Some(MediaType::OCI_INDEX),
    };
    if is_index { Ok(ReferrersPage { bytes, filters_applied, next }) } else { Err(corrupt(format!("referrers as {content_type:?}"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(content_type: Option<&str>, body: &'static str) -> bool {
        let page = ListingPage {
            bytes: Bytes::from_static(body.as_bytes()),
            content_type: content_type.map(str::to_owned),
            filters_applied: None,
            next: None,
        };
        read(page).is_ok()
    }

    #[test]
    fn only_an_index_is_an_answer() {
        const EMPTY: &str = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
        const UNTYPED: &str = r#"{"schemaVersion":2,"manifests":[{"digest":"x"}]}"#;
        let charset = format!("{}; charset=utf-8", MediaType::OCI_INDEX);
        for told in [Some(MediaType::OCI_INDEX), Some(charset.as_str())] {
            assert!(passed(told, EMPTY) && passed(told, UNTYPED), "{told:?}");
        }
        for told in [None, Some("application/json"), Some("text/plain; charset=utf-8")] {
            assert!(passed(told, EMPTY), "{told:?}");
            assert!(!passed(told, UNTYPED), "{told:?}");
        }
        assert!(!passed(Some(MediaType::OCI_MANIFEST), EMPTY));
        for lie in ["", "<html></html>", "{}", r#"{"manifests":null}"#, r#"{"errors":[]}"#, "[]"] {
            assert!(!passed(Some(MediaType::OCI_INDEX), lie), "{lie}");
        }
    }

    #[test]
    fn a_cursor_is_told_from_a_filter() {
        assert!(is_first(None) && is_first(Some("artifactType=a%2Fb")));
        for query in ["next=x", "artifactType=a&n=1", "last="] {
            assert!(!is_first(Some(query)), "{query}");
        }
    }
}
