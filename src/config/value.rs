//! What a single value may say. Pure: text in, meaning or a sentence out. A sentence quotes what was written only where
//! that cannot hold a secret.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use ipnet::IpNet;

use super::BaseUrl;
use crate::oci::registries::{REGISTRIES, Registry};
use crate::units::{self, SizeError};

/// What is wrong with a value, and how to mend it.
pub(super) type Fault = String;

const HOST_LENGTH_MAX: usize = 253;
/// Longer than anyone waits, and short enough to be added to any clock.
const DURATION_MAX: Duration = Duration::from_secs(3650 * 24 * 3600);

/// `10GiB`, `500MB`, `1024`: bytes.
pub(super) fn size(text: &str) -> Result<u64, Fault> {
    units::parse_size(text).map_err(|error| match error {
        SizeError::Malformed => format!("`{text}` is not a size; write bytes, or a whole number with a unit, such as 500MB or 20GiB"),
        SizeError::TooLarge => format!("`{text}` is more than any disk holds"),
    })
}

/// A size with a lower bound.
pub(super) fn size_from(text: &str, min: u64) -> Result<u64, Fault> {
    let size = size(text)?;
    if size < min { Err(format!("`{text}` is too small; write at least {}", units::exact_size(min))) } else { Ok(size) }
}

/// A size, or a percentage of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Bytes(u64),
    Percent(u64),
}

/// `50%` or `10GiB`.
pub(super) fn share(text: &str) -> Result<Share, Fault> {
    let Some(number) = text.strip_suffix('%') else { return size(text).map(Share::Bytes) };
    match number.trim().parse() {
        Ok(percent @ 1..=100) => Ok(Share::Percent(percent)),
        _ => Err(format!("`{text}` is not a percentage; write 1% to 100%, or a size such as 10GiB")),
    }
}

/// `30s 5m 1h 30d`, and `0`.
pub(super) fn duration(text: &str) -> Result<Duration, Fault> {
    let has_unit = text == "0" || text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit());
    if !has_unit {
        return Err(format!("`{text}` has no unit; write {text}s for seconds"));
    }
    let duration = units::parse_duration(text).ok_or_else(|| format!("`{text}` is not a duration; write one such as 30s, 5m, 1h or 7d"))?;
    if duration > DURATION_MAX { Err(format!("`{text}` is more than ten years")) } else { Ok(duration) }
}

/// A duration with an upper bound, and the reason for it.
pub(super) fn duration_up_to(text: &str, max: Duration, reason: &str) -> Result<Duration, Fault> {
    let duration = duration(text)?;
    if duration > max {
        return Err(format!("`{text}` is too long; write at most {} ({reason})", units::exact_duration(max)));
    }
    Ok(duration)
}

/// A whole number within bounds.
pub(super) fn count(text: &str, min: usize, max: usize) -> Result<usize, Fault> {
    let fault = || format!("`{text}` is not a number from {min} to {max}");
    text.parse().ok().filter(|number| (min..=max).contains(number)).ok_or_else(fault)
}

/// The message for a word that is not one of a choice.
pub(super) fn none_of(text: &str, words: &[&str]) -> Fault {
    match words {
        [one, other] => format!("`{text}` is neither {one} nor {other}"),
        [first @ .., last] => format!("`{text}` is none of {} and {last}", first.join(", ")),
        [] => format!("`{text}` is not known"),
    }
}

pub(super) fn boolean(text: &str) -> Result<bool, Fault> {
    text.parse().map_err(|_| format!("`{text}` is neither true nor false"))
}

/// An address and a port.
pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Fault> {
    let example = "such as 127.0.0.1:5000, or 0.0.0.0:5000 for every IPv4 address of this machine";
    text.parse().map_err(|_| format!("`{text}` is not an address and a port, {example}"))
}

/// A network, or a single address.
pub(super) fn network(text: &str) -> Result<IpNet, Fault> {
    let single = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>().or_else(|_| single()).map_err(|_| format!("`{text}` is not a network such as 10.0.0.0/8, nor an address"))
}

pub(super) fn absolute_path(text: &str) -> Result<PathBuf, Fault> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err(format!("`{text}` is not an absolute path; a daemon may start anywhere, so begin with /"))
    }
}

/// A registry's host as image names have it: what docker takes for a host, not for a name. Safe as a directory name.
pub(super) fn registry_host(text: &str) -> Result<String, Fault> {
    let host = host_and_port(text)?;
    let reads_as_host = host.contains(['.', ':']) || host == "localhost";
    if reads_as_host {
        Ok(host)
    } else {
        Err(format!(
            "`{text}` is not a registry host as image names have it: those have a dot or a port; name the upstream by its host, and make this one of its aliases"
        ))
    }
}

/// `host` or `host:port`, in lower case.
pub(super) fn host_and_port(text: &str) -> Result<String, Fault> {
    let fault = || format!("`{text}` is not a host such as registry.example.com or registry.example.com:5000, in lower case");
    let (host, port) = text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port)));
    let port_fits = port.is_none_or(is_port);
    if host.len() <= HOST_LENGTH_MAX && host.split('.').all(is_label) && port_fits { Ok(text.to_owned()) } else { Err(fault()) }
}

/// A further name of an upstream, as the first component of an image's name or as `ns`.
pub(super) fn alias(text: &str) -> Result<String, Fault> {
    let words = |text: &str| text.split(['.', '_', '-']).all(|word| !word.is_empty() && word.bytes().all(is_lower_alphanumeric));
    let (name, port) = text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
    if !words(name) || name.len() > HOST_LENGTH_MAX || !port.is_none_or(is_port) {
        return Err(format!("`{text}` is not an alias: lower-case letters and digits, joined by '.', '_' or '-'"));
    }
    if name == "v2" {
        return Err("`v2` begins every path of a registry; choose another alias".into());
    }
    let official = REGISTRIES.iter().filter(|registry| registry.official == Some(name)).find_map(Registry::name);
    match official {
        Some(registry) => Err(format!("`{name}` begins the names of official images at {registry}; choose another alias")),
        None => Ok(text.to_owned()),
    }
}

fn is_label(label: &str) -> bool {
    let inner = |byte: u8| is_lower_alphanumeric(byte) || byte == b'-';
    !label.is_empty() && label.len() <= 63 && label.bytes().all(inner) && !label.starts_with('-') && !label.ends_with('-')
}

/// In one spelling: `:05000` would be a second name for the same thing.
fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port > 0 && port.to_string() == text)
}

fn is_lower_alphanumeric(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// An upstream's URL. A fault never quotes it: it may hold a password.
pub(super) fn base_url(text: &str) -> Result<BaseUrl, Fault> {
    let example = "write one such as https://registry.example.com";
    let uri: Uri = text.parse().map_err(|_| format!("is not a URL; {example}"))?;
    let tls = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(format!("is not an http or https URL; {example}")),
    };
    let authority = uri.authority().ok_or_else(|| format!("names no host; {example}"))?;
    if authority.as_str().contains('@') {
        return Err("holds a username or password; write them under credentials".into());
    }
    if uri.query().is_some() || text.contains('#') {
        return Err("holds a query or a fragment; leave out what begins with ? or #".into());
    }
    let port = match authority.as_str().rsplit_once(':') {
        Some((_, port)) if !port.ends_with(']') => url_port(port)?,
        _ => {
            if tls {
                443
            } else {
                80
            }
        }
    };
    Ok(BaseUrl { tls, host: url_host(authority.host())?, port, path: url_path(uri.path())? })
}

fn url_port(text: &str) -> Result<u16, Fault> {
    let fault = || match text {
        "" => "has a colon and no port; write the port, or leave out the colon".to_owned(),
        _ => format!("port {text} is out of range (1–65535)"),
    };
    text.parse().ok().filter(|port| *port > 0).ok_or_else(fault)
}

fn url_host(host: &str) -> Result<String, Fault> {
    let host = host.to_ascii_lowercase();
    let literal = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let fits = match literal {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        // Inner names have underscores, whatever the standards say.
        None => host.len() <= HOST_LENGTH_MAX && host.split('.').all(|label| is_label(&label.replace('_', "a"))),
    };
    if fits {
        Ok(host)
    } else {
        Err("has a host with characters or a length that host names cannot have; write one such as https://registry.example.com".into())
    }
}

fn url_path(path: &str) -> Result<String, Fault> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path == "/v2" || path.ends_with("/v2") {
        return Err("ends with /v2; leave that out, larder adds it".into());
    }
    let unclear = |segment: &str| matches!(segment, "" | "." | "..") || segment.contains(['%', '\\']);
    if path.split('/').skip(1).any(unclear) {
        return Err("has a path with empty, dotted or escaped parts; write it plainly".into());
    }
    Ok(path.to_owned())
}

/// A `tracing` filter.
pub(super) fn log_level(text: &str) -> Result<String, Fault> {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |word: &str| levels.contains(&word.to_ascii_lowercase().as_str());
    // To tracing a lone `inof` is the name of a module, with everything of it switched on.
    let fits = text.split(',').all(|part| match part.split_once('=') {
        None => is_level(part),
        Some((target, level)) => !target.is_empty() && is_level(level),
    });
    if fits && text.parse::<tracing_subscriber::filter::Targets>().is_ok() {
        return Ok(text.to_owned());
    }
    Err(format!("`{text}` is not a level; write one of {}, or a filter such as larder=debug,hyper=warn", levels.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        assert_eq!(share("50%"), Ok(Share::Percent(50)));
        assert_eq!(share("1GiB"), Ok(Share::Bytes(1 << 30)));
        for text in ["0%", "101%", "%", "x%", "-5%"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, seconds) in [("0s", 0), ("0", 0), ("30s", 30), ("1h 30m", 5400)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert!(duration("30").is_err_and(|fault| fault.contains("30s")));
        for text in ["", "x", "5 parsecs", "-1s", "100y"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_port_out_of_range_is_named() {
        for (port, says) in
            [("99999", "port 99999 is out of range (1–65535)"), ("0", "port 0 is out of range"), ("", "has a colon and no port")]
        {
            let fault = base_url(&format!("https://a.io:{port}")).unwrap_err();
            assert!(fault.starts_with(says), "{port}: {fault}");
        }
    }

    #[test]
    fn hosts_are_lower_case_and_safe_as_directories() {
        for host in ["docker.io", "localhost", "localhost:5000", "10.0.0.1:5000", "a-b.example.com", "xn--bcher-kva.example"] {
            assert_eq!(registry_host(host).as_deref(), Ok(host));
        }
        for host in [
            "",
            "..",
            ".",
            "harbor",
            "A.io",
            "a..b",
            "-a.io",
            "a-.io",
            "a.io:",
            "a.io:0",
            "a.io:05000",
            "a.io/b",
            "a.io:1:2",
            "a\0.io",
            "a.io.",
        ] {
            assert!(registry_host(host).is_err(), "{host}");
        }
    }

    #[test]
    fn urls() {
        let url = |tls, host: &str, port, path: &str| BaseUrl { tls, host: host.into(), port, path: path.into() };
        assert_eq!(base_url("https://registry-1.docker.io"), Ok(url(true, "registry-1.docker.io", 443, "")));
        assert_eq!(base_url("http://Harbor.corp:8080/proxy/hub/"), Ok(url(false, "harbor.corp", 8080, "/proxy/hub")));
        assert_eq!(base_url("https://[::1]:5000/"), Ok(url(true, "[::1]", 5000, "")));
        assert_eq!(base_url("http://[::1]"), Ok(url(false, "[::1]", 80, "")));
        for text in [
            "",
            "docker.io",
            "ftp://a.io",
            "https://",
            "https:///x",
            "https://a.io?x=1",
            "https://a.io#x",
            "https://a.io/v2",
            "https://a.io/v2/",
            "https://a.io/../b",
            "https://a.io/a//b",
            "https://a.io/%2e%2e",
            "https://a.io:0",
            "https://a.io:99999",
            "https://a.io:",
            "https://a b",
        ] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_in_a_url_is_refused_and_not_repeated() {
        let fault = base_url("https://user:hunter2@a.io").unwrap_err();
        assert!(fault.contains("credentials") && !fault.contains("hunter2"), "{fault}");
    }

    #[test]
    fn log_levels() {
        for text in ["info", "DEBUG", "larder=debug,hyper=warn", "warn,larder::store=trace", "off"] {
            assert!(log_level(text).is_ok(), "{text}");
        }
        for text in ["", "inof", "larder=loud", "=info", "info,"] {
            assert!(log_level(text).is_err(), "{text}");
        }
    }
}
