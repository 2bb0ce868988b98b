//! `explain`: what would happen and why, by the rules that let it happen, and without a trace.

mod agreement;

use std::time::Duration;

use larder::cli::{self, Form};
use larder::config::{CredentialConfig, CredentialKind, Credentials, Secret, Visibility};
use larder::control::{self, Answer, Ask, Explained};
use larder::mirror::explain::{Kind, Question, Readers, Why};
use larder::store::Keeps;
use tokio_util::sync::CancellationToken;

use crate::eviction::pins;
use crate::fills::{assert_whole, path_in, until};
use crate::support::daemon::Daemon;
use crate::support::larder::{Larder, Setup, upstream};
use crate::support::registry::{Bearer, FakeRegistry, Fault, Image, any};
use crate::support::scene::hub;

const APP: &str = "library/app";
const HOUR: Duration = Duration::from_secs(3600);

fn manifest(repository: &str, reference: impl std::fmt::Display) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

async fn pull(larder: &Larder, repository: &str, reference: &str, image: &Image) {
    assert_eq!(larder.get(&manifest(repository, reference)).await.bytes(), &image.bytes);
    for blob in image.layers.iter().chain(&image.config) {
        assert_whole(&larder.get(&path_in(repository, blob.digest)).await, blob);
        until("it is stored", || larder.app.store.contains(&blob.digest)).await;
    }
}

/// By the daemon's own socket.
async fn told(larder: &Larder, reference: &str) -> Result<Explained, larder::exit::ExitError> {
    let stop = CancellationToken::new();
    let server = control::Server::new(larder.app.control.listen().expect("a socket")).expect("a server");
    let serving = tokio::spawn(server.run(larder.app.control.clone(), stop.clone()));
    let answer = cli::answer(&larder.config, Ask::Explain(reference.to_owned()), Form::Json).await;
    stop.cancel();
    serving.await.expect("a server");
    match answer? {
        Answer::Explained(explained) => Ok(*explained),
        other => panic!("{other:?}"),
    }
}

async fn explain(larder: &Larder, reference: &str) -> Explained {
    told(larder, reference).await.unwrap_or_else(|failure| panic!("{reference}: {failure}"))
}

/// The question, why, and status and outcome of what is served without one.
fn next(explained: &Explained) -> (Question, Why, Option<(u16, &str)>) {
    let next = &explained.explanation.next;
    (next.question, next.why, next.served.as_ref().map(|served| (served.status, served.outcome.as_str())))
}

fn text(explained: &Explained) -> String {
    Form::Text.text(&Answer::Explained(Box::new(explained.clone()))).expect("a text")
}

/// Status and outcome of an answer in an outage, and at the limit.
fn trouble(explained: &Explained) -> [(u16, String); 2] {
    let told = &explained.explanation;
    [Some(&told.when_unavailable), told.when_limited.as_ref()]
        .map(|served| served.map(|served| (served.status, served.outcome.clone())).expect("an answer"))
}

fn stale() -> (u16, String) {
    (200, "stale".into())
}

fn password(name: &str, user: &str, password: &str, repositories: &[&str]) -> CredentialConfig {
    let credentials = Credentials { username: user.into(), password: Secret::Inline(password.into()) };
    let repositories = repositories.iter().map(|glob| (*glob).to_owned()).collect();
    CredentialConfig { name: name.into(), repositories, kind: CredentialKind::Password(credentials) }
}

#[tokio::test(start_paused = true)]
async fn a_tag_is_fresh_then_stale_then_too_old() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "latest", &[3000, 4000], 1);
    let larder = Setup::new(&net).start();
    pull(&larder, APP, "latest", &image).await;
    larder.clock.advance(Duration::from_secs(100));

    let fresh = explain(&larder, "app").await;
    assert_eq!((&*fresh.explanation.reference, fresh.notes.len()), ("docker.io/library/app:latest", 1));
    assert_eq!(next(&fresh), (Question::None, Why::Fresh, Some((200, "hit"))));
    assert_eq!(fresh.explanation.next.for_seconds, Some(200));
    let tag = fresh.explanation.tag.as_ref().expect("a record");
    assert_eq!((&tag.digest, tag.checked_seconds_ago, tag.fresh_left_seconds), (&image.digest.to_string(), 100, Some(200)));
    assert_eq!((&*tag.first_seen, tag.may_stand_in), ("2026-11-21T00:00:00Z", true));
    assert_eq!(fresh.explanation.readers, Readers::Everyone);
    let content = fresh.explanation.content.as_ref().expect("content");
    assert_eq!((content.is_whole, content.images[0].held.count, content.images[0].missing.count), (true, 3, 0));
    assert_eq!(content.images[0].held.bytes, 7000 + image.config.as_ref().expect("a configuration").bytes.len() as u64);
    assert!(content.images[0].held.allocated > 7000 && content.bytes > content.images[0].held.allocated && content.others.is_empty());
    let said = text(&fresh);
    assert!(said.contains("next question  none: it is fresh for 3m 20s\n") && said.contains("which means `latest`"), "{said}");

    larder.clock.advance(HOUR);
    let expired = explain(&larder, "docker.io/library/app:latest").await;
    assert_eq!(next(&expired), (Question::HeadThenGetIfMoved, Why::Expired, None));
    let asked = &expired.explanation.next;
    assert_eq!((asked.url.as_deref(), asked.credential.as_deref()), (Some("http://hub.test"), Some("anonymous")));
    assert_eq!((asked.waits_milliseconds, trouble(&expired)), (Some(2000), [stale(), stale()]));
    assert!(text(&expired).contains("stale for 56m 40s"), "{}", text(&expired));

    larder.clock.advance(8 * 24 * HOUR);
    let old = explain(&larder, "app:latest").await;
    assert_eq!(trouble(&old), [(502, "error".to_owned()), (503, "error".to_owned())]);
    assert!(text(&old).contains("cannot be reached; what is held is older than stale_if_error\n"), "{}", text(&old));
    assert!(old.explanation.tag.as_ref().is_some_and(|tag| !tag.may_stand_in));
}

#[tokio::test]
async fn an_immutable_tag_needs_no_word_and_a_deleted_one_may_be_kept() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "v1", &[3000], 1);
    registry.push_image(APP, "latest", &[3000], 1);
    let immutable = larder::config::Patterns::new(&["v.*".into()]).expect("a pattern");
    let setup = Setup::new(&net).hub(|hub| hub.immutable_tags = immutable).cache(|cache| cache.keep_deleted_tags = true);
    let larder = setup.start();
    pull(&larder, APP, "v1", &image).await;
    pull(&larder, APP, "latest", &image).await;
    larder.clock.advance(30 * 24 * HOUR);
    let told = explain(&larder, "app:v1").await;
    assert_eq!((next(&told), told.explanation.next.for_seconds), ((Question::None, Why::Immutable, Some((200, "hit"))), None));
    assert_eq!(trouble(&told), [(200, "hit".to_owned()), (200, "hit".to_owned())]);
    registry.delete_tag(APP, "latest");
    let kept = larder.get(&manifest(APP, "latest")).await;
    assert!(kept.header("cache-status").is_some_and(|told| told.ends_with("detail=stale-deleted")));
    assert_eq!(next(&explain(&larder, "app").await), (Question::None, Why::AbsenceRemembered, Some((200, "stale"))));
}

#[tokio::test]
async fn what_is_not_held_is_explained_by_what_would_be_asked() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "latest", &[3000], 1);
    let larder = Setup::new(&net).start();
    let absent = explain(&larder, "app:latest").await;
    assert_eq!(next(&absent), (Question::HeadThenGet, Why::Absent, None));
    assert_eq!(trouble(&absent), [(502, "error".to_owned()), (503, "error".to_owned())]);
    assert!(absent.explanation.tag.is_none() && absent.explanation.content.is_none() && absent.explanation.eviction.is_none());
    assert!(text(&absent).contains("nothing is held; a pull would ask by HEAD, then by GET"), "{}", text(&absent));
    let by_digest = explain(&larder, &format!("app@{}", image.digest)).await;
    assert_eq!((next(&by_digest), by_digest.explanation.kind), ((Question::Get, Why::Absent, None), Kind::Manifest));

    assert_eq!(larder.head(&manifest(APP, "latest")).await.status, 200);
    assert_eq!(next(&explain(&larder, "app:latest").await), (Question::Get, Why::Named, None), "dockerd asks so");
    assert_eq!(larder.get(&manifest(APP, "none")).await.status, 404);
    let none = explain(&larder, "app:none").await;
    assert_eq!(next(&none), (Question::None, Why::AbsenceRemembered, Some((404, "negative"))));
    assert_eq!(registry.count(any()), 2, "a HEAD for each, which clients have asked");
}

#[tokio::test]
async fn by_digest_and_by_path_it_is_what_the_repository_may_have() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "latest", &[3000], 1);
    let larder = Setup::new(&net).start();
    pull(&larder, APP, "latest", &image).await;
    let (digest, layer) = (image.digest, image.layers[0].digest);
    for held in [manifest(APP, digest), format!("app@{digest}"), path_in(APP, layer)] {
        let held = explain(&larder, &held).await;
        assert_eq!(next(&held), (Question::None, Why::Held, Some((200, "hit"))));
        assert_eq!((held.explanation.when_unavailable.status, held.explanation.content.is_some()), (200, true));
        assert_eq!(text(&held).matches("docker.io/library/app@").count(), 1, "{}", text(&held));
    }
    for elsewhere in [manifest("library/other", digest), path_in("library/other", layer)] {
        let elsewhere = explain(&larder, &elsewhere).await;
        assert_eq!(next(&elsewhere), (Question::Head, Why::Unlisted, None));
        assert_eq!(elsewhere.explanation.when_unavailable.status, 502);
        let others = &elsewhere.explanation.content.as_ref().expect("content").others;
        assert!(others.contains_key("docker.io/library/app"), "{others:?}");
    }
}

#[tokio::test]
async fn it_says_which_rule_chose_the_upstream() {
    let (net, _registry) = hub();
    let quay = upstream("quay.io", "hub.test");
    let mut setup = Setup::new(&net).upstream(quay);
    setup.config.server.hosts.insert("mirror.corp".into(), "quay.io".into());
    let larder = setup.start();
    for (reference, upstream, rule) in [
        ("org/app:1", "docker.io", "default"),
        ("quay.io/org/app:1", "quay.io", "reference"),
        ("/v2/org/app/manifests/1?ns=quay.io", "quay.io", "ns"),
        ("/quay.io/v2/org/app/manifests/1", "quay.io", "path_prefix"),
        ("/v2/quay.io/org/app/manifests/1", "quay.io", "name_component"),
        ("http://mirror.corp:5000/v2/org/app/manifests/1", "quay.io", "host"),
        ("/v2/org/app/manifests/1", "docker.io", "default"),
    ] {
        let told = explain(&larder, reference).await.explanation;
        assert_eq!((&*told.upstream.name, &*told.upstream.chosen_by, told.reference), (upstream, rule, format!("{upstream}/org/app:1")));
    }
    for (wrong, says) in [
        (
            "nowhere.corp/app:1",
            "no upstream `nowhere.corp` is configured; add `nowhere.corp: {}` to upstreams, or write one that is there: docker.io, quay.io",
        ),
        ("/v2/org/app/manifests/1?ns=nowhere.corp", "no upstream `nowhere.corp`"),
        ("/quay.io/v2/org/app/manifests/1?ns=docker.io", "different upstreams"),
        ("org/App:1", "lower-case"),
        ("/v2/org/app/tags/list", "neither a manifest nor a blob"),
    ] {
        let failure = told(&larder, wrong).await.expect_err(wrong);
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().contains(says), "{failure}");
    }
}

#[tokio::test]
async fn of_an_index_it_tells_each_image_that_is_here() {
    let (net, registry) = hub();
    let images = [1, 2].map(|seed| registry.push_image(APP, &format!("arch{seed}"), &[3000, 5000], seed));
    let index = registry.push_index(APP, "latest", &images);
    let larder = Setup::new(&net).start();
    assert_eq!(larder.get(&manifest(APP, "latest")).await.bytes(), &index.bytes);
    let bare = explain(&larder, "app").await;
    let content = bare.explanation.content.as_ref().expect("content");
    assert_eq!((content.is_whole, content.images.len(), content.platforms_missing.len()), (false, 0, 2));
    larder.clock.advance(HOUR);
    assert_eq!(trouble(&explain(&larder, "app").await), [(502, "error".to_owned()), (503, "error".to_owned())]);
    assert_eq!(larder.get(&manifest(APP, images[0].digest)).await.status, 200);
    assert_eq!(larder.get(&path_in(APP, images[0].layers[0].digest)).await.status, 200);
    until("it is stored", || larder.app.store.contains(&images[0].layers[0].digest)).await;
    let half = explain(&larder, "app").await;
    let image = &half.explanation.content.as_ref().expect("content").images[0];
    assert_eq!((image.platform.as_deref(), image.is_whole, image.held.count, image.missing.count), (Some("linux/amd64"), false, 1, 2));
    assert_eq!(trouble(&half), [(502, "error".to_owned()), stale()], "blobs are under no limit");
    pull(&larder, APP, &images[0].digest.to_string(), &images[0]).await;
    let whole = explain(&larder, "app").await;
    let content = whole.explanation.content.as_ref().expect("content");
    assert!(content.is_whole && content.images[0].is_whole);
    assert_eq!((&*content.platforms_missing, trouble(&whole)), (&["linux/arm64".to_owned()][..], [stale(), stale()]));
    assert!(text(&whole).contains("not held: linux/arm64\n"), "{}", text(&whole));
}

#[tokio::test(start_paused = true)]
async fn at_its_limit_it_tells_which_credential_rests_and_what_is_served() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "latest", &[3000], 1);
    registry.require_basic("me", "secret");
    let credentials = vec![password("ci", "me", "secret", &[]), password("team", "me", "secret", &["team/**"])];
    let setup = Setup::new(&net).hub(|hub| (hub.credentials, hub.visibility) = (credentials, Visibility::Private));
    let larder = setup.start();
    pull(&larder, APP, "latest", &image).await;
    larder.clock.advance(HOUR);
    let limited = Fault::too_many_requests(600).header("ratelimit-limit", "100;w=21600").header("ratelimit-remaining", "0;w=21600");
    registry.when(any().manifest()).then(limited);
    assert_eq!(larder.get(&manifest(APP, "latest")).await.status, 200);
    registry.forget_requests();
    tokio::time::sleep(Duration::from_secs(10)).await;

    let resting = explain(&larder, "app").await;
    assert_eq!(next(&resting), (Question::None, Why::Rests, Some((200, "stale"))));
    assert_eq!(resting.explanation.next.served.as_ref().and_then(|served| served.reason.as_deref()), Some("rate-limited"));
    assert!(resting.explanation.next.for_seconds.is_some_and(|left| (585..=590).contains(&left)), "{:?}", resting.explanation.next);
    let [credential] = &*resting.explanation.upstream.hosts[0].credentials else { panic!("{:?}", resting.explanation.upstream) };
    let pulls = credential.pulls.as_ref().expect("a budget");
    assert_eq!((&*credential.name, pulls.remaining, pulls.limit, pulls.window_seconds), ("ci", Some(0), Some(100), Some(21_600)));
    assert!(credential.limit_rests.is_some() && credential.login_rests.is_none());
    let said = text(&resting);
    assert!(
        said.contains("a client gets 200, what is held, marked stale (rate-limited)") && said.contains("0 of 100 pulls left"),
        "{said}"
    );
    assert!(!said.contains("secret"), "{said}");

    let other = explain(&larder, "other").await;
    assert_eq!(next(&other), (Question::None, Why::Rests, Some((503, "error"))));
    assert!(text(&other).contains("503 TOOMANYREQUESTS"), "{}", text(&other));
    // Another credential is for these, and blobs are under no limit.
    let team = explain(&larder, "team/app").await;
    assert_eq!((next(&team).0, team.explanation.next.credential.as_deref()), (Question::HeadThenGet, Some("team")));
    assert_eq!(next(&explain(&larder, &path_in("library/other", image.layers[0].digest)).await).0, Question::Head);
    assert_eq!(registry.count(any()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_refused_login_is_told_with_when_it_is_tried_again_and_never_by_its_secret() {
    let (net, registry) = hub();
    registry.push_image(APP, "latest", &[3000], 1);
    registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "right"));
    let credentials = vec![password("ci", "me", "hunter2", &[])];
    let larder = Setup::new(&net).hub(|hub| (hub.credentials, hub.visibility) = (credentials, Visibility::Private)).start();
    assert_eq!(larder.get(&manifest(APP, "latest")).await.status, 502);
    registry.forget_requests();
    let refused = explain(&larder, "app").await;
    assert_eq!(next(&refused), (Question::None, Why::Rests, Some((502, "error"))));
    let rests = refused.explanation.upstream.hosts[0].credentials[0].login_rests.clone().expect("it is held off");
    assert!((200..=400).contains(&rests.left_seconds), "{rests:?}");
    let said = text(&refused);
    assert!(
        said.contains("its login was refused and is not tried, unless it changes, for") && said.contains("as nobody").eq(&false),
        "{said}"
    );
    assert!(
        said.contains("though upstream is private") && !said.contains("hunter2") && !format!("{refused:?}").contains("hunter2"),
        "{said}"
    );
    assert_eq!(registry.count(any()), 0);
}

#[tokio::test(start_paused = true)]
async fn in_an_outage_it_tells_what_rests_and_what_stands_in() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "latest", &[3000], 1);
    let larder = Setup::new(&net).start();
    pull(&larder, APP, "latest", &image).await;
    larder.clock.advance(HOUR);
    registry.when(any()).then(Fault::Stall);
    assert_eq!(larder.get(&manifest(APP, "latest")).await.status, 200, "after two seconds");
    let lost = explain(&larder, "app").await;
    assert!(!lost.explanation.upstream.is_waited_for);
    assert_eq!((next(&lost).0, lost.explanation.next.waits_milliseconds), (Question::HeadThenGetIfMoved, Some(0)));
    // The longer it is silent, the longer it rests.
    for _ in 0..20 {
        larder.get(&manifest(APP, "latest")).await;
        tokio::time::sleep(Duration::from_secs(26)).await;
        if explain(&larder, "app").await.explanation.next.why == Why::Rests {
            break;
        }
    }
    let down = explain(&larder, "app").await;
    let answered = larder.get(&manifest(APP, "latest")).await;
    assert_eq!((answered.status, answered.header("cache-status")), (200, Some("larder; hit; ttl=-3300; detail=stale-unavailable")));
    assert_eq!(down.explanation.next.served.as_ref().map(|served| served.reason.as_deref()), Some(Some("unavailable")));
    assert!(down.explanation.upstream.hosts[0].rests.is_some());
    assert_eq!(next(&explain(&larder, "other").await).2, Some((504, "error")));
}

#[tokio::test]
async fn a_private_upstream_s_blob_is_told_to_be_doubtful_and_public_repositories_by_whether_they_were_shown() {
    let (net, registry) = hub();
    let image = registry.push_image(APP, "latest", &[3000], 1);
    let (private, key) = (FakeRegistry::new(), "private.test");
    net.host(key, "93.184.216.35", &private);
    private.push_image(APP, "latest", &[3000], 1);
    let mut upstream = upstream("private.corp", key);
    upstream.visibility = Visibility::Private;
    registry.require_bearer(Bearer::at("http://hub.test/token").credentials("me", "paid").private("org/secret"));
    let setup = Setup::new(&net).upstream(upstream).hub(|hub| hub.credentials = vec![password("paid", "me", "paid", &[])]);
    let larder = setup.start();
    let before = explain(&larder, "app").await;
    assert!(before.explanation.next.asks_as_nobody_first && before.explanation.upstream.shown_seconds_ago.is_none());
    assert_eq!(before.explanation.readers, Readers::EveryoneIfShown);
    pull(&larder, "private.corp/library/app", "latest", &image).await;
    assert_eq!(larder.get(&manifest(APP, "latest")).await.status, 200);
    larder.clock.advance(Duration::from_secs(600));
    let shown = explain(&larder, "app").await;
    assert_eq!((shown.explanation.upstream.shown_seconds_ago, shown.explanation.upstream.shown_left_seconds), (Some(600), Some(85_800)));
    assert!(!shown.explanation.next.asks_as_nobody_first);
    let content = shown.explanation.content.as_ref().expect("content");
    assert_eq!((content.images[0].doubtful, content.images[0].is_whole, content.is_whole), (2, false, false));
    assert!(content.others.contains_key("private.corp/library/app"));
    assert_eq!(trouble(&shown)[0], (502, "error".to_owned()), "in an outage nobody could confirm its blobs");
    let layer = explain(&larder, &path_in(APP, image.layers[0].digest)).await;
    assert_eq!(next(&layer), (Question::Head, Why::Doubtful, None));
    net.down("hub.test");
    assert_eq!(larder.get(&manifest(APP, "latest")).await.status, 502, "and so it is");
    larder.clock.advance(25 * HOUR);
    assert!(explain(&larder, "app").await.explanation.next.asks_as_nobody_first, "a day is over");
}

#[tokio::test]
async fn it_tells_when_an_image_goes_and_what_keeps_it() {
    let (net, registry) = hub();
    let names = ["library/one", "library/two", "library/pinned"];
    let images = [1, 2, 3].map(|seed| registry.push_image(names[seed as usize - 1], "latest", &[90_000], seed));
    let setup = Setup::new(&net).cache(|cache| {
        cache.pinned_images = pins("\"docker.io/pinned:l*\"");
        cache.evict_unused_after = 30 * 24 * HOUR;
    });
    let larder = setup.start();
    for (name, image) in names.iter().zip(&images) {
        pull(&larder, name, "latest", image).await;
        larder.clock.advance(HOUR / 2);
        // A second pull is a use of all of it, the manifest last.
        assert_eq!(larder.get(&manifest(name, "latest")).await.status, 200);
        larder.clock.advance(HOUR / 2);
    }
    let two = explain(&larder, "two").await.explanation.eviction.expect("it is held");
    let (first, last) = (two.first.expect("an order"), two.named.expect("an order"));
    assert_eq!((first.position, last.position, last.of), (Some(4), Some(6), 6), "three of each, and pinned ones stand in no order");
    let held = |image: &Image| {
        let all = image.layers.iter().chain(&image.config).map(|blob| &blob.digest).chain([&image.digest]);
        all.map(|digest| larder.app.store.holding(&"docker.io".into(), digest).allocated).sum::<u64>()
    };
    assert_eq!(first.bytes_before, held(&images[0]));
    assert_eq!((last.bytes_before + last.bytes, &last.digest), (held(&images[0]) + held(&images[1]), &images[1].digest.to_string()));
    // A manifest's use comes a millisecond after what it lists.
    let unused = last.unused_seconds;
    assert!((5399..=5400).contains(&unused) && last.unused_left_seconds == Some(30 * 86_400 - 5400), "{unused}");
    let Answer::Stats(stats) = control_stats(&larder).await else { panic!("no stats") };
    assert_eq!(
        explain(&larder, "one").await.explanation.eviction.expect("it is held").first.expect("one").digest,
        stats.held.next[0].digest
    );

    let pinned = explain(&larder, "pinned").await;
    let eviction = pinned.explanation.eviction.as_ref().expect("it is held");
    assert_eq!((&*eviction.pins[0].pin, &*eviction.pins[0].tag), ("docker.io/library/pinned:l*", "latest"));
    assert!(
        eviction.first.is_none() && eviction.named.as_ref().is_some_and(|last| last.kept == Some(Keeps::Pinned) && last.position.is_none())
    );
    assert!(text(&pinned).contains("eviction       pinned by docker.io/library/pinned:l*, as latest\n"), "{}", text(&pinned));

    let half = registry.push_image("library/half", "latest", &[90_000], 4);
    assert_eq!(larder.get(&manifest("library/half", "latest")).await.status, 200);
    let last = explain(&larder, &format!("half@{}", half.digest)).await.explanation.eviction.expect("it is held").named.expect("one");
    assert_eq!(last.kept, Some(Keeps::Grace));
    larder.clock.advance(Duration::from_secs(601));
    assert_eq!(explain(&larder, "half").await.explanation.eviction.expect("it is held").named.expect("one").kept, None);
    let lease = larder.app.store.blob(&images[0].layers[0].digest).await.expect("a disk").expect("a blob");
    let read = explain(&larder, &path_in("library/one", images[0].layers[0].digest)).await;
    assert_eq!(read.explanation.eviction.expect("it is held").named.expect("one").kept, Some(Keeps::Read));
    drop(lease);
}

async fn control_stats(larder: &Larder) -> Answer {
    let (sender, mut lines) = tokio::sync::mpsc::channel(16);
    tokio::spawn(larder.app.control.clone().run(Ask::Stats, sender));
    loop {
        match lines.recv().await.expect("an answer") {
            control::Line::Done(answer) => return answer,
            control::Line::Progress(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Everything that is seen from outside: the order of use, series, records, requests, and the files.
async fn seen(larder: &Larder, registry: &FakeRegistry) -> (String, String, usize, Vec<(std::path::PathBuf, Vec<u8>)>) {
    let Answer::Stats(mut stats) = control_stats(larder).await else { panic!("no stats") };
    // It runs on.
    stats.traffic.iter_mut().for_each(|traffic| traffic.seconds = 0);
    // Those of the process are everybody's.
    let series: Vec<String> = larder.app.metrics.encode().lines().filter(|line| line.starts_with("larder_")).map(str::to_owned).collect();
    let series = series.join("\n");
    let files = ["refs", "blobs", "partial", "quarantine"].iter().flat_map(|below| larder.files(below));
    let files = files.map(|file| (file.clone(), std::fs::read(&file).expect("a file"))).collect();
    (serde_json::to_string(&stats).expect("JSON"), series, registry.count(any()), files)
}

#[tokio::test]
async fn it_leaves_no_trace() {
    let (net, registry) = hub();
    let images = [1, 2].map(|seed| registry.push_image(APP, &format!("arch{seed}"), &[90_000], seed));
    let index = registry.push_index(APP, "latest", &images);
    let other = registry.push_image("library/other", "latest", &[80_000], 3);
    let setup = Setup::new(&net).hub(|hub| hub.credentials = vec![password("paid", "me", "paid", &[])]);
    let larder = setup.start();
    assert_eq!(larder.get(&manifest(APP, "latest")).await.bytes(), &index.bytes);
    pull(&larder, APP, &images[0].digest.to_string(), &images[0]).await;
    larder.clock.advance(Duration::from_secs(60));
    pull(&larder, "library/other", "latest", &other).await;
    until("fills have ended", || larder.metric("larder_fills_in_flight") == 0.0).await;
    // Nothing is in RAM.
    let larder = larder.stop().await.start();
    let layer = images[0].layers[0].digest;
    // Something that is damaged stays as it is: to look at it is not to serve it.
    let damaged = crate::selfcare::blob_file(larder.cache(), images[0].digest);
    crate::selfcare::flip(&damaged);
    for round in 0..3 {
        let before = seen(&larder, &registry).await;
        let references = ["app".to_owned(), "other:latest".to_owned(), "none".to_owned(), format!("app@{}", images[0].digest)];
        let paths = [path_in(APP, layer), path_in("library/none", layer), manifest("library/none", images[0].digest)];
        for reference in references.iter().chain(&paths) {
            explain(&larder, reference).await;
        }
        let after = seen(&larder, &registry).await;
        assert_eq!((&after.0, after.2), (&before.0, before.2), "round {round}: what is held, its order, and what was asked");
        let changed = after.1.lines().zip(before.1.lines()).find(|(after, before)| after != before);
        assert_eq!((changed, after.1.len()), (None, before.1.len()), "round {round}: series");
        assert!(after.3 == before.3, "round {round}: files");
        larder.clock.advance(20 * HOUR);
        if round == 1 {
            net.down("hub.test");
        }
    }
    // Nobody holds anything: all of it can go.
    assert_eq!(larder.app.store.purge(&larder::store::Selected::Object(layer)).expect("a disk").objects, 1);
}

/// The binary, on the configuration that the daemon of this directory has.
fn run(directory: &std::path::Path, arguments: &[&str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).arg("--config").arg(directory.join("larder.yaml")).env_clear();
    let output = command.output().expect("the binary");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (output.status.code().expect("an exit"), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_explains_of_a_daemon_and_of_a_stopped_directory() {
    let directory = tempfile::tempdir().expect("a directory");
    let registry = FakeRegistry::new();
    let upstream = registry.listen_tcp().await;
    let image = registry.push_image(APP, "latest", &[100_000], 1);
    let daemon = Daemon::start(directory.path(), upstream).await;
    let mut client = daemon.client().await;
    assert_eq!(client.get(&manifest(APP, "latest")).send().await.status, 200);
    assert_whole(&client.get(&path_in(APP, image.layers[0].digest)).send().await, &image.layers[0]);
    let asked = registry.count(any());
    let mut daemon = Some(daemon);
    for is_running in [true, false] {
        if !is_running {
            daemon.take().expect("a daemon").kill();
        }
        let (code, text, error) = run(directory.path(), &["explain", "app"]);
        assert!(code == 0 && text.contains("it is fresh for") && text.contains(&image.digest.to_string()), "{text}{error}");
        assert_eq!(text.contains("no daemon runs here"), !is_running, "{text}");
        let (code, text, _) = run(directory.path(), &["explain", "/v2/library/app/manifests/latest?ns=docker.io", "--json"]);
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!((code, &json["reference"], &json["upstream"]["chosen_by"]), (0, &"docker.io/library/app:latest".into(), &"ns".into()));
        assert_eq!((&json["next"]["question"], &json["upstream"]["is_known"]), (&"none".into(), &is_running.into()));
        assert_eq!(&json["tag"]["digest"], &image.digest.to_string());
        let (code, text, _) = run(directory.path(), &["explain", "docker.io/library/none:1"]);
        assert!(code == 0 && text.contains("nothing is held; a pull would ask by HEAD"), "{text}");
        let (code, text, error) = run(directory.path(), &["explain", "nowhere.corp/app"]);
        assert!(code == 2 && text.is_empty() && error.contains("no upstream `nowhere.corp` is configured; add"), "{error}");
        assert_eq!(run(directory.path(), &["explain", "App:1"]).0, 2);
    }
    assert_eq!(registry.count(any()), asked);
}
