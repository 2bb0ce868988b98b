//! Patterns that the configuration holds: of tags, and of repositories. Pure.

use regex::{Regex, RegexSet};

use super::value::Fault;
use crate::oci::Glob;

/// Regular expressions over whole tags.
#[derive(Clone, Debug, Default)]
pub struct Patterns(Option<RegexSet>);

impl Patterns {
    /// # Errors
    /// With the text that is not a regular expression, and why.
    pub fn new(expressions: &[String]) -> Result<Patterns, String> {
        if expressions.is_empty() {
            return Ok(Patterns(None));
        }
        let anchored: Vec<_> = expressions.iter().map(|expression| format!("^(?:{expression})$")).collect();
        for (expression, anchored) in expressions.iter().zip(&anchored) {
            // By itself too: `a)|(?:b` is one only between the anchors.
            let fault = |error| format!("`{expression}` is not a regular expression: {}", reason(&error));
            Regex::new(expression).map_err(fault)?;
            Regex::new(anchored).map_err(fault)?;
        }
        RegexSet::new(anchored).map(|set| Patterns(Some(set))).map_err(|error| format!("cannot be used together: {}", reason(&error)))
    }

    pub fn matches(&self, text: &str) -> bool {
        self.0.as_ref().is_some_and(|set| set.is_match(text))
    }
}

/// Without the drawing that `regex` makes of the expression: mistakes have one line.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

/// A [`Glob`] of repositories, with no more than their names can hold.
pub(super) fn repositories(text: &str) -> Result<String, Fault> {
    let fault = |why: &str| format!("`{text}` is not a pattern of repositories: {why}; write one such as org/app, org/* or org/**");
    Glob::new(text).map_err(|error| fault(&error.to_string()))?;
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-/*?".contains(&byte);
    if !text.bytes().all(fits) {
        return Err(fault("it holds more than lower-case letters, digits, '.', '_', '-', '/', '*' and '?'"));
    }
    if text.split('/').any(|component| component.contains("**") && component != "**") {
        return Err(fault("** stands for whole components"));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(expressions: &[&str]) -> Result<Patterns, String> {
        Patterns::new(&expressions.iter().map(|expression| (*expression).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn an_expression_is_about_the_whole_tag() {
        let patterns = patterns(&[r"v\d+\.\d+", "a|b"]).unwrap();
        for tag in ["v1.2", "v10.20", "a", "b"] {
            assert!(patterns.matches(tag), "{tag}");
        }
        for tag in ["v1.2.3", "xv1.2", "ab", "v1.2\n", ""] {
            assert!(!patterns.matches(tag), "{tag}");
        }
        assert!(!Patterns::default().matches(""));
    }

    #[test]
    fn what_is_no_expression_is_named_with_the_reason() {
        assert_eq!(patterns(&["a", "v["]).unwrap_err(), "`v[` is not a regular expression: unclosed character class");
        for wrong in ["a)|(?:b", "(?x)a # and", "*", r"\", "(a{1000}){1000}"] {
            let fault = patterns(&[wrong]).unwrap_err();
            assert!(fault.contains(wrong) && fault.lines().count() == 1, "{fault}");
        }
    }

    #[test]
    fn repositories_are_lower_case_with_stars() {
        for text in ["**", "*", "org/**", "org/*", "a/**/b-*", "library/alpine", "*-x_y.z/app", "a?"] {
            assert_eq!(repositories(text).as_deref(), Ok(text));
        }
        for text in ["", "/", "org/", "/org", "a//b", "org/a**", "***", "Org/**", "a/{b,c}", "a/[bc]", "docker.io:5000/a", "a/**b/c"] {
            assert!(repositories(text).is_err_and(|fault| fault.contains(&format!("`{text}`"))), "{text}");
        }
    }
}
