//! Eviction by a trace: 20,000 pulls of 2,000 images that share layers, by nodes that keep what they have, through a cache
//! that holds 20 % of the bytes. Beside it, from the same trace: an exact LRU over images, and a plain LRU over files.
//!
//! A real store on real, small files (one byte stands for 1 KiB or so); only fsync is left out.
#![allow(clippy::expect_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use larder::clock::{Clock, Timestamp};
use larder::config::VerifyOnRead;
use larder::gate::Gate;
use larder::metrics::Metrics;
use larder::oci::{Algorithm, Digest, Manifest};
use larder::store::disk::{Disk, DiskFile, Entry, Stat, SystemDisk};
use larder::store::{Options, RepositoryKey, Store, Verifier};

const IMAGES: usize = 2_000;
const PULLS: usize = 20_000;
const NODES: usize = 100;
const BLOCK: u64 = 4096;
/// Seconds between two pulls.
const PACE: Duration = Duration::from_secs(20);

struct Image {
    repository: RepositoryKey,
    manifest: Manifest,
    /// Config and layers.
    blobs: Vec<usize>,
}

struct World {
    images: Vec<Image>,
    /// Digest and bytes.
    blobs: Vec<(Digest, Bytes)>,
}

fn blob(rng: &mut fastrand::Rng, size: usize) -> (Digest, Bytes) {
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(size).collect();
    (Digest::of(Algorithm::Sha256, &bytes), bytes.into())
}

/// A few bases, as many frameworks on them, and each image's own layers.
fn world(rng: &mut fastrand::Rng) -> World {
    let mut blobs = Vec::new();
    let mut add = |rng: &mut fastrand::Rng, low: usize, high: usize| {
        let size = rng.usize(low..high);
        blobs.push(blob(rng, size));
        blobs.len() - 1
    };
    let bases: Vec<Vec<usize>> = (0..20).map(|_| vec![add(rng, 20_000, 80_000)]).collect();
    let stacks: Vec<Vec<usize>> = (0..100)
        .map(|_| {
            let mut layers = bases[rng.usize(..bases.len())].clone();
            layers.extend([add(rng, 20_000, 120_000), add(rng, 4_000, 40_000)]);
            layers
        })
        .collect();
    let lists: Vec<Vec<usize>> = (0..IMAGES)
        .map(|_| {
            let mut list = stacks[rng.usize(..stacks.len())].clone();
            list.extend((0..rng.usize(1..4)).map(|_| add(rng, 1_000, 60_000)).collect::<Vec<_>>());
            list.push(add(rng, 500, 3_000));
            list
        })
        .collect();
    let images = lists.into_iter().enumerate().map(|(n, list)| image(n, list, &blobs)).collect();
    World { images, blobs }
}

fn image(n: usize, blobs: Vec<usize>, all: &[(Digest, Bytes)]) -> Image {
    let entry = |blob: &usize, kind: &str| {
        let (digest, bytes) = &all[*blob];
        format!(r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{}}}"#, bytes.len())
    };
    let (config, layers) = blobs.split_last().expect("a config");
    let layers: Vec<_> = layers.iter().map(|layer| entry(layer, "layer.v1.tar")).collect();
    let text = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        entry(config, "config.v1+json"),
        layers.join(",")
    );
    let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
    let manifest = Manifest::verified(text.into(), None, &digest).expect("a manifest");
    let name = format!("team{}/app{n}", n % 50).parse().expect("a name");
    Image { repository: RepositoryKey { upstream: "docker.io".into(), name }, manifest, blobs }
}

/// Which image, and which of its blobs the node that pulls lacks. Zipf, exponent 1; a new node takes an old one's place now and then.
fn trace(rng: &mut fastrand::Rng, world: &World) -> Vec<(usize, Vec<usize>)> {
    let mut sum = 0.0;
    let weights = (1..=IMAGES).map(|rank| 1.0 / rank as f64);
    let cumulated: Vec<f64> = weights
        .map(|weight| {
            sum += weight;
            sum
        })
        .collect();
    let mut order: Vec<usize> = (0..IMAGES).collect();
    rng.shuffle(&mut order);
    let mut nodes = vec![HashSet::new(); NODES];
    (0..PULLS)
        .map(|_| {
            let place = cumulated.partition_point(|below| *below < rng.f64() * sum).min(IMAGES - 1);
            let image = order[place];
            let node = &mut nodes[rng.usize(..NODES)];
            if rng.usize(..200) == 0 {
                node.clear();
            }
            let lacks = world.images[image].blobs.iter().copied().filter(|blob| node.insert(*blob)).collect();
            (image, lacks)
        })
        .collect()
}

/// An LRU over files of known size, exact to the byte.
#[derive(Default)]
struct Lru {
    capacity: u64,
    size: u64,
    next: u64,
    ranks: HashMap<usize, (u64, u64)>,
    order: BTreeMap<u64, usize>,
}

impl Lru {
    /// Whether it is held; it is the last used then.
    fn touch(&mut self, key: usize) -> bool {
        let Some((rank, _)) = self.ranks.get_mut(&key) else { return false };
        self.order.remove(rank);
        *rank = self.next;
        self.order.insert(self.next, key);
        self.next += 1;
        true
    }

    fn insert(&mut self, key: usize, size: u64) {
        while self.size + size > self.capacity {
            let (_, oldest) = self.order.pop_first().expect("something to evict");
            self.size -= self.ranks.remove(&oldest).expect("it is held").1;
        }
        self.size += size;
        self.ranks.insert(key, (self.next, size));
        self.order.insert(self.next, key);
        self.next += 1;
    }
}

fn allocated(bytes: &Bytes) -> u64 {
    (bytes.len() as u64).div_ceil(BLOCK) * BLOCK
}

/// The byte hit ratio of an LRU; `by_image`: a pull is a use of all that the image lists.
fn simulate(world: &World, trace: &[(usize, Vec<usize>)], capacity: u64, by_image: bool) -> f64 {
    let mut lru = Lru { capacity, ..Lru::default() };
    let (mut hit, mut all) = (0, 0);
    for (image, lacks) in trace {
        if by_image {
            for blob in &world.images[*image].blobs {
                lru.touch(*blob);
            }
        }
        for blob in lacks {
            let bytes = &world.blobs[*blob].1;
            all += bytes.len();
            if lru.touch(*blob) { hit += bytes.len() } else { lru.insert(*blob, allocated(bytes)) }
        }
        // Its record is among what is not simulated, as are directories: the capacity is so much less.
        let manifest = usize::MAX - image;
        if !lru.touch(manifest) {
            lru.insert(manifest, BLOCK);
        }
    }
    hit as f64 / all as f64
}

/// What files below occupy.
fn occupied(cache: &Path) -> u64 {
    let (mut sum, mut folders) = (0, vec![cache.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten().filter(|entry| entry.file_name() != "index") {
            let metadata = entry.metadata().expect("a file");
            sum += metadata.blocks() * 512;
            if metadata.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    sum
}

async fn pull(store: &Arc<Store>, world: &World, image: &Image, lacks: &[usize]) -> usize {
    let digest = image.manifest.descriptor().digest;
    if store.media_type(&image.repository, &digest).is_none() || store.manifest(&digest).await.expect("a disk").is_none() {
        store.put_manifest(&image.repository, &image.manifest).await.expect("room");
    }
    store.touch_image(&digest);
    let mut hit = 0;
    for blob in lacks {
        let (digest, bytes) = &world.blobs[*blob];
        if store.blob(digest).await.expect("a disk").is_some() {
            hit += bytes.len();
            continue;
        }
        let mut partial = store.begin(&image.repository.upstream, digest, Some(bytes.len() as u64)).await.expect("room");
        let mut verifier = Verifier::new(digest);
        verifier.update(bytes);
        partial.append(bytes).expect("room");
        partial.commit(verifier.finish(digest).expect("the bytes")).expect("a blob");
    }
    hit
}

fn main() {
    let mut rng = fastrand::Rng::with_seed(5);
    let world = world(&mut rng);
    let trace = trace(&mut rng, &world);
    let whole: u64 = world.blobs.iter().map(|(_, bytes)| allocated(bytes)).sum::<u64>() + IMAGES as u64 * 2 * BLOCK;
    let max_size = whole / 5;
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Clock::manual(Timestamp(1_795_219_200_000));
    let options = Options {
        path: directory.path().to_owned(),
        max_size,
        min_free: 0,
        evict_unused_after: Duration::ZERO,
        pins: Vec::new(),
        max_blob_size: max_size,
        memory_cache_size: 1 << 20,
        verify_on_read: VerifyOnRead::Never,
        private_upstreams: HashSet::new(),
    };
    let metrics = Arc::new(Metrics::new(["docker.io"]));
    let store = Store::open(options, Arc::new(NoSync), Gate::Inline, clock.clone(), Arc::clone(&metrics)).expect("a store");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut hit, mut all, mut most, mut error) = (0, 0, 0, 0.0f64);
    for (n, (image, lacks)) in trace.iter().enumerate() {
        hit += runtime.block_on(pull(&store, &world, &world.images[*image], lacks));
        all += lacks.iter().map(|blob| world.blobs[*blob].1.len()).sum::<usize>();
        clock.advance(PACE);
        // Between two rounds of tidying up, and after one.
        if n % 50 == 3 {
            let du = occupied(directory.path());
            most = most.max(du);
            assert!(du <= max_size, "pull {n}: {du} of {max_size}");
        }
        if n % 5 == 4 {
            runtime.block_on(store.tend());
        }
        if n % 100 == 99 {
            let (du, gauge) = (occupied(directory.path()), metrics.cache_size.get() as f64);
            error = error.max((gauge - du as f64).abs() / du as f64);
        }
    }
    let larder = hit as f64 / all as f64;
    let overhead = metrics.cache_size.get().cast_unsigned().saturating_sub(stored(directory.path()));
    let (by_image, plain) = (simulate(&world, &trace, max_size - overhead, true), simulate(&world, &trace, max_size - overhead, false));
    println!("{PULLS} pulls of {IMAGES} images, {} files, {:.1} MB; the cache holds 20 %", world.blobs.len(), whole as f64 / 1e6);
    println!("occupied at most    {:.2} % of max_size, in {} samples", most as f64 / max_size as f64 * 100.0, PULLS / 50);
    println!("gauge against du    {:.2} % off at most", error * 100.0);
    println!("byte hit ratio      {:.2} %", larder * 100.0);
    println!("  exact, by image   {:.2} %", by_image * 100.0);
    println!("  plain LRU         {:.2} %", plain * 100.0);
    assert!(error <= 0.01, "the gauge is wrong");
    assert!((larder - by_image).abs() <= 0.02, "not within 2 points of the exact LRU by image");
}

/// What `blobs/` holds in files.
fn stored(cache: &Path) -> u64 {
    let (mut sum, mut folders) = (0, vec![cache.join("blobs")]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
            let metadata = entry.metadata().expect("a file");
            if metadata.is_dir() { folders.push(entry.path()) } else { sum += metadata.blocks() * 512 }
        }
    }
    sum
}

/// The system's disk without fsync, which takes most of the time and decides nothing here.
struct NoSync;
struct NoSyncFile(Arc<dyn DiskFile>);

impl Disk for NoSync {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.open(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.create(path).map(|file| Arc::new(NoSyncFile(file)) as Arc<dyn DiskFile>)
    }
    fn reopen(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        SystemDisk.reopen(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_dir_all(path)
    }
    fn sync_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }
    fn list(&self, directory: &Path) -> io::Result<Vec<Entry>> {
        SystemDisk.list(directory)
    }
    fn stat(&self, path: &Path) -> io::Result<Stat> {
        SystemDisk.stat(path)
    }
    fn free_space(&self, path: &Path) -> io::Result<u64> {
        SystemDisk.free_space(path)
    }
}

impl DiskFile for NoSyncFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }
    fn read_now(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        self.0.read_now(buffer, offset)
    }
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn stat(&self) -> io::Result<Stat> {
        self.0.stat()
    }
    fn as_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.0.as_fd()
    }
}
