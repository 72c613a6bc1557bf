//! Fetches: the query engine beside the owner's hub, the sessions that fetch for it, and the server that they ask. The server's
//! values are numbers that grow; who changed one there invalidates its key, or sets it.

use std::collections::VecDeque;

use bytes::Bytes;
use paceline_channel::reign::{Begin, Output, Queries};
use paceline_proto::{
    fetch::{Declared, FailureKind, FetchFailure, FetchId, FetchOutcome, FetchRequest, RefetchType, Want},
    follower::Input,
    hub::{self, Effect, QueryFact, QueryWish, Writer},
    id::{Epoch, Key, Mark, Trace, Version},
    message::{Ask, Held, Operation},
    presence::Presence,
};
use paceline_query::{
    key,
    rules::{Defaults, Resource, Source, Staleness},
};

use crate::{
    disk::Pid,
    mutant::Mutant,
    process::{FollowerMail, Pending, Run, Waiting},
    world::{Event, Phase, World, log},
};

/// Keys that are fetched.
const KEYS: usize = 3;
/// Numbers of attempts that no engine gave out begin here.
const FORGED: u64 = 1 << 40;

/// The server, and what is owed to those who changed something there.
#[derive(Debug, Default)]
pub(crate) struct Server {
    /// The value of each key.
    values: [u64; KEYS],
    /// Per key, the last change that a caller was told an heir knows of.
    owed: [Option<(u64, Mark)>; KEYS],
    /// What everybody who looks must see in the end.
    last: [u64; KEYS],
    forged: u64,
}

fn query_key(n: usize) -> Key {
    key!["q", n].to_key()
}

fn index(key: &Key) -> Option<usize> {
    (0..KEYS).find(|n| query_key(*n) == *key)
}

fn number(held: &Held) -> u64 {
    let text = std::str::from_utf8(&held.value).unwrap_or_default();
    text.trim_matches(['[', ']']).parse().unwrap_or(0)
}

/// A caller set it: two that do so at once may do it in any order.
fn is_set(held: &Held) -> bool {
    held.value.starts_with(b"[")
}

fn bytes(number: u64) -> Bytes {
    Bytes::from(number.to_string())
}

impl World {
    /// Every session can fetch, and looks at some keys.
    pub(super) fn declare(&mut self, pid: Pid) {
        let Ok(resource) = Resource::new("q") else { return };
        let resource = resource
            .stale(Staleness::After(std::time::Duration::from_secs(3)))
            .deadline(std::time::Duration::from_millis(400))
            .source(Source::Closure);
        let rules = Bytes::from(resource.to_bytes());
        let declared = Declared { name: "q".into(), rules, fetches: true };
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::Declare(vec![declared]))));
        for n in 0..KEYS {
            if self.random.chance(600) {
                self.subscribe(pid, query_key(n));
            }
        }
    }

    /// A caller asks for a value, changes one at the server, or looks elsewhere.
    pub(super) fn use_queries(&mut self, pid: Pid) {
        self.look_for_stale_values();
        let (n, token, drawn) =
            (self.random.below(KEYS as u64) as usize, self.token(), self.random.below(100));
        let (key, visible) = (query_key(n), self.random.chance(700));
        let Some(process) = self.live(pid) else { return };
        let input = match drawn {
            0..50 => {
                let want = match drawn {
                    0..30 => Want::Fresh { max_age_ms: None, max_wait_ms: None },
                    30..40 => Want::Fresh { max_age_ms: Some(0), max_wait_ms: Some(20) },
                    _ => Want::New,
                };
                process.caller.waiting.insert(token, Waiting::Ask);
                Input::Ask { token, ask: Ask::Fetch { key, want }, trace: Trace::NONE }
            }
            50..58 => {
                process.caller.waiting.insert(token, Waiting::Ask);
                let ask = Ask::Refetch { key, exact: true, stale: false, refetch: RefetchType::All };
                Input::Ask { token, ask, trace: Trace::NONE }
            }
            58..86 => return self.change(pid, n, token, drawn < 76),
            86..94 if process.caller.keys.contains(&key) => return self.unsubscribe(pid, key),
            86..94 => return self.subscribe(pid, key),
            _ => Input::Presence(Presence { visible, ..Presence::default() }),
        };
        self.mail_follower(pid, FollowerMail::In(Box::new(input)));
    }

    fn change(&mut self, pid: Pid, n: usize, token: u64, invalidate: bool) {
        self.server.values[n] += 1;
        let (key, now_is) = (query_key(n), self.server.values[n]);
        let operation = if invalidate {
            Operation::Invalidate { key, exact: true }
        } else {
            Operation::Set { key, value: format!("[{now_is}]").into() }
        };
        let Some(process) = self.live(pid) else { return };
        process.caller.waiting.insert(token, Waiting::Change { n, number: now_is });
        self.counters.add(if invalidate { "invalidated" } else { "written" });
        self.mail_follower(
            pid,
            FollowerMail::In(Box::new(Input::Op { token, operation, trace: Trace::NONE })),
        );
    }

    /// A caller was told that an heir knows of its change.
    pub(super) fn change_held(&mut self, n: usize, number: u64, mark: Mark) {
        if self.server.owed[n].is_none_or(|(owed, _)| owed < number) {
            self.server.owed[n] = Some((number, mark));
            self.excuse_changes();
        }
    }

    /// Changes of which nobody knows any more who is alive are forgiven; a value that is older may be thought fresh.
    pub(super) fn excuse_changes(&mut self) {
        for n in 0..KEYS {
            let (Some((owed, _)), key) = (self.server.owed[n], query_key(n)) else { continue };
            let alive = self.processes.values().filter(|process| process.alive());
            let held = alive.flat_map(|process| {
                let owned = process.owned.as_ref().and_then(|owned| owned.machine.get(&key));
                [owned, process.follower.get(&key)]
            });
            let (mut known, mut older) = (false, false);
            for held in held.flatten() {
                let knows = held.invalidated || number(held) >= owed;
                known |= knows;
                older |= !knows;
            }
            if older && !known {
                self.counters.add("change_excused");
                self.server.owed[n] = None;
            }
        }
    }

    /// A value from before a change is not shown as fresh at a place after it.
    fn look_for_stale_values(&mut self) {
        let mut wrong = None;
        let running = self.processes.values().filter(|process| process.run == Run::Running);
        for process in running.filter(|process| process.pending.is_empty()) {
            for n in 0..KEYS {
                let Some((owed, mark)) = self.server.owed[n] else { continue };
                let Some(held) = process.caller.held.get(&query_key(n)) else { continue };
                if !held.invalidated && !is_set(held) && number(held) < owed && held.place.mark > mark {
                    wrong = Some(format!(
                        "{} shows {held:?} as fresh, {owed} was known at {mark:?}",
                        process.pid.0
                    ));
                }
            }
        }
        if let Some(wrong) = wrong {
            self.violated("freshness", wrong);
        }
    }

    /// The last change of every key, by the owner's caller.
    pub(super) fn change_last(&mut self, pid: Pid) {
        for n in 0..KEYS {
            let token = self.token();
            self.change(pid, n, token, true);
            self.server.last[n] = self.server.values[n];
        }
    }

    /// Who looks at a key and does not see its last value.
    pub(super) fn unrest_of_queries(&self) -> Option<String> {
        for process in self.processes.values().filter(|process| process.alive()) {
            for n in (0..KEYS).filter(|n| process.caller.keys.contains(&query_key(*n))) {
                let (held, last) = (process.caller.held.get(&query_key(n)), self.server.last[n]);
                if !held.is_some_and(|held| !held.invalidated && number(held) >= last) {
                    return Some(format!("{} shows {held:?}, the server has {last}", process.pid.0));
                }
            }
        }
        None
    }

    /// Queues what the shell carries out one by one. The engine is told in the same instant, and what a wish of it leads to comes
    /// before what waited.
    pub(super) fn take_hub_effects(&mut self, pid: Pid, epoch: Epoch, effects: Vec<Effect>) {
        let mut facts = self.queue_effects(pid, epoch, effects);
        while let Some(fact) = facts.pop_front() {
            let mut led = VecDeque::new();
            for wish in self.tell_engine(pid, fact) {
                led.extend(self.fulfil(pid, epoch, wish));
            }
            led.extend(facts);
            facts = led;
        }
    }

    /// The engine's deadline passed.
    pub(super) fn engine_due(&mut self, pid: Pid) {
        let now = self.now;
        let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) else {
            return;
        };
        let epoch = owned.epoch;
        let mut output = Output::default();
        if let Some(queries) = &mut owned.queries {
            queries.due(now, &mut output);
        }
        for wish in output.wishes {
            let facts = self.fulfil(pid, epoch, wish);
            self.take_hub_effects(pid, epoch, facts.into_iter().map(Effect::Query).collect());
        }
        if let Some(process) = self.processes.get_mut(&pid) {
            process.pending.push_back(Pending::WriteLinks);
        }
    }

    fn queue_effects(&mut self, pid: Pid, epoch: Epoch, effects: Vec<Effect>) -> VecDeque<QueryFact> {
        let mut facts = VecDeque::new();
        let Some(process) = self.processes.get_mut(&pid) else { return facts };
        for effect in effects {
            match effect {
                Effect::Query(fact) => facts.push_back(fact),
                effect => process.pending.push_back(Pending::Hub { epoch, effect }),
            }
        }
        facts.retain(|_| self.scenario.queries);
        facts
    }

    fn fulfil(&mut self, pid: Pid, epoch: Epoch, wish: QueryWish) -> VecDeque<QueryFact> {
        log!(self, "{} engine -> {wish:?}", pid.0);
        self.note_wish(pid, &wish);
        let now = self.now;
        let mut out = Vec::new();
        if let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) {
            owned.machine.handle(now, hub::Input::Query(wish), &mut out);
        }
        self.queue_effects(pid, epoch, out)
    }

    fn tell_engine(&mut self, pid: Pid, fact: QueryFact) -> Vec<QueryWish> {
        log!(self, "{} engine <- {fact:?}", pid.0);
        let (now, deaf) = (self.now, self.is(Mutant::OvertakenResponsesKept));
        let forged = self.forge(pid, &fact);
        let Some(process) = self.processes.get_mut(&pid) else { return Vec::new() };
        let session = process.session;
        let Some(owned) = &mut process.owned else { return Vec::new() };
        match &fact {
            QueryFact::Began => {
                let begin = Begin {
                    defaults: Defaults::default(),
                    own: session,
                    seed: owned.epoch.0,
                    takeover: owned.epoch > Epoch(1),
                    feeds: [].into(),
                    live: [].into(),
                };
                owned.queries = Some(Queries::new(begin, &owned.machine, now));
            }
            QueryFact::Fetched { id, .. } => owned.flights.retain(|_, (running, _)| running != id),
            QueryFact::Presence { session, presence: None } => {
                owned.flights.retain(|_, (_, by)| by != session);
            }
            QueryFact::Invalidated { key, .. } | QueryFact::Changed { key, by: Writer::Write, .. }
                if deaf && owned.flights.contains_key(key) =>
            {
                return Vec::new();
            }
            _ => {}
        }
        let mut output = Output::default();
        if let Some(queries) = &mut owned.queries {
            queries.take(now, fact, &mut output);
        }
        output.wishes.extend(forged);
        output.wishes
    }

    /// An attempt for whoever asks while another runs, as an engine would make that shares none.
    fn forge(&mut self, pid: Pid, fact: &QueryFact) -> Option<QueryWish> {
        let QueryFact::Asked { session, ask: Ask::Fetch { key, .. }, .. } = fact else { return None };
        let owned = self.processes.get(&pid)?.owned.as_ref()?;
        if !self.is(Mutant::FetchesNotShared) || !owned.flights.contains_key(key) {
            return None;
        }
        self.server.forged += 1;
        let request = FetchRequest {
            id: FetchId(FORGED + self.server.forged),
            resource: "q".into(),
            key: key.clone(),
            deadline_ms: 400,
            background: false,
            etag: "".into(),
            trace: Trace::NONE,
        };
        Some(QueryWish::Fetch { session: *session, request })
    }

    /// A key has one attempt at most within an epoch.
    fn note_wish(&mut self, pid: Pid, wish: &QueryWish) {
        let Some(owned) = self.processes.get_mut(&pid).and_then(|process| process.owned.as_mut()) else {
            return;
        };
        match wish {
            QueryWish::Fetch { session, request } => {
                let running = owned.flights.insert(request.key.clone(), (request.id, *session));
                if let Some((id, by)) = running {
                    let (new, epoch) = (request.id, owned.epoch);
                    self.violated(
                        "one flight",
                        format!("{new:?} of {session:?} in {epoch} while {id:?} of {by:?} runs"),
                    );
                }
                self.counters.add("fetch_begun");
            }
            QueryWish::CancelFetch { id, .. } => owned.flights.retain(|_, (running, _)| running != id),
            _ => {}
        }
    }

    /// A session was asked to fetch, and asks the server.
    pub(super) fn fetch_asked(&mut self, pid: Pid, epoch: Epoch, request: &FetchRequest) {
        let Some(n) = index(&request.key) else { return };
        let Some(process) = self.processes.get_mut(&pid) else { return };
        process.caller.fetching.insert((epoch, request.id));
        let latency = self.random.micros(500, 120_000);
        self.after(latency, Event::ServerAsked(pid, epoch, request.id, n));
    }

    /// The request is at the server, which answers with what it has then; or not.
    pub(super) fn server_asked(&mut self, pid: Pid, epoch: Epoch, id: FetchId, n: usize) {
        let faults = if self.phase == Phase::Chaos { 1 } else { 0 };
        if self.random.chance(50 * faults) {
            self.counters.add("server_silent");
            return;
        }
        let number = (!self.random.chance(120 * faults)).then_some(self.server.values[n]);
        let latency = self.random.micros(500, 120_000);
        self.after(latency, Event::ServerAnswered(pid, epoch, id, number));
    }

    pub(super) fn server_answered(&mut self, pid: Pid, epoch: Epoch, id: FetchId, number: Option<u64>) {
        let Some(process) = self.live(pid) else {
            self.counters.add("fetcher_died");
            return;
        };
        if !process.caller.fetching.remove(&(epoch, id)) {
            return;
        }
        let outcome = match number {
            Some(number) => FetchOutcome::Value {
                value: bytes(number),
                version: Version::None,
                etag: "".into(),
                hints: Bytes::new(),
            },
            None => FetchOutcome::Failed(FetchFailure {
                kind: FailureKind::Network,
                why: "the server cannot be reached".to_owned(),
                retry_after_ms: None,
                detail: Bytes::new(),
            }),
        };
        self.mail_follower(pid, FollowerMail::In(Box::new(Input::Fetched { epoch, id, outcome })));
    }
}
