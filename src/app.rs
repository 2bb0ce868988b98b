//! The composition root: builds every part from the configuration, owns them, and runs them until the stop.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cli;
use crate::clock::Clock;
use crate::config::{Config, PinnedImages, Visibility};
use crate::control::{self, Control};
use crate::gate::Gate;
use crate::log::{self, AccessLog};
use crate::metrics::Metrics;
use crate::mirror::{self, Mirror, Pinned, Repositories, Source, TagRules};
use crate::oci::Platform;
use crate::rng::Rng;
use crate::server::admin::Admin;
use crate::server::handler::Handler;
use crate::server::{BindError, Limits, Server};
use crate::shutdown::Readiness;
use crate::store::disk::{Disk, SystemDisk};
use crate::store::{self, OpenError, Pin, RepositoryKey, Store};
use crate::upstream::connect::{Connect, TcpConnect};
use crate::upstream::{SetupError, Upstream};

/// Blocking disk work at a time; DNS needs some of tokio's blocking threads, too.
const DISK_WORK_MAX: usize = 32;
/// How often use is written down and gauges are set.
const TEND_INTERVAL: Duration = Duration::from_secs(5);

/// What larder touches of the world outside: the system's, or a simulation's.
#[derive(Clone)]
pub struct World {
    pub connect: Arc<dyn Connect>,
    pub disk: Arc<dyn Disk>,
    pub gate: Gate,
    pub clock: Clock,
    pub rng: Arc<Rng>,
}

impl World {
    pub fn system() -> World {
        World {
            connect: Arc::new(TcpConnect),
            disk: Arc::new(SystemDisk),
            gate: Gate::threads(DISK_WORK_MAX),
            clock: Clock::System,
            rng: Arc::new(Rng::from_entropy()),
        }
    }
}

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
pub enum Failure {
    #[error(transparent)]
    Upstream(#[from] SetupError),
    #[error("the configuration names an upstream that it does not describe")]
    Repositories,
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Cache(#[from] OpenError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// As an exit code.
impl From<Failure> for cli::Failure {
    fn from(failure: Failure) -> cli::Failure {
        let text = failure.to_string();
        match failure {
            Failure::Io(_) => cli::Failure::Failed(text),
            Failure::Upstream(_) | Failure::Repositories => cli::Failure::Usage(text),
            Failure::Bind(_) => cli::Failure::CannotBind(text),
            Failure::Cache(OpenError::Locked(store::LockError::Held { .. })) => cli::Failure::CacheLocked(text),
            Failure::Cache(_) => cli::Failure::CacheUnusable(text),
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
    ) -> Result<App, Failure> {
        let (store, mirror) = open_mirror(config, &world, &metrics)?;
        let World { connect: _, disk: _, gate, clock, rng } = world;
        let parts = control::Parts { store: Arc::clone(&store), mirror: Arc::clone(&mirror), gate, metrics: Arc::clone(&metrics) };
        let control = Control::new(parts, clock.clone(), Some(Instant::now()));
        let (pins, pinned_platforms) = (pinned(config), config.cache.pinned_platforms.clone());
        let readiness = Readiness::starting(stop);
        let defaults: Vec<_> = config.server.listen.iter().map(|listener| listener.default_upstream.clone()).collect();
        let handler = Handler { mirror, defaults, metrics: Arc::clone(&metrics), log, readiness: readiness.clone(), rng, clock };
        let cache = Arc::clone(&store);
        let degraded = Arc::new(move || cache.trouble().map(store::Trouble::as_str));
        let admin = Admin { metrics: Arc::clone(&metrics), readiness: readiness.clone(), degraded };
        let scrub_interval = config.cache.scrub_interval;
        Ok(App { handler: Arc::new(handler), admin, store, metrics, readiness, control, pins, pinned_platforms, scrub_interval })
    }

    /// What keeps the pinned images complete, once it runs.
    pub fn pinned(&self) -> Pinned {
        let (mirror, rng) = (Arc::clone(&self.handler.mirror), Arc::clone(&self.handler.rng));
        Pinned::new(mirror, self.pins.clone(), self.pinned_platforms.clone(), Arc::clone(&self.metrics), rng)
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
        let tending = tokio::spawn(tend(Arc::clone(&self.store)));
        let scrubbing = tokio::spawn(scrub(Arc::clone(&self.store), self.scrub_interval, Arc::clone(&self.handler.rng)));
        let keeping = tokio::spawn(self.pinned().run());
        let controlled = tokio::spawn(control(self.control.clone(), drained.clone()));
        let history = self.control.clone();
        let noting = tokio::spawn(async move { history.keep_history().await });
        self.readiness.ready();
        let work = async {
            let aborted = clients.await;
            if aborted > 0 {
                tracing::warn!(aborted, "connections were broken off at the end of server.drain_timeout");
            }
            drained.cancel();
        };
        tokio::join!(work, operators);
        tending.abort();
        scrubbing.abort();
        keeping.abort();
        noting.abort();
        let _ = controlled.await;
        let (store, control) = (self.store, self.control);
        let close = move || {
            control.write_history();
            store.close();
        };
        if let Err(error) = tokio::task::spawn_blocking(close).await {
            tracing::error!(%error, "the cache was not closed cleanly");
        }
    }
}

/// The cache directory, and the mirror in front of it. Asks no upstream anything. Blocks.
///
/// # Errors
/// When the cache directory or an upstream's settings cannot be used.
pub fn open_mirror(config: &Config, world: &World, metrics: &Arc<Metrics>) -> Result<(Arc<Store>, Arc<Mirror>), Failure> {
    let repositories = repositories(config, world, metrics)?;
    let store = open_store(config, world, metrics)?;
    let options = mirror::Options {
        revalidate_wait: config.cache.revalidate_wait,
        negative_ttl: config.cache.negative_ttl,
        fills_max: config.fills.max_concurrent,
        fill_queue_timeout: config.fills.queue_timeout,
    };
    let (gate, clock, rng) = (world.gate.clone(), world.clock.clone(), Arc::clone(&world.rng));
    let mirror = Mirror::new(&options, repositories, Arc::clone(&store), gate, clock, metrics, rng);
    Ok((store, mirror))
}

/// Opens the cache directory as the configuration has it. Blocks.
///
/// # Errors
/// When another process holds it, or it cannot be used.
pub fn open_store(config: &Config, world: &World, metrics: &Arc<Metrics>) -> Result<Arc<Store>, OpenError> {
    let private = config.upstreams.values().filter(|upstream| upstream.visibility == Visibility::Private);
    let options = store::Options {
        path: config.cache.path.clone(),
        max_size: config.cache.max_size,
        min_free: config.cache.min_free,
        evict_unused_after: config.cache.evict_unused_after,
        pins: pins(config),
        max_blob_size: config.cache.max_blob_size,
        memory_cache_size: config.cache.memory_cache_size,
        verify_on_read: config.cache.verify_on_read,
        private_upstreams: private.map(|upstream| upstream.name.as_str().into()).collect::<HashSet<Arc<str>>>(),
    };
    Store::open(options, Arc::clone(&world.disk), world.gate.clone(), world.clock.clone(), Arc::clone(metrics))
}

async fn tend(store: Arc<Store>) {
    loop {
        tokio::time::sleep(TEND_INTERVAL).await;
        store.tend().await;
    }
}

/// Answers at `control.sock` until `stop`. A directory where no socket can be made is served all the same.
async fn control(control: Control, stop: CancellationToken) {
    match control.listen().and_then(control::Server::new) {
        Ok(server) => server.run(control, stop).await,
        Err(error) => tracing::warn!(%error, "no control.sock; stats, verify and purge have to wait for the stop"),
    }
}

async fn scrub(store: Arc<Store>, interval: Duration, rng: Arc<Rng>) {
    if !interval.is_zero() {
        store.scrub(interval, rng).await;
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

fn pins(config: &Config) -> Vec<Pin> {
    let pin = |pinned: &PinnedImages| {
        let repository = RepositoryKey { upstream: pinned.upstream.as_str().into(), name: pinned.repository.clone() };
        Pin { repository, tags: pinned.tags.clone() }
    };
    config.cache.pinned_images.iter().map(pin).collect()
}

fn repositories(config: &Config, world: &World, metrics: &Arc<Metrics>) -> Result<Repositories, Failure> {
    let mut sources = Vec::new();
    let mut aliases = Vec::new();
    for upstream in config.upstreams.values() {
        let client = Upstream::new(upstream, Arc::clone(&world.connect), metrics, Arc::clone(&world.rng))?;
        let own = Arc::clone(metrics.upstream(&upstream.name));
        let fills_max = config.fills.max_concurrent_per_upstream;
        let tags = TagRules {
            tag_ttl: upstream.tag_ttl,
            stale_if_error: upstream.stale_if_error,
            immutable: upstream.immutable_tags.clone(),
            keep_deleted: config.cache.keep_deleted_tags,
        };
        sources.push(Arc::new(Source::new(client, tags, own, fills_max)));
        aliases.extend(upstream.aliases.iter().map(|alias| (alias.clone(), upstream.name.clone())));
    }
    let hosts: Vec<_> = config.server.hosts.iter().map(|(host, name)| (host.clone(), name.clone())).collect();
    let known = |name: &str| config.upstreams.contains_key(name);
    if !config.server.listen.iter().filter_map(|listener| listener.default_upstream.as_deref()).all(known) {
        return Err(Failure::Repositories);
    }
    Repositories::new(sources, &aliases, &hosts, &config.default_upstream).ok_or(Failure::Repositories)
}

/// The daemon, from a valid configuration to its clean end. Not `async`: the code of a future is compiled where it is
/// polled, and this one is the whole program, which the binary would compile a second time.
///
/// # Errors
/// When it cannot begin.
pub fn serve(config: Config) -> Result<(), cli::Failure> {
    let metrics = metrics(&config);
    // Kept to the end, so that the last line is written.
    let (access_log, _flush) = log::start(&config.log, &metrics).map_err(|error| cli::Failure::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| cli::Failure::Failed(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(run(config, access_log, metrics)).map_err(cli::Failure::from)
}

async fn run(config: Config, log: AccessLog, metrics: Arc<Metrics>) -> Result<(), Failure> {
    let stop = CancellationToken::new();
    crate::shutdown::on_signals(stop.clone())?;
    if let Some(limit) = crate::server::raise_file_limit()? {
        tracing::debug!(limit, "file descriptors");
    }
    let clients = Server::bind(&config.server.listen.iter().map(|listener| listener.address).collect::<Vec<_>>())?;
    let operators = Server::bind(&[config.admin.listen])?;
    let app = App::build(&config, World::system(), metrics, Some(log), stop.clone())?;
    for address in clients.addresses() {
        tracing::info!(%address, cache = %config.cache.path.display(), "larder serves; daemon.json: {{\"registry-mirrors\": [\"http://{address}\"]}}");
    }
    let limits = Limits::new(config.server.max_connections, config.server.drain_timeout);
    app.run(clients, operators, limits, stop).await;
    tracing::info!("larder has stopped");
    Ok(())
}

/// The metrics of a configuration, built first since the log counts in them.
pub fn metrics(config: &Config) -> Arc<Metrics> {
    Arc::new(Metrics::new(config.upstreams.keys()))
}
