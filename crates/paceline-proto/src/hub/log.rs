//! The order of shared state: frames of this reign, numbered from 1, the recent ones kept for sessions that come back.

use std::{collections::VecDeque, sync::Arc};

use crate::{
    id::{Channel, Epoch, Mark, Offset, Position, Trace},
    limits::{RING_AGE, RING_BYTES, RING_FRAMES},
    message::{Body, Frame, HeldOp, Shared},
    time::Time,
};

/// For whom a frame is.
#[derive(Debug, Clone)]
pub(super) enum To {
    /// All whose interest it meets.
    All,
    /// Of those only links that stand before this position of the channel: it was published before.
    Behind(Channel, Position),
}

/// Frames that take effect together; the frames of one upstream message, for example.
#[derive(Debug)]
pub(super) struct Atom {
    epoch: Epoch,
    next: Offset,
    pub(super) trace: Trace,
    pub(super) frames: Vec<(Frame, To)>,
}

impl Atom {
    /// The place of the next frame.
    pub(super) fn mark(&self) -> Mark {
        Mark::new(self.epoch, self.next)
    }

    pub(super) fn push(
        &mut self,
        body: Body,
        origin: Option<(Channel, Position)>,
        op: Option<HeldOp>,
        to: To,
    ) {
        let frame = Frame { offset: self.next, trace: self.trace, origin, op, ends_atom: false, body };
        self.frames.push((frame, to));
        self.next = self.next.next();
    }
}

/// A frame kept for resume.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) shared: Arc<Shared>,
    pub(super) atom_end: Offset,
    /// Published before; only links that were behind got it.
    pub(super) replayed: bool,
    at: Time,
}

#[derive(Debug)]
pub(super) struct Log {
    epoch: Epoch,
    end: Offset,
    ring: VecDeque<Logged>,
    bytes: usize,
}

impl Log {
    pub(super) fn new(epoch: Epoch) -> Self {
        Self { epoch, end: Offset::ZERO, ring: VecDeque::new(), bytes: 0 }
    }

    /// Offset of the last frame.
    pub(super) fn end(&self) -> Offset {
        self.end
    }

    pub(super) fn mark(&self) -> Mark {
        Mark::new(self.epoch, self.end)
    }

    pub(super) fn atom(&self, trace: Trace) -> Atom {
        Atom { epoch: self.epoch, next: self.end.next(), trace, frames: Vec::new() }
    }

    /// Appends the frames of an atom. Returns them with their audience.
    pub(super) fn append(&mut self, atom: Atom, now: Time) -> Vec<(Arc<Shared>, To)> {
        let Some(end) = atom.frames.last().map(|(frame, _)| frame.offset) else { return Vec::new() };
        let mut appended = Vec::with_capacity(atom.frames.len());
        for (mut frame, to) in atom.frames {
            frame.ends_atom = frame.offset == end;
            let shared = Shared::new(frame);
            self.bytes += shared.size;
            let replayed = matches!(to, To::Behind(..));
            self.ring.push_back(Logged { shared: shared.clone(), atom_end: end, replayed, at: now });
            appended.push((shared, to));
        }
        self.end = end;
        while self.ring.len() > RING_FRAMES || self.bytes > RING_BYTES {
            self.drop_oldest();
        }
        appended
    }

    pub(super) fn expire(&mut self, now: Time) {
        while self.ring.front().is_some_and(|logged| now.since(logged.at) > RING_AGE) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some(dropped) = self.ring.pop_front() {
            self.bytes -= dropped.shared.size;
        }
    }

    /// The frames after `after`; `None` where the ring does not reach back so far, or `after` never was.
    pub(super) fn since(&self, after: Offset) -> Option<impl Iterator<Item = &Logged>> {
        let first = self.ring.front().map_or(self.end.next(), |logged| logged.shared.frame.offset);
        let reaches = after <= self.end && first <= after.next();
        reaches.then(|| self.ring.iter().skip_while(move |logged| logged.shared.frame.offset <= after))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(log: &mut Log, frames: usize, now: Time) {
        let mut atom = log.atom(Trace::NONE);
        (0..frames).for_each(|_| atom.push(Body::Nothing, None, None, To::All));
        log.append(atom, now);
    }

    fn offsets(log: &Log, after: u64) -> Option<Vec<u64>> {
        Some(log.since(Offset(after))?.map(|logged| logged.shared.frame.offset.0).collect())
    }

    #[test]
    fn atoms_are_numbered_from_one_and_end_once() {
        let mut log = Log::new(Epoch(1));
        append(&mut log, 0, Time(0));
        assert_eq!(log.end(), Offset::ZERO);
        append(&mut log, 3, Time(0));
        append(&mut log, 1, Time(0));
        let ends: Vec<bool> =
            log.since(Offset(0)).unwrap().map(|logged| logged.shared.frame.ends_atom).collect();
        assert_eq!(ends, [false, false, true, true]);
        assert_eq!(offsets(&log, 3), Some(vec![4]));
        assert_eq!(offsets(&log, 4), Some(vec![]));
        assert_eq!(offsets(&log, 5), None);
    }

    #[test]
    fn the_ring_covers_exactly_what_it_holds() {
        let mut log = Log::new(Epoch(1));
        (0..RING_FRAMES).for_each(|_| append(&mut log, 1, Time(0)));
        assert!(offsets(&log, 0).is_some());
        append(&mut log, 1, Time(0));
        assert_eq!(offsets(&log, 0), None);
        assert_eq!(offsets(&log, 1).unwrap().len(), RING_FRAMES);
    }

    #[test]
    fn frames_leave_the_ring_after_its_age() {
        let mut log = Log::new(Epoch(1));
        append(&mut log, 1, Time(0));
        log.expire(Time(0) + RING_AGE);
        assert!(offsets(&log, 0).is_some());
        log.expire(Time(1) + RING_AGE);
        assert_eq!(offsets(&log, 0), None);
        assert_eq!(offsets(&log, 1), Some(vec![]));
    }
}
