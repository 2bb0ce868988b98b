//! Where lines go: everything larder says passes one bounded buffer to a thread of its own, so that a slow reader of the
//! log costs lines, never requests. Access lines go there directly; the rest comes by `tracing`.

use std::io::{self, IsTerminal};
use std::sync::Arc;

use tracing::Level;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use crate::config::{LogConfig, LogFormat};
use crate::metrics::Metrics;

mod access;
mod writer;

pub use access::AccessLine;
pub use writer::{Flush, LogWriter};

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log.level: {0}; expected a level such as info, or directives such as larder=debug,hyper=warn")]
    Filter(#[from] ParseError),
    #[error("cannot start the log's thread: {0}")]
    Thread(#[from] io::Error),
    #[error("the process has a log already")]
    Twice,
}

/// Sets up the process's one log, on standard error. Keep the [`Flush`] until the end of `main`.
///
/// # Errors
/// When the filter does not parse, or when it is done twice.
pub fn start(config: &LogConfig, metrics: &Metrics) -> Result<(AccessLog, Flush), LogError> {
    let filter: Targets = config.level.parse()?;
    let json = match config.format {
        LogFormat::Json => true,
        LogFormat::Text => false,
        LogFormat::Auto => !io::stderr().is_terminal(),
    };
    let (writer, flush) = LogWriter::start(io::stderr(), metrics.log_lines_dropped.clone())?;
    // No colours: the writer escapes control characters, whoever put them there.
    let filtered = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer.clone());
    let set = if json { filtered.with(lines.json().flatten_event(true)).try_init() } else { filtered.with(lines).try_init() };
    set.map_err(|_: TryInitError| LogError::Twice)?;
    Ok((AccessLog::filtered(writer, json), flush))
}

/// The access log: one line a request, as the filter has it for the target `larder::access`.
#[derive(Clone)]
pub struct AccessLog {
    writer: Arc<LogWriter>,
    json: bool,
    /// Whether lines of the levels INFO and WARN are wanted.
    info: bool,
    warn: bool,
}

impl AccessLog {
    /// Writes every line.
    pub fn new(writer: LogWriter, json: bool) -> AccessLog {
        AccessLog { writer: Arc::new(writer), json, info: true, warn: true }
    }

    /// Asks the filter once, since it does not change: a line must not cost a walk through it.
    fn filtered(writer: LogWriter, json: bool) -> AccessLog {
        let info = tracing::enabled!(target: "larder::access", Level::INFO);
        let warn = tracing::enabled!(target: "larder::access", Level::WARN);
        AccessLog { writer: Arc::new(writer), json, info, warn }
    }

    pub fn write(&self, line: &AccessLine<'_>) {
        let wanted = if line.is_failure() { self.warn } else { self.info };
        if wanted {
            self.writer.line(line.format(self.json).as_bytes());
        }
    }
}
