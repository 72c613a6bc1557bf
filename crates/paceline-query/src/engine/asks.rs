//! Questions of sessions and their answers.
//!
//! **Invariant:** every question is answered once, unless who asked took it back or left.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use paceline_proto::{
    fetch::{CascadeLine, FetchFailure, Fetched, Want},
    id::{Key, SessionId, Trace},
    time::Time,
};

use super::{Answer, Ask, AskId, Effect, Engine, RefetchType, Timer, inflight::Wish, query::Query};
use crate::{
    cascade::{Cascade, Root},
    limits::FAILURES_SHOWN,
    rules::{Options, Staleness},
};

/// A question under way.
#[derive(Debug)]
pub(super) struct Asked {
    session: SessionId,
    what: What,
}

#[derive(Debug)]
enum What {
    Fetch {
        key: Key,
        /// An older value will do if no younger one comes.
        takes_old: bool,
    },
    Refetch {
        left: BTreeSet<Key>,
        ok: u64,
        failed: u64,
        failures: Vec<(Key, Arc<str>)>,
    },
}

impl Engine {
    pub(super) fn ask(
        &mut self,
        now: Time,
        id: AskId,
        session: SessionId,
        ask: Ask,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        match ask {
            Ask::Fetch { key, want } => self.ask_fetch(now, (id, session), key, want, trace, out),
            Ask::Refetch { key, exact, stale, refetch } => {
                let keys = self.meant_by(now, &key, exact, stale, refetch);
                self.ask_refetch(now, (id, session), keys, trace, out);
            }
            Ask::Preview { key, exact } => {
                let lines = self.preview(&key, exact);
                out.push(Effect::Answer { id, answer: Answer::Cascade(lines) });
            }
        }
    }

    fn ask_fetch(
        &mut self,
        now: Time,
        (id, session): (AskId, SessionId),
        key: Key,
        want: Want,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        let query = self.query(now, &key);
        query.keep_until = query.keep_until.max(now + query.gc(&[]));
        let fresh = query.is_fresh_enough(&want, now);
        let held = query.held.clone();
        self.touch(&key);
        let max_wait = match want {
            Want::Fresh { max_wait_ms, .. } => max_wait_ms.map(Duration::from_millis),
            Want::New => {
                self.encourage(&key);
                None
            }
            Want::Prefetch => return self.prefetch(now, id, &key, fresh, trace, out),
        };
        match held {
            Some(held) if fresh || max_wait == Some(Duration::ZERO) => {
                self.stats.hits += 1;
                self.stats.hit_bytes += held.value.len() as u64;
                let answer =
                    Fetched::Value { value: held.value, updated_at: held.at, stale: !fresh, cached: true };
                out.push(Effect::Answer { id, answer: Answer::Fetched(answer) });
                if !fresh {
                    self.want_in_background(now, &key, trace, out);
                }
                return;
            }
            Some(_) => self.timers.set(Timer::Wait(id), max_wait.map(|wait| now + wait)),
            None => {}
        }
        self.stats.misses += 1;
        self.sessions.get(session).asks.insert(id);
        let what = What::Fetch { key: key.clone(), takes_old: max_wait.is_some() };
        self.asks.insert(id, Asked { session, what });
        self.want(now, &key, Wish { asker: Some(id), renew: want == Want::New, trace }, out);
    }

    fn prefetch(
        &mut self,
        now: Time,
        id: AskId,
        key: &Key,
        fresh: bool,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        out.push(Effect::Answer { id, answer: Answer::Fetched(Fetched::Begun) });
        if !fresh {
            self.want_in_background(now, key, trace, out);
        }
    }

    /// The keys that a refetch means.
    fn meant_by(
        &mut self,
        now: Time,
        key: &Key,
        exact: bool,
        stale: bool,
        refetch: RefetchType,
    ) -> BTreeSet<Key> {
        let keys: Vec<Key> = if exact { vec![key.clone()] } else { self.index.under(key).cloned().collect() };
        keys.iter().for_each(|key| self.notice(now, key));
        let is_meant = |query: &Query| {
            refetch.takes(query.is_active()) && (!stale || query.is_stale(now)) && self.can_fetch(query)
        };
        keys.into_iter().filter(|key| self.queries.get(key).is_some_and(is_meant)).collect()
    }

    fn ask_refetch(
        &mut self,
        now: Time,
        (id, session): (AskId, SessionId),
        keys: BTreeSet<Key>,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        self.sessions.get(session).asks.insert(id);
        let what = What::Refetch { left: keys.clone(), ok: 0, failed: 0, failures: Vec::new() };
        self.asks.insert(id, Asked { session, what });
        for key in keys {
            self.encourage(&key);
            self.want(now, &key, Wish { asker: Some(id), renew: true, trace }, out);
        }
        self.answer_refetch_if_done(id, out);
    }

    fn preview(&mut self, key: &Key, exact: bool) -> Vec<CascadeLine> {
        let cascade = Cascade::new(&mut self.resources, &Root::Key { key: key.clone(), exact });
        let reached = cascade.keys(&self.index);
        let fetched = |key: &&Key| {
            let query = self.queries.get(*key);
            query.is_some_and(|query| {
                query.is_active() && query.staleness() != Staleness::Static && self.can_fetch(query)
            })
        };
        let fetched: BTreeSet<Key> = reached.iter().filter(fetched).cloned().collect();
        cascade.lines(&self.index, &mut self.resources, |key| fetched.contains(key))
    }

    /// A caller took the question back.
    pub(super) fn unasked(&mut self, now: Time, id: AskId, out: &mut Vec<Effect>) {
        let Some(asked) = self.take_ask(id) else { return };
        let keys = match asked.what {
            What::Fetch { key, .. } => BTreeSet::from([key]),
            What::Refetch { left, .. } => left,
        };
        for key in keys {
            self.leave_flight(id, &key);
            self.give_up_if_unwanted(now, &key, out);
        }
    }

    /// A caller takes the value that is held, old as it is. The fetch goes on: its value is wanted.
    pub(super) fn waited(&mut self, _now: Time, id: AskId, out: &mut Vec<Effect>) {
        let Some(What::Fetch { key, .. }) = self.asks.get(&id).map(|asked| &asked.what) else { return };
        let key = key.clone();
        let Some(held) = self.queries.get(&key).and_then(|query| query.held.clone()) else { return };
        self.take_ask(id);
        self.leave_flight(id, &key);
        let answer = Fetched::Value { value: held.value, updated_at: held.at, stale: true, cached: true };
        out.push(Effect::Answer { id, answer: Answer::Fetched(answer) });
    }

    fn leave_flight(&mut self, id: AskId, key: &Key) {
        self.touch(key);
        if let Some(flight) = self.queries.get_mut(key).and_then(|query| query.flight.as_mut()) {
            flight.askers.retain(|asker| *asker != id);
            flight.next.retain(|asker| *asker != id);
        }
    }

    fn take_ask(&mut self, id: AskId) -> Option<Asked> {
        let asked = self.asks.remove(&id)?;
        self.sessions.get(asked.session).asks.remove(&id);
        self.timers.set(Timer::Wait(id), None);
        Some(asked)
    }

    /// The flight that a question waited for is over.
    pub(super) fn served(
        &mut self,
        now: Time,
        id: AskId,
        key: &Key,
        result: &Result<(), FetchFailure>,
        out: &mut Vec<Effect>,
    ) {
        match self.asks.get_mut(&id).map(|asked| &mut asked.what) {
            None => {}
            Some(What::Fetch { takes_old, .. }) => {
                let takes_old = *takes_old;
                let fetched = self.fetched_answer(now, key, takes_old, result);
                self.take_ask(id);
                out.push(Effect::Answer { id, answer: Answer::Fetched(fetched) });
            }
            Some(What::Refetch { left, ok, failed, failures }) => {
                if left.remove(key) {
                    match result {
                        Ok(()) => *ok += 1,
                        Err(failure) => {
                            *failed += 1;
                            if failures.len() < FAILURES_SHOWN {
                                failures.push((key.clone(), failure.why.as_str().into()));
                            }
                        }
                    }
                }
                self.answer_refetch_if_done(id, out);
            }
        }
    }

    fn fetched_answer(
        &self,
        _now: Time,
        key: &Key,
        takes_old: bool,
        result: &Result<(), FetchFailure>,
    ) -> Fetched {
        let query = self.queries.get(key);
        let held = query.and_then(|query| query.held.clone());
        match (result, held) {
            (Ok(()), Some(held)) => {
                let stale = query.is_some_and(|query| query.marked.is_some());
                Fetched::Value { value: held.value, updated_at: held.at, stale, cached: false }
            }
            (Err(_), Some(held)) if takes_old => {
                Fetched::Value { value: held.value, updated_at: held.at, stale: true, cached: true }
            }
            (Err(failure), _) => Fetched::Failed(failure.clone()),
            (Ok(()), None) => {
                let why = "the key lost its value while it was fetched; ask again".to_owned();
                Fetched::Failed(super::inflight::failure(paceline_proto::fetch::FailureKind::Cancelled, why))
            }
        }
    }

    fn answer_refetch_if_done(&mut self, id: AskId, out: &mut Vec<Effect>) {
        let done = |asked: &Asked| matches!(&asked.what, What::Refetch { left, .. } if left.is_empty());
        if !self.asks.get(&id).is_some_and(done) {
            return;
        }
        if let Some(Asked { what: What::Refetch { ok, failed, failures, .. }, .. }) = self.take_ask(id) {
            out.push(Effect::Answer { id, answer: Answer::Refetched { ok, failed, failures } });
        }
    }
}

impl Query {
    /// Fresh by the rules of the resource, or younger than the caller asks.
    fn is_fresh_enough(&self, want: &Want, now: Time) -> bool {
        match want {
            Want::Fresh { max_age_ms: Some(ms), .. } => self.is_younger(Duration::from_millis(*ms), now),
            Want::Fresh { max_age_ms: None, .. } | Want::Prefetch => {
                !self.is_stale_for(&Options::default(), now)
            }
            Want::New => false,
        }
    }
}
