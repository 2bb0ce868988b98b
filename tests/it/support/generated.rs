//! Files that tests write: with `LARDER_BLESS` set they are written, without it they are compared.

use std::path::Path;

/// Compares a committed file with what it should be. `test` is the filter that runs the test which writes it.
#[track_caller]
pub fn check_generated(path: &str, text: &str, test: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("LARDER_BLESS").is_some() {
        std::fs::write(&file, text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    let differ = text.lines().zip(committed.lines().chain(std::iter::repeat(""))).find(|(now, then)| now != then);
    let remedy = format!("LARDER_BLESS=1 cargo test --test it {test}");
    assert!(text == committed, "{path} is not up to date: `{remedy}` writes it\nfirst difference: {differ:#?}");
}
