//! Requests on the wire: two pools, so that a connection made to the upstream's own (perhaps private) host is never reused for
//! somewhere a redirect points; deadlines to headers. What each hop may carry; which hops there are is [`super::redirect`]'s.

use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::meaning::{Refused, retry_after};
use super::pool::Pool;
use super::url::{Origin, Url};
use crate::clock::{Clock, Timestamp};
use crate::config::{BaseUrl, UpstreamConfig};
use crate::labels::UpstreamKind;
use crate::metrics::{Metrics, UpstreamMetrics};
use crate::oci::KIB;
use crate::rng::Rng;
use crate::upstream::call::Exchange;
use crate::upstream::connect::connector::{Connector, Reach};
use crate::upstream::connect::network::Network;
use crate::upstream::connect::proxy::Proxy;
use crate::upstream::connect::tls::{self, SetupError};
use crate::upstream::limits::breaker::{Backoff, Rest};
use crate::upstream::{UnavailableReason, UpstreamError};

const HEADERS_TIMEOUT: Duration = Duration::from_secs(20);
/// Of an answer that is not content.
const ERROR_BODY_BYTES_MAX: usize = 64 * KIB as usize;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
/// The first rest of a host that is down, and the longest.
const DOWN: Backoff = Backoff { first: Duration::from_millis(500), max: Duration::from_secs(15) };
const SILENCE_MIN: Duration = Duration::from_secs(4);
const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// The way to one upstream and to where it points.
pub struct Wire {
    pub origin: Origin,
    pub metrics: Arc<UpstreamMetrics>,
    /// Whether the host is to be left alone, being down or at its limit.
    pub health: Rest,
    is_resting: AtomicBool,
    rng: Arc<Rng>,
    own: Pool,
    elsewhere: Pool,
}

/// One question, as it goes over every hop.
pub struct Outgoing<'a> {
    pub kind: UpstreamKind,
    pub method: Method,
    pub url: Url,
    pub accept: Option<&'static str>,
    pub range: Option<String>,
    pub authorization: Option<HeaderValue>,
    /// The body of a POST.
    pub form: Option<Form>,
    pub deadline: Instant,
    pub exchange: Option<&'a Exchange>,
}

/// `application/x-www-form-urlencoded`. It may hold a token, so it has no Debug.
#[derive(Clone)]
pub struct Form(pub Bytes);

/// One hop of a question's way, and what it may carry. Whoever answers elsewhere chooses where the way goes on: also back, to a path
/// of its choice at the host that the operator trusts. So what is bound to an origin stays away from the first hop elsewhere on.
#[derive(Clone)]
pub struct Hop {
    pub url: Url,
    /// This hop, or one before it, is at another origin than the first: no credential.
    pub has_left: bool,
    /// All hops so far are at the upstream's own origin: only then its pool, with private addresses, the client certificate and
    /// `insecure_skip_verify`.
    is_own: bool,
}

/// The last hop's answer.
pub struct Answer {
    pub response: Response<Incoming>,
    pub url: Url,
    pub redirected: bool,
    /// As [`Hop::has_left`].
    pub has_left: bool,
    pub(super) deadline: Instant,
}

impl Wire {
    pub fn new(
        config: &UpstreamConfig,
        url: &BaseUrl,
        network: &Arc<Network>,
        metrics: &Arc<Metrics>,
        rng: Arc<Rng>,
    ) -> Result<Wire, SetupError> {
        let (own, elsewhere) = tls::set_up(config)?;
        let proxy = Proxy::of(config).map(Arc::new);
        let allowed = config.allow_private_addresses.as_slice().into();
        let pool = |tls, reach| {
            let (network, proxy, metrics) = (Arc::clone(network), proxy.clone(), Arc::clone(metrics));
            Pool::new(Connector { network, tls, reach, proxy, metrics })
        };
        Ok(Wire {
            origin: Origin::from(url),
            metrics: Arc::clone(metrics.upstream(&config.name)),
            health: Rest::default(),
            is_resting: AtomicBool::new(false),
            rng,
            own: pool(own, Reach::Anywhere),
            elsewhere: pool(elsewhere, Reach::Global(allowed)),
        })
    }

    /// Asks, and follows nothing.
    pub async fn ask_here(&self, outgoing: &Outgoing<'_>) -> Result<Answer, UpstreamError> {
        self.send(outgoing, &self.first_hop(outgoing)).await
    }

    pub(super) fn first_hop(&self, outgoing: &Outgoing<'_>) -> Hop {
        Hop { url: outgoing.url.clone(), has_left: false, is_own: outgoing.url.origin == self.origin }
    }

    /// What makes the connections to an origin.
    pub fn connector(&self, origin: &Origin) -> &Connector {
        let pool = if *origin == self.origin { &self.own } else { &self.elsewhere };
        &pool.connector
    }

    pub(super) async fn send(&self, outgoing: &Outgoing<'_>, hop: &Hop) -> Result<Answer, UpstreamError> {
        let url = &hop.url;
        let request = outgoing.request(hop)?;
        let pool = if hop.is_own { &self.own } else { &self.elsewhere };
        let begun = Instant::now();
        let deadline = outgoing.deadline.min(begun + HEADERS_TIMEOUT);
        let result = match tokio::time::timeout_at(deadline, pool.request(request)).await {
            Ok(result) => result.map_err(|error| meaning(&error, url)).and_then(|response| pool.heard(response, url)),
            Err(_) => Err(UpstreamError::TimedOut { detail: format!("no headers from {url}") }),
        };
        let status = result.as_ref().ok().map(|response| response.status().as_u16());
        self.metrics.asked(outgoing.kind, status, begun.elapsed());
        if let Some(exchange) = outgoing.exchange {
            exchange.asked(status, begun.elapsed());
        }
        // Elsewhere's choice of a path, met without the own pool's rights, says nothing of the own host.
        if hop.is_own {
            self.tell(outgoing.kind, begun, &result);
        }
        if status.is_some_and(|status| status < 400) {
            let Timestamp(millis) = Clock::System.now();
            self.metrics.last_success.set(i64::try_from(millis / 1000).unwrap_or(i64::MAX));
        }
        let redirected = *url != outgoing.url;
        result.map(|response| Answer { response, url: url.clone(), redirected, has_left: hop.has_left, deadline: outgoing.deadline })
    }
}

/// Whether this host is well.
impl Wire {
    /// Draws the conclusion from one question to the upstream's own host.
    fn tell(&self, kind: UpstreamKind, begun: Instant, result: &Result<Response<Incoming>, UpstreamError>) {
        let now = Instant::now();
        let fault = match result {
            Ok(response) => match response.status().as_u16() {
                // A limit is judged by whoever reads the answer; one bad image is no outage.
                429 | 500 => return,
                // A token is not yet the answer of whoever probes for one.
                _ if kind == UpstreamKind::Token && response.status().as_u16() < 500 => return,
                502..=504 => broken(format!("{} answered {}", self.origin, response.status().as_u16())),
                _ => {
                    if self.health.succeeded(begun) {
                        tracing::info!(upstream = self.metrics.name(), host = self.origin.host, "upstream answers again");
                    }
                    return self.resting(false);
                }
            },
            // Somebody else's deadline, soon after the question was asked, says nothing.
            Err(UpstreamError::TimedOut { .. }) if now - begun < SILENCE_MIN => return,
            Err(error) if error.is_transient() => error.clone(),
            Err(_) => return,
        };
        if self.health.failed(begun, now, &fault, DOWN, |rest| self.rng.jitter(rest)) {
            tracing::warn!(upstream = self.metrics.name(), host = self.origin.host, why = %fault, "upstream is down; it is left alone but for probes");
            self.resting(true);
        }
    }

    /// The host has had enough questions. Returns how long it is to rest, and whether that is news.
    pub fn limited(
        &self,
        begun: Instant,
        now: Instant,
        why: &UpstreamError,
        asked: Option<Duration>,
        backoff: Backoff,
        jitter: impl Fn(Duration) -> Duration,
    ) -> (Duration, bool) {
        let rest = self.health.begin(begun, now, why, asked, backoff, jitter);
        self.resting(true);
        rest
    }

    fn resting(&self, resting: bool) {
        if self.is_resting.swap(resting, Ordering::Relaxed) != resting {
            self.metrics.circuit_open.add(if resting { 1 } else { -1 });
        }
    }
}

impl Hop {
    /// Where a redirect leads from here.
    pub fn next(&self, url: Url) -> Hop {
        let has_left = self.has_left || url.origin != self.url.origin;
        Hop { url, has_left, is_own: self.is_own && !has_left }
    }
}

impl Outgoing<'_> {
    /// The request for one hop. Nothing of a client's own request is in it.
    fn request(&self, hop: &Hop) -> Result<Request<Full<Bytes>>, UpstreamError> {
        let url = &hop.url;
        let malformed = || UpstreamError::Corrupt { detail: format!("{url} is not a URL that can be asked") };
        let body = self.form.as_ref().map(|form| form.0.clone());
        let mut request = Request::new(Full::new(body.unwrap_or_default()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = url.uri().map_err(|_| malformed())?;
        let headers = request.headers_mut();
        headers.insert(USER_AGENT, HeaderValue::from_static(AGENT));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        if let Some(accept) = self.accept {
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
        }
        if self.form.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        }
        if let Some(range) = &self.range {
            headers.insert(RANGE, HeaderValue::try_from(range).map_err(|_| malformed())?);
        }
        // The only place where credentials meet a request: they go to the origin they were meant for and to no other, and there to
        // no path that another origin chose.
        if let Some(authorization) = self.authorization.as_ref().filter(|_| !hop.has_left) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

impl Answer {
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header's text, where it is text.
    pub fn header(&self, name: impl http::header::AsHeaderName) -> Option<&str> {
        self.headers().get(name).and_then(|value| value.to_str().ok())
    }

    /// Reads a body that nobody needs, so that the connection can be used again. Aside, as some announce a length they never send.
    pub fn discard(self) {
        tokio::spawn(async move { drop(self.beginning().await) });
    }

    /// The body of an answer that is not content, as far as it is small and comes soon; else nothing.
    async fn beginning(self) -> Bytes {
        let deadline = self.deadline.min(Instant::now() + ERROR_BODY_TIMEOUT);
        let body = Limited::new(self.response.into_body(), ERROR_BODY_BYTES_MAX).collect();
        match tokio::time::timeout_at(deadline, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) | Err(_) => Bytes::new(),
        }
    }

    /// All of a small body.
    pub async fn body(self, limit: usize) -> Result<Bytes, UpstreamError> {
        let url = self.url;
        let body = Limited::new(self.response.into_body(), limit).collect();
        match tokio::time::timeout_at(self.deadline, body).await {
            Ok(Ok(body)) => Ok(body.to_bytes()),
            Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
                Err(UpstreamError::Corrupt { detail: format!("{url} sent more than {limit} bytes") })
            }
            Ok(Err(_)) => Err(broken(format!("{url} broke off its answer"))),
            Err(_) => Err(UpstreamError::TimedOut { detail: format!("{url} did not finish its answer") }),
        }
    }

    /// Reads an answer that is no success, and hands it to `judge`.
    pub async fn refused<T>(self, judge: impl FnOnce(&Refused<'_>) -> T) -> T {
        let status = self.status().as_u16();
        let retry_after = self.header(http::header::RETRY_AFTER).and_then(|value| {
            let Timestamp(millis) = Clock::System.now();
            retry_after(value, std::time::UNIX_EPOCH + Duration::from_millis(millis))
        });
        let from = self.url.to_string();
        let body = self.beginning().await;
        judge(&Refused { status, retry_after, body: &body, from: &from })
    }
}

pub fn broken(detail: String) -> UpstreamError {
    UpstreamError::Unavailable { reason: UnavailableReason::Broken, detail }
}

/// What hyper's error means: our connector's own word, an answer that is not HTTP, or a connection that broke.
fn meaning(error: &hyper_util::client::legacy::Error, url: &Url) -> UpstreamError {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(ours) = cause.downcast_ref::<UpstreamError>() {
            return ours.clone();
        }
        if let Some(hyper) = cause.downcast_ref::<hyper::Error>()
            && hyper.is_parse()
        {
            return UpstreamError::Corrupt { detail: format!("{url} did not answer in HTTP: {hyper}") };
        }
        source = cause.source();
    }
    broken(format!("{url} broke the connection before its headers"))
}
