//! larder in process, over a fake network: every part is the real one but the world outside.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use larder::app::App;
use larder::clock::{Clock, Timestamp};
use larder::config::{
    AdminConfig, BaseUrl, CacheConfig, Config, Effective, FillsConfig, LimitsConfig, LogConfig, LogFormat, ServerConfig, UpstreamConfig,
    VerifyOnRead,
};
use larder::gate::Gate;
use larder::metrics::Metrics;
use larder::rng::Rng;
use larder::server::connection::{self, Peer};
use larder::store::disk::{Disk, SystemDisk};
use larder::world::{BuildError, World};
use tempfile::TempDir;
use tokio::io::DuplexStream;
use tokio_util::sync::CancellationToken;

use super::client::{Client, Reply};
use super::net::FakeNet;

/// What a test's pipe holds: less than a blob, so that a client that doesn't read is felt.
const PIPE_BYTES: usize = 64 * 1024;
/// 2026-11-21.
const NOW: Timestamp = Timestamp(1_795_219_200_000);

/// How a larder is to be set up. `docker.io` is at `http://hub.test`, and the default.
pub struct Setup {
    pub config: Config,
    pub world: World,
    directory: Arc<TempDir>,
}

/// A running larder.
pub struct Larder {
    pub app: Arc<App>,
    pub clock: Clock,
    pub config: Config,
    world: World,
    directory: Arc<TempDir>,
    stop: CancellationToken,
}

/// An upstream at `http://<host>`.
pub fn upstream(name: &str, host: &str) -> UpstreamConfig {
    let url = BaseUrl { tls: false, host: host.into(), port: 80, path: String::new() };
    UpstreamConfig { tag_ttl: Duration::from_secs(300), ..UpstreamConfig::new(name, vec![url]) }
}

impl Setup {
    pub fn new(net: &FakeNet) -> Setup {
        let directory = Arc::new(tempfile::tempdir().expect("a directory"));
        let anywhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = Config {
            server: ServerConfig {
                listen: vec![anywhere.into()],
                hosts: BTreeMap::new(),
                max_connections: 1024,
                drain_timeout: Duration::from_secs(5),
                allow_anonymous_private: true,
            },
            admin: AdminConfig { listen: anywhere },
            cache: CacheConfig {
                path: directory.path().join("cache"),
                max_size: 1 << 30,
                min_free: 0,
                max_blob_size: 1 << 29,
                evict_unused_after: Duration::ZERO,
                pinned_images: Vec::new(),
                pinned_platforms: Vec::new(),
                revalidate_wait: Duration::from_secs(2),
                negative_ttl: Duration::from_secs(10),
                keep_deleted_tags: false,
                memory_cache_size: 16 << 20,
                verify_on_read: VerifyOnRead::default(),
                scrub_interval: Duration::from_secs(30 * 24 * 3600),
            },
            fills: FillsConfig { max_concurrent: 64, max_concurrent_per_upstream: 32, queue_timeout: Duration::from_secs(20) },
            limits: LimitsConfig { questions: 256, questions_per_upstream: 32 },
            default_upstream: "docker.io".into(),
            upstreams: BTreeMap::new(),
            log: LogConfig { format: LogFormat::Text, level: "off".into() },
            effective: Effective::default(),
        };
        let world = World {
            connect: Arc::new(net.clone()),
            disk: Arc::new(SystemDisk),
            gate: Gate::threads(16),
            clock: Clock::manual(NOW),
            rng: Arc::new(Rng::seeded(7)),
        };
        Setup { config, world, directory }.upstream(upstream("docker.io", "hub.test"))
    }

    pub fn upstream(mut self, upstream: UpstreamConfig) -> Setup {
        self.config.upstreams.insert(upstream.name.clone(), upstream);
        self
    }

    /// With its files in RAM: for who starts it a thousand times, and has a disk of his own to fail.
    pub fn in_memory(mut self) -> Setup {
        let directory = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a directory");
        self.config.cache.path = directory.path().join("cache");
        self.directory = Arc::new(directory);
        self
    }

    pub fn cache(mut self, change: impl FnOnce(&mut CacheConfig)) -> Setup {
        change(&mut self.config.cache);
        self
    }

    /// Changes the settings of `docker.io`.
    pub fn hub(mut self, change: impl FnOnce(&mut UpstreamConfig)) -> Setup {
        self.config.upstreams.get_mut("docker.io").map(change).expect("docker.io is always there");
        self
    }

    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Setup {
        self.world.disk = disk;
        self
    }

    pub fn start(self) -> Larder {
        self.try_start().unwrap_or_else(|failed| panic!("no larder: {}", failed.1))
    }

    /// As [`Setup::start`], where the disk may not let it.
    pub fn try_start(self) -> Result<Larder, Box<(Setup, BuildError)>> {
        let stop = CancellationToken::new();
        let metrics = Arc::new(Metrics::new(self.config.upstreams.keys()));
        let app = match App::build(&self.config, self.world.clone(), metrics, None, stop.clone()) {
            Ok(app) => app,
            Err(failure) => return Err(Box::new((self, failure))),
        };
        let Setup { config, world, directory } = self;
        app.readiness.ready();
        Ok(Larder { app: Arc::new(app), clock: world.clock.clone(), config, world, directory, stop })
    }
}

impl Larder {
    pub fn start(net: &FakeNet) -> Larder {
        Setup::new(net).start()
    }

    /// A connection of its own.
    pub async fn client(&self) -> Client {
        Client::over(self.connect()).await
    }

    /// The client's end of a connection, for bytes that no client would send.
    pub fn connect(&self) -> DuplexStream {
        self.connect_to(0)
    }

    /// The same, by the way of the listener with this place.
    pub fn connect_to(&self, entry: usize) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let handler = Arc::clone(&self.app.handler);
        let stop = self.stop.clone();
        let here = SocketAddr::from(([127, 0, 0, 1], 5000));
        let peer = Peer { client: SocketAddr::from(([127, 0, 0, 1], 40_000)), listener: here, entry };
        tokio::spawn(async move {
            let answer = |peer, request| Arc::clone(&handler).handle(peer, request);
            let _ = connection::serve(far, Duration::from_secs(60), peer, answer, &stop).await;
        });
        near
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.client().await.get(path).send().await
    }

    pub async fn head(&self, path: &str) -> Reply {
        self.client().await.head(path).send().await
    }

    /// The value of a series, as `larder_requests_total{kind="blob",outcome="hit",upstream="docker.io"}`.
    pub fn metric(&self, series: &str) -> f64 {
        let text = self.app.metrics.encode();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series}")).parse().expect("a number")
    }

    pub fn cache(&self) -> &Path {
        &self.config.cache.path
    }

    /// All files below a folder of the cache, in order.
    pub fn files(&self, below: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.cache().join(below)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                if entry.file_type().expect("a type").is_dir() { folders.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found.sort();
        found
    }

    /// Stops cleanly, as after a drain.
    pub async fn stop(self) -> Setup {
        self.stop.cancel();
        let Larder { app, config, world, directory, .. } = self;
        let store = Arc::clone(&app.store);
        drop(app);
        tokio::task::spawn_blocking(move || store.close(true)).await.expect("a clean end");
        let setup = Setup { config, world, directory };
        setup.released().await
    }

    /// Ends as by `kill -9`: nothing is written down any more, and what tasks were at is left where it stood.
    pub async fn kill(self) -> Setup {
        self.stop.cancel();
        let Larder { app, config, world, directory, .. } = self;
        drop(app);
        Setup { config, world, directory }.released().await
    }
}

impl Setup {
    /// Waits until the last task of the larder before has let go of the directory.
    async fn released(self) -> Setup {
        let lock = self.config.cache.path.join("lock");
        tokio::task::spawn_blocking(move || {
            let file = std::fs::File::open(lock).expect("a lock file");
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive).expect("the lock");
        })
        .await
        .expect("the directory is free");
        self
    }
}
