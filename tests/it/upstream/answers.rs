//! What statuses, bodies and silences come to.

use std::time::Duration;

use super::*;
use larder::oci::Reference;
use larder::upstream::{UnavailableReason, UpstreamError};

/// Also: registry_34
#[tokio::test(start_paused = true)]
async fn registry_22_a_manifest_is_asked_for_by_all_four_types_and_with_nothing_of_a_client() {
    let named = digest().to_string();
    let net = Peers::new(move |_| answer(200, &[("Content-Type", "a/b"), ("Docker-Content-Digest", &named), ("ETag", "\"x\"")], "hello"));
    let (upstream, _) = upstream(&config(), &net);
    let call = call();
    let fetched = upstream.get_manifest(&repository(), &tag(), &call).await.expect("a manifest");
    assert_eq!((fetched.bytes.as_ref(), fetched.content_type.as_deref(), fetched.digest), (&b"hello"[..], Some("a/b"), Some(digest())));
    assert_eq!(net.log(), ["GET r.example/v2/library/a/manifests/1"]);
    let seen = net.to("r.example").remove(0);
    for media_type in
        ["oci.image.index.v1", "oci.image.manifest.v1", "docker.distribution.manifest.list.v2", "docker.distribution.manifest.v2"]
    {
        assert!(
            seen.header("accept").is_some_and(|accept| accept.contains(&format!("application/vnd.{media_type}+json"))),
            "{}",
            seen.head
        );
    }
    assert!(seen.header("accept").is_some_and(|accept| accept.ends_with("*/*")));
    assert_eq!(seen.header("accept-encoding"), Some("identity"));
    assert!(seen.header("user-agent").is_some_and(|agent| agent.starts_with("larder/")));
    assert_eq!(seen.head.trim_end().lines().count(), 5, "{}", seen.head);
    assert_eq!((call.exchange.status(), call.exchange.attempts()), (Some(200), 1));
}

#[tokio::test(start_paused = true)]
async fn head_tells_digest_type_and_size() {
    let named = digest().to_string();
    let net = Peers::new(move |seen| match seen.target.ends_with("/1") {
        true => head(200, &[("Content-Length", "5"), ("Content-Type", "a/b"), ("Docker-Content-Digest", &named)]),
        false if seen.target.contains("blobs") => head(200, &[("Content-Length", "7")]),
        false => head(405, &[]),
    });
    let (upstream, _) = upstream(&config(), &net);
    let head = upstream.head_manifest(&repository(), &tag(), &call()).await.expect("a head");
    assert_eq!((head.digest, head.content_type.as_deref(), head.size), (Some(digest()), Some("a/b"), Some(5)));
    assert_eq!(upstream.head_blob(&repository(), &digest(), &call()).await, Ok(Some(7)));
    let silent = upstream.head_manifest(&repository(), &Reference::Digest(digest()), &call()).await.expect("a head");
    assert_eq!(silent, larder::upstream::ManifestHead::default());
}

/// Also: upstream_fault_08
#[tokio::test(start_paused = true)]
async fn registry_40_a_5xx_is_asked_again_and_a_plain_no_is_not() {
    for (status, attempts, label) in [
        (502, 3, "status"),
        (503, 1, "status"),
        (404, 1, "not_found"),
        (403, 1, "denied"),
        (412, 1, "denied"),
        (429, 1, "rate_limited"),
        (400, 1, "corrupt"),
    ] {
        let net = Peers::new(move |_| answer(status, &[("Retry-After", "9")], "nope"));
        let (upstream, metrics) = upstream(&config(), &net);
        let call = call();
        let error = upstream.get_manifest(&repository(), &tag(), &call).await.expect_err("an error");
        assert_eq!((error.reason().as_str(), call.exchange.attempts()), (label, attempts), "{status}");
        match status {
            429 => assert_eq!(error, UpstreamError::RateLimited { retry_after: Some(Duration::from_secs(9)) }),
            503 => assert!(matches!(error, UpstreamError::Busy { retry_after, .. } if retry_after.as_secs() == 9), "{error:?}"),
            _ => {}
        }
        let counted = format!("larder_upstream_errors_total{{reason=\"{label}\",upstream=\"r.example\"}} 1");
        assert!(metrics.encode().contains(&counted), "{counted}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_attempt_may_succeed() {
    let net = Peers::new(|seen| match seen.nth {
        1 => Reply::Cut(String::new()),
        2 => Reply::Cut("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe".into()),
        _ => answer(200, &[], "hello"),
    });
    let (upstream, _) = upstream(&config(), &net);
    let fetched = upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    assert_eq!((fetched.bytes.as_ref(), net.log().len()), (&b"hello"[..], 3));
}

#[tokio::test(start_paused = true)]
async fn registry_39_a_distribution_proxy_s_500_about_a_limit_is_a_limit() {
    let net = Peers::new(|_| answer(500, &[], r#"{"errors":[{"message":"unknown: toomanyrequests: slow down"}]}"#));
    let (upstream, _) = upstream(&config(), &net);
    let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert!(matches!(error, UpstreamError::RateLimited { retry_after: Some(rest) } if rest <= Duration::from_secs(5)), "{error:?}");
}

/// Also: clients_40
#[tokio::test(start_paused = true)]
async fn silence_ends_with_the_caller_s_deadline() {
    let net = Peers::new(|_| Reply::Late(Duration::from_secs(100), String::new()));
    let (upstream, _) = upstream(&config(), &net);
    let (begun, call) = (tokio::time::Instant::now(), call());
    let error = upstream.get_blob(&repository(), &digest(), 0, &call).await.err().expect("an error");
    assert_eq!(error.reason().as_str(), "timeout");
    assert!(begun.elapsed() >= Duration::from_secs(20) && begun.elapsed() <= Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!((call.exchange.attempts(), call.exchange.status()), (2, None));
    assert!(call.exchange.millis() >= 20_000);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_true_is_corrupt() {
    let long = "x".repeat(4 * 1024 * 1024 + 1);
    let net = Peers::new(move |seen| match seen.target.rsplit('/').next() {
        Some("long") => answer(200, &[], &long),
        Some("endless") => Reply::Cut(format!("HTTP/1.1 200 OK\r\n\r\n{long}")),
        Some("coded") => answer(200, &[("Content-Encoding", "gzip")], "hello"),
        Some("part") => answer(206, &[("Content-Range", "bytes 0-4/9")], "hello"),
        _ => Reply::Cut("220 smtp.example ready\r\n\r\n".into()),
    });
    let (upstream, _) = upstream(&config(), &net);
    for tag in ["long", "endless", "coded", "part", "smtp"] {
        let error = upstream.get_manifest(&repository(), &tag.parse().expect("a tag"), &call()).await.expect_err("an error");
        assert_eq!(error.reason().as_str(), "corrupt", "{tag}: {error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_name_without_an_address_is_dns() {
    let net = Peers::new(|_| answer(200, &[], ""));
    let mut config = config();
    config.urls[0].host = "nowhere.example".into();
    let (upstream, _) = upstream(&config, &net);
    let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert!(matches!(error, UpstreamError::Unavailable { reason: UnavailableReason::Dns, .. }), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_blob_comes_whole_or_fails() {
    let net = Peers::new(|seen| match seen.nth {
        1 => answer(200, &[], "hello"),
        2 => Reply::Cut("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel".into()),
        _ => Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel".into()),
    });
    let (upstream, metrics) = upstream(&config(), &net);
    let mut labels = Vec::new();
    for _ in 0..3 {
        let mut stream = upstream.get_blob(&repository(), &digest(), 0, &call()).await.expect("a blob");
        assert_eq!((stream.offset, stream.size), (0, Some(5)));
        let begun = tokio::time::Instant::now();
        let mut bytes = Vec::new();
        labels.push(loop {
            match stream.next().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk),
                Ok(None) => break ("whole", bytes.len(), begun.elapsed().as_secs()),
                Err(error) => break (error.reason().as_str(), bytes.len(), begun.elapsed().as_secs()),
            }
        });
    }
    assert_eq!(labels, [("whole", 5, 0), ("broken", 3, 0), ("timeout", 3, 30)]);
    assert!(metrics.encode().contains("larder_upstream_received_bytes_total{upstream=\"r.example\"} 11"));
}

/// Also: clients_40, upstream_fault_05
#[tokio::test(start_paused = true)]
async fn waiting_again_and_again_does_not_put_off_the_stall() {
    let net = Peers::new(|_| Reply::Raw("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n".into()));
    let (upstream, _) = upstream(&config(), &net);
    let mut stream = upstream.get_blob(&repository(), &digest(), 0, &call()).await.expect("a blob");
    let begun = tokio::time::Instant::now();
    let error = loop {
        if let Ok(result) = tokio::time::timeout(Duration::from_secs(7), stream.next()).await {
            break result.expect_err("a stall");
        }
    };
    assert_eq!((error.reason().as_str(), begun.elapsed()), ("timeout", Duration::from_secs(30)));
}

#[tokio::test(start_paused = true)]
async fn registry_32_a_rest_is_what_was_asked_for_or_refused() {
    type Rest = Result<(u64, Option<u64>), &'static str>;
    type Headers = &'static [(&'static str, &'static str)];
    let table: [(u16, Headers, Rest); 7] = [
        (206, &[("Content-Range", "bytes 2-4/5")], Ok((2, Some(5)))),
        (206, &[("Content-Range", "bytes 2-4/*")], Ok((2, None))),
        (200, &[], Ok((0, Some(3)))),
        (206, &[("Content-Range", "bytes 1-3/5")], Err("corrupt")),
        (206, &[], Err("corrupt")),
        (416, &[("Content-Range", "bytes */5")], Err("corrupt")),
        (206, &[("Content-Range", "bytes 2-4/5"), ("Content-Encoding", "gzip")], Err("corrupt")),
    ];
    for (status, headers, expected) in table {
        let owned: Vec<(String, String)> = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let net = Peers::new(move |seen| {
            assert_eq!(seen.header("range"), Some("bytes=2-"));
            let headers: Vec<(&str, &str)> = owned.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            answer(status, &headers, "llo")
        });
        let (upstream, _) = upstream(&config(), &net);
        let got = upstream.get_blob(&repository(), &digest(), 2, &call()).await;
        assert_eq!(
            got.map(|stream| (stream.offset, stream.size)).map_err(|error| error.reason().as_str()),
            expected,
            "{status} {headers:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_206_that_leaves_out_the_end_does_not_look_whole() {
    let net = Peers::new(|_| answer(206, &[("Content-Range", "bytes 2-3/5")], "ll"));
    let (upstream, _) = upstream(&config(), &net);
    let mut stream = upstream.get_blob(&repository(), &digest(), 2, &call()).await.expect("a blob");
    assert_eq!(stream.next().await.expect("bytes").as_deref(), Some(&b"ll"[..]));
    assert_eq!(stream.next().await.expect_err("an error").reason().as_str(), "broken");
}

/// Also: clients_40
#[tokio::test(start_paused = true)]
async fn a_connection_that_does_not_come_is_given_up_after_5_seconds() {
    let net = Peers::new(|_| answer(200, &[], ""));
    let mut config = config();
    config.urls[0].host = "dead.example".into();
    let (upstream, _) = upstream(&config, &net);
    let begun = tokio::time::Instant::now();
    let error = upstream.get_manifest(&repository(), &tag(), &call()).await.expect_err("an error");
    assert!(matches!(error, UpstreamError::Unavailable { reason: UnavailableReason::Connect, .. }), "{error}");
    assert!(begun.elapsed() > Duration::from_secs(15) && begun.elapsed() < Duration::from_secs(16), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_dead_address_of_two_costs_a_quarter_of_a_second() {
    let net = Peers::new(|_| answer(200, &[], "hello"));
    let mut config = config();
    config.urls[0].host = "half.example".into();
    let (upstream, _) = upstream(&config, &net);
    let begun = tokio::time::Instant::now();
    upstream.get_manifest(&repository(), &tag(), &call()).await.expect("a manifest");
    assert_eq!(begun.elapsed(), Duration::from_millis(250));
}

/// A host that closes one connection, or says nonsense on it, has not broken those beside it.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_cut_off_leaves_the_idle_connections_as_they_are() {
    for cut in ["", "220 smtp.example ready\r\n\r\n"] {
        let net = Peers::new(move |seen| match seen.target.rsplit('/').next() {
            Some("cut") => Reply::Cut(cut.into()),
            Some(name) if name.starts_with("idle") => {
                Reply::Late(Duration::from_millis(100), "HTTP/1.1 404 Said\r\nContent-Length: 0\r\n\r\n".into())
            }
            _ => answer(404, &[], ""),
        });
        let (upstream, _) = upstream(&config(), &net);
        let ask = |name: &str| {
            let (upstream, name) = (&upstream, name.parse().expect("a tag"));
            async move { upstream.get_manifest(&repository(), &name, &call()).await.err().map(|error| error.reason()) }
        };
        let idle = [ask("idle1"), ask("idle2"), ask("idle3"), ask("idle4")];
        let [one, two, three, four] = idle;
        tokio::join!(one, two, three, four);
        let before = net.dials("10.0.0.1:80");
        assert_eq!(before, 4);
        ask("cut").await;
        let cuts = net.log().iter().filter(|line| line.ends_with("/cut")).count();
        let idle = [ask("a"), ask("b")];
        let [one, two] = idle;
        tokio::join!(one, two);
        // Each cut ends the connection that it was on, and no other.
        assert!(cuts < 4, "{:?}", net.log());
        assert_eq!(net.dials("10.0.0.1:80"), before + (cuts + 2usize).saturating_sub(4), "{cut:?}: {:?}", net.log());
    }
}
