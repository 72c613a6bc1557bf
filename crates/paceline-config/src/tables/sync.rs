//! Mutations by tag, and what is done now and then.

use serde_json::Value;

use super::resource::HttpName;
use crate::{
    node::{Data, Node},
    origin::Origin,
    problem::{Problem, ProblemKind},
    reader::{Check, Field, Reader, Sourced},
    value::{Interval, Name, ResourceName, Text, UrlPath},
};

words! {
    /// How mutations of a tag are sent.
    TagMode {
        /// All that wait, in one request; none, no request.
        Batch = "batch",
        /// One after the other, each with its file, which is streamed.
        Upload = "upload",
    }
}

table! {
    /// Where mutations of a tag are posted.
    Post {
        /// The server.
        must http: HttpName,
        /// The path.
        must path: UrlPath,
        /// The member that holds the list, in the mode `batch`; the list itself is sent where it is left out.
        may wrap: Text,
        /// The field of the form that holds the file, in the mode `upload`.
        may field: Text,
    }
}

impl Check for Post {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if let Some(name) = self.path.template().names().next() {
            let what = format!("fills in {{{name}}}, and nothing binds it here");
            let problem =
                Problem::new(ProblemKind::Reference, reader.key_of("path"), self.path.origin().clone(), what);
            reader.report(problem.fix("write the path as it is"));
        }
    }
}

table! {
    /// `[tags.NAME]`: what becomes of mutations with this tag.
    Tag {
        /// How they are sent.
        must mode: TagMode,
        /// Where.
        must post: Post,
    }
}

impl Check for Tag {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        let mode = ("mode", self.mode.origin());
        match self.mode.value() {
            TagMode::Batch => {
                if let Some(field) = &self.post.field {
                    let what = "a batch has no file";
                    reader.relate(("post.field", field.origin()), mode, what, "say `mode = \"upload\"`");
                }
            }
            TagMode::Upload => {
                if let Some(wrap) = &self.post.wrap {
                    let what = "an upload is not wrapped";
                    reader.relate(("post.wrap", wrap.origin()), mode, what, "say `mode = \"batch\"`");
                }
                if self.post.field.is_none() && !reader.is_malformed("post.field") {
                    let what = "the key `field` is missing, which an upload needs";
                    let key = reader.key_of("post.field");
                    let problem = Problem::new(ProblemKind::Missing, key, self.post.origin().clone(), what);
                    reader.report(problem.related(reader.key_of("mode"), mode.1.clone()));
                }
            }
        }
    }
}

/// Something that is done now and then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Old records leave the outbox.
    OutboxCleanup,
    /// Preferences are taken from and brought to the server.
    SyncPreferences,
    /// A resource is fetched anew.
    Refresh(ResourceName),
}

impl Field for Task {
    fn kind() -> String {
        "`outbox-cleanup`, `sync-preferences` or `refresh:RESOURCE`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        if let Some(name) = text.strip_prefix("refresh:") {
            let node = Node { data: Data::Text(name.to_owned()), origin: node.origin.clone() };
            let name = ResourceName::read(&node, reader)?;
            return reader.refer(&node, "resources", name.as_str()).then_some(Self::Refresh(name));
        }
        match text {
            "outbox-cleanup" => Some(Self::OutboxCleanup),
            "sync-preferences" => Some(Self::SyncPreferences),
            _ => {
                reader.unknown_word(node, text, &["outbox-cleanup", "sync-preferences", "refresh:RESOURCE"]);
                None
            }
        }
    }

    fn canon(&self) -> Value {
        match self {
            Self::OutboxCleanup => "outbox-cleanup".into(),
            Self::SyncPreferences => "sync-preferences".into(),
            Self::Refresh(name) => format!("refresh:{name}").into(),
        }
    }
}

/// The name of a preference that is yes or no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreferenceName(Name);

impl PreferenceName {
    /// As text.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl Field for PreferenceName {
    fn kind() -> String {
        "name of a preference that is `true` or `false`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let name = Name::read(node, reader)?;
        let switches = super::preferences::switches();
        if switches.iter().any(|switch| switch == name.as_str()) {
            return Some(Self(name));
        }
        let switches: Vec<&str> = switches.iter().map(String::as_str).collect();
        reader.unknown_word(node, name.as_str(), &switches);
        None
    }

    fn canon(&self) -> Value {
        self.0.canon()
    }
}

table! {
    /// `[periodic.NAME]`: what is done now and then, once in a group.
    Periodic {
        /// Not again before so long; remembered over the end of the group.
        must min_interval: Interval,
        /// What is done, in order.
        must run: Vec<Sourced<Task>>,
        /// Only while this preference is on.
        may allow_if: PreferenceName,
    }
}

impl Check for Periodic {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        super::defaults::unique(&self.run, "run", reader);
        if self.run.is_empty() {
            reader.report(
                Problem::new(
                    ProblemKind::Value,
                    reader.key_of("run"),
                    self.run.origin().clone(),
                    "does nothing",
                )
                .allowed(Task::kind()),
            );
        }
    }
}
