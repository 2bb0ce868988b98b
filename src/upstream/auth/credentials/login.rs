//! A login, and a mark by which one tells that it has changed. Neither prints what it holds.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};
use sha2::{Digest as _, Sha256};

use crate::upstream::UpstreamError;
use crate::upstream::secret::sensitive;

/// What a source says right now.
#[derive(Clone)]
pub enum Login {
    Basic {
        username: String,
        password: SecretString,
    },
    /// An OAuth2 refresh token: exchanged at the token server by POST.
    IdentityToken(SecretString),
    /// A bearer token that the registry takes as it is.
    RegistryToken(SecretString),
    /// The source knows of no login for this repository.
    Anonymous,
}

/// A login and the version of it that this is.
#[derive(Clone, Debug)]
pub struct Held {
    pub login: Login,
    pub version: Version,
}

/// Equal for equal logins: "has the secret changed since it was refused?" A hash of a password is worth guessing at, so it
/// stays in memory and prints as nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Version([u8; 32]);

impl Login {
    /// What goes into a request to the registry as it is; an identity token and no login don't.
    pub fn authorization(&self) -> Result<Option<HeaderValue>, UpstreamError> {
        match self {
            Login::Basic { username, password } => basic(username, password.expose_secret()).map(Some),
            Login::RegistryToken(token) => {
                let value = sensitive(&format!("Bearer {}", token.expose_secret()));
                value.map(Some).ok_or_else(|| super::refused("the registry token does not fit into a header"))
            }
            Login::IdentityToken(_) | Login::Anonymous => Ok(None),
        }
    }

    fn version(&self) -> Version {
        let (kind, name, secret) = match self {
            Login::Basic { username, password } => (b'b', username.as_str(), password.expose_secret()),
            Login::IdentityToken(token) => (b'i', "", token.expose_secret()),
            Login::RegistryToken(token) => (b'r', "", token.expose_secret()),
            Login::Anonymous => (b'a', "", ""),
        };
        let mut hasher = Sha256::new();
        hasher.update([kind]);
        hasher.update((name.len() as u64).to_be_bytes());
        hasher.update(name);
        hasher.update(secret);
        Version(hasher.finalize().into())
    }
}

impl From<Login> for Held {
    fn from(login: Login) -> Held {
        Held { version: login.version(), login }
    }
}

pub(super) fn basic(username: &str, password: &str) -> Result<HeaderValue, UpstreamError> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
        .ok_or_else(|| super::refused("the user name and password do not fit into a header"))
}

/// Not even the user name: some registries take a token there.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Login::Basic { .. } => "Basic",
            Login::IdentityToken(_) => "IdentityToken",
            Login::RegistryToken(_) => "RegistryToken",
            Login::Anonymous => "Anonymous",
        })
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Version")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Held {
        Login::Basic { username: username.into(), password: password.into() }.into()
    }

    #[test]
    fn a_version_is_equal_for_equal_logins_alone() {
        assert_eq!(password("a", "b").version, password("a", "b").version);
        let all = [
            password("a", "b"),
            password("ab", ""),
            password("", "ab"),
            password("a", "c"),
            Login::IdentityToken("ab".into()).into(),
            Login::RegistryToken("ab".into()).into(),
            Held::from(Login::Anonymous),
        ];
        for (place, held) in all.iter().enumerate() {
            assert!(all[place + 1..].iter().all(|other| other.version != held.version), "{place}");
        }
    }

    #[test]
    fn credential_20_a_registry_token_is_sent_as_it_is_and_an_identity_token_is_not() {
        let sent = |login: Login| login.authorization().expect("it fits").map(|value| value.to_str().expect("text").to_owned());
        assert_eq!(sent(Login::RegistryToken("abc".into())).as_deref(), Some("Bearer abc"));
        assert_eq!(sent(password("me", "a:b").login).as_deref(), Some("Basic bWU6YTpi"));
        assert_eq!(sent(Login::IdentityToken("abc".into())), None);
        assert_eq!(sent(Login::Anonymous), None);
        assert!(Login::RegistryToken("a\nb".into()).authorization().is_err());
    }

    #[test]
    fn credential_11_no_login_prints_what_it_holds() {
        let canary = "hunter2";
        for login in
            [password(canary, canary).login, Login::IdentityToken(canary.into()), Login::RegistryToken(canary.into()), Login::Anonymous]
        {
            let header = login.authorization().expect("it fits");
            let printed = format!("{:?} {header:?} {:?}", login, Held::from(login.clone()));
            assert!(!printed.contains(canary) && !printed.contains(&STANDARD.encode("hunter2:hunter2")), "{printed}");
        }
    }
}
