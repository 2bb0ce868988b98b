//! The bounded buffer between whoever logs and the one thread that writes.

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::io::{self, Write};
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Most bytes that wait for the log's reader; lines beyond it are dropped and counted.
const PENDING_BYTES_MAX: usize = 1024 * 1024;
/// How long the end of the process waits for the log's reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Takes lines; never waits for the disk or the terminal.
#[derive(Clone)]
pub struct LogWriter(Arc<Shared>);

struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
    dropped: IntCounter,
}

#[derive(Default)]
struct Pending {
    lines: Vec<u8>,
    /// The thread waits for lines. A line that finds it at work need not wake it.
    idle: bool,
    closing: bool,
    closed: bool,
}

/// Writes out what is pending, when dropped.
pub struct Flush(Arc<Shared>);

impl LogWriter {
    /// Starts the thread that writes to `sink`.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(sink: impl Write + Send + 'static, dropped: IntCounter) -> io::Result<(LogWriter, Flush)> {
        let shared = Arc::new(Shared { pending: Mutex::default(), changed: Condvar::new(), dropped });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("larder-log".into()).spawn(move || theirs.write_to(sink))?;
        Ok((LogWriter(Arc::clone(&shared)), Flush(shared)))
    }

    /// Appends one line, its newline included, or drops it whole.
    pub fn line(&self, line: &[u8]) {
        let mut pending = self.0.lock();
        if pending.closed || pending.lines.len() + line.len() > PENDING_BYTES_MAX {
            self.0.dropped.inc();
            return;
        }
        pending.lines.extend_from_slice(line);
        if pending.idle {
            pending.idle = false;
            self.0.changed.notify_all();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock()
    }

    /// Writes until closed, a buffer at a time: while one is being written, the other fills.
    fn write_to(&self, mut sink: impl Write) {
        let mut writing = Vec::new();
        loop {
            let mut pending = self.lock();
            while pending.lines.is_empty() && !pending.closing {
                pending.idle = true;
                self.changed.wait(&mut pending);
            }
            if pending.lines.is_empty() {
                pending.closed = true;
                self.changed.notify_all();
                return;
            }
            std::mem::swap(&mut writing, &mut pending.lines);
            drop(pending);
            // A log without a reader has nobody to tell.
            let _ = sink.write_all(&writing).and_then(|()| sink.flush());
            writing.clear();
        }
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let mut pending = self.0.lock();
        pending.closing = true;
        self.0.changed.notify_all();
        self.0.changed.wait_while_for(&mut pending, |pending| !pending.closed, FLUSH_TIMEOUT);
    }
}

/// For `tracing`, which writes each event as one piece.
impl Write for &LogWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        self.line(&printable(event));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for LogWriter {
    type Writer = &'a LogWriter;

    fn make_writer(&'a self) -> &'a LogWriter {
        self
    }
}

/// Escapes the control characters before the last newline: what a client or an upstream sent must not forge lines.
fn printable(event: &[u8]) -> std::borrow::Cow<'_, [u8]> {
    let text = event.strip_suffix(b"\n").unwrap_or(event);
    if !text.iter().any(u8::is_ascii_control) {
        return event.into();
    }
    let mut escaped = Vec::with_capacity(event.len() + 16);
    for byte in text {
        if byte.is_ascii_control() {
            escaped.extend(byte.escape_ascii());
        } else {
            escaped.push(*byte);
        }
    }
    escaped.push(b'\n');
    escaped.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// A sink that tells what it gets, and writes only when it is let.
    struct Reader {
        got: mpsc::Sender<Vec<u8>>,
        may_write: mpsc::Receiver<()>,
    }

    impl Write for Reader {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.got.send(bytes.to_vec()).unwrap();
            // When the test is done, so is the waiting.
            let _ = self.may_write.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow_log() -> (LogWriter, Flush, IntCounter, mpsc::Receiver<Vec<u8>>, mpsc::Sender<()>) {
        let (got, written) = mpsc::channel();
        let (permit, may_write) = mpsc::channel();
        let dropped = IntCounter::new("dropped", "lines").unwrap();
        let (writer, flush) = LogWriter::start(Reader { got, may_write }, dropped.clone()).unwrap();
        (writer, flush, dropped, written, permit)
    }

    #[test]
    fn a_slow_reader_costs_lines_and_they_are_counted() {
        let (writer, flush, dropped, written, permit) = slow_log();
        writer.line(b"first\n");
        assert_eq!(written.recv().unwrap(), b"first\n");
        // The thread hangs in its write; from here on lines pile up.
        let line = vec![b'x'; PENDING_BYTES_MAX / 4];
        for _ in 0..6 {
            writer.line(&line);
        }
        assert_eq!(dropped.get(), 2);
        drop(permit);
        drop(flush);
        assert_eq!(written.iter().map(|lines| lines.len()).sum::<usize>(), PENDING_BYTES_MAX);
    }

    #[test]
    fn the_end_writes_everything_out() {
        let (writer, flush, dropped, written, permit) = slow_log();
        drop(permit);
        for _ in 0..1000 {
            writer.line(b"line\n");
        }
        drop(flush);
        writer.line(b"too late\n");
        drop(writer);
        assert_eq!(written.iter().flatten().count(), 5000);
        assert_eq!(dropped.get(), 1);
    }

    #[test]
    fn an_event_cannot_forge_a_line() {
        assert_eq!(printable(b"plain \xc3\xa4\n").as_ref(), b"plain \xc3\xa4\n");
        assert_eq!(printable(b"a\nb\r\x1b[31m\n").as_ref(), b"a\\nb\\r\\x1b[31m\n");
    }

    #[test]
    fn tracing_s_events_arrive_as_lines() {
        let (writer, flush, _dropped, written, permit) = slow_log();
        drop(permit);
        let lines = tracing_subscriber::fmt().with_ansi(false).with_writer(writer).finish();
        tracing::subscriber::with_default(lines, || tracing::info!(name = "a\nb", "hello"));
        drop(flush);
        let text = String::from_utf8(written.iter().flatten().collect()).unwrap();
        assert!(text.contains(" INFO ") && text.contains("hello") && text.ends_with('\n'), "{text}");
        assert_eq!(text.matches('\n').count(), 1, "{text}");
    }
}
