//! The registries of the field as strict doubles, each at its real names behind TLS: they check what the real ones check, and
//! a test in which larder sent what no honest client sends fails when its double is dropped.
//!
//! ```ignore
//! let net = FakeNet::new();
//! let hub = docker_hub(&net);
//! let image = hub.push_image("library/alpine", "3.20", &[1000], 1);
//! hub.script(|hub| hub.limit = Some(Limit::new(100, 21_600)));
//! let larder = Setup::new(&net).upstream(hub.upstream()).start();
//! ```

mod docker_hub;
mod ecr_public;
mod ghcr;
mod gitea;
mod gitlab;
mod harbor;
mod kubernetes;
mod nexus;
mod quay;
mod tokens;

use parking_lot::{Mutex, MutexGuard};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;

use larder::config::{BaseUrl, CredentialConfig, Secret, UpstreamConfig};
use tempfile::TempDir;

use super::larder::upstream;
use super::net::{FakeNet, Host};
use super::registry::{FakeRegistry, Manners, Request, State};

pub use docker_hub::{DockerHub, Limit, docker_hub};
pub use ecr_public::{EcrPublic, ecr_public};
pub use ghcr::{Ghcr, ghcr};
pub use gitea::{Gitea, gitea};
pub use gitlab::{Gitlab, gitlab};
pub use harbor::{Harbor, harbor};
pub use kubernetes::{Kubernetes, Ping, registry_k8s_io};
pub use nexus::{Nexus, nexus};
pub use quay::{Quay, quay};

/// One registry of the field. What a test pushes, scripts and counts is [`FakeRegistry`]'s.
pub struct Double<M> {
    registry: FakeRegistry,
    manners: Arc<Mutex<M>>,
    place: Place,
    authority: TempDir,
}

/// Where clients find it.
pub struct Place {
    /// As image names have it.
    pub name: &'static str,
    pub host: &'static str,
    /// Before `/v2`.
    pub path: &'static str,
}

impl<M: Manners + 'static> Double<M> {
    /// `hosts`: every name it answers to, and its address.
    fn new(net: &FakeNet, manners: M, place: Place, hosts: &[(&str, &str)]) -> Double<M> {
        let manners = Arc::new(Mutex::new(manners));
        let registry = FakeRegistry::with_manners(Arc::clone(&manners) as Arc<Mutex<dyn Manners>>);
        for (name, address) in hosts {
            net.tls_host(name, address, &registry);
        }
        let authority = tempfile::tempdir().expect("a directory");
        std::fs::write(authority.path().join("ca.pem"), net.ca_pem()).expect("a file");
        Double { registry, manners, place, authority }
    }

    /// Changes how it behaves.
    pub fn script<T>(&self, change: impl FnOnce(&mut M) -> T) -> T {
        change(&mut self.manners())
    }

    fn manners(&self) -> MutexGuard<'_, M> {
        self.manners.lock()
    }

    /// larder's settings for it, without credentials.
    pub fn upstream(&self) -> UpstreamConfig {
        let mut config = upstream(self.place.name, self.place.host);
        config.urls = vec![BaseUrl { tls: true, host: self.place.host.into(), port: 443, path: self.place.path.into() }];
        config.ca_file = Some(self.ca_file());
        config
    }

    /// The same, signed in. A credential makes it private, so that nothing is asked anonymously beside.
    pub fn upstream_as(&self, user: &str, password: &str) -> UpstreamConfig {
        let mut config = self.upstream();
        config.credentials = vec![CredentialConfig::password(user, Secret::Inline(password.to_owned().into()))];
        config.visibility = larder::config::Visibility::Private;
        config
    }

    pub fn ca_file(&self) -> PathBuf {
        self.authority.path().join("ca.pem")
    }

    /// As image names have it.
    pub fn name(&self) -> &'static str {
        self.place.name
    }

    /// The `Host` of its API.
    pub fn host(&self) -> &'static str {
        self.place.host
    }
}

impl<M> Deref for Double<M> {
    type Target = FakeRegistry;

    fn deref(&self) -> &FakeRegistry {
        &self.registry
    }
}

impl<M> From<&Double<M>> for Host {
    fn from(double: &Double<M>) -> Host {
        Host::from(&double.registry)
    }
}

impl<M> Drop for Double<M> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.registry.assert_clean();
        }
    }
}

/// What a mirror has a reason to send. Anything else is a client's, or a proxy's.
const HEADERS: [&str; 10] = [
    "host",
    "user-agent",
    "accept",
    "accept-encoding",
    "authorization",
    "range",
    "if-range",
    "if-none-match",
    "content-type",
    "content-length",
];

/// Notes what is wrong with a request whatever registry it came to.
fn inspect(request: &Request, state: &mut State) {
    for name in request.headers.keys().filter(|name| !HEADERS.contains(&name.as_str())) {
        state.violation(request, format!("the header {name}"));
    }
    if request.header("accept-encoding").is_some_and(|coding| coding != "identity") {
        state.violation(request, "content that may be encoded");
    }
    if request.headers.get_all("authorization").iter().count() > 1 {
        state.violation(request, "two Authorizations");
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD" | "POST") {
        state.violation(request, "a method that changes things");
    }
}

/// Notes parameters that the distribution-spec does not have: `ns` is between a client and its mirror.
fn inspect_query(request: &Request, state: &mut State, known: &[&str]) {
    for (name, _) in super::registry::query_pairs(&request.query) {
        if !known.contains(&name.as_str()) {
            state.violation(request, format!("the parameter {name}"));
        }
    }
}

/// A host that hands out signed URLs' bytes, and nothing else.
fn store(request: &Request, state: &mut State) -> super::registry::answer::Answer {
    inspect(request, state);
    state.signed(request)
}
