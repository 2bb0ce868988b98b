//! What an operator asks of a cache: `stats`, `verify`, `purge`; of the running daemon over `control.sock`, or of a stopped
//! directory by taking its lock. Either way the same functions answer.
//!
//! A question is one HTTP request; its answer is lines of JSON: how far it is, once a second, and at last what came of it.

mod ask;
mod client;
mod print;
mod server;
mod target;

pub use ask::{Answer, Ask, Line, Stats, Traffic};
pub use client::{answer, run};
pub use print::Form;
pub use server::Server;
pub use target::canonical;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};
use tokio::time::Instant;

use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::store::{Store, VerifyProgress};

/// Words that may wait for a slow listener.
const LINES_MAX: usize = 16;
/// How often it is said how far it is; also the sign of life that the other end waits for.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A listener that takes no word for so long has gone.
const LISTENER_TIMEOUT: Duration = Duration::from_secs(30);

/// Answers questions about one cache.
#[derive(Clone)]
pub struct Control {
    store: Arc<Store>,
    gate: Gate,
    metrics: Arc<Metrics>,
    /// `None`: a stopped directory, which nobody has asked anything.
    since: Option<Instant>,
}

impl Control {
    pub fn new(store: Arc<Store>, gate: Gate, metrics: Arc<Metrics>, since: Option<Instant>) -> Control {
        Control { store, gate, metrics, since }
    }

    /// Listens at the directory's `control.sock`. Blocks, for as long as it takes to make a file.
    ///
    /// # Errors
    /// As [`Store::listen`].
    pub fn listen(&self) -> std::io::Result<std::os::unix::net::UnixListener> {
        self.store.listen()
    }

    /// Does what was asked, and says so. Stops when nobody listens.
    pub async fn run(self, ask: Ask, lines: Sender<Line>) {
        let (progress, mut news) = mpsc::channel(LINES_MAX);
        let mut answer = std::pin::pin!(self.answer(ask, progress));
        let mut latest = VerifyProgress::default();
        let mut clock = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            let line = tokio::select! {
                line = &mut answer => line,
                Some(progress) = news.recv() => {
                    latest = progress;
                    continue;
                }
                _ = clock.tick() => Line::Progress(latest),
            };
            let last = !matches!(line, Line::Progress(_));
            let heard = lines.send_timeout(line, LISTENER_TIMEOUT).await.is_ok();
            if last || !heard {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask, progress: Sender<VerifyProgress>) -> Line {
        let store = Arc::clone(&self.store);
        let answered = match ask {
            Ask::Stats => self.gate.run(move || store.inventory()).await.map(|held| Answer::Stats(Box::new(self.stats(held)))),
            Ask::Verify { repair } => store.verify(repair, &progress).await.map(Answer::Verified),
            Ask::Purge(what) => match target::parse(&what) {
                Ok(selected) => {
                    let purged = self.gate.run(move || store.purge(&selected)).await;
                    if let Ok(purged) = &purged {
                        tracing::info!(what, ?purged, "purged");
                    }
                    purged.map(Answer::Purged)
                }
                Err(fault) => return Line::Failed(fault),
            },
        };
        answered.map_or_else(|error| Line::Failed(error.to_string()), Line::Done)
    }

    fn stats(&self, held: crate::store::Inventory) -> Stats {
        let traffic = self.since.map(|since| {
            let (requests, hits, sent_bytes, received_bytes) = self.metrics.traffic();
            Traffic { seconds: since.elapsed().as_secs(), requests, hits, sent_bytes, received_bytes }
        });
        Stats { held, traffic }
    }
}
