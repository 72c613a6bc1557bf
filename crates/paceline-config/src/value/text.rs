//! Free texts.

use std::fmt;

use serde_json::Value;

use crate::{
    node::Node,
    reader::{Field, Reader},
};

const TEXT_MAX: usize = 4096;
const WORDS_MAX: usize = 256;

/// A text without control characters: 1 to 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Text(String);

/// A message as it is sent: 1 to 4096 bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload(String);

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Command(Vec<String>);

impl Text {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Field for Text {
    fn kind() -> String {
        "text".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let kind = format!("a text of 1 to {TEXT_MAX} bytes without control characters");
        let text = reader.text(node, &kind)?;
        if text.is_empty() || text.len() > TEXT_MAX || text.chars().any(char::is_control) {
            reader.invalid(node, kind);
            return None;
        }
        Some(Self(text.to_owned()))
    }

    fn canon(&self) -> Value {
        self.0.as_str().into()
    }
}

impl Payload {
    /// The message.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Field for Payload {
    fn kind() -> String {
        "text to send".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let kind = format!("a text of 1 to {TEXT_MAX} bytes");
        let text = reader.text(node, &kind)?;
        if text.is_empty() || text.len() > TEXT_MAX {
            reader.invalid(node, kind);
            return None;
        }
        Some(Self(text.to_owned()))
    }

    fn canon(&self) -> Value {
        self.0.as_str().into()
    }
}

impl Command {
    /// The program.
    pub fn program(&self) -> &str {
        self.0.first().map_or("", String::as_str)
    }

    /// Its arguments.
    pub fn arguments(&self) -> &[String] {
        self.0.get(1..).unwrap_or_default()
    }
}

impl Field for Command {
    fn kind() -> String {
        "list of a program and its arguments".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let kind = format!(
            "a list of a program and its arguments, 1 to {WORDS_MAX} texts, as [\"pass\", \"show\", \"api\"]"
        );
        let items = reader.items(node, &kind)?;
        if items.is_empty() || items.len() > WORDS_MAX {
            reader.invalid(node, kind);
            return None;
        }
        let words: Vec<Option<String>> = items
            .iter()
            .enumerate()
            .map(|(n, item)| {
                reader.inside(&format!("[{n}]"), |reader| {
                    let text = reader.text(item, "a text")?;
                    if text.contains('\0') || (n == 0 && text.is_empty()) {
                        reader.invalid(item, "a text without NUL; the program is not empty");
                        return None;
                    }
                    Some(text.to_owned())
                })
            })
            .collect();
        words.into_iter().collect::<Option<Vec<_>>>().map(Self)
    }

    fn canon(&self) -> Value {
        self.0.iter().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::number::tests::read;

    #[test]
    fn texts_are_bounded() {
        let of = |len: usize| format!("\"{}\"", "x".repeat(len));
        assert!(read::<Text>(&of(1)).is_ok() && read::<Text>(&of(TEXT_MAX)).is_ok());
        assert!(read::<Text>(&of(0)).is_err() && read::<Text>(&of(TEXT_MAX + 1)).is_err());
        assert!(read::<Text>("\"a\\nb\"").is_err());
        assert!(read::<Payload>("\"a\\nb\"").is_ok());
        assert!(read::<Payload>(&of(TEXT_MAX)).is_ok() && read::<Payload>(&of(TEXT_MAX + 1)).is_err());
        assert!(read::<Payload>(&of(0)).is_err());
    }

    #[test]
    fn a_command_has_a_program() {
        let command = read::<Command>("[\"pass\", \"show\", \"\"]").unwrap();
        assert_eq!((command.program(), command.arguments().len()), ("pass", 2));
        for text in ["[]", "[\"\"]", "\"pass\"", "[1]", "[\"a\\u0000\"]"] {
            assert!(read::<Command>(text).is_err(), "{text}");
        }
        let many = |n: usize| format!("[{}]", vec!["\"x\""; n].join(","));
        assert!(read::<Command>(&many(WORDS_MAX)).is_ok() && read::<Command>(&many(WORDS_MAX + 1)).is_err());
    }
}
