//! What survivors know and a new owner lacks: values and operations, accepted whenever they come.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    Effect, Hub,
    cache::{AppliedOps, Basis, Entry, add_applied},
    link::Link,
    links::Slot,
    log::{Atom, To},
};
use crate::{
    event::Event,
    id::{Channel, Key, LinkId, Mark, OpId, Place, Position, SessionId, Trace, Version},
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
    /// An operation to be applied once no value with its effect can be offered any more.
    pub(super) fn wait(&mut self, mark: Mark, op: HeldOp, from: SessionId) {
        if !self.ops.iter().any(|(_, other, _)| other.id == op.id) {
            self.ops.push((mark, op, from));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && self.ops.is_empty()
    }

    pub(super) fn has(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    /// Whether a value may still come from this link.
    pub(super) fn asks(&self, link: LinkId) -> bool {
        let offered = |want: &Want| want.from == link || want.others.iter().any(|(other, _)| *other == link);
        self.keys.values().any(offered)
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
            let ahead = entry.is_none_or(|entry| {
                entry.below.as_ref().is_some_and(|below| offer.place > *below)
                    || offer.place > entry.held.place
            });
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

    /// Ids whose bytes a survivor does not keep any more: what they did was everybody's. Nothing else tells them to those who
    /// joined before.
    pub(super) fn take_settled_ids(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get_mut(slot) else { return };
        let offered = std::mem::take(&mut link.ops_offered);
        let mut news: Vec<Applied> = Vec::new();
        for (&session, seqs) in link.applied.iter() {
            let mut runs = Vec::new();
            for &(first, last) in seqs.runs() {
                let of_session = OpId { session, seq: first }..=OpId { session, seq: last };
                let kept: Vec<u64> = offered.range(of_session).map(|id| id.seq).collect();
                runs.extend(without(first, last, &kept));
            }
            runs.retain(|&(first, last)| !self.ops.knows_run(session, first, last));
            if !runs.is_empty() {
                news.push(Applied { session, runs });
            }
        }
        self.ops.note_applied(&news, self.log.mark());
        let joined = |(slot, link): (Slot, &Link)| link.is_joined().then_some(slot);
        let joined: Vec<Slot> = self.links.iter().filter_map(joined).collect();
        for chunk in news.chunks(CHUNK_ITEMS) {
            joined.iter().for_each(|slot| self.tell(*slot, ToSession::Applied(chunk.to_vec()), out));
        }
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
        add_applied(known, applied);
        if known.len() > SESSIONS_MAX {
            return Err("operations of more sessions than a group may have");
        }
        Ok(())
    }

    /// What the values of a former heir's archive contain; its keys follow.
    pub(super) fn archive_offered(
        &mut self,
        slot: Slot,
        channels: Vec<(Channel, Position)>,
        applied: &[Applied],
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        let archive = link.archive.get_or_insert_default();
        Arc::make_mut(&mut archive.basis).extend(channels);
        let known = Arc::make_mut(&mut archive.applied);
        add_applied(known, applied);
        if known.len() > SESSIONS_MAX || archive.basis.len() > INTEREST_MAX {
            return Err("an archive of more sessions or channels than a group may have");
        }
        Ok(())
    }

    /// Former heirs may let go of their archives once a current heir holds what was wanted of them.
    pub(super) fn settle_archives(&mut self, out: &mut Vec<Effect>) {
        let held = self.heirs_hold();
        let end = self.log.end();
        let mut settled = Vec::new();
        for (slot, link) in self.links.iter_mut().filter(|(_, link)| link.is_joined()) {
            let Some(archive) = &mut link.archive else { continue };
            if archive.taken_at.is_none() && !self.wants.asks(link.id) {
                archive.taken_at = Some(end);
            }
            if archive.taken_at.is_some_and(|at| held.is_some_and(|held| held >= at)) {
                link.archive = None;
                settled.push(slot);
            }
        }
        settled.into_iter().for_each(|slot| self.tell(slot, ToSession::ArchiveHeld, out));
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
                None if !self.offers_done => self.wants.wait(mark, op, session),
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

    /// Values a survivor was asked for, of its interest or of its archive. The text says what is wrong with them.
    pub(super) fn values_came(
        &mut self,
        slot: Slot,
        values: Vec<Held>,
        archived: bool,
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
            self.value_came(slot, held, archived, out);
        }
        self.values_settled(out);
        Ok(())
    }

    fn value_came(&mut self, slot: Slot, held: Held, archived: bool, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let (id, session) = (link.id, link.session);
        if self.wants.keys.get(&held.key).is_none_or(|want| want.from != id) {
            return;
        }
        if held.place == Place::default() {
            // It was dropped since it was offered.
            return self.ask_another(held.key, out);
        }
        let Some(want) = self.wants.keys.remove(&held.key) else { return };
        let wins = self.cache.get(&held.key).is_none_or(|entry| held.place > entry.held.place);
        let mut ops = want.ops;
        let early = std::mem::take(&mut self.wants.ops);
        let (of_key, rest) = early.into_iter().partition(|(_, op, _)| *op.operation.key() == held.key);
        self.wants.ops = rest;
        ops.extend::<Vec<_>>(of_key);
        let taken = self.taken(slot, held, archived);
        if self.lies_below(&taken.held) {
            self.put_below(taken, &mut ops, out);
        } else if wins {
            self.take_winner(taken, &mut ops, out);
            out.push(Effect::Event(Event::WinnerRepublished { from: session }));
        }
        ops.into_iter().for_each(|(mark, op, from)| self.adopt(mark, op, from, out));
    }

    /// Whether operations of this reign were applied to something that the value is greater than.
    fn lies_below(&self, held: &Held) -> bool {
        let entry = self.cache.get(&held.key).filter(|entry| entry.held.place.mark.epoch == self.epoch);
        entry.and_then(|entry| entry.below.as_ref()).is_some_and(|below| held.place > *below)
    }

    /// A value from this link, with what it contains: channels up to where, and which operations. Nobody vouches for one from
    /// an archive, so that another survivor's greater value lies below what is made of it.
    fn taken(&self, slot: Slot, held: Held, archived: bool) -> Entry {
        let below = archived.then(|| held.place.clone());
        let contains = self.links.get(slot).and_then(|link| {
            if archived {
                let archive = link.archive.as_ref()?;
                return Some((archive.basis.clone(), archive.applied.clone()));
            }
            let covered = link.offer.values().map(|offer| (offer.channel.clone(), offer.covered.clone()));
            Some((Arc::new(covered.collect()), link.applied.clone()))
        });
        let (basis, applied): (Basis, Arc<AppliedOps>) = contains.unwrap_or_default();
        Entry { basis: Some(basis), ops: Some(applied), below, ..Entry::new(held) }
    }

    /// Installs a survivor's value at its own place and shows it to those who are behind. The ids of operations that came
    /// with it go along in the same atom, and are taken out of `ops`.
    fn take_winner(&mut self, entry: Entry, ops: &mut Vec<(Mark, HeldOp, SessionId)>, out: &mut Vec<Effect>) {
        let mut atom = self.log.atom(Trace::NONE);
        atom.push(Body::Value(entry.held.clone()), None, None, To::All);
        let included = ops.extract_if(.., |(_, op, _)| entry.has_op(op.id)).collect();
        self.send_ids(&mut atom, included);
        // What this owner holds and the survivor's value lacks happened in another line of owners.
        let lacking: Vec<(Mark, HeldOp)> = self
            .ops
            .of_key(&entry.held.key)
            .filter(|(_, op)| !entry.has_op(op.id))
            .map(|(mark, op)| (mark, op.clone()))
            .collect();
        let (set_at, key) = (entry.set_at, entry.held.key.clone());
        let versioned = entry.held.place.version != Version::None;
        self.cache.insert(entry);
        self.commit(atom, out);
        self.tell_value(&key, super::Writer::Push { versioned }, out);
        for (mark, op) in lacking {
            let sets = matches!(op.operation, Operation::Set { .. } | Operation::CompareSet { .. });
            if !(sets && set_at > mark) {
                self.carry_out_again(op, out);
            }
        }
    }

    /// The ids of operations whose effect is in the value before them, for everybody who gets that.
    fn send_ids(&mut self, atom: &mut Atom, ops: Vec<(Mark, HeldOp, SessionId)>) {
        for (_, op, _) in ops.into_iter().filter(|(_, op, _)| !self.reign_ops.has(op.id)).collect::<Vec<_>>()
        {
            self.keep_op(atom.mark(), op.clone());
            atom.push(Body::Nothing, None, Some(op), To::All);
        }
    }

    /// A value that lies below what operations of this reign made of nothing: they are carried out on it once more.
    fn put_below(&mut self, taken: Entry, ops: &mut Vec<(Mark, HeldOp, SessionId)>, out: &mut Vec<Effect>) {
        let Entry { held, below, ops: applied, .. } = taken;
        let Some(entry) = self.cache.get_mut(&held.key) else { return };
        let place = &mut entry.held.place;
        place.version = place.version.clone().max(held.place.version);
        place.reset = place.reset.max(held.place.reset);
        (entry.below, entry.ops) = (below, applied);
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
            self.install(&mut atom, held.key, value, version, None, None, true, out);
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
        lost.into_iter().for_each(|key| self.ask_another(key, out));
        self.values_settled(out);
    }

    /// The survivor asked cannot give the value: the next one is asked, or the operations go on without it.
    fn ask_another(&mut self, key: Key, out: &mut Vec<Effect>) {
        let Some(want) = self.wants.keys.get_mut(&key) else { return };
        let best = want.others.iter().enumerate().max_by(|(_, a), (_, b)| a.1.cmp(&b.1)).map(|(at, _)| at);
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
