//! Patterns of channel names: `private-org.{org}`. A name takes one or more characters other than `.`, up to the first
//! place where the text behind it fits; digits become a number, as in the short form of keys.

use std::fmt;

use paceline_query::{condition::Bindings, key::segment_of_text, pattern::name_len};
use serde_json::Value;

/// A parsed pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// What stands before the first name.
    head: String,
    /// Names, each with the text behind it.
    names: Vec<(String, String)>,
}

/// The text is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the channel {text:?}: {why} at character {at}")]
pub struct PatternError {
    /// The text.
    pub text: String,
    /// Where.
    pub at: usize,
    /// What is wrong.
    pub why: &'static str,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    /// [`PatternError`] says what and where.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        let error = |at: usize, why: &'static str| PatternError { text: text.to_owned(), at, why };
        let mut pattern = Self { head: String::new(), names: Vec::new() };
        let mut at = 0;
        while let Some(found) = text[at..].find('{') {
            let open = at + found;
            pattern.push_text(&text[at..open]);
            if found == 0 && !pattern.names.is_empty() {
                return Err(error(open, "expected a text between two names"));
            }
            let len = name_len(&text[open + 1..]);
            at = open + 1 + len;
            if len == 0 || !text[at..].starts_with('}') {
                return Err(error(at, "expected a name and `}`"));
            }
            let name = &text[open + 1..at];
            if pattern.binds(name) {
                return Err(error(open + 1, "expected a name that is not bound yet"));
            }
            pattern.names.push((name.to_owned(), String::new()));
            at += 1;
        }
        pattern.push_text(&text[at..]);
        if text.is_empty() {
            return Err(error(0, "expected a name"));
        }
        Ok(pattern)
    }

    /// Whether it binds the name.
    pub fn binds(&self, name: &str) -> bool {
        self.names.iter().any(|(bound, _)| bound == name)
    }

    /// What the names are bound to if the channel is one of this pattern.
    pub fn bind(&self, channel: &str) -> Option<Bindings> {
        let mut rest = channel.strip_prefix(&self.head)?;
        let mut bindings = Bindings::new();
        for (n, (name, behind)) in self.names.iter().enumerate() {
            let is_last = n + 1 == self.names.len();
            // The last text must be the end of the channel; a first place in the middle would not do.
            let len = if is_last { rest.len().checked_sub(behind.len())? } else { first(rest, behind)? };
            let (value, tail) = rest.split_at_checked(len)?;
            if value.is_empty() || value.contains('.') {
                return None;
            }
            rest = tail.strip_prefix(behind.as_str())?;
            bindings.insert(name.clone(), segment_of_text(value));
        }
        rest.is_empty().then_some(bindings)
    }

    /// Whether it has no names: it is one channel.
    pub fn is_fixed(&self) -> bool {
        self.names.is_empty()
    }

    /// The channel for which [`Pattern::bind`] finds the same; `None` where there is none.
    pub fn fill(&self, bindings: &Bindings) -> Option<String> {
        let mut channel = self.head.clone();
        for (name, behind) in &self.names {
            match bindings.get(name)? {
                Value::String(text) => channel += text,
                Value::Number(number) => channel += &number.to_string(),
                Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return None,
            }
            channel += behind;
        }
        let found = self.bind(&channel)?;
        found.iter().all(|(name, value)| bindings.get(name) == Some(value)).then_some(channel)
    }

    fn push_text(&mut self, text: &str) {
        let end = self.names.last_mut().map_or(&mut self.head, |(_, behind)| behind);
        end.push_str(text);
    }
}

/// Bytes before the first place of `behind`, at least one.
fn first(rest: &str, behind: &str) -> Option<usize> {
    let start = rest.chars().next()?.len_utf8();
    rest[start..].find(behind).map(|found| start + found)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head)?;
        self.names.iter().try_for_each(|(name, behind)| write!(f, "{{{name}}}{behind}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn bind(pattern: &str, channel: &str) -> Option<Value> {
        let pattern = Pattern::new(pattern).unwrap();
        pattern.bind(channel).map(|bound| bound.into_iter().collect())
    }

    #[test]
    fn names_take_what_stands_between_the_texts() {
        assert_eq!(bind("news", "news"), Some(json!({})));
        assert_eq!(bind("news", "news.de"), None);
        assert_eq!(bind("private-org.{org}", "private-org.7"), Some(json!({"org":7})));
        assert_eq!(bind("private-org.{org}", "private-org.007"), Some(json!({"org":"007"})));
        assert_eq!(bind("private-org.{org}", "private-org."), None);
        assert_eq!(bind("private-org.{org}", "private-org.7.inventory"), None);
        assert_eq!(bind("private-org.{org}.inventory", "private-org.7.inventory"), Some(json!({"org":7})));
        assert_eq!(bind("{a}-{b}", "x-y-z"), Some(json!({"a":"x","b":"y-z"})));
        assert_eq!(bind("{a}-{b}", "-y-z"), Some(json!({"a":"-y","b":"z"})));
        assert_eq!(bind("{a}-x", "b-x-x"), Some(json!({"a":"b-x"})));
        assert_eq!(bind("{a}-x", "x"), None);
        assert_eq!(bind("{a}é", "日é"), Some(json!({"a":"日"})));
        assert_eq!(bind("{a}é", "日日"), None);
    }

    #[test]
    fn a_filled_pattern_binds_what_filled_it() {
        let fill = |pattern: &str, bound: Value| {
            let bindings: Bindings = bound.as_object().unwrap().clone().into_iter().collect();
            Pattern::new(pattern).unwrap().fill(&bindings)
        };
        assert_eq!(
            fill("org.{org}.inventory", json!({"org": 7, "x": 1})).as_deref(),
            Some("org.7.inventory")
        );
        assert_eq!(fill("{a}-{b}", json!({"a": "x", "b": "y-z"})).as_deref(), Some("x-y-z"));
        assert_eq!(fill("{a}-{b}", json!({"a": "x-y", "b": "z"})), None, "bound the other way");
        assert_eq!(fill("news", json!({})).as_deref(), Some("news"));
        for odd in [json!("7"), json!("a.b"), json!(""), json!(true), json!(null), json!(1.5), json!([1])] {
            assert_eq!(fill("org.{org}", json!({"org": odd})), None, "{odd}");
        }
        assert_eq!(fill("org.{org}", json!({})), None);
    }

    #[test]
    fn errors_name_the_place() {
        for (text, at) in [("", 0), ("a.{b", 4), ("a.{}", 3), ("{a}{b}", 3), ("{a}.{a}", 5), ("{A}", 1)] {
            assert_eq!(Pattern::new(text).unwrap_err().at, at, "{text}");
        }
        assert_eq!(Pattern::new("a.{b}.c{d}").unwrap().to_string(), "a.{b}.c{d}");
    }
}
