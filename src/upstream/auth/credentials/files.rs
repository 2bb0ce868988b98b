//! Secrets' files, read at each use: rotated ones need no restart, and a path is opened anew, so that Kubernetes' swap of
//! `..data` is seen.

use std::io::{self, Read as _};
use std::path::Path;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use crate::oci::KIB;

/// docker's config.json of a company with many registries has some ten KiB.
const BYTES_MAX: u64 = 1024 * KIB;

/// A file's one line. One trailing newline is not part of the secret; further ones may be.
pub(super) async fn read_line(path: &Path) -> io::Result<SecretString> {
    read(path, line).await
}

/// What a file's content means. No error holds any of the content.
pub(super) async fn read<T: Send + 'static>(path: &Path, parse: fn(&[u8]) -> io::Result<T>) -> io::Result<T> {
    let path = path.to_owned();
    let read = tokio::task::spawn_blocking(move || parse(&content(&path)?)).await;
    read.unwrap_or_else(|_| Err(io::Error::other("reading it was interrupted")))
}

fn line(content: &[u8]) -> io::Result<SecretString> {
    let text = std::str::from_utf8(content).map_err(|_| io::Error::other("it is not UTF-8 text"))?;
    let line = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
    if line.is_empty() { Err(io::Error::other("it is empty")) } else { Ok(SecretString::from(line)) }
}

/// Wiped from memory when it is dropped.
fn content(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    // A pipe would hold the thread until somebody writes to it.
    let metadata = std::fs::metadata(path)?;
    if !metadata.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    // At once as large as it gets: growing would leave copies behind.
    let capacity = metadata.len().min(BYTES_MAX) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(capacity).unwrap_or_default()));
    std::fs::File::open(path)?.take(BYTES_MAX + 1).read_to_end(&mut content)?;
    let fits = content.len() as u64 <= BYTES_MAX;
    if fits { Ok(content) } else { Err(io::Error::other(format!("it is larger than {} KiB", BYTES_MAX / KIB))) }
}
