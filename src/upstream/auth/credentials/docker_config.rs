//! docker's config.json, containers' auth.json, Kubernetes' .dockerconfigjson and the older .dockercfg, which is a bare map
//! of `auths`: bytes in, a login or the helper to ask out. What isn't understood is passed over, entry by entry.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use secrecy::zeroize::Zeroizing;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::Login;
use super::pattern::{self, Image};

/// People paste `auth` values by hand.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent).with_decode_allow_trailing_bits(true),
);

/// A file's logins, and the helpers it names.
pub(super) struct DockerConfig {
    logins: BTreeMap<String, Login>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// What a file says about an image. The helper is asked first; the login is for when it knows nothing.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) helper: Option<String>,
    pub(super) login: Option<Login>,
}

/// Not JSON, or no object. Says where, and nothing of what stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a JSON object (line {line}, column {column})")]
pub(super) struct Malformed {
    line: usize,
    column: usize,
}

impl DockerConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<DockerConfig, Malformed> {
        let malformed = |error: serde_json::Error| Malformed { line: error.line(), column: error.column() };
        let file: File = serde_json::from_slice(bytes).map_err(malformed)?;
        let entries = match file {
            File { auths: None, helpers: None, store: None } => serde_json::from_slice(bytes).map_err(malformed)?,
            File { auths, .. } => auths.and_then(Maybe::value).unwrap_or_default(),
        };
        let logins = understood(entries).filter_map(|(key, entry)| Some((key, login(entry)?))).collect();
        let helpers = understood(file.helpers.and_then(Maybe::value).unwrap_or_default()).collect();
        Ok(DockerConfig { logins, helpers, store: file.store.and_then(Maybe::value).filter(|store| !store.is_empty()) })
    }

    /// As in docker, a helper for this registry comes before the store for all, and an empty one says that there is none.
    pub(super) fn find(&self, image: &Image) -> Found {
        let helper = pattern::best(image, self.helpers.iter().map(|(key, helper)| (key.as_str(), helper)));
        let helper = helper.or(self.store.as_ref()).filter(|helper| !helper.is_empty()).cloned();
        let login = pattern::best(image, self.logins.iter().map(|(key, login)| (key.as_str(), login))).cloned();
        Found { helper, login }
    }
}

#[derive(Deserialize)]
struct File {
    auths: Option<Maybe<Entries<Entry>>>,
    #[serde(rename = "credHelpers")]
    helpers: Option<Maybe<Entries<String>>>,
    #[serde(rename = "credsStore")]
    store: Option<Maybe<String>>,
}

type Entries<T> = BTreeMap<String, Maybe<T>>;

/// Something, or whatever else stands there.
#[derive(Deserialize)]
#[serde(untagged)]
enum Maybe<T> {
    Value(T),
    Other(IgnoredAny),
}

impl<T> Maybe<T> {
    fn value(self) -> Option<T> {
        match self {
            Maybe::Value(value) => Some(value),
            Maybe::Other(_) => None,
        }
    }
}

fn understood<T>(entries: Entries<T>) -> impl Iterator<Item = (String, T)> {
    entries.into_iter().filter_map(|(key, entry)| Some((key, entry.value()?)))
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<SecretString>,
    username: Option<String>,
    password: Option<SecretString>,
    #[serde(rename = "identitytoken")]
    identity_token: Option<SecretString>,
    #[serde(rename = "registrytoken")]
    registry_token: Option<SecretString>,
}

/// docker writes a user name beside a token, and an entry without anything for what its store holds.
fn login(entry: Entry) -> Option<Login> {
    let written = |secret: &SecretString| !secret.expose_secret().is_empty();
    let registry_token = entry.registry_token.filter(written).map(Login::RegistryToken);
    let identity_token = || entry.identity_token.filter(written).map(Login::IdentityToken);
    let decoded = || entry.auth.and_then(|auth| decode(auth.expose_secret()));
    let fields = || match (entry.username, entry.password) {
        (None, None) => None,
        (username, password) => basic(&username.unwrap_or_default(), password.as_ref().map_or("", |password| password.expose_secret())),
    };
    registry_token.or_else(identity_token).or_else(decoded).or_else(fields)
}

/// base64 of `user:password`, split at the first colon.
fn decode(auth: &str) -> Option<Login> {
    let decoded = Zeroizing::new(LENIENT.decode(auth.trim()).ok()?);
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    basic(username, password.trim_matches('\0'))
}

/// Some registries take a token as the user name or as the password, and nothing beside it.
fn basic(username: &str, password: &str) -> Option<Login> {
    let nothing = username.is_empty() && password.is_empty();
    (!nothing).then(|| Login::Basic { username: username.into(), password: password.into() })
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use proptest::prelude::*;

    use super::*;

    /// `b:me:secret`, `i:token`, `r:token`.
    fn written(login: &Login) -> String {
        match login {
            Login::Basic { username, password } => format!("b:{username}:{}", password.expose_secret()),
            Login::IdentityToken(token) => format!("i:{}", token.expose_secret()),
            Login::RegistryToken(token) => format!("r:{}", token.expose_secret()),
            Login::Anonymous => "anonymous".into(),
        }
    }

    fn find(json: &str, registry: &str, repository: &str) -> (Option<String>, Option<String>) {
        let config = DockerConfig::parse(json.as_bytes()).unwrap_or_else(|error| panic!("{json}: {error}"));
        let found = config.find(&Image::new(registry, repository));
        (found.helper, found.login.as_ref().map(written))
    }

    fn login_of(entry: &str) -> Option<String> {
        find(&format!(r#"{{"auths":{{"ghcr.io":{entry}}}}}"#), "ghcr.io", "org/app").1
    }

    #[test]
    fn credential_05_decoded_credentials_are_split_at_the_first_colon() {
        let auth = |text: &str| login_of(&format!(r#"{{"auth":"{}"}}"#, STANDARD.encode(text)));
        assert_eq!(auth("AWS:a:b:c").as_deref(), Some("b:AWS:a:b:c"));
        assert_eq!(auth("_json_key:{\n \"a\": 1\n}\n").as_deref(), Some("b:_json_key:{\n \"a\": 1\n}\n"));
        assert_eq!(auth("me:secret\0\0\0").as_deref(), Some("b:me:secret"));
        assert_eq!(auth("me:").as_deref(), Some("b:me:"));
        assert_eq!(auth(":token").as_deref(), Some("b::token"));
        for bad in ["", ":", "no colon", "me\0"] {
            assert_eq!(auth(bad), None, "{bad}");
        }
    }

    #[test]
    fn missing_padding_and_spaces_around_are_tolerated() {
        for auth in ["bWU6c2VjcmU=", "bWU6c2VjcmU", " bWU6c2VjcmU= ", "bWU6c2VjcmV"] {
            assert_eq!(login_of(&format!(r#"{{"auth":"{auth}"}}"#)).as_deref(), Some("b:me:secre"), "{auth}");
        }
    }

    #[test]
    fn credential_16_every_kind_of_entry_is_read() {
        for (entry, meant) in [
            (r#"{"auth":"bWU6c2VjcmU="}"#, Some("b:me:secre")),
            (r#"{"username":"me","password":"a:b","email":"x@y"}"#, Some("b:me:a:b")),
            (r#"{"auth":"bWU6c2VjcmU=","username":"other","password":"other"}"#, Some("b:me:secre")),
            (r#"{"auth":"!!","username":"me","password":"a"}"#, Some("b:me:a")),
            (r#"{"auth":"bWU6c2VjcmU=","identitytoken":"abc"}"#, Some("i:abc")),
            (r#"{"registrytoken":"abc","identitytoken":"def"}"#, Some("r:abc")),
            (r#"{"registrytoken":"","identitytoken":"","auth":"","password":"a","username":"me"}"#, Some("b:me:a")),
            ("{}", None),
            (r#"{"auth":""}"#, None),
            (r#"{"email":"x@y"}"#, None),
            (r#"{"username":"","password":""}"#, None),
        ] {
            assert_eq!(login_of(entry).as_deref(), meant, "{entry}");
        }
    }

    #[test]
    fn credential_16_a_dockercfg_is_a_bare_map_of_auths() {
        let json = r#"{"https://index.docker.io/v1/":{"auth":"bWU6c2VjcmU=","email":"x@y"},"quay.io":{"auth":"bWU6c2VjcmU="}}"#;
        assert_eq!(find(json, "docker.io", "library/alpine").1.as_deref(), Some("b:me:secre"));
        assert_eq!(find(json, "quay.io", "org/app").1.as_deref(), Some("b:me:secre"));
        assert_eq!(find(json, "ghcr.io", "org/app").1, None);
        for nothing in ["{}", r#"{"psFormat":"table","HttpHeaders":{"a":"b"},"debug":true}"#] {
            assert_eq!(find(nothing, "ghcr.io", "org/app"), (None, None));
        }
    }

    #[test]
    fn credential_18_one_bad_entry_does_not_void_the_file() {
        for bad in [r#"{"auth":"%%%"}"#, r#"{"auth":7}"#, "null", "[]", r#""text""#, r#"{"auth":"bm8gY29sb24="}"#, r#"{"auth":"/w=="}"#] {
            let json = format!(
                r#"{{"auths":{{"quay.io/org":{bad},"quay.io":{{"auth":"bWU6c2VjcmU="}}}},"credHelpers":{{"gcr.io":1}},"credsStore":{{}}}}"#
            );
            assert_eq!(find(&json, "quay.io", "org/app"), (None, Some("b:me:secre".into())), "{bad}");
        }
        for auths in ["null", "[]", "7"] {
            assert_eq!(find(&format!(r#"{{"auths":{auths},"credsStore":"pass"}}"#), "quay.io", "a").0.as_deref(), Some("pass"), "{auths}");
        }
    }

    #[test]
    fn a_registry_s_helper_comes_before_the_store_and_an_empty_one_is_none() {
        let json = r#"{"auths":{"gcr.io":{"auth":"bWU6c2VjcmU="}},"credsStore":"pass",
            "credHelpers":{"https://index.docker.io/v1/":"hub","gcr.io":"","*.dkr.ecr.*.amazonaws.com":"ecr-login"}}"#;
        assert_eq!(find(json, "docker.io", "library/alpine").0.as_deref(), Some("hub"));
        assert_eq!(find(json, "1.dkr.ecr.eu-west-1.amazonaws.com", "a").0.as_deref(), Some("ecr-login"));
        assert_eq!(find(json, "gcr.io", "a"), (None, Some("b:me:secre".into())));
        assert_eq!(find(json, "quay.io", "a").0.as_deref(), Some("pass"));
        assert_eq!(find(r#"{"auths":{},"credsStore":""}"#, "quay.io", "a").0, None);
    }

    #[test]
    fn credential_11_what_is_malformed_is_told_by_its_place_alone() {
        for json in ["", "hunter2", "[\"hunter2\"]", "\"hunter2\"", "{\"auths\":{\"a\":{\"auth\":\"hunter2\"}", "7", "null"] {
            let error = DockerConfig::parse(json.as_bytes()).err().unwrap_or_else(|| panic!("{json}"));
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let deep = "[".repeat(100_000);
        assert!(DockerConfig::parse(deep.as_bytes()).is_err());
        assert!(DockerConfig::parse(format!("{{\"auths\":{deep}").as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, auth: String, key: String) {
            let _ = DockerConfig::parse(&bytes);
            let _ = decode(&auth);
            let json = serde_json::json!({"auths": {key.clone(): {"auth": auth}}, "credHelpers": {key: "x"}});
            let config = DockerConfig::parse(json.to_string().as_bytes()).expect("an object");
            config.find(&Image::new("ghcr.io", "org/app"));
        }

        #[test]
        fn nearly_a_config_does_not_make_it_panic(text in "[{}\\[\\]:,\"a-z0-9.*/= ]{0,60}|\\{\"auths\":\\{\"[a-z.]{0,9}\":\\{\"auth\":\"[A-Za-z0-9+/=]{0,20}\"\\}\\}\\}") {
            if let Ok(config) = DockerConfig::parse(text.as_bytes()) {
                config.find(&Image::new("ghcr.io", "org/app"));
            }
        }
    }
}
