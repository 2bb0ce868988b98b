//! Moving in: a Distribution registry's directory, made here as its filesystem driver lays it out, becomes a cache that
//! needs upstream for nothing but the tags' HEADs; and its configuration becomes a larder.yaml.

use std::fs::File;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use larder::cli::import::{self, ImportError, Request, Summary};
use larder::clock::Clock;
use larder::config::Config;
use larder::exit::ExitError;
use larder::metrics::Metrics;
use larder::oci::{Algorithm, Digest};
use larder::store::OpenError;

use crate::fills::{assert_whole, hub, path_in, until};
use crate::support::larder::{Larder, Setup};
use crate::support::registry::{Blob, Image, any, get, head};

const HOUR: Duration = Duration::from_secs(3600);

/// A registry's root directory in the making.
struct OldRegistry {
    directory: tempfile::TempDir,
    /// When its links say that they were written.
    written: Duration,
}

impl OldRegistry {
    /// What it writes, it writes so long before the clock's time.
    fn new(clock: &Clock, ago: Duration) -> OldRegistry {
        OldRegistry { directory: tempfile::tempdir().unwrap(), written: Duration::from_millis(clock.now().0) - ago }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn root(&self) -> PathBuf {
        self.path().join("docker/registry/v2")
    }

    fn data(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.root().join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.root().join("repositories").join(name)
    }

    fn write(&self, path: &Path, bytes: &[u8]) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
        File::options().write(true).open(path).unwrap().set_modified(UNIX_EPOCH + self.written).unwrap();
    }

    fn blob(&self, repository: &str, blob: &Blob) {
        self.write(&self.data(&blob.digest), &blob.bytes);
        let link = self.repository(repository).join("_layers/sha256").join(blob.digest.hex()).join("link");
        self.write(&link, blob.digest.to_string().as_bytes());
    }

    fn manifest(&self, repository: &str, image: &Image) {
        self.write(&self.data(&image.digest), &image.bytes);
        let link = self.repository(repository).join("_manifests/revisions/sha256").join(image.digest.hex()).join("link");
        self.write(&link, image.digest.to_string().as_bytes());
    }

    fn image(&self, repository: &str, image: &Image) {
        image.layers.iter().chain(&image.config).for_each(|blob| self.blob(repository, blob));
        self.manifest(repository, image);
    }

    fn tag(&self, repository: &str, tag: &str, digest: &Digest) {
        let folder = self.repository(repository).join("_manifests/tags").join(tag);
        self.write(&folder.join("current/link"), digest.to_string().as_bytes());
        self.write(&folder.join("index/sha256").join(digest.hex()).join("link"), digest.to_string().as_bytes());
    }

    fn request(&self) -> Request {
        Request { directory: self.path().to_owned(), upstream: "docker.io".into(), copy: false }
    }
}

fn try_import(setup: &Setup, request: &Request) -> (Result<Summary, ImportError>, Vec<String>) {
    let mut told = Vec::new();
    let taken = import::registry2(&setup.config, request, setup.world.clock.clone(), &mut |line| told.push(line.to_owned()));
    (taken, told)
}

#[track_caller]
fn imported(setup: &Setup, old: &OldRegistry) -> Summary {
    try_import(setup, &old.request()).0.unwrap()
}

async fn pulls(larder: &Larder, repository: &str, tag: &str, image: &Image) {
    let manifest = larder.get(&format!("/v2/{repository}/manifests/{tag}")).await;
    assert_eq!((manifest.status, manifest.bytes()), (200, &image.bytes), "{repository}:{tag}");
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path_in(repository, blob.digest)).await, blob);
    }
}

fn cached(cache: &Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    cache.join("blobs/sha256").join(&hex[..2]).join(hex)
}

#[tokio::test]
async fn an_imported_cache_asks_upstream_for_heads_of_tags_and_nothing_else() {
    let (net, registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let one = registry.push_image("library/app", "latest", &[300_000, 100], 1);
    let platforms = [registry.push_docker_image("org/many", "a", &[50_000], 2), registry.push_docker_image("org/many", "b", &[60_000], 3)];
    let list = registry.push_docker_list("org/many", "latest", &platforms);
    old.image("library/app", &one);
    old.tag("library/app", "latest", &one.digest);
    // A proxy has of an index what somebody pulled: of one platform here the manifest and the blobs, of the other nothing.
    old.image("org/many", &platforms[0]);
    old.manifest("org/many", &list);
    old.tag("org/many", "latest", &list.digest);

    let summary = imported(&setup, &old);
    let blobs = &summary.blobs;
    assert_eq!((blobs.hardlinked + blobs.reflinked + blobs.copied, summary.manifests.taken, summary.tags.taken), (5, 3, 2));
    assert_eq!((blobs.missing, blobs.damaged, summary.images_left_out, summary.problems.len()), (0, 0, 0, 0));

    let larder = setup.start();
    pulls(&larder, "library/app", "latest", &one).await;
    pulls(&larder, "org/many", "latest", &list).await;
    for blob in platforms[0].layers.iter().chain(&platforms[0].config) {
        assert_whole(&larder.get(&path_in("org/many", blob.digest)).await, blob);
    }
    assert_eq!((registry.count(get()), registry.count(head().manifest()), registry.count(any())), (0, 2, 2));
}

/// Also when its link was written a moment ago, or by a clock that was ahead.
#[tokio::test]
async fn an_imported_tag_is_asked_about_at_its_first_pull() {
    for (ago, ahead) in [(Duration::ZERO, Duration::ZERO), (HOUR, 2 * HOUR)] {
        let (net, registry) = hub();
        let setup = Setup::new(&net);
        let mut old = OldRegistry::new(&setup.world.clock, ago);
        old.written += ahead;
        let before = registry.push_image("library/app", "latest", &[1000], 1);
        old.image("library/app", &before);
        old.tag("library/app", "latest", &before.digest);
        imported(&setup, &old);
        let now = registry.push_image("library/app", "latest", &[1000], 2);
        pulls(&setup.start(), "library/app", "latest", &now).await;
    }
}

#[tokio::test]
async fn an_imported_image_stands_in_for_an_outage_as_long_as_its_tag_was_confirmed() {
    for (days, status) in [(6, 200), (8, 502)] {
        let (net, registry) = hub();
        let setup = Setup::new(&net);
        let old = OldRegistry::new(&setup.world.clock, 24 * HOUR * days);
        let image = registry.push_image("library/app", "latest", &[1000], 1);
        old.image("library/app", &image);
        old.tag("library/app", "latest", &image.digest);
        imported(&setup, &old);
        net.down("hub.test");
        let larder = setup.start();
        let reply = larder.get("/v2/library/app/manifests/latest").await;
        assert_eq!(reply.status, status, "{days} days");
        if status == 200 {
            assert!(reply.header("cache-status").unwrap().contains("detail=stale-unavailable"));
        }
    }
}

#[tokio::test]
async fn a_second_import_takes_nothing_anew() {
    let (net, registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&setup.world.clock, Duration::ZERO);
    let image = registry.push_image("library/app", "latest", &[300_000, 100], 1);
    old.image("library/app", &image);
    old.tag("library/app", "latest", &image.digest);
    old.tag("library/app", "1", &image.digest);
    imported(&setup, &old);
    setup.world.clock.advance(HOUR);
    let again = imported(&setup, &old);
    assert_eq!((again.bytes, again.blobs.present, again.manifests.present, again.tags.present), (0, 3, 1, 2));
    assert_eq!((again.manifests.taken, again.tags.taken), (0, 0));
    // What upstream has told larder since is younger than the old registry's word.
    let moved = registry.push_image("library/app", "latest", &[1000], 2);
    let larder = setup.start();
    pulls(&larder, "library/app", "latest", &moved).await;
    let setup = larder.stop().await;
    imported(&setup, &old);
    net.down("hub.test");
    pulls(&setup.start(), "library/app", "latest", &moved).await;
}

#[tokio::test]
async fn a_damaged_blob_is_named_and_comes_from_upstream() {
    let (net, registry) = hub();
    for copy in [false, true] {
        let setup = Setup::new(&net);
        let old = OldRegistry::new(&setup.world.clock, HOUR);
        let image = registry.push_image("library/app", "latest", &[300_000, 500_000, 100], 1);
        old.image("library/app", &image);
        old.tag("library/app", "latest", &image.digest);
        let (flipped, cut) = (image.layers[0].digest, image.layers[1].digest);
        let mut bytes = image.layers[0].bytes.to_vec();
        bytes[7] ^= 1;
        std::fs::write(old.data(&flipped), bytes).unwrap();
        std::fs::write(old.data(&cut), &image.layers[1].bytes[..400_000]).unwrap();

        let (summary, told) = try_import(&setup, &Request { copy, ..old.request() });
        let summary = summary.unwrap();
        assert_eq!((summary.blobs.damaged, summary.tags.taken), (2, 1));
        for digest in [flipped, cut] {
            assert!(told.iter().any(|line| line.contains(&digest.hex()) && line.contains("damaged")), "{told:?}");
            assert!(!cached(&setup.config.cache.path, &digest).exists());
        }
        assert_eq!(std::fs::read_dir(setup.config.cache.path.join("partial/docker.io")).unwrap().count(), 0);
        registry.forget_requests();
        let larder = setup.start();
        pulls(&larder, "library/app", "latest", &image).await;
        assert_eq!(registry.count(get().blob()), 2);
    }
}

#[tokio::test]
async fn a_manifest_that_is_damaged_or_deleted_is_no_image() {
    let (net, registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let good = registry.push_image("library/app", "good", &[100], 1);
    let bad = registry.push_image("library/app", "bad", &[200], 2);
    let deleted = registry.push_image("library/app", "deleted", &[300], 3);
    for (tag, image) in [("good", &good), ("bad", &bad), ("deleted", &deleted)] {
        old.image("library/app", image);
        old.tag("library/app", tag, &image.digest);
    }
    std::fs::write(old.data(&bad.digest), "{}").unwrap();
    let revision = old.repository("library/app").join("_manifests/revisions/sha256").join(deleted.digest.hex()).join("link");
    std::fs::remove_file(revision).unwrap();
    let summary = imported(&setup, &old);
    assert_eq!((summary.manifests.taken, summary.manifests.skipped, summary.tags.taken, summary.tags.skipped), (1, 1, 1, 2));
    // Their blobs are upstream's all the same, and of use when it names them again.
    assert!(cached(&setup.config.cache.path, &bad.layers[0].digest).exists());
    let larder = setup.start();
    for (tag, image) in [("good", &good), ("bad", &bad), ("deleted", &deleted)] {
        pulls(&larder, "library/app", tag, image).await;
    }
    assert_eq!(registry.count(get().blob()), 0);
}

/// The whole of the newest that fits; nothing that was there before leaves for it. What comes later pushes them out, the
/// oldest tag's first. In either order of what they are called and hold.
#[tokio::test]
async fn a_cache_that_becomes_full_holds_the_newest_tags() {
    for seeds in [[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]] {
        let (net, registry) = hub();
        let setup = Setup::new(&net).cache(|cache| (cache.max_size, cache.max_blob_size) = (2_000_000, 1_000_000));
        let mut old = OldRegistry::new(&setup.world.clock, 10 * HOUR);
        let mut images = Vec::new();
        for seed in seeds {
            let image = registry.push_image("library/app", &format!("v{seed}"), &[500_000], seed);
            old.image("library/app", &image);
            old.tag("library/app", &format!("v{seed}"), &image.digest);
            old.written += HOUR;
            images.push(image);
        }
        let cache = setup.config.cache.path.clone();
        let summary = imported(&setup, &old);
        assert_eq!((summary.tags.taken, summary.images_left_out), (3, 2));
        let held = || images.iter().map(|image| cached(&cache, &image.layers[0].digest).exists()).collect::<Vec<_>>();
        assert_eq!(held(), [false, false, true, true, true]);
        let again = imported(&setup, &old);
        assert_eq!((again.bytes, again.tags.present, again.images_left_out), (0, 3, 2));
        assert_eq!(held(), [false, false, true, true, true]);
        let larder = setup.start();
        for (n, left) in [(7, [false, false, false, true, true]), (8, [false, false, false, false, true]), (9, [false; 5])] {
            let new = registry.push_image("library/new", "latest", &[500_000], n);
            larder.clock.advance(HOUR);
            pulls(&larder, "library/new", "latest", &new).await;
            until("it is stored", || larder.app.store.contains(&new.layers[0].digest)).await;
            assert_eq!(held(), left);
        }
    }
}

#[test]
fn what_the_disk_is_to_keep_free_is_not_taken() {
    let (net, registry) = hub();
    let setup = Setup::new(&net).cache(|cache| cache.min_free = 1 << 60);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let image = registry.push_image("library/app", "latest", &[3000], 1);
    old.image("library/app", &image);
    old.tag("library/app", "latest", &image.digest);
    let summary = imported(&setup, &old);
    assert_eq!((summary.manifests.taken, summary.tags.taken, summary.images_left_out), (0, 0, 1));
    assert!(!cached(&setup.config.cache.path, &image.layers[0].digest).exists());
}

#[test]
fn only_files_that_nobody_else_can_write_are_shared_with_the_old_registry() {
    let (net, registry) = hub();
    // So that what is written is compared with what is free.
    let setup = Setup::new(&net).cache(|cache| cache.min_free = 1);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let image = registry.push_image("library/app", "latest", &[300_000, 400_000], 1);
    old.image("library/app", &image);
    old.tag("library/app", "latest", &image.digest);
    let (ours, open) = (image.layers[0].digest, image.layers[1].digest);
    std::fs::set_permissions(old.data(&open), PermissionsExt::from_mode(0o666)).unwrap();
    let summary = imported(&setup, &old);
    let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
    assert_ne!(inode(old.data(&open)), inode(cached(&setup.config.cache.path, &open)));
    if summary.blobs.reflinked == 0 {
        assert_eq!((summary.blobs.hardlinked, summary.blobs.copied), (2, 1));
        assert_eq!(inode(old.data(&ours)), inode(cached(&setup.config.cache.path, &ours)));
    }
    let setup = Setup::new(&net);
    let summary = try_import(&setup, &Request { copy: true, ..old.request() }).0.unwrap();
    assert_eq!((summary.blobs.copied, summary.blobs.hardlinked, summary.blobs.reflinked), (3, 0, 0));
    assert_ne!(inode(old.data(&ours)), inode(cached(&setup.config.cache.path, &ours)));
}

#[test]
fn a_link_in_a_blob_s_place_is_not_followed() {
    let (net, registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let image = registry.push_image("library/app", "latest", &[3000], 1);
    old.image("library/app", &image);
    old.tag("library/app", "latest", &image.digest);
    let (data, elsewhere) = (old.data(&image.layers[0].digest), old.path().join("elsewhere"));
    std::fs::rename(&data, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &data).unwrap();
    let summary = imported(&setup, &old);
    assert_eq!(summary.blobs.damaged, 1);
    assert!(!cached(&setup.config.cache.path, &image.layers[0].digest).exists());
}

/// Hub's official images have a first component, whoever wrote the name.
#[tokio::test]
async fn names_are_upstream_s() {
    let (net, registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let image = registry.push_image("library/app", "latest", &[1000], 1);
    old.image("app", &image);
    old.tag("app", "latest", &image.digest);
    let nested = registry.push_image("a/b/c", "latest", &[2000], 2);
    old.image("a/b/c", &nested);
    old.tag("a/b/c", "latest", &nested.digest);
    imported(&setup, &old);
    let larder = setup.start();
    pulls(&larder, "library/app", "latest", &image).await;
    pulls(&larder, "a/b/c", "latest", &nested).await;
    assert_eq!(registry.count(get()), 0);
}

#[test]
fn a_cache_in_use_and_what_is_no_registry_are_refused() {
    let (net, _registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&setup.world.clock, HOUR);
    let refused = |request: &Request| try_import(&setup, request).0.unwrap_err();
    assert!(matches!(refused(&old.request()), ImportError::Directory(why) if why.contains("docker/registry/v2/repositories")));
    std::fs::create_dir_all(old.root().join("repositories")).unwrap();
    assert!(matches!(refused(&Request { upstream: "quay.io".into(), ..old.request() }), ImportError::Upstream(_)));
    assert_eq!(Summary { seconds: 0.0, ..imported(&setup, &old) }, Summary::default());

    let metrics = Arc::new(Metrics::new(["docker.io"]));
    let _held = larder::world::open_store(&setup.config, &setup.world, &metrics).unwrap();
    let failure = refused(&old.request());
    assert!(matches!(failure, ImportError::Open(OpenError::Locked(_))));
    assert!(failure.to_string().contains(&format!("process {}; stop it", std::process::id())), "{failure}");
    assert_eq!(ExitError::from(failure).code(), 4);
}

/// Files of a cache under `blobs/` that do not hash to their name.
fn wrong_files(cache: &Path) -> Vec<PathBuf> {
    let below = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    let files = below(&cache.join("blobs/sha256")).into_iter().flat_map(|shelf| below(&shelf));
    let named = |path: &PathBuf| Digest::from_parts("sha256", path.file_name().unwrap().to_str().unwrap()).unwrap();
    files.filter(|path| Digest::of(Algorithm::Sha256, &std::fs::read(path).unwrap()) != named(path)).collect()
}

#[tokio::test]
async fn an_import_that_is_killed_leaves_a_good_cache() {
    let (net, registry) = hub();
    let setup = Setup::new(&net);
    let old = OldRegistry::new(&Clock::System, HOUR);
    let images: Vec<_> = (0..12).map(|n| registry.push_image("library/app", &format!("v{n}"), &[700_000, 400_000], n)).collect();
    for (n, image) in images.iter().enumerate() {
        old.image("library/app", image);
        old.tag("library/app", &format!("v{n}"), &image.digest);
    }
    let cache = &setup.config.cache.path;
    let yaml = setup.config.cache.path.with_file_name("import.yaml");
    std::fs::write(&yaml, format!("cache: {{path: '{}', max_size: 1GiB}}\n", cache.display())).unwrap();
    let start = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(["import", "registry2", "--upstream", "docker.io", "--copy", "--config"]).arg(&yaml).arg(old.path());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let held =
        || images.iter().flat_map(|image| &image.layers).filter(|blob| cached(&setup.config.cache.path, &blob.digest).exists()).count();
    for goal in [1, 9, 17] {
        let mut child = start();
        // Killed in the middle of something, once it has got so far.
        while held() < goal && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(wrong_files(cache), Vec::<PathBuf>::new());
    }
    assert!(held() < 24, "it was killed too late to show anything");
    let larder = setup.start();
    let setup = larder.stop().await;
    assert!(imported(&setup, &old).blobs.present > 0);
    let larder = setup.start();
    assert_eq!(larder.files("partial").len(), 0);
    for (n, image) in images.iter().enumerate() {
        pulls(&larder, "library/app", &format!("v{n}"), image).await;
    }
    assert_eq!(registry.count(get()), 0);
}

/// What larder.yaml says of a Distribution configuration; it must be one that larder accepts.
#[track_caller]
fn translated(text: &str, environment: &[(&str, &str)]) -> (Config, String, Vec<String>) {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let import::Translation { yaml, notes } = import::translate(text, environment).unwrap();
    match Config::from_yaml(&yaml, [("HOME".to_owned(), "/root".to_owned())]) {
        Ok((config, _)) => (config, yaml, notes),
        Err(mistakes) => panic!("{mistakes}\n{yaml}"),
    }
}

const MIRROR: &str = "
version: 0.1
log: {level: warn, formatter: json, fields: {service: registry}}
storage:
  cache: {blobdescriptor: inmemory}
  filesystem: {rootdirectory: /var/lib/registry, maxthreads: 100}
  delete: {enabled: true}
http:
  addr: :5000
  draintimeout: 45s
  headers: {X-Content-Type-Options: [nosniff]}
  debug: {addr: 'localhost:5001', prometheus: {enabled: true, path: /metrics}}
  tls: {certificate: /a.pem, key: /b.pem}
proxy: {remoteurl: 'https://registry-1.docker.io', username: ci, password: hunter2, ttl: 168h}
health: {storagedriver: {enabled: true}}
redis: {addr: 'localhost:6379'}
";

#[test]
fn a_mirror_s_configuration_is_translated_and_what_is_dropped_is_named() {
    let (config, yaml, notes) = translated(MIRROR, &[]);
    let hub = &config.upstreams["docker.io"];
    assert_eq!((config.upstreams.len(), hub.urls[0].to_string().as_str()), (1, "https://registry-1.docker.io"));
    assert_eq!((config.default_upstream.as_str(), config.log.level.as_str()), ("docker.io", "warn"));
    assert_eq!(config.server.listen[0].address.to_string(), "0.0.0.0:5000");
    assert_eq!((config.admin.listen.to_string().as_str(), config.server.drain_timeout), ("127.0.0.1:5001", Duration::from_secs(45)));
    assert!(yaml.contains("larder import registry2 /var/lib/registry --upstream docker.io"), "{yaml}");
    let notes = notes.join("\n");
    assert!(!yaml.contains("hunter2") && !notes.contains("hunter2"), "{yaml}\n{notes}");
    for dropped in ["http.tls", "http.headers", "redis", "health", "storage.delete", "storage.cache", "storage.filesystem", "log.fields"] {
        assert_eq!(notes.matches(&format!("dropped: {dropped}: ")).count(), 1, "{dropped}: {notes}");
    }
    let by_age = larder::config::KEYS.iter().any(|key| key.path == "cache.evict_unused_after");
    assert_ne!(by_age, notes.contains("dropped: proxy.ttl"), "{notes}");
    assert!(!notes.contains("version") && notes.contains("/etc/larder/docker.io-password"), "{notes}");
}

#[test]
fn the_old_registry_s_variables_count_over_its_file() {
    let environment = [("REGISTRY_PROXY_REMOTEURL", "https://ghcr.io/"), ("REGISTRY_LOG_LEVEL", "debug"), ("PATH", "/bin")];
    let (config, _, notes) = translated("http: {addr: '10.0.0.1:80'}", &environment);
    assert_eq!(config.upstreams["ghcr.io"].urls[0].to_string(), "https://ghcr.io");
    assert_eq!((config.default_upstream.as_str(), config.log.level.as_str()), ("ghcr.io", "debug"));
    assert!(notes.iter().any(|note| note.contains("REGISTRY_PROXY_REMOTEURL")), "{notes:?}");
}

/// Whatever the old registry was told, and where larder would else refuse to start.
#[test]
fn every_translation_is_a_configuration() {
    for (name, text) in [
        ("harbor.corp:8443", "proxy: {remoteurl: 'https://harbor.corp:8443/v2/', username: me, password: x}\nhttp: {addr: ':5000'}"),
        ("registry:5000", "proxy: {remoteurl: 'http://registry:5000'}\nhttp: {addr: ':5000', debug: {addr: ':5000'}}"),
        ("localhost", "proxy: {remoteurl: 'http://localhost', exec: {command: /bin/docker-credential-ecr-login, lifetime: 1h}}"),
        ("quay.io", "proxy: {remoteurl: 'https://quay.io', username: 'a: #b', ttl: 0}\nlog: {level: fatal}\nloglevel: x"),
        (
            "10.0.0.9:5000",
            "proxy: {remoteurl: 'http://10.0.0.9:5000', ttl: never}\nhttp: {addr: 'registry.corp:5000', net: unix, draintimeout: 3h}",
        ),
        ("docker.io", "proxy: {remoteurl: 'https://registry-1.docker.io'}\nauth: {htpasswd: {realm: x, path: /y}}\nhttp: {addr: ':443'}"),
        ("docker.io", "proxy: {remoteurl: 'https://index.docker.io'}\nstorage: {s3: {bucket: b}}\nlog: {level: loud, formatter: logstash}"),
    ] {
        let (config, _, _) = translated(text, &[]);
        assert!(config.upstreams.contains_key(name), "{text}");
    }
}

#[test]
fn the_hint_to_import_names_the_directory_that_the_old_registry_used() {
    for (storage, hint) in [
        ("filesystem: {rootdirectory: /srv/registry}", "take over: larder import registry2 /srv/registry --upstream ghcr.io"),
        ("filesystem:", "take over: larder import registry2 /var/lib/registry --upstream ghcr.io"),
        ("s3: {bucket: b}", "cannot be taken over"),
    ] {
        let (_, _, notes) = translated(&format!("proxy: {{remoteurl: 'https://ghcr.io'}}\nstorage:\n  {storage}\n"), &[]);
        assert!(notes.iter().any(|note| note.contains(hint)), "{notes:?}");
    }
}

/// The old registry asked for a password, or its credentials read what is private: larder would show it to everybody.
#[test]
fn what_was_behind_a_password_is_not_opened_to_the_network() {
    for text in [
        "proxy: {remoteurl: 'https://registry-1.docker.io'}\nauth: {htpasswd: {realm: x}}\nhttp: {addr: ':5000'}",
        "proxy: {remoteurl: 'https://harbor.corp', username: me, password: x}\nhttp: {addr: '0.0.0.0:5000'}",
    ] {
        let (config, _, notes) = translated(text, &[]);
        assert_eq!(config.server.listen[0].address.to_string(), "127.0.0.1:5000", "{text}");
        assert!(notes.iter().any(|note| note.contains("server.listen is 127.0.0.1:5000, not 0.0.0.0:5000")), "{notes:?}");
    }
}

#[test]
fn a_registry_to_push_to_is_not_translated() {
    for (text, why) in [("version: 0.1", "no proxy.remoteurl"), ("a: [", "not YAML"), ("proxy: {remoteurl: ghcr.io}", "proxy.remoteurl ")] {
        let failure = import::translate(text, []).unwrap_err().to_string();
        assert!(failure.contains(why), "{failure}");
    }
}
