//! Volatile operations: applied at once, acknowledged by an heir, deduplicated by id across owners.

use std::collections::BTreeMap;

use super::{Effect, Hub, links::Slot, log::To};
use crate::{
    follower::does_not_fit,
    id::{Epoch, Key, LinkId, Mark, Offset, OpId, SessionId, Trace},
    limits::{RING_FRAMES, VALUE_MAX},
    message::{Body, HeldOp, OpOutcome, Operation, ToSession},
};

/// How far the caller of an operation of this reign is known to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// It waits for an heir.
    Waiting,
    /// The answer is queued for this link.
    Queued(LinkId),
    /// The answer was handed to the transport after this offset.
    Sent(LinkId, Offset),
}

/// Callers of the operations of this reign that are above the stable place.
///
/// **Invariant:** the stable place never passes an operation whose caller may still ask for it again; so whoever owns the
/// group next knows the id of everything that can be asked again.
#[derive(Debug, Default)]
pub(super) struct Answers {
    told: BTreeMap<Offset, (OpId, Told)>,
    by_id: BTreeMap<OpId, Offset>,
}

impl Answers {
    fn insert(&mut self, offset: Offset, id: OpId) {
        self.told.insert(offset, (id, Told::Waiting));
        self.by_id.insert(id, offset);
        while self.told.len() > RING_FRAMES
            && let Some((_, (oldest, _))) = self.told.pop_first()
        {
            self.by_id.remove(&oldest);
        }
    }

    fn set(&mut self, id: OpId, told: Told) {
        if let Some(entry) = self.by_id.get(&id).and_then(|offset| self.told.get_mut(offset)) {
            entry.1 = told;
        }
    }

    /// The transport got the answer; it comes after everything up to `sent`.
    pub(super) fn handed_out(&mut self, id: OpId, sent: Offset) {
        if let Some((_, told)) = self.by_id.get(&id).and_then(|offset| self.told.get_mut(offset))
            && let Told::Queued(link) = *told
        {
            *told = Told::Sent(link, sent);
        }
    }

    fn waiting(&self, upto: Option<Offset>) -> Vec<(Offset, OpId)> {
        let upto = upto.unwrap_or(Offset(u64::MAX));
        let waiting = self.told.range(..=upto).filter(|(_, (_, told))| *told == Told::Waiting);
        waiting.map(|(offset, (id, _))| (*offset, *id)).collect()
    }

    /// Forgets what nobody can ask again. `confirmed` says whether the caller has its answer.
    fn settle(&mut self, upto: Offset, confirmed: impl Fn(OpId, Told) -> bool) -> Offset {
        while let Some((&offset, &(id, told))) = self.told.first_key_value() {
            if offset > upto {
                return upto;
            }
            if !confirmed(id, told) {
                return Offset(offset.0 - 1);
            }
            self.told.pop_first();
            self.by_id.remove(&id);
        }
        upto
    }
}

/// An operation that cannot be taken yet.
#[derive(Debug)]
pub(super) struct HeldBack {
    pub(super) link: LinkId,
    pub(super) op: HeldOp,
    pub(super) trace: Trace,
}

impl Hub {
    /// An operation came from its caller.
    pub(super) fn op_came(&mut self, slot: Slot, op: HeldOp, trace: Trace, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let (link, session) = (link.id, link.session);
        if let Some(why) = does_not_fit(&op.operation) {
            self.op_done(session, op.id, OpOutcome::Rejected(why), out);
        } else if self.drain.is_some() || self.must_wait(&op) {
            // Asked again, so the answer it was given got lost.
            self.answers.set(op.id, Told::Waiting);
            self.hold_back(slot, HeldBack { link, op, trace }, out);
        } else {
            self.take_op(session, op, trace, out);
        }
    }

    /// An operation does not touch a value that is on its way from a survivor, nor, where this owner was no up-to-date
    /// heir, one that it may merely lack; nor does it overtake an earlier one of its session.
    fn must_wait(&self, op: &HeldOp) -> bool {
        if self.has_effect(op) {
            return false;
        }
        let key = op.operation.key();
        let touches = !matches!(op.operation, Operation::Invalidate { .. });
        let unsure = self.cache.get(key).is_none_or(|entry| entry.below.is_some());
        let lacks = !self.offers_done && !self.complete && unsure;
        touches && (lacks || self.wants.has(key))
            || self.held_back.iter().any(|held| held.op.id.session == op.id.session)
    }

    fn hold_back(&mut self, slot: Slot, held: HeldBack, out: &mut Vec<Effect>) {
        if self.reserve(slot, held.op.operation.size(), out) {
            self.held_back.push_back(held);
        }
    }

    /// Takes the operations that waited.
    pub(super) fn take_held_back(&mut self, out: &mut Vec<Effect>) {
        if self.drain.is_some() {
            return;
        }
        for held in std::mem::take(&mut self.held_back) {
            let Some(slot) = self.links.slot(held.link) else { continue };
            self.release(slot, held.op.operation.size());
            self.op_came(slot, held.op, held.trace, out);
        }
    }

    fn take_op(&mut self, session: SessionId, op: HeldOp, trace: Trace, out: &mut Vec<Effect>) {
        let id = op.id;
        if self.has_effect(&op) {
            self.answer_known(session, id, out);
            return;
        }
        match self.carry_out(op, trace, out) {
            Ok(mark) => {
                self.answers.insert(mark.offset, id);
                if self.heirs_hold().is_none() {
                    self.op_applied(session, id, mark, true, out);
                }
            }
            Err(outcome) => self.op_done(session, id, outcome, out),
        }
    }

    /// An operation that took effect before is asked for again.
    fn answer_known(&mut self, session: SessionId, id: OpId, out: &mut Vec<Effect>) {
        let mark = self.ops.mark_of(id).unwrap_or(self.members.stable());
        let held = self.heirs_hold();
        if mark.epoch == self.epoch && self.answers.by_id.contains_key(&id) {
            self.answers.set(id, Told::Waiting);
            if held.is_some_and(|held| held < mark.offset) {
                return;
            }
        }
        // What is stable was acknowledged by everybody, and held by those who follow its key.
        self.op_applied(session, id, mark, held.is_none(), out);
    }

    /// Applies an operation and queues its frame.
    fn carry_out(&mut self, op: HeldOp, trace: Trace, out: &mut Vec<Effect>) -> Result<Mark, OpOutcome> {
        let mut atom = self.log.atom(trace);
        let mark = atom.mark();
        let key = op.operation.key().clone();
        let held = self.cache.get(&key);
        let value = match &op.operation {
            Operation::Set { value, .. } => Some((value.clone(), false)),
            Operation::CompareSet { base, value, .. } => {
                let place = held.filter(|entry| entry.has_value()).map(|entry| &entry.held.place);
                if place != base.as_ref() {
                    return Err(OpOutcome::Conflict);
                }
                Some((value.clone(), false))
            }
            Operation::Merge { patch, .. } => {
                let old = held.filter(|entry| entry.has_value()).map(|entry| entry.held.value.as_ref());
                Some((self.fold.fold(old, patch).map_err(OpOutcome::Rejected)?, true))
            }
            Operation::Invalidate { .. } => None,
        };
        match value {
            Some((value, _)) if value.is_empty() || value.len() > VALUE_MAX => {
                let why = format!("the value would have {} bytes; nothing changed", value.len());
                return Err(OpOutcome::Rejected(why));
            }
            Some((value, folded)) => {
                // It inherits the server's version: the next one from the server still wins.
                let version = held.map(|entry| entry.held.place.version.clone()).unwrap_or_default();
                self.install(&mut atom, key, value, version, None, Some(op.clone()), folded, out);
            }
            None => {
                let exact = matches!(op.operation, Operation::Invalidate { exact: true, .. });
                self.cache.invalidate(&key, exact);
                self.tell_invalidated(&key, exact, trace, out);
                atom.push(Body::Invalidate { key, exact }, None, Some(op.clone()), To::All);
            }
        }
        self.keep_op(mark, op);
        self.commit(atom, out);
        Ok(mark)
    }

    /// An operation that a survivor holds and this owner lacks. `merge` is applied again, `set` only if no later `set`
    /// was, with the merges since then on top; `invalidate` always.
    pub(super) fn adopt_op(&mut self, mark: Mark, op: HeldOp, out: &mut Vec<Effect>) {
        let key = op.operation.key();
        let entry = self.cache.get(key);
        let overtaken = match &op.operation {
            Operation::Set { .. } | Operation::CompareSet { .. } => entry.is_some_and(|e| e.set_at > mark),
            Operation::Merge { .. } => entry.is_some_and(|e| e.held.place.reset > mark),
            Operation::Invalidate { .. } => false,
        };
        if overtaken {
            self.note_op(op, out);
            return;
        }
        let since: Vec<HeldOp> = self
            .ops
            .of_key(key)
            .filter(|(at, later)| *at > mark && matches!(later.operation, Operation::Merge { .. }))
            .map(|(_, later)| later.clone())
            .collect();
        let replaces = !matches!(op.operation, Operation::Merge { .. } | Operation::Invalidate { .. });
        self.carry_out_again(op, out);
        if replaces {
            since.into_iter().for_each(|merge| self.carry_out_again(merge, out));
        }
    }

    /// Carries out an operation that took effect elsewhere; its id moves along to the new place.
    pub(super) fn carry_out_again(&mut self, op: HeldOp, out: &mut Vec<Effect>) {
        let op = match op.operation {
            // Its condition held when it was applied first.
            Operation::CompareSet { key, value, .. } => {
                HeldOp { operation: Operation::Set { key, value }, ..op }
            }
            Operation::Set { .. } | Operation::Merge { .. } | Operation::Invalidate { .. } => op,
        };
        if self.carry_out(op.clone(), Trace::NONE, out).is_err() {
            // The patch does not fit what is here now.
            self.note_op(op, out);
        }
    }

    /// Takes an operation's id for one whose effect is here already, or never will be.
    pub(super) fn note_op(&mut self, op: HeldOp, out: &mut Vec<Effect>) {
        let mut atom = self.log.atom(Trace::NONE);
        self.keep_op(atom.mark(), op.clone());
        atom.push(Body::Nothing, None, Some(op), To::All);
        self.commit(atom, out);
    }

    /// Answers what an heir holds by now; without a current heir everything, as volatile.
    pub(super) fn answer_waiting_ops(&mut self, out: &mut Vec<Effect>) {
        let held = self.heirs_hold();
        for (offset, id) in self.answers.waiting(held) {
            self.op_applied(id.session, id, Mark::new(self.epoch, offset), held.is_none(), out);
        }
    }

    fn op_applied(
        &mut self,
        session: SessionId,
        id: OpId,
        mark: Mark,
        volatile: bool,
        out: &mut Vec<Effect>,
    ) {
        if self.drain.is_some() {
            // It stays unanswered; the next owner knows it.
            return;
        }
        if let Some(link) = self.members.link_of(session) {
            self.answers.set(id, Told::Queued(link));
        }
        self.op_done(session, id, OpOutcome::Applied { mark, volatile }, out);
    }

    fn op_done(&mut self, session: SessionId, id: OpId, outcome: OpOutcome, out: &mut Vec<Effect>) {
        self.tell_session(session, ToSession::OpDone { id, outcome }, out);
    }

    /// How far the stable place may go, given that all counted members acknowledged `upto`.
    pub(super) fn settle_answers(&mut self, upto: Offset) -> Offset {
        let (members, links) = (&self.members, &self.links);
        self.answers.settle(upto, |id, told| {
            let Some(member) = members.get(id.session) else { return true };
            let Some(current) = member.link else { return false };
            let acked = links.slot(current).and_then(|slot| links.get(slot)?.acked);
            match told {
                Told::Waiting => false,
                Told::Queued(link) => link != current && acked.is_some(),
                // On a newer link it would have been asked again before the first acknowledgement.
                Told::Sent(link, sent) => acked.is_some_and(|acked| link != current || acked > sent),
            }
        })
    }

    /// Takes an operation whose effect is in the cache from here on.
    pub(super) fn keep_op(&mut self, mark: Mark, op: HeldOp) {
        self.reign_ops.note(op.id.session, op.id.seq, op.id.seq, mark);
        self.ops.insert(mark, op);
    }

    /// Whether the operation took effect in what this owner holds: in this reign, or in what it took over, which for a
    /// survivor's value only that survivor knows.
    pub(super) fn has_effect(&self, op: &HeldOp) -> bool {
        let of_no_value = matches!(op.operation, Operation::Invalidate { .. });
        self.took_effect(op.id, op.operation.key()) || (of_no_value && self.ops.knows(op.id))
    }

    /// The same for an operation on the value of a key.
    pub(super) fn took_effect(&self, id: OpId, key: &Key) -> bool {
        if self.reign_ops.has(id) {
            return true;
        }
        match self.cache.get(key) {
            Some(entry) if entry.has_op(id) => true,
            Some(entry) if entry.ops.is_some() => self.complete && self.ops.knows(id),
            Some(_) => self.ops.knows(id),
            None => self.complete && self.ops.knows(id),
        }
    }

    /// The same for one that was applied at `mark`: everybody has what was stable, an up-to-date heir everything.
    pub(super) fn knows_op(&self, mark: Mark, op: &HeldOp) -> bool {
        let same_reign =
            |known: Mark| known.epoch == mark.epoch && known.epoch > Epoch::NONE && mark <= known;
        self.has_effect(op)
            || same_reign(self.carried_stable)
            || (self.complete && same_reign(self.carried_last))
    }
}
