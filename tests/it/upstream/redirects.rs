//! Where redirects may lead, and what goes with them.

use std::time::Duration;

use super::*;
use larder::upstream::{UnavailableReason, UpstreamError};

/// A registry that wants Basic and sends blobs elsewhere.
fn guarded(seen: &Seen, to: &str) -> Reply {
    match seen.header("authorization") {
        Some(BASIC) => redirect(to),
        _ => answer(401, &[("WWW-Authenticate", "Basic realm=\"r\"")], ""),
    }
}

/// Also: registry_28, registry_29, credential_09
#[tokio::test(start_paused = true)]
async fn registry_29_a_cdn_gets_the_range_and_the_query_as_it_stands_but_no_credentials() {
    let net = Peers::new(|seen| match seen.host.as_str() {
        "r.example" => guarded(seen, "http://cdn.example:8080/b?sig=a%2Fb+c&z=1&a=%20"),
        _ => answer(206, &[("Content-Range", "bytes 2-4/5")], "llo"),
    });
    let (upstream, _) = upstream(&signed_in(config()), &net);
    let stream = upstream.get_blob(&repository(), &digest(), 2, &call()).await.expect("a blob");
    assert_eq!(stream.offset, 2);
    let cdn = net.to("cdn.example:8080").remove(0);
    assert_eq!(
        (cdn.target.as_str(), cdn.header("range"), cdn.header("authorization")),
        ("/b?sig=a%2Fb+c&z=1&a=%20", Some("bytes=2-"), None)
    );
}

/// Also: registry_28
#[tokio::test(start_paused = true)]
async fn registry_28_credentials_follow_to_the_same_origin_and_not_to_another_port_of_the_host() {
    for (to, host, expected) in [("/elsewhere?s=1", "r.example", Some(BASIC)), ("http://r.example:81/elsewhere", "r.example:81", None)] {
        let net = Peers::new(move |seen| match seen.target.starts_with("/elsewhere") {
            true => answer(200, &[], "hello"),
            false => guarded(seen, to),
        });
        let mut config = signed_in(config());
        config.allow_private_addresses = vec!["10.0.0.0/8".parse().expect("a network")];
        let (upstream, _) = upstream(&config, &net);
        upstream.get_blob(&repository(), &digest(), 0, &call()).await.expect("a blob");
        let last = net.to(host).pop().expect("a request");
        assert_eq!((last.target.starts_with("/elsewhere"), last.header("authorization")), (true, expected), "{to}");
    }
}

/// Also: registry_27, credential_10
#[tokio::test(start_paused = true)]
async fn registry_27_every_kind_of_redirect_is_followed_for_manifests_too_without_waiting_for_its_body() {
    for status in [301, 302, 303, 307, 308] {
        let net = Peers::new(move |seen| match seen.host.as_str() {
            "r.example" => Reply::Raw(format!("HTTP/1.1 {status} Go\r\nLocation: //other.example/m\r\nContent-Length: 99\r\n\r\n")),
            _ => answer(200, &[], "hello"),
        });
        let (upstream, _) = upstream(&config(), &net);
        let begun = tokio::time::Instant::now();
        let fetched = upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
        assert_eq!((fetched.bytes.as_ref(), begun.elapsed()), (&b"hello"[..], Duration::ZERO), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn credential_10_a_relative_location_is_beside_the_url_it_came_from() {
    for (to, target) in [
        ("/artifacts-downloads/namespaces/n/downloads/A?s=a%2Fb&t=1", "/artifacts-downloads/namespaces/n/downloads/A?s=a%2Fb&t=1"),
        ("../../store/x?s=1", "/v2/library/store/x?s=1"),
        ("?link=2", "/v2/library/a/manifests/1?link=2"),
    ] {
        let net = Peers::new(move |seen| match seen.header("authorization") {
            None => answer(401, &[("WWW-Authenticate", "Basic realm=\"r\"")], ""),
            Some(_) if seen.target == target => answer(200, &[], "hello"),
            Some(_) => redirect(to),
        });
        let (upstream, _) = upstream(&signed_in(config()), &net);
        let fetched = upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
        assert_eq!(fetched.bytes.as_ref(), b"hello", "{to}");
        assert_eq!(net.to("r.example").pop().expect("a request").target, target);
    }
}

/// A10.33 for whatever goes wrong behind a presigned link.
#[tokio::test(start_paused = true)]
async fn registry_33_no_failure_tells_a_presigned_query() {
    type Failure = (&'static str, fn() -> Reply);
    let failures: [Failure; 9] = [
        ("http://cdn.example", || answer(403, &[], "sig=s3cret")),
        ("http://cdn.example", || answer(500, &[], "sig=s3cret")),
        ("http://cdn.example", || answer(418, &[], "sig=s3cret")),
        ("http://cdn.example", || Reply::Cut(String::new())),
        ("http://cdn.example", || Reply::Cut("sig=s3cret is not HTTP\r\n\r\n".into())),
        ("http://cdn.example", || Reply::Late(Duration::from_secs(60), String::new())),
        ("http://cdn.example", || redirect("ftp://other.example/b?sig=s3cret")),
        ("http://cdn.example", || redirect("/b?sig=s3cret")),
        ("http://dead.example", || answer(200, &[], "")),
    ];
    for (origin, reply) in failures {
        let net = Peers::new(move |seen| match seen.host.as_str() {
            "r.example" => redirect(&format!("{origin}/b?sig=s3cret")),
            _ => reply(),
        });
        let (upstream, metrics) = upstream(&config(), &net);
        let error = upstream.get_blob(&repository(), &digest(), 0, &call()).await.err().expect("an error");
        let told = format!("{error} {error:?} {}", metrics.encode());
        assert!(!told.contains("s3cret"), "{told}");
    }
}

/// Also: registry_27, credential_10, upstream_fault_10
#[tokio::test(start_paused = true)]
async fn registry_27_loops_and_long_chains_end() {
    for (script, requests) in [("loop", 2), ("chain", 6)] {
        let net = Peers::new(move |seen| match script {
            "loop" if seen.target == "/back" => redirect("/v2/library/a/manifests/1"),
            "loop" => redirect("/back"),
            _ => redirect(&format!("{}x", seen.target)),
        });
        let (upstream, _) = upstream(&config(), &net);
        let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
        assert_eq!((error.reason().as_str(), net.log().len()), ("corrupt", requests), "{script}: {error}");
    }
}

/// Also: upstream_fault_11, credential_13
#[tokio::test(start_paused = true)]
async fn a_redirect_leads_to_no_private_address() {
    for (host, reason) in [
        ("private.example", "private"),
        ("metadata.example", "metadata"),
        ("127.0.0.1", "private"),
        ("[::1]:5000", "private"),
        ("r.example:8080", "private"),
        ("169.254.169.254", "metadata"),
    ] {
        let net = Peers::new(move |_| redirect(&format!("http://{host}/latest?token=s3cret")));
        let (upstream, metrics) = upstream(&config(), &net);
        let error = upstream.get_blob(&repository(), &digest(), 0, &call()).await.err().expect("an error");
        assert!(matches!(error, UpstreamError::Unavailable { reason: UnavailableReason::Blocked, .. }), "{host}: {error}");
        assert!(error.to_string().contains("allow_private_addresses") && !error.to_string().contains("s3cret"), "{error}");
        assert_eq!(net.log().len(), 1, "{host}");
        let counted = format!("larder_blocked_dials_total{{reason=\"{reason}\"}} 1");
        assert!(metrics.encode().contains(&counted), "{host}");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_name_s_addresses_only_the_public_ones_are_dialled() {
    let net = Peers::new(|seen| match seen.host.as_str() {
        "r.example" => redirect("http://mixed.example/b"),
        _ => answer(200, &[], "hello"),
    });
    let (upstream, _) = upstream(&config(), &net);
    assert!(upstream.get_blob(&repository(), &digest(), 0, &call()).await.is_ok());
    let dialled: Vec<String> = net.dialled().iter().map(ToString::to_string).collect();
    assert_eq!(dialled, ["10.0.0.1:80", "203.0.113.1:80"]);
}

#[tokio::test(start_paused = true)]
async fn a_listed_private_address_is_open_to_redirects() {
    let net = Peers::new(|seen| match seen.host.as_str() {
        "r.example" => redirect("http://private.example/b"),
        _ => answer(200, &[], "hello"),
    });
    let mut config = config();
    config.allow_private_addresses = vec!["10.0.0.2/32".parse().expect("a network")];
    let (upstream, _) = upstream(&config, &net);
    assert!(upstream.get_blob(&repository(), &digest(), 0, &call()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn registry_30_an_expired_link_is_replaced_once_and_says_nothing_about_the_blob() {
    for status in [400, 401, 403, 404, 410] {
        for good in [2, 99] {
            let net = Peers::new(move |seen| match seen.host.as_str() {
                "r.example" => redirect(&format!("http://cdn.example/b?link={}", seen.nth)),
                _ if seen.target == format!("/b?link={good}") => answer(200, &[], "hello"),
                _ => answer(status, &[("WWW-Authenticate", "Basic realm=\"cdn\"")], "<html>expired</html>"),
            });
            let (upstream, _) = upstream(&signed_in(config()), &net);
            let got = upstream.get_blob(&repository(), &digest(), 0, &call()).await;
            assert_eq!(
                got.map(|_| "whole").map_err(|error| error.reason().as_str()),
                if good == 2 { Ok("whole") } else { Err("status") },
                "{status}"
            );
            assert_eq!(net.log().len(), 4, "{status}: {:?}", net.log());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn registry_31_a_store_that_refuses_head_still_tells_the_size() {
    let net = Peers::new(|seen| match (seen.host.as_str(), seen.method.as_str()) {
        ("r.example", _) => redirect("http://cdn.example/b?sig=get"),
        (_, "HEAD") => head(403, &[]),
        _ => {
            assert_eq!(seen.header("range"), Some("bytes=0-0"));
            answer(206, &[("Content-Range", "bytes 0-0/5")], "h")
        }
    });
    let (upstream, _) = upstream(&config(), &net);
    assert_eq!(upstream.head_blob(&repository(), &digest(), &call()).await, Ok(Some(5)));
    assert_eq!(net.log().len(), 4);
}

/// Also: upstream_fault_10, upstream_fault_15, credential_09
#[tokio::test]
async fn tls_is_checked_against_ca_file_and_never_left() {
    let net = Peers::new(|seen| match seen.target.ends_with("/1") {
        true => answer(200, &[], "hello"),
        false => redirect("http://cdn.example/b?sig=s3cret"),
    });
    net.serve_tls("10.0.0.1:443", &net.script, "r.example");
    let directory = tempfile::tempdir().expect("a directory");
    let ca_file = directory.path().join("ca.pem");
    std::fs::write(&ca_file, net.ca_pem()).expect("a file");
    let mut config = config();
    (config.urls[0].tls, config.urls[0].port, config.ca_file) = (true, 443, Some(ca_file));
    let (trusting, _) = upstream(&config, &net);
    assert!(trusting.get_manifest(&repository(), &tag(), &call()).await.is_ok());
    let error = trusting.get_blob(&repository(), &digest(), 0, &call()).await.err().expect("an error");
    assert!(matches!(&error, UpstreamError::Corrupt { detail } if !detail.contains("s3cret")), "{error}");
    assert!(net.to("cdn.example").is_empty());
    config.ca_file = None;
    let (doubting, _) = upstream(&config, &net);
    let error = doubting.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert_eq!(error.reason().as_str(), "tls", "{error}");
}
