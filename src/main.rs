//! The daemon's binary: arguments in, exit code out.

use std::process::ExitCode;

use larder::cli::{self, Failure};
use larder::config::Config;

fn main() -> ExitCode {
    cli::run(std::env::args_os(), serve)
}

/// Runs the daemon until it has drained.
fn serve(config: Config) -> Result<(), Failure> {
    // For the lead: build the runtime here and call `larder::app::serve(config)`.
    let _ = config;
    Err(Failure::Failed("this build has no server yet".into()))
}
