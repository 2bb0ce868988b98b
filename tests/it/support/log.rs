//! What is written to the log, as a test reads it.

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::Dispatch;
use tracing::subscriber::{DefaultGuard, NoSubscriber};

/// What was written; clones are the same log.
#[derive(Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock()).into_owned()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Everything that this thread logs from now on, at trace level, as long as the guards live.
pub fn listen() -> (Lines, (DefaultGuard, Dispatch)) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || writer.clone()).finish();
    (lines, guards(subscriber))
}

/// The same as JSON, a line an event, without what is for debugging.
pub fn listen_json() -> (Lines, (DefaultGuard, Dispatch)) {
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt().json().with_max_level(tracing::Level::INFO).with_writer(move || writer.clone()).finish();
    (lines, guards(subscriber))
}

fn guards(subscriber: impl tracing::Subscriber + Send + Sync) -> (DefaultGuard, Dispatch) {
    // With one subscriber alone, tracing lets the thread that first comes by an event decide whether anybody wants it, and
    // other tests' threads want none.
    let second = Dispatch::new(NoSubscriber::default());
    (tracing::subscriber::set_default(subscriber), second)
}
