//! Requests on the wire: two pools, so that a connection made to the upstream's own (perhaps private) host is never reused for
//! somewhere a redirect points; deadlines to headers; redirects, followed here and never with credentials to another origin.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, RANGE, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::meaning::Refused;
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
use crate::upstream::limits::breaker::Breaker;
use crate::upstream::limits::host_breaker::{HostBreaker, busy_wait};
use crate::upstream::limits::questions::Place;
use crate::upstream::limits::redirect_targets::RedirectTargets;
use crate::upstream::limits::too_many_requests::retry_after;
use crate::upstream::{UnavailableReason, UpstreamError};

const HEADERS_TIMEOUT: Duration = Duration::from_secs(20);
/// Of an answer that is not content.
const ERROR_BODY_BYTES_MAX: usize = 64 * KIB as usize;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(5);
const AGENT: &str = concat!("larder/", env!("CARGO_PKG_VERSION"));

/// The way to one upstream and to where it points.
pub struct Wire {
    pub origin: Origin,
    pub metrics: Arc<UpstreamMetrics>,
    /// Whether the upstream's own host is asked.
    pub host: HostBreaker,
    redirect_targets: RedirectTargets,
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

/// The last hop's answer.
pub struct Answer {
    pub response: Response<Incoming>,
    pub url: Url,
    pub redirected: bool,
    pub(super) deadline: Instant,
    /// Until its body is read, or it is dropped, its question counts as under way.
    #[expect(dead_code, reason = "holding it is all it is for")]
    pub(super) place: Option<Place>,
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
        let (origin, own_metrics) = (Origin::from(url), Arc::clone(metrics.upstream(&config.name)));
        Ok(Wire {
            host: HostBreaker::new(origin.host.clone(), origin.to_string(), Arc::clone(&own_metrics), Arc::clone(&rng)),
            redirect_targets: RedirectTargets::new(config.name.as_str().into(), rng),
            origin,
            metrics: own_metrics,
            own: pool(own, Reach::Anywhere),
            elsewhere: pool(elsewhere, Reach::Global(allowed)),
        })
    }

    /// Asks, and follows nothing.
    pub async fn ask_here(&self, outgoing: &Outgoing<'_>) -> Result<Answer, UpstreamError> {
        let url = outgoing.url.clone();
        let response = self.send(outgoing, &url).await?;
        Ok(Answer { response, url, redirected: false, deadline: outgoing.deadline, place: None })
    }

    /// What connects to a host when it is asked.
    pub fn connector(&self, origin: &Origin) -> &Connector {
        let pool = if *origin == self.origin { &self.own } else { &self.elsewhere };
        &pool.connector
    }

    /// The breaker of a host that a question is redirected to. A token server's limit is not a host's but a credential's.
    fn redirect_target(&self, kind: UpstreamKind, url: &Url) -> Option<(String, Arc<Breaker>)> {
        if url.origin == self.origin || kind == UpstreamKind::Token {
            return None;
        }
        let origin = url.origin.to_string();
        let breaker = self.redirect_targets.breaker(&origin);
        Some((origin, breaker))
    }

    pub(super) async fn send(&self, outgoing: &Outgoing<'_>, url: &Url) -> Result<Response<Incoming>, UpstreamError> {
        let request = outgoing.request(url)?;
        let pool = if url.origin == self.origin { &self.own } else { &self.elsewhere };
        let begun = Instant::now();
        let target = self.redirect_target(outgoing.kind, url);
        let _permit = target.as_ref().map(|(_, breaker)| breaker.enter(begun).map_err(|open| open.why)).transpose()?;
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
        if url.origin == self.origin {
            self.host.observe(outgoing.kind, begun, result.as_ref().map(|response| (response.status(), response.headers())));
        }
        if status.is_some_and(|status| status < 400) {
            let Timestamp(millis) = Clock::System.now();
            self.metrics.last_success.set(i64::try_from(millis / 1000).unwrap_or(i64::MAX));
        }
        if let (Some((origin, _)), Ok(response)) = (&target, &result) {
            self.redirect_targets.observe(origin, begun, response.status(), response.headers())?;
        }
        result
    }
}

impl Outgoing<'_> {
    /// The request for one hop. Nothing of a client's own request is in it.
    fn request(&self, url: &Url) -> Result<Request<Full<Bytes>>, UpstreamError> {
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
        // The only place where credentials meet a request: they go to the origin they were meant for and to no other.
        if let Some(authorization) = self.authorization.as_ref().filter(|_| url.origin == self.url.origin) {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        Ok(request)
    }
}

impl Answer {
    /// The same, that keeps its question's place.
    pub fn holding(self, place: Option<Place>) -> Answer {
        Answer { place, ..self }
    }

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
        let now = Clock::System.now();
        let (retry_after, busy_wait) = (retry_after(self.headers(), now), busy_wait(self.status(), self.headers(), now));
        let from = self.url.to_string();
        let body = self.beginning().await;
        judge(&Refused { status, retry_after, busy_wait, body: &body, from: &from })
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
