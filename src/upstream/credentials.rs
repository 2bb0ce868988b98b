//! What larder signs in with, by every convention users have. A source says what the login is right now: files are read at
//! each use, programs are run when their answer has expired. What to do with a login is `auth`'s and `token`'s business.

mod docker_config;
mod environment;
mod files;
mod login;
mod pattern;

use std::path::Path;

use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

use super::UpstreamError;
use crate::config::{CredentialConfig, CredentialKind, Credentials, Secret};
use crate::oci::RepositoryName;

pub(super) use environment::Environment;
pub(super) use login::{Held, Login, Version, sensitive};

/// One credential of one upstream.
pub(super) struct Source {
    name: String,
    kind: CredentialKind,
}

impl Source {
    /// `registry` is the upstream's name, as image names have it.
    pub(super) fn new(config: &CredentialConfig, _registry: &str, _environment: &Environment) -> Source {
        Source { name: config.name.clone(), kind: config.kind.clone() }
    }

    /// In logs and metrics; never a secret.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// What to sign in with for a repository, now.
    pub(super) async fn login(&self, _repository: &RepositoryName) -> Result<Held, UpstreamError> {
        match &self.kind {
            CredentialKind::Password(Credentials { username, password }) => {
                Ok(Login::Basic { username: username.clone(), password: secret(password, "password").await? }.into())
            }
            CredentialKind::IdentityToken(token) => Ok(Login::IdentityToken(secret(token, "identity token").await?).into()),
            CredentialKind::RegistryToken(token) => Ok(Login::RegistryToken(secret(token, "registry token").await?).into()),
            _ => Err(refused("not to be had")),
        }
    }

    /// Upstream refused this version: a program that gave it is asked anew by the next login, once.
    pub(super) fn refused(&self, _version: &Version) {}
}

/// `Basic <username:password>`, the password's file read anew: rotated secrets need no restart.
pub(super) async fn basic(credentials: &Credentials) -> Result<HeaderValue, UpstreamError> {
    let password = secret(&credentials.password, "password").await?;
    login::basic(&credentials.username, password.expose_secret())
}

async fn secret(secret: &Secret, what: &str) -> Result<SecretString, UpstreamError> {
    match secret {
        Secret::Inline(secret) => Ok(secret.clone()),
        Secret::File(path) => line(path, what).await,
    }
}

/// A file's one line. One trailing newline is not part of the secret; further ones may be.
async fn line(path: &Path, what: &str) -> Result<SecretString, UpstreamError> {
    let content = files::read(path).await;
    let line = content.and_then(|bytes| {
        let text = std::str::from_utf8(&bytes).map_err(|_| "it is not UTF-8 text".to_owned())?;
        let line = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
        if line.is_empty() { Err("it is empty".into()) } else { Ok(SecretString::from(line)) }
    });
    line.map_err(|why| refused(format!("{what} file {}: {why}", path.display())))
}

fn refused(detail: impl Into<String>) -> UpstreamError {
    UpstreamError::CredentialRefused { detail: detail.into() }
}

#[cfg(test)]
mod tests;
