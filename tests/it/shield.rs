//! What larder does when an upstream limits it, refuses its login or is gone: it asks no more than it must, and serves what it has.

mod budget;
mod conventions;
mod faults;
mod fleet;
mod hidden;
mod hosts;
mod later;
mod limits;
mod logins;
mod outage;
mod questions;
mod verdicts;
mod visibility;

use std::time::Duration;

use larder::config::{CredentialConfig, CredentialKind, Credentials, Secret};

use crate::support::client::Reply;
use crate::support::scene::Hub;

const LATEST: &str = "/v2/library/app/manifests/latest";
const OTHER: &str = "/v2/library/other/manifests/latest";
const HOUR: Duration = Duration::from_secs(3600);

impl Hub {
    /// It has `library/other` too.
    fn with_other() -> Hub {
        let hub = Hub::unstarted(&[1000]);
        hub.registry.push_image("library/other", "latest", &[1000], 2);
        hub
    }
}

fn credential(name: &str, user: &str, password: &str) -> CredentialConfig {
    let credentials = Credentials { username: user.into(), password: Secret::Inline(password.into()) };
    CredentialConfig { name: name.into(), repositories: Vec::new(), kind: CredentialKind::Password(credentials) }
}

/// Status and `Cache-Status`, or the error's code.
fn line(reply: &Reply) -> String {
    let told = reply.header("cache-status").map(ToOwned::to_owned).filter(|_| reply.status < 400);
    format!("{} {}", reply.status, told.or_else(|| reply.error_code()).unwrap_or_default())
}

fn retry_after(reply: &Reply) -> u64 {
    reply.header("retry-after").expect("a Retry-After").parse().expect("seconds")
}
