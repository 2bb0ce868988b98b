//! What `larder explain` tells, as plain data: keys of JSON that stay. Times are UTC, and seconds where they are spans.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::mirror::decide::{Question, Why};
use crate::store::Place;

/// What larder makes of one reference, now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    /// As it is understood: `upstream/repository:tag` or `upstream/repository@digest`.
    pub reference: String,
    pub kind: Kind,
    pub upstream: Source,
    pub readers: Readers,
    /// Its record, and that of no tag whose manifest is gone.
    pub tag: Option<Tag>,
    pub next: Next,
    /// What a client would get if upstream could not be reached, once what is held is no longer fresh.
    pub when_unavailable: Served,
    /// The same, if upstream refused manifests for its rate limit. Blobs are under none.
    pub when_limited: Option<Served>,
    /// Of what is held.
    pub content: Option<Content>,
    pub eviction: Option<Eviction>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Tag,
    Manifest,
    Blob,
}

/// The upstream.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    pub name: String,
    /// `reference`, `ns`, `path_prefix`, `name_component`, `host`, `listener_default` or `default`.
    pub chosen_by: String,
    /// In the order in which they are asked.
    pub hosts: Vec<Host>,
    /// Of a running daemon; a stopped directory knows of no rests and limits.
    pub is_known: bool,
    pub visibility: String,
    /// Whether upstream is asked what it shows to anybody, as larder's credential there reads more.
    pub shows_public_only: bool,
    /// Since it has last shown the repository to anybody.
    pub shown_seconds_ago: Option<u64>,
    /// For so long that is good.
    pub shown_left_seconds: Option<u64>,
    /// It has let somebody wait in vain: who has something to serve waits no more until it answers.
    pub is_waited_for: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Host {
    pub url: String,
    pub rests: Option<Rest>,
    /// Those that are for the repository, in the order in which they are used.
    pub credentials: Vec<Credential>,
}

/// Something that is left alone.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rest {
    pub why: String,
    /// 0: the next question finds out whether it is over.
    pub left_seconds: u64,
    /// A question is out that will tell.
    pub is_probed: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credential {
    /// `anonymous` is nobody's.
    pub name: String,
    /// Of its pull limit, as upstream last said.
    pub pulls: Option<Pulls>,
    /// It is at its pull limit: no manifest is asked for.
    pub limit_rests: Option<Rest>,
    /// Its login was refused, and is not tried before that time, unless it changes.
    pub login_rests: Option<Rest>,
    pub token_server_rests: Option<Rest>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pulls {
    pub limit: Option<u64>,
    pub remaining: Option<u64>,
    pub window_seconds: Option<u64>,
    /// To whom upstream counts them.
    pub source: Option<String>,
}

/// Who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Readers {
    Everyone,
    /// As far as upstream shows the repository to anybody.
    EveryoneIfShown,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tag {
    pub digest: String,
    pub media_type: String,
    /// Of the manifest, in bytes.
    pub size: u64,
    pub first_seen: String,
    pub checked_at: String,
    /// Since upstream last confirmed it; where that lies in the future, how far.
    pub checked_seconds_ago: u64,
    pub is_immutable: bool,
    /// Absent for what is fresh for good.
    pub fresh_until: Option<String>,
    /// Seconds; negative: stale for so long.
    pub fresh_left_seconds: Option<i64>,
    /// Until then it may stand in for upstream's word.
    pub stands_in_until: String,
    pub may_stand_in: bool,
}

/// What would happen if a client asked now.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Next {
    pub question: Question,
    pub why: Why,
    /// For so long that holds; absent where it holds for good, or nobody can tell.
    pub for_seconds: Option<u64>,
    /// Who would be asked.
    pub url: Option<String>,
    pub credential: Option<String>,
    /// Before that upstream is asked as nobody whether it shows the repository to anybody.
    pub asks_as_nobody_first: bool,
    /// What the client gets, where nobody is asked.
    pub served: Option<Served>,
    /// Who has something to serve waits so long for the answer, and is then served that.
    pub waits_milliseconds: Option<u64>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Served {
    pub status: u16,
    /// As in the log and in metrics; of an error `error`, `denied` or `negative`.
    pub outcome: String,
    /// Why it is stale.
    pub reason: Option<String>,
    /// An error's.
    pub code: Option<String>,
    pub detail: Option<String>,
}

/// What is here of an image, of the images of an index, or of a blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Content {
    pub digest: String,
    pub media_type: Option<String>,
    /// On disk.
    pub bytes: u64,
    /// Whether all of it is here: of an index, one image at least.
    pub is_whole: bool,
    /// Those of which the manifest is here; one for what is no index.
    pub images: Vec<Image>,
    /// Of an index, the platforms of which nothing is here.
    pub platforms_missing: Vec<String>,
    /// Other repositories with some of these objects, and how many.
    pub others: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Image {
    pub digest: String,
    pub platform: Option<String>,
    /// All that it lists would be served without a question.
    pub is_whole: bool,
    /// Blobs: layers, configuration.
    pub held: Blobs,
    pub missing: Blobs,
    /// Of the missing, those that clients fetch from elsewhere.
    pub foreign: u64,
    /// Of the missing, those that are being downloaded.
    pub arriving: u64,
    /// Of the held, those of which upstream is asked before they are served, as a private upstream has them, too.
    pub doubtful: u64,
    /// What interrupted downloads have left of the missing, on disk.
    pub partial_bytes: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blobs {
    pub count: u64,
    /// As the manifest says.
    pub bytes: u64,
    /// On disk.
    pub allocated: u64,
}

/// When it would go.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Eviction {
    /// The object that would go first.
    pub first: Option<Place>,
    /// What the reference names: the manifest, or the blob. Of an image that was pulled more than once the manifest goes last.
    pub named: Option<Place>,
    /// `cache.evict_unused_after`, if there is one.
    pub unused_after_seconds: Option<u64>,
    pub pins: Vec<Pin>,
}

/// Why it never goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// As in `cache.pinned_images`.
    pub pin: String,
    /// The tag by which it is pinned.
    pub tag: String,
}
