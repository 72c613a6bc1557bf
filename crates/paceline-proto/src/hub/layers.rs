//! Optimistic layers: which operations that are not done yet lie over which keys, in one order for the whole group.
//!
//! The session that laid a layer is the authority over it: it says anew on every link which of its layers are open. A layer
//! ends when its operation took effect, in the same atom; when its session takes it back, or no longer names it; and when
//! its session is gone for good. The cache knows nothing of layers: values are bases everywhere but in replicas.
//!
//! **Invariant:** no frame shows a value with the effect of an operation and, after its atom, the layer of that operation.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, Hub, links::Slot, log::Atom, log::To, requests::within_chunk};
use crate::{
    event::Event,
    id::{Key, LinkId, Mark, OpId, SessionId, Trace},
    limits::{
        CHUNK_ITEMS, KEY_MAX, LAYERS_BYTES, LAYERS_KEY_BYTES, LAYERS_MAX, MEMBER_SILENCE, PENDING_MAX,
        VALUE_MAX,
    },
    message::{Answer, Body, Layer, Layered, ToSession},
    program::Features,
};

/// The layers over all keys.
#[derive(Debug, Default)]
pub(super) struct Layers {
    /// In the order in which they were laid.
    by_key: BTreeMap<Key, Vec<Layer>>,
    keys: BTreeMap<OpId, Key>,
    bytes: usize,
    /// Sessions whose open layers this reign knows, be it that they are gone: what others say of them does not count.
    known: BTreeSet<SessionId>,
    /// What came when the next owner had everything, for the case that it does not take over.
    held_back: Vec<Change>,
}

#[derive(Debug)]
enum Change {
    Lay(LinkId, Vec<Layered>),
    Drop(Vec<OpId>),
}

impl Layers {
    pub(super) fn of(&self, key: &Key) -> &[Layer] {
        self.by_key.get(key).map_or(&[], Vec::as_slice)
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.by_key.contains_key(key)
    }

    /// The first key with layers after this one.
    pub(super) fn next(&self, after: Option<&Key>) -> Option<&Key> {
        self.after(after).next().map(|(key, _)| key)
    }

    fn after(&self, after: Option<&Key>) -> impl Iterator<Item = (&Key, &Vec<Layer>)> {
        use std::ops::Bound;
        let lower = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_key.range::<Key, _>((lower, Bound::Unbounded))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &[Layer])> {
        self.by_key.iter().map(|(key, layers)| (key, layers.as_slice()))
    }

    /// What travels into the next reign.
    pub(super) fn carry(&self) -> Vec<Layered> {
        self.iter().map(|(key, layers)| Layered { key: key.clone(), layers: layers.to_vec() }).collect()
    }

    /// The bound that one more layer would pass.
    fn lacks_room(&self, key: &Key, patch: usize) -> Option<&'static str> {
        let over = self.of(key);
        let bytes: usize = over.iter().map(|layer| layer.patch.len()).sum();
        if over.len() >= LAYERS_MAX {
            Some("LAYERS_MAX")
        } else if bytes + patch > LAYERS_KEY_BYTES {
            Some("LAYERS_KEY_BYTES")
        } else if self.bytes + patch > LAYERS_BYTES {
            Some("LAYERS_BYTES")
        } else {
            None
        }
    }

    fn insert(&mut self, key: &Key, layer: Layer) {
        self.bytes += layer.patch.len();
        self.keys.insert(layer.id, key.clone());
        let over = self.by_key.entry(key.clone()).or_default();
        let place = |layer: &Layer| (layer.at, layer.id);
        let at = over.partition_point(|other| place(other) < place(&layer));
        over.insert(at, layer);
    }

    fn remove(&mut self, id: OpId) -> Option<Key> {
        let key = self.keys.remove(&id)?;
        let over = self.by_key.get_mut(&key)?;
        let at = over.iter().position(|layer| layer.id == id)?;
        self.bytes -= over.remove(at).patch.len();
        if over.is_empty() {
            self.by_key.remove(&key);
        }
        Some(key)
    }

    fn of_session(&self, session: SessionId) -> impl Iterator<Item = OpId> {
        let (first, last) = (OpId { session, seq: 0 }, OpId { session, seq: u64::MAX });
        self.keys.range(first..=last).map(|(id, _)| *id)
    }
}

impl Hub {
    /// Begins with what the owner's follower showed. Sessions that are alive say what is open of it.
    pub(super) fn take_over_layers(&mut self, carried: Vec<Layered>) {
        for Layered { key, layers } in carried {
            for layer in layers {
                if !self.took_effect(layer.id, &key)
                    && self.layers.lacks_room(&key, layer.patch.len()).is_none()
                {
                    self.layers.insert(&key, layer);
                }
            }
        }
    }

    pub(super) fn layers_came(
        &mut self,
        slot: Slot,
        layered: Vec<Layered>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        let (session, joined) = (link.session, link.is_joined());
        within_chunk(layered.iter().map(|of| of.layers.len()).sum::<usize>().max(layered.len()))?;
        for Layered { key, layers } in &layered {
            if key.0.len() > KEY_MAX || layers.iter().any(|layer| layer.patch.len() > VALUE_MAX) {
                return Err("a layer past the bounds");
            }
            for layer in layers.iter().filter(|layer| layer.id.session == session && !joined) {
                link.laid.insert(layer.id.seq);
            }
            if joined && layers.iter().any(|layer| layer.id.session != session) {
                return Err("a layer of another session");
            }
        }
        if link.laid.len() > PENDING_MAX {
            return Err("more open layers than a session may have");
        }
        self.lay(slot, layered, out);
        Ok(())
    }

    pub(super) fn take_back(
        &mut self,
        slot: Slot,
        seqs: Vec<u64>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        within_chunk(seqs.len())?;
        if let Some(session) = self.links.get(slot).map(|link| link.session) {
            self.drop_layers(seqs.into_iter().map(|seq| OpId { session, seq }).collect(), out);
        }
        Ok(())
    }

    fn lay(&mut self, slot: Slot, layered: Vec<Layered>, out: &mut Vec<Effect>) {
        let Some((from, link)) = self.links.get(slot).map(|link| (link.session, link.id)) else { return };
        if self.is_drained() {
            self.layers.held_back.push(Change::Lay(link, layered));
            return;
        }
        let mut refused = Vec::new();
        let mut atom = self.log.atom(Trace::NONE);
        for Layered { key, layers } in layered {
            let mut news = false;
            for layer in layers {
                let own = layer.id.session == from;
                let hearsay = !own && (self.layers.known.contains(&layer.id.session) || !self.is_young());
                if hearsay || self.layers.keys.contains_key(&layer.id) || self.took_effect(layer.id, &key) {
                    continue;
                }
                if let Some(limit) = self.layers.lacks_room(&key, layer.patch.len()) {
                    out.push(Effect::Event(Event::LimitReached { limit }));
                    refused.extend(own.then_some(layer.id.seq));
                    continue;
                }
                let at = if layer.at == Mark::ZERO { atom.mark() } else { layer.at };
                self.layers.insert(&key, Layer { at, ..layer });
                news = true;
            }
            if news {
                self.show_layers(&mut atom, key);
            }
        }
        self.commit(atom, out);
        if !refused.is_empty() {
            self.tell(slot, ToSession::NoRoom(refused), out);
        }
    }

    /// All that a joining session laid and is open has been said: what it did not name has ended.
    pub(super) fn layers_offered(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let (session, laid) = (link.session, std::mem::take(&mut link.laid));
        if link.features.has(Features::LAYERS) {
            self.layers.known.insert(session);
        }
        let ended = self.layers.of_session(session).filter(|id| !laid.contains(&id.seq)).collect();
        self.drop_layers(ended, out);
        // What this session brought may contain operations that others laid.
        self.settle_all_layers(out);
    }

    /// A session is gone for good.
    pub(super) fn layers_orphaned(&mut self, session: SessionId, out: &mut Vec<Effect>) {
        self.layers.known.insert(session);
        let orphans: Vec<OpId> = self.layers.of_session(session).collect();
        if !orphans.is_empty() {
            out.push(Effect::Event(Event::LayersTakenBack { session, layers: orphans.len() }));
            self.drop_layers(orphans, out);
        }
    }

    /// Layers of sessions that this reign has never heard of; a list of members may be older than the layers.
    pub(super) fn expire_layers(&mut self, out: &mut Vec<Effect>) {
        if self.layers.keys.is_empty() || self.is_young() {
            return;
        }
        let sessions: BTreeSet<SessionId> = self.layers.keys.keys().map(|id| id.session).collect();
        for session in sessions {
            if session != self.owner && self.members.get(session).is_none() {
                self.layers_orphaned(session, out);
            }
        }
    }

    /// Whether a session may be alive that this reign has not heard of.
    fn is_young(&self) -> bool {
        self.now.since(self.began) < MEMBER_SILENCE
    }

    fn drop_layers(&mut self, ids: Vec<OpId>, out: &mut Vec<Effect>) {
        if self.is_drained() {
            self.layers.held_back.push(Change::Drop(ids));
            return;
        }
        let keys: BTreeSet<Key> = ids.into_iter().filter_map(|id| self.layers.remove(id)).collect();
        let mut atom = self.log.atom(Trace::NONE);
        keys.into_iter().for_each(|key| self.show_layers(&mut atom, key));
        self.commit(atom, out);
    }

    fn settle_all_layers(&mut self, out: &mut Vec<Effect>) {
        let done = |(id, key): (&OpId, &Key)| self.took_effect(*id, key).then_some(*id);
        let done: Vec<OpId> = self.layers.keys.iter().filter_map(done).collect();
        if !done.is_empty() {
            self.drop_layers(done, out);
        }
    }

    /// Adds to an atom that the layers are gone whose operations are in its values.
    pub(super) fn settle_layers(&mut self, atom: &mut Atom) {
        if self.layers.keys.is_empty() {
            return;
        }
        let touched = atom.frames.iter().filter_map(|(frame, _)| match &frame.op {
            Some(op) => Some(op.operation.key()),
            None => frame.body.key(),
        });
        let touched: BTreeSet<Key> = touched.filter(|key| self.layers.has(key)).cloned().collect();
        for key in touched {
            let over = self.layers.of(&key).iter().map(|layer| layer.id);
            let done: Vec<OpId> = over.filter(|id| self.took_effect(*id, &key)).collect();
            if !done.is_empty() {
                done.into_iter().for_each(|id| drop(self.layers.remove(id)));
                self.show_layers(atom, key);
            }
        }
    }

    fn show_layers(&self, atom: &mut Atom, key: Key) {
        let layers = self.layers.of(&key).to_vec();
        atom.push(Body::Layers(Layered { key, layers }), None, None, To::All);
    }

    /// A handover failed.
    pub(super) fn resume_layers(&mut self, out: &mut Vec<Effect>) {
        for change in std::mem::take(&mut self.layers.held_back) {
            match change {
                // A link that ended says all of it anew on its next one.
                Change::Lay(link, layered) => {
                    if let Some(slot) = self.links.slot(link) {
                        self.lay(slot, layered, out);
                    }
                }
                Change::Drop(ids) => self.drop_layers(ids, out),
            }
        }
    }

    pub(super) fn layered_after(&self, after: Option<&Key>) -> Answer {
        let mut keys: Vec<(Key, u64)> = self
            .layers
            .after(after)
            .take(CHUNK_ITEMS + 1)
            .map(|(key, layers)| (key.clone(), layers.len() as u64))
            .collect();
        let more = keys.len() > CHUNK_ITEMS;
        keys.truncate(CHUNK_ITEMS);
        Answer::Layers { keys, more }
    }
}
