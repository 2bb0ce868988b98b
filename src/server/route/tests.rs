//! The URL grammar of the contract, sentence by sentence.

use http::Method;
use proptest::prelude::*;

use super::*;

fn get(path: &str) -> Result<Route, RouteError> {
    let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
    Route::parse(&Method::GET, path, query)
}

fn target(root: Root, ns: Option<&str>, name: &str) -> Target {
    Target::new(root, ns.map(str::to_owned), name)
}

fn prefix(text: &str) -> Root {
    Root::Prefix(text.into())
}

fn digest() -> Digest {
    format!("sha256:{}", "0".repeat(64)).parse().unwrap()
}

fn latest(target: Target) -> Result<Route, RouteError> {
    Ok(Route::Manifest { target, reference: "latest".parse().unwrap() })
}

#[test]
fn every_client_s_spelling_is_read() {
    let name = "library/alpine";
    let named = |root| target(root, None, name);
    assert_eq!(get("/v2/library/alpine/manifests/latest"), latest(named(Root::V2)));
    assert_eq!(get("/ghcr.io/v2/library/alpine/manifests/latest"), latest(named(prefix("ghcr.io"))));
    assert_eq!(get("/GHCR.io:443/v2/library/alpine/manifests/latest"), latest(named(prefix("ghcr.io:443"))));
    let spelled = |root, name| target(root, None, name);
    assert_eq!(get("/v2/ghcr.io/org/app/manifests/latest"), latest(spelled(Root::V2, "ghcr.io/org/app")));
    assert_eq!(get("/v2/localhost:5000/app/manifests/latest"), latest(spelled(Root::V2, "localhost:5000/app")));
    assert_eq!(get("/ghcr.io/org/app/manifests/latest"), latest(spelled(Root::Bare, "ghcr.io/org/app")));
    assert_eq!(
        get("/v2/library/alpine/manifests/latest?foo=%zz&ns=MyReg.io%3A5000&bar"),
        latest(target(Root::V2, Some("myreg.io:5000"), name))
    );
    assert_eq!(get("/p/v2/library/alpine/manifests/latest?ns=docker.io"), latest(target(prefix("p"), Some("docker.io"), name)));
}

#[test]
fn every_resource_is_read() {
    let target = target(Root::V2, None, "a/b");
    let digest = digest();
    assert_eq!(
        get(&format!("/v2/a/b/manifests/{digest}")),
        Ok(Route::Manifest { target: target.clone(), reference: Reference::Digest(digest) })
    );
    assert_eq!(get(&format!("/v2/a/b/blobs/{digest}")), Ok(Route::Blob { target: target.clone(), digest }));
    assert_eq!(get(&format!("/v2/a/b/referrers/{digest}?artifactType=x")), Ok(Route::Referrers { target: target.clone(), digest }));
    assert_eq!(get("/v2/a/b/tags/list?n=10"), Ok(Route::Tags { target }));
    for path in ["/v2", "/v2/"] {
        assert_eq!(get(path), Ok(Route::Version { root: Root::V2, ns: None }));
        assert_eq!(get(&format!("/quay.io{path}?ns=quay.io")), Ok(Route::Version { root: prefix("quay.io"), ns: Some("quay.io".into()) }));
    }
    for (path, probe) in [("/", Probe::Home), ("/livez", Probe::Live), ("/healthz", Probe::Live), ("/readyz", Probe::Ready)] {
        assert_eq!(get(path), Ok(Route::Probe(probe)));
    }
}

#[test]
fn the_grammar_s_own_words_are_names_too() {
    for (path, root, name) in [
        ("/v2/a/manifests/b/manifests/latest", Root::V2, "a/manifests/b"),
        ("/v2/v2/manifests/latest", Root::V2, "v2"),
        ("/v2/manifests/manifests/latest", Root::V2, "manifests"),
        ("/ghcr.io/v2/manifests/latest", Root::Bare, "ghcr.io/v2"),
        ("/ghcr.io/org/v2/app/manifests/latest", Root::Bare, "ghcr.io/org/v2/app"),
        ("/ghcr.io/v2/v2/app/manifests/latest", prefix("ghcr.io"), "v2/app"),
    ] {
        assert_eq!(get(path), latest(target(root, None, name)), "{path}");
    }
}

#[test]
fn what_is_malformed_is_400() {
    let name = RouteError::Name(InvalidName::Repository);
    let long = format!("/v2/{}/manifests/latest", "a".repeat(256));
    let longer = format!("/v2/{}manifests/latest", "a/".repeat(600));
    for (path, error) in [
        ("/v2/a/../b/manifests/latest", name),
        ("/v2/../manifests/latest", name),
        ("/v2/a//b/manifests/latest", name),
        ("/v2//manifests/latest", name),
        ("/v2/manifests/latest", name),
        ("//v2/a/manifests/latest", name),
        ("/v2/A/manifests/latest", name),
        ("/v2/GHCR.io/a/manifests/latest", name),
        ("/v2/localhost:5000/manifests/latest", name),
        ("/v2/a:70000/b/manifests/latest", name),
        ("/v2/a/_b/manifests/latest", name),
        (&long, name),
        (&longer, RouteError::Path),
        ("/v2/a%2fb/manifests/latest", RouteError::Path),
        ("/v2/%2e%2e/a/manifests/latest", RouteError::Path),
        ("/v2/a/manifests/la%00test", RouteError::Path),
        ("/v2/a/manifests/sha256%3Aabc", RouteError::Path),
        ("/v2/a/manifests/.latest", RouteError::Name(InvalidName::Tag)),
        ("/v2/a/manifests/", RouteError::Name(InvalidName::Tag)),
        ("/v2/a/manifests/sha256:totallywrong", RouteError::Digest(InvalidDigest)),
        ("/v2/a/blobs/sha256:baddigeststring", RouteError::Digest(InvalidDigest)),
        ("/v2/a/blobs/latest", RouteError::Digest(InvalidDigest)),
        ("/v2/a/referrers/latest", RouteError::Digest(InvalidDigest)),
        ("/v2/?ns=", RouteError::Namespace),
        ("/v2/?ns=http%3A%2F%2Fevil", RouteError::Namespace),
        ("/v2/?ns=..%2F", RouteError::Namespace),
        ("/v2/?ns=a%00", RouteError::Namespace),
        ("/v2/?ns=a%3", RouteError::Namespace),
        ("/v2/?ns=a:", RouteError::Namespace),
        ("/v2/?ns=a&ns=b", RouteError::Namespace),
    ] {
        assert_eq!(get(path), Err(error), "{path}");
    }
}

#[test]
fn what_is_not_served_is_404() {
    for path in [
        "/v2/_catalog",
        "/v2/a",
        "/v2/a/tags",
        "/v2/a/tags/list/",
        "/v2/a/manifests/latest/",
        "/v2/a/blobs/uploads/",
        "/v1/search",
        "/metrics",
        "/favicon.ico",
        "//",
        "*",
        "",
        "/token",
    ] {
        assert_eq!(get(path), Err(RouteError::NotFound), "{path}");
    }
}

#[test]
fn what_would_write_is_405() {
    for method in [Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS] {
        for path in
            ["/v2/", "/v2/a/blobs/uploads/", "/v2/a/manifests/latest", "/ghcr.io/v2/a/blobs/uploads/x", "/ghcr.io/a/manifests/x", "/"]
        {
            assert_eq!(Route::parse(&method, path, None), Err(RouteError::MethodNotAllowed), "{method} {path}");
        }
        assert_eq!(Route::parse(&method, "/elsewhere", None), Err(RouteError::NotFound));
    }
}

#[test]
fn a_first_component_can_be_taken_off() {
    let spelled = target(Root::V2, None, "localhost:5000/app");
    assert_eq!(spelled.whole(), None);
    assert_eq!(spelled.split_first(), Some(("localhost:5000", "app".parse().unwrap())));
    let plain = target(Root::V2, None, "alpine");
    assert_eq!((plain.whole(), plain.split_first()), ("alpine".parse().ok(), None));
}

const NAME: &str = "[a-z0-9]{1,5}([._-][a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,5}){0,3}";
const HOST: &str = "[a-z][a-z0-9-]{0,6}(\\.[a-z]{2,5}){1,2}(:[1-9][0-9]{0,3})?";

proptest! {
    #[test]
    fn every_valid_spelling_round_trips(
        host in HOST, name in NAME, ns in proptest::option::of(HOST), root in 0..3, resource in 0..4, tag in "[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,9}",
    ) {
        let digest = digest();
        let (root, before, name) = match root {
            0 => (Root::V2, "/v2".to_owned(), name),
            1 => (Root::Prefix(host.clone()), format!("/{host}/v2"), name),
            _ => (Root::Bare, String::new(), format!("{host}/{name}")),
        };
        // What looks like `/<host>/v2/<name>` is that, and not k3s's spelling.
        prop_assume!(root != Root::Bare || name.split('/').nth(1) != Some("v2"));
        let target = target(root, ns.as_deref(), &name);
        let (after, route) = match resource {
            0 => (format!("manifests/{tag}"), Route::Manifest { target, reference: tag.parse().unwrap() }),
            1 => (format!("blobs/{digest}"), Route::Blob { target, digest }),
            2 => ("tags/list".into(), Route::Tags { target }),
            _ => (format!("referrers/{digest}"), Route::Referrers { target, digest }),
        };
        let query = ns.map(|ns| format!("ns={}", ns.replace(':', "%3A")));
        prop_assert_eq!(Route::parse(&Method::HEAD, &format!("{before}/{name}/{after}"), query.as_deref()), Ok(route));
    }

    #[test]
    fn a_parsed_name_ends_as_a_repository_s_name(path in "/?(v2/|[a-zA-Z.:%]{0,4}/v2/)?[a-zA-Z0-9._:/%-]{0,24}/(manifests/x|tags/list|blobs/y)") {
        if let Ok(Route::Manifest { target, .. } | Route::Tags { target }) = get(&path) {
            prop_assert!(target.whole().is_some() || target.split_first().is_some());
            prop_assert!(target.as_str().split('/').all(|part| !part.is_empty() && part != "." && part != ".."));
        }
    }

    #[test]
    fn parsing_never_panics(path: String, query: Option<String>, method in "[A-Z]{1,7}") {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let _ = Route::parse(&method, &path, query.as_deref());
        let _ = Route::parse(&method, &format!("/v2/{path}/manifests/{path}"), query.as_deref());
    }
}
