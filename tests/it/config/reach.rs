//! How upstreams are reached, and how larder is: URLs, listeners, proxies, certificates.

use std::net::SocketAddr;

use larder::config::{Config, Listener, VerifyOnRead, Visibility};
use secrecy::ExposeSecret;

use super::{check_mistakes, config, home, load};

#[test]
fn a_listener_may_have_an_upstream_of_its_own() {
    let listener = |address: &str, upstream: Option<&str>| Listener {
        default_upstream: upstream.map(str::to_owned),
        ..Listener::from(address.parse::<SocketAddr>().unwrap())
    };
    let text = |listen: &str| format!("server: {{listen: {listen}}}\nupstreams: {{docker.io: , ghcr.io: {{aliases: [gh]}}}}\n");
    for (listen, expected) in [
        ("127.0.0.1:1", vec![listener("127.0.0.1:1", None)]),
        ("[127.0.0.1:1, {address: \"[::1]:2\"}]", vec![listener("127.0.0.1:1", None), listener("[::1]:2", None)]),
        (
            "[{address: 127.0.0.1:1, default_upstream: gh}, {address: 127.0.0.1:2, default_upstream: registry-1.docker.io}]",
            vec![listener("127.0.0.1:1", Some("ghcr.io")), listener("127.0.0.1:2", Some("docker.io"))],
        ),
        ("{address: 127.0.0.1:1, default_upstream: ghcr.io}", vec![listener("127.0.0.1:1", Some("ghcr.io"))]),
    ] {
        assert_eq!(config(&text(listen)).server.listen, expected, "{listen}");
    }
    for (listen, expected) in [
        (
            "[{address: 127.0.0.1:1, default_upstrem: gh}]",
            "config:1:42: server.listen[0].default_upstrem: unknown key; did you mean server.listen[0].default_upstream?",
        ),
        (
            "[127.0.0.1:1, {address: 127.0.0.1:2, tls: {}}]",
            "config:1:55: server.listen[1].tls: unknown key; known here: address, default_upstream",
        ),
        ("[127.0.0.1:1, {default_upstream: gh}]", "config:1:32: server.listen[1].address: is missing; write one such as"),
        ("[{address: nowhere}]", "config:1:29: server.listen[0].address: `nowhere` is not an address and a port"),
        (
            "[{address: 127.0.0.1:1, default_upstream: quay.io}]",
            "config:1:60: server.listen[0].default_upstream: `quay.io` is not an upstream",
        ),
        ("[127.0.0.1:1, {address: 127.0.0.1:1}]", "config:1:32: server.listen: 127.0.0.1:1 is written twice"),
        ("[127.0.0.1:1, ~]", "config:1:32: server.listen"),
        ("[[127.0.0.1:1]]", "config:1:19: server.listen[0]: must hold address, default_upstream; it is a list"),
        ("[]", "config:1:18: server.listen: is an empty list"),
    ] {
        check_mistakes(&text(listen), &[expected]);
    }
}

#[test]
fn an_upstream_may_have_several_urls() {
    let urls = |url: &str| -> Vec<String> {
        config(&format!("upstreams: {{docker.io: {{url: {url}}}}}")).upstreams["docker.io"].urls.iter().map(ToString::to_string).collect()
    };
    assert_eq!(urls("\"https://a.io/x/\""), ["https://a.io/x"]);
    assert_eq!(
        urls("[\"https://a.io\", \"https://b.io:8443/hub\", \"http://127.0.0.1:5000\"]"),
        ["https://a.io", "https://b.io:8443/hub", "http://127.0.0.1:5000"]
    );
    let text = |url: &str| format!("upstreams: {{docker.io: {{url: {url}}}}}");
    check_mistakes(
        &text("[\"https://a.io\", \"https://A.io:443/\"]"),
        &["config:1:47: upstreams.docker.io.url: https://a.io is written twice"],
    );
    check_mistakes(
        &text("[\"https://a.io\", \"https://u:hunter2@b.io\"]"),
        &["config:1:47: upstreams.docker.io.url: holds a username or password; write them under credentials"],
    );
    check_mistakes(&text("[]"), &["config:1:30: upstreams.docker.io.url: is an empty list"]);
    check_mistakes(&text("[{a: b}]"), &["config:1:31: upstreams.docker.io.url: takes plain values"]);
}

#[test]
fn only_the_known_url_alone_is_well_known() {
    let upstream = |url: &str| {
        let text = format!("upstreams: {{docker.io: {{url: {url}, credentials: {{docker_config: auto}}}}}}");
        let config = config(&text);
        (config.upstreams["docker.io"].visibility, config.upstreams["docker.io"].tag_ttl.as_secs())
    };
    assert_eq!(upstream("[\"https://registry-1.docker.io\"]"), (Visibility::Public, 300));
    for url in [
        "[\"https://registry-1.docker.io\", \"https://mirror.corp\"]",
        "[\"https://mirror.corp\", \"https://registry-1.docker.io\"]",
        "\"https://registry-1.docker.io/path\"",
        "\"https://registry-1.docker.io:8443\"",
    ] {
        assert_eq!(upstream(url), (Visibility::Private, 0), "{url}");
    }
}

/// Also: credential_01
#[test]
fn known_registries_need_nothing_but_their_name() {
    let upstream = |name: &str, rest: &str| {
        let (config, warnings) = load(&format!("{{default_upstream: {name}, upstreams: {{{name}: {{{rest}}}}}}}"), &[]).unwrap();
        (config.upstreams[name].clone(), warnings)
    };
    let ecr = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
    let signed_in = "credentials: {docker_helper: ecr-login}";
    for (name, visibility, ttl) in [
        ("europe-docker.pkg.dev", Visibility::Public, 300),
        ("gcr.io", Visibility::Public, 300),
        ("registry.gitlab.com", Visibility::Public, 300),
        (ecr, Visibility::Private, 0),
        ("team.azurecr.io", Visibility::Private, 0),
        ("europe-docker.pkg.dev.evil.io", Visibility::Private, 0),
    ] {
        let (upstream, warnings) = upstream(name, signed_in);
        assert_eq!(upstream.urls[0].to_string(), format!("https://{name}"));
        assert_eq!((upstream.visibility, upstream.tag_ttl.as_secs()), (visibility, ttl), "{name}");
        assert_eq!(warnings, []);
    }
    let (_, warnings) = upstream(ecr, "");
    assert!(warnings.len() == 1 && warnings[0].message.contains("shows nothing without credentials"), "{warnings:?}");
    for other in ["123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil", "team.azurecr.io"] {
        assert_eq!(upstream(other, "").1, [], "{other}");
    }
    assert_eq!(upstream(ecr, "url: \"https://larder.corp/ecr\"").1, []);
}

#[test]
fn a_proxy_is_the_upstream_s_or_the_environment_s_or_none() {
    let proxy = |upstream: &str, variables: &[(&str, &str)]| {
        let (config, _) = load(&format!("{{default_upstream: r.corp, upstreams: {{r.corp: {{{upstream}}}}}}}"), variables).unwrap();
        let upstream = &config.upstreams["r.corp"];
        upstream.proxy.as_ref().map(|proxy| (proxy.url.to_string(), proxy.userinfo.as_ref().map(|text| text.expose_secret().to_owned())))
    };
    let plain = |url: &str| Some((url.to_owned(), None));
    let https = ("HTTPS_PROXY", "http://env.corp:3128");
    assert_eq!(proxy("", &[]), None);
    assert_eq!(proxy("", &[https]), plain("http://env.corp:3128"));
    assert_eq!(proxy("url: \"http://r.corp\"", &[https, ("HTTP_PROXY", "http://evil:1")]), None);
    assert_eq!(proxy("url: \"http://r.corp\"", &[https, ("http_proxy", "plain.corp:8080")]), plain("http://plain.corp:8080"));
    assert_eq!(proxy("proxy: none", &[https]), None);
    let own = "proxy: \"http://ada:hunter2@own.corp:1\"";
    assert_eq!(proxy(own, &[https]), Some(("http://own.corp:1".into(), Some("ada:hunter2".into()))));
    assert_eq!(proxy("", &[https, ("LARDER_UPSTREAMS__R_CORP__PROXY", "http://x.corp:1")]), plain("http://x.corp:1"));
}

#[test]
fn no_proxy_is_known_wherever_the_proxy_comes_from() {
    for text in ["", "upstreams: {docker.io: {proxy: \"http://p.corp:1\"}}"] {
        let (config, _) = load(text, &[("HTTPS_PROXY", "http://p.corp:1"), ("NO_PROXY", "cdn.corp,10.0.0.0/8")]).unwrap();
        let no_proxy = &config.upstreams["docker.io"].no_proxy;
        assert!(no_proxy.covers("a.cdn.corp", 443) && no_proxy.covers("10.1.2.3", 80) && !no_proxy.covers("docker.io", 443));
    }
}

#[test]
fn a_proxy_that_is_none_is_told_without_its_password() {
    check_mistakes(
        "upstreams: {docker.io: {proxy: \"socks5://u:hunter2@p.corp\"}}",
        &[
            "config:1:32: upstreams.docker.io.proxy: is not the http URL of a proxy, nor the word none; write one such as http://proxy.example.com:3128",
        ],
    );
    let mistakes = load("", &[("HTTPS_PROXY", "https://u:hunter2@p.corp")]).unwrap_err();
    let text = format!("{mistakes} {mistakes:?}");
    assert!(mistakes.mistakes.len() == 1 && !text.contains("hunter2"), "{text}");
    assert!(mistakes.to_string().starts_with("environment: HTTPS_PROXY: is not the http URL of a proxy"), "{mistakes}");
    load("upstreams: {docker.io: {proxy: none}}", &[("HTTPS_PROXY", "https://p.corp")]).unwrap();
    let shown = config("upstreams: {docker.io: {proxy: \"http://u:hunter2@p.corp:1\"}}");
    let shown = format!("{}{shown:?}", shown.to_yaml().unwrap());
    assert!(shown.contains("http://u:REDACTED@p.corp:1") && !shown.contains("hunter2"), "{shown}");
}

#[test]
fn skipping_the_check_of_certificates_is_never_silent() {
    let (config, warnings) = load("upstreams: {docker.io: {insecure_skip_verify: true}}", &[]).unwrap();
    assert!(config.upstreams["docker.io"].insecure_skip_verify);
    let line = warnings[0].line("f");
    assert!(line.starts_with("f:1:47: upstreams.docker.io.insecure_skip_verify: takes any certificate of this upstream"), "{line}");
    assert!(
        !super::config("upstreams: {docker.io: {insecure_skip_verify: false, url: \"http://127.0.0.1\"}}").upstreams["docker.io"]
            .insecure_skip_verify
    );
    check_mistakes(
        "upstreams: {docker.io: {url: \"http://127.0.0.1\", insecure_skip_verify: true}}",
        &["config:1:72: upstreams.docker.io.insecure_skip_verify: has nothing to skip, since url begins with http://"],
    );
}

#[test]
fn immutable_tags_are_whole_tags() {
    let config = config("upstreams: {docker.io: {immutable_tags: [\"v[0-9.]+\", stable]}}");
    let tags = &config.upstreams["docker.io"].immutable_tags;
    assert!(tags.matches("v1.2") && tags.matches("stable") && !tags.matches("unstable") && !tags.matches("v1-rc"));
    check_mistakes(
        "upstreams: {docker.io: {immutable_tags: [a, \"v[\", \"*\"]}}",
        &[
            "config:1:45: upstreams.docker.io.immutable_tags: `v[` is not a regular expression: unclosed character class",
            "config:1:51: upstreams.docker.io.immutable_tags: `*` is not a regular expression: repetition operator missing expression",
        ],
    );
    // As a number it would have lost its zero.
    check_mistakes(
        "upstreams: {docker.io: {immutable_tags: [1.10]}}",
        &["config:1:42: upstreams.docker.io.immutable_tags: reads as a number"],
    );
}

#[test]
fn deleted_tags_are_kept_if_one_says_so() {
    assert!(!config("").cache.keep_deleted_tags);
    assert!(config("cache: {keep_deleted_tags: true}").cache.keep_deleted_tags);
    check_mistakes("cache: {keep_deleted_tags: 1}", &["config:1:28: cache.keep_deleted_tags: `1` is neither true nor false"]);
}

#[test]
fn how_the_cache_looks_after_itself_can_be_told() {
    let cache = config("").cache;
    assert_eq!((cache.verify_on_read, cache.scrub_interval.as_secs()), (VerifyOnRead::AfterUncleanStop, 30 * 86_400));
    let cache = config("cache: {verify_on_read: never, scrub_interval: 0}").cache;
    assert_eq!((cache.verify_on_read, cache.scrub_interval.is_zero()), (VerifyOnRead::Never, true));
    check_mistakes(
        "cache: {verify_on_read: sometimes, scrub_interval: 30}",
        &[
            "config:1:25: cache.verify_on_read: `sometimes` is none of after-unclean-stop, always and never",
            "config:1:52: cache.scrub_interval: `30` has no unit; write 30s for seconds",
        ],
    );
}

#[test]
fn a_client_certificate_comes_with_its_chain_and_key() {
    let directory = tempfile::tempdir().unwrap();
    let (path, pem) = (directory.path().join("larder.yaml"), directory.path().join("client.pem"));
    std::fs::write(&path, format!("upstreams: {{docker.io: {{client_cert_file: {}}}}}", pem.display())).unwrap();
    let fault = || Config::load(Some(&path), home()).map(|_| ()).unwrap_err().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["client".into()]).unwrap();
    let (certificate, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    assert!(fault().contains(":1:43: upstreams.docker.io.client_cert_file: "), "{}", fault());
    for (text, why) in [("", "no certificate"), (key.as_str(), "no certificate"), (certificate.as_str(), "no private key")] {
        std::fs::write(&pem, text).unwrap();
        assert!(fault().contains(why), "{}", fault());
    }
    std::fs::write(&pem, key + &certificate).unwrap();
    let (config, _) = Config::load(Some(&path), home()).unwrap();
    assert_eq!(config.upstreams["docker.io"].visibility, Visibility::Public);
    assert_eq!(config.upstreams["docker.io"].client_cert_file.as_deref(), Some(pem.as_path()));
}
