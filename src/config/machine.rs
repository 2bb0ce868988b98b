//! What the configuration leaves to the machine: directories, the disk's size, proxies. Pure: `load` asks the machine.

use std::path::{Path, PathBuf};

use super::proxy::Proxies;
use super::value::{self, Fault};

/// What the configuration leaves to the machine.
pub(super) struct Machine<'a> {
    /// The default of `cache.path`; `None` where the environment names no home.
    pub(super) cache_directory: Option<PathBuf>,
    /// The bytes of the file system that holds, or will hold, a directory.
    pub(super) disk_size: &'a dyn Fn(&Path) -> Option<u64>,
    /// Where systemd puts what `LoadCredential=` names.
    pub(super) credentials_directory: Option<PathBuf>,
    pub(super) proxies: Proxies,
}

impl Machine<'_> {
    /// A file's absolute path, or one in systemd's directory for credentials.
    pub(super) fn file(&self, text: &str) -> Result<PathBuf, Fault> {
        let Some(rest) = text.strip_prefix("$CREDENTIALS_DIRECTORY/") else { return value::absolute_path(text) };
        let directory = self.credentials_directory.as_ref().ok_or_else(|| {
            format!("`{text}` cannot be found: CREDENTIALS_DIRECTORY is not set; systemd sets it for a unit with LoadCredential=, elsewhere write an absolute path")
        })?;
        Ok(directory.join(rest.trim_start_matches('/')))
    }
}
