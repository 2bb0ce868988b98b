//! Why a reference is served as it is: gathered by the rules that serve it, without asking upstream, without a use of anything,
//! and without a trace.

mod content;
mod explanation;

pub use super::decide::{Question, Why};
pub use explanation::{
    Blobs, Content, Credential, Eviction, Explanation, Host, Image, Kind, Next, Pin, Pulls, Readers, Rest, Served, Source, Tag,
};

use std::sync::Arc;
use std::time::Duration;

use super::decide::Decision;
use super::freshness::{self, Answer, Freshness, Held};
use super::membership::{Mode, Shown, StoredManifest};
use super::{Asked, Error, Mirror, Repository, What};
use crate::clock::Timestamp;
use crate::config::Visibility;
use crate::labels::Outcome;
use crate::labels::UpstreamKind;
use crate::oci::{self, Descriptor, Digest, Reference};
use crate::store::TagRecord;
use crate::upstream::{AccountOutlook, HostOutlook, Open, Outlook, UnavailableReason, UpstreamError};

/// The status and code of an error, which are the server's to say.
pub type Statuses<'a> = &'a (dyn Fn(&Error) -> (u16, &'static str) + Sync);

/// What is known before the question is of a tag, a manifest or a blob.
struct Case<'a> {
    repository: &'a Repository,
    asked: &'a Asked,
    now: Timestamp,
    outlook: Outlook,
    shown: Shown,
    statuses: Statuses<'a>,
}

/// What is held, and what that means for who asks.
struct Finding {
    next: Next,
    tag: Option<Arc<TagRecord>>,
    descriptor: Option<Descriptor>,
    /// If upstream fails so.
    unavailable: Served,
    limited: Option<Served>,
}

impl Mirror {
    /// What would become of a question.
    pub async fn explain(&self, repository: &Repository, asked: &Asked, statuses: Statuses<'_>) -> Explanation {
        let outlook = repository.source.upstream.outlook(repository.name(), false);
        let shown = self.shown(&repository.key, Mode::Peek).await;
        let case = Case { repository, asked, now: self.clock.now(), outlook, shown, statuses };
        let (kind, finding) = match asked {
            Asked::Manifest(Reference::Tag(tag)) => (Kind::Tag, self.explain_tag(&case, tag).await),
            Asked::Manifest(Reference::Digest(digest)) => (Kind::Manifest, self.explain_digest(&case, digest)),
            Asked::Blob(digest) => (Kind::Blob, self.explain_layer(&case, digest)),
        };
        let Finding { next, tag, descriptor, unavailable, limited } = finding;
        let next = self.admitted(&case, next);
        let held = descriptor.filter(|descriptor| self.store.contains(&descriptor.digest));
        let (content, eviction) = match (&held, asked) {
            (Some(held), _) => (Some(self.explain_manifest(repository, held).await), Some(self.explain_eviction(&held.digest))),
            (None, Asked::Blob(digest)) if self.store.contains(digest) => {
                (Some(self.explain_blob(repository, digest)), Some(self.explain_eviction(digest)))
            }
            (None, _) => (None, None),
        };
        let is_open = !repository.source.upstream.shows_public_only();
        Explanation {
            reference: case.spelled(),
            kind,
            readers: if is_open { Readers::Everyone } else { Readers::EveryoneIfShown },
            tag: match (tag, asked) {
                (Some(record), Asked::Manifest(Reference::Tag(tag))) => Some(case.tag(tag, &record)),
                _ => None,
            },
            upstream: case.source(),
            next,
            when_unavailable: unavailable,
            when_limited: limited,
            content,
            eviction,
        }
    }

    async fn explain_tag(&self, case: &Case<'_>, tag: &oci::Tag) -> Finding {
        let (repository, rules) = (case.repository, &case.repository.source.tags);
        let record = self.record(repository, tag, Mode::Peek).await;
        let held = freshness::held(record.as_deref(), case.now, rules.stale_if_error);
        let content = match &record {
            Some(record) => self.content(repository, &record.descriptor).await,
            None => freshness::Content::ManifestsMissing,
        };
        let failed = |error: &UpstreamError| match freshness::answer(
            freshness::stands_in(held, error.into(), content),
            error.into(),
            rules.keep_deleted,
        ) {
            Answer::Serve(outcome) if case.stands() => served(outcome),
            _ => case.refused(What::Manifest, error),
        };
        let next = case.next(self.tag_decision(repository, tag, record.as_deref()), UpstreamKind::Manifest, &failed);
        let is_asked = next.question != Question::None;
        let waits = Some(self.revalidate_wait).filter(|_| is_asked && held == Held::Within && content == freshness::Content::Whole);
        let wait = waits.map(|wait| if repository.source.patience.is_lost() { Duration::ZERO } else { wait });
        let next = Next { waits_milliseconds: wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)), ..next };
        // What is fresh for good never needs upstream's word.
        let trouble =
            |error: &UpstreamError| if next.why == Why::Immutable && case.stands() { served(Outcome::Hit) } else { failed(error) };
        let (unavailable, limited) = (trouble(&unreachable()), trouble(&UpstreamError::RateLimited { retry_after: None }));
        let descriptor = record.as_ref().map(|record| record.descriptor.clone());
        Finding { next, descriptor, tag: record, unavailable, limited: Some(limited) }
    }

    fn explain_digest(&self, case: &Case<'_>, digest: &Digest) -> Finding {
        let (decision, held) = self.manifest_decision(case.repository, digest);
        let descriptor = held.filter(|_| self.store.contains(digest)).map(|held| {
            let (StoredManifest::Own(media_type) | StoredManifest::Others(media_type)) = held;
            let size = self.store.holding(case.repository.upstream_name(), digest).allocated;
            Descriptor { media_type, digest: *digest, size }
        });
        let (next, failed) = case.by_digest(decision, UpstreamKind::Manifest);
        let (unavailable, limited) = (failed(&unreachable()), failed(&UpstreamError::RateLimited { retry_after: None }));
        Finding { next, tag: None, descriptor, unavailable, limited: Some(limited) }
    }

    fn explain_layer(&self, case: &Case<'_>, digest: &Digest) -> Finding {
        let (decision, _) = self.blob_decision(case.repository, digest);
        let (next, failed) = case.by_digest(decision, UpstreamKind::Blob);
        Finding { unavailable: failed(&unreachable()), next, tag: None, descriptor: None, limited: None }
    }

    /// What public access makes of it, as [`Mirror::admit`] does.
    fn admitted(&self, case: &Case<'_>, next: Next) -> Next {
        if !case.repository.source.upstream.shows_public_only() || case.shown.is_good(case.now) {
            return next;
        }
        let kind = match case.asked {
            Asked::Manifest(_) => UpstreamKind::Manifest,
            Asked::Blob(_) => UpstreamKind::Blob,
        };
        if let Some(left) = self.absent_for(case.repository, case.asked) {
            return case.absent(left);
        }
        let as_nobody = case.repository.source.upstream.outlook(case.repository.name(), true);
        match as_nobody.asked(kind) {
            Ok(_) => Next { asks_as_nobody_first: true, ..next },
            Err(error) if error.says_nothing() && case.stands() => next,
            Err(error) => {
                let left = as_nobody.open_for(kind).map(|left| left.as_secs());
                Next { for_seconds: left, ..settled(Why::NotShown, case.refused(case.asked.what(), &error)) }
            }
        }
    }
}

impl Case<'_> {
    /// A decision as it is printed.
    fn next(&self, decision: Decision, kind: UpstreamKind, failed: &dyn Fn(&UpstreamError) -> Served) -> Next {
        let seconds = |left: Option<Duration>| left.map(|left| left.as_secs());
        match decision {
            Decision::Serve { why, outcome, left } => Next { for_seconds: seconds(left), ..settled(why, served(outcome)) },
            Decision::Refuse { left } => self.absent(left),
            Decision::Ask { question, why, left } => {
                let next = self.ask(kind, question, why, failed);
                Next { for_seconds: next.for_seconds.or(seconds(left)), ..next }
            }
        }
    }

    /// The same of what cannot change, and what is served if upstream fails: what is cached, or the failure.
    fn by_digest(&self, decision: Decision, kind: UpstreamKind) -> (Next, impl Fn(&UpstreamError) -> Served) {
        let is_served = matches!(decision, Decision::Serve { why: Why::Held, .. }) && self.stands();
        let refused = |error: &UpstreamError| self.refused(self.asked.what(), error);
        let failed = move |error: &UpstreamError| if is_served { served(Outcome::Hit) } else { refused(error) };
        (self.next(decision, kind, &failed), failed)
    }

    fn absent(&self, left: Duration) -> Next {
        Next { for_seconds: Some(left.as_secs()), ..settled(Why::AbsenceRemembered, self.negative(self.asked.what())) }
    }

    /// The question, if there is anybody to put it to; else what is told without one.
    fn ask(&self, kind: UpstreamKind, question: Question, why: Why, failed: &dyn Fn(&UpstreamError) -> Served) -> Next {
        match self.outlook.asked(kind) {
            Ok((host, account)) => {
                let host = self.outlook.hosts.get(host);
                let account = host.and_then(|host| host.accounts.get(account));
                let (url, credential) = (host.map(|host| host.url.clone()), account.map(|account| account.credential.clone()));
                Next { question, why, url, credential, served: None, ..settled(why, served(Outcome::Hit)) }
            }
            Err(error) => {
                let left = self.outlook.open_for(kind).map(|left| left.as_secs());
                Next { for_seconds: left, ..settled(Why::Rests, failed(&error)) }
            }
        }
    }

    /// Whether what is held may be shown although upstream cannot say that it shows it to anybody.
    fn stands(&self) -> bool {
        let source = &self.repository.source;
        !source.upstream.shows_public_only() || self.shown.is_within(source.tags.stale_if_error, self.now)
    }

    fn refused(&self, what: What, error: &UpstreamError) -> Served {
        self.error(&Error::from_upstream(self.repository.upstream_name(), what, error))
    }

    fn negative(&self, what: What) -> Served {
        let upstream = Arc::clone(self.repository.upstream_name());
        Served { outcome: Outcome::Negative.as_str().into(), ..self.error(&Error::NotFound { upstream, what, remembered: true }) }
    }

    fn error(&self, error: &Error) -> Served {
        let (status, code) = (self.statuses)(error);
        let outcome = if matches!(error, Error::Denied { .. }) { Outcome::Denied } else { Outcome::Error };
        Served { status, outcome: outcome.as_str().into(), reason: None, code: Some(code.into()), detail: Some(error.to_string()) }
    }

    fn spelled(&self) -> String {
        let (upstream, name) = (self.repository.upstream_name(), self.repository.name());
        match self.asked {
            Asked::Manifest(Reference::Tag(tag)) => format!("{upstream}/{name}:{tag}"),
            Asked::Manifest(Reference::Digest(digest)) | Asked::Blob(digest) => format!("{upstream}/{name}@{digest}"),
        }
    }

    fn source(&self) -> Source {
        let upstream = &self.repository.source.upstream;
        let shown = self.shown.age(self.now).filter(|_| upstream.shows_public_only());
        Source {
            name: self.repository.upstream_name().to_string(),
            chosen_by: String::new(),
            hosts: self.outlook.hosts.iter().map(host).collect(),
            is_known: true,
            visibility: if upstream.visibility() == Visibility::Public { "public" } else { "private" }.into(),
            shows_public_only: upstream.shows_public_only(),
            shown_seconds_ago: shown.map(|(age, _)| age.as_secs()),
            shown_left_seconds: shown.map(|(_, left)| left.as_secs()),
            is_waited_for: !self.repository.source.patience.is_lost(),
        }
    }

    fn tag(&self, tag: &oci::Tag, record: &TagRecord) -> Tag {
        let rules = &self.repository.source.tags;
        let (age, ttl) = (freshness::distance(record, self.now), rules.ttl(tag));
        let is_immutable = rules.judge(tag, Some(record), self.now) == Freshness::Fresh { ttl: None };
        let left = match rules.judge(tag, Some(record), self.now) {
            Freshness::Fresh { ttl } => ttl.map(seconds),
            Freshness::Expired | Freshness::Absent => Some((seconds(ttl) - seconds(age)).min(0)),
        };
        Tag {
            digest: record.descriptor.digest.to_string(),
            media_type: record.descriptor.media_type.to_string(),
            size: record.descriptor.size,
            first_seen: record.first_seen.rfc3339().to_string(),
            checked_at: record.checked_at.rfc3339().to_string(),
            checked_seconds_ago: age.as_secs(),
            is_immutable,
            fresh_until: Some(record.checked_at.plus(ttl).rfc3339().to_string()).filter(|_| !is_immutable),
            fresh_left_seconds: left,
            stands_in_until: record.checked_at.plus(rules.stale_if_error).rfc3339().to_string(),
            may_stand_in: freshness::held(Some(record), self.now, rules.stale_if_error) == Held::Within,
        }
    }
}

/// No question: this is what a client gets.
fn settled(why: Why, served: Served) -> Next {
    Next {
        question: Question::None,
        why,
        for_seconds: None,
        url: None,
        credential: None,
        asks_as_nobody_first: false,
        served: Some(served),
        waits_milliseconds: None,
    }
}

fn served(outcome: Outcome) -> Served {
    Served { status: 200, outcome: outcome.as_str().into(), reason: outcome.reason().map(str::to_owned), code: None, detail: None }
}

fn unreachable() -> UpstreamError {
    UpstreamError::Unavailable { reason: UnavailableReason::Connect, detail: "it cannot be reached".into() }
}

fn host(host: &HostOutlook) -> Host {
    let credential = |account: &AccountOutlook| Credential {
        name: account.credential.clone(),
        pulls: account.budget.as_ref().map(|budget| Pulls {
            limit: budget.limit,
            remaining: budget.remaining,
            window_seconds: budget.window.map(|window| window.as_secs()),
            source: budget.source.clone(),
        }),
        limit_rests: account.limit.as_ref().map(rest),
        login_rests: account.login.as_ref().map(rest),
        token_server_rests: account.token_server.as_ref().map(rest),
    };
    Host { url: host.url.clone(), rests: host.open.as_ref().map(rest), credentials: host.accounts.iter().map(credential).collect() }
}

fn rest(open: &Open) -> Rest {
    // Rounded up, so that whoever heeds it does not come early.
    let left_seconds = open.left.as_secs() + u64::from(open.left.subsec_nanos() > 0);
    Rest { why: open.why.to_string(), left_seconds, is_probed: open.is_probed }
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
