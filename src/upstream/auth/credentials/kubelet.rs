//! kubelet's credential provider protocol, v1: an image in, logins by pattern out. It is how the clouds' own plugins, made
//! for Kubernetes, sign larder in.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::Login;
use super::pattern::Image;
use super::protocol::{Answer, Lifetime, Logins, Question, Scope};

const API_GROUP: &str = "credentialprovider.kubelet.k8s.io/";
const API_VERSION: &str = "credentialprovider.kubelet.k8s.io/v1";
/// An answer "not to be cached" serves those who ask at the same time.
const LIFETIME_MIN: Duration = Duration::from_secs(5);
const LIFETIME_MAX: Duration = Duration::from_hours(24);

/// `command` is the program and its arguments.
pub(super) fn question<'a>(command: &'a [String], image: &Image) -> Option<Question<'a>> {
    let (program, arguments) = command.split_first()?;
    let request = Request { api_version: API_VERSION, kind: "CredentialProviderRequest", image: image.name() };
    Some(Question { program: program.clone(), arguments, input: serde_json::to_vec(&request).ok()? })
}

/// What it wrote and whether it says that it went well; or why that is no answer, in words that are not its own.
pub(super) fn answer(output: &[u8], succeeded: bool) -> Result<Answer, &'static str> {
    if !succeeded {
        return Err("failed");
    }
    let reply: Reply =
        serde_json::from_slice(output).map_err(|_| "answered with something else than JSON of a CredentialProviderResponse")?;
    if reply.kind != "CredentialProviderResponse" || !reply.api_version.starts_with(API_GROUP) {
        return Err("answered with something else than a CredentialProviderResponse");
    }
    let duration = match reply.cache_duration.as_deref() {
        None => Duration::ZERO,
        Some(text) => go_duration(text).ok_or("answered with a cacheDuration that is no duration")?,
    };
    let scope = match reply.cache_key_type {
        CacheKeyType::Image => Scope::Repository,
        CacheKeyType::Registry | CacheKeyType::Global => Scope::Registry,
    };
    let logins = reply.auth.unwrap_or_default().into_iter().map(|(pattern, auth)| {
        let login = Login::Basic { username: auth.username, password: auth.password };
        (pattern, login.into())
    });
    Ok(Answer { logins: Logins::Patterns(logins.collect()), scope, lifetime: lifetime(duration) })
}

/// Renewed when nine tenths are over, so that the last is for trying again.
fn lifetime(duration: Duration) -> Lifetime {
    let expire = duration.clamp(LIFETIME_MIN, LIFETIME_MAX);
    Lifetime { renew: expire - expire / 10, expire }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request {
    api_version: &'static str,
    kind: &'static str,
    image: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Reply {
    api_version: String,
    kind: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    auth: Option<BTreeMap<String, Auth>>,
}

#[derive(Deserialize)]
enum CacheKeyType {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize)]
struct Auth {
    username: String,
    password: SecretString,
}

/// `12h0m0s`, `1.5h`, `0`, as Go prints and reads durations; one below zero is none at all.
fn go_duration(text: &str) -> Option<Duration> {
    let (negative, mut rest) = text.strip_prefix('-').map_or((false, text.strip_prefix('+').unwrap_or(text)), |rest| (true, rest));
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, after) = rest.split_at(digits);
        let unit = after.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit);
        seconds += number.parse::<f64>().ok()? * seconds_of(unit)?;
        rest = after;
    }
    let most = Duration::from_hours(24 * 365).as_secs_f64();
    Duration::try_from_secs_f64(if negative { 0.0 } else { seconds.min(most) }).ok()
}

fn seconds_of(unit: &str) -> Option<f64> {
    match unit {
        "ns" => Some(1e-9),
        "us" | "µs" | "μs" => Some(1e-6),
        "ms" => Some(1e-3),
        "s" => Some(1.0),
        "m" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret as _;

    fn reply(rest: &str) -> Result<Answer, &'static str> {
        let head = r#""kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1""#;
        answer(format!("{{{head},{rest}}}").as_bytes(), true)
    }

    #[test]
    fn the_question_is_kubelet_s() {
        let command = ["/opt/plugin".to_owned(), "--flag".to_owned()];
        let question = question(&command, &Image::new("docker.io", "library/alpine")).expect("a question");
        assert_eq!((question.program.as_str(), question.arguments), ("/opt/plugin", &command[1..]));
        let expected = r#"{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderRequest","image":"docker.io/library/alpine"}"#;
        assert_eq!(String::from_utf8(question.input).expect("text"), expected);
    }

    #[test]
    fn credential_18_the_longest_pattern_that_fits_the_image_wins() {
        let auth = |user: &str| format!(r#"{{"username":"{user}","password":"p"}}"#);
        let auths = [("*.azurecr.io", "glob"), ("team.azurecr.io", "host"), ("team.azurecr.io/org", "path"), ("quay.io", "other")];
        let auths: Vec<_> = auths.iter().map(|(pattern, user)| format!(r#""{pattern}":{}"#, auth(user))).collect();
        let answer = reply(&format!(r#""cacheKeyType":"Global","auth":{{{}}}"#, auths.join(","))).expect("an answer");
        let user = |registry, repository| match answer.login(&Image::new(registry, repository)).login {
            Login::Basic { username, password } if password.expose_secret() == "p" => username,
            login => format!("{login:?}"),
        };
        assert_eq!(user("other.azurecr.io", "org/app"), "glob");
        assert_eq!(user("team.azurecr.io", "app"), "host");
        assert_eq!(user("team.azurecr.io", "org/app"), "path");
        assert_eq!(user("team.azurecr.io", "organ/app"), "host");
        assert_eq!(user("ghcr.io", "org/app"), "Anonymous");
    }

    #[test]
    fn an_answer_is_renewed_before_it_expires_and_holds_for_what_it_says() {
        let kept =
            |rest: &str| reply(rest).map(|answer| (answer.scope, answer.lifetime.renew.as_secs_f64(), answer.lifetime.expire.as_secs()));
        assert_eq!(kept(r#""cacheKeyType":"Registry","cacheDuration":"12h0m0s","auth":{}"#), Ok((Scope::Registry, 38_880.0, 43_200)));
        assert_eq!(kept(r#""cacheKeyType":"Image","cacheDuration":"10m","auth":null"#), Ok((Scope::Repository, 540.0, 600)));
        for short in [
            r#""cacheKeyType":"Global""#,
            r#""cacheKeyType":"Global","cacheDuration":"0s""#,
            r#""cacheKeyType":"Global","cacheDuration":null"#,
        ] {
            assert_eq!(kept(short), Ok((Scope::Registry, 4.5, 5)), "{short}");
        }
        assert_eq!(kept(r#""cacheKeyType":"Global","cacheDuration":"99999999h""#), Ok((Scope::Registry, 77_760.0, 86_400)));
    }

    #[test]
    fn credential_19_what_is_no_answer_is_an_error_without_its_words() {
        for rest in [
            r#""auth":{"hunter2":{}}"#,
            r#""cacheKeyType":"Hunter2""#,
            r#""cacheKeyType":"Global","cacheDuration":"hunter2""#,
            r#""cacheKeyType":"Global","auth":{"x":{"username":"hunter2"}}"#,
        ] {
            let why = reply(rest).expect_err(rest);
            assert!(!why.contains("hunter2"), "{why}");
        }
        let good =
            r#"{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1beta1","cacheKeyType":"Image"}"#;
        assert!(answer(good.as_bytes(), true).is_ok());
        for (output, succeeded) in
            [(good, false), ("hunter2", true), ("", true), (r#"{"kind":"Status","apiVersion":"v1","cacheKeyType":"Image"}"#, true)]
        {
            assert!(answer(output.as_bytes(), succeeded).is_err_and(|why| !why.contains("hunter2")), "{output}");
        }
    }

    #[test]
    fn durations_are_go_s() {
        let seconds = |text| go_duration(text).map(|duration| duration.as_secs_f64());
        for (text, meant) in [
            ("12h0m0s", 43_200.0),
            ("1.5h", 5_400.0),
            ("300ms", 0.3),
            ("1m30s", 90.0),
            ("0", 0.0),
            ("0s", 0.0),
            ("+2s", 2.0),
            ("-1h", 0.0),
            ("7µs", 7e-6),
            (".5s", 0.5),
        ] {
            assert_eq!(seconds(text), Some(meant), "{text}");
        }
        for bad in ["", "-", "12", "h", "1x", "1d", "s1", "1..2s", "1e3s", "NaNs", " 1s", "1h "] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_words_make_it_panic(output: Vec<u8>, succeeded: bool, text in "[-+0-9.a-zµ]{0,12}", any: String) {
            let _ = answer(&output, succeeded);
            let _ = go_duration(&text);
            let _ = go_duration(&any);
        }
    }
}
