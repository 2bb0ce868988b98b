//! What larder signs in with, and for which repositories.

use std::path::PathBuf;

use secrecy::SecretString;

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

/// Regular expressions over whole tags.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Option<regex::RegexSet>);

impl Patterns {
    /// # Errors
    /// With the expression that is none, and why.
    pub fn new(expressions: &[String]) -> Result<Patterns, String> {
        if expressions.is_empty() {
            return Ok(Patterns(None));
        }
        let anchored = expressions.iter().map(|expression| format!("^(?:{expression})$"));
        regex::RegexSet::new(anchored).map(|set| Patterns(Some(set))).map_err(|error| error.to_string())
    }

    pub fn matches(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|set| set.is_match(text))
    }
}
