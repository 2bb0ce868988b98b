//! Helpers and credential providers, as scripts.

use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io;

use tokio::task::JoinSet;

use super::scripts::Scripts;
use super::*;

/// Says on which run it is, as the password.
const COUNTING: &str = r#"echo run >>"${0%/*}/runs"; printf '{"Username":"me","Secret":"%s"}' "$(($(wc -l <"${0%/*}/runs")))""#;

fn helper(scripts: &Scripts, body: &str) -> Source {
    scripts.write("docker-credential-test", body);
    source(CredentialKind::DockerHelper("test".into()), "ghcr.io", &scripts.environment(), LIMITS)
}

/// A plugin that answers with the run as the password, and with this beside it.
fn plugin(scripts: &Scripts, rest: &str) -> Source {
    let head = r#""kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1""#;
    let auth = r#""auth":{"*.azurecr.io":{"username":"me","password":"%s"}}"#;
    let body = format!(
        r#"cat >>"${{0%/*}}/questions"; echo run >>"${{0%/*}}/runs"; [ -e "${{0%/*}}/broken" ] && exit 7
           printf '{{{head},{auth},{rest}}}' "$(($(wc -l <"${{0%/*}}/runs")))""#
    );
    scripts.write("plugin", &body);
    let command = vec![scripts.path("plugin").to_str().expect("text").to_owned()];
    source(CredentialKind::KubeletProvider(command), "team.azurecr.io", &scripts.environment(), LIMITS)
}

fn runs(scripts: &Scripts) -> usize {
    scripts.lines("runs").len()
}

#[tokio::test]
async fn credential_19_what_a_helper_may_say() {
    for (body, meant) in [
        (r#"[ "$1" = get ] && read url; printf '{"ServerURL":"%s","Username":"me","Secret":"%s"}' "$url" "$url""#, "b:me:ghcr.io"),
        (r#"echo '{"Username":"<token>","Secret":"abc"}'"#, "i:abc"),
        ("echo credentials not found in native keychain; exit 1", "anonymous"),
        ("echo hunter2; exit 2", "docker-credential-test failed: exit status: 2"),
        ("echo hunter2 >&2; kill -9 $$", "docker-credential-test failed: signal: 9 (SIGKILL)"),
        ("echo hunter2", "docker-credential-test answered with something else than JSON of a login"),
        ("true", "docker-credential-test answered with something else than JSON of a login"),
        ("exec cat /dev/zero", "docker-credential-test wrote more than 65536 bytes"),
    ] {
        let scripts = Scripts::new();
        assert_eq!(written(&helper(&scripts, body), "a").await, meant, "{body}");
    }
}

#[tokio::test]
async fn credential_19_a_helper_that_hangs_fails_all_who_wait_once() {
    let scripts = Scripts::new();
    scripts.write("docker-credential-test", r#"echo run >>"${0%/*}/runs"; exec sleep 1000"#);
    let limits = Limits { timeout: Duration::from_millis(200), ..LIMITS };
    let source = Arc::new(source(CredentialKind::DockerHelper("test".into()), "ghcr.io", &scripts.environment(), limits));
    let mut waiting = JoinSet::new();
    for _ in 0..100 {
        let source = Arc::clone(&source);
        waiting.spawn(async move { written(&source, "a").await });
    }
    let meant = "docker-credential-test gave no answer within 200ms";
    assert!(waiting.join_all().await.iter().all(|said| said == meant));
    assert_eq!((written(&source, "a").await.as_str(), runs(&scripts)), (meant, 1));
}

#[tokio::test]
async fn a_program_that_is_not_there_is_found_once_it_is() {
    let scripts = Scripts::new();
    let at = || source(CredentialKind::DockerHelper("test".into()), "ghcr.io", &scripts.environment(), LIMITS);
    assert!(written(&at(), "a").await.starts_with("docker-credential-test could not be run: No such file"));
    helper(&scripts, COUNTING);
    assert_eq!(written(&at(), "a").await, "b:me:1");
    let none = source(CredentialKind::KubeletProvider(Vec::new()), "ghcr.io", &scripts.environment(), LIMITS);
    assert_eq!(written(&none, "a").await, "the credential provider is not written");
}

#[tokio::test]
async fn a_refused_answer_is_asked_for_anew_once() {
    let scripts = Scripts::new();
    let source = helper(&scripts, COUNTING);
    let version = async || source.login(&repository("a")).await.expect("a login").version;
    let first = version().await;
    assert_eq!((version().await == first, runs(&scripts)), (true, 1));
    source.refused(&first);
    let second = version().await;
    assert_eq!((second == first, runs(&scripts)), (false, 2));
    source.refused(&first);
    assert_eq!((version().await == second, runs(&scripts)), (true, 2), "what came since stays");

    scripts.write("docker-credential-test", r#"echo run >>"${0%/*}/runs"; echo '{"Username":"me","Secret":"2"}'"#);
    for _ in 0..3 {
        source.refused(&second);
        assert!(version().await == second);
    }
    assert_eq!(runs(&scripts), 3, "the same login is asked for anew once, not at each refusal");
}

/// Also: credential_15
#[tokio::test]
async fn credential_06_any_number_of_cold_pulls_cost_one_run() {
    let scripts = Scripts::new();
    let source = Arc::new(plugin(&scripts, r#""cacheKeyType":"Registry","cacheDuration":"12h0m0s""#));
    let mut waiting = JoinSet::new();
    for number in 0..1_000 {
        let source = Arc::clone(&source);
        waiting.spawn(async move { written(&source, &format!("org/app{}", number % 25)).await });
    }
    assert!(waiting.join_all().await.iter().all(|said| said == "b:me:1"));
    assert_eq!(runs(&scripts), 1);
    let question = scripts.lines("questions").join("");
    assert!(question.contains(r#""image":"team.azurecr.io/org/app"#), "{question}");
}

#[tokio::test]
async fn an_answer_for_one_image_serves_no_other() {
    let scripts = Scripts::new();
    let source = Arc::new(plugin(&scripts, r#""cacheKeyType":"Image","cacheDuration":"1h""#));
    let mut waiting = JoinSet::new();
    for number in 0..100 {
        let source = Arc::clone(&source);
        waiting.spawn(async move { (number % 5, written(&source, &format!("org/app{}", number % 5)).await) });
    }
    let said: BTreeSet<_> = waiting.join_all().await.into_iter().collect();
    assert_eq!((said.len(), runs(&scripts)), (5, 5), "{said:?}");
    let questions = scripts.lines("questions").join("");
    let asked: BTreeSet<_> = questions.split("\"image\":").skip(1).filter_map(|rest| rest.split('}').next()).collect();
    assert_eq!(asked.len(), 5, "{asked:?}");
}

#[tokio::test]
async fn whoever_asked_first_may_leave() {
    let scripts = Scripts::new();
    let body = r#"echo run >>"${0%/*}/runs"; while [ ! -e "${0%/*}/go" ]; do sleep 0.01; done; echo '{"Username":"me","Secret":"1"}'"#;
    let source = helper(&scripts, body);
    let first = tokio::time::timeout(Duration::from_millis(100), source.login(&repository("a"))).await;
    assert!(first.is_err());
    std::fs::write(scripts.path("go"), "").expect("a file");
    assert_eq!((written(&source, "a").await.as_str(), runs(&scripts)), ("b:me:1", 1));
}

/// Waits until no program runs, so that a jump ahead is none for it.
async fn rests(source: &Source) {
    let Kind::Program(program) = &source.kind else { panic!("a program") };
    while !program.rests() {
        tokio::task::yield_now().await;
    }
}

/// Jumps ahead; the scripts run in real time.
async fn pass(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

#[tokio::test]
async fn credential_08_a_failed_renewal_keeps_an_answer_that_has_not_expired() {
    let scripts = Scripts::new();
    let source = plugin(&scripts, r#""cacheKeyType":"Global","cacheDuration":"10m""#);
    let said = async || written(&source, "a").await;
    assert_eq!(said().await, "b:me:1");
    std::fs::write(scripts.path("broken"), "").expect("a file");
    pass(Duration::from_secs(500)).await;
    assert_eq!((said().await.as_str(), runs(&scripts)), ("b:me:1", 1));
    pass(Duration::from_secs(50)).await;
    assert_eq!(said().await, "b:me:1");
    rests(&source).await;
    assert_eq!(runs(&scripts), 2);
    assert_eq!(said().await, "b:me:1");
    pass(Duration::from_secs(51)).await;
    assert!(said().await.ends_with("plugin failed: exit status: 7"));
    std::fs::remove_file(scripts.path("broken")).expect("it was there");
    assert!(said().await.ends_with("plugin failed: exit status: 7"), "a failure is held for a moment");
    pass(Duration::from_secs(11)).await;
    assert_eq!(said().await, format!("b:me:{}", runs(&scripts)));
}

#[tokio::test]
async fn an_answer_is_renewed_while_the_old_one_serves() {
    let scripts = Scripts::new();
    let source = helper(&scripts, COUNTING);
    assert_eq!(written(&source, "a").await, "b:me:1");
    pass(Duration::from_secs(299)).await;
    assert_eq!(written(&source, "a").await, "b:me:1");
    pass(Duration::from_secs(2)).await;
    assert_eq!(written(&source, "a").await, "b:me:1");
    while written(&source, "a").await != "b:me:2" {
        tokio::task::yield_now().await;
    }
    pass(Duration::from_secs(601)).await;
    assert_eq!((written(&source, "a").await.as_str(), runs(&scripts)), ("b:me:3", 3));
}

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn credential_11_a_failure_is_logged_once_and_no_secret_ever() {
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(move || to.clone()).finish();
    // While there is just one subscriber, tracing lets a test on another thread, which has none, decide what is of interest.
    let _other = tracing::Dispatch::new(tracing::subscriber::NoSubscriber::default());
    let _guard = tracing::subscriber::set_default(subscriber);
    let scripts = Scripts::new();
    let path = scripts.path("token");
    let token = source(CredentialKind::IdentityToken(Secret::File(path.clone())), "ghcr.io", &Environment::default(), LIMITS);
    let (bad, none) = (helper(&scripts, "echo hunter2; echo hunter2 >&2; exit 1"), Scripts::new());
    let none = helper(&none, "echo credentials not found in native keychain; exit 1");
    for content in ["", "", "hunter2", "hunter2", ""] {
        std::fs::write(&path, content).expect("a file");
        let held = token.login(&repository("a")).await;
        tracing::trace!(?held, bad = ?bad.login(&repository("a")).await, none = ?none.login(&repository("a")).await, "said");
    }
    let text = String::from_utf8(lines.0.lock().clone()).expect("text");
    let times = |words: &str| text.lines().filter(|line| line.contains(words) && !line.contains("said")).count();
    assert_eq!((times("token: it is empty"), times("had again"), times("test failed"), times("holds no login")), (2, 1, 1, 1), "{text}");
    assert!(text.contains("IdentityToken") && !text.contains("hunter2"), "{text}");
}
