//! A pool of connections: to hosts directly, or by way of a proxy, whose password no host sees.

use std::error::Error as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::PROXY_AUTHORIZATION;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;

use super::url::Url;
use crate::oci::KIB;
use crate::upstream::connect::connector::Connector;
use crate::upstream::connect::proxy::{self, Proxy};
use crate::upstream::{UnavailableReason, UpstreamError};

/// Shorter than nginx's and the cloud balancers' keep-alive (75 s, 60 s), so that we rarely use a connection they
/// just closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_PER_HOST_MAX: usize = 32;
const BUFFER_BYTES_MAX: usize = 64 * KIB as usize;

type HttpClient = Client<Connector, Full<Bytes>>;

/// Connections that are trusted alike.
pub struct Pool {
    pub connector: Connector,
    /// Replaced when one of its connections breaks: what was idle beside it broke with it, most likely.
    client: Mutex<Arc<HttpClient>>,
    proxy: Option<Arc<Proxy>>,
}

impl Pool {
    pub fn new(connector: Connector) -> Pool {
        let proxy = connector.proxy.clone();
        let client = Mutex::new(Arc::new(client(&connector)));
        Pool { connector, client, proxy }
    }

    /// Sends a request, and once more on a fresh connection when nothing acknowledged it: a NAT that restarted, a
    /// host that is another one now, forgets connections without a word (RFC 9110 §9.2.2). A host that acknowledges
    /// and is slow is not asked twice.
    pub async fn request(&self, mut request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        if let Some(authorization) = self.proxy.as_ref().and_then(|proxy| proxy.authorization(request.uri())) {
            let authorization = authorization.clone();
            request.headers_mut().insert(PROXY_AUTHORIZATION, authorization);
        }
        let again = Some(request.clone()).filter(|request| request.method().is_safe());
        let client = Arc::clone(&*self.client.lock());
        let result = client.request(request).await;
        let Some(error) = result.as_ref().err().filter(|error| !error.is_connect()) else { return result };
        let cause = io_error(error);
        if !cause.is_some_and(|kind| is_unacknowledged(kind) || is_reset(kind)) {
            return result;
        }
        let fresh = self.without_idle_connections_of(&client);
        match again.filter(|_| cause.is_some_and(is_unacknowledged)) {
            Some(again) => fresh.request(again).await,
            None => result,
        }
    }

    /// The client that takes the place of this one. Requests under way keep theirs.
    fn without_idle_connections_of(&self, broken: &Arc<HttpClient>) -> Arc<HttpClient> {
        let mut current = self.client.lock();
        if Arc::ptr_eq(&current, broken) {
            *current = Arc::new(client(&self.connector));
        }
        Arc::clone(&current)
    }

    /// The answer, unless it is the proxy's own refusal.
    pub fn checked(&self, response: Response<Incoming>, url: &Url) -> Result<Response<Incoming>, UpstreamError> {
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

fn client(connector: &Connector) -> HttpClient {
    Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .http1_max_buf_size(BUFFER_BYTES_MAX)
        .build(connector.clone())
}

/// What the system said of the connection.
fn io_error(error: &Error) -> Option<io::ErrorKind> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        source = cause.source();
    }
    None
}

/// The system gave the connection up because its peer acknowledged nothing: see the seam's `USER_TIMEOUT`. Where a router
/// said before that there is no way, that is the error.
fn is_unacknowledged(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable)
}

/// The peer, or a NAT in between, knows nothing of the connection.
fn is_reset(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}
