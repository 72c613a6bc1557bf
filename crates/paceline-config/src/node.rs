//! The data of a configuration: a tree that knows where each of its values stands.

use std::{collections::BTreeMap, sync::Arc};

use serde_json::Value;
use toml::de::{DeArray, DeTable, DeValue};

use crate::{
    duplicate,
    origin::{Layer, Origin},
    problem::{Problem, ProblemKind},
};

pub(crate) type Members = BTreeMap<String, Member>;

/// A value with its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node {
    pub(crate) data: Data,
    pub(crate) origin: Origin,
}

/// A member of a table, with the place of its key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub(crate) at: Origin,
    pub(crate) node: Node,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Data {
    Table(Members),
    List(Vec<Node>),
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    /// Dates have no use in this language; the text is kept for messages.
    Date(String),
    /// From a flag or the environment: takes the type that its key wants.
    Raw(String),
}

impl Node {
    pub(crate) const fn table(members: Members, origin: Origin) -> Self {
        Self { data: Data::Table(members), origin }
    }

    pub(crate) const fn members(&self) -> Option<&Members> {
        match &self.data {
            Data::Table(members) => Some(members),
            _ => None,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match &self.data {
            Data::Text(text) | Data::Raw(text) => Some(text),
            _ => None,
        }
    }

    /// The node of a default, written as JSON.
    pub(crate) fn of_json(value: &Value, origin: &Origin) -> Self {
        let data = match value {
            // The language has no null; nothing in it is written so.
            Value::Null => Data::Table(Members::new()),
            Value::Bool(flag) => Data::Bool(*flag),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Data::Integer(whole),
                None => Data::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(text) => Data::Text(text.clone()),
            Value::Array(items) => Data::List(items.iter().map(|item| Self::of_json(item, origin)).collect()),
            Value::Object(members) => Data::Table(
                members
                    .iter()
                    .map(|(name, member)| {
                        let node = Self::of_json(member, origin);
                        (name.clone(), Member { at: origin.clone(), node })
                    })
                    .collect(),
            ),
        };
        Self { data, origin: origin.clone() }
    }

    /// As JSON, for comparing; dates are texts.
    pub(crate) fn to_json(&self) -> Value {
        match &self.data {
            Data::Table(members) => {
                Value::Object(members.iter().map(|(name, it)| (name.clone(), it.node.to_json())).collect())
            }
            Data::List(items) => items.iter().map(Self::to_json).collect(),
            Data::Text(text) | Data::Date(text) | Data::Raw(text) => text.as_str().into(),
            Data::Integer(number) => (*number).into(),
            Data::Float(number) => (*number).into(),
            Data::Bool(flag) => (*flag).into(),
        }
    }

    /// Gives all of it one origin.
    pub(crate) fn stamp(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.data {
            Data::Table(members) => {
                for member in members.values_mut() {
                    member.at = origin.clone();
                    member.node.stamp(origin);
                }
            }
            Data::List(items) => items.iter_mut().for_each(|item| item.stamp(origin)),
            Data::Text(_)
            | Data::Integer(_)
            | Data::Float(_)
            | Data::Bool(_)
            | Data::Date(_)
            | Data::Raw(_) => {}
        }
    }

    /// Lays a stronger layer over this one: tables merge by key, all else is replaced.
    pub(crate) fn overlay(&mut self, stronger: Self) {
        match (&mut self.data, stronger.data) {
            (Data::Table(weak), Data::Table(strong)) => {
                for (name, member) in strong {
                    match weak.get_mut(&name) {
                        Some(found) => {
                            found.node.overlay(member.node);
                            found.at = member.at;
                        }
                        None => {
                            weak.insert(name, member);
                        }
                    }
                }
                self.origin = stronger.origin;
            }
            (_, data) => *self = Self { data, origin: stronger.origin },
        }
    }

    /// Puts a value behind a path of keys; what is no table on the way is replaced.
    pub(crate) fn put(&mut self, path: &[&str], node: Self) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if self.members().is_none() {
            self.data = Data::Table(Members::new());
        }
        if let Data::Table(members) = &mut self.data {
            let origin = node.origin.clone();
            let empty = || Member { at: origin.clone(), node: Self::table(Members::new(), origin.clone()) };
            members.entry((*first).to_owned()).or_insert_with(empty).node.put(rest, node);
        }
    }
}

/// Mistakes of syntax whose first occurrence is sought: each search goes through the file.
pub(crate) const SOUGHT_MAX: usize = 16;

/// Where things stand in a file.
pub(crate) struct Places<'a> {
    layer: Layer,
    file: Arc<str>,
    text: &'a str,
    /// Byte offsets at which lines begin.
    lines: Vec<usize>,
}

impl<'a> Places<'a> {
    pub(crate) fn new(layer: Layer, file: &str, text: &'a str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { layer, file: file.into(), text, lines: std::iter::once(0).chain(ends).collect() }
    }

    pub(crate) fn at(&self, offset: usize) -> Origin {
        let offset = offset.min(self.text.len());
        let line = self.lines.partition_point(|begin| *begin <= offset);
        let begin = self.lines[line - 1];
        let column = self.text.get(begin..offset).map_or(offset - begin, |before| before.chars().count()) + 1;
        Origin::File { layer: self.layer, file: Arc::clone(&self.file), line, column }
    }

    /// Reads the text; all problems with its syntax, if it has any.
    pub(crate) fn read(&self) -> Result<Node, Vec<Problem>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        let mut problems: Vec<Problem> = errors
            .iter()
            .enumerate()
            .map(|(n, error)| self.misread(error, (n < SOUGHT_MAX).then(|| table.get_ref())))
            .collect();
        if problems.is_empty() {
            let root = self.at(0);
            let node = Node::table(self.members(table.get_ref(), "", &mut problems), root);
            if problems.is_empty() {
                return Ok(node);
            }
        }
        Err(problems)
    }

    fn misread(&self, error: &toml::de::Error, kept: Option<&DeTable<'_>>) -> Problem {
        let at = error.span().map_or(0, |span| span.start);
        let kept = kept.filter(|_| error.message() == "duplicate key");
        let Some((path, first)) = kept.and_then(|kept| duplicate::first(self.text, kept, at)) else {
            let what = format!("no TOML: {}", error.message());
            return Problem::new(ProblemKind::Syntax, "", self.at(at), what);
        };
        let path = path.iter().fold(String::new(), |path, key| join(&path, key));
        Problem::new(ProblemKind::Duplicate, path.clone(), self.at(at), "is here for the second time")
            .related(path, self.at(first))
            .fix("leave one out, or merge them")
    }

    fn members(&self, table: &DeTable<'_>, path: &str, problems: &mut Vec<Problem>) -> Members {
        table
            .iter()
            .map(|(name, value)| {
                let path = join(path, name.get_ref());
                let at = self.at(name.span().start);
                let origin = self.at(value.span().start);
                let node = Node { data: self.data(value.get_ref(), &path, &origin, problems), origin };
                (name.get_ref().to_string(), Member { at, node })
            })
            .collect()
    }

    fn list(&self, items: &DeArray<'_>, path: &str, problems: &mut Vec<Problem>) -> Vec<Node> {
        items
            .iter()
            .enumerate()
            .map(|(n, item)| {
                let origin = self.at(item.span().start);
                let path = format!("{path}[{n}]");
                Node { data: self.data(item.get_ref(), &path, &origin, problems), origin }
            })
            .collect()
    }

    fn data(&self, value: &DeValue<'_>, path: &str, origin: &Origin, problems: &mut Vec<Problem>) -> Data {
        match value {
            DeValue::String(text) => Data::Text(text.to_string()),
            DeValue::Boolean(flag) => Data::Bool(*flag),
            DeValue::Datetime(date) => Data::Date(date.to_string()),
            DeValue::Array(items) => Data::List(self.list(items, path, problems)),
            DeValue::Table(table) => Data::Table(self.members(table, path, problems)),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Data::Integer(number),
                Err(_) => {
                    problems.push(too_large(path, origin, number.as_str()));
                    Data::Integer(0)
                }
            },
            DeValue::Float(number) => match number.as_str().parse::<f64>() {
                Ok(number) if number.is_finite() => Data::Float(number),
                Ok(_) | Err(_) => {
                    problems.push(too_large(path, origin, number.as_str()));
                    Data::Float(0.0)
                }
            },
        }
    }
}

fn too_large(path: &str, origin: &Origin, text: &str) -> Problem {
    let what = format!("the number {text} is beyond all bounds");
    Problem::new(ProblemKind::Value, path, origin.clone(), what)
        .allowed("whole numbers of 64 bits and finite fractions")
}

/// A key path with one more key; keys that are not bare are quoted.
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let key = if bare { key.to_owned() } else { quoted(key) };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// A TOML basic string.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control() => out.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// A TOML value on one line.
pub(crate) fn literal(value: &Value) -> String {
    match value {
        Value::Null => "{}".to_owned(),
        Value::Bool(_) => value.to_string(),
        // JSON writes numbers so that they are TOML, too.
        Value::Number(number) => number.to_string(),
        Value::String(text) => quoted(text),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(literal).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(members) if members.is_empty() => "{}".to_owned(),
        Value::Object(members) => {
            let members: Vec<String> = members
                .iter()
                .map(|(name, member)| format!("{} = {}", join("", name), literal(member)))
                .collect();
            format!("{{ {} }}", members.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let text = "a = 1\n\"ü\" = 2\n";
        let places = Places::new(Layer::User, "f", text);
        let place = |offset| places.at(offset).place().unwrap();
        assert_eq!(place(0), (1, 1));
        assert_eq!(place(6), (2, 1));
        let two = text.find('2').unwrap();
        assert_eq!(place(two), (2, 7));
        assert_eq!(place(text.len() + 9), (3, 1));
    }

    #[test]
    fn all_mistakes_of_syntax_are_reported_with_their_places() {
        let problems = Places::new(Layer::User, "f", "a = \nb = 1\nb = 2\n[x\n").read().unwrap_err();
        let places: Vec<_> = problems.iter().map(|problem| problem.origin.to_string()).collect();
        assert!(places.len() >= 3, "{problems:?}");
        assert!(places.iter().any(|place| place.starts_with("f:1:")), "{places:?}");
        assert!(places.iter().any(|place| place.starts_with("f:3:")), "{places:?}");
    }

    #[test]
    fn layers_merge_tables_and_replace_the_rest() {
        let read = |layer, text| Places::new(layer, "f", text).read().unwrap();
        let mut weak = read(Layer::User, "[t]\na = 1\nb = [1, 2]\n");
        weak.overlay(read(Layer::Project, "[t]\nb = [3]\nc = 4\n"));
        let members = weak.members().unwrap()["t"].node.members().unwrap();
        assert_eq!(members["a"].node.data, Data::Integer(1));
        assert!(matches!(&members["b"].node.data, Data::List(items) if items.len() == 1));
        assert_eq!(members["b"].node.origin.layer(), Layer::Project);
        assert_eq!(members["a"].node.origin.layer(), Layer::User);
    }

    #[test]
    fn literals_read_back_as_they_were() {
        let value = serde_json::json!({"a b": ["x\"\\\n\u{1}", 1, 1.5, true], "c": {}, "d": 1e300});
        let text = format!("v = {}", literal(&value));
        let node = Places::new(Layer::User, "f", &text).read().unwrap();
        let expected = Node::of_json(&value, &Origin::Default { tuned_for: "" });
        assert_eq!(strip(&node.members().unwrap()["v"].node), strip(&expected));
    }

    /// Without places.
    fn strip(node: &Node) -> String {
        match &node.data {
            Data::Table(members) => {
                members.iter().map(|(name, member)| format!("{name}={};", strip(&member.node))).collect()
            }
            Data::List(items) => items.iter().map(|item| format!("{},", strip(item))).collect(),
            other => format!("{other:?}"),
        }
    }
}
