//! A command's end of `control.sock`: asks the daemon that holds the cache directory, or, where none does, takes the lock and answers itself.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Request;
use http::header::HOST;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::print::Form;
use crate::config::Config;
use crate::control::{Answer, Ask, Control, LINES_MAX, Line, Parts};
use crate::exit::ExitError;
use crate::store;
use crate::world::{self, World};

/// A daemon that says nothing for so long is stuck.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a daemon that holds the directory may take to listen, and how often that is tried.
const START_MAX: Duration = Duration::from_secs(5);
const START_INTERVAL: Duration = Duration::from_millis(100);
/// How long the end of a command waits for work on the directory, where there is no daemon: as a stop does at least.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// Of a line: a list of a thousand repositories is some 200 KiB.
const LINE_BYTES_MAX: usize = 16 << 20;

/// Asks, shows how far it is on stderr, and prints what came of it.
///
/// # Errors
/// When nobody could answer, or what was found is bad.
pub fn run(config: &Config, ask: Ask, form: Form) -> Result<(), ExitError> {
    let answer = block_on(answer(config, ask, form))?;
    form.print(&answer)?;
    match answer {
        Answer::Verified(report) if report.is_bad() => {
            Err(ExitError::Failed("the cache is damaged; larder verify --repair puts the damage aside".into()))
        }
        _ => Ok(()),
    }
}

/// Runs a command to its end.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, ExitError>>) -> Result<T, ExitError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| ExitError::Failed(format!("cannot start the runtime: {error}")))?;
    runtime.block_on(work)
}

/// Asks whoever holds the cache directory.
///
/// # Errors
/// When nobody could answer.
pub async fn answer(config: &Config, ask: Ask, form: Form) -> Result<Answer, ExitError> {
    let until = Instant::now() + START_MAX;
    loop {
        match UnixStream::connect(store::control_path(&config.cache.path)).await {
            Ok(stream) => return over(stream, &ask, form).await,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {}
            Err(error) => return Err(ExitError::Failed(format!("{}: {error}", store::control_path(&config.cache.path).display()))),
        }
        match stopped(config, ask.clone(), form).await {
            // A daemon that is about to listen, or to be gone.
            Err(ExitError::CacheLocked(_)) if Instant::now() < until => tokio::time::sleep(START_INTERVAL).await,
            answered => return answered,
        }
    }
}

/// Over the daemon's socket.
async fn over(stream: UnixStream, ask: &Ask, form: Form) -> Result<Answer, ExitError> {
    let broken = |error: hyper::Error| ExitError::Failed(format!("the daemon's answer broke off: {error}"));
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection);
    let (method, target) = ask.request();
    let request = Request::builder().method(method).uri(target).header(HOST, "larder").body(Empty::<Bytes>::new());
    let request = request.map_err(|error| ExitError::Usage(error.to_string()))?;
    let silent = |_| ExitError::Failed(format!("the daemon has said nothing for {} s", SILENCE_MAX.as_secs()));
    let mut body = tokio::time::timeout(SILENCE_MAX, sender.send_request(request)).await.map_err(silent)?.map_err(broken)?.into_body();
    let mut heard = BytesMut::new();
    while let Some(frame) = tokio::time::timeout(SILENCE_MAX, body.frame()).await.map_err(silent)? {
        heard.extend_from_slice(frame.map_err(broken)?.data_ref().map_or(&[][..], Bytes::as_ref));
        while let Some(end) = heard.iter().position(|byte| *byte == b'\n') {
            let line = heard.split_to(end + 1);
            let line = serde_json::from_slice(&line)
                .map_err(|error| ExitError::Failed(format!("the daemon says what cannot be understood: {error}")))?;
            if let Some(answer) = hear(line, form)? {
                return Ok(answer);
            }
        }
        if heard.len() > LINE_BYTES_MAX {
            break;
        }
    }
    Err(ExitError::Failed("the daemon's answer broke off".into()))
}

/// In the daemon's place, which is not running.
async fn stopped(config: &Config, ask: Ask, form: Form) -> Result<Answer, ExitError> {
    let world = World::system();
    if !store::is_cache(&config.cache.path) {
        return Err(ExitError::CacheUnusable(format!(
            "{} is no cache directory; --config names another configuration",
            config.cache.path.display()
        )));
    }
    let metrics = world::metrics(config);
    let gate = world.gate.clone();
    let (store, mirror) = world::open_mirror(config, &world, &metrics)?;
    let (sender, mut lines) = mpsc::channel(LINES_MAX);
    let is_pull = matches!(ask, Ask::Pull { .. });
    let control = Control::new(Parts { store: Arc::clone(&store), mirror, gate: gate.clone(), metrics }, world.clock, None);
    let running = tokio::spawn(control.run(ask, sender));
    let mut answer = Err(ExitError::Failed("it ended without an answer".into()));
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            // Ends cleanly, so that what was downloaded need not be doubted at the next start.
            Ok(()) = tokio::signal::ctrl_c(), if is_pull => {
                running.abort();
                answer = Err(ExitError::Failed("interrupted; what is complete is kept, and half a download goes on the next time".into()));
                break;
            }
        };
        let Some(line) = line else { break };
        if let Some(heard) = hear(line, form).transpose() {
            answer = heard;
        }
    }
    let _ = running.await;
    // What was interrupted must not write on behind the last sync.
    let has_work_ended = store.end_work(END_TIMEOUT).await;
    let closed = tokio::task::spawn_blocking(move || store.close(has_work_ended)).await;
    closed.map_err(|error| ExitError::Failed(format!("the cache was not closed cleanly: {error}")))?;
    answer
}

fn hear(line: Line, form: Form) -> Result<Option<Answer>, ExitError> {
    match line {
        Line::Progress(progress) => {
            form.progress(&progress);
            Ok(None)
        }
        Line::Warming(progress) => {
            form.warming(&progress);
            Ok(None)
        }
        Line::Done(answer) => Ok(Some(answer)),
        Line::Failed(why) => Err(ExitError::Failed(why)),
        Line::Refused(why) => Err(ExitError::Usage(why)),
    }
}
