//! Redirects to signed URLs, as object stores and CDNs want them: bound to host, method and every byte of the query,
//! good for some uses and some time, and not to be mixed with a registry's token.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use tokio::time::Instant;

use super::Request;
use super::answer::Answer;

pub struct Redirects {
    pub blobs: Option<String>,
    pub manifests: Option<String>,
    /// 307 unless told otherwise.
    pub status: u16,
    /// The store signs for GET alone, whatever was asked.
    pub refuses_head: bool,
    /// How often the next URLs will work.
    pub(super) uses: Option<usize>,
    /// How long the next URLs will work.
    pub lifetime: Option<Duration>,
    issued: usize,
    /// By path and query.
    urls: HashMap<String, Signed>,
}

impl Default for Redirects {
    fn default() -> Redirects {
        Redirects {
            blobs: None,
            manifests: None,
            status: 307,
            refuses_head: false,
            uses: None,
            lifetime: None,
            issued: 0,
            urls: HashMap::new(),
        }
    }
}

struct Signed {
    method: Method,
    host: String,
    issuer: String,
    uses_left: Option<usize>,
    until: Option<Instant>,
    bytes: Bytes,
    media_type: String,
}

impl Redirects {
    pub fn redirect(&mut self, request: &Request, origin: &str, bytes: Bytes, media_type: &str) -> Answer {
        self.issued += 1;
        // Not sorted, in both cases of hex, with an empty value: a client that rewrites the query breaks the signature.
        let target = format!("/signed/object?verify=1711%2d%2Ba%2Fb&sig=fake-signature-{}&X-Amz-Expires=&a=~%20z", self.issued);
        let host = origin.split_once("://").map_or(origin, |(_, host)| host).to_owned();
        let (issuer, media_type) = (request.host.clone(), media_type.to_owned());
        let method = if self.refuses_head { Method::GET } else { request.method.clone() };
        let until = self.lifetime.map(|lifetime| Instant::now() + lifetime);
        let location = format!("{origin}{target}");
        self.urls.insert(target, Signed { method, host, issuer, uses_left: self.uses, until, bytes, media_type });
        let page = format!("<a href=\"{location}\">Temporary Redirect</a>.\n\n");
        Answer::new(self.status, page).with("location", location).with("content-type", "text/html; charset=utf-8")
    }

    pub(super) fn expire(&mut self) {
        for signed in self.urls.values_mut() {
            signed.uses_left = Some(0);
        }
    }

    /// The answer, and what was wrong with the request if it is one that no redirect leads to.
    pub(super) fn serve(&mut self, request: &Request) -> (Answer, Option<&'static str>) {
        let target = format!("{}?{}", request.path, request.query);
        let refuses_head = self.refuses_head;
        let Some(signed) = self.urls.get_mut(&target) else {
            return (refuse(403, "SignatureDoesNotMatch"), Some("a URL that nobody signed"));
        };
        if request.authorization().is_some() && signed.host != signed.issuer {
            let answer = refuse(400, "InvalidArgument: Only one auth mechanism allowed");
            return (answer, Some("Authorization sent along with a signature"));
        }
        if signed.host != request.host {
            return (refuse(403, "SignatureDoesNotMatch"), Some("a signature of another host"));
        }
        if signed.method != request.method {
            let violation = (!refuses_head).then_some("a signature for another method");
            return (refuse(403, "SignatureDoesNotMatch"), violation);
        }
        if signed.until.is_some_and(|until| until <= Instant::now()) {
            return (refuse(403, "AccessDenied: Request has expired"), None);
        }
        match &mut signed.uses_left {
            Some(0) => return (refuse(403, "AccessDenied: Request has expired"), None),
            Some(left) => *left -= 1,
            None => {}
        }
        let answer = Answer::new(200, signed.bytes.clone())
            .with("content-type", &signed.media_type)
            .conditional(request, "\"9bb58f26192e4ba00f01e2e7b136bbd8\"");
        (answer, None)
    }
}

fn refuse(status: u16, code: &str) -> Answer {
    Answer::new(status, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>")).with("content-type", "application/xml")
}
