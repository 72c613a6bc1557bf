//! The service that keeps active values fresh, and the lane for fetches that nobody waits for and that come in crowds.
//!
//! What has no value, is marked, or has an age that somebody called stale is looked after; where polling rules say when a key is
//! fetched, its age is their business. A value is due at max(when it turns stale, last attempt + check interval); after a failed refresh at last attempt + retry
//! interval, a few times. It is looked at when it is due, by its own timer. What triggers wake (focus, return, reconnect) goes
//! the same way, so that the crowd after a reconnect is a queue.
//!
//! **Invariant:** at most `concurrent` refreshes run at a time, and a look takes at most `batch` values; the next look comes
//! when those have begun. One attempt is made: this service is the retry.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use paceline_proto::{
    id::{Key, Trace},
    time::Time,
};

use super::{
    Effect, Engine, Note,
    query::{Held, Query},
};
use crate::rules::{NetworkMode, Staleness};

/// Values that are due or under way.
#[derive(Debug, Default)]
pub(super) struct Service {
    /// In the order in which they became due; `queued` tells what still is.
    order: VecDeque<Key>,
    /// What makes each worth fetching.
    queued: BTreeMap<Key, Worth>,
    /// Left of the look under way.
    batch: VecDeque<(Key, Worth)>,
    running: BTreeSet<Key>,
}

/// What makes a value worth fetching when its turn comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Worth {
    /// It is stale.
    Stale,
    /// It is stale, or older than this although time may make it stale only later.
    Older(Duration),
}

impl Service {
    /// The key's turn will come.
    fn holds(&self, key: &Key) -> bool {
        self.queued.contains_key(key) || self.batch.iter().any(|(of_batch, _)| of_batch == key)
    }

    pub(super) fn queue(&mut self, key: &Key, worth: Worth) {
        match self.queued.get_mut(key) {
            Some(Worth::Older(_)) => {}
            Some(before @ Worth::Stale) => *before = worth,
            None => {
                self.queued.insert(key.clone(), worth);
                self.order.push_back(key.clone());
            }
        }
    }

    /// The key's refresh is over, or somebody waits for it now.
    pub(super) fn release(&mut self, key: &Key) {
        self.running.remove(key);
    }
}

impl Engine {
    /// When the service looks at a value next.
    pub(super) fn refresh_due(&self, key: &Key, query: &Query, now: Time) -> Option<Time> {
        let rules = &self.defaults.refresh;
        let looked_after = query.is_active()
            && self.preferences.automatic_updates
            && (self.strategy.active || query.rules.critical)
            && query.flight.is_none()
            && query.staleness() != Staleness::Static
            && query.refresh_failures <= rules.max_retries;
        if !looked_after || !self.is_reachable(query) || !self.can_fetch(query) || self.service.holds(key) {
            return None;
        }
        let stale_at = match (&query.held, query.marked) {
            (None, _) => Time::ZERO,
            // Who marked it said what is to be fetched at once; the service finds the rest at its next check.
            (Some(_), Some(marked)) => marked + rules.check_interval,
            (Some(_), None) if self.is_refreshed_by_age(query) => query.stale_at()?.0,
            (Some(_), None) => return None,
        };
        let interval = if query.refresh_failures == 0 { rules.check_interval } else { rules.retry_interval };
        let again = query.last_attempt.map_or(Time::ZERO, |last| last + interval);
        let allowed = self.limited_until(query, now).unwrap_or(Time::ZERO);
        Some(stale_at.max(again).max(allowed).max(now))
    }

    /// Age alone has the service fetch it: not where polling rules say when it is fetched, and when not, and not where nobody said how
    /// long it is fresh; `always` must have been meant.
    fn is_refreshed_by_age(&self, query: &Query) -> bool {
        let said = query.rules.resources.iter().any(|matched| matched.resource.stale.is_some())
            || query.hints.stale.is_some()
            || query.wishes().any(|options| options.stale.is_some());
        query.rules.poll().is_none() && (said || self.defaults.stale != Staleness::Always)
    }

    /// The network that the key's requests need is not known to be gone. What is offline first gets its one attempt from those
    /// who ask, not from those who come again and again.
    pub(super) fn is_reachable(&self, query: &Query) -> bool {
        self.online || query.rules.network == NetworkMode::Always
    }

    /// Begins what may begin. Whether anything did.
    pub(super) fn pump(&mut self, now: Time, out: &mut Vec<Effect>) -> bool {
        let before = self.touched.len();
        let most = self.defaults.refresh.concurrent.max(1);
        if self.service.batch.is_empty() && self.service.running.len() < most {
            self.look(now, out);
        }
        while self.service.running.len() < most {
            let Some((key, worth)) = self.service.batch.pop_front() else { break };
            self.touch(&key);
            if self.is_worth(&key, worth, now) {
                self.begin(now, &key, out);
            }
        }
        self.touched.len() > before
    }

    fn look(&mut self, now: Time, out: &mut Vec<Effect>) {
        let (mut checked, mut stale) = (0, 0);
        while self.service.batch.len() < self.defaults.refresh.batch.max(1) {
            let Some(key) = self.service.order.pop_front() else { break };
            let Some(worth) = self.service.queued.remove(&key) else { continue };
            checked += 1;
            stale += u32::from(self.queries.get(&key).is_some_and(|query| query.is_stale(now)));
            if self.is_worth(&key, worth, now) {
                self.service.batch.push_back((key, worth));
            } else {
                self.touch(&key);
            }
        }
        if checked > 0 {
            let begun = u32::try_from(self.service.batch.len()).unwrap_or(u32::MAX);
            out.push(Effect::Note(Note::Refresh { checked, stale, begun }));
        }
    }

    fn is_worth(&self, key: &Key, worth: Worth, now: Time) -> bool {
        let Some(query) = self.queries.get(key) else { return false };
        let looked_at = query.is_active()
            && (self.strategy.active || query.rules.critical)
            && self.is_reachable(query)
            && self.limited_until(query, now).is_none()
            && query.flight.is_none();
        looked_at
            && match worth {
                Worth::Stale => query.is_stale(now),
                Worth::Older(age) => query.is_stale(now) || query.is_older(age, now),
            }
    }

    fn begin(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        self.want_in_background(now, key, Trace::NONE, out);
        let running = |query: &Query| query.flight.as_ref().is_some_and(|flight| flight.running().is_some());
        if self.queries.get(key).is_some_and(|query| running(query) && query.is_background()) {
            self.service.running.insert(key.clone());
        }
    }
}

impl Query {
    /// Time makes the value stale one day, and it is older than this.
    pub(super) fn is_older(&self, age: Duration, now: Time) -> bool {
        let ages = match self.staleness() {
            Staleness::Always | Staleness::After(_) => true,
            Staleness::Never | Staleness::Static => false,
        };
        ages && self.held.as_ref().is_some_and(|Held { at, .. }| now.since(*at) > age)
    }
}
