//! Paths into JSON: `$`, `$.a.b`, `$.items[0].id`. Members and indexes only.

use std::{fmt, str::FromStr};

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Member(String),
    Index(usize),
}

/// The text is no path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("read the path {path:?}: {why} at character {at}")]
pub struct PathError {
    /// The text.
    pub path: String,
    /// Where it stops being a path.
    pub at: usize,
    /// What was expected.
    pub why: &'static str,
}

impl Path {
    /// The path to a member of the root: `$.name`.
    pub fn member(name: &str) -> Self {
        Self(vec![Step::Member(name.to_owned())])
    }

    /// The value the path leads to; `None` where there is nothing.
    pub fn find<'a>(&self, root: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(root, |value, step| match step {
            Step::Member(name) => value.get(name),
            Step::Index(index) => value.get(index),
        })
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        let (path, used) = Self::prefix(text)?;
        if used < text.len() {
            return Err(error(text, used, "expected `.`, `[` or the end"));
        }
        Ok(path)
    }
}

fn error(text: &str, at: usize, why: &'static str) -> PathError {
    PathError { path: text.to_owned(), at, why }
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || byte >= 0x80
}

impl Path {
    /// Reads the longest path that `text` begins with, and how many bytes it takes.
    pub(crate) fn prefix(text: &str) -> Result<(Self, usize), PathError> {
        let bytes = text.as_bytes();
        if bytes.first() != Some(&b'$') {
            return Err(error(text, 0, "expected `$`"));
        }
        let mut steps = Vec::new();
        let mut at = 1;
        loop {
            match bytes.get(at) {
                Some(b'.') => {
                    let len = bytes[at + 1..].iter().take_while(|byte| is_name(**byte)).count();
                    if len == 0 {
                        return Err(error(text, at + 1, "expected the name of a member"));
                    }
                    steps.push(Step::Member(text[at + 1..at + 1 + len].to_owned()));
                    at += 1 + len;
                }
                Some(b'[') => {
                    let len = bytes[at + 1..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                    let index = text[at + 1..at + 1 + len].parse();
                    let Ok(index) = index else { return Err(error(text, at + 1, "expected an index")) };
                    if bytes.get(at + 1 + len) != Some(&b']') {
                        return Err(error(text, at + 1 + len, "expected `]`"));
                    }
                    steps.push(Step::Index(index));
                    at += len + 2;
                }
                Some(_) | None => return Ok((Self(steps), at)),
            }
        }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("$")?;
        self.0.iter().try_for_each(|step| match step {
            Step::Member(name) => write!(f, ".{name}"),
            Step::Index(index) => write!(f, "[{index}]"),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_lead_to_members_and_elements() {
        let root = json!({"a":{"b":[{"id":7}]},"x-y":1});
        let find = |path: &str| path.parse::<Path>().unwrap().find(&root).cloned();
        assert_eq!(find("$"), Some(root.clone()));
        assert_eq!(find("$.a.b[0].id"), Some(json!(7)));
        assert_eq!(find("$.x-y"), Some(json!(1)));
        assert_eq!(find("$.a.c"), None);
        assert_eq!(find("$.a.b[1]"), None);
        assert_eq!(find("$[0]"), None);
        assert_eq!("$.type".parse(), Ok(Path::member("type")));
        for path in ["$", "$.a.b[0].id", "$.ä[12][0]"] {
            assert_eq!(path.parse::<Path>().unwrap().to_string(), path);
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (text, at) in
            [("a", 0), ("$.", 2), ("$[x]", 2), ("$[1", 3), ("$.a b", 3), ("", 0), ("$.a..b", 4), ("$[-1]", 2)]
        {
            assert_eq!(text.parse::<Path>().unwrap_err().at, at, "{text}");
        }
    }
}
