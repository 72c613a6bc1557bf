//! The query engine of a reign, between hub and sessions: facts of the hub go in, wishes come out.
//!
//! It has no mailbox of its own: a decision about a fetch must see the same order of values, invalidations and operations
//! as the hub does, and a mailbox between them would let a response slip in front of an invalidation.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use paceline_proto::{
    connection::{Connection, ConnectionState},
    event::Event,
    fetch::Declared,
    hub::{Hub, QueryFact, QueryWish, Writer},
    id::{Key, LinkId, SessionId, Trace},
    message::{Answer, Ask},
    time::Time,
};
use paceline_query::{
    engine::{self, AskId, Cause, Effect, Engine, Inherited, Input, Note, Start},
    key::QueryKey,
    pattern::KeyPattern,
    rules::{Defaults, Options, Resource},
};

use crate::route::Router;

/// The engine and what it is between.
pub struct Queries {
    engine: Engine,
    /// Whom to answer.
    asked: BTreeMap<AskId, Asker>,
    last_ask: u64,
    /// What sessions ask of keys, known before or after they subscribe.
    options: BTreeMap<(SessionId, Key), Vec<Options>>,
    wires: Wires,
    effects: Vec<Effect>,
}

impl std::fmt::Debug for Queries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queries").field("asked", &self.asked.len()).finish_non_exhaustive()
    }
}

/// Which upstreams feed which resources.
pub type Feeds = Arc<[(Arc<str>, Router)]>;

/// Whether what feeds a resource is live.
struct Wires {
    feeds: Feeds,
    live: BTreeSet<Arc<str>>,
    /// Of the resources that are declared, by name.
    patterns: BTreeMap<Arc<str>, KeyPattern>,
}

impl Wires {
    /// `None` where nothing feeds it.
    fn health(&self, resource: &Arc<str>, pattern: &KeyPattern) -> Option<Input> {
        let mut feeding = self.feeds.iter().filter(|(_, router)| router.feeds(pattern)).peekable();
        feeding.peek()?;
        let healthy = feeding.all(|(upstream, _)| self.live.contains(upstream));
        Some(Input::Channel { resource: resource.clone(), healthy })
    }
}

/// Who waits for an answer.
#[derive(Debug)]
struct Asker {
    session: SessionId,
    link: LinkId,
    id: u64,
}

/// What an engine is made with.
#[derive(Clone)]
pub struct Begin {
    /// What holds where nothing more specific is said.
    pub defaults: Defaults,
    /// The owner's session.
    pub own: SessionId,
    /// Draws delays.
    pub seed: u64,
    /// Somebody led before.
    pub takeover: bool,
    /// Which upstreams feed which resources.
    pub feeds: Feeds,
    /// The upstreams that are live by now.
    pub live: BTreeSet<Arc<str>>,
}

impl std::fmt::Debug for Begin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begin").field("own", &self.own).finish_non_exhaustive()
    }
}

/// Whether the upstream became live, or is so no more.
pub fn note_live(connection: &Connection, live: &mut BTreeSet<Arc<str>>) -> bool {
    if connection.state == ConnectionState::Live {
        live.insert(connection.upstream.clone())
    } else {
        live.remove(&connection.upstream)
    }
}

/// What comes out.
#[derive(Debug, Default)]
pub struct Output {
    /// For the hub, in order.
    pub wishes: Vec<QueryWish>,
    /// Observable.
    pub events: Vec<Event>,
}

impl Queries {
    /// Begins with what the hub holds.
    pub fn new(begin: Begin, hub: &Hub, now: Time) -> Self {
        let inherited = |held: &paceline_proto::message::Held| Inherited {
            key: held.key.clone(),
            value: held.value.clone(),
            at: held.updated_at,
            invalidated: held.invalidated,
        };
        let start = Start {
            own: begin.own,
            seed: begin.seed,
            takeover: begin.takeover,
            online: true,
            values: hub.values().map(inherited).collect(),
        };
        Self {
            engine: Engine::new(begin.defaults, now, start),
            asked: BTreeMap::new(),
            last_ask: 0,
            options: BTreeMap::new(),
            wires: Wires { feeds: begin.feeds, live: begin.live, patterns: BTreeMap::new() },
            effects: Vec::new(),
        }
    }

    /// When [`Queries::due`] wants to be called.
    pub fn deadline(&self) -> Option<Time> {
        self.engine.deadline()
    }

    /// The deadline passed.
    pub fn due(&mut self, now: Time, out: &mut Output) {
        self.engine.handle(now, Input::Deadline, &mut self.effects);
        self.carry_out(now, out);
    }

    /// The state of an upstream changed.
    pub fn connection(&mut self, now: Time, connection: &Connection, out: &mut Output) {
        if !note_live(connection, &mut self.wires.live) {
            return;
        }
        let of = |(resource, pattern)| self.wires.health(resource, pattern);
        let inputs: Vec<Input> = self.wires.patterns.iter().filter_map(of).collect();
        for input in inputs {
            self.engine.handle(now, input, &mut self.effects);
        }
        self.carry_out(now, out);
    }

    /// Takes a fact of the hub.
    pub fn take(&mut self, now: Time, fact: QueryFact, out: &mut Output) {
        let mut inputs = Vec::new();
        self.inputs(fact, &mut inputs, out);
        for input in inputs {
            self.engine.handle(now, input, &mut self.effects);
        }
        self.carry_out(now, out);
    }

    fn inputs(&mut self, fact: QueryFact, inputs: &mut Vec<Input>, out: &mut Output) {
        match fact {
            QueryFact::Began => {}
            QueryFact::Observed { session, key } => {
                let options = self.options.get(&(session, key.clone())).cloned().unwrap_or_default();
                inputs.push(Input::Observed { session, key, options });
            }
            QueryFact::Options { session, key, options } => match Options::list_from_bytes(&options) {
                Ok(list) if list == [Options::default()] => drop(self.options.remove(&(session, key))),
                Ok(list) => drop(self.options.insert((session, key), list)),
                Err(error) => out.events.push(refused(session, &error.to_string())),
            },
            QueryFact::Unobserved { session, key } => {
                self.options.remove(&(session, key.clone()));
                inputs.push(Input::Unobserved { session, key });
            }
            QueryFact::Presence { session, presence } => {
                if presence.is_none() {
                    // The engine drops its questions as well.
                    self.asked.retain(|_, asker| asker.session != session);
                    self.options.retain(|(of, _), _| *of != session);
                }
                inputs.push(Input::Presence { session, presence });
            }
            QueryFact::Declared { session, resources } => {
                for Declared { name, rules, fetches } in resources {
                    match Resource::from_bytes(&rules) {
                        Ok(resource) if resource.name == name => {
                            inputs.extend(self.wires.health(&name, &resource.pattern));
                            self.wires.patterns.insert(name, resource.pattern.clone());
                            inputs.push(Input::Declared { session, resource: resource.into(), fetches });
                        }
                        Ok(resource) => {
                            let why = format!(
                                "the resource {name:?} is declared with the rules of {:?}",
                                resource.name
                            );
                            out.events.push(refused(session, &why));
                        }
                        Err(error) => {
                            out.events.push(refused(session, &format!("the resource {name:?}: {error}")))
                        }
                    }
                }
            }
            QueryFact::Changed { key, value, at, by } => {
                let cause = match by {
                    Writer::Fetch => Cause::Fetch,
                    Writer::Push { versioned } => Cause::Push { versioned },
                    Writer::Write => Cause::Write,
                };
                inputs.push(Input::Changed { key, value, at, cause });
            }
            QueryFact::Removed { key } => inputs.push(Input::Removed { key }),
            QueryFact::Invalidated { key, exact, trace } => {
                let refetch = engine::RefetchType::Active;
                inputs.push(Input::Invalidated { key, exact, refetch, trace });
            }
            QueryFact::Asked { link, id, session, ask, trace } => {
                if let Some(ask) = self.question(link, id, ask, trace, inputs, out) {
                    self.last_ask += 1;
                    let asked = AskId(self.last_ask);
                    self.asked.insert(asked, Asker { session, link, id });
                    inputs.push(Input::Ask { id: asked, session, ask, trace });
                }
            }
            QueryFact::Fetched { session, id, outcome } => {
                inputs.push(Input::Fetched { id, session, outcome });
            }
        }
    }

    /// What the engine has to answer; all else is answered here.
    fn question(
        &self,
        link: LinkId,
        id: u64,
        ask: Ask,
        trace: Trace,
        inputs: &mut Vec<Input>,
        out: &mut Output,
    ) -> Option<engine::Ask> {
        let answer = match ask {
            Ask::Fetch { key, want } => return Some(engine::Ask::Fetch { key, want }),
            Ask::Refetch { key, exact, stale, refetch } => {
                return Some(engine::Ask::Refetch { key, exact, stale, refetch });
            }
            Ask::Preview { key, exact } => return Some(engine::Ask::Preview { key, exact }),
            Ask::InvalidateTag { tag, refetch } => {
                inputs.push(Input::TagInvalidated { tag, refetch, trace });
                Answer::Done
            }
            Ask::Online(online) => {
                inputs.push(Input::Online(online));
                Answer::Done
            }
            Ask::Promote(_)
            | Ask::Sync
            | Ask::Members
            | Ask::Sessions
            | Ask::Conflicts
            | Ask::Keys { .. }
            | Ask::Stats
            | Ask::Layers { .. }
            | Ask::Look { .. }
            | Ask::Outbox(_) => Answer::Refused("this is no question for the query engine".to_owned()),
        };
        out.wishes.push(QueryWish::Answer { link, id, answer });
        None
    }

    fn carry_out(&mut self, now: Time, out: &mut Output) {
        for effect in self.effects.drain(..) {
            let wish = match effect {
                Effect::Fetch { session, request } => QueryWish::Fetch { session, request },
                Effect::CancelFetch { session, id } => QueryWish::CancelFetch { session, id },
                Effect::Install { key, value, version, trace } => {
                    QueryWish::Install { key, value, version, trace }
                }
                Effect::Touch { key, trace } => QueryWish::Touch { key, trace },
                Effect::Mark { keys, trace } => QueryWish::Mark { keys, trace },
                Effect::Unmark { key } => QueryWish::Unmark { key },
                Effect::Show { key, state } => QueryWish::Show { key, state },
                Effect::Remove { key } => QueryWish::Remove { key },
                Effect::Answer { id, answer } => {
                    let Some(Asker { link, id, .. }) = self.asked.remove(&id) else { continue };
                    QueryWish::Answer { link, id, answer: to_wire(answer) }
                }
                Effect::Note(note) => {
                    out.events.push(event(note, now));
                    continue;
                }
            };
            out.wishes.push(wish);
        }
    }
}

fn to_wire(answer: engine::Answer) -> Answer {
    match answer {
        engine::Answer::Fetched(fetched) => Answer::Fetched(fetched),
        engine::Answer::Refetched { ok, failed, failures } => Answer::Refetched { ok, failed, failures },
        engine::Answer::Cascade(lines) => Answer::Cascade(lines),
    }
}

/// What a session said is no rule; its other words count.
fn refused(session: SessionId, why: &str) -> Event {
    Event::DeclarationRefused { session, why: why.to_owned() }
}

fn event(note: Note, now: Time) -> Event {
    match note {
        Note::FetchEnded { key, background, took_ns, attempts, failure, trace: _ } => {
            let (key, took_ms) = (readable(&key), took_ns / 1_000_000);
            match failure {
                None => Event::Fetched { key, background, took_ms, attempts },
                Some(why) => Event::FetchFailed { key, background, took_ms, attempts, why: why.to_string() },
            }
        }
        Note::Refresh { checked, stale, begun } => Event::RefreshLooked { checked, stale, begun },
        Note::TurnedStale { key, age_ns, limit_ns } => Event::TurnedStale {
            key: readable(&key),
            age_ms: age_ns / 1_000_000,
            limit_ms: limit_ns / 1_000_000,
        },
        Note::Strategy { active } => Event::StrategyChanged { active },
        Note::ResourcesFull { resource, session } => {
            refused(session, &format!("{resource} is one resource more than a group may have"))
        }
        Note::Online(online) => Event::OnlineChanged { online },
        Note::RetryAfter { server, until } => Event::ServerAskedToWait {
            server: server.to_string(),
            for_ms: u64::try_from(until.since(now).as_millis()).unwrap_or(u64::MAX),
        },
    }
}

fn readable(key: &Key) -> String {
    QueryKey::from_key(key).map_or_else(|_| format!("{key:?}"), |key| key.to_string())
}
