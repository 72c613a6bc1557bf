//! What makes stale values worth fetching besides time: a session gains focus or is seen again, its user comes back, the network
//! is back.
//!
//! **Invariant:** triggers within the debounce time of the first are one; each key is fetched once for all of them, and only
//! if it is stale when the time is over (after idleness also if it is older than a minute).

use std::collections::BTreeSet;

use paceline_proto::{
    id::{Key, SessionId},
    presence::Presence,
    time::Time,
};

use super::{Effect, Engine, Timer, query::Query, refresh::Worth};
use crate::rules::{Options, Triggers};

/// Triggers of the debounce time under way.
#[derive(Debug, Default)]
pub(super) struct Woken {
    /// Sessions that gained focus or are seen again.
    focus: BTreeSet<SessionId>,
    /// Sessions whose users came back.
    idle: BTreeSet<SessionId>,
    reconnect: bool,
}

impl Engine {
    /// What a change of presence wakes.
    pub(super) fn wake(
        &mut self,
        now: Time,
        id: SessionId,
        before: Presence,
        idle_since: Option<Time>,
        after: Presence,
    ) {
        let shown = after.visible && !before.visible;
        let focused = after.focused && !before.focused;
        if shown || focused {
            self.woken.focus.insert(id);
            self.clear_backoff(id);
        }
        let idle = idle_since.is_some_and(|since| now.since(since) >= self.defaults.idle_after);
        if after.active && idle {
            self.woken.idle.insert(id);
        }
        if shown || focused || (after.active && idle) {
            self.debounce(now);
        }
    }

    /// The network is back.
    pub(super) fn wake_all(&mut self, now: Time) {
        self.woken.reconnect = true;
        self.debounce(now);
    }

    fn debounce(&mut self, now: Time) {
        if self.timers.at(&Timer::Debounce).is_none() {
            self.timers.set(Timer::Debounce, Some(now + self.defaults.debounce));
        }
    }

    fn clear_backoff(&mut self, session: SessionId) {
        let keys = self.sessions.known(session).map(|session| session.keys.clone()).unwrap_or_default();
        for key in keys {
            self.encourage(&key);
        }
    }

    /// What made polling and refreshing of a key slow does not count any more.
    pub(super) fn encourage(&mut self, key: &Key) {
        if let Some(query) = self.queries.get_mut(key) {
            query.refresh_failures = 0;
            query.pace.encourage();
            self.touch(key);
        }
    }

    /// The debounce time is over.
    pub(super) fn follow_triggers(&mut self, now: Time, out: &mut Vec<Effect>) {
        let woken = std::mem::take(&mut self.woken);
        if !self.preferences.automatic_updates {
            return;
        }
        if woken.reconnect && self.preferences.refetch_on_reconnect {
            for key in self.index.active_under(&Key::default()).cloned().collect::<Vec<_>>() {
                self.follow(
                    now,
                    &key,
                    Worth::Stale,
                    |query, _| query.wishes().any(|options| query.triggers(options).reconnect),
                    out,
                );
            }
        }
        if !self.preferences.refetch_on_focus {
            return;
        }
        let older = Worth::Older(self.defaults.idle_age);
        let sessions = woken.focus.iter().map(|id| (*id, Worth::Stale));
        let sessions: Vec<_> = sessions.chain(woken.idle.iter().map(|id| (*id, older))).collect();
        for (id, worth) in sessions {
            let keys = self.sessions.known(id).map(|session| session.keys.clone()).unwrap_or_default();
            for key in keys {
                self.follow(
                    now,
                    &key,
                    worth,
                    |query, now| {
                        let wishes = query.observers.get(&id);
                        wishes.into_iter().flatten().any(|options| {
                            let stale = query.is_stale_for(options, now);
                            query.triggers(options).focus && (stale || worth != Worth::Stale)
                        })
                    },
                    out,
                );
            }
        }
    }

    fn follow(
        &mut self,
        now: Time,
        key: &Key,
        worth: Worth,
        is_meant: impl FnOnce(&Query, Time) -> bool,
        out: &mut Vec<Effect>,
    ) {
        let Some(query) = self.queries.get(key) else { return };
        if !is_meant(query, now) || !self.is_reachable(query) {
            return;
        }
        match query.held {
            Some(_) => self.service.queue(key, worth),
            // Somebody looks at nothing: that is no background refresh.
            None => self.want_in_background(now, key, paceline_proto::id::Trace::NONE, out),
        }
    }
}

impl Query {
    /// The triggers of a session that looks at it.
    pub(super) fn triggers(&self, options: &Options) -> Triggers {
        let none = Triggers { subscribe: false, focus: false, reconnect: false };
        if options.is_enabled() { options.refetch_on.unwrap_or(self.rules.refetch_on) } else { none }
    }
}
