//! Tells the program which commit and which compiler made it, for `larder version`.

use std::io::Write;
use std::process::Command;

fn main() -> std::io::Result<()> {
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let commit = std::env::var("LARDER_COMMIT").ok().or_else(|| output("git", &["rev-parse", "--short=12", "HEAD"]));
    let unknown = || "unknown".to_owned();
    let mut cargo = std::io::stdout();
    writeln!(cargo, "cargo::rustc-env=LARDER_COMMIT={}", commit.unwrap_or_else(unknown))?;
    writeln!(cargo, "cargo::rustc-env=LARDER_RUSTC={}", output(&rustc, &["--version"]).unwrap_or_else(unknown))?;
    writeln!(cargo, "cargo::rerun-if-env-changed=LARDER_COMMIT")?;
    writeln!(cargo, "cargo::rerun-if-changed=build.rs")?;
    // Changes with every commit and checkout; absent in a source archive, which has no commit to tell either.
    if let Some(path) = output("git", &["rev-parse", "--git-path", "logs/HEAD"]).filter(|path| std::path::Path::new(path).exists()) {
        writeln!(cargo, "cargo::rerun-if-changed={path}")?;
    }
    Ok(())
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
