//! Connections: names to addresses, addresses to streams, streams to TLS; what may be connected to is judged between.

pub mod address;
pub mod connector;
pub mod dns;
pub mod network;
pub mod proxy;
pub mod race;
pub mod seam;
pub mod tls;

pub use network::Network;
pub use seam::{BoxFuture, Connect, Stream, TcpConnect};
