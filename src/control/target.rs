//! What `purge` can be told: `host/name:tag`, `host/name@digest`, a digest, or a pattern with `*`. Pure.

use crate::config::Config;
use crate::oci::{Digest, RepositoryName, Tag, registries};
use crate::store::{Selected, What, Wildcard};

/// What a canonical text selects.
///
/// # Errors
/// One line: what is wrong with it.
pub fn parse(text: &str) -> Result<Selected, String> {
    if let Ok(digest) = text.parse::<Digest>() {
        return Ok(Selected::Object(digest));
    }
    let (repository, what) = split(text)?;
    let what = match what {
        Suffix::Digest(digest) => What::Manifest(digest.parse().map_err(|error| format!("`{digest}` is no digest: {error}"))?),
        Suffix::None | Suffix::Tag("*") => What::Everything,
        Suffix::Tag(tag) if tag.contains('*') => What::Tags(Wildcard(tag.to_owned())),
        Suffix::Tag(tag) => What::Tags(Wildcard(tag.parse::<Tag>().map_err(|error| error.to_string())?.to_string())),
    };
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".:_-/*[]".contains(&byte);
    if !repository.bytes().all(known) || repository.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
        return Err(format!("`{repository}` is neither a repository nor a pattern of such"));
    }
    Ok(Selected::Of { repository: Wildcard(repository.to_owned()), what })
}

/// The text with its upstream spelled out, as an image name in a client's hands leaves it away.
///
/// # Errors
/// One line: what is wrong with it.
pub fn canonical(text: &str, config: &Config) -> Result<String, String> {
    if text.parse::<Digest>().is_ok() {
        return Ok(text.to_owned());
    }
    let (repository, what) = split(text)?;
    let suffix = &text[repository.len()..];
    if matches!(what, Suffix::None) && !text.contains('*') {
        return Err(format!("`{text}` names no tag; write {text}:TAG, {text}@DIGEST, or '{text}:*' for all of it"));
    }
    let (host, name) = match repository.split_once('/') {
        Some((first, rest)) if is_host(first, config) => (upstream(first, config), rest),
        _ if repository.starts_with('*') => return checked(format!("{repository}{suffix}")),
        _ => (config.default_upstream.as_str(), repository),
    };
    if name.contains('*') {
        return checked(format!("{host}/{name}{suffix}"));
    }
    name.parse::<RepositoryName>().map_err(|error| error.to_string())?;
    checked(format!("{host}/{}{suffix}", registries::full_repository(host, name)))
}

/// The image that a name in a client's hands means, with its upstream, which is configured, spelled out: `host/name:tag` or
/// `host/name@digest`. As everywhere, no tag means `latest`, and a digest counts before a tag.
///
/// # Errors
/// One line: what is wrong with it, and how to mend it.
pub fn image(text: &str, config: &Config) -> Result<String, String> {
    if text.contains(['*', '?']) {
        return Err(format!("`{text}` is a pattern; name each image by its tag or digest"));
    }
    let (named, digest) = text.split_once('@').map_or((text, None), |(named, digest)| (named, Some(digest)));
    if named.is_empty() || text.parse::<Digest>().is_ok() {
        return Err(format!("`{text}` names no repository; write it as alpine@{text}"));
    }
    let (repository, suffix) = split(named)?;
    let whole = match (digest, suffix) {
        (Some(digest), _) => format!("{repository}@{digest}"),
        (None, Suffix::None) => format!("{repository}:latest"),
        (None, _) => named.to_owned(),
    };
    let image = canonical(&whole, config).map_err(|fault| if fault.contains(text) { fault } else { format!("`{text}`: {fault}") })?;
    let host = image.split_once('/').map_or("", |(host, _)| host);
    if !config.upstreams.contains_key(host) {
        let known = config.upstreams.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(format!("`{text}`: {host} is not an upstream of the configuration; add it under upstreams, which has {known}"));
    }
    Ok(image)
}

fn checked(text: String) -> Result<String, String> {
    parse(&text).map(|_| text)
}

enum Suffix<'a> {
    None,
    Tag(&'a str),
    Digest(&'a str),
}

/// The repository, and what stands behind it. A colon before the last slash is a port's.
fn split(text: &str) -> Result<(&str, Suffix<'_>), String> {
    if let Some((repository, digest)) = text.split_once('@') {
        return Ok((repository, Suffix::Digest(digest)));
    }
    match text.rsplit_once(':') {
        Some((_, "")) => Err(format!("`{text}` ends before the tag")),
        Some((repository, tag)) if !tag.contains('/') => Ok((repository, Suffix::Tag(tag))),
        _ => Ok((text, Suffix::None)),
    }
}

/// Whether the first component of a name is a registry and no part of the name.
fn is_host(first: &str, config: &Config) -> bool {
    first.contains(['.', ':', '*']) || first == "localhost" || config.upstream(first).is_some()
}

/// The name under which an upstream's content is kept. One that is configured no longer may still have some.
fn upstream<'a>(host: &'a str, config: &'a Config) -> &'a str {
    config.upstream(host).map_or_else(|| registries::canonical(host), |upstream| &upstream.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let yaml = "upstreams: {docker.io: {aliases: [hub]}, 'r.corp:5000': {}}";
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), yaml).expect("a file");
        let environment = [("HOME".to_owned(), "/home".to_owned())];
        Config::load(Some(file.path()), environment).expect("a configuration").0
    }

    fn canonical(text: &str) -> Result<String, String> {
        super::canonical(text, &config())
    }

    #[test]
    fn an_image_is_what_clients_take_it_for() {
        let config = config();
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (written, meant) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("hub/org/app", "docker.io/org/app:latest"),
            ("r.corp:5000/app:1", "r.corp:5000/app:1"),
            ("registry-1.docker.io/alpine:Edge", "docker.io/library/alpine:Edge"),
            (&format!("alpine:3.20@{digest}"), &format!("docker.io/library/alpine@{digest}")),
            (&format!("alpine@{digest}"), &format!("docker.io/library/alpine@{digest}")),
        ] {
            assert_eq!(super::image(written, &config), Ok(meant.to_owned()), "{written}");
        }
        for (wrong, says) in [
            ("", "names no repository"),
            ("alpine:*", "is a pattern"),
            (&digest, "alpine@sha256:"),
            ("quay.io/a/b:1", "quay.io is not an upstream of the configuration"),
            ("Alpine:1", "lower-case"),
            ("alpine:a b", "invalid tag"),
            ("alpine:", "ends before the tag"),
            ("alpine@sha256:12", "is no digest"),
            ("a/../b:1", "invalid repository"),
        ] {
            let fault = super::image(wrong, &config).expect_err(wrong);
            assert!(fault.contains(says) && fault.contains(wrong), "{wrong}: {fault}");
        }
    }

    #[test]
    fn names_are_spelled_out_as_clients_mean_them() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (written, meant) in [
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("hub/alpine:3.20", "docker.io/library/alpine:3.20"),
            ("index.docker.io/org/app:1", "docker.io/org/app:1"),
            ("registry.hub.docker.com/alpine:1", "docker.io/library/alpine:1"),
            ("api.made-up.example/app:1", "made-up.example/base/app:1"),
            ("org/app:v*", "docker.io/org/app:v*"),
            ("r.corp:5000/app:1", "r.corp:5000/app:1"),
            ("gone.corp/app:*", "gone.corp/app:*"),
            ("docker.io/*", "docker.io/*"),
            ("*", "*"),
            ("*/app:1", "*/app:1"),
            (&format!("alpine@{digest}"), &format!("docker.io/library/alpine@{digest}")),
            (&digest, &digest),
        ] {
            assert_eq!(canonical(written), Ok(meant.to_owned()), "{written}");
            assert!(parse(meant).is_ok());
        }
        for wrong in ["", "alpine", "r.corp:5000/app", "alpine:", "alpine@sha256:12", "Alpine:1", "alpine:a b", "a?b:1", "../x:1"] {
            assert!(canonical(wrong).is_err(), "{wrong}: {:?}", canonical(wrong));
        }
    }
}
