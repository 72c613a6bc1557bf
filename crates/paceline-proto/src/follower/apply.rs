//! Batches and snapshots: what arrives becomes state, whole or not at all.

use std::collections::BTreeMap;

use super::{Asked, Effect, Entry, Follower, Link};
use crate::{
    event::Event,
    id::{Channel, Key, Mark, Place, Position, Version},
    message::{Batch, Body, Frame, Gap, Held, HeldEvent, HeldOp, Snapshot, SnapshotEnd, ToHub},
    ring::{Floor, Kept},
    time::Time,
};
use bytes::Bytes;

/// A batch on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    header: Batch,
    frames: Vec<Frame>,
    left: u32,
    /// Its frames change nothing: another epoch, or a link that waits for its snapshot.
    ignored: bool,
}

impl Follower {
    pub(super) fn batch(&mut self, now: Time, header: Batch, out: &mut Vec<Effect>) {
        if self.incoming.is_some() {
            out.push(Effect::Break("a batch began inside another".to_owned()));
            return;
        }
        if header.upto < header.after {
            out.push(Effect::Break("a batch that ends before it begins".to_owned()));
            return;
        }
        let stale = header.epoch != self.epoch || self.link != Link::Synced;
        let hole = !stale && header.after != self.last.offset;
        if hole {
            self.resync(out);
        }
        let left = header.count;
        self.incoming = Some(Incoming { header, frames: Vec::new(), left, ignored: stale || hole });
        self.finish_batch(now, out);
    }

    pub(super) fn frame(&mut self, now: Time, frame: Frame, out: &mut Vec<Effect>) {
        let Some(incoming) = &mut self.incoming else {
            out.push(Effect::Break("a frame outside of a batch".to_owned()));
            return;
        };
        incoming.left -= 1;
        if !incoming.ignored {
            incoming.frames.push(frame);
        }
        self.finish_batch(now, out);
    }

    fn finish_batch(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.incoming.as_ref().is_none_or(|incoming| incoming.left > 0) {
            return;
        }
        if let Some(Incoming { header, frames, ignored: false, .. }) = self.incoming.take() {
            self.apply_batch(now, header, frames, out);
        }
    }

    fn apply_batch(&mut self, now: Time, header: Batch, frames: Vec<Frame>, out: &mut Vec<Effect>) {
        let count = frames.len() as u64;
        let mut reached: BTreeMap<Channel, Position> = BTreeMap::new();
        for frame in frames {
            self.apply_frame(now, frame, &mut reached, out);
        }
        for (channel, position) in reached {
            self.advance(channel, position, false);
        }
        for (channel, position) in header.positions {
            self.advance(channel, position, true);
        }
        self.show_layered(out);
        let moved = header.upto > self.last.offset;
        self.last = Mark::new(self.epoch, header.upto);
        if moved || header.ack_now {
            self.count_for_ack(now, count, header.ack_now, out);
        }
    }

    fn apply_frame(
        &mut self,
        now: Time,
        frame: Frame,
        reached: &mut BTreeMap<Channel, Position>,
        out: &mut Vec<Effect>,
    ) {
        let mark = Mark::new(self.epoch, frame.offset);
        if let Some(HeldOp { id, .. }) = &frame.op {
            self.owner_ops.note(id.session, id.seq, id.seq, mark);
        }
        match frame.body {
            Body::Value(held) => self.install(held, mark, out),
            Body::Invalidate { key, exact } => self.invalidate(&key, exact, mark, out),
            Body::Event { stream, data } => {
                if let Some(origin) = frame.origin {
                    self.event(now, HeldEvent { mark, origin, stream, data }, reached, out);
                }
            }
            Body::Gap(gap) => self.gap(now, gap, mark, true, out),
            Body::Reset { key, held, why: _ } => {
                let held = held.unwrap_or_else(|| nothing(key, mark));
                self.install(held, mark, out);
            }
            Body::Connection(connection) => self.connection(connection, out),
            Body::Query { key, state } => self.show_state(key, state, out),
            Body::Removed { key } => self.removed(&key, out),
            Body::Layers(layered) => self.layers_told(layered),
            Body::Nothing => {}
        }
        if let Some(op) = frame.op {
            self.ops.insert(mark, op);
        }
    }

    /// Delivers an event unless it was covered before this batch, or the batch already went past it. Several events of
    /// one upstream message share a position and arrive in one batch.
    fn event(
        &mut self,
        now: Time,
        event: HeldEvent,
        reached: &mut BTreeMap<Channel, Position>,
        out: &mut Vec<Effect>,
    ) {
        let (channel, position) = &event.origin;
        let covered = self.covered.get(channel).and_then(|at| at.covers(position)) == Some(true);
        let passed =
            reached.get(channel).is_some_and(|at| at != position && at.covers(position) == Some(true));
        if covered || passed {
            return;
        }
        reached.insert(channel.clone(), position.clone());
        self.keep_event(now, event, out);
    }

    fn keep_event(&mut self, now: Time, event: HeldEvent, out: &mut Vec<Effect>) {
        // Not before the owner's answer to the newest Subscribe: as an heir, or from an earlier subscription, a session gets
        // events of streams whose next link would begin elsewhere.
        let subscribed = self.streams.get(&event.stream) == Some(&true);
        if subscribed || self.heir {
            self.rings.push(Kept::Event(event.clone()), now);
        }
        if subscribed {
            out.push(Effect::Deliver(event));
        }
    }

    /// Shows a gap, unless everything in it arrived here all the same.
    fn gap(&mut self, now: Time, gap: Gap, mark: Mark, show: bool, out: &mut Vec<Effect>) {
        let covered = self.covered.get(&gap.channel);
        let missed = match (covered, &gap.upto) {
            (Some(at), Some(upto)) => at.covers(upto) != Some(true),
            (None, _) | (_, None) => true,
        };
        if !missed {
            return;
        }
        self.rings.push(Kept::Gap { mark, gap: gap.clone() }, now);
        if show {
            out.push(Effect::Event(Event::GapShown { channel: gap.channel.clone() }));
            out.push(Effect::ShowGap(gap));
        }
    }

    fn connection(&mut self, connection: crate::connection::Connection, out: &mut Vec<Effect>) {
        let known = self.connections.insert(connection.upstream.clone(), connection.clone());
        if known.as_ref() != Some(&connection) {
            out.push(Effect::Connection(connection));
        }
    }

    /// Moves where the session stands in a channel. What cannot be compared replaces it only where the owner says so.
    fn advance(&mut self, channel: Channel, position: Position, told: bool) {
        let moves = match self.covered.get(&channel) {
            None => true,
            Some(at) => match position.covers(at) {
                Some(forward) => forward,
                None => told,
            },
        };
        if moves {
            if self.rings.floor(&channel).is_none() {
                self.rings.set_floor(channel.clone(), Floor::After(position.clone()));
            }
            self.covered.insert(channel, position);
        }
    }

    /// A value that nobody subscribes to was dropped by the owner.
    fn removed(&mut self, key: &Key, out: &mut Vec<Effect>) {
        let had = self.held.remove(key).is_some_and(|entry| !entry.held.value.is_empty());
        if had && self.keys.contains_key(key) {
            self.show(key, Effect::Clear(key.clone()), out);
        }
    }

    /// Takes a value if its place is ahead of the held one. Equal content is not shown again.
    fn install(&mut self, mut held: Held, changed: Mark, out: &mut Vec<Effect>) {
        let shown = self.keys.contains_key(&held.key);
        if !shown && !self.heir {
            return;
        }
        let old = self.held.get(&held.key).map(|entry| &entry.held);
        let news = match old {
            Some(old) if old.place > held.place => return,
            Some(old) if old.place == held.place => {
                held.invalidated |= old.invalidated;
                held.invalidated != old.invalidated
            }
            Some(old) => {
                old.hash != held.hash
                    || old.value.is_empty() != held.value.is_empty()
                    || old.invalidated != held.invalidated
            }
            None => true,
        };
        if shown && news {
            if !held.value.is_empty() {
                self.show(&held.key, Effect::Show(held.clone()), out);
            } else if old.is_some_and(|old| !old.value.is_empty()) {
                self.show(&held.key, Effect::Clear(held.key.clone()), out);
            }
        } else if shown && old.is_some_and(|old| old.updated_at != held.updated_at) {
            self.show(&held.key, Effect::Touch(held.clone()), out);
        }
        if self.held.get(&held.key).is_some_and(|entry| entry.held.place < held.place) {
            self.forget_effects(&held.key);
        }
        self.held.insert(held.key.clone(), Entry { held, changed });
    }

    /// A value of this owner replaces one that had operations in it which the owner does not know: they took effect under
    /// another owner only. They are offered again, as something to be done.
    fn forget_effects(&mut self, key: &Key) {
        let unknown =
            self.ops.of_key(key).filter(|(mark, op)| mark.epoch < self.epoch && !self.owner_ops.has(op.id));
        let unknown: Vec<_> = unknown.map(|(_, op)| op.id).collect();
        unknown.into_iter().for_each(|id| self.ops.unlearn(id));
    }

    fn invalidate(&mut self, prefix: &Key, exact: bool, mark: Mark, out: &mut Vec<Effect>) {
        let under = self.held.range_mut(prefix.clone()..).take_while(|(key, _)| prefix.is_prefix_of(key));
        let mut shown = Vec::new();
        for (key, entry) in under.filter(|(key, _)| !exact || *key == prefix) {
            let held = &mut entry.held;
            if held.place.mark < mark && !held.invalidated && !held.value.is_empty() {
                held.invalidated = true;
                entry.changed = mark;
                if self.keys.contains_key(key) {
                    shown.push(held.clone());
                }
            }
        }
        shown.into_iter().for_each(|held| self.show(&held.key.clone(), Effect::Show(held), out));
    }

    /// Shows a change of a value, with its layers where it has any.
    fn show(&mut self, key: &Key, effect: Effect, out: &mut Vec<Effect>) {
        if self.layers.covers(key) {
            self.layers.change(key.clone());
        } else {
            out.push(effect);
        }
    }

    pub(super) fn snapshot(&mut self, now: Time, mut snapshot: Snapshot, out: &mut Vec<Effect>) {
        if !matches!(self.link, Link::Joining | Link::Synced) {
            return;
        }
        if self.incoming.is_some() {
            out.push(Effect::Break("a snapshot inside of a batch".to_owned()));
            return;
        }
        let end = snapshot.end.take();
        self.staged.push(snapshot);
        let Some(end) = end else { return };
        if self.link == Link::Synced && end.upto != self.last.offset {
            self.resync(out);
            return;
        }
        self.apply_snapshot(now, end, out);
    }

    fn apply_snapshot(&mut self, now: Time, end: SnapshotEnd, out: &mut Vec<Effect>) {
        let at = Mark::new(self.epoch, end.upto);
        let first = self.link == Link::Joining;
        let continues = at == self.last;
        let complete = end.complete && self.heir;
        if first {
            self.retire();
            self.queries.begin_states();
        }
        if complete {
            self.rings.clear();
            self.archive = None;
        }
        self.owner_ops.note_applied(&end.applied, at);
        let mut reached = BTreeMap::new();
        for chunk in std::mem::take(&mut self.staged) {
            self.apply_chunk(now, chunk, at, complete, &mut reached, out);
        }
        for (channel, position) in reached {
            self.advance(channel, position, false);
        }
        for (channel, position) in end.positions {
            self.advance(channel, position, true);
        }
        self.ops.note_applied(&end.applied, at);
        self.apply_layers(first, continues);
        self.show_layered(out);
        for (channel, ring) in end.rings {
            if ring.is_none() {
                self.covered.entry(channel.clone()).or_insert(Position::START);
            }
            self.rings.set_floor(channel, Floor::from_wire(ring));
        }
        self.last = at;
        self.link = Link::Synced;
        if complete {
            self.complete = true;
        } else if let Some(asked) = self.asked.pop_front() {
            self.answered(asked);
        }
        if first {
            self.settle_states(out);
            out.push(Effect::Synced { at });
        }
        self.acknowledge(out);
    }

    fn apply_chunk(
        &mut self,
        now: Time,
        chunk: Snapshot,
        at: Mark,
        complete: bool,
        reached: &mut BTreeMap<Channel, Position>,
        out: &mut Vec<Effect>,
    ) {
        for (key, state) in chunk.states {
            self.show_state(key, state, out);
        }
        for connection in chunk.connections {
            self.connection(connection, out);
        }
        for (mark, op) in &chunk.ops {
            self.owner_ops.note(op.id.session, op.id.seq, op.id.seq, *mark);
        }
        for held in chunk.held {
            self.install(held, at, out);
        }
        for (mark, gap) in chunk.gaps {
            if complete {
                self.rings.push(Kept::Gap { mark, gap }, now);
            } else {
                self.gap(now, gap, mark, true, out);
            }
        }
        for event in chunk.events {
            if complete {
                // A link is in step when it is appointed: there is nothing to deliver, only to keep.
                self.rings.push(Kept::Event(event), now);
            } else {
                self.event(now, event, reached, out);
            }
        }
        for (mark, op) in chunk.ops {
            self.ops.insert(mark, op);
        }
    }

    /// The snapshot for one Subscribe is complete.
    fn answered(&mut self, asked: Asked) {
        for key in &asked.keys {
            if let Some(known) = self.keys.get_mut(key) {
                *known = true;
            }
        }
        let mut fresh = false;
        for stream in &asked.streams {
            let asked_again = self.asked.iter().any(|later| later.streams.contains(stream));
            if let Some(known) = self.streams.get_mut(stream).filter(|_| !asked_again) {
                fresh |= !*known;
                *known = true;
            }
        }
        if fresh && !self.complete {
            // Of a stream that is new here the ring holds nothing older.
            for (channel, at) in &self.covered {
                let floor = if *at == Position::START { Floor::Start } else { Floor::After(at.clone()) };
                self.rings.set_floor(channel.clone(), floor);
            }
        }
    }

    fn resync(&mut self, out: &mut Vec<Effect>) {
        out.push(Effect::Event(Event::Resynced { at: self.last.offset }));
        out.push(Effect::Send(ToHub::Resync));
        self.link = Link::Broken;
        self.staged.clear();
        self.layers.drop_staged();
        self.ack_due = None;
    }
}

/// What a Reset without a value leaves: the place that older values may not pass.
pub(crate) fn nothing(key: Key, mark: Mark) -> Held {
    let place = Place { reset: mark, version: Version::None, mark };
    Held { key, place, value: Bytes::new(), hash: 0, invalidated: false, updated_at: Time::ZERO }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_beats_every_value_before_it() {
        let mark = Mark::new(crate::id::Epoch(2), crate::id::Offset(5));
        let tombstone = nothing(Key::copy_from(b"k"), mark);
        let old = Place { reset: Mark::ZERO, version: Version::Number(u64::MAX), mark };
        assert!(tombstone.place > old);
    }
}
