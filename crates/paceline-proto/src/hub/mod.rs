//! Hub: the owner's cache, the one place where order is decided, and the fan-out to the links (ELECTION 4).
//!
//! Output to a link is pulled: the machine says [`Effect::Wake`], the transport calls [`Hub::write`] for the next piece and
//! reports [`Input::Written`] when the socket took all of it. What is queued for a link is bounded and shares its frames
//! with all other links.
//!
//! Where to read on: `channels` (an upstream message becomes frames), `values` (what they do to the cache), `links` and
//! `write` (frames go out), `join` and `snapshot` (a link begins and ends), `collect`, `tails` and `offers` (a new owner
//! learns what survivors know), `replay` (who is behind every ring), `answers` (volatile operations), `members` and
//! `heirs`, `conflate` (slow links), `declared` (who declares otherwise), `requests` (everything else a session says), `tick` (what time brings).
//!
//! **Invariant:** frames are numbered in one place, `log`, and reach every link in that order.

mod answers;
mod cache;
mod channels;
mod collect;
mod conflate;
mod declared;
mod heirs;
mod inspect;
mod join;
mod layers;
mod link;
mod links;
mod log;
mod members;
mod offers;
mod queries;
mod replay;
mod requests;
mod snapshot;
mod tails;
mod tick;
mod types;
mod values;
mod write;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

pub use queries::{QueryFact, QueryWish, Writer};
pub use types::*;

use crate::{
    connection::Connection,
    id::{Channel, Epoch, Key, LinkId, Mark, Offset, Position, SessionId, Stream, Trace},
    limits::{OFFER_WAIT, PENDING_MAX, PING_INTERVAL},
    message::{Body, Held, Layer, Member, Operation, Refusal, ToSession},
    ops::{KeptOps, KnownOps},
    program::Program,
    ring::{Floor, Rings},
    time::{Time, earliest},
};
use answers::{Answers, HeldBack};
use cache::{AppliedOps, Basis, Cache, Entry, add_applied};
use channels::{ChannelState, Mode};
use layers::Layers;
use links::Links;
use log::{Log, To};
use members::Members;
use offers::Wants;
use queries::Queries;
use requests::{Drain, Submits};
use tails::Collect;

/// Messages queued for one link; who asks without reading is over it.
const MESSAGES_MAX: usize = 2 * PENDING_MAX;

/// What a piece of output is made from.
struct Context<'a> {
    now: Time,
    epoch: Epoch,
    end: Offset,
    cache: &'a Cache,
    ops: &'a KeptOps,
    connections: &'a BTreeMap<Arc<str>, Connection>,
    channels: &'a BTreeMap<Channel, ChannelState>,
    queries: &'a Queries,
    layers: &'a Layers,
}

/// Counters since the reign began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Frames published.
    pub frames: u64,
    /// Frames queued for links.
    pub deliveries: u64,
    /// Upstream messages at or before the published position.
    pub replayed: u64,
    /// Values from upstreams that were no news.
    pub old_versions: u64,
    /// Tails taken from survivors.
    pub tails: u64,
    /// Channels opened again behind their position.
    pub rewinds: u64,
    /// Queues conflated.
    pub conflations: u64,
    /// Links begun with a snapshot.
    pub snapshots: u64,
    /// Links begun with a delta.
    pub deltas: u64,
    /// Holes that sessions saw.
    pub resyncs: u64,
    /// Links dropped because the peer broke a rule.
    pub refused_peers: u64,
}

/// A link, for status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// The connection.
    pub link: LinkId,
    /// Who is at its end.
    pub session: SessionId,
    /// Its name for people.
    pub label: String,
    /// Its process id, for people.
    pub pid: u32,
    /// Protocol version of the connection.
    pub proto: u16,
    /// In another process.
    pub remote: bool,
    /// Its snapshot or delta is queued.
    pub joined: bool,
    /// It is an heir.
    pub heir: bool,
    /// It is an heir that acknowledged all shared state.
    pub current: bool,
    /// Frames queued.
    pub queued: usize,
    /// It gets the latest of each key only.
    pub conflated: bool,
    /// What it acknowledged.
    pub acked: Option<Offset>,
    /// Keys it is subscribed to.
    pub keys: usize,
    /// Streams it is subscribed to.
    pub streams: usize,
}

/// The machine.
pub struct Hub {
    epoch: Epoch,
    owner: SessionId,
    program: Program,
    now: Time,
    fold: Box<dyn Fold>,
    log: Log,
    cache: Cache,
    rings: Rings,
    channels: BTreeMap<Channel, ChannelState>,
    connections: BTreeMap<Arc<str>, Connection>,
    links: Links,
    members: Members,
    arrivals: u64,
    ops: KeptOps,
    /// Operations that took effect in this reign.
    reign_ops: KnownOps,
    answers: Answers,
    /// Operations that cannot be taken yet.
    held_back: VecDeque<HeldBack>,
    wants: Wants,
    submits: Submits,
    queries: Queries,
    layers: Layers,
    /// Who asked for a handover.
    promotes: Vec<(LinkId, u64)>,
    drain: Option<Drain>,
    /// Heirs are appointed once the channels have come as far as those who offered.
    heirs_wait: bool,
    /// They had come so far once.
    leveled: bool,
    adopted: bool,
    /// The owner held all shared state up to `carried_last`.
    complete: bool,
    carried_last: Mark,
    carried_stable: Mark,
    carried_basis: Basis,
    own_streams: BTreeSet<Stream>,
    /// Everybody on the list has offered, or the time for it is over.
    offers_done: bool,
    offers_deadline: Time,
    tail_deadline: Time,
    next_ping: Time,
    began: Time,
    stats: Stats,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("last", &self.log.mark())
            .field("links", &self.links.len())
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Begins a reign with what the owner's follower held. Channels that need not wait are opened at once.
    pub fn new(begin: Begin, fold: Box<dyn Fold>, now: Time, out: &mut Vec<Effect>) -> Self {
        let Begin { epoch, session, program, carried, members, channels } = begin;
        let mut hub = Self {
            epoch,
            owner: session,
            program,
            now,
            fold,
            log: Log::new(epoch),
            cache: Cache::default(),
            rings: Rings::default(),
            channels: BTreeMap::new(),
            connections: BTreeMap::new(),
            links: Links::default(),
            members: Members::new(epoch, session, members, carried.stable, now),
            arrivals: 0,
            ops: KeptOps::default(),
            reign_ops: KnownOps::default(),
            answers: Answers::default(),
            held_back: VecDeque::new(),
            wants: Wants::default(),
            submits: Submits::default(),
            queries: Queries::default(),
            layers: Layers::default(),
            promotes: Vec::new(),
            drain: None,
            heirs_wait: false,
            leveled: false,
            adopted: false,
            complete: carried.complete,
            carried_last: carried.last,
            carried_stable: carried.stable,
            carried_basis: Arc::new(carried.positions.iter().cloned().collect()),
            own_streams: carried.streams.iter().cloned().collect(),
            offers_done: false,
            offers_deadline: now + OFFER_WAIT,
            tail_deadline: now + OFFER_WAIT + OFFER_WAIT,
            next_ping: now + PING_INTERVAL,
            began: now,
            stats: Stats::default(),
        };
        hub.take_over(carried);
        for spec in channels {
            hub.begin_channel(spec, out);
        }
        hub.members.awaited().for_each(|awaited| out.push(Effect::LookAtMember(awaited)));
        hub.offers_moved(out);
        hub.collect_all(out);
        hub
    }

    fn take_over(&mut self, carried: Carried) {
        if let Some(archive) = carried.archive {
            let basis = Some(Arc::new(archive.positions.into_iter().collect()));
            let mut applied = AppliedOps::default();
            add_applied(&mut applied, &archive.applied);
            let ops = Some(Arc::new(applied));
            for held in archive.held.into_values() {
                let (basis, ops, below) = (basis.clone(), ops.clone(), Some(held.place.clone()));
                self.cache.insert(Entry { basis, ops, below, ..Entry::new(held) });
            }
        }
        let basis = Some(self.carried_basis.clone());
        for held in carried.held {
            self.cache.insert(Entry { basis: basis.clone(), ..Entry::new(held) });
        }
        for (channel, ring) in carried.rings {
            self.rings.set_floor(channel, Floor::from_wire(ring));
        }
        for kept in carried.kept {
            self.rings.push(kept, self.now);
        }
        self.ops.note_applied(&carried.applied, carried.last);
        for (mark, op) in carried.ops {
            let key = op.operation.key();
            let current = |entry: &Entry| entry.below.is_none();
            let held = self.complete
                || matches!(op.operation, Operation::Invalidate { .. })
                || self.cache.get(key).is_some_and(current);
            if held && self.ops.knows(op.id) {
                self.ops.insert(mark, op);
            } else {
                // Its effect was replaced by an owner that did not know it, or the value with its effect is not held.
                self.ops.unlearn(op.id);
                self.wants.wait(mark, op, self.owner);
            }
        }
        self.take_over_layers(carried.layers);
        self.connections = carried.connections.into_iter().map(|c| (c.upstream.clone(), c)).collect();
    }

    /// Decides how a channel begins: an up-to-date heir resumes where it stands, another owner waits for offers, and what
    /// cannot resume is opened at once and held back.
    fn begin_channel(&mut self, spec: ChannelSpec, out: &mut Vec<Effect>) {
        let channel = spec.channel.clone();
        let own = self.carried_basis.get(&channel).filter(|at| **at != Position::START).cloned();
        let numbered = own.as_ref().is_none_or(|at| !matches!(at, Position::Local { .. }));
        let mode = match (spec.resume != Resume::None && numbered, self.complete && own.is_some()) {
            (true, true) => Mode::Flowing,
            (true, false) => Mode::Waiting,
            (false, _) => Mode::Collecting,
        };
        let mut state = ChannelState::new(spec, mode);
        state.collect = Some(if self.complete {
            state.position.clone_from(&own);
            state.applied_from.clone_from(&own);
            state.applied_upto.clone_from(&own);
            Collect::default()
        } else {
            // Its ring holds only what it was subscribed to.
            let floor = self.rings.floor(&channel).cloned();
            Collect::with_own(own, floor, self.own_streams.clone(), self.rings.take(&channel))
        });
        state.moved_at = self.log.end().next();
        self.channels.insert(channel.clone(), state);
        if mode != Mode::Waiting {
            self.open(&channel, out);
        }
    }

    /// Takes one fact; what it leads to is appended to `out`.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        self.now = now;
        match input {
            Input::Linked { link, hello, remote } => self.linked(link, hello, remote, out),
            Input::Message { link, message } => self.message(link, message, out),
            Input::Unlinked { link } => {
                self.links.forget(link);
                if let Some(slot) = self.links.slot(link) {
                    self.gone(slot, "the connection ended", out);
                }
            }
            Input::Written { link } => self.written(link, out),
            Input::ChannelOpened { channel, resumed } => self.channel_opened(&channel, resumed, out),
            Input::Publish { channel, position, live, changes, trace } => {
                self.publish(channel, position, live, changes, trace, out);
            }
            Input::Reset { key, value, base, why, trace } => self.reset(key, value, base, why, trace, out),
            Input::Connection(connection) => self.connection(connection, out),
            Input::Stored(outcomes) => self.stored(outcomes, out),
            Input::Adopted => self.adopted(out),
            Input::MemberDead(session) => self.member_dead(session, out),
            Input::Drain { to } => self.begin_drain(to, out),
            Input::Resume => self.resume(out),
            Input::PromoteRefused { why } => self.answer_promotes(&crate::message::Answer::Refused(why), out),
            Input::SendGo { to, last } => self.send_go(to, last, out),
            Input::SendMoved { epoch, to } => self.send_moved(epoch, &to, out),
            Input::SendClose => self.tell_all(&ToSession::Close, out),
            Input::Query(wish) => self.wish(wish, out),
            Input::Deadline => self.due(out),
        }
    }

    /// When [`Input::Deadline`] is due.
    pub fn deadline(&self) -> Option<Time> {
        let offers = (!self.offers_done).then_some(self.offers_deadline);
        let pulling =
            self.channels.values().any(|state| state.collect.is_some() && self.now < self.tail_deadline);
        let tails = (self.offers_done && pulling).then_some(self.tail_deadline);
        earliest(Some(self.next_ping), earliest(offers, tails))
    }

    /// The reign.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Place of the last frame.
    pub fn last(&self) -> Mark {
        self.log.mark()
    }

    /// What every counted member has acknowledged.
    pub fn stable(&self) -> Mark {
        self.members.stable()
    }

    /// The value of a key.
    pub fn get(&self, key: &Key) -> Option<&Held> {
        self.cache.get(key).filter(|entry| entry.has_value()).map(|entry| &entry.held)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &Held> {
        self.cache.iter().filter(|entry| entry.has_value()).map(|entry| &entry.held)
    }

    /// Number of keys in the cache, those without a value included.
    pub fn keys(&self) -> usize {
        self.cache.len()
    }

    /// The layers over keys, the lowest first.
    pub fn layers(&self) -> impl Iterator<Item = (&Key, &[Layer])> {
        self.layers.iter()
    }

    /// Where the channels stand.
    pub fn positions(&self) -> impl Iterator<Item = (&Channel, Option<&Position>)> {
        self.channels.iter().map(|(channel, state)| (channel, state.position.as_ref()))
    }

    /// Joined and still awaited members.
    pub fn members(&self) -> Vec<Member> {
        self.members.list()
    }

    /// The links.
    pub fn links(&self) -> impl Iterator<Item = LinkInfo> {
        self.links.iter().map(|(_, link)| LinkInfo {
            link: link.id,
            session: link.session,
            label: link.label.clone(),
            pid: link.pid,
            proto: link.proto,
            remote: link.remote,
            joined: link.is_joined(),
            heir: link.heir.is_some(),
            current: link.is_current_heir(),
            queued: link.frames,
            conflated: link.conflated,
            acked: link.acked,
            keys: link.keys.len(),
            streams: link.streams.len(),
        })
    }

    /// States of the upstream connections.
    pub fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.connections.values()
    }

    /// Counters.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Everything this owner holds, for a reign that follows its own (a new store after the old one failed).
    pub fn carry(&self) -> Carried {
        let position =
            |(channel, state): (&Channel, &ChannelState)| Some((channel.clone(), state.position.clone()?));
        Carried {
            last: self.log.mark(),
            // What still waits for offers may be ahead of the cache.
            complete: self.complete || self.leveled,
            stable: self.members.stable(),
            held: self.cache.iter().map(|entry| entry.held.clone()).collect(),
            archive: None,
            positions: self.channels.iter().filter_map(position).collect(),
            streams: self.own_streams.iter().cloned().collect(),
            kept: self.rings.iter().cloned().collect(),
            rings: self.rings.floors(),
            ops: self.ops.iter().map(|(mark, op)| (mark, op.clone())).collect(),
            applied: self.ops.applied(),
            layers: self.layers.carry(),
            connections: self.connections.values().cloned().collect(),
        }
    }

    fn connection(&mut self, connection: Connection, out: &mut Vec<Effect>) {
        let known = self.connections.insert(connection.upstream.clone(), connection.clone());
        if known.as_ref() != Some(&connection) {
            let mut atom = self.log.atom(Trace::NONE);
            atom.push(Body::Connection(connection), None, None, To::All);
            self.commit(atom, out);
        }
    }

    fn reset(
        &mut self,
        key: Key,
        value: Option<(bytes::Bytes, crate::id::Version)>,
        base: Option<crate::id::Place>,
        why: String,
        trace: Trace,
        out: &mut Vec<Effect>,
    ) {
        let stands = self.cache.get(&key).map(|entry| &entry.held.place);
        let overtakes = self.channels.values().any(|state| state.will_change(&key));
        if self.is_drained() || overtakes || stands != base.as_ref() {
            return;
        }
        let mut atom = self.log.atom(trace);
        let mark = atom.mark();
        let mut held = crate::follower::nothing(key.clone(), mark);
        held.updated_at = self.now;
        if let Some((value, version)) = value {
            held.hash = self.fold.hash(&value);
            (held.value, held.place.version) = (value, version);
        }
        self.cache.insert(Entry::new(held.clone()));
        let held = (!held.value.is_empty()).then_some(held);
        atom.push(Body::Reset { key: key.clone(), held, why }, None, None, To::All);
        self.commit(atom, out);
        self.tell_value(&key, Writer::Write, out);
    }

    fn member_dead(&mut self, session: SessionId, out: &mut Vec<Effect>) {
        // Its lock may have been looked at before it came back.
        if self.members.link_of(session).is_none() && self.members.remove(session) {
            self.layers_orphaned(session, out);
            self.offers_moved(out);
            self.collect_all(out);
        }
    }

    /// Somebody offered, or left the list, or time passed.
    fn offers_moved(&mut self, out: &mut Vec<Effect>) {
        if self.offers_done {
            return;
        }
        if self.members.all_offered() || self.now >= self.offers_deadline {
            self.offers_done = true;
            self.adopt_waiting(out);
            self.take_held_back(out);
            self.choose_heirs(out);
            self.begin_queries(out);
        }
    }

    /// Opens a channel again after a handover that failed.
    fn reopen(&mut self, channel: &Channel, out: &mut Vec<Effect>) {
        if self.channels.get(channel).is_some_and(|state| state.mode != Mode::Waiting) {
            self.open(channel, out);
        }
        let behind = self.links.iter().filter_map(|(_, link)| link.lag.get(channel).map(|lag| &lag.at));
        let lowest = behind.cloned().reduce(|a, b| if b.covers(&a) == Some(false) { b } else { a });
        if let Some(lowest) = lowest {
            self.rewind(channel, &lowest, out);
        }
    }
}
