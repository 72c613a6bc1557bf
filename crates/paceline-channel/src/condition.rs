//! Conditions on JSON: comparisons of a path with a literal, `empty(PATH)`, `any(PATH, condition)`, `len(PATH)` as a
//! number, joined by `and`. Inside `any`, `$` is the element. A missing path is null.

use std::{cmp::Ordering, str::FromStr};

use serde_json::Value;

use crate::path::{Path, PathError};

/// Nesting of `any`.
const DEPTH_MAX: usize = 8;

/// A parsed condition.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// A comparison.
    Compare(Operand, Comparison, Value),
    /// Nothing, null, or an empty string, list or object.
    Empty(Path),
    /// Some element of the list fits.
    Any(Path, Box<Condition>),
    /// All fit.
    All(Vec<Condition>),
}

/// The left side of a comparison.
#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    /// The value at a path.
    Value(Path),
    /// Elements, members or characters of the value at a path.
    Len(Path),
}

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// `==`
    Equal,
    /// `!=`
    NotEqual,
    /// `<`
    Less,
    /// `<=`
    LessOrEqual,
    /// `>`
    Greater,
    /// `>=`
    GreaterOrEqual,
}

/// The text is no condition.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConditionError {
    /// Something else was expected.
    #[error("read the condition {text:?}: expected {expected} at character {at}")]
    Expected {
        /// The text.
        text: String,
        /// Where.
        at: usize,
        /// What.
        expected: &'static str,
    },
    /// A path in it is no path.
    #[error(transparent)]
    Path(#[from] PathError),
    /// `any` in `any` in …
    #[error("read the condition: `any` nests at most {DEPTH_MAX} deep")]
    TooDeep,
}

impl Condition {
    /// Whether it holds for a message.
    pub fn holds(&self, root: &Value) -> bool {
        match self {
            Self::Compare(operand, comparison, literal) => comparison.holds(&operand.value(root), literal),
            Self::Empty(path) => match path.find(root) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.is_empty(),
                Some(Value::Array(items)) => items.is_empty(),
                Some(Value::Object(members)) => members.is_empty(),
                Some(Value::Bool(_) | Value::Number(_)) => false,
            },
            Self::Any(path, condition) => match path.find(root) {
                Some(Value::Array(items)) => items.iter().any(|item| condition.holds(item)),
                _ => false,
            },
            Self::All(conditions) => conditions.iter().all(|condition| condition.holds(root)),
        }
    }
}

impl Operand {
    fn value(&self, root: &Value) -> Value {
        match self {
            Self::Value(path) => path.find(root).cloned().unwrap_or(Value::Null),
            Self::Len(path) => Value::from(match path.find(root) {
                Some(Value::Array(items)) => items.len(),
                Some(Value::Object(members)) => members.len(),
                Some(Value::String(text)) => text.chars().count(),
                _ => 0,
            }),
        }
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        match self {
            Self::Equal => equal(left, right),
            Self::NotEqual => !equal(left, right),
            Self::Less => order(left, right) == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order(left, right), Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => order(left, right) == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order(left, right), Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

/// Equal values; 7 and 7.0 are.
fn equal(left: &Value, right: &Value) -> bool {
    left == right || (left.is_number() && order(left, right) == Some(Ordering::Equal))
}

/// Numbers and texts have an order, all else has none.
fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Some(a.cmp(&b)),
            _ => a.as_f64()?.partial_cmp(&b.as_f64()?),
        },
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        _ => None,
    }
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let mut parser = Parser { text, at: 0 };
        let condition = parser.all(0)?;
        parser.space();
        if parser.at < text.len() {
            return Err(parser.expected("`and` or the end"));
        }
        Ok(condition)
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start().len();
    }

    fn take(&mut self, token: &str) -> bool {
        self.space();
        let found = self.rest().starts_with(token);
        self.at += if found { token.len() } else { 0 };
        found
    }

    fn need(&mut self, token: &'static str) -> Result<(), ConditionError> {
        if self.take(token) { Ok(()) } else { Err(self.expected(token)) }
    }

    fn expected(&self, expected: &'static str) -> ConditionError {
        ConditionError::Expected { text: self.text.to_owned(), at: self.at, expected }
    }

    fn path(&mut self) -> Result<Path, ConditionError> {
        self.space();
        let (path, used) = Path::prefix(self.rest())?;
        self.at += used;
        Ok(path)
    }

    fn all(&mut self, depth: usize) -> Result<Condition, ConditionError> {
        let first = self.one(depth)?;
        let mut conditions = vec![first];
        while self.take("and ") {
            conditions.push(self.one(depth)?);
        }
        Ok(if conditions.len() == 1 { conditions.remove(0) } else { Condition::All(conditions) })
    }

    fn one(&mut self, depth: usize) -> Result<Condition, ConditionError> {
        if depth > DEPTH_MAX {
            return Err(ConditionError::TooDeep);
        }
        if self.take("empty(") {
            let path = self.path()?;
            self.need(")")?;
            return Ok(Condition::Empty(path));
        }
        if self.take("any(") {
            let path = self.path()?;
            self.need(",")?;
            let condition = self.all(depth + 1)?;
            self.need(")")?;
            return Ok(Condition::Any(path, Box::new(condition)));
        }
        let operand = if self.take("len(") {
            let path = self.path()?;
            self.need(")")?;
            Operand::Len(path)
        } else {
            Operand::Value(self.path()?)
        };
        let comparison = self.comparison()?;
        Ok(Condition::Compare(operand, comparison, self.literal()?))
    }

    fn comparison(&mut self) -> Result<Comparison, ConditionError> {
        // The longer tokens first: `<=` begins with `<`.
        let tokens = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        for (token, comparison) in tokens {
            if self.take(token) {
                return Ok(comparison);
            }
        }
        Err(self.expected("a comparison"))
    }

    fn literal(&mut self) -> Result<Value, ConditionError> {
        self.space();
        let literal = literal_of(self.rest());
        match serde_json::from_str(literal) {
            Ok(value @ (Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_))) => {
                self.at += literal.len();
                Ok(value)
            }
            _ => Err(self.expected("a text, number, boolean or null")),
        }
    }
}

/// The literal that `text` begins with: to the closing quote, or to the end of a word.
fn literal_of(text: &str) -> &str {
    if !text.starts_with('"') {
        return &text[..text.find([' ', ')', ',']).unwrap_or(text.len())];
    }
    let mut escaped = false;
    let end = text.char_indices().skip(1).find(|(_, c)| {
        let closes = *c == '"' && !escaped;
        escaped = *c == '\\' && !escaped;
        closes
    });
    &text[..end.map_or(text.len(), |(at, _)| at + 1)]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn conditions_hold_as_they_read() {
        let message = json!({"type":"A","n":7,"items":[{"done":null},{"done":1}],"none":[]});
        let cases = [
            (r#"$.type == "A""#, true),
            (r#"$.type != "A""#, false),
            ("$.n == 7.0", true),
            ("$.n > 6 and $.n < 8", true),
            ("$.n >= 8", false),
            ("$.missing == null", true),
            ("empty($.none) and empty($.missing)", true),
            ("empty($.items)", false),
            ("any($.items, $.done == null)", true),
            ("any($.items, $.done == 2)", false),
            ("len($.items) > 1", true),
            (r#"$.type > 1"#, false),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Condition>().unwrap().holds(&message), expected, "{text}");
        }
    }

    #[test]
    fn errors_name_the_place_and_what_was_expected() {
        let expected = |text: &str| match text.parse::<Condition>() {
            Err(ConditionError::Expected { at, expected, .. }) => (at, expected),
            other => panic!("{text}: {other:?}"),
        };
        assert_eq!(expected("$.a"), (3, "a comparison"));
        assert_eq!(expected("$.a == [1]"), (7, "a text, number, boolean or null"));
        assert_eq!(expected("empty($.a"), (9, ")"));
        assert_eq!(expected("$.a == 1 or $.b == 2"), (9, "`and` or the end"));
        let deep = "any($, ".repeat(DEPTH_MAX + 1) + "$ == 1" + &")".repeat(DEPTH_MAX + 1);
        assert_eq!(deep.parse::<Condition>(), Err(ConditionError::TooDeep));
    }
}
