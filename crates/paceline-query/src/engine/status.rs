//! What the engine tells of itself when somebody asks. These walk through all keys: they are for people.

use paceline_proto::{
    fetch::{FetchStatus, QueryState},
    id::Key,
    time::Time,
};

use super::{Engine, Query};

/// How many keys are how; each key counts once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// A session subscribes to it and it is fresh.
    pub fresh: u64,
    /// It is fetched.
    pub fetching: u64,
    /// Its fetch waits for the network, or for a session that can.
    pub paused: u64,
    /// A session subscribes to it and it is stale.
    pub stale: u64,
    /// Nobody subscribes to it, and it is not fetched.
    pub inactive: u64,
}

/// A key, for a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Listed<'a> {
    /// The key.
    pub key: &'a Key,
    /// Its state.
    pub state: QueryState,
    /// Sessions that subscribe to it.
    pub observers: usize,
    /// When its value was found to be right; `None` without a value.
    pub updated_at: Option<Time>,
    /// Bytes of its value.
    pub size: usize,
    /// Its most specific resource.
    pub resource: Option<&'a str>,
}

impl Engine {
    /// How many keys are how.
    pub fn counts(&self, now: Time) -> Counts {
        let mut counts = Counts::default();
        for (key, query) in &self.queries {
            let state = self.state_of(key, query, now);
            let count = match (state.fetch, query.is_observed(), state.stale) {
                (FetchStatus::Fetching, _, _) => &mut counts.fetching,
                (FetchStatus::Paused, _, _) => &mut counts.paused,
                (FetchStatus::Idle, false, _) => &mut counts.inactive,
                (FetchStatus::Idle, true, true) => &mut counts.stale,
                (FetchStatus::Idle, true, false) => &mut counts.fresh,
            };
            *count += 1;
        }
        counts
    }

    /// Keys that somebody subscribes to.
    pub fn active(&self) -> u32 {
        self.index.count(&Key::default()).active
    }

    /// All keys in order.
    pub fn list(&self, now: Time) -> impl Iterator<Item = Listed<'_>> {
        self.queries.iter().map(move |(key, query)| Listed {
            key,
            state: self.state_of(key, query, now),
            observers: query.observers.len(),
            updated_at: query.held.as_ref().map(|held| held.at),
            size: query.held.as_ref().map_or(0, |held| held.value.len()),
            resource: query.rules.name().map(|name| &**name),
        })
    }

    /// With marks that nobody noticed yet.
    fn state_of(&self, key: &Key, query: &Query, now: Time) -> QueryState {
        let mut state = query.state(now);
        state.stale |= query.is_markable() && self.index.marked(key) > query.mark;
        state
    }
}
