//! Registries that need no more than their name.

use std::time::Duration;

use larder::config::{UpstreamConfig, Visibility};
use larder::oci::registries::{self, Access};

use super::load;

/// `{NAME: {…}}` as the one upstream, and how many warnings there were.
fn upstream(name: &str, settings: &str) -> (UpstreamConfig, usize) {
    let text = format!("default_upstream: {name}\nupstreams: {{{name}: {settings}}}\n");
    let (mut config, warnings) = load(&text, &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    assert_eq!(config.default_upstream, name);
    (config.upstreams.remove(name).unwrap(), warnings.len())
}

const CREDENTIALS: &str = "{credentials: {username: ci, password: x}}";

#[test]
fn a_well_known_registry_needs_only_its_name() {
    let public = registries::well_known().chain(["europe-west1-docker.pkg.dev", "us-docker.pkg.dev"]);
    for name in public {
        assert_eq!(registries::find(name).map(|registry| registry.access), Some(Access::Public), "{name}");
        let url = if name == "docker.io" { "https://registry-1.docker.io".to_owned() } else { format!("https://{name}") };
        for (settings, warnings) in [("{}", 0), (CREDENTIALS, 1)] {
            let (upstream, told) = upstream(name, settings);
            assert_eq!(upstream.urls.iter().map(ToString::to_string).collect::<Vec<_>>(), [url.as_str()]);
            // An inline password is told of, and nothing else.
            assert_eq!((told <= warnings, upstream.visibility), (true, Visibility::Public), "{name}: {told}");
            assert_eq!((upstream.tag_ttl, upstream.stale_if_error), (Duration::from_secs(300), Duration::from_secs(7 * 86_400)));
            assert!(upstream.token_hosts.is_empty() && upstream.allow_private_addresses.is_empty() && upstream.proxy.is_none());
        }
    }
}

#[test]
fn a_cloud_s_registry_of_one_s_own_is_private_once_it_is_signed_in_to() {
    for (name, known, needs_credentials) in [
        ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", Access::Credentials, true),
        ("123456789012.dkr.ecr-fips.us-east-1.amazonaws.com", Access::Credentials, true),
        ("123456789012.dkr-ecr.us-east-1.on.aws", Access::Credentials, true),
        ("team.azurecr.io", Access::Unknown, false),
    ] {
        assert_eq!(registries::find(name).map(|registry| registry.access), Some(known), "{name}");
        let (nobody, told) = upstream(name, "{}");
        assert_eq!((nobody.urls[0].to_string(), nobody.tag_ttl), (format!("https://{name}"), Duration::ZERO));
        assert_eq!(told, usize::from(needs_credentials), "{name}");
        let (signed_in, _) = upstream(name, CREDENTIALS);
        assert_eq!(signed_in.visibility, Visibility::Private, "{name}");
    }
}

/// A registry elsewhere under a known name is like any other.
#[test]
fn a_known_name_with_another_url_is_somebody_s_own() {
    for name in registries::well_known() {
        let (upstream, _) = upstream(name, "{url: \"https://mirror.corp\", credentials: {username: ci, password: x}}");
        assert_eq!((upstream.visibility, upstream.tag_ttl), (Visibility::Private, Duration::ZERO), "{name}");
    }
}

/// `registry.hub.docker.com` is an alias of Docker Hub's, unless the file says otherwise: files that do are older than the alias.
#[test]
fn a_known_alias_yields_to_what_is_written() {
    let resolved = |text: &str| {
        let (config, _) = load(text, &[]).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        let url = |name: &str| config.upstream(name).map(|upstream| (upstream.name.clone(), upstream.urls[0].to_string()));
        (config.default_upstream.clone(), url("registry.hub.docker.com"))
    };
    let found = |name: &str, url: &str| Some((name.to_owned(), url.to_owned()));
    let hub = found("docker.io", "https://registry-1.docker.io");
    assert_eq!(resolved("default_upstream: registry.hub.docker.com"), ("docker.io".into(), hub.clone()));
    assert_eq!(resolved("upstreams: {docker.io: {aliases: [registry.hub.docker.com]}}"), ("docker.io".into(), hub));
    assert_eq!(
        resolved("{default_upstream: registry.hub.docker.com, upstreams: {docker.io: {}, registry.hub.docker.com: {}}}"),
        ("registry.hub.docker.com".into(), found("registry.hub.docker.com", "https://registry.hub.docker.com"))
    );
    assert_eq!(resolved("upstreams: {docker.io: {}, r.corp: {aliases: [registry.hub.docker.com]}}").1, found("r.corp", "https://r.corp"));
    assert_eq!(resolved("{default_upstream: r.corp, upstreams: {r.corp: {}}}").1, None);
}
