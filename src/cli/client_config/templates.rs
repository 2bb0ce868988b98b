//! One function for each kind of client. What they say was read in the clients' sources.

use std::fmt::Write;

use serde_json::json;

use super::{ClientConfig, Request};
use crate::oci::registries::DOCKER_HUB;

// dockerd mirrors Docker Hub and nothing else.
pub(super) fn docker(request: &Request) -> Result<ClientConfig, String> {
    if !request.registries.iter().any(|registry| registry.name == DOCKER_HUB) {
        return Err("Docker uses mirrors for docker.io only, which is not among the upstreams here".into());
    }
    refuse_no_fallback(request, "Docker")?;
    // dockerd sends no `ns` in its classic store: where nothing said means another registry, the path says it.
    let by_path = request.default_upstream.as_deref() != Some(DOCKER_HUB);
    let url = if by_path { format!("{}/{DOCKER_HUB}", request.url) } else { request.url.to_string() };
    let mut notes = vec![
        "goes to: /etc/docker/daemon.json (merge it into what is there), then: systemctl reload docker".to_owned(),
        "only images of docker.io use it; when larder cannot answer, Docker asks Docker Hub itself".to_owned(),
        "docker buildx builders of the docker-container driver don't read it: see `larder client-config buildkit`".to_owned(),
    ];
    if by_path {
        notes.push("a mirror with a path needs Docker 24.0.9 or later; older ones refuse to start".to_owned());
    }
    if !request.url.tls && !request.url.is_loopback() {
        let authority = request.authority();
        notes.push(format!(
            "over plain http, Docker 25 to 27 need \"insecure-registries\": [\"{authority}\"] as well, for builds and for the containerd image store; \
             from Docker 28 on that switches off certificate checks for Docker Hub too, so put TLS in front of larder instead"
        ));
    }
    let content = serde_json::to_string_pretty(&json!({ "registry-mirrors": [url] })).map_err(|error| error.to_string())?;
    Ok(ClientConfig { content: content + "\n", notes })
}

pub(super) fn containerd(request: &Request) -> ClientConfig {
    let mut files = Vec::new();
    for registry in &request.registries {
        let name = &registry.name;
        let server = if request.fallback {
            "# No server: when larder cannot answer, the registry itself is asked.\n".to_owned()
        } else {
            format!("# In the registry's place, so that it is never asked.\nserver = \"{}\"\n", request.url)
        };
        // Not `referrers`, an unknown word before containerd 2.2, which then ignores the whole file.
        files.push(format!(
            "# /etc/containerd/certs.d/{name}/hosts.toml\n{server}\n[host.\"{}\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
            request.url
        ));
    }
    let mut notes = vec![
        "goes to: /etc/containerd/certs.d/<registry>/hosts.toml; read at each pull, no restart needed".to_owned(),
        "before containerd 2.2, /etc/containerd/config.toml must say config_path = \"/etc/containerd/certs.d\" \
         under [plugins.\"io.containerd.grpc.v1.cri\".registry], in 2.0 and 2.1 under [plugins.\"io.containerd.cri.v1.images\".registry]"
            .to_owned(),
        "a hosts.toml that does not parse is ignored without a word; ctr reads it only with --hosts-dir /etc/containerd/certs.d".to_owned(),
    ];
    if files.len() > 1 {
        notes.insert(1, "one file for each registry, in one stream here; one alone comes with --registry HOST".to_owned());
    }
    ClientConfig { content: files.join("\n"), notes }
}

pub(super) fn podman(request: &Request) -> Result<ClientConfig, String> {
    let mut content = String::from("# /etc/containers/registries.conf.d/50-larder.conf\n");
    let mut notes = vec![
        "goes to: /etc/containers/registries.conf.d/50-larder.conf, for rootless podman to ~/.config/containers/registries.conf.d/"
            .to_owned(),
        "used by podman, buildah, skopeo copy and CRI-O; `skopeo list-tags` and searches don't go through mirrors".to_owned(),
    ];
    if !request.fallback {
        notes.push("pushes to these registries now go to larder as well, which refuses them".to_owned());
    }
    for registry in &request.registries {
        let Some(component) = &registry.component else {
            notes.push(format!(
                "left out: {}: a name with a port cannot be part of a repository's name; give that upstream an alias",
                registry.name
            ));
            continue;
        };
        let location = format!("{}/{component}", request.authority());
        // Here "insecure" means that http is tried after https has failed.
        let insecure = if request.url.tls { "" } else { "insecure = true\n" };
        let name = &registry.name;
        let table = if request.fallback {
            format!(
                "\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{name}\"\n\n[[registry.mirror]]\nlocation = \"{location}\"\n{insecure}"
            )
        } else {
            format!("\n[[registry]]\nprefix = \"{name}\"\nlocation = \"{location}\"\n{insecure}")
        };
        content.push_str(&table);
    }
    if !content.contains("[[registry]]") {
        return Err(notes.pop().unwrap_or_default());
    }
    Ok(ClientConfig { content, notes })
}

pub(super) fn k3s(request: &Request) -> ClientConfig {
    let mut content = String::from("# /etc/rancher/k3s/registries.yaml\nmirrors:\n");
    for registry in &request.registries {
        // Writing to a String cannot fail.
        let _ = write!(content, "  \"{}\":\n    endpoint:\n      - \"{}\"\n", registry.name, request.url);
    }
    let mut notes = vec![
        "goes to: /etc/rancher/k3s/registries.yaml on every node (RKE2: /etc/rancher/rke2/registries.yaml), then restart k3s there"
            .to_owned(),
    ];
    notes.push(if request.fallback {
        "when larder cannot answer, the registry itself is asked".to_owned()
    } else {
        "this file cannot forbid asking the registry itself: start k3s with --disable-default-registry-endpoint".to_owned()
    });
    if request.url.tls {
        notes.push(format!("a private CA goes under configs: {{\"{}\": {{tls: {{ca_file: …}}}}}}", request.authority()));
    }
    ClientConfig { content, notes }
}

pub(super) fn buildkit(request: &Request) -> Result<ClientConfig, String> {
    refuse_no_fallback(request, "BuildKit")?;
    let authority = request.authority();
    let mut content = String::from("# /etc/buildkit/buildkitd.toml\n");
    for registry in &request.registries {
        let _ = write!(content, "[registry.\"{}\"]\n  mirrors = [\"{authority}\"]\n\n", registry.name);
    }
    let scheme = if request.url.tls { "  # For a private CA: ca = [\"/path/to/ca.pem\"]\n" } else { "  http = true\n" };
    let _ = write!(content, "[registry.\"{authority}\"]\n{scheme}");
    let mut notes = vec![
        "goes to: /etc/buildkit/buildkitd.toml, or: docker buildx create --use --buildkitd-config FILE, \
         or `buildkitd-config-inline` of docker/setup-buildx-action"
            .to_owned(),
        "when larder cannot answer, BuildKit asks the registry itself".to_owned(),
    ];
    if request.url.is_loopback() {
        notes.push("in a docker-container builder 127.0.0.1 is the builder: give --url with an address it can reach, or create it with --driver-opt network=host".into());
    }
    Ok(ClientConfig { content, notes })
}

/// A file that quietly does the opposite of what was asked is worse than none.
fn refuse_no_fallback(request: &Request, client: &str) -> Result<(), String> {
    if request.fallback {
        return Ok(());
    }
    Err(format!(
        "{client} cannot be told --no-fallback: it always asks the registry itself after its mirrors; block the way to the registry in the network instead"
    ))
}
