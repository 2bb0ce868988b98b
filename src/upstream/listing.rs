//! What a registry lists, page by page. Where the next page is, is said by its `Link` alone: the query there is opaque, and is
//! asked for byte for byte.

mod link;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LINK};
use http::{Method, StatusCode};

use super::UpstreamError;
use super::call::Call;
use super::client::Upstream;
use super::http::body::{check_encoding, content_length};
use super::http::exchange::Answer;
use super::request::Question;
use crate::labels::UpstreamKind;
use crate::oci::{Digest, MIB, MediaType, RepositoryName, registries};

/// Google's registries send details of every image beside its tags, and no pages.
const TAGS_BYTES_MAX: u64 = 8 * MIB;
const REFERRERS_BYTES_MAX: u64 = 4 * MIB;
/// A longer query could not be asked for by a client.
const CURSOR_BYTES_MAX: usize = 2048;
const FILTERS_APPLIED: &str = "oci-filters-applied";

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    Tags,
    /// What refers to this manifest.
    Referrers(Digest),
}

/// A page to ask for.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    pub repository: &'a RepositoryName,
    pub list: List,
    /// As it is to be sent.
    pub query: Option<&'a str>,
}

/// A page as it came; what it says is not looked at yet.
#[derive(Clone, Debug)]
pub struct ListingPage {
    pub bytes: Bytes,
    pub content_type: Option<String>,
    /// `OCI-Filters-Applied`.
    pub filters_applied: Option<String>,
    /// The next page's query, byte for byte.
    pub next: Option<String>,
}

impl Upstream {
    /// One page.
    ///
    /// # Errors
    /// When upstream does not give it, or its `Link` leads elsewhere than to the same list.
    pub async fn get_page(&self, page: &Page<'_>, call: &Call) -> Result<ListingPage, UpstreamError> {
        let question = self.page(page);
        // A list has no reference by which a client's right could be told: where clients read what anybody reads, nobody asks.
        let call = if self.shows_public_only() { &call.clone().anonymous() } else { call };
        let answer = self.asker.ask(&question, call).await.map_err(|failure| self.asker.failed(failure.into_error()))?;
        let read = self.read_page(page.list, answer).await;
        read.map_err(|error| self.asker.failed(error))
    }

    /// The most that may be asked of a page, where more is refused.
    pub fn page_size_max(&self) -> Option<usize> {
        let hosts = self.asker.endpoints.iter().map(|endpoint| endpoint.wire.origin.host.as_str());
        hosts.chain([&**self.name()]).filter_map(|host| registries::find(host)?.page_size_max).min()
    }

    fn page<'a>(&self, page: &Page<'a>) -> Question<'a> {
        let Page { repository, list, query } = page;
        let (path, accept) = match list {
            List::Tags => (format!("{repository}/tags/list"), "application/json"),
            List::Referrers(digest) => (format!("{repository}/referrers/{digest}"), MediaType::OCI_INDEX),
        };
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let path = format!("{path}{query}");
        Question {
            kind: UpstreamKind::Listing,
            method: Method::GET,
            repository,
            path,
            accept: Some(accept),
            range: None,
            is_download: false,
        }
    }

    async fn read_page(&self, list: List, answer: Answer) -> Result<ListingPage, UpstreamError> {
        let corrupt = |what: &str| UpstreamError::Corrupt { detail: format!("{} {what}", answer.url) };
        let most = match list {
            List::Tags => TAGS_BYTES_MAX,
            List::Referrers(_) => REFERRERS_BYTES_MAX,
        };
        check_encoding(&answer)?;
        if answer.status() != StatusCode::OK {
            return Err(corrupt("sent a part of a listing"));
        }
        if content_length(&answer).is_some_and(|length| length > most) {
            return Err(corrupt("announced a listing that is too large"));
        }
        let next = next_query(&answer)?;
        let text = |name: &str| answer.header(name).map(str::to_owned);
        let (content_type, filters_applied) = (text(CONTENT_TYPE.as_str()), text(FILTERS_APPLIED));
        let bytes = answer.body(usize::try_from(most).unwrap_or(usize::MAX)).await?;
        self.asker.metrics.received_bytes.inc_by(bytes.len() as u64);
        Ok(ListingPage { bytes, content_type, filters_applied, next })
    }
}

/// The query of the page that `Link` names, which must be one of the same list: whoever follows it comes back to larder.
fn next_query(answer: &Answer) -> Result<Option<String>, UpstreamError> {
    let corrupt = |what: &str| UpstreamError::Corrupt { detail: format!("{} {what}", answer.url) };
    let lines: Result<Vec<&str>, _> = answer.headers().get_all(LINK).into_iter().map(|line| line.to_str()).collect();
    // A link that is not understood could be the list's other half.
    let lines = lines.map_err(|_| corrupt("sent a Link that is no text"))?;
    let Some(target) = link::next(lines) else { return Ok(None) };
    let next = answer.url.join(target).map_err(|error| corrupt(&format!("links to {error}")))?;
    if answer.url.origin != next.origin || answer.url.path() != next.path() {
        return Err(corrupt(&format!("links to another place, {next}")));
    }
    match next.query() {
        Some(query) if !query.is_empty() && query.len() <= CURSOR_BYTES_MAX => Ok(Some(query.to_owned())),
        _ => Err(corrupt("links to a next page without a query, or with one that is too long")),
    }
}
