//! Volatile operations a session keeps so that each takes effect once, whoever owns the group next.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    id::{Key, Mark, OpId, SessionId},
    limits::{RING_BYTES, RING_FRAMES, SESSIONS_MAX},
    message::{Applied, HeldOp, Operation},
    seqs::Seqs,
};

/// Runs of all sessions together, so that they fit into one message.
const RUNS_MAX: usize = 32 * SESSIONS_MAX;

/// Numbers of operations, of as many sessions as a group may have; the longest idle ones are forgotten first. Where the runs
/// are too many, the session with the most has its oldest hole closed.
#[derive(Debug, Default)]
pub(crate) struct KnownOps {
    sessions: BTreeMap<SessionId, (Mark, Seqs)>,
    runs: usize,
}

impl KnownOps {
    pub(crate) fn note(&mut self, session: SessionId, first: u64, last: u64, mark: Mark) {
        if !self.sessions.contains_key(&session) && self.sessions.len() >= SESSIONS_MAX {
            let idle =
                self.sessions.iter().min_by_key(|(_, (latest, _))| *latest).map(|(session, _)| *session);
            if let Some((_, forgotten)) = idle.and_then(|session| self.sessions.remove(&session)) {
                self.runs -= forgotten.runs().len();
            }
        }
        let (latest, seqs) = self.sessions.entry(session).or_default();
        *latest = mark.max(*latest);
        self.runs -= seqs.runs().len();
        seqs.insert_run(first, last);
        self.runs += seqs.runs().len();
        while self.runs > RUNS_MAX
            && let Some((_, fullest)) = self.sessions.values_mut().max_by_key(|(_, seqs)| seqs.runs().len())
        {
            fullest.close_oldest_hole();
            self.runs -= 1;
        }
    }

    pub(crate) fn note_applied(&mut self, applied: &[Applied], mark: Mark) {
        for of_session in applied {
            for &(first, last) in &of_session.runs {
                self.note(of_session.session, first, last, mark);
            }
        }
    }

    fn remove(&mut self, id: OpId) {
        if let Some((_, seqs)) = self.sessions.get_mut(&id.session) {
            self.runs -= seqs.runs().len();
            seqs.remove(id.seq);
            self.runs += seqs.runs().len();
        }
    }

    pub(crate) fn has(&self, id: OpId) -> bool {
        self.sessions.get(&id.session).is_some_and(|(_, seqs)| seqs.contains(id.seq))
    }
}

/// Operations above the stable place with their bytes, and the numbers of all that were applied.
///
/// **Invariant:** an operation's id is known here exactly if its effect is in the values held with it.
#[derive(Debug, Default)]
pub(crate) struct KeptOps {
    kept: BTreeMap<Mark, HeldOp>,
    marks: BTreeMap<OpId, Mark>,
    of_key: BTreeMap<Key, BTreeSet<Mark>>,
    known: KnownOps,
    bytes: usize,
}

impl KeptOps {
    /// Takes an operation that took effect at `mark`.
    pub(crate) fn insert(&mut self, mark: Mark, op: HeldOp) {
        self.known.note(op.id.session, op.id.seq, op.id.seq, mark);
        if let Some(old) = self.marks.insert(op.id, mark)
            && old != mark
        {
            self.remove(old);
        }
        let key = op.operation.key().clone();
        self.bytes += size(&op);
        if let Some(replaced) = self.kept.insert(mark, op) {
            self.bytes -= size(&replaced);
        }
        self.of_key.entry(key).or_default().insert(mark);
        while self.kept.len() > RING_FRAMES || self.bytes > RING_BYTES {
            let Some((&oldest, _)) = self.kept.first_key_value() else { break };
            self.forget(oldest);
        }
    }

    pub(crate) fn note_applied(&mut self, applied: &[Applied], mark: Mark) {
        self.known.note_applied(applied, mark);
    }

    pub(crate) fn knows_run(&self, session: SessionId, first: u64, last: u64) -> bool {
        let runs = self.known.sessions.get(&session).map(|(_, seqs)| seqs.runs());
        runs.is_some_and(|runs| runs.iter().any(|run| run.0 <= first && last <= run.1))
    }

    /// Whether the operation took effect, however long ago.
    pub(crate) fn knows(&self, id: OpId) -> bool {
        self.known.has(id)
    }

    /// The effect of an operation is not in what is held any more; its bytes are kept for whoever lacks it.
    pub(crate) fn unlearn(&mut self, id: OpId) {
        self.known.remove(id);
    }

    /// Where it took effect, if it is still kept.
    pub(crate) fn mark_of(&self, id: OpId) -> Option<Mark> {
        self.marks.get(&id).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Mark, &HeldOp)> {
        self.kept.iter().map(|(mark, op)| (*mark, op))
    }

    pub(crate) fn of_key(&self, key: &Key) -> impl Iterator<Item = (Mark, &HeldOp)> {
        let marks = self.of_key.get(key).into_iter().flatten();
        marks.filter_map(|mark| self.kept.get(mark).map(|op| (*mark, op)))
    }

    /// Those whose effect is not in one key's value.
    pub(crate) fn invalidations(&self) -> impl Iterator<Item = (Mark, &HeldOp)> {
        self.iter().filter(|(_, op)| matches!(op.operation, Operation::Invalidate { .. }))
    }

    /// The numbers of all that were applied.
    pub(crate) fn applied(&self) -> Vec<Applied> {
        let of_session = |(&session, (_, seqs)): (&SessionId, &(Mark, Seqs))| Applied {
            session,
            runs: seqs.runs().to_vec(),
        };
        self.known.sessions.iter().map(of_session).collect()
    }

    /// The same without those whose bytes are kept. Who holds only some of the values may claim these and no others: the
    /// rest comes with the values that it has an effect on.
    pub(crate) fn settled(&self) -> Vec<Applied> {
        let mut settled: BTreeMap<SessionId, Seqs> =
            self.known.sessions.iter().map(|(&session, (_, seqs))| (session, seqs.clone())).collect();
        for id in self.marks.keys() {
            if let Some(seqs) = settled.get_mut(&id.session) {
                seqs.remove(id.seq);
            }
        }
        let of_session = |(session, seqs): (SessionId, Seqs)| Applied { session, runs: seqs.runs().to_vec() };
        settled.into_iter().filter(|(_, seqs)| !seqs.runs().is_empty()).map(of_session).collect()
    }

    /// Drops the bytes of what every counted member has.
    pub(crate) fn settle(&mut self, stable: Mark) {
        while let Some((&oldest, _)) = self.kept.first_key_value()
            && oldest <= stable
        {
            self.forget(oldest);
        }
    }

    fn forget(&mut self, mark: Mark) {
        if let Some(id) = self.remove(mark) {
            self.marks.remove(&id);
        }
    }

    fn remove(&mut self, mark: Mark) -> Option<OpId> {
        let op = self.kept.remove(&mark)?;
        self.bytes -= size(&op);
        if let Some(marks) = self.of_key.get_mut(op.operation.key()) {
            marks.remove(&mark);
            if marks.is_empty() {
                self.of_key.remove(op.operation.key());
            }
        }
        Some(op.id)
    }
}

fn size(op: &HeldOp) -> usize {
    96 + op.operation.size()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::id::{Epoch, Offset};

    fn mark(offset: u64) -> Mark {
        Mark::new(Epoch(1), Offset(offset))
    }

    fn set(session: u128, seq: u64) -> HeldOp {
        let operation = Operation::Set { key: Key::copy_from(b"k"), value: Bytes::from_static(b"1") };
        HeldOp { id: OpId { session: SessionId(session), seq }, operation }
    }

    #[test]
    fn a_settled_operation_is_still_known() {
        let mut ops = KeptOps::default();
        ops.insert(mark(1), set(7, 1));
        ops.insert(mark(2), set(7, 2));
        ops.settle(mark(1));
        assert_eq!(ops.iter().count(), 1);
        assert!(ops.knows(OpId { session: SessionId(7), seq: 1 }));
        assert_eq!(ops.mark_of(OpId { session: SessionId(7), seq: 1 }), None);
        assert_eq!(ops.of_key(&Key::copy_from(b"k")).count(), 1);
    }

    #[test]
    fn an_operation_applied_again_elsewhere_moves() {
        let mut ops = KeptOps::default();
        ops.insert(mark(1), set(7, 1));
        ops.insert(mark(9), set(7, 1));
        assert_eq!(ops.mark_of(OpId { session: SessionId(7), seq: 1 }), Some(mark(9)));
        assert_eq!(ops.iter().count(), 1);
    }

    #[test]
    fn the_bound_drops_the_oldest_bytes_but_not_their_ids() {
        let mut ops = KeptOps::default();
        let all = RING_FRAMES as u64;
        (1..=all).for_each(|n| ops.insert(mark(n), set(7, n)));
        assert_eq!(ops.iter().count(), RING_FRAMES);
        ops.insert(mark(all + 1), set(7, all + 1));
        assert_eq!(ops.iter().count(), RING_FRAMES);
        assert!(ops.knows(OpId { session: SessionId(7), seq: 1 }));
    }

    #[test]
    fn runs_of_all_sessions_are_bounded_where_they_are_most() {
        let mut known = KnownOps::default();
        let note = |known: &mut KnownOps, session, seq| known.note(SessionId(session), seq, seq, mark(1));
        (0..SESSIONS_MAX as u128 - 1)
            .for_each(|session| (0..32).for_each(|n| note(&mut known, session, 2 * n)));
        let last = SESSIONS_MAX as u128;
        (0..32).for_each(|n| note(&mut known, last, 2 * n));
        let has = |known: &KnownOps, seq| known.has(OpId { session: SessionId(last), seq });
        assert!(!has(&known, 1));
        note(&mut known, last, 100);
        assert!(has(&known, 1) && !has(&known, 3));
        assert_eq!(known.runs, RUNS_MAX);
        assert_eq!(known.sessions.values().map(|(_, seqs)| seqs.runs().len()).sum::<usize>(), RUNS_MAX);
    }

    #[test]
    fn operations_that_come_key_by_key_are_not_taken_for_others() {
        let mut ops = KeptOps::default();
        (0..100).for_each(|n| ops.insert(mark(n + 1), set(7, 2 * n)));
        assert!((0..100).all(|n| !ops.knows(OpId { session: SessionId(7), seq: 2 * n + 1 })));
    }

    #[test]
    fn sessions_remembered_are_bounded() {
        let mut ops = KeptOps::default();
        let all = SESSIONS_MAX as u64;
        (1..=all + 1).for_each(|n| ops.insert(mark(n), set(u128::from(n), 1)));
        assert_eq!(ops.applied().len(), SESSIONS_MAX);
        assert!(!ops.knows(OpId { session: SessionId(1), seq: 1 }));
    }
}
