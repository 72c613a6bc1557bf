//! Polling: one timer per key, for all sessions.
//!
//! **Invariant:** the interval of a key is the shortest among the sessions that count at the moment; who comes, goes, hides or
//! falls idle changes it at once. A key whose fetch is under way is not due.
//!
//! A visible session counts with what it asks for, or what the rules say of the value. A hidden one counts only where the key is
//! polled in the background, and with that interval. In the smart mode a session counts while it shows the key and its
//! user is not idle; in the fallback mode nobody counts while the channel is healthy.

use std::{sync::Arc, time::Duration};

use paceline_proto::{
    fetch::FailureKind,
    id::{Key, SessionId, Trace},
    time::Time,
};
use serde_json::Value;

use super::{Effect, Engine, query::Query, strategy::Session};
use crate::{
    condition::Scope,
    limits::{INTERVAL_MIN, POLL_BACKOFF_MAX},
    rules::{Options, Poll, PollMode, PollStep},
};

/// Where neither the rules nor the session names an interval to back off from.
const BACKOFF_BASE: Duration = Duration::from_secs(5);

/// How a key is polled at the moment.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// What the rules say of the value; `None` until somebody asks.
    step: Option<PollStep>,
    /// Since when somebody counts.
    since: Option<Time>,
    /// Not earlier, whatever the interval says.
    not_before: Time,
    /// Without waiting for the interval.
    at_once: bool,
    /// Failures since the last success or encouragement …
    failures: u32,
    /// … and those of them that the network is to blame for.
    network_failures: u32,
    /// How long fetches take, smoothed.
    took: Duration,
}

impl Pace {
    /// The value, its rules, or what came of a fetch changed: the rules are asked again.
    pub(super) fn changed(&mut self) {
        self.step = None;
    }

    pub(super) fn encourage(&mut self) {
        (self.failures, self.network_failures) = (0, 0);
    }

    pub(super) fn ended(&mut self, took: Duration, failure: Option<FailureKind>) {
        self.changed();
        self.at_once = false;
        match failure {
            None => {
                self.encourage();
                self.took = if self.took.is_zero() { took } else { (self.took * 7 + took) / 8 };
            }
            Some(kind) => {
                self.failures = self.failures.saturating_add(1);
                let network = matches!(kind, FailureKind::Network | FailureKind::Timeout);
                self.network_failures = self.network_failures.saturating_add(u32::from(network));
            }
        }
    }

    /// What conditions make of an interval: never more than half of the time is spent asking, and a network that fails
    /// is asked less and less often.
    fn adapted(&self, interval: Duration) -> Duration {
        let slowed = doubled(interval, self.network_failures).min(interval.max(POLL_BACKOFF_MAX));
        slowed.max(self.took * 2).max(INTERVAL_MIN)
    }
}

fn doubled(interval: Duration, times: u32) -> Duration {
    interval.saturating_mul(2_u32.saturating_pow(times))
}

impl Query {
    /// What the rules say of the value.
    fn step(&mut self) -> PollStep {
        if let Some(step) = self.pace.step {
            return step;
        }
        let step = self.asked_step();
        self.pace.step = Some(step);
        step
    }

    fn asked_step(&self) -> PollStep {
        let Some((poll, bindings)) = self.rules.poll() else {
            return self.hints.poll.unwrap_or(PollStep::Stop);
        };
        // Only a failure outdoes what the fetcher knows of its value.
        if let (Some(step), false) = (self.hints.poll, self.failed) {
            return step;
        }
        if poll.rules.is_empty() {
            return self.hints.poll.unwrap_or(poll.otherwise);
        }
        let root = self.held.as_ref().and_then(|held| serde_json::from_slice(&held.value).ok());
        let root = root.unwrap_or(Value::Null);
        let scope = Scope { root: &root, bindings, failed: self.failed };
        let holds = poll
            .rules
            .iter()
            .find(|(when, _)| (self.hints.poll.is_none() || when.asks_for_failure()) && when.holds_in(scope));
        holds.map(|(_, step)| *step).or(self.hints.poll).unwrap_or(poll.otherwise)
    }
}

impl Engine {
    /// Derives when the key is polled next.
    pub(super) fn poll_due(&mut self, key: &Key, now: Time) -> Option<Time> {
        let interval = self.poll_interval(key, now);
        let query = self.queries.get_mut(key)?;
        let Some(interval) = interval else {
            query.pace.since = None;
            return None;
        };
        let since = *query.pace.since.get_or_insert(now);
        if query.flight.is_some() {
            return None;
        }
        let independent = query.rules.poll().is_some_and(|(poll, _)| poll.mode == PollMode::Independent);
        let pushed = query.held.as_ref().filter(|_| !independent).map_or(Time::ZERO, |held| held.at);
        let from = query.last_attempt.unwrap_or(since).max(pushed);
        let due = if query.pace.at_once { now } else { from + interval };
        Some(due.max(query.pace.not_before).max(now))
    }

    /// The shortest interval among those who count.
    fn poll_interval(&mut self, key: &Key, now: Time) -> Option<Duration> {
        let query = self.queries.get_mut(key)?;
        if !query.is_active() || !self.preferences.automatic_updates {
            return None;
        }
        let asks = |options: &Options| matches!(options.poll, Some(Some(_)));
        if query.rules.poll().is_none() && query.hints.poll.is_none() && !query.wishes().any(asks) {
            return None;
        }
        let step = query.step();
        let query = self.queries.get(key)?;
        let poll = query.rules.poll().map(|(poll, _)| poll);
        if !self.is_reachable(query) || !self.can_fetch(query) || self.is_fed(query, poll) {
            return None;
        }
        let each =
            query.observers.iter().flat_map(|(id, wishes)| wishes.iter().map(move |options| (id, options)));
        let counts = each.filter(|(_, options)| options.is_enabled()).filter_map(|(id, options)| {
            let session = self.sessions.known(*id)?;
            let interval = self.interval_of(query, poll, step, (session, options), now)?;
            Some((interval, self.is_low(session)))
        });
        let (shortest, all_low) =
            counts.fold((None::<Duration>, true), |(shortest, all_low), (interval, low)| {
                (Some(shortest.map_or(interval, |shortest| shortest.min(interval))), all_low && low)
            });
        let slow = poll.and_then(|poll| poll.low_battery).unwrap_or(self.defaults.low_battery);
        let shortest = if all_low { shortest?.max(slow) } else { shortest? };
        Some(query.pace.adapted(shortest))
    }

    fn is_fed(&self, query: &Query, poll: Option<&Poll>) -> bool {
        let healthy = |name: &Arc<str>| self.healthy.contains(name);
        poll.is_some_and(|poll| poll.mode == PollMode::Fallback)
            && query.rules.resources.iter().any(|matched| healthy(&matched.resource.name))
    }

    fn is_low(&self, session: &Session) -> bool {
        session.presence.battery.is_some_and(|percent| percent < self.preferences.battery_saver_below)
    }

    /// The interval with which a session counts.
    fn interval_of(
        &self,
        query: &Query,
        poll: Option<&Poll>,
        step: PollStep,
        (session, options): (&Session, &Options),
        now: Time,
    ) -> Option<Duration> {
        let base = match (options.poll, step) {
            (Some(own), _) => own?,
            (None, PollStep::Every(interval)) => interval,
            (None, PollStep::Stop) => return None,
            (None, PollStep::BackOff) => {
                let base = poll.map_or(BACKOFF_BASE, back_off_from);
                doubled(base, query.pace.failures).min(POLL_BACKOFF_MAX)
            }
        };
        if !session.presence.visible {
            let background = poll.and_then(|poll| poll.background);
            let polled = background.is_some() || query.rules.critical;
            let slow = || base.max(self.defaults.poll_background);
            let interval = background.unwrap_or_else(slow).max(self.preferences.poll_background);
            return options.poll_in_background.unwrap_or(polled).then_some(interval);
        }
        if let Some(poll) = poll.filter(|poll| poll.mode == PollMode::Smart) {
            let idle = session.idle_since.is_some_and(|since| now.since(since) >= poll.idle_after);
            if idle || options.on_screen == Some(false) {
                return None;
            }
        }
        Some(base.max(self.preferences.poll_active))
    }

    /// The key is polled.
    pub(super) fn poll(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        self.touch(key);
        let Some(interval) = self.poll_interval(key, now) else { return };
        self.want_in_background(now, key, Trace::NONE, out);
        if let Some(query) = self.queries.get_mut(key)
            && query.last_attempt != Some(now)
        {
            query.pace.not_before = now + interval;
        }
    }

    /// The channel that feeds a resource is healthy or not.
    pub(super) fn channel(&mut self, resource: &Arc<str>, healthy: bool) {
        let changed =
            if healthy { self.healthy.insert(resource.clone()) } else { self.healthy.remove(resource) };
        if !changed {
            return;
        }
        let named = self.resources.iter().find(|declared| declared.name == *resource);
        let Some(prefix) = named.map(|resource| resource.pattern.prefix()) else { return };
        for key in self.index.active_under(&prefix).cloned().collect::<Vec<_>>() {
            if let Some(query) = self.queries.get_mut(&key)
                && query.rules.resources.iter().any(|matched| matched.resource.name == *resource)
            {
                let falls_back = query.rules.poll().is_some_and(|(poll, _)| poll.mode == PollMode::Fallback);
                query.pace.at_once = falls_back && !healthy;
                self.touch(&key);
            }
        }
    }

    /// After a reconnect polls begin anew, spread over their intervals.
    pub(super) fn ramp_polls(&mut self, now: Time) {
        for key in self.index.active_under(&Key::default()).cloned().collect::<Vec<_>>() {
            self.encourage(&key);
            if let Some(interval) = self.poll_interval(&key, now) {
                let bound = super::nanoseconds(interval.min(POLL_BACKOFF_MAX));
                let delay = Duration::from_nanos(self.random.up_to(bound));
                if let Some(query) = self.queries.get_mut(&key) {
                    query.pace.not_before = now + delay;
                }
            }
            self.touch(&key);
        }
    }

    /// What a session subscribes to may be polled otherwise now.
    pub(super) fn touch_keys_of(&mut self, id: SessionId) {
        let keys = self.sessions.known(id).map(|session| session.keys.clone()).unwrap_or_default();
        self.touched.extend(keys);
    }
}

/// What a backoff doubles.
fn back_off_from(poll: &Poll) -> Duration {
    let shortest = poll.rules.iter().map(|(_, step)| step).chain([&poll.otherwise]);
    let every = shortest.filter_map(|step| match step {
        PollStep::Every(interval) => Some(*interval),
        PollStep::Stop | PollStep::BackOff => None,
    });
    every.min().unwrap_or(BACKOFF_BASE)
}
