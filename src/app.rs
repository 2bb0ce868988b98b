//! The composition root: builds every part from the configuration, owns them, and runs them until the stop.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, PinnedImages};
use crate::control::{self, Control};
use crate::exit::ExitError;
use crate::log::{self, AccessLog};
use crate::metrics::Metrics;
use crate::mirror::{self, Pinned};
use crate::oci::Platform;
use crate::rng::Rng;
use crate::server::admin::Admin;
use crate::server::handler::Handler;
use crate::server::{BindError, Limits, Server};
use crate::shutdown::Readiness;
use crate::store::Store;
use crate::world::{self, BuildError, World};

/// How often use is written down and gauges are set.
const TEND_INTERVAL: Duration = Duration::from_secs(5);

/// How often it is tried to listen at `control.sock` where that could not be done.
const LISTEN_INTERVAL: Duration = Duration::from_secs(60);
/// How long the stop waits for work on the cache directory when clients have used up `server.drain_timeout`: an fsync of a large blob
/// on a slow disk.
const CLOSE_WAIT_MIN: Duration = Duration::from_secs(5);

/// Background work, until it ends or panics.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Everything that answers, built and ready, but listening nowhere yet.
pub struct App {
    pub handler: Arc<Handler>,
    pub admin: Admin,
    pub store: Arc<Store>,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub control: Control,
    pins: Vec<mirror::PinnedImages>,
    pinned_platforms: Vec<Platform>,
    scrub_interval: Duration,
}

/// Why larder does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl From<ServeError> for ExitError {
    fn from(error: ServeError) -> ExitError {
        let text = error.to_string();
        match error {
            ServeError::Build(error) => error.into(),
            ServeError::Bind(_) => ExitError::CannotBind(text),
            ServeError::Io(_) => ExitError::Failed(text),
        }
    }
}

impl App {
    /// Builds all parts; asks no upstream anything.
    ///
    /// # Errors
    /// When the cache directory or an upstream's settings cannot be used.
    pub fn build(
        config: &Config,
        world: World,
        metrics: Arc<Metrics>,
        log: Option<AccessLog>,
        stop: CancellationToken,
    ) -> Result<App, BuildError> {
        let (store, mirror) = world::open_mirror(config, &world, &metrics)?;
        let World { connect: _, disk: _, gate, clock, rng } = world;
        let parts = control::Parts { store: Arc::clone(&store), mirror: Arc::clone(&mirror), gate, metrics: Arc::clone(&metrics) };
        let control = Control::new(parts, clock.clone(), Some(Instant::now()));
        let (pins, pinned_platforms) = (pinned(config), config.cache.pinned_platforms.clone());
        let readiness = Readiness::starting(stop);
        let defaults: Vec<_> = config.server.listen.iter().map(|listener| listener.default_upstream.clone()).collect();
        let handler = Handler { mirror, defaults, metrics: Arc::clone(&metrics), log, readiness: readiness.clone(), rng, clock };
        let cache = Arc::clone(&store);
        let degraded = Arc::new(move || degraded(&cache));
        let admin = Admin { metrics: Arc::clone(&metrics), readiness: readiness.clone(), degraded };
        let scrub_interval = config.cache.scrub_interval;
        Ok(App { handler: Arc::new(handler), admin, store, metrics, readiness, control, pins, pinned_platforms, scrub_interval })
    }

    /// What keeps the pinned images complete, once it runs.
    pub fn pinned(&self) -> Pinned {
        let (mirror, rng) = (Arc::clone(&self.handler.mirror), Arc::clone(&self.handler.rng));
        Pinned::new(mirror, self.pins.clone(), self.pinned_platforms.clone(), Arc::clone(&self.metrics), rng)
    }

    /// Everything that works without being asked, each by itself and begun anew when it panics, until the set is dropped.
    /// What is answered at `control.sock` is broken off by `stop`.
    pub fn background(self: &Arc<App>, stop: CancellationToken) -> JoinSet<()> {
        let mut background = JoinSet::new();
        let mut run = |name, begin: Box<dyn Fn(Arc<App>) -> Work + Send>| {
            let app = Arc::clone(self);
            background.spawn(self.store.tasks().clone().run(name, move || begin(Arc::clone(&app))));
        };
        run("upkeep", Box::new(|app| Box::pin(async move { tend(&app.store).await })));
        run("scrub", Box::new(|app| Box::pin(async move { scrub(&app.store, app.scrub_interval, &app.handler.rng).await })));
        run("pinned", Box::new(|app| Box::pin(async move { app.pinned().run().await })));
        run("history", Box::new(|app| Box::pin(async move { app.control.keep_history().await })));
        run("control", Box::new(move |app| Box::pin(control(app.control.clone(), stop.clone()))));
        background
    }

    /// Serves until `stop`, drains, and closes the cache.
    pub async fn run(self, clients: Server, operators: Server, limits: Limits, stop: CancellationToken) {
        let handler = Arc::clone(&self.handler);
        let answer = move |peer, request| Arc::clone(&handler).handle(peer, request);
        let clients = clients.run(answer, limits, Arc::clone(&self.metrics), stop.clone());
        let admin = self.admin.clone();
        let answer = move |_, request| std::future::ready(admin.answer(&request).map(Full::<Bytes>::new));
        // Operators may watch the drain: their server stops last.
        let drained = CancellationToken::new();
        // Its connections are not the clients', and not counted among them.
        let own = Arc::new(Metrics::new([""; 0]));
        let operators = operators.run(answer, Limits::new(64, Duration::from_secs(1)), own, drained.clone());
        let app = Arc::new(self);
        let mut background = app.background(drained.clone());
        app.readiness.ready();
        let work = async {
            let stopping = async {
                stop.cancelled().await;
                Instant::now()
            };
            let (aborted, stopped) = tokio::join!(clients, stopping);
            if aborted > 0 {
                tracing::warn!(aborted, "connections were broken off at the end of server.drain_timeout");
            }
            drained.cancel();
            limits.drain_timeout.saturating_sub(stopped.elapsed()).max(CLOSE_WAIT_MIN)
        };
        let (left, _) = tokio::join!(work, operators);
        background.shutdown().await;
        app.close(left).await;
    }

    /// Ends all work on the cache directory, and then writes the last words. What downloads have received is kept: they go on at the
    /// next start.
    pub async fn close(self: &Arc<App>, within: Duration) {
        let downloads = self.metrics.fills_in_flight.get();
        if downloads > 0 {
            tracing::info!(downloads, "downloads that no client waits for are interrupted; they go on when they are asked for again");
        }
        let has_work_ended = self.store.end_work(within).await;
        let app = Arc::clone(self);
        let close = move || {
            app.control.write_history();
            app.store.close(has_work_ended);
        };
        if let Err(error) = tokio::task::spawn_blocking(close).await {
            tracing::error!(%error, "the cache was not closed cleanly");
        }
    }
}

/// What is wrong although requests are answered.
fn degraded(store: &Store) -> Option<String> {
    let failing = |name| format!("the background task {name} keeps failing, as the log says; each panic is a bug");
    store.trouble().map(|trouble| trouble.as_str().to_owned()).or_else(|| store.tasks().failing().map(failing))
}

async fn tend(store: &Arc<Store>) {
    loop {
        tokio::time::sleep(TEND_INTERVAL).await;
        store.tend().await;
    }
}

/// Answers at `control.sock` until `stop`; where somebody has removed it, it is made anew. A directory where no socket can be made is
/// served all the same.
async fn control(control: Control, stop: CancellationToken) {
    let mut is_told = false;
    loop {
        match control.listen().and_then(control::Server::new) {
            Ok(server) => {
                is_told = false;
                server.run(control.clone(), stop.clone()).await;
                if stop.is_cancelled() {
                    return;
                }
                tracing::warn!("control.sock was removed; it is made anew");
            }
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%error, "no control.sock; stats, verify and purge have to wait for the stop");
                }
                if stop.run_until_cancelled(tokio::time::sleep(LISTEN_INTERVAL)).await.is_none() {
                    return;
                }
            }
        }
    }
}

async fn scrub(store: &Arc<Store>, interval: Duration, rng: &Arc<Rng>) {
    if !interval.is_zero() {
        Arc::clone(store).scrub(interval, Arc::clone(rng)).await;
    }
}

fn pinned(config: &Config) -> Vec<mirror::PinnedImages> {
    let pin = |pinned: &PinnedImages| mirror::PinnedImages {
        upstream: pinned.upstream.clone(),
        repository: pinned.repository.clone(),
        tags: pinned.tags.clone(),
        tag: pinned.tag(),
    };
    config.cache.pinned_images.iter().map(pin).collect()
}

/// The daemon, from a valid configuration to its clean end. Not `async`: the code of a future is compiled where it is
/// polled, and this one is the whole program, which the binary would compile a second time.
///
/// # Errors
/// When it cannot begin.
pub fn serve(config: Config) -> Result<(), ExitError> {
    let metrics = world::metrics(&config);
    // Kept to the end, so that the last line is written.
    let (access_log, _flush) = log::start(&config.log, &metrics).map_err(|error| ExitError::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| ExitError::Failed(format!("cannot start the runtime: {error}")))?;
    let ended = runtime.block_on(run(config, access_log, metrics)).map_err(ExitError::from);
    // A resolver that does not answer keeps its thread, and must not keep the daemon from its end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

async fn run(config: Config, log: AccessLog, metrics: Arc<Metrics>) -> Result<(), ServeError> {
    let stop = CancellationToken::new();
    crate::shutdown::on_signals(stop.clone())?;
    if let Some(limit) = crate::server::raise_file_limit()? {
        tracing::debug!(limit, "file descriptors");
    }
    let clients = Server::bind(&config.server.listen.iter().map(|listener| listener.address).collect::<Vec<_>>())?;
    let operators = Server::bind(&[config.admin.listen])?;
    let app = App::build(&config, World::system(), metrics, Some(log), stop.clone())?;
    let admin = operators.addresses();
    let admin = admin.first().map(tracing::field::display);
    for address in clients.addresses() {
        tracing::info!(%address, admin, cache = %config.cache.path.display(), "larder serves; daemon.json: {{\"registry-mirrors\": [\"http://{address}\"]}}");
    }
    let limits = Limits::new(config.server.max_connections, config.server.drain_timeout);
    app.run(clients, operators, limits, stop).await;
    tracing::info!("larder has stopped");
    Ok(())
}
