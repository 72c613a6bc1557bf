//! The session's side of queries: what it declares and asks of keys, told on every link; states as the owner shows them.
//!
//! **Invariant:** what is shown of a query comes from the owner that the session follows, or is the default.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;

use super::{Effect, Follower, offer::chunks};
use crate::{
    event::Event,
    fetch::{Declared, FetchId, FetchOutcome, QueryState},
    id::{Epoch, Key},
    limits::DECLARED_MAX,
    message::{DeclaredItem, ToHub},
};

#[derive(Debug, Default)]
pub(super) struct Queries {
    declared: BTreeMap<Arc<str>, Declared>,
    options: BTreeMap<Key, Bytes>,
    /// States other than the default, as shown.
    states: BTreeMap<Key, QueryState>,
    /// States shown by a former link, until the new one has said what they are.
    stale: BTreeSet<Key>,
}

impl Queries {
    pub(super) fn forget(&mut self, key: &Key) {
        self.options.remove(key);
        self.states.remove(key);
        self.stale.remove(key);
    }

    /// A link begins: what an earlier one showed holds only if this one says so.
    pub(super) fn begin_states(&mut self) {
        self.stale = self.states.keys().cloned().collect();
    }
}

impl Follower {
    pub(super) fn declare(&mut self, resources: Vec<Declared>, out: &mut Vec<Effect>) {
        let mut news = Vec::new();
        for resource in resources {
            let known = self.queries.declared.get(&resource.name);
            if known == Some(&resource) {
                continue;
            }
            if known.is_none() && self.queries.declared.len() >= DECLARED_MAX {
                out.push(Effect::Event(Event::LimitReached { limit: "DECLARED_MAX" }));
                continue;
            }
            self.queries.declared.insert(resource.name.clone(), resource.clone());
            news.push(resource);
        }
        if self.is_linked() {
            send_declared(news, out);
        }
    }

    pub(super) fn observe(&mut self, key: Key, options: Bytes, out: &mut Vec<Effect>) {
        let known = if options.is_empty() {
            self.queries.options.remove(&key)
        } else {
            self.queries.options.insert(key.clone(), options.clone())
        };
        if known.unwrap_or_default() == options {
            return;
        }
        self.send(ToHub::Observe { key, options }, out);
    }

    /// An answer goes to the owner that asked; the next one asks again if it wants to know.
    pub(super) fn fetched(
        &mut self,
        epoch: Epoch,
        id: FetchId,
        outcome: FetchOutcome,
        out: &mut Vec<Effect>,
    ) {
        if epoch == self.epoch {
            self.send(ToHub::Fetched { id, outcome }, out);
        }
    }

    /// Tells a new owner, or one that begins anew, what is declared.
    pub(super) fn tell_declared(&mut self, out: &mut Vec<Effect>) {
        send_declared(self.queries.declared.values().cloned().collect(), out);
    }

    /// Tells it what is asked of keys, before they are subscribed to.
    pub(super) fn tell_options(&mut self, out: &mut Vec<Effect>) {
        let options = self.queries.options.iter();
        out.extend(options.map(|(key, options)| {
            Effect::Send(ToHub::Observe { key: key.clone(), options: options.clone() })
        }));
    }

    /// Tells an owner that wants to compare what sessions declare.
    pub(super) fn tell_items(&self, out: &mut Vec<Effect>) {
        let size = |item: &DeclaredItem| 8 + item.name.len() + item.place.len();
        let chunks = chunks(self.items.clone(), size);
        let last = chunks.len().saturating_sub(1);
        out.extend(
            chunks
                .into_iter()
                .enumerate()
                .map(|(at, items)| Effect::Send(ToHub::Items { items, end: at == last })),
        );
    }

    pub(super) fn show_state(&mut self, key: Key, state: QueryState, out: &mut Vec<Effect>) {
        if !self.keys.contains_key(&key) {
            return;
        }
        self.queries.stale.remove(&key);
        let default = state == QueryState::default();
        let known = if default {
            self.queries.states.remove(&key).unwrap_or_default()
        } else {
            self.queries.states.insert(key.clone(), state.clone()).unwrap_or_default()
        };
        if known != state {
            out.push(Effect::ShowState(key, state));
        }
    }

    /// The first snapshot of a link is complete: states it did not name are the default.
    pub(super) fn settle_states(&mut self, out: &mut Vec<Effect>) {
        for key in std::mem::take(&mut self.queries.stale) {
            if self.queries.states.remove(&key).is_some() {
                out.push(Effect::ShowState(key, QueryState::default()));
            }
        }
    }
}

fn send_declared(resources: Vec<Declared>, out: &mut Vec<Effect>) {
    let size = |resource: &Declared| resource.name.len() + resource.rules.len();
    out.extend(chunks(resources, size).into_iter().map(|chunk| Effect::Send(ToHub::Declare(chunk))));
}
