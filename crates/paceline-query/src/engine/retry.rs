//! What follows a failure, and servers that ask everybody to wait.
//!
//! **Invariant:** somebody who waits gets the first attempt and `times` more, each after a delay drawn evenly below
//! min(base·2ⁿ, cap); what nobody waits for gets one. An attempt that failed for want of a network does not count.
//!
//! **Invariant:** after a `Retry-After` nobody asks that server before its time, whichever key or session it was meant for.

use std::{sync::Arc, time::Duration};

use paceline_proto::{
    fetch::{FailureKind, FetchFailure},
    id::Key,
    time::Time,
};

use super::{
    Effect, Engine, Note,
    flight::{Pause, Step},
    inflight::failure,
    nanoseconds,
    query::Query,
};
use crate::{
    limits::RETRY_AFTER_MAX,
    rules::{Retry, Source},
};

/// What a server's wish to wait is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Limit {
    Server(Arc<str>),
    Resource(Arc<str>),
}

impl Query {
    fn limit(&self) -> Option<Limit> {
        match &self.rules.source {
            Source::Server(server) => Some(Limit::Server(server.clone())),
            Source::Closure => self.rules.fetcher.clone().map(Limit::Resource),
            Source::None => None,
        }
    }
}

impl Engine {
    pub(super) fn attempt_failed(&mut self, now: Time, key: &Key, why: FetchFailure, out: &mut Vec<Effect>) {
        self.touch(key);
        self.note_limit(now, key, &why, out);
        let Some(query) = self.queries.get_mut(key) else { return };
        let (background, retry) = (query.is_background(), query.rules.retry);
        let critical = query.rules.critical;
        let Some(flight) = &mut query.flight else { return };
        flight.tried.clear();
        if why.kind == FailureKind::Network && !self.online && !background {
            flight.step = Step::Paused { why: Pause::Offline, until: None };
            return;
        }
        flight.failures += 1;
        query.failures = query.failures.saturating_add(1);
        if background || !why.kind.is_passing() || flight.failures > retry.times {
            return self.finish(now, key, Err(why), out);
        }
        if !flight.is_asked() && !self.strategy.active && !critical {
            flight.step = Step::Paused { why: Pause::Hidden, until: None };
            return;
        }
        let until = now + delay(&retry, flight.failures - 1, &mut self.random);
        let limited = self.queries.get(key).and_then(|query| self.limited_until(query, now));
        if limited.is_some_and(|limited| limited.since(now) > retry.cap) {
            return self.finish(now, key, Err(why), out);
        }
        let until = limited.map_or(until, |limited| limited.max(until));
        if let Some(flight) = self.queries.get_mut(key).and_then(|query| query.flight.as_mut()) {
            flight.step = Step::Waiting { until };
        }
    }

    fn note_limit(&mut self, now: Time, key: &Key, why: &FetchFailure, out: &mut Vec<Effect>) {
        let Some(wait) = why.retry_after_ms.map(Duration::from_millis) else { return };
        let Some(limit) = self.queries.get(key).and_then(Query::limit) else { return };
        let until = now + wait.min(RETRY_AFTER_MAX);
        let server = match &limit {
            Limit::Server(name) | Limit::Resource(name) => name.clone(),
        };
        let known = self.limits.entry(limit).or_insert(Time::ZERO);
        if until > *known {
            *known = until;
            out.push(Effect::Note(Note::RetryAfter { server, until }));
        }
    }

    /// Until when the server of a key is not asked.
    pub(super) fn limited_until(&self, query: &Query, now: Time) -> Option<Time> {
        self.limits.get(&query.limit()?).copied().filter(|until| *until > now)
    }

    /// The server is not to be asked yet. Who waits does so no longer than a retry would make them.
    pub(super) fn limited(&mut self, now: Time, key: &Key, until: Time, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let background = query.is_background();
        let cap = query.rules.retry.cap;
        let Some(flight) = &mut query.flight else { return };
        let wait = until.since(now);
        if background && query.held.is_some() {
            return self.drop_flight(key);
        }
        if wait > cap && flight.is_asked() {
            let ms = nanoseconds(wait).div_ceil(1_000_000);
            let why = format!("the server asked everybody to wait, for another {}", seconds(ms));
            let why = FetchFailure { retry_after_ms: Some(ms), ..failure(FailureKind::Status(429), why) };
            return self.finish(now, key, Err(why), out);
        }
        flight.step = Step::Waiting { until };
    }
}

fn seconds(ms: u64) -> String {
    format!("{}.{:03} s", ms / 1000, ms % 1000)
}

/// The delay after `failures` earlier ones.
fn delay(retry: &Retry, failures: u32, random: &mut paceline_proto::random::Random) -> Duration {
    let factor = 2_u32.checked_pow(failures).unwrap_or(u32::MAX);
    let bound = retry.base.saturating_mul(factor).min(retry.cap);
    if retry.jitter { Duration::from_nanos(random.up_to(nanoseconds(bound))) } else { bound }
}
