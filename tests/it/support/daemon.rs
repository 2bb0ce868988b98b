//! The real binary as a child process, over TCP on loopback, for what a test in process cannot show: kills and memory.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use super::client::Client;

/// `larder serve` with `docker.io` at a registry on loopback.
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    pub admin: SocketAddr,
    /// From the start of the process to the first answer.
    pub took: Duration,
}

/// Two free ports of loopback.
fn free_ports() -> (SocketAddr, SocketAddr) {
    let listen = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let (one, two) = (listen(), listen());
    (one.local_addr().expect("an address"), two.local_addr().expect("an address"))
}

impl Daemon {
    /// Starts it over `directory`, and waits until it answers.
    pub async fn start(directory: &Path, registry: SocketAddr) -> Daemon {
        Daemon::start_with(directory, registry, "max_size: 8GiB", "1h").await
    }

    /// The same, with these settings of the cache, and so long a life of tags.
    pub async fn start_with(directory: &Path, registry: SocketAddr, cache: &str, tag_ttl: &str) -> Daemon {
        let (address, admin) = free_ports();
        let config = directory.join("larder.yaml");
        let text = format!(
            "server: {{listen: '{address}'}}\nadmin: {{listen: '{admin}'}}\ncache: {{path: '{}', {cache}}}\n\
             upstreams: {{docker.io: {{url: 'http://{registry}', tag_ttl: {tag_ttl}, visibility: public}}}}\nlog: {{level: error}}\n",
            directory.join("cache").display()
        );
        std::fs::write(&config, text).expect("a configuration");
        let started = Instant::now();
        let binary = std::env::var_os("LARDER_BIN").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_larder")), PathBuf::from);
        let mut command = Command::new(binary);
        command.args(["serve", "--config"]).arg(&config).stdin(Stdio::null()).stdout(Stdio::null());
        // What is said to the test is not said to larder.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LARDER_")) {
            command.env_remove(name);
        }
        let mut child = command.spawn().expect("the binary");
        while TcpStream::connect(address).await.is_err() {
            assert!(child.try_wait().expect("a child").is_none(), "larder ended instead of listening");
            assert!(started.elapsed() < Duration::from_secs(20), "larder does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Daemon { child, address, admin, took: started.elapsed() }
    }

    pub async fn client(&self) -> Client {
        Client::over(TcpStream::connect(self.address).await.expect("a connection")).await
    }

    /// The value of a series, as the admin port tells it.
    pub async fn metric(&self, series: &str) -> f64 {
        let stream = TcpStream::connect(self.admin).await.expect("a connection");
        let reply = Client::over(stream).await.get("/metrics").send().await;
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

    /// SIGKILL, and gone.
    pub fn kill(mut self) {
        self.child.kill().expect("a kill");
        self.child.wait().expect("a dead child");
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
