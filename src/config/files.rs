//! Looks at the files that a configuration names. What is read once, at the start, must be there now; what is read at
//! each use may come later, so its absence is a warning.

use std::fmt::Display;
use std::path::Path;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::section::{Findings, Section};
use super::{Config, CredentialKind, Credentials, Secret};

pub(super) fn check_files(config: &Config, root: &Section<'_>, findings: &mut Findings) {
    for upstream in config.upstreams.values() {
        let section = root.inner("upstreams").inner(&upstream.name);
        let mut certificates = |key, path: Option<&Path>, check: fn(&Path) -> Result<(), String>| {
            if let Some(Err(fault)) = path.map(check) {
                findings.mistake(&section.origin(key), &section.key(key), fault);
            }
        };
        certificates("ca_file", upstream.ca_file.as_deref(), has_certificate);
        certificates("client_cert_file", upstream.client_cert_file.as_deref(), has_certificate_and_key);
        // A configuration without mistakes has a credential for each entry, and only then are warnings reported.
        for (entry, credential) in section.entries("credentials").iter().zip(&upstream.credentials) {
            if let Some((key, path)) = file_of(&credential.kind)
                && let Err(error) = can_be_read(path)
            {
                let message = format!("{} cannot be read now: {error}", path.display());
                findings.warning(&entry.origin(key), &entry.key(key), message);
            }
        }
    }
}

fn file_of(kind: &CredentialKind) -> Option<(&'static str, &Path)> {
    match kind {
        CredentialKind::Password(Credentials { password: Secret::File(path), .. }) => Some(("password_file", path)),
        CredentialKind::IdentityToken(Secret::File(path)) => Some(("identity_token_file", path)),
        CredentialKind::RegistryToken(Secret::File(path)) => Some(("registry_token_file", path)),
        CredentialKind::DockerConfig(path) => Some(("docker_config", path)),
        CredentialKind::KubeletProvider(command) => command.first().map(|program| ("kubelet_provider", Path::new(program))),
        CredentialKind::Password(_)
        | CredentialKind::IdentityToken(_)
        | CredentialKind::RegistryToken(_)
        | CredentialKind::DockerConfigSearch
        | CredentialKind::DockerHelper(_) => None,
    }
}

fn can_be_read(path: &Path) -> Result<(), String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let is_directory = file.metadata().is_ok_and(|metadata| metadata.is_dir());
    if is_directory { Err("it is a directory; write the path of a file in it".into()) } else { Ok(()) }
}

fn has_certificate(path: &Path) -> Result<(), String> {
    let mut certificates = CertificateDer::pem_file_iter(path).map_err(|error| unusable(path, &error))?;
    match certificates.next() {
        Some(Ok(_)) => Ok(()),
        Some(Err(error)) => Err(unusable(path, &error)),
        None => Err(unusable(path, &"it holds no certificate in PEM form")),
    }
}

fn has_certificate_and_key(path: &Path) -> Result<(), String> {
    has_certificate(path)?;
    match PrivateKeyDer::from_pem_file(path) {
        Ok(_) => Ok(()),
        Err(rustls_pki_types::pem::Error::NoItemsFound) => {
            Err(unusable(path, &"it holds no private key in PEM form; the certificate chain and its key belong into this one file"))
        }
        Err(error) => Err(unusable(path, &error)),
    }
}

fn unusable(path: &Path, why: &dyn Display) -> String {
    format!("{} cannot be used: {why}", path.display())
}
