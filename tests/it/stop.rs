//! A stop: nothing is written to the cache directory after the last sync, so that what is marked as clean is; where
//! work does not end in time, the next start doubts what it finds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder::control::{self, Ask};
use larder::gate::Gate;
use tokio::runtime::Runtime;

use crate::fills::{assert_whole, path, push, until};
use crate::support::disk::FaultyDisk;
use crate::support::larder::Larder;
use crate::support::registry::{Fault, Latch, any, get};
use crate::support::scene::{Hub, Scene, hub};

const MIB: usize = 1024 * 1024;
/// More than any work here takes.
const LONG: Duration = Duration::from_secs(60);

/// Begins work that goes on by itself.
type Begin = fn(&Scene);

fn spawn_get(scene: &Scene, path: String) {
    let connection = scene.larder.connect();
    tokio::spawn(async move { crate::support::client::Client::over(connection).await.get(&path).try_send().await.map(drop) });
}

fn download(scene: &Scene) {
    spawn_get(scene, scene.blob());
}

fn tag(scene: &Scene) {
    spawn_get(scene, "/v2/library/app/manifests/latest".into());
}

fn prefetch(scene: &Scene) {
    let image = control::image("app:latest", &scene.larder.config).expect("an image");
    let (lines, mut heard) = tokio::sync::mpsc::channel(16);
    let control = scene.larder.app.control.clone();
    tokio::spawn(control.run(Ask::Pull { images: vec![image], platforms: Vec::new() }, lines));
    tokio::spawn(async move { while heard.recv().await.is_some() {} });
}

fn lock(larder: &Larder) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(larder.cache().join("lock")).expect("a lock file")).expect("JSON")
}

#[tokio::test(start_paused = true)]
async fn d9_nothing_is_written_behind_the_last_sync() {
    let works: [(&str, Begin); 3] = [("a download", download), ("a tag's question", tag), ("a prefetch", prefetch)];
    for (name, begin) in works {
        let (disk, latch) = (FaultyDisk::new(), Latch::new());
        let scene = Hub::unstarted(&[4 * MIB]).start(|setup| setup.disk(Arc::new(disk.clone())));
        // What upstream has begun to say it goes on with after the stop.
        let question = if name == "a download" { get().blob() } else { any().manifest() };
        let from = if name == "a download" { 2 * MIB as u64 } else { 0 };
        scene.registry.when(question).then(Fault::HoldAt(from, latch.clone()));
        begin(&scene);
        until("upstream is asked", || scene.registry.count(any()) > 0).await;
        if name == "a download" {
            until("half of it came", || received(&scene.larder) >= from).await;
        }
        scene.larder.app.close(LONG).await;
        assert_eq!(lock(&scene.larder)["clean"], true, "{name}");
        let operations = disk.operations();
        latch.open();
        tokio::time::sleep(LONG).await;
        assert_eq!(disk.operations() - operations, 0, "{name} went on after the last sync");
    }
}

/// Bytes in the files of downloads.
fn received(larder: &Larder) -> u64 {
    larder.files("partial").iter().map(|file| file.metadata().map_or(0, |file| file.len())).sum()
}

/// What was received before the stop is there after it, whatever happens to the machine then.
#[test]
fn d9_a_download_that_a_stop_interrupts_goes_on_where_it_was_after_a_reboot() {
    let (net, registry) = hub();
    let blob = push(&registry, 4 * MIB, 1);
    registry.when(get().blob()).first(1).then(Fault::HoldAt(2 * MIB as u64, Latch::new()));
    let life = Runtime::new().expect("a runtime");
    let larder = life.block_on(async {
        let larder = Larder::start(&net);
        let mut client = larder.client().await;
        let mut body = client.open(&path(blob.digest)).await;
        body.read_exactly(2 * MIB).await.expect("half of it");
        larder.app.close(LONG).await;
        larder
    });
    life.shutdown_timeout(Duration::from_secs(10));
    let written: PathBuf = larder.cache().join("lock");
    let mut holder = lock(&larder);
    assert_eq!(holder["clean"], true);
    holder["boot"] = "another".into();
    std::fs::write(written, holder.to_string()).expect("a lock file");
    Runtime::new().expect("a runtime").block_on(async {
        let mut setup = larder.kill().await;
        // The one of before is closed.
        setup.world.gate = Gate::threads(4);
        registry.forget_requests();
        let larder = setup.start();
        assert_whole(&larder.get(&path(blob.digest)).await, &blob);
        let ranges: Vec<_> = registry.seen(get().blob()).iter().map(|request| request.header("range").map(str::to_owned)).collect();
        assert_eq!(ranges, [Some("bytes=2097152-".to_owned())]);
    });
}

/// A disk that hangs keeps nobody from the end, but the stop is not clean.
#[tokio::test]
async fn d9_work_that_does_not_end_makes_the_stop_unclean() {
    let disk = FaultyDisk::new();
    let scene = Hub::unstarted(&[4 * MIB]).start(|setup| setup.disk(Arc::new(disk.clone())));
    scene.pull(&scene.larder).await;
    until("it is stored", || scene.larder.app.store.contains(&scene.image.layers[0].digest)).await;
    disk.hold_reads_from(0);
    spawn_get(&scene, scene.blob());
    until("a read hangs", || disk.waiting() > 0).await;
    scene.larder.app.close(Duration::from_millis(50)).await;
    let is_clean = lock(&scene.larder)["clean"].clone();
    disk.release();
    assert_eq!(is_clean, false);
}
