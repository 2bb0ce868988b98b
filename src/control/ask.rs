//! The words between a command and the daemon. Fields are added, never changed: the two ends may be of different versions.

use http::Method;
use serde::{Deserialize, Serialize};

use super::history::Tally;
use crate::mirror::explain::Explanation;
use crate::mirror::{WarmProgress, Warmed};
use crate::percent;
use crate::store::{Inventory, Purged, Report, VerifyProgress};

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Stats,
    Verify {
        repair: bool,
    },
    /// As [`super::canonical`] has it.
    Purge(String),
    /// A reference, or a URL's path, as it was written.
    Explain(String),
    /// Make these complete.
    Pull {
        /// As [`super::image`] has them.
        images: Vec<String>,
        /// As they are written; none: the machine's own.
        platforms: Vec<String>,
    },
}

impl Ask {
    /// As a request's method and target.
    pub fn request(&self) -> (Method, String) {
        match self {
            Ask::Stats => (Method::GET, "/v1/stats".into()),
            Ask::Verify { repair } => (Method::POST, format!("/v1/verify?repair={repair}")),
            Ask::Purge(what) => (Method::POST, format!("/v1/purge?{what}")),
            Ask::Explain(what) => (Method::GET, format!("/v1/explain?ref={}", percent::encode(what))),
            Ask::Pull { images, platforms } => {
                let pairs = |key: &'static str, values: &[String]| values.iter().map(|value| format!("{key}={value}")).collect::<Vec<_>>();
                let query = [pairs("image", images), pairs("platform", platforms)].concat().join("&");
                (Method::POST, format!("/v1/pull?{query}"))
            }
        }
    }

    /// What a request asks for; `None` for what larder does not know.
    pub fn of(method: &Method, path: &str, query: Option<&str>) -> Option<Ask> {
        match (method, path) {
            (&Method::GET, "/v1/stats") => Some(Ask::Stats),
            (&Method::POST, "/v1/verify") => Some(Ask::Verify { repair: query == Some("repair=true") }),
            (&Method::POST, "/v1/purge") => Some(Ask::Purge(query?.to_owned())),
            (&Method::GET, "/v1/explain") => percent::query_value(query?, "ref").map(Ask::Explain),
            (&Method::POST, "/v1/pull") => {
                let pairs = query?.split('&').filter_map(|pair| pair.split_once('='));
                let of = |key: &str| pairs.clone().filter(|(name, _)| *name == key).map(|(_, value)| value.to_owned()).collect::<Vec<_>>();
                Some(Ask::Pull { images: of("image"), platforms: of("platform") })
            }
            _ => None,
        }
    }
}

/// A line of an answer. The last is neither `Progress` nor `Warming`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Progress(VerifyProgress),
    Warming(WarmProgress),
    Done(Answer),
    Failed(String),
    /// What was asked is none of larder's questions, for this reason: exit code 2.
    Refused(String),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Stats(Box<Stats>),
    Verified(Report),
    Purged(Purged),
    Pulled(Vec<Warmed>),
    Explained(Box<Explained>),
}

/// What `explain` tells.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explained {
    /// What was understood that had not been written.
    pub notes: Vec<String>,
    #[serde(flatten)]
    pub explanation: Explanation,
}

/// What is held, and what it was good for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    pub held: Inventory,
    /// Why nothing is stored at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degraded: Option<String>,
    /// Since the daemon's start; absent of a stopped directory.
    pub traffic: Option<Traffic>,
    /// The last seven days, across restarts.
    #[serde(default)]
    pub week: Tally,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Traffic {
    pub seconds: u64,
    /// For manifests and blobs.
    pub requests: u64,
    /// Answered by what was held.
    pub hits: u64,
    pub sent_bytes: u64,
    /// From upstreams.
    pub received_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_what_is_asked() {
        let digest = format!("docker.io/library/a@sha256:{}", "0a".repeat(32));
        let pull =
            Ask::Pull { images: vec!["r.corp:5000/a/b:V1.0_x".into(), digest], platforms: vec!["linux/arm/v7".into(), "all".into()] };
        for ask in [
            Ask::Stats,
            Ask::Verify { repair: true },
            Ask::Verify { repair: false },
            Ask::Purge("docker.io/a/*:1".into()),
            Ask::Explain("/v2/ü b/%/a?ns=x#&+".into()),
            pull,
        ] {
            let (method, target) = ask.request();
            let uri: http::Uri = target.parse().expect("a target");
            assert_eq!(Ask::of(&method, uri.path(), uri.query()), Some(ask));
        }
        assert_eq!(Ask::of(&Method::GET, "/v1/purge", Some("docker.io/a/*")), None);
        assert_eq!(Ask::of(&Method::POST, "/v1/purge", None), None);
    }
}
