//! A manifest: bytes that were checked against their digest, read once for what they list.

use bytes::Bytes;
use serde::Deserialize;

use super::{Algorithm, Descriptor, Digest, MIB, MediaType};

/// Most bytes of a manifest: what Distribution, containerd and containers/image accept.
pub const MANIFEST_BYTES_MAX: u64 = 4 * MIB;

/// Verified bytes and what they say. The bytes are what clients get, never a re-encoding of them.
#[derive(Clone, Debug)]
pub struct Manifest {
    descriptor: Descriptor,
    bytes: Bytes,
    children: Vec<Descriptor>,
}

/// Why bytes are not a manifest that may be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidManifest {
    #[error("the manifest's bytes hash to {found}")]
    WrongDigest { found: Digest },
    #[error("the manifest is not JSON")]
    NotJson,
    #[error("the manifest says mediaType {inside}, its Content-Type said {outside}")]
    WrongMediaType { inside: String, outside: MediaType },
    #[error("the manifest has both `manifests` and `layers`, so that two readers would see two images")]
    Ambiguous,
    #[error("the manifest has the retired schema version 1")]
    SchemaOne,
    #[error("the manifest has no media type, neither inside nor in its Content-Type")]
    NoMediaType,
}

/// The few fields a mirror reads; everything else passes through unseen.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema_version: Option<u64>,
    media_type: Option<String>,
    config: Option<Link>,
    #[serde(default)]
    layers: Option<Vec<Link>>,
    #[serde(default)]
    blobs: Option<Vec<Link>>,
    #[serde(default)]
    manifests: Option<Vec<Link>>,
}

/// A descriptor as found in a manifest. One that cannot be read lists nothing that could be asked for, so it is passed over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Link {
    media_type: Option<String>,
    digest: Option<String>,
    size: Option<u64>,
}

impl Manifest {
    /// Verifies and reads a manifest. `announced` is the upstream's `Content-Type`; where it is absent or says nothing
    /// (`application/json`, `text/plain`), the body's own `mediaType` stands in.
    ///
    /// # Errors
    /// When the bytes are not those of `expected`, or cannot safely be served as one type (CVE-2021-41190).
    pub fn verified(bytes: Bytes, announced: Option<&str>, expected: &Digest) -> Result<Manifest, InvalidManifest> {
        let found = Digest::of(expected.algorithm(), &bytes);
        if found != *expected {
            return Err(InvalidManifest::WrongDigest { found });
        }
        Manifest::read(bytes, announced, found)
    }

    /// Reads a manifest that was asked for by tag from an upstream that did not name its digest: it is then whatever its bytes hash to.
    ///
    /// # Errors
    /// As [`Manifest::verified`], but for the digest.
    pub fn unnamed(bytes: Bytes, announced: Option<&str>) -> Result<Manifest, InvalidManifest> {
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Manifest::read(bytes, announced, digest)
    }

    fn read(bytes: Bytes, announced: Option<&str>, digest: Digest) -> Result<Manifest, InvalidManifest> {
        let document: Document = serde_json::from_slice(&bytes).map_err(|_| InvalidManifest::NotJson)?;
        if document.schema_version == Some(1) {
            return Err(InvalidManifest::SchemaOne);
        }
        if document.manifests.is_some() && document.layers.is_some() {
            return Err(InvalidManifest::Ambiguous);
        }
        let outside = announced.and_then(|text| text.parse::<MediaType>().ok()).filter(|announced| !announced.says_nothing());
        let media_type = match (&document.media_type, outside) {
            (Some(inside), Some(outside)) if inside != outside.as_str() => {
                return Err(InvalidManifest::WrongMediaType { inside: inside.clone(), outside });
            }
            (_, Some(outside)) => outside,
            (Some(inside), None) => inside.parse().map_err(|_| InvalidManifest::NoMediaType)?,
            (None, None) => guess(&document).parse().map_err(|_| InvalidManifest::NoMediaType)?,
        };
        let children = [document.layers, document.blobs, document.manifests]
            .into_iter()
            .flatten()
            .flatten()
            .chain(document.config)
            .filter_map(Link::descriptor)
            .collect();
        let size = bytes.len() as u64;
        Ok(Manifest { descriptor: Descriptor { media_type, digest, size }, bytes, children })
    }

    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it lists: layers, config, and the manifests of an index. Its `subject` is not listed: that is another image's.
    pub fn children(&self) -> &[Descriptor] {
        &self.children
    }
}

/// OCI images may omit `mediaType`; their shape tells.
fn guess(document: &Document) -> &'static str {
    if document.manifests.is_some() {
        MediaType::OCI_INDEX
    } else if document.config.is_some() || document.layers.is_some() {
        MediaType::OCI_MANIFEST
    } else {
        ""
    }
}

impl Link {
    fn descriptor(self) -> Option<Descriptor> {
        let media_type = self.media_type.as_deref().unwrap_or("application/octet-stream").parse().ok()?;
        Some(Descriptor { media_type, digest: self.digest?.parse().ok()?, size: self.size? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn read(body: &str, announced: Option<&str>) -> Result<Manifest, InvalidManifest> {
        let bytes = Bytes::from(body.to_owned());
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Manifest::verified(bytes, announced, &digest)
    }

    #[test]
    fn children_are_layers_config_and_manifests_but_not_the_subject() {
        let body = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"a/b","digest":"{LAYER}","size":1}},"layers":[{{"digest":"{LAYER}","size":2}},{{"digest":"nonsense","size":2}}],
            "subject":{{"digest":"{LAYER}","size":3}}}}"#
        );
        let manifest = read(&body, None).expect("a manifest");
        assert_eq!(manifest.children().iter().map(|child| child.size).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(manifest.descriptor().media_type.as_str(), MediaType::OCI_MANIFEST);
    }

    #[test]
    fn one_body_has_one_type() {
        let index = format!(r#"{{"mediaType":"{}","manifests":[]}}"#, MediaType::OCI_INDEX);
        assert!(read(&index, Some(MediaType::OCI_INDEX)).is_ok());
        assert!(read(&index, Some("application/json")).is_ok_and(|m| m.descriptor().media_type.as_str() == MediaType::OCI_INDEX));
        assert!(matches!(read(&index, Some(MediaType::OCI_MANIFEST)), Err(InvalidManifest::WrongMediaType { .. })));
        assert_eq!(read(r#"{"manifests":[],"layers":[]}"#, Some(MediaType::OCI_INDEX)).err(), Some(InvalidManifest::Ambiguous));
        assert_eq!(read(r#"{"schemaVersion":1}"#, None).err(), Some(InvalidManifest::SchemaOne));
        assert_eq!(read("<html>login</html>", Some("text/html")).err(), Some(InvalidManifest::NotJson));
        assert_eq!(read("{}", None).err(), Some(InvalidManifest::NoMediaType));
    }

    #[test]
    fn bytes_must_hash_to_their_name() {
        let other = Digest::of(Algorithm::Sha512, b"other");
        let refused = Manifest::verified(Bytes::from_static(b"{}"), Some("a/b"), &other);
        assert!(matches!(refused, Err(InvalidManifest::WrongDigest { .. })));
    }
}
