//! Descriptors: what somebody announced about some content, not yet believed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::Digest;

/// A media type without parameters, as it goes into `Content-Type`: visible ASCII, `type/subtype`, at most 255 characters (RFC 6838 §4.2).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct MediaType(Arc<str>);

impl MediaType {
    pub const OCI_INDEX: &'static str = "application/vnd.oci.image.index.v1+json";
    pub const OCI_MANIFEST: &'static str = "application/vnd.oci.image.manifest.v1+json";
    pub const DOCKER_LIST: &'static str = "application/vnd.docker.distribution.manifest.list.v2+json";
    pub const DOCKER_MANIFEST: &'static str = "application/vnd.docker.distribution.manifest.v2+json";

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What servers say that don't know better; a manifest's own `mediaType` is to be believed instead.
    pub fn says_nothing(&self) -> bool {
        matches!(self.as_str(), "application/json" | "text/plain" | "text/html" | "application/octet-stream")
    }

    /// Whether it lists manifests, of one image for several platforms.
    pub fn is_index(&self) -> bool {
        matches!(self.as_str(), MediaType::OCI_INDEX | MediaType::DOCKER_LIST)
    }

    /// Whether it is asked for as a manifest, an index too; what else an index lists are blobs (buildkit's caches).
    pub fn is_manifest(&self) -> bool {
        self.is_index() || self.as_str().contains(".manifest.")
    }

    /// Windows base layers of old, which clients fetch from where the manifest's `urls` lead, not from a registry.
    pub fn is_foreign(&self) -> bool {
        self.as_str().contains(".foreign.") || self.as_str().contains(".nondistributable.")
    }

    /// Docker's first manifests, retired.
    pub fn is_schema_one(&self) -> bool {
        self.as_str().starts_with("application/vnd.docker.distribution.manifest.v1+")
    }
}

/// Not a media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a media type")]
pub struct InvalidMediaType;

impl FromStr for MediaType {
    type Err = InvalidMediaType;

    /// Parameters (`; charset=…`) are dropped: clients compare the type as a plain string.
    fn from_str(text: &str) -> Result<MediaType, InvalidMediaType> {
        let essence = text.split(';').next().unwrap_or_default().trim();
        let restricted = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$&-^_.+/".contains(&byte);
        let fits = essence.len() <= 255
            && essence.bytes().all(restricted)
            && essence.split('/').filter(|part| !part.is_empty()).count() == 2
            && essence.matches('/').count() == 1;
        if fits { Ok(MediaType(essence.into())) } else { Err(InvalidMediaType) }
    }
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Media type, digest and size of some content (image-spec, descriptor.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub media_type: MediaType,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_dropped_and_nonsense_is_refused() {
        assert_eq!("application/json; charset=utf-8".parse::<MediaType>().map(|t| t.to_string()), Ok("application/json".into()));
        for text in ["", "json", "a/", "/b", "a/b/c", "a/b\r\nx: y", "a /b", &"a/".repeat(200)] {
            assert_eq!(text.parse::<MediaType>(), Err(InvalidMediaType), "{text:?}");
        }
    }
}
