//! All that larder knows of particular registries: one row each. To add a registry, add a row; nothing else names one.
//! Pure: it knows no configuration, and a host that is not in the table is a registry like any other.

use std::borrow::Cow;
use std::time::Duration;

/// Docker Hub, as image names have it: what a name without a host means, and the only registry that dockerd mirrors.
pub const DOCKER_HUB: &str = "docker.io";

/// The table, in the alphabetical order of the first names; then the registries that have a host for each account.
pub const REGISTRIES: &[Registry] = &[
    Registry { names: &["cgr.dev"], ..PUBLIC },
    Registry { names: &["docker.elastic.co"], token_hosts: &["docker-auth.elastic.co"], ..PUBLIC },
    Registry {
        names: &[DOCKER_HUB, "index.docker.io", "registry-1.docker.io"],
        aliases: &["registry.hub.docker.com"],
        url: Some("https://registry-1.docker.io"),
        token_hosts: &["auth.docker.io"],
        login_key: Some("https://index.docker.io/v1/"),
        official: Some("library"),
        pull_limit_preview: Some("ratelimitpreview/test"),
        login: Some("{username: <user>, password_file: <file with an access token>}"),
        ..PUBLIC
    },
    Registry { names: &["gcr.io"], login: Some("{docker_helper: gcloud}"), ..PUBLIC },
    Registry {
        names: &["ghcr.io"],
        login: Some("{username: <user>, password_file: <file with a classic token that has read:packages>}"),
        ..PUBLIC
    },
    // LinuxServer's images lie at GitHub, whose token server it names.
    Registry { names: &["lscr.io"], token_hosts: &["ghcr.io"], ..PUBLIC },
    Registry { names: &["mcr.microsoft.com"], ..PUBLIC },
    Registry {
        names: &["nvcr.io"],
        // Beside its own /proxy_auth.
        token_hosts: &["authn.nvidia.com"],
        login: Some("{username: $oauthtoken, password_file: <file with an API key>}"),
        ..PUBLIC
    },
    // A second manifest within the second gets 429.
    Registry { names: &["public.ecr.aws"], anonymous_interval: Some(Duration::from_secs(1)), ..PUBLIC },
    Registry { names: &["quay.io"], login: Some("{username: <organization>+<robot>, password_file: <file>}"), ..PUBLIC },
    Registry { names: &["registry.access.redhat.com"], ..PUBLIC },
    Registry { names: &["registry.cleanstart.com"], ..PUBLIC },
    Registry {
        names: &["registry.gitlab.com"],
        token_hosts: &["gitlab.com"],
        login: Some("{username: <user>, password_file: <file with a deploy token that has read_registry>}"),
        ..PUBLIC
    },
    Registry { names: &["registry.k8s.io"], ..PUBLIC },
    // Google Artifact Registry.
    Registry { account_hosts: &["*.pkg.dev"], login: Some("{docker_helper: gcloud}"), ..PUBLIC },
    // Amazon ECR.
    Registry {
        account_hosts: &[
            "<account>.dkr.ecr.*.amazonaws.com",
            "<account>.dkr.ecr-fips.*.amazonaws.com",
            "<account>.dkr.ecr.*.amazonaws.com.cn",
            "<account>.dkr.ecr-fips.*.amazonaws.com.cn",
            "<account>.dkr-ecr.*.on.aws",
            "<account>.dkr-ecr-fips.*.on.aws",
        ],
        access: Access::Credentials,
        page_size_max: Some(1000),
        login: Some("{docker_helper: ecr-login}"),
        ..UNKNOWN
    },
    // Azure Container Registry. Anonymous pulls are an option that few switch on.
    Registry {
        account_hosts: &["*.azurecr.io", "*.azurecr.cn", "*.azurecr.us"],
        login: Some("{username: <service principal or token>, password_file: <file>}"),
        ..UNKNOWN
    },
    #[cfg(test)]
    tests::MADE_UP,
];

/// One registry, or one kind of registry with a host for each account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registry {
    /// Its hosts, all one namespace: first the one that image names have, under which larder keeps its content. The host of
    /// `url` is one of them. Empty with `account_hosts`.
    pub names: &'static [&'static str],
    /// Hosts that clients may name for it, unless the configuration gives them to another upstream.
    pub aliases: &'static [&'static str],
    /// Patterns of the hosts that it gives to its accounts, each a registry of its own: `*` is any one label, `<account>` one
    /// of twelve digits.
    pub account_hosts: &'static [&'static str],
    /// Where its API is. `None`: `https://` and the host.
    pub url: Option<&'static str>,
    /// Who may read without credentials.
    pub access: Access,
    /// Hosts beside its own whose token server may receive its credentials, over TLS at port 443.
    pub token_hosts: &'static [&'static str],
    /// What docker calls it in config.json and to credential helpers. `None`: its name.
    pub login_key: Option<&'static str>,
    /// What stands before a repository name of one component: `alpine` is `library/alpine`.
    pub official: Option<&'static str>,
    /// A repository whose manifest says with a HEAD, which costs no pull, what is left of the pull limit.
    pub pull_limit_preview: Option<&'static str>,
    /// How far apart manifests must be asked for without credentials.
    pub anonymous_interval: Option<Duration>,
    /// The most entries that may be asked of a page of tags; more is refused.
    pub page_size_max: Option<usize>,
    /// An example of `credentials` for it, for the advice of `check-config`.
    pub login: Option<&'static str>,
}

/// Who may read without credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody: it is made for public images, even where it has private ones as well.
    Public,
    /// Nobody.
    Credentials,
    /// Not known.
    Unknown,
}

/// A registry of which no more is known than where it is.
const UNKNOWN: Registry = Registry {
    names: &[],
    aliases: &[],
    account_hosts: &[],
    url: None,
    access: Access::Unknown,
    token_hosts: &[],
    login_key: None,
    official: None,
    pull_limit_preview: None,
    anonymous_interval: None,
    page_size_max: None,
    login: None,
};

/// A registry for public images, mirrored unless the configuration lists upstreams.
const PUBLIC: Registry = Registry { access: Access::Public, ..UNKNOWN };

/// The registry at a host (lower case, without port), by all of the host: `….amazonaws.com.evil.io` is not Amazon's.
pub fn find(host: &str) -> Option<&'static Registry> {
    let is_account = |registry: &&Registry| registry.account_hosts.iter().any(|pattern| fits(pattern, host));
    REGISTRIES.iter().find(|registry| registry.names.contains(&host)).or_else(|| REGISTRIES.iter().find(is_account))
}

/// The names of the well-known public registries, in alphabetical order: the upstreams of a configuration that lists none.
pub fn well_known() -> impl Iterator<Item = &'static str> {
    REGISTRIES.iter().filter(|registry| registry.access == Access::Public).filter_map(Registry::name)
}

/// The name under which a host's content is kept: `docker.io` for each host of Docker Hub, else the host itself.
pub fn canonical(host: &str) -> &str {
    find(host).and_then(Registry::name).unwrap_or(host)
}

/// The further hosts of the registry that has this name, and its aliases.
pub fn further_names(name: &str) -> impl Iterator<Item = &'static str> {
    let named = find(name).filter(|registry| registry.name() == Some(name));
    named.into_iter().flat_map(|registry| registry.further_hosts().iter().chain(registry.aliases).copied())
}

/// Where the registry of this name has its API.
pub fn own_url(name: &str) -> Cow<'static, str> {
    match find(name).and_then(|registry| registry.url) {
        Some(url) => url.into(),
        None => format!("https://{name}").into(),
    }
}

/// A repository's whole name at the registry of this name: at `docker.io`, `alpine` is `library/alpine`.
pub fn full_repository<'a>(registry: &str, repository: &'a str) -> Cow<'a, str> {
    // Most names have more than one component: for them nothing is looked up.
    let official = if repository.contains('/') { None } else { find(registry).and_then(|registry| registry.official) };
    official.map_or(repository.into(), |official| format!("{official}/{repository}").into())
}

impl Registry {
    /// The host that image names have; `None` where each account has one.
    pub fn name(&self) -> Option<&'static str> {
        self.names.first().copied()
    }

    /// All of `names` but the first.
    pub fn further_hosts(&self) -> &'static [&'static str] {
        self.names.get(1..).unwrap_or_default()
    }
}

fn fits(pattern: &str, host: &str) -> bool {
    let (labels, patterns) = (host.split('.'), pattern.split('.'));
    labels.clone().count() == patterns.clone().count()
        && labels.zip(patterns).all(|(label, pattern)| match pattern {
            "*" => is_label(label),
            "<account>" => label.len() == 12 && label.bytes().all(|byte| byte.is_ascii_digit()),
            _ => label == pattern,
        })
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A row as a new registry would get. The tests' table has it: what depends on a registry must follow from it alone.
    pub(crate) const MADE_UP: Registry = Registry {
        names: &["made-up.example", "api.made-up.example"],
        aliases: &["old.made-up.example"],
        url: Some("https://api.made-up.example"),
        token_hosts: &["login.made-up.example"],
        login_key: Some("https://made-up.example/v1/"),
        official: Some("base"),
        anonymous_interval: Some(Duration::from_secs(3)),
        page_size_max: Some(50),
        login: Some("{docker_helper: made-up}"),
        ..PUBLIC
    };

    #[test]
    fn credential_01_a_host_is_known_by_all_of_its_name() {
        let access = |host: &str| find(host).map(|registry| registry.access);
        for (host, known) in [
            ("docker.io", Access::Public),
            ("europe-west1-docker.pkg.dev", Access::Public),
            ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", Access::Credentials),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Access::Credentials),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Access::Credentials),
            ("123456789012.dkr-ecr.us-east-1.on.aws", Access::Credentials),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", Access::Credentials),
            ("team.azurecr.io", Access::Unknown),
            ("team.azurecr.cn", Access::Unknown),
            ("team.azurecr.us", Access::Unknown),
        ] {
            assert_eq!(access(host), Some(known), "{host}");
        }
        for host in [
            "docker.io.evil.io",
            "notdocker.io",
            "public.ecr.aws.evil.io",
            "dkr.ecr.amazonaws.com",
            "bucket.s3.amazonaws.com",
            "pkg.dev",
            "*.pkg.dev",
            "evil.io.pkg.dev",
            "europe-docker.pkg.dev:8443",
            "europe-docker.pkg.dev.evil.io",
            "europe-docker.notpkg.dev",
            "<account>.dkr.ecr.eu-central-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com.cn.evil.io",
            "evil.io.123456789012.dkr.ecr.eu-central-1.amazonaws.com",
            "12345678901.dkr.ecr.eu-central-1.amazonaws.com",
            "1234567890123.dkr.ecr.eu-central-1.amazonaws.com",
            "12345678901a.dkr.ecr.eu-central-1.amazonaws.com",
            "123456789012.dkr.ecr..amazonaws.com",
            "123456789012.dkr.ecr.a.b.amazonaws.com",
            "123456789012xdkr.ecr.eu-central-1.amazonaws.com",
            "123456789012.dkr-ecr.us-east-1.on.aws.evil.io",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com:443",
            ".azurecr.io",
            "azurecr.io",
            "team.azurecr.io.evil.io",
            "team.azurecr.com",
            "team.notazurecr.io",
            "",
        ] {
            assert_eq!(find(host), None, "{host}");
        }
    }

    #[test]
    fn every_row_is_whole_and_no_two_claim_a_host() {
        let mut hosts: Vec<&str> = REGISTRIES.iter().flat_map(|row| row.names.iter().chain(row.aliases).copied()).collect();
        for row in REGISTRIES {
            assert_ne!(row.names.is_empty(), row.account_hosts.is_empty(), "{row:?}");
            let url = row.url.map(|url| url.strip_prefix("https://").expect("https"));
            assert!(url.is_none_or(|host| row.names.contains(&host)), "{row:?}");
            assert!(row.names.iter().chain(row.aliases).all(|host| host.split('.').all(is_label)), "{row:?}");
            assert!(row.names.iter().all(|host| find(host) == Some(row)), "{row:?}");
            assert!(row.login.is_some() || row.access == Access::Public, "{row:?}");
        }
        let count = hosts.len();
        hosts.sort_unstable();
        hosts.dedup();
        assert_eq!(hosts.len(), count);
        let names: Vec<&str> = well_known().filter(|name| *name != MADE_UP.names[0]).collect();
        assert!(names.is_sorted() && names.len() == 14, "{names:?}");
    }

    #[test]
    fn one_registry_has_one_name_one_url_and_whole_repository_names() {
        for host in ["docker.io", "index.docker.io", "registry-1.docker.io"] {
            assert_eq!((canonical(host), &*own_url(host)), ("docker.io", "https://registry-1.docker.io"));
        }
        for host in ["registry.hub.docker.com", "ghcr.io", "team.azurecr.io", "team.azurecr.cn", "r.corp:5000"] {
            assert_eq!((canonical(host), own_url(host).into_owned()), (host, format!("https://{host}")));
        }
        let further = |name| further_names(name).collect::<Vec<_>>();
        assert_eq!(further("docker.io"), ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"]);
        assert_eq!((further("index.docker.io").len(), further("ghcr.io").len(), further("team.azurecr.io").len()), (0, 0, 0));
        assert_eq!(full_repository("docker.io", "alpine"), "library/alpine");
        assert_eq!(full_repository("docker.io", "org/app"), "org/app");
        assert_eq!(full_repository("ghcr.io", "app"), "app");
    }
}
