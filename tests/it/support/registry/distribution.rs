//! The honest registry: what Distribution 3 answers, route by route.

use http::Method;
use larder::oci::{Digest, ErrorCode, MediaType};
use serde_json::json;

use super::answer::Answer;
use super::content::StoredManifest;
use super::{Kind, Request, State};

impl State {
    pub(super) fn answer(&mut self, request: &Request) -> Answer {
        if let Some(manners) = self.manners.clone() {
            return manners.lock().answer(request, self);
        }
        match request.kind {
            Kind::Token => self.auth.token(request),
            Kind::Signed => self.signed(request),
            Kind::Other => Answer::no_such_route(),
            Kind::Ping | Kind::Blob | Kind::Manifest | Kind::Tags | Kind::Referrers => {
                self.registry(request).with("docker-distribution-api-version", "registry/2.0")
            }
        }
    }

    fn registry(&mut self, request: &Request) -> Answer {
        if let Some(refusal) = self.auth.refusal(request) {
            return refusal;
        }
        if !matches!(request.method, Method::GET | Method::HEAD) {
            return Answer::error(405, ErrorCode::Unsupported, "The operation is unsupported.");
        }
        self.content_of(request)
    }

    /// What was asked for, to somebody who may have it.
    pub fn content_of(&mut self, request: &Request) -> Answer {
        let Some((repository, what, reference)) = request.parts() else {
            return Answer::new(200, "{}").with("content-type", "application/json");
        };
        match what {
            "blobs" => self.blob(request, repository, reference),
            "manifests" => self.manifest(request, repository, reference),
            "referrers" => self.referrers(request, repository, reference),
            _ => self.listed_tags(request, repository),
        }
    }

    pub fn blob(&mut self, request: &Request, repository: &str, reference: &str) -> Answer {
        let Ok(digest) = reference.parse::<Digest>() else {
            return Answer::error(400, ErrorCode::DigestInvalid, "provided digest did not match uploaded content");
        };
        let Some(bytes) = self.content.blob(repository, &digest) else {
            return Answer::error(404, ErrorCode::BlobUnknown, "blob unknown to registry");
        };
        if let Some(origin) = self.redirects.blobs.clone() {
            return self.redirects.redirect(request, &origin, bytes, "application/octet-stream");
        }
        Answer::new(200, bytes)
            .with("content-type", "application/octet-stream")
            .with("cache-control", "max-age=31536000")
            .with("docker-content-digest", digest.to_string())
            .conditional(request, &format!("\"{digest}\""))
    }

    pub fn manifest(&mut self, request: &Request, repository: &str, reference: &str) -> Answer {
        let Some(stored) = self.content.manifest(repository, reference) else {
            return Answer::error(404, ErrorCode::ManifestUnknown, "manifest unknown");
        };
        let stored = match self.acceptable(request, repository, reference, stored) {
            Ok(stored) => stored,
            Err(reason) => return Answer::error(404, ErrorCode::ManifestUnknown, reason),
        };
        if let Some(origin) = self.redirects.manifests.clone() {
            return self.redirects.redirect(request, &origin, stored.bytes, &stored.media_type);
        }
        let digest = stored.digest.to_string();
        let held = request.header("if-none-match").map(|held| held.trim_matches('"'));
        if held == Some(digest.as_str()) {
            return Answer::new(304, "");
        }
        Answer::new(200, stored.bytes)
            .with("content-type", stored.media_type)
            .with("docker-content-digest", &digest)
            .with("etag", format!("\"{digest}\""))
    }

    /// The OCI types must be listed exactly; a Docker list that is not listed turns into its amd64 image if asked for by tag.
    fn acceptable(
        &self,
        request: &Request,
        repository: &str,
        reference: &str,
        stored: StoredManifest,
    ) -> Result<StoredManifest, &'static str> {
        if accepts(request, &stored.media_type) {
            return Ok(stored);
        }
        match stored.media_type.as_str() {
            MediaType::OCI_MANIFEST => Err("OCI manifest found, but accept header does not support OCI manifests"),
            MediaType::OCI_INDEX => Err("OCI index found, but accept header does not support OCI indexes"),
            MediaType::DOCKER_LIST if !reference.contains(':') => {
                first_child(&stored).and_then(|digest| self.content.manifest(repository, &digest)).ok_or("manifest unknown")
            }
            _ => Ok(stored),
        }
    }

    pub(super) fn tags(&self, request: &Request, name: &str) -> Answer {
        let Some(repository) = self.content.repository(name) else {
            return Answer::error(404, ErrorCode::NameUnknown, "repository name not known to registry");
        };
        let last = query_value(&request.query, "last").unwrap_or_default();
        let most = match query_value(&request.query, "n").map(|n| n.parse::<usize>()) {
            None => usize::MAX,
            Some(Ok(n)) => n,
            Some(Err(_)) => return Answer::error(400, ErrorCode::Unsupported, "invalid number of results requested"),
        };
        let rest: Vec<&String> = repository.tags.keys().filter(|tag| tag.as_str() > last.as_str()).collect();
        let page = &rest[..rest.len().min(most)];
        let answer = Answer::new(200, json!({ "name": name, "tags": page }).to_string()).with("content-type", "application/json");
        match page.last() {
            Some(end) if page.len() < rest.len() => {
                answer.with("link", format!("</v2/{name}/tags/list?last={end}&n={most}>; rel=\"next\""))
            }
            _ => answer,
        }
    }
}

/// Whether a type is listed by its name.
pub fn accepts(request: &Request, media_type: &str) -> bool {
    let lines = request.headers.get_all("accept").into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).any(|entry| entry.split(';').next().is_some_and(|essence| essence.trim() == media_type))
}

fn first_child(list: &StoredManifest) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(&list.bytes).ok()?;
    Some(document["manifests"].get(0)?["digest"].as_str()?.to_owned())
}

/// The first value of a query's or form's field, decoded.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    query_values(query, name).into_iter().next()
}

pub fn query_values(query: &str, name: &str) -> Vec<String> {
    query_pairs(query).into_iter().filter(|(key, _)| key == name).map(|(_, value)| value).collect()
}

/// All fields of a query or form, decoded.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(key, value)| (percent_decode(key), percent_decode(value))).collect()
}

fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|pair| std::str::from_utf8(pair).ok()).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let (byte, used) = match (first, hex) {
            (b'%', Some(byte)) => (byte, 3),
            (b'+', _) => (b' ', 1),
            _ => (*first, 1),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    String::from_utf8(bytes).expect("a query in UTF-8")
}
