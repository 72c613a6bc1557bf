//! Numbers, flags and sizes.

use std::fmt;

use serde_json::Value;

use crate::{
    node::{Data, Node},
    problem::{Problem, ProblemKind},
    reader::{Field, Reader},
};

/// A whole number within bounds, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Count<const MIN: u64, const MAX: u64>(u64);

/// A number of bytes within bounds, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes<const MIN: u64, const MAX: u64>(u64);

/// A number from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fraction(f64);

const UNITS: [(&str, u64); 4] = [("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];

impl<const MIN: u64, const MAX: u64> Count<MIN, MAX> {
    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Bytes<MIN, MAX> {
    /// The number of bytes.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl Fraction {
    /// The number.
    pub const fn get(self) -> f64 {
        self.0
    }
}

fn size_text(bytes: u64) -> String {
    let (unit, size) =
        UNITS.iter().rev().find(|(_, size)| bytes > 0 && bytes.is_multiple_of(*size)).unwrap_or(&UNITS[0]);
    format!("{}{unit}", bytes / size)
}

impl<const MIN: u64, const MAX: u64> fmt::Display for Bytes<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&size_text(self.0))
    }
}

impl Field for bool {
    fn kind() -> String {
        "`true` or `false`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        match &node.data {
            Data::Bool(flag) => Some(*flag),
            Data::Raw(text) if text == "true" || text == "1" => Some(true),
            Data::Raw(text) if text == "false" || text == "0" => Some(false),
            _ => {
                reader.invalid(node, Self::kind());
                None
            }
        }
    }

    fn canon(&self) -> Value {
        (*self).into()
    }
}

impl<const MIN: u64, const MAX: u64> Field for Count<MIN, MAX> {
    fn kind() -> String {
        if MIN == MAX { format!("{MIN}") } else { format!("whole number from {MIN} to {MAX}") }
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let number = match &node.data {
            Data::Integer(number) => u64::try_from(*number).ok(),
            Data::Raw(text) => text.parse().ok(),
            _ => None,
        };
        match number.filter(|number| (MIN..=MAX).contains(number)) {
            Some(number) => Some(Self(number)),
            None => {
                reader.invalid(node, Self::kind());
                None
            }
        }
    }

    fn canon(&self) -> Value {
        self.0.into()
    }
}

impl<const MIN: u64, const MAX: u64> Field for Bytes<MIN, MAX> {
    fn kind() -> String {
        format!("size from {} to {}", size_text(MIN), size_text(MAX))
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let allowed = || format!("{}, as \"512KiB\"; units are B, KiB, MiB and GiB", Self::kind());
        let refuse = |reader: &mut Reader<'_>, what: String, nearest: Option<String>| {
            let mut problem = Problem::new(ProblemKind::Value, reader.key(), node.origin.clone(), what);
            problem.nearest = nearest;
            reader.report(problem.allowed(allowed()));
            None
        };
        let text = match &node.data {
            Data::Text(text) | Data::Raw(text) => text.clone(),
            Data::Integer(number) => number.to_string(),
            _ => {
                reader.invalid(node, allowed());
                return None;
            }
        };
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let Ok(number) = number.parse::<u64>() else {
            return refuse(reader, format!("{text:?} is no size"), None);
        };
        let Some((_, size)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            let what = if unit.is_empty() {
                format!("the number {number} has no unit")
            } else {
                format!("{text:?} is no size")
            };
            let meant = match unit.trim().to_ascii_lowercase().as_str() {
                "" => Some("B"),
                "k" | "kb" | "kib" => Some("KiB"),
                "m" | "mb" | "mib" => Some("MiB"),
                "g" | "gb" | "gib" => Some("GiB"),
                _ => None,
            };
            return refuse(reader, what, meant.map(|unit| format!("\"{number}{unit}\"")));
        };
        match number.checked_mul(*size).filter(|bytes| (MIN..=MAX).contains(bytes)) {
            Some(bytes) => Some(Self(bytes)),
            None => refuse(reader, format!("{text:?} is out of bounds"), None),
        }
    }

    fn canon(&self) -> Value {
        size_text(self.0).into()
    }
}

impl Field for Fraction {
    fn kind() -> String {
        "number from 0.0 to 1.0".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let number = match &node.data {
            Data::Float(number) => Some(*number),
            Data::Integer(0) => Some(0.0),
            Data::Integer(1) => Some(1.0),
            Data::Raw(text) => text.parse().ok(),
            _ => None,
        };
        match number.filter(|number| (0.0..=1.0).contains(number)) {
            // -0.0 is 0.
            Some(number) => Some(Self(number + 0.0)),
            None => {
                reader.invalid(node, Self::kind());
                None
            }
        }
    }

    fn canon(&self) -> Value {
        self.0.into()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::{node::Places, origin::Layer, part::Capabilities};

    /// Reads `v = text` as a value of one key.
    pub(crate) fn read<T: Field>(text: &str) -> Result<T, Vec<Problem>> {
        let text = format!("v = {text}");
        let root = Places::new(Layer::User, "f", &text).read()?;
        let capabilities = Capabilities::all();
        let mut reader = Reader::new(&root, &capabilities);
        let read = reader.inside("v", |reader| T::read(&root.members().unwrap()["v"].node, reader));
        let problems = reader.into_problems();
        assert_eq!(read.is_some(), problems.is_empty(), "{text}: nothing is read, or nothing is reported");
        read.ok_or(problems)
    }

    pub(crate) fn problem<T: Field + fmt::Debug>(text: &str) -> Problem {
        read::<T>(text).unwrap_err().remove(0)
    }

    #[test]
    fn counts_are_bounded() {
        type Few = Count<2, 5>;
        for (text, fits) in [
            ("2", true),
            ("5", true),
            ("1", false),
            ("6", false),
            ("-2", false),
            ("2.0", false),
            ("\"2\"", false),
        ] {
            assert_eq!(read::<Few>(text).is_ok(), fits, "{text}");
        }
        assert_eq!(
            problem::<Few>("9").to_string(),
            "f:1:5: v: does not take the number 9\n    allowed: whole number from 2 to 5"
        );
    }

    #[test]
    fn sizes_are_bounded_and_have_units() {
        type Size = Bytes<1024, { 1 << 20 }>;
        assert_eq!(read::<Size>("\"1MiB\"").map(Size::get), Ok(1 << 20));
        assert_eq!(read::<Size>("\"1KiB\"").map(Size::get), Ok(1024));
        assert_eq!(read::<Size>("\"1024KiB\"").map(|size| size.to_string()), Ok("1MiB".to_owned()));
        for text in [
            "\"1023B\"",
            "\"1048577B\"",
            "1024",
            "\"1MB\"",
            "\"MiB\"",
            "\"\"",
            "true",
            "\"99999999999999999999B\"",
            "\"99999999999999GiB\"",
        ] {
            assert!(read::<Size>(text).is_err(), "{text}");
        }
        assert_eq!(problem::<Size>("\"1MB\"").nearest.as_deref(), Some("\"1MiB\""));
        assert_eq!(problem::<Size>("2048").what, "the number 2048 has no unit");
    }

    #[test]
    fn fractions_lie_between_zero_and_one() {
        for (text, fits) in [
            ("0.0", true),
            ("1.0", true),
            ("0", true),
            ("1", true),
            ("1.01", false),
            ("-0.1", false),
            ("2", false),
        ] {
            assert_eq!(read::<Fraction>(text).is_ok(), fits, "{text}");
        }
    }

    #[test]
    fn flags_are_true_or_false() {
        assert_eq!(read::<bool>("true"), Ok(true));
        assert!(read::<bool>("\"true\"").is_err());
        assert!(read::<bool>("1").is_err());
    }
}
