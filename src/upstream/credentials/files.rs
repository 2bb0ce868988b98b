//! Secrets' files, read at each use: rotated ones need no restart, and a path is opened anew, so that Kubernetes' swap of
//! `..data` is seen.

use std::io::Read as _;
use std::path::Path;

use secrecy::zeroize::Zeroizing;

use crate::oci::KIB;

/// docker's config.json of a company with many registries has some ten KiB.
const BYTES_MAX: u64 = 1024 * KIB;

/// A file's content, wiped from memory when it is dropped; or why not, without any of it.
pub(super) async fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || read_now(&owned)).await;
    read.unwrap_or_else(|_| Err("reading it was interrupted".into()))
}

fn read_now(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    // A pipe would hold the thread until somebody writes to it.
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is not a file".into());
    }
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    // At once as large as it gets: growing would leave copies behind.
    let capacity = metadata.len().min(BYTES_MAX) + 1;
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(capacity).unwrap_or_default()));
    file.take(BYTES_MAX + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() as u64 > BYTES_MAX { Err(format!("it is larger than {} KiB", BYTES_MAX / KIB)) } else { Ok(content) }
}
