//! What `explain` can be told: an image as docker spells it, or a URL's path as a client sends it. Pure.

use http::{Method, Uri};

use crate::mirror::{Asked, Root, Target};
use crate::oci::{Digest, Reference, RepositoryName};
use crate::server::route::Route;

/// Longest text that is looked at; more than any URL that larder answers.
pub const TEXT_BYTES_MAX: usize = 8192;

/// What is meant.
#[derive(Debug, PartialEq, Eq)]
pub struct Meant {
    pub target: Target,
    pub asked: Asked,
    /// The `Host` header of a whole URL.
    pub host: Option<String>,
    /// The text names the registry as an image's name does. Clients say it by one rule or another.
    pub by_name: bool,
    /// What was understood that does not stand there.
    pub notes: Vec<String>,
}

/// `is_upstream` knows the names that need not look like hosts.
///
/// # Errors
/// One line: what is wrong with it.
pub fn parse(text: &str, is_upstream: impl Fn(&str) -> bool) -> Result<Meant, String> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(format!("it has {} bytes; no reference has more than {TEXT_BYTES_MAX}", text.len()));
    }
    if text.contains('*') {
        return Err(format!("`{text}` is a pattern; explain tells of one image, such as docker.io/library/alpine:3.20"));
    }
    if text.parse::<Digest>().is_ok() {
        return Err(format!("`{text}` names no repository; write HOST/NAME@{text}"));
    }
    match text.starts_with('/') || text.starts_with("http://") || text.starts_with("https://") {
        true => url(text),
        false => image(text, is_upstream),
    }
}

fn url(text: &str) -> Result<Meant, String> {
    let uri: Uri = text.parse().map_err(|error| format!("`{text}` is no URL: {error}"))?;
    let route = Route::parse(&Method::GET, uri.path(), uri.query()).map_err(|error| format!("`{text}`: {error}"))?;
    let (target, asked) = match route {
        Route::Manifest { target, reference } => (target, Asked::Manifest(reference)),
        Route::Blob { target, digest } => (target, Asked::Blob(digest)),
        Route::Version { .. } | Route::Tags { .. } | Route::Referrers { .. } | Route::Probe(_) => {
            return Err(format!("`{text}` is neither a manifest nor a blob; write a path such as /v2/library/alpine/manifests/3.20"));
        }
    };
    let host = uri.host().map(str::to_ascii_lowercase);
    Ok(Meant { target, asked, host, by_name: false, notes: Vec::new() })
}

fn image(text: &str, is_upstream: impl Fn(&str) -> bool) -> Result<Meant, String> {
    let wrong = |error: &dyn std::fmt::Display| format!("`{text}`: {error}; write one such as docker.io/library/alpine:3.20");
    let (front, digest) = text.split_once('@').map_or((text, None), |(front, digest)| (front, Some(digest)));
    // A colon before the last slash is a port's.
    let (name, tag) = match front.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (front, None),
    };
    let mut notes = Vec::new();
    let reference = match (tag, digest) {
        (tag, Some(digest)) => {
            notes.extend(tag.map(|tag| format!("beside a digest the tag `{tag}` says nothing")));
            Reference::Digest(digest.parse().map_err(|error| wrong(&error))?)
        }
        (Some(tag), None) => Reference::Tag(tag.parse().map_err(|error| wrong(&error))?),
        (None, None) => {
            notes.push("it names no tag, which means `latest`".to_owned());
            Reference::Tag("latest".parse().map_err(|error| wrong(&error))?)
        }
    };
    let is_host = |first: &str| {
        first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase()) || is_upstream(first)
    };
    let (registry, name) = match name.split_once('/') {
        Some((first, rest)) if is_host(first) => (Some(first.to_ascii_lowercase()), rest),
        _ => (None, name),
    };
    name.parse::<RepositoryName>().map_err(|error| wrong(&error))?;
    let by_name = registry.is_some();
    Ok(Meant { target: Target::new(Root::V2, registry, name), asked: Asked::Manifest(reference), host: None, by_name, notes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    /// Registry, name and reference.
    fn meant(text: &str) -> (Option<String>, String, String, usize) {
        let meant = parse(text, |name| name == "hub").expect(text);
        let asked = match meant.asked {
            Asked::Manifest(reference) => reference.to_string(),
            Asked::Blob(digest) => format!("blob {digest}"),
        };
        assert!(!meant.by_name || meant.target.ns.is_some());
        (meant.target.ns.clone(), meant.target.as_str().to_owned(), asked, meant.notes.len())
    }

    #[test]
    fn an_image_is_understood_as_docker_does() {
        let digest = Digest::of(Algorithm::Sha256, b"").to_string();
        for (text, registry, name, reference, notes) in [
            ("alpine", None, "alpine", "latest", 1),
            ("alpine:3.20", None, "alpine", "3.20", 0),
            ("org/app", None, "org/app", "latest", 1),
            ("hub/alpine:1", Some("hub"), "alpine", "1", 0),
            ("ghcr.io/org/app:v1", Some("ghcr.io"), "org/app", "v1", 0),
            ("GHCR.io/org/app:v1", Some("ghcr.io"), "org/app", "v1", 0),
            ("r.corp:5000/app", Some("r.corp:5000"), "app", "latest", 1),
            ("localhost/app:1", Some("localhost"), "app", "1", 0),
            (&format!("alpine@{digest}"), None, "alpine", &digest, 0),
            (&format!("docker.io/alpine:3@{digest}"), Some("docker.io"), "alpine", &digest, 1),
        ] {
            assert_eq!(meant(text), (registry.map(str::to_owned), name.to_owned(), reference.to_owned(), notes), "{text}");
        }
    }

    #[test]
    fn a_path_is_understood_as_the_server_does() {
        let digest = Digest::of(Algorithm::Sha256, b"").to_string();
        assert_eq!(meant("/v2/org/app/manifests/v1?ns=ghcr.io"), (Some("ghcr.io".into()), "org/app".into(), "v1".into(), 0));
        assert_eq!(meant(&format!("/v2/org/app/blobs/{digest}")), (None, "org/app".into(), format!("blob {digest}"), 0));
        let whole = parse("https://Mirror.corp:5000/ghcr.io/v2/org/app/manifests/v1", |_| false).expect("a URL");
        assert_eq!((whole.host.as_deref(), &whole.target.root), (Some("mirror.corp"), &Root::Prefix("ghcr.io".into())));
    }

    #[test]
    fn what_is_none_is_told_in_a_line_with_what_to_write() {
        let digest = Digest::of(Algorithm::Sha256, b"").to_string();
        let long = "a".repeat(TEXT_BYTES_MAX + 1);
        for (text, says) in [
            ("", "docker.io/library/alpine:3.20"),
            ("alpine:", "docker.io/library/alpine:3.20"),
            ("alpine:a b", "docker.io/library/alpine:3.20"),
            ("org/Alpine:1", "lower-case"),
            ("alpine@sha256:12", "docker.io/library/alpine:3.20"),
            ("ghcr.io/org/*", "a pattern"),
            (&*digest, "HOST/NAME@sha256:"),
            ("/v2/", "neither"),
            ("/v2/org/app/tags/list", "neither"),
            ("/v2/org/app/manifests/a b", "no URL"),
            ("/v2/Org/app/manifests/1", "lower-case"),
            ("/v2/a/../b/manifests/1", "invalid"),
            (&long, "bytes"),
        ] {
            let told = parse(text, |_| false).expect_err(text);
            assert!(told.contains(says) && !told.contains('\n'), "{told}");
        }
    }
}
