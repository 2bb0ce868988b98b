//! Sources as `auth` and `token` see them.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use http::HeaderValue;
use secrecy::ExposeSecret as _;

use super::*;

mod lookups;
mod programs;
pub(super) mod scripts;

const LIMITS: Limits = Limits { timeout: Duration::from_secs(10), output_bytes_max: 64 * 1024 };

fn source(kind: CredentialKind, registry: &str, environment: &Environment, limits: Limits) -> Source {
    let config = CredentialConfig { name: "default".into(), repositories: Vec::new(), kind };
    Source::with_limits(&config, registry, environment, limits, &panics())
}

fn panics() -> IntCounter {
    IntCounter::new("panics", "of tasks").expect("a name")
}

fn repository(name: &str) -> RepositoryName {
    name.parse().expect("a name")
}

/// `b:me:secret`, `i:token`, `r:token`, `anonymous`, or the error's detail.
async fn written(source: &Source, name: &str) -> String {
    match source.login(&repository(name)).await {
        Ok(Held { login: Login::Basic { username, password }, .. }) => format!("b:{username}:{}", password.expose_secret()),
        Ok(Held { login: Login::IdentityToken(token), .. }) => format!("i:{}", token.expose_secret()),
        Ok(Held { login: Login::RegistryToken(token), .. }) => format!("r:{}", token.expose_secret()),
        Ok(Held { login: Login::Anonymous, .. }) => "anonymous".into(),
        Err(UpstreamError::CredentialRefused { detail }) => detail,
        Err(error) => panic!("{error}"),
    }
}

/// What goes into a request.
async fn basic(credentials: &Credentials) -> Result<HeaderValue, UpstreamError> {
    let source = source(CredentialKind::Password(credentials.clone()), "docker.io", &Environment::default(), LIMITS);
    let held = source.login(&repository("library/app")).await?;
    Ok(held.login.authorization()?.expect("a header"))
}

/// Kubernetes' way with a volume's content: `name` → `..data/name`, `..data` → a folder, swapped at once.
fn publish(volume: &Path, generation: &str, name: &str, content: &str) {
    let folder = volume.join(generation);
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join(name), content).expect("a file");
    std::os::unix::fs::symlink(generation, volume.join("..data_tmp")).expect("a link");
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).expect("the swap");
    if !volume.join(name).exists() {
        std::os::unix::fs::symlink(format!("..data/{name}"), volume.join(name)).expect("a link");
    }
}

#[tokio::test]
async fn a_password_file_is_read_at_each_use_and_loses_one_newline() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("password");
    let credentials = Credentials { username: "me".into(), password: Secret::File(path.clone()) };
    let config = CredentialConfig::password("me", Secret::File(path.clone()));
    let source = Source::new(&config, "ghcr.io", &Environment::of_process(), &panics());
    assert_eq!(source.name(), "default");
    assert!(matches!(basic(&credentials).await, Err(UpstreamError::CredentialRefused { .. })));
    assert!(written(&source, "a").await.starts_with("password file "));
    for (content, meant) in [("one\n", "one"), ("two", "two"), ("three\r\n", "three"), ("four\n\n", "four\n"), ("a:b \n", "a:b ")] {
        std::fs::write(&path, content).expect("a file");
        let expected = format!("Basic {}", STANDARD.encode(format!("me:{meant}")));
        assert_eq!(basic(&credentials).await.expect("a header").to_str().expect("text"), expected);
        assert_eq!(written(&source, "a").await, format!("b:me:{meant}"));
    }
    for bad in ["", "\n"] {
        std::fs::write(&path, bad).expect("a file");
        assert!(written(&source, "a").await.ends_with("it is empty"));
    }
    std::fs::write(&path, vec![b'a'; 1024 * 1024 + 1]).expect("a file");
    assert!(written(&source, "a").await.ends_with("it is larger than 1024 KiB"));
}

/// Also: credential_20
#[tokio::test]
async fn credential_12_secrets_in_files_are_read_again_and_symlink_swaps_work() {
    let volume = tempfile::tempdir().expect("a directory");
    let path = volume.path().join("secret");
    let file = || Secret::File(path.clone());
    let password = Credentials { username: "me".into(), password: file() };
    let config = volume.path().join(".dockerconfigjson");
    let json = |password: &str| format!(r#"{{"auths":{{"ghcr.io":{{"username":"me","password":"{password}"}}}}}}"#);
    for (kind, name, shown) in [
        (CredentialKind::Password(password), "secret", "b:me:"),
        (CredentialKind::IdentityToken(file()), "secret", "i:"),
        (CredentialKind::RegistryToken(file()), "secret", "r:"),
        (CredentialKind::DockerConfig(config), ".dockerconfigjson", "b:me:"),
    ] {
        let content = |secret: &str| if name == "secret" { format!("{secret}\n") } else { json(secret) };
        let source = source(kind, "ghcr.io", &Environment::default(), LIMITS);
        let generation = |number| format!("..{number}_{}_{name}", &shown[..1]);
        publish(volume.path(), &generation(1), name, &content("one"));
        let first = source.login(&repository("a")).await.expect("a login").version;
        assert_eq!(written(&source, "a").await, format!("{shown}one"));
        publish(volume.path(), &generation(2), name, &content("two"));
        assert_eq!(written(&source, "a").await, format!("{shown}two"));
        assert_ne!(source.login(&repository("a")).await.expect("a login").version, first);
        publish(volume.path(), &generation(3), name, &content("one"));
        assert_eq!(source.login(&repository("a")).await.expect("a login").version, first);
    }
}

#[tokio::test]
async fn a_pipe_in_a_secret_s_place_holds_nobody_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR, 0)
        .expect("a pipe");
    let source = source(CredentialKind::IdentityToken(Secret::File(path)), "ghcr.io", &Environment::default(), LIMITS);
    assert!(written(&source, "a").await.ends_with("it is not a file"));
}

#[tokio::test]
async fn nothing_prints_the_password() {
    let credentials = Credentials { username: "me".into(), password: Secret::Inline("hunter2".into()) };
    let value = basic(&credentials).await.expect("a header");
    let source = source(CredentialKind::Password(credentials.clone()), "ghcr.io", &Environment::default(), LIMITS);
    let held = source.login(&repository("a")).await;
    let printed = format!("{credentials:?} {value:?} {source:?} {held:?}");
    assert!(!printed.contains("hunter2") && !printed.contains(&STANDARD.encode("me:hunter2")), "{printed}");
}
