//! What was not answered yet. It is sent again after each Welcome, in order; submits without holes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::Effect;
use crate::{
    id::{MutationId, OpId, SessionId, Trace},
    limits::{KEY_MAX, PENDING_BYTES, PENDING_MAX, SUBMIT_PATIENCE, SUBMIT_RETRY, VALUE_MAX},
    message::{Answer, Ask, HeldOp, OpOutcome, Operation, Submit, SubmitOutcome, ToHub},
    time::{Time, earliest},
};

#[derive(Debug)]
struct Op {
    token: u64,
    /// When it was made: the operation of a layer has an older number.
    order: u64,
    operation: Operation,
    trace: Trace,
}

#[derive(Debug)]
struct Mutation {
    /// Who waits for the outcome; none where it was told that it takes long.
    token: Option<u64>,
    /// What the owner first said when it did not store it, and when the caller is told.
    delayed: Option<(Time, SubmitOutcome)>,
    hash: [u8; 16],
    payload: Bytes,
}

#[derive(Debug)]
struct Question {
    token: u64,
    ask: Ask,
    trace: Trace,
    /// An owner was asked.
    sent: bool,
}

#[derive(Debug)]
pub(super) struct Pending {
    session: SessionId,
    ops: BTreeMap<u64, Op>,
    submits: BTreeMap<u64, Mutation>,
    asks: BTreeMap<u64, Question>,
    bytes: usize,
    next_op: u64,
    ordered: u64,
    next_submit: u64,
    next_ask: u64,
    /// Layers that are open; each has a number of an operation.
    layers: usize,
    retry_at: Option<Time>,
    /// When a caller is to be told, or earlier.
    tell_at: Option<Time>,
}

impl Pending {
    pub(super) fn new(session: SessionId) -> Self {
        Self {
            session,
            ops: BTreeMap::new(),
            submits: BTreeMap::new(),
            asks: BTreeMap::new(),
            bytes: 0,
            next_op: 1,
            ordered: 0,
            next_submit: 1,
            next_ask: 1,
            layers: 0,
            retry_at: None,
            tell_at: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ops.len() + self.submits.len() + self.asks.len()
    }

    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// When a caller has waited long enough for a submit that the owner cannot store.
    pub(super) fn tell_at(&self) -> Option<Time> {
        self.tell_at
    }

    fn is_full(&self, more: usize) -> bool {
        self.len() + self.layers >= PENDING_MAX || self.bytes + more > PENDING_BYTES
    }

    pub(super) fn op(
        &mut self,
        token: u64,
        operation: Operation,
        trace: Trace,
        linked: bool,
        out: &mut Vec<Effect>,
    ) {
        let size = operation.size();
        if let Some(why) = does_not_fit(&operation) {
            out.push(Effect::OpDone { token, outcome: OpOutcome::Rejected(why) });
            return;
        }
        if self.is_full(size) {
            out.push(Effect::Overloaded { token });
            return;
        }
        let seq = self.number();
        self.add_op(seq, token, operation, trace, linked, out);
    }

    fn number(&mut self) -> u64 {
        self.next_op += 1;
        self.next_op - 1
    }

    fn add_op(
        &mut self,
        seq: u64,
        token: u64,
        operation: Operation,
        trace: Trace,
        linked: bool,
        out: &mut Vec<Effect>,
    ) {
        self.bytes += operation.size();
        self.ordered += 1;
        let op = Op { token, order: self.ordered, operation, trace };
        if linked {
            out.push(self.send_op(seq, &op));
        }
        self.ops.insert(seq, op);
    }

    /// The number of the operation that a new layer stands for; `None`: there is no room.
    pub(super) fn open_layer(&mut self, size: usize) -> Option<u64> {
        if self.is_full(size) {
            return None;
        }
        self.layers += 1;
        self.bytes += size;
        Some(self.number())
    }

    pub(super) fn close_layer(&mut self, size: usize) {
        self.layers -= 1;
        self.bytes -= size;
    }

    /// The operation of an open layer, which made room for it.
    pub(super) fn commit(
        &mut self,
        layer: u64,
        token: u64,
        operation: Operation,
        trace: Trace,
        linked: bool,
        out: &mut Vec<Effect>,
    ) {
        self.add_op(layer, token, operation, trace, linked, out);
    }

    /// Answers what an owner that knows no layers cannot be asked.
    pub(super) fn refuse_layers(&mut self, out: &mut Vec<Effect>) {
        self.asks.retain(|_, question| {
            let layers = matches!(question.ask, Ask::Layers { .. });
            if layers {
                let answer = Answer::Refused("the primary is of a build that knows no layers".to_owned());
                out.push(Effect::Answered { token: question.token, answer });
            }
            !layers
        });
    }

    pub(super) fn has_op(&self, seq: u64) -> bool {
        self.ops.contains_key(&seq)
    }

    pub(super) fn submit(
        &mut self,
        token: u64,
        hash: [u8; 16],
        payload: Bytes,
        linked: bool,
        out: &mut Vec<Effect>,
    ) {
        if payload.len() > VALUE_MAX || self.is_full(payload.len()) {
            out.push(Effect::Overloaded { token });
            return;
        }
        let seq = self.next_submit;
        self.next_submit += 1;
        self.bytes += payload.len();
        let mutation = Mutation { token: Some(token), delayed: None, hash, payload };
        // While earlier ones wait for their retry this one would only be refused as a hole.
        if linked && self.retry_at.is_none() {
            out.push(self.send_submit(seq, &mutation));
        }
        self.submits.insert(seq, mutation);
    }

    pub(super) fn ask(&mut self, token: u64, ask: Ask, trace: Trace, linked: bool, out: &mut Vec<Effect>) {
        if self.is_full(0) {
            out.push(Effect::Overloaded { token });
            return;
        }
        let id = self.next_ask;
        self.next_ask += 1;
        if linked {
            out.push(Effect::Send(ToHub::Ask { id, ask: ask.clone(), trace }));
        }
        self.asks.insert(id, Question { token, ask, trace, sent: linked });
    }

    fn send_op(&self, seq: u64, op: &Op) -> Effect {
        let id = OpId { session: self.session, seq };
        Effect::Send(ToHub::Op { op: HeldOp { id, operation: op.operation.clone() }, trace: op.trace })
    }

    fn send_submit(&self, seq: u64, mutation: &Mutation) -> Effect {
        let id = MutationId { session: self.session, seq };
        Effect::Send(ToHub::Submit(Submit { id, hash: mutation.hash, payload: mutation.payload.clone() }))
    }

    /// The wire has changed hands. A handover that was asked for has happened, or something else came first: asking again
    /// could move the wire once more.
    pub(super) fn wire_moved(&mut self, owner: SessionId, out: &mut Vec<Effect>) {
        self.asks.retain(|_, Question { token, ask, sent, .. }| {
            let Ask::Promote(to) = ask else { return true };
            if !*sent {
                return true;
            }
            let answer = if to.is_none_or(|to| to == owner) {
                Answer::Done
            } else {
                let now = owner.short();
                Answer::Refused(format!("session {now} took over meanwhile; ask again if it should not stay"))
            };
            out.push(Effect::Answered { token: *token, answer });
            false
        });
    }

    /// Sends everything again to a new owner.
    pub(super) fn reissue(&mut self, out: &mut Vec<Effect>) {
        self.retry_at = None;
        let mut ops: Vec<_> = self.ops.iter().collect();
        ops.sort_by_key(|(_, op)| op.order);
        out.extend(ops.into_iter().map(|(seq, op)| self.send_op(*seq, op)));
        out.extend(self.submits.iter().map(|(seq, mutation)| self.send_submit(*seq, mutation)));
        for (id, Question { ask, trace, sent, .. }) in &mut self.asks {
            *sent = true;
            out.push(Effect::Send(ToHub::Ask { id: *id, ask: ask.clone(), trace: *trace }));
        }
    }

    /// Sends submits again that the owner was too busy for, with all that follow them.
    pub(super) fn retry(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            out.extend(self.submits.iter().map(|(seq, mutation)| self.send_submit(*seq, mutation)));
        }
    }

    /// Answers those who wait for submits that the owner cannot store. The mutations are kept: a number that was given
    /// must not be missing.
    pub(super) fn tell(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.tell_at.is_none_or(|at| at > now) {
            return;
        }
        self.tell_at = None;
        for (seq, mutation) in &mut self.submits {
            match &mutation.delayed {
                Some((at, outcome)) if *at <= now => {
                    let outcome = outcome.clone();
                    mutation.delayed = None;
                    if let Some(token) = mutation.token.take() {
                        out.push(Effect::SubmitDone { token, seq: *seq, outcome });
                    }
                }
                Some((at, _)) => self.tell_at = earliest(self.tell_at, Some(*at)),
                None => {}
            }
        }
    }

    fn delayed(&mut self, now: Time, seq: u64, outcome: SubmitOutcome) {
        if let Some(mutation) = self.submits.get_mut(&seq).filter(|mutation| mutation.token.is_some()) {
            let (at, _) = mutation.delayed.get_or_insert((now + SUBMIT_PATIENCE, outcome));
            self.tell_at = earliest(self.tell_at, Some(*at));
        }
    }

    pub(super) fn op_done(&mut self, id: OpId, outcome: OpOutcome, out: &mut Vec<Effect>) {
        if id.session != self.session {
            return;
        }
        if let Some(op) = self.ops.remove(&id.seq) {
            self.bytes -= op.operation.size();
            out.push(Effect::OpDone { token: op.token, outcome });
        }
    }

    pub(super) fn submit_done(
        &mut self,
        now: Time,
        id: MutationId,
        outcome: SubmitOutcome,
        out: &mut Vec<Effect>,
    ) {
        if id.session != self.session || !self.submits.contains_key(&id.seq) {
            return;
        }
        match outcome {
            // The next owner decides; it is sent again after its Welcome.
            SubmitOutcome::Moved => {}
            SubmitOutcome::Unknown(_) => self.delayed(now, id.seq, outcome),
            SubmitOutcome::Busy => {
                self.retry_at = Some(now + SUBMIT_RETRY);
                self.delayed(now, id.seq, outcome);
            }
            // An earlier one was not taken and is sent again, this one after it.
            SubmitOutcome::Hole { expected } if self.submits.contains_key(&expected) => {
                self.retry_at.get_or_insert(now + SUBMIT_RETRY);
            }
            SubmitOutcome::Acknowledged | SubmitOutcome::HashMismatch | SubmitOutcome::Hole { .. } => {
                if let Some(mutation) = self.submits.remove(&id.seq) {
                    self.bytes -= mutation.payload.len();
                    if let Some(token) = mutation.token {
                        out.push(Effect::SubmitDone { token, seq: id.seq, outcome });
                    }
                }
            }
        }
    }

    pub(super) fn answered(&mut self, id: u64, answer: Answer, out: &mut Vec<Effect>) {
        if let Some(question) = self.asks.remove(&id) {
            out.push(Effect::Answered { token: question.token, answer });
        }
    }
}

/// Why an operation is not even sent: a frame could not carry it.
pub(crate) fn does_not_fit(operation: &Operation) -> Option<String> {
    let key = operation.key().0.len();
    if key > KEY_MAX {
        return Some(format!("the key has {key} bytes, more than {KEY_MAX}; nothing changed"));
    }
    let value = operation.size() - key;
    (value > VALUE_MAX)
        .then(|| format!("the value has {value} bytes, more than {VALUE_MAX}; nothing changed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Key;

    fn pending() -> Pending {
        Pending::new(SessionId(1))
    }

    fn submits(out: &[Effect]) -> Vec<u64> {
        let seq = |effect: &Effect| match effect {
            Effect::Send(ToHub::Submit(submit)) => Some(submit.id.seq),
            _ => None,
        };
        out.iter().filter_map(seq).collect()
    }

    fn id(seq: u64) -> MutationId {
        MutationId { session: SessionId(1), seq }
    }

    #[test]
    fn unanswered_submits_go_out_again_in_order_and_answered_ones_do_not() {
        let (mut pending, mut out) = (pending(), Vec::new());
        (1..=4).for_each(|n| pending.submit(n, [0; 16], Bytes::new(), false, &mut out));
        assert!(out.is_empty());
        pending.reissue(&mut out);
        assert_eq!(submits(&out), [1, 2, 3, 4]);
        out.clear();
        pending.submit_done(Time(0), id(1), SubmitOutcome::Acknowledged, &mut out);
        pending.submit_done(Time(0), id(2), SubmitOutcome::Moved, &mut out);
        pending.submit_done(Time(0), id(3), SubmitOutcome::Unknown("fsync".to_owned()), &mut out);
        assert_eq!(out.len(), 1);
        pending.reissue(&mut out);
        assert_eq!(submits(&out), [2, 3, 4]);
    }

    #[test]
    fn a_handover_that_was_asked_for_is_not_asked_for_again_of_the_next_owner() {
        let (mut pending, mut out) = (pending(), Vec::new());
        pending.ask(1, Ask::Promote(None), Trace::NONE, true, &mut out);
        pending.ask(2, Ask::Promote(Some(SessionId(7))), Trace::NONE, true, &mut out);
        pending.ask(3, Ask::Promote(Some(SessionId(8))), Trace::NONE, true, &mut out);
        pending.ask(4, Ask::Promote(None), Trace::NONE, false, &mut out);
        pending.ask(5, Ask::Sync, Trace::NONE, true, &mut out);
        out.clear();
        pending.wire_moved(SessionId(7), &mut out);
        let answered = |effect: &Effect| match effect {
            Effect::Answered { token, answer } => Some((*token, *answer == Answer::Done)),
            _ => None,
        };
        assert_eq!(out.iter().filter_map(answered).collect::<Vec<_>>(), [(1, true), (2, true), (3, false)]);
        out.clear();
        pending.reissue(&mut out);
        assert_eq!(out.len(), 2, "the one that no owner had heard, and the one of another kind");
    }

    #[test]
    fn a_busy_owner_is_asked_again_and_the_rest_follows() {
        let (mut pending, mut out) = (pending(), Vec::new());
        (1..=3).for_each(|n| pending.submit(n, [0; 16], Bytes::new(), true, &mut out));
        pending.submit_done(Time(0), id(1), SubmitOutcome::Acknowledged, &mut out);
        pending.submit_done(Time(0), id(2), SubmitOutcome::Busy, &mut out);
        pending.submit_done(Time(0), id(3), SubmitOutcome::Hole { expected: 2 }, &mut out);
        pending.submit(4, [0; 16], Bytes::new(), true, &mut out);
        out.clear();
        let due = pending.retry_at().unwrap();
        assert_eq!(due, Time(0) + SUBMIT_RETRY);
        pending.retry(due - std::time::Duration::from_nanos(1), &mut out);
        assert!(out.is_empty());
        pending.retry(due, &mut out);
        assert_eq!(submits(&out), [2, 3, 4]);
        assert_eq!(pending.retry_at(), None);
    }

    #[test]
    fn a_hole_that_this_session_cannot_fill_is_told() {
        let (mut pending, mut out) = (pending(), Vec::new());
        pending.submit(9, [0; 16], Bytes::new(), true, &mut out);
        out.clear();
        pending.submit_done(Time(0), id(1), SubmitOutcome::Hole { expected: 0 }, &mut out);
        assert!(matches!(
            out[..],
            [Effect::SubmitDone { token: 9, seq: 1, outcome: SubmitOutcome::Hole { .. } }]
        ));
    }

    #[test]
    fn who_waits_for_a_store_that_cannot_be_written_is_told_why_and_the_mutation_is_kept() {
        let (mut pending, mut out) = (pending(), Vec::new());
        for token in [7, 8] {
            pending.submit(token, [0; 16], Bytes::new(), true, &mut out);
        }
        out.clear();
        let full = || SubmitOutcome::Unknown("the disk is full".to_owned());
        pending.submit_done(Time(0), id(1), full(), &mut out);
        pending.submit_done(Time(9), id(2), SubmitOutcome::Busy, &mut out);
        pending.submit_done(Time(9), id(1), SubmitOutcome::Unknown("still".to_owned()), &mut out);
        let told = pending.tell_at().unwrap();
        assert_eq!(told, Time(0) + SUBMIT_PATIENCE);
        pending.tell(Time(told.0 - 1), &mut out);
        assert_eq!(out, []);
        pending.tell(told, &mut out);
        assert_eq!(out, [Effect::SubmitDone { token: 7, seq: 1, outcome: full() }]);
        out.clear();
        // The other one is stored in time.
        pending.submit_done(told, id(2), SubmitOutcome::Acknowledged, &mut out);
        assert_eq!(out, [Effect::SubmitDone { token: 8, seq: 2, outcome: SubmitOutcome::Acknowledged }]);
        out.clear();
        pending.reissue(&mut out);
        assert_eq!(submits(&out), [1], "it is sent to the next owner");
        pending.submit_done(told, id(1), SubmitOutcome::Acknowledged, &mut out);
        assert_eq!((out.len(), pending.len()), (1, 0), "nobody waits for it any more");
    }

    #[test]
    fn one_request_more_than_the_bound_is_refused() {
        let (mut pending, mut out) = (pending(), Vec::new());
        for token in 0..PENDING_MAX as u64 {
            pending.ask(token, Ask::Sync, Trace::NONE, false, &mut out);
        }
        assert!(out.is_empty());
        pending.ask(7, Ask::Sync, Trace::NONE, false, &mut out);
        assert_eq!(out, [Effect::Overloaded { token: 7 }]);
    }

    #[test]
    fn bytes_of_pending_requests_are_bounded_and_given_back() {
        let (mut pending, mut out) = (pending(), Vec::new());
        let payload = Bytes::from(vec![0; VALUE_MAX]);
        let fit = (PENDING_BYTES / VALUE_MAX) as u64;
        (1..=fit).for_each(|token| pending.submit(token, [0; 16], payload.clone(), false, &mut out));
        assert!(out.is_empty());
        pending.submit(99, [0; 16], payload.clone(), false, &mut out);
        assert_eq!(out, [Effect::Overloaded { token: 99 }]);
        pending.submit_done(Time(0), id(1), SubmitOutcome::Acknowledged, &mut out);
        out.clear();
        pending.submit(100, [0; 16], payload, false, &mut out);
        assert!(out.is_empty());
    }

    #[test]
    fn an_operation_at_the_bound_fits_and_one_byte_more_does_not() {
        let set = |key: usize, value: usize| Operation::Set {
            key: Key(Bytes::from(vec![b'k'; key])),
            value: Bytes::from(vec![b'v'; value]),
        };
        assert_eq!(does_not_fit(&set(KEY_MAX, VALUE_MAX)), None);
        assert!(does_not_fit(&set(KEY_MAX + 1, 1)).unwrap().contains("key"));
        assert!(does_not_fit(&set(1, VALUE_MAX + 1)).unwrap().contains("value"));
    }
}
