//! Which token servers may see an upstream's password. Pure.

use super::url::Origin;

/// Registries whose tokens come from another host of the same owner.
const KNOWN: [(&str, &str); 5] = [
    ("registry-1.docker.io", "auth.docker.io"),
    ("index.docker.io", "auth.docker.io"),
    ("docker.io", "auth.docker.io"),
    ("registry.gitlab.com", "gitlab.com"),
    ("nvcr.io", "authn.nvidia.com"),
];

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
pub(super) fn judge(registry: &Origin, realm: &Origin, listed: &[String]) -> Trust {
    let own = realm.host == registry.host && realm.port == registry.port;
    let is_listed = listed.iter().any(|entry| names(entry, realm));
    let in_clear = !realm.tls && (registry.tls || !(realm.host == registry.host || is_listed));
    let known = realm.tls && realm.is_default_port() && KNOWN.contains(&(registry.host.as_str(), realm.host.as_str()));
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
    use super::super::url::Url;
    use super::*;

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

    #[test]
    fn upstreams_a10_18_anybody_else_must_be_listed() {
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
