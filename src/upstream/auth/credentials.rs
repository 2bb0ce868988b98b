//! What larder signs in with, by every convention users have. A source says what the login is right now: files are read at
//! each use, programs are run when their answer has expired. What to do with a login is `auth`'s and `token`'s business.

mod docker_config;
mod environment;
mod exec;
mod files;
mod health;
mod helper;
mod kubelet;
mod login;
mod lookup;
mod pattern;
mod program;
mod protocol;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prometheus::IntCounter;
use secrecy::SecretString;

use self::exec::Limits;
use self::health::{Health, Place};
use self::lookup::Lookup;
use self::pattern::Image;
use self::program::{Program, Protocol};
use crate::config::{CredentialConfig, CredentialKind, Credentials, Secret};
use crate::oci::RepositoryName;
use crate::upstream::UpstreamError;

pub use environment::Environment;
pub use login::{Held, Login, Version};

/// One credential of one upstream.
pub struct Source {
    place: Place,
    kind: Kind,
    /// It has been told that there is no login.
    told: AtomicBool,
}

enum Kind {
    Password(Credentials, Health),
    IdentityToken(Secret, Health),
    RegistryToken(Secret, Health),
    Lookup(Lookup),
    Program(Arc<Program>),
}

impl Source {
    /// `registry` is the upstream's name, as image names have it. `panics` counts the tasks that panic.
    pub fn new(config: &CredentialConfig, registry: &str, environment: &Environment, panics: &IntCounter) -> Source {
        Source::with_limits(config, registry, environment, Limits::default(), panics)
    }

    fn with_limits(config: &CredentialConfig, registry: &str, environment: &Environment, limits: Limits, panics: &IntCounter) -> Source {
        let place = Place { upstream: registry.into(), credential: config.name.as_str().into(), panics: panics.clone() };
        let program = |protocol| Kind::Program(Program::new(protocol, environment, limits, &place));
        let kind = match &config.kind {
            CredentialKind::Password(credentials) => Kind::Password(credentials.clone(), Health::new(&place)),
            CredentialKind::IdentityToken(token) => Kind::IdentityToken(token.clone(), Health::new(&place)),
            CredentialKind::RegistryToken(token) => Kind::RegistryToken(token.clone(), Health::new(&place)),
            CredentialKind::DockerConfig(path) => Kind::Lookup(Lookup::in_file(path, environment, limits, &place)),
            CredentialKind::DockerConfigSearch => Kind::Lookup(Lookup::everywhere(environment, limits, &place)),
            CredentialKind::DockerHelper(name) => program(Protocol::Helper(name.clone())),
            CredentialKind::KubeletProvider(command) => program(Protocol::Kubelet(command.clone())),
        };
        Source { place, kind, told: AtomicBool::new(false) }
    }

    /// In logs and metrics; never a secret.
    pub fn name(&self) -> &str {
        &self.place.credential
    }

    /// What to sign in with for a repository, now.
    ///
    /// # Errors
    /// `CredentialRefused`, when it cannot be had. That is never the same as [`Login::Anonymous`].
    pub async fn login(&self, repository: &RepositoryName) -> Result<Held, UpstreamError> {
        let image = Image::new(&self.place.upstream, repository.as_str());
        match &self.kind {
            Kind::Password(credentials, health) => {
                let password = health.of(secret(&credentials.password, "password").await)?;
                Ok(Login::Basic { username: credentials.username.clone(), password }.into())
            }
            Kind::IdentityToken(token, health) => {
                health.of(secret(token, "identity token").await).map(|token| Login::IdentityToken(token).into())
            }
            Kind::RegistryToken(token, health) => {
                health.of(secret(token, "registry token").await).map(|token| Login::RegistryToken(token).into())
            }
            Kind::Lookup(lookup) => lookup.login(&image).await.inspect(|held| self.tell(held)),
            Kind::Program(program) => program.login(&image).await.inspect(|held| self.tell(held)),
        }
    }

    /// Upstream refused this version: a program that gave it is asked anew by the next login, once. Files are read anew anyway.
    pub fn refused(&self, version: &Version) {
        match &self.kind {
            Kind::Lookup(lookup) => lookup.refused(version),
            Kind::Program(program) => program.refused(version),
            Kind::Password(..) | Kind::IdentityToken(..) | Kind::RegistryToken(..) => {}
        }
    }

    /// Whoever configured a credential may not expect that there is none.
    fn tell(&self, held: &Held) {
        if matches!(held.login, Login::Anonymous) && !self.told.swap(true, Ordering::Relaxed) {
            let Place { upstream, credential, .. } = &self.place;
            tracing::warn!(%upstream, %credential, "the credential holds no login for this registry, which is asked without one");
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({})", self.name())
    }
}

async fn secret(secret: &Secret, what: &str) -> Result<SecretString, UpstreamError> {
    match secret {
        Secret::Inline(secret) => Ok(secret.clone()),
        Secret::File(path) => files::read_line(path).await.map_err(|error| refused(format!("{what} file {}: {error}", path.display()))),
    }
}

fn refused(detail: impl Into<String>) -> UpstreamError {
    UpstreamError::CredentialRefused { detail: detail.into() }
}

#[cfg(test)]
mod tests;
