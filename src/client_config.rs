//! `larder client-config`: the exact file that makes a client pull through larder, and what to beware of. The file
//! goes to stdout, so that it can be piped to where it belongs; the notes go to stderr.

use serde_json::json;

use crate::config::{BaseUrl, Config, WELL_KNOWN};

/// The clients whose files we know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Docker,
    Containerd,
    Podman,
    K3s,
    Buildkit,
}
