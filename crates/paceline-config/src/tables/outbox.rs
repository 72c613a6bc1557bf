//! The durable queue of mutations.

use std::collections::BTreeMap;

use paceline_proto::limits::{DISK_CAP, PENDING_MAX};
use serde_json::Value;

use super::upstream::Jitter;
use crate::{
    node::{Node, join},
    origin::Origin,
    reader::{Check, Entry, Field, KeyDoc, Reader, Sourced},
    value::{Bytes, Count, Interval, JsonPath, Name, ServerUrl},
};

words! {
    /// What an acknowledged mutation survives.
    Durability {
        /// A loss of power.
        Power = "power",
        /// The death of all processes.
        Process = "process",
    }
}

words! {
    /// How often a mutation may reach a server.
    Delivery {
        /// It is repeated with the same idempotency key until it is answered.
        AtLeastOnce = "at-least-once",
        /// It is never repeated: an unknown outcome is parked and asked about.
        AtMostOnce = "at-most-once",
    }
}

table! {
    /// When a failed mutation is sent again.
    OutboxBackoff {
        /// The delay after the first failure; it doubles with each.
        has base: Interval = "1s", "a server that restarts is back by then",
        /// The longest delay.
        has cap: Interval = "30s", "the longest a user waits for a server that is back",
        /// How a delay is drawn below its bound.
        has jitter: Jitter = "none", "one group sends one mutation of a scope at a time",
    }
}

impl Check for OutboxBackoff {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        if self.base.value() > self.cap.value() {
            let what =
                format!("the first delay of {} is longer than the longest of {}", *self.base, *self.cap);
            reader.relate(
                ("base", self.base.origin()),
                ("cap", self.cap.origin()),
                &what,
                "make `cap` at least `base`",
            );
        }
    }
}

table! {
    /// Bounds of the queue.
    Limits {
        /// Mutations of one session that are not done.
        has per_session: Count<1, { PENDING_MAX as u64 }> = 10_000,
            "a loop gone wrong is stopped, a long flight is not",
        /// Bytes of the queue's databases.
        has bytes: Bytes<1_048_576, DISK_CAP> = "256MiB", "a day of mutations with pictures",
    }
}

impl Check for Limits {}

table! {
    /// `[outbox.endpoints."URL"]`: what holds for mutations to URLs that begin so.
    Endpoint {
        /// How often a mutation may reach it.
        must delivery: Delivery,
    }
}

impl Check for Endpoint {}

/// Endpoints by the beginning of their URLs.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Endpoints(BTreeMap<String, Sourced<Endpoint>>);

impl Endpoints {
    /// Beginnings of URLs and what holds for them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Sourced<Endpoint>)> {
        self.0.iter().map(|(url, endpoint)| (url.as_str(), endpoint))
    }
}

impl Field for Endpoints {
    fn kind() -> String {
        "tables by the beginning of a URL".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let Some(members) = node.members() else {
            reader.invalid(node, Self::kind());
            return None;
        };
        let mut endpoints = Self::default();
        for (url, member) in members {
            let name = Node { data: crate::node::Data::Text(url.clone()), origin: member.at.clone() };
            let is_url = reader.inside(url, |reader| ServerUrl::read(&name, reader)).is_some();
            if let (true, Some(endpoint)) = (is_url, reader.member::<Endpoint>(members, url, None)) {
                endpoints.0.insert(url.clone(), endpoint);
            }
        }
        Some(endpoints)
    }

    fn canon(&self) -> Value {
        Value::Object(self.0.iter().map(|(url, endpoint)| (url.clone(), endpoint.canon())).collect())
    }

    fn list(&self, key: &str, _origin: &Origin, out: &mut Vec<Entry>) {
        for (url, endpoint) in &self.0 {
            endpoint.value().list(&join(key, url), endpoint.origin(), out);
        }
    }

    fn describe(key: &str, out: &mut Vec<KeyDoc>) {
        Endpoint::describe(&format!("{key}.URL"), out);
    }
}

/// Who wins when a value was changed at the server meanwhile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConflictPolicy {
    /// The server; the mutation is dropped.
    ServerWins,
    /// The mutation, sent again without its base version.
    ClientWins,
    /// The later of the two.
    LastWrite,
    /// Both, field by field.
    FieldMerge,
    /// Kept aside with both versions.
    Manual,
    /// What the registered function of this name makes of both.
    Rebase(Name),
}

const POLICIES: [(&str, ConflictPolicy); 5] = [
    ("server-wins", ConflictPolicy::ServerWins),
    ("client-wins", ConflictPolicy::ClientWins),
    ("last-write", ConflictPolicy::LastWrite),
    ("field-merge", ConflictPolicy::FieldMerge),
    ("manual", ConflictPolicy::Manual),
];

impl Field for ConflictPolicy {
    fn kind() -> String {
        "`server-wins`, `client-wins`, `last-write`, `field-merge`, `manual` or `rebase:NAME`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        if let Some(name) = text.strip_prefix("rebase:") {
            let name = Node { data: crate::node::Data::Text(name.to_owned()), origin: node.origin.clone() };
            return Name::read(&name, reader).map(Self::Rebase);
        }
        if let Some((_, policy)) = POLICIES.iter().find(|(word, _)| *word == text) {
            return Some(policy.clone());
        }
        let words: Vec<&str> = POLICIES.iter().map(|(word, _)| *word).chain(["rebase:NAME"]).collect();
        reader.unknown_word(node, text, &words);
        None
    }

    fn canon(&self) -> Value {
        if let Self::Rebase(name) = self {
            return format!("rebase:{name}").into();
        }
        POLICIES.iter().find(|(_, policy)| policy == self).map_or("", |(word, _)| *word).into()
    }
}

/// Where the version of a value is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VersionSource {
    /// The answer's ETag.
    Etag,
    /// In the value.
    Path(JsonPath),
}

impl Field for VersionSource {
    fn kind() -> String {
        "`etag` or a path, as `$.updated_at`".to_owned()
    }

    fn read(node: &Node, reader: &mut Reader<'_>) -> Option<Self> {
        let text = reader.text(node, &Self::kind())?;
        if text.starts_with('$') {
            return JsonPath::read(node, reader).map(Self::Path);
        }
        if text == "etag" {
            return Some(Self::Etag);
        }
        reader.unknown_word(node, text, &["etag"]);
        None
    }

    fn canon(&self) -> Value {
        match self {
            Self::Etag => "etag".into(),
            Self::Path(path) => path.canon(),
        }
    }
}

table! {
    /// What happens when a value was changed at the server meanwhile.
    Conflict {
        /// Who wins.
        has default: ConflictPolicy = "server-wins", "nothing of others is overwritten unseen",
        /// Where versions are found, the first that is there.
        has version_from: Vec<Sourced<VersionSource>> = ["etag"], "what HTTP has for it",
    }
}

impl Check for Conflict {
    fn check(&self, _: &Origin, reader: &mut Reader<'_>) {
        super::defaults::unique(&self.version_from, "version_from", reader);
    }
}

table! {
    /// `[outbox]`: the durable queue of mutations.
    Outbox {
        /// What an acknowledged mutation survives.
        has durability: Durability = "power", "acknowledged means that it cannot be lost",
        /// Attempts in all, the first included.
        has attempts: Count<1, 1000> = 5, "four retries within a quarter of a minute",
        /// When a failed mutation is sent again.
        table backoff: OutboxBackoff,
        /// Scopes that are sent at a time.
        has parallel_scopes: Count<1, 64> = 4, "a slow scope holds no other back, and a server sees no burst",
        /// The first mutation of a scope that waited so long is sent as if it had one more priority.
        has age_boost: Interval = "30s", "nothing waits for ever behind what is urgent",
        /// Records of what is done are kept so long.
        has keep_done: Interval = "7d", "a week to ask what became of it",
        /// Bounds of the queue.
        table limits: Limits,
        /// What holds for single servers.
        table endpoints: Endpoints,
        /// What happens when a value was changed at the server meanwhile.
        table conflict: Conflict,
    }
}

impl Check for Outbox {}
