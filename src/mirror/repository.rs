//! From a client's spelling to a repository, by configuration alone: no text of a client becomes a host (invariant 15).

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::freshness::TagRules;
use super::patience::Patience;
use crate::metrics::UpstreamMetrics;
use crate::oci::{RepositoryName, registries};
use crate::store::RepositoryKey;
use crate::upstream::Upstream;

/// Downloads that no client waits for, at a time: those of all who ask, and of an upstream's as many at most.
const PREFETCHES_MAX: usize = 8;

/// Places for downloads that no client waits for, where there are so many for all: clients' own come first.
pub(super) fn prefetch_places(fills_max: usize) -> Semaphore {
    Semaphore::new((fills_max / 2).clamp(1, PREFETCHES_MAX))
}

/// A repository as the client spelled it: well-formed, of an upstream that may not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub root: Root,
    /// The query's `ns`: percent-decoded, lower case, of the shape `host[:port]`.
    pub ns: Option<String>,
    name: String,
}

/// What stood before the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Root {
    /// `/v2/<name>`
    V2,
    /// `/<prefix>/v2/<name>`: the prefix, lower case, of the shape `host[:port]` (aliases have it too).
    Prefix(String),
    /// `/<name>` (k3s with a path in its endpoint): without `ns`, the first component must be an upstream.
    Bare,
}

impl Target {
    /// `name` is well-formed: see [`Target::whole`] and [`Target::split_first`].
    pub fn new(root: Root, ns: Option<String>, name: impl Into<String>) -> Target {
        Target { root, ns, name: name.into() }
    }

    /// The name text as asked, perhaps with an upstream as its first component.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The whole text as a repository's name; `None` if its first component can only be a host (`localhost:5000/app`).
    pub fn whole(&self) -> Option<RepositoryName> {
        self.name.parse().ok()
    }

    /// The first component, which may be an upstream, and the name after it; `None` for a name of one component.
    pub fn split_first(&self) -> Option<(&str, RepositoryName)> {
        let (first, rest) = self.name.split_once('/')?;
        Some((first, rest.parse().ok()?))
    }
}

/// One upstream as the mirror deals with it.
pub struct Source {
    pub upstream: Upstream,
    pub tags: TagRules,
    pub metrics: Arc<UpstreamMetrics>,
    /// Fills that may run at a time.
    pub(super) fills_max: usize,
    /// Those of them that no client waits for.
    pub(super) warming: Semaphore,
    pub(super) patience: Patience,
}

impl Source {
    pub fn new(upstream: Upstream, tags: TagRules, metrics: Arc<UpstreamMetrics>, fills_max: usize) -> Source {
        Source { upstream, tags, metrics, fills_max, warming: prefetch_places(fills_max), patience: Patience::default() }
    }

    pub fn name(&self) -> &Arc<str> {
        self.upstream.name()
    }
}

/// A configured upstream and the canonical name there. Only [`Repositories::resolve`] makes one.
#[derive(Clone)]
pub struct Repository {
    pub source: Arc<Source>,
    pub key: RepositoryKey,
}

impl Repository {
    pub fn name(&self) -> &RepositoryName {
        &self.key.name
    }

    pub fn upstream_name(&self) -> &Arc<str> {
        &self.key.upstream
    }
}

/// Which rule chose an upstream, in the order in which they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Ns,
    Prefix,
    NameComponent,
    Host,
    ListenerDefault,
    Default,
}

/// All that can be resolved.
pub struct Repositories {
    sources: HashMap<String, Arc<Source>>,
    hosts: HashMap<String, Arc<Source>>,
    default: Arc<Source>,
}

/// Why a spelling is no repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    #[error("no upstream of this name is configured")]
    UnknownUpstream,
    #[error("the path's upstream is not the one in ns")]
    Contradiction,
    #[error("not a repository's name")]
    Name,
}

impl Repositories {
    /// `aliases` are further names of the sources' upstreams, beside those that a registry is known to have, `hosts` the `Host` headers that mean one. `None` when
    /// `default` or a target of `hosts` or `aliases` is not among the sources.
    pub fn new(sources: Vec<Arc<Source>>, aliases: &[(String, String)], hosts: &[(String, String)], default: &str) -> Option<Repositories> {
        let mut by_name: HashMap<String, Arc<Source>> = sources.into_iter().map(|source| (source.name().to_string(), source)).collect();
        let find = |by_name: &HashMap<String, Arc<Source>>, name: &str| by_name.get(name).cloned();
        for (alias, name) in aliases {
            let source = find(&by_name, name)?;
            by_name.insert(alias.clone(), source);
        }
        let sources: Vec<Arc<Source>> = by_name.values().map(Arc::clone).collect();
        for source in sources {
            for name in registries::further_names(source.name()) {
                by_name.entry(name.into()).or_insert_with(|| Arc::clone(&source));
            }
        }
        let hosts = hosts.iter().map(|(host, name)| Some((host.clone(), find(&by_name, name)?))).collect::<Option<_>>()?;
        let default = find(&by_name, default)?;
        Some(Repositories { sources: by_name, hosts, default })
    }

    /// The names of all upstreams, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.sources.values().map(|source| &**source.name()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Whether what stands before `/v2/` and in `ns` is configured.
    pub fn knows(&self, root: &Root, ns: Option<&str>) -> bool {
        let prefix = match root {
            Root::Prefix(prefix) => Some(prefix.as_str()),
            Root::V2 | Root::Bare => None,
        };
        prefix.into_iter().chain(ns).all(|name| self.sources.contains_key(name))
    }

    /// One upstream is chosen by, in this order: `ns`, the prefix before `/v2`, the name's first component, the `Host`
    /// header (lower case, without port), the listener's default, the global one.
    ///
    /// # Errors
    /// When what was named is not configured, or two names contradict each other.
    pub fn resolve(&self, target: &Target, host: Option<&str>, listener_default: Option<&str>) -> Result<Repository, Unresolved> {
        self.resolve_by(target, host, listener_default).map(|(repository, _)| repository)
    }

    /// As [`Repositories::resolve`], and by which rule.
    ///
    /// # Errors
    /// As [`Repositories::resolve`].
    pub fn resolve_by(
        &self,
        target: &Target,
        host: Option<&str>,
        listener_default: Option<&str>,
    ) -> Result<(Repository, Rule), Unresolved> {
        let prefixed = match &target.root {
            Root::Prefix(prefix) => Some(self.source(prefix)?),
            Root::V2 | Root::Bare => None,
        };
        if let Some(ns) = &target.ns {
            let source = self.source(ns)?;
            if prefixed.is_some_and(|prefixed| !Arc::ptr_eq(prefixed, source)) {
                return Err(Unresolved::Contradiction);
            }
            return self.stripped(target, source).map(|repository| (repository, Rule::Ns));
        }
        if let Some(source) = prefixed {
            return Self::repository(source, target.whole()).map(|repository| (repository, Rule::Prefix));
        }
        if let Some((source, name)) = self.first_component(target) {
            return Self::repository(source, Some(name)).map(|repository| (repository, Rule::NameComponent));
        }
        if target.root == Root::Bare {
            return Err(Unresolved::UnknownUpstream);
        }
        let by_host = host.and_then(|host| Some((self.hosts.get(host)?, Rule::Host)));
        let by_listener = || listener_default.and_then(|name| Some((self.sources.get(name)?, Rule::ListenerDefault)));
        let (source, rule) = by_host.or_else(by_listener).unwrap_or((&self.default, Rule::Default));
        // A first component that can only be a host names an upstream that is not configured.
        let name = target.whole().ok_or(Unresolved::UnknownUpstream)?;
        Self::repository(source, Some(name)).map(|repository| (repository, rule))
    }

    /// A repository by its canonical name.
    pub fn named(&self, upstream: &str, name: &RepositoryName) -> Option<Repository> {
        Self::repository(self.source(upstream).ok()?, Some(name.clone())).ok()
    }

    /// The name with `ns` given: a leading component that means the same upstream is not part of it.
    fn stripped(&self, target: &Target, source: &Arc<Source>) -> Result<Repository, Unresolved> {
        match self.first_component(target) {
            Some((first, name)) if Arc::ptr_eq(first, source) => Self::repository(source, Some(name)),
            _ => Self::repository(source, target.whole()),
        }
    }

    fn first_component(&self, target: &Target) -> Option<(&Arc<Source>, RepositoryName)> {
        let (first, name) = target.split_first()?;
        Some((self.sources.get(first)?, name))
    }

    fn source(&self, name: &str) -> Result<&Arc<Source>, Unresolved> {
        self.sources.get(name).ok_or(Unresolved::UnknownUpstream)
    }

    fn repository(source: &Arc<Source>, name: Option<RepositoryName>) -> Result<Repository, Unresolved> {
        let mut name = name.ok_or(Unresolved::Name)?;
        if let Cow::Owned(full) = registries::full_repository(source.name(), name.as_str()) {
            name = full.parse().map_err(|_| Unresolved::Name)?;
        }
        Ok(Repository { key: RepositoryKey { upstream: Arc::clone(source.name()), name }, source: Arc::clone(source) })
    }
}
