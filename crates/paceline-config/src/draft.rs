//! Layers of text, merged: the data that is validated.

use crate::{
    config::Config,
    node::{Data, Members, Node, Places},
    origin::{Layer, Origin},
    part::Capabilities,
    problem::{ConfigError, Problem, ProblemKind},
    reader::{Field, Reader},
};

/// Bytes of a file: a hundred times what a large application needs, and read in a moment.
const FILE_MAX: usize = 1 << 20;

/// Variables of the environment and the keys they set.
pub const VARIABLES: &[(&str, &str)] = &[
    ("PACELINE_GROUP", "group.name"),
    ("PACELINE_PRINCIPAL", "group.principal"),
    ("PACELINE_PROFILE", "group.profile"),
    ("PACELINE_SPAWN", "group.spawn"),
    ("PACELINE_IDLE_EXIT", "group.idle_exit"),
];

/// One layer: a file's text, or keys that flags or variables set.
#[derive(Debug, Clone)]
pub struct Source {
    layer: Layer,
    trusted: bool,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    File { name: String, text: String },
    Overrides(Vec<Override>),
}

/// A key that a flag or a variable sets. Its text takes the type of the key; a list or table is written as in TOML.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Who sets it, for example `--profile`.
    pub name: String,
    /// What it sets, for example `group.profile`.
    pub key: String,
    /// To what.
    pub text: String,
}

impl Source {
    fn file(layer: Layer, trusted: bool, name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { layer, trusted, body: Body::File { name: name.into(), text: text.into() } }
    }

    /// The user's own file.
    pub fn user(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::file(Layer::User, true, name, text)
    }

    /// A project's file that was found in a working directory: it is not trusted with commands, credentials and
    /// origins.
    pub fn found(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::file(Layer::Project, false, name, text)
    }

    /// A project's file that was named by `--config` or in code, or that its user trusts.
    pub fn named(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::file(Layer::Project, true, name, text)
    }

    /// The environment: what `look_up` finds of [`VARIABLES`]. Empty variables count as not set.
    pub fn environment(mut look_up: impl FnMut(&str) -> Option<String>) -> Self {
        let found = VARIABLES.iter().filter_map(|(name, key)| {
            let text = look_up(name).filter(|text| !text.is_empty())?;
            Some(Override { name: (*name).to_owned(), key: (*key).to_owned(), text })
        });
        Self { layer: Layer::Environment, trusted: true, body: Body::Overrides(found.collect()) }
    }

    /// The command line, or code.
    pub fn flags(flags: impl IntoIterator<Item = Override>) -> Self {
        Self { layer: Layer::Flag, trusted: true, body: Body::Overrides(flags.into_iter().collect()) }
    }

    fn read(&self, problems: &mut Vec<Problem>) -> Node {
        match &self.body {
            Body::File { name, text } if text.len() > FILE_MAX => {
                let at = Origin::File { layer: self.layer, file: name.as_str().into(), line: 1, column: 1 };
                let what = format!("the file has {} bytes", text.len());
                let problem = Problem::new(ProblemKind::Syntax, "", at, what);
                problems.push(problem.allowed(format!("at most {FILE_MAX} bytes")));
                Node::table(Members::new(), Origin::Default { tuned_for: "" })
            }
            Body::File { name, text } => match Places::new(self.layer, name, text).read() {
                Ok(node) => node,
                Err(found) => {
                    problems.extend(found);
                    Node::table(Members::new(), Origin::Default { tuned_for: "" })
                }
            },
            Body::Overrides(overrides) => {
                let mut root = Node::table(Members::new(), Origin::Default { tuned_for: "" });
                for it in overrides {
                    let origin = Origin::Named { layer: self.layer, name: it.name.as_str().into() };
                    let path: Vec<&str> = it.key.split('.').collect();
                    match written(it, &origin) {
                        Ok(data) => root.put(&path, Node { data, origin }),
                        Err(problem) => problems.push(*problem),
                    }
                }
                root
            }
        }
    }
}

/// The data that an override's text stands for.
fn written(it: &Override, origin: &Origin) -> Result<Data, Box<Problem>> {
    if !it.text.starts_with(['[', '{']) {
        return Ok(Data::Raw(it.text.clone()));
    }
    let text = format!("value = {}", it.text);
    let read = Places::new(origin.layer(), &it.name, &text).read();
    let mut node = read.map_err(|problems| {
        let why = problems.first().map(|problem| problem.what.clone()).unwrap_or_default();
        Box::new(Problem::new(ProblemKind::Syntax, it.key.clone(), origin.clone(), why))
    })?;
    node.stamp(origin);
    let value =
        node.members().and_then(|members| members.get("value")).map(|member| member.node.data.clone());
    value.ok_or_else(|| {
        Box::new(Problem::new(ProblemKind::Syntax, it.key.clone(), origin.clone(), "has no value"))
    })
}

/// Layers that were read and merged: tables by key, everything else is replaced by the stronger layer.
#[derive(Debug, Clone)]
pub struct Draft {
    pub(crate) root: Node,
    /// What the trusted layers say by themselves.
    pub(crate) trusted: Node,
    /// What each untrusted layer says.
    pub(crate) untrusted: Vec<Node>,
}

impl Draft {
    /// Reads the layers, in whatever order they come; of one layer the later one is stronger.
    ///
    /// # Errors
    /// When a text is no TOML: all of its mistakes.
    pub fn new(sources: impl IntoIterator<Item = Source>) -> Result<Self, ConfigError> {
        let mut sources: Vec<Source> = sources.into_iter().collect();
        sources.sort_by_key(|source| source.layer);
        let mut problems = Vec::new();
        let empty = || Node::table(Members::new(), Origin::Default { tuned_for: "" });
        let mut draft = Self { root: empty(), trusted: empty(), untrusted: Vec::new() };
        for source in &sources {
            let node = source.read(&mut problems);
            if source.trusted {
                draft.trusted.overlay(node.clone());
            } else {
                draft.untrusted.push(node.clone());
            }
            draft.root.overlay(node);
        }
        if problems.is_empty() { Ok(draft) } else { Err(ConfigError { problems }) }
    }

    /// Checks everything against what the language allows and the build can do.
    ///
    /// # Errors
    /// All problems of all layers, each with its place and what to do.
    pub fn validate(&self, build: &Capabilities) -> Result<Config, ConfigError> {
        let mut reader = Reader::new(&self.root, build);
        for untrusted in self.untrusted() {
            reader.report(untrusted.into_problem());
        }
        let config = Config::read(&self.root, &mut reader);
        match config {
            Some(config) if !reader.has_problems() => Ok(config),
            Some(_) | None => Err(ConfigError { problems: reader.into_problems() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_bounded() {
        let comment = |bytes: usize| Draft::new([Source::found("f", "#".repeat(bytes))]);
        assert!(comment(FILE_MAX).is_ok());
        let error = comment(FILE_MAX + 1).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("f:1:1: the file has 1048577 bytes"), "{error}");
    }
}
