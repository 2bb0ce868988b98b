//! The daemon's binary: arguments in, exit code out. All code is in the library, lest it be compiled twice.

use std::process::ExitCode;

use larder::{app, cli};

fn main() -> ExitCode {
    cli::run(std::env::args_os().collect(), app::serve)
}
