//! The environment as a value: where docker's and podman's files are looked for, and what programs are given.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::sync::Arc;

/// larder's own variables may hold secrets that no helper needs.
const OWN_PREFIX: &[u8] = b"LARDER_";

/// Variables as they were at the start. It has no Debug: `DOCKER_AUTH_CONFIG` is a secret.
#[derive(Clone, Default)]
pub struct Environment(Arc<BTreeMap<OsString, OsString>>);

impl Environment {
    pub fn of_process() -> Environment {
        std::env::vars_os().collect()
    }

    /// A variable that is set to something.
    pub(super) fn get(&self, name: &str) -> Option<&OsStr> {
        self.0.get(OsStr::new(name)).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from)
    }

    pub(super) fn for_programs(&self) -> impl Iterator<Item = (&OsString, &OsString)> {
        self.0.iter().filter(|(name, _)| !name.as_encoded_bytes().starts_with(OWN_PREFIX))
    }
}

impl<K: Into<OsString>, V: Into<OsString>> FromIterator<(K, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(variables: I) -> Environment {
        Environment(Arc::new(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect()))
    }
}
