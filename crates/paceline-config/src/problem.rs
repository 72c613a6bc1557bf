//! What is wrong with a configuration, and what to do about it.

use std::fmt;

use crate::origin::Origin;

/// The configuration cannot be used. Nothing changed; a retry helps once the sources are mended. All problems are here,
/// not only the first.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("use the configuration: {} to mend{}", count(.problems.len()), lines(.problems))]
pub struct ConfigError {
    /// In the order of layers, files and places.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What kind of thing.
    pub kind: ProblemKind,
    /// The key it is about, for example `upstreams.feed.url`; empty for a text that is no TOML.
    pub key: String,
    /// Where.
    pub origin: Origin,
    /// What is wrong, with what was found.
    pub what: String,
    /// What is allowed there.
    pub allowed: Option<String>,
    /// The nearest valid key or value.
    pub nearest: Option<String>,
    /// What to do, where it is not plain from the above.
    pub fix: Option<String>,
    /// Other keys that have to do with it, with their origins.
    pub related: Vec<(String, Origin)>,
}

/// Kinds of problems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProblemKind {
    /// The text is no TOML.
    Syntax,
    /// The language has no such key there.
    UnknownKey,
    /// A key is missing.
    Missing,
    /// A value is not of the kind or within the bounds that the key wants.
    Value,
    /// A name that nothing has.
    Reference,
    /// The same thing twice.
    Duplicate,
    /// Values that do not go together.
    Relation,
    /// A part that this build lacks.
    Unbuilt,
    /// A value that an untrusted file may not set.
    Untrusted,
}

impl Problem {
    pub(crate) fn new(
        kind: ProblemKind,
        key: impl Into<String>,
        origin: Origin,
        what: impl Into<String>,
    ) -> Self {
        let (key, what) = (key.into(), what.into());
        Self { kind, key, origin, what, allowed: None, nearest: None, fix: None, related: Vec::new() }
    }

    #[must_use]
    pub(crate) fn allowed(mut self, allowed: impl Into<String>) -> Self {
        self.allowed = Some(allowed.into());
        self
    }

    #[must_use]
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Says what is allowed there, and which of it comes nearest.
    #[must_use]
    pub(crate) fn one_of<'a>(mut self, found: &str, all: impl IntoIterator<Item = &'a str>) -> Self {
        let all: Vec<&str> = all.into_iter().collect();
        self.nearest = nearest(found, all.iter().copied()).map(str::to_owned);
        self.allowed = Some(if all.is_empty() { "none is declared".to_owned() } else { all.join(", ") });
        self
    }

    #[must_use]
    pub(crate) fn related(mut self, key: impl Into<String>, origin: Origin) -> Self {
        self.related.push((key.into(), origin));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.origin)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)?;
        if let Some(nearest) = &self.nearest {
            write!(f, "\n    did you mean `{nearest}`?")?;
        }
        if let Some(allowed) = &self.allowed {
            write!(f, "\n    allowed: {allowed}")?;
        }
        for (key, origin) in &self.related {
            write!(f, "\n    see {key} at {origin}")?;
        }
        if let Some(fix) = &self.fix {
            write!(f, "\n    to do: {fix}")?;
        }
        Ok(())
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n{problem}")).collect()
}

/// The candidate that is nearest, if it is near: one edit (insertion, deletion, replacement or swap of neighbours) for
/// every three characters begun.
pub(crate) fn nearest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let bound = found.chars().count().div_ceil(3).max(1);
    let scored = candidates.into_iter().map(|candidate| (distance(found, candidate), candidate));
    scored.filter(|(distance, _)| *distance <= bound).min().map(|(_, candidate)| candidate)
}

/// Edits between two texts, without regard to case.
fn distance(one: &str, two: &str) -> usize {
    let one: Vec<char> = one.chars().flat_map(char::to_lowercase).take(128).collect();
    let two: Vec<char> = two.chars().flat_map(char::to_lowercase).take(128).collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=two.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in two.iter().enumerate() {
            let mut best = (last[j] + usize::from(a != b)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == two[j - 1] && one[i - 1] == *b {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[two.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_if_it_is_near() {
        let names = ["protocol", "url", "headers", "per"];
        assert_eq!(nearest("protocl", names), Some("protocol"));
        assert_eq!(nearest("portocol", names), Some("protocol"));
        assert_eq!(nearest("URL", names), Some("url"));
        assert_eq!(nearest("hdrs", names), None);
        assert_eq!(nearest("pre", names), Some("per"));
        assert_eq!(nearest("", names), None);
    }

    #[test]
    fn edits_are_counted() {
        for (one, two, edits) in [
            ("", "", 0),
            ("a", "", 1),
            ("ab", "ba", 1),
            ("kitten", "sitting", 3),
            ("stale_tmie", "stale_time", 1),
        ] {
            assert_eq!(distance(one, two), edits, "{one} {two}");
            assert_eq!(distance(two, one), edits, "{two} {one}");
        }
    }
}
