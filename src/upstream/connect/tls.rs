//! Whom larder believes to be an upstream, and what it shows for itself. A client certificate, and the leave to believe
//! anybody, hold for the hosts of `urls` alone: their TLS is another than that of every other host.

use parking_lot::Mutex;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::config::UpstreamConfig;

/// How often `client_cert_file` is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why an upstream cannot be set up from its configuration.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("cannot read ca_file {}: {source}", path.display())]
    CaFile { path: PathBuf, source: io::Error },
    #[error("ca_file {} has no usable certificate: {detail}", path.display())]
    Certificates { path: PathBuf, detail: String },
    #[error("cannot read client_cert_file {}: {source}", path.display())]
    ClientCertFile { path: PathBuf, source: io::Error },
    #[error("client_cert_file {} has no usable certificate and key: {detail}", path.display())]
    ClientCertificate { path: PathBuf, detail: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("url is not one that a request can be sent to")]
    Url,
}

/// TLS as one pool of connections speaks it.
#[derive(Clone)]
pub struct Tls(Arc<Shared>);

struct Shared {
    config: ClientConfig,
    client_cert_file: Option<PathBuf>,
    current: Mutex<Current>,
}

struct Current {
    connector: TlsConnector,
    /// Of the file that the client certificate came from.
    stamp: Option<Stamp>,
    looked_at: Instant,
}

/// What changes with a file's content; the inode, too, when a symlink is swapped.
type Stamp = (SystemTime, u64, u64);

/// TLS to the hosts of `urls`, and to all others.
pub fn set_up(config: &UpstreamConfig) -> Result<(Tls, Tls), SetupError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut strict = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(config.ca_file.as_deref())?)
        .with_no_client_auth();
    strict.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut own = strict.clone();
    // A session that began at the upstream's own port would be resumed unchecked at another port of the host.
    own.resumption = Resumption::default();
    if config.insecure_skip_verify {
        own.dangerous().set_certificate_verifier(Arc::new(AnyCertificate(provider.signature_verification_algorithms)));
    }
    Ok((Tls::new(own, config.client_cert_file.as_deref())?, Tls::new(strict, None)?))
}

/// The system's roots (Mozilla's where it has none, as in an image from scratch), and those of `ca_file` beside them.
fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    }
    if let Some(path) = ca_file {
        add(&mut roots, path)?;
    }
    Ok(roots)
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

impl Tls {
    fn new(config: ClientConfig, client_cert_file: Option<&Path>) -> Result<Tls, SetupError> {
        let stamp = client_cert_file.and_then(stamp);
        let connector = match client_cert_file {
            Some(path) => showing(&config, path)?,
            None => TlsConnector::from(Arc::new(config.clone())),
        };
        let current = Mutex::new(Current { connector, stamp, looked_at: Instant::now() });
        Ok(Tls(Arc::new(Shared { config, client_cert_file: client_cert_file.map(Path::to_owned), current })))
    }

    /// For the next handshake: with the client certificate that is in its file now. An unusable file leaves the last one in place.
    pub async fn connector(&self) -> TlsConnector {
        if let Some(path) = self.due() {
            let shared = Arc::clone(&self.0);
            // Whether it ends well or not, the handshake goes on with what there is.
            let _ = tokio::task::spawn_blocking(move || shared.renew(&path)).await;
        }
        self.0.locked().connector.clone()
    }

    fn due(&self) -> Option<PathBuf> {
        let path = self.0.client_cert_file.as_ref()?;
        let mut current = self.0.locked();
        if current.looked_at.elapsed() < LOOK_EVERY {
            return None;
        }
        current.looked_at = Instant::now();
        Some(path.clone())
    }
}

impl Shared {
    fn renew(&self, path: &Path) {
        let stamp = stamp(path);
        if self.locked().stamp == stamp {
            return;
        }
        let renewed = showing(&self.config, path);
        let mut current = self.locked();
        current.stamp = stamp;
        match renewed {
            Ok(connector) => current.connector = connector,
            Err(error) => tracing::warn!(%error, "the client certificate stays as it was"),
        }
    }

    fn locked(&self) -> parking_lot::MutexGuard<'_, Current> {
        self.current.lock()
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
}

/// `config` with the certificate and key in `path`, and without sessions that began under another.
fn showing(config: &ClientConfig, path: &Path) -> Result<TlsConnector, SetupError> {
    let mut config = config.clone();
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity(path, config.crypto_provider())?));
    config.resumption = Resumption::default();
    Ok(TlsConnector::from(Arc::new(config)))
}

/// The chain and the key from one PEM file. No message quotes the file.
fn identity(path: &Path, provider: &CryptoProvider) -> Result<CertifiedKey, SetupError> {
    let unusable = |detail: &str| SetupError::ClientCertificate { path: path.into(), detail: detail.into() };
    let pem = std::fs::read(path).map_err(|source| SetupError::ClientCertFile { path: path.into(), source })?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|_| unusable("a PEM block is broken"))?;
    if chain.is_empty() {
        return Err(unusable("no PEM block of a certificate"));
    }
    let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| unusable("no PEM block of a private key without a passphrase"))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|error| unusable(&error.to_string()))
}

/// Believes any certificate of whoever has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_ca_file_is_named() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("corp.pem");
        assert!(matches!(roots(Some(&path)), Err(SetupError::CaFile { .. })));
        for bad in ["", "nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(&path, bad).expect("a file");
            let error = roots(Some(&path)).expect_err("an error");
            assert!(matches!(error, SetupError::Certificates { .. }) && error.to_string().contains("corp.pem"), "{error}");
        }
    }

    #[test]
    fn a_bad_client_cert_file_is_named_and_never_quoted() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("client.pem");
        let provider = aws_lc_rs::default_provider();
        assert!(matches!(identity(&path, &provider), Err(SetupError::ClientCertFile { .. })));
        let pair = || rcgen::generate_simple_self_signed(["larder".to_owned()]).expect("a certificate");
        let (good, other) = (pair(), pair());
        let (chain, key) = (good.cert.pem(), good.signing_key.serialize_pem());
        let broken = key.replacen("-----BEGIN", "-----BEGI", 1);
        let files = [
            (String::new(), "no PEM block of a certificate"),
            (key.clone(), "no PEM block of a certificate"),
            (chain.clone(), "no PEM block of a private key"),
            (format!("{chain}{broken}"), "PEM block"),
            (format!("{chain}{}", other.signing_key.serialize_pem()), "keys may not be consistent"),
        ];
        for (content, why) in files {
            std::fs::write(&path, &content).expect("a file");
            let error = identity(&path, &provider).expect_err("an error").to_string();
            assert!(error.contains("client.pem") && error.contains(why), "{error}");
            assert!(key.lines().filter(|line| line.len() > 30).all(|line| !error.contains(line)), "{error}");
        }
        std::fs::write(&path, format!("{key}{chain}")).expect("a file");
        assert!(identity(&path, &provider).is_ok());
    }
}
