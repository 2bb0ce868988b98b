//! What all connections of a process share: the names it has looked up, and which of a host's addresses answered.
//! Opens streams to addresses that others have judged.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::dns::{LookUpError, Names};
use super::race::{ADDRESSES_MAX, Known, NoConnection, order, race};
use super::seam::{Connect, Stream};

/// How long it counts which address answered: about ten minutes (RFC 6555 §4.2).
const REMEMBERED_FOR: Duration = Duration::from_mins(10);
/// Hosts of which an address is remembered. Redirects and challenges name hosts of others' choice.
const HOSTS_MAX: u64 = 1024;

/// The network as a process knows it; one for all its upstreams.
pub struct Network {
    connect: Arc<dyn Connect>,
    names: Arc<Names>,
    /// By host and port, with the time of the last change.
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
        let ordered = order(addresses, &self.known(peer));
        let (address, stream) = race(&*self.connect, &ordered, peer.port, deadline).await?;
        Ok((stream, Taken { address, is_first: order(addresses, &Known::default()).first() == Some(&address) }))
    }

    /// What became of a connection: whether TLS, or the tunnel, came of what an address took. A winner is remembered
    /// only where another address goes before it, so that a name whose addresses change by turns spreads its load as
    /// it means to.
    pub fn note(&self, peer: Peer<'_>, taken: Taken, works: bool) {
        let before = self.known(peer);
        let mut known = before.clone();
        known.fails.retain(|address| *address != taken.address);
        known.works = match works {
            true => Some(taken.address).filter(|_| !taken.is_first),
            false => known.works.filter(|address| *address != taken.address),
        };
        if !works {
            known.fails.push(taken.address);
            // A name whose addresses change fails at more and more of them.
            known.fails.drain(..known.fails.len().saturating_sub(ADDRESSES_MAX));
        }
        if known == Known::default() {
            self.known.invalidate(&key(peer));
        } else if known != before {
            self.known.insert(key(peer), (known, Instant::now()));
        }
    }

    fn known(&self, peer: Peer<'_>) -> Known {
        let known = self.known.get(&key(peer)).filter(|(_, at)| at.elapsed() < REMEMBERED_FOR);
        known.map(|(known, _)| known).unwrap_or_default()
    }
}

fn key(peer: Peer<'_>) -> (String, u16) {
    (peer.host.to_ascii_lowercase(), peer.port)
}
