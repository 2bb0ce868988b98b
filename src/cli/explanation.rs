//! What `explain` says to people: a line a fact, told by its label. Pure.

use std::fmt::Write as _;

use crate::control::Explained;
use crate::mirror::explain::{
    Content, Credential, Eviction, Explanation, Host, Image, Kind, Next, Pulls, Question, Readers, Rest, Served, Source, Tag, Why,
};
use crate::store::{Keeps, Place};
use crate::units::{age, exact_duration, size};

/// Where the facts begin.
const MARGIN: usize = 15;

/// Lines under labels.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, label: &str, fact: &str) {
        let _ = writeln!(self.0, "{label:<MARGIN$}{fact}");
    }

    /// The first of them has the label.
    fn lines(&mut self, label: &str, facts: impl IntoIterator<Item = String>) {
        for (at, fact) in facts.into_iter().enumerate() {
            self.line(if at == 0 { label } else { "" }, &fact);
        }
    }
}

/// All of it.
pub(super) fn explained(explained: &Explained) -> String {
    let Explained { notes, explanation } = explained;
    let mut page = Page::default();
    page.lines("reference", [explanation.reference.clone()].into_iter().chain(notes.iter().cloned()));
    page.lines("upstream", source(&explanation.upstream));
    page.lines("readers", readers(explanation));
    page.lines("credential", credentials(&explanation.upstream));
    page.lines(if explanation.kind == Kind::Tag { "tag" } else { "" }, explanation.tag.iter().flat_map(tag));
    page.lines("next question", next(explanation));
    page.line("in an outage", &trouble(explanation, &explanation.when_unavailable));
    if let Some(limited) = &explanation.when_limited {
        page.line("at the limit", &trouble(explanation, limited));
    }
    match &explanation.content {
        Some(held) => page.lines("content", content(held)),
        None => page.line("content", &nothing(&explanation.next)),
    }
    page.lines("eviction", explanation.eviction.iter().flat_map(eviction));
    page.0
}

fn source(source: &Source) -> Vec<String> {
    let why = match source.chosen_by.as_str() {
        "reference" => "which the reference names; clients do by ns, a path or the name",
        "ns" => "by ns",
        "path_prefix" => "by the prefix before /v2",
        "name_component" => "by the name's first component",
        "host" => "by the Host header (server.hosts)",
        "listener_default" => "the listener's default_upstream",
        _ => "the default_upstream, as nothing names one",
    };
    let rests = |host: &Host| match &host.rests {
        Some(rests) => format!("{} rests {}", host.url, rest(rests)),
        None => host.url.clone(),
    };
    let mut lines = vec![format!("{}, {why}", source.name)];
    lines.extend(source.hosts.iter().map(rests));
    if !source.is_waited_for {
        lines.push("it has let somebody wait in vain: who can be served what is held waits no more until it answers".into());
    }
    lines
}

fn rest(rest: &Rest) -> String {
    let until = match rest {
        Rest { left_seconds: 0, .. } => "until the next question finds out".to_owned(),
        Rest { is_probed: true, .. } => "until a question that is out tells".to_owned(),
        Rest { left_seconds, .. } => format!("for {}", age(*left_seconds)),
    };
    format!("{until}: {}", rest.why)
}

fn readers(explanation: &Explanation) -> Vec<String> {
    let upstream = &explanation.upstream;
    let everyone = "everyone who may connect: no policy is configured";
    let shown = match (upstream.shown_seconds_ago, upstream.shown_left_seconds) {
        (Some(ago), Some(0)) => format!("which it did {} ago; that is asked anew", age(ago)),
        (Some(ago), Some(left)) => format!("which it did {} ago; that is good for {}", age(ago), age(left)),
        _ => "which is not known of it".to_owned(),
    };
    let mut lines = vec![everyone.to_owned()];
    match explanation.readers {
        Readers::EveryoneIfShown => lines.push(format!("as far as upstream shows the repository to anybody, {shown}")),
        Readers::Everyone if upstream.visibility == "private" => lines.push("though upstream is private (visibility)".into()),
        Readers::Everyone => {}
    }
    lines
}

fn credentials(source: &Source) -> Vec<String> {
    let mut lines = Vec::new();
    for host in &source.hosts {
        let place = if source.hosts.len() > 1 { format!(" at {}", host.url) } else { String::new() };
        for one in &host.credentials {
            let name = if one.name == "anonymous" { "none: asked as nobody" } else { &one.name };
            lines.push(format!("{name}{place}{}", one.pulls.as_ref().map(pulls).unwrap_or_default()));
            lines.extend(rests(one));
        }
    }
    if !source.is_known {
        lines.push("no daemon runs here, which would know of rests and of what is left of a pull limit".into());
    }
    lines
}

fn pulls(pulls: &Pulls) -> String {
    let left = pulls.remaining.map_or_else(|| "?".into(), |left| left.to_string());
    let limit = pulls.limit.map(|limit| format!(" of {limit}")).unwrap_or_default();
    let window = pulls.window_seconds.map(|window| format!(" in {}", age(window))).unwrap_or_default();
    let source = pulls.source.as_ref().map(|source| format!(", counted to {source}")).unwrap_or_default();
    format!("; {left}{limit} pulls left{window}{source}")
}

fn rests(credential: &Credential) -> impl Iterator<Item = String> {
    let limit = credential.limit_rests.as_ref().map(|rests| format!("  its manifests rest {}", rest(rests)));
    let login = credential.login_rests.as_ref();
    let login = login.map(|rests| format!("  its login was refused and is not tried, unless it changes, {}", rest(rests)));
    let tokens = credential.token_server_rests.as_ref().map(|rests| format!("  its token server rests {}", rest(rests)));
    limit.into_iter().chain(login).chain(tokens)
}

fn tag(tag: &Tag) -> Vec<String> {
    let Tag { digest, media_type, size: bytes, first_seen, checked_at, .. } = tag;
    let freshness = match (tag.fresh_left_seconds, &tag.fresh_until) {
        _ if tag.is_immutable => "fresh for good (immutable_tags)".to_owned(),
        (Some(left), Some(until)) if left > 0 => format!("fresh for {}, until {until}", age(left.unsigned_abs())),
        (Some(left), Some(until)) => format!("stale for {}, since {until}", age(left.unsigned_abs())),
        _ => "fresh".to_owned(),
    };
    let until = &tag.stands_in_until;
    let stands_in = if tag.may_stand_in { "may stand in for upstream until" } else { "may stand in for upstream no more, since" };
    vec![
        digest.clone(),
        format!("{media_type}, {}", size(*bytes)),
        format!("so since {first_seen}; upstream said so {} ago, {checked_at}", age(tag.checked_seconds_ago)),
        format!("{freshness}; {stands_in} {until}"),
    ]
}

fn next(explanation: &Explanation) -> Vec<String> {
    let next = &explanation.next;
    let held = |next: &Next| next.for_seconds.map(|left| format!(" for {}", age(left))).unwrap_or_default();
    let question = match (next.question, next.why) {
        (Question::None, why) => format!("none: {}{}", because(why), held(next)),
        (Question::HeadThenGetIfMoved, _) => "HEAD, then GET if the tag has moved".to_owned(),
        (Question::HeadThenGet, _) => "HEAD, then GET of what it names".to_owned(),
        (Question::Get, Why::Named) => "GET of what a HEAD has named a moment ago".to_owned(),
        (Question::Get, _) => "GET".to_owned(),
        (Question::Head, why) => format!("HEAD: {}", because(why)),
    };
    let mut lines = Vec::new();
    if next.asks_as_nobody_first {
        lines.push("HEAD as nobody, whether upstream shows the repository to anybody; then".to_owned());
    }
    let whom = match (&next.url, &next.credential) {
        (Some(url), Some(credential)) => format!(", to {url} as {credential}"),
        _ => String::new(),
    };
    lines.push(question + &whom);
    match next.waits_milliseconds {
        Some(0) => lines.push("who asks is served what is held meanwhile".to_owned()),
        Some(millis) => lines.push(format!("who waits for it longer than {} is served what is held", time(millis))),
        None => {}
    }
    lines.extend(next.served.iter().filter(|served| served.outcome != "hit").map(|served| format!("a client gets {}", answer(served))));
    lines
}

fn time(millis: u64) -> String {
    exact_duration(std::time::Duration::from_millis(millis))
}

fn because(why: Why) -> &'static str {
    match why {
        Why::Fresh => "it is fresh",
        Why::Immutable => "it is fresh for good (immutable_tags)",
        Why::Held => "it is held, and by digest it cannot change",
        Why::Arriving => "it is being downloaded",
        Why::Expired => "it is stale",
        Why::Absent => "nothing is held",
        Why::Named => "upstream has just named it",
        Why::Unlisted => "it is held for another repository, and nothing says that this one has it",
        Why::Doubtful => "a private upstream has it, too, and this one has not said that it does",
        Why::AbsenceRemembered => "upstream has said a moment ago that there is none, which is believed",
        Why::Rests => "all that could be asked rests",
        Why::NotShown => "upstream has not shown the repository to anybody, and rests",
    }
}

fn answer(served: &Served) -> String {
    match (served.outcome.as_str(), &served.reason, &served.code, &served.detail) {
        ("stale", reason, ..) => format!("{}, what is held, marked stale ({})", served.status, reason.as_deref().unwrap_or_default()),
        ("hit", ..) => format!("{}, what is held", served.status),
        (_, _, Some(code), Some(detail)) => format!("{} {code}: {detail}", served.status),
        (outcome, ..) => format!("{}, {outcome}", served.status),
    }
}

/// What a client gets while upstream cannot answer, and why not what is held.
fn trouble(explanation: &Explanation, served: &Served) -> String {
    let is_fresh = explanation.next.why == Why::Fresh;
    let once = if is_fresh { "once it is stale: " } else { "" };
    let why = match (&explanation.tag, &explanation.content) {
        _ if served.status == 200 => "",
        (Some(tag), _) if !tag.may_stand_in => "; what is held is older than stale_if_error",
        (Some(_), Some(content)) if !content.is_whole => "; what is held is not whole",
        _ => "",
    };
    format!("{once}{}{why}", answer(served))
}

fn content(content: &Content) -> Vec<String> {
    let whole = if content.is_whole { "whole" } else { "not whole" };
    let index = if content.platforms_missing.is_empty() && content.images.len() == 1 { "" } else { ": of an index, one image is enough" };
    let index = if content.media_type.is_none() { "" } else { index };
    let mut lines = vec![format!("{whole}{index}; {} on disk", size(content.bytes))];
    lines.extend(content.images.iter().flat_map(image));
    if !content.platforms_missing.is_empty() {
        lines.push(format!("not held: {}", content.platforms_missing.join(", ")));
    }
    lines.extend(content.others.iter().map(|(other, count)| format!("{count} of its objects are also {other}'s")));
    if content.others.is_empty() {
        lines.push("no other repository has any of it".into());
    }
    lines
}

fn image(image: &Image) -> Vec<String> {
    let name = image.platform.as_deref().unwrap_or(&image.digest);
    let (held, missing) = (image.held, image.missing);
    let whole = if image.is_whole { "whole" } else { "not whole" };
    let held = format!("{} blobs held, {} ({} on disk)", held.count, size(held.bytes), size(held.allocated));
    let mut lines = vec![format!("{name}: {whole}; {held}")];
    if missing.count > 0 {
        let foreign = Some(image.foreign).filter(|foreign| *foreign > 0).map(|count| format!("; {count} that clients get elsewhere"));
        let arriving = Some(image.arriving).filter(|arriving| *arriving > 0).map(|count| format!("; {count} being downloaded"));
        let partial =
            Some(image.partial_bytes).filter(|bytes| *bytes > 0).map(|bytes| format!("; {} of interrupted downloads", size(bytes)));
        let more: String = [foreign, arriving, partial].into_iter().flatten().collect();
        lines.push(format!("  {} blobs missing, {}{more}", missing.count, size(missing.bytes)));
    }
    if image.doubtful > 0 {
        lines.push(format!("  {} that a private upstream has, too: upstream is asked before they are served", image.doubtful));
    }
    lines
}

fn nothing(next: &Next) -> String {
    let would = match next.question {
        Question::None => "now, a pull would ask nobody",
        Question::Head => "a pull would ask by HEAD",
        Question::HeadThenGet | Question::HeadThenGetIfMoved => "a pull would ask by HEAD, then by GET",
        Question::Get => "a pull would ask by GET",
    };
    format!("nothing is held; {would}")
}

fn eviction(eviction: &Eviction) -> Vec<String> {
    let Eviction { first, named, pins, .. } = eviction;
    let mut lines: Vec<String> = pins.iter().map(|pin| format!("pinned by {}, as {}", pin.pin, pin.tag)).collect();
    lines.extend(first.as_ref().filter(|first| named.as_ref() != Some(first)).map(|first| format!("first to go: {}", place(first))));
    lines.extend(named.as_ref().filter(|_| pins.is_empty()).map(place));
    lines
}

fn place(place: &Place) -> String {
    let unused = age(place.unused_seconds);
    let order = match place.position {
        Some(position) => format!("goes as {position} of {} objects, after {}", place.of, size(place.bytes_before)),
        None => "never goes".to_owned(),
    };
    let why = reasons(place.kept, place.unused_left_seconds);
    format!("{}, {}, {order}; unused for {unused}{why}", place.digest, size(place.bytes))
}

/// What else than the order of use decides when something goes.
pub(super) fn reasons(kept: Option<Keeps>, unused_left_seconds: Option<u64>) -> String {
    let kept = match kept {
        Some(Keeps::Read) => "; not while it is read",
        Some(Keeps::Grace) => "; last of all, while its image is being pulled",
        Some(Keeps::Pinned) | None => "",
    };
    let left = unused_left_seconds.map(|left| format!("; in {} evict_unused_after takes it", age(left))).unwrap_or_default();
    format!("{kept}{left}")
}
