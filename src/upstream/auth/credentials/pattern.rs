//! The keys under which docker, podman and kubelet write down a registry's credentials, and which of them an image gets.
//! A key is `[https://]host[:port][/v1|/v2][/path]`; a `*` stands for a part of one of its host's labels.

use std::cmp::Reverse;

use crate::oci::registries;

/// What a login is wanted for.
#[derive(Clone, Debug)]
pub(super) struct Image {
    registry: String,
    repository: String,
}

impl Image {
    /// `registry` is the upstream's name.
    pub(super) fn new(registry: &str, repository: &str) -> Image {
        Image { registry: host(registry), repository: repository.into() }
    }

    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// `docker.io/library/alpine`.
    pub(super) fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The registry as docker calls it: the key of its login, and what its helpers are asked for.
    pub(super) fn server(&self) -> &str {
        registries::find(&self.registry).and_then(|registry| registry.login_key).unwrap_or(&self.registry)
    }
}

/// Of the values whose key fits the image that of the longest path, then of the longest host without a `*`, then with one.
/// Equal keys in other spellings: docker's own first, then the longest, then as in the alphabet.
pub(super) fn best<'a, T>(image: &Image, entries: impl IntoIterator<Item = (&'a str, T)>) -> Option<T> {
    let fitting = entries.into_iter().filter_map(|(key, value)| Some((rank(image, key)?, value)));
    fitting.min_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, value)| value)
}

type Rank<'a> = (Reverse<usize>, bool, Reverse<usize>, bool, Reverse<usize>, &'a str);

/// Less is better; none: the key is another image's.
fn rank<'a>(image: &Image, key: &'a str) -> Option<Rank<'a>> {
    let (host, path) = parse(key);
    let fits = host_fits(&host, &image.registry) && path_fits(path, &image.repository);
    fits.then(|| (Reverse(path.len()), host.contains('*'), Reverse(host.len()), key != image.server(), Reverse(key.len()), key))
}

fn parse(key: &str) -> (String, &str) {
    let rest = ["https://", "http://"].iter().find_map(|scheme| {
        let (start, rest) = key.split_at_checked(scheme.len())?;
        start.eq_ignore_ascii_case(scheme).then_some(rest)
    });
    let (authority, path) = rest.unwrap_or(key).split_once('/').unwrap_or((rest.unwrap_or(key), ""));
    let path = path.trim_matches('/');
    let api = ["v1", "v2"].iter().find_map(|api| path.strip_prefix(api).filter(|rest| rest.is_empty() || rest.starts_with('/')));
    (host(authority), api.unwrap_or(path).trim_start_matches('/'))
}

/// Lower-case, and the spellings of one registry, such as Docker Hub's, as one.
fn host(text: &str) -> String {
    let host = text.to_ascii_lowercase();
    registries::canonical(&host).to_owned()
}

/// Kubelet lets `org/app` fit `org/application`, too; a path that ends within a component is nobody's intention.
fn path_fits(path: &str, repository: &str) -> bool {
    path.is_empty() || repository.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn host_fits(pattern: &str, registry: &str) -> bool {
    let ((pattern, port), (name, registry_s_port)) = (split_port(pattern), split_port(registry));
    let (labels, names) = (pattern.split('.'), name.split('.'));
    port == registry_s_port
        && labels.clone().count() == names.clone().count()
        && labels.zip(names).all(|(label, name)| label_fits(label, name))
}

fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => (name, Some(port)),
        _ => (host, None),
    }
}

/// Takes what lies between two `*` where it first occurs: that is enough, and it takes no time to speak of.
fn label_fits(pattern: &str, label: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == label };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(within) = label.strip_prefix(start).and_then(|label| label.strip_suffix(end)) else { return false };
    let left = middle.split('*').try_fold(within, |left, part| left.find(part).map(|place| &left[place + part.len()..]));
    left.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fits(key: &str, registry: &str, repository: &str) -> bool {
        rank(&Image::new(registry, repository), key).is_some()
    }

    fn chosen<'a>(registry: &str, repository: &str, keys: &[&'a str]) -> Option<&'a str> {
        let image = Image::new(registry, repository);
        let there = best(&image, keys.iter().map(|key| (*key, *key)));
        assert_eq!(there, best(&image, keys.iter().rev().map(|key| (*key, *key))), "the order of {keys:?} decides");
        there
    }

    #[test]
    fn credential_17_docker_hub_s_four_spellings_are_one_and_ports_distinguish() {
        for registry in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            for key in
                ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io", "https://index.docker.io/v2/"]
            {
                assert!(fits(key, registry, "library/alpine"), "{key} for {registry}");
            }
            assert_eq!(Image::new(registry, "library/alpine").server(), "https://index.docker.io/v1/");
            for key in ["hub.docker.com", "docker.io:5000", "docker.io.evil.example", "notdocker.io", "https://index.docker.io:5000/v1/"] {
                assert!(!fits(key, registry, "library/alpine"), "{key} for {registry}");
            }
        }
        assert!(fits("my-reg.corp:5000", "my-reg.corp:5000", "a"));
        assert!(!fits("my-reg.corp:5000", "my-reg.corp", "a") && !fits("my-reg.corp", "my-reg.corp:5000", "a"));
        assert!(!fits("my-reg.corp:5001", "my-reg.corp:5000", "a") && !fits("my-reg.corp:443", "my-reg.corp", "a"));
    }

    #[test]
    fn a_registry_s_key_and_its_hosts_are_those_of_its_row() {
        for registry in ["made-up.example", "api.made-up.example"] {
            assert_eq!(Image::new(registry, "app").server(), "https://made-up.example/v1/");
            assert_eq!(
                chosen(registry, "app", &["api.made-up.example", "made-up.example", "login.made-up.example"]),
                Some("api.made-up.example")
            );
        }
        assert_eq!(Image::new("ghcr.io", "org/app").server(), "ghcr.io");
    }

    #[test]
    fn credential_17_every_spelling_of_a_key_is_read() {
        for key in ["ghcr.io", "https://ghcr.io", "http://ghcr.io/", "HTTPS://GHCR.io/v2/", "ghcr.io/v1/", "https://ghcr.io/v2", "ghcr.io/"]
        {
            assert!(fits(key, "ghcr.io", "org/app"), "{key}");
        }
        for key in ["", "/", "https://", "ghcr.io.", ".ghcr.io", "ghcr", "io", "ghcr.io:", "ftp://ghcr.io", "ghcr.io@evil", "ghcr.io?x"] {
            assert!(!fits(key, "ghcr.io", "org/app"), "{key}");
        }
        assert!(
            fits("https://reg.corp:5000/v2/", "reg.corp:5000", "a")
                && fits("[::1]:5000", "[::1]:5000", "a")
                && !fits("[::1]", "[::2]", "a")
        );
    }

    #[test]
    fn credential_18_the_longest_prefix_that_ends_at_a_slash_wins() {
        let keys = ["quay.io", "quay.io/org", "quay.io/org/app", "quay.io/org/ap", "quay.io/orga"];
        for (repository, key) in [
            ("org/app", "quay.io/org/app"),
            ("org/app/sub", "quay.io/org/app"),
            ("org/application", "quay.io/org"),
            ("org", "quay.io/org"),
            ("organ/app", "quay.io"),
            ("other/org/app", "quay.io"),
        ] {
            assert_eq!(chosen("quay.io", repository, &keys), Some(key), "{repository}");
        }
        assert_eq!(chosen("ghcr.io", "org/app", &keys), None);
        assert_eq!(chosen("quay.io", "org/app", &["quay.io", "https://quay.io/v2/org/"]), Some("https://quay.io/v2/org/"));
    }

    #[test]
    fn equal_keys_in_other_spellings_have_an_order() {
        let hub = ["registry-1.docker.io", "docker.io", "https://index.docker.io/v1/", "index.docker.io"];
        assert_eq!(chosen("docker.io", "library/alpine", &hub), Some("https://index.docker.io/v1/"));
        assert_eq!(chosen("docker.io", "library/alpine", &hub[..2]), Some("registry-1.docker.io"));
        assert_eq!(chosen("ghcr.io", "a/b", &["https://ghcr.io/v2/", "ghcr.io"]), Some("ghcr.io"));
        assert_eq!(chosen("ghcr.io", "a/b", &["http://ghcr.io/v1/", "http://ghcr.io/v2/"]), Some("http://ghcr.io/v1/"));
        assert_eq!(chosen("a.azurecr.io", "a/b", &["*.azurecr.io", "a.azurecr.io"]), Some("a.azurecr.io"));
        assert_eq!(chosen("team.azurecr.io", "a/b", &["*.azurecr.io", "te*.azurecr.io"]), Some("te*.azurecr.io"));
    }

    #[test]
    fn a_star_stays_within_a_label() {
        for (key, registry, does) in [
            ("*.azurecr.io", "team.azurecr.io", true),
            ("*.azurecr.io", "azurecr.io", false),
            ("*.azurecr.io", "a.b.azurecr.io", false),
            ("*.azurecr.io", "team.azurecr.io.evil", false),
            ("*.azurecr.io:5000", "team.azurecr.io:5000", true),
            ("*.azurecr.io", "team.azurecr.io:5000", false),
            ("*.dkr.ecr.*.amazonaws.com", "012345678901.dkr.ecr.eu-west-1.amazonaws.com", true),
            ("reg*.corp", "registry.corp", true),
            ("r*g*y.corp", "registry.corp", true),
            ("r*y*g.corp", "registry.corp", false),
            ("aa*a.corp", "aa.corp", false),
            ("reg.*", "reg.corp", true),
            ("reg.*", "reg.corp:5000", false),
            ("*", "localhost", true),
            ("*", "ghcr.io", false),
        ] {
            assert_eq!(fits(key, registry, "a/b"), does, "{key} for {registry}");
        }
        assert!(fits("*.azurecr.io/a", "team.azurecr.io", "a/b") && !fits("team.azurecr.io/*", "team.azurecr.io", "a/b"));
    }

    proptest! {
        #[test]
        fn no_key_makes_it_panic(key: String, keys in "(https?://)?[a-z.*:/é]{0,12}(/v[12])?[a-z/*]{0,9}") {
            fits(&key, "ghcr.io", "org/app");
            fits(&keys, "ghcr.io:5000", "org/app");
        }

        #[test]
        fn a_key_fits_what_it_names(host in "[a-z]{1,5}(\\.[a-z]{1,5}){0,3}(:[0-9]{1,5})?", path in "[a-u]{1,5}(/[a-z]{1,5}){0,3}") {
            let key = format!("{host}/{path}");
            prop_assert!(fits(&key, &host, &path) && fits(&host, &host, &path) && !fits(&key, "other.example", &path));
        }
    }
}
