//! The command line: words to calls, failures to exit codes.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod client;
pub mod client_config;
mod explanation;
mod healthcheck;
pub mod import;
pub mod online;
mod print;
mod pull;

use crate::clock::Clock;
use crate::config;
use crate::config::{Config, DEFAULT_FILE, Warning, find_file};
use crate::control::{self, Ask};
use crate::exit::ExitError;
use crate::world::BuildError;
use client_config::{ClientConfig, Kind, Request};
use import::ImportError;

pub use client::answer;
pub use print::Form;

/// A pull-through caching mirror for container registries.
#[derive(Debug, Parser)]
#[command(name = "larder", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the mirror in the foreground until SIGTERM or SIGINT.
    Serve(ConfigFile),
    /// Tell every mistake of the configuration: its place, its key and its fix.
    CheckConfig {
        #[command(flatten)]
        file: ConfigFile,
        /// Ask each upstream: DNS, TLS, credentials, what is left of its pull limit, and what to change.
        #[arg(long)]
        online: bool,
        /// Show the configuration as it is in effect, without secrets.
        #[arg(long)]
        print: bool,
    },
    /// Print the JSON schema of the configuration file, for editors and pipelines.
    ConfigSchema,
    /// Print the file that makes a client pull through this mirror. Where to put it is told on stderr.
    ClientConfig {
        kind: Kind,
        /// How clients reach this mirror, such as https://mirror.example.com:5000 [default: the first of server.listen]
        #[arg(long)]
        url: Option<String>,
        /// Let the client ask nobody else when this mirror cannot answer.
        #[arg(long)]
        no_fallback: bool,
        /// Only for this one of the upstreams.
        #[arg(long, value_name = "HOST")]
        registry: Option<String>,
        #[command(flatten)]
        file: ConfigFile,
    },
    /// Take over what another program has cached. larder must be stopped; interrupted, it can be run again.
    Import {
        #[command(subcommand)]
        from: ImportFrom,
    },
    /// Print the larder.yaml for a Distribution registry's configuration. What is dropped is named on stderr.
    ImportConfig {
        /// Its config.yml; variables REGISTRY_… in the environment count over it, as they do there.
        file: PathBuf,
    },
    /// Exit 0 when the mirror is ready, else 1: for images without a shell.
    Healthcheck(ConfigFile),
    /// What the cache holds, by upstream and repository, and what would go next.
    Stats {
        #[command(flatten)]
        file: ConfigFile,
        #[arg(long)]
        json: bool,
    },
    /// Hash everything that is held; exit 1 when damage was found and not repaired.
    Verify {
        #[command(flatten)]
        file: ConfigFile,
        /// Put aside what is damaged, so that it is fetched again.
        #[arg(long)]
        repair: bool,
        #[arg(long)]
        json: bool,
    },
    /// Make images complete in the cache before anybody asks for them; exit 1 if one is not.
    ///
    /// The running daemon fetches them; without one, this command does. What is here and fresh is not asked for. Clients' own
    /// downloads go first. Interrupted, downloads that are under way in the daemon go on, and no new ones begin.
    Pull {
        /// As in docker pull: alpine:3.20, ghcr.io/org/app@sha256:…
        #[arg(value_name = "REF", required_unless_present = "from")]
        refs: Vec<String>,
        /// A list of such, one a line; # begins a comment, - is stdin.
        #[arg(short = 'f', long = "file", value_name = "FILE")]
        from: Option<PathBuf>,
        /// Of images for several, that for this one, such as linux/arm64; can be repeated, or all [default: this machine's]
        #[arg(long = "platform", value_name = "PLATFORM")]
        platforms: Vec<String>,
        #[command(flatten)]
        file: ConfigFile,
        #[arg(long)]
        json: bool,
    },
    /// Let go of an image, and of what nothing else lists.
    Purge {
        /// HOST/NAME:TAG, HOST/NAME@DIGEST, a DIGEST, or a pattern such as 'HOST/NAME:*' or 'HOST/*'
        #[arg(value_name = "REF|DIGEST|PATTERN")]
        what: String,
        #[command(flatten)]
        file: ConfigFile,
        #[arg(long)]
        json: bool,
    },
    /// Why an image is served as it is: its upstream, its record, the next question, what is held, when it goes. Changes nothing.
    Explain {
        /// HOST/NAME:TAG, NAME, HOST/NAME@DIGEST, or a path such as '/v2/library/alpine/manifests/3.20?ns=docker.io'
        #[arg(value_name = "REF")]
        what: String,
        #[command(flatten)]
        file: ConfigFile,
        #[arg(long)]
        json: bool,
    },
    /// Tell version, commit and compiler.
    Version,
}

#[derive(Debug, Subcommand)]
enum ImportFrom {
    /// A Distribution registry (registry:2, registry:3, docker-registry) that keeps its blobs in files, best a mirror.
    Registry2 {
        /// Its storage.filesystem.rootdirectory, such as /var/lib/registry.
        dir: PathBuf,
        /// The upstream that it mirrored, such as docker.io.
        #[arg(long, value_name = "HOST")]
        upstream: String,
        /// Copy every blob; share no blocks and no files with DIR.
        #[arg(long)]
        copy: bool,
        /// Print the summary as JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        file: ConfigFile,
    },
}

#[derive(Debug, clap::Args)]
struct ConfigFile {
    /// The configuration file [default: $LARDER_CONFIG, else /etc/larder/larder.yaml when it is there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl From<ImportError> for ExitError {
    fn from(failure: ImportError) -> ExitError {
        let text = failure.to_string();
        match failure {
            ImportError::Open(error) => BuildError::from(error).into(),
            ImportError::Directory(_) | ImportError::Upstream(_) => ExitError::Usage(text),
            ImportError::Owner { .. } => ExitError::CacheUnusable(text),
            ImportError::Store(_) | ImportError::Read(_) => ExitError::Failed(text),
        }
    }
}

/// Does what the arguments say. `serve` is the daemon itself, which only the binary brings along. Not generic: what is, is
/// compiled into the binary.
pub fn run(arguments: Vec<OsString>, serve: fn(Config) -> Result<(), ExitError>) -> ExitCode {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        // clap prints help on stdout with 0, and a mistake on stderr with 2.
        Err(error) => error.exit(),
    };
    let done = match arguments.command {
        Command::Serve(file) => file.load().and_then(serve),
        Command::CheckConfig { file, online, print } => check_config(&file, online, print),
        Command::ConfigSchema => print_schema(),
        Command::ClientConfig { kind, url, no_fallback, registry, file } => {
            let request = |config: &Config| Request::new(url.as_deref(), !no_fallback, registry.as_deref(), config);
            print_client_config(&file, kind, request)
        }
        Command::Import { from: ImportFrom::Registry2 { dir, upstream, copy, json, file } } => {
            file.load().and_then(|config| import_registry2(&config, &import::Request { directory: dir, upstream, copy }, json))
        }
        Command::ImportConfig { file } => print_imported_config(&file),
        Command::Healthcheck(file) => file.load().and_then(|config| healthcheck::run(config.admin.listen)),
        Command::Stats { file, json } => ask(&file, json, |_| Ok(Ask::Stats)),
        Command::Verify { file, repair, json } => ask(&file, json, |_| Ok(Ask::Verify { repair })),
        Command::Pull { refs, from, platforms, file, json } => pull_images(&file, refs, from.as_deref(), &platforms, json),
        Command::Purge { what, file, json } => ask(&file, json, |config| control::canonical(&what, config).map(Ask::Purge)),
        Command::Explain { what, file, json } => ask(&file, json, |_| Ok(Ask::Explain(what))),
        Command::Version => print_version(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            tell(&failure.to_string());
            ExitCode::from(failure.code())
        }
    }
}

fn check_config(file: &ConfigFile, online: bool, print: bool) -> Result<(), ExitError> {
    let config = file.load()?;
    let text = if print { config.to_yaml().map_err(ExitError::Failed)? } else { format!("{}: ok\n", file.shown()) };
    io::stdout().write_all(text.as_bytes())?;
    if !online {
        return Ok(());
    }
    let checked = online::run(&config)?;
    // After YAML, what is no YAML is a comment.
    let margin = if print { "# " } else { "" };
    let text: String = checked.text.lines().map(|line| format!("{margin}{line}").trim_end().to_owned() + "\n").collect();
    writeln!(io::stdout())?;
    io::stdout().write_all(text.as_bytes())?;
    checked.verdict()
}

fn print_schema() -> Result<(), ExitError> {
    let text = serde_json::to_string_pretty(&config::schema()).map_err(|error| ExitError::Failed(error.to_string()))?;
    writeln!(io::stdout(), "{text}")?;
    Ok(())
}

fn print_client_config(file: &ConfigFile, kind: Kind, request: impl FnOnce(&Config) -> Result<Request, String>) -> Result<(), ExitError> {
    let request = request(&file.load()?).map_err(ExitError::Usage)?;
    let ClientConfig { content, notes } = client_config::client_config(kind, &request).map_err(ExitError::Usage)?;
    io::stdout().write_all(content.as_bytes())?;
    tell(&notes.join("\n"));
    Ok(())
}

fn import_registry2(config: &Config, request: &import::Request, json: bool) -> Result<(), ExitError> {
    let summary = import::registry2(config, request, Clock::System, &mut |line| tell(line))?;
    let text =
        if json { serde_json::to_string(&summary).map_err(|error| ExitError::Failed(error.to_string()))? } else { summary.to_string() };
    writeln!(io::stdout(), "{text}")?;
    match summary.images_left_out {
        0 => Ok(()),
        left => Err(ExitError::Failed(format!(
            "no room for {left} images, the oldest: cache.max_size is {} bytes; raise it, or make room on the disk, and run this again",
            config.cache.max_size
        ))),
    }
}

fn print_imported_config(file: &Path) -> Result<(), ExitError> {
    let import::Translation { yaml, notes } = import::translate_file(file, environment()).map_err(ExitError::Usage)?;
    io::stdout().write_all(yaml.as_bytes())?;
    notes.iter().for_each(|note| tell(note));
    Ok(())
}

/// Of the cache, whether a daemon holds it or nobody.
fn ask(file: &ConfigFile, json: bool, what: impl FnOnce(&Config) -> Result<Ask, String>) -> Result<(), ExitError> {
    let config = file.load()?;
    let what = what(&config).map_err(ExitError::Usage)?;
    client::run(&config, what, if json { Form::Json } else { Form::Text })
}

fn pull_images(file: &ConfigFile, refs: Vec<String>, from: Option<&Path>, platforms: &[String], json: bool) -> Result<(), ExitError> {
    let config = file.load()?;
    let mut texts: Vec<_> = refs.into_iter().map(|reference| (None, reference)).collect();
    texts.extend(from.map(pull::read_list).transpose()?.unwrap_or_default());
    pull::pull(&config, &texts, platforms, if json { Form::Json } else { Form::Text })
}

fn print_version() -> Result<(), ExitError> {
    let (version, commit, rustc) = (env!("CARGO_PKG_VERSION"), env!("LARDER_COMMIT"), env!("LARDER_RUSTC"));
    writeln!(io::stdout(), "larder {version}\ncommit {commit}\n{rustc}")?;
    Ok(())
}

impl ConfigFile {
    /// The configuration; warnings go to stderr.
    fn load(&self) -> Result<Config, ExitError> {
        let (config, warnings) =
            Config::load(self.config.as_deref(), environment()).map_err(|mistakes| ExitError::Usage(mistakes.to_string()))?;
        for warning in &warnings {
            tell(&warning_line(warning, &self.shown()));
        }
        Ok(config)
    }

    fn found(&self) -> Option<PathBuf> {
        let environment: Vec<_> = environment().collect();
        find_file(self.config.as_deref(), environment.iter().map(|(name, value)| (name.as_str(), value.as_str())))
    }

    fn shown(&self) -> String {
        self.found().map_or_else(|| format!("defaults (no {DEFAULT_FILE})"), |path: PathBuf| Path::display(&path).to_string())
    }
}

fn warning_line(warning: &Warning, file: &str) -> String {
    format!("warning: {}", warning.line(file))
}

/// The environment, as far as it is Unicode: nothing that larder reads is otherwise.
fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// A line for whoever started the command. Where stderr is closed, nobody is there to be told.
fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
