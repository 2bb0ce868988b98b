//! What larder touches of the world outside, and what is built from it for the daemon and for commands alike: the store, and the
//! mirror in front of it. Listens nowhere and runs nothing.

use std::collections::HashSet;
use std::sync::Arc;

use crate::clock::Clock;
use crate::config::{Config, PinnedImages, Visibility};
use crate::exit::ExitError;
use crate::gate::Gate;
use crate::metrics::Metrics;
use crate::mirror::{self, Mirror, Repositories, Source, TagRules};
use crate::rng::Rng;
use crate::store::disk::{Disk, SystemDisk};
use crate::store::{self, OpenError, Pin, RepositoryKey, Store};
use crate::upstream::connect::{Connect, Network, TcpConnect};
use crate::upstream::{Questions, SetupError, Upstream};

/// Blocking disk work at a time; DNS needs some of tokio's blocking threads, too.
const DISK_WORK_MAX: u32 = 32;

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

/// Why the store or the mirror cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Upstream(#[from] SetupError),
    #[error("the configuration names an upstream that it does not describe")]
    Repositories,
    #[error(transparent)]
    Cache(#[from] OpenError),
}

impl From<BuildError> for ExitError {
    fn from(error: BuildError) -> ExitError {
        let text = error.to_string();
        match error {
            BuildError::Upstream(_) | BuildError::Repositories => ExitError::Usage(text),
            BuildError::Cache(OpenError::Locked(store::LockError::Held { .. })) => ExitError::CacheLocked(text),
            BuildError::Cache(_) => ExitError::CacheUnusable(text),
        }
    }
}

/// The metrics of a configuration, built first since the log counts in them.
pub fn metrics(config: &Config) -> Arc<Metrics> {
    Arc::new(Metrics::new(config.upstreams.keys()))
}

/// The cache directory, and the mirror in front of it. Asks no upstream anything. Blocks.
///
/// # Errors
/// When the cache directory or an upstream's settings cannot be used.
pub fn open_mirror(config: &Config, world: &World, metrics: &Arc<Metrics>) -> Result<(Arc<Store>, Arc<Mirror>), BuildError> {
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

fn pins(config: &Config) -> Vec<Pin> {
    let pin = |pinned: &PinnedImages| {
        let repository = RepositoryKey { upstream: pinned.upstream.as_str().into(), name: pinned.repository.clone() };
        Pin { repository, tags: pinned.tags.clone() }
    };
    config.cache.pinned_images.iter().map(pin).collect()
}

fn repositories(config: &Config, world: &World, metrics: &Arc<Metrics>) -> Result<Repositories, BuildError> {
    let mut sources = Vec::new();
    let mut aliases = Vec::new();
    let network = Network::new(Arc::clone(&world.connect), metrics.task_panics.clone());
    let questions = Questions::new(config.limits.questions, config.limits.questions_per_upstream);
    for upstream in config.upstreams.values() {
        let client = Upstream::new(upstream, &network, Arc::clone(&questions), metrics, Arc::clone(&world.rng))?;
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
        return Err(BuildError::Repositories);
    }
    Repositories::new(sources, &aliases, &hosts, &config.default_upstream).ok_or(BuildError::Repositories)
}
