//! Query keys: arrays of JSON segments with canonical bytes.
//!
//! The canonical bytes concatenate self-delimiting segments, so that a key is a prefix of another exactly if its bytes
//! are. Two keys are equal exactly if their bytes are:
//!
//! - Members of objects have no order, at any depth. An absent member is what JavaScript calls `undefined`: leave it
//!   out. `null` is a value of its own, and so is what `None` becomes in [`key!`](crate::key!).
//! - Equal numbers are one: 7, 7.0 and 7e0, and 0 and -0.0. Integers are exact from -2⁶³ to 2⁶⁴-1; beyond that, and
//!   with a fraction, a number is the nearest 64-bit floating-point number. NaN and the infinities are not JSON: null.
//! - `7` and `"7"` differ.

use std::{fmt, str::FromStr};

use paceline_proto::{id::Key, limits::KEY_MAX};
use serde_json::{Map, Number, Value};

use crate::number;

/// Depth of nested arrays and objects in a segment.
pub const DEPTH_MAX: usize = 16;

const NULL: u8 = 1;
const FALSE: u8 = 2;
const TRUE: u8 = 3;
const NUMBER: u8 = 4;
const STRING: u8 = 5;
const ARRAY: u8 = 6;
const OBJECT: u8 = 7;
/// Ends an array or an object; no segment begins with it.
const END: u8 = 0;
/// A query key: segments in order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueryKey(Key);

/// Why something is not a query key. Nothing changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The JSON is not an array.
    #[error("a key is an array of segments, for example [\"packages\",7]")]
    NotAnArray,
    /// The text is not JSON.
    #[error("the key is not JSON: {0}")]
    Json(String),
    /// The key has no segment.
    #[error("a key has at least one segment")]
    Empty,
    /// Nested too deeply.
    #[error("a key nests at most {DEPTH_MAX} deep")]
    TooDeep,
    /// Its canonical bytes are too long.
    #[error("the key takes {0} bytes, at most {KEY_MAX} are allowed")]
    TooLong(usize),
    /// The bytes are not canonical bytes of a key.
    #[error("the bytes are not those of a key, at byte {0}")]
    Bytes(usize),
}

impl QueryKey {
    /// The key with these segments.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn new(segments: &[Value]) -> Result<Self, KeyError> {
        if segments.is_empty() {
            return Err(KeyError::Empty);
        }
        let mut bytes = Vec::with_capacity(64);
        for segment in segments {
            write(segment, 0, &mut bytes)?;
        }
        if bytes.len() > KEY_MAX {
            return Err(KeyError::TooLong(bytes.len()));
        }
        Ok(Self(Key(bytes.into())))
    }

    /// The key of a JSON array.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_value(value: &Value) -> Result<Self, KeyError> {
        Self::new(value.as_array().ok_or(KeyError::NotAnArray)?)
    }

    /// What `key!` makes; the macro's documentation tells when it panics.
    #[doc(hidden)]
    pub fn from_macro(value: &Value) -> Self {
        match Self::from_value(value) {
            Ok(key) => key,
            Err(error) => panic!("key!: {error}"),
        }
    }

    /// The canonical bytes.
    pub fn to_key(&self) -> Key {
        self.0.clone()
    }

    /// Reads canonical bytes back. Total: whatever a peer sent is either the bytes of one key or an error.
    ///
    /// # Errors
    /// [`KeyError::Bytes`] names the first byte that does not fit; bytes that would be another spelling of a key do not.
    pub fn from_key(key: &Key) -> Result<Self, KeyError> {
        if key.0.len() > KEY_MAX {
            return Err(KeyError::TooLong(key.0.len()));
        }
        let canonical = Self::new(&segments(&key.0)?)?;
        match canonical.0.0.iter().zip(&key.0).position(|(ours, theirs)| ours != theirs) {
            Some(at) => Err(KeyError::Bytes(at)),
            None if canonical.0.0.len() != key.0.len() => {
                Err(KeyError::Bytes(canonical.0.0.len().min(key.0.len())))
            }
            None => Ok(canonical),
        }
    }

    /// Whether `other` lies under this key, itself included.
    pub fn is_prefix_of(&self, other: &Self) -> bool {
        self.0.is_prefix_of(&other.0)
    }

    /// The segments.
    pub fn segments(&self) -> Vec<Value> {
        segments(&self.0.0).unwrap_or_default()
    }
}

/// Makes a [`QueryKey`] of JSON-like segments; variables are serialised.
///
/// ```
/// let id = 7;
/// let key = paceline_query::key!["packages", id, { "status": "active" }];
/// assert_eq!(key.to_string(), r#"["packages",7,{"status":"active"}]"#);
/// ```
///
/// # Panics
/// When the segments exceed the bounds of a key; use [`QueryKey::new`](crate::key::QueryKey::new) for data that is not your own.
#[macro_export]
macro_rules! key {
    ($($segments:tt)+) => {
        $crate::key::QueryKey::from_macro(&$crate::__json!([$($segments)+]))
    };
}

impl From<&QueryKey> for QueryKey {
    fn from(key: &QueryKey) -> Self {
        key.clone()
    }
}

impl From<QueryKey> for Key {
    fn from(key: QueryKey) -> Self {
        key.0
    }
}

impl FromStr for QueryKey {
    type Err = KeyError;

    /// JSON (`["packages",7]`) or the short form (`packages/7`).
    ///
    /// In the short form segments are separated by `/`, empty ones are left out, and one of digits only, without a
    /// leading zero, is a number; everything else (`-7`, `007`, `1.5`, `true`) is a text. What the short form cannot
    /// say, a text with a `/` or of digits, is said in JSON.
    fn from_str(text: &str) -> Result<Self, KeyError> {
        if text.trim_start().starts_with('[') {
            let value = serde_json::from_str(text).map_err(|error| KeyError::Json(error.to_string()))?;
            return Self::from_value(&value);
        }
        let segments: Vec<Value> =
            text.split('/').filter(|part| !part.is_empty()).map(segment_of_text).collect();
        Self::new(&segments)
    }
}

/// What a text stands for where segments are written without quotes: digits, without a leading zero, are a number, all
/// else is a text.
pub fn segment_of_text(part: &str) -> Value {
    let digits = part.bytes().all(|byte| byte.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    match part.parse::<u64>() {
        Ok(number) if digits => Value::from(number),
        _ => Value::from(part),
    }
}

impl fmt::Display for QueryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Value::Array(self.segments()).fmt(f)
    }
}

impl fmt::Debug for QueryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key!{self}")
    }
}

/// The canonical bytes of each segment. Bytes that are none of a key are one last segment.
pub(crate) fn segments_of(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (segment, rest) = bytes.split_at_checked(segment_len(bytes)?)?;
        bytes = rest;
        Some(segment)
    })
}

/// Length of the segment that the bytes begin with; `None` where there are no bytes.
fn segment_len(bytes: &[u8]) -> Option<usize> {
    let (mut at, mut depth) = (0_usize, 0_usize);
    bytes.first()?;
    loop {
        // Where there is no such segment, the rest is one.
        let Some(tag) = bytes.get(at) else { return Some(bytes.len()) };
        at += 1;
        match *tag {
            ARRAY | OBJECT => depth += 1,
            END => depth = depth.saturating_sub(1),
            NUMBER | STRING => {
                let mut reader = Reader { bytes, at };
                at = if reader.text_bytes().is_ok() { reader.at } else { bytes.len() };
            }
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

fn write(value: &Value, depth: usize, out: &mut Vec<u8>) -> Result<(), KeyError> {
    if depth > DEPTH_MAX {
        return Err(KeyError::TooDeep);
    }
    match value {
        Value::Null => out.push(NULL),
        Value::Bool(false) => out.push(FALSE),
        Value::Bool(true) => out.push(TRUE),
        Value::Number(number) => write_text(NUMBER, &canonical(number), out),
        Value::String(text) => write_text(STRING, text, out),
        Value::Array(items) => {
            out.push(ARRAY);
            for item in items {
                write(item, depth + 1, out)?;
            }
            out.push(END);
        }
        Value::Object(members) => {
            out.push(OBJECT);
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            for (name, member) in sorted {
                write_text(STRING, name, out);
                write(member, depth + 1, out)?;
            }
            out.push(END);
        }
    }
    Ok(())
}

fn write_text(tag: u8, text: &str, out: &mut Vec<u8>) {
    out.push(tag);
    let mut len = text.len();
    while len >= 0x80 {
        out.push((len & 0x7f) as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(text.as_bytes());
}

/// One text for equal numbers.
fn canonical(number: &Number) -> String {
    number::integer(number).map_or_else(|| number.to_string(), |whole| whole.to_string())
}

fn segments(bytes: &[u8]) -> Result<Vec<Value>, KeyError> {
    let mut reader = Reader { bytes, at: 0 };
    let mut segments = Vec::new();
    while reader.at < bytes.len() {
        segments.push(reader.value(0)?);
    }
    if segments.is_empty() { Err(KeyError::Empty) } else { Ok(segments) }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Result<Value, KeyError> {
        if depth > DEPTH_MAX {
            return Err(KeyError::TooDeep);
        }
        let at = self.at;
        match self.byte()? {
            NULL => Ok(Value::Null),
            FALSE => Ok(Value::Bool(false)),
            TRUE => Ok(Value::Bool(true)),
            NUMBER => {
                let number = self.text()?.parse::<Number>().map_err(|_| KeyError::Bytes(at))?;
                Ok(Value::Number(number))
            }
            STRING => Ok(Value::String(self.text()?.to_owned())),
            ARRAY => {
                let mut items = Vec::new();
                while !self.end()? {
                    items.push(self.value(depth + 1)?);
                }
                Ok(Value::Array(items))
            }
            OBJECT => {
                let mut members = Map::new();
                while !self.end()? {
                    if self.byte()? != STRING {
                        return Err(KeyError::Bytes(self.at - 1));
                    }
                    let name = self.text()?.to_owned();
                    members.insert(name, self.value(depth + 1)?);
                }
                Ok(Value::Object(members))
            }
            _ => Err(KeyError::Bytes(at)),
        }
    }

    fn byte(&mut self) -> Result<u8, KeyError> {
        let byte = *self.bytes.get(self.at).ok_or(KeyError::Bytes(self.at))?;
        self.at += 1;
        Ok(byte)
    }

    fn end(&mut self) -> Result<bool, KeyError> {
        let end = *self.bytes.get(self.at).ok_or(KeyError::Bytes(self.at))? == END;
        self.at += usize::from(end);
        Ok(end)
    }

    fn text(&mut self) -> Result<&str, KeyError> {
        let at = self.at;
        std::str::from_utf8(self.text_bytes()?).map_err(|_| KeyError::Bytes(at))
    }

    fn text_bytes(&mut self) -> Result<&[u8], KeyError> {
        let at = self.at;
        let mut len = 0_usize;
        for shift in (0..28).step_by(7) {
            let byte = self.byte()?;
            len |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let text = self.bytes.get(self.at..self.at + len).ok_or(KeyError::Bytes(at))?;
                self.at += len;
                return Ok(text);
            }
        }
        Err(KeyError::Bytes(at))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn key(text: &str) -> QueryKey {
        text.parse().unwrap()
    }

    #[test]
    fn members_have_no_order_and_integers_one_form() {
        let one = key(r#"["a",{"x":1,"y":{"p":2,"q":3}}]"#);
        let two = key(r#"["a",{"y":{"q":3.0,"p":2},"x":1.0}]"#);
        assert_eq!(one, two);
        assert_ne!(key(r#"["a",[1,2]]"#), key(r#"["a",[2,1]]"#));
        assert_ne!(key(r#"["a",null]"#), key(r#"["a",{}]"#));
        assert_ne!(key(r#"["7"]"#), key("[7]"));
    }

    #[test]
    fn equal_numbers_are_one_and_neighbours_are_not() {
        for (one, two) in [
            ("7", "7.0"),
            ("7", "7e0"),
            ("0", "-0.0"),
            ("9007199254740992", "9007199254740992.0"),
            ("10000000000000000", "1e16"),
            ("-9223372036854775808", "-9223372036854775808.0"),
            ("9223372036854775808", "9223372036854775808.0"),
            ("1e300", "10e299"),
            ("0.5", "5e-1"),
        ] {
            assert_eq!(key(&format!("[{one}]")), key(&format!("[{two}]")), "{one} {two}");
        }
        for (one, two) in [
            ("9007199254740992", "9007199254740993"),
            ("9223372036854775807", "9223372036854775808"),
            ("18446744073709551614", "18446744073709551615"),
            ("7", "7.000000000000001"),
            ("0", "null"),
        ] {
            assert_ne!(key(&format!("[{one}]")), key(&format!("[{two}]")), "{one} {two}");
        }
        assert_eq!(key!["a", f64::NAN], key!["a", null]);
    }

    #[test]
    fn the_short_form_reads_digits_as_numbers() {
        assert_eq!(key("packages/7"), key!["packages", 7]);
        assert_eq!(key("packages/007"), key!["packages", "007"]);
        assert_eq!(key("packages/-7"), key!["packages", "-7"]);
        assert_eq!("".parse::<QueryKey>(), Err(KeyError::Empty));
    }

    #[test]
    fn bounds_hold_just_outside_and_not_just_inside() {
        // A tag and two bytes of length precede the text.
        assert!(QueryKey::new(&[json!("x".repeat(KEY_MAX - 3))]).is_ok());
        assert_eq!(QueryKey::new(&[json!("x".repeat(KEY_MAX - 2))]), Err(KeyError::TooLong(KEY_MAX + 1)));
        let nest = |depth| (0..depth).fold(json!(1), |inner, _| json!([inner]));
        assert!(QueryKey::new(&[nest(DEPTH_MAX)]).is_ok());
        assert_eq!(QueryKey::new(&[nest(DEPTH_MAX + 1)]), Err(KeyError::TooDeep));
    }

    #[test]
    fn foreign_bytes_are_refused_where_they_do_not_fit() {
        assert_eq!(QueryKey::from_key(&Key::copy_from(&[STRING, 9, b'x'])), Err(KeyError::Bytes(1)));
        assert_eq!(QueryKey::from_key(&Key::copy_from(&[ARRAY, NULL])), Err(KeyError::Bytes(2)));
        assert_eq!(QueryKey::from_key(&Key::copy_from(&[99])), Err(KeyError::Bytes(0)));
        assert_eq!(QueryKey::from_key(&Key::copy_from(&[])), Err(KeyError::Empty));
    }

    #[test]
    fn another_spelling_of_a_key_is_refused() {
        let number = |text: &str| [&[NUMBER, text.len() as u8], text.as_bytes()].concat();
        let member = |name: u8| vec![STRING, 1, name, NULL];
        let object = |members: &[Vec<u8>]| [&[OBJECT], members.concat().as_slice(), &[END]].concat();
        let cases = [
            (number("7"), Ok(())),
            (number("7.0"), Err(KeyError::Bytes(1))),
            (number("1e1"), Err(KeyError::Bytes(1))),
            (number(" 7"), Err(KeyError::Bytes(0))),
            (object(&[member(b'a'), member(b'b')]), Ok(())),
            (object(&[member(b'b'), member(b'a')]), Err(KeyError::Bytes(3))),
            (object(&[member(b'a'), member(b'a')]), Err(KeyError::Bytes(5))),
            // The length 1 written with two bytes.
            (vec![STRING, 0x81, 0x00, b'x'], Err(KeyError::Bytes(1))),
        ];
        for (bytes, expected) in cases {
            let read = QueryKey::from_key(&Key::copy_from(&bytes)).map(drop);
            assert_eq!(read, expected, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn bytes_are_cut_into_segments_and_foreign_ones_are_one() {
        let cut = |bytes: &[u8]| segments_of(bytes).map(<[u8]>::len).collect::<Vec<_>>();
        let whole = key!["a", 7, null, { "b": [true, [], {}] }, [[1], 2]].to_key();
        assert_eq!(cut(&whole.0), [3, 3, 1, 12, 10]);
        assert_eq!(cut(&[STRING, 9, b'x']), [3]);
        assert_eq!(cut(&[NULL, ARRAY, NULL]), [1, 2]);
        assert!(cut(&[]).is_empty());
    }

    #[test]
    fn the_bytes_of_a_key_are_fixed() {
        // Every process of a group, whatever its build, must make these.
        let key = key!["packages", 7, { "b": [true, null], "a": -1.5 }];
        let expected = b"\x05\x08packages\x04\x017\x07\x05\x01a\x04\x04-1.5\x05\x01b\x06\x03\x01\x00\x00";
        assert_eq!(key.to_key().0.escape_ascii().to_string(), expected.escape_ascii().to_string());
    }

    fn segment() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 12, 3, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
                prop::collection::btree_map(".{0,3}", inner, 0..3)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_prefix_of_segments_is_a_prefix_of_bytes_and_the_reverse(
            a in prop::collection::vec(segment(), 1..4),
            b in prop::collection::vec(segment(), 1..4),
        ) {
            let (key_a, key_b) = (QueryKey::new(&a).unwrap(), QueryKey::new(&b).unwrap());
            let canonical = |key: &QueryKey| key.segments();
            let by_segments = canonical(&key_b).starts_with(&canonical(&key_a));
            prop_assert_eq!(key_a.to_key().is_prefix_of(&key_b.to_key()), by_segments);
            let longer: Vec<Value> = a.iter().chain(&b).cloned().collect();
            prop_assert!(key_a.to_key().is_prefix_of(&QueryKey::new(&longer).unwrap().to_key()));
        }

        #[test]
        fn members_in_any_order_give_the_same_key(
            members in prop::collection::btree_map("[a-z]{1,3}", segment(), 1..6),
            turn in 0_usize..6,
        ) {
            // As text, since a parsed object may already be sorted.
            let written = |members: &[(&String, &Value)]| {
                let one = |(name, member): &(&String, &Value)| format!("{}:{member}", json!(name));
                let inner = members.iter().map(one).collect::<Vec<_>>().join(",");
                format!("[{{{inner}}},[[{{{inner}}}]]]").parse::<QueryKey>().unwrap()
            };
            let mut order: Vec<_> = members.iter().collect();
            let key = written(&order);
            order.reverse();
            prop_assert_eq!(&written(&order), &key);
            let at = turn % order.len();
            order.rotate_left(at);
            prop_assert_eq!(&written(&order), &key);
        }

        #[test]
        fn canonical_bytes_read_back(segments in prop::collection::vec(segment(), 1..4)) {
            let key = QueryKey::new(&segments).unwrap();
            let back = QueryKey::from_key(&key.to_key()).unwrap();
            prop_assert_eq!(QueryKey::new(&back.segments()).unwrap(), key.clone());
            prop_assert_eq!(key.to_string().parse::<QueryKey>().unwrap(), key);
        }

        #[test]
        fn bytes_that_are_read_are_those_that_are_written(bytes in prop::collection::vec(0_u8..12, 0..24)) {
            if let Ok(key) = QueryKey::from_key(&Key::copy_from(&bytes)) {
                prop_assert_eq!(&QueryKey::new(&key.segments()).unwrap().to_key().0, &bytes);
            }
        }
    }
}
