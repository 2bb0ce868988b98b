//! What `explain` tells is what the next request does: for each scene the same decision is printed and then acted upon.

use std::collections::BTreeMap;

use larder::config::Patterns;

use super::*;
use crate::support::net::FakeNet;
use crate::support::registry::{Latch, get, head};

const LATEST: &str = "/v2/library/app/manifests/latest";
const OTHER: &str = "library/other";

/// Something that is asked for, in a state of things.
struct Scene {
    net: FakeNet,
    registry: FakeRegistry,
    larder: Larder,
    path: String,
}

impl Scene {
    /// `library/app:latest` and `library/other:latest` are the same image; `library/app` has been pulled.
    async fn pulled(change: impl FnOnce(Setup) -> Setup) -> (Scene, Image) {
        let (scene, image) = Scene::empty(change);
        pull(&scene.larder, APP, "latest", &image).await;
        (scene, image)
    }

    fn empty(change: impl FnOnce(Setup) -> Setup) -> (Scene, Image) {
        let (net, registry) = hub();
        registry.push_image(OTHER, "latest", &[3000], 1);
        let image = registry.push_image(APP, "latest", &[3000], 1);
        let larder = change(Setup::new(&net)).start();
        (Scene { net, registry, larder, path: LATEST.into() }, image)
    }

    fn at(self, path: String) -> Scene {
        Scene { path, ..self }
    }

    fn later(self, time: Duration) -> Scene {
        self.larder.clock.advance(time);
        self
    }

    /// Upstream is down, and that is known.
    async fn down(self) -> Scene {
        self.net.down("hub.test");
        for _ in 0..20 {
            self.larder.get(&manifest(APP, "never")).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            if explain(&self.larder, &manifest(APP, "never")).await.explanation.next.served.is_some() {
                return self;
            }
        }
        panic!("no breaker opens");
    }
}

fn as_it_is(setup: Setup) -> Setup {
    setup
}

fn keeps_deleted(setup: Setup) -> Setup {
    setup.cache(|cache| cache.keep_deleted_tags = true)
}

fn immutable(setup: Setup) -> Setup {
    setup.hub(|hub| hub.immutable_tags = Patterns::new(&["lat.*".into()]).unwrap())
}

fn has_a_private_upstream(setup: Setup) -> Setup {
    let mut upstream = upstream("private.corp", "private.test");
    upstream.visibility = Visibility::Private;
    setup.upstream(upstream)
}

fn has_a_credential(setup: Setup) -> Setup {
    setup.hub(|hub| hub.credentials = vec![password("paid", "me", "paid", &[])])
}

const SCENES: [&str; 23] = [
    "a tag of which nothing is cached",
    "a fresh tag",
    "an expired tag",
    "a tag that a HEAD has named",
    "a tag that was missing a moment ago",
    "a deleted tag that is kept",
    "an old tag that never moves",
    "a manifest by digest",
    "a manifest of which nothing is cached",
    "a manifest of another repository",
    "a manifest that was missing a moment ago",
    "a blob",
    "a blob that is listed and not cached",
    "a blob of another repository",
    "a blob of another repository that was confirmed",
    "a blob that was missing a moment ago",
    "a blob that is arriving",
    "an expired tag of an upstream that is down",
    "a tag of an upstream that is down",
    "a blob of an upstream that is down",
    "a cached blob of an upstream that is down",
    "a blob that a private upstream has, too",
    "a repository of which nobody knows whether it is public",
];

async fn scene(name: &str) -> Scene {
    match name {
        "a tag of which nothing is cached" => Scene::empty(as_it_is).0,
        "a fresh tag" => Scene::pulled(as_it_is).await.0,
        "an expired tag" => Scene::pulled(as_it_is).await.0.later(HOUR),
        "a tag that a HEAD has named" => {
            let (scene, _) = Scene::empty(as_it_is);
            assert_eq!(scene.larder.head(LATEST).await.status, 200);
            scene
        }
        "a tag that was missing a moment ago" => {
            let scene = Scene::empty(as_it_is).0.at(manifest(APP, "none"));
            assert_eq!(scene.larder.get(&scene.path).await.status, 404);
            scene
        }
        "a deleted tag that is kept" => {
            let scene = Scene::pulled(keeps_deleted).await.0.later(HOUR);
            scene.registry.delete_tag(APP, "latest");
            assert_eq!(scene.larder.get(LATEST).await.status, 200);
            scene
        }
        "an old tag that never moves" => Scene::pulled(immutable).await.0.later(400 * 24 * HOUR),
        "a manifest by digest" => {
            let (scene, image) = Scene::pulled(as_it_is).await;
            scene.at(manifest(APP, image.digest))
        }
        "a manifest of which nothing is cached" => {
            let (scene, image) = Scene::empty(as_it_is);
            scene.at(manifest(APP, image.digest))
        }
        "a manifest of another repository" => {
            let (scene, image) = Scene::pulled(as_it_is).await;
            scene.at(manifest(OTHER, image.digest))
        }
        "a manifest that was missing a moment ago" => {
            let (scene, image) = Scene::pulled(as_it_is).await;
            let scene = scene.at(manifest("library/nowhere", image.digest));
            assert_eq!(scene.larder.get(&scene.path).await.status, 404);
            scene
        }
        "a blob" | "a cached blob of an upstream that is down" => {
            let (scene, image) = Scene::pulled(as_it_is).await;
            let scene = scene.at(path_in(APP, image.layers[0].digest));
            if name == "a blob" { scene } else { scene.down().await }
        }
        "a blob that is listed and not cached" => {
            let (scene, image) = Scene::empty(as_it_is);
            assert_eq!(scene.larder.get(LATEST).await.status, 200);
            scene.at(path_in(APP, image.layers[0].digest))
        }
        "a blob of another repository" | "a blob of another repository that was confirmed" => {
            let (scene, image) = Scene::pulled(as_it_is).await;
            let scene = scene.at(path_in(OTHER, image.layers[0].digest));
            if name.ends_with("confirmed") {
                assert_eq!(scene.larder.head(&scene.path).await.status, 200);
            }
            scene
        }
        "a blob that was missing a moment ago" => {
            let (scene, image) = Scene::pulled(as_it_is).await;
            let scene = scene.at(path_in("library/nowhere", image.layers[0].digest));
            assert_eq!(scene.larder.get(&scene.path).await.status, 404);
            scene
        }
        "a blob that is arriving" => {
            let (scene, image) = Scene::empty(as_it_is);
            assert_eq!(scene.larder.get(LATEST).await.status, 200);
            let latch = Latch::new();
            scene.registry.when(get().blob()).then(Fault::HoldAt(1000, latch.clone()));
            let (path, connection) = (path_in(APP, image.layers[0].digest), scene.larder.connect());
            let asked = path.clone();
            tokio::spawn(async move { crate::support::client::Client::over(connection).await.get(&asked).send().await });
            until("upstream is asked", || scene.registry.count(get().blob()) == 1).await;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                latch.open();
            });
            scene.at(path)
        }
        "an expired tag of an upstream that is down" => Scene::pulled(as_it_is).await.0.later(HOUR).down().await,
        "a tag of an upstream that is down" => Scene::empty(as_it_is).0.down().await,
        "a blob of an upstream that is down" => {
            let (scene, image) = Scene::empty(as_it_is);
            assert_eq!(scene.larder.get(LATEST).await.status, 200);
            scene.at(path_in(APP, image.layers[0].digest)).down().await
        }
        "a blob that a private upstream has, too" => {
            let private = FakeRegistry::new();
            let (scene, image) = Scene::empty(has_a_private_upstream);
            scene.net.host("private.test", "93.184.216.35", &private);
            private.push_image(APP, "latest", &[3000], 1);
            pull(&scene.larder, "private.corp/library/app", "latest", &image).await;
            assert_eq!(scene.larder.get(LATEST).await.status, 200);
            scene.at(path_in(APP, image.layers[0].digest))
        }
        "a repository of which nobody knows whether it is public" => Scene::empty(has_a_credential).0.down().await,
        other => panic!("no scene: {other}"),
    }
}

/// Requests by outcome, of manifests and blobs.
fn outcomes(larder: &Larder) -> BTreeMap<&'static str, f64> {
    let outcomes = ["hit", "miss", "collapsed", "revalidated", "updated", "stale", "bypass", "negative", "denied", "error"];
    let count = |outcome: &str| {
        ["manifest", "blob"]
            .map(|kind| larder.metric(&format!("larder_requests_total{{kind=\"{kind}\",outcome=\"{outcome}\",upstream=\"docker.io\"}}")))
            .iter()
            .sum::<f64>()
    };
    outcomes.map(|outcome| (outcome, count(outcome))).into()
}

#[tokio::test(start_paused = true)]
async fn what_is_told_is_what_the_next_request_does() {
    let mut whys = Vec::new();
    for name in SCENES {
        let Scene { registry, larder, path, net: _net } = scene(name).await;
        let told = explain(&larder, &path).await;
        let again = explain(&larder, &path).await;
        assert_eq!(next(&told), next(&again), "{name}: looking changes nothing");
        let (question, why, served) = next(&told);
        whys.push(why);
        registry.forget_requests();
        let before = outcomes(&larder);
        let reply = larder.get(&path).await;
        until("it is counted", || outcomes(&larder) != before).await;
        let after = outcomes(&larder);
        let outcome = after.iter().find(|(outcome, count)| **count > before[*outcome]).map(|(outcome, _)| *outcome).expect("an outcome");
        let (heads, gets) = (registry.count(head()), registry.count(get()));
        let asked = match question {
            Question::None => (0, 0),
            Question::Head | Question::HeadThenGetIfMoved => (1, 0),
            Question::HeadThenGet => (1, 1),
            Question::Get => (0, 1),
        };
        assert_eq!((heads, gets), asked, "{name}: {question:?} for {why:?}, and HEADs and GETs came");
        match served {
            Some((status, expected)) => assert_eq!((reply.status, outcome), (status, expected), "{name}: {why:?}"),
            None => assert_eq!(reply.status, 200, "{name}: {why:?}"),
        }
    }
    for why in [
        Why::Fresh,
        Why::Immutable,
        Why::Held,
        Why::Arriving,
        Why::Expired,
        Why::Absent,
        Why::Named,
        Why::Unlisted,
        Why::Doubtful,
        Why::AbsenceRemembered,
        Why::Rests,
        Why::NotShown,
    ] {
        assert!(whys.contains(&why), "no scene for {why:?}: {whys:?}");
    }
}
