//! Subscriptions, and the life of a key that nobody needs.
//!
//! **Invariant:** a value is removed only when no session subscribes to the key, none fetches it, and the longest gc time of
//! those who did has passed. What one session drops is not removed from under another.

use std::sync::Arc;

use paceline_proto::{
    id::{Key, SessionId, Trace},
    time::Time,
};

use super::{
    Effect, Engine, Note,
    query::{Held, Query},
};
use crate::{
    resources::{Declared, KeyRules},
    rules::{Options, Resource},
};

impl Engine {
    pub(super) fn observed(
        &mut self,
        now: Time,
        session: SessionId,
        key: Key,
        mut wishes: Vec<Options>,
        out: &mut Vec<Effect>,
    ) {
        if wishes.is_empty() {
            wishes.push(Options::default());
        }
        self.sessions.get(session).keys.insert(key.clone());
        let (preferences, returning_until) = (self.preferences, self.returning_until);
        let query = self.query(now, &key);
        let before = query.observers.remove(&session).unwrap_or_default();
        query.shown = None;
        let switched_on = preferences.refetch_on_subscribe && preferences.automatic_updates;
        let missing = query.held.is_none();
        // Who comes back after a takeover is not new: what is stale by now is refreshed in turn.
        let new = now >= returning_until;
        let wants = |options: &Options| {
            let stale = || query.triggers(options).subscribe && query.is_stale_for(options, now);
            options.is_enabled() && (missing || (new && switched_on && stale()))
        };
        let wanted = wishes.iter().filter(|options| !before.contains(options)).any(wants);
        query.observers.insert(session, wishes);
        self.touch(&key);
        if wanted {
            self.want_in_background(now, &key, Trace::NONE, out);
        }
    }

    pub(super) fn unobserved(&mut self, now: Time, session: SessionId, key: &Key, out: &mut Vec<Effect>) {
        self.sessions.get(session).keys.remove(key);
        self.drop_observer(now, session, key, out);
    }

    pub(super) fn drop_observer(&mut self, now: Time, session: SessionId, key: &Key, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        let Some(wishes) = query.observers.remove(&session) else { return };
        query.keep_until = query.keep_until.max(now + query.gc(&wishes));
        self.touch(key);
        self.give_up_if_unwanted(now, key, out);
    }

    /// Nobody needed the value for its gc time.
    pub(super) fn expired(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        self.notice(now, key);
        self.touch(key);
        let Some(query) = self.queries.get_mut(key) else { return };
        if query.keep_until > now {
            return;
        }
        if query.held.is_some() && !query.fetched && query.rules.keeps_what_is_set() {
            query.keep_until = Time::NEVER;
            self.kept.insert(key.clone());
            return;
        }
        if query.held.is_some() {
            out.push(Effect::Remove { key: key.clone() });
        }
        self.forget(key);
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.queries.remove(key);
        self.index.remove(key);
        self.paused.remove(key);
        self.kept.remove(key);
        self.gathered.forget(key);
    }

    /// The key lost its value.
    pub(super) fn removed(&mut self, now: Time, key: &Key, out: &mut Vec<Effect>) {
        let Some(query) = self.queries.get_mut(key) else { return };
        query.etag = Arc::from("");
        query.hints = crate::rules::Hints::default();
        let had: Option<Held> = query.held.take();
        query.marked = None;
        query.pace.changed();
        self.touch(key);
        if self.nothing_installed(now, key, out) || had.is_none() {
            return;
        }
        let Some(query) = self.queries.get_mut(key) else { return };
        if let Some(late) = query.flight.as_mut().and_then(super::flight::Flight::late) {
            late.written = true;
        }
        if query.is_active() {
            self.want_in_background(now, key, Trace::NONE, out);
        }
    }

    pub(super) fn declared(
        &mut self,
        now: Time,
        session: SessionId,
        resource: Arc<Resource>,
        fetches: bool,
        out: &mut Vec<Effect>,
    ) {
        let (name, prefix) = (resource.name.clone(), resource.pattern.prefix());
        self.sessions.get(session).prefixes.insert(prefix.clone());
        let first = fetches && self.resources.fetchers(&name).next().is_none();
        let generation = self.resources.generation();
        match self.resources.declare(session, resource, fetches) {
            Declared::Changed | Declared::Known => {}
            Declared::Full => out.push(Effect::Note(Note::ResourcesFull { resource: name, session })),
        }
        if self.resources.generation() != generation {
            self.rules_changed(now, &prefix);
        }
        if first {
            self.fetcher_came(now, &prefix, out);
        }
    }

    /// The keys under a prefix may have other rules now.
    pub(super) fn rules_changed(&mut self, now: Time, prefix: &Key) {
        let kept = self.kept.range(prefix.clone()..).take_while(|key| prefix.is_prefix_of(key));
        for key in self.index.active_under(prefix).chain(kept).cloned().collect::<Vec<_>>() {
            self.notice(now, &key);
            self.touch(&key);
        }
    }
}

impl Query {
    /// What was granted by the old rules counts from the same moment by the new ones. A value that was kept for want of anybody
    /// who could fetch it is used from now on, if somebody can.
    pub(super) fn take_rules(&mut self, now: Time, rules: Arc<KeyRules>) {
        if self.rules != rules {
            let kept = self.keep_until == Time::NEVER && self.rules.keeps_what_is_set();
            self.keep_until = if kept && !rules.keeps_what_is_set() {
                now + rules.gc
            } else {
                let unused_since = self.keep_until - self.rules.gc;
                self.keep_until.max(unused_since + rules.gc)
            };
            self.rules = rules;
            self.pace.changed();
        }
    }
}
