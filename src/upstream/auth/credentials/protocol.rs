//! What the two kinds of programs have in common: an answer, for whom it holds, and for how long.

use std::time::Duration;

use super::Held;
use super::pattern::{self, Image};

/// What larder asks a program.
pub(super) struct Question<'a> {
    pub(super) program: String,
    pub(super) arguments: &'a [String],
    pub(super) input: Vec<u8>,
}

/// What a program's words mean.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) logins: Logins,
    pub(super) scope: Scope,
    pub(super) lifetime: Lifetime,
}

#[derive(Debug)]
pub(super) enum Logins {
    One(Held),
    /// By the pattern of what each is for.
    Patterns(Vec<(String, Held)>),
}

/// Whom an answer holds for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Scope {
    /// All of the registry. A source has one registry, so kubelet's `Global` is the same here.
    #[default]
    Registry,
    Repository,
}

/// From when on a new answer is sought, and until when this one is used where none is to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub(super) renew: Duration,
    pub(super) expire: Duration,
}

impl Answer {
    /// The longest pattern that fits; none: no login is needed.
    pub(super) fn login(&self, image: &Image) -> Held {
        match &self.logins {
            Logins::One(held) => held.clone(),
            Logins::Patterns(logins) => {
                let fitting = pattern::best(image, logins.iter().map(|(pattern, held)| (pattern.as_str(), held)));
                fitting.cloned().unwrap_or_else(|| super::Login::Anonymous.into())
            }
        }
    }

    pub(super) fn versions(&self) -> impl Iterator<Item = super::Version> {
        let (one, patterns) = match &self.logins {
            Logins::One(held) => (Some(held), [].as_slice()),
            Logins::Patterns(logins) => (None, logins.as_slice()),
        };
        one.into_iter().chain(patterns.iter().map(|(_, held)| held)).map(|held| held.version)
    }
}
