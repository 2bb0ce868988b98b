//! Moving in: `larder import registry2` takes over what a Distribution registry has stored, into the cache directory of a
//! stopped larder; `larder import-config` translates its configuration.

mod distribution;
mod summary;
mod taking;
mod tree;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::time::Instant;

pub use distribution::{Translation, Untranslatable, translate};
pub use summary::{Blobs, Counts, Summary};

use crate::clock::Clock;
use crate::config::Config;
use crate::gate::Gate;
use crate::store::{OpenError, StoreError};
use crate::world::{self, World};
use taking::Taking;
use tree::Tree;

/// What to take over, and for whom.
#[derive(Debug)]
pub struct Request {
    /// The registry's `storage.filesystem.rootdirectory`.
    pub directory: PathBuf,
    /// The upstream that the registry mirrored, or one of its aliases.
    pub upstream: String,
    /// Share no blocks and no files with the registry's directory.
    pub copy: bool,
}

/// Why nothing was taken over, or no more.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("{0}")]
    Directory(String),
    #[error("--upstream {0} is not one of the upstreams of the configuration")]
    Upstream(String),
    #[error(
        "the cache directory {path} belongs to user {owner}, whom the daemon runs as; run this as that user, or it could not use what is taken over"
    )]
    Owner { path: PathBuf, owner: u32 },
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("{0}; what was taken over so far is good, and the next run goes on from there")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Read(#[from] std::io::Error),
}

/// Takes over a registry's blobs, manifests and tags. `tell` gets a line now and then, and one for each thing that is wrong.
/// May be interrupted at any moment, and run again.
///
/// # Errors
/// When the registry or the cache directory cannot be used, or a disk fails.
pub fn registry2(config: &Config, request: &Request, clock: Clock, tell: &mut dyn FnMut(&str)) -> Result<Summary, ImportError> {
    let begin = Instant::now();
    let upstream = config.upstream(&request.upstream).ok_or_else(|| ImportError::Upstream(request.upstream.clone()))?;
    let tree = Tree::open(&request.directory).map_err(ImportError::Directory)?;
    check_owner(&config.cache.path)?;
    let metrics = world::metrics(config);
    let world = World { gate: Gate::Inline, clock: clock.clone(), ..World::system() };
    let store = world::open_store(config, &world, &metrics)?;
    let mut taking = Taking::new(&tree, Arc::clone(&store), (&config.cache, upstream), clock, request.copy, tell);
    let taken = taking.run();
    let mut summary = taking.end();
    store.close(true);
    taken?;
    summary.ended_after(begin.elapsed());
    Ok(summary)
}

/// The translation of a file: see [`translate`].
///
/// # Errors
/// When the file cannot be read or translated: why.
pub fn translate_file(path: &Path, environment: impl IntoIterator<Item = (String, String)>) -> Result<Translation, String> {
    let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| fail(&error))?;
    let translation = translate(&text, environment).map_err(|error| fail(&error))?;
    // Nothing is handed out that larder would then refuse. The directory stands for that of whoever runs it.
    let home = [("HOME".to_owned(), "/".to_owned())];
    let checked = Config::from_yaml(&translation.yaml, home);
    checked.map_err(|mistakes| fail(&Untranslatable::Refused(mistakes.to_string())))?;
    Ok(translation)
}

/// root's files under a daemon's directory would be there, and unreadable.
fn check_owner(cache: &Path) -> Result<(), ImportError> {
    let Ok(metadata) = std::fs::metadata(cache) else { return Ok(()) };
    if metadata.uid() == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(ImportError::Owner { path: cache.to_owned(), owner: metadata.uid() })
}
