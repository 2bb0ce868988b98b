//! One credential at one host of an upstream: its login and tokens, its limits and what is left of them, and which repositories it is for.

use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;

use prometheus::IntCounter;
use tokio::time::Instant;

use super::UpstreamError;
use super::auth::credentials::Source;
use super::auth::lockout::Signer;
use super::auth::unauthorized::Auth;
use super::http::exchange::{Answer, Wire};
use super::http::url::Url;
use super::limits::breaker::Breaker;
use super::limits::pull_limit::Budget;
use super::limits::throttle::Pace;
use super::limits::too_many_requests::{Asked, LIMITED, LimitOf, Limited, PullLimitNews};
use crate::config::UpstreamConfig;
use crate::labels::UpstreamKind;
use crate::metrics::UpstreamMetrics;
use crate::oci::{Glob, RepositoryName};
use crate::rng::Rng;

/// One credential at one host.
pub(super) struct Account {
    pub(super) auth: Auth,
    /// Open at its pull limit: no manifest is asked for. Blobs and lists are not counted and go on.
    pub(super) pulls: Breaker,
    /// Open at a limit of lists alone.
    pub(super) lists: Breaker,
    /// How fast manifests may be asked for, where the registry says so beforehand.
    pub(super) pace: Option<Pace>,
    budget: Mutex<Option<Budget>>,
    rng: Arc<Rng>,
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
        let rng = Arc::clone(rng);
        Account {
            auth: Auth::new(config, signer, wire, ping, &rng, panics),
            pulls: Breaker::default(),
            lists: Breaker::default(),
            pace,
            budget: Mutex::default(),
            rng,
        }
    }

    pub(super) fn name(&self) -> &str {
        self.auth.credential()
    }

    /// What upstream last said of the pull limit.
    pub(super) fn budget(&self) -> Option<Budget> {
        self.budget.lock().clone()
    }

    pub(super) fn remember(&self, budget: Option<Budget>) {
        *self.budget.lock() = budget;
    }

    /// The breaker of the limit under which a question of this kind is; blobs and tokens are under none of the credential's.
    pub(super) fn breaker(&self, kind: UpstreamKind) -> Option<&Breaker> {
        match kind {
            UpstreamKind::Manifest => Some(&self.pulls),
            UpstreamKind::Listing => Some(&self.lists),
            UpstreamKind::Blob | UpstreamKind::Token => None,
        }
    }

    /// Draws the conclusions from an answer, whatever it is, to a question that began then.
    pub(super) fn observe(&self, asked: Asked, answer: &Answer, begun: Instant, metrics: &UpstreamMetrics) {
        let (status, budget) = (answer.status().as_u16(), Budget::read(|name| answer.header(name)));
        match asked.pull_limit_news(status, budget.as_ref()) {
            PullLimitNews::Nothing => {}
            PullLimitNews::Allows => drop(self.pulls.succeeded(begun, Instant::now())),
            PullLimitNews::UsedUp(wait) => self.pulls.keep_open(begun, Instant::now(), wait),
        }
        if asked.allows_lists(status) {
            self.lists.succeeded(begun, Instant::now());
        }
        if asked.tells_what_is_left(status, budget.as_ref()) {
            metrics.pull_limit(self.name(), budget.as_ref().map(Budget::figures).unwrap_or_default());
            self.remember(budget);
        }
    }

    /// Opens the breaker of what was asked too often, this credential's or the host's, and logs it. Returns what the question comes to.
    pub(super) fn limited(&self, asked: Asked, limited: &Limited, begun: Instant, wire: &Wire) -> UpstreamError {
        let why = UpstreamError::RateLimited { retry_after: None };
        let now = Instant::now();
        let open = |breaker: &Breaker, wait: Option<Duration>| breaker.open(begun, now, &why, wait, LIMITED, |wait| self.rng.jitter(wait));
        let ((wait, is_new), what) = match limited.of {
            LimitOf::Pulls => (open(&self.pulls, asked.pulls_wait(limited, self.budget().as_ref())), "manifests with this credential"),
            LimitOf::Lists => (open(&self.lists, limited.retry_after), "lists with this credential"),
            LimitOf::Host | LimitOf::TokenServer => (wire.host.limited(begun, now, &why, limited.retry_after), "this host"),
        };
        if is_new {
            let (upstream, host, credential, seconds) = (wire.metrics.name(), &wire.origin.host, self.name(), wait.as_secs());
            tracing::warn!(upstream, host, credential, seconds, what, "upstream limits the rate; it is not asked before this time is over");
        }
        UpstreamError::RateLimited { retry_after: Some(wait) }
    }
}

/// The repositories a credential is for: some, or all.
pub(super) struct Scope(Vec<Glob>);

impl Scope {
    /// What is no glob, which the configuration refuses, covers nothing.
    pub(super) fn new(globs: &[String]) -> Scope {
        Scope(globs.iter().filter_map(|glob| Glob::new(glob).ok()).collect())
    }

    /// A repository that it may cover: the fixed beginning of its first pattern.
    pub(super) fn example(&self) -> Option<RepositoryName> {
        let glob = self.0.first()?.as_str();
        let fixed: Vec<_> = glob.split('/').take_while(|part| !Glob::is_pattern(part)).collect();
        let name = fixed.join("/");
        let name = if name == glob { name } else { fixed.into_iter().chain(["any"]).collect::<Vec<_>>().join("/") };
        name.parse().ok()
    }

    /// How closely it covers a repository: the length of the longest pattern that does, 0 for one that is for all.
    fn fit(&self, repository: &RepositoryName) -> Option<usize> {
        if self.0.is_empty() {
            return Some(0);
        }
        let fitting = self.0.iter().filter(|glob| glob.matches(repository.as_str()));
        fitting.map(|glob| glob.as_str().len()).max()
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
