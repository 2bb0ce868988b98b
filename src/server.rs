//! (being written)

pub mod connection;
pub mod range;
pub mod route;
pub mod transport;
