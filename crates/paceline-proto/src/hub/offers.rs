//! What survivors know and a new owner lacks: values and operations, accepted whenever they come.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Effect, Hub,
    cache::{Basis, Entry},
    links::Slot,
    log::{Atom, To},
};
use crate::{
    event::Event,
    id::{Key, LinkId, Mark, OpId, Place, SessionId, Trace, Version},
    limits::{CHUNK_ITEMS, INTEREST_MAX, KEY_MAX, RING_FRAMES, SESSIONS_MAX, VALUE_MAX},
    message::{Applied, Body, ChannelOffer, Held, HeldOp, KeyOffer, Operation, ToSession},
};

/// A value that a survivor holds at a greater place.
#[derive(Debug)]
struct Want {
    place: Place,
    from: LinkId,
    /// Others that offered it too, should the first one leave.
    others: Vec<(LinkId, Place)>,
    /// Operations on the key that came with offers: their effect is probably in the value.
    ops: Vec<(Mark, HeldOp, SessionId)>,
}

/// Values asked for and not here yet.
#[derive(Debug, Default)]
pub(super) struct Wants {
    keys: BTreeMap<Key, Want>,
    /// Operations offered while values may still be.
    ops: Vec<(Mark, HeldOp, SessionId)>,
}

impl Wants {
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ops.is_empty()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }
}

impl Hub {
    /// Keys held by a survivor. The text says what is wrong with them.
    pub(super) fn keys_offered(
        &mut self,
        slot: Slot,
        offers: Vec<KeyOffer>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get(slot).map(|link| link.id) else { return Ok(()) };
        let mut ask = Vec::new();
        for offer in offers {
            if offer.key.0.len() > KEY_MAX {
                return Err("a key that is too long");
            }
            if !self.is_possible(&offer.place) {
                return Err("a value from the future");
            }
            let entry = self.cache.get(&offer.key);
            let own = entry.map(|entry| &entry.held);
            let ahead = entry.is_none_or(|entry| entry.orphan || offer.place > entry.held.place);
            let clash = own.is_some_and(|own| {
                own.place.version != Version::None
                    && own.place.version == offer.place.version
                    && own.place.reset == offer.place.reset
                    && own.hash != offer.hash
            });
            if clash {
                let mark = own.map_or(Mark::ZERO, |own| own.place.mark);
                out.push(Effect::Event(Event::VersionClash { mark }));
            }
            if !ahead {
                continue;
            }
            match self.wants.keys.get_mut(&offer.key) {
                Some(want) if want.place >= offer.place => want.others.push((link, offer.place)),
                Some(want) => {
                    want.others.push((want.from, want.place.clone()));
                    (want.from, want.place) = (link, offer.place);
                    ask.push(offer.key);
                }
                None => {
                    let want = Want { place: offer.place, from: link, others: Vec::new(), ops: Vec::new() };
                    self.wants.keys.insert(offer.key.clone(), want);
                    ask.push(offer.key);
                }
            }
        }
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        link.wanted += ask.len();
        if link.wanted > INTEREST_MAX {
            return Err("more keys than a session may have");
        }
        self.ask_for_values(slot, ask, out);
        Ok(())
    }

    fn ask_for_values(&mut self, slot: Slot, keys: Vec<Key>, out: &mut Vec<Effect>) {
        for keys in keys.chunks(CHUNK_ITEMS) {
            self.tell(slot, ToSession::WantKeys(keys.to_vec()), out);
        }
    }

    /// Ids whose bytes a survivor does not keep any more: what they did was everybody's. Heirs of now would never hear of
    /// them, so they begin anew.
    pub(super) fn take_settled_ids(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let offered = std::mem::take(&mut link.ops_offered);
        let mut news = false;
        for (&session, seqs) in link.applied.iter() {
            for &(first, last) in seqs.runs() {
                let of_session = OpId { session, seq: first }..=OpId { session, seq: last };
                let kept: Vec<u64> = offered.range(of_session).map(|id| id.seq).collect();
                for (first, last) in without(first, last, &kept) {
                    if !self.ops.knows_run(session, first, last) {
                        self.ops.note_run(session, first, last, self.log.mark());
                        news = true;
                    }
                }
            }
        }
        if !news {
            return;
        }
        let heirs: Vec<Slot> = self.links.heirs().map(|(slot, _)| slot).collect();
        heirs.into_iter().for_each(|heir| self.dismiss(heir, out));
    }

    /// A place that can have been given out by now.
    fn is_possible(&self, place: &Place) -> bool {
        let now = self.log.mark();
        place.mark <= now && place.reset <= now
    }

    pub(super) fn channels_offered(
        &mut self,
        slot: Slot,
        offers: Vec<ChannelOffer>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        for offer in offers {
            if offer.channel.0.len() > KEY_MAX {
                return Err("a channel name that is too long");
            }
            if let Some(state) = self.channels.get_mut(&offer.channel) {
                state.raise_horizon(Some(&offer.covered));
            }
            link.offer.insert(offer.channel.clone(), offer);
        }
        if link.offer.len() > INTEREST_MAX {
            return Err("more channels than a session may follow");
        }
        Ok(())
    }

    pub(super) fn applied_offered(&mut self, slot: Slot, applied: &[Applied]) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot).filter(|_| !applied.is_empty()) else { return Ok(()) };
        let known = Arc::make_mut(&mut link.applied);
        for of_session in applied {
            let seqs = known.entry(of_session.session).or_default();
            of_session.runs.iter().for_each(|&(first, last)| seqs.insert_run(first, last));
        }
        if known.len() > SESSIONS_MAX {
            return Err("operations of more sessions than a group may have");
        }
        Ok(())
    }

    pub(super) fn ops_offered(
        &mut self,
        slot: Slot,
        ops: Vec<(Mark, HeldOp)>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(session) = self.links.get(slot).map(|link| link.session) else { return Ok(()) };
        for (mark, op) in ops {
            if crate::follower::does_not_fit(&op.operation).is_some() {
                return Err("an operation past the bounds");
            }
            if mark > self.log.mark() {
                return Err("an operation from the future");
            }
            self.remember_offered(slot, op.id);
            // Operations of this reign began here.
            if mark.epoch >= self.epoch {
                continue;
            }
            if self.has_effect(&op) && !self.ops.knows(op.id) {
                self.note_op(op, out);
                continue;
            }
            if self.knows_op(mark, &op) {
                continue;
            }
            match self.wants.keys.get_mut(op.operation.key()) {
                Some(want) => {
                    if !want.ops.iter().any(|(_, other, _)| other.id == op.id) {
                        want.ops.push((mark, op, session));
                    }
                }
                // A value that holds its effect, and more, may still be offered.
                None if !self.offers_done => {
                    if !self.wants.ops.iter().any(|(_, other, _)| other.id == op.id) {
                        self.wants.ops.push((mark, op, session));
                    }
                }
                None => self.adopt(mark, op, session, out),
            }
        }
        if self.wants.ops.len() > RING_FRAMES {
            self.adopt_waiting(out);
        }
        Ok(())
    }

    /// No more values are waited for: operations are applied to what is here, or to the value on its way.
    pub(super) fn adopt_waiting(&mut self, out: &mut Vec<Effect>) {
        for (mark, op, from) in std::mem::take(&mut self.wants.ops) {
            match self.wants.keys.get_mut(op.operation.key()) {
                Some(want) => want.ops.push((mark, op, from)),
                None => self.adopt(mark, op, from, out),
            }
        }
    }

    fn remember_offered(&mut self, slot: Slot, id: OpId) {
        if let Some(link) = self.links.get_mut(slot) {
            link.ops_offered.insert(id);
        }
    }

    fn adopt(&mut self, mark: Mark, op: HeldOp, from: SessionId, out: &mut Vec<Effect>) {
        if self.has_effect(&op) && !self.ops.knows(op.id) {
            // It came with a value, and only its survivor knew.
            self.note_op(op, out);
            return;
        }
        if !self.knows_op(mark, &op) {
            self.adopt_op(mark, op, out);
            out.push(Effect::Event(Event::OperationAdopted { from }));
        }
    }

    /// Values a survivor was asked for. The text says what is wrong with them.
    pub(super) fn values_came(
        &mut self,
        slot: Slot,
        values: Vec<Held>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        for held in values {
            if held.key.0.len() > KEY_MAX || held.value.len() > VALUE_MAX {
                return Err("a value past the bounds");
            }
            if !held.value.is_empty() && self.fold.hash(&held.value) != held.hash {
                return Err("a value with a wrong hash");
            }
            if !self.is_possible(&held.place) {
                return Err("a value from the future");
            }
            self.value_came(slot, held, out);
        }
        self.values_settled(out);
        Ok(())
    }

    fn value_came(&mut self, slot: Slot, held: Held, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let (id, session) = (link.id, link.session);
        if self.wants.keys.get(&held.key).is_none_or(|want| want.from != id) {
            return;
        }
        let Some(want) = self.wants.keys.remove(&held.key) else { return };
        let wins = self.cache.get(&held.key).is_none_or(|entry| held.place > entry.held.place);
        // A value dropped since it was offered comes back empty at no place.
        let is_held = held.place != Place::default();
        let mut ops = want.ops;
        let early = std::mem::take(&mut self.wants.ops);
        let (of_key, rest) = early.into_iter().partition(|(_, op, _)| *op.operation.key() == held.key);
        self.wants.ops = rest;
        ops.extend::<Vec<_>>(of_key);
        let orphan = self.cache.get(&held.key).is_some_and(|entry| entry.orphan);
        if is_held && orphan {
            self.put_below(slot, held, &mut ops, out);
        } else if is_held && wins {
            self.take_winner(slot, held, &mut ops, out);
            out.push(Effect::Event(Event::WinnerRepublished { from: session }));
        }
        ops.into_iter().for_each(|(mark, op, from)| self.adopt(mark, op, from, out));
    }

    /// Installs a survivor's value at its own place and shows it to those who are behind. The ids of operations that came
    /// with it go along in the same atom, and are taken out of `ops`.
    fn take_winner(
        &mut self,
        slot: Slot,
        held: Held,
        ops: &mut Vec<(Mark, HeldOp, SessionId)>,
        out: &mut Vec<Effect>,
    ) {
        let Some(link) = self.links.get(slot) else { return };
        let covered = |offer: &ChannelOffer| (offer.channel.clone(), offer.covered.clone());
        let basis: Option<Basis> = Some(Arc::new(link.offer.values().map(covered).collect()));
        let applied = Some(link.applied.clone());
        let entry = Entry {
            held: held.clone(),
            set_at: held.place.mark,
            written: None,
            basis,
            ops: applied,
            orphan: false,
        };
        let mut atom = self.log.atom(Trace::NONE);
        atom.push(Body::Value(held), None, None, To::All);
        let included = ops.extract_if(.., |(_, op, _)| entry.has_op(op.id)).collect();
        self.send_ids(&mut atom, included);
        // What this owner holds and the survivor's value lacks happened in another line of owners.
        let lacking: Vec<(Mark, HeldOp)> = self
            .ops
            .of_key(&entry.held.key)
            .filter(|(_, op)| !entry.has_op(op.id))
            .map(|(mark, op)| (mark, op.clone()))
            .collect();
        let set_at = entry.set_at;
        self.cache.insert(entry);
        self.commit(atom, out);
        for (mark, op) in lacking {
            let sets = matches!(op.operation, Operation::Set { .. } | Operation::CompareSet { .. });
            if !(sets && set_at > mark) {
                self.carry_out_again(op, out);
            }
        }
    }

    /// The ids of operations whose effect is in the value before them, for everybody who gets that.
    fn send_ids(&mut self, atom: &mut Atom, ops: Vec<(Mark, HeldOp, SessionId)>) {
        for (_, op, _) in ops.into_iter().filter(|(_, op, _)| !self.ops.knows(op.id)).collect::<Vec<_>>() {
            self.keep_op(atom.mark(), op.clone());
            atom.push(Body::Nothing, None, Some(op), To::All);
        }
    }

    /// A value that lies below what operations of this reign made of nothing: they are carried out on it once more.
    fn put_below(
        &mut self,
        slot: Slot,
        held: Held,
        ops: &mut Vec<(Mark, HeldOp, SessionId)>,
        out: &mut Vec<Effect>,
    ) {
        let applied = self.links.get(slot).map(|link| link.applied.clone());
        let Some(entry) = self.cache.get_mut(&held.key) else { return };
        let place = &mut entry.held.place;
        place.version = place.version.clone().max(held.place.version);
        place.reset = place.reset.max(held.place.reset);
        (entry.orphan, entry.ops) = (false, applied);
        let (version, mut value) = (place.version.clone(), held.value);
        let came_along = ops.extract_if(.., |(_, op, _)| entry.has_op(op.id)).collect();
        let included: Vec<bool> = self.ops.of_key(&held.key).map(|(_, op)| entry.has_op(op.id)).collect();
        let again = self.ops.of_key(&held.key).zip(included);
        for ((_, op), _) in again.filter(|((mark, _), included)| mark.epoch == self.epoch && !included) {
            match &op.operation {
                Operation::Set { value: set, .. } | Operation::CompareSet { value: set, .. } => {
                    value = set.clone()
                }
                Operation::Merge { patch, .. } => {
                    let old = (!value.is_empty()).then_some(value.as_ref());
                    value = self.fold.fold(old, patch).unwrap_or(value);
                }
                Operation::Invalidate { .. } => {}
            }
        }
        if !value.is_empty() && value.len() <= VALUE_MAX {
            let mut atom = self.log.atom(Trace::NONE);
            self.install(&mut atom, held.key, value, version, None, None, true);
            self.send_ids(&mut atom, came_along);
            self.commit(atom, out);
        }
    }

    /// A survivor left before it answered: another one is asked, or the operations are applied without the value.
    pub(super) fn values_lost(&mut self, link: LinkId, out: &mut Vec<Effect>) {
        let lost: Vec<Key> = self
            .wants
            .keys
            .iter()
            .filter(|(_, want)| want.from == link)
            .map(|(key, _)| key.clone())
            .collect();
        for want in self.wants.keys.values_mut() {
            want.others.retain(|(other, _)| *other != link);
        }
        for key in lost {
            let Some(want) = self.wants.keys.get_mut(&key) else { continue };
            let best =
                want.others.iter().enumerate().max_by(|(_, a), (_, b)| a.1.cmp(&b.1)).map(|(at, _)| at);
            match best.map(|at| want.others.swap_remove(at)) {
                Some((other, place)) => {
                    (want.from, want.place) = (other, place);
                    if let Some(slot) = self.links.slot(other) {
                        self.ask_for_values(slot, vec![key], out);
                    }
                }
                None => {
                    if let Some(want) = self.wants.keys.remove(&key) {
                        want.ops.into_iter().for_each(|(mark, op, from)| self.adopt(mark, op, from, out));
                    }
                }
            }
        }
        self.values_settled(out);
    }

    /// Fewer values are on their way: what waited for them goes on.
    fn values_settled(&mut self, out: &mut Vec<Effect>) {
        self.take_held_back(out);
        if self.heirs_wait {
            self.choose_heirs(out);
        }
    }
}

/// What is left of a run without some of its numbers.
fn without(first: u64, last: u64, kept: &[u64]) -> Vec<(u64, u64)> {
    let mut left = Vec::new();
    let mut from = first;
    for &seq in kept {
        if from < seq {
            left.push((from, seq - 1));
        }
        from = seq.saturating_add(1);
    }
    if from <= last {
        left.push((from, last));
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_without_its_parts() {
        assert_eq!(without(1, 9, &[]), [(1, 9)]);
        assert_eq!(without(1, 9, &[1, 5, 9]), [(2, 4), (6, 8)]);
        assert_eq!(without(3, 3, &[3]), []);
    }
}
