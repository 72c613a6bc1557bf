//! Patterns of keys: which keys a resource's rules are for, and what their segments are bound to.

use std::{collections::BTreeMap, fmt};

use paceline_proto::id::Key;
use serde_json::Value;

use crate::{
    key::{KeyError, QueryKey},
    number,
};

/// A pattern of keys: literal segments, `{name}` for any one segment, and `..` at the end for any further ones.
///
/// ```
/// use paceline_query::{key, pattern::KeyPattern};
/// use serde_json::json;
///
/// let pattern = KeyPattern::new(&[json!("packages"), json!("{id}"), json!("..")])?;
/// let bound = pattern.bind(&key!["packages", 7, "history"]).unwrap();
/// assert_eq!(bound["id"], 7);
/// assert!(pattern.bind(&key!["packages"]).is_none());
/// # Ok::<(), paceline_query::pattern::KeyPatternError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct KeyPattern {
    segments: Vec<Segment>,
    open: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum Segment {
    Literal(Value),
    Name(String),
}

/// A segment as it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    /// This.
    Literal(&'a Value),
    /// Any, bound to the name.
    Name(&'a str),
}

/// The segments are no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyPatternError {
    /// There is no segment.
    #[error("read the key pattern: it has no segment")]
    Empty,
    /// `..` in front of a segment.
    #[error("read the key pattern: `..` stands at the end only")]
    Open,
    /// A name twice.
    #[error("read the key pattern: {{{0}}} binds twice")]
    Twice(String),
    /// A text with a brace that is no name.
    #[error("read the key pattern: {0:?} is neither a text without braces nor one `{{name}}`")]
    Name(String),
    /// A literal that no key can have.
    #[error("read the key pattern: {0}")]
    Key(#[from] KeyError),
}

/// How exactly a pattern names keys: more literal segments before fewer, then more segments, then a fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    literals: usize,
    segments: usize,
    closed: bool,
}

impl KeyPattern {
    /// Reads the segments.
    ///
    /// # Errors
    /// [`KeyPatternError`] says what is wrong.
    pub fn new(segments: &[Value]) -> Result<Self, KeyPatternError> {
        let (segments, open) = match segments.split_last() {
            Some((Value::String(last), before)) if last == ".." => (before, true),
            _ => (segments, false),
        };
        let mut pattern = Self { segments: Vec::new(), open };
        for segment in segments {
            let read = match segment {
                Value::String(text) if text == ".." => return Err(KeyPatternError::Open),
                Value::String(text) if text.contains(['{', '}']) => {
                    let name = name_in_braces(text).ok_or_else(|| KeyPatternError::Name(text.clone()))?;
                    if pattern.names().any(|bound| bound == name) {
                        return Err(KeyPatternError::Twice(name.to_owned()));
                    }
                    Segment::Name(name.to_owned())
                }
                literal => {
                    QueryKey::new(std::slice::from_ref(literal))?;
                    Segment::Literal(literal.clone())
                }
            };
            pattern.segments.push(read);
        }
        if pattern.segments.is_empty() { Err(KeyPatternError::Empty) } else { Ok(pattern) }
    }

    /// The names it binds, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Name(name) => Some(name.as_str()),
            Segment::Literal(_) => None,
        })
    }

    pub(crate) fn parts(&self) -> impl Iterator<Item = Part<'_>> {
        self.segments.iter().map(|segment| match segment {
            Segment::Literal(literal) => Part::Literal(literal),
            Segment::Name(name) => Part::Name(name),
        })
    }

    /// Whether further segments may follow.
    pub(crate) const fn is_open(&self) -> bool {
        self.open
    }

    /// What its names are bound to, if the key is one of its own.
    pub fn bind(&self, key: &QueryKey) -> Option<BTreeMap<String, Value>> {
        let segments = key.segments();
        if segments.len() < self.segments.len() || (segments.len() > self.segments.len() && !self.open) {
            return None;
        }
        let mut bound = BTreeMap::new();
        for (ours, theirs) in self.segments.iter().zip(segments) {
            match ours {
                Segment::Literal(literal) if number::equal(literal, &theirs) => {}
                Segment::Literal(_) => return None,
                Segment::Name(name) => drop(bound.insert(name.clone(), theirs)),
            }
        }
        Some(bound)
    }

    /// The canonical bytes that all its keys begin with: those of its literal segments in front of the first name.
    pub fn prefix(&self) -> Key {
        let literals: Vec<Value> = self
            .segments
            .iter()
            .map_while(|segment| match segment {
                Segment::Literal(literal) => Some(literal.clone()),
                Segment::Name(_) => None,
            })
            .collect();
        // Each literal was found to be a segment; together they may be too long for any key, and then there is none.
        QueryKey::new(&literals).map(Key::from).unwrap_or_default()
    }

    /// How exactly it names keys; of two patterns of one key the greater one counts.
    pub fn specificity(&self) -> Specificity {
        let segments = self.segments.len();
        Specificity { literals: segments - self.names().count(), segments, closed: !self.open }
    }

    /// Whether both are for exactly the same keys, whatever their names are called.
    pub fn is_same(&self, other: &Self) -> bool {
        self.open == other.open
            && self.segments.len() == other.segments.len()
            && self.segments.iter().zip(&other.segments).all(|(one, two)| match (one, two) {
                (Segment::Literal(one), Segment::Literal(two)) => number::equal(one, two),
                (Segment::Name(_), Segment::Name(_)) => true,
                (Segment::Literal(_), Segment::Name(_)) | (Segment::Name(_), Segment::Literal(_)) => false,
            })
    }

    /// The segments, as they are written.
    pub fn to_value(&self) -> Value {
        let written = self.segments.iter().map(|segment| match segment {
            Segment::Literal(literal) => literal.clone(),
            Segment::Name(name) => Value::from(format!("{{{name}}}")),
        });
        written.chain(self.open.then(|| Value::from(".."))).collect()
    }
}

impl fmt::Display for KeyPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_value().fmt(f)
    }
}

/// The name that a segment `{name}` is.
pub(crate) fn name_in_braces(text: &str) -> Option<&str> {
    text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).filter(|name| is_name(name))
}

/// Whether it is a name: `[a-z0-9][a-z0-9_-]{0,63}`.
pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 64 && name_len(name) == name.len()
}

/// Bytes of the name that `text` begins with: `[a-z0-9][a-z0-9_-]*`; zero where it begins with none.
pub fn name_len(text: &str) -> usize {
    let is_first = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if !text.bytes().next().is_some_and(is_first) {
        return 0;
    }
    text.bytes().take_while(|byte| is_first(*byte) || matches!(byte, b'_' | b'-')).count()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::key;

    fn pattern(segments: Value) -> KeyPattern {
        KeyPattern::new(segments.as_array().unwrap()).unwrap()
    }

    #[test]
    fn names_bind_segments_and_dots_take_the_rest() {
        let open = pattern(json!(["metrc", "packages", "{license}", "{filter}", ".."]));
        let bound = open.bind(&key!["metrc", "packages", "A-1", { "status": "active" }, 3]);
        assert_eq!(
            bound.map(|bound| json!(bound)),
            Some(json!({"license":"A-1","filter":{"status":"active"}}))
        );
        assert!(open.bind(&key!["metrc", "packages", "A-1"]).is_none(), "too short");
        assert!(open.bind(&key!["metrc", "package", "A-1", "x"]).is_none(), "another literal");
        let closed = pattern(json!(["job", 7.0]));
        assert!(closed.bind(&key!["job", 7]).is_some() && closed.bind(&key!["job", 7, 8]).is_none());
    }

    #[test]
    fn the_more_exact_pattern_counts() {
        let rank = |segments| pattern(segments).specificity();
        assert!(rank(json!(["process", "list", ".."])) > rank(json!(["process", ".."])));
        assert!(rank(json!(["process", "list", ".."])) > rank(json!(["process", "{id}", "{part}"])));
        assert!(rank(json!(["process", "{id}"])) > rank(json!(["process", "{id}", ".."])));
        assert!(pattern(json!(["a", "{x}"])).is_same(&pattern(json!(["a", "{y}"]))));
        assert!(!pattern(json!(["a", "{x}"])).is_same(&pattern(json!(["a", "x"]))));
        assert!(!pattern(json!(["a", ".."])).is_same(&pattern(json!(["a"]))));
    }

    #[test]
    fn all_keys_of_a_pattern_begin_with_its_prefix() {
        let prefix = |segments| pattern(segments).prefix();
        assert_eq!(prefix(json!(["a", 7.0, "{x}", "b", ".."])), key!["a", 7].to_key());
        assert_eq!(prefix(json!(["{x}", "b"])), Key::default());
        assert_eq!(prefix(json!(["a", ".."])), key!["a"].to_key());
    }

    #[test]
    fn what_is_no_pattern_is_refused() {
        let refused = |segments: Value| KeyPattern::new(segments.as_array().unwrap()).unwrap_err();
        assert_eq!(refused(json!([])), KeyPatternError::Empty);
        assert_eq!(refused(json!([".."])), KeyPatternError::Empty);
        assert_eq!(refused(json!(["..", "a"])), KeyPatternError::Open);
        assert_eq!(refused(json!(["{a}", "{a}"])), KeyPatternError::Twice("a".into()));
        for text in ["{A}", "x{a}", "{}", "{a", "a}"] {
            assert_eq!(refused(json!([text])), KeyPatternError::Name(text.into()));
        }
        let shown = json!(["a", "{b}", 1, ".."]);
        assert_eq!(pattern(shown.clone()).to_value(), shown);
    }
}
