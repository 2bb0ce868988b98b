//! `referrers`, and the tags that stand in for it.

use super::*;
use crate::support::registry::get;

/// Also: clients_44
#[tokio::test]
async fn credential_22_the_query_the_type_and_the_filter_s_header_are_kept() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native());
    let signatures = BTreeSet::from([scene.sign("one"), scene.sign("two")]);
    let sbom = scene.registry.push_referrer("library/app", scene.image.digest, SBOM, "{}").to_string();
    let path = scene.referrers();
    let all = scene.larder.get(&path).await;
    assert_eq!(digests(&all), signatures.iter().cloned().chain([sbom.clone()]).collect());
    assert_eq!((all.header("oci-filters-applied"), all.header("link")), (None, None));
    let upstream = crate::support::client::Client::over(scene.registry.connect()).await.get(&path).accept_manifests().send().await;
    assert_eq!(all.bytes(), upstream.bytes(), "byte for byte");
    let filtered = scene.larder.get(&format!("{path}?ns=docker.io&artifactType=application%2fspdx%2Bjson")).await;
    assert_eq!(digests(&filtered), BTreeSet::from([sbom]));
    assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
    let queries: Vec<String> = scene.registry.seen(any().referrers()).into_iter().map(|request| request.query).collect();
    assert_eq!(queries.last().map(String::as_str), Some("artifactType=application%2fspdx%2Bjson"), "byte for byte");
}

#[tokio::test]
async fn clients_44_an_upstream_that_does_not_filter_is_passed_on_unfiltered() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native().unfiltered());
    let both = BTreeSet::from([scene.sign("one"), scene.registry.push_referrer("library/app", scene.image.digest, SBOM, "{}").to_string()]);
    let reply = scene.larder.get(&format!("{}?artifactType={SBOM}", scene.referrers())).await;
    assert_eq!((digests(&reply), reply.header("oci-filters-applied")), (both, None));
}

/// Also: clients_44
#[tokio::test]
async fn credential_23_a_404_stays_404_and_an_empty_200_stays_200() {
    let scene = Scene::new();
    let zeros = format!("/v2/library/app/referrers/sha256:{}", "0".repeat(64));
    for path in [scene.referrers(), zeros.clone(), "/v2/library/none/referrers/".to_owned() + &scene.image.digest.to_string()] {
        assert_eq!(line(&scene.larder.get(&path).await), "404 UNSUPPORTED", "{path}");
    }
    scene.registry.serve_referrers(Referrers::native());
    scene.larder.clock.advance(ABSENT_TTL);
    for path in [scene.referrers(), zeros] {
        let reply = scene.larder.get(&path).await;
        assert!(digests(&reply).is_empty());
        let document: serde_json::Value = serde_json::from_slice(reply.bytes()).unwrap();
        assert_eq!((&document["schemaVersion"], &document["mediaType"]), (&2.into(), &MediaType::OCI_INDEX.into()));
        assert_eq!(reply.header("content-length"), Some(reply.bytes().len().to_string().as_str()));
    }
    assert_eq!(line(&scene.larder.get("/v2/library/app/referrers/sha256:1").await), "400 DIGEST_INVALID");
}

#[tokio::test]
async fn clients_44_the_type_is_exact_whatever_upstream_adds_to_it() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native());
    for told in ["application/vnd.oci.image.index.v1+json; charset=utf-8", "application/json"] {
        scene.registry.behave();
        scene.registry.when(any().referrers()).then(Fault::Header("content-type", told.into()));
        scene.larder.clock.advance(TTL);
        assert!(digests(&scene.larder.get(&scene.referrers()).await).is_empty(), "{told}");
    }
}

#[tokio::test]
async fn clients_45_where_there_is_no_api_the_answer_is_404_and_the_tag_that_stands_in_is_served() {
    for status in [400, 404, 405, 406, 501] {
        let scene = Scene::new();
        scene.registry.when(any().referrers()).then(Fault::status(status));
        for path in [scene.referrers(), format!("{}?artifactType={SBOM}", scene.referrers())] {
            for reply in [scene.larder.get(&path).await, scene.larder.get(&path).await, scene.larder.head(&path).await] {
                assert_eq!(reply.status, 404, "{status}: {path}");
            }
        }
        let tag = format!("sha256-{}", scene.image.digest.hex());
        let fallback = scene.registry.push_index("library/app", &tag, &[]);
        let reply = scene.larder.get(&format!("/v2/library/app/manifests/{tag}")).await;
        assert_eq!((reply.bytes(), reply.header("content-type")), (&fallback.bytes, Some(MediaType::OCI_INDEX)));
    }
}

#[tokio::test]
async fn a_cursor_that_has_expired_is_no_sign_of_a_missing_api() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native());
    assert_eq!(line(&scene.larder.get(&format!("{}?token=old", scene.referrers())).await), "502 UNAVAILABLE");
}

/// Also: credential_24
#[tokio::test]
async fn clients_46_a_later_signature_is_seen_within_half_a_minute_and_after_a_404_within_seconds() {
    let scene = Scene::new();
    let path = scene.referrers();
    for told in ["larder; fwd=uri-miss", "larder; hit; detail=negative"] {
        let reply = scene.larder.get(&path).await;
        assert_eq!((reply.status, reply.header("cache-status")), (404, Some(told)));
    }
    assert_eq!(scene.lists_asked_for(), 1);
    scene.registry.serve_referrers(Referrers::native());
    scene.larder.clock.advance(ABSENT_TTL);
    assert!(digests(&scene.larder.get(&path).await).is_empty());
    let signature = scene.sign("late");
    scene.larder.clock.advance(TTL - Duration::from_secs(1));
    assert!(digests(&scene.larder.get(&path).await).is_empty());
    scene.larder.clock.advance(Duration::from_secs(1));
    assert_eq!(digests(&scene.larder.get(&path).await), BTreeSet::from([signature]));
    assert_eq!(scene.lists_asked_for(), 3);
}

#[tokio::test]
async fn a_false_200_is_502_and_not_an_unsigned_image() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native());
    let path = scene.referrers();
    let html = || Fault::status(200).header("content-type", "text/html").body("<html>please log in</html>");
    let json = |body: &str| Fault::status(200).header("content-type", MediaType::OCI_INDEX).body(body.to_owned());
    let empty = r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    let manifest = Fault::status(200).header("content-type", MediaType::OCI_MANIFEST).body(empty);
    let large = json(&format!("{empty}{}", " ".repeat(4 << 20)));
    for (name, lie) in [("html", html()), ("{}", json("{}")), ("nothing", json("")), ("a manifest", manifest), ("too large", large)] {
        scene.registry.behave();
        scene.registry.when(any().referrers()).then(lie);
        assert_eq!(line(&scene.larder.get(&path).await), "502 UNAVAILABLE", "{name}");
    }
    scene.registry.behave();
    let signature = scene.sign("one");
    assert_eq!(digests(&scene.larder.get(&path).await), BTreeSet::from([signature.clone()]));
    scene.larder.clock.advance(TTL);
    scene.registry.when(any().referrers()).then(html());
    let reply = scene.larder.get(&path).await;
    assert_eq!((line(&reply).as_str(), reply.header("age")), ("200 larder; hit; ttl=0; detail=stale-corrupt", Some("30")));
    assert_eq!(digests(&reply), BTreeSet::from([signature]));
}

/// Also: clients_43
#[tokio::test]
async fn credential_28_pages_are_linked_relatively_and_cursors_come_back_byte_for_byte() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native().paged(2, "http://hub.test"));
    let signatures: BTreeSet<String> = (0..5).map(|n| scene.sign(&n.to_string())).collect();
    let digest = scene.image.digest;
    for (asked, second) in [
        (format!("/v2/app/referrers/{digest}"), format!("/v2/app/referrers/{digest}?token=15838+%2B==")),
        (
            format!("/docker.io/v2/app/referrers/{digest}?artifactType={}", SIGNATURE.replace('+', "%2b")),
            format!(
                "/docker.io/v2/app/referrers/{digest}?token=15838+%2B==&artifactType={}",
                SIGNATURE.replace('/', "%2f").replace('+', "%2B")
            ),
        ),
        (
            format!("/v2/library/app/referrers/{digest}?ns=docker.io"),
            format!("/v2/library/app/referrers/{digest}?token=15838+%2B==&ns=docker.io"),
        ),
    ] {
        let pages = scene.follow(&asked).await;
        assert_eq!(link(&pages[0]), Some(second), "{asked}");
        assert_eq!((pages.len(), pages.iter().flat_map(digests).collect::<BTreeSet<_>>()), (3, signatures.clone()), "{asked}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_an_older_answer_waits_two_seconds_for_a_new_one_and_the_question_goes_on() {
    let scene = Scene::new();
    scene.registry.serve_referrers(Referrers::native());
    let path = scene.referrers();
    scene.larder.get(&path).await;
    let signature = scene.sign("late");
    scene.larder.clock.advance(TTL);
    scene.registry.when(any().referrers()).then(Fault::Delay(Duration::from_secs(10)));
    let begun = tokio::time::Instant::now();
    let reply = scene.larder.get(&path).await;
    assert_eq!((line(&reply).as_str(), begun.elapsed().as_secs()), ("200 larder; hit; ttl=0; detail=stale-unavailable", 2));
    tokio::time::sleep(Duration::from_secs(9)).await;
    let reply = scene.larder.get(&path).await;
    assert_eq!((line(&reply).as_str(), digests(&reply)), ("200 larder; hit; ttl=30", BTreeSet::from([signature])));
    assert_eq!(scene.lists_asked_for(), 2);
}

/// Also: clients_18
#[tokio::test]
async fn credential_26_the_tag_and_the_digest_of_one_name_are_two_things() {
    let scene = Scene::new();
    let digest = scene.image.digest;
    let tag = format!("sha256-{}", digest.hex());
    for suffix in ["", ".sig", ".att", ".sbom"] {
        let reply = scene.larder.get(&format!("/v2/library/app/manifests/{tag}{suffix}")).await;
        assert_eq!(line(&reply), "404 MANIFEST_UNKNOWN", "{suffix}");
    }
    assert_eq!(scene.larder.get(&format!("/v2/library/app/manifests/{digest}")).await.bytes(), &scene.image.bytes);
    let signed = Scene::new();
    let signature = signed.registry.push_image("library/app", &tag, &[10], 9);
    for _ in 0..2 {
        let by_tag = signed.larder.get(&format!("/v2/library/app/manifests/{tag}")).await;
        let by_digest = signed.larder.get(&format!("/v2/library/app/manifests/{digest}")).await;
        assert_eq!((by_tag.bytes(), by_digest.bytes()), (&signature.bytes, &signed.image.bytes));
    }
    assert_eq!(signed.registry.count(get().manifest()), 2);
}
