//! What larder signs in with. The secret lives in one sensitive header value at a time, and prints nowhere.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use secrecy::{ExposeSecret as _, SecretString};

use super::UpstreamError;
use crate::config::{Credentials, Secret};

/// `Basic <username:password>`, the password's file read anew: rotated secrets need no restart.
pub(super) async fn basic(credentials: &Credentials) -> Result<HeaderValue, UpstreamError> {
    match &credentials.password {
        Secret::Inline(secret) => header(&credentials.username, secret.expose_secret()),
        Secret::File(path) => {
            let secret = read(path).await?;
            header(&credentials.username, secret.expose_secret())
        }
    }
}

async fn read(path: &Path) -> Result<SecretString, UpstreamError> {
    let refused = |why: String| UpstreamError::CredentialRefused { detail: format!("password file {}: {why}", path.display()) };
    let owned = path.to_owned();
    let text = tokio::task::spawn_blocking(move || std::fs::read_to_string(owned))
        .await
        .map_err(|_| refused("reading it was interrupted".into()))?
        .map_err(|error| refused(error.to_string()))?;
    let line = text.strip_suffix('\n').map_or(text.as_str(), |text| text.strip_suffix('\r').unwrap_or(text));
    if line.is_empty() { Err(refused("it is empty".into())) } else { Ok(SecretString::from(line)) }
}

fn header(username: &str, password: &str) -> Result<HeaderValue, UpstreamError> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
        .ok_or_else(|| UpstreamError::CredentialRefused { detail: "the user name and password do not fit into a header".into() })
}

/// A header value whose Debug says only that it is secret.
pub(super) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_file_is_read_at_each_use_and_loses_one_newline() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("password");
        let credentials = Credentials { username: "me".into(), password: Secret::File(path.clone()) };
        assert!(matches!(basic(&credentials).await, Err(UpstreamError::CredentialRefused { .. })));
        for (content, meant) in [("one\n", "one"), ("two", "two"), ("three\r\n", "three"), ("four\n\n", "four\n"), ("a:b \n", "a:b ")] {
            std::fs::write(&path, content).expect("a file");
            let expected = format!("Basic {}", STANDARD.encode(format!("me:{meant}")));
            assert_eq!(basic(&credentials).await.expect("a header").to_str().expect("text"), expected);
        }
    }

    #[tokio::test]
    async fn nothing_prints_the_password() {
        let credentials = Credentials { username: "me".into(), password: Secret::Inline("hunter2".into()) };
        let value = basic(&credentials).await.expect("a header");
        let printed = format!("{credentials:?} {value:?}");
        assert!(!printed.contains("hunter2") && !printed.contains(&STANDARD.encode("me:hunter2")), "{printed}");
    }
}
