//! What an upstream says of its pull limit: `ratelimit-limit: 100;w=21600`, as Docker Hub sends it with every manifest. Pure.

use std::time::Duration;

use crate::metrics::PullLimit;

/// An upstream's word on how many pulls it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Pulls in a window.
    pub limit: Option<u64>,
    /// Pulls left.
    pub remaining: Option<u64>,
    /// The window's length.
    pub window: Option<Duration>,
    /// To whom it is counted: an address, or an account's id. Docker Hub's `docker-ratelimit-source`.
    pub source: Option<String>,
}

impl Budget {
    /// From an answer's headers; `None` where it names no limit, which means that there is none.
    pub fn read<'a>(header: impl Fn(&str) -> Option<&'a str>) -> Option<Budget> {
        let limit = header("ratelimit-limit").and_then(quantity);
        let remaining = header("ratelimit-remaining").and_then(quantity);
        let window = limit.or(remaining).and_then(|(_, window)| window);
        let source = header("docker-ratelimit-source").map(|source| source.chars().filter(|c| c.is_ascii_graphic()).take(64).collect());
        (limit.is_some() || remaining.is_some()).then(|| Budget {
            limit: limit.map(|(limit, _)| limit),
            remaining: remaining.map(|(remaining, _)| remaining),
            window,
            source,
        })
    }

    /// As the gauges show it.
    pub fn figures(&self) -> PullLimit {
        PullLimit { limit: self.limit, remaining: self.remaining, window: self.window }
    }

    /// Whether upstream has said that the next pull will be refused.
    pub fn is_used_up(&self) -> bool {
        self.remaining == Some(0)
    }
}

/// A number and its window in `100;w=21600`; further parameters are passed over.
fn quantity(text: &str) -> Option<(u64, Option<Duration>)> {
    let mut parts = text.split([';', ',']).map(str::trim);
    let number = parts.next()?.parse().ok()?;
    let window = parts.find_map(|part| part.strip_prefix("w=")?.trim().parse().ok()).map(Duration::from_secs);
    Some((number, window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(headers: &[(&str, &'static str)]) -> Option<Budget> {
        Budget::read(|name| headers.iter().find(|(other, _)| *other == name).map(|(_, value)| *value))
    }

    #[test]
    fn registry_37_a_budget_is_read_with_any_window_and_none_is_unlimited() {
        let full = [("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "20;w=21600"), ("docker-ratelimit-source", "192.0.2.1")];
        let budget =
            Budget { limit: Some(100), remaining: Some(20), window: Some(Duration::from_secs(21_600)), source: Some("192.0.2.1".into()) };
        assert_eq!(read(&full), Some(budget));
        let short = read(&[("ratelimit-limit", "100 ; w=3600")]).expect("a budget");
        assert_eq!((short.limit, short.remaining, short.window), (Some(100), None, Some(Duration::from_secs(3600))));
        assert_eq!(read(&[("ratelimit-remaining", "7")]).expect("a budget").remaining, Some(7));
        assert_eq!(read(&[("docker-ratelimit-source", "192.0.2.1")]), None);
        assert_eq!(read(&[("ratelimit-limit", "many")]), None);
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(text: String) {
            let _ = quantity(&text);
        }
    }
}
