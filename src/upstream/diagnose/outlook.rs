//! What a question would meet now: whom it would be put to, and which circuit breakers are open. Asks nobody, and tries no login.

use std::time::Duration;

use tokio::time::Instant;

use crate::labels::UpstreamKind;
use crate::oci::RepositoryName;
use crate::upstream::client::Upstream;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::http::url::Url;
use crate::upstream::limits::breaker::Open;
use crate::upstream::limits::pull_limit::Budget;
use crate::upstream::request::{OPEN_WAIT_MAX, worse};
use crate::upstream::{UnavailableReason, UpstreamError};

/// An upstream's hosts, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Outlook {
    pub hosts: Vec<HostOutlook>,
}

#[derive(Clone, Debug)]
pub struct HostOutlook {
    pub url: String,
    /// Its circuit breaker, where that is open.
    pub open: Option<Open>,
    /// Those that are for the repository, in the order in which they are tried.
    pub accounts: Vec<AccountOutlook>,
}

/// One credential at one host.
#[derive(Clone, Debug)]
pub struct AccountOutlook {
    /// Its name, or `anonymous`.
    pub credential: String,
    /// What upstream last said of its pull limit.
    pub budget: Option<Budget>,
    /// At its pull limit: no manifest is asked for.
    pub limit: Option<Open>,
    /// At a limit of lists: none is asked for.
    pub lists: Option<Open>,
    /// Its login was refused.
    pub login: Option<Open>,
    pub token_server: Option<Open>,
}

impl Upstream {
    /// For a repository; `anonymous` as who asks as nobody.
    pub fn outlook(&self, repository: &RepositoryName, anonymous: bool) -> Outlook {
        let now = Instant::now();
        let host = |endpoint: &Endpoint| {
            let accounts = self.asker.accounts(endpoint, repository, anonymous);
            let account = |account: &&crate::upstream::account::Account| {
                let (login, token_server) = account.auth.outlook(repository, now);
                let credential = account.name().to_owned();
                let (limit, lists) = (account.pulls.state(now), account.lists.state(now));
                AccountOutlook { credential, budget: account.budget(), limit, lists, login, token_server }
            };
            HostOutlook {
                url: Url::new(endpoint.wire.origin.clone(), endpoint.path.clone()).to_string(),
                open: endpoint.wire.host.state(now),
                accounts: accounts.iter().map(account).collect(),
            }
        };
        Outlook { hosts: self.asker.endpoints.iter().map(host).collect() }
    }
}

impl AccountOutlook {
    /// What keeps a question from being asked with it.
    fn open(&self, kind: UpstreamKind) -> Option<&Open> {
        let limit = match kind {
            UpstreamKind::Manifest => self.limit.as_ref(),
            UpstreamKind::Listing => self.lists.as_ref(),
            // Under no limit of a credential's.
            UpstreamKind::Blob | UpstreamKind::Token => None,
        };
        limit.or(self.login.as_ref()).or(self.token_server.as_ref()).filter(|open| !open.is_over())
    }
}

impl Open {
    fn is_over(&self) -> bool {
        self.left.is_zero()
    }

    /// What is over in a moment is waited for.
    fn is_waited_for(&self) -> bool {
        self.is_probed || self.left <= OPEN_WAIT_MAX
    }
}

impl Outlook {
    /// Who would be asked: a host's place, and its account's.
    ///
    /// # Errors
    /// With what who asks now is told, where nobody would be asked.
    pub fn asked(&self, kind: UpstreamKind) -> Result<(usize, usize), UpstreamError> {
        let (mut last, mut soonest): (_, Option<(Duration, usize, usize)>) = (None, None);
        for (at, host) in self.hosts.iter().enumerate() {
            for (place, account) in host.accounts.iter().enumerate() {
                let open = host.open.as_ref().filter(|open| !open.is_over()).or_else(|| account.open(kind));
                let Some(open) = open else { return Ok((at, place)) };
                if open.is_waited_for() && soonest.is_none_or(|(left, ..)| open.left < left) {
                    soonest = Some((open.left, at, place));
                }
                let ends_host = open.why.is_outage();
                last = Some(worse(last, open.why.clone()));
                if ends_host {
                    break;
                }
            }
        }
        let nobody = || UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: "it has no url".into() };
        soonest.map(|(_, at, place)| (at, place)).ok_or_else(|| last.unwrap_or_else(nobody))
    }

    /// The shortest time until somebody may be asked again; `None` while somebody may be.
    pub fn open_for(&self, kind: UpstreamKind) -> Option<Duration> {
        let of_host = |host: &HostOutlook| {
            let accounts = host.accounts.iter().map(|account| account.open(kind).map_or(Duration::ZERO, |open| open.left)).min();
            accounts.unwrap_or_default().max(host.open.as_ref().map_or(Duration::ZERO, |open| open.left))
        };
        self.hosts.iter().map(of_host).min().filter(|left| !left.is_zero())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(why: UpstreamError, seconds: u64) -> Option<Open> {
        Some(Open { why, left: Duration::from_secs(seconds), is_probed: false })
    }

    fn down() -> UpstreamError {
        UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: "refused".into() }
    }

    fn limited() -> UpstreamError {
        UpstreamError::RateLimited { retry_after: Some(Duration::from_secs(60)) }
    }

    fn outlook(hosts: [(Option<Open>, [Option<Open>; 2]); 2]) -> Outlook {
        let account = |limit| AccountOutlook { credential: "a".into(), budget: None, limit, lists: None, login: None, token_server: None };
        let host = |(open, limits): (Option<Open>, [Option<Open>; 2])| HostOutlook {
            url: String::new(),
            open,
            accounts: limits.map(account).into(),
        };
        Outlook { hosts: hosts.map(host).into() }
    }

    #[test]
    fn the_first_whose_breakers_are_closed_is_asked() {
        use UpstreamKind::{Blob, Manifest};
        let limit = || open(limited(), 60);
        assert_eq!(outlook([(None, [None, None]), (None, [None, None])]).asked(Manifest), Ok((0, 0)));
        let one = outlook([(None, [limit(), None]), (None, [None, None])]);
        assert_eq!((one.asked(Manifest), one.asked(Blob), one.open_for(Manifest)), (Ok((0, 1)), Ok((0, 0)), None));
        assert_eq!(outlook([(open(down(), 5), [None, None]), (None, [limit(), None])]).asked(Manifest), Ok((1, 1)));
        let all = outlook([(open(down(), 5), [None, None]), (None, [limit(), limit()])]);
        assert_eq!((all.asked(Manifest), all.asked(Blob)), (Err(limited()), Ok((1, 0))), "a limit tells when to come back");
        assert_eq!(all.open_for(Manifest), Some(Duration::from_secs(5)));
    }

    #[test]
    fn what_is_over_soon_is_waited_for_and_what_is_over_finds_out() {
        let soon = outlook([(open(down(), 1), [None, None]), (open(down(), 0), [None, None])]);
        assert_eq!(soon.asked(UpstreamKind::Manifest), Ok((1, 0)));
        let soon = outlook([(open(down(), 60), [None, None]), (open(down(), 1), [None, None])]);
        assert_eq!(soon.asked(UpstreamKind::Manifest), Ok((1, 0)));
        let long = outlook([(open(down(), 60), [None, None]), (open(down(), 2), [None, None])]);
        assert_eq!(long.asked(UpstreamKind::Manifest), Err(down()));
    }
}
