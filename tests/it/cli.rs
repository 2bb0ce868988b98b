//! The binary as a shell sees it: arguments in; stdout, stderr and an exit code out.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::{Command, Output};

struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

/// Runs larder with arguments and a configuration, in a clean environment.
fn larder(arguments: &[&str], yaml: &str) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("larder.yaml");
    std::fs::write(&path, yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.args(arguments).env_clear().env("HOME", directory.path()).env("LARDER_CONFIG", &path);
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ran { code: status.code(), stdout: String::from_utf8(stdout).unwrap(), stderr: String::from_utf8(stderr).unwrap() }
}

/// The stdout of a command that must succeed.
#[track_caller]
fn prints(arguments: &[&str], yaml: &str) -> String {
    let Ran { code, stdout, stderr } = larder(arguments, yaml);
    assert_eq!(code, Some(0), "{stderr}");
    stdout
}

const TWO: &str = "upstreams: {docker.io: {}, ghcr.io: {}}";

#[test]
fn bad_usage_and_bad_configuration_exit_with_2() {
    for arguments in [&["serv"][..], &[], &["client-config", "emacs"], &["check-config", "--config", "/nowhere.yaml"]] {
        let ran = larder(arguments, "");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!ran.stderr.is_empty());
    }
    for command in [&["serve"][..], &["check-config"], &["healthcheck"], &["client-config", "docker"]] {
        let ran = larder(command, "cache:\n  max_sise: 1GiB\n");
        assert_eq!(ran.code, Some(2), "{command:?}");
        assert!(ran.stderr.contains("larder.yaml:2:3: cache.max_sise: unknown key; did you mean cache.max_size?"), "{}", ran.stderr);
    }
}

#[test]
fn a_good_configuration_is_ok_and_can_be_printed() {
    assert!(prints(&["check-config"], TWO).ends_with("larder.yaml: ok\n"));
    let printed = prints(&["check-config", "--print"], TWO);
    let value: serde_yaml::Value = serde_yaml::from_str(&printed).unwrap();
    assert_eq!(value["server"]["listen"][0], "127.0.0.1:5000");
    assert_eq!(value["upstreams"]["docker.io"]["tag_ttl"], "5m");
}

#[test]
fn the_schema_is_printed_without_a_configuration() {
    let ran = larder(&["config-schema"], "cache: {max_sise: 1GiB}");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert_eq!(serde_json::from_str::<serde_json::Value>(&ran.stdout).unwrap(), larder::config::schema());
}

#[test]
fn warnings_do_not_fail() {
    let ran = larder(&["check-config"], "cache: {max_size: 100000TiB}");
    assert_eq!(ran.code, Some(0));
    assert!(ran.stderr.starts_with("warning: ") && ran.stderr.contains("larder.yaml:1:19: cache.max_size"), "{}", ran.stderr);
}

#[test]
fn the_version_names_commit_and_compiler() {
    let printed = prints(&["version"], "");
    let lines: Vec<_> = printed.lines().collect();
    assert!(
        matches!(lines.as_slice(), [version, commit, rustc]
        if version.starts_with("larder 0.") && commit.starts_with("commit ") && rustc.starts_with("rustc 1.")),
        "{printed}"
    );
    assert!(prints(&["--help"], "").contains("client-config"));
}

#[test]
fn docker_gets_a_daemon_json() {
    let printed = prints(&["client-config", "docker"], TWO);
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(value, serde_json::json!({ "registry-mirrors": ["http://127.0.0.1:5000"] }));
    let printed = prints(&["client-config", "docker", "--url", "https://mirror.corp"], &format!("default_upstream: ghcr.io\n{TWO}"));
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(value, serde_json::json!({ "registry-mirrors": ["https://mirror.corp/docker.io"] }));
    let notes = larder(&["client-config", "docker", "--url", "http://mirror.corp:5000"], TWO).stderr;
    assert!(notes.contains("/etc/docker/daemon.json") && notes.contains("\"insecure-registries\": [\"mirror.corp:5000\"]"), "{notes}");
}

/// Where the address alone does not mean docker.io, the path says it.
#[test]
fn docker_s_mirror_is_the_listener_s_upstream() {
    let mirror = |arguments: &[&str], listen: &str| {
        let yaml = format!("server: {{listen: {listen}}}\n{TWO}");
        let printed = prints(&[&["client-config", "docker"], arguments].concat(), &yaml);
        let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
        value["registry-mirrors"][0].as_str().unwrap().to_owned()
    };
    let ghcr_second = "[127.0.0.1:5000, {address: 127.0.0.1:5002, default_upstream: ghcr.io}]";
    assert_eq!(mirror(&[], ghcr_second), "http://127.0.0.1:5000");
    assert_eq!(mirror(&["--url", "http://mirror.corp:5002"], ghcr_second), "http://mirror.corp:5002/docker.io");
    assert_eq!(mirror(&["--url", "https://mirror.corp"], ghcr_second), "https://mirror.corp/docker.io");
    assert_eq!(mirror(&[], "[{address: 127.0.0.1:5000, default_upstream: ghcr.io}]"), "http://127.0.0.1:5000/docker.io");
}

#[test]
fn containerd_gets_a_hosts_toml_for_each_registry() {
    let printed = prints(&["client-config", "containerd", "--url", "http://mirror.corp:5000"], TWO);
    let expected = "\
# /etc/containerd/certs.d/docker.io/hosts.toml
# No server: when larder cannot answer, the registry itself is asked.

[host.\"http://mirror.corp:5000\"]
  capabilities = [\"pull\", \"resolve\"]

# /etc/containerd/certs.d/ghcr.io/hosts.toml
# No server: when larder cannot answer, the registry itself is asked.

[host.\"http://mirror.corp:5000\"]
  capabilities = [\"pull\", \"resolve\"]
";
    assert_eq!(printed, expected);
    let printed = prints(&["client-config", "containerd", "--registry", "ghcr.io", "--no-fallback"], TWO);
    let expected = "\
# /etc/containerd/certs.d/ghcr.io/hosts.toml
# In the registry's place, so that it is never asked.
server = \"http://127.0.0.1:5000\"

[host.\"http://127.0.0.1:5000\"]
  capabilities = [\"pull\", \"resolve\"]
";
    assert_eq!(printed, expected);
}

#[test]
fn podman_gets_mirrors_by_path() {
    let yaml = "upstreams: {docker.io: {}, r.corp:5000: {aliases: [inner]}}";
    let printed = prints(&["client-config", "podman"], yaml);
    let expected = "\
# /etc/containers/registries.conf.d/50-larder.conf

[[registry]]
prefix = \"docker.io\"
location = \"docker.io\"

[[registry.mirror]]
location = \"127.0.0.1:5000/docker.io\"
insecure = true

[[registry]]
prefix = \"r.corp:5000\"
location = \"r.corp:5000\"

[[registry.mirror]]
location = \"127.0.0.1:5000/inner\"
insecure = true
";
    assert_eq!(printed, expected);
    let printed = prints(&["client-config", "podman", "--no-fallback", "--url", "https://mirror.corp"], "upstreams: {docker.io: {}}");
    let expected = "\
# /etc/containers/registries.conf.d/50-larder.conf

[[registry]]
prefix = \"docker.io\"
location = \"mirror.corp/docker.io\"
";
    assert_eq!(printed, expected);
}

#[test]
fn a_registry_that_podman_cannot_spell_is_named() {
    let ran = larder(&["client-config", "podman"], "upstreams: {docker.io: {}, r.corp:5000: {}}");
    assert!(!ran.stdout.contains("r.corp") && ran.stderr.contains("left out: r.corp:5000"), "{}", ran.stderr);
}

#[test]
fn k3s_gets_a_registries_yaml() {
    let printed = prints(&["client-config", "k3s", "--url", "http://10.0.0.1:5000"], TWO);
    let value: serde_yaml::Value = serde_yaml::from_str(&printed).unwrap();
    for registry in ["docker.io", "ghcr.io"] {
        assert_eq!(value["mirrors"][registry]["endpoint"][0], "http://10.0.0.1:5000");
    }
    let notes = larder(&["client-config", "k3s", "--no-fallback"], TWO).stderr;
    assert!(notes.contains("--disable-default-registry-endpoint"), "{notes}");
}

#[test]
fn buildkit_gets_a_buildkitd_toml() {
    let printed = prints(&["client-config", "buildkit", "--url", "http://mirror.corp:5000", "--registry", "docker.io"], TWO);
    let expected = "\
# /etc/buildkit/buildkitd.toml
[registry.\"docker.io\"]
  mirrors = [\"mirror.corp:5000\"]

[registry.\"mirror.corp:5000\"]
  http = true
";
    assert_eq!(printed, expected);
}

#[test]
fn what_a_client_cannot_do_is_refused_and_not_printed() {
    for (arguments, why) in [
        (&["client-config", "docker", "--no-fallback"][..], "always asks the registry itself"),
        (&["client-config", "buildkit", "--no-fallback"], "always asks the registry itself"),
        (&["client-config", "docker", "--registry", "ghcr.io"], "docker.io only"),
        (&["client-config", "k3s", "--registry", "quay.io"], "not one of the upstreams"),
        (&["client-config", "k3s", "--url", "https://mirror.corp/path"], "has a path"),
        (&["client-config", "k3s", "--url", "mirror.corp:5000"], "--url is not"),
    ] {
        let ran = larder(arguments, TWO);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(ran.stderr.contains(why), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn a_distribution_configuration_becomes_one_that_check_config_accepts() {
    let directory = tempfile::tempdir().unwrap();
    let old = directory.path().join("config.yml");
    let text = "http: {addr: ':5000', tls: {certificate: /a, key: /b}}\nproxy: {remoteurl: 'https://registry-1.docker.io', username: me, password: x}\n";
    std::fs::write(&old, text).unwrap();
    let ran = larder(&["import-config", old.to_str().unwrap()], "");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stderr.contains("dropped: http.tls: "), "{}", ran.stderr);
    assert!(prints(&["check-config"], &ran.stdout).ends_with("larder.yaml: ok\n"));
    std::fs::write(&old, "version: 0.1").unwrap();
    let ran = larder(&["import-config", old.to_str().unwrap()], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""));
    assert!(ran.stderr.contains("config.yml: no proxy.remoteurl"), "{}", ran.stderr);
}

#[test]
fn an_import_tells_a_line_or_a_document() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("docker/registry/v2/repositories")).unwrap();
    let arguments = ["import", "registry2", directory.path().to_str().unwrap(), "--upstream", "registry-1.docker.io"];
    assert!(prints(&arguments, "").starts_with("0 blobs taken (0 reflinked, 0 hardlinked, 0 copied), "));
    let printed = prints(&[&arguments[..], &["--json"]].concat(), "");
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((&value["blobs"]["damaged"], &value["images_left_out"]), (&0.into(), &0.into()));
    let ran = larder(&["import", "registry2", "/nowhere", "--upstream", "docker.io"], "");
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("storage.filesystem.rootdirectory"), "{}", ran.stderr);
}

/// Answers one request with a status line, and runs the check against it.
fn healthcheck(answer: &'static str) -> (Ran, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!("admin: {{listen: {}}}", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 512];
        let length = stream.read(&mut request).unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
        String::from_utf8_lossy(&request[..length]).into_owned()
    });
    (larder(&["healthcheck"], &yaml), server.join().unwrap())
}

#[test]
fn the_healthcheck_says_what_readyz_says() {
    let (ran, request) = healthcheck("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    assert!(request.starts_with("GET /readyz HTTP/1.1\r\n"), "{request}");
    let (ran, _) = healthcheck("HTTP/1.1 503 Service Unavailable\r\n\r\n");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("answered HTTP/1.1 503"), "{}", ran.stderr);
    let (ran, _) = healthcheck("HTTP/1.1 2000");
    assert_eq!(ran.code, Some(0), "three digits are a status");
}

#[test]
fn the_healthcheck_fails_when_nobody_listens_or_answers() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let yaml = format!("admin: {{listen: {}}}", listener.local_addr().unwrap());
    // Connected by the kernel, and never accepted.
    let ran = larder(&["healthcheck"], &yaml);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("did not answer within 3 s"), "{}", ran.stderr);
    drop(listener);
    let ran = larder(&["healthcheck"], &yaml);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("not ready"), "{}", ran.stderr);
}

/// Answers every request on a port of loopback with these bytes, until the test ends.
fn serve(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address.to_string()
}

#[test]
fn the_upstreams_are_asked_when_that_is_wished_and_exit_with_1_when_one_does_not_work() {
    let open = serve("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}");
    let closed = serve("HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    let works = format!("upstreams: {{docker.io: {{url: 'http://{open}'}}}}");
    let printed = prints(&["check-config", "--online"], &works);
    assert!(printed.contains("larder.yaml: ok\n\ndocker.io: ok\n  url     http://127.0.0.1:"), "{printed}");
    let printed = prints(&["check-config", "--online", "--print"], &works);
    let value: serde_yaml::Value = serde_yaml::from_str(&printed).unwrap();
    assert!(value["upstreams"]["docker.io"].is_mapping() && printed.contains("\n# docker.io: ok\n#   url "), "{printed}");
    let fails = format!("upstreams: {{docker.io: {{url: 'http://{open}'}}, corp.test: {{url: 'http://{closed}'}}}}");
    assert_eq!(larder(&["check-config"], &fails).code, Some(0));
    let ran = larder(&["check-config", "--online"], &fails);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(1), "1 of 2 upstreams does not work as configured: corp.test\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("corp.test: does not work\n") && ran.stdout.contains("docker.io: ok\n"), "{}", ran.stdout);
    let ran = larder(&["check-config", "--online"], "upstreams: {docker.io: {ca_file: /nowhere/ca.pem}}");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "nobody is asked by a wrong configuration: {}", ran.stderr);
}
