//! larder, a pull-through caching mirror for container registries.
//!
//! **A request enters by [`server`], is answered by [`mirror`], which reads the [`store`] and fills it from
//! [`upstream`]; [`oci`] holds the words.** Dependencies run in that direction only; `store` and `upstream` don't know
//! each other. [`app`] builds every part from [`config`]. ARCHITECTURE.md tells the rest.

pub mod app;
pub mod cli;
pub mod config;
pub mod control;
pub mod mirror;
pub mod oci;
pub mod server;
pub mod store;
pub mod upstream;
pub mod world;

pub mod clock;
pub mod exit;
pub mod gate;
pub mod labels;
pub mod log;
pub mod metrics;
pub mod percent;
pub mod queue;
pub mod rng;
pub mod shutdown;
pub mod single_flight;
pub mod task;
pub mod units;
