//! The real binary as a child process, over TCP on loopback, for what a test in process cannot show: kills, memory and its log.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::client::{Client, Reply};

/// A machine that is busy with other tests starts it in seconds; more is no start.
const START: Duration = Duration::from_secs(60);

/// `larder serve` on ports of loopback that the kernel chose.
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// From the start of the process to its line that it serves.
    pub took: Duration,
    printed: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
}

impl Daemon {
    /// Starts it over `directory` with `docker.io` at a registry on loopback.
    pub async fn start(directory: &Path, registry: SocketAddr) -> Daemon {
        Daemon::start_with(directory, registry, "max_size: 8GiB", "1h").await
    }

    /// The same, with these settings of the cache, and so long a life of tags.
    pub async fn start_with(directory: &Path, registry: SocketAddr, cache: &str, tag_ttl: &str) -> Daemon {
        let text = format!(
            "cache: {{path: '{}', {cache}}}\n\
             upstreams: {{docker.io: {{url: 'http://{registry}', tag_ttl: {tag_ttl}, visibility: public}}}}\n\
             log: {{level: 'error,larder::app=info'}}\n",
            directory.join("cache").display()
        );
        Daemon::serve(directory, &text).await
    }

    /// Starts it with this configuration, which says nothing of where to listen and logs `larder::app` at `info`.
    pub async fn serve(directory: &Path, text: &str) -> Daemon {
        let config = directory.join("larder.yaml");
        let text = format!("server: {{listen: '127.0.0.1:0'}}\nadmin: {{listen: '127.0.0.1:0'}}\n{text}");
        std::fs::write(&config, text).expect("a configuration");
        let started = Instant::now();
        let mut child = command(&["serve"], &config).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the binary");
        let printed = Arc::<Mutex<String>>::default();
        let (found, serves) = oneshot::channel();
        let (stdout, stderr) = (child.stdout.take().expect("a pipe"), child.stderr.take().expect("a pipe"));
        let readers = vec![read(stdout, Arc::clone(&printed), None), read(stderr, Arc::clone(&printed), Some(found))];
        let serves = timeout(START, serves).await.ok().and_then(Result::ok);
        let (address, admin) = serves.unwrap_or_else(|| {
            let _ = child.kill();
            panic!("larder does not serve: {}", printed.lock())
        });
        Daemon { child, address, admin, took: started.elapsed(), printed, readers }
    }

    pub async fn client(&self) -> Client {
        Client::over(TcpStream::connect(self.address).await.expect("a connection")).await
    }

    /// An answer of the admin port.
    pub async fn admin(&self, path: &str) -> Reply {
        let stream = TcpStream::connect(self.admin).await.expect("a connection");
        Client::over(stream).await.get(path).send().await
    }

    /// The value of a series, as the admin port tells it.
    pub async fn metric(&self, series: &str) -> f64 {
        let reply = self.admin("/metrics").await;
        let line = reply.text().lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')).expect("a series");
        line.parse().expect("a number")
    }

    /// Asks at `control.sock`; the last line of the answer.
    pub async fn control(&self, directory: &Path, method: http::Method, path: &str) -> serde_json::Value {
        let (socket, patience) = (directory.join("cache/control.sock"), Instant::now() + Duration::from_secs(10));
        // It serves clients first, and one that was killed has left its socket.
        let stream = loop {
            match tokio::net::UnixStream::connect(&socket).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < patience, "control.sock: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let reply = Client::over(stream).await.request(method, path).send().await;
        serde_json::from_str(reply.text().lines().last().expect("a line")).expect("JSON")
    }

    /// The most memory it ever had, in bytes (`VmHWM`).
    pub fn peak_memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") * 1024
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    /// Waits for its end.
    pub async fn ended(mut self) -> std::process::ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child") {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "larder does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What it has printed so far, its log included.
    pub fn printed(&self) -> String {
        self.printed.lock().clone()
    }

    /// SIGKILL, and gone. All that it printed.
    pub fn kill(mut self) -> String {
        self.child.kill().expect("a kill");
        self.child.wait().expect("a dead child");
        self.readers.drain(..).for_each(|reader| reader.join().expect("all that it printed"));
        self.printed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// larder with these arguments and this configuration. What the environment says to the test is not said to larder.
pub fn command(arguments: &[&str], config: &Path) -> Command {
    let binary = std::env::var_os("LARDER_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_larder")), PathBuf::from);
    let mut command = Command::new(binary);
    command.args(arguments).arg("--config").arg(config).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy().to_ascii_lowercase();
        if text.starts_with("larder_") || text.ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command
}

/// Reads to the end, and reports where it serves as soon as it says so.
fn read(pipe: impl Read + Send + 'static, printed: Arc<Mutex<String>>, mut found: Option<oneshot::Sender<Addresses>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned() + "\n";
            printed.lock().push_str(&line);
            if let Some(addresses) = serves_at(&line)
                && let Some(found) = found.take()
            {
                let _ = found.send(addresses);
            }
        }
    })
}

/// Where clients and operators reach it.
type Addresses = (SocketAddr, SocketAddr);

/// What the line says that it writes when it serves.
fn serves_at(line: &str) -> Option<Addresses> {
    let event: serde_json::Value = serde_json::from_str(line).ok()?;
    let address = |field: &str| event[field].as_str()?.parse().ok();
    event["message"].as_str()?.starts_with("larder serves").then_some((address("address")?, address("admin")?))
}

/// A port that nobody else gets as long as this socket lives, and where nobody listens: connections are refused. A server
/// that sets `SO_REUSEADDR`, as larder does, may listen there.
pub fn hold_port(address: &str) -> std::io::Result<(Socket, SocketAddr)> {
    let address: SocketAddr = address.parse().expect("address:port");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    let address = socket.local_addr()?.as_socket().expect("an IP address");
    Ok((socket, address))
}
