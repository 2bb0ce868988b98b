//! What crosses a module boundary, tested from outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on should stop where it stands")]

mod cli;
mod config;
