//! The seam to the query engine: what it is told, in the order of the log, and what it wishes for values.
//!
//! The engine begins once the survivors' offers are in: what it is told then is true of the whole group, so that a change
//! of owner makes nothing stale. Until then questions and interest wait here.
//!
//! **Invariant:** the engine hears of every change of a value or its staleness once, in the order of the log.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Effect, Hub, links::Slot, log::To, requests::within_chunk};
use crate::{
    event::Event,
    fetch::{Declared, FetchId, FetchOutcome, FetchRequest, QueryState},
    id::{Key, LinkId, SessionId, Trace, Version},
    limits::{DECLARED_MAX, INTEREST_MAX, KEY_MAX, VALUE_MAX},
    message::{Answer, Ask, Body, ToSession},
    presence::Presence,
    time::Time,
};

/// Who changed a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// The engine, by [`QueryWish::Install`].
    Fetch,
    /// An upstream sent all of it, or a survivor had a newer one.
    Push {
        /// It has a version, which decides between it and what a fetch finds.
        versioned: bool,
    },
    /// A session, or an upstream that sent a part of it: a fetch that began before does not know of it.
    Write,
}

/// What the engine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryFact {
    /// The survivors' offers are in. Values that are held now are not told again.
    Began,
    /// A session subscribes to a key, or joined anew with it.
    Observed {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// What a session asks of a key, from the next [`QueryFact::Observed`] on.
    Options {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
        /// What, as `paceline-query` writes it.
        options: Bytes,
    },
    /// A session subscribes to a key no more.
    Unobserved {
        /// Who.
        session: SessionId,
        /// The key.
        key: Key,
    },
    /// A session came, or shows something else; `None` = its link ended, and with it all it asked for.
    Presence {
        /// Who.
        session: SessionId,
        /// What it shows.
        presence: Option<Presence>,
    },
    /// A session declares resources.
    Declared {
        /// Who.
        session: SessionId,
        /// The resources.
        resources: Vec<Declared>,
    },
    /// A value was installed.
    Changed {
        /// The key.
        key: Key,
        /// JSON bytes.
        value: Bytes,
        /// When it was right.
        at: Time,
        /// By whom.
        by: Writer,
    },
    /// The key has no value any more.
    Removed {
        /// The key.
        key: Key,
    },
    /// Keys were marked stale; not told of [`QueryWish::Mark`].
    Invalidated {
        /// The prefix.
        key: Key,
        /// Only the key itself.
        exact: bool,
        /// The cause.
        trace: Trace,
    },
    /// A question for the engine, or the outbox; answered by [`QueryWish::Answer`].
    Asked {
        /// The link it came on.
        link: LinkId,
        /// Its number there.
        id: u64,
        /// Who asks.
        session: SessionId,
        /// The question.
        ask: Ask,
        /// The cause.
        trace: Trace,
    },
    /// A session was asked to fetch, and did.
    Fetched {
        /// Who.
        session: SessionId,
        /// The attempt.
        id: FetchId,
        /// What came of it.
        outcome: FetchOutcome,
    },
}

/// What the engine wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueryWish {
    /// Install what a fetch found; a greater version that is held stays. Told back by [`QueryFact::Changed`] in either case.
    Install {
        /// The key.
        key: Key,
        /// JSON bytes.
        value: Bytes,
        /// The server's version.
        version: Version,
        /// The cause.
        trace: Trace,
    },
    /// The value that is held is right as it is: as [`QueryWish::Install`] with what is held.
    Touch {
        /// The key.
        key: Key,
        /// The cause.
        trace: Trace,
    },
    /// Mark these keys stale, each alone.
    Mark {
        /// The keys.
        keys: Vec<Key>,
        /// The cause.
        trace: Trace,
    },
    /// No invalidation makes this value stale: take the mark away. Its time stays.
    Unmark {
        /// The key.
        key: Key,
    },
    /// Drop the value. Nobody subscribes to it.
    Remove {
        /// The key.
        key: Key,
    },
    /// Show the state of a query. That it is stale is shown where it has a value without a mark.
    Show {
        /// The key.
        key: Key,
        /// The state.
        state: QueryState,
    },
    /// Ask a session to fetch.
    Fetch {
        /// Whom.
        session: SessionId,
        /// What.
        request: FetchRequest,
    },
    /// The attempt is not wanted any more.
    CancelFetch {
        /// Whom.
        session: SessionId,
        /// Which.
        id: FetchId,
    },
    /// Answer a question.
    Answer {
        /// The link it came on.
        link: LinkId,
        /// Its number there.
        id: u64,
        /// The answer.
        answer: Answer,
    },
}

/// States of queries, and what waits for the engine.
#[derive(Debug, Default)]
pub(super) struct Queries {
    began: bool,
    /// Told once it began.
    waiting: Vec<QueryFact>,
    /// States other than the default.
    states: BTreeMap<Key, QueryState>,
    /// Wishes about values that came when the next owner had everything, for the case that it does not take over.
    held_back: Vec<QueryWish>,
}

impl Queries {
    /// States of the keys, those that are not the default.
    pub(super) fn states<'a>(&self, keys: impl Iterator<Item = &'a Key>) -> Vec<(Key, QueryState)> {
        keys.filter_map(|key| Some((key.clone(), self.states.get(key)?.clone()))).collect()
    }

    /// The state of a key.
    pub(super) fn state(&self, key: &Key) -> QueryState {
        self.states.get(key).cloned().unwrap_or_default()
    }
}

impl Hub {
    /// Tells the engine, now or once it began.
    pub(super) fn tell_engine(&mut self, fact: QueryFact, out: &mut Vec<Effect>) {
        if self.queries.began {
            out.push(Effect::Query(fact));
        } else {
            self.queries.waiting.push(fact);
        }
    }

    /// Tells the engine what became of a key's value; what it begins with it need not be told.
    pub(super) fn tell_value(&self, key: &Key, by: Writer, out: &mut Vec<Effect>) {
        if !self.queries.began {
            return;
        }
        let fact = match self.cache.get(key).filter(|entry| entry.has_value()) {
            Some(entry) => QueryFact::Changed {
                key: key.clone(),
                value: entry.held.value.clone(),
                at: entry.held.updated_at,
                by,
            },
            None => QueryFact::Removed { key: key.clone() },
        };
        out.push(Effect::Query(fact));
    }

    /// Tells the engine of a mark that is in the values it begins with, unless it began before.
    pub(super) fn tell_invalidated(&self, key: &Key, exact: bool, trace: Trace, out: &mut Vec<Effect>) {
        if self.queries.began {
            out.push(Effect::Query(QueryFact::Invalidated { key: key.clone(), exact, trace }));
        }
    }

    /// The offers are in.
    pub(super) fn begin_queries(&mut self, out: &mut Vec<Effect>) {
        if self.queries.began {
            return;
        }
        self.queries.began = true;
        out.push(Effect::Query(QueryFact::Began));
        let mut waiting = std::mem::take(&mut self.queries.waiting);
        // Its declarations come first, as they count.
        waiting.sort_by_key(
            |fact| !matches!(fact, QueryFact::Declared { session, .. } if *session == self.owner),
        );
        out.extend(waiting.into_iter().map(Effect::Query));
    }

    /// A link has joined: what it subscribes to is observed from here on.
    pub(super) fn tell_interest(&mut self, slot: Slot, out: &mut Vec<Effect>) {
        let Some(link) = self.links.get(slot) else { return };
        let session = link.session;
        let keys: Vec<Key> = link.keys.iter().cloned().collect();
        keys.into_iter().for_each(|key| self.tell_engine(QueryFact::Observed { session, key }, out));
    }

    /// A session whose link ended is observed and asked no more; what waited of it is void.
    pub(super) fn tell_gone(&mut self, session: SessionId, link: LinkId, out: &mut Vec<Effect>) {
        self.queries.waiting.retain(|fact| match fact {
            QueryFact::Asked { link: asked, .. } => *asked != link,
            QueryFact::Observed { session: of, .. }
            | QueryFact::Options { session: of, .. }
            | QueryFact::Unobserved { session: of, .. }
            | QueryFact::Presence { session: of, .. }
            | QueryFact::Declared { session: of, .. }
            | QueryFact::Fetched { session: of, .. } => *of != session,
            QueryFact::Began
            | QueryFact::Changed { .. }
            | QueryFact::Removed { .. }
            | QueryFact::Invalidated { .. } => true,
        });
        self.tell_engine(QueryFact::Presence { session, presence: None }, out);
    }

    pub(super) fn declared(
        &mut self,
        slot: Slot,
        resources: Vec<Declared>,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        if link.declared == 0 {
            self.arrivals += 1;
            link.declaration.order.get_or_insert(self.arrivals);
        }
        link.declared += resources.len();
        within_chunk(resources.len())?;
        if link.declared > DECLARED_MAX {
            out.push(Effect::Event(Event::LimitReached { limit: "DECLARED_MAX" }));
            return Err("more resources than a session may declare");
        }
        let session = link.session;
        self.tell_engine(QueryFact::Declared { session, resources }, out);
        Ok(())
    }

    pub(super) fn options(
        &mut self,
        slot: Slot,
        key: Key,
        options: Bytes,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        let Some(link) = self.links.get_mut(slot) else { return Ok(()) };
        if options.len() > KEY_MAX || key.0.len() > KEY_MAX {
            return Err("options, or a key of theirs, that are too long");
        }
        let subscribed = link.keys.contains(&key);
        // Told before it subscribes, so that it does so with them.
        let ahead = !subscribed && link.options_ahead.insert(key.clone());
        if ahead && link.keys.len() + link.options_ahead.len() > INTEREST_MAX {
            return Err("options of more keys than a session may subscribe to");
        }
        let known = subscribed && link.is_joined();
        let session = link.session;
        self.tell_engine(QueryFact::Options { session, key: key.clone(), options }, out);
        if known {
            self.tell_engine(QueryFact::Observed { session, key }, out);
        }
        Ok(())
    }

    pub(super) fn fetched(
        &mut self,
        slot: Slot,
        id: FetchId,
        outcome: FetchOutcome,
        out: &mut Vec<Effect>,
    ) -> Result<(), &'static str> {
        if let FetchOutcome::Value { value, .. } = &outcome
            && (value.len() > VALUE_MAX || value.is_empty())
        {
            return Err("a fetched value past the bounds");
        }
        if let Some(session) = self.links.get(slot).map(|link| link.session) {
            self.tell_engine(QueryFact::Fetched { session, id, outcome }, out);
        }
        Ok(())
    }

    /// A question for the engine, or the outbox. It stays unanswered, and is asked again of the next owner, while this one hands over.
    pub(super) fn ask_engine(&mut self, slot: Slot, id: u64, ask: Ask, trace: Trace, out: &mut Vec<Effect>) {
        if !self.reserve(slot, 0, out) {
            return;
        }
        let Some(link) = self.links.get(slot) else { return };
        let (link, session) = (link.id, link.session);
        self.tell_engine(QueryFact::Asked { link, id, session, ask, trace }, out);
    }

    /// Carries out a wish. When the next owner has everything values stay as they are: its engine begins with them.
    pub(super) fn wish(&mut self, wish: QueryWish, out: &mut Vec<Effect>) {
        let changes = match &wish {
            QueryWish::Install { .. }
            | QueryWish::Touch { .. }
            | QueryWish::Mark { .. }
            | QueryWish::Unmark { .. }
            | QueryWish::Remove { .. }
            | QueryWish::Show { .. } => true,
            QueryWish::Fetch { .. } | QueryWish::CancelFetch { .. } | QueryWish::Answer { .. } => false,
        };
        if changes && self.is_drained() {
            self.queries.held_back.push(wish);
            return;
        }
        match wish {
            QueryWish::Install { key, value, version, trace } => {
                self.install_fetched(key, value, version, trace, out)
            }
            QueryWish::Touch { key, trace } => {
                let held = self.get(&key).map(|held| (held.value.clone(), held.place.version.clone()));
                if let Some((value, version)) = held {
                    self.install_fetched(key, value, version, trace, out);
                }
            }
            QueryWish::Mark { keys, trace } => {
                let mut atom = self.log.atom(trace);
                for key in keys {
                    self.cache.invalidate(&key, true);
                    atom.push(Body::Invalidate { key, exact: true }, None, None, To::All);
                }
                self.commit(atom, out);
            }
            QueryWish::Unmark { key } => {
                let marked = self.get(&key).filter(|held| held.invalidated);
                let Some(held) = marked.cloned() else { return };
                let mut atom = self.log.atom(Trace::NONE);
                let (at, version) = (held.updated_at, held.place.version);
                self.put_as_of(at, &mut atom, key, held.value, version, None, None, false);
                self.commit(atom, out);
            }
            QueryWish::Remove { key } => {
                if self.links.has_interest(&key) || self.cache.remove(&key).is_none() {
                    return;
                }
                let mut atom = self.log.atom(Trace::NONE);
                atom.push(Body::Removed { key: key.clone() }, None, None, To::All);
                self.commit(atom, out);
                self.tell_value(&key, Writer::Fetch, out);
            }
            QueryWish::Show { key, mut state } => {
                // That there is no value, or a mark on it, is told with the value.
                state.stale &= self.get(&key).is_some_and(|held| !held.invalidated);
                if state == self.queries.state(&key) {
                    return;
                }
                if state == QueryState::default() {
                    self.queries.states.remove(&key);
                } else {
                    self.queries.states.insert(key.clone(), state.clone());
                }
                let mut atom = self.log.atom(Trace::NONE);
                atom.push(Body::Query { key, state }, None, None, To::All);
                self.commit(atom, out);
            }
            QueryWish::Fetch { session, request } => {
                self.tell_session(session, ToSession::Fetch(request), out)
            }
            QueryWish::CancelFetch { session, id } => {
                self.tell_session(session, ToSession::CancelFetch(id), out)
            }
            QueryWish::Answer { link, id, answer } => {
                if let Some(slot) = self.links.slot(link) {
                    self.release(slot, 0);
                    self.tell(slot, ToSession::Answer { id, answer }, out);
                }
            }
        }
    }

    /// The handover failed: the engine, which waits for what becomes of its wishes, goes on.
    pub(super) fn resume_queries(&mut self, out: &mut Vec<Effect>) {
        let held_back = std::mem::take(&mut self.queries.held_back);
        held_back.into_iter().for_each(|wish| self.wish(wish, out));
    }

    fn install_fetched(
        &mut self,
        key: Key,
        value: Bytes,
        version: Version,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        if key.0.len() > KEY_MAX || value.len() > VALUE_MAX || value.is_empty() {
            return;
        }
        let held = self.cache.get(&key).filter(|entry| entry.has_value()).map(|entry| &entry.held);
        let older = held.is_some_and(|held| version != Version::None && version < held.place.version);
        if older {
            // A push came by that knows more than the server that was asked.
            self.stats.old_versions += 1;
        } else {
            let version = if version == Version::None { self.version_of(&key) } else { version };
            let mut atom = self.log.atom(trace);
            self.put(&mut atom, key.clone(), value, version, None, None, false);
            self.commit(atom, out);
        }
        self.tell_value(&key, Writer::Fetch, out);
    }
}
