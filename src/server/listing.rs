//! The queries of listings, and the links from one page to the next. Pure.

use super::route::{QUERY_LENGTH_MAX, RouteError};
use crate::oci::Tag;
use crate::percent::query_values;

/// A listing's query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// Without `ns`, byte for byte; none if that leaves nothing.
    pub passed_on: Option<String>,
    /// The pair that names the upstream, byte for byte.
    ns: Option<String>,
}

/// Which tags are asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// At most so many.
    n: Option<usize>,
    /// Those after this one, which need not exist.
    last: Option<String>,
}

impl Query {
    /// # Errors
    /// When there is more than can be passed on.
    pub fn parse(query: Option<&str>) -> Result<Query, RouteError> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY_LENGTH_MAX {
            return Err(RouteError::Query);
        }
        let names_upstream = |pair: &&str| *pair == "ns" || pair.starts_with("ns=");
        let others: Vec<&str> = query.split('&').filter(|pair| !names_upstream(pair)).collect();
        let passed_on = Some(others.join("&")).filter(|query| !query.is_empty());
        Ok(Query { passed_on, ns: query.split('&').find(names_upstream).map(str::to_owned) })
    }

    /// `n` and `last` of the spec.
    ///
    /// # Errors
    /// When `n` is no number, or `last` no text.
    pub fn window(&self) -> Result<Window, RouteError> {
        let value = |key| match query_values(self.passed_on.as_deref().unwrap_or_default(), key).next() {
            Some(None) => Err(RouteError::Page),
            value => Ok(value.flatten()),
        };
        // A number too large for us is no less a number.
        let number = |text: String| match text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
            true => Ok(text.parse().unwrap_or(usize::MAX)),
            false => Err(RouteError::Page),
        };
        Ok(Window { n: value("n")?.map(number).transpose()?, last: value("last")? })
    }

    /// The value of `Link`: relative, with the path as the client spelled it, and `ns` if it was sent. No host stands in it, so it
    /// holds behind any proxy.
    pub fn link(&self, path: &str, next: &str) -> String {
        let ns = self.ns.as_deref().map(|ns| format!("&{ns}")).unwrap_or_default();
        format!("<{path}?{next}{ns}>; rel=\"next\"")
    }
}

impl Window {
    /// No tags are asked for, only whether there are such.
    pub fn is_empty(&self) -> bool {
        self.n == Some(0)
    }

    /// The tags of this page, of all in ASCII order, and the query of the next one, if there is more.
    pub fn of<'a>(&self, all: &'a [Tag]) -> (&'a [Tag], Option<String>) {
        let start = self.last.as_deref().map_or(0, |last| all.partition_point(|tag| tag.as_str() <= last));
        let rest = all.get(start..).unwrap_or_default();
        let page = self.n.and_then(|n| rest.get(..n)).unwrap_or(rest);
        let next = page.last().filter(|_| page.len() < rest.len()).zip(self.n);
        // No character of a tag needs an escape.
        (page, next.map(|(last, n)| format!("n={n}&last={last}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn window(query: &str) -> Result<Window, RouteError> {
        Query::parse(Some(query)).and_then(|query| query.window())
    }

    fn tags(texts: &[&str]) -> Vec<Tag> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_query_is_passed_on_byte_for_byte_without_ns() {
        let parse = |query| Query::parse(query).unwrap();
        assert_eq!(parse(None), Query::default());
        assert_eq!(parse(Some("")), Query::default());
        let query = parse(Some("artifactType=a%2fb+c&ns=ghcr.io%3A443&&x&nsx=1"));
        assert_eq!(query.passed_on.as_deref(), Some("artifactType=a%2fb+c&&x&nsx=1"));
        assert_eq!(query.link("/v2/a/referrers/x", "cur%2Fsor=="), r#"</v2/a/referrers/x?cur%2Fsor==&ns=ghcr.io%3A443>; rel="next""#);
        assert_eq!(parse(Some("ns=ghcr.io")).passed_on, None);
        assert_eq!(Query::parse(Some(&"x".repeat(QUERY_LENGTH_MAX + 1))), Err(RouteError::Query));
    }

    #[test]
    fn clients_42_n_is_a_number_of_any_size() {
        for (query, n) in [("n=0", 0), ("n=10000&ns=x", 10_000), ("last=x&n=007", 7), ("n=99999999999999999999999", usize::MAX)] {
            assert_eq!(window(query).map(|window| window.n), Ok(Some(n)), "{query}");
        }
        for query in ["n=", "n", "n=-1", "n=1.0", "n=+1", "n=ten", "n=%zz", "last=%f"] {
            assert_eq!(window(query), Err(RouteError::Page), "{query}");
        }
        assert_eq!(window("last=a%2eb"), Ok(Window { n: None, last: Some("a.b".into()) }));
    }

    #[test]
    fn clients_42_last_is_exclusive_and_need_not_exist() {
        let all = tags(&["1", "A", "a", "b"]);
        let page = |query: &str| {
            let (page, next) = window(query).unwrap().of(&all);
            (page.iter().map(Tag::as_str).collect::<Vec<_>>().join(" "), next)
        };
        assert_eq!(page(""), ("1 A a b".into(), None));
        assert_eq!(page("last=A"), ("a b".into(), None));
        assert_eq!(page("last=B&n=1"), ("a".into(), Some("n=1&last=a".into())));
        assert_eq!(page("n=2"), ("1 A".into(), Some("n=2&last=A".into())));
        assert_eq!(page("n=4"), ("1 A a b".into(), None));
        assert_eq!(page("n=10000"), ("1 A a b".into(), None));
        assert_eq!(page("n=0"), (String::new(), None), "no Link");
        assert_eq!(page("last=b&n=1"), (String::new(), None));
    }

    proptest! {
        #[test]
        fn clients_42_pages_of_any_size_make_the_whole_list(
            all in proptest::collection::btree_set("[a-zA-Z0-9_][a-zA-Z0-9._-]{0,3}", 0..40),
            n in 1usize..50,
        ) {
            let all: Vec<Tag> = all.iter().map(|tag| tag.parse().unwrap()).collect();
            let (mut query, mut collected) = (Some(format!("n={n}")), Vec::new());
            while let Some(asked) = query {
                let (page, next) = window(&asked).unwrap().of(&all);
                prop_assert!(next.is_none() || page.len() == n);
                collected.extend_from_slice(page);
                query = next;
            }
            prop_assert_eq!(collected, all);
        }
    }
}
