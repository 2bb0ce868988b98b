//! When to stop, and whether to send requests here: the two things the whole process knows about its own life.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

use rustix::process::Signal;
use tokio::signal::unix::{self, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Signals that would end the process without a drain, and what to tell whoever sends them. SIGQUIT stays as it is, for a core;
/// Rust ignores SIGPIPE.
const IGNORED: [(Signal, &str); 4] = [
    (Signal::HUP, "SIGHUP: larder does not reload its configuration yet; restart it to apply a change"),
    (Signal::USR1, "SIGUSR1: larder has no use for this signal; it is ignored"),
    (Signal::USR2, "SIGUSR2: larder has no use for this signal; it is ignored"),
    (Signal::XFSZ, "SIGXFSZ: a file would be larger than its limit (ulimit -f, LimitFSIZE=); the write fails, and larder goes on"),
];

/// Cancels the token at the first SIGTERM or SIGINT; the second ends the process, for whoever cannot wait for the drain. No other
/// signal that could be meant for something else ends it.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn on_signals(stop: CancellationToken) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    for (number, message) in IGNORED {
        let mut ignored = signal(SignalKind::from_raw(number.as_raw()))?;
        tokio::spawn(async move {
            while ignored.recv().await.is_some() {
                tracing::warn!("{message}");
            }
        });
    }
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        tracing::info!("{name}: draining; a second signal ends it at once");
        stop.cancel();
        either(&mut terminate, &mut interrupt).await;
        std::process::exit(1);
    });
    Ok(())
}

async fn either(terminate: &mut unix::Signal, interrupt: &mut unix::Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}

/// Whether requests should be sent here, and if not, why: what `/readyz` answers.
#[derive(Clone, Debug)]
pub struct Readiness {
    stop: CancellationToken,
    /// `None` when ready.
    hindrance: Arc<Mutex<Option<&'static str>>>,
}

impl Readiness {
    /// Not ready until [`Readiness::ready`], and never again once `stop` is cancelled.
    pub fn starting(stop: CancellationToken) -> Readiness {
        Readiness { stop, hindrance: Arc::new(Mutex::new(Some("starting"))) }
    }

    pub fn ready(&self) {
        self.set(None);
    }

    /// Until the next [`Readiness::ready`]; the reason is one line for people.
    pub fn not_ready(&self, reason: &'static str) {
        self.set(Some(reason));
    }

    /// # Errors
    /// The reason why not.
    pub fn check(&self) -> Result<(), &'static str> {
        if self.stop.is_cancelled() {
            return Err("draining");
        }
        self.hindrance.lock().map_or(Ok(()), Err)
    }

    fn set(&self, hindrance: Option<&'static str>) {
        *self.hindrance.lock() = hindrance;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_comes_and_goes_and_ends_with_draining() {
        let stop = CancellationToken::new();
        let readiness = Readiness::starting(stop.clone());
        assert_eq!(readiness.check(), Err("starting"));
        readiness.ready();
        assert_eq!(readiness.check(), Ok(()));
        readiness.not_ready("the cache is being recovered");
        assert_eq!(readiness.check(), Err("the cache is being recovered"));
        readiness.ready();
        stop.cancel();
        assert_eq!(readiness.check(), Err("draining"));
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_signal_that_is_ignored_says_so() {
        let (lines, stop) = (Lines::default(), CancellationToken::new());
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).finish();
        let _guard = tracing::subscriber::set_default(subscriber);
        on_signals(stop.clone()).unwrap();
        for (number, message) in IGNORED {
            // Another test's runtime, which ends at this moment, may have taken the signal from the pipe that all of them share.
            let told = async {
                while !String::from_utf8_lossy(&lines.0.lock()).contains(message) {
                    rustix::process::kill_process(rustix::process::getpid(), number).unwrap();
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                }
            };
            tokio::time::timeout(std::time::Duration::from_secs(10), told).await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_first_signal_stops() {
        let stop = CancellationToken::new();
        on_signals(stop.clone()).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), stop.cancelled()).await.unwrap();
    }
}
