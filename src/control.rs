//! What an operator asks of a cache: `stats`, `verify`, `pull`, `purge`, `explain`; of the running daemon over `control.sock`, or of a stopped
//! directory by taking its lock. Either way the same functions answer.
//!
//! A question is one HTTP request; its answer is lines of JSON: how far it is, once a second, and at last what came of it.

mod ask;
mod explain;
mod history;
mod reference;
mod server;
mod target;

pub use ask::{Answer, Ask, Explained, Line, Stats, Traffic};
pub use history::Tally;
pub use server::Server;
pub use target::{canonical, image};

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc::{self, Sender};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::gate::Gate;
use crate::metrics::{Metrics, Totals};
use crate::mirror::{Image, Mirror, Platforms, WarmCount, Warmed};
use crate::store::{Inventory, Store, VerifyProgress};
use history::History;

/// Words that may wait for a slow listener.
pub const LINES_MAX: usize = 16;
/// How often it is said how far it is; also the sign of life that the other end waits for.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// A listener that takes no word for so long has gone.
const LISTENER_TIMEOUT: Duration = Duration::from_secs(30);

/// How often it is looked whether `control.sock` is still there.
const SOCKET_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// How often the history is written: what a crash may forget.
const WRITE_MINUTES: u64 = 5;

/// Answers questions about one cache.
#[derive(Clone)]
pub struct Control {
    parts: Parts,
    /// `None`: a stopped directory, which nobody has asked anything.
    since: Option<Instant>,
    clock: Clock,
    record: Arc<Mutex<Record>>,
}

/// Whom the answers come from.
#[derive(Clone)]
pub struct Parts {
    pub store: Arc<Store>,
    pub mirror: Arc<Mirror>,
    pub gate: Gate,
    pub metrics: Arc<Metrics>,
}

/// What is written down of the daemon's work.
struct Record {
    history: History,
    /// As they were when the history was last added to.
    totals: Totals,
}

impl Control {
    /// Reads what earlier runs have written down. Blocks.
    pub fn new(parts: Parts, clock: Clock, since: Option<Instant>) -> Control {
        let history = parts.store.read_history().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        let record = Arc::new(Mutex::new(Record { history, totals: parts.metrics.totals() }));
        Control { parts, since, clock, record }
    }

    /// Keeps the history, and tells it once a day, for as long as it is awaited.
    pub async fn keep_history(&self) {
        for minute in 1_u64.. {
            tokio::time::sleep(Duration::from_secs(60)).await;
            self.note();
            if minute % WRITE_MINUTES == 0 {
                let control = self.clone();
                self.parts.gate.run(move || control.write_history()).await;
            }
        }
    }

    /// Adds what has happened since the last time.
    fn note(&self) {
        let (now, totals) = (self.clock.now(), self.parts.metrics.totals());
        let told = {
            let mut record = self.record.lock();
            let tally = Tally::between(&record.totals, &totals);
            record.totals = totals;
            record.history.add(now, &tally);
            record.history.is_due(now).then(|| record.history.week(now))
        };
        if let Some(week) = told {
            tracing::info!("{week}");
        }
    }

    /// Writes the history down. Blocks.
    pub fn write_history(&self) {
        self.note();
        let history = self.record.lock().history.clone();
        let written = serde_json::to_vec(&history).map_err(std::io::Error::other).and_then(|bytes| self.parts.store.write_history(&bytes));
        if let Err(error) = written {
            tracing::debug!(%error, "the history of the last minutes was not written down");
        }
    }

    /// Listens at the directory's `control.sock`. Blocks, for as long as it takes to make a file.
    ///
    /// # Errors
    /// As [`Store::listen`].
    pub fn listen(&self) -> std::io::Result<std::os::unix::net::UnixListener> {
        self.parts.store.listen()
    }

    /// Returns when what stands at `control.sock` is no more what stood there at the call: whoever wants to ask finds nobody.
    async fn unheard(&self) {
        let look = || {
            let store = Arc::clone(&self.parts.store);
            self.parts.gate.run(move || store.socket_id())
        };
        let bound = look().await;
        // It may be gone by now.
        while bound.is_some() {
            tokio::time::sleep(SOCKET_CHECK_INTERVAL).await;
            if look().await != bound {
                return;
            }
        }
    }

    /// Does what was asked, and says so. Stops when nobody listens.
    pub async fn run(self, ask: Ask, lines: Sender<Line>) {
        let (progress, mut news) = mpsc::channel(LINES_MAX);
        let (is_pull, count) = (matches!(ask, Ask::Pull { .. }), Arc::new(WarmCount::default()));
        let mut answer = std::pin::pin!(self.answer(ask, progress, &count));
        let mut latest = VerifyProgress::default();
        let mut clock = tokio::time::interval(PROGRESS_INTERVAL);
        loop {
            let line = tokio::select! {
                // The work first: it says how much there is.
                biased;
                line = &mut answer => line,
                Some(progress) = news.recv() => {
                    latest = progress;
                    continue;
                }
                _ = clock.tick() => if is_pull { Line::Warming(count.progress()) } else { Line::Progress(latest) },
            };
            let last = !matches!(line, Line::Progress(_) | Line::Warming(_));
            let heard = lines.send_timeout(line, LISTENER_TIMEOUT).await.is_ok();
            if last || !heard {
                return;
            }
        }
    }

    async fn answer(&self, ask: Ask, progress: Sender<VerifyProgress>, count: &Arc<WarmCount>) -> Line {
        let store = Arc::clone(&self.parts.store);
        store.loaded().await;
        let answered = match ask {
            Ask::Stats => self.parts.gate.run(move || store.inventory()).await.map(|held| Answer::Stats(Box::new(self.stats(held)))),
            Ask::Verify { repair } => store.verify(repair, &progress).await.map(Answer::Verified),
            Ask::Purge(what) => match target::parse(&what) {
                Ok(selected) => {
                    let purged = self.parts.gate.run(move || store.purge(&selected)).await;
                    if let Ok(purged) = &purged {
                        tracing::info!(what, ?purged, "purged");
                    }
                    purged.map(Answer::Purged)
                }
                Err(fault) => return Line::Failed(fault),
            },
            Ask::Explain(what) => return self.explain(&what).await,
            Ask::Pull { images, platforms } => match Platforms::parse(&platforms) {
                Ok(platforms) => Ok(Answer::Pulled(self.pull(&images, &platforms, count).await)),
                Err(fault) => return Line::Failed(fault),
            },
        };
        answered.map_or_else(|error| Line::Failed(error.to_string()), Line::Done)
    }

    /// Makes images complete; what the daemon's configuration does not know is told like what it could not get.
    async fn pull(&self, images: &[String], platforms: &Platforms, count: &Arc<WarmCount>) -> Vec<Warmed> {
        let mirror = &self.parts.mirror;
        let (mut known, mut refused) = (Vec::new(), Vec::new());
        for text in images {
            match Image::parse(text, mirror.repositories()) {
                Ok(image) => known.push(image),
                Err(fault) => refused.push(Warmed::refused(text.clone(), fault)),
            }
        }
        let mut warmed = mirror.warm(known, platforms, count).await;
        warmed.append(&mut refused);
        warmed
    }

    fn stats(&self, held: Inventory) -> Stats {
        let degraded = self.parts.store.trouble().map(|trouble| trouble.as_str().to_owned());
        let traffic = self.since.map(|since| {
            let ((requests, hits), totals) = (self.parts.metrics.traffic(), self.parts.metrics.totals());
            let Totals { sent_bytes, received_bytes, .. } = totals;
            Traffic { seconds: since.elapsed().as_secs(), requests, hits, sent_bytes, received_bytes }
        });
        let week = {
            let record = self.record.lock();
            let mut week = record.history.week(self.clock.now());
            week.add(&Tally::between(&record.totals, &self.parts.metrics.totals()));
            week
        };
        Stats { held, degraded, traffic, week }
    }
}
