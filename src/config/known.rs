//! The registries larder knows by their name: where they live, and what they are like. Pure.

use super::BaseUrl;
use super::value;

/// Docker Hub's registry does not live at the host that its image names have.
pub const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_URL: &str = "https://registry-1.docker.io";
/// One namespace with `docker.io`, whoever is asked.
pub(super) const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// Registries anyone may read, mirrored when no upstreams are written.
pub const WELL_KNOWN: [&str; 14] = [
    "cgr.dev",
    "docker.elastic.co",
    DOCKER_HUB,
    "gcr.io",
    "ghcr.io",
    "lscr.io",
    "mcr.microsoft.com",
    "nvcr.io",
    "public.ecr.aws",
    "quay.io",
    "registry.access.redhat.com",
    "registry.cleanstart.com",
    "registry.gitlab.com",
    "registry.k8s.io",
];

/// What larder knows of a registry by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// Made for images that anyone may read, even where it has private ones as well.
    Public,
    /// An account's own at Amazon: nobody reads anything without credentials.
    AmazonEcr,
    /// A customer's own at Azure; anonymous pulls are an option few switch on.
    AzureRegistry,
}

impl Known {
    /// By the host, all of it: `….amazonaws.com.evil.io` is not Amazon's.
    pub fn by_name(host: &str) -> Option<Known> {
        let labels: Vec<_> = host.split('.').collect();
        if labels.iter().any(|label| !is_label(label)) {
            return None;
        }
        match labels.as_slice() {
            _ if WELL_KNOWN.contains(&host) => Some(Known::Public),
            [_, "pkg", "dev"] => Some(Known::Public),
            [account, "dkr", "ecr" | "ecr-fips", _, "amazonaws", "com"] if is_account(account) => Some(Known::AmazonEcr),
            [account, "dkr", "ecr" | "ecr-fips", _, "amazonaws", "com", "cn"] if is_account(account) => Some(Known::AmazonEcr),
            [account, "dkr-ecr" | "dkr-ecr-fips", _, "on", "aws"] if is_account(account) => Some(Known::AmazonEcr),
            [_, "azurecr", "io" | "cn" | "us"] => Some(Known::AzureRegistry),
            _ => None,
        }
    }
}

fn is_label(label: &str) -> bool {
    !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

fn is_account(label: &str) -> bool {
    label.len() == 12 && label.bytes().all(|byte| byte.is_ascii_digit())
}

/// Where a registry lives unless something else is written.
pub(super) fn own_url(name: &str) -> BaseUrl {
    let text = if name == DOCKER_HUB { DOCKER_HUB_URL.to_owned() } else { format!("https://{name}") };
    // A checked host makes a right URL; were it ever wrong, nothing could be connected to.
    value::base_url(&text).unwrap_or_else(|_| BaseUrl { tls: true, host: name.to_owned(), port: 443, path: String::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credential_01_a_host_is_known_by_all_of_its_name() {
        for (host, known) in [
            ("docker.io", Known::Public),
            ("europe-west1-docker.pkg.dev", Known::Public),
            ("123456789012.dkr.ecr.eu-central-1.amazonaws.com", Known::AmazonEcr),
            ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", Known::AmazonEcr),
            ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", Known::AmazonEcr),
            ("123456789012.dkr-ecr.us-east-1.on.aws", Known::AmazonEcr),
            ("123456789012.dkr-ecr-fips.us-east-1.on.aws", Known::AmazonEcr),
            ("team.azurecr.io", Known::AzureRegistry),
            ("team.azurecr.cn", Known::AzureRegistry),
            ("team.azurecr.us", Known::AzureRegistry),
        ] {
            assert_eq!(Known::by_name(host), Some(known), "{host}");
        }
        for host in [
            "docker.io.evil.io",
            "notdocker.io",
            "public.ecr.aws.evil.io",
            "dkr.ecr.amazonaws.com",
            "bucket.s3.amazonaws.com",
            "pkg.dev",
            "evil.io.pkg.dev",
            "europe-docker.pkg.dev:8443",
            "europe-docker.pkg.dev.evil.io",
            "europe-docker.notpkg.dev",
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
            assert_eq!(Known::by_name(host), None, "{host}");
        }
    }
}
