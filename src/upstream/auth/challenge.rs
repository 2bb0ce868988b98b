//! `WWW-Authenticate` as registries write it (RFC 9110 §11.3). Pure; nothing a server can send makes it fail, at worst it finds nothing.

/// One way to authenticate that the server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Challenge {
    Bearer(Bearer),
    Basic,
}

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    /// As it stands: several entries are split by spaces.
    pub scope: Option<String>,
    /// `insufficient_scope`, `invalid_token`.
    pub error: Option<String>,
}

/// Reads one header line, which may hold several challenges joined by commas. Schemes that larder does not speak are passed over.
pub fn parse(line: &str) -> Vec<Challenge> {
    let mut found: Vec<(String, Vec<(String, String)>)> = Vec::new();
    let mut rest = Cursor(line);
    while rest.skip_separators() {
        let Some(word) = rest.token() else {
            rest.skip_one();
            continue;
        };
        // `word =` continues the challenge under way, any other word begins one.
        match (rest.value(), found.last_mut()) {
            (Some(value), Some((_, parameters))) => parameters.push((word.to_ascii_lowercase(), value)),
            (Some(_), None) => {}
            (None, _) => found.push((word.to_ascii_lowercase(), Vec::new())),
        }
    }
    found.into_iter().filter_map(|(scheme, parameters)| challenge(&scheme, parameters)).collect()
}

fn challenge(scheme: &str, parameters: Vec<(String, String)>) -> Option<Challenge> {
    match scheme {
        "basic" => Some(Challenge::Basic),
        "bearer" => {
            let mut bearer = Bearer::default();
            for (name, value) in parameters {
                match name.as_str() {
                    "realm" => bearer.realm = value,
                    "service" if !value.is_empty() => bearer.service = Some(value),
                    "scope" if !value.trim().is_empty() => bearer.scope = Some(value),
                    "error" => bearer.error = Some(value),
                    _ => {}
                }
            }
            (!bearer.realm.is_empty()).then_some(Challenge::Bearer(bearer))
        }
        _ => None,
    }
}

/// What is left of the line.
struct Cursor<'a>(&'a str);

impl Cursor<'_> {
    /// Whether anything follows the commas and spaces.
    fn skip_separators(&mut self) -> bool {
        self.0 = self.0.trim_start_matches([',', ' ', '\t']);
        !self.0.is_empty()
    }

    fn skip_one(&mut self) {
        let mut characters = self.0.chars();
        characters.next();
        self.0 = characters.as_str();
    }

    fn token(&mut self) -> Option<String> {
        // A bare `/` or `:` is no token character, but token68 credentials and unquoted URLs have them.
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:?".contains(c);
        let end = self.0.find(|c| !is_token(c)).unwrap_or(self.0.len());
        let (token, rest) = self.0.split_at_checked(end).filter(|(token, _)| !token.is_empty())?;
        self.0 = rest;
        Some(token.to_owned())
    }

    /// What follows a parameter's name: `=` and a token or a quoted string.
    fn value(&mut self) -> Option<String> {
        let after = self.0.trim_start_matches([' ', '\t']).strip_prefix('=')?;
        self.0 = after.trim_start_matches([' ', '\t']);
        match self.0.strip_prefix('"') {
            Some(quoted) => {
                self.0 = quoted;
                Some(self.quoted())
            }
            None => {
                let end = self.0.find([',', ' ', '\t']).unwrap_or(self.0.len());
                let (value, rest) = self.0.split_at_checked(end)?;
                self.0 = rest;
                Some(value.to_owned())
            }
        }
    }

    /// Up to the closing quote, or to the end where there is none.
    fn quoted(&mut self) -> String {
        let mut value = String::new();
        let mut characters = self.0.chars();
        while let Some(character) = characters.next() {
            match character {
                '"' => break,
                '\\' => value.extend(characters.next()),
                _ => value.push(character),
            }
        }
        self.0 = characters.as_str();
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.into(), service: owned(service), scope: owned(scope), error: None })
    }

    #[test]
    fn registry_01_quoted_escaped_and_mixed_case_are_read() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#;
        let expected = bearer("https://auth.docker.io/token", Some("registry.docker.io"), Some("repository:a/b:pull,push"));
        assert_eq!(parse(hub), [expected]);
        assert_eq!(parse(r#"bEARER Realm = "https://a\"b\\c" , SERVICE=x"#), [bearer(r#"https://a"b\c"#, Some("x"), None)]);
        assert_eq!(parse("Bearer realm=https://a/t?x=1,service=s"), [bearer("https://a/t?x=1", Some("s"), None)]);
    }

    #[test]
    fn registry_02_two_schemes_in_one_line_are_both_found_in_either_order() {
        let one = bearer("https://a/t", Some("s"), None);
        assert_eq!(parse(r#"Bearer realm="https://a/t",service="s", Basic realm="x""#), [one.clone(), Challenge::Basic]);
        assert_eq!(parse(r#"Basic realm="x, y", Bearer realm="https://a/t",service="s""#), [Challenge::Basic, one.clone()]);
        assert_eq!(parse(r#"Basic, Bearer realm="https://a/t",service="s""#), [Challenge::Basic, one]);
    }

    #[test]
    fn what_helps_nobody_is_passed_over() {
        for line in
            ["", "  ", ",,,", "Bearer", "Bearer realm=\"\"", "Negotiate abc==", "Digest realm=\"x\", nonce=\"y\"", "=\"x\"", "realm=\"x\""]
        {
            assert_eq!(parse(line), [], "{line}");
        }
    }

    #[test]
    fn an_error_is_told() {
        let found = parse(r#"Bearer realm="https://a/t",error="insufficient_scope""#);
        assert!(matches!(found.as_slice(), [Challenge::Bearer(bearer)] if bearer.error.as_deref() == Some("insufficient_scope")));
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(line: String) {
            let _ = parse(&line);
        }

        #[test]
        fn no_line_of_likely_characters_makes_it_panic(line in r#"[Bbasicearm,=" \\/:\t]{0,60}"#) {
            let _ = parse(&line);
        }

        #[test]
        fn any_value_survives_quoting(realm in "[ -~]{1,40}", scope in "[!-~]{1,40}", first: bool) {
            let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
            let bearer_text = format!("BEARER realm={} ,scope={}", quote(&realm), quote(&scope));
            let line = if first { format!("{bearer_text}, Basic realm=\"r\"") } else { format!("basic realm=\"r\", {bearer_text}") };
            let mut expected = vec![bearer(&realm, None, Some(&scope)), Challenge::Basic];
            if !first {
                expected.reverse();
            }
            prop_assert_eq!(parse(&line), expected);
        }
    }
}
