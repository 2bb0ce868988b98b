//! What larder signs in with, and for which repositories: the types, and how they are read.

use std::path::PathBuf;

use secrecy::SecretString;

use super::BaseUrl;
use super::machine::Machine;
use super::patterns;
use super::section::{Findings, Section};
use super::tree::Node;
use super::value::Fault;

/// One way to sign in at an upstream.
#[derive(Clone, Debug)]
pub struct CredentialConfig {
    /// In logs, metrics and messages; never a secret. Unless written: `default`, then `2`, `3` and so on by its place.
    pub name: String,
    /// What it is for; none: every repository. A glob whose `*` stays within a component and whose `**` does not.
    pub repositories: Vec<String>,
    pub kind: CredentialKind,
}

impl CredentialConfig {
    /// A username and its password, for everything.
    pub fn password(username: &str, password: Secret) -> CredentialConfig {
        let kind = CredentialKind::Password(Credentials { username: username.into(), password });
        CredentialConfig { name: "default".into(), repositories: Vec::new(), kind }
    }
}

/// Where a credential comes from.
#[derive(Clone, Debug)]
pub enum CredentialKind {
    Password(Credentials),
    /// An OAuth2 refresh token: exchanged by POST at the token server.
    IdentityToken(Secret),
    /// A bearer token that the registry takes as it is.
    RegistryToken(Secret),
    /// docker's config.json, containers' auth.json, Kubernetes' .dockerconfigjson or .dockercfg: this file.
    DockerConfig(PathBuf),
    /// The same, wherever docker and podman look: `DOCKER_AUTH_CONFIG`, `$DOCKER_CONFIG`, `~/.docker`, `REGISTRY_AUTH_FILE`, …
    DockerConfigSearch,
    /// `docker-credential-<name>`, found in `PATH`.
    DockerHelper(String),
    /// A kubelet credential provider: the program and its arguments.
    KubeletProvider(Vec<String>),
}

/// A username and where its password is.
#[derive(Clone, Debug)]
pub struct Credentials {
    pub username: String,
    pub password: Secret,
}

#[derive(Clone, Debug)]
pub enum Secret {
    Inline(SecretString),
    /// Read at each use; one trailing newline is not part of it.
    File(PathBuf),
}

/// The kinds by their keys, and how a message says them. An entry has one.
const KINDS: [(&str, &[&str]); 6] = [
    ("username with password_file or password", &["username", "password_file", "password"]),
    ("identity_token_file or identity_token", &["identity_token_file", "identity_token"]),
    ("registry_token_file or registry_token", &["registry_token_file", "registry_token"]),
    ("docker_config", &["docker_config"]),
    ("docker_helper", &["docker_helper"]),
    ("kubelet_provider", &["kubelet_provider"]),
];
const NAME_LENGTH_MAX: usize = 32;
/// What the metrics call requests without credentials.
const ANONYMOUS: &str = "anonymous";

/// An upstream's credentials: one mapping, or a list of them.
pub(super) fn read_credentials(
    upstream: &Section<'_>,
    urls: &[BaseUrl],
    machine: &Machine<'_>,
    findings: &mut Findings,
) -> Vec<CredentialConfig> {
    let mut entries = upstream.entries("credentials");
    if matches!(entries.as_slice(), [only] if only.is_empty()) && upstream.has_mapping("credentials") {
        // Nothing under the key is as if it were not written.
        entries.clear();
    }
    let mut names: Vec<String> = Vec::new();
    let mut read = Vec::new();
    for (place, entry) in entries.iter().enumerate() {
        let name = read_name(entry, place, &names, findings);
        findings.settle(entry.key("name"), name.clone());
        names.push(name.clone());
        let repositories = entry.texts("repositories", findings, patterns::repositories);
        if repositories.is_empty() && entry.get("repositories").is_some_and(|node| node.is_empty_list()) {
            let message = "is an empty list, which matches nothing; leave it out for every repository";
            findings.mistake(&entry.origin("repositories"), &entry.key("repositories"), message);
        }
        let repositories = repositories.into_iter().map(|(_, pattern)| pattern).collect();
        if let Some(kind) = read_kind(entry, machine, findings) {
            read.push(CredentialConfig { name, repositories, kind });
        }
    }
    if !entries.is_empty() && urls.iter().any(|url| !url.tls && !url.is_loopback()) {
        let message = "would cross the network in plain text, since url begins with http://; use https";
        findings.warning(&upstream.origin("credentials"), &upstream.key("credentials"), message);
    }
    read
}

/// It becomes a label of metrics, so it is short and plain.
fn read_name(entry: &Section<'_>, place: usize, taken: &[String], findings: &mut Findings) -> String {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_' || byte == b'-';
    let check = |text: &str| match text {
        ANONYMOUS => Err(format!("`{ANONYMOUS}` is what requests without credentials are called; choose another name")),
        _ if (1..=NAME_LENGTH_MAX).contains(&text.len()) && text.bytes().all(fits) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not a name: up to {NAME_LENGTH_MAX} lower-case letters, digits, '_' and '-'")),
    };
    let by_place = || if place == 0 { "default".to_owned() } else { (place + 1).to_string() };
    let name = entry.read("name", findings, check).unwrap_or_else(by_place);
    if taken.contains(&name) {
        let message = format!("`{name}` is the name of an earlier entry; write another");
        findings.mistake(&entry.origin("name"), &entry.key("name"), message);
    }
    name
}

fn read_kind(entry: &Section<'_>, machine: &Machine<'_>, findings: &mut Findings) -> Option<CredentialKind> {
    let written = |key: &&&str| entry.get(key).is_some();
    let mut kinds = KINDS.iter().filter_map(|(_, keys)| keys.iter().find(written));
    let Some(kind) = kinds.next() else {
        let is_known = |key: &str| key == "name" || key == "repositories" || KINDS.iter().any(|(_, keys)| keys.contains(&key));
        // A misspelt one is reported already.
        if !entry.has_unknown(is_known) {
            findings.mistake(&entry.here(), &entry.path, format!("has no kind; write one of {}", all_kinds()));
        }
        return None;
    };
    if let Some(second) = kinds.next() {
        let message =
            format!("stands beside {kind}, and an entry has one kind; keep one of {}, or make a list of two entries", all_kinds());
        findings.mistake(&entry.origin(second), &entry.key(second), message);
        return None;
    }
    match *kind {
        "identity_token" | "identity_token_file" => {
            read_token(entry, "identity_token", "identity_token_file", machine, findings).map(CredentialKind::IdentityToken)
        }
        "registry_token" | "registry_token_file" => {
            read_token(entry, "registry_token", "registry_token_file", machine, findings).map(CredentialKind::RegistryToken)
        }
        "docker_config" => read_docker_config(entry, machine, findings),
        "docker_helper" => entry.read("docker_helper", findings, docker_helper).map(CredentialKind::DockerHelper),
        "kubelet_provider" => read_provider(entry, findings),
        _ => read_password(entry, machine, findings),
    }
}

fn all_kinds() -> String {
    KINDS.map(|(says, _)| says).join("; ")
}

fn read_password(entry: &Section<'_>, machine: &Machine<'_>, findings: &mut Findings) -> Option<CredentialKind> {
    let username = entry.text("username", findings);
    if username.is_some_and(|name| name.contains(':') || name.is_empty()) {
        let message = "is empty or has a colon, which HTTP's Basic authentication cannot send";
        findings.mistake(&entry.origin("username"), &entry.key("username"), message);
    }
    let written = |name| entry.get(name).is_some();
    if !written("username") {
        findings.mistake(&entry.origin("username"), &entry.key("username"), "is missing; a password alone names nobody");
    }
    if !written("password") && !written("password_file") {
        let message = "is missing; write the path of a file that holds the password";
        findings.mistake(&entry.origin("password_file"), &entry.key("password_file"), message);
    }
    let password = read_secret(entry, "password", "password_file", machine, findings);
    Some(CredentialKind::Password(Credentials { username: username?.to_owned(), password: password? }))
}

fn read_token(entry: &Section<'_>, inline: &str, file: &str, machine: &Machine<'_>, findings: &mut Findings) -> Option<Secret> {
    if entry.text(inline, &mut Findings::default()).is_some_and(|token| token.trim().is_empty()) {
        findings.mistake(&entry.origin(inline), &entry.key(inline), format!("is empty; write the token, or {file}"));
    }
    read_secret(entry, inline, file, machine, findings)
}

fn read_secret(entry: &Section<'_>, inline: &str, file: &str, machine: &Machine<'_>, findings: &mut Findings) -> Option<Secret> {
    let text = entry.text(inline, findings);
    let path = read_file(entry, file, machine, findings);
    if entry.get(inline).is_some() && entry.get(file).is_some() {
        findings.mistake(&entry.origin(inline), &entry.key(inline), format!("stands beside {file}; keep one of the two"));
    }
    path.map(Secret::File).or_else(|| text.map(|text| Secret::Inline(SecretString::from(text))))
}

/// A file that a key names, by its absolute path.
pub(super) fn read_file(section: &Section<'_>, key: &str, machine: &Machine<'_>, findings: &mut Findings) -> Option<PathBuf> {
    let path = section.read(key, findings, |text| machine.file(text))?;
    findings.settle(section.key(key), path.to_string_lossy().into_owned());
    Some(path)
}

fn read_docker_config(entry: &Section<'_>, machine: &Machine<'_>, findings: &mut Findings) -> Option<CredentialKind> {
    let key = "docker_config";
    if entry.get(key).and_then(Node::scalar) == Some("auto") {
        return Some(CredentialKind::DockerConfigSearch);
    }
    let or_auto = |fault| format!("{fault}; or write auto to look where docker and podman look");
    let path = entry.read(key, findings, |text| machine.file(text).map_err(or_auto))?;
    findings.settle(entry.key(key), path.to_string_lossy().into_owned());
    Some(CredentialKind::DockerConfig(path))
}

/// A name, and not a path: what runs is what the administrator put into `PATH`.
fn docker_helper(text: &str) -> Result<String, Fault> {
    let prefix = "docker-credential-";
    if let Some(name) = text.strip_prefix(prefix) {
        return Err(format!("`{text}` is the program; leave out {prefix} and write {name}"));
    }
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if !text.is_empty() && text.bytes().all(fits) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "`{text}` is not the name of a credential helper: letters, digits, '-', '_' and '.', such as ecr-login for {prefix}ecr-login"
    ))
}

fn read_provider(entry: &Section<'_>, findings: &mut Findings) -> Option<CredentialKind> {
    let key = "kubelet_provider";
    let command: Vec<_> = entry.texts(key, findings, |text| Ok(text.to_owned())).into_iter().map(|(_, word)| word).collect();
    let Some(program) = command.first() else {
        findings.mistake(&entry.origin(key), &entry.key(key), "names no program; write its path, and its arguments after it");
        return None;
    };
    if !program.starts_with('/') {
        let message = format!("`{program}` is not an absolute path; write the program's, such as /usr/local/bin/ecr-credential-provider");
        findings.mistake(&entry.origin(key), &entry.key(key), message);
    }
    Some(CredentialKind::KubeletProvider(command))
}
