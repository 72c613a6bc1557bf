//! Reading data into types: values with their origins, and every problem on the way.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
};

use serde_json::Value;

use crate::{
    node::{Data, Members, Node, join, literal},
    origin::Origin,
    part::{Capabilities, Part},
    problem::{Problem, ProblemKind},
    value::Name,
};

/// A value and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced<T> {
    value: T,
    origin: Origin,
}

impl<T> Sourced<T> {
    pub(crate) const fn new(value: T, origin: Origin) -> Self {
        Self { value, origin }
    }

    /// The value.
    pub const fn value(&self) -> &T {
        &self.value
    }

    /// Where it comes from.
    pub const fn origin(&self) -> &Origin {
        &self.origin
    }
}

impl<T> Deref for Sourced<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

/// Tables by name.
pub type Named<T> = BTreeMap<Name, Sourced<T>>;

/// A value of the configuration, as `config show` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// For example `outbox.backoff.base`.
    pub key: String,
    /// As it is written in TOML.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

/// A key of the language, as documents list it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDoc {
    /// For example `outbox.backoff.base`; `NAME` stands for any name, `[]` for any element.
    pub key: String,
    /// What it takes.
    pub kind: String,
    /// Its default as TOML; `None` = there is none.
    pub default: Option<String>,
    /// What the default is tuned for.
    pub tuned_for: Option<&'static str>,
    /// Whether it must be given.
    pub required: bool,
    /// What it means.
    pub meaning: String,
    /// The part of Paceline it needs.
    pub needs: Option<Part>,
}

/// What stands behind a key.
pub(crate) trait Field: Sized {
    /// What it takes, in words.
    fn kind() -> String;
    /// Reads it; `None` after at least one problem was reported.
    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self>;
    /// Its one canonical form: reads back as the same value.
    fn canon(&self) -> Value;
    /// Lists its values.
    fn list(&self, key: &str, origin: &Origin, out: &mut Vec<Entry>) {
        out.push(Entry { key: key.to_owned(), value: literal(&self.canon()), origin: origin.clone() });
    }
    /// Describes the keys in it.
    fn describe(_key: &str, _out: &mut Vec<KeyDoc>) {}
}

/// Relations between the keys of a table.
pub(crate) trait Check {
    /// Reports what does not go together.
    fn check(&self, _at: &Origin, _reader: &mut Reader<'_>) {}
}

pub(crate) struct Reader<'a> {
    root: &'a Node,
    capabilities: &'a Capabilities,
    path: Vec<String>,
    problems: Vec<Problem>,
    lacking: BTreeMap<Part, Vec<(String, Origin)>>,
    /// Keys that were given and could not be read.
    malformed: BTreeSet<String>,
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(root: &'a Node, capabilities: &'a Capabilities) -> Self {
        Self {
            root,
            capabilities,
            path: Vec::new(),
            problems: Vec::new(),
            lacking: BTreeMap::new(),
            malformed: BTreeSet::new(),
        }
    }

    /// Everything that was reported, in the order of files and places.
    pub(crate) fn into_problems(mut self) -> Vec<Problem> {
        for (part, places) in std::mem::take(&mut self.lacking) {
            let mut places = places.into_iter();
            let Some((key, origin)) = places.next() else { continue };
            let what = format!("needs a build with {part}");
            let mut problem = Problem::new(ProblemKind::Unbuilt, key, origin, what)
                .fix(format!("leave it out or use another build; this one has {}", self.capabilities));
            problem.related = places.collect();
            self.problems.push(problem);
        }
        let mut problems = self.problems;
        problems.sort_by(|a, b| (&a.origin, &a.key).cmp(&(&b.origin, &b.key)));
        problems.dedup();
        problems
    }

    pub(crate) fn has_problems(&self) -> bool {
        !self.problems.is_empty() || !self.lacking.is_empty()
    }

    /// The path of the key being read.
    pub(crate) fn key(&self) -> String {
        self.path.iter().fold(
            String::new(),
            |path, key| {
                if key.starts_with('[') { path + key } else { join(&path, key) }
            },
        )
    }

    /// The path of a key of the table being read.
    pub(crate) fn key_of(&self, key: &str) -> String {
        if key.is_empty() {
            self.key()
        } else {
            key.split('.').fold(self.key(), |path, key| join(&path, key))
        }
    }

    pub(crate) fn inside<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(key.to_owned());
        let read = read(self);
        self.path.pop();
        read
    }

    pub(crate) fn report(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Whether the key of this table was given and could not be read.
    pub(crate) fn is_malformed(&self, key: &str) -> bool {
        let key = self.key_of(key);
        self.malformed.iter().any(|malformed| {
            malformed.strip_prefix(&key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        })
    }

    /// Notes a part that is used here.
    pub(crate) fn need(&mut self, part: Part, key: &str, origin: &Origin) {
        if !self.capabilities.has(part) {
            let key = self.key_of(key);
            self.lacking.entry(part).or_default().push((key, origin.clone()));
        }
    }

    /// A value that is not what the key wants.
    pub(crate) fn invalid(&mut self, node: &Node, allowed: impl Into<String>) {
        let what = format!("does not take {}", show(node));
        self.odd(node, what, allowed);
    }

    /// A value that is wrong in a way of its own, or must not be shown.
    pub(crate) fn odd(&mut self, node: &Node, what: impl Into<String>, allowed: impl Into<String>) {
        let problem = Problem::new(ProblemKind::Value, self.key(), node.origin.clone(), what);
        self.report(problem.allowed(allowed));
    }

    /// A text; or a problem.
    pub(crate) fn text<'n>(&mut self, node: &'n Node, kind: &str) -> Option<&'n str> {
        match &node.data {
            Data::Text(text) | Data::Raw(text) => Some(text),
            _ => {
                self.invalid(node, kind);
                None
            }
        }
    }

    /// A list; or a problem.
    pub(crate) fn items<'n>(&mut self, node: &'n Node, kind: &str) -> Option<&'n [Node]> {
        match &node.data {
            Data::List(items) => Some(items),
            _ => {
                self.invalid(node, kind);
                None
            }
        }
    }

    /// A table with these keys only; unknown ones are reported.
    pub(crate) fn table<'n>(&mut self, node: &'n Node, known: &[&str]) -> Option<&'n Members> {
        let Some(members) = node.members() else {
            self.invalid(node, format!("a table of {}", known.join(", ")));
            return None;
        };
        for (name, member) in members {
            if !known.contains(&name.as_str()) {
                let key = self.key_of_raw(name);
                let mut problem =
                    Problem::new(ProblemKind::UnknownKey, key, member.at.clone(), "unknown key");
                problem = problem.one_of(name, known.iter().copied());
                if let ([table, resource], Some(_)) = (self.path.as_slice(), member.node.members())
                    && table == "resources"
                {
                    problem = problem.fix(format!("an action is written [resources.\"{resource}.{name}\"]"));
                }
                // What was meant was given and cannot be read: its absence is no problem of its own.
                let is_new = |meant: &&str| !members.contains_key(*meant) || member.node.members().is_some();
                if let Some(meant) = problem.nearest.as_deref().filter(is_new) {
                    self.malformed.insert(self.key_of_raw(meant));
                }
                self.report(problem);
            }
        }
        Some(members)
    }

    fn key_of_raw(&self, name: &str) -> String {
        join(&self.key(), name)
    }

    /// Reads a key that may be absent; notes whether it could not be read.
    pub(crate) fn member<T: Field>(
        &mut self,
        members: &Members,
        name: &str,
        needs: Option<Part>,
    ) -> Option<Sourced<T>> {
        let member = members.get(name)?;
        if let Some(part) = needs {
            self.need(part, name, &member.at);
        }
        let read = self.inside(name, |reader| T::read(&member.node, reader));
        if read.is_none() {
            self.malformed.insert(self.key_of_raw(name));
        }
        read.map(|value| Sourced::new(value, member.node.origin.clone()))
    }

    /// Reads a default, which the code wrote.
    pub(crate) fn default<T: Field>(&mut self, value: &Value, tuned_for: &'static str) -> Option<Sourced<T>> {
        let origin = Origin::Default { tuned_for };
        T::read(&Node::of_json(value, &origin), self).map(|value| Sourced::new(value, origin))
    }

    /// A key that must be there.
    pub(crate) fn missing(&mut self, at: &Origin, name: &str, kind: String) {
        if !self.is_malformed(name) {
            let what = format!("the key `{name}` is missing");
            let key = self.key_of_raw(name);
            self.report(Problem::new(ProblemKind::Missing, key, at.clone(), what).allowed(kind));
        }
    }

    /// Names declared under a table of the root, with where.
    pub(crate) fn declared(&self, table: &str) -> BTreeMap<String, Origin> {
        let members = self.root.members().and_then(|root| root.get(table)?.node.members());
        members
            .map(|members| members.iter().map(|(name, member)| (name.clone(), member.at.clone())).collect())
            .unwrap_or_default()
    }

    /// Whether the key with this whole path was given and could not be read, or was misspelt.
    pub(crate) fn is_lost(&self, path: &str) -> bool {
        self.malformed.contains(path)
    }

    /// A name that must be declared under a table of the root.
    pub(crate) fn refer(&mut self, node: &Node, table: &str, name: &str) -> bool {
        let declared = self.declared(table);
        if declared.contains_key(name) || self.is_lost(table) {
            return true;
        }
        let what = format!("refers to {name:?}, and no [{table}.{name}] is declared");
        let problem = Problem::new(ProblemKind::Reference, self.key(), node.origin.clone(), what);
        self.report(problem.one_of(name, declared.keys().map(String::as_str)));
        false
    }

    /// Reports two keys of this table whose values do not go together, unless one of them could not be read.
    pub(crate) fn relate(&mut self, one: (&str, &Origin), two: (&str, &Origin), what: &str, fix: &str) {
        if self.is_malformed(one.0) || self.is_malformed(two.0) {
            return;
        }
        // The stronger layer is the one that made the conflict.
        let (first, second) = if two.1.layer() > one.1.layer() { (two, one) } else { (one, two) };
        let (key, other) = (self.key_of(first.0), self.key_of(second.0));
        let problem = Problem::new(ProblemKind::Relation, key, first.1.clone(), what).fix(fix);
        self.report(problem.related(other, second.1.clone()));
    }
}

/// A value, as messages name it.
pub(crate) fn show(node: &Node) -> String {
    let short = |text: &str| match text.char_indices().nth(60) {
        Some((end, _)) => format!("{:?}…", &text[..end]),
        None => format!("{text:?}"),
    };
    match &node.data {
        Data::Table(_) => "a table".to_owned(),
        Data::List(_) => "a list".to_owned(),
        Data::Text(text) | Data::Raw(text) => format!("the text {}", short(text)),
        Data::Integer(number) => format!("the number {number}"),
        Data::Float(number) => format!("the number {number}"),
        Data::Bool(flag) => format!("{flag}"),
        Data::Date(date) => format!("the date {date}"),
    }
}
