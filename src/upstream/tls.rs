//! The roots that vouch for an upstream.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use tokio_rustls::TlsConnector;

/// Why an upstream cannot be set up from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot read ca_file {}: {source}", path.display())]
    CaFile { path: PathBuf, source: io::Error },
    #[error("ca_file {} has no usable certificate: {detail}", path.display())]
    Certificates { path: PathBuf, detail: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("url is not one that a request can be sent to")]
    Url,
}

/// The system's roots (Mozilla's where it has none, as in an image from scratch), and those of `ca_file` beside them.
pub(super) fn connector(ca_file: Option<&Path>) -> Result<TlsConnector, SetupError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        add(&mut roots, path)?;
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

fn add(roots: &mut RootCertStore, path: &Path) -> Result<(), SetupError> {
    let unusable = |detail: String| SetupError::Certificates { path: path.into(), detail };
    let pem = std::fs::read(path).map_err(|source| SetupError::CaFile { path: path.into(), source })?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        count += 1;
    }
    if count == 0 { Err(unusable("no PEM block of a certificate".into())) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_ca_file_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("corp.pem");
        assert!(matches!(connector(Some(&path)), Err(SetupError::CaFile { .. })));
        for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, bad).expect("a file");
            let error = connector(Some(&path)).err().expect("an error");
            assert!(matches!(error, SetupError::Certificates { .. }) && error.to_string().contains("corp.pem"), "{error}");
        }
    }
}
