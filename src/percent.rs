//! Percent-encoding (RFC 3986 §2.1) as URLs, queries and forms have it. Pure.

use std::borrow::Cow;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// Everything but the unreserved characters of RFC 3986 §2.3.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// As a query, a form and the userinfo of a URL take any text.
pub fn encode(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// The text that was encoded; `None` where an escape is malformed, or what comes out is not UTF-8.
pub fn decode(text: &str) -> Option<Cow<'_, str>> {
    let mut escapes = text.split('%').skip(1);
    let is_hex = |escape: &str| escape.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    if !escapes.all(is_hex) {
        return None;
    }
    percent_decode_str(text).decode_utf8().ok()
}

/// The values of a query's parameter, in order, with `+` as a space; `None` for one that cannot be decoded.
pub fn query_values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = Option<String>> + 'a {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    pairs.filter(move |(other, _)| *other == name).map(|(_, value)| decode(&value.replace('+', " ")).map(Cow::into_owned))
}

/// The first value of a query's parameter; `None` if it is absent or cannot be decoded.
pub fn query_value(query: &str, name: &str) -> Option<String> {
    query_values(query, name).next().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn malformed_escapes_are_refused() {
        for text in ["%", "%2", "%zz", "a%4", "%ff", "%+1", "%é1"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode("a%2fb%2F+").as_deref(), Some("a/b/+"));
        let values: Vec<_> = query_values("n=1&last=a+b%2B&last=%&n", "last").collect();
        assert_eq!((values, query_value("n=1&n=2", "n")), (vec![Some("a b+".to_owned()), None], Some("1".to_owned())));
    }

    #[test]
    fn a_query_s_values_are_decoded() {
        let query = "n=5&last=a%2Bb&artifactType=application%2Fx+y&bad=%f";
        let value = |name| query_value(query, name);
        assert_eq!(value("n").as_deref(), Some("5"));
        assert_eq!(value("last").as_deref(), Some("a+b"));
        assert_eq!(value("artifactType").as_deref(), Some("application/x y"));
        assert_eq!((value("bad"), value("absent")), (None, None));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(text: String) {
            let encoded = encode(&text);
            prop_assert!(encoded.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%".contains(&byte)));
            prop_assert_eq!(decode(&encoded).map(Cow::into_owned), Some(text));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = decode(&text);
        }
    }
}
