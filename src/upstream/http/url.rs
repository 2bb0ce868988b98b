//! Where a request goes, and where a `Location` leads from there. Pure. A URL prints without its query, which may be a signature.

use std::fmt;

use http::Uri;
use http::uri::InvalidUri;

use crate::config::BaseUrl;
use crate::percent;

/// Scheme, host and port: what credentials are bound to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Origin {
    pub tls: bool,
    /// Lower case; an IPv6 literal in brackets.
    pub host: String,
    pub port: u16,
}

/// An absolute URL whose path and query stay byte for byte as they were given.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Url {
    pub origin: Origin,
    /// Begins with `/`.
    target: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidUrl {
    #[error("not a URL")]
    Syntax,
    #[error("a URL whose scheme is not http or https")]
    Scheme,
    #[error("a URL with a user name or password in it")]
    UserInfo,
}

impl From<&BaseUrl> for Origin {
    fn from(base: &BaseUrl) -> Origin {
        Origin { tls: base.tls, host: base.host.to_ascii_lowercase(), port: base.port }
    }
}

impl Origin {
    pub fn is_default_port(&self) -> bool {
        self.port == default_port(self.tls)
    }
}

fn default_port(tls: bool) -> u16 {
    if tls { 443 } else { 80 }
}

impl Url {
    pub fn new(origin: Origin, target: String) -> Url {
        Url { origin, target }
    }

    pub fn parse(text: &str) -> Result<Url, InvalidUrl> {
        let text = without_fragment(text.trim());
        let uri: Uri = text.parse().map_err(|_: InvalidUri| InvalidUrl::Syntax)?;
        let tls = match uri.scheme_str() {
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(_) => return Err(InvalidUrl::Scheme),
            None => return Err(InvalidUrl::Syntax),
        };
        let authority = uri.authority().ok_or(InvalidUrl::Syntax)?;
        if authority.as_str().contains('@') {
            return Err(InvalidUrl::UserInfo);
        }
        let host = authority.host().to_ascii_lowercase();
        if host.is_empty() {
            return Err(InvalidUrl::Syntax);
        }
        // An `Authority` says of a port beyond 65535 that there is none.
        let port = match authority.as_str().get(host.len()..).and_then(|rest| rest.strip_prefix(':')) {
            None | Some("") => default_port(tls),
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().map_err(|_| InvalidUrl::Syntax)?,
            Some(_) => return Err(InvalidUrl::Syntax),
        };
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Url { origin: Origin { tls, host, port }, target })
    }

    /// What `location` means in an answer from here (RFC 3986 §5.2).
    pub fn join(&self, location: &str) -> Result<Url, InvalidUrl> {
        let location = without_fragment(location.trim());
        if has_scheme(location) {
            return Url::parse(location);
        }
        if location.starts_with("//") {
            let scheme = if self.origin.tls { "https" } else { "http" };
            return Url::parse(&format!("{scheme}:{location}"));
        }
        let target = if location.is_empty() {
            self.target.clone()
        } else if location.starts_with('/') {
            location.to_owned()
        } else if location.starts_with('?') {
            format!("{}{location}", self.path())
        } else {
            merged(self.path(), location)
        };
        let url = Url { origin: self.origin.clone(), target };
        url.uri().map(|_| url).map_err(|_| InvalidUrl::Syntax)
    }

    pub fn uri(&self) -> Result<Uri, http::Error> {
        let scheme = if self.origin.tls { "https" } else { "http" };
        let Origin { host, port, .. } = &self.origin;
        let authority = if self.origin.is_default_port() { host.clone() } else { format!("{host}:{port}") };
        Uri::builder().scheme(scheme).authority(authority).path_and_query(self.target.as_str()).build()
    }

    /// With one more query parameter; what is there already stays.
    pub fn with_parameter(mut self, name: &str, value: &str) -> Url {
        let separator = match self.target.find('?') {
            None => "?",
            Some(at) if at + 1 == self.target.len() || self.target.ends_with('&') => "",
            Some(_) => "&",
        };
        self.target.push_str(separator);
        self.target.push_str(name);
        self.target.push('=');
        self.target.push_str(&percent::encode(value));
        self
    }

    /// Without the query parameters of this name; the others stay byte for byte.
    pub fn without_parameter(mut self, name: &str) -> Url {
        let is_other = |pair: &&str| percent::decode(pair.split('=').next().unwrap_or_default()).as_deref() != Some(name);
        if let Some((path, query)) = self.target.split_once('?')
            && !query.split('&').all(|pair| is_other(&pair))
        {
            let others: Vec<&str> = query.split('&').filter(is_other).collect();
            self.target = if others.is_empty() { path.to_owned() } else { format!("{path}?{}", others.join("&")) };
        }
        self
    }

    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Byte for byte as it was given.
    pub fn query(&self) -> Option<&str> {
        self.target.split_once('?').map(|(_, query)| query)
    }
}

fn without_fragment(text: &str) -> &str {
    text.split('#').next().unwrap_or_default()
}

fn has_scheme(text: &str) -> bool {
    let end = text.find([':', '/', '?']).filter(|end| text.as_bytes().get(*end) == Some(&b':'));
    end.and_then(|end| text.get(..end)).is_some_and(|scheme| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// A relative path beside `base`, dot segments removed; the query stays as it is.
fn merged(base: &str, relative: &str) -> String {
    let (path, query) = relative.find('?').map_or((relative, ""), |at| relative.split_at(at));
    let directory = base.rfind('/').and_then(|at| base.get(..at)).unwrap_or_default();
    let mut segments: Vec<&str> = directory.split('/').skip(1).collect();
    let last = path.split('/').next_back().unwrap_or_default();
    for segment in path.split('/') {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let slash = if matches!(last, "." | "..") && !segments.is_empty() { "/" } else { "" };
    format!("/{}{slash}{query}", segments.join("/"))
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.host)?;
        if self.is_default_port() { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = if self.target.contains('?') { "?<redacted>" } else { "" };
        write!(f, "{}{}{query}", self.origin, self.path())
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn joined(location: &str) -> String {
        let base = Url::parse("https://r.example:5000/v2/a/blobs/x?page=1").expect("a URL");
        base.join(location).map_or_else(|error| error.to_string(), |url| url.uri().expect("a URI").to_string())
    }

    #[test]
    fn locations_resolve_against_the_url_they_came_from() {
        assert_eq!(joined("https://CDN.example/b?sig=a%2Fb&x=1+2"), "https://cdn.example/b?sig=a%2Fb&x=1+2");
        assert_eq!(joined("//cdn.example/b"), "https://cdn.example/b");
        assert_eq!(joined("/artifacts-downloads/x?s=%20#part"), "https://r.example:5000/artifacts-downloads/x?s=%20");
        assert_eq!(joined("y?z=a/../b"), "https://r.example:5000/v2/a/blobs/y?z=a/../b");
        assert_eq!(joined("../m/y"), "https://r.example:5000/v2/a/m/y");
        assert_eq!(joined("../../../../.."), "https://r.example:5000/");
        assert_eq!(joined("./"), "https://r.example:5000/v2/a/blobs/");
        assert_eq!(joined("?page=2"), "https://r.example:5000/v2/a/blobs/x?page=2");
        assert_eq!(joined("sha256:00"), "not a URL");
    }

    #[test]
    fn what_is_not_a_plain_http_url_is_refused() {
        assert_eq!(Url::parse("ftp://a/b"), Err(InvalidUrl::Scheme));
        assert_eq!(Url::parse("https://user:secret@a/b"), Err(InvalidUrl::UserInfo));
        assert_eq!(Url::parse("/only/a/path"), Err(InvalidUrl::Syntax));
        assert_eq!(Url::parse("https://a b/"), Err(InvalidUrl::Syntax));
        for port in ["65536", "99999", "4430000000443", "+443", "443a"] {
            assert_eq!(Url::parse(&format!("https://a:{port}/")), Err(InvalidUrl::Syntax), "{port}");
        }
        for (text, port) in [("https://a:/", 443), ("http://[::1]/", 80), ("https://[::1]:5000/", 5000)] {
            assert_eq!(Url::parse(text).expect("a URL").origin.port, port, "{text}");
        }
    }

    #[test]
    fn a_query_is_extended_and_never_printed() {
        let url = Url::parse("https://auth.example/token?account=me").expect("a URL").with_parameter("scope", "repository:a/b:pull");
        assert_eq!(url.uri().expect("a URI").to_string(), "https://auth.example/token?account=me&scope=repository%3Aa%2Fb%3Apull");
        assert_eq!(format!("{url} {url:?}"), "https://auth.example/token?<redacted> https://auth.example/token?<redacted>");
    }

    proptest! {
        #[test]
        fn joining_never_panics(location: String) {
            let base = Url::parse("http://r.example/v2/").expect("a URL");
            if let Ok(url) = base.join(&location) {
                let _ = url.uri();
            }
        }
    }
}
