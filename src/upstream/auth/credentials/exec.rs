//! A program as a function from bytes to bytes: with a deadline, a limit to what it may say, and an end when nobody waits.

use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::zeroize::Zeroizing;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::environment::Environment;
use crate::oci::KIB;

/// What a program may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) timeout: Duration,
    pub(super) output_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { timeout: Duration::from_secs(10), output_bytes_max: 64 * KIB as usize }
    }
}

/// What a program said. Its words are wiped from memory when they are dropped.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    pub(super) output: Zeroizing<Vec<u8>>,
}

/// Why a program said nothing. Its words are no part of it: they may be the secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("could not be run: {0}")]
    NotRun(std::io::Error),
    #[error("gave no answer within {}", crate::units::exact_duration(*.0))]
    TimedOut(Duration),
    #[error("wrote more than {0} bytes")]
    TooMuch(usize),
    #[error("could not be talked to: {0}")]
    Broken(std::io::Error),
}

/// A name without a slash is looked for in the environment's `PATH`.
pub(super) async fn run(
    program: &str,
    arguments: &[String],
    input: &[u8],
    environment: &Environment,
    limits: Limits,
) -> Result<Finished, Failure> {
    let mut running = Running::start(program, arguments, environment)?;
    let finished = tokio::time::timeout(limits.timeout, running.finish(input, limits.output_bytes_max)).await;
    finished.unwrap_or(Err(Failure::TimedOut(limits.timeout)))
}

/// Killed with all it has started when it is dropped before its end.
struct Running(Child);

impl Running {
    fn start(program: &str, arguments: &[String], environment: &Environment) -> Result<Running, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().envs(environment.for_programs());
        // What it complains of may hold what it was to keep to itself.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let child = command.process_group(0).kill_on_drop(true).spawn();
        child.map(Running).map_err(Failure::NotRun)
    }

    async fn finish(&mut self, input: &[u8], output_bytes_max: usize) -> Result<Finished, Failure> {
        if let Some(mut stdin) = self.0.stdin.take() {
            // Whoever does not want to know the question may have an answer all the same.
            let _ = stdin.write_all(input).await;
        }
        // At once as large as it gets: growing would leave copies behind.
        let mut output = Zeroizing::new(Vec::with_capacity(output_bytes_max + 1));
        if let Some(stdout) = self.0.stdout.take() {
            stdout.take(output_bytes_max as u64 + 1).read_to_end(&mut output).await.map_err(Failure::Broken)?;
        }
        if output.len() > output_bytes_max {
            return Err(Failure::TooMuch(output_bytes_max));
        }
        let status = self.0.wait().await.map_err(Failure::Broken)?;
        Ok(Finished { status, output })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has an id until its end has been seen, so this is nobody else's group.
        let group = self.0.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        if let Some(group) = group {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::scripts::Scripts;
    use super::*;

    const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), output_bytes_max: 1024 };

    async fn run_script(scripts: &Scripts, body: &str, limits: Limits) -> Result<Finished, Failure> {
        scripts.write("program", body);
        run("program", &["one".into(), "two words".into()], b"question", &scripts.environment(), limits).await
    }

    async fn output(scripts: &Scripts, body: &str) -> String {
        let finished = run_script(scripts, body, LIMITS).await.expect("it ends");
        assert!(finished.status.success());
        String::from_utf8(finished.output.to_vec()).expect("text")
    }

    #[tokio::test]
    async fn a_program_gets_its_question_and_its_arguments_and_none_of_larder_s_variables() {
        let scripts = Scripts::new();
        assert_eq!(output(&scripts, r#"cat; printf ' %s|%s' "$1" "$2""#).await, "question one|two words");
        let seen = output(&scripts, "env; echo noise >&2").await;
        assert!(seen.contains("OTHER=kept") && !seen.contains("LARDER_"), "{seen}");
        assert_eq!(output(&scripts, "exec <&-; printf unasked").await, "unasked");
    }

    #[tokio::test]
    async fn credential_19_a_program_that_hangs_is_killed_with_what_it_has_started() {
        let scripts = Scripts::new();
        let limits = Limits { timeout: Duration::from_millis(200), ..LIMITS };
        let body = format!("echo $$ >{0}; sleep 1000 & echo $! >>{0}; wait", scripts.path("pids").display());
        assert!(matches!(run_script(&scripts, &body, limits).await, Err(Failure::TimedOut(_))));
        for pid in scripts.lines("pids") {
            scripts.gone(&pid).await;
        }
    }

    #[tokio::test]
    async fn credential_19_a_program_that_does_not_stop_talking_is_killed() {
        let scripts = Scripts::new();
        let body = format!("echo $$ >{}; exec cat /dev/zero", scripts.path("pids").display());
        assert!(matches!(run_script(&scripts, &body, LIMITS).await, Err(Failure::TooMuch(1024))));
        scripts.gone(&scripts.lines("pids")[0]).await;
        let exactly = "head -c 1024 /dev/zero";
        assert_eq!(run_script(&scripts, exactly, LIMITS).await.expect("it ends").output.len(), 1024);
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_said_to_be() {
        let scripts = Scripts::new();
        let failure = run("docker-credential-none", &[], b"", &scripts.environment(), LIMITS).await.err().expect("none");
        assert!(failure.to_string().contains("No such file"), "{failure}");
    }
}
