//! Where a listing goes on, as `Link` (RFC 8288) says it. Pure.

/// The target of the first link whose relation is `next`.
pub fn next<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    lines.into_iter().find_map(next_of_line)
}

fn next_of_line(line: &str) -> Option<&str> {
    let mut rest = line;
    loop {
        let (_, link) = rest.split_once('<')?;
        let (target, parameters) = link.split_once('>')?;
        let (parameters, others) = split_unquoted(parameters, b',');
        if is_next(parameters) {
            return Some(target.trim());
        }
        rest = others;
    }
}

fn is_next(parameters: &str) -> bool {
    let mut rest = parameters;
    while !rest.is_empty() {
        let (parameter, others) = split_unquoted(rest, b';');
        rest = others;
        let Some((name, value)) = parameter.split_once('=') else { continue };
        let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
        if name.trim().eq_ignore_ascii_case("rel") && relations.any(|relation| relation.eq_ignore_ascii_case("next")) {
            return true;
        }
    }
    false
}

/// What stands before and after the first separator that is not within quotes.
fn split_unquoted(text: &str, separator: u8) -> (&str, &str) {
    let (mut quoted, mut escaped) = (false, false);
    let end = text.bytes().position(|byte| {
        let literal = escaped;
        escaped = quoted && !literal && byte == b'\\';
        quoted ^= byte == b'"' && !literal;
        byte == separator && !quoted
    });
    let after = |end: usize| text.get(end + 1..).unwrap_or_default();
    end.map_or((text, ""), |end| (text.get(..end).unwrap_or_default(), after(end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_registry_s_way_to_write_it_is_read() {
        for line in [
            r#"</a?last=x&n=1>; rel="next""#,
            "</a?last=x&n=1>;rel=next",
            r#"  </a?last=x&n=1> ; REL = "Next" "#,
            r#"</a?last=x&n=1>; title="a;b,\"<c>"; rel="prefetch next""#,
            r#"</first,with;signs>; rel="first", </a?last=x&n=1>; rel="next", </z>; rel="last""#,
        ] {
            assert_eq!(next([line]), Some("/a?last=x&n=1"), "{line}");
        }
        assert_eq!(next(["</f>; rel=first", "<b?c>; rel=next"]), Some("b?c"), "several lines");
    }

    #[test]
    fn what_names_no_next_page_has_none() {
        for line in ["", "</a>", "</a>; rel=prev", r#"</a>; title="rel=next""#, "</a; rel=next", "/a; rel=next", r#"</a>; rel="nextly""#] {
            assert_eq!(next([line]), None, "{line}");
        }
        assert_eq!(next([]), None);
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line: String) {
            let _ = next([line.as_str()]);
        }
    }
}
