//! One key as the engine sees it, and when its value is stale.
//!
//! **Invariant:** the order of the questions is fixed: no value → stale; static → fresh; invalidated → stale; else by age,
//! stale from the very instant at which the age reaches the limit.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    fetch::{FetchStatus, QueryState},
    id::SessionId,
    time::Time,
};

use super::{
    flight::{Flight, Step},
    poll::Pace,
};
use crate::resources::KeyRules;
use crate::rules::{Hints, Options, Source, Staleness};

/// A value and when it was found to be right.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) value: Bytes,
    pub(super) at: Time,
}

#[derive(Debug)]
pub(super) struct Query {
    pub(super) rules: Arc<KeyRules>,
    /// The count of rule changes at which they were taken.
    pub(super) rules_of: u64,
    pub(super) held: Option<Held>,
    /// Since when it is marked stale, whatever its age.
    pub(super) marked: Option<Time>,
    /// The last mark of the index that it knows of.
    pub(super) mark: u64,
    pub(super) observers: BTreeMap<SessionId, Vec<Options>>,
    pub(super) flight: Option<Flight>,
    /// Failed attempts since the last success.
    pub(super) failures: u32,
    /// The last failure of a fetch that somebody waited for.
    pub(super) error: Option<Arc<str>>,
    /// The last fetch failed, whoever waited.
    pub(super) failed: bool,
    /// The server's validator of the value that is held.
    pub(super) etag: Arc<str>,
    pub(super) hints: Hints,
    /// The value came by a fetch of this reign.
    pub(super) fetched: bool,
    /// Without observers the value is kept until then.
    pub(super) keep_until: Time,
    /// When the last attempt began.
    pub(super) last_attempt: Option<Time>,
    /// Failed refreshes in a row.
    pub(super) refresh_failures: u32,
    /// An invalidation had it fetched last then.
    pub(super) invalidation_fetched: Option<Time>,
    pub(super) pace: Pace,
    /// What its subscribers were shown last.
    pub(super) shown: Option<QueryState>,
}

impl Query {
    pub(super) fn new(rules: Arc<KeyRules>, rules_of: u64, mark: u64) -> Self {
        Self {
            rules,
            rules_of,
            held: None,
            marked: None,
            mark,
            observers: BTreeMap::new(),
            flight: None,
            failures: 0,
            error: None,
            failed: false,
            etag: "".into(),
            hints: Hints::default(),
            fetched: false,
            keep_until: Time::ZERO,
            last_attempt: None,
            refresh_failures: 0,
            invalidation_fetched: None,
            pace: Pace::default(),
            shown: None,
        }
    }

    /// Somebody subscribes to it.
    pub(super) fn is_observed(&self) -> bool {
        !self.observers.is_empty()
    }

    /// Somebody who subscribes to it wants it fetched.
    pub(super) fn is_active(&self) -> bool {
        self.wishes().any(Options::is_enabled)
    }

    /// What those who subscribe to it ask for.
    pub(super) fn wishes(&self) -> impl Iterator<Item = &Options> {
        self.observers.values().flatten()
    }

    /// Its resource can be fetched at all.
    pub(super) fn has_source(&self) -> bool {
        self.rules.source != Source::None
    }

    /// The rule for its staleness: the strictest of those who look at it, in whom what a session asks for itself beats what
    /// the fetcher knows about this value, and that beats the resource.
    pub(super) fn staleness(&self) -> Staleness {
        let of_all = self.hints.stale.unwrap_or_else(|| self.rules.staleness());
        let enabled = self.wishes().filter(|options| options.is_enabled());
        let each = enabled.map(|options| options.stale.unwrap_or(of_all));
        each.min_by_key(strictness).unwrap_or(of_all)
    }

    pub(super) fn is_stale(&self, now: Time) -> bool {
        self.is_stale_by(self.staleness(), now)
    }

    /// Stale for one session.
    pub(super) fn is_stale_for(&self, options: &Options, now: Time) -> bool {
        let rule = options.stale.or(self.hints.stale).unwrap_or_else(|| self.rules.staleness());
        self.is_stale_by(rule, now)
    }

    fn is_stale_by(&self, rule: Staleness, now: Time) -> bool {
        let Some(held) = &self.held else { return true };
        match rule {
            Staleness::Static => false,
            _ if self.marked.is_some() => true,
            Staleness::Never => false,
            Staleness::Always => true,
            Staleness::After(limit) => now.since(held.at) >= limit,
        }
    }

    /// A mark makes it stale.
    pub(super) fn is_markable(&self) -> bool {
        self.staleness() != Staleness::Static
    }

    /// When time makes the value stale, or made it; `None` = it never does.
    pub(super) fn stale_at(&self) -> Option<(Time, Duration)> {
        let held = self.held.as_ref()?;
        match self.staleness() {
            Staleness::Static | Staleness::Never => None,
            Staleness::Always => Some((held.at, Duration::ZERO)),
            Staleness::After(limit) => Some((held.at + limit, limit)).filter(|(at, _)| *at < Time::NEVER),
        }
    }

    /// Younger than a caller asks for, whatever the rules say.
    pub(super) fn is_younger(&self, max_age: Duration, now: Time) -> bool {
        let held =
            self.held.as_ref().filter(|_| self.marked.is_none() || self.staleness() == Staleness::Static);
        held.is_some_and(|held| now.since(held.at) < max_age)
    }

    /// The value is kept so long after a session with these wishes; the longest of them, by the rules where there are none.
    pub(super) fn gc(&self, wishes: &[Options]) -> Duration {
        let each = wishes.iter().map(|options| options.gc.unwrap_or(self.rules.gc));
        each.max().unwrap_or(self.rules.gc)
    }

    /// Nobody waits for the fetch that is under way.
    pub(super) fn is_background(&self) -> bool {
        self.flight
            .as_ref()
            .is_some_and(|flight| !flight.is_asked() && (flight.had_value || self.observers.is_empty()))
    }

    pub(super) fn state(&self, now: Time) -> QueryState {
        let fetch = match self.flight.as_ref().map(|flight| &flight.step) {
            None => FetchStatus::Idle,
            Some(Step::Running(_) | Step::Waiting { .. } | Step::Installing { .. }) => FetchStatus::Fetching,
            Some(Step::Paused { .. }) => FetchStatus::Paused,
        };
        QueryState {
            fetch,
            background: self.is_background(),
            stale: self.is_stale(now),
            failures: self.failures,
            error: self.error.clone(),
        }
    }
}

impl Options {
    pub(super) fn is_enabled(&self) -> bool {
        self.enabled != Some(false)
    }
}

/// Orders rules by how soon they make a value stale.
fn strictness(rule: &Staleness) -> (u8, Duration) {
    match rule {
        Staleness::Always => (0, Duration::ZERO),
        Staleness::After(limit) => (1, *limit),
        Staleness::Never => (2, Duration::ZERO),
        Staleness::Static => (3, Duration::ZERO),
    }
}
