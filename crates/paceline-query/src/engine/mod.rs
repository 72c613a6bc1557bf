//! The query engine of an owner: keeps the values of the group as fresh as its rules and its sessions ask, at the least cost
//! upstream.
//!
//! A pure machine inside the hub's actor. Facts come in the order that the hub decided. What it wishes about values is
//! carried out at once and comes back as a fact before anything else does: [`Effect::Install`] and [`Effect::Touch`] as
//! [`Input::Changed`] (or [`Input::Removed`], if nothing stands), [`Effect::Remove`] as [`Input::Removed`].
//!
//! | file | concern |
//! |---|---|
//! | `query.rs` | one key, and when its value is stale |
//! | `asks.rs` | questions of sessions and their answers |
//! | `observe.rs` | subscriptions and the life of a key that nobody needs |
//! | `flight.rs`, `inflight.rs` | one fetch for all who want a key; what overtakes it |
//! | `delegate.rs` | which session makes an attempt, and for how long |
//! | `retry.rs` | what follows a failure; servers that ask everybody to wait |
//! | `invalidate.rs` | marks, cascades, and the fetches that follow |
//! | `triggers.rs` | focus, return, reconnect |
//! | `refresh.rs` | the service that keeps active values fresh, and the lane for crowds |
//! | `poll.rs` | one polling timer per key |
//! | `strategy.rs` | presence of the sessions, and what the group makes of it |
//! | `stats.rs`, `status.rs` | what it counts, and what it tells when asked |
//! | `timers.rs` | all deadlines in one ordered set |
//!
//! **Invariant:** the timers and the shown state of a key are functions of its `Query`. Whatever changes one says so by
//! `touch`, and `settle` derives both at the end of the input; so no path can forget one.

mod asks;
mod delegate;
mod flight;
mod inflight;
mod invalidate;
mod observe;
mod poll;
mod query;
mod refresh;
mod retry;
mod stats;
mod status;
mod strategy;
mod timers;
mod triggers;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use paceline_proto::{
    fetch::FetchId,
    id::{Key, SessionId, Trace},
    random::Random,
    time::Time,
};

use crate::{index::Index, limits::RETURN_WAIT, resources::Resources, rules::Defaults};

pub use stats::{Durations, Stats};
pub use status::{Counts, Listed};
pub use types::*;

use asks::Asked;
use invalidate::Gathered;
use query::{Held, Query};
use refresh::{Service, Worth};
use retry::Limit;
use strategy::{Sessions, Strategy};
use timers::{Timer, Timers};
use triggers::Woken;

/// What an owner begins its reign with.
#[derive(Debug, Clone)]
pub struct Start {
    /// The owner's own session.
    pub own: SessionId,
    /// Seeds the jitter.
    pub seed: u64,
    /// Sessions of the reign before may come back with what they observe and can fetch; for [`RETURN_WAIT`] the lack of a
    /// session that can fetch is no answer.
    pub takeover: bool,
    /// Upstreams can be reached.
    pub online: bool,
    /// Values that were taken over.
    pub values: Vec<Inherited>,
}

/// A value of the reign before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inherited {
    /// The key.
    pub key: Key,
    /// JSON bytes.
    pub value: Bytes,
    /// When it was found to be right.
    pub at: Time,
    /// It is marked stale.
    pub invalidated: bool,
}

/// The query engine; see the module.
#[derive(Debug)]
pub struct Engine {
    defaults: Defaults,
    own: SessionId,
    random: Random,
    resources: Resources,
    index: Index,
    queries: BTreeMap<Key, Query>,
    sessions: Sessions,
    strategy: Strategy,
    online: bool,
    asks: BTreeMap<AskId, Asked>,
    attempts: BTreeMap<FetchId, Key>,
    last_attempt: u64,
    /// Keys whose flight is paused.
    paused: BTreeSet<Key>,
    /// Keys that are kept, unused, since nobody could fetch them again; looked at when rules change.
    kept: BTreeSet<Key>,
    limits: BTreeMap<Limit, Time>,
    gathered: Gathered,
    woken: Woken,
    service: Service,
    /// Resources whose channel is healthy.
    healthy: BTreeSet<Arc<str>>,
    preferences: Preferences,
    /// Until then a session that can fetch may still come back.
    returning_until: Time,
    timers: Timers,
    touched: BTreeSet<Key>,
    stats: Stats,
}

impl Engine {
    /// The engine of a reign that begins now.
    pub fn new(defaults: Defaults, now: Time, start: Start) -> Self {
        let mut engine = Self {
            resources: Resources::new(defaults.clone()),
            own: start.own,
            random: Random::new(start.seed),
            index: Index::new(start.seed),
            queries: BTreeMap::new(),
            sessions: Sessions::default(),
            strategy: Strategy::default(),
            online: start.online,
            asks: BTreeMap::new(),
            attempts: BTreeMap::new(),
            last_attempt: 0,
            paused: BTreeSet::new(),
            kept: BTreeSet::new(),
            limits: BTreeMap::new(),
            gathered: Gathered::default(),
            woken: Woken::default(),
            service: Service::default(),
            healthy: BTreeSet::new(),
            preferences: Preferences::default(),
            returning_until: if start.takeover { now + RETURN_WAIT } else { Time::ZERO },
            timers: Timers::default(),
            touched: BTreeSet::new(),
            stats: Stats::default(),
            defaults,
        };
        // No resource is declared yet: all keys have the same rules.
        let rules = engine.resources.rules(&Key::default());
        let rules_of = engine.resources.generation();
        for Inherited { key, value, at, invalidated } in start.values {
            let mut query = Query::new(rules.clone(), rules_of, engine.index.generation());
            query.held = Some(Held { value, at });
            query.marked = invalidated.then_some(now);
            query.keep_until = now + query.gc(&[]);
            engine.timers.set(Timer::Gc(key.clone()), Some(query.keep_until));
            engine.index.insert(&key);
            engine.queries.insert(key, query);
        }
        engine
    }

    /// Takes a fact. Deadlines that have passed come first.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        self.fire(now, out);
        match input {
            Input::Observed { session, key, options } => self.observed(now, session, key, options, out),
            Input::Unobserved { session, key } => self.unobserved(now, session, &key, out),
            Input::Presence { session, presence: Some(presence) } => {
                self.present(now, session, presence, out);
            }
            Input::Presence { session, presence: None } => self.left(now, session, out),
            Input::Declared { session, resource, fetches } => {
                self.declared(now, session, resource, fetches, out);
            }
            Input::Changed { key, value, at, cause } => self.changed(now, key, value, at, cause, out),
            Input::Removed { key } => self.removed(now, &key, out),
            Input::Invalidated { key, exact, refetch, trace } => {
                self.invalidated(now, &key, exact, refetch, trace, out);
            }
            Input::TagInvalidated { tag, refetch, trace } => {
                self.tag_invalidated(now, &tag, refetch, trace, out);
            }
            Input::Ask { id, session, ask, trace } => self.ask(now, id, session, ask, trace, out),
            Input::Unasked { id } => self.unasked(now, id, out),
            Input::Fetched { id, session, outcome } => self.fetched(now, id, session, outcome, out),
            Input::Online(online) => self.network(now, online, out),
            Input::Channel { resource, healthy } => self.channel(&resource, healthy),
            Input::Preferences(preferences) => self.prefer(preferences),
            Input::Deadline => {}
        }
        self.settle(now, out);
    }

    /// When the engine wants to be called next; `None` = only by a fact.
    pub fn deadline(&self) -> Option<Time> {
        self.timers.first()
    }

    /// What it did so far.
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    fn fire(&mut self, now: Time, out: &mut Vec<Effect>) {
        while let Some((at, timer)) = self.timers.pop(now) {
            match timer {
                Timer::Stale(key) => self.turned_stale(&key, at, out),
                Timer::Attempt(key) => self.attempt_due(now, &key, out),
                Timer::Wait(ask) => self.waited(now, ask, out),
                Timer::Grace => self.grace_over(now, out),
                Timer::Batch => self.flush(now, out),
                Timer::Debounce => self.follow_triggers(now, out),
                Timer::Refresh(key) => {
                    self.service.queue(&key, Worth::Stale);
                    self.touch(&key);
                }
                Timer::Poll(key) => self.poll(now, &key, out),
                Timer::Gc(key) => self.expired(now, &key, out),
            }
            self.settle_touched(now, out);
        }
    }

    /// The query of a key, made where there is none.
    fn query(&mut self, now: Time, key: &Key) -> &mut Query {
        if !self.queries.contains_key(key) {
            self.index.insert(key);
        }
        self.notice(now, key);
        let (resources, generation) = (&mut self.resources, self.index.generation());
        self.queries.entry(key.clone()).or_insert_with(|| {
            let rules = resources.rules(key);
            Query::new(rules, resources.generation(), generation)
        })
    }

    /// The query of a key may have changed.
    fn touch(&mut self, key: &Key) {
        if !self.touched.contains(key) {
            self.touched.insert(key.clone());
        }
    }

    fn touch_active(&mut self) {
        self.touched.extend(self.index.active_under(&Key::default()).cloned());
    }

    fn prefer(&mut self, preferences: Preferences) {
        self.preferences = preferences;
        self.touch_active();
    }

    /// Derives the timers and the shown state of what was touched.
    fn settle(&mut self, now: Time, out: &mut Vec<Effect>) {
        loop {
            self.settle_touched(now, out);
            if !self.pump(now, out) {
                return;
            }
        }
    }

    fn settle_touched(&mut self, now: Time, out: &mut Vec<Effect>) {
        while let Some(key) = self.touched.pop_first() {
            self.settle_key(now, key, out);
        }
    }

    fn settle_key(&mut self, now: Time, key: Key, out: &mut Vec<Effect>) {
        let is_spent =
            |query: &mut Query| query.held.is_none() && query.flight.is_none() && query.observers.is_empty();
        if self.queries.get_mut(&key).is_some_and(is_spent) {
            self.forget(&key);
        }
        let Some(query) = self.queries.get_mut(&key) else {
            self.service.release(&key);
            for timer in [Timer::Stale, Timer::Attempt, Timer::Gc, Timer::Refresh, Timer::Poll] {
                self.timers.set(timer(key.clone()), None);
            }
            return;
        };
        if query.marked.is_some() && query.held.is_some() && !query.is_markable() {
            // The mark reaches everything under its prefix; who it is not for is known here.
            query.marked = None;
            out.push(Effect::Unmark { key: key.clone() });
        }
        let active = query.is_observed();
        self.index.set_active(&key, active);
        let turns_stale = active && !query.is_stale(now);
        let stale = query.stale_at().filter(|_| turns_stale).map(|(at, _)| at);
        let kept = (!active && query.flight.is_none()).then_some(query.keep_until.max(now));
        let attempt = query.flight.as_ref().and_then(flight::Flight::due);
        match query.flight.as_ref().map(|flight| &flight.step) {
            Some(flight::Step::Paused { .. }) => drop(self.paused.insert(key.clone())),
            Some(_) | None => drop(self.paused.remove(&key)),
        }
        if query.flight.as_ref().is_none_or(|flight| flight.running().is_none()) || !query.is_background() {
            self.service.release(&key);
        }
        if active {
            let state = query.state(now);
            if query.shown.as_ref() != Some(&state) {
                query.shown = Some(state.clone());
                out.push(Effect::Show { key: key.clone(), state });
            }
        } else {
            query.shown = None;
        }
        self.timers.set(Timer::Stale(key.clone()), stale);
        self.timers.set(Timer::Gc(key.clone()), kept);
        self.timers.set(Timer::Attempt(key.clone()), attempt);
        let refresh = self.queries.get(&key).and_then(|query| self.refresh_due(&key, query, now));
        self.timers.set(Timer::Refresh(key.clone()), refresh);
        let poll = self.poll_due(&key, now);
        self.timers.set(Timer::Poll(key), poll);
    }

    /// Time made a value stale.
    fn turned_stale(&mut self, key: &Key, at: Time, out: &mut Vec<Effect>) {
        let Some((held, (_, limit))) =
            self.queries.get(key).and_then(|query| Some((query.held.as_ref()?, query.stale_at()?)))
        else {
            return;
        };
        out.push(Effect::Note(Note::TurnedStale {
            key: key.clone(),
            age_ns: nanoseconds(at.since(held.at)),
            limit_ns: nanoseconds(limit),
        }));
        self.touch(key);
    }

    /// A value changed, or was found to be right.
    fn changed(&mut self, now: Time, key: Key, value: Bytes, at: Time, cause: Cause, out: &mut Vec<Effect>) {
        let query = self.query(now, &key);
        query.held = Some(Held { value, at });
        if cause == Cause::Fetch && query.is_installing_marked() {
            // There may have been no value to mark. A successor knows of the mark by the value only.
            query.marked.get_or_insert(now);
            if query.is_markable() {
                out.push(Effect::Mark { keys: vec![key.clone()], trace: Trace::NONE });
            }
        } else {
            query.marked = None;
        }
        query.fetched = cause == Cause::Fetch;
        if query.shown.as_ref().is_some_and(|shown| shown.stale) {
            // The hub shows that of a value without a mark only, and there may have been none.
            query.shown = None;
        }
        query.pace.changed();
        if query.fetched && query.keep_until == Time::NEVER {
            // It can be fetched again from here on.
            query.keep_until = now;
        }
        query.keep_until = query.keep_until.max(now + query.gc(&[]));
        self.touch(&key);
        match cause {
            Cause::Fetch => self.installed(now, &key, out),
            Cause::Push { versioned } => {
                self.overtaken(
                    &key,
                    |late| {
                        if versioned { late.pushed_version = true } else { late.pushed = true }
                    },
                )
            }
            Cause::Write => self.overtaken(&key, |late| late.written = true),
        }
    }

    /// A value that no fetch of this engine brought: what was known of the old one does not hold for it.
    fn overtaken(&mut self, key: &Key, how: impl FnOnce(&mut flight::Late)) {
        let Some(query) = self.queries.get_mut(key) else { return };
        query.etag = Arc::from("");
        query.hints = crate::rules::Hints::default();
        query.refresh_failures = 0;
        query.failed = false;
        if let Some(late) = query.flight.as_mut().and_then(flight::Flight::late) {
            how(late);
        }
    }
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
