//! The daemon's binary: arguments in, exit code out.

use std::process::ExitCode;

use larder::config::Config;
use larder::exit::ExitError;
use larder::{app, cli, log, world};

fn main() -> ExitCode {
    cli::run(std::env::args_os(), serve)
}

/// Runs the daemon until it has drained.
fn serve(config: Config) -> Result<(), ExitError> {
    let metrics = world::metrics(&config);
    // Kept to the end, so that the last line is written.
    let (access_log, _flush) = log::start(&config.log, &metrics).map_err(|error| ExitError::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ExitError::Failed(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(app::serve(config, access_log, metrics))
}
