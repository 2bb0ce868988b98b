//! What a request's line asks for: the whole URL grammar, pure. Paths are read from the right end, since names hold slashes.
//!
//! ```text
//! /v2/<name>/manifests/<reference>   /v2/<name>/tags/list             prefixes: /v2   /<upstream>/v2   / (k3s)
//! /v2/<name>/blobs/<digest>          /v2/<name>/referrers/<digest>    query:    ns=<upstream>
//! ```
//! Which upstream a spelling means is not known here; `mirror/repository.rs` resolves a [`Target`] from configuration.

use http::Method;

use crate::mirror::{Root, Target};
use crate::oci::{Digest, InvalidDigest, InvalidName, Reference, RepositoryName};
use crate::percent::query_values;

/// Longest path that is looked at; a prefix, the longest name and a sha512 digest take some 700 bytes.
const PATH_LENGTH_MAX: usize = 1024;
/// Longest query that is passed on; the cursors of cloud registries take some hundred bytes.
pub(super) const QUERY_LENGTH_MAX: usize = 4096;

/// A question that larder answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `GET /v2/`, also with a prefix: "do you speak this protocol?"
    Version {
        root: Root,
        ns: Option<String>,
    },
    Manifest {
        target: Target,
        reference: Reference,
    },
    Blob {
        target: Target,
        digest: Digest,
    },
    Tags {
        target: Target,
    },
    Referrers {
        target: Target,
        digest: Digest,
    },
    Probe(Probe),
}

/// The paths for people and orchestrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/`
    Home,
    /// `/livez`, and `/healthz` as it was called before.
    Live,
    /// `/readyz`
    Ready,
}

/// Why a request's line is no [`Route`]. A variant is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    #[error("no such endpoint")]
    NotFound,
    #[error("larder is read-only: only GET and HEAD")]
    MethodNotAllowed,
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    #[error("path with percent-escapes or of more than {PATH_LENGTH_MAX} bytes")]
    Path,
    #[error("invalid ns parameter: expected one host[:port]")]
    Namespace,
    #[error("invalid n or last parameter: expected a number and a tag")]
    Page,
    #[error("query of more than {QUERY_LENGTH_MAX} bytes")]
    Query,
}

impl Route {
    /// # Errors
    /// When the path is none of the grammar's, a part of it is malformed, or the method would write.
    pub fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Route, RouteError> {
        let reads = matches!(*method, Method::GET | Method::HEAD);
        let probe = match path {
            "/" => Some(Probe::Home),
            "/livez" | "/healthz" => Some(Probe::Live),
            "/readyz" => Some(Probe::Ready),
            _ => None,
        };
        if let Some(probe) = probe {
            return if reads { Ok(Route::Probe(probe)) } else { Err(RouteError::MethodNotAllowed) };
        }
        let (root, rest) = split_root(path).ok_or(RouteError::NotFound)?;
        let resource = split_resource(rest);
        // Bare paths are the protocol's only if they end as the protocol's do.
        if !reads && (root != Root::Bare || resource.is_some()) {
            return Err(RouteError::MethodNotAllowed);
        }
        if path.len() > PATH_LENGTH_MAX || path.contains('%') {
            return Err(RouteError::Path);
        }
        let ns = namespace(query)?;
        if rest.is_empty() && root != Root::Bare {
            return Ok(Route::Version { root, ns });
        }
        let (name, resource) = resource.ok_or(RouteError::NotFound)?;
        let target = Target::new(root, ns, check_name(name)?);
        match resource {
            Resource::Manifest(reference) => Ok(Route::Manifest { target, reference: parse_reference(reference)? }),
            Resource::Blob(digest) => Ok(Route::Blob { target, digest: digest.parse()? }),
            Resource::Tags => Ok(Route::Tags { target }),
            Resource::Referrers(digest) => Ok(Route::Referrers { target, digest: digest.parse()? }),
        }
    }
}

/// The root, and what follows its slash. `/v2` is taken for `/v2/`.
fn split_root(path: &str) -> Option<(Root, &str)> {
    let path = path.strip_prefix('/')?;
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    if first == "v2" {
        return Some((Root::V2, rest));
    }
    let (second, name) = rest.split_once('/').unwrap_or((rest, ""));
    // `/ghcr.io/v2/manifests/latest` leaves no name after `/v2`: it is k3s's spelling of a repository `v2`.
    let nameless = split_resource(name).is_some_and(|(name, _)| name.is_empty());
    match lower_host(first) {
        Some(prefix) if second == "v2" && !nameless => Some((Root::Prefix(prefix), name)),
        _ => Some((Root::Bare, path)),
    }
}

/// The right end of a path, its last part not yet parsed.
enum Resource<'a> {
    Manifest(&'a str),
    Blob(&'a str),
    Tags,
    Referrers(&'a str),
}

/// The name, which may be anything, and what is asked of it.
fn split_resource(rest: &str) -> Option<(&str, Resource<'_>)> {
    let (front, last) = rest.rsplit_once('/')?;
    let (name, word) = front.rsplit_once('/').unwrap_or(("", front));
    match (word, last) {
        ("manifests", reference) => Some((name, Resource::Manifest(reference))),
        ("blobs", digest) => Some((name, Resource::Blob(digest))),
        ("tags", "list") => Some((name, Resource::Tags)),
        ("referrers", digest) => Some((name, Resource::Referrers(digest))),
        _ => None,
    }
}

/// Passes a repository's name, or one after a host.
fn check_name(text: &str) -> Result<&str, InvalidName> {
    let host = |text: &str| lower_host(text).is_some_and(|lower| lower == text);
    let fits = text.parse::<RepositoryName>().is_ok()
        || text.split_once('/').is_some_and(|(first, rest)| host(first) && rest.parse::<RepositoryName>().is_ok());
    if fits { Ok(text) } else { Err(InvalidName::Repository) }
}

fn parse_reference(text: &str) -> Result<Reference, RouteError> {
    text.parse().map_err(|error| match error {
        InvalidName::Digest(digest) => RouteError::Digest(digest),
        InvalidName::Tag | InvalidName::Repository => RouteError::Name(error),
    })
}

fn namespace(query: Option<&str>) -> Result<Option<String>, RouteError> {
    let mut all = query.into_iter().flat_map(|query| query_values(query, "ns"));
    let Some(first) = all.next() else { return Ok(None) };
    let host = first.as_deref().and_then(lower_host).ok_or(RouteError::Namespace)?;
    // Two that differ could be read one way here and another way by whatever stands in front of us.
    if all.all(|other| other == first) { Ok(Some(host)) } else { Err(RouteError::Namespace) }
}

/// `host[:port]` in lower case: a name of dot-separated labels, or an IPv6 address in brackets.
fn lower_host(text: &str) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        label.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_host = match address {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => host.split('.').all(label),
    };
    let is_port = port.is_none_or(|port| port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok());
    (text.len() <= 255 && is_host && is_port).then(|| text.to_ascii_lowercase())
}

#[cfg(test)]
mod tests;
