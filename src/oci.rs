//! The field's words: digests, names, descriptors, manifests, error codes, registries.
//! Pure: knows nobody else here, no tokio, no files, no HTTP.

mod descriptor;
mod digest;
mod error_code;
mod glob;
mod manifest;
mod name;
mod platform;
pub mod registries;

pub use descriptor::{Descriptor, MediaType};
pub use digest::{Algorithm, Digest, Hasher, InvalidDigest};
pub use error_code::{ErrorCode, error_body, first_error_code};
pub use glob::{Glob, InvalidGlob};
pub use manifest::{InvalidManifest, MANIFEST_BYTES_MAX, Manifest};
pub use name::{InvalidName, Reference, RepositoryName, Tag};
pub use platform::{IndexEntry, InvalidPlatform, Platform, index_entries, select};

/// Bytes in a kibibyte.
pub const KIB: u64 = 1024;
/// Bytes in a mebibyte.
pub const MIB: u64 = 1024 * KIB;
