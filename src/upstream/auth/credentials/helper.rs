//! docker's credential helpers: `docker-credential-<name> get`, the registry's URL in, `{ServerURL, Username, Secret}` out.

use std::time::Duration;

use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::Login;
use super::pattern::Image;
use super::protocol::{Answer, Lifetime, Logins, Question, Scope};

/// The protocol knows no lifetimes: a helper that mints short-lived logins caches them itself and is cheap to ask. So it is
/// asked as often as a rotated secret may take to be noticed, and its word is kept once more as long should it fail.
const LIFETIME: Lifetime = Lifetime { renew: Duration::from_mins(5), expire: Duration::from_mins(10) };
/// Said on stdout, by a program that then fails.
const NOT_FOUND: &str = "credentials not found in native keychain";
/// Stands in for the user name of an identity token.
const TOKEN_USERNAME: &str = "<token>";

/// Its name is part of a program's, so it can be no path.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

pub(super) fn question<'a>(name: &str, get: &'a [String], image: &Image) -> Question<'a> {
    Question { program: format!("docker-credential-{name}"), arguments: get, input: image.server().as_bytes().to_vec() }
}

/// What it wrote and whether it says that it went well; or why that is no answer, in words that are not its own.
pub(super) fn answer(output: &[u8], succeeded: bool) -> Result<Answer, &'static str> {
    let login = if succeeded {
        let reply: Reply = serde_json::from_slice(output).map_err(|_| "answered with something else than JSON of a login")?;
        reply.login()?
    } else if std::str::from_utf8(output).is_ok_and(|text| text.trim() == NOT_FOUND) {
        Login::Anonymous
    } else {
        return Err("failed");
    };
    Ok(Answer { logins: Logins::One(login.into()), scope: Scope::Registry, lifetime: LIFETIME })
}

#[derive(Deserialize)]
struct Reply {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret")]
    secret: SecretString,
}

impl Reply {
    fn login(self) -> Result<Login, &'static str> {
        match self.secret.expose_secret() {
            "" => Err("answered with an empty secret"),
            _ if self.username == TOKEN_USERNAME => Ok(Login::IdentityToken(self.secret)),
            _ => Ok(Login::Basic { username: self.username, password: self.secret }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn login(output: &str, succeeded: bool) -> Result<Login, &'static str> {
        answer(output.as_bytes(), succeeded).map(|answer| answer.login(&Image::new("ghcr.io", "a")).login)
    }

    #[test]
    fn credential_19_the_words_of_a_helper() {
        let basic = login(r#"{"ServerURL":"x","Username":"me","Secret":"a:b"}"#, true);
        assert!(matches!(&basic, Ok(Login::Basic { username, password }) if username == "me" && password.expose_secret() == "a:b"));
        let token = login(r#"{"ServerURL":"x","Username":"<token>","Secret":"abc"}"#, true);
        assert!(matches!(&token, Ok(Login::IdentityToken(token)) if token.expose_secret() == "abc"));
        assert!(matches!(login("credentials not found in native keychain\n", false), Ok(Login::Anonymous)));
        for (output, succeeded) in [
            ("", true),
            ("credentials not found in native keychain", true),
            ("{}", true),
            (r#"{"Username":"me","Secret":""}"#, true),
            (r#"{"Username":"me","Secret":"hunter2"}"#, false),
            (r#"{"Username":7,"Secret":"hunter2"}"#, true),
            ("hunter2", true),
            ("hunter2", false),
            ("", false),
        ] {
            let why = login(output, succeeded).expect_err(output);
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn credential_17_a_helper_is_asked_for_docker_hub_by_docker_s_name_for_it() {
        let input = |registry| String::from_utf8(question("pass", &[], &Image::new(registry, "a/b")).input).expect("text");
        assert_eq!(input("docker.io"), "https://index.docker.io/v1/");
        assert_eq!(input("registry-1.docker.io"), "https://index.docker.io/v1/");
        assert_eq!(input("my-reg.corp:5000"), "my-reg.corp:5000");
    }

    #[test]
    fn a_helper_s_name_is_no_path() {
        for name in ["", "../evil", "a/b", "a b", "a;b", "é", "a\0"] {
            assert!(!is_name(name), "{name}");
        }
        assert!(is_name("ecr-login") && is_name("secretservice") && is_name("acr-linux_2.0"));
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(output: Vec<u8>, succeeded: bool) {
            let _ = answer(&output, succeeded);
        }
    }
}
