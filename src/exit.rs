//! Why a command ended without doing its work, and the exit code that says so.

use std::io;

/// Each variant has the exit code that operators' scripts rely on.
#[derive(Debug, thiserror::Error)]
pub enum ExitError {
    #[error("{0}")]
    Failed(String),
    /// Bad configuration or usage.
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    CannotBind(String),
    #[error("{0}")]
    CacheLocked(String),
    #[error("{0}")]
    CacheUnusable(String),
}

impl ExitError {
    pub fn code(&self) -> u8 {
        match self {
            ExitError::Failed(_) => 1,
            ExitError::Usage(_) => 2,
            ExitError::CannotBind(_) => 3,
            ExitError::CacheLocked(_) => 4,
            ExitError::CacheUnusable(_) => 5,
        }
    }
}

impl From<io::Error> for ExitError {
    /// Of stdout: nothing else that a command does itself can fail so.
    fn from(error: io::Error) -> ExitError {
        ExitError::Failed(format!("cannot write: {error}"))
    }
}
