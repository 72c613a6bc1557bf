//! Digests of what a session declares, and what two sessions of a group declare differently.
//!
//! A digest is over the validated values in their one canonical form, without those that are the default: neither the
//! order of keys nor the spelling of a value nor a new key of a later build makes another digest.

use std::{collections::BTreeMap, fmt};

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::{
    config::Config,
    origin::Origin,
    reader::{Field, Sourced},
};

/// SHA-256 of something canonical.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    pub(crate) fn of(what: &str, bytes: &[u8]) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"paceline-config 1\0");
        hash.update(what.as_bytes());
        hash.update(b"\0");
        hash.update(bytes);
        Self(hash.finalize().into())
    }

    /// The bytes.
    pub const fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From bytes that [`Digest::bytes`] gave.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first 64 bits, for where a number must do.
    pub fn short(&self) -> u64 {
        self.0.iter().take(8).fold(0, |short, byte| short << 8 | u64::from(*byte))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Something declared that belongs to the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Of its content.
    pub digest: Digest,
    /// Where it is declared, for people.
    pub place: String,
}

/// What a session declares: upstreams, their routes, servers, resources with the profile that is set, tags, periodic
/// sync and the outbox. What is a session's own (its group, secrets and preferences) is not in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Declared {
    items: BTreeMap<String, Item>,
}

/// The same name with another content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// For example `upstreams.feed`.
    pub item: String,
    /// Where this session declares it.
    pub ours: String,
    /// Where the other one does.
    pub theirs: String,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "config_conflict: {} is declared differently at {} and at {}",
            self.item, self.ours, self.theirs
        )
    }
}

/// How two declarations differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Same name, other content.
    pub conflicts: Vec<Conflict>,
    /// Declared here only.
    pub only_ours: Vec<String>,
    /// Declared there only.
    pub only_theirs: Vec<String>,
}

impl Declared {
    /// From items that a peer named.
    pub fn from_items(items: impl IntoIterator<Item = (String, Item)>) -> Self {
        Self { items: items.into_iter().collect() }
    }

    /// The items by name.
    pub fn items(&self) -> impl Iterator<Item = (&str, &Item)> {
        self.items.iter().map(|(name, item)| (name.as_str(), item))
    }

    /// Of all items: equal for sessions that declare the same.
    pub fn root(&self) -> Digest {
        let mut bytes = Vec::new();
        for (name, item) in &self.items {
            bytes.extend_from_slice(name.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(item.digest.bytes());
        }
        Digest::of("root", &bytes)
    }

    /// How another session's declaration differs.
    ///
    /// ```
    /// use paceline_config::{Capabilities, Draft, Source};
    ///
    /// let declared = |file: &str, seconds: u32| {
    ///     let text = format!("[resources.process]\nstale_time = \"{seconds}s\"\n");
    ///     Ok(Draft::new([Source::named(file, text)])?.validate(&Capabilities::all())?.declared())
    /// };
    /// let comparison = declared("a.toml", 60)?.compare(&declared("b.toml", 90)?);
    /// assert_eq!(
    ///     comparison.conflicts[0].to_string(),
    ///     "config_conflict: resources.process is declared differently at a.toml:1:1 and at b.toml:1:1",
    /// );
    /// # Ok::<(), paceline_config::ConfigError>(())
    /// ```
    pub fn compare(&self, other: &Self) -> Comparison {
        let mut comparison = Comparison::default();
        for (name, ours) in &self.items {
            match other.items.get(name) {
                None => comparison.only_ours.push(name.clone()),
                Some(theirs) if theirs.digest != ours.digest => comparison.conflicts.push(Conflict {
                    item: name.clone(),
                    ours: ours.place.clone(),
                    theirs: theirs.place.clone(),
                }),
                Some(_) => {}
            }
        }
        comparison.only_theirs =
            other.items.keys().filter(|name| !self.items.contains_key(*name)).cloned().collect();
        comparison
    }
}

impl Config {
    /// What this configuration declares for the group.
    pub fn declared(&self) -> Declared {
        let mut declared = Declared::default();
        let items = &mut declared.items;
        named(items, "upstreams", &self.upstreams);
        named(items, "http", &self.http);
        for (name, resource) in self.resources.value() {
            let (name, mut rules) = (format!("resources.{name}"), resource.canon());
            // Who fetches may be an application's code in one session and a request in another: an item of its own.
            let fetch = rules.as_object_mut().and_then(|members| members.remove("fetch"));
            if let (Some(canon), Some(fetch)) = (fetch, resource.fetch()) {
                add(items, &format!("{name}.fetch"), canon, fetch.origin());
            }
            add(items, &name, rules, resource.origin());
        }
        named(items, "tags", &self.tags);
        named(items, "periodic", &self.periodic);
        add(items, "defaults", self.defaults.canon(), self.defaults.origin());
        add(items, "outbox", self.outbox.canon(), self.outbox.origin());
        if let (Some(name), Some(profile)) = (&self.group.profile, self.profile()) {
            add(items, "profile", profile.canon(), name.origin());
        }
        for name in self.upstreams.keys() {
            let routes: Vec<Value> = self.routes_of(name.as_str()).map(Field::canon).collect();
            let first = self.routes.iter().find(|route| route.upstream.as_str() == name.as_str());
            if let Some(first) = first {
                add(items, &format!("routes.{name}"), Value::Array(routes), first.origin());
            }
        }
        declared
    }

    /// The configuration as one text that reads as the same configuration.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        if let Value::Object(root) = self.canon() {
            for (key, value) in root {
                let key = crate::node::join("", &key);
                match value {
                    // A table of tables: one line for each.
                    Value::Object(members) if members.values().all(Value::is_object) => {
                        for (name, member) in members {
                            let line = format!(
                                "{} = {}\n",
                                crate::node::join(&key, &name),
                                crate::node::literal(&member)
                            );
                            text.push_str(&line);
                        }
                    }
                    other => text.push_str(&format!("{key} = {}\n", crate::node::literal(&other))),
                }
            }
        }
        text
    }
}

fn named<T: Field>(items: &mut BTreeMap<String, Item>, table: &str, all: &crate::reader::Named<T>) {
    for (name, value) in all {
        let value: &Sourced<T> = value;
        add(items, &format!("{table}.{name}"), value.canon(), value.origin());
    }
}

fn add(items: &mut BTreeMap<String, Item>, name: &str, canon: Value, origin: &Origin) {
    let is_singleton = matches!(name, "defaults" | "outbox" | "profile");
    if is_singleton && crate::table::is_empty(&canon) {
        return;
    }
    let mut bytes = String::new();
    write(&canon, &mut bytes);
    let item = Item { digest: Digest::of(name, bytes.as_bytes()), place: origin.to_string() };
    items.insert(name.to_owned(), item);
}

/// JSON with sorted members, whatever order a map of this build has.
fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            out.push_str(&value.to_string())
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write(item, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut sorted: Vec<_> = members.iter().collect();
            sorted.sort_by_key(|(name, _)| *name);
            out.push('{');
            for (name, member) in sorted {
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write(member, out);
                out.push(',');
            }
            out.push('}');
        }
    }
}
