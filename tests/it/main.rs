//! What crosses a module boundary, tested from outside.

mod cli;
mod config;
