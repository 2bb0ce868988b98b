//! A container registry for tests. Unscripted it behaves like Distribution (its Accept rules, errors, ranges and challenges);
//! scripted it misbehaves exactly as told. One instance also plays the token server and the CDN of its redirects, so that
//! one list of requests shows the whole conversation. It serves any byte stream.
//!
//! ```ignore
//! let image = registry.push_image("library/alpine", "3.20", &[300_000], 1);
//! registry.when(get().blob()).nth(1).then(Fault::CutAt(100_000));
//! assert_eq!(registry.count(get().blob().of(image.layers[0].digest)), 2);
//! ```

pub mod answer;
mod auth;
mod content;
mod distribution;
mod fault;
mod listing;
mod manners;
mod matcher;
mod signed;
mod wire;

use parking_lot::{Mutex, MutexGuard};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use larder::oci::{Algorithm, Digest};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::sync::watch;
use tokio::time::timeout;

pub use auth::Bearer;
pub use content::{Blob, Content, Image};
pub use distribution::{accepts, query_pairs, query_value, query_values};
pub use fault::{Canned, Fault, Latch};
pub use listing::{Referrers, TagPages};
pub use manners::Manners;
pub use matcher::{Kind, Matcher, any, get, head, post};
pub use signed::Redirects;

use answer::Answer;
use auth::Auth;
use fault::Rule;
use wire::{Cut, ScriptedBody, Wire};

/// How long a test waits for a request that should come, in tokio's time.
const WAIT: Duration = Duration::from_secs(60);
/// Bytes on their way between the two ends of a connection in memory.
pub const PIPE_BYTES: usize = 64 * 1024;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// The `Host` header.
    pub host: String,
    pub path: String,
    /// Byte for byte, without the question mark; empty if there was none.
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
    pub kind: Kind,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    pub fn authorization(&self) -> Option<&str> {
        self.header("authorization")
    }

    /// `/v2/<repository>/<what>/<reference>`, perhaps below a path of the server's own, read from the right end.
    pub fn parts(&self) -> Option<(&str, &str, &str)> {
        let (_, rest) = self.path.split_once("/v2/")?;
        let (front, reference) = rest.rsplit_once('/')?;
        let (repository, what) = front.rsplit_once('/')?;
        Some((repository, what, reference))
    }

    pub fn repository(&self) -> Option<&str> {
        self.parts().map(|(repository, ..)| repository)
    }
}

/// A registry; clones are the same registry.
#[derive(Clone, Default)]
pub struct FakeRegistry {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrivals: watch::Sender<usize>,
    body_bytes: Arc<AtomicU64>,
}

/// All of a registry.
#[derive(Default)]
pub struct State {
    pub content: Content,
    rules: Vec<Rule>,
    auth: Auth,
    pub redirects: Redirects,
    listings: listing::Listings,
    requests: Vec<Request>,
    /// Where it is another registry than Distribution.
    manners: Option<Arc<Mutex<dyn Manners>>>,
    /// What no honest client would have sent.
    violations: Vec<String>,
}

impl FakeRegistry {
    pub fn new() -> FakeRegistry {
        FakeRegistry::default()
    }

    /// Answers requests on one connection until either end closes it.
    pub async fn serve(self, stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let cut = Cut::default();
        let io = TokioIo::new(Wire::new(stream, cut.clone()));
        let service = service_fn(|request| self.clone().handle(request, cut.clone()));
        // A small buffer, so that what the registry has sent is about what the other side could have read.
        let connection = hyper::server::conn::http1::Builder::new().max_buf_size(PIPE_BYTES).serve_connection(io, service);
        tokio::select! {
            _ = connection => {}
            () = cut.happened() => {}
        }
    }

    /// The client's end of a new connection in memory.
    pub fn connect(&self) -> DuplexStream {
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        tokio::spawn(self.clone().serve(far));
        near
    }

    /// Serves a port of the loopback address until the runtime ends.
    pub async fn listen_tcp(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port has an address");
        let registry = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(registry.clone().serve(stream));
            }
        });
        address
    }

    async fn handle(self, request: http::Request<Incoming>, cut: Cut) -> Result<http::Response<ScriptedBody>, hyper::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let request = Request::read(head, body);
        let faults = self.record(&request);
        for fault in &faults {
            fault.before_headers(&cut).await;
        }
        let mut answer = self.answer(&request, &faults);
        for fault in &faults {
            fault.change(&mut answer);
        }
        Ok(answer.into_response(&request.method, cut, self.shared.body_bytes.clone()))
    }

    fn answer(&self, request: &Request, faults: &[Fault]) -> Answer {
        if let Some(canned) = faults.iter().find_map(Fault::canned) {
            return canned.clone().into();
        }
        let mut honest = request.clone();
        if faults.iter().any(|fault| matches!(fault, Fault::IgnoreRange)) {
            honest.headers.remove("range");
        }
        self.state().answer(&honest)
    }

    /// Notes a request and says what was scripted for it.
    fn record(&self, request: &Request) -> Vec<Fault> {
        let mut state = self.state();
        state.requests.push(request.clone());
        let faults = state.rules.iter_mut().filter_map(|rule| rule.judge(request)).collect();
        let count = state.requests.len();
        drop(state);
        self.shared.arrivals.send_replace(count);
        faults
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }
}

impl Request {
    fn read(head: http::request::Parts, body: Bytes) -> Request {
        let path = head.uri.path().to_owned();
        let host = head.headers.get("host").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
        let query = head.uri.query().unwrap_or_default().to_owned();
        let kind = Kind::of(&path);
        Request { method: head.method, host, path, query, headers: head.headers, body, kind }
    }
}

/// What a test holds against the registry afterwards.
impl FakeRegistry {
    /// Every request so far, in the order of arrival.
    pub fn requests(&self) -> Vec<Request> {
        self.state().requests.clone()
    }

    /// The requests that match, in the order of arrival.
    pub fn seen(&self, matcher: Matcher) -> Vec<Request> {
        self.state().requests.iter().filter(|request| matcher.matches(request)).cloned().collect()
    }

    pub fn count(&self, matcher: Matcher) -> usize {
        self.state().requests.iter().filter(|request| matcher.matches(request)).count()
    }

    /// Bytes of bodies handed to connections so far, which may be up to a buffer ahead of the reader.
    pub fn body_bytes_sent(&self) -> u64 {
        self.shared.body_bytes.load(Ordering::SeqCst)
    }

    /// Returns once `n` requests that match have arrived. Panics after a minute of tokio's time.
    pub async fn wait_for(&self, matcher: Matcher, n: usize) {
        self.wait_for_within(WAIT, matcher, n).await;
    }

    /// As [`FakeRegistry::wait_for`], for a test in which the request may be hours away.
    pub async fn wait_for_within(&self, limit: Duration, matcher: Matcher, n: usize) {
        let mut arrivals = self.shared.arrivals.subscribe();
        let enough = arrivals.wait_for(|_| self.count(matcher.clone()) >= n);
        if timeout(limit, enough).await.is_err() {
            panic!("waited for {n} × {matcher:?}; came: {:#?}", self.requests());
        }
    }

    /// Forgets the requests so far, so that counts begin anew.
    pub fn forget_requests(&self) {
        self.state().requests.clear();
    }
}

/// What a test scripts.
impl FakeRegistry {
    /// Begins a rule: `when(get().blob()).nth(1).then(Fault::Stall)`. All rules that match a request apply to it, in order.
    pub fn when(&self, matcher: Matcher) -> When<'_> {
        When { registry: self, matcher, first: 1, last: usize::MAX }
    }

    /// Drops all rules.
    pub fn behave(&self) {
        self.state().rules.clear();
    }
}

/// A rule in the making.
#[must_use = "a rule begins to hold with `then`"]
pub struct When<'a> {
    registry: &'a FakeRegistry,
    matcher: Matcher,
    first: usize,
    last: usize,
}

impl<'a> When<'a> {
    /// Only the nth request that matches, counted from 1 and from now on.
    pub fn nth(self, n: usize) -> When<'a> {
        When { first: n, last: n, ..self }
    }

    /// Only the first n requests that match.
    pub fn first(self, n: usize) -> When<'a> {
        When { first: 1, last: n, ..self }
    }

    /// All but the first n - 1 requests that match.
    pub fn from(self, n: usize) -> When<'a> {
        When { first: n, last: usize::MAX, ..self }
    }

    pub fn then(self, fault: impl Into<Fault>) {
        let rule = Rule::new(self.matcher, self.first..=self.last, fault.into());
        self.registry.state().rules.push(rule);
    }
}

/// What a test puts in.
impl FakeRegistry {
    pub fn push_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        self.push_blob_as(Algorithm::Sha256, repository, bytes)
    }

    pub fn push_blob_as(&self, algorithm: Algorithm, repository: &str, bytes: impl Into<Bytes>) -> Digest {
        self.state().content.push_blob(algorithm, repository, bytes.into()).digest
    }

    /// Any bytes as a manifest; `reference` is a tag, or nothing to push by digest alone.
    pub fn push_manifest(&self, repository: &str, tag: Option<&str>, media_type: &str, bytes: impl Into<Bytes>) -> Digest {
        self.push_manifest_as(Algorithm::Sha256, repository, tag, media_type, bytes)
    }

    pub fn push_manifest_as(
        &self,
        algorithm: Algorithm,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Digest {
        let bytes = bytes.into();
        let digest = Digest::of(algorithm, &bytes);
        self.state().content.push_manifest(repository, tag, media_type, digest, bytes);
        digest
    }

    /// An OCI image whose bytes follow from its arguments alone.
    pub fn push_image(&self, repository: &str, tag: &str, layer_sizes: &[usize], seed: u64) -> Image {
        self.push_image_as(Algorithm::Sha256, repository, tag, layer_sizes, seed)
    }

    pub fn push_image_as(&self, algorithm: Algorithm, repository: &str, tag: &str, layer_sizes: &[usize], seed: u64) -> Image {
        self.state().content.push_image(&content::OCI, algorithm, repository, tag, layer_sizes, seed)
    }

    /// The same with Docker's media types (schema 2).
    pub fn push_docker_image(&self, repository: &str, tag: &str, layer_sizes: &[usize], seed: u64) -> Image {
        self.state().content.push_image(&content::DOCKER, Algorithm::Sha256, repository, tag, layer_sizes, seed)
    }

    /// An OCI index of images for amd64, arm64, arm and so on, in this order.
    pub fn push_index(&self, repository: &str, tag: &str, images: &[Image]) -> Image {
        self.state().content.push_index(&content::OCI, repository, tag, images)
    }

    /// The same as a Docker manifest list.
    pub fn push_docker_list(&self, repository: &str, tag: &str, images: &[Image]) -> Image {
        self.state().content.push_index(&content::DOCKER, repository, tag, images)
    }

    /// Lets a tag name another manifest.
    pub fn move_tag(&self, repository: &str, tag: &str, to: Digest) {
        self.state().content.move_tag(repository, tag, to);
    }

    pub fn delete_tag(&self, repository: &str, tag: &str) {
        self.state().content.delete_tag(repository, tag);
    }

    pub fn delete_blob(&self, repository: &str, digest: Digest) {
        self.state().content.delete_blob(repository, digest);
    }

    pub fn delete_manifest(&self, repository: &str, digest: Digest) {
        self.state().content.delete_manifest(repository, digest);
    }
}

/// Who may come in, and where the bytes are.
impl FakeRegistry {
    pub fn open_to_all(&self) {
        self.state().auth = Auth::Open;
    }

    pub fn require_basic(&self, user: &str, password: &str) {
        self.state().auth = Auth::Basic { user: user.into(), password: password.into() };
    }

    pub fn require_bearer(&self, bearer: Bearer) {
        self.state().auth = Auth::Bearer(Box::new(bearer.into()));
    }

    /// All tokens handed out so far stop working.
    pub fn revoke_tokens(&self) {
        self.state().auth.revoke_tokens();
    }

    /// Requests to the token endpoint so far.
    pub fn token_requests(&self) -> usize {
        self.count(any().token())
    }

    /// Blobs are answered with 307 to a signed URL at `origin` (`http://cdn.test`), which this registry serves too.
    pub fn redirect_blobs(&self, origin: &str) {
        self.state().redirects.blobs = Some(origin.into());
    }

    pub fn redirect_manifests(&self, origin: &str) {
        self.state().redirects.manifests = Some(origin.into());
    }

    /// From now on a signed URL works this many times.
    pub fn signatures_last(&self, uses: usize) {
        self.state().redirects.uses = Some(uses);
    }

    /// All signed URLs handed out so far stop working.
    pub fn expire_signatures(&self) {
        self.state().redirects.expire();
    }
}
