//! No stale tag without its content: who has the manifest of half an image can't fall back any more.

use std::time::Duration;

use bytes::Bytes;
use larder::oci::{Algorithm, Digest, MediaType};
use tokio::time::Instant;

use super::{HOUR, LATEST, Scene, line, pull};
use crate::support::larder::upstream;
use crate::support::registry::{FakeRegistry, Fault, Image, any};

const STALE: &str = "200 larder; hit; ttl=-3300; detail=stale-unavailable";
const LIMITED: &str = "200 larder; hit; ttl=-3300; detail=stale-rate-limited";

/// What upstream does, and what a tag that may stand in gets then, and one that may not.
type Trouble = (fn(&Scene), &'static str, &'static str);

const DOWN: Trouble = (|scene| scene.net.down("hub.test"), STALE, "502 UNAVAILABLE");
const SILENT: Trouble = (|scene| scene.registry.when(any()).then(Fault::Stall), STALE, "504 UNAVAILABLE");
const BROKEN: Trouble = (|scene| scene.registry.when(any()).then(Fault::status(503)), STALE, "502 UNAVAILABLE");
const REFUSED: Trouble = (|scene| scene.registry.require_basic("me", "rotated"), STALE, "502 UNAVAILABLE");
const LIMIT: Trouble = (|scene| scene.registry.when(any().manifest()).then(Fault::too_many_requests(30)), LIMITED, "503 TOOMANYREQUESTS");

/// A larder with a credential, that has got these paths and nothing else, an hour ago.
async fn holding(prepare: impl FnOnce(&Scene) -> Vec<String>) -> Scene {
    use larder::config::{CredentialConfig, Secret, Visibility};
    let credential = CredentialConfig::password("me", Secret::Inline("secret".into()));
    let scene = Scene::with(|setup| setup.hub(|hub| (hub.credentials, hub.visibility) = (vec![credential], Visibility::Private)));
    scene.registry.require_basic("me", "secret");
    for path in prepare(&scene) {
        assert_eq!(scene.larder.get(&path).await.status, 200, "{path}");
        if let Some((_, digest)) = path.split_once("/blobs/") {
            let digest: Digest = digest.parse().unwrap();
            while !scene.larder.app.store.contains(&digest) {
                tokio::task::yield_now().await;
            }
        }
    }
    scene.registry.forget_requests();
    scene.larder.clock.advance(HOUR);
    scene
}

fn manifest(reference: impl std::fmt::Display) -> String {
    format!("/v2/library/app/manifests/{reference}")
}

fn blobs(image: &Image) -> Vec<String> {
    image.layers.iter().chain(&image.config).map(|blob| format!("/v2/library/app/blobs/{}", blob.digest)).collect()
}

#[tokio::test(start_paused = true)]
async fn clients_39_a_stale_image_is_served_with_all_its_blobs_or_not_at_all() {
    for (at, (trouble, stale, refused)) in [DOWN, SILENT, BROKEN, REFUSED, LIMIT].into_iter().enumerate() {
        let whole = holding(|scene| [vec![LATEST.into()], blobs(&scene.image)].concat()).await;
        trouble(&whole);
        let half = holding(|scene| [vec![LATEST.into()], blobs(&scene.image)[..1].to_vec()].concat()).await;
        trouble(&half);
        // Only the manifests are limited: the blobs that are missing can be had.
        let expected = if stale == LIMITED { stale } else { refused };
        for method in [http::Method::GET, http::Method::HEAD] {
            let ask = async |scene: &Scene| scene.larder.client().await.request(method.clone(), LATEST).send().await;
            let (whole, half) = (ask(&whole).await, ask(&half).await);
            let status = |line: &str| line[..3].parse::<u16>().unwrap();
            assert_eq!((whole.status, half.status), (status(stale), status(expected)), "trouble {at}, {method}");
            if method == http::Method::GET {
                assert_eq!((line(&whole).as_str(), line(&half).as_str()), (stale, expected), "trouble {at}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clients_39_a_stale_index_needs_one_whole_image() {
    for (at, (trouble, stale, refused)) in [DOWN, SILENT, LIMIT].into_iter().enumerate() {
        // Which of the index's two images are held, and how.
        for (held, stands_in) in [("nothing", false), ("a manifest", stale == LIMITED), ("a whole image", true)] {
            let scene = holding(|scene| {
                let images = [1, 2].map(|n| scene.registry.push_image("library/app", &format!("child{n}"), &[100 + n], n as u64));
                scene.registry.push_index("library/app", "multi", &images);
                let child = vec![manifest(images[1].digest)];
                let more = match held {
                    "nothing" => vec![],
                    "a manifest" => child,
                    _ => [child, blobs(&images[1])].concat(),
                };
                [vec![manifest("multi")], more].concat()
            })
            .await;
            trouble(&scene);
            let expected = if stands_in { stale } else { refused };
            assert_eq!(line(&scene.larder.get(&manifest("multi")).await), expected, "trouble {at}, held: {held}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn clients_39_what_clients_get_elsewhere_need_not_be_here() {
    let scene = holding(|scene| {
        let config = scene.registry.push_blob("library/app", &b"{}"[..]);
        let foreign = Digest::of(Algorithm::Sha256, b"a Windows base layer");
        let body = format!(
            r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"a/b","digest":"{config}","size":2}},
            "layers":[{{"mediaType":"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip","digest":"{foreign}","size":20,"urls":["https://mcr.microsoft.com/"]}}]}}"#,
            MediaType::DOCKER_MANIFEST
        );
        scene.registry.push_manifest("library/app", Some("windows"), MediaType::DOCKER_MANIFEST, Bytes::from(body));
        vec![manifest("windows"), format!("/v2/library/app/blobs/{config}")]
    })
    .await;
    scene.net.down("hub.test");
    assert_eq!(line(&scene.larder.get(&manifest("windows")).await), STALE);
}

#[tokio::test(start_paused = true)]
async fn clients_39_half_an_image_waits_for_upstream_s_word_to_the_end() {
    let scene = holding(|_| vec![LATEST.into()]).await;
    scene.registry.when(any().manifest()).then(Fault::Delay(Duration::from_secs(5)));
    let begun = Instant::now();
    assert_eq!(line(&scene.larder.get(LATEST).await), "200 larder; fwd=stale; detail=revalidated");
    assert_eq!(begun.elapsed().as_secs(), 5);
}

#[tokio::test]
async fn clients_39_an_evicted_layer_takes_the_stale_tag_with_it_and_its_return_brings_it_back() {
    let scene = Scene::new().held_for(HOUR).await;
    let layer = scene.image.layers[0].clone();
    let file = scene.larder.files("blobs").into_iter().find(|file| file.ends_with(layer.digest.hex())).unwrap();
    std::fs::remove_file(file).unwrap();
    let Scene { net, larder, image, .. } = scene;
    net.down("hub.test");
    let larder = larder.kill().await.start();
    assert_eq!(line(&larder.get(LATEST).await), "502 UNAVAILABLE");
    net.up("hub.test");
    pull(&larder, LATEST, &image).await;
    larder.clock.advance(HOUR);
    net.down("hub.test");
    assert_eq!(line(&larder.get(LATEST).await), STALE);
}

#[tokio::test]
async fn clients_39_what_another_repository_has_counts_as_far_as_this_one_may_have_it() {
    let scene = Scene::new();
    let child = scene.registry.push_image("library/app", "child", &[100], 4);
    let twin = scene.registry.push_image("library/twin", "latest", &[100], 4);
    assert_eq!(child.digest, twin.digest);
    let index = scene.registry.push_index("library/app", "multi", std::slice::from_ref(&child));
    assert_eq!(scene.larder.get(&manifest("multi")).await.bytes(), &index.bytes);
    pull(&scene.larder, "/v2/library/twin/manifests/latest", &twin).await;
    scene.larder.clock.advance(HOUR);
    scene.net.down("hub.test");
    assert_eq!(line(&scene.larder.get(&manifest("multi")).await), STALE);
    // And so it is: nothing of it needs upstream.
    pull(&scene.larder, &manifest(child.digest), &child).await;
}

#[tokio::test]
async fn clients_39_a_layer_that_only_a_private_upstream_has_shown_does_not_count() {
    let private = FakeRegistry::new();
    let twin = private.push_image("team/app", "latest", &[1000], 1);
    let scene = Scene::with(|setup| {
        let mut upstream = upstream("private.example", "private.test");
        upstream.visibility = larder::config::Visibility::Private;
        setup.upstream(upstream)
    });
    scene.net.host("private.test", "93.184.216.50", &private);
    pull(&scene.larder, "/v2/private.example/team/app/manifests/latest", &twin).await;
    assert_eq!(scene.larder.get(LATEST).await.bytes(), &scene.image.bytes);
    assert!(scene.image.layers.iter().all(|layer| scene.larder.app.store.contains(&layer.digest)));
    scene.larder.clock.advance(HOUR);
    scene.net.down("hub.test");
    assert_eq!(line(&scene.larder.get(LATEST).await), "502 UNAVAILABLE");
    let layer = format!("/v2/library/app/blobs/{}", scene.image.layers[0].digest);
    assert_eq!(scene.larder.get(&layer).await.status, 502, "nor would it be served");
}
