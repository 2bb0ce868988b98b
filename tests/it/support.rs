//! The test doubles: a registry that can be told to misbehave, a network in memory, a client that reads at its own pace.
#![allow(dead_code, unused_imports, reason = "a double offers more than today's tests use")]

pub mod client;
pub mod daemon;
pub mod disk;
pub mod generated;
pub mod larder;
pub mod net;
pub mod power;
pub mod registries;
pub mod registry;
