//! Which requests are meant: `get().blob().of(digest)`.

use std::fmt::Display;

use http::Method;

use super::Request;

/// What a request asks for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `/v2/`
    Ping,
    Blob,
    Manifest,
    Tags,
    Referrers,
    Token,
    /// A signed URL that the registry redirected to.
    Signed,
    Other,
}

impl Kind {
    pub(super) fn of(path: &str) -> Kind {
        let mut from_right = path.rsplit('/');
        let (last, what) = (from_right.next(), from_right.next());
        match (last, what) {
            _ if path.ends_with("/v2/") || path.ends_with("/v2") => Kind::Ping,
            _ if path.starts_with("/signed/") => Kind::Signed,
            _ if !path.contains("/v2/") || path == "/v2/token" || path == "/v2/auth" => Kind::of_foreign(path),
            (_, Some("blobs")) => Kind::Blob,
            (_, Some("manifests")) => Kind::Manifest,
            (Some("list"), Some("tags")) => Kind::Tags,
            (_, Some("referrers")) => Kind::Referrers,
            _ => Kind::Other,
        }
    }

    fn of_foreign(path: &str) -> Kind {
        if path.contains("token") || path.ends_with("/auth") { Kind::Token } else { Kind::Other }
    }
}

/// All that is named must hold.
#[derive(Clone, Debug, Default)]
pub struct Matcher {
    method: Option<Method>,
    kind: Option<Kind>,
    host: Option<String>,
    contains: Vec<String>,
    with_header: Vec<String>,
    without_header: Vec<String>,
}

pub fn any() -> Matcher {
    Matcher::default()
}

pub fn get() -> Matcher {
    Matcher { method: Some(Method::GET), ..any() }
}

pub fn head() -> Matcher {
    Matcher { method: Some(Method::HEAD), ..any() }
}

pub fn post() -> Matcher {
    Matcher { method: Some(Method::POST), ..any() }
}

impl Matcher {
    pub fn kind(self, kind: Kind) -> Matcher {
        Matcher { kind: Some(kind), ..self }
    }

    pub fn ping(self) -> Matcher {
        self.kind(Kind::Ping)
    }

    pub fn blob(self) -> Matcher {
        self.kind(Kind::Blob)
    }

    pub fn manifest(self) -> Matcher {
        self.kind(Kind::Manifest)
    }

    pub fn tags(self) -> Matcher {
        self.kind(Kind::Tags)
    }

    pub fn referrers(self) -> Matcher {
        self.kind(Kind::Referrers)
    }

    pub fn token(self) -> Matcher {
        self.kind(Kind::Token)
    }

    /// A signed URL, at the CDN.
    pub fn signed(self) -> Matcher {
        self.kind(Kind::Signed)
    }

    /// The path and query hold this: a digest, a repository, a tag.
    pub fn of(mut self, text: impl Display) -> Matcher {
        self.contains.push(text.to_string());
        self
    }

    /// The `Host` header is this.
    pub fn host(self, host: &str) -> Matcher {
        Matcher { host: Some(host.into()), ..self }
    }

    pub fn with_header(mut self, name: &str) -> Matcher {
        self.with_header.push(name.into());
        self
    }

    pub fn without_header(mut self, name: &str) -> Matcher {
        self.without_header.push(name.into());
        self
    }

    pub(super) fn matches(&self, request: &Request) -> bool {
        let target = format!("{}?{}", request.path, request.query);
        self.method.as_ref().is_none_or(|method| *method == request.method)
            && self.kind.is_none_or(|kind| kind == request.kind)
            && self.host.as_ref().is_none_or(|host| *host == request.host)
            && self.contains.iter().all(|text| target.contains(text.as_str()))
            && self.with_header.iter().all(|name| request.headers.contains_key(name.as_str()))
            && !self.without_header.iter().any(|name| request.headers.contains_key(name.as_str()))
    }
}
