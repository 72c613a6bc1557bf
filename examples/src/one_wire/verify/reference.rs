//! What should have been delivered.

use std::collections::BTreeMap;

use crate::one_wire::log::Record;

/// All events of a run in the order of their numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reference {
    /// Number, payload hash, time of publication.
    events: Vec<(u64, u64, u64)>,
    exact_times: bool,
}

impl Reference {
    /// The feed's own log.
    pub fn from_feed(records: &[Record]) -> Self {
        let events = records
            .iter()
            .filter_map(|record| match *record {
                Record::Event { number, hash, at_ns } => Some((number, hash, at_ns)),
                Record::Gap { .. } => None,
            })
            .collect();
        Self { events, exact_times: true }
    }

    /// For a feed that keeps no log: every event that some session got, with the payload that most of them got.
    /// An event's time is that of its first delivery.
    pub fn from_sessions<'a>(logs: impl Iterator<Item = &'a [Record]>) -> Self {
        let mut seen: BTreeMap<u64, (u64, BTreeMap<u64, u32>)> = BTreeMap::new();
        for record in logs.flatten() {
            if let Record::Event { number, hash, at_ns } = *record {
                let (first_ns, hashes) = seen.entry(number).or_insert((at_ns, BTreeMap::new()));
                *first_ns = at_ns.min(*first_ns);
                *hashes.entry(hash).or_default() += 1;
            }
        }
        let events = seen
            .into_iter()
            .filter_map(|(number, (first_ns, hashes))| {
                let (hash, _) = hashes.into_iter().max_by_key(|(_, n)| *n)?;
                Some((number, hash, first_ns))
            })
            .collect();
        Self { events, exact_times: false }
    }

    /// How many events there are.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Whether times are those of publication, not of the first delivery.
    pub fn exact_times(&self) -> bool {
        self.exact_times
    }

    /// Place of the event with this number.
    pub fn find(&self, number: u64) -> Option<usize> {
        self.events.binary_search_by_key(&number, |event| event.0).ok()
    }

    /// Number of the event at `place`.
    pub fn number(&self, place: usize) -> u64 {
        self.events[place].0
    }

    /// Payload hash of the event at `place`.
    pub fn hash(&self, place: usize) -> u64 {
        self.events[place].1
    }

    /// Time of the event at `place`.
    pub fn at_ns(&self, place: usize) -> u64 {
        self.events[place].2
    }

    /// The first place whose event is not older than `at_ns`; the length if there is none.
    pub fn first_after(&self, at_ns: u64) -> usize {
        self.events.iter().position(|event| event.2 >= at_ns).unwrap_or(self.events.len())
    }
}
