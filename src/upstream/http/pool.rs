//! A pool of connections: to hosts directly, or by way of a proxy, whose password no host sees.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::url::Url;
use crate::oci::KIB;
use crate::upstream::connect::connector::Connector;
use crate::upstream::connect::proxy::{self, Proxy};
use crate::upstream::{UnavailableReason, UpstreamError};

/// Shorter than nginx's and the cloud balancers' keep-alive (75 s, 60 s), so that we rarely use a connection they just closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_PER_HOST_MAX: usize = 32;
const BUFFER_BYTES_MAX: usize = 64 * KIB as usize;

/// Connections that are trusted alike.
pub struct Pool {
    pub connector: Connector,
    client: Client<Connector, Full<Bytes>>,
    proxy: Option<Arc<Proxy>>,
}

impl Pool {
    pub fn new(connector: Connector) -> Pool {
        let proxy = connector.proxy.clone();
        let client = Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
            .http1_max_buf_size(BUFFER_BYTES_MAX)
            .build(connector.clone());
        Pool { connector, client, proxy }
    }

    pub async fn request(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        if let Some(authorization) = self.proxy.as_ref().and_then(|proxy| proxy.authorization(request.uri())) {
            let authorization = authorization.clone();
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        self.client.request(request).await
    }

    /// The answer, unless it is the proxy's own refusal.
    pub fn heard(&self, response: Response<Incoming>, url: &Url) -> Result<Response<Incoming>, UpstreamError> {
        let refusing = self.proxy.as_ref().filter(|_| response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED);
        let forwarding = refusing.filter(|proxy| url.uri().is_ok_and(|uri| proxy::is_forwarded(&uri) && proxy.takes(&uri)));
        match forwarding {
            None => Ok(response),
            Some(proxy) => {
                let detail = format!("{}: through {proxy}: {}", url.origin, proxy::TunnelError::Unauthorized);
                Err(UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail })
            }
        }
    }
}
