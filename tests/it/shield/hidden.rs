//! Registries that hide what is private instead of asking for a login: no refusal counts before larder has shown its own.

use larder::config::Visibility;

use super::{Hub, LATEST, OTHER, credential, line};
use crate::support::larder::Larder;
use crate::support::registry::{Bearer, FakeRegistry, Fault, any};

const REALM: &str = "http://hub.test/token";

/// What such a registry says to whoever shows nothing; `/v2/` alone says what it wants.
fn hide(registry: &FakeRegistry, status: u16) {
    registry.when(any().manifest().without_header("authorization")).then(Fault::status(status));
    registry.when(any().blob().without_header("authorization")).then(Fault::status(status));
    registry.when(any().tags().without_header("authorization")).then(Fault::status(status));
}

fn start(scene: &Hub, visibility: Visibility) -> Larder {
    scene.setup().hub(|hub| (hub.credentials, hub.visibility) = (vec![credential("default", "me", "right")], visibility)).start()
}

#[tokio::test(start_paused = true)]
async fn a_refusal_to_nobody_is_not_believed_before_the_login_was_shown() {
    for status in [403, 404, 401] {
        for by_token in [true, false] {
            let scene = Hub::with_other();
            if by_token {
                scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
            } else {
                scene.registry.require_basic("me", "right");
            }
            hide(&scene.registry, status);
            let larder = start(&scene, Visibility::Private);
            assert_eq!(larder.get(LATEST).await.status, 200, "{status}, by token: {by_token}");
            assert_eq!(larder.get(&scene.blob()).await.status, 200);
            assert_eq!(larder.get("/v2/library/other/tags/list").await.status, 200);
            assert_eq!(larder.get(OTHER).await.status, 200);
            let bare = scene.registry.count(any().ping().without_header("authorization"));
            assert_eq!(bare, 1, "/v2/ is asked once and remembered");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_to_the_login_is_believed_and_one_where_nothing_is_asked_for_too() {
    let scene = Hub::with_other();
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    hide(&scene.registry, 404);
    let larder = start(&scene, Visibility::Private);
    assert_eq!(line(&larder.get("/v2/library/app/manifests/missing").await), "404 MANIFEST_UNKNOWN");
    // Open to anybody: what is missing is missing, and `/v2/` is not asked each time.
    let scene = Hub::with_other();
    let larder = start(&scene, Visibility::Private);
    for number in 0..5 {
        assert_eq!(larder.get(&format!("/v2/library/app/manifests/missing{number}")).await.status, 404);
    }
    assert_eq!((scene.registry.count(any().ping()), scene.registry.count(any().with_header("authorization"))), (1, 0));
}

/// Not asked is not missing: `/v2/` did not say how to show the login.
#[tokio::test(start_paused = true)]
async fn where_the_ping_does_not_answer_nothing_is_missing_and_nothing_is_remembered() {
    for status in [429, 500, 503] {
        let scene = Hub::with_other();
        scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
        hide(&scene.registry, 404);
        scene.registry.when(any().ping()).then(Fault::status(status));
        let larder = start(&scene, Visibility::Private);
        let reply = larder.get(LATEST).await;
        assert!([502, 503, 504].contains(&reply.status), "{status}: {}", line(&reply));
        scene.registry.behave();
        hide(&scene.registry, 404);
        tokio::time::sleep(std::time::Duration::from_secs(60)).await;
        assert_eq!(larder.get(LATEST).await.status, 200, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_anybody_may_read_is_asked_without_the_login() {
    let scene = Hub::with_other();
    scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").credentials_required());
    hide(&scene.registry, 403);
    let larder = start(&scene, Visibility::Public);
    assert_eq!(larder.get(LATEST).await.status, 403, "upstream does not show it to anybody");
}

#[tokio::test(start_paused = true)]
async fn the_password_buys_no_scope_but_to_read_this_repository() {
    for challenged in ["repository:other:push,delete", "repository:library/app:pull,push", "registry:catalog:*", "repository:library/app:*"]
    {
        let scene = Hub::with_other();
        scene.registry.require_bearer(Bearer::at(REALM).credentials("me", "right").challenge_scope(challenged));
        let larder = start(&scene, Visibility::Private);
        assert_eq!(larder.get(LATEST).await.status, 200, "{challenged}");
        let asked = scene.registry.seen(any().token());
        assert_eq!(asked.len(), 1, "{challenged}");
        assert!(
            asked[0].query.ends_with("scope=repository%3Alibrary%2Fapp%3Apull") && asked[0].authorization().is_some(),
            "{}",
            asked[0].query
        );
    }
}
