//! Marks, cascades, and the fetches that follow.
//!
//! Three requirements meet here. An invalidation is felt at once while somebody looks (I3), a burst of them costs few
//! requests (T6), and none is lost (I4):
//! - The mark is set at once, on the key, on what lies under it, and on what depends on it.
//! - While the group is active, a key that no invalidation fetched within the window is fetched at once. Those that follow are
//!   gathered as a set, and fetched a window after the last one; an endless burst waits no longer than
//!   [`WINDOWS_MAX`] windows.
//! - While no session is visible all are gathered, and only critical keys are fetched; the others stay marked, and are fetched
//!   when somebody looks again.
//!
//! **Invariant:** a key that is marked stays so until a value comes whose fetch began after the mark, or that is written or
//! pushed.

use std::{collections::BTreeMap, sync::Arc};

use paceline_proto::{
    id::{Key, Trace},
    time::Time,
};

use super::{Effect, Engine, RefetchType, Timer, inflight::Wish};
use crate::{
    cascade::{Cascade, Root},
    limits::WINDOWS_MAX,
    rules::Staleness,
};

/// Invalidations whose fetches wait.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    keys: BTreeMap<Key, (RefetchType, Trace)>,
    /// When the first of them came.
    since: Time,
}

impl Gathered {
    /// The key is fetched when the gathering ends.
    pub(super) fn holds(&self, key: &Key) -> bool {
        self.keys.contains_key(key)
    }

    pub(super) fn forget(&mut self, key: &Key) {
        self.keys.remove(key);
    }
}

impl Engine {
    pub(super) fn invalidated(
        &mut self,
        now: Time,
        key: &Key,
        exact: bool,
        refetch: RefetchType,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        self.index.mark(key, exact);
        let own: Vec<Key> = match (exact, refetch) {
            (true, _) => vec![key.clone()],
            (false, RefetchType::Active | RefetchType::None) => {
                self.index.active_under(key).cloned().collect()
            }
            (false, RefetchType::Inactive | RefetchType::All) => self.index.under(key).cloned().collect(),
        };
        let dependents = self.dependents(&Root::Key { key: key.clone(), exact });
        self.reach(now, own, dependents, refetch, trace, out);
    }

    pub(super) fn tag_invalidated(
        &mut self,
        now: Time,
        tag: &Arc<str>,
        refetch: RefetchType,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        let dependents = self.dependents(&Root::Tag(tag.clone()));
        self.reach(now, Vec::new(), dependents, refetch, trace, out);
    }

    /// Marks what depends on a root. What nobody looks at now notices the mark later.
    fn dependents(&mut self, root: &Root) -> Vec<Key> {
        let keys = Cascade::new(&mut self.resources, root).dependents(&self.index, root);
        for key in &keys {
            self.index.mark(key, true);
        }
        keys.into_iter().collect()
    }

    fn reach(
        &mut self,
        now: Time,
        own: Vec<Key>,
        dependents: Vec<Key>,
        refetch: RefetchType,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        if !dependents.is_empty() {
            out.push(Effect::Mark { keys: dependents.clone(), trace });
        }
        for key in own.into_iter().chain(dependents) {
            self.notice(now, &key);
            let Some(query) = self.queries.get(&key) else { continue };
            let meant = refetch.takes(query.is_active()) && query.staleness() != Staleness::Static;
            if meant && self.can_fetch(query) {
                self.refetch(now, key, refetch, trace, out);
            }
        }
    }

    /// Takes note of a mark that reached the key, and of rules that changed. Both are numbers that cost nothing for keys that
    /// nobody looks at; what they mean for those is noticed here, when somebody does or when their fetch goes on.
    pub(super) fn notice(&mut self, now: Time, key: &Key) {
        let Some(query) = self.queries.get_mut(key) else { return };
        if query.rules_of != self.resources.generation() {
            query.rules_of = self.resources.generation();
            query.take_rules(now, self.resources.rules(key));
        }
        let mark = self.index.marked(key);
        if mark > query.mark {
            query.mark = mark;
            query.marked = query.marked.or(query.held.as_ref().map(|_| now));
            if let Some(late) = query.flight.as_mut().and_then(super::flight::Flight::late) {
                late.invalidated = true;
            }
            self.touch(key);
        }
    }

    /// Fetches at once, or gathers.
    fn refetch(&mut self, now: Time, key: Key, refetch: RefetchType, trace: Trace, out: &mut Vec<Effect>) {
        let window = self.defaults.batch_window;
        let Some(query) = self.queries.get_mut(&key) else { return };
        let quiet = query.invalidation_fetched.is_none_or(|at| now.since(at) >= window);
        if self.strategy.active && quiet && !self.gathered.keys.contains_key(&key) {
            query.invalidation_fetched = Some(now);
            return self.want(now, &key, Wish { asker: None, renew: true, trace }, out);
        }
        if self.gathered.keys.is_empty() {
            self.gathered.since = now;
        }
        self.gathered.keys.insert(key, (refetch, trace));
        let latest = self.gathered.since + window * WINDOWS_MAX;
        self.timers.set(Timer::Batch, Some(latest.min(now + window)));
    }

    /// The gathering is over.
    pub(super) fn flush(&mut self, now: Time, out: &mut Vec<Effect>) {
        for (key, (refetch, trace)) in std::mem::take(&mut self.gathered.keys) {
            let Some(query) = self.queries.get_mut(&key) else { continue };
            let awaited = query.flight.as_ref().is_some_and(|flight| flight.is_asked());
            let worth = self.strategy.active || query.rules.critical || awaited;
            if query.is_stale(now) && refetch.takes(query.is_active()) && worth {
                query.invalidation_fetched = Some(now);
                let renew = query.flight.as_ref().and_then(|flight| flight.running());
                let renew = renew.is_some_and(|attempt| attempt.late.invalidated);
                self.want(now, &key, Wish { asker: None, renew, trace }, out);
            }
        }
    }
}
