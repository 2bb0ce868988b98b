//! What operators and orchestrators ask: metrics, health, a line of status. Read-only, and no part of the registry's protocol.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use super::route::Probe;
use crate::metrics::Metrics;
use crate::oci::{ErrorCode, error_body};
use crate::shutdown::Readiness;

/// Answers the admin listener.
#[derive(Clone)]
pub struct Admin {
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    /// What is wrong although requests are answered.
    pub degraded: Degraded,
}

/// One line for people.
pub type Degraded = Arc<dyn Fn() -> Option<String> + Send + Sync>;

impl Admin {
    pub fn answer(&self, request: &Request<()>) -> Response<Bytes> {
        let path = request.uri().path();
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        match path {
            "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", self.metrics.encode()),
            "/livez" | "/healthz" => probe(Probe::Live, &self.readiness),
            "/readyz" => match (self.readiness.check(), (self.degraded)()) {
                (Ok(()), Some(why)) => text(StatusCode::OK, format!("degraded: {why}\n")),
                _ => probe(Probe::Ready, &self.readiness),
            },
            "/" => text(StatusCode::OK, self.status()),
            _ => error(StatusCode::NOT_FOUND, "the admin listener has /metrics, /livez, /readyz and /"),
        }
    }

    fn status(&self) -> String {
        let readiness = match (self.readiness.check(), (self.degraded)()) {
            (Err(reason), _) => reason.to_owned(),
            (Ok(()), Some(why)) => format!("degraded, {why}"),
            (Ok(()), None) => "ready".to_owned(),
        };
        let (connections, requests) = (self.metrics.connections.get(), self.metrics.requests_in_flight.get());
        let (size, limit) = (self.metrics.cache_size.get(), self.metrics.cache_limit.get());
        format!(
            "larder {}: {readiness}\nconnections {connections}, requests in flight {requests}\ncache {size} of {limit} bytes\nsee /metrics\n",
            env!("CARGO_PKG_VERSION")
        )
    }
}

/// The health paths, here and on the data port; without authentication, so they say no more than this.
pub fn probe(probe: Probe, readiness: &Readiness) -> Response<Bytes> {
    match (probe, readiness.check()) {
        (Probe::Home | Probe::Live, _) | (Probe::Ready, Ok(())) => text(StatusCode::OK, "ok\n"),
        (Probe::Ready, Err(reason)) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn error(status: StatusCode, message: &str) -> Response<Bytes> {
    respond(status, "application/json", error_body(ErrorCode::Unsupported, message))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Bytes> {
    respond(status, "text/plain; charset=utf-8", body)
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    // Set here, since a HEAD's answer has it without the body.
    let length = response.body().len().into();
    response.headers_mut().insert(CONTENT_LENGTH, length);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio_util::sync::CancellationToken;

    fn ask(admin: &Admin, method: Method, path: &str) -> (u16, String, String) {
        let request = Request::builder().method(method).uri(path).body(()).unwrap();
        let response = admin.answer(&request);
        let content_type = response.headers()[CONTENT_TYPE].to_str().unwrap().to_owned();
        (response.status().as_u16(), content_type, String::from_utf8(response.into_body().to_vec()).unwrap())
    }

    #[test]
    fn an_operator_s_questions_are_answered() {
        let stop = CancellationToken::new();
        let admin = Admin {
            metrics: Arc::new(Metrics::new(["docker.io"])),
            readiness: Readiness::starting(stop.clone()),
            degraded: Arc::new(|| None),
        };
        let get = |path| ask(&admin, Method::GET, path);

        assert_eq!((get("/livez").0, get("/healthz").0, get("/readyz").0), (200, 200, 503));
        assert!(get("/readyz").2.contains("starting") && get("/").2.contains("starting"));
        admin.readiness.ready();
        assert_eq!((get("/readyz").0, get("/readyz").2.as_str()), (200, "ok\n"));
        assert!(get("/").2.contains(": ready\n"));
        stop.cancel();
        assert_eq!((get("/livez").0, get("/readyz").0, get("/readyz").2.as_str()), (200, 503, "draining\n"));

        let (status, content_type, body) = get("/metrics");
        assert_eq!((status, content_type.as_str()), (200, "text/plain; version=0.0.4; charset=utf-8"));
        assert!(body.contains("larder_task_panics_total 0\n"));
    }

    #[test]
    fn everything_else_is_refused_in_json() {
        let admin = Admin {
            metrics: Arc::new(Metrics::new(["docker.io"])),
            readiness: Readiness::starting(CancellationToken::new()),
            degraded: Arc::new(|| None),
        };
        for (method, path, status) in [(Method::GET, "/v2/", 404), (Method::GET, "/debug", 404), (Method::POST, "/metrics", 405)] {
            let (answered, content_type, body) = ask(&admin, method, path);
            assert_eq!((answered, content_type.as_str()), (status, "application/json"));
            assert!(body.contains("UNSUPPORTED"), "{body}");
        }
    }
}
