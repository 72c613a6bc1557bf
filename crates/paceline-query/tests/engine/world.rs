//! A hub in little around an engine: carries out effects at once, keeps values, and writes down what happened when.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use paceline_proto::{
    fetch::{
        FailureKind, FetchFailure, FetchId, FetchOutcome, FetchRequest, FetchStatus, Fetched, QueryState,
        Want,
    },
    id::{Key, SessionId, Trace, Version},
    presence::Presence,
    time::Time,
};
use paceline_query::{
    engine::{Answer, Ask, AskId, Cause, Effect, Engine, Inherited, Input, Note, RefetchType, Start},
    key::QueryKey,
    pattern::KeyPattern,
    rules::{Defaults, Options, Resource, Source, Staleness},
};
use serde_json::Value;

/// The owner's own session, and two others.
pub const OWN: SessionId = SessionId(1);
pub const A: SessionId = SessionId(2);
pub const B: SessionId = SessionId(3);

pub const START: Time = Time(1_000_000_000_000);

pub const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub const fn mins(minutes: u64) -> Duration {
    Duration::from_secs(minutes * 60)
}

pub fn key(text: &str) -> Key {
    text.parse::<QueryKey>().expect("a key").into()
}

pub fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

/// A resource that some session fetches by a closure.
pub fn resource(name: &str) -> Resource {
    let mut segments: Vec<Value> = name.split('.').map(Value::from).collect();
    segments.push("..".into());
    Resource {
        name: name.into(),
        pattern: KeyPattern::new(&segments).expect("a pattern"),
        stale: None,
        gc: None,
        refetch_on: None,
        network: None,
        retry: None,
        tags: Vec::new(),
        depends_on: Vec::new(),
        source: Some(Source::Closure),
        deadline: None,
        poll: None,
        critical: false,
        cancellable: false,
    }
}

pub fn stale_after(name: &str, limit: Duration) -> Resource {
    Resource { stale: Some(Staleness::After(limit)), ..resource(name) }
}

pub fn failed(kind: FailureKind) -> FetchOutcome {
    let why = format!("{kind:?}");
    FetchOutcome::Failed(FetchFailure { kind, why, retry_after_ms: None, detail: Bytes::new() })
}

pub fn limited(after: Duration) -> FetchOutcome {
    FetchOutcome::Failed(FetchFailure {
        kind: FailureKind::Status(429),
        why: "too many".into(),
        retry_after_ms: Some(after.as_millis() as u64),
        detail: Bytes::new(),
    })
}

pub fn value(text: &str) -> FetchOutcome {
    FetchOutcome::Value { value: bytes(text), version: Version::None, etag: "".into(), hints: Bytes::new() }
}

pub const FRESH: Want = Want::Fresh { max_age_ms: None, max_wait_ms: None };

#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub value: Bytes,
    pub at: Time,
    pub invalidated: bool,
}

#[derive(Debug)]
pub struct World {
    pub engine: Engine,
    pub now: Time,
    pub values: BTreeMap<Key, Stored>,
    pub shown: BTreeMap<Key, QueryState>,
    /// How often each key was shown.
    pub shows: BTreeMap<Key, u32>,
    /// Attempts without an answer.
    pub open: VecDeque<(SessionId, FetchRequest)>,
    /// All attempts: when, by whom, of what.
    pub requests: Vec<(Duration, SessionId, Key)>,
    pub cancelled: Vec<FetchId>,
    pub answers: BTreeMap<AskId, Answer>,
    pub notes: Vec<(Duration, Note)>,
    pub marked: Vec<Key>,
    pub removed: Vec<(Duration, Key)>,
    last_ask: u64,
}

impl World {
    pub fn new(resources: impl IntoIterator<Item = Resource>) -> Self {
        Self::with(Defaults::default(), resources)
    }

    pub fn with(defaults: Defaults, resources: impl IntoIterator<Item = Resource>) -> Self {
        let start = Start { own: OWN, seed: 7, takeover: false, online: true, values: Vec::new() };
        let mut world = Self::begun(defaults, START, start);
        for resource in resources {
            world.declare(A, resource);
        }
        world
    }

    /// The world of an owner that begins like this.
    pub fn begun(defaults: Defaults, now: Time, start: Start) -> Self {
        let stored = |inherited: &Inherited| {
            let Inherited { key, value, at, invalidated } = inherited.clone();
            (key, Stored { value, at, invalidated })
        };
        Self {
            values: start.values.iter().map(stored).collect(),
            engine: Engine::new(defaults, now, start),
            now,
            shown: BTreeMap::new(),
            shows: BTreeMap::new(),
            open: VecDeque::new(),
            requests: Vec::new(),
            cancelled: Vec::new(),
            answers: BTreeMap::new(),
            notes: Vec::new(),
            marked: Vec::new(),
            removed: Vec::new(),
            last_ask: 0,
        }
    }

    /// Since the start.
    pub fn time(&self) -> Duration {
        self.now.since(START)
    }

    pub fn declare(&mut self, session: SessionId, resource: Resource) {
        let fetches = resource.source.is_some_and_fetches();
        self.presence(session, |presence| presence);
        self.send(Input::Declared { session, resource: Arc::new(resource), fetches });
    }

    pub fn presence(&mut self, session: SessionId, change: impl FnOnce(Presence) -> Presence) {
        let presence = Some(change(Presence::default()));
        self.send(Input::Presence { session, presence });
    }

    pub fn leave(&mut self, session: SessionId) {
        self.send(Input::Presence { session, presence: None });
    }

    pub fn observe(&mut self, session: SessionId, name: &str) {
        self.observe_with(session, name, Options::default());
    }

    pub fn observe_with(&mut self, session: SessionId, name: &str, options: Options) {
        self.send(Input::Observed { session, key: key(name), options: vec![options] });
    }

    pub fn unobserve(&mut self, session: SessionId, name: &str) {
        self.send(Input::Unobserved { session, key: key(name) });
    }

    pub fn ask(&mut self, session: SessionId, name: &str, want: Want) -> AskId {
        self.ask_for(session, Ask::Fetch { key: key(name), want })
    }

    pub fn ask_for(&mut self, session: SessionId, ask: Ask) -> AskId {
        self.last_ask += 1;
        let id = AskId(self.last_ask);
        self.send(Input::Ask { id, session, ask, trace: Trace::NONE });
        id
    }

    pub fn invalidate(&mut self, name: &str) {
        self.invalidate_as(name, false, RefetchType::Active);
    }

    pub fn invalidate_as(&mut self, name: &str, exact: bool, refetch: RefetchType) {
        let prefix = key(name);
        for (key, stored) in &mut self.values {
            stored.invalidated |= if exact { *key == prefix } else { prefix.is_prefix_of(key) };
        }
        self.send(Input::Invalidated { key: prefix, exact, refetch, trace: Trace::NONE });
    }

    /// A session writes a value.
    pub fn set(&mut self, name: &str, text: &str) {
        self.change(key(name), bytes(text), Cause::Write);
    }

    /// An upstream pushes a value.
    pub fn push(&mut self, name: &str, text: &str) {
        self.change(key(name), bytes(text), Cause::Push { versioned: false });
    }

    /// An upstream pushes a value, with or without a version.
    pub fn push_as(&mut self, name: &str, text: &str, versioned: bool) {
        self.change(key(name), bytes(text), Cause::Push { versioned });
    }

    /// The key loses its value.
    pub fn reset(&mut self, name: &str) {
        if self.values.remove(&key(name)).is_some() {
            self.send(Input::Removed { key: key(name) });
        }
    }

    fn change(&mut self, key: Key, value: Bytes, cause: Cause) {
        let at = self.now;
        self.values.insert(key.clone(), Stored { value: value.clone(), at, invalidated: false });
        self.send(Input::Changed { key, value, at, cause });
    }

    pub fn online(&mut self, online: bool) {
        self.send(Input::Online(online));
    }

    /// The session that was asked longest ago answers.
    pub fn reply(&mut self, outcome: FetchOutcome) {
        let (session, request) = self.open.pop_front().expect("a request without an answer");
        self.send(Input::Fetched { id: request.id, session, outcome });
    }

    /// The session that fetches this key answers.
    pub fn reply_to(&mut self, name: &str, outcome: FetchOutcome) {
        let at = self.open.iter().position(|(_, request)| request.key == key(name));
        let (session, request) = at.and_then(|at| self.open.remove(at)).expect("a request for the key");
        self.send(Input::Fetched { id: request.id, session, outcome });
    }

    pub fn send(&mut self, input: Input) {
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            let mut out = Vec::new();
            self.engine.handle(self.now, input, &mut out);
            for (n, effect) in out.into_iter().enumerate() {
                if let Some(fact) = self.carry_out(effect) {
                    inputs.insert(n.min(inputs.len()), fact);
                }
            }
        }
    }

    fn carry_out(&mut self, effect: Effect) -> Option<Input> {
        let (at, time) = (self.now, self.time());
        match effect {
            Effect::Fetch { session, request } => {
                self.requests.push((time, session, request.key.clone()));
                self.open.push_back((session, request));
            }
            Effect::CancelFetch { id, .. } => {
                self.cancelled.push(id);
                self.open.retain(|(_, request)| request.id != id);
            }
            Effect::Install { key, value, .. } => {
                self.values.insert(key.clone(), Stored { value: value.clone(), at, invalidated: false });
                return Some(Input::Changed { key, value, at, cause: Cause::Fetch });
            }
            Effect::Touch { key, .. } => {
                let stored = self.values.get_mut(&key).expect("a value that is right");
                *stored = Stored { at, invalidated: false, ..stored.clone() };
                return Some(Input::Changed { key, value: stored.value.clone(), at, cause: Cause::Fetch });
            }
            Effect::Mark { keys, .. } => {
                for key in &keys {
                    if let Some(stored) = self.values.get_mut(key) {
                        stored.invalidated = true;
                    }
                }
                self.marked.extend(keys);
            }
            Effect::Unmark { key } => {
                if let Some(stored) = self.values.get_mut(&key) {
                    stored.invalidated = false;
                }
            }
            Effect::Show { key, state } => {
                *self.shows.entry(key.clone()).or_default() += 1;
                self.shown.insert(key, state);
            }
            Effect::Remove { key } => {
                self.values.remove(&key).expect("a value to remove");
                self.removed.push((time, key.clone()));
                return Some(Input::Removed { key });
            }
            Effect::Answer { id, answer } => {
                let twice = self.answers.insert(id, answer);
                assert_eq!(twice, None, "one answer to a question");
            }
            Effect::Note(note) => self.notes.push((time, note)),
        }
        None
    }

    /// Lets time pass: every deadline fires at its instant.
    pub fn pass(&mut self, time: Duration) {
        self.pass_until(self.time() + time);
    }

    pub fn pass_until(&mut self, since_start: Duration) {
        let end = START + since_start;
        while let Some(due) = self.engine.deadline().filter(|due| *due <= end) {
            assert!(due >= self.now, "a deadline in the past stays: {due:?} {:?}", self.now);
            self.now = due;
            self.send(Input::Deadline);
            assert_ne!(self.engine.deadline(), Some(due), "a deadline that does not go on");
        }
        self.now = end;
    }

    pub fn state(&self, name: &str) -> &QueryState {
        self.shown.get(&key(name)).expect("a state that was shown")
    }

    pub fn fetch_status(&self, name: &str) -> FetchStatus {
        self.state(name).fetch
    }

    pub fn is_stale(&self, name: &str) -> bool {
        self.state(name).stale
    }

    /// When the key was asked for.
    pub fn requested(&self, name: &str) -> Vec<Duration> {
        let key = key(name);
        self.requests.iter().filter(|(_, _, asked)| *asked == key).map(|(at, _, _)| *at).collect()
    }

    pub fn held(&self, name: &str) -> Option<&str> {
        self.values.get(&key(name)).map(|stored| std::str::from_utf8(&stored.value).expect("a text"))
    }

    /// The value that answers the question, and whether it is stale and was held.
    pub fn answer(&self, id: AskId) -> Option<Result<(String, bool, bool), FetchFailure>> {
        match self.answers.get(&id)? {
            Answer::Fetched(Fetched::Value { value, stale, cached, .. }) => {
                Some(Ok((String::from_utf8(value.to_vec()).expect("a text"), *stale, *cached)))
            }
            Answer::Fetched(Fetched::Failed(failure)) => Some(Err(failure.clone())),
            other => panic!("another answer: {other:?}"),
        }
    }
}

trait Fetches {
    fn is_some_and_fetches(&self) -> bool;
}

impl Fetches for Option<Source> {
    fn is_some_and_fetches(&self) -> bool {
        self.as_ref().is_some_and(|source| *source != Source::None)
    }
}
