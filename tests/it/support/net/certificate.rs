//! The network's own certificate authority.

use std::sync::Arc;

use rcgen::{BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::PrivateKeyDer;
use tokio_rustls::TlsAcceptor;

pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    pub(super) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        Authority(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    /// Accepts TLS with HTTP/1.1 and a certificate for a name or an IP address. Asks for a client certificate, and insists on none.
    pub(super) fn acceptor(&self, name: &str) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let certificate = CertificateParams::new(vec![name.to_owned()]).expect("a name").signed_by(&key, &self.0).expect("a certificate");
        acceptor(&certificate, &key, self)
    }

    /// The same with a certificate that nobody vouches for.
    pub(super) fn stranger(&self, name: &str) -> TlsAcceptor {
        let stranger = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        acceptor(&stranger.cert, &stranger.signing_key, self)
    }

    /// The same with somebody's certificate and another's key.
    pub(super) fn impostor(&self, name: &str) -> TlsAcceptor {
        let [own, other] = [(); 2].map(|()| rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate"));
        let key = provider().key_provider.load_private_key(PrivateKeyDer::Pkcs8(other.signing_key.serialize_der().into())).expect("a key");
        let stolen = CertifiedKey::new(vec![own.cert.der().clone()], key);
        let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect("protocol versions");
        let config = builder.with_no_client_auth().with_cert_resolver(Arc::new(SingleCertAndKey::from(stolen)));
        TlsAcceptor::from(Arc::new(config))
    }

    /// A client's certificate, and both it and its key in PEM.
    pub(super) fn client(&self, name: &str) -> (Vec<u8>, String) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.der().to_vec(), certificate.pem() + &key.serialize_pem())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn acceptor(certificate: &Certificate, key: &KeyPair, clients: &Authority) -> TlsAcceptor {
    let mut roots = RootCertStore::empty();
    roots.add(clients.0.der().clone()).expect("a root");
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider()).allow_unauthenticated().build();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_client_cert_verifier(clients.expect("a verifier"))
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .expect("a key that fits its certificate");
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}
