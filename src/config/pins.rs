//! Images that are never evicted, as they are written: `host/repository:tag`, where `*` and `?` may stand in the tag. Pure.

use std::fmt;

use super::value::Fault;
use crate::oci::{Glob, RepositoryName, Tag, registries};

/// Tags of one repository whose images stay.
#[derive(Clone, Debug)]
pub struct PinnedImages {
    /// A key of `upstreams`.
    pub upstream: String,
    pub repository: RepositoryName,
    pub tags: Glob,
}

impl PinnedImages {
    /// The one tag that is meant, where it is no pattern.
    pub fn tag(&self) -> Option<Tag> {
        self.tags.as_str().parse().ok()
    }
}

impl fmt::Display for PinnedImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}:{}", self.upstream, self.repository, self.tags)
    }
}

/// `resolve` finds an upstream's key by any of its names.
pub(super) fn pinned_images(text: &str, resolve: impl FnOnce(&str) -> Result<String, Fault>) -> Result<PinnedImages, Fault> {
    let example = "write one such as docker.io/library/alpine:3.*";
    let (host, rest) = text.split_once('/').ok_or_else(|| format!("`{text}` names no registry; {example}"))?;
    let (repository, tags) = rest.rsplit_once(':').ok_or_else(|| format!("`{text}` names no tags; {example}, or :* for all"))?;
    let upstream = resolve(host)?;
    // As everywhere, `docker.io/alpine` means Docker's own.
    let repository = registries::full_repository(&upstream, repository)
        .parse()
        .map_err(|_| format!("`{text}` holds `{repository}`, which is no repository; {example}"))?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-*?".contains(&byte);
    if tags.is_empty() || !tags.bytes().all(fits) {
        return Err(format!(
            "`{text}` holds `{tags}`, which is no pattern of tags: letters, digits, '_', '.', '-', '*' and '?'; {example}"
        ));
    }
    // It would match nothing, and nobody would notice.
    if tags.starts_with(['.', '-']) {
        return Err(format!("`{text}` holds `{tags}`, which no tag can be: tags begin with a letter, a digit or '_'; {example}"));
    }
    let tags = Glob::new(tags).map_err(|error| format!("`{text}` is not a pattern: {error}; {example}"))?;
    Ok(PinnedImages { upstream, repository, tags })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<PinnedImages, Fault> {
        pinned_images(text, |host| match host {
            "docker.io" | "hub" => Ok("docker.io".to_owned()),
            "harbor.corp:5000" => Ok(host.to_owned()),
            _ => Err(format!("`{host}` is not an upstream")),
        })
    }

    #[test]
    fn a_pin_names_registry_repository_and_tags() {
        for (text, shown, hit, miss) in [
            ("docker.io/library/alpine:3.*", "docker.io/library/alpine:3.*", "3.20", "edge"),
            ("hub/alpine:*", "docker.io/library/alpine:*", "latest", ""),
            ("harbor.corp:5000/team/app:v?", "harbor.corp:5000/team/app:v?", "v1", "v10"),
            ("harbor.corp:5000/app:stable", "harbor.corp:5000/app:stable", "stable", "stable2"),
        ] {
            let pinned = parse(text).unwrap();
            assert_eq!(pinned.to_string(), shown);
            assert_eq!(pinned.tag().is_some(), !text.contains(['*', '?']), "{text}");
            assert!(pinned.tags.matches(hit) && (miss.is_empty() || !pinned.tags.matches(miss)), "{text}");
        }
    }

    #[test]
    fn what_is_no_pin_is_told_with_an_example() {
        for text in [
            "",
            "alpine",
            "alpine:3",
            "docker.io/alpine",
            "docker.io/Alpine:3",
            "docker.io/a:",
            "docker.io/a:[ab]",
            "docker.io/:x",
            "docker.io/a:-x",
        ] {
            assert!(parse(text).is_err_and(|fault| fault.contains("docker.io/library/alpine:3.*")), "{text}");
        }
        assert_eq!(parse("quay.io/a:b").unwrap_err(), "`quay.io` is not an upstream");
    }
}
