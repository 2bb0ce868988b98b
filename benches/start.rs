//! A start over a million blobs, a million confirmations, 100,000 manifests and as many tags: the real binary, with the index
//! and without it. How long until it answers, until everything is in RAM, how much RAM that is, and what warm hits get
//! meanwhile, against the same hits after it.
//!
//! Takes some minutes and 10 GB of the disk that holds `LARDER_BENCH_DIR` (else the target directory); files that a run
//! before has left there are used again. `LARDER_BLOBS` may say fewer.
#![allow(clippy::expect_used, clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods, missing_docs, reason = "a benchmark")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use larder::oci::{Algorithm, Digest, MediaType};
use larder::store::{Layout, RepositoryKey};

const LAYERS: usize = 9;
const TAGS_OF_A_REPOSITORY: usize = 10;
const CLIENTS: usize = 4;
const MIB: u64 = 1 << 20;

/// What the issue asks for.
const ANSWER_MAX: Duration = Duration::from_secs(2);
const RSS_MAX: u64 = 400 * MIB;
const FILES_A_SECOND_MIN: f64 = 17_000.0;
const HITS_MIN: f64 = 0.9;

fn main() {
    let blobs = std::env::var("LARDER_BLOBS").map_or(1_000_000, |text| text.parse().expect("a number"));
    let images = blobs / (LAYERS + 1);
    let base = std::env::var_os("LARDER_BENCH_DIR").map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let directory = base.join(format!("start-{blobs}"));
    let layout = Layout::new(directory.join("cache"));
    if !directory.join("made").exists() {
        let begin = Instant::now();
        make(&layout, images);
        fs::write(directory.join("made"), "").expect("a file");
        println!("{blobs} blobs made in {:.0} s", begin.elapsed().as_secs_f64());
    }
    let _ = fs::remove_dir_all(layout.index());
    for index in ["without the index", "with the index"] {
        println!("{index}:");
        alone(&directory, images, index == "without the index");
        if index == "without the index" {
            let _ = fs::remove_dir_all(layout.index());
        }
        beside_clients(&directory, &layout, images);
    }
}

fn repository(image: usize) -> RepositoryKey {
    RepositoryKey { upstream: "docker.io".into(), name: format!("org/app{}", image / TAGS_OF_A_REPOSITORY).parse().expect("a name") }
}

fn tag(image: usize) -> String {
    format!("v{}", image % TAGS_OF_A_REPOSITORY)
}

fn layer(image: usize, layer: usize) -> (Digest, Vec<u8>) {
    let bytes = format!("layer {layer} of image {image}").into_bytes();
    (Digest::of(Algorithm::Sha256, &bytes), bytes)
}

fn manifest(image: usize) -> (Digest, Vec<u8>) {
    let descriptor = |n| {
        let (digest, bytes) = layer(image, n);
        format!(r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":{}}}"#, bytes.len())
    };
    let layers: Vec<_> = (1..LAYERS).map(descriptor).collect();
    let bytes = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{},"layers":[{}]}}"#,
        MediaType::OCI_MANIFEST,
        descriptor(0),
        layers.join(",")
    );
    (Digest::of(Algorithm::Sha256, bytes.as_bytes()), bytes.into_bytes())
}

fn make(layout: &Layout, images: usize) {
    let write = |path: &Path, bytes: &[u8]| {
        if fs::write(path, bytes).is_err() {
            fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
            fs::write(path, bytes).expect("a file");
        }
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time").as_millis();
    for image in 0..images {
        let repository = repository(image);
        let (digest, bytes) = manifest(image);
        let blobs = (0..LAYERS).map(|n| layer(image, n)).chain([(digest, bytes.clone())]);
        for (digest, bytes) in blobs {
            write(&layout.blob(&digest), &bytes);
            write(&layout.confirmation("docker.io", &digest), b"");
        }
        let (kind, size) = (MediaType::OCI_MANIFEST, bytes.len());
        write(&layout.manifest_ref(&repository, &digest), format!(r#"{{"media_type":"{kind}","size":{size}}}"#).as_bytes());

        let record = format!(r#"{{"digest":"{digest}","media_type":"{kind}","size":{size},"checked_at":{now}}}"#);
        write(&layout.tag(&repository, &tag(image).parse().expect("a tag")), record.as_bytes());
    }
}

/// The daemon, ended cleanly when it goes out of scope.
struct Daemon {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Daemon {
    fn start(directory: &Path) -> Daemon {
        let config = directory.join("larder.yaml");
        let text = format!(
            "server: {{listen: '127.0.0.1:0'}}\nadmin: {{listen: '127.0.0.1:0'}}\n\
             cache: {{path: '{}', max_size: 100GiB, min_free: 0, evict_unused_after: 0, tag_ttl: 1000d, scrub_interval: 0}}\n\
             upstreams: {{docker.io: {{url: 'http://127.0.0.1:9', visibility: public}}}}\nlog: {{level: 'warn,larder::app=info'}}\n",
            directory.join("cache").display()
        );
        fs::write(&config, text).expect("a configuration");
        let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        // What cargo says to the bench is not said to larder.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LARDER_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().expect("the binary");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let (address, admin) = log.find_map(|line| serves_at(&line)).expect("a line that it serves");
        std::thread::spawn(move || log.for_each(|line| eprintln!("{line}")));
        Daemon { child, address, admin }
    }

    fn status(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).expect("the field");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
    }

    fn metric(&self, name: &str) -> u64 {
        let mut client = Client::connect(self.admin);
        let text = String::from_utf8(client.get("/metrics")).expect("text");
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number") as u64).sum()
    }
}

/// Where clients and operators reach it, if this is the line that says so.
fn serves_at(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = |field: &str| event[field].as_str()?.parse().ok();
    event["message"].as_str()?.starts_with("larder serves").then_some((address("address")?, address("admin")?))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill");
        self.child.wait().expect("an end");
    }
}

/// A connection that is kept.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Client {
        loop {
            if let Ok(stream) = TcpStream::connect(address) {
                stream.set_nodelay(true).expect("a socket");
                return Client { stream: BufReader::new(stream) };
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn get(&mut self, path: &str) -> Vec<u8> {
        let request = format!("GET {path} HTTP/1.1\r\nhost: larder\r\naccept: */*\r\n\r\n");
        self.stream.get_mut().write_all(request.as_bytes()).expect("a request");
        let (mut line, mut length) = (String::new(), 0);
        self.stream.read_line(&mut line).expect("a status");
        assert!(line.contains(" 200 "), "{path}: {line}");
        loop {
            line.clear();
            self.stream.read_line(&mut line).expect("a header");
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("a body");
        body
    }

    /// A manifest by tag, and one of its layers.
    fn pull(&mut self, image: usize) {
        let name = repository(image).name;
        assert_eq!(self.get(&format!("/v2/{}/manifests/{}", name.as_str(), tag(image))), manifest(image).1);
        let (digest, bytes) = layer(image, 3);
        assert_eq!(self.get(&format!("/v2/{}/blobs/{digest}", name.as_str())), bytes);
    }
}

/// Pulls of a few images, over and over, until `stop`; counts them.
fn hit(address: SocketAddr, images: usize, stop: &Arc<AtomicBool>) -> Arc<AtomicU64> {
    let count = Arc::new(AtomicU64::new(0));
    for client in 0..CLIENTS {
        let (stop, count) = (Arc::clone(stop), Arc::clone(&count));
        std::thread::spawn(move || {
            let mut connection = Client::connect(address);
            for pull in client.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                connection.pull(pull * 7 % 100 * (images / 100));
                count.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    count
}

fn total(images: usize) -> u64 {
    (images * (LAYERS + 1)) as u64
}

fn is_loaded(daemon: &Daemon, images: usize) -> bool {
    let manifests = daemon.metric(r#"larder_cache_objects{kind="manifest"}"#);
    daemon.metric("larder_cache_objects") == total(images) && manifests == images as u64
}

/// How fast the directory is read while nobody asks for anything.
fn alone(directory: &Path, images: usize, is_rebuilt: bool) {
    let begin = Instant::now();
    let daemon = Daemon::start(directory);
    while !is_loaded(&daemon, images) {
        std::thread::sleep(Duration::from_millis(100));
        assert!(begin.elapsed() < Duration::from_secs(600), "not everything was found");
    }
    let seconds = begin.elapsed().as_secs_f64();
    // Blobs, their confirmations, and two records of each image.
    let rate = (total(images) * 2 + images as u64 * 2) as f64 / seconds;
    println!("  alone, everything was in RAM after {seconds:.1} s: {rate:.0} files/s, {:.0} blobs/s", total(images) as f64 / seconds);
    assert!(!is_rebuilt || rate >= FILES_A_SECOND_MIN);
}

fn beside_clients(directory: &Path, layout: &Layout, images: usize) {
    let begin = Instant::now();
    let daemon = Daemon::start(directory);
    Client::connect(daemon.address).pull(images / 2);
    let answered = begin.elapsed();

    let stop = Arc::new(AtomicBool::new(false));
    let hits = hit(daemon.address, images, &stop);
    let mut meanwhile = Rates::new(&hits);
    while !is_loaded(&daemon, images) {
        meanwhile.sample();
        assert!(begin.elapsed() < Duration::from_secs(900), "not everything was found");
    }
    let loaded = begin.elapsed();
    let mut after = Rates::new(&hits);
    while after.seen.len() < meanwhile.seen.len().clamp(10, 60) {
        after.sample();
    }
    let (meanwhile, after) = (meanwhile.median(), after.median());
    stop.store(true, Ordering::Relaxed);
    let (rss, most) = (daemon.status("VmRSS"), daemon.status("VmHWM"));
    drop(daemon);
    println!(
        "  the first pull was answered after {:.2} s; beside clients, everything was in RAM after {:.1} s",
        answered.as_secs_f64(),
        loaded.as_secs_f64()
    );
    println!("  pulls by {CLIENTS} clients: {meanwhile:.0}/s meanwhile, {after:.0}/s after it: {:.1} %", 100.0 * meanwhile / after);
    println!("  RSS {} MiB, at most {} MiB; index {} MiB", rss / MIB, most / MIB, size(&layout.index()) / MIB);
    assert!(answered < ANSWER_MAX && most < RSS_MAX && meanwhile >= HITS_MIN * after);
}

/// Pulls a second, second by second: their median minds neither the machine's hiccups nor the first look at each repository.
struct Rates<'a> {
    hits: &'a AtomicU64,
    seen: Vec<f64>,
}

impl<'a> Rates<'a> {
    fn new(hits: &'a AtomicU64) -> Rates<'a> {
        Rates { hits, seen: Vec::new() }
    }

    fn sample(&mut self) {
        let (before, from) = (self.hits.load(Ordering::Relaxed), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        self.seen.push((self.hits.load(Ordering::Relaxed) - before) as f64 / from.elapsed().as_secs_f64());
    }

    fn median(mut self) -> f64 {
        self.seen.sort_by(f64::total_cmp);
        self.seen[self.seen.len() / 2]
    }
}

fn size(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) }).sum()
}
