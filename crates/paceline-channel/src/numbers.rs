//! Numbers in messages prove what opaque positions cannot: that the server still had everything.
//!
//! A server that was asked for what comes after an id begins with the oldest message it has if that one is gone, and says
//! nothing of it. Where each message has a number without holes in it, the number is kept in the position, behind the id, and
//! the first message after a resume must have the next one, whichever session resumes.

use paceline_proto::id::Position;
use serde_json::Value;

use crate::path::Path;

/// Between the server's part of a position and the number. No id and no header has one.
const BEFORE_NUMBER: char = '\u{1f}';

/// The numbers of one channel.
#[derive(Debug)]
pub(crate) struct Numbers {
    path: Path,
    last: Option<u64>,
}

/// How a message stands to the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is the next, or the first.
    Next(u64),
    /// Something is missing before it.
    Hole(u64),
    /// It, or one after it, was there before.
    Repeated,
    /// It has no number: nothing can be said.
    Unknown,
}

impl Numbers {
    pub(crate) const fn new(path: Path) -> Self {
        Self { path, last: None }
    }

    /// What follows comes after `position`.
    pub(crate) fn begin(&mut self, position: Option<&str>) {
        let number = position.and_then(|position| position.split_once(BEFORE_NUMBER));
        self.last = number.and_then(|(_, number)| number.parse().ok());
    }

    /// Takes a message.
    pub(crate) fn step(&mut self, message: &Value) -> Step {
        let Some(number) = self.path.find(message).and_then(Value::as_u64) else {
            self.last = None;
            return Step::Unknown;
        };
        match self.last {
            Some(last) if number <= last => Step::Repeated,
            Some(last) if number > last + 1 => {
                self.last = Some(number);
                Step::Hole(number)
            }
            Some(_) | None => {
                self.last = Some(number);
                Step::Next(number)
            }
        }
    }

    /// The position of the last message, at the server's `id`.
    pub(crate) fn position(&self, id: &str) -> Position {
        match self.last {
            Some(number) => Position::Opaque(format!("{id}{BEFORE_NUMBER}{number}").into()),
            None => Position::Opaque(id.into()),
        }
    }
}

/// What the server knows a position by.
pub(crate) fn bare(position: &str) -> &str {
    position.split_once(BEFORE_NUMBER).map_or(position, |(id, _)| id)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_number_that_is_not_the_next_is_a_hole_or_a_repetition_in_every_session() {
        let mut numbers = Numbers::new("$.n".parse().unwrap());
        numbers.begin(None);
        let mut steps = Vec::new();
        for n in [json!(4), json!(5), json!(5), json!(3), json!(7), json!("x"), json!(8)] {
            steps.push(numbers.step(&json!({ "n": n })));
        }
        let expected = [
            Step::Next(4),
            Step::Next(5),
            Step::Repeated,
            Step::Repeated,
            Step::Hole(7),
            Step::Unknown,
            Step::Next(8),
        ];
        assert_eq!(steps, expected);
        let Position::Opaque(position) = numbers.position("a:1") else { panic!() };
        assert_eq!(bare(&position), "a:1");
        let mut heir = Numbers::new("$.n".parse().unwrap());
        heir.begin(Some(&position));
        assert_eq!(heir.step(&json!({ "n": 10 })), Step::Hole(10));
        heir.begin(Some("no number"));
        assert_eq!((heir.step(&json!({ "n": 10 })), bare("no number")), (Step::Next(10), "no number"));
    }
}
