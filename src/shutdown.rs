//! When to stop, and whether to send requests here: the two things the whole process knows about its own life.

use parking_lot::Mutex;
use std::io;
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Cancels the token at the first SIGTERM or SIGINT; the second ends the process, for whoever cannot wait for the drain.
///
/// # Errors
/// When the signals cannot be listened for.
pub fn on_signals(stop: CancellationToken) -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        let name = either(&mut terminate, &mut interrupt).await;
        tracing::info!("{name}: draining; a second signal ends it at once");
        stop.cancel();
        either(&mut terminate, &mut interrupt).await;
        std::process::exit(1);
    });
    Ok(())
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
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

    #[tokio::test]
    async fn the_first_signal_stops() {
        let stop = CancellationToken::new();
        on_signals(stop.clone()).unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        tokio::time::timeout(std::time::Duration::from_secs(10), stop.cancelled()).await.unwrap();
    }
}
