//! The three ways in are as strict as the field's.

use std::time::Duration;

use http::Method;
use serde_json::Value;

use super::{REPOSITORY, blob_path, client, manifest_path, stocked};
use crate::support::client::{Client, Reply};
use crate::support::registry::{Bearer, FakeRegistry, Image};

const REALM: &str = "http://auth.test/token";
const SCOPE: &str = "scope=repository:library/alpine:pull";

async fn guarded(bearer: Bearer) -> (FakeRegistry, Image, Client) {
    let (registry, image) = stocked();
    registry.require_bearer(bearer);
    let client = client(&registry).await;
    (registry, image, client)
}

async fn ask_token(client: &mut Client, query: &str) -> Reply {
    client.get(&format!("/token?service=fake-registry&{query}")).host("auth.test").send().await
}

fn token(reply: &Reply) -> String {
    let document: Value = serde_json::from_str(reply.text()).expect("JSON");
    document["token"].as_str().expect("a token").to_owned()
}

async fn pull(client: &mut Client, token: &str) -> Reply {
    client.get(&manifest_path("3.20")).accept_manifests().header("authorization", &format!("Bearer {token}")).send().await
}

#[tokio::test]
async fn basic_wants_the_password_on_each_request() {
    let (registry, image) = stocked();
    registry.require_basic("ann", "p:w");
    let mut client = client(&registry).await;
    let path = blob_path(&image.layers[1].digest);
    let refused = client.get(&path).send().await;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some("Basic realm=\"fake-registry\"")));
    assert_eq!(client.get(&path).basic("ann", "wrong").send().await.status, 401);
    assert_eq!(client.get(&path).basic("ann", "p:w").send().await.status, 200);
    registry.open_to_all();
    assert_eq!(client.get(&path).send().await.status, 200);
}

#[tokio::test]
async fn a_token_opens_the_repository_it_was_asked_for_and_no_other() {
    let (registry, _, mut client) = guarded(Bearer::at(REALM)).await;
    registry.push_image("team/other", "3.20", &[1], 2);
    let refused = client.get(&manifest_path("3.20")).send().await;
    let challenge = r#"Bearer realm="http://auth.test/token",service="fake-registry",scope="repository:library/alpine:pull""#;
    assert_eq!((refused.status, refused.header("www-authenticate")), (401, Some(challenge)));
    let ping = client.get("/v2/").send().await;
    assert_eq!(ping.header("www-authenticate"), Some(r#"Bearer realm="http://auth.test/token",service="fake-registry""#));

    let reply = ask_token(&mut client, SCOPE).await;
    assert!(reply.text().contains("\"expires_in\":300"));
    let token = token(&reply);
    assert_eq!(pull(&mut client, &token).await.status, 200);
    let other = client.get("/v2/team/other/manifests/3.20").header("authorization", &format!("Bearer {token}")).send().await;
    assert_eq!(other.status, 401);
    assert!(other.header("www-authenticate").is_some_and(|text| text.ends_with(r#"team/other:pull",error="insufficient_scope""#)));
    assert_eq!(registry.token_requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_lapse_and_are_revoked() {
    let (registry, _, mut client) = guarded(Bearer::at(REALM).expires_in(60)).await;
    let first = token(&ask_token(&mut client, SCOPE).await);
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(pull(&mut client, &first).await.status, 200);
    tokio::time::advance(Duration::from_secs(1)).await;
    let lapsed = pull(&mut client, &first).await;
    assert!(lapsed.header("www-authenticate").is_some_and(|text| text.ends_with("error=\"invalid_token\"")));
    let second = token(&ask_token(&mut client, SCOPE).await);
    registry.revoke_tokens();
    assert_eq!(pull(&mut client, &second).await.status, 401);
}

#[tokio::test]
async fn the_token_endpoint_checks_host_service_and_password() {
    let (_, _, mut client) = guarded(Bearer::at(REALM).credentials("ann", "pw")).await;
    assert_eq!(client.get("/token?service=fake-registry").host("registry.test").send().await.status, 404);
    assert_eq!(client.get("/token?service=other").host("auth.test").send().await.status, 400);
    let path = format!("/token?service=fake-registry&{SCOPE}");
    assert_eq!(client.get(&path).host("auth.test").basic("ann", "no").send().await.status, 401);
    assert_eq!(client.get(&path).host("auth.test").basic("ann", "pw").send().await.status, 200);
    assert_eq!(client.get(&path).host("auth.test").send().await.status, 200);
    let (_, _, mut client) = guarded(Bearer::at(REALM).credentials("ann", "pw").credentials_required()).await;
    assert_eq!(client.get(&path).host("auth.test").send().await.status, 401);
}

#[tokio::test]
async fn a_private_repository_gives_an_anonymous_token_that_opens_nothing() {
    let (_, _, mut client) = guarded(Bearer::at(REALM).credentials("ann", "pw").private(REPOSITORY)).await;
    let anonymous = token(&ask_token(&mut client, SCOPE).await);
    assert_eq!(pull(&mut client, &anonymous).await.status, 401);
    let path = format!("/token?service=fake-registry&{SCOPE}");
    let known = token(&client.get(&path).host("auth.test").basic("ann", "pw").send().await);
    assert_eq!(pull(&mut client, &known).await.status, 200);
}

#[tokio::test]
async fn identity_tokens_are_posted() {
    let (_, _, mut client) = guarded(Bearer::at(REALM).identity_token("id/1")).await;
    let form = "grant_type=refresh_token&service=fake-registry&refresh_token=id%2F1&scope=repository%3Alibrary%2Falpine%3Apull";
    let reply = client.request(Method::POST, "/token").host("auth.test").body(form).send().await;
    assert_eq!(pull(&mut client, &token(&reply)).await.status, 200);
    let wrong = form.replace("id%2F1", "id");
    assert_eq!(client.request(Method::POST, "/token").host("auth.test").body(wrong).send().await.status, 401);
}

#[tokio::test]
async fn replies_and_challenges_take_the_field_s_shapes() {
    let bearer = Bearer::at("http://auth.test/v2/token?tenant=1").service(None).challenge_scope("*").without_expiry().in_access_token();
    let (registry, _, mut client) = guarded(bearer).await;
    let refused = client.get(&manifest_path("3.20")).send().await;
    assert_eq!(refused.header("www-authenticate"), Some(r#"Bearer realm="http://auth.test/v2/token?tenant=1",scope="*""#));
    assert_eq!(client.get(&format!("/v2/token?{SCOPE}")).host("auth.test").send().await.status, 404);
    let reply = client.get(&format!("/v2/token?tenant=1&{SCOPE}")).host("auth.test").send().await;
    assert_eq!(reply.text(), r#"{"access_token":"fake-token-1"}"#);
    assert_eq!(registry.token_requests(), 2);
}
