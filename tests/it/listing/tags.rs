//! `tags/list`.

use super::*;
use crate::support::registry::TagPages;

fn numbered(count: usize) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("v{n}"))
}

/// As ASCII has it.
fn sorted(tags: impl IntoIterator<Item = String>) -> Vec<String> {
    tags.into_iter().collect::<BTreeSet<_>>().into_iter().collect()
}

#[tokio::test]
async fn clients_42_tags_are_paged_as_the_spec_says_whatever_upstream_does() {
    let hub = "http://hub.test";
    for (name, pages, requests) in [
        ("Distribution", None, 2),
        ("small pages", Some(TagPages::of(100)), 13),
        ("Amazon", Some(TagPages::of(100).absolute(hub).opaque()), 13),
        ("n refused", Some(TagPages::of(100).refusing_n_above(100)), 14),
        ("no links", Some(TagPages::of(usize::MAX).without_links()), 2),
    ] {
        let scene = Scene::new().tagged(numbered(1200).chain(["A", "_", "a.b-c", "0"].map(str::to_owned)));
        if let Some(pages) = pages {
            scene.registry.page_tags(pages);
        }
        let all = sorted(numbered(1200).chain(["A", "_", "a.b-c", "0", "latest"].map(str::to_owned)));
        let get = async |query: &str| scene.larder.get(&format!("{TAGS}{query}")).await;
        let whole = get("").await;
        assert_eq!((line(&whole).as_str(), whole.header("link")), ("200 larder; fwd=uri-miss", None), "{name}");
        assert_eq!((tags(&whole), whole.header("content-type")), (all.clone(), Some("application/json")), "{name}");
        assert_eq!(scene.lists_asked_for(), requests, "{name}");
        for query in ["?n=10000", "?n=1205", "?n=99999999999999999999"] {
            let reply = get(query).await;
            assert_eq!((tags(&reply), reply.header("link")), (all.clone(), None), "{name}: {query}");
        }
        let none = get("?n=0").await;
        assert_eq!((none.text(), none.header("link")), (r#"{"name":"library/app","tags":[]}"#, None));
        let after = get("?last=_&n=2").await;
        assert_eq!(tags(&after), ["a.b-c", "latest"], "{name}");
        assert_eq!(link(&after).as_deref(), Some("/v2/library/app/tags/list?n=2&last=latest"));
        for n in [1, 7, 604, 1204] {
            let pages = scene.follow(&format!("{TAGS}?n={n}")).await;
            assert_eq!((pages.len(), tags_of(&pages)), (1205_usize.div_ceil(n), all.clone()), "{name}: {n}");
        }
        assert_eq!(scene.lists_asked_for(), requests, "{name}: one fetch for all of this");
        assert_eq!(line(&get("").await), "200 larder; hit; ttl=30");
    }
}

#[tokio::test]
async fn clients_42_a_malformed_n_is_400_and_asks_nobody() {
    let scene = Scene::new();
    for query in ["n=", "n=-1", "n=ten", "n=1.5", "n=%", "last=%zz"] {
        assert_eq!(line(&scene.larder.get(&format!("{TAGS}?{query}")).await), "400 UNSUPPORTED", "{query}");
    }
    assert_eq!(line(&scene.larder.get(&format!("{TAGS}?x={}", "y".repeat(5000))).await), "400 UNSUPPORTED");
    assert!(scene.net.dialled().is_empty());
}

#[tokio::test]
async fn clients_42_no_tags_are_an_empty_list_never_null() {
    let scene = Scene::new();
    scene.registry.when(any().tags()).then(Fault::Body(r#"{"name":"library/app","tags":null}"#.into()));
    let reply = scene.larder.get(TAGS).await;
    assert_eq!((reply.status, reply.text()), (200, r#"{"name":"library/app","tags":[]}"#));
}

#[tokio::test]
async fn clients_43_a_link_is_spelled_as_the_client_asked() {
    let scene = Scene::new().tagged(numbered(3));
    scene.registry.page_tags(TagPages::of(2).absolute("http://hub.test").opaque());
    for (asked, name, linked) in [
        ("/v2/library/app/tags/list?n=1", "library/app", "/v2/library/app/tags/list?n=1&last=latest"),
        ("/v2/app/tags/list?n=1", "app", "/v2/app/tags/list?n=1&last=latest"),
        ("/docker.io/v2/app/tags/list?x=y&n=01", "app", "/docker.io/v2/app/tags/list?n=1&last=latest"),
        ("/DOCKER.io/v2/library/app/tags/list?n=1", "library/app", "/DOCKER.io/v2/library/app/tags/list?n=1&last=latest"),
        ("/v2/docker.io/app/tags/list?n=1", "docker.io/app", "/v2/docker.io/app/tags/list?n=1&last=latest"),
        ("/docker.io/app/tags/list?n=1", "docker.io/app", "/docker.io/app/tags/list?n=1&last=latest"),
        ("/v2/app/tags/list?ns=docker%2Eio&n=1", "app", "/v2/app/tags/list?n=1&last=latest&ns=docker%2Eio"),
    ] {
        let reply = scene.larder.get(asked).await;
        assert_eq!(link(&reply).as_deref(), Some(linked), "{asked}");
        assert!(reply.text().starts_with(&format!("{{\"name\":\"{name}\",")), "{}", reply.text());
        assert_eq!(tags_of(&scene.follow(asked).await), ["latest", "v0", "v1", "v2"], "{asked}");
    }
}

#[tokio::test]
async fn a_repository_that_upstream_does_not_have_is_unknown_for_seconds() {
    let scene = Scene::new();
    let path = "/v2/library/new/tags/list";
    for told in ["404 NAME_UNKNOWN", "404 NAME_UNKNOWN"] {
        assert_eq!(line(&scene.larder.get(path).await), told);
    }
    assert_eq!(scene.larder.get(path).await.header("cache-status"), Some("larder; hit; detail=negative"));
    assert_eq!(scene.lists_asked_for(), 1);
    scene.registry.push_image("library/new", "one", &[1], 3);
    scene.larder.clock.advance(ABSENT_TTL);
    assert_eq!(tags(&scene.larder.get(path).await), ["one"]);
}

#[tokio::test]
async fn a_new_tag_is_listed_within_half_a_minute() {
    let scene = Scene::new();
    assert_eq!(tags(&scene.larder.get(TAGS).await), ["latest"]);
    let scene = scene.tagged(["new".to_owned()]);
    scene.larder.clock.advance(TTL - Duration::from_secs(1));
    let reply = scene.larder.get(TAGS).await;
    assert_eq!((line(&reply).as_str(), tags(&reply)), ("200 larder; hit; ttl=1", vec!["latest".to_owned()]));
    scene.larder.clock.advance(Duration::from_secs(1));
    let reply = scene.larder.get(TAGS).await;
    assert_eq!((line(&reply).as_str(), tags(&reply)), ("200 larder; fwd=uri-miss", vec!["latest".to_owned(), "new".to_owned()]));
    assert_eq!(scene.lists_asked_for(), 2);
}

#[tokio::test]
async fn a_list_that_breaks_off_is_never_passed_on_in_part() {
    let scene = Scene::new().tagged(numbered(6));
    scene.registry.page_tags(TagPages::of(2));
    scene.registry.when(any().tags()).nth(3).then(Fault::status(500));
    scene.registry.when(any().tags()).nth(4).then(Fault::status(500));
    scene.registry.when(any().tags()).nth(5).then(Fault::status(500));
    assert_eq!(line(&scene.larder.get(TAGS).await), "502 UNAVAILABLE");
    let whole = scene.larder.get(TAGS).await;
    assert_eq!(tags(&whole).len(), 7);
    let scene = scene.tagged(["zzz".to_owned()]);
    scene.larder.clock.advance(TTL);
    scene.registry.when(any().tags()).from(2).then(Fault::status(403));
    scene.registry.when(any().tags()).from(2).then(Fault::status(429));
    let reply = scene.larder.get(TAGS).await;
    assert_eq!((reply.status, reply.header("age")), (403, None));
    scene.registry.behave();
    assert_eq!(tags(&scene.larder.get(TAGS).await).len(), 8);
    scene.larder.clock.advance(TTL);
    scene.registry.delete_tag("library/app", "v0");
    scene.registry.when(any().tags()).from(2).then(Fault::status(429));
    let stale = scene.larder.get(TAGS).await;
    assert_eq!((tags(&stale).len(), stale.header("age")), (8, Some("30")), "all of the old, nothing of the new");
}

#[tokio::test]
async fn what_is_no_list_is_502() {
    let scene = Scene::new();
    for body in ["<html>login</html>", "", "{}", r#"{"errors":[]}"#, r#"{"name":"x","tags":"y"}"#] {
        scene.registry.behave();
        scene.registry.when(any().tags()).then(Fault::Body(body.into()));
        assert_eq!(line(&scene.larder.get(TAGS).await), "502 UNAVAILABLE", "{body}");
    }
    let many = format!(r#"{{"name":"x","tags":["{}"]}}"#, "y".repeat(9 << 20));
    scene.registry.behave();
    scene.registry.when(any().tags()).then(Fault::Body(many.into()));
    assert_eq!(line(&scene.larder.get(TAGS).await), "502 UNAVAILABLE", "larger than larder reads");
    scene.registry.behave();
    scene.registry.when(any().tags()).then(Fault::Header("link", format!("<{TAGS}?last=x>; rel=next")));
    assert_eq!(line(&scene.larder.get(TAGS).await), "502 UNAVAILABLE", "a list without end");
    assert!(scene.lists_asked_for() < 20);
}

/// Also: credential_28
#[tokio::test]
async fn a_list_too_long_to_be_kept_is_passed_on_in_upstream_s_own_pages() {
    let scene = Scene::new().tagged(numbered(10_500));
    scene.registry.page_tags(TagPages::of(1500).absolute("http://hub.test").opaque());
    let pages = scene.follow("/v2/app/tags/list?ns=docker.io&n=1400").await;
    assert_eq!(tags_of(&pages), sorted(numbered(10_500).chain(["latest".to_owned()])));
    for page in &pages {
        assert!(page.text().starts_with(r#"{"name":"app","tags":["#));
        assert_eq!((page.header("cache-status"), page.header("oci-namespace")), (Some("larder; fwd=uri-miss"), Some("docker.io")));
    }
    let first = link(&pages[0]).unwrap();
    assert_eq!(first, "/v2/app/tags/list?next_page=gAAA%2Fb+11086600%3d==&n=1500&ns=docker.io", "the cursor byte for byte");
    let queries: Vec<String> = scene.registry.seen(any().tags()).into_iter().map(|request| request.query).collect();
    assert!(queries.iter().all(|query| !query.contains("ns=")), "{queries:?}");
    let none = scene.larder.get(&format!("{TAGS}?n=0")).await;
    assert_eq!((tags(&none).len(), none.header("link")), (0, None));
    scene.net.down("hub.test");
    assert_eq!(line(&scene.larder.get(TAGS).await), "502 UNAVAILABLE", "pages are not kept");
}

#[tokio::test]
async fn credential_29_a_large_n_is_cut_down_for_amazon_alone() {
    const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    let scene = Scene::with(|setup| setup.upstream(upstream(ECR, "hub.test"))).tagged(numbered(10_500));
    scene.registry.page_tags(TagPages::of(1000).absolute("http://hub.test").refusing_n_above(1000));
    let pages = scene.follow(&format!("/v2/{ECR}/library/app/tags/list?n=5000")).await;
    assert_eq!((pages.len(), tags_of(&pages).len()), (11, 10_501));
    assert_eq!(scene.registry.count(any().tags().of("n=5000")), 0);
    scene.registry.page_tags(TagPages::of(5000).absolute("http://hub.test"));
    scene.larder.get(&format!("{TAGS}?n=5000")).await;
    assert_eq!(scene.registry.count(any().tags().of("?n=5000")), 1);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_takes_too_long_to_collect_is_passed_on_in_pages() {
    let scene = Scene::new().tagged(numbered(60));
    scene.registry.page_tags(TagPages::of(1));
    scene.registry.when(any().tags()).then(Fault::Delay(Duration::from_secs(1)));
    let reply = scene.larder.get(&format!("{TAGS}?n=5")).await;
    assert_eq!((tags(&reply), link(&reply).is_some()), (vec!["latest".to_owned()], true));
    assert!(scene.lists_asked_for() <= 15, "{}", scene.lists_asked_for());
}
