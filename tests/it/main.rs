//! The tests of the whole: larder's parts over fake hosts, in process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop where it stands")]

mod advisories;
mod bypass;
mod cli;
mod clients;
mod config;
mod control;
mod direction;
mod doubles;
mod edge;
mod eviction;
mod explain;
mod faults;
mod fills;
mod import;
mod links;
mod listing;
mod loading;
mod names;
mod online;
mod power;
mod process;
mod pull;
mod refuge;
mod registries;
mod selfcare;
mod shield;
mod statements;
mod store;
mod support;
mod tags;
mod tidy;
mod trouble;
mod trust;
mod truth;
mod warm;
