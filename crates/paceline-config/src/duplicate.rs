//! Where a key that a file has twice stands for the first time. The parser tells the second place only.

use toml::de::{DeTable, DeValue};

/// The whole path of the key at `at` and the place of its first occurrence, which the parser kept.
///
/// Keys inside of inline tables are left to their line: both stand on it.
pub(crate) fn first(text: &str, kept: &DeTable<'_>, at: usize) -> Option<(Vec<String>, usize)> {
    let begin = text.get(..at)?.rfind('\n').map_or(0, |end| end + 1);
    let line = text[begin..].lines().next()?;
    let (path, first) = match header(line) {
        Some((path, _)) => {
            // The parser keeps the second header.
            let mut offset = 0;
            let lines = text[..begin].split_inclusive('\n').map(|line| {
                let here = offset;
                offset += line.len();
                (here, line)
            });
            let same = |(here, line): (usize, &str)| {
                header(line).filter(|(other, _)| *other == path).map(|(_, key)| here + key)
            };
            let first = lines.into_iter().find_map(same)?;
            (path, first)
        }
        None => {
            let mut path =
                text[..begin].lines().rev().find_map(header).map(|(path, _)| path).unwrap_or_default();
            path.extend(key(line)?);
            let first = descend(kept, &path)?;
            (path, first)
        }
    };
    // Only a key that the line begins with: what the parser points at is its last part.
    let last = path.last()?;
    let is_last = text[at..].trim_start_matches(['"', '\'']).starts_with(last.as_str());
    (is_last && first < at).then_some((path, first))
}

/// The path of `[a.b]` or `[[a.b]]`, and where its last part stands in the line.
fn header(line: &str) -> Option<(Vec<String>, usize)> {
    if !line.trim_start().starts_with('[') {
        return None;
    }
    path(&DeTable::parse(line).ok()?.into_inner())
}

/// The path of `a.b = …`.
fn key(line: &str) -> Option<Vec<String>> {
    let (written, _) = line.split_once('=')?;
    path(&DeTable::parse(&format!("{written}= 0")).ok()?.into_inner()).map(|(path, _)| path)
}

/// The way through tables of one entry each, and where its last key stands.
fn path(table: &DeTable<'_>) -> Option<(Vec<String>, usize)> {
    let (name, value) = table.iter().next()?;
    let inner = match value.get_ref() {
        DeValue::Table(inner) => Some(inner),
        DeValue::Array(items) => items.iter().next().and_then(|item| item.get_ref().as_table()),
        _ => None,
    };
    let (rest, place) = inner.and_then(path).unwrap_or((Vec::new(), name.span().start));
    Some((std::iter::once(name.get_ref().to_string()).chain(rest).collect(), place))
}

fn descend(table: &DeTable<'_>, path: &[String]) -> Option<usize> {
    let (first, rest) = path.split_first()?;
    let (key, value) = table.iter().find(|(key, _)| key.get_ref().as_ref() == first.as_str())?;
    if rest.is_empty() {
        return Some(key.span().start);
    }
    match value.get_ref() {
        DeValue::Table(inner) => descend(inner, rest),
        DeValue::Array(items) => descend(items.iter().last()?.get_ref().as_table()?, rest),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        node::{Places, SOUGHT_MAX},
        origin::Layer,
        problem::ProblemKind,
    };

    /// The problem of a text: its key, its line, and the line of the first occurrence.
    fn told(text: &str) -> (String, usize, Option<usize>) {
        let problem = Places::new(Layer::User, "f", text).read().unwrap_err().remove(0);
        let line = problem.origin.place().unwrap().0;
        (
            problem.key,
            line,
            problem.related.first().and_then(|(_, origin)| origin.place()).map(|place| place.0),
        )
    }

    #[test]
    fn both_places_of_a_key_are_told() {
        for (text, key, second, first) in [
            ("a = 1\nb = 2\na = 3\n", "a", 3, 1),
            ("[t]\nurl = 1\n[u]\nurl = 2\nx = 1\nurl = 3\n", "u.url", 6, 4),
            ("[t.a]\nx = 1\n[u]\n[t.b]\n[t.a]\n", "t.a", 5, 1),
            ("[t.\"a.b\"]\nx = 1\nx = 1\n", "t.\"a.b\".x", 3, 2),
            ("[[r]]\nx = 1\n[[r]]\nx = 2\nx = 3\n", "r.x", 5, 4),
            ("[t]\na.b = 1\na.c = 2\na.b = 3\n", "t.a.b", 4, 2),
        ] {
            assert_eq!(told(text), (key.to_owned(), second, Some(first)), "{text}");
        }
    }

    #[test]
    fn so_many_are_sought_and_no_more() {
        let problems = Places::new(Layer::User, "f", &"a = 1\n".repeat(SOUGHT_MAX + 2)).read().unwrap_err();
        let kinds: Vec<bool> = problems.iter().map(|it| it.kind == ProblemKind::Duplicate).collect();
        assert_eq!(kinds, [vec![true; SOUGHT_MAX], vec![false]].concat());
    }

    #[test]
    fn where_the_first_place_is_not_sure_it_is_not_told() {
        assert_eq!(told("a = { x = 1, x = 2 }\n"), (String::new(), 1, None));
        assert_eq!(told("[t]\na = 1\n[t.a]\n").1, 3);
    }
}
