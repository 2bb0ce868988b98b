//! Sources as `auth` and `token` see them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

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
