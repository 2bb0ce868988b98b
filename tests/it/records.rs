//! Numbers in larder's own files that no clock and no disk can have given: the file counts as damaged, as one with
//! other damage does, and costs nobody more than a question.

use std::path::{Path, PathBuf};

use larder::config::{CredentialConfig, CredentialKind, Credentials, Secret};
use serde_json::Value;

use crate::fills::until;
use crate::support::larder::{Larder, Setup};
use crate::support::log::listen;
use crate::support::registry::{Bearer, any, head};
use crate::support::scene::{Hub, Scene};

const LATEST: &str = "/v2/library/app/manifests/latest";
const PANICS: &str = "larder_task_panics_total";
/// The first moment of the year 10000, and what lies beyond and before all time.
const ABSURD: [&str; 5] = ["253402300800000", "9223372036854775807", "18446744073709551615", "-1", "1e300"];

/// The one file below the cache directory whose path has this in it.
fn file(cache: &Path, name: &str) -> PathBuf {
    let mut folders = vec![cache.to_owned()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(name) {
                found.push(path);
            }
        }
    }
    assert_eq!(found.len(), 1, "{name}: {found:?}");
    found.remove(0)
}

/// Writes a number in the place of a key's.
fn put(path: &Path, key: &str, number: &str) {
    let mut record: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    record[key] = "HERE".into();
    std::fs::write(path, record.to_string().replace("\"HERE\"", number)).unwrap();
}

/// A larder that was stopped when it held the image.
async fn stopped(scene: Scene) -> (Scene<()>, Setup) {
    scene.pull(&scene.larder).await;
    until("it is stored", || scene.larder.app.store.contains(&scene.image.layers[0].digest)).await;
    let Scene { net, registry, larder, image } = scene;
    (Scene { net, registry, larder: (), image }, larder.stop().await)
}

fn is_served(larder: &Larder, status: u16) {
    assert_eq!((status, larder.metric(PANICS)), (200, 0.0));
}

#[tokio::test]
async fn d8_a_tag_s_record_with_an_absurd_time_costs_one_question_and_no_panic() {
    for key in ["first_seen", "checked_at"] {
        for number in ABSURD {
            let (scene, setup) = stopped(Scene::new()).await;
            put(&file(&setup.config.cache.path, "_tags/latest"), key, number);
            let larder = setup.start();
            // It moves, which is logged with the time since which the old one was named.
            let moved = scene.registry.push_image("library/app", "latest", &[1000], 2);
            let (log, _guard) = listen();
            let reply = larder.get(LATEST).await;
            is_served(&larder, reply.status);
            assert_eq!((reply.bytes(), reply.header("cache-status")), (&moved.bytes, Some("larder; fwd=uri-miss")), "{key}: {number}");
            assert!(!log.text().contains("panic"), "{key}: {number}: {}", log.text());
            // Written anew.
            scene.net.down("hub.test");
            assert_eq!(larder.get(LATEST).await.header("cache-status"), Some("larder; hit; ttl=300"), "{key}: {number}");
        }
    }
}

/// `larder import` writes the epoch of a tag whose file has no time: that is old, not damaged.
#[tokio::test]
async fn a_tag_s_record_of_the_epoch_is_one() {
    let (scene, setup) = stopped(Scene::new()).await;
    for key in ["first_seen", "checked_at"] {
        put(&file(&setup.config.cache.path, "_tags/latest"), key, "0");
    }
    let larder = setup.start();
    let moved = scene.registry.push_image("library/app", "latest", &[1000], 2);
    let (log, _guard) = listen();
    let reply = larder.get(LATEST).await;
    assert_eq!((reply.bytes(), reply.header("cache-status")), (&moved.bytes, Some("larder; fwd=stale; detail=updated")));
    assert!(log.text().contains("1970-01-01T00:00:00Z"), "{}", log.text());
}

#[tokio::test]
async fn d8_an_absurd_time_since_which_a_repository_is_shown_is_asked_anew() {
    for number in ABSURD {
        let scene = Hub::unstarted(&[1000]);
        scene.registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "paid"));
        let login = Credentials { username: "me".into(), password: Secret::Inline("paid".into()) };
        let credential = CredentialConfig { name: "default".into(), repositories: Vec::new(), kind: CredentialKind::Password(login) };
        let scene = scene.start(|setup| setup.hub(|hub| hub.credentials = vec![credential]));
        let (scene, setup) = stopped(scene).await;
        std::fs::write(file(&setup.config.cache.path, "_shown"), number).unwrap();
        scene.registry.forget_requests();
        let larder = setup.start();
        is_served(&larder, larder.get(LATEST).await.status);
        assert_eq!(scene.registry.count(head().manifest()), 2, "{number}: upstream is asked as nobody, after a challenge");
        is_served(&larder, larder.get(LATEST).await.status);
        assert_eq!(scene.registry.count(head().manifest()), 2, "{number}: once");
    }
}

#[tokio::test]
async fn d8_absurd_numbers_in_the_lock_file_and_in_uptime_stop_no_start() {
    for number in ABSURD {
        for name in ["lock: examined_at", "lock: blobs", "lock: others", "uptime", "history.json"] {
            let (scene, setup) = stopped(Scene::new()).await;
            let path = |name: &str| setup.config.cache.path.join(name);
            match name {
                "uptime" => std::fs::write(path("uptime"), number).unwrap(),
                "history.json" => {
                    std::fs::write(path("history.json"), format!("{{\"hours\":{{\"{number}\":{{}}}},\"told\":{number}}}")).unwrap()
                }
                "lock: examined_at" => put(&path("lock"), "examined_at", number),
                "lock: blobs" => put(&path("lock"), "sizes", &format!("{{\"blobs\":{number},\"others\":0}}")),
                _ => put(&path("lock"), "sizes", &format!("{{\"blobs\":0,\"others\":{number}}}")),
            }
            scene.registry.forget_requests();
            let larder = setup.start();
            larder.app.store.loaded().await;
            scene.pull(&larder).await;
            assert_eq!(larder.metric(PANICS), 0.0, "{name}: {number}");
            assert_eq!(scene.registry.count(any()), 0, "{name}: {number}: all of it is here");
            let size = larder.metric("larder_cache_size_bytes");
            let occupied = crate::store::du(larder.cache()) as f64;
            assert!((size - occupied).abs() <= 65_536.0, "{name}: {number}: {size} counted, {occupied} there");
        }
    }
}
