//! Which session makes an attempt, and for how long.
//!
//! **Invariant:** an attempt has one session, a deadline, and a number that no other attempt of the reign has; when the session
//! leaves or the deadline passes the number is void, and another session's turn comes before anybody is told of a failure.

use std::time::Duration;

use paceline_proto::{
    fetch::{FailureKind, FetchFailure, FetchId, FetchRequest},
    id::{Key, SessionId},
    time::Time,
};

use super::{
    Effect, Engine,
    flight::{Attempt, Flight, Late, Pause, Step},
    inflight::failure,
    query::Query,
    refresh::Worth,
};
use crate::rules::{NetworkMode, Source};

impl Engine {
    /// Some session can fetch the key.
    pub(super) fn can_fetch(&self, query: &Query) -> bool {
        query
            .rules
            .fetcher
            .as_ref()
            .is_some_and(|resource| self.resources.fetchers(resource).next().is_some())
    }

    /// Makes the next attempt of a flight, or says what it waits for.
    pub(super) fn attempt(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        self.touch(key);
        self.notice(now, key);
        let Some(query) = self.queries.get(key) else { return };
        let Some(flight) = &query.flight else { return };
        let waits_for_network = match query.rules.network {
            NetworkMode::Online => true,
            NetworkMode::OfflineFirst => flight.attempts > 0,
            NetworkMode::Always => false,
        };
        if query.has_source() && waits_for_network && !self.online {
            return self.pause(key, Pause::Offline, None);
        }
        if let Some(until) = self.limited_until(query, now) {
            return self.limited(now, key, until, out);
        }
        let Some(session) = self.choose(query, false) else {
            let why = "no session of the group can fetch the key; declare its resource with a fetcher";
            return self.no_fetcher(now, key, failure(FailureKind::NoFetcher, why.to_owned()), out);
        };
        self.run(now, key, session, out);
    }

    fn run(&mut self, now: Time, key: &Key, session: SessionId, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let (background, deadline) = (query.is_background(), query.rules.deadline);
        let Some(flight) = &mut query.flight else { return };
        self.last_attempt += 1;
        let id = FetchId(self.last_attempt);
        flight.attempts = flight.attempts.saturating_add(1);
        flight.began = flight.began.or(Some(now));
        flight.step = Step::Running(Attempt { id, session, due: now + deadline, late: Late::default() });
        query.last_attempt = Some(now);
        self.attempts.insert(id, key.clone());
        self.stats.requests += 1;
        let request = FetchRequest {
            id,
            resource: query.rules.fetcher.clone().unwrap_or_else(|| "".into()),
            key: key.clone(),
            deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            background,
            etag: if query.held.is_some() { query.etag.clone() } else { "".into() },
            trace: flight.trace,
        };
        out.push(Effect::Fetch { session, request });
    }

    /// The session whose turn it is: one that was not tried, the owner's own where a request is made for all, a visible one
    /// where an application runs.
    fn choose(&self, query: &Query, untried_only: bool) -> Option<SessionId> {
        let tried = |id: &SessionId| query.flight.as_ref().is_some_and(|flight| flight.tried.contains(id));
        let resource = query.rules.fetcher.as_ref()?;
        let rank = |id: &SessionId| {
            let preferred = match &query.rules.source {
                Source::Server(_) => *id == self.own,
                Source::Closure | Source::None => {
                    self.sessions.known(*id).is_some_and(|session| session.presence.visible)
                }
            };
            (tried(id), !preferred, *id)
        };
        let able = self.resources.fetchers(resource);
        able.filter(|id| !untried_only || !tried(id)).min_by_key(rank)
    }

    fn pause(&mut self, key: &Key, why: Pause, until: Option<Time>) {
        if let Some(flight) = self.flight(key) {
            flight.step = Step::Paused { why, until };
        }
    }

    fn flight(&mut self, key: &Key) -> Option<&mut Flight> {
        self.queries.get_mut(key)?.flight.as_mut()
    }

    /// Nobody can: those who wait are told, those who look wait for somebody who can.
    fn no_fetcher(&mut self, now: Time, key: &Key, why: FetchFailure, out: &mut Vec<Effect>) {
        let returning = now < self.returning_until;
        let Some(query) = self.queries.get_mut(key) else { return };
        let waits = query.is_active() && query.held.is_none();
        let Some(flight) = &mut query.flight else { return };
        if returning {
            let until = Some(self.returning_until);
            return self.pause(key, Pause::NoFetcher, until);
        }
        if !waits {
            return self.finish(now, key, Err(why), out);
        }
        flight.step = Step::Paused { why: Pause::NoFetcher, until: None };
        let askers: Vec<_> = flight.askers.drain(..).chain(flight.next.drain(..)).collect();
        for asker in askers {
            self.served(now, asker, key, &Err(why.clone()), out);
        }
    }

    /// The timer of a flight: its attempt took too long, or its next one is due.
    pub(super) fn attempt_due(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let deadline = query.rules.deadline;
        let Some(flight) = &mut query.flight else { return };
        match &flight.step {
            Step::Running(attempt) => {
                let session = attempt.session;
                flight.tried.insert(session);
                self.cancel_attempt(key, out);
                self.pass_on(now, key, deadline, out);
            }
            Step::Waiting { .. } | Step::Paused { .. } => self.attempt(now, key, out),
            Step::Installing { .. } => {}
        }
    }

    fn pass_on(&mut self, now: Time, key: &Key, deadline: Duration, out: &mut Vec<Effect>) {
        self.touch(key);
        let next = self.queries.get(key).and_then(|query| self.choose(query, true));
        match next {
            Some(_) => self.attempt(now, key, out),
            None => {
                let why = format!("no session brought an answer within {deadline:?}");
                self.attempt_failed(now, key, failure(FailureKind::Timeout, why), out);
            }
        }
    }

    /// A session left: its attempts are somebody else's.
    pub(super) fn fetcher_left(&mut self, now: Time, left: SessionId, out: &mut Vec<Effect>) {
        let runs = |query: &Query| {
            let attempt = query.flight.as_ref()?.running()?;
            Some((attempt.id, attempt.session))
        };
        // Attempts that run: as many as there are fetches under way, not as there are keys.
        let orphans: Vec<(FetchId, Key)> = self
            .attempts
            .iter()
            .filter(|(id, key)| self.queries.get(*key).and_then(runs) == Some((**id, left)))
            .map(|(id, key)| (*id, key.clone()))
            .collect();
        for (id, key) in orphans {
            self.attempts.remove(&id);
            self.touch(&key);
            let next = self.queries.get(&key).and_then(|query| self.choose(query, false));
            match next {
                Some(_) => self.attempt(now, &key, out),
                None => {
                    let why = "the session that fetched it left, and no other can".to_owned();
                    self.no_fetcher(now, &key, failure(FailureKind::Cancelled, why), out);
                }
            }
        }
    }

    /// The first session came that can fetch the keys under a prefix.
    pub(super) fn fetcher_came(&mut self, now: Time, prefix: &Key, out: &mut Vec<Effect>) {
        for key in self.paused_under(prefix, Pause::NoFetcher) {
            self.attempt(now, &key, out);
        }
        for key in self.index.active_under(prefix).cloned().collect::<Vec<_>>() {
            let lacks = |query: &Query| query.is_active() && query.held.is_none() && query.flight.is_none();
            if self.queries.get(&key).is_some_and(lacks) {
                self.want_in_background(now, &key, paceline_proto::id::Trace::NONE, out);
            }
            self.touch(&key);
        }
    }

    pub(super) fn paused_under(&self, prefix: &Key, why: Pause) -> Vec<Key> {
        let under = self.paused.range(prefix.clone()..).take_while(|key| prefix.is_prefix_of(key));
        let is_meant = |key: &&Key| {
            let flight = self.queries.get(*key).and_then(|query| query.flight.as_ref());
            flight.is_some_and(
                |flight| matches!(&flight.step, Step::Paused { why: paused, .. } if *paused == why),
            )
        };
        under.filter(is_meant).cloned().collect()
    }

    /// Upstreams can, or cannot, be reached.
    pub(super) fn network(&mut self, now: Time, online: bool, out: &mut Vec<Effect>) {
        if self.online == online {
            return;
        }
        self.online = online;
        out.push(Effect::Note(super::Note::Online(online)));
        if online {
            for key in self.paused_under(&Key::default(), Pause::Offline) {
                // Who waits goes first; what is merely stale comes in turn.
                let in_turn = |query: &Query| query.is_background() && query.is_active();
                if self.queries.get(&key).is_some_and(in_turn) {
                    self.drop_flight(&key);
                    self.service.queue(&key, Worth::Stale);
                } else {
                    self.attempt(now, &key, out);
                }
            }
            self.wake_all(now);
            self.ramp_polls(now);
        }
        self.touch_active();
    }
}
