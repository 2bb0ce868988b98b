//! Helpers and providers as shell scripts in a directory of their own.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::super::environment::Environment;

pub(in crate::upstream::auth::credentials) struct Scripts(tempfile::TempDir);

impl Scripts {
    pub(in crate::upstream::auth::credentials) fn new() -> Scripts {
        Scripts(tempfile::tempdir().expect("a directory"))
    }

    pub(in crate::upstream::auth::credentials) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Written by another process: a test beside this one that starts a program would hold the file open for writing for a
    /// moment, and what is open for writing cannot be run.
    pub(in crate::upstream::auth::credentials) fn write(&self, name: &str, body: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-c", r#"cat >"$0.new" && chmod 755 "$0.new" && mv "$0.new" "$0""#]).arg(self.path(name));
        let mut shell = shell.stdin(Stdio::piped()).spawn().expect("a shell");
        let mut stdin = shell.stdin.take().expect("its input");
        stdin.write_all(format!("#!/bin/sh\n{body}\n").as_bytes()).expect("it reads");
        drop(stdin);
        assert!(shell.wait().expect("its end").success());
    }

    /// The lines of a file that a script wrote.
    pub(in crate::upstream::auth::credentials) fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub(in crate::upstream::auth::credentials) fn environment(&self) -> Environment {
        let path = format!("{}:{}", self.0.path().display(), std::env::var("PATH").expect("a PATH"));
        [("PATH", path.as_str()), ("OTHER", "kept"), ("LARDER_SERVER__LISTEN", "hunter2")].into_iter().collect()
    }

    /// Waits until a process has ended; a dead one that nobody has asked about has.
    pub(in crate::upstream::auth::credentials) async fn gone(&self, pid: &str) {
        let dead = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            Err(_) => true,
        };
        let waited = tokio::time::timeout(Duration::from_secs(5), async {
            while !dead() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("{pid} lives"));
    }
}
