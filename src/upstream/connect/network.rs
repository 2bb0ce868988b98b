//! What all connections of a process share: the names it has looked up, and which of a host's addresses answered.
//! Opens streams to addresses that others have judged.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::dns::{LookUpError, Names};
use super::race::{Known, NoConnection, order, race};
use super::seam::{Connect, Stream};

/// How long it counts which address answered: about ten minutes (RFC 6555 §4.2).
const REMEMBERED_FOR: Duration = Duration::from_mins(10);
/// Hosts of which an address is remembered. Redirects and challenges name hosts of others' choice.
const HOSTS_MAX: u64 = 1024;

/// The network as a process knows it; one for all its upstreams.
pub struct Network {
    connect: Arc<dyn Connect>,
    names: Arc<Names>,
    /// By host and port.
    known: Cache<(String, u16), (Known, Instant)>,
}

/// Whom a connection is made to: an upstream, a token server, a CDN, or a proxy.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// A name or an address without brackets.
    pub host: &'a str,
    pub port: u16,
}

/// Which of a peer's addresses took a connection.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    address: IpAddr,
    /// It is dialled first when nothing is remembered.
    is_first: bool,
}

impl Network {
    /// `panics` counts look-ups whose task panics.
    pub fn new(connect: Arc<dyn Connect>, panics: IntCounter) -> Arc<Network> {
        let names = Arc::new(Names::new(Arc::clone(&connect), panics));
        Arc::new(Network { connect, names, known: Cache::new(HOSTS_MAX) })
    }

    /// The addresses of a name, or the one that `host` is.
    ///
    /// # Errors
    /// When DNS has no answer and had none before.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, LookUpError> {
        match host.parse() {
            Ok(address) => Ok(vec![address]),
            Err(_) => self.names.look_up(host).await,
        }
    }

    /// A stream to one of `addresses`, by the rules of RFC 8305.
    ///
    /// # Errors
    /// With what became of each address, when none has answered by `deadline`.
    pub async fn dial(&self, peer: Peer<'_>, addresses: &[IpAddr], deadline: Instant) -> Result<(Box<dyn Stream>, Taken), NoConnection> {
        let ordered = order(addresses, self.known(peer));
        let (address, stream) = race(&*self.connect, &ordered, peer.port, deadline).await?;
        Ok((stream, Taken { address, is_first: order(addresses, None).first() == Some(&address) }))
    }

    /// What became of a connection: whether TLS, or the tunnel, came of what an address took. A winner is remembered
    /// only where another address goes before it, so that a name whose addresses change by turns spreads its load as
    /// it means to.
    pub fn note(&self, peer: Peer<'_>, taken: Taken, works: bool) {
        let known = if works { Known::Works(taken.address) } else { Known::Fails(taken.address) };
        if works && taken.is_first && self.known(peer) != Some(known) {
            self.known.invalidate(&key(peer));
        } else if self.known(peer) != Some(known) {
            self.known.insert(key(peer), (known, Instant::now()));
        }
    }

    fn known(&self, peer: Peer<'_>) -> Option<Known> {
        let (known, at) = self.known.get(&key(peer))?;
        Some(known).filter(|_| at.elapsed() < REMEMBERED_FOR)
    }
}

fn key(peer: Peer<'_>) -> (String, u16) {
    (peer.host.to_ascii_lowercase(), peer.port)
}
