//! Presence of the sessions, and what the group makes of it.
//!
//! **Invariant:** the group is active while some session is visible, and for the grace time after; a session that switches
//! windows changes nothing.

use std::collections::{BTreeMap, BTreeSet};

use paceline_proto::{
    id::{Key, SessionId},
    presence::Presence,
    time::Time,
};

use super::{Effect, Engine, Note, Timer, flight::Pause};

#[derive(Debug, Default)]
pub(super) struct Sessions(BTreeMap<SessionId, Session>);

#[derive(Debug, Default)]
pub(super) struct Session {
    pub(super) presence: Presence,
    /// Since when its user does nothing.
    pub(super) idle_since: Option<Time>,
    /// What it subscribes to.
    pub(super) keys: BTreeSet<Key>,
    /// Under these lie the keys of the resources that it declared.
    pub(super) prefixes: BTreeSet<Key>,
    /// What it waits for.
    pub(super) asks: BTreeSet<super::AskId>,
}

impl Sessions {
    pub(super) fn get(&mut self, id: SessionId) -> &mut Session {
        self.0.entry(id).or_default()
    }

    pub(super) fn known(&self, id: SessionId) -> Option<&Session> {
        self.0.get(&id)
    }

    fn remove(&mut self, id: SessionId) -> Option<Session> {
        self.0.remove(&id)
    }

    fn any_visible(&self) -> bool {
        self.0.values().any(|session| session.presence.visible)
    }
}

#[derive(Debug)]
pub(super) struct Strategy {
    pub(super) active: bool,
}

impl Default for Strategy {
    fn default() -> Self {
        Self { active: true }
    }
}

impl Engine {
    pub(super) fn present(&mut self, now: Time, id: SessionId, presence: Presence, out: &mut Vec<Effect>) {
        let known = self.sessions.known(id).is_some();
        let session = self.sessions.get(id);
        let (before, idle_since) = (session.presence, session.idle_since);
        session.presence = presence;
        session.idle_since = if presence.active { None } else { idle_since.or(Some(now)) };
        if known {
            self.wake(now, id, before, idle_since, presence);
        }
        self.touch_keys_of(id);
        self.follow_presence(now, out);
    }

    /// The session is gone, with its subscriptions, fetchers and questions.
    pub(super) fn left(&mut self, now: Time, id: SessionId, out: &mut Vec<Effect>) {
        let Some(session) = self.sessions.remove(id) else { return };
        if self.resources.forget(id) {
            for prefix in &session.prefixes {
                self.rules_changed(now, prefix);
            }
        }
        for ask in session.asks {
            self.unasked(now, ask, out);
        }
        for key in session.keys {
            self.drop_observer(now, id, &key, out);
        }
        self.fetcher_left(now, id, out);
        self.follow_presence(now, out);
    }

    fn follow_presence(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.sessions.any_visible() {
            self.timers.set(Timer::Grace, None);
            if !self.strategy.active {
                self.set_strategy(now, true, out);
            }
        } else if self.strategy.active
            && self.timers.at(&Timer::Grace).is_none()
            && !self.sessions.0.is_empty()
        {
            self.timers.set(Timer::Grace, Some(now + self.defaults.grace));
        }
    }

    pub(super) fn grace_over(&mut self, now: Time, out: &mut Vec<Effect>) {
        self.set_strategy(now, false, out);
    }

    fn set_strategy(&mut self, now: Time, active: bool, out: &mut Vec<Effect>) {
        self.strategy.active = active;
        out.push(Effect::Note(Note::Strategy { active }));
        if active {
            for key in self.paused_under(&Key::default(), Pause::Hidden) {
                self.attempt(now, &key, out);
            }
        }
        self.touch_active();
    }
}
