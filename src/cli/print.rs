//! Answers for people and for programs.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::explanation;
use crate::control::{Answer, Stats, Tally};
use crate::mirror::{WarmProgress, Warmed};
use crate::store::{Held, Purged, Report, VerifyProgress};
use crate::units::{age, duration, size};

/// Repositories in the text; `--json` has more.
const REPOSITORIES_SHOWN: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Text,
    Json,
}

impl Form {
    /// How far it is, on stderr.
    pub fn progress(self, progress: &VerifyProgress) {
        if progress.objects > 0 || progress.bytes > 0 {
            let VerifyProgress { objects, objects_total, bytes } = progress;
            // Where stderr is closed, nobody is there to be told.
            let _ = writeln!(io::stderr(), "{objects} of {objects_total} objects, {}", size(*bytes));
        }
    }

    /// The same of a pull.
    pub fn warming(self, progress: &WarmProgress) {
        let WarmProgress { images, images_total, fetched_bytes } = progress;
        let _ = writeln!(io::stderr(), "{images} of {images_total} images, {} fetched", size(*fetched_bytes));
    }

    /// # Errors
    /// When stdout cannot be written.
    pub fn print(self, answer: &Answer) -> io::Result<()> {
        io::stdout().write_all(self.text(answer)?.as_bytes())
    }

    /// # Errors
    /// Never: everything that is told can be told in JSON.
    pub fn text(self, answer: &Answer) -> io::Result<String> {
        Ok(match (self, answer) {
            (Form::Json, Answer::Stats(stats)) => json(stats)?,
            (Form::Json, Answer::Verified(report)) => json(report)?,
            (Form::Json, Answer::Purged(purged)) => json(purged)?,
            (Form::Json, Answer::Pulled(warmed)) => json(&Pulled::of(warmed))?,
            (Form::Json, Answer::Explained(explained)) => json(explained)?,
            (Form::Text, Answer::Stats(stats)) => stats_text(stats),
            (Form::Text, Answer::Verified(report)) => report_text(report),
            (Form::Text, Answer::Purged(purged)) => purged_text(purged),
            (Form::Text, Answer::Pulled(warmed)) => pulled_text(warmed),
            (Form::Text, Answer::Explained(explained)) => explanation::explained(explained),
        })
    }
}

fn json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

fn stats_text(stats: &Stats) -> String {
    let held = &stats.held;
    let mut text = format!("{} of {}, {} objects\n", size(held.bytes), size(held.max_bytes), held.objects);
    if let Some(why) = &stats.degraded {
        let _ = writeln!(text, "nothing is stored at present: {why}");
    }
    if let Some(traffic) = &stats.traffic {
        let since = duration(Duration::from_secs(traffic.seconds));
        let share = share(traffic.hits, traffic.requests);
        let (sent, received) = (size(traffic.sent_bytes), size(traffic.received_bytes));
        let _ = writeln!(
            text,
            "in {since}: {} requests, {share} answered by what was held; {sent} sent, {received} from upstreams",
            traffic.requests
        );
    }
    if stats.week != Tally::default() {
        let _ = writeln!(text, "{}", stats.week);
    }
    let mut table = |title: &str, rows: &mut dyn Iterator<Item = (&String, &Held)>| {
        let _ = writeln!(text, "\n{:>12}  {:>8}  {:>9}  {title}", "bytes", "tags", "manifests");
        for (name, held) in rows {
            let _ = writeln!(text, "{:>12}  {:>8}  {:>9}  {name}", size(held.bytes), held.tags, held.manifests);
        }
    };
    table("upstream", &mut held.upstreams.iter());
    table("repository, the largest first", &mut held.repositories.iter().take(REPOSITORIES_SHOWN).map(|(name, held)| (name, held)));
    let shown = held.repositories.len().min(REPOSITORIES_SHOWN) as u64;
    if held.repositories_total > shown {
        let _ = writeln!(text, "{:>12}  and {} more", "", held.repositories_total - shown);
    }
    if !held.next.is_empty() {
        let _ = writeln!(text, "\n{:>12}  {:>14}  next to go when room is wanted, the least recently used first", "bytes", "unused for");
    }
    for next in &held.next {
        let unused = age(next.unused_seconds);
        let of = if next.of.is_empty() { "listed by nothing".to_owned() } else { next.of.join(", ") };
        let why = explanation::reasons(next.kept, next.unused_left_seconds);
        let _ = writeln!(text, "{:>12}  {unused:>14}  {} ({of}){why}", size(next.bytes), next.digest);
    }
    text
}

fn report_text(report: &Report) -> String {
    let mut text = String::new();
    for (digest, why) in &report.faults {
        let _ = writeln!(text, "{digest}: {why}");
    }
    let Report { objects, damaged, missing, unreadable, tags_without_manifest, incomplete_manifests, .. } = report;
    let _ =
        writeln!(text, "{objects} objects, {} hashed: {damaged} damaged, {missing} missing, {unreadable} unreadable", size(report.bytes));
    let _ = writeln!(
        text,
        "{tags_without_manifest} tags without their manifest; {incomplete_manifests} manifests of which something is not held, which is normal"
    );
    if report.repaired && damaged + missing + tags_without_manifest > 0 {
        text.push_str("damage was put aside; it is fetched again when somebody asks for it\n");
    }
    text
}

fn purged_text(purged: &Purged) -> String {
    if *purged == Purged::default() {
        return "nothing that is held is called so\n".into();
    }
    let Purged { tags, manifests, objects, bytes } = purged;
    format!("{tags} tags, {manifests} manifests of repositories and {objects} objects are gone, {}\n", size(*bytes))
}

/// A pull as JSON.
#[derive(Serialize)]
struct Pulled<'a> {
    complete: usize,
    incomplete: usize,
    fetched_bytes: u64,
    held_bytes: u64,
    images: &'a [Warmed],
}

impl Pulled<'_> {
    fn of(images: &[Warmed]) -> Pulled<'_> {
        let complete = images.iter().filter(|image| image.complete).count();
        let sum = |bytes: fn(&Warmed) -> u64| images.iter().map(bytes).sum();
        let (fetched_bytes, held_bytes) = (sum(|image| image.fetched_bytes), sum(|image| image.held_bytes));
        Pulled { complete, incomplete: images.len() - complete, fetched_bytes, held_bytes, images }
    }
}

/// A line an image; the last sums up.
fn pulled_text(warmed: &[Warmed]) -> String {
    let mut text = String::new();
    for one in warmed {
        let (fetched, held) = (size(one.fetched_bytes), size(one.held_bytes));
        let note = one.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        if one.complete {
            let _ = writeln!(text, "{}: complete, {fetched} fetched, {held} were here{note}", one.image);
            continue;
        }
        let reason = |(why, count, bytes): (&str, usize, u64)| match bytes {
            0 => why.to_owned(),
            _ => format!("{count} missing ({}): {why}", size(bytes)),
        };
        let why = one.reasons().into_iter().map(reason).collect::<Vec<_>>().join("; ");
        let _ = writeln!(text, "{}: INCOMPLETE: {why}{note}", one.image);
    }
    let Pulled { complete, fetched_bytes, held_bytes, .. } = Pulled::of(warmed);
    let (fetched, held) = (size(fetched_bytes), size(held_bytes));
    let _ = writeln!(text, "{complete} of {} images are complete; {fetched} fetched, {held} were here", warmed.len());
    text
}

fn share(part: u64, whole: u64) -> String {
    // In tenths of a percent, so that no float has to round.
    let tenths = (u128::from(part) * 1000).checked_div(u128::from(whole)).unwrap_or_default();
    format!("{}.{} %", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_has_one_decimal() {
        assert_eq!((share(1, 3).as_str(), share(0, 0).as_str(), share(2, 2).as_str()), ("33.3 %", "0.0 %", "100.0 %"));
    }
}
