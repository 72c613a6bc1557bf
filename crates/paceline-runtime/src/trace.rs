//! The trace ring: one fixed-size record for every message that an actor handled.

use std::sync::Arc;

use bytes::Bytes;
use paceline_proto::{
    id::{Key, Trace},
    look::TraceRecord,
    time::Time,
};
use parking_lot::Mutex;

/// Records kept per session: some seconds of a busy session, 0.5 MiB.
pub const RING_RECORDS: usize = 4096;
/// Bytes of a key that a record keeps.
pub const KEY_BYTES: usize = 23;

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Handled.
    Done,
    /// A deadline fired.
    Due,
    /// The handler panicked; the runtime ended.
    Panicked,
}

/// One handled message.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// When it was handled.
    pub at: Time,
    /// By which actor.
    pub actor: &'static str,
    /// Which message.
    pub kind: &'static str,
    pub(crate) key: [u8; KEY_BYTES],
    pub(crate) key_len: u8,
    /// Nanoseconds in the mailbox.
    pub queue_ns: u32,
    /// Nanoseconds in the handler.
    pub run_ns: u32,
    /// How it ended.
    pub outcome: Outcome,
    /// Its cause and own span.
    pub trace: Trace,
    /// The span that sent it.
    pub parent: u64,
}

impl Outcome {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Due => "due",
            Self::Panicked => "panicked",
        }
    }
}

impl Record {
    /// As it is told to others.
    pub fn to_wire(&self) -> TraceRecord {
        TraceRecord {
            at: self.at.0,
            actor: self.actor.to_owned(),
            kind: self.kind.to_owned(),
            key: Bytes::copy_from_slice(self.key()),
            queue_ns: self.queue_ns,
            run_ns: self.run_ns,
            outcome: self.outcome.name().to_owned(),
            trace: self.trace,
            parent: self.parent,
        }
    }

    /// The first bytes of the key it was about, if any.
    pub fn key(&self) -> &[u8] {
        &self.key[..usize::from(self.key_len)]
    }

    /// Keeps the first bytes of `key`.
    pub(crate) fn with_key(mut self, key: Option<&Key>) -> Self {
        if let Some(key) = key {
            let len = key.0.len().min(KEY_BYTES);
            self.key[..len].copy_from_slice(&key.0[..len]);
            self.key_len = len as u8;
        }
        self
    }

    pub(crate) fn new(actor: &'static str, kind: &'static str, at: Time, outcome: Outcome) -> Self {
        Self {
            at,
            actor,
            kind,
            key: [0; KEY_BYTES],
            key_len: 0,
            queue_ns: 0,
            run_ns: 0,
            outcome,
            trace: Trace::NONE,
            parent: 0,
        }
    }
}

/// Bounded ring of records; the oldest is overwritten.
#[derive(Debug, Clone)]
pub struct Ring(Arc<Mutex<Slots>>);

#[derive(Debug)]
struct Slots {
    records: Vec<Record>,
    written: u64,
}

impl Default for Ring {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Slots { records: Vec::new(), written: 0 })))
    }
}

impl Ring {
    pub(crate) fn push(&self, record: Record) {
        let mut slots = self.0.lock();
        let at = (slots.written % RING_RECORDS as u64) as usize;
        slots.written += 1;
        if at < slots.records.len() {
            slots.records[at] = record;
        } else {
            slots.records.push(record);
        }
    }

    /// The records written after `after` that are still kept, oldest first, and how many were ever written.
    pub fn read_after(&self, after: u64) -> (Vec<Record>, u64) {
        let (mut records, written) = self.read();
        let new = usize::try_from(written.saturating_sub(after)).unwrap_or(usize::MAX);
        records.drain(..records.len().saturating_sub(new));
        (records, written)
    }

    /// The records kept, oldest first, and how many were ever written.
    pub fn read(&self) -> (Vec<Record>, u64) {
        let slots = self.0.lock();
        let split = if slots.records.len() < RING_RECORDS {
            0
        } else {
            (slots.written % RING_RECORDS as u64) as usize
        };
        let mut records = Vec::with_capacity(slots.records.len());
        records.extend_from_slice(&slots.records[split..]);
        records.extend_from_slice(&slots.records[..split]);
        (records, slots.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_the_newest_records_in_order() {
        let ring = Ring::default();
        for n in 0..RING_RECORDS as u64 + 10 {
            ring.push(Record::new("hub", "publish", Time(n), Outcome::Done));
        }
        let (records, written) = ring.read();
        assert_eq!(written, RING_RECORDS as u64 + 10);
        assert_eq!(records.len(), RING_RECORDS);
        assert_eq!(records[0].at, Time(10));
        assert_eq!(records[RING_RECORDS - 1].at, Time(RING_RECORDS as u64 + 9));
    }

    #[test]
    fn only_what_is_new_is_read_again() {
        let ring = Ring::default();
        for n in 0..10 {
            ring.push(Record::new("hub", "publish", Time(n), Outcome::Done));
        }
        let (records, written) = ring.read_after(7);
        assert_eq!((records.len(), records[0].at, written), (3, Time(7), 10));
        assert!(ring.read_after(10).0.is_empty());
        assert_eq!(ring.read_after(0).0.len(), 10);
    }

    #[test]
    fn a_record_keeps_the_beginning_of_a_long_key() {
        let key = Key::copy_from(&[7; 100]);
        let record = Record::new("hub", "publish", Time(0), Outcome::Done).with_key(Some(&key));
        assert_eq!(record.key(), &[7; KEY_BYTES]);
    }
}
