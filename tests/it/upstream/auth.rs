//! Credentials and tokens: to whom they go, and how often they are asked for.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use larder::oci::RepositoryName;
use larder::upstream::UpstreamError;

const CHALLENGE: &str = r#"Bearer realm="http://r.example/token?x=1",service="s",scope="repository:library/a:pull""#;

fn challenged(challenge: &str) -> Reply {
    answer(401, &[("WWW-Authenticate", challenge)], "{}")
}

/// A registry that issues `t1`, `t2`, … and takes those that `good` names.
fn issuing(good: impl Fn(&str) -> bool + Send + Sync + 'static) -> Peers {
    Peers::new(move |seen| {
        if seen.target.starts_with("/token") {
            return answer(200, &[], &format!(r#"{{"token":"t{}"}}"#, seen.nth));
        }
        match seen.header("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if good(token) => answer(200, &[], "hello"),
            _ => challenged(CHALLENGE),
        }
    })
}

fn tokens(net: &Peers) -> usize {
    net.log().iter().filter(|line| line.contains("/token")).count()
}

/// Also: registry_04
#[tokio::test(start_paused = true)]
async fn registry_09_a_token_is_fetched_once_and_reused_until_shortly_before_it_ends() {
    let net = issuing(|_| true);
    let (upstream, _) = upstream(&config(), &net);
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    let question = "GET r.example/v2/library/a/manifests/1";
    let token = "GET r.example/token?x=1&service=s&scope=repository%3Alibrary%2Fa%3Apull";
    assert_eq!(net.log(), [question, token, question, question]);
    tokio::time::advance(Duration::from_secs(49)).await;
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    assert_eq!(tokens(&net), 1);
    tokio::time::advance(Duration::from_secs(2)).await;
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    assert_eq!(tokens(&net), 2);
}

#[tokio::test(start_paused = true)]
async fn registry_11_a_thousand_waiters_cost_one_token_request() {
    let net = issuing(|_| true);
    let upstream = Arc::new(upstream(&config(), &net).0);
    let mut waiters = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let upstream = Arc::clone(&upstream);
        waiters.spawn(async move { upstream.get_manifest(&repository(), &tag(), &call()).await.map(|_| ()) });
    }
    assert!(waiters.join_all().await.into_iter().all(|result| result.is_ok()));
    assert_eq!(tokens(&net), 1);
}

#[tokio::test(start_paused = true)]
async fn registry_14_a_refused_token_is_replaced_once() {
    let net = issuing(|token| token == "t2");
    let (replaced, _) = upstream(&config(), &net);
    replaced.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    assert_eq!(tokens(&net), 2);

    let net = issuing(|_| false);
    let (refused, _) = upstream(&config(), &net);
    let error = refused.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert_eq!((error.reason().as_str(), tokens(&net), net.log().len()), ("denied", 2, 5), "{error}");
}

#[tokio::test(start_paused = true)]
async fn registry_15_a_token_too_weak_for_its_own_scope_is_final_and_a_new_scope_is_asked_for() {
    for (scope, expected) in [("repository:library/a:pull", "denied 1"), ("repository:library/a:pull repository:base:pull", "ok 2")] {
        let net = Peers::new(move |seen| match (seen.target.starts_with("/token"), seen.header("authorization")) {
            (true, _) => answer(200, &[], &format!(r#"{{"access_token":"{}"}}"#, seen.target.contains("base"))),
            (_, Some("Bearer true")) => answer(200, &[], "hello"),
            (_, Some(_)) => challenged(&format!(r#"Bearer realm="http://r.example/token",scope="{scope}",error="insufficient_scope""#)),
            (_, None) => challenged(r#"Bearer realm="http://r.example/token",scope="repository:library/a:pull""#),
        });
        let (upstream, _) = upstream(&config(), &net);
        let got = upstream.get_manifest(&repository(), &tag(), &call()).await.map_or_else(|error| error.reason().as_str(), |_| "ok");
        assert_eq!(format!("{got} {}", tokens(&net)), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn registry_18_a_foreign_token_server_never_sees_the_password_unless_listed() {
    for (listed, label) in [(vec![], "credential"), (vec!["auth.example".to_owned()], "ok")] {
        let net = Peers::new(|seen| match (seen.host.as_str(), seen.header("authorization")) {
            ("auth.example", Some(BASIC)) => answer(200, &[], r#"{"token":"t"}"#),
            ("r.example", Some("Bearer t")) => answer(200, &[], "hello"),
            ("r.example", None) => challenged(r#"Basic, Bearer realm="http://auth.example/token""#),
            _ => answer(500, &[], ""),
        });
        let mut config = signed_in(config());
        config.token_hosts = listed.clone();
        let (upstream, _) = upstream(&config, &net);
        let got = upstream.get_manifest(&repository(), &tag(), &call()).await;
        if let Err(error) = &got {
            assert!(error.to_string().contains("token_hosts") && !error.to_string().contains("hunter2"), "{error}");
        }
        assert_eq!(got.as_ref().map_or_else(|error| error.reason().as_str(), |_| "ok"), label);
        assert_eq!(net.to("auth.example").len(), listed.len());
        assert!(net.to("r.example").iter().all(|seen| seen.header("authorization") != Some(BASIC)));
    }
}

#[tokio::test(start_paused = true)]
async fn tls_alone_does_not_make_a_token_server_trusted() {
    let net = Peers::new(|_| challenged(r#"Bearer realm="https://auth.example/token""#));
    let (upstream, _) = upstream(&signed_in(config()), &net);
    let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert!(matches!(&error, UpstreamError::CredentialRefused { detail } if detail.contains("`token_hosts` does not list")), "{error}");
    assert_eq!(net.dialled().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_server_that_moved_is_found_again() {
    let net = Peers::new(|seen| match (seen.target.as_str(), seen.header("authorization")) {
        ("/old?scope=repository%3Alibrary%2Fa%3Apull", _) if seen.nth > 1 => answer(404, &[], ""),
        ("/old?scope=repository%3Alibrary%2Fa%3Apull", _) => answer(200, &[], r#"{"token":"old"}"#),
        ("/new?scope=repository%3Alibrary%2Fa%3Apull", _) => answer(200, &[], r#"{"token":"new"}"#),
        (_, Some(_)) => answer(200, &[], "hello"),
        (_, None) if seen.nth > 2 => challenged(r#"Bearer realm="http://r.example/new""#),
        (_, None) => challenged(r#"Bearer realm="http://r.example/old""#),
    });
    let (upstream, _) = upstream(&config(), &net);
    let mut labels = Vec::new();
    for _ in 0..3 {
        let got = upstream.get_manifest(&repository(), &tag(), &call()).await;
        labels.push(got.map_or_else(|error| error.reason().as_str(), |_| "ok"));
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(labels, ["ok", "corrupt", "ok"]);
}

#[tokio::test(start_paused = true)]
async fn basic_is_sent_when_asked_for_and_then_at_once_everywhere() {
    let net = Peers::new(|seen| match seen.header("authorization") {
        Some(BASIC) => answer(200, &[], "hello"),
        _ => challenged("Basic realm=\"r\""),
    });
    let (upstream, _) = upstream(&signed_in(config()), &net);
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    let other: RepositoryName = "other".parse().expect("a name");
    upstream.get_manifest(&other, &tag(), &call()).await.expect("a manifest");
    assert_eq!(net.log().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn registry_03_refusals_have_their_meanings_and_no_loops() {
    let table: [(&str, bool, &str, usize); 5] = [
        // The repository, the same with the login, and the sign-in.
        ("Basic realm=\"r\"", true, "credential", 3),
        ("Basic realm=\"r\"", false, "denied", 1),
        ("", true, "denied", 2),
        ("Negotiate", false, "denied", 1),
        ("Bearer realm=\"ftp://r.example/token\"", false, "corrupt", 1),
    ];
    for (challenge, with_credentials, label, requests) in table {
        let net = Peers::new(move |_| challenged(challenge));
        let config = if with_credentials { signed_in(config()) } else { config() };
        let (upstream, _) = upstream(&config, &net);
        let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
        assert_eq!((error.reason().as_str(), net.log().len()), (label, requests), "{challenge}");
    }
}

#[tokio::test(start_paused = true)]
async fn harbor_s_basic_to_a_stale_token_leads_back_to_a_token() {
    let net = Peers::new(|seen| match (seen.target.starts_with("/token"), seen.header("authorization")) {
        (true, _) => answer(200, &[], &format!(r#"{{"token":"t{}"}}"#, seen.nth)),
        (_, None) => challenged(CHALLENGE),
        (_, Some("Bearer t1")) if seen.nth == 2 => answer(200, &[], "hello"),
        (_, Some("Bearer t2")) => answer(200, &[], "hello"),
        _ => challenged("Basic realm=\"harbor\""),
    });
    let (upstream, _) = upstream(&config(), &net);
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest, after t1 went stale");
    assert_eq!((tokens(&net), net.log().len()), (2, 7));
}

/// Also: registry_19
#[tokio::test(start_paused = true)]
async fn registry_13_a_token_server_s_refusal_is_held_for_a_second_and_concerns_one_repository() {
    let net = Peers::new(|seen| match (seen.target.contains("/token"), seen.header("authorization")) {
        (true, _) if seen.target.contains("private") => answer(403, &[], r#"{"errors":[{"code":"DENIED"}]}"#),
        (true, _) => answer(200, &[], r#"{"token":"t"}"#),
        (_, Some(_)) => answer(200, &[], "hello"),
        _ => challenged(r#"Bearer realm="http://r.example/token",service="s",scope="*""#),
    });
    let (upstream, _) = upstream(&config(), &net);
    let private: RepositoryName = "private".parse().expect("a name");
    for (wait, fetches) in [(0, 1), (900, 1), (200, 2)] {
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let error = upstream.get_manifest(&private, &tag(), &call()).await.expect_err("an error");
        assert_eq!(error, UpstreamError::Denied { detail: "http://r.example/token?<redacted> answered 403 (DENIED)".into() });
        assert_eq!(tokens(&net), fetches, "{wait}");
    }
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("another repository's manifest");
}

#[tokio::test(start_paused = true)]
async fn an_unlisted_token_server_at_a_private_address_is_not_asked() {
    let net = Peers::new(|_| challenged(r#"Bearer realm="https://private.example/token""#));
    let (upstream, _) = upstream(&config(), &net);
    let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert_eq!((error.reason().as_str(), net.to("private.example").len()), ("blocked", 0), "{error}");
}

#[tokio::test(start_paused = true)]
async fn registry_39_a_token_server_s_outage_is_no_refusal() {
    let net = Peers::new(|seen| match seen.target.starts_with("/token") {
        true => answer(503, &[], ""),
        false => challenged(CHALLENGE),
    });
    let (upstream, _) = upstream(&signed_in(config()), &net);
    let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert_eq!((error.reason().as_str(), tokens(&net)), ("status", 3), "{error}");
}

/// What is asked for is the list of scopes that larder makes, not what a realm's own query would add to it.
#[tokio::test(start_paused = true)]
async fn a_realm_cannot_add_a_scope_of_its_own() {
    let net = Peers::new(|seen| match (seen.target.starts_with("/token"), seen.header("authorization")) {
        (true, _) => answer(200, &[], r#"{"token":"t"}"#),
        (false, Some("Bearer t")) => answer(200, &[], "hello"),
        _ => challenged(
            r#"Bearer realm="http://r.example/token?account=x&scope=repository:victim:push,delete&%73cope=y&offline_token=true""#,
        ),
    });
    let (upstream, _) = upstream(&signed_in(config()), &net);
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    let token = "GET r.example/token?account=x&offline_token=true&scope=repository%3Alibrary%2Fa%3Apull";
    assert!(net.log().contains(&token.to_owned()), "{:?}", net.log());
}
