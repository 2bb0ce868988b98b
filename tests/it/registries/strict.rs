//! The doubles themselves: each refuses, and notes, what the real one would.

use std::time::Duration;

use http::Method;

use super::push;
use crate::support::client::{Client, Reply};
use crate::support::net::FakeNet;
use crate::support::registries::{Double, Limit, docker_hub, ghcr, gitea, gitlab, harbor, nexus, quay, registry_k8s_io};
use crate::support::registry::FakeRegistry;

async fn client<M>(double: &Double<M>) -> Client {
    Client::over(double.connect()).await
}

/// A token for a repository, had as an honest client has it.
async fn token(client: &mut Client, host: &str, path: &str, service: &str, repository: &str) -> String {
    let reply = client.get(&format!("{path}?service={service}&scope=repository:{repository}:pull")).host(host).send().await;
    let document: serde_json::Value = serde_json::from_str(reply.text()).unwrap();
    document["token"].as_str().unwrap().to_owned()
}

async fn get(client: &mut Client, host: &str, path: &str, token: &str) -> Reply {
    client.get(path).host(host).accept_manifests().header("authorization", &format!("Bearer {token}")).send().await
}

/// What was noted, which is then forgiven.
fn noted(registry: &FakeRegistry) -> Vec<String> {
    let violations = registry.violations();
    registry.forgive();
    violations.into_iter().map(|violation| violation.split(": ").next().unwrap().to_owned()).collect()
}

const HUB: &str = "registry-1.docker.io";

async fn hub_token(client: &mut Client, repository: &str) -> String {
    token(client, "auth.docker.io", "/token", "registry.docker.io", repository).await
}

#[tokio::test(start_paused = true)]
async fn docker_hub_wants_library_and_a_token_for_each_repository_and_for_300_seconds() {
    let hub = docker_hub(&FakeNet::new());
    push(&hub, "library/app", 1);
    push(&hub, "acme/other", 2);
    let mut client = client(&hub).await;
    let app = hub_token(&mut client, "library/app").await;
    assert_eq!(get(&mut client, HUB, "/v2/library/app/manifests/1", &app).await.status, 200);
    for (path, named) in [("/v2/acme/other/manifests/1", "acme/other"), ("/v2/app/manifests/1", "app")] {
        let own = if named == "app" { hub_token(&mut client, "app").await } else { app.clone() };
        let refused = get(&mut client, HUB, path, &own).await;
        let challenge = format!(
            "Bearer realm=\"https://auth.docker.io/token\",service=\"registry.docker.io\",scope=\"repository:{named}:pull\",error=\"insufficient_scope\""
        );
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(challenge.as_str())));
    }
    tokio::time::sleep(Duration::from_secs(300)).await;
    let over = get(&mut client, HUB, "/v2/library/app/manifests/1", &app).await;
    assert!(over.header("www-authenticate").is_some_and(|text| text.ends_with("error=\"invalid_token\"")));
}

#[tokio::test(start_paused = true)]
async fn docker_hub_counts_gets_in_a_rolling_window_by_account_or_address() {
    let hub = docker_hub(&FakeNet::new());
    push(&hub, "library/app", 1);
    hub.script(|hub| {
        hub.limit = Some(Limit::new(2, 600));
        hub.tokens.account("paid", "pat");
    });
    let mut client = client(&hub).await;
    let path = "/v2/library/app/manifests/1";
    let mut seen = Vec::new();
    for (method, wait) in [(Method::HEAD, 0), (Method::GET, 0), (Method::GET, 299), (Method::GET, 0), (Method::HEAD, 0), (Method::GET, 302)]
    {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let token = hub_token(&mut client, "library/app").await;
        let reply =
            client.request(method, path).host(HUB).accept_manifests().header("authorization", &format!("Bearer {token}")).send().await;
        assert_eq!((reply.header("ratelimit-limit"), reply.header("docker-ratelimit-source")), (Some("2;w=600"), Some("203.0.113.77")));
        seen.push((reply.status, reply.header("ratelimit-remaining").unwrap().to_owned()));
    }
    let expected = [(200, "2"), (200, "1"), (200, "0"), (429, "0"), (200, "0"), (200, "0")];
    assert_eq!(seen, expected.map(|(status, left)| (status, format!("{left};w=600"))));
    let query = "/token?service=registry.docker.io&scope=repository:library/app:pull";
    let paid = client.get(query).host("auth.docker.io").basic("paid", "pat").send().await;
    let document: serde_json::Value = serde_json::from_str(paid.text()).unwrap();
    let reply = get(&mut client, HUB, path, document["token"].as_str().unwrap()).await;
    assert_eq!((reply.status, reply.header("ratelimit-limit")), (200, None));
    assert_eq!(hub.counted(), 4);
}

#[tokio::test(start_paused = true)]
async fn docker_hub_locks_out_who_logs_in_badly_and_nobody_else() {
    let hub = docker_hub(&FakeNet::new());
    push(&hub, "library/app", 1);
    hub.script(|hub| {
        hub.tokens.account("acme", "pat");
        hub.lock_out = (2, Duration::from_secs(3600));
        hub.retry_after = Some("3600".into());
    });
    let mut client = client(&hub).await;
    let query = "/token?service=registry.docker.io&scope=repository:library/app:pull";
    for (password, status) in [("bad", 401), ("pat", 200), ("bad", 401), ("pat", 429), ("bad", 429)] {
        let reply = client.get(query).host("auth.docker.io").basic("acme", password).send().await;
        assert_eq!((reply.status, reply.header("retry-after").is_some()), (status, status == 429), "{password}");
    }
    assert_eq!(client.get(query).host("auth.docker.io").send().await.status, 200);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(client.get(query).host("auth.docker.io").basic("acme", "pat").send().await.status, 200);
    hub.script(|hub| hub.abused = true);
    let reply = client.get("/v2/").host(HUB).send().await;
    assert_eq!((reply.status, reply.text(), reply.header("content-type")), (429, "Too Many Requests (HAP429).\n", Some("text/plain")));
}

#[tokio::test(start_paused = true)]
async fn what_no_honest_client_sends_is_noted() {
    let hub = docker_hub(&FakeNet::new());
    let pushed = push(&hub, "library/app", 1);
    let mut client = client(&hub).await;
    let token = hub_token(&mut client, "library/app").await;
    let bearer = format!("Bearer {token}");
    let path = "/v2/library/app/manifests/1";
    assert_eq!(noted(&hub), [""; 0]);
    for (name, value, note) in [
        ("x-forwarded-for", "10.0.0.1", "the header x-forwarded-for"),
        ("cookie", "a=b", "the header cookie"),
        ("accept-encoding", "gzip", "content that may be encoded"),
    ] {
        client.get(path).host(HUB).header("authorization", &bearer).header(name, value).send().await;
        assert_eq!(noted(&hub), [note]);
    }
    get(&mut client, HUB, &format!("{path}?ns=docker.io"), &token).await;
    assert_eq!(noted(&hub), ["the parameter ns"]);
    get(&mut client, HUB, path, "somebody-s-own").await;
    assert_eq!(noted(&hub), ["a token that nobody gave out"]);
    client.get(path).host(HUB).basic("acme", "pat").send().await;
    assert_eq!(noted(&hub), ["a password sent to the registry instead of its token server"]);
    client.get("/token?service=x&scope=repository:library/app:pull,push").host("auth.docker.io").send().await;
    assert_eq!(noted(&hub), ["more than reading asked for", "a token for the service Some(\"x\")"]);

    // At the CDN.
    let blob = format!("/v2/library/app/blobs/{}", pushed.images[0].layers[0].digest);
    let cdn = "production.cloudfront.docker.com";
    let redirect = get(&mut client, HUB, &blob, &token).await;
    assert_eq!(redirect.status, 307);
    let target = redirect.header("location").unwrap().replace(&format!("https://{cdn}"), "");
    for (target, method, header, status, note) in [
        (target.clone(), Method::GET, Some(bearer.as_str()), 400, "Authorization sent along with a signature"),
        (target.clone(), Method::HEAD, None, 403, "a signature for another method"),
        (target.replace("%2d", "-"), Method::GET, None, 403, "a URL that nobody signed"),
        (target.replace("&X-Amz-Expires=", ""), Method::GET, None, 403, "a URL that nobody signed"),
    ] {
        let ask = client.request(method, &target).host(cdn);
        let ask = if let Some(header) = header { ask.header("authorization", header) } else { ask };
        assert_eq!(ask.send().await.status, status, "{note}");
        assert_eq!(noted(&hub), [note]);
    }
    assert_eq!(client.get(&target).host(cdn).send().await.status, 200);
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(client.get(&target).host(cdn).send().await.status, 403);
    assert_eq!(noted(&hub), [""; 0]);
}

#[tokio::test]
async fn ghcr_s_token_server_refuses_and_its_store_has_no_head() {
    let ghcr = ghcr(&FakeNet::new());
    let pushed = push(&ghcr, "org/app", 1);
    push(&ghcr, "org/private", 2);
    ghcr.script(|ghcr| ghcr.tokens.private("org/private", &["octocat"]));
    let mut client = client(&ghcr).await;
    let ping = client.get("/v2/").host("ghcr.io").send().await;
    let literal = r#"Bearer realm="https://ghcr.io/token",service="ghcr.io",scope="repository:user/image:pull""#;
    assert_eq!((ping.status, ping.header("www-authenticate")), (401, Some(literal)));
    for (repository, status) in [("org/app", 200), ("org/private", 401), ("org/missing", 401), ("user/image", 401)] {
        let path = format!("/token?service=ghcr.io&scope=repository:{repository}:pull");
        assert_eq!(client.get(&path).host("ghcr.io").send().await.status, status, "{repository}");
        let stale = client.get(&path).host("ghcr.io").basic("octocat", "ghp_stale").send().await;
        assert_eq!((stale.status, stale.error_code().as_deref()), (403, Some("DENIED")));
    }
    let reply = client.get("/token?service=ghcr.io&scope=repository:org/app:pull").host("ghcr.io").send().await;
    assert!(!reply.text().contains("expires_in"));
    let bearer = client.get("/token?service=ghcr.io&scope=repository:org/app:pull").host("ghcr.io").header("authorization", "Bearer ghp_x");
    assert_eq!(bearer.send().await.status, 401);
    assert_eq!(noted(&ghcr), ["an access token sent as Bearer"]);
    let token = token(&mut client, "ghcr.io", "/token", "ghcr.io", "org/app").await;
    let referrers = format!("/v2/org/app/referrers/{}", pushed.index.digest);
    assert_eq!(get(&mut client, "ghcr.io", &referrers, &token).await.status, 404);
    let blob = format!("/v2/org/app/blobs/{}", pushed.images[0].layers[0].digest);
    let head = client.head(&blob).host("ghcr.io").header("authorization", &format!("Bearer {token}")).send().await;
    let target = head.header("location").unwrap().replace("https://pkg-containers.githubusercontent.com", "");
    assert_eq!(client.head(&target).host("pkg-containers.githubusercontent.com").send().await.status, 403);
}

#[tokio::test]
async fn quay_is_open_without_a_token_and_converts_what_is_not_listed() {
    let quay = quay(&FakeNet::new());
    let pushed = push(&quay, "org/app", 1);
    for n in 0..150 {
        quay.push_manifest("org/app", Some(&format!("v{n:03}")), pushed.index.media_type, pushed.index.bytes.clone());
    }
    let mut client = client(&quay).await;
    let ping = client.get("/v2/").host("quay.io").send().await;
    assert_eq!((ping.status, ping.text()), (401, "true"));
    let path = "/v2/org/app/manifests/1";
    assert_eq!(client.get(path).host("quay.io").accept_manifests().send().await.bytes(), &pushed.index.bytes);
    let converted = client.get(path).host("quay.io").header("accept", "*/*").send().await;
    assert_eq!(converted.header("content-type"), Some("application/vnd.docker.distribution.manifest.v1+prettyjws"));
    assert_ne!(converted.header("docker-content-digest"), Some(pushed.index.digest.to_string().as_str()));
    let by_digest = client.get(&format!("/v2/org/app/manifests/{}", pushed.index.digest)).host("quay.io").send().await;
    assert_eq!(by_digest.bytes(), &pushed.index.bytes);
    assert_eq!(get(&mut client, "quay.io", path, "bad").await.status, 401);
    assert_eq!(noted(&quay), ["a token that nobody gave out"]);
    assert_eq!(client.get("/v2/auth?service=quay.io&scope=registry:catalog:pull").host("quay.io").send().await.status, 400);
    assert_eq!(client.get("/v2/auth?service=quay.io").host("quay.io").send().await.status, 401);
    for missing in ["/v2/org/missing/manifests/1", "/v2/org/missing/tags/list"] {
        assert_eq!(client.get(missing).host("quay.io").send().await.status, 401);
    }
    let page = client.get("/v2/org/app/tags/list?n=1000").host("quay.io").send().await;
    let link = page.header("link").unwrap();
    let next = link.strip_prefix("<https://quay.io").and_then(|rest| rest.strip_suffix(">; rel=\"next\"")).unwrap();
    let last = client.get(next).host("quay.io").send().await;
    let count = |reply: &Reply| serde_json::from_str::<serde_json::Value>(reply.text()).unwrap()["tags"].as_array().unwrap().len();
    assert_eq!((count(&page), count(&last), last.header("link")), (100, 53, None));
    client.get("/v2/org/app/tags/list?last=v001").host("quay.io").send().await;
    assert_eq!(noted(&quay), ["the parameter last"]);
    let blob = format!("/v2/org/app/blobs/{}", pushed.images[0].layers[0].digest);
    let redirect = client.get(&blob).host("quay.io").send().await;
    assert_eq!((redirect.status, redirect.header("accept-ranges")), (302, Some("bytes")));
    assert_eq!(client.head(&blob).host("quay.io").send().await.header("content-length"), Some("200000"));
}

#[tokio::test]
async fn gitlab_answers_a_dash_tag_with_its_subject_and_harbor_has_three_challenges() {
    let gitlab = gitlab(&FakeNet::new());
    let pushed = push(&gitlab, "group/app", 1);
    let mut at_gitlab = client(&gitlab).await;
    let token = token(&mut at_gitlab, "gitlab.com", "/jwt/auth", "container_registry", "group/app").await;
    let dash = format!("/v2/group/app/manifests/{}", pushed.index.digest.to_string().replace(':', "-"));
    assert_eq!(get(&mut at_gitlab, "registry.gitlab.com", &dash, &token).await.bytes(), &pushed.index.bytes);
    let referrers = format!("/v2/group/app/referrers/{}", pushed.index.digest);
    assert_eq!(get(&mut at_gitlab, "registry.gitlab.com", &referrers, &token).await.status, 404);

    let harbor = harbor(&FakeNet::new());
    push(&harbor, "team/app", 1);
    harbor.script(|harbor| {
        harbor.tokens.account("robot$ci", "secret");
        harbor.barred.insert("team/app".into());
    });
    let mut client = client(&harbor).await;
    let (host, path) = ("harbor.corp.example", "/v2/team/app/manifests/1");
    let challenge = |reply: &Reply| reply.header("www-authenticate").unwrap_or("none").split(' ').next().unwrap().to_owned();
    let head = client.head(path).host(host).accept_manifests().send().await;
    assert_eq!((head.status, challenge(&head).as_str()), (401, "Bearer"));
    let basic = client.get(path).host(host).basic("robot$ci", "wrong").send().await;
    assert_eq!((basic.status, basic.header("www-authenticate")), (401, Some("Basic realm=\"harbor\"")));
    let unknown = client.head("/v2/none/app/manifests/1").host(host).send().await;
    assert_eq!((unknown.status, unknown.header("www-authenticate")), (401, Some("")));
    let barred = client.get(path).host(host).basic("robot$ci", "secret").accept_manifests().send().await;
    assert_eq!((barred.status, barred.error_code().as_deref()), (412, Some("PROJECTPOLICYVIOLATION")));
}

#[tokio::test]
async fn nexus_gitea_and_kubernetes_have_their_ways() {
    let nexus = nexus(&FakeNet::new());
    push(&nexus, "team/app", 1);
    let mut at_nexus = client(&nexus).await;
    let host = "nexus.corp.example";
    assert_eq!(at_nexus.get("/v2/team/app/manifests/1").host(host).send().await.status, 404);
    let own = token(&mut at_nexus, host, "/v2/token", "https://nexus.corp.example/v2/token", "team/app").await;
    assert!(own.starts_with("DockerToken."));
    let reply = get(&mut at_nexus, host, "/repository/docker/v2/team/app/manifests/1", &own).await;
    assert!(reply.status == 200 && reply.header("etag").is_some_and(|etag| etag.starts_with("\"{SHA1{")));

    let gitea = gitea(&FakeNet::new());
    let pushed = push(&gitea, "owner/app", 1);
    let mut at_gitea = client(&gitea).await;
    let host = "gitea.corp.example";
    let blob = format!("/v2/owner/app/blobs/{}", pushed.images[0].layers[0].digest);
    let refused = at_gitea.get(&blob).host(host).send().await;
    let lines: Vec<&str> = refused.headers.get_all("www-authenticate").iter().map(|line| line.to_str().unwrap()).collect();
    assert_eq!(lines, [r#"Bearer realm="https://gitea.corp.example/v2/token",service="container_registry",scope="*""#, "Basic"]);
    let own = token(&mut at_gitea, host, "/v2/token", "container_registry", "owner/app").await;
    let part = at_gitea.get(&blob).host(host).range("5-9").header("authorization", &format!("Bearer {own}")).send().await;
    assert_eq!((part.status, part.bytes().len()), (200, 200_000));
    gitea.script(|gitea| gitea.serves_direct = true);
    let redirect = at_gitea.get(&blob).host(host).header("authorization", &format!("Bearer {own}")).open().await;
    assert_eq!((redirect.status, redirect.header("content-length")), (307, Some("200000")));

    let kubernetes = registry_k8s_io(&FakeNet::new());
    let pushed = push(&kubernetes, "pause", 1);
    let mut client = client(&kubernetes).await;
    let host = "registry.k8s.io";
    for (path, status) in [("/v2/", 200), ("/v2/_catalog", 404), ("/v2/pause/manifests/1", 307), ("/v2/pause/tags/list", 307)] {
        assert_eq!(client.get(path).host(host).send().await.status, status, "{path}");
    }
    assert_eq!(client.request(Method::PUT, "/v2/pause/manifests/1").host(host).send().await.status, 405);
    assert_eq!(noted(&kubernetes), ["a method that changes things"]);
    let regional = "/v2/k8s-artifacts-prod/images/pause/manifests/1";
    let reply = client.get(regional).host("us-west2-docker.pkg.dev").accept_manifests().send().await;
    assert_eq!(reply.bytes(), &pushed.index.bytes);
    let taken_along = client.get(regional).host("us-west2-docker.pkg.dev").header("authorization", "Bearer x").send().await;
    assert_eq!((taken_along.status, noted(&kubernetes)), (400, vec!["Authorization taken along to another host".to_owned()]));
}

#[tokio::test]
#[should_panic(expected = "the header cookie")]
async fn a_double_that_was_wronged_fails_its_test() {
    let hub = docker_hub(&FakeNet::new());
    client(&hub).await.get("/v2/").host(HUB).header("cookie", "a=b").send().await;
}
