//! The index with a million records, of which a tenth are manifests that list ten things each: how long everything takes,
//! what it occupies in RAM and on disk, and that both are within bounds. Every phase is a process of its own.

#![allow(clippy::expect_used, clippy::print_stdout, missing_docs, reason = "a benchmark")]

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use larder::clock::Clock;
use larder::oci::{Algorithm, Digest};
use larder::store::DaemonTime;
use larder::store::index::{Index, Limits, Record};
use larder::task::Supervisor;

const RECORDS: u64 = 1_000_000;
/// A busy minute.
const TOUCHED_AT_ONCE: u64 = 50_000;
const PHASE: &str = "LARDER_BENCH_PHASE";
const PORTION: usize = 1000;
/// MiB.
const RSS_MAX: u64 = 150;
const SIZE_MAX: u64 = 512;

fn digest(n: u64) -> Digest {
    Digest::of(Algorithm::Sha256, &(n % RECORDS).to_be_bytes())
}

fn record(n: u64) -> Record {
    let children = n.is_multiple_of(10).then(|| (1..=10).map(|child| (digest(n + child), child << 20)).collect());
    Record { last_used: DaemonTime(n), children }
}

fn load(index: &Index) {
    for first in (0..RECORDS).step_by(PORTION) {
        assert!(index.put_many((first..first + PORTION as u64).map(|n| (digest(n), record(n))).collect()), "a database");
    }
}

/// Waits until everything is written that was given before.
fn settle(index: &Index) {
    assert!(index.put_many(Vec::new()), "a database");
}

fn touch(index: &Index, count: u64, time: u64) {
    for _ in 0..count / TOUCHED_AT_ONCE {
        index.touch((0..TOUCHED_AT_ONCE).map(|_| (digest(fastrand::u64(..RECORDS)), DaemonTime(time))).collect());
        settle(index);
    }
}

/// How long until the first record was there.
fn read(index: &Index, began: Duration) -> Duration {
    let (mut count, mut opened, manifest) = (0, None, digest(0));
    let is_all = index.read(&mut |digest, record| {
        opened.get_or_insert_with(|| Clock::System.steady().saturating_sub(began));
        count += 1;
        // Its list was not lost.
        assert!(digest != manifest || record.children.is_some_and(|children| children.len() == 10));
    });
    assert!(is_all, "the index was lost");
    assert_eq!(count, RECORDS);
    opened.unwrap_or_default()
}

fn mib_of(key: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("a line");
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number") / 1024
}

fn mib_in(directory: &Path) -> u64 {
    fn bytes(directory: &Path) -> u64 {
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        let size = |entry: std::fs::DirEntry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
            Ok(metadata) => metadata.blocks() * 512,
            Err(_) => 0,
        };
        entries.map(size).sum()
    }
    bytes(directory) >> 20
}

/// In the child.
fn phase(name: &str, path: &Path) {
    let began = Clock::System.steady();
    let limits = match name {
        "rewrite" => Limits { measure_every: Duration::ZERO, size_max: 0, size_per_live: 1, ..Limits::default() },
        _ => Limits::default(),
    };
    let panics = prometheus::IntCounter::new("panics", "of tasks").expect("a name");
    let index = Index::open_with(path, limits, &Supervisor::new(panics)).expect("a thread");
    let mut opened = None;
    match name {
        "load" => load(&index),
        "touch" => touch(&index, RECORDS, RECORDS),
        "touch, killed" => {
            touch(&index, RECORDS / 4, RECORDS + 1);
            println!("kill me");
            touch(&index, RECORDS * 100, RECORDS + 2);
        }
        "rewrite" => {
            let at = |number: &str| path.join(number).exists();
            opened = Some(read(&index, began));
            while !at("1") || at("0") || at("old") {
                index.touch((0..100).map(|_| (digest(fastrand::u64(..RECORDS)), DaemonTime(RECORDS + 3))).collect());
                settle(&index);
            }
        }
        "open and read" => opened = Some(read(&index, began)),
        _ => unreachable!("phase {name}"),
    }
    let (took, rss) = (Clock::System.steady().saturating_sub(began), mib_of("VmRSS:"));
    drop(index);
    let (peak, size) = (mib_of("VmHWM:"), mib_in(path));
    let opened = opened.map_or_else(String::new, |opened| format!("{:.2} s", opened.as_secs_f64()));
    println!("{name:<16}{:>8.2} s{opened:>10}{rss:>6} MiB{peak:>6} MiB{size:>6} MiB", took.as_secs_f64());
    assert!(peak <= RSS_MAX, "{peak} MiB of RAM");
    assert!(size <= SIZE_MAX, "{size} MiB on disk");
}

fn child(name: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.arg(path).env(PHASE, name);
    command
}

fn run(name: &str, path: &Path) {
    assert!(child(name, path).status().expect("a process").success(), "{name}");
}

fn run_and_kill(name: &str, path: &Path) {
    let mut child = child(name, path).stdout(Stdio::piped()).spawn().expect("a process");
    BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut String::new()).expect("a word");
    // Amid the next batch, wherever that is.
    std::thread::sleep(Duration::from_millis(700));
    child.kill().expect("a process");
    child.wait().expect("a process");
    println!("{name:<56}{:>6} MiB", mib_in(path));
}

fn main() {
    if let Ok(name) = std::env::var(PHASE) {
        return phase(&name, Path::new(&std::env::args().nth(1).expect("a path")));
    }
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("index");
    println!("{:<16}{:>10}{:>10}{:>10}{:>10}{:>10}", "", "took", "open", "RSS", "peak", "on disk");
    for name in ["load", "open and read", "touch", "open and read"] {
        run(name, &path);
    }
    run_and_kill("touch, killed", &path);
    for name in ["open and read", "touch", "rewrite", "open and read"] {
        run(name, &path);
    }
}
