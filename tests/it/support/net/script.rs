//! A host of which one function answers every request, HTTP or not; for answers that no registry gives. Every request is recorded.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder::upstream::connect::Stream;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A request as the host saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The `Host` header.
    pub host: String,
    pub method: String,
    pub target: String,
    /// The request line and all headers.
    pub head: String,
    /// From 1, of the requests with this host, method and target.
    pub nth: usize,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().filter_map(|line| line.split_once(": ")).find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// What the host answers.
pub enum Reply {
    /// Bytes, and the connection stays open.
    Raw(String),
    /// Bytes, and the connection closes.
    Cut(String),
    /// Bytes after a while.
    Late(Duration, String),
}

pub fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Reply {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Reply::Raw(format!("HTTP/1.1 {status} Said\r\nContent-Length: {}\r\n{lines}\r\n{body}", body.len()))
}

/// To a HEAD: a length and no body.
pub fn head(status: u16, headers: &[(&str, &str)]) -> Reply {
    let lines: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    Reply::Raw(format!("HTTP/1.1 {status} Said\r\n{lines}\r\n"))
}

pub fn redirect(to: &str) -> Reply {
    answer(307, &[("Location", to)], "")
}

/// The host; clones are the same one. Under several names and addresses, it tells them apart by [`Seen::host`].
#[derive(Clone)]
pub struct Script {
    answer: Arc<dyn Fn(&Seen) -> Reply + Send + Sync>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Script {
    pub fn new(answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Script {
        Script { answer: Arc::new(answer), seen: Arc::default() }
    }

    /// `<method> <host><target>` of every request, in order.
    pub fn log(&self) -> Vec<String> {
        self.seen.lock().iter().map(|seen| format!("{} {}{}", seen.method, seen.host, seen.target)).collect()
    }

    /// The requests with this `Host`, in order.
    pub fn to(&self, host: &str) -> Vec<Seen> {
        self.seen.lock().iter().filter(|seen| seen.host == host).cloned().collect()
    }

    pub(super) async fn serve(self, mut stream: impl Stream) {
        // Whoever leaves in the middle knows why.
        let _ = self.requests(&mut stream).await;
    }

    async fn requests(&self, stream: &mut impl Stream) -> io::Result<()> {
        loop {
            match self.reply(read_head(stream).await?) {
                Reply::Raw(bytes) => stream.write_all(bytes.as_bytes()).await?,
                Reply::Cut(bytes) => {
                    stream.write_all(bytes.as_bytes()).await?;
                    return stream.shutdown().await;
                }
                Reply::Late(wait, bytes) => {
                    tokio::time::sleep(wait).await;
                    stream.write_all(bytes.as_bytes()).await?;
                }
            }
        }
    }

    fn reply(&self, head: String) -> Reply {
        let mut words = head.split([' ', '\r']);
        let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
        let mut seen = Seen { host: String::new(), method, target, head, nth: 0 };
        seen.host = seen.header("host").unwrap_or_default().to_owned();
        let mut all = self.seen.lock();
        let same = |other: &&Seen| (&other.host, &other.method, &other.target) == (&seen.host, &seen.method, &seen.target);
        seen.nth = 1 + all.iter().filter(same).count();
        all.push(seen.clone());
        drop(all);
        (self.answer)(&seen)
    }
}

/// The line and headers of the next request.
pub(super) async fn read_head(stream: &mut impl Stream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
