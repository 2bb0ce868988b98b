//! Redirects to signed URLs, as object stores and CDNs want them: bound to host, method and every byte of the query,
//! good for some uses, and not to be mixed with a registry's token.

use std::collections::HashMap;

use bytes::Bytes;
use http::Method;

use super::Request;
use super::answer::Answer;

#[derive(Default)]
pub(super) struct Redirects {
    pub(super) blobs: Option<String>,
    pub(super) manifests: Option<String>,
    /// How often the next URLs will work.
    pub(super) uses: Option<usize>,
    issued: usize,
    /// By path and query.
    urls: HashMap<String, Signed>,
}

struct Signed {
    method: Method,
    host: String,
    issuer: String,
    uses_left: Option<usize>,
    bytes: Bytes,
    media_type: String,
}

impl Redirects {
    pub(super) fn redirect(&mut self, request: &Request, origin: &str, bytes: Bytes, media_type: &str) -> Answer {
        self.issued += 1;
        // Not sorted, in both cases of hex, with an empty value: a client that rewrites the query breaks the signature.
        let target = format!("/signed/object?verify=1711%2d%2Ba%2Fb&sig={}&X-Amz-Expires=&a=~%20z", self.issued);
        let host = origin.split_once("://").map_or(origin, |(_, host)| host).to_owned();
        let (method, issuer, media_type) = (request.method.clone(), request.host.clone(), media_type.to_owned());
        let location = format!("{origin}{target}");
        self.urls.insert(target, Signed { method, host, issuer, uses_left: self.uses, bytes, media_type });
        let page = format!("<a href=\"{location}\">Temporary Redirect</a>.\n\n");
        Answer::new(307, page).with("location", location).with("content-type", "text/html; charset=utf-8")
    }

    pub(super) fn expire(&mut self) {
        for signed in self.urls.values_mut() {
            signed.uses_left = Some(0);
        }
    }

    pub(super) fn serve(&mut self, request: &Request) -> Answer {
        let target = format!("{}?{}", request.path, request.query);
        let Some(signed) = self.urls.get_mut(&target) else {
            return refuse(403, "SignatureDoesNotMatch");
        };
        if request.authorization().is_some() && signed.host != signed.issuer {
            return refuse(400, "InvalidArgument: Only one auth mechanism allowed");
        }
        if signed.method != request.method || signed.host != request.host {
            return refuse(403, "SignatureDoesNotMatch");
        }
        match &mut signed.uses_left {
            Some(0) => return refuse(403, "AccessDenied: Request has expired"),
            Some(left) => *left -= 1,
            None => {}
        }
        Answer::new(200, signed.bytes.clone())
            .with("content-type", &signed.media_type)
            .conditional(request, "\"9bb58f26192e4ba00f01e2e7b136bbd8\"")
    }
}

fn refuse(status: u16, code: &str) -> Answer {
    Answer::new(status, format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>")).with("content-type", "application/xml")
}
