//! One hub and its followers in memory: messages move only when a test says so.
#![allow(dead_code, reason = "each scenario file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use paceline_proto::{
    event::Event,
    fetch::{FetchId, FetchRequest, QueryState},
    follower::{self, Follower},
    hub::{self, Begin, ChannelSpec, Fold, Hub, Part, Resume},
    id::*,
    limits::{PING_INTERVAL, WRITE_MAX},
    look::Look,
    message::*,
    presence::Presence,
    program::Program,
    time::Time,
};

pub const FEED: &str = "feed";
pub const LABELS: &str = "labels";

/// Patches are appended.
struct Append;

impl Fold for Append {
    fn fold(&self, old: Option<&[u8]>, patch: &[u8]) -> Result<Bytes, String> {
        if patch == b"!" {
            return Err("the patch does not fit".to_owned());
        }
        Ok([old.unwrap_or_default(), patch].concat().into())
    }

    fn hash(&self, value: &[u8]) -> u64 {
        value
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
    }
}

pub fn key(name: &str) -> Key {
    Key::copy_from(name.as_bytes())
}

pub fn text(value: &str) -> Bytes {
    Bytes::copy_from_slice(value.as_bytes())
}

pub fn seq(offset: u64) -> Position {
    Position::Seq { epoch: "f".into(), offset }
}

pub fn session(n: u64) -> SessionId {
    SessionId(u128::from(n))
}

pub fn set(name: &str, value: &str) -> Change {
    Change::Set { key: key(name), value: text(value), version: Version::None }
}

pub fn event(data: &str) -> Change {
    Change::Event { stream: LABELS.into(), data: text(data) }
}

/// A session.
pub struct Node {
    pub id: u64,
    pub follower: Follower,
    pub link: Option<LinkId>,
    pub rank: Rank,
    pub program: Program,
    welcomed: bool,
    up: VecDeque<ToHub>,
    down: VecDeque<ToSession>,
    /// What the hub sends arrives later.
    pub deaf: bool,
    /// What the session sends arrives later.
    pub mute: bool,
    /// The session's socket takes nothing.
    pub blocked: bool,
    /// What the transport holds meanwhile.
    stuck: Option<Vec<Part>>,
    pub shown: BTreeMap<Key, Bytes>,
    /// What was shown of keys with layers, one after another.
    pub folded: Vec<(Key, String)>,
    /// Layers by the tokens of their callers.
    pub laid: BTreeMap<u64, u64>,
    pub delivered: Vec<String>,
    pub gaps: Vec<Gap>,
    pub ops: Vec<(u64, OpOutcome)>,
    pub submits: Vec<(u64, SubmitOutcome)>,
    pub answers: Vec<(u64, Answer)>,
    pub events: Vec<Event>,
    pub heir: bool,
    pub synced: u64,
    /// The list in the last ping, if one came.
    pub members: Option<Vec<Member>>,
    pub moved: Option<Epoch>,
    pub broken: Option<String>,
    pub looks: Vec<(SessionId, u64, Look)>,
    /// Digest of what it declares.
    pub declared: u64,
    pub states: BTreeMap<Key, QueryState>,
    pub fetches: Vec<(Epoch, FetchRequest)>,
    pub cancelled: Vec<FetchId>,
    next_token: u64,
}

impl Node {
    fn new(id: u64) -> Self {
        Self {
            id,
            follower: Follower::new(follower::Config { session: session(id) }),
            link: None,
            rank: Rank::Candidate,
            program: Program::new(String::new(), id as u32),
            welcomed: false,
            up: VecDeque::new(),
            down: VecDeque::new(),
            deaf: false,
            mute: false,
            blocked: false,
            stuck: None,
            shown: BTreeMap::new(),
            folded: Vec::new(),
            laid: BTreeMap::new(),
            delivered: Vec::new(),
            gaps: Vec::new(),
            ops: Vec::new(),
            submits: Vec::new(),
            answers: Vec::new(),
            events: Vec::new(),
            heir: false,
            synced: 0,
            members: None,
            moved: None,
            broken: None,
            looks: Vec::new(),
            declared: 0,
            states: BTreeMap::new(),
            fetches: Vec::new(),
            cancelled: Vec::new(),
            next_token: 0,
        }
    }

    pub fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub fn value(&self, name: &str) -> Option<String> {
        self.shown.get(&key(name)).map(|value| String::from_utf8(value.to_vec()).unwrap())
    }

    fn hello(&self) -> Hello {
        Hello {
            proof: Nonce(0),
            proto: self.program.proto,
            session: session(self.id),
            label: format!("s{}", self.id),
            build: self.program.build.clone(),
            pid: self.id as u32,
            rank: self.rank,
            last: self.follower.hello_last(),
            declared: self.declared,
            presence: Presence::default(),
            release: self.program.release,
            features: self.program.features,
            schema: self.program.schema,
            more: Bytes::new(),
        }
    }
}

/// A server with numbered messages on one channel.
pub struct Feed {
    pub spec: ChannelSpec,
    pub log: Vec<Vec<Change>>,
    /// What it can repeat begins after this number.
    pub forgotten: u64,
    /// Asked for and not answered yet.
    pub asked: VecDeque<Option<Position>>,
    /// It answers at once.
    pub eager: bool,
    pub connected: bool,
    /// Gives positions.
    pub numbered: bool,
    pub opens: Vec<Option<Position>>,
}

impl Feed {
    fn number(&self) -> u64 {
        self.log.len() as u64
    }
}

pub struct Net {
    pub now: Time,
    pub hub: Option<Hub>,
    pub owner: u64,
    pub epoch: u64,
    pub nodes: BTreeMap<u64, Node>,
    pub feed: Feed,
    pub events: Vec<Event>,
    pub effects: Vec<hub::Effect>,
    pub looked_at: Vec<SessionId>,
    pub unlinked: Vec<(LinkId, String)>,
    /// What the query engine was told.
    pub facts: Vec<hub::QueryFact>,
    /// Batches the hub wrote, with their frames, per session.
    pub batches: Vec<(u64, Batch, Vec<Frame>)>,
    next_link: u64,
}

pub fn resumable() -> ChannelSpec {
    ChannelSpec { channel: FEED.into(), resume: Resume::Proven, dense: true }
}

pub fn unresumable(dense: bool) -> ChannelSpec {
    ChannelSpec { channel: FEED.into(), resume: Resume::None, dense }
}

impl Net {
    /// Session 1 owns epoch 1.
    pub fn new(spec: ChannelSpec) -> Self {
        let feed = Feed {
            spec,
            log: Vec::new(),
            forgotten: 0,
            asked: VecDeque::new(),
            eager: true,
            connected: false,
            numbered: true,
            opens: Vec::new(),
        };
        let mut net = Self {
            now: Time(1_000_000_000),
            hub: None,
            owner: 1,
            epoch: 0,
            nodes: BTreeMap::new(),
            feed,
            events: Vec::new(),
            effects: Vec::new(),
            looked_at: Vec::new(),
            unlinked: Vec::new(),
            facts: Vec::new(),
            batches: Vec::new(),
            next_link: 1,
        };
        net.nodes.insert(1, Node::new(1));
        net.take_over(1);
        net.flow();
        net
    }

    /// Owner 1 and followers up to `n`, all subscribed to the events and to key `k`, at rest.
    pub fn group(spec: ChannelSpec, n: u64) -> Self {
        let mut net = Self::new(spec);
        net.node(1).deaf = false;
        net.subscribe(1, &["k"], true);
        for id in 2..=n {
            net.join(id);
            net.subscribe(id, &["k"], true);
        }
        net.rest();
        net
    }

    pub fn node(&mut self, id: u64) -> &mut Node {
        self.nodes.get_mut(&id).unwrap()
    }

    pub fn hub(&self) -> &Hub {
        self.hub.as_ref().unwrap()
    }

    // Sessions.

    pub fn add(&mut self, id: u64) {
        self.nodes.entry(id).or_insert_with(|| Node::new(id));
    }

    pub fn join(&mut self, id: u64) {
        self.add(id);
        self.link(id);
        self.flow();
    }

    /// Connects and says Hello; nothing else moves yet.
    pub fn link(&mut self, id: u64) {
        let link = LinkId(self.next_link);
        self.next_link += 1;
        let remote = id != self.owner;
        let node = self.nodes.get_mut(&id).unwrap();
        node.link = Some(link);
        node.welcomed = false;
        node.stuck = None;
        node.up.clear();
        node.down.clear();
        let hello = node.hello();
        self.hub_in(hub::Input::Linked { link, hello, remote });
    }

    pub fn follower_in(&mut self, id: u64, input: follower::Input) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        let mut out = Vec::new();
        node.follower.handle(now, input, &mut out);
        for effect in out {
            match effect {
                follower::Effect::Send(message) => node.up.push_back(message),
                follower::Effect::Show(held) => {
                    node.shown.insert(held.key, held.value);
                }
                follower::Effect::Clear(key) => {
                    node.shown.remove(&key);
                }
                follower::Effect::ShowLayered { key, held, layers } => {
                    let value = layers.iter().fold(held.map(|held| held.value), |below, layer| {
                        Append.fold(below.as_deref(), &layer.patch).ok().or(below)
                    });
                    let text = String::from_utf8(value.clone().unwrap_or_default().to_vec()).unwrap();
                    node.folded.push((key.clone(), text));
                    match value {
                        Some(value) => drop(node.shown.insert(key, value)),
                        None => drop(node.shown.remove(&key)),
                    }
                }
                follower::Effect::Laid { token, layer } => drop(node.laid.insert(token, layer)),
                follower::Effect::Deliver(event) => {
                    node.delivered.push(String::from_utf8(event.data.to_vec()).unwrap());
                }
                follower::Effect::ShowGap(gap) => {
                    node.delivered.push("gap".to_owned());
                    node.gaps.push(gap);
                }
                follower::Effect::Connection(_) | follower::Effect::Touch(_) => {}
                follower::Effect::ShowState(key, state) => {
                    node.states.insert(key, state);
                }
                follower::Effect::Fetch { epoch, request } => node.fetches.push((epoch, request)),
                follower::Effect::CancelFetch { id, .. } => node.cancelled.push(id),
                follower::Effect::Synced { .. } => node.synced += 1,
                follower::Effect::OpDone { token, outcome } => node.ops.push((token, outcome)),
                follower::Effect::SubmitDone { token, outcome, .. } => node.submits.push((token, outcome)),
                follower::Effect::Answered { token, answer } => node.answers.push((token, answer)),
                follower::Effect::Overloaded { token } => panic!("request {token} was refused"),
                follower::Effect::Ping(ping) => node.members = (!ping.unlisted).then_some(ping.members),
                follower::Effect::Heir(heir) => node.heir = heir,
                follower::Effect::Go { .. } | follower::Effect::OwnerClosed => {}
                follower::Effect::Moved { epoch, .. } => node.moved = Some(epoch),
                follower::Effect::Look { asker, id, look } => node.looks.push((asker, id, look)),
                follower::Effect::Break(why) => node.broken = Some(why),
                follower::Effect::Event(event) => node.events.push(event),
            }
        }
    }

    pub fn subscribe(&mut self, id: u64, keys: &[&str], events: bool) {
        for name in keys {
            self.follower_in(id, follower::Input::Subscribe(key(name)));
        }
        if events {
            self.follower_in(id, follower::Input::SubscribeStream(LABELS.into()));
        }
    }

    pub fn op(&mut self, id: u64, operation: Operation) -> u64 {
        let token = self.node(id).token();
        self.follower_in(id, follower::Input::Op { token, operation, trace: Trace::NONE });
        token
    }

    pub fn set_op(&mut self, id: u64, name: &str, value: &str) -> u64 {
        self.op(id, Operation::Set { key: key(name), value: text(value) })
    }

    pub fn merge_op(&mut self, id: u64, name: &str, patch: &str) -> u64 {
        self.op(id, Operation::Merge { key: key(name), patch: text(patch) })
    }

    /// Lays a layer over a key; returns its number.
    pub fn lay(&mut self, id: u64, name: &str, patch: &str) -> u64 {
        let token = self.node(id).token();
        self.follower_in(id, follower::Input::Lay { token, key: key(name), patch: text(patch) });
        self.node(id).laid[&token]
    }

    /// Makes the patch of a layer permanent.
    pub fn commit(&mut self, id: u64, layer: u64, name: &str, patch: &str) -> u64 {
        let operation = Operation::Merge { key: key(name), patch: text(patch) };
        self.commit_as(id, layer, operation)
    }

    pub fn commit_as(&mut self, id: u64, layer: u64, operation: Operation) -> u64 {
        let token = self.node(id).token();
        self.follower_in(id, follower::Input::Commit { token, layer, operation, trace: Trace::NONE });
        token
    }

    pub fn take_back(&mut self, id: u64, layer: u64) {
        self.follower_in(id, follower::Input::TakeBack(layer));
    }

    /// The layers over a key as the owner knows them: session and patch.
    pub fn layers(&self, name: &str) -> Vec<(u64, String)> {
        let layers = self.hub().carry().layers;
        let over = layers.into_iter().filter(|of| of.key == key(name)).flat_map(|of| of.layers);
        over.map(|layer| (layer.id.session.0 as u64, String::from_utf8(layer.patch.to_vec()).unwrap()))
            .collect()
    }

    pub fn outcome(&mut self, id: u64, token: u64) -> Option<OpOutcome> {
        self.node(id).ops.iter().find(|(done, _)| *done == token).map(|(_, outcome)| outcome.clone())
    }

    // Messages.

    /// Gives the hub a fact and carries out what it wishes.
    pub fn hub_in(&mut self, input: hub::Input) {
        let Some(hub) = &mut self.hub else { return };
        let mut out = Vec::new();
        hub.handle(self.now, input, &mut out);
        self.carry_out(out);
    }

    fn carry_out(&mut self, effects: Vec<hub::Effect>) {
        for effect in effects {
            match &effect {
                hub::Effect::OpenChannel { resume, .. } => {
                    self.feed.opens.push(resume.clone());
                    self.feed.asked.push_back(resume.clone());
                    self.feed.connected = false;
                }
                hub::Effect::LookAtMember(session) => self.looked_at.push(*session),
                hub::Effect::Unlink { link, why } => self.unlinked.push((*link, why.clone())),
                hub::Effect::Event(event) => self.events.push(event.clone()),
                hub::Effect::Wake(_)
                | hub::Effect::Store(_)
                | hub::Effect::Promote { .. }
                | hub::Effect::Took { .. }
                | hub::Effect::Drained { .. }
                | hub::Effect::Presence { .. } => {}
                hub::Effect::Query(fact) => self.facts.push(fact.clone()),
            }
            self.effects.push(effect);
        }
    }

    /// Moves everything that may move until nothing does.
    pub fn flow(&mut self) {
        for _ in 0..100_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the group never comes to rest");
    }

    fn step(&mut self) -> bool {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        let mut moved = false;
        for id in ids {
            moved |= self.step_up(id, usize::MAX) > 0;
            moved |= self.write(id);
            moved |= !self.node(id).deaf && self.step_down(id, usize::MAX) > 0;
        }
        moved |= self.feed_answers();
        moved
    }

    /// Lets up to `n` messages of a session reach the hub.
    pub fn step_up(&mut self, id: u64, n: usize) -> usize {
        let mut moved = 0;
        while moved < n && self.hub.is_some() && (!self.node(id).mute || n != usize::MAX) {
            let node = self.node(id);
            let (Some(link), Some(message)) = (node.link, node.up.pop_front()) else { break };
            self.hub_in(hub::Input::Message { link, message });
            moved += 1;
        }
        moved
    }

    /// Lets the hub write to a session's socket.
    pub fn write(&mut self, id: u64) -> bool {
        let mut wrote = false;
        while let Some(link) = self.nodes[&id].link {
            if self.nodes[&id].blocked {
                if self.nodes[&id].stuck.is_none() {
                    let stuck = self.hub.as_mut().and_then(|hub| hub.write(link, WRITE_MAX));
                    self.node(id).stuck = stuck;
                }
                break;
            }
            if let Some(parts) = self.node(id).stuck.take() {
                self.put_down(id, parts);
                self.hub_in(hub::Input::Written { link });
            }
            let Some(parts) = self.hub.as_mut().and_then(|hub| hub.write(link, WRITE_MAX)) else { break };
            wrote = true;
            self.put_down(id, parts);
            self.hub_in(hub::Input::Written { link });
        }
        let gone: Vec<LinkId> = self.unlinked.iter().map(|(link, _)| *link).collect();
        let node = self.node(id);
        if node.link.is_some_and(|link| gone.contains(&link)) && node.down.is_empty() {
            self.lose(id);
        }
        wrote
    }

    fn put_down(&mut self, id: u64, parts: Vec<Part>) {
        for part in parts {
            match part {
                Part::Message(message) => self.node(id).down.push_back(message),
                Part::Batch { header, frames } => {
                    let frames: Vec<Frame> = frames.iter().map(|shared| shared.frame.clone()).collect();
                    self.batches.push((id, header.clone(), frames.clone()));
                    let node = self.node(id);
                    node.down.push_back(ToSession::Batch(header));
                    node.down.extend(frames.into_iter().map(ToSession::Frame));
                }
            }
        }
    }

    /// Lets up to `n` messages reach a session.
    pub fn step_down(&mut self, id: u64, n: usize) -> usize {
        let mut moved = 0;
        while moved < n {
            let Some(message) = self.node(id).down.pop_front() else { break };
            let first = !std::mem::replace(&mut self.node(id).welcomed, true);
            let input = match message {
                ToSession::Welcome(welcome) if first => follower::Input::Linked(welcome),
                message => follower::Input::Message(message),
            };
            self.follower_in(id, input);
            moved += 1;
        }
        moved
    }

    /// Throws away what is on its way to a session.
    pub fn drop_down(&mut self, id: u64) -> usize {
        std::mem::take(&mut self.node(id).down).len()
    }

    /// Messages on their way to a session.
    pub fn on_the_way(&self, id: u64) -> usize {
        self.nodes[&id].down.len()
    }

    pub fn pings_on_the_way(&self, id: u64) -> usize {
        self.nodes[&id].down.iter().filter(|message| matches!(message, ToSession::Ping(_))).count()
    }

    /// The session's connection ends: what it was sent is read first.
    pub fn lose(&mut self, id: u64) {
        self.step_down(id, usize::MAX);
        self.cut(id);
    }

    /// The session's connection ends; what is on its way is lost.
    pub fn cut(&mut self, id: u64) {
        let node = self.node(id);
        node.down.clear();
        node.up.clear();
        node.stuck = None;
        let link = node.link.take();
        self.follower_in(id, follower::Input::LinkLost);
        if let Some(link) = link {
            self.hub_in(hub::Input::Unlinked { link });
        }
    }

    pub fn send_up(&mut self, id: u64, message: ToHub) {
        self.node(id).up.push_back(message);
    }

    // Time.

    /// Lets time pass; deadlines fire when due and messages move in between.
    pub fn pass(&mut self, d: Duration) {
        let end = self.now + d;
        loop {
            self.flow();
            let due = self.nodes.values().filter_map(|node| node.follower.deadline());
            let next = due.chain(self.hub.as_ref().and_then(Hub::deadline)).min();
            match next.filter(|next| *next <= end) {
                Some(next) => {
                    self.now = self.now.max(next);
                    self.fire();
                }
                None => break,
            }
        }
        self.now = end;
        self.flow();
    }

    fn fire(&mut self) {
        let now = self.now;
        if self.hub.as_ref().and_then(Hub::deadline).is_some_and(|due| due <= now) {
            self.hub_in(hub::Input::Deadline);
        }
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            if self.nodes[&id].follower.deadline().is_some_and(|due| due <= now) {
                self.follower_in(id, follower::Input::Deadline);
            }
        }
    }

    /// Long enough for snapshots, acknowledgements and pings to settle.
    pub fn rest(&mut self) {
        self.pass(PING_INTERVAL * 4);
    }

    // The feed.

    fn feed_answers(&mut self) -> bool {
        if !self.feed.eager || self.hub.is_none() {
            return false;
        }
        let mut moved = false;
        while let Some(asked) = self.feed.asked.pop_front() {
            self.feed_open(asked);
            moved = true;
        }
        moved
    }

    /// Answers the oldest request to open the channel.
    pub fn feed_answer(&mut self) {
        let asked = self.feed.asked.pop_front().unwrap();
        self.feed_open(asked);
    }

    fn feed_open(&mut self, asked: Option<Position>) {
        // A newer request closed this connection before it did anything.
        let superseded = !self.feed.asked.is_empty();
        if superseded {
            return;
        }
        self.feed.connected = true;
        let from = match &asked {
            Some(Position::Seq { offset, .. }) if self.feed.spec.resume != Resume::None => Some(*offset),
            _ => None,
        };
        let resumed = from.is_some_and(|from| from >= self.feed.forgotten);
        self.hub_in(hub::Input::ChannelOpened { channel: FEED.into(), resumed });
        if let Some(from) = from.filter(|_| resumed) {
            for n in from + 1..=self.feed.number() {
                self.feed_deliver(n);
            }
        }
    }

    fn feed_deliver(&mut self, n: u64) {
        let changes = self.feed.log[n as usize - 1].clone();
        let position = self.feed.numbered.then(|| seq(n));
        let channel = FEED.into();
        self.hub_in(hub::Input::Publish { channel, position, live: true, changes, trace: Trace::NONE });
    }

    /// The server sends a message; returns its number. It is lost to a hub that is not connected.
    pub fn publish(&mut self, changes: Vec<Change>) -> u64 {
        self.feed.log.push(changes);
        let n = self.feed.number();
        if self.feed.connected && self.hub.is_some() {
            self.feed_deliver(n);
        }
        n
    }

    /// Sends one event named after its number.
    pub fn publish_event(&mut self) -> u64 {
        let n = self.feed.number() + 1;
        self.publish(vec![event(&n.to_string())])
    }

    pub fn publish_events(&mut self, count: u64) {
        for _ in 0..count {
            self.publish_event();
        }
    }

    // The owner.

    /// The owner's process ends. What it had written is read by those who are not deaf.
    pub fn kill_owner(&mut self) {
        self.hub = None;
        self.feed.connected = false;
        self.feed.asked.clear();
        let owner = self.owner;
        self.nodes.remove(&owner);
        self.end_links();
    }

    /// The hub ends, its process lives on as a session.
    pub fn end_hub(&mut self) {
        self.hub = None;
        self.feed.connected = false;
        self.feed.asked.clear();
        self.end_links();
    }

    fn end_links(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().collect();
        for id in ids {
            if self.nodes[&id].deaf {
                self.node(id).down.clear();
            }
            self.step_down(id, usize::MAX);
            let node = self.node(id);
            node.link = None;
            node.up.clear();
            node.deaf = false;
            node.mute = false;
            node.blocked = false;
            self.follower_in(id, follower::Input::LinkLost);
        }
    }

    /// A session begins the next reign with what it holds; its own follower attaches.
    pub fn take_over(&mut self, id: u64) {
        let members = self.nodes[&id].members.clone();
        self.take_over_knowing(id, members);
    }

    pub fn take_over_knowing(&mut self, id: u64, members: Option<Vec<Member>>) {
        self.epoch += 1;
        self.owner = id;
        self.looked_at.clear();
        let begin = Begin {
            epoch: Epoch(self.epoch),
            session: session(id),
            program: self.nodes[&id].program.clone(),
            carried: self.nodes[&id].follower.carry(),
            members,
            channels: vec![self.feed.spec.clone()],
        };
        let mut out = Vec::new();
        self.hub = Some(Hub::new(begin, Box::new(Append), self.now, &mut out));
        self.carry_out(out);
        self.link(id);
    }

    /// The processes of members that are not among the sessions are found dead.
    pub fn find_dead(&mut self) {
        let alive: BTreeSet<SessionId> = self.nodes.keys().map(|id| session(*id)).collect();
        for looked in std::mem::take(&mut self.looked_at) {
            if !alive.contains(&looked) {
                self.hub_in(hub::Input::MemberDead(looked));
            }
        }
    }

    /// The owner dies, `id` takes over, everybody else joins, all comes to rest.
    pub fn fail_over(&mut self, id: u64) {
        self.kill_owner();
        self.take_over(id);
        self.find_dead();
        self.join_all();
        self.rest();
    }

    pub fn join_all(&mut self) {
        let ids: Vec<u64> = self.nodes.keys().copied().filter(|id| *id != self.owner).collect();
        for id in ids {
            if self.nodes[&id].link.is_none() {
                self.link(id);
            }
        }
        self.flow();
    }

    // Questions.

    /// Events a session was given, from its first one on.
    pub fn delivered(&self, id: u64) -> Vec<&str> {
        self.nodes[&id].delivered.iter().map(String::as_str).collect()
    }

    pub fn delivered_from(&self, id: u64, first: u64) -> Vec<u64> {
        let numbers = self.nodes[&id].delivered.iter().map(|data| data.parse().expect("an event, not a gap"));
        numbers.filter(|n| *n >= first).collect()
    }

    pub fn is_current_heir(&self, id: u64) -> bool {
        self.hub().links().any(|link| link.session == session(id) && link.current)
    }

    pub fn link_info(&self, id: u64) -> hub::LinkInfo {
        self.hub().links().find(|link| link.session == session(id)).unwrap()
    }

    pub fn count(&self, kind: &str) -> usize {
        self.events.iter().filter(|event| event.kind() == kind).count()
    }
}
