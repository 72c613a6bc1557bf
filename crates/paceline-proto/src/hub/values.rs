//! Values: what an upstream's changes and sessions' operations make of the cache.

use bytes::Bytes;

use super::{
    Effect, Hub, Writer,
    cache::Entry,
    log::{Atom, To},
};
use crate::{
    event::Event,
    id::{Channel, Key, Mark, Place, Position, Version},
    limits::{KEY_MAX, VALUE_MAX},
    message::{Body, Change, Held},
    time::Time,
};

impl Hub {
    /// Whether the value a change aims at has it already.
    pub(super) fn includes(&self, change: &Change, origin: &(Channel, Position)) -> bool {
        match change {
            Change::Set { key, .. } | Change::Merge { key, .. } => {
                self.cache.get(key).is_some_and(|entry| entry.includes(&origin.0, &origin.1))
            }
            Change::Invalidate { .. } | Change::Event { .. } => false,
        }
    }

    pub(super) fn apply(
        &mut self,
        atom: &mut Atom,
        change: Change,
        origin: Option<&(Channel, Position)>,
        out: &mut Vec<Effect>,
    ) {
        let name = origin.map_or("", |(channel, _)| &channel.0);
        match change {
            Change::Set { key, value, version } => {
                if key.0.len() > KEY_MAX || value.len() > VALUE_MAX || value.is_empty() {
                    return refused_by(name, "a value past the bounds", out);
                }
                self.set(atom, key, value, version, origin, out);
            }
            Change::Merge { key, patch } => {
                let old = self.cache.get(&key).filter(|entry| entry.has_value());
                let folded = self.fold.fold(old.map(|entry| entry.held.value.as_ref()), &patch);
                match folded {
                    Ok(value) if value.len() <= VALUE_MAX && key.0.len() <= KEY_MAX && !value.is_empty() => {
                        let version = self.version_of(&key);
                        self.install(atom, key, value, version, origin, None, true, out);
                    }
                    Ok(_) => refused_by(name, "a value past the bounds", out),
                    Err(why) => refused_by(name, &why, out),
                }
            }
            Change::Invalidate { key, exact } => {
                if key.0.len() <= KEY_MAX {
                    self.cache.invalidate(&key, exact);
                    self.tell_invalidated(&key, exact, atom.trace, out);
                    atom.push(Body::Invalidate { key, exact }, origin.cloned(), None, To::All);
                }
            }
            Change::Event { .. } => {}
        }
    }

    /// A value from an upstream: a lower version is old news; an equal one with other content is a conflict that only a
    /// fetch can settle, so the held value stays and is marked stale.
    pub(super) fn set(
        &mut self,
        atom: &mut Atom,
        key: Key,
        value: Bytes,
        version: Version,
        origin: Option<&(Channel, Position)>,
        out: &mut Vec<Effect>,
    ) {
        let held = self.cache.get(&key).filter(|entry| entry.has_value()).map(|entry| &entry.held);
        let Some(held) = held.filter(|_| version != Version::None) else {
            let version = if version == Version::None { self.version_of(&key) } else { version };
            self.install(atom, key, value, version, origin, None, false, out);
            return;
        };
        if version < held.place.version {
            self.stats.old_versions += 1;
            return;
        }
        if version == held.place.version {
            if self.fold.hash(&value) != held.hash {
                out.push(Effect::Event(Event::VersionClash { mark: held.place.mark }));
                self.cache.invalidate(&key, true);
                self.tell_invalidated(&key, true, atom.trace, out);
                atom.push(Body::Invalidate { key, exact: true }, origin.cloned(), None, To::All);
                return;
            }
            if !held.invalidated {
                self.stats.old_versions += 1;
                return;
            }
        }
        self.install(atom, key, value, version, origin, None, false, out);
    }

    pub(super) fn version_of(&self, key: &Key) -> Version {
        self.cache.get(key).map_or(Version::None, |entry| entry.held.place.version.clone())
    }

    /// Puts a value in the cache at the atom's next place, queues its frame and tells the query engine.
    #[expect(clippy::too_many_arguments, reason = "one value and where it comes from")]
    pub(super) fn install(
        &mut self,
        atom: &mut Atom,
        key: Key,
        value: Bytes,
        version: Version,
        origin: Option<&(Channel, Position)>,
        op: Option<crate::message::HeldOp>,
        folded: bool,
        out: &mut Vec<Effect>,
    ) {
        let versioned = version != Version::None;
        let by = if op.is_some() || folded { Writer::Write } else { Writer::Push { versioned } };
        self.put(atom, key.clone(), value, version, origin, op, folded);
        self.tell_value(&key, by, out);
    }

    /// Puts a value in the cache at the atom's next place and queues its frame.
    #[expect(clippy::too_many_arguments, reason = "one value and where it comes from")]
    pub(super) fn put(
        &mut self,
        atom: &mut Atom,
        key: Key,
        value: Bytes,
        version: Version,
        origin: Option<&(Channel, Position)>,
        op: Option<crate::message::HeldOp>,
        folded: bool,
    ) {
        let now = self.now;
        self.put_as_of(now, atom, key, value, version, origin, op, folded);
    }

    /// As [`Hub::put`], for a value that was found to be right at another time.
    #[expect(clippy::too_many_arguments, reason = "one value and where it comes from")]
    pub(super) fn put_as_of(
        &mut self,
        updated_at: Time,
        atom: &mut Atom,
        key: Key,
        value: Bytes,
        version: Version,
        origin: Option<&(Channel, Position)>,
        op: Option<crate::message::HeldOp>,
        folded: bool,
    ) {
        let mark = atom.mark();
        let old = self.cache.get(&key);
        let place = Place { reset: old.map_or(Mark::ZERO, |entry| entry.held.place.reset), version, mark };
        let hash = self.fold.hash(&value);
        let held = Held { key, place, value, hash, invalidated: false, updated_at };
        let set_at = old.filter(|_| folded).map_or(mark, |entry| entry.set_at);
        let written = origin.cloned().or_else(|| old.and_then(|entry| entry.written.clone()));
        let basis = old.and_then(|entry| entry.basis.clone());
        let ops = old.and_then(|entry| entry.ops.clone());
        let below = match old {
            Some(old) => old.below.clone().filter(|_| folded || op.is_some()),
            None => {
                let unsure = op.is_some() && !self.complete && !self.members.all_offered();
                unsure.then(Place::default)
            }
        };
        self.cache.insert(Entry { held: held.clone(), set_at, written, basis, ops, below });
        atom.push(Body::Value(held), origin.cloned(), op, To::All);
    }
}

pub(super) fn refused(channel: &Channel, why: &str, out: &mut Vec<Effect>) {
    refused_by(&channel.0, why, out);
}

pub(super) fn refused_by(upstream: &str, why: &str, out: &mut Vec<Effect>) {
    let (upstream, why) = (upstream.to_owned(), why.to_owned());
    out.push(Effect::Event(Event::UpstreamMessageRefused { upstream, why }));
}
