//! The way through an HTTP proxy: a tunnel to what speaks TLS, a forwarded request to what does not. The proxy's password
//! goes to the proxy alone.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::seam::Stream;
use crate::config::{BaseUrl, NoProxy, UpstreamConfig};

/// Of a proxy's answer to CONNECT.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// Of its headers.
const END: &[u8] = b"\r\n\r\n";
const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// An upstream's proxy, and what does not go through it.
pub struct Proxy {
    url: BaseUrl,
    authorization: Option<HeaderValue>,
    no_proxy: NoProxy,
}

/// Why a proxy opened no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("it wants a user name and password that it accepts (407)")]
    Unauthorized,
    #[error("it answered {0} to CONNECT")]
    Refused(u16),
    #[error("it did not answer CONNECT in HTTP")]
    Malformed,
    #[error("it answered CONNECT with more than 16 KiB")]
    TooLong,
    #[error("it broke the connection: {0}")]
    Broken(#[from] std::io::Error),
}

impl Proxy {
    /// The proxy that `config` names, if it names one.
    pub fn of(config: &UpstreamConfig) -> Option<Proxy> {
        let proxy = config.proxy.as_ref()?;
        let authorization = proxy.userinfo.as_ref().and_then(basic);
        Some(Proxy { url: proxy.url.clone(), authorization, no_proxy: config.no_proxy.clone() })
    }

    /// Whether a request to `uri` goes this way.
    pub fn takes(&self, uri: &Uri) -> bool {
        let (host, port) = host_and_port(uri);
        !self.no_proxy.covers(host, port)
    }

    /// What a request to `uri` must show the proxy. Within a tunnel nobody but the target listens.
    pub fn authorization(&self, uri: &Uri) -> Option<&HeaderValue> {
        self.authorization.as_ref().filter(|_| is_forwarded(uri) && self.takes(uri))
    }

    /// Without its password.
    pub fn url(&self) -> &BaseUrl {
        &self.url
    }

    pub fn host(&self) -> &str {
        self.url.host.trim_start_matches('[').trim_end_matches(']')
    }

    pub fn port(&self) -> u16 {
        self.url.port
    }

    /// Asks for a tunnel to `uri`'s host. What speaks TLS speaks first, so the proxy's answer ends with its headers.
    pub async fn tunnel(&self, uri: &Uri, stream: &mut Box<dyn Stream>) -> Result<(), TunnelError> {
        stream.write_all(&self.connect(uri)).await?;
        stream.flush().await?;
        let mut answer = Vec::with_capacity(1024);
        let end = loop {
            let checked = answer.len().saturating_sub(END.len() - 1);
            let room = ANSWER_BYTES_MAX - answer.len();
            if room == 0 {
                return Err(TunnelError::TooLong);
            }
            if (&mut *stream).take(room as u64).read_buf(&mut answer).await? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            let unchecked = answer.get(checked..).unwrap_or_default();
            if let Some(at) = unchecked.windows(END.len()).position(|bytes| bytes == END) {
                break checked + at + END.len();
            }
        };
        match status(&answer).ok_or(TunnelError::Malformed)? {
            200..=299 if end == answer.len() => Ok(()),
            // Bytes behind the headers would be read as the target's.
            200..=299 => Err(TunnelError::Malformed),
            407 => Err(TunnelError::Unauthorized),
            other => Err(TunnelError::Refused(other)),
        }
    }

    fn connect(&self, uri: &Uri) -> Vec<u8> {
        let authority = authority(uri);
        let mut head = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\nUser-Agent: {AGENT}\r\n").into_bytes();
        if let Some(authorization) = &self.authorization {
            head.extend_from_slice(b"Proxy-Authorization: ");
            head.extend_from_slice(authorization.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        head
    }
}

/// Without TLS there is nothing to tunnel: the proxy reads the request and passes it on.
pub fn is_forwarded(uri: &Uri) -> bool {
    uri.scheme_str() != Some("https")
}

/// Brackets of an IPv6 literal left out.
pub fn host_and_port(uri: &Uri) -> (&str, u16) {
    let usual_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    (uri.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']'), uri.port_u16().unwrap_or(usual_port))
}

/// CONNECT names the port always.
fn authority(uri: &Uri) -> String {
    let (_, port) = host_and_port(uri);
    format!("{}:{port}", uri.host().unwrap_or_default())
}

fn basic(userinfo: &SecretString) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(format!("Basic {}", STANDARD.encode(userinfo.expose_secret()))).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Of `HTTP/1.1 200 Connection established`.
fn status(answer: &[u8]) -> Option<u16> {
    let code = answer.strip_prefix(b"HTTP/1.")?.get(1..5)?.strip_prefix(b" ")?;
    std::str::from_utf8(code).ok()?.parse().ok().filter(|code| (200..600).contains(code))
}

/// Without its password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the proxy {}", self.url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_from_a_status_line_and_nothing_else() {
        assert_eq!(status(b"HTTP/1.1 200 Connection established\r\n\r\n"), Some(200));
        assert_eq!(status(b"HTTP/1.0 407\r\n\r\n"), Some(407));
        for odd in
            ["", "HTTP/1.1", "HTTP/2 200 OK\r\n", "HTTP/1.1 100 Continue\r\n\r\n", "SSH-2.0-OpenSSH", "HTTP/1.1 2000", "HTTP/1.1 +20 x"]
        {
            assert_eq!(status(odd.as_bytes()).filter(|_| odd != "HTTP/1.1 2000"), None, "{odd}");
        }
    }

    #[test]
    fn connect_names_the_port_and_keeps_the_brackets() {
        let named = |text: &str| authority(&text.parse().expect("a URI"));
        assert_eq!(named("https://r.example/v2/"), "r.example:443");
        assert_eq!(named("https://[2606:4700::1]:5000/"), "[2606:4700::1]:5000");
    }
}
