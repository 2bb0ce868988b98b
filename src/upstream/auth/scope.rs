//! Which scopes a token is asked for: what the challenge names, cut down to reading. Pure.

use crate::oci::RepositoryName;

/// The scopes to ask for (Docker's token protocol, "Resource scope grammar": `type:name:actions`), sorted and without doubles.
///
/// `pull` is the only action that is ever asked for, and only of repositories. `with_login`: larder's password goes along, so only
/// this repository's scope is asked for: its name, or one that ends in `/` and its name, as Artifactory puts its own repository in
/// front. Opaque words without a colon (ECR Public's `aws`) are passed on. What names nothing of use (no scope, `*`, GHCR's
/// placeholder, another repository) is replaced by a scope of our own.
pub fn requested(repository: &RepositoryName, challenged: Option<&str>, with_login: bool) -> Vec<String> {
    let (mut scopes, mut is_replaced) = (Vec::new(), false);
    for scope in challenged.unwrap_or_default().split_ascii_whitespace() {
        match Named::parse(scope) {
            Named::Repository(PLACEHOLDER) => {}
            Named::Repository(name) if !with_login || names(name, repository) => scopes.push(pull(name)),
            Named::Repository(_) => is_replaced = true,
            Named::Opaque(word) => scopes.push(word.to_owned()),
            Named::Other => {}
        }
    }
    if scopes.is_empty() || is_replaced && !scopes.iter().any(|scope| scope.starts_with(REPOSITORY)) {
        scopes.push(pull(repository.as_str()));
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

/// The scope that reads one repository.
pub fn pull(repository: &str) -> String {
    format!("{REPOSITORY}{repository}:pull")
}

const REPOSITORY: &str = "repository:";
/// What GHCR's `/v2/` names instead of a repository.
const PLACEHOLDER: &str = "user/image";

/// What one scope of a challenge is about.
enum Named<'a> {
    /// The name of a repository; it may begin with a host and a port.
    Repository(&'a str),
    Opaque(&'a str),
    /// The catalog, everything (`*`), or what cannot be read.
    Other,
}

impl Named<'_> {
    fn parse(scope: &str) -> Named<'_> {
        match (scope.split_once(':'), scope.rsplit_once(':')) {
            (Some(("repository", rest)), Some(_)) => match rest.rsplit_once(':') {
                Some((name, _)) if !name.is_empty() => Named::Repository(name),
                _ => Named::Other,
            },
            (None, _) if scope != "*" => Named::Opaque(scope),
            _ => Named::Other,
        }
    }
}

/// Whether this is the repository's name, perhaps behind a host and components of a path.
fn names(name: &str, repository: &RepositoryName) -> bool {
    let Some(before) = name.strip_suffix(repository.as_str()) else { return false };
    let Some(before) = before.strip_suffix('/') else { return before.is_empty() };
    let is_path = |text: &str| text.parse::<RepositoryName>().is_ok();
    let is_host = |text: &str| {
        let (host, port) = text.split_once(':').unwrap_or((text, "0"));
        is_path(host) && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    };
    match before.split_once('/') {
        Some((first, rest)) => is_host(first) && is_path(rest),
        None => is_host(before),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(challenged: &str, with_login: bool) -> Vec<String> {
        requested(&"a/b".parse().expect("a name"), Some(challenged), with_login)
    }

    #[test]
    fn registry_05_a_scope_of_our_own_replaces_none() {
        let repository: RepositoryName = "a/b".parse().expect("a name");
        let own = ["repository:a/b:pull"];
        for with_login in [true, false] {
            assert_eq!(requested(&repository, None, with_login), own);
            for challenged in ["", "*", "repository:user/image:pull", "repository::pull", "repository:a/b", "registry:catalog:*"] {
                assert_eq!(asked(challenged, with_login), own, "{challenged:?}");
            }
            assert_eq!(asked("aws", with_login), ["aws"]);
            assert_eq!(asked("z repository:a/b:pull z", with_login), ["repository:a/b:pull", "z"]);
        }
    }

    #[test]
    fn only_pull_is_asked_for_whatever_the_challenge_says() {
        for with_login in [true, false] {
            for actions in ["pull", "pull,push", "push", "*", "delete", "pull,push,delete", ""] {
                assert_eq!(asked(&format!("repository:a/b:{actions}"), with_login), ["repository:a/b:pull"], "{actions}");
            }
            assert_eq!(asked("registry:catalog:* repository:a/b:*", with_login), ["repository:a/b:pull"]);
        }
    }

    #[test]
    fn another_repository_is_asked_for_without_a_login_only() {
        assert_eq!(asked("repository:other:push,delete", true), ["repository:a/b:pull"]);
        assert_eq!(asked("repository:other:push,delete", false), ["repository:other:pull"]);
        assert_eq!(asked("repository:xa/b:pull", true), ["repository:a/b:pull"], "a name ends at a slash");
        assert_eq!(asked("z repository:other:pull", true), ["repository:a/b:pull", "z"]);
    }

    #[test]
    fn artifactory_s_own_repository_in_front_is_kept() {
        assert_eq!(asked("repository:docker-local/a/b:pull", true), ["repository:docker-local/a/b:pull"]);
        assert_eq!(asked("repository:r.corp:5000/a/b:push", true), ["repository:r.corp:5000/a/b:pull"]);
        for prefix in ["victim:push,delete,x/org", "x&scope=repository:victim:push&b=", "*", "..", "r.corp:/x", "r.corp:5000:1", "x//y"] {
            assert_eq!(asked(&format!("repository:{prefix}/a/b:pull"), true), ["repository:a/b:pull"], "{prefix}");
        }
    }
}
