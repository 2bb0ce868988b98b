//! Lists as other registries than Distribution make them: tags in pages of their own size and spelling, and referrers.

use std::collections::HashMap;

use larder::oci::{Digest, ErrorCode, MediaType};
use serde_json::{Value, json};

use super::answer::Answer;
use super::distribution::query_value;
use super::{FakeRegistry, Request, State};

/// How lists are made; unless told, as Distribution does.
#[derive(Default)]
pub(super) struct Listings {
    tags: Option<TagPages>,
    referrers: Option<Referrers>,
    /// What a query that was handed out means: where in which list to go on.
    cursors: HashMap<String, Cursor>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Cursor {
    path: String,
    from: usize,
}

/// Pages of tags.
#[derive(Clone, Debug)]
pub struct TagPages {
    most: usize,
    origin: String,
    path: Option<String>,
    opaque: bool,
    n_max: usize,
    links: bool,
}

impl TagPages {
    /// At most so many tags a page, whatever `n` says.
    pub fn of(most: usize) -> TagPages {
        TagPages { most, origin: String::new(), path: None, opaque: false, n_max: usize::MAX, links: true }
    }

    /// Links are absolute, as Amazon's: `http://hub.test`.
    pub fn absolute(self, origin: &str) -> TagPages {
        TagPages { origin: origin.into(), ..self }
    }

    /// Links lead to this path.
    pub fn leading_to(self, path: &str) -> TagPages {
        TagPages { path: Some(path.into()), ..self }
    }

    /// Pages go on by a cursor that must come back byte for byte, as Quay's; `last` is refused, as Amazon's public gallery does.
    pub fn opaque(self) -> TagPages {
        TagPages { opaque: true, ..self }
    }

    /// A larger `n` is refused.
    pub fn refusing_n_above(self, n_max: usize) -> TagPages {
        TagPages { n_max, ..self }
    }

    /// A page does not say how to go on.
    pub fn without_links(self) -> TagPages {
        TagPages { links: false, ..self }
    }
}

/// The referrers API.
#[derive(Clone, Debug)]
pub struct Referrers {
    filters: bool,
    most: usize,
    origin: String,
}

impl Referrers {
    /// All on one page; `artifactType` is obeyed.
    pub fn native() -> Referrers {
        Referrers { filters: true, most: usize::MAX, origin: String::new() }
    }

    /// `artifactType` is ignored.
    pub fn unfiltered(self) -> Referrers {
        Referrers { filters: false, ..self }
    }

    /// At most so many a page, linked to by an absolute URL of this origin.
    pub fn paged(self, most: usize, origin: &str) -> Referrers {
        Referrers { most, origin: origin.into(), ..self }
    }
}

impl FakeRegistry {
    pub fn page_tags(&self, pages: TagPages) {
        self.state().listings.tags = Some(pages);
    }

    pub fn serve_referrers(&self, referrers: Referrers) {
        self.state().listings.referrers = Some(referrers);
    }

    /// An artifact that refers to a manifest: a signature, say.
    pub fn push_referrer(&self, repository: &str, subject: Digest, artifact_type: &str, text: &str) -> Digest {
        let layer = self.push_blob(repository, text.to_owned());
        let config = self.push_blob(repository, "{}");
        let document = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2 },
            "layers": [{ "mediaType": artifact_type, "digest": layer.to_string(), "size": text.len() }],
            "subject": { "mediaType": MediaType::OCI_MANIFEST, "digest": subject.to_string(), "size": 1 },
        });
        self.push_manifest(repository, None, MediaType::OCI_MANIFEST, document.to_string())
    }
}

impl State {
    pub(super) fn listed_tags(&mut self, request: &Request, name: &str) -> Answer {
        let Some(pages) = self.listings.tags.clone() else { return self.tags(request, name) };
        let Some(repository) = self.content.repository(name) else {
            return Answer::error(404, ErrorCode::NameUnknown, "repository name not known to registry");
        };
        let all: Vec<String> = repository.tags.keys().cloned().collect();
        let asked = query_value(&request.query, "n").map_or(Ok(usize::MAX), |n| n.parse::<usize>());
        let last = query_value(&request.query, "last");
        let refused = |status| Answer::error(status, ErrorCode::Unsupported, "invalid parameter");
        let from = match self.listings.cursors.get(&request.query) {
            Some(cursor) if cursor.path == request.path => cursor.from,
            Some(_) => return refused(400),
            None if query_value(&request.query, "next_page").is_some() => return refused(400),
            None if pages.opaque && last.is_some() => return refused(405),
            None => last.map_or(0, |last| all.partition_point(|tag| *tag <= last)),
        };
        let Some(asked) = asked.ok().filter(|n| *n <= pages.n_max || *n == usize::MAX) else { return refused(400) };
        let end = all.len().min(from.saturating_add(asked.min(pages.most)));
        let body = json!({ "name": name, "tags": &all[from..end] }).to_string();
        // As Amazon has it.
        let answer = Answer::new(200, body).with("content-type", "text/plain; charset=utf-8");
        if end == all.len() || !pages.links || end == from {
            return answer;
        }
        let query = match pages.opaque {
            true => format!("next_page=gAAA%2Fb+{}%3d==&n={}", end * 7919, pages.most),
            false => format!("last={}&n={}", all[end - 1], pages.most),
        };
        self.listings.cursors.insert(query.clone(), Cursor { path: request.path.clone(), from: end });
        let path = pages.path.unwrap_or_else(|| request.path.clone());
        answer.with("link", format!("<{}{path}?{query}>; rel=\"next\"", pages.origin))
    }

    pub(super) fn referrers(&mut self, request: &Request, name: &str, subject: &str) -> Answer {
        // Distribution has no such route.
        let Some(api) = self.listings.referrers.clone() else { return Answer::no_such_route() };
        if subject.parse::<Digest>().is_err() {
            return Answer::error(400, ErrorCode::DigestInvalid, "invalid digest");
        }
        if !super::distribution::accepts(request, MediaType::OCI_INDEX) {
            return Answer::error(406, ErrorCode::Unsupported, "not acceptable");
        }
        let wanted = query_value(&request.query, "artifactType").filter(|_| api.filters);
        let all = self.referring(name, subject, wanted.as_deref());
        let from = match self.listings.cursors.get(&request.query) {
            Some(cursor) if cursor.path == request.path => cursor.from,
            None if query_value(&request.query, "token").is_none() => 0,
            _ => return Answer::error(400, ErrorCode::Unsupported, "invalid token"),
        };
        let end = all.len().min(from.saturating_add(api.most));
        let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": &all[from..end] });
        // With the space that some encoders leave, so that a copy made anew would differ.
        let mut answer = Answer::new(200, format!("{index}\n")).with("content-type", MediaType::OCI_INDEX);
        if wanted.is_some() {
            answer.set("oci-filters-applied", "artifactType");
        }
        if end == all.len() {
            return answer;
        }
        let filter = wanted.map(|wanted| format!("&artifactType={}", wanted.replace('/', "%2f").replace('+', "%2B"))).unwrap_or_default();
        let query = format!("token={}+%2B=={filter}", end * 7919);
        self.listings.cursors.insert(query.clone(), Cursor { path: request.path.clone(), from: end });
        answer.with("link", format!("<{}{}?{query}>; rel=\"next\"", api.origin, request.path))
    }

    /// Descriptors of what refers to a manifest, in the order of their digests.
    fn referring(&self, name: &str, subject: &str, wanted: Option<&str>) -> Vec<Value> {
        let manifests = self.content.repository(name).into_iter().flat_map(|repository| repository.manifests.values());
        let mut found: Vec<Value> = manifests
            .filter_map(|stored| {
                let document: Value = serde_json::from_slice(&stored.bytes).ok()?;
                let artifact_type = document["artifactType"].as_str()?;
                let refers = document["subject"]["digest"] == subject && wanted.is_none_or(|wanted| wanted == artifact_type);
                let digest = stored.digest.to_string();
                refers.then(|| json!({ "mediaType": stored.media_type, "digest": digest, "size": stored.bytes.len(), "artifactType": artifact_type }))
            })
            .collect();
        found.sort_by_key(|descriptor| descriptor["digest"].to_string());
        found
    }
}
