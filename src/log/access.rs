//! The access line: the contract's fields, as one JSON object or as `key=value` text. Written by hand, since it is the
//! price of every request.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::labels::Kind;
use crate::labels::Outcome;
use crate::oci::{Digest, ErrorCode};

/// Most bytes of a text that came from outside.
const VALUE_BYTES_MAX: usize = 256;

/// One request as it ended. In text, what is `None` is left out; in JSON it is null.
#[derive(Clone, Debug)]
pub struct AccessLine<'a> {
    pub time: Timestamp,
    pub request_id: &'a str,
    pub client: SocketAddr,
    /// Who it was, where clients authenticate.
    pub identity: Option<&'a str>,
    pub listener: SocketAddr,
    pub host: Option<&'a str>,
    pub ns: Option<&'a str>,
    pub method: &'a str,
    pub kind: Kind,
    pub upstream: Option<&'a str>,
    pub repository: Option<&'a str>,
    pub tag: Option<&'a str>,
    pub digest: Option<Digest>,
    /// The header as it came.
    pub range: Option<&'a str>,
    pub status: u16,
    /// Of the body, as far as it was sent.
    pub bytes: u64,
    /// Also tells the `reason`.
    pub outcome: Outcome,
    pub error_code: Option<ErrorCode>,
    /// The name of the credential that was used, never its content.
    pub credential: Option<&'a str>,
    pub duration: Duration,
    pub ttfb: Option<Duration>,
    pub upstream_status: Option<u16>,
    pub upstream_duration: Option<Duration>,
    /// Requests sent upstream for this one.
    pub attempts: u32,
    /// The client left, or was let go, before the end.
    pub aborted: bool,
    pub user_agent: Option<&'a str>,
}

impl AccessLine<'_> {
    /// Whether it is one of those that are worth a WARN: larder or an upstream failed.
    pub fn is_failure(&self) -> bool {
        self.status >= 500
    }

    /// The line with its newline.
    pub fn format(&self, json: bool) -> String {
        let level = if self.is_failure() { "WARN" } else { "INFO" };
        let mut line = Line::begin(json, self.time, level);
        line.text("request_id", Some(self.request_id));
        line.plain("client", Some(self.client));
        line.text("identity", self.identity);
        line.plain("listener", Some(self.listener));
        line.text("host", self.host);
        line.text("ns", self.ns);
        line.text("method", Some(self.method));
        line.plain("kind", Some(self.kind.as_str()));
        line.text("upstream", self.upstream);
        line.text("repository", self.repository);
        line.text("tag", self.tag);
        line.plain("digest", self.digest);
        line.text("range", self.range);
        line.number("status", Some(self.status));
        line.number("bytes", Some(self.bytes));
        line.plain("outcome", Some(self.outcome.as_str()));
        line.plain("reason", self.outcome.reason());
        line.plain("error_code", self.error_code.map(ErrorCode::as_str));
        line.text("credential", self.credential);
        line.number("duration_ms", Some(Millis(self.duration)));
        line.number("ttfb_ms", self.ttfb.map(Millis));
        line.number("upstream_status", self.upstream_status);
        line.number("upstream_ms", self.upstream_duration.map(Millis));
        line.number("attempts", Some(self.attempts));
        line.number("aborted", Some(self.aborted));
        line.text("user_agent", self.user_agent);
        line.end()
    }
}

/// A line in the making. Writing to a `String` cannot fail, so results are dropped.
struct Line {
    line: String,
    json: bool,
}

impl Line {
    fn begin(json: bool, time: Timestamp, level: &str) -> Line {
        let mut line = String::with_capacity(768);
        let time = time.rfc3339_millis();
        let _ = if json {
            write!(line, r#"{{"time":"{time}","level":"{level}","target":"larder::access""#)
        } else {
            write!(line, "{time} {level:>5} larder::access:")
        };
        Line { line, json }
    }

    /// Text that came from outside, or may hold anything.
    fn text(&mut self, key: &str, value: Option<&str>) {
        let Some(value) = value else { return self.absent(key) };
        self.key(key);
        let bare = !self.json && !value.is_empty() && !value.contains([' ', '=', '"', '\\']) && !value.contains(char::is_control);
        if bare {
            self.line.push_str(limited(value));
        } else {
            self.quoted(limited(value));
        }
    }

    /// Text of our own that needs no escaping.
    fn plain(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        let Some(value) = value else { return self.absent(key) };
        self.key(key);
        let _ = if self.json { write!(self.line, "\"{value}\"") } else { write!(self.line, "{value}") };
    }

    /// What JSON writes without quotes.
    fn number(&mut self, key: &str, value: Option<impl std::fmt::Display>) {
        let Some(value) = value else { return self.absent(key) };
        self.key(key);
        let _ = write!(self.line, "{value}");
    }

    fn absent(&mut self, key: &str) {
        if self.json {
            self.key(key);
            self.line.push_str("null");
        }
    }

    fn key(&mut self, key: &str) {
        let parts = if self.json { [",\"", key, "\":"] } else { [" ", key, "="] };
        parts.iter().for_each(|part| self.line.push_str(part));
    }

    /// In quotes, escaped as JSON has it, and beyond that every control character.
    fn quoted(&mut self, value: &str) {
        self.line.push('"');
        for letter in value.chars() {
            match letter {
                '"' | '\\' => self.line.extend(['\\', letter]),
                letter if letter.is_control() => {
                    let _ = write!(self.line, "\\u{:04x}", u32::from(letter));
                }
                letter => self.line.push(letter),
            }
        }
        self.line.push('"');
    }

    fn end(mut self) -> String {
        self.line.push_str(if self.json { "}\n" } else { "\n" });
        self.line
    }
}

/// The beginning of a text, whole characters only.
fn limited(text: &str) -> &str {
    &text[..text.floor_char_boundary(VALUE_BYTES_MAX)]
}

/// Milliseconds with three decimals.
struct Millis(Duration);

impl std::fmt::Display for Millis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::labels::StaleReason;
    use proptest::prelude::*;

    fn line(user_agent: Option<&str>) -> AccessLine<'_> {
        let address = SocketAddr::from(([127, 0, 0, 1], 5000));
        AccessLine {
            time: Timestamp(1_785_672_000_123),
            request_id: "01JABC",
            client: address,
            identity: None,
            listener: address,
            host: Some("mirror:5000"),
            ns: None,
            method: "GET",
            kind: Kind::Manifest,
            upstream: Some("docker.io"),
            repository: Some("library/alpine"),
            tag: Some("3"),
            digest: None,
            range: None,
            status: 200,
            bytes: 1234,
            outcome: Outcome::Stale(StaleReason::RateLimited),
            error_code: None,
            credential: None,
            duration: Duration::from_micros(1234),
            ttfb: Some(Duration::from_micros(56)),
            upstream_status: Some(429),
            upstream_duration: None,
            attempts: 1,
            aborted: false,
            user_agent,
        }
    }

    #[test]
    fn text_is_one_line_of_keys_and_values() {
        assert_eq!(
            line(Some("docker/29 go")).format(false),
            "2026-08-02T12:00:00.123Z  INFO larder::access: request_id=01JABC client=127.0.0.1:5000 listener=127.0.0.1:5000 \
             host=mirror:5000 method=GET kind=manifest upstream=docker.io repository=library/alpine tag=3 status=200 bytes=1234 \
             outcome=stale reason=rate-limited duration_ms=1.234 ttfb_ms=0.056 upstream_status=429 attempts=1 aborted=false \
             user_agent=\"docker/29 go\"\n"
        );
    }

    #[test]
    fn json_has_every_field_of_the_contract() {
        let digest = Digest::of(crate::oci::Algorithm::Sha256, b"");
        let failed = AccessLine { status: 502, digest: Some(digest), error_code: Some(ErrorCode::Unavailable), ..line(None) };
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&failed.format(true)).unwrap();
        let fields = "time level request_id client identity listener host ns method kind upstream repository tag digest range status \
                      bytes outcome reason error_code credential duration_ms ttfb_ms upstream_status upstream_ms attempts aborted user_agent";
        for field in fields.split_whitespace() {
            assert!(object.contains_key(field), "{field}");
        }
        assert_eq!((&object["level"], &object["digest"]), (&"WARN".into(), &digest.to_string().into()));
        assert_eq!((&object["duration_ms"], &object["aborted"], &object["ns"]), (&1.234.into(), &false.into(), &serde_json::Value::Null));
    }

    #[test]
    fn control_characters_are_escaped() {
        let evil = "a\r\n2026 INFO forged\x1b[2J\x7f\u{9b}\"\\";
        let escaped = r#"user_agent="a\u000d\u000a2026 INFO forged\u001b[2J\u007f\u009b\"\\""#;
        assert!(line(Some(evil)).format(false).ends_with(&format!("{escaped}\n")));
        assert!(line(Some("")).format(false).ends_with("user_agent=\"\"\n"));
    }

    #[test]
    fn a_long_value_is_cut() {
        let long = "ä".repeat(10_000);
        assert!(line(Some(&long)).format(false).len() < 1000);
    }

    proptest! {
        #[test]
        fn every_line_is_one_line_and_its_json_is_json(user_agent in "\\PC*|[\u{0}-\u{ff}]{0,40}") {
            let line = line(Some(&user_agent));
            let json = line.format(true);
            let object: serde_json::Value = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(object["user_agent"].as_str(), Some(limited(&user_agent)));
            for text in [json, line.format(false)] {
                prop_assert!(text.ends_with('\n') && !text.trim_end_matches('\n').contains(char::is_control));
            }
        }
    }
}
