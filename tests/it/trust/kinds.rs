//! A canary of every kind of credential, accepted and refused: it goes where it belongs, and stands nowhere else.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use larder::config::{CredentialConfig, CredentialKind, Credentials, Secret, Visibility};

use super::{CANARY, CDN, Hub, LATEST, USER, check_clean, check_replies};
use crate::support::larder::Setup;
use crate::support::log::listen;
use crate::support::registry::{Bearer, any};

/// Every kind that a configuration can have, each with the canary as its secret, in a directory of its own.
fn kinds(directory: &Path) -> Vec<(&'static str, CredentialKind)> {
    let file = |name: &str, content: String| {
        let path = directory.join(name);
        std::fs::write(&path, content).expect("a file");
        path
    };
    let inline = || Secret::Inline(CANARY.into());
    let password = |password| CredentialKind::Password(Credentials { username: USER.into(), password });
    let docker = |name, entry: String| CredentialKind::DockerConfig(file(name, format!(r#"{{"auths":{{"docker.io":{entry}}}}}"#)));
    let basic = STANDARD.encode(format!("{USER}:{CANARY}"));
    vec![
        ("password", password(inline())),
        ("password_file", password(Secret::File(file("password", format!("{CANARY}\n"))))),
        ("docker_config", docker("config.json", format!(r#"{{"auth":"{basic}"}}"#))),
        ("docker_config, in clear", docker("auth.json", format!(r#"{{"username":"{USER}","password":"{CANARY}"}}"#))),
        ("kubelet_provider", CredentialKind::KubeletProvider(vec![provider(directory)])),
        ("identity_token", CredentialKind::IdentityToken(inline())),
        ("identity_token_file", CredentialKind::IdentityToken(Secret::File(file("identity", CANARY.into())))),
        ("docker_config, identitytoken", docker("identity.json", format!(r#"{{"identitytoken":"{CANARY}"}}"#))),
        ("registry_token", CredentialKind::RegistryToken(inline())),
        ("docker_config, registrytoken", docker("registry.json", format!(r#"{{"registrytoken":"{CANARY}"}}"#))),
    ]
}

/// Also one that says its secret where it should not.
fn provider(directory: &Path) -> String {
    let path = directory.join("provider");
    let body = format!(
        r#"echo "{CANARY}" >&2
echo '{{"apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse","cacheKeyType":"Registry","cacheDuration":"1h","auth":{{"docker.io":{{"username":"{USER}","password":"{CANARY}"}}}}}}'"#
    );
    let mut shell =
        Command::new("sh").args(["-c", r#"cat >"$0" && chmod 755 "$0""#]).arg(&path).stdin(Stdio::piped()).spawn().expect("a shell");
    write!(shell.stdin.take().expect("its input"), "#!/bin/sh\n{body}\n").expect("it reads");
    assert!(shell.wait().expect("its end").success());
    path.to_string_lossy().into_owned()
}

/// Also: credential_09, credential_11
#[tokio::test]
async fn invariant_16_a_canary_of_every_kind_of_credential_stands_nowhere_it_does_not_belong() {
    let (lines, _guard) = listen();
    let directory = tempfile::tempdir().expect("a directory");
    for (name, kind) in kinds(directory.path()) {
        for is_good in [true, false] {
            let scene = Hub::with_2000_bytes();
            scene.net.host("cdn.test", CDN, &scene.registry);
            scene.registry.redirect_blobs("http://cdn.test");
            let (user, secret) = if is_good { (USER, CANARY) } else { ("another", "another") };
            let by_token = Bearer::at("http://hub.test/token").credentials(user, secret).identity_token(secret);
            if name.contains("registry") {
                // It is taken by whoever does not look, and refused by whoever looks.
                if !is_good {
                    scene.registry.require_bearer(by_token.credentials_required());
                }
            } else {
                scene.registry.require_bearer(by_token.credentials_required());
            }
            let credential = CredentialConfig { name: "default".into(), repositories: Vec::new(), kind: kind.clone() };
            let setup = Setup::new(&scene.net).hub(|hub| (hub.credentials, hub.visibility) = (vec![credential], Visibility::Private));
            check_clean(&format!("{name}: its Debug"), &format!("{:?}", setup.config));
            let larder = setup.start();
            let replies = [larder.get(LATEST).await, larder.get(&scene.blob()).await];
            let expected = if is_good { 200 } else { 502 };
            assert_eq!(replies.each_ref().map(|reply| reply.status), [expected; 2], "{name}, good: {is_good}");
            check_replies(&larder, &replies);
            larder.clock.advance(Duration::from_secs(3600));
            check_replies(&larder, &[larder.get(LATEST).await]);
            for request in scene.registry.seen(any().host("cdn.test")) {
                check_clean(&format!("{name}: another origin"), &format!("{request:?}"));
            }
            assert!(scene.registry.requests().iter().all(|request| !request.query.contains(CANARY)), "{name}: never in a URL");
        }
    }
    check_clean("the log", &lines.text());
}
