//! What `check-config --print` prints can be loaded again, and then means the same.

use larder::config::KEYS;
use proptest::prelude::*;

use super::{EXAMPLE, config, load};

/// Every key, none with its default. The upstreams differ in how they sign in.
pub(super) const FULL: &str = r#"
server:
  listen: [127.0.0.1:1, {address: "[::1]:2", default_upstream: r.corp}]
  hosts: {m.corp: r.corp}
  allow_anonymous_private: true
  max_connections: 7
  drain_timeout: 90s
admin: {listen: 127.0.0.1:3}
cache:
  path: "/a: b"
  max_size: 123456789
  min_free: 5MiB
  max_blob_size: 7%
  evict_unused_after: 36h
  pinned_images: ["hub/app:1.*", "docker.io/alpine:3.20"]
  pinned_platforms: [linux/arm64]
  tag_ttl: 90s
  stale_if_error: 1h
  revalidate_wait: 3s
  negative_ttl: 1500ms
  keep_deleted_tags: true
  memory_cache_size: 1000
  verify_on_read: always
  scrub_interval: 7d
fills: {max_concurrent: 9, max_concurrent_per_upstream: 8, queue_timeout: 1s}
limits: {questions: 9, questions_per_upstream: 8}
default_upstream: r.corp
upstreams:
  docker.io: {credentials: {username: "123", password: p, repositories: ["a/**"]}}
  r.corp:
    url: ["https://r.corp/path", "https://[2001:db8::1]:8443"]
    aliases: [hub]
    credentials:
      - {name: files, username: "true", password_file: "/p: q", repositories: [a, "*/b"]}
      - {identity_token: i}
      - {identity_token_file: /i}
      - {registry_token: r}
      - {registry_token_file: /r}
      - {docker_config: auto}
      - {docker_config: /c}
      - {docker_helper: x.y}
      - {kubelet_provider: [/p, "1.0", "", "- x"]}
    visibility: private
    tag_ttl: 1m
    stale_if_error: 2h
    immutable_tags: ["1.0", 'v\d+(a|b)', '#x']
    token_hosts: ["t.corp:8443"]
    allow_private_addresses: [10.0.0.0/8, "::1"]
    ca_file: /ca.pem
    client_cert_file: /client.pem
    proxy: http://a%40b:hunter2@p.corp:3128
    insecure_skip_verify: true
  one.corp: {credentials: [{docker_config: auto, name: only}], proxy: none}
log: {format: json, level: debug}
"#;

/// By everything that is in it; secrets are the same wherever they are not shown.
fn same(text: &str, variables: &[(&str, &str)]) {
    let (first, _) = load(text, variables).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let printed = first.to_yaml().unwrap();
    let (second, _) = load(&printed, variables).unwrap_or_else(|mistakes| panic!("{mistakes}\n{printed}"));
    assert_eq!(format!("{first:?}"), format!("{second:?}"), "{printed}");
    assert_eq!(printed, second.to_yaml().unwrap());
}

#[test]
fn what_is_printed_can_be_loaded_again() {
    for text in ["", EXAMPLE, FULL] {
        same(text, &[]);
        same(text, &[("HTTPS_PROXY", "http://u:hunter2@p.corp:1"), ("NO_PROXY", "a.io")]);
    }
    let (full, _) = load(FULL, &[]).unwrap();
    assert!(!full.to_yaml().unwrap().contains("hunter2"));
}

#[test]
fn the_full_text_has_every_key() {
    let mut written = Vec::new();
    super::keys_of(&serde_yaml::from_str(FULL).unwrap(), "", &mut written);
    for key in KEYS {
        let is_written = |upstream: &str| written.contains(&key.path.replace('*', upstream));
        assert!(is_written("docker.io") || is_written("r.corp"), "{} is not tried", key.path);
    }
}

#[test]
fn a_proxy_of_the_environment_shows_and_none_does_too() {
    let (with, _) = load("", &[("HTTPS_PROXY", "p.corp:1")]).unwrap();
    assert!(with.to_yaml().unwrap().contains("proxy: http://p.corp:1"));
    assert!(config("").to_yaml().unwrap().contains("proxy: none"));
}

proptest! {
    #[test]
    fn whatever_is_written_survives_being_printed(
        username in "[^:\u{0}-\u{1f}\u{7f}-\u{9f}]{1,12}",
        argument in "\\PC{0,12}",
        tag in "[a-z0-9.#: -]{1,8}",
        proxy_user in "[a-z%4-]{0,3}",
    ) {
        let quoted = |text: &str| serde_json::to_string(text).unwrap();
        let text = format!(
            "upstreams: {{docker.io: {{immutable_tags: [{}], proxy: {}, credentials: [{{username: {}, password: p}}, {{kubelet_provider: [/p, {}]}}]}}}}",
            quoted(&tag), quoted(&format!("http://{}:p@p.corp:1", proxy_user.replace('%', "%40"))), quoted(&username), quoted(&argument),
        );
        same(&text, &[]);
    }
}
