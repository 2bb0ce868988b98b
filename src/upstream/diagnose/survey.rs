//! One connection made to see what is on its way: the proxy, DNS, the addresses that may be dialled, TLS.

use std::io;
use std::net::IpAddr;

use rustls::CertificateError;
use tokio::time::{Instant, timeout_at};

use super::certificate::Certificate;
use crate::upstream::connect::address::{self, Refusal};
use crate::upstream::connect::connector::{CONNECT_TIMEOUT, Connector, Place, Reach};
use crate::upstream::connect::seam::Stream;
use crate::upstream::http::url::{Origin, Url};
use crate::upstream::{UnavailableReason, UpstreamError};

/// What a connection met.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Without its password. It, and not the host, is what was looked up then.
    pub proxy: Option<String>,
    pub addresses: Vec<IpAddr>,
    /// What the host showed, where TLS is spoken and it was believed.
    pub certificate: Option<Certificate>,
    /// The addresses that `allow_private_addresses` would open.
    pub openable: Vec<IpAddr>,
    /// Where it ended.
    pub fault: Option<Fault>,
}

/// Why there is no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub kind: FaultKind,
    pub detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    Dns,
    Connect,
    /// No address that may be dialled.
    Blocked,
    /// Nobody whom larder believes has signed its certificate.
    UnknownAuthority,
    /// Its certificate is another host's.
    OtherName,
    /// Its certificate is expired, or not valid yet.
    OutOfDate,
    /// It does not speak TLS.
    NotTls,
    Tls,
}

impl Connector {
    /// Ends before `deadline`.
    pub async fn survey(&self, origin: &Origin, deadline: Instant) -> Survey {
        let mut survey = Survey::default();
        let uri = match Url::new(origin.clone(), "/".into()).uri() {
            Ok(uri) => uri,
            Err(error) => {
                survey.fault = Some(Fault { kind: FaultKind::Connect, detail: error.to_string() });
                return survey;
            }
        };
        let place = Place::of(&uri, self.proxy.as_deref());
        survey.proxy = place.proxy.map(|proxy| proxy.url().to_string());
        let silence = || Err(Fault { kind: FaultKind::Connect, detail: format!("{origin}: no connection before the deadline") });
        let walked = timeout_at(deadline, self.walk(&place, origin.tls, &mut survey)).await;
        survey.fault = walked.unwrap_or_else(|_| silence()).err();
        survey
    }

    async fn walk(&self, place: &Place<'_>, tls: bool, survey: &mut Survey) -> Result<(), Fault> {
        let addresses = self.addresses(place).await?;
        if place.proxy.is_none() {
            survey.addresses.clone_from(&addresses);
            if let Reach::Global(allowed) = &self.reach {
                let is_private = |address: &&IpAddr| address::judge(**address, allowed) == Err(Refusal::Private);
                survey.openable = addresses.iter().filter(is_private).copied().collect();
            }
        }
        let permitted = self.permitted(place, addresses)?;
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let (stream, _) = self.dial(place, &permitted, deadline).await?;
        let silence = || Err(Fault { kind: FaultKind::Connect, detail: format!("{}: no connection in 5 s", place.host) });
        timeout_at(deadline, self.establish_and_look(place, tls, stream, survey)).await.unwrap_or_else(|_| silence())
    }

    async fn establish_and_look(&self, place: &Place<'_>, tls: bool, stream: Box<dyn Stream>, survey: &mut Survey) -> Result<(), Fault> {
        let stream = self.tunnelled(place, stream).await?;
        if tls {
            let secured = self.secured(place, stream).await.map_err(|error| of_tls(&error))?;
            let (_, session) = secured.get_ref();
            survey.certificate = session.peer_certificates().and_then(|chain| chain.first()).map(|leaf| Certificate::read(leaf));
        }
        Ok(())
    }
}

impl From<UpstreamError> for Fault {
    fn from(error: UpstreamError) -> Fault {
        match error {
            UpstreamError::Unavailable { reason, detail } => {
                let kind = match reason {
                    UnavailableReason::Dns => FaultKind::Dns,
                    UnavailableReason::Blocked => FaultKind::Blocked,
                    UnavailableReason::Tls => FaultKind::Tls,
                    UnavailableReason::Connect | UnavailableReason::Status | UnavailableReason::Broken => FaultKind::Connect,
                };
                Fault { kind, detail }
            }
            other => Fault { kind: FaultKind::Connect, detail: other.to_string() },
        }
    }
}

/// A handshake's failure: rustls says why, behind the I/O error.
fn of_tls(error: &io::Error) -> Fault {
    let kind = match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => match why {
            CertificateError::UnknownIssuer => FaultKind::UnknownAuthority,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => FaultKind::OtherName,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => FaultKind::OutOfDate,
            _ => FaultKind::Tls,
        },
        Some(rustls::Error::InvalidMessage(_)) => FaultKind::NotTls,
        _ => FaultKind::Tls,
    };
    Fault { kind, detail: error.to_string() }
}
