//! The client against scripted peers, on paused time and in-memory streams.

mod answers;
mod auth;
mod net;
mod redirects;
