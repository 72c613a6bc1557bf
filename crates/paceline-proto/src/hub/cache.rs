//! Values of the group and what each of them already includes.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    id::{Channel, Key, Mark, OpId, Place, Position, SessionId},
    message::{Applied, Held},
    seqs::Seqs,
};

/// Where the channels stood for whoever held a value.
pub(super) type Basis = Arc<BTreeMap<Channel, Position>>;

/// Operations whose effect is in a session's values.
pub(super) type AppliedOps = BTreeMap<SessionId, Seqs>;

/// Adds what a session says that it applied.
pub(super) fn add_applied(known: &mut AppliedOps, applied: &[Applied]) {
    for of_session in applied {
        let seqs = known.entry(of_session.session).or_default();
        of_session.runs.iter().for_each(|&(first, last)| seqs.insert_run(first, last));
    }
}

/// A value of the cache.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) held: Held,
    /// Its last `set`; a `merge` keeps it.
    pub(super) set_at: Mark,
    /// The channel message that wrote it last.
    pub(super) written: Option<(Channel, Position)>,
    /// What it included when this reign took it over.
    pub(super) basis: Option<Basis>,
    /// The operations in it, where it was taken from a survivor.
    pub(super) ops: Option<Arc<AppliedOps>>,
    /// What this owner was not sure of when operations of its reign were applied: a value that it no longer heard changes
    /// of (its place), or none (no place at all). A survivor may still bring a greater one, that lies below them.
    pub(super) below: Option<Place>,
}

impl Entry {
    /// A value that is what its place says.
    pub(super) fn new(held: Held) -> Self {
        let set_at = held.place.mark;
        Self { held, set_at, written: None, basis: None, ops: None, below: None }
    }

    /// Whether the effect of the channel's message at `at` is in the value.
    pub(super) fn includes(&self, channel: &Channel, at: &Position) -> bool {
        let written = self.written.as_ref().is_some_and(|(c, p)| c == channel && p.covers(at) == Some(true));
        written
            || self
                .basis
                .as_ref()
                .and_then(|basis| basis.get(channel))
                .is_some_and(|p| p.covers(at) == Some(true))
    }

    /// Whether the effect of the operation came with the value from a survivor.
    pub(super) fn has_op(&self, id: OpId) -> bool {
        self.ops.as_ref().and_then(|ops| ops.get(&id.session)).is_some_and(|seqs| seqs.contains(id.seq))
    }

    /// Whether there is a value, not only the mark of a Reset.
    pub(super) fn has_value(&self) -> bool {
        !self.held.value.is_empty()
    }
}

#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<Key, Entry>,
}

impl Cache {
    pub(super) fn get(&self, key: &Key) -> Option<&Entry> {
        self.entries.get(key)
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.entries.insert(entry.held.key.clone(), entry);
    }

    pub(super) fn get_mut(&mut self, key: &Key) -> Option<&mut Entry> {
        self.entries.get_mut(key)
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Entry> {
        self.entries.remove(key)
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entries strictly after a key, or all.
    pub(super) fn after(&self, after: Option<&Key>) -> impl Iterator<Item = &Entry> {
        use std::ops::Bound;
        let lower = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range::<Key, _>((lower, Bound::Unbounded)).map(|(_, entry)| entry)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// The first entry at or after a key; strictly after it if `after`.
    pub(super) fn next(&self, from: Option<&Key>) -> Option<&Entry> {
        use std::ops::Bound;
        let lower = from.map_or(Bound::Unbounded, Bound::Excluded);
        self.entries.range::<Key, _>((lower, Bound::Unbounded)).next().map(|(_, entry)| entry)
    }

    /// Marks values at or under a key stale.
    pub(super) fn invalidate(&mut self, prefix: &Key, exact: bool) {
        let under = self.entries.range_mut(prefix.clone()..).take_while(|(key, _)| prefix.is_prefix_of(key));
        for (_, entry) in under.filter(|(key, _)| !exact || *key == prefix) {
            entry.held.invalidated = entry.has_value();
        }
    }
}
