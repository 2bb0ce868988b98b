//! The daemon's end of `control.sock`.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::{Ask, Control, LINES_MAX, Line};
use crate::server::connection::{self, Peer};

/// Questions at a time.
const CONNECTIONS_MAX: usize = 16;
/// For a question to be asked.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// After a failed accept, which is most likely want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers at a socket.
pub struct Server {
    listener: UnixListener,
}

impl Server {
    /// # Errors
    /// When the runtime cannot watch the socket.
    pub fn new(listener: StdUnixListener) -> std::io::Result<Server> {
        Ok(Server { listener: UnixListener::from_std(listener)? })
    }

    /// Answers until `stop`, when what is under way is broken off, or until somebody has removed the socket's file.
    pub async fn run(self, control: Control, stop: CancellationToken) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // A socket in the file system has no addresses to tell.
        let nowhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
        let peer = Peer { client: nowhere, listener: nowhere, entry: 0 };
        let mut unheard = pin!(control.unheard());
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stop.cancelled() => return,
                () = &mut unheard => return,
            };
            let (Ok((stream, _)), Ok(place)) = (accepted, Arc::clone(&places).try_acquire_owned()) else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            let (control, stop) = (control.clone(), stop.clone());
            tokio::spawn(async move {
                let _place = place;
                let answer = |_, request| std::future::ready(answer(&control, &request));
                let serving = connection::serve(stream, HEAD_TIMEOUT, peer, answer, &stop);
                if let Some(Err(error)) = stop.run_until_cancelled(serving).await {
                    tracing::debug!(%error, "a control connection broke");
                }
            });
        }
    }
}

fn answer(control: &Control, request: &Request<()>) -> Response<Lines> {
    let (sender, lines) = mpsc::channel(LINES_MAX);
    let mut response = Response::new(Lines(lines));
    let uri = request.uri();
    match Ask::of(request.method(), uri.path(), uri.query()) {
        Some(ask) => drop(tokio::spawn(control.clone().run(ask, sender))),
        None => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            // The channel is empty.
            let _ = sender.try_send(Line::Failed("this daemon does not know what it was asked; is it of another version?".into()));
        }
    }
    response
}

/// A body of JSON lines, as they come.
struct Lines(mpsc::Receiver<Line>);

impl http_body::Body for Lines {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(context).map(|line| {
            let mut bytes = serde_json::to_vec(&line?).unwrap_or_default();
            bytes.push(b'\n');
            Some(Ok(Frame::data(bytes.into())))
        })
    }
}
