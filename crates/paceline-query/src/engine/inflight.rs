//! One fetch for all who want a key: how it begins, is joined, answered and ended.

use std::sync::Arc;

use paceline_proto::{
    fetch::{FailureKind, FetchFailure, FetchId, FetchOutcome},
    id::{Key, SessionId, Trace, Version},
    limits::VALUE_MAX,
    time::Time,
};

use super::{
    AskId, Effect, Engine, Note,
    flight::{Flight, Response, Step, Verdict},
    nanoseconds,
    query::Query,
};
use crate::{limits::RENEWALS_MAX, rules::Hints};

/// A wish for a key.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Wish {
    /// Who waits.
    pub(super) asker: Option<AskId>,
    /// What is under way is too old: it is begun anew.
    pub(super) renew: bool,
    pub(super) trace: Trace,
}

impl Query {
    pub(super) fn is_installing_marked(&self) -> bool {
        self.flight.as_ref().is_some_and(|flight| matches!(flight.step, Step::Installing { marked: true }))
    }
}

impl Engine {
    /// Fetches what is worth fetching although nobody waits: where nobody can, the value that is held does.
    pub(super) fn want_in_background(&mut self, now: Time, key: &Key, trace: Trace, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get(key) else { return };
        let possible = query.has_source() && (query.held.is_none() || self.can_fetch(query));
        if possible {
            self.want(now, key, Wish { trace, ..Wish::default() }, out);
        }
    }

    /// Begins a fetch, or joins the one under way.
    pub(super) fn want(&mut self, now: Time, key: &Key, wish: Wish, out: &mut Vec<Effect>) {
        self.touch(key);
        let query = self.query(now, key);
        let holds = query.held.is_some();
        let Some(flight) = &mut query.flight else {
            let mut flight = Flight::new(holds, query.failures, wish.trace);
            flight.askers.extend(wish.asker);
            query.flight = Some(flight);
            return self.attempt(now, key, out);
        };
        let renew = wish.renew && holds;
        let from_now = match &flight.step {
            Step::Running(_) if renew && flight.renewals < RENEWALS_MAX => {
                flight.renewals += 1;
                true
            }
            Step::Running(_) if !renew => false,
            Step::Running(_) | Step::Installing { .. } => {
                flight.again |= wish.asker.is_none();
                flight.next.extend(wish.asker);
                return;
            }
            Step::Waiting { .. } => renew,
            Step::Paused { .. } => true,
        };
        flight.askers.extend(wish.asker);
        if wish.asker.is_some() && flight.attempts > 0 {
            self.stats.joined += 1;
        }
        if from_now {
            self.cancel_attempt(key, out);
            self.attempt(now, key, out);
        }
    }

    /// Takes back the attempt that runs, if one does.
    pub(super) fn cancel_attempt(&mut self, key: &Key, out: &mut Vec<Effect>) {
        let flight = self.queries.get_mut(key).and_then(|query| query.flight.as_mut());
        let Some(attempt) = flight.as_ref().and_then(|flight| flight.running()) else { return };
        out.push(Effect::CancelFetch { session: attempt.session, id: attempt.id });
        self.attempts.remove(&attempt.id);
    }

    /// The last who looked at a key or waited for it is gone.
    pub(super) fn give_up_if_unwanted(&mut self, _now: Time, key: &Key, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let Some(flight) = query.flight.as_ref().filter(|flight| !flight.is_asked()) else { return };
        if query.is_active() || (flight.running().is_some() && !query.rules.cancellable) {
            return;
        }
        self.cancel_attempt(key, out);
        self.drop_flight(key);
    }

    /// Ends a flight as if it had never been.
    pub(super) fn drop_flight(&mut self, key: &Key) {
        if let Some(query) = self.queries.get_mut(key)
            && let Some(flight) = query.flight.take()
        {
            query.failures = flight.failures_before;
        }
        self.touch(key);
    }

    /// A session answers.
    pub(super) fn fetched(
        &mut self,
        now: Time,
        id: FetchId,
        session: SessionId,
        outcome: FetchOutcome,
        out: &mut Vec<Effect>,
    ) {
        let Some(key) = self.attempts.get(&id).cloned() else { return };
        self.notice(now, &key);
        let running = |query: &Query| {
            let attempt = query.flight.as_ref()?.running()?;
            (attempt.id == id && attempt.session == session).then_some(attempt.late)
        };
        let Some(late) = self.queries.get(&key).and_then(running) else { return };
        self.attempts.remove(&id);
        self.touch(&key);
        let response = match outcome {
            FetchOutcome::Failed(failure) => return self.attempt_failed(now, &key, failure, out),
            FetchOutcome::Value { value, version, etag, hints } => {
                self.stats.bytes += value.len() as u64;
                Response { value: Some(value), version, etag, hints }
            }
            FetchOutcome::NotModified => Response::not_modified(),
        };
        // What is gathered is fetched when the gathering ends; until then who only looks gets what there is.
        let gathered = self.gathered.holds(&key);
        let Some(flight) = self.queries.get_mut(&key).and_then(|query| query.flight.as_mut()) else { return };
        match flight.judge(late, &response.version, gathered) {
            Verdict::Renew => {
                flight.renewals += 1;
                self.attempt(now, &key, out);
            }
            Verdict::Hold => self.finish(now, &key, Ok(()), out),
            Verdict::Install => self.install(now, &key, response, false, out),
            Verdict::InstallMarked => self.install(now, &key, response, true, out),
        }
    }

    fn install(&mut self, now: Time, key: &Key, response: Response, marked: bool, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let wrong = match &response.value {
            Some(value) if value.is_empty() => Some("the answer is empty"),
            Some(value) if value.len() > VALUE_MAX => Some("the answer is longer than a value may be"),
            None if query.held.is_none() => Some("the server says that nothing changed, and nothing is held"),
            Some(_) | None => None,
        };
        if let Some(why) = wrong {
            query.etag = Arc::from("");
            return self.attempt_failed(now, key, failure(FailureKind::Invalid, why.to_owned()), out);
        }
        let Some(flight) = &mut query.flight else { return };
        flight.step = Step::Installing { marked };
        let trace = flight.trace;
        match response.value {
            Some(value) => {
                query.etag = response.etag;
                query.hints = Hints::from_bytes(&response.hints).unwrap_or_default();
                out.push(Effect::Install { key: key.clone(), value, version: response.version, trace });
            }
            None => out.push(Effect::Touch { key: key.clone(), trace }),
        }
    }

    /// What was installed stands.
    pub(super) fn installed(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        let installing = |query: &Query| {
            query.flight.as_ref().is_some_and(|flight| matches!(flight.step, Step::Installing { .. }))
        };
        if self.queries.get(key).is_some_and(installing) {
            self.finish(now, key, Ok(()), out);
        }
    }

    /// Nothing stands although something was installed. Whether that was it.
    pub(super) fn nothing_installed(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) -> bool {
        let installing = |query: &Query| {
            query.flight.as_ref().is_some_and(|flight| matches!(flight.step, Step::Installing { .. }))
        };
        let was = self.queries.get(key).is_some_and(installing);
        if was {
            let why = failure(FailureKind::Invalid, "the value was not taken".to_owned());
            self.finish(now, key, Err(why), out);
        }
        was
    }

    /// The flight is over: tells who waited, and begins the next one where somebody wants it.
    pub(super) fn finish(
        &mut self,
        now: Time,
        key: &Key,
        result: Result<(), FetchFailure>,
        out: &mut Vec<Effect>,
    ) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let background = query.is_background();
        let Some(flight) = query.flight.take() else { return };
        query.keep_until = query.keep_until.max(now + query.gc(&[]));
        // Without an attempt nothing was learned.
        if let (Some(began), Err(failure)) = (flight.began, &result) {
            query.failed = true;
            query.refresh_failures = query.refresh_failures.saturating_add(1);
            query.pace.ended(now.since(began), Some(failure.kind));
            if !background {
                query.error = Some(failure.why.as_str().into());
            }
        }
        if let (Some(began), Ok(())) = (flight.began, &result) {
            query.failed = false;
            query.failures = 0;
            query.error = None;
            query.refresh_failures = 0;
            query.pace.ended(now.since(began), None);
        }
        if let Some(began) = flight.began {
            let took = now.since(began);
            self.stats.ended(now, took, result.is_ok(), background);
            out.push(Effect::Note(Note::FetchEnded {
                key: key.clone(),
                background,
                took_ns: nanoseconds(took),
                attempts: flight.attempts,
                failure: result.as_ref().err().map(|failure| failure.why.as_str().into()),
                trace: flight.trace,
            }));
        }
        self.touch(key);
        for asker in flight.askers {
            self.served(now, asker, key, &result, out);
        }
        let wanted = self.queries.get(key).is_some_and(|query| flight.again && query.is_active());
        if wanted {
            self.want(now, key, Wish { trace: flight.trace, ..Wish::default() }, out);
        }
        for asker in flight.next {
            self.want(now, key, Wish { asker: Some(asker), trace: flight.trace, renew: false }, out);
        }
    }
}

impl Response {
    fn not_modified() -> Self {
        Self { value: None, version: Version::None, etag: "".into(), hints: bytes::Bytes::new() }
    }
}

pub(super) fn failure(kind: FailureKind, why: String) -> FetchFailure {
    FetchFailure { kind, why, retry_after_ms: None, detail: bytes::Bytes::new() }
}
