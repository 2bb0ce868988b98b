//! A client that sends what it is told and reads as slowly as it is told, over any stream. A broken body is an error that keeps what came.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// A small buffer, so that a client that does not read soon makes its server wait.
const BUFFER_BYTES: usize = 16 * 1024;

/// One connection. Requests go one after the other.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn over(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Client {
        let handshake = hyper::client::conn::http1::Builder::new().max_buf_size(BUFFER_BYTES).handshake(TokioIo::new(stream));
        let (sender, connection) = handshake.await.expect("HTTP/1.1 has no handshake that could fail");
        tokio::spawn(connection);
        Client { sender }
    }

    pub fn get(&mut self, path: &str) -> Ask<'_> {
        self.request(Method::GET, path)
    }

    pub fn head(&mut self, path: &str) -> Ask<'_> {
        self.request(Method::HEAD, path)
    }

    pub fn request(&mut self, method: Method, path: &str) -> Ask<'_> {
        let request = http::Request::builder().method(method).uri(path);
        Ask { client: self, request, host: "larder.test".into(), body: Bytes::new() }
    }

    /// The headers of a GET, and its body to be read at will.
    pub async fn open(&mut self, path: &str) -> Streaming {
        self.get(path).open().await
    }
}

/// A request in the making.
#[must_use = "nothing is sent before `send` or `open`"]
pub struct Ask<'a> {
    client: &'a mut Client,
    request: http::request::Builder,
    host: String,
    body: Bytes,
}

impl Ask<'_> {
    pub fn header(self, name: &str, value: &str) -> Self {
        Ask { request: self.request.header(name, value), ..self }
    }

    /// The `Host` header.
    pub fn host(self, host: &str) -> Self {
        Ask { host: host.into(), ..self }
    }

    /// What follows `bytes=`: `0-99`, `100-`, `-5`.
    pub fn range(self, range: &str) -> Self {
        self.header("range", &format!("bytes={range}"))
    }

    /// Accepts the four image manifest and index types, as every client in the field does.
    pub fn accept_manifests(self) -> Self {
        use larder::oci::MediaType;
        let types = [MediaType::OCI_INDEX, MediaType::OCI_MANIFEST, MediaType::DOCKER_LIST, MediaType::DOCKER_MANIFEST];
        self.header("accept", &types.join(", "))
    }

    pub fn basic(self, user: &str, password: &str) -> Self {
        use base64::Engine;
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
        self.header("authorization", &format!("Basic {pair}"))
    }

    pub fn body(self, body: impl Into<Bytes>) -> Self {
        Ask { body: body.into(), ..self }
    }

    /// The whole answer.
    pub async fn send(self) -> Reply {
        self.try_send().await.expect("an answer")
    }

    /// The whole answer, unless the connection broke before its headers.
    pub async fn try_send(self) -> Result<Reply, hyper::Error> {
        let streaming = self.try_open().await?;
        let (status, headers) = (streaming.status, streaming.headers.clone());
        Ok(Reply { status, headers, body: streaming.read_to_end().await })
    }

    pub async fn open(self) -> Streaming {
        self.try_open().await.expect("an answer")
    }

    pub async fn try_open(self) -> Result<Streaming, hyper::Error> {
        let request = self.request.header("host", self.host).body(Full::new(self.body)).expect("a request that can be written");
        self.client.sender.ready().await?;
        let (head, body) = self.client.sender.send_request(request).await?.into_parts();
        Ok(Streaming { status: head.status.as_u16(), headers: head.headers, body, ahead: BytesMut::new() })
    }
}

/// A whole answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Result<Bytes, BodyError>,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The body, which must have come whole.
    pub fn bytes(&self) -> &Bytes {
        self.body.as_ref().expect("a whole body")
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(self.bytes()).expect("a body in UTF-8")
    }

    /// The code of the first error in an error document.
    pub fn error_code(&self) -> Option<String> {
        let document: serde_json::Value = serde_json::from_slice(self.bytes()).ok()?;
        Some(document["errors"].get(0)?["code"].as_str()?.to_owned())
    }
}

/// A body that ended before its end.
#[derive(Debug)]
pub struct BodyError {
    /// What came before.
    pub received: Bytes,
    pub cause: String,
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the body broke after {} bytes: {}", self.received.len(), self.cause)
    }
}

/// An answer whose body is read at the test's pace. Dropped before its end, it closes the connection.
#[derive(Debug)]
pub struct Streaming {
    pub status: u16,
    pub headers: HeaderMap,
    body: Incoming,
    /// Came, but was not asked for yet: at most a frame.
    ahead: BytesMut,
}

impl Streaming {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The next n bytes, and not a frame more off the connection than they need.
    ///
    /// # Errors
    /// When the body breaks or ends before; the error has what came since the last read.
    pub async fn read_exactly(&mut self, n: usize) -> Result<Bytes, BodyError> {
        while self.ahead.len() < n {
            if !self.read_frame().await? {
                return Err(self.broken("it ended"));
            }
        }
        Ok(self.ahead.split_to(n).freeze())
    }

    /// The rest.
    ///
    /// # Errors
    /// When the body breaks.
    pub async fn read_to_end(mut self) -> Result<Bytes, BodyError> {
        while self.read_frame().await? {}
        Ok(self.ahead.freeze())
    }

    /// False at the end.
    async fn read_frame(&mut self) -> Result<bool, BodyError> {
        match self.body.frame().await {
            None => Ok(false),
            Some(Err(error)) => Err(self.broken(&error.to_string())),
            Some(Ok(frame)) => {
                self.ahead.extend_from_slice(frame.data_ref().map(Bytes::as_ref).unwrap_or_default());
                Ok(true)
            }
        }
    }

    fn broken(&mut self, cause: &str) -> BodyError {
        BodyError { received: self.ahead.split().freeze(), cause: cause.into() }
    }
}
