//! One credential at one host of an upstream: its login and tokens, what is left of its pull limit, and which repositories it is for.

use parking_lot::Mutex;
use std::sync::Arc;

use globset::{GlobBuilder, GlobMatcher};
use prometheus::IntCounter;

use super::auth::credentials::Source;
use super::auth::lockout::Signer;
use super::auth::unauthorized::Auth;
use super::http::exchange::Wire;
use super::http::url::Url;
use super::limits::breaker::Rest;
use super::limits::pull_limit::Budget;
use super::limits::throttle::Pace;
use crate::config::UpstreamConfig;
use crate::oci::RepositoryName;
use crate::rng::Rng;

/// One credential at one host.
pub(super) struct Account {
    pub(super) auth: Auth,
    /// At its pull limit, no manifest is asked for. Blobs are not counted and go on.
    pub(super) limit: Rest,
    /// How fast manifests may be asked for, where the registry says so beforehand.
    pub(super) pace: Option<Pace>,
    budget: Mutex<Option<Budget>>,
}

impl Account {
    /// `source`: `None` for that of nobody. `ping`: the host's `/v2/`. `panics` counts the tasks that panic.
    pub(super) fn new(
        config: &UpstreamConfig,
        source: Option<Arc<Source>>,
        wire: &Arc<Wire>,
        ping: &Url,
        rng: &Arc<Rng>,
        panics: &IntCounter,
    ) -> Account {
        let pace = if source.is_none() { Pace::of_anonymous(&wire.origin.host) } else { None };
        let signer = Signer::new(source, Arc::clone(rng));
        Account { auth: Auth::new(config, signer, wire, ping, rng, panics), limit: Rest::default(), pace, budget: Mutex::default() }
    }

    pub(super) fn name(&self) -> &str {
        self.auth.credential()
    }

    /// What upstream last said of the pull limit.
    pub(super) fn budget(&self) -> Option<Budget> {
        self.budget.lock().clone()
    }

    pub(super) fn budgeted(&self, budget: Option<Budget>) {
        *self.budget.lock() = budget;
    }
}

/// The repositories a credential is for: some, or all.
pub(super) struct Scope(Vec<GlobMatcher>);

impl Scope {
    /// What is no glob, which the configuration refuses, covers nothing.
    pub(super) fn new(globs: &[String]) -> Scope {
        let parse = |glob: &String| Some(GlobBuilder::new(glob).literal_separator(true).build().ok()?.compile_matcher());
        Scope(globs.iter().filter_map(parse).collect())
    }

    /// A repository that it may cover: the fixed beginning of its first pattern.
    pub(super) fn example(&self) -> Option<RepositoryName> {
        let glob = self.0.first()?.glob().glob();
        let fixed: Vec<_> = glob.split('/').take_while(|part| !part.contains(['*', '?', '[', '{', '\\'])).collect();
        let name = fixed.join("/");
        let name = if name == glob { name } else { fixed.into_iter().chain(["any"]).collect::<Vec<_>>().join("/") };
        name.parse().ok()
    }

    /// How closely it covers a repository: the length of the longest pattern that does, 0 for one that is for all.
    fn fit(&self, repository: &RepositoryName) -> Option<usize> {
        if self.0.is_empty() {
            return Some(0);
        }
        let fitting = self.0.iter().filter(|glob| glob.is_match(repository.as_str()));
        fitting.map(|glob| glob.glob().glob().len()).max()
    }
}

/// The places of those that cover a repository most closely: these, in order, and no other. None: nobody's is used.
pub(super) fn closest(scopes: &[Scope], repository: &RepositoryName) -> Vec<usize> {
    let fits: Vec<Option<usize>> = scopes.iter().map(|scope| scope.fit(repository)).collect();
    let best = fits.iter().flatten().max();
    (0..scopes.len()).filter(|place| fits[*place].is_some() && fits[*place].as_ref() == best).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(scopes: &[&[&str]], repository: &str) -> Vec<usize> {
        let owned = |globs: &&[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
        let scopes: Vec<Scope> = scopes.iter().map(|globs| Scope::new(&owned(globs))).collect();
        closest(&scopes, &repository.parse().expect("a name"))
    }

    #[test]
    fn the_longest_match_is_used_alone_and_equals_in_order() {
        let scopes: [&[&str]; 4] = [&[], &["org/**"], &["org/team/*", "else/*"], &["org/**"]];
        assert_eq!(chosen(&scopes, "library/alpine"), [0]);
        assert_eq!(chosen(&scopes, "org/app"), [1, 3]);
        assert_eq!(chosen(&scopes, "org/team/app"), [2]);
        assert_eq!(chosen(&scopes, "org/team/app/part"), [1, 3], "* stays within a component");
        assert_eq!(chosen(&scopes, "else/x"), [2]);
        assert_eq!(chosen(&[&["org/**"]], "library/alpine"), [0; 0]);
        assert_eq!(chosen(&[&[], &[]], "library/alpine"), [0, 1]);
    }
}
