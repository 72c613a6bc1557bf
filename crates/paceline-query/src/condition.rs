//! Conditions on JSON: comparisons of a path with a literal, `empty(PATH)`, `any(PATH, condition)`, `len(PATH)` as a
//! number, `key.NAME` for a segment bound to the name, and `error` for a fetch that failed, joined by `and`. Inside
//! `any`, `$` is the element. A missing path and an unbound name are null. Numbers compare by value, texts by their
//! characters; where two values have no order, `<` and its kin do not hold.

use std::{cmp::Ordering, collections::BTreeMap, fmt, str::FromStr};

use serde_json::Value;

use crate::{
    number,
    path::{Path, PathError},
    pattern::name_len,
};

/// Nesting of `any`.
const DEPTH_MAX: usize = 8;

/// Values by the names they are bound to.
pub type Bindings = BTreeMap<String, Value>;

/// A parsed condition.
#[derive(Debug, Clone, PartialEq)]
pub enum Condition {
    /// A comparison.
    Compare(Operand, Comparison, Value),
    /// Nothing, null, or an empty string, list or object.
    Empty(Path),
    /// Some element of the list fits.
    Any(Path, Box<Condition>),
    /// The last fetch failed.
    Failed,
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
    /// The value bound to a name.
    Bound(String),
}

/// What a condition looks at.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// `$`.
    pub root: &'a Value,
    /// `key.NAME`.
    pub bindings: &'a Bindings,
    /// `error`.
    pub failed: bool,
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
    /// Whether it holds for a message, without bindings and fetches.
    pub fn holds(&self, root: &Value) -> bool {
        self.holds_in(Scope { root, bindings: &Bindings::new(), failed: false })
    }

    /// Whether it holds.
    pub fn holds_in(&self, scope: Scope<'_>) -> bool {
        match self {
            Self::Compare(operand, comparison, literal) => match operand {
                Operand::Value(path) => {
                    comparison.holds(path.find(scope.root).unwrap_or(&Value::Null), literal)
                }
                Operand::Bound(name) => {
                    comparison.holds(scope.bindings.get(name).unwrap_or(&Value::Null), literal)
                }
                Operand::Len(path) => comparison.holds(&Value::from(len(path.find(scope.root))), literal),
            },
            Self::Empty(path) => match path.find(scope.root) {
                None | Some(Value::Null) => true,
                Some(Value::String(text)) => text.is_empty(),
                Some(Value::Array(items)) => items.is_empty(),
                Some(Value::Object(members)) => members.is_empty(),
                Some(Value::Bool(_) | Value::Number(_)) => false,
            },
            Self::Any(path, condition) => match path.find(scope.root) {
                Some(Value::Array(items)) => {
                    items.iter().any(|root| condition.holds_in(Scope { root, ..scope }))
                }
                _ => false,
            },
            Self::Failed => scope.failed,
            Self::All(conditions) => conditions.iter().all(|condition| condition.holds_in(scope)),
        }
    }

    /// The names of `key.NAME` in it, in order.
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Compare(Operand::Bound(name), _, _) => vec![name],
            Self::Compare(Operand::Value(_) | Operand::Len(_), _, _) | Self::Empty(_) | Self::Failed => {
                Vec::new()
            }
            Self::Any(_, condition) => condition.names(),
            Self::All(conditions) => conditions.iter().flat_map(Self::names).collect(),
        }
    }

    /// Whether it asks for `error`.
    pub fn asks_for_failure(&self) -> bool {
        match self {
            Self::Failed => true,
            Self::Compare(..) | Self::Empty(_) => false,
            Self::Any(_, condition) => condition.asks_for_failure(),
            Self::All(conditions) => conditions.iter().any(Self::asks_for_failure),
        }
    }
}

impl fmt::Display for Condition {
    /// One spelling for all that read as the same condition.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compare(operand, comparison, literal) => write!(f, "{operand} {comparison} {literal}"),
            Self::Empty(path) => write!(f, "empty({path})"),
            Self::Any(path, condition) => write!(f, "any({path}, {condition})"),
            Self::Failed => f.write_str("error"),
            Self::All(conditions) => conditions.iter().enumerate().try_for_each(|(n, condition)| {
                f.write_str(if n == 0 { "" } else { " and " })?;
                condition.fmt(f)
            }),
        }
    }
}

impl fmt::Display for Operand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(path) => path.fmt(f),
            Self::Len(path) => write!(f, "len({path})"),
            Self::Bound(name) => write!(f, "key.{name}"),
        }
    }
}

/// The comparisons and how they are written; the longer tokens first: `<=` begins with `<`.
const COMPARISONS: [(&str, Comparison); 6] = [
    ("==", Comparison::Equal),
    ("!=", Comparison::NotEqual),
    ("<=", Comparison::LessOrEqual),
    (">=", Comparison::GreaterOrEqual),
    ("<", Comparison::Less),
    (">", Comparison::Greater),
];

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let token = COMPARISONS.iter().find(|(_, comparison)| comparison == self).map(|(token, _)| *token);
        f.write_str(token.unwrap_or_default())
    }
}

fn len(value: Option<&Value>) -> usize {
    match value {
        Some(Value::Array(items)) => items.len(),
        Some(Value::Object(members)) => members.len(),
        Some(Value::String(text)) => text.chars().count(),
        Some(Value::Null | Value::Bool(_) | Value::Number(_)) | None => 0,
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        match self {
            Self::Equal => number::equal(left, right),
            Self::NotEqual => !number::equal(left, right),
            Self::Less => order(left, right) == Some(Ordering::Less),
            Self::LessOrEqual => matches!(order(left, right), Some(Ordering::Less | Ordering::Equal)),
            Self::Greater => order(left, right) == Some(Ordering::Greater),
            Self::GreaterOrEqual => matches!(order(left, right), Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

/// Numbers and texts have an order, all else has none.
fn order(left: &Value, right: &Value) -> Option<Ordering> {
    match (left, right) {
        (Value::String(left), Value::String(right)) => Some(left.cmp(right)),
        _ => number::compare(left, right),
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

    /// Takes a word that is not the beginning of a longer one.
    fn take_word(&mut self, word: &str) -> bool {
        self.space();
        let behind = self.rest().strip_prefix(word);
        let found =
            behind.is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '_'));
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn path(&mut self) -> Result<Path, ConditionError> {
        self.space();
        if !self.rest().starts_with('$') {
            return Err(self.expected("a path that begins with `$`"));
        }
        let (path, used) = Path::prefix(self.rest()).map_err(|error| PathError {
            path: self.text.to_owned(),
            at: self.at + error.at,
            ..error
        })?;
        self.at += used;
        Ok(path)
    }

    fn all(&mut self, depth: usize) -> Result<Condition, ConditionError> {
        let first = self.one(depth)?;
        let mut conditions = vec![first];
        while self.take_word("and") {
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
        if self.take_word("error") {
            return Ok(Condition::Failed);
        }
        let operand = self.operand()?;
        let comparison = self.comparison()?;
        Ok(Condition::Compare(operand, comparison, self.literal()?))
    }

    fn operand(&mut self) -> Result<Operand, ConditionError> {
        if self.take("len(") {
            let path = self.path()?;
            self.need(")")?;
            return Ok(Operand::Len(path));
        }
        if self.take("key.") {
            let len = name_len(self.rest());
            if len == 0 {
                return Err(self.expected("the name of a bound segment"));
            }
            let name = self.rest()[..len].to_owned();
            self.at += len;
            return Ok(Operand::Bound(name));
        }
        self.space();
        if !self.rest().starts_with('$') {
            return Err(self.expected("a path, `len(`, `key.`, `empty(`, `any(` or `error`"));
        }
        self.path().map(Operand::Value)
    }

    fn comparison(&mut self) -> Result<Comparison, ConditionError> {
        for (token, comparison) in COMPARISONS {
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
        return &text
            [..text.find(|c: char| c.is_whitespace() || matches!(c, ')' | ',')).unwrap_or(text.len())];
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
            (r#"$.type >= "A" and $.type < "AA""#, true),
            ("\t$.n==7\tand $.n!=8", true),
            ("any($.items, empty($.done))", true),
            ("any($.n, $ == 7)", false),
            ("len($.type) == 1 and len($.missing) == 0 and len($) == 4", true),
            (r#"$.quoted == "a\"b) and""#, false),
            ("error", false),
            ("key.id == null", true),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Condition>().unwrap().holds(&message), expected, "{text}");
        }
    }

    #[test]
    fn bound_names_and_failures_come_from_the_scope() {
        let bindings =
            Bindings::from([("filter".to_owned(), json!("active")), ("id".to_owned(), json!(7.0))]);
        let root = json!([{"id":1}]);
        let scope = Scope { root: &root, bindings: &bindings, failed: true };
        let holds = |text: &str| text.parse::<Condition>().unwrap().holds_in(scope);
        assert!(holds(r#"key.filter == "active" and key.id == 7 and error"#));
        assert!(!holds(r#"key.filter != "active""#));
        assert!(holds("any($, $.id == 1 and key.id > 6)"), "names reach into elements");
    }

    #[test]
    fn a_condition_shows_so_that_it_reads_as_the_same() {
        for (text, shown) in [
            (r#"$.type=="A\"b"  and  len( $.n )<= 7"#, r#"$.type == "A\"b" and len($.n) <= 7"#),
            ("any($, $.a!=null and key.x >1.5)", "any($, $.a != null and key.x > 1.5)"),
            ("empty( $.a[0] ) and error", "empty($.a[0]) and error"),
        ] {
            let condition: Condition = text.parse().unwrap();
            assert_eq!(condition.to_string(), shown);
            assert_eq!(shown.parse(), Ok(condition));
        }
        let condition: Condition = "any($, key.a == 1) and key.b < 2 and error".parse().unwrap();
        assert_eq!(condition.names(), ["a", "b"]);
        assert!(condition.asks_for_failure() && !"empty($)".parse::<Condition>().unwrap().asks_for_failure());
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
        assert_eq!(expected("$.a == 1 and"), (12, "a path, `len(`, `key.`, `empty(`, `any(` or `error`"));
        assert_eq!(expected("errors"), (0, "a path, `len(`, `key.`, `empty(`, `any(` or `error`"));
        assert_eq!(expected("key.X == 1"), (4, "the name of a bound segment"));
        assert_eq!(expected(r#"$.a == "x"#), (7, "a text, number, boolean or null"));
        assert_eq!(expected("any($.a $.b == 1)"), (8, ","));
        assert_eq!(expected("empty(a)"), (6, "a path that begins with `$`"));
        let misspelt = "$.ok == 1 and $.a.[0] == 2".parse::<Condition>();
        let Err(ConditionError::Path(PathError { path, at, .. })) = misspelt else { panic!("{misspelt:?}") };
        assert_eq!((path.as_str(), at), ("$.ok == 1 and $.a.[0] == 2", 18));
        let deep = "any($, ".repeat(DEPTH_MAX + 1) + "$ == 1" + &")".repeat(DEPTH_MAX + 1);
        assert_eq!(deep.parse::<Condition>(), Err(ConditionError::TooDeep));
    }
}
