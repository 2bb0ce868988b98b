//! A repository's tags. Upstream's pages are collected, one fetch as a whole, so that larder can page them as the spec says;
//! a list too long for that is passed on page by page as upstream makes them.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::Instant;

use super::super::deadline::within;
use super::{Heard, Listing, PAGE_TIMEOUT, Weighed, check_cursor};
use crate::mirror::{Error, Mirror, Repository, What};
use crate::oci::Tag;
use crate::store::RepositoryKey;
use crate::upstream::{Call, Exchange, List, ListingPage, Page, UpstreamError};

/// The longest list that larder pages itself.
const TAGS_MAX: usize = 10_000;
/// What is asked for first. Without it Amazon and GitHub send a hundred a page.
const PAGE_SIZE: usize = 1000;
/// The end of a chain of pages that has none.
const PAGES_MAX: usize = 256;
/// A list that takes longer to collect is passed on page by page: its client is still to be answered.
const COLLECT_TIMEOUT: Duration = Duration::from_secs(12);
/// How long a list counts as too long.
const TOO_LONG_TTL: Duration = Duration::from_secs(600);

/// Which page of which repository.
pub(super) type PageKey = (RepositoryKey, Option<Box<str>>);

/// A repository's tags.
pub enum Tags {
    /// All, in ASCII order.
    Whole(Arc<[Tag]>),
    /// A page of upstream's making, of a list that is too long.
    Page(Arc<TagPage>),
}

/// Some of the tags, as upstream sent them.
pub struct TagPage {
    pub tags: Vec<Tag>,
    /// The next page's query, byte for byte.
    pub next: Option<String>,
}

/// What came of collecting.
#[derive(Clone)]
pub(super) enum Collected {
    Whole(Arc<[Tag]>),
    TooLong,
}

impl Weighed for Collected {
    fn bytes(&self) -> usize {
        match self {
            // A reference, two counts and the text.
            Collected::Whole(tags) => tags.iter().map(|tag| 32 + tag.as_str().len()).sum(),
            Collected::TooLong => 0,
        }
    }

    fn ttl(&self) -> Duration {
        match self {
            Collected::Whole(_) => super::TTL,
            Collected::TooLong => TOO_LONG_TTL,
        }
    }
}

impl Mirror {
    /// The tags of a repository; `query` is the client's own, for a list that is passed on.
    ///
    /// # Errors
    /// When upstream says there is no such repository, or cannot say and no list is kept.
    pub async fn tags(&self, repository: &Repository, query: Option<&str>, deadline: Instant) -> Result<Listing<Tags>, Error> {
        within(repository, deadline, self.list_tags(repository, query)).await
    }

    async fn list_tags(&self, repository: &Repository, query: Option<&str>) -> Result<Listing<Tags>, Error> {
        let memory = &self.listings.tags;
        let known = match memory.fresh(&repository.key, repository, What::Repository) {
            Some(known) => known?,
            None => {
                let asked_of = repository.clone();
                let asking = || self.listings.asking(move |call| async move { collect(&asked_of, &call).await });
                // A long list takes its time; an older one is served only when upstream has failed.
                memory.hear(repository.key.clone(), repository, What::Repository, PAGE_TIMEOUT, asking).await?
            }
        };
        match known.content {
            Collected::Whole(ref tags) => {
                let tags = Arc::clone(tags);
                Ok(known.map(|_| Tags::Whole(tags)))
            }
            Collected::TooLong => Ok(self.tag_page(repository, query).await?.map(Tags::Page)),
        }
    }

    /// A page as upstream makes it. It is not kept: pages of different fetches would not fit together.
    async fn tag_page(&self, repository: &Repository, query: Option<&str>) -> Result<Listing<Arc<TagPage>>, Error> {
        let query = match repository.source.upstream.page_size_max() {
            Some(most) => query.map(|query| clamped(query, most)),
            None => query.map(str::to_owned),
        };
        let (asked_of, asked) = (repository.clone(), query.clone());
        let key = (repository.key.clone(), query.map(Into::into));
        let pending = self.listings.pages.ask(key, || {
            self.listings.asking(move |call| async move {
                let page = get(&asked_of, asked.as_deref(), &call).await?;
                check_cursor(page.next.as_deref())?;
                Ok(Arc::new(TagPage { tags: page.tags, next: page.next }))
            })
        });
        let joined = pending.joined;
        let Heard { result, exchange } = pending.answer().await.unwrap_or_else(Heard::from);
        let page = result.map_err(|error| Error::from_upstream(repository.upstream_name(), What::Repository, &error))?;
        Ok(Listing::fetched(page, joined, exchange))
    }
}

/// All of upstream's pages, by following its links.
async fn collect(repository: &Repository, call: &Call) -> Result<Collected, UpstreamError> {
    let begun = Instant::now();
    let mut page = first(repository, call).await?;
    let mut tags = BTreeSet::new();
    let mut visited = HashSet::new();
    loop {
        tags.extend(std::mem::take(&mut page.tags));
        let Some(next) = page.next else { break };
        if tags.len() > TAGS_MAX || visited.len() >= PAGES_MAX || begun.elapsed() >= COLLECT_TIMEOUT {
            return Ok(Collected::TooLong);
        }
        if !visited.insert(next.clone()) {
            return Err(UpstreamError::Corrupt { detail: "a list whose pages go round in a circle".into() });
        }
        page = get(repository, Some(&next), call).await?;
    }
    Ok(if tags.len() > TAGS_MAX { Collected::TooLong } else { Collected::Whole(tags.into_iter().collect()) })
}

/// The first page, a large one where upstream knows how. What it makes of `n` is not always to be trusted: then it is asked without.
async fn first(repository: &Repository, call: &Call) -> Result<Parsed, UpstreamError> {
    let page = get(repository, Some(&format!("n={PAGE_SIZE}")), call).await;
    let again = match &page {
        // It may have cut the list there without saying how to go on.
        Ok(page) => page.sent == PAGE_SIZE && page.next.is_none(),
        Err(error) => refused_the_query(error, &call.exchange),
    };
    if again { get(repository, None, call).await } else { page }
}

fn refused_the_query(error: &UpstreamError, exchange: &Exchange) -> bool {
    matches!(error, UpstreamError::Corrupt { .. }) && matches!(exchange.status(), Some(400 | 405 | 416 | 422))
}

/// A page that was understood.
struct Parsed {
    /// Those that can be tags.
    tags: Vec<Tag>,
    sent: usize,
    next: Option<String>,
}

async fn get(repository: &Repository, query: Option<&str>, call: &Call) -> Result<Parsed, UpstreamError> {
    let page = Page { repository: repository.name(), list: List::Tags, query };
    let ListingPage { bytes, next, .. } = repository.source.upstream.get_page(&page, call).await?;
    let sent = parse(&bytes)?;
    let tags = sent.iter().filter_map(|tag| tag.parse().ok()).collect();
    Ok(Parsed { tags, sent: sent.len(), next })
}

/// The document of the spec, whatever type it is sent as (Amazon says `text/plain`).
#[derive(Deserialize)]
struct Document {
    name: Option<String>,
    tags: Option<Vec<Option<String>>>,
}

fn parse(bytes: &[u8]) -> Result<Vec<String>, UpstreamError> {
    let corrupt = |detail: String| UpstreamError::Corrupt { detail };
    let document: Document = serde_json::from_slice(bytes).map_err(|error| corrupt(format!("a tags list that is none: {error}")))?;
    match document {
        Document { name: None, tags: None } => Err(corrupt("a tags list without name and tags".into())),
        Document { tags, .. } => Ok(tags.unwrap_or_default().into_iter().flatten().collect()),
    }
}

/// The query with no larger `n` than that.
fn clamped(query: &str, most: usize) -> String {
    let clamp = |pair: &str| match pair.strip_prefix("n=").map(str::parse::<usize>) {
        Some(Ok(n)) if n > most => format!("n={most}"),
        _ => pair.to_owned(),
    };
    query.split('&').map(clamp).collect::<Vec<_>>().join("&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_registry_s_document_is_read() {
        for (document, tags) in [
            (r#"{"name":"a","tags":["x","y"]}"#, vec!["x", "y"]),
            (r#"{"name":"a","tags":null}"#, vec![]),
            (r#"{"name":"a"}"#, vec![]),
            (r#"{"tags":["x",null]}"#, vec!["x"]),
            (r#"{"child":[],"manifest":{"sha256:0":{"tag":["x"]}},"name":"a","tags":["x"]}"#, vec!["x"]),
        ] {
            assert_eq!(parse(document.as_bytes()), Ok(tags.into_iter().map(str::to_owned).collect()), "{document}");
        }
        for lie in ["", "<html>", "{}", r#"{"errors":[]}"#, r#"{"name":"a","tags":"x"}"#, r#"{"name":"a","tags":[{}]}"#] {
            assert!(matches!(parse(lie.as_bytes()), Err(UpstreamError::Corrupt { .. })), "{lie}");
        }
    }

    #[test]
    fn credential_29_only_too_large_an_n_is_clamped() {
        assert_eq!(clamped("n=10000&last=a%2Fb", 1000), "n=1000&last=a%2Fb");
        for query in ["n=1000&last=x", "last=n=5000", "n=&x", "", "nn=5000", "n=99999999999999999999"] {
            assert_eq!(clamped(query, 1000), query);
        }
    }
}
