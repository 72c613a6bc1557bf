//! Follower: a session's side of the link. Joins batches without holes, dedupes by position across epochs, keeps what a
//! new owner may need (values, event rings, operations), and re-issues what was not answered.
//!
//! A link's life: [`Input::Linked`] → Subscribe and offers go out → the first snapshot ends ([`Effect::Synced`]) → batches.
//! A hole in the batches leads to `Resync`; the owner answers with another Welcome and the link begins anew.
//!
//! **Invariant:** `last` moves only at the end of a batch or of a snapshot, and a value's place never goes back.

mod apply;
mod layers;
mod offer;
mod pending;
mod queries;
mod types;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

pub use types::*;

use crate::{
    connection::Connection,
    event::Event,
    hub::Archive,
    id::{Channel, Epoch, Key, Mark, OpId, Position, SessionId, Stream},
    limits::{ACK_FRAMES, ACK_INTERVAL, KEY_MAX},
    message::{Applied, DeclaredItem, Held, Member, Snapshot, ToHub, ToSession, Welcome},
    ops::{KeptOps, KnownOps},
    program::Features,
    ring::Rings,
    time::{Time, earliest},
};
use apply::Incoming;
pub(crate) use apply::nothing;
use layers::Layers;
use pending::Pending;
pub(crate) use pending::does_not_fit;
use queries::Queries;

/// State of the link to the owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    /// None.
    Lost,
    /// Welcomed; the first snapshot is not complete.
    Joining,
    /// Batches join.
    Synced,
    /// A hole was seen; everything until the next Welcome is ignored.
    Broken,
}

/// A value and the frame or snapshot that brought it.
#[derive(Debug, Clone)]
struct Entry {
    held: Held,
    changed: Mark,
}

/// What one Subscribe message asked for.
#[derive(Debug, Default)]
struct Asked {
    keys: Vec<Key>,
    streams: Vec<Stream>,
}

/// The machine.
#[derive(Debug)]
pub struct Follower {
    link: Link,
    epoch: Epoch,
    last: Mark,
    held: BTreeMap<Key, Entry>,
    /// What was held when this session was last an up-to-date heir.
    archive: Option<Archive>,
    /// The owner was offered the archive, not yet put aside then, as what is held.
    offered_complete: bool,
    /// Subscribed keys; true once a snapshot with the key is complete.
    keys: BTreeMap<Key, bool>,
    streams: BTreeMap<Stream, bool>,
    /// Subscribe messages whose snapshot has not ended.
    asked: VecDeque<Asked>,
    covered: BTreeMap<Channel, Position>,
    rings: Rings,
    ops: KeptOps,
    /// Operations that the owner of `epoch` is known to have.
    owner_ops: KnownOps,
    connections: BTreeMap<Arc<str>, Connection>,
    heir: bool,
    /// Everything of the group up to `last` is held.
    complete: bool,
    stable: Mark,
    members: Vec<Member>,
    incoming: Option<Incoming>,
    staged: Vec<Snapshot>,
    unacked: u64,
    ack_due: Option<Time>,
    pending: Pending,
    queries: Queries,
    /// All that the session declares.
    items: Vec<DeclaredItem>,
    layers: Layers,
    session: SessionId,
    /// What both ends of the link can do.
    features: Features,
}

impl Follower {
    /// A session that has not followed anybody yet.
    pub fn new(config: Config) -> Self {
        Self {
            link: Link::Lost,
            epoch: Epoch::NONE,
            last: Mark::ZERO,
            held: BTreeMap::new(),
            archive: None,
            offered_complete: false,
            keys: BTreeMap::new(),
            streams: BTreeMap::new(),
            asked: VecDeque::new(),
            covered: BTreeMap::new(),
            rings: Rings::default(),
            ops: KeptOps::default(),
            owner_ops: KnownOps::default(),
            connections: BTreeMap::new(),
            heir: false,
            complete: false,
            stable: Mark::ZERO,
            members: Vec::new(),
            incoming: None,
            staged: Vec::new(),
            unacked: 0,
            ack_due: None,
            pending: Pending::new(config.session),
            queries: Queries::default(),
            items: Vec::new(),
            layers: Layers::default(),
            session: config.session,
            features: Features::NONE,
        }
    }

    /// Takes one fact; what it leads to is appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Linked(welcome) => self.linked(&welcome, out),
            Input::Message(message) => self.message(now, message, out),
            Input::LinkLost => self.link_lost(),
            Input::Subscribe(key) => self.subscribe(key, out),
            Input::Unsubscribe(key) => self.unsubscribe(key, out),
            Input::SubscribeStream(stream) => self.subscribe_stream(stream, out),
            Input::UnsubscribeStream(stream) => {
                if self.streams.remove(&stream).is_some() && self.is_linked() {
                    out.push(Effect::Send(ToHub::Unsubscribe { keys: Vec::new(), streams: vec![stream] }));
                }
            }
            Input::Op { token, operation, trace } => {
                self.pending.op(token, operation, trace, self.is_linked(), out);
            }
            Input::Submit { token, hash, payload } => {
                self.pending.submit(token, hash, payload, self.is_linked(), out);
            }
            Input::Ask { token, ask, trace } => self.ask_owner(token, ask, trace, out),
            Input::Lay { token, key, patch } => self.lay(token, key, patch, out),
            Input::Commit { token, layer, operation, trace } => {
                self.commit(token, layer, operation, trace, out);
            }
            Input::TakeBack(layer) => self.take_back(layer, out),
            Input::Declare(resources) => self.declare(resources, out),
            Input::Items(items) => self.items = items,
            Input::Observe { key, options } => self.observe(key, options, out),
            Input::Fetched { epoch, id, outcome } => self.fetched(epoch, id, outcome, out),
            Input::Presence(presence) => self.send(ToHub::Presence(presence), out),
            Input::KitReady(kit) => self.send(ToHub::Kit(kit), out),
            Input::Took(epoch) => self.send(ToHub::Took(epoch), out),
            Input::Leave => self.send(ToHub::Close, out),
            Input::Seen { asker, id, seen } => self.send(ToHub::Seen { asker, id, seen }, out),
            Input::Deadline => self.due(now, out),
        }
    }

    /// When [`Input::Deadline`] is due.
    pub fn deadline(&self) -> Option<Time> {
        let retry = if self.is_linked() { self.pending.retry_at() } else { None };
        earliest(earliest(self.ack_due, retry), self.pending.tell_at())
    }

    /// What Hello says: everything of the interest up to here is held.
    pub fn hello_last(&self) -> Mark {
        self.last
    }

    /// The value held for a key, with its place. Its place may be newer than that of the last [`Effect::Show`], because
    /// equal content is not shown again: a compare-and-set takes its base from here.
    pub fn get(&self, key: &Key) -> Option<&Held> {
        self.held.get(key).map(|entry| &entry.held).filter(|held| !held.value.is_empty())
    }

    /// Where the session stands in each channel.
    pub fn covered(&self) -> impl Iterator<Item = (&Channel, &Position)> {
        self.covered.iter()
    }

    /// Whether the first snapshot of the current link is complete and no hole was seen since.
    pub fn is_synced(&self) -> bool {
        self.link == Link::Synced
    }

    /// The epoch of the current or last link.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether the session is an heir of its current link.
    pub fn is_heir(&self) -> bool {
        self.heir
    }

    /// Whether all shared state up to `hello_last` is held.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Operations, mutations and questions without an answer.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// The layers that this session laid and that have not ended, with their keys.
    pub fn open_layers(&self) -> impl Iterator<Item = (OpId, &Key)> {
        self.layers.open(self.session)
    }

    fn is_linked(&self) -> bool {
        self.link != Link::Lost
    }

    fn send(&self, message: ToHub, out: &mut Vec<Effect>) {
        if self.is_linked() {
            out.push(Effect::Send(message));
        }
    }

    fn linked(&mut self, welcome: &Welcome, out: &mut Vec<Effect>) {
        if welcome.epoch < self.last.epoch {
            out.push(Effect::Break(format!("an owner of the past epoch {} said Welcome", welcome.epoch)));
            return;
        }
        self.unacked = 0;
        self.ack_due = None;
        if welcome.epoch > self.epoch {
            self.pending.wire_moved(welcome.owner, out);
        }
        self.join(welcome, out);
        if !self.features.has(Features::LAYERS) {
            self.pending.refuse_layers(out);
        }
        self.pending.reissue(out);
    }

    /// Begins the link: interest first, then everything the owner may lack.
    fn join(&mut self, welcome: &Welcome, out: &mut Vec<Effect>) {
        if self.heir {
            self.heir = false;
            out.push(Effect::Heir(false));
        }
        if welcome.epoch != self.epoch {
            self.owner_ops = KnownOps::default();
        }
        self.link = Link::Joining;
        self.epoch = welcome.epoch;
        self.features = welcome.features;
        self.layers.drop_staged();
        self.incoming = None;
        self.staged.clear();
        self.asked.clear();
        let continues = welcome.epoch == self.last.epoch;
        // What was subscribed while there was no link has no value yet, so it may not be part of a delta.
        let first = self.interest(|known| known || !continues);
        let late = self.interest(|known| !known && continues);
        self.tell_options(out);
        self.ask(first, out);
        if self.asked.is_empty() {
            self.asked.push_back(Asked::default());
        }
        self.merge_asked();
        self.offered_complete = self.complete;
        self.offer(welcome.offer_since, out);
        self.ask(late, out);
        self.tell_declared(out);
    }

    fn interest(&self, wanted: impl Fn(bool) -> bool) -> Asked {
        let keys = self.keys.iter().filter(|(_, known)| wanted(**known)).map(|(key, _)| key.clone());
        let streams =
            self.streams.iter().filter(|(_, known)| wanted(**known)).map(|(stream, _)| stream.clone());
        Asked { keys: keys.collect(), streams: streams.collect() }
    }

    /// Sends Subscribe messages; one snapshot follows for each.
    fn ask(&mut self, all: Asked, out: &mut Vec<Effect>) {
        for keys in offer::chunks(all.keys, |key| key.0.len()) {
            out.push(Effect::Send(ToHub::Subscribe { keys: keys.clone(), streams: Vec::new() }));
            self.asked.push_back(Asked { keys, streams: Vec::new() });
        }
        for streams in offer::chunks(all.streams, |stream| stream.0.len()) {
            out.push(Effect::Send(ToHub::Subscribe { keys: Vec::new(), streams: streams.clone() }));
            self.asked.push_back(Asked { keys: Vec::new(), streams });
        }
    }

    /// What was asked before the offers is answered by one snapshot.
    fn merge_asked(&mut self) {
        let mut first = Asked::default();
        for asked in self.asked.drain(..) {
            first.keys.extend(asked.keys);
            first.streams.extend(asked.streams);
        }
        self.asked.push_back(first);
    }

    fn link_lost(&mut self) {
        self.link = Link::Lost;
        self.incoming = None;
        self.staged.clear();
        self.asked.clear();
        self.ack_due = None;
        self.unacked = 0;
    }

    fn subscribe(&mut self, key: Key, out: &mut Vec<Effect>) {
        if key.0.len() > KEY_MAX {
            out.push(Effect::Event(Event::LimitReached { limit: "KEY_MAX" }));
            return;
        }
        if self.keys.contains_key(&key) {
            return;
        }
        self.keys.insert(key.clone(), false);
        if self.layers.covers(&key) {
            self.layers.change(key.clone());
            self.show_layered(out);
        } else if let Some(held) = self.get(&key).cloned() {
            out.push(Effect::Show(held));
        }
        if self.is_linked() {
            self.ask(Asked { keys: vec![key], streams: Vec::new() }, out);
        }
    }

    fn unsubscribe(&mut self, key: Key, out: &mut Vec<Effect>) {
        if self.keys.remove(&key).is_none() {
            return;
        }
        if !self.complete && !self.heir {
            self.held.remove(&key);
        }
        self.queries.forget(&key);
        self.forget_layers(&key);
        self.send(ToHub::Unsubscribe { keys: vec![key], streams: Vec::new() }, out);
    }

    fn subscribe_stream(&mut self, stream: Stream, out: &mut Vec<Effect>) {
        if stream.0.len() > KEY_MAX {
            out.push(Effect::Event(Event::LimitReached { limit: "KEY_MAX" }));
            return;
        }
        if self.streams.contains_key(&stream) {
            return;
        }
        self.streams.insert(stream.clone(), false);
        if self.is_linked() {
            self.ask(Asked { keys: Vec::new(), streams: vec![stream] }, out);
        }
    }

    fn message(&mut self, now: Time, message: ToSession, out: &mut Vec<Effect>) {
        if !self.is_linked() {
            return;
        }
        match message {
            ToSession::Welcome(welcome) if self.link == Link::Broken && welcome.epoch == self.epoch => {
                self.join(&welcome, out);
            }
            ToSession::Welcome(_) | ToSession::Busy { .. } | ToSession::Refused(_) => {
                out.push(Effect::Break("an answer to Hello in the middle of a link".to_owned()));
            }
            ToSession::Ping(ping) => self.ping(ping, out),
            ToSession::Batch(header) => self.batch(now, header, out),
            ToSession::Frame(frame) => self.frame(now, frame, out),
            ToSession::Snapshot(snapshot) => self.snapshot(now, snapshot, out),
            ToSession::WantKeys(keys) => self.give_values(keys, out),
            ToSession::WantTail { channel, after } => self.give_tail(channel, after.as_ref(), out),
            ToSession::OpDone { id, outcome } => {
                self.layer_done(id, &outcome, out);
                self.pending.op_done(id, outcome, out);
            }
            ToSession::Layers(layered) => self.layers_staged(layered),
            ToSession::NoRoom(layers) => self.no_room(layers, out),
            ToSession::SubmitDone { id, outcome } => self.pending.submit_done(now, id, outcome, out),
            ToSession::Answer { id, answer } => self.pending.answered(id, answer, out),
            ToSession::Appointed => {
                self.heir = true;
                out.push(Effect::Heir(true));
            }
            ToSession::Dismissed => self.dismissed(out),
            ToSession::Go { last } => out.push(Effect::Go { last }),
            ToSession::Moved { epoch, to } => out.push(Effect::Moved { epoch, to }),
            ToSession::Close => out.push(Effect::OwnerClosed),
            ToSession::Look { asker, id, look } => out.push(Effect::Look { asker, id, look }),
            ToSession::ArchiveHeld => self.archive = None,
            ToSession::Applied(applied) => self.applied(&applied),
            ToSession::Fetch(request) => out.push(Effect::Fetch { epoch: self.epoch, request }),
            ToSession::WantItems => self.tell_items(out),
            ToSession::Conflicts(conflicts) => {
                let event = |conflict| Effect::Event(Event::ConfigConflict(Box::new(conflict)));
                out.extend(conflicts.into_iter().map(event));
            }
            ToSession::CancelFetch(id) => out.push(Effect::CancelFetch { epoch: self.epoch, id }),
        }
    }

    fn ping(&mut self, mut ping: crate::message::Ping, out: &mut Vec<Effect>) {
        if ping.members.is_empty() {
            ping.members.clone_from(&self.members);
        } else {
            self.members.clone_from(&ping.members);
        }
        if ping.stable > self.stable {
            self.stable = ping.stable;
            self.ops.settle(self.stable);
            self.rings.settle(self.stable);
        }
        out.push(Effect::Ping(ping));
    }

    fn dismissed(&mut self, out: &mut Vec<Effect>) {
        self.heir = false;
        self.layers.drop_staged();
        self.retire();
        out.push(Effect::Heir(false));
    }

    /// From here on only the own interest is heard of; an up-to-date heir puts aside what it holds.
    fn retire(&mut self) {
        let all = std::mem::take(&mut self.held);
        if std::mem::take(&mut self.complete) {
            self.archive = Some(Archive {
                held: all.iter().map(|(key, entry)| (key.clone(), entry.held.clone())).collect(),
                positions: self.positions(),
                applied: self.ops.applied(),
            });
        }
        self.held = all.into_iter().filter(|(key, _)| self.keys.contains_key(key)).collect();
        self.retire_layers();
    }

    fn applied(&mut self, applied: &[Applied]) {
        let at = self.last;
        self.owner_ops.note_applied(applied, at);
        self.ops.note_applied(applied, at);
    }

    fn positions(&self) -> Vec<(Channel, Position)> {
        self.covered.iter().map(|(channel, at)| (channel.clone(), at.clone())).collect()
    }

    fn due(&mut self, now: Time, out: &mut Vec<Effect>) {
        if self.ack_due.is_some_and(|due| due <= now) {
            self.acknowledge(out);
        }
        if self.is_linked() {
            self.pending.retry(now, out);
        }
        self.pending.tell(now, out);
    }

    /// Counts frames of a batch; acknowledges when enough came or somebody waits.
    fn count_for_ack(&mut self, now: Time, frames: u64, at_once: bool, out: &mut Vec<Effect>) {
        self.unacked += frames;
        if at_once || self.unacked >= ACK_FRAMES {
            self.acknowledge(out);
        } else {
            self.ack_due.get_or_insert(now + ACK_INTERVAL);
        }
    }

    fn acknowledge(&mut self, out: &mut Vec<Effect>) {
        self.unacked = 0;
        self.ack_due = None;
        if self.link == Link::Synced {
            out.push(Effect::Send(ToHub::Ack(self.last.offset)));
        }
    }
}
