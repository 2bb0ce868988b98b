//! Which token servers may see an upstream's password. Pure.

use crate::oci::registries;
use crate::upstream::http::url::Origin;

/// What may be sent to a token server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    Credentials,
    /// Nobody vouches for this host; a question without credentials harms no one.
    Nothing,
    /// It would answer in clear text about a registry that does not.
    Insecure,
}

/// Judges the token server that `registry` named. `listed`: `host` (any port) or `host:port`.
pub fn judge(registry: &Origin, realm: &Origin, listed: &[String]) -> Trust {
    let own = realm.host == registry.host && realm.port == registry.port;
    let is_listed = listed.iter().any(|entry| names(entry, realm));
    let in_clear = !realm.tls && (registry.tls || !(realm.host == registry.host || is_listed));
    let known = realm.tls
        && realm.is_default_port()
        && registries::find(&registry.host).is_some_and(|known| known.token_hosts.contains(&realm.host.as_str()));
    match () {
        () if in_clear => Trust::Insecure,
        () if own || is_listed || known => Trust::Credentials,
        () => Trust::Nothing,
    }
}

fn names(entry: &str, origin: &Origin) -> bool {
    entry.eq_ignore_ascii_case(&origin.host) || entry.eq_ignore_ascii_case(&format!("{}:{}", origin.host, origin.port))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::http::url::Url;

    fn judged(registry: &str, realm: &str, listed: &[&str]) -> Trust {
        let origin = |text: &str| Url::parse(text).expect("a URL").origin;
        let listed: Vec<String> = listed.iter().map(|entry| (*entry).to_owned()).collect();
        judge(&origin(registry), &origin(realm), &listed)
    }

    #[test]
    fn credentials_go_to_the_registry_and_to_whom_it_is_known_to_trust() {
        assert_eq!(judged("https://ghcr.io", "https://GHCR.io/token", &[]), Trust::Credentials);
        assert_eq!(judged("https://registry-1.docker.io", "https://auth.docker.io/token", &[]), Trust::Credentials);
        assert_eq!(judged("https://registry.gitlab.com", "https://gitlab.com/jwt/auth", &[]), Trust::Credentials);
        assert_eq!(judged("http://127.0.0.1:5000", "http://127.0.0.1:5000/token", &[]), Trust::Credentials);
    }

    /// The registries that larder knows, where their APIs are, and where their tokens come from.
    #[test]
    fn each_known_registry_s_own_token_server_may_see_its_credentials_and_no_other() {
        let known = [
            ("https://cgr.dev", "https://cgr.dev/token"),
            ("https://docker.elastic.co", "https://docker-auth.elastic.co/auth"),
            ("https://registry-1.docker.io", "https://auth.docker.io/token"),
            ("https://gcr.io", "https://gcr.io/v2/token"),
            ("https://ghcr.io", "https://ghcr.io/token"),
            ("https://lscr.io", "https://ghcr.io/token"),
            ("https://nvcr.io", "https://nvcr.io/proxy_auth?scope=repository:nvidia/cuda:pull"),
            ("https://nvcr.io", "https://authn.nvidia.com/token"),
            ("https://public.ecr.aws", "https://public.ecr.aws/token/"),
            ("https://quay.io", "https://quay.io/v2/auth"),
            ("https://registry.gitlab.com", "https://gitlab.com/jwt/auth"),
            ("https://registry.k8s.io", "https://registry.k8s.io/token"),
            ("https://europe-docker.pkg.dev", "https://europe-docker.pkg.dev/v2/token"),
            ("https://team.azurecr.io", "https://team.azurecr.io/oauth2/token"),
        ];
        for (registry, realm) in known {
            assert_eq!(judged(registry, realm, &[]), Trust::Credentials, "{registry}");
            assert_eq!(judged(registry, &realm.replacen("https:", "http:", 1), &[]), Trust::Insecure, "{registry}");
            assert_eq!(judged(registry, "https://tokens.evil.example/token", &[]), Trust::Nothing, "{registry}");
            let own = Url::parse(registry).expect("a URL").origin.host;
            let theirs = |(_, other): &&(&str, &str)| !known.contains(&(registry, other));
            for (_, foreign) in known.iter().filter(theirs).filter(|(_, other)| !other.contains(&own)) {
                assert_eq!(judged(registry, foreign, &[]), Trust::Nothing, "{registry} {foreign}");
            }
        }
    }

    #[test]
    fn registry_18_anybody_else_must_be_listed() {
        assert_eq!(judged("https://r.corp", "https://auth.corp/token", &[]), Trust::Nothing);
        assert_eq!(judged("https://r.corp", "https://r.corp:8443/token", &[]), Trust::Nothing);
        assert_eq!(judged("https://evil.example", "https://auth.docker.io/token", &[]), Trust::Nothing);
        assert_eq!(judged("https://registry-1.docker.io", "https://auth.docker.io:8443/token", &[]), Trust::Nothing);
        assert_eq!(judged("https://r.corp", "https://auth.corp/token", &["Auth.corp"]), Trust::Credentials);
        assert_eq!(judged("https://r.corp", "https://auth.corp:8443/token", &["auth.corp:8443"]), Trust::Credentials);
        assert_eq!(judged("https://r.corp", "https://auth.corp/token", &["auth.corp:8443"]), Trust::Nothing);
        assert_eq!(judged("https://r.corp", "https://auth.corp.evil/token", &["auth.corp"]), Trust::Nothing);
    }

    #[test]
    fn no_listing_makes_clear_text_safe_for_a_tls_registry() {
        assert_eq!(judged("https://r.corp", "http://r.corp:443/token", &["r.corp"]), Trust::Insecure);
        assert_eq!(judged("http://r.corp", "http://auth.corp/token", &[]), Trust::Insecure);
        assert_eq!(judged("http://r.corp", "http://auth.corp/token", &["auth.corp"]), Trust::Credentials);
        assert_eq!(judged("http://r.corp:5000", "http://r.corp:5001/token", &[]), Trust::Nothing);
    }
}
