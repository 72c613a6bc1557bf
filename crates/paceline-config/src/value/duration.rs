//! Durations: a whole number and its unit.

use std::{fmt, time::Duration};

use serde_json::Value;

use crate::{
    node::{Data, Node},
    problem::{Problem, ProblemKind},
    reader::{Field, Reader},
};

const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// Ten years, more than any session lives; sums of a few stay far from overflow.
const MAX: Duration = Duration::from_secs(3650 * 86_400);

const KIND: &str = "a duration of at most 3650d, as \"250ms\", \"30s\", \"5m\", \"24h\" or \"7d\"";
const POSITIVE: &str =
    "a duration from \"1ms\" to \"3650d\", as \"250ms\", \"30s\", \"5m\", \"24h\" or \"7d\"";

/// A duration that may be zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wait(Duration);

/// A duration of at least a millisecond.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

/// An interval or `"never"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OrNever {
    /// After so long.
    After(Interval),
    /// Never.
    Never,
}

/// An interval or `"stop"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopOr {
    /// So often.
    Every(Interval),
    /// Not at all.
    Stop,
}

/// When a value turns stale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Staleness {
    /// At this age.
    After(Wait),
    /// Never by time; an invalidation still makes it stale.
    Never,
    /// Not even an invalidation refetches it.
    Static,
}

impl Wait {
    /// As the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl Interval {
    /// As the standard library has it.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0))
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text(self.0))
    }
}

/// The largest unit that divides it.
fn text(duration: Duration) -> String {
    let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if millis == 0 {
        return "0s".to_owned();
    }
    let (unit, size) = UNITS.iter().rev().find(|(_, size)| millis.is_multiple_of(*size)).unwrap_or(&UNITS[0]);
    format!("{}{unit}", millis / size)
}

fn read(node: &Node, reader: &mut Reader<'_>, kind: &str) -> Option<Duration> {
    let refuse = |reader: &mut Reader<'_>, what: String, nearest: Option<String>| {
        let mut problem =
            Problem::new(ProblemKind::Value, reader.key(), node.origin.clone(), what).allowed(kind);
        problem.nearest = nearest;
        reader.report(problem);
        None
    };
    let bare = |number: &str| {
        let what = format!("the number {number} has no unit");
        (what, number.parse::<u64>().ok().map(|number| format!("\"{number}s\"")))
    };
    let written = match &node.data {
        Data::Text(text) | Data::Raw(text) => text.as_str(),
        Data::Integer(number) => {
            let (what, nearest) = bare(&number.to_string());
            return refuse(reader, what, nearest);
        }
        _ => {
            reader.invalid(node, kind);
            return None;
        }
    };
    let digits = written.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = written.split_at(digits);
    if digits > 0 && unit.is_empty() {
        let (what, nearest) = bare(number);
        return refuse(reader, what, nearest);
    }
    let size = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, size)| *size);
    let (Ok(number), Some(size)) = (number.parse::<u64>(), size) else {
        let nearest = spelled(number, unit);
        return refuse(reader, format!("{written:?} is no duration"), nearest);
    };
    match number.checked_mul(size).map(Duration::from_millis).filter(|duration| *duration <= MAX) {
        Some(duration) => Some(duration),
        None => refuse(reader, format!("{written:?} is too long"), None),
    }
}

/// A unit written out or with a blank, as it should be.
fn spelled(number: &str, unit: &str) -> Option<String> {
    let unit = unit.trim().to_ascii_lowercase();
    let known = match unit.as_str() {
        "ms" | "msec" | "millis" | "millisecond" | "milliseconds" => "ms",
        "s" | "sec" | "secs" | "second" | "seconds" => "s",
        "m" | "min" | "mins" | "minute" | "minutes" => "m",
        "h" | "hr" | "hrs" | "hour" | "hours" => "h",
        "d" | "day" | "days" => "d",
        _ => return None,
    };
    (!number.is_empty()).then(|| format!("\"{number}{known}\""))
}

impl Field for Wait {
    fn kind() -> String {
        "duration".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        read(node, reader, KIND).map(Self)
    }

    fn canon(&self) -> Value {
        self.to_string().into()
    }
}

impl Field for Interval {
    fn kind() -> String {
        "duration, not 0".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let duration = read(node, reader, POSITIVE)?;
        if duration.is_zero() {
            reader.invalid(node, POSITIVE);
            return None;
        }
        Some(Self(duration))
    }

    fn canon(&self) -> Value {
        self.to_string().into()
    }
}

/// Reads one of a few words, or what else is there.
fn word_or<T: Copy, D: Field>(
    node: &Node,
    reader: &mut Reader<'_>,
    words: &[(&str, T)],
    make: impl Fn(D) -> T,
) -> Option<T> {
    if let Data::Text(text) | Data::Raw(text) = &node.data {
        if let Some((_, value)) = words.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        if !text.starts_with(|c: char| c.is_ascii_digit()) {
            let kind = format!("`{}`", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join("`, `"));
            let all = words.iter().map(|(word, _)| *word);
            let what = format!("does not take {text:?}");
            let problem = Problem::new(ProblemKind::Value, reader.key(), node.origin.clone(), what);
            reader.report(problem.one_of(text, all).allowed(format!("{kind} or {KIND}")));
            return None;
        }
    }
    D::read(node, reader).map(make)
}

impl Field for OrNever {
    fn kind() -> String {
        "duration, not 0, or `never`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        word_or(node, reader, &[("never", Self::Never)], Self::After)
    }

    fn canon(&self) -> Value {
        match self {
            Self::After(interval) => interval.canon(),
            Self::Never => "never".into(),
        }
    }
}

impl Field for StopOr {
    fn kind() -> String {
        "duration, not 0, or `stop`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        word_or(node, reader, &[("stop", Self::Stop)], Self::Every)
    }

    fn canon(&self) -> Value {
        match self {
            Self::Every(interval) => interval.canon(),
            Self::Stop => "stop".into(),
        }
    }
}

impl Staleness {
    /// `"always"`, the same as `"0s"`.
    pub const ALWAYS: Self = Self::After(Wait(Duration::ZERO));
}

impl Field for Staleness {
    fn kind() -> String {
        "duration, `always` (as `0s`), `never` or `static`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let words = [("always", Self::ALWAYS), ("never", Self::Never), ("static", Self::Static)];
        word_or(node, reader, &words, Self::After)
    }

    fn canon(&self) -> Value {
        match self {
            Self::After(wait) => wait.canon(),
            Self::Never => "never".into(),
            Self::Static => "static".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::number::tests::{problem, read};

    #[test]
    fn durations_have_a_number_and_a_unit() {
        let millis = |text: &str| read::<Wait>(text).map(|wait| wait.get().as_millis());
        for (text, expected) in [
            ("\"250ms\"", 250),
            ("\"30s\"", 30_000),
            ("\"5m\"", 300_000),
            ("\"24h\"", 86_400_000),
            ("\"7d\"", 604_800_000),
            ("\"0s\"", 0),
            ("\"3650d\"", 315_360_000_000),
        ] {
            assert_eq!(millis(text), Ok(expected), "{text}");
        }
        for text in [
            "\"3651d\"",
            "\"s\"",
            "\"1.5s\"",
            "\"-1s\"",
            "\"1 s\"",
            "\"1m30s\"",
            "true",
            "\"99999999999999999999s\"",
        ] {
            assert!(millis(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_bare_number_is_told_its_missing_unit() {
        for text in ["30", "\"30\""] {
            let problem = problem::<Wait>(text);
            assert_eq!(problem.what, "the number 30 has no unit");
            assert_eq!(problem.nearest.as_deref(), Some("\"30s\""));
        }
        assert_eq!(problem::<Wait>("\"5 minutes\"").nearest.as_deref(), Some("\"5m\""));
        assert_eq!(problem::<Staleness>("\"nevr\"").nearest.as_deref(), Some("never"));
    }

    #[test]
    fn an_interval_is_not_zero() {
        assert!(read::<Interval>("\"0s\"").is_err());
        assert_eq!(read::<Interval>("\"1ms\"").map(|interval| interval.get()), Ok(Duration::from_millis(1)));
        assert!(read::<OrNever>("\"0s\"").is_err());
        assert_eq!(read::<OrNever>("\"never\""), Ok(OrNever::Never));
        assert_eq!(read::<StopOr>("\"stop\""), Ok(StopOr::Stop));
        assert_eq!(read::<Staleness>("\"always\""), read("\"0s\""));
    }

    #[test]
    fn durations_show_in_their_largest_unit() {
        for (text, shown) in [
            ("\"60s\"", "1m"),
            ("\"90s\"", "90s"),
            ("\"48h\"", "2d"),
            ("\"0ms\"", "0s"),
            ("\"1500ms\"", "1500ms"),
        ] {
            assert_eq!(read::<Wait>(text).map(|wait| wait.to_string()), Ok(shown.to_owned()));
        }
    }
}
