//! Follower actor: the session's link to its owner, local or remote, and the replica behind it.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    time::Duration,
};

use bytes::Bytes;
use paceline_ipc::{
    codec,
    failpoint::hit,
    framing::FrameReader,
    socket::{self, ReadHalf, WriteHalf},
};
use paceline_proto::{
    election::{ConnectFailure, Target},
    event::Event,
    fetch::{Declared, FetchId, FetchOutcome},
    follower::{Config, Effect, Follower, Input},
    hub::Part,
    id::{Epoch, Key, Stream, Trace},
    limits::{HELLO_TIMEOUT, PENDING_BYTES},
    look::{Look, Seen},
    message::{
        Answer, Ask, DeclaredItem, Hello, KitAddress, OpOutcome, Operation, Refusal, SubmitOutcome, ToHub,
        ToSession, Welcome,
    },
    presence::Presence,
    time::Time,
};
use tokio::sync::oneshot;

use crate::{
    death::End,
    election::ElectionIn,
    fetcher::FetcherIn,
    hub::{BeginReign, HubIn},
    link::{Outbound, Progress},
    shell::{Business, Describe, Io, Mail},
    thread::Seat,
    trace::Record,
};

/// Messages of the follower actor.
pub(crate) enum FollowerIn {
    /// Connect and say Hello.
    Connect { attempt: u64, target: Target },
    /// Drop an attempt or its connection.
    Disconnect { attempt: u64 },
    /// An attempt ended.
    Attempted { attempt: u64, result: Result<Box<Accepted>, AttemptError> },
    /// The connection delivered frames, or ended.
    Read { attempt: u64, reader: FrameReader<ReadHalf>, result: io::Result<Vec<Bytes>> },
    /// A background write ended.
    Wrote { attempt: u64, result: io::Result<WriteHalf> },
    /// The own session becomes the owner: carry the state over and attach to the own hub.
    Begin(Box<BeginReign>),
    /// Output of the own hub.
    Loopback { epoch: Epoch, parts: Vec<Part> },
    /// The own hub dropped the loopback link.
    LoopbackLost { epoch: Epoch },
    /// The own kit is ready.
    Kit(KitAddress),
    /// Tell the old owner that this session took over.
    Took(Epoch),
    /// A local subscriber came.
    Subscribe(Key),
    /// The last local subscriber left.
    Unsubscribe(Key),
    /// What local subscribers ask for; told before the first one comes.
    Observe { key: Key, options: Bytes },
    /// A local event subscriber came.
    SubscribeStream(Stream),
    /// The last one left.
    UnsubscribeStream(Stream),
    /// A caller's operation.
    Op { operation: Operation, reply: oneshot::Sender<Option<OpOutcome>> },
    /// A caller's layer; answered when it is shown here.
    Lay { key: Key, patch: Bytes, laid: Laid, reply: oneshot::Sender<Option<Result<Laid, String>>> },
    /// The operation of a layer.
    Commit { layer: u64, operation: Operation, reply: oneshot::Sender<Option<OpOutcome>> },
    /// A layer is taken back, unless it is being committed.
    TakeBack(u64),
    /// A caller's mutation.
    Submit { hash: [u8; 16], payload: Bytes, reply: oneshot::Sender<Option<(u64, SubmitOutcome)>> },
    /// A caller's question.
    Ask { ask: Ask, reply: oneshot::Sender<Option<Answer>> },
    /// The fetcher has an outcome for the owner of the epoch.
    Fetched { epoch: Epoch, id: FetchId, outcome: FetchOutcome },
    /// What the session shows changed.
    Presence(Presence),
    /// The session leaves: say Close.
    Leave,
    /// Everything is released: the runtime ends.
    Stop,
}

/// A connection whose owner said Welcome.
pub(crate) struct Accepted {
    welcome: Welcome,
    /// Frames that came with the Welcome.
    rest: Vec<Bytes>,
    reader: FrameReader<ReadHalf>,
    writer: WriteHalf,
}

/// How an attempt failed.
pub(crate) enum AttemptError {
    Busy { retry_ms: u32 },
    Refused(Refusal),
    Failed(ConnectFailure),
}

impl Describe for FollowerIn {
    fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Disconnect { .. } => "disconnect",
            Self::Attempted { .. } => "attempted",
            Self::Read { .. } => "read",
            Self::Wrote { .. } => "wrote",
            Self::Begin(_) => "begin",
            Self::Loopback { .. } => "loopback",
            Self::LoopbackLost { .. } => "loopback_lost",
            Self::Kit(_) => "kit",
            Self::Took(_) => "took",
            Self::Subscribe(_) => "subscribe",
            Self::Unsubscribe(_) => "unsubscribe",
            Self::Observe { .. } => "observe",
            Self::SubscribeStream(_) => "subscribe_stream",
            Self::UnsubscribeStream(_) => "unsubscribe_stream",
            Self::Op { .. } => "op",
            Self::Lay { .. } => "lay",
            Self::Commit { .. } => "commit",
            Self::TakeBack(_) => "take_back",
            Self::Submit { .. } => "submit",
            Self::Ask { .. } => "ask",
            Self::Fetched { .. } => "fetched",
            Self::Presence(_) => "presence",
            Self::Leave => "leave",
            Self::Stop => "stop",
        }
    }

    fn key(&self) -> Option<&Key> {
        match self {
            Self::Subscribe(key) | Self::Unsubscribe(key) | Self::Observe { key, .. } => Some(key),
            Self::Op { operation, .. } | Self::Commit { operation, .. } => Some(operation.key()),
            Self::Lay { key, .. } => Some(key),
            _ => None,
        }
    }
}

/// A layer that this session laid. Dropping it takes it back, wherever it gets lost, unless it ended or is being committed.
pub struct Laid {
    /// Its number in this session, once it has one.
    number: Option<u64>,
    follower: Mail<FollowerIn>,
}

impl std::fmt::Debug for Laid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Laid").field(&self.number).finish()
    }
}

impl Laid {
    pub(crate) fn new(follower: Mail<FollowerIn>) -> Self {
        Self { number: None, follower }
    }

    pub(crate) fn number(&self) -> Option<u64> {
        self.number
    }
}

impl Drop for Laid {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.follower.tell(FollowerIn::TakeBack(number), Trace::NONE);
        }
    }
}

/// Where the machine's messages go.
enum Link {
    None,
    Remote { attempt: u64, epoch: Epoch, out: Outbound },
    Loopback { epoch: Epoch },
}

/// A caller that waits.
enum Caller {
    Op(oneshot::Sender<Option<OpOutcome>>),
    Lay(Laid, oneshot::Sender<Option<Result<Laid, String>>>),
    Submit(oneshot::Sender<Option<(u64, SubmitOutcome)>>),
    Ask(oneshot::Sender<Option<Answer>>),
}

pub(crate) struct FollowerBusiness {
    machine: Follower,
    seat: Seat,
    presence: Presence,
    link: Link,
    /// The connection to the owner that handed over to this session, until it was told.
    parting: Option<Outbound>,
    attempts: BTreeSet<u64>,
    callers: BTreeMap<u64, Caller>,
    next_token: u64,
    synced_once: bool,
    effects: Vec<Effect>,
}

impl FollowerBusiness {
    pub(crate) fn new(seat: Seat, resources: Vec<Declared>, items: Vec<DeclaredItem>) -> Self {
        let mut machine = Follower::new(Config { session: seat.identity.session });
        let mut effects = Vec::new();
        // It has no link yet: what it knows is told on the first one.
        machine.handle(Time::ZERO, Input::Declare(resources), &mut effects);
        machine.handle(Time::ZERO, Input::Items(items), &mut effects);
        Self {
            machine,
            seat,
            presence: Presence::default(),
            link: Link::None,
            parting: None,
            attempts: BTreeSet::new(),
            callers: BTreeMap::new(),
            next_token: 0,
            synced_once: false,
            effects,
        }
    }

    fn hello(&self, target: &KitAddress) -> Hello {
        let identity = &self.seat.identity;
        Hello {
            proof: target.nonce,
            proto: identity.program.proto,
            session: identity.session,
            label: identity.label.clone(),
            build: identity.program.build.clone(),
            pid: identity.program.pid,
            rank: identity.rank,
            last: self.machine.hello_last(),
            declared: identity.declared,
            presence: self.presence,
            release: identity.program.release,
            features: identity.program.features,
            schema: identity.program.schema,
            more: Bytes::new(),
        }
    }

    fn drive(&mut self, input: Input, io: &mut Io<'_, FollowerIn>) {
        self.machine.handle(io.now, input, &mut self.effects);
        self.carry_out(io);
    }

    fn carry_out(&mut self, io: &mut Io<'_, FollowerIn>) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            self.effect(effect, io);
        }
        // Nothing above drives the machine again, so the buffer is still ours to reuse.
        self.effects = effects;
    }

    fn effect(&mut self, effect: Effect, io: &mut Io<'_, FollowerIn>) {
        match effect {
            Effect::Send(message) => self.send(message, io),
            Effect::Show(held) => self.seat.replica.show(&held),
            Effect::Touch(held) => self.seat.replica.touch(&held),
            Effect::ShowLayered { key, held, layers } => {
                self.seat.replica.show_layered(&key, held.as_ref(), &layers);
            }
            Effect::Laid { token, layer } => {
                if let Some(Caller::Lay(mut laid, reply)) = self.callers.remove(&token) {
                    laid.number = Some(layer);
                    drop(reply.send(Some(Ok(laid))));
                }
            }
            Effect::ShowState(key, state) => self.seat.replica.show_state(&key, state),
            Effect::Clear(key) => self.seat.replica.clear(&key),
            Effect::Fetch { epoch, request } => {
                let cause = request.trace;
                self.seat.peers.fetcher(FetcherIn::Fetch { epoch, request }, cause);
            }
            Effect::CancelFetch { epoch, id } => {
                self.seat.peers.fetcher(FetcherIn::Cancel { epoch, id }, io.trace);
            }
            Effect::Deliver(event) => {
                if self.seat.replica.deliver(event) {
                    self.seat.observer.event(Event::LimitReached { limit: "EVENT_QUEUE" });
                }
            }
            Effect::ShowGap(gap) => self.seat.replica.show_gap(&gap),
            Effect::Connection(connection) => self.seat.replica.change_group(|view| {
                match view.connections.binary_search_by(|c| c.upstream.cmp(&connection.upstream)) {
                    Ok(at) => view.connections[at] = connection,
                    Err(at) => view.connections.insert(at, connection),
                }
            }),
            Effect::Synced { at } => {
                if !self.synced_once {
                    self.synced_once = true;
                    self.seat.observer.joined(at);
                }
            }
            Effect::OpDone { token, outcome } => {
                // A caller that stopped waiting does not want the answer.
                match (self.callers.remove(&token), outcome) {
                    (Some(Caller::Op(reply)), outcome) => drop(reply.send(Some(outcome))),
                    (Some(Caller::Lay(_, reply)), OpOutcome::Rejected(why)) => {
                        drop(reply.send(Some(Err(why))))
                    }
                    (Some(Caller::Lay(..) | Caller::Submit(_) | Caller::Ask(_)) | None, _) => {}
                }
            }
            Effect::SubmitDone { token, seq, outcome } => {
                if let Some(Caller::Submit(reply)) = self.callers.remove(&token) {
                    let _ = reply.send(Some((seq, outcome)));
                }
            }
            Effect::Answered { token, answer } => {
                if let Some(Caller::Ask(reply)) = self.callers.remove(&token) {
                    let _ = reply.send(Some(answer));
                }
            }
            Effect::Overloaded { token } => {
                self.seat.observer.event(Event::LimitReached { limit: "PENDING_MAX" });
                self.refuse(token);
            }
            Effect::Ping(ping) => {
                // Told before it is shown: who sees an heir that is ready may ask for a handover at once.
                self.seat.peers.election(ElectionIn::Ping(ping.clone()), io.trace);
                self.seat.replica.change_group(|view| {
                    view.members = ping.members;
                    view.heirs = ping.heirs;
                });
            }
            Effect::Heir(heir) => self.seat.peers.election(ElectionIn::Heir(heir), io.trace),
            Effect::Go { last } => self.seat.peers.election(ElectionIn::Go { last }, io.trace),
            Effect::Moved { epoch, to } => {
                self.seat.peers.election(ElectionIn::Moved { epoch, to }, io.trace)
            }
            Effect::Look { asker, id, look } => {
                let seen = self.look(look);
                self.send(ToHub::Seen { asker, id, seen }, io);
            }
            Effect::OwnerClosed => self.seat.peers.election(ElectionIn::OwnerClosed, io.trace),
            Effect::Break(why) => self.break_link(&why, io),
            Effect::Event(event) => self.seat.observer.event(event),
        }
    }

    fn look(&self, look: Look) -> Seen {
        match look {
            Look::Trace { after, trace } => {
                let (records, written) = self.seat.ring.read_after(after);
                let wanted = records.iter().filter(|record| trace.is_none_or(|id| record.trace.trace == id));
                Seen::Trace { records: wanted.map(Record::to_wire).collect(), written }
            }
            Look::Events { after } => {
                let (events, written) = self.seat.observer.records_after(after);
                let counts = self.seat.observer.counts();
                let counts = counts.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect();
                Seen::Events { events, written, counts }
            }
            Look::Debug(on) => Seen::Debug { before: self.seat.observer.set_debug(on) },
        }
    }

    fn refuse(&mut self, token: u64) {
        match self.callers.remove(&token) {
            Some(Caller::Op(reply)) => drop(reply.send(None)),
            Some(Caller::Lay(_, reply)) => drop(reply.send(None)),
            Some(Caller::Submit(reply)) => drop(reply.send(None)),
            Some(Caller::Ask(reply)) => drop(reply.send(None)),
            None => {}
        }
    }

    fn send(&mut self, message: ToHub, io: &mut Io<'_, FollowerIn>) {
        match &mut self.link {
            Link::None => {}
            Link::Loopback { epoch } => {
                self.seat.peers.hub(HubIn::Loopback { epoch: *epoch, message }, io.trace);
            }
            Link::Remote { out, .. } => {
                if let Err(error) = out.push(&message) {
                    tracing::error!(%error, "a message of this session does not fit the wire");
                } else if out.gathered() > PENDING_BYTES {
                    self.break_link("the owner does not read what this session sends", io);
                }
            }
        }
    }

    fn break_link(&mut self, why: &str, io: &mut Io<'_, FollowerIn>) {
        if let Link::Remote { attempt, .. } = self.link {
            tracing::warn!(%why, "the link is dropped");
            self.lose_link(attempt, io);
        }
    }

    /// The current link of `attempt` is gone.
    fn lose_link(&mut self, attempt: u64, io: &mut Io<'_, FollowerIn>) {
        if !matches!(self.link, Link::Remote { attempt: current, .. } if current == attempt) {
            return;
        }
        self.unlinked(io);
        self.seat.peers.election(ElectionIn::Eof { attempt }, io.trace);
    }

    /// What the owner asked for is not wanted any more; the next one asks anew.
    fn unlinked(&mut self, io: &mut Io<'_, FollowerIn>) {
        self.link = Link::None;
        self.machine.handle(io.now, Input::LinkLost, &mut self.effects);
        // Not `carry_out`: this may be called while it runs.
        let effects = std::mem::take(&mut self.effects);
        for effect in effects {
            self.effect(effect, io);
        }
        self.seat.peers.fetcher(FetcherIn::GiveUp, io.trace);
    }

    fn attempted(
        &mut self,
        attempt: u64,
        result: Result<Box<Accepted>, AttemptError>,
        io: &mut Io<'_, FollowerIn>,
    ) {
        if !self.attempts.remove(&attempt) {
            return;
        }
        let accepted = match result {
            Ok(accepted) => *accepted,
            Err(error) => {
                let answer = match error {
                    AttemptError::Busy { retry_ms } => ElectionIn::Busy { attempt, retry_ms },
                    AttemptError::Refused(refusal) => ElectionIn::Refused { attempt, refusal },
                    AttemptError::Failed(failure) => ElectionIn::ConnectFailed { attempt, failure },
                };
                self.seat.peers.election(answer, io.trace);
                return;
            }
        };
        let epoch = accepted.welcome.epoch;
        let newer = match &self.link {
            Link::None => true,
            Link::Remote { epoch: current, .. } | Link::Loopback { epoch: current } => epoch > *current,
        };
        if !newer || self.seat.reign.epoch().is_some_and(|own| own >= epoch) {
            let failure = ConnectFailure::Closed;
            self.seat.peers.election(ElectionIn::ConnectFailed { attempt, failure }, io.trace);
            return;
        }
        self.seat.reign.hear(io.now);
        let owner = accepted.welcome.owner;
        self.seat.peers.election(ElectionIn::Welcomed { attempt, epoch, owner }, io.trace);
        self.link = Link::Remote { attempt, epoch, out: Outbound::new(accepted.writer) };
        self.drive(Input::Linked(accepted.welcome), io);
        if self.take_frames(attempt, accepted.rest, io) {
            io.complete(read(attempt, accepted.reader));
        }
    }

    /// Hands frames to the machine. False when the link ended on the way.
    fn take_frames(&mut self, attempt: u64, frames: Vec<Bytes>, io: &mut Io<'_, FollowerIn>) -> bool {
        for frame in frames {
            match codec::decode::<ToSession>(&frame) {
                Ok(message) => self.message(message, io),
                Err(error) => {
                    self.break_link(&format!("the owner sent a frame that cannot be read: {error}"), io);
                    return false;
                }
            }
            if !matches!(self.link, Link::Remote { attempt: current, .. } if current == attempt) {
                return false;
            }
        }
        true
    }

    /// Hands a message to the machine; a frame with a cause leaves a record of its own.
    fn message(&mut self, message: ToSession, io: &mut Io<'_, FollowerIn>) {
        let ToSession::Frame(frame) = &message else { return self.drive(Input::Message(message), io) };
        if frame.trace == Trace::NONE {
            return self.drive(Input::Message(message), io);
        }
        let (begun, key) = (io.begin(frame.trace), frame.body.key().cloned());
        self.drive(Input::Message(message), io);
        io.note("apply", key.as_ref(), begun);
    }

    fn read(
        &mut self,
        attempt: u64,
        reader: FrameReader<ReadHalf>,
        result: io::Result<Vec<Bytes>>,
        io: &mut Io<'_, FollowerIn>,
    ) {
        if !matches!(self.link, Link::Remote { attempt: current, .. } if current == attempt) {
            return;
        }
        match result {
            Ok(frames) if frames.is_empty() => self.lose_link(attempt, io),
            Ok(frames) => {
                self.seat.reign.hear(io.now);
                if self.take_frames(attempt, frames, io) {
                    io.complete(read(attempt, reader));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "the link to the owner broke");
                self.lose_link(attempt, io);
            }
        }
    }

    fn begin(&mut self, mut begin: Box<BeginReign>, io: &mut Io<'_, FollowerIn>) {
        if let Link::Remote { out, .. } = std::mem::replace(&mut self.link, Link::None) {
            self.parting = begin.polite.then_some(out);
        }
        self.machine.handle(io.now, Input::LinkLost, &mut self.effects);
        self.carry_out(io);
        self.attempts.clear();
        let epoch = begin.epoch;
        begin.carried = self.machine.carry();
        let hello = self.hello(&begin.address);
        self.link = Link::Loopback { epoch };
        self.seat.peers.hub(HubIn::Begin(begin), io.trace);
        self.seat.peers.hub(HubIn::LoopbackHello { epoch, hello }, io.trace);
    }

    fn loopback(&mut self, epoch: Epoch, parts: Vec<Part>, io: &mut Io<'_, FollowerIn>) {
        for part in parts {
            if !matches!(self.link, Link::Loopback { epoch: current } if current == epoch) {
                return;
            }
            match part {
                Part::Message(ToSession::Welcome(welcome)) => self.drive(Input::Linked(welcome), io),
                Part::Message(message) => self.drive(Input::Message(message), io),
                Part::Batch { header, frames } => {
                    self.drive(Input::Message(ToSession::Batch(header)), io);
                    for shared in frames {
                        self.message(ToSession::Frame(shared.frame.clone()), io);
                    }
                }
            }
        }
    }

    fn call(&mut self, caller: Caller) -> u64 {
        self.next_token += 1;
        self.callers.insert(self.next_token, caller);
        self.next_token
    }
}

impl Business for FollowerBusiness {
    const NAME: &'static str = "follower";
    type Input = FollowerIn;

    fn handle(&mut self, input: FollowerIn, io: &mut Io<'_, FollowerIn>) {
        match input {
            FollowerIn::Connect { attempt, target } => {
                self.attempts.insert(attempt);
                let hello = self.hello(&target.address);
                let speculative = target.epoch.is_none();
                let path = self.seat.dir.socket(&target.address.socket);
                io.complete(async move {
                    FollowerIn::Attempted { attempt, result: connect(path, hello, speculative).await }
                });
            }
            FollowerIn::Disconnect { attempt } => {
                self.attempts.remove(&attempt);
                if matches!(self.link, Link::Remote { attempt: current, .. } if current == attempt) {
                    self.unlinked(io);
                }
            }
            FollowerIn::Attempted { attempt, result } => self.attempted(attempt, result, io),
            FollowerIn::Read { attempt, reader, result } => self.read(attempt, reader, result, io),
            FollowerIn::Wrote { attempt, result } => match (&mut self.link, result) {
                (Link::Remote { attempt: current, out, .. }, Ok(half)) if *current == attempt => {
                    out.resume(half)
                }
                (Link::Remote { attempt: current, .. }, Err(error)) if *current == attempt => {
                    self.break_link(&error.to_string(), io);
                }
                // Of a link that is gone.
                (Link::None | Link::Loopback { .. } | Link::Remote { .. }, Ok(half)) => half.close(),
                (Link::None | Link::Loopback { .. } | Link::Remote { .. }, Err(_)) => {}
            },
            FollowerIn::Begin(begin) => self.begin(begin, io),
            FollowerIn::Loopback { epoch, parts } => self.loopback(epoch, parts, io),
            FollowerIn::LoopbackLost { epoch } => {
                if matches!(self.link, Link::Loopback { epoch: current } if current == epoch) {
                    self.unlinked(io);
                }
            }
            FollowerIn::Kit(address) => self.drive(Input::KitReady(address), io),
            FollowerIn::Took(epoch) => {
                hit("tell_took");
                if let Some(mut out) = self.parting.take()
                    && out.push(&ToHub::Took(epoch)).is_ok()
                    && let Progress::Rest(rest) = out.write()
                {
                    io.complete(async move { FollowerIn::Wrote { attempt: 0, result: rest.await } });
                }
            }
            FollowerIn::Subscribe(key) => self.drive(Input::Subscribe(key), io),
            FollowerIn::Observe { key, options } => self.drive(Input::Observe { key, options }, io),
            FollowerIn::Unsubscribe(key) => self.drive(Input::Unsubscribe(key), io),
            FollowerIn::SubscribeStream(stream) => self.drive(Input::SubscribeStream(stream), io),
            FollowerIn::UnsubscribeStream(stream) => self.drive(Input::UnsubscribeStream(stream), io),
            FollowerIn::Op { operation, reply } => {
                let token = self.call(Caller::Op(reply));
                self.drive(Input::Op { token, operation, trace: io.trace }, io);
            }
            FollowerIn::Lay { key, patch, laid, reply } => {
                let token = self.call(Caller::Lay(laid, reply));
                self.drive(Input::Lay { token, key, patch }, io);
            }
            FollowerIn::Commit { layer, operation, reply } => {
                let token = self.call(Caller::Op(reply));
                self.drive(Input::Commit { token, layer, operation, trace: io.trace }, io);
            }
            FollowerIn::TakeBack(layer) => self.drive(Input::TakeBack(layer), io),
            FollowerIn::Submit { hash, payload, reply } => {
                let token = self.call(Caller::Submit(reply));
                self.drive(Input::Submit { token, hash, payload }, io);
            }
            FollowerIn::Ask { ask, reply } => {
                let token = self.call(Caller::Ask(reply));
                self.drive(Input::Ask { token, ask, trace: io.trace }, io);
            }
            FollowerIn::Fetched { epoch, id, outcome } => {
                self.drive(Input::Fetched { epoch, id, outcome }, io);
            }
            FollowerIn::Presence(presence) => {
                self.presence = presence;
                self.drive(Input::Presence(presence), io);
            }
            FollowerIn::Leave => {
                self.drive(Input::Leave, io);
                self.flush(io);
            }
            FollowerIn::Stop => self.seat.death.declare(End::Left),
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.machine.deadline()
    }

    fn due(&mut self, io: &mut Io<'_, FollowerIn>) {
        self.drive(Input::Deadline, io);
    }

    fn flush(&mut self, io: &mut Io<'_, FollowerIn>) {
        let Link::Remote { attempt, out, .. } = &mut self.link else { return };
        let attempt = *attempt;
        if out.gathered() == 0 {
            return;
        }
        match out.write() {
            Progress::Done | Progress::Busy => {}
            Progress::Rest(rest) => {
                io.complete(async move { FollowerIn::Wrote { attempt, result: rest.await } });
            }
            Progress::Broken(error) => {
                tracing::debug!(%error, "the owner's end of the link is closed");
                // What the owner sent before it ended is still read; EOF there ends the link.
            }
        }
    }
}

async fn read(attempt: u64, mut reader: FrameReader<ReadHalf>) -> FollowerIn {
    let mut frames = Vec::new();
    let result = reader.read_batch(&mut frames).await.map(|_| frames).map_err(io::Error::other);
    FollowerIn::Read { attempt, reader, result }
}

/// Connects, says Hello, and waits for the first answer. A speculative attempt waits in the backlog of a session that
/// has not claimed yet, for as long as it is wanted.
async fn connect(
    path: std::path::PathBuf,
    hello: Hello,
    speculative: bool,
) -> Result<Box<Accepted>, AttemptError> {
    let connection =
        socket::connect(&path, HELLO_TIMEOUT).await.map_err(|e| AttemptError::Failed(classify(&e)))?;
    let (read, mut writer) = connection.into_split();
    let spoken = hello.proto;
    let patience = if speculative { Duration::from_secs(3600) } else { HELLO_TIMEOUT };
    let exchange = async {
        let bytes = codec::encode_frame(&ToHub::Hello(hello)).map_err(|e| other(&e))?;
        writer.write_all(&bytes).await.map_err(|_| AttemptError::Failed(ConnectFailure::Closed))?;
        let mut reader = FrameReader::new(read);
        reader.raise_cap();
        let mut frames = Vec::new();
        let n = reader.read_batch(&mut frames).await.map_err(|e| other(&e))?;
        if n == 0 {
            return Err(AttemptError::Failed(ConnectFailure::Closed));
        }
        let first = codec::decode::<ToSession>(&frames.remove(0)).map_err(|e| other(&e))?;
        match first {
            ToSession::Welcome(welcome) if !spoken.speaks(welcome.proto) => {
                Err(AttemptError::Failed(ConnectFailure::Other(format!(
                    "the owner chose protocol {}, which was not offered",
                    welcome.proto
                ))))
            }
            ToSession::Welcome(welcome) => Ok(Box::new(Accepted { welcome, rest: frames, reader, writer })),
            ToSession::Busy { retry_ms } => Err(AttemptError::Busy { retry_ms }),
            ToSession::Refused(refusal) => Err(AttemptError::Refused(refusal)),
            unexpected => Err(AttemptError::Failed(ConnectFailure::Other(format!(
                "the first message was not Welcome but {unexpected:?}"
            )))),
        }
    };
    tokio::time::timeout(patience, exchange)
        .await
        .unwrap_or(Err(AttemptError::Failed(ConnectFailure::Silent)))
}

fn other(error: &dyn std::fmt::Display) -> AttemptError {
    AttemptError::Failed(ConnectFailure::Other(error.to_string()))
}

fn classify(error: &socket::ConnectError) -> ConnectFailure {
    match error {
        socket::ConnectError::Refused => ConnectFailure::Refused,
        socket::ConnectError::Missing => ConnectFailure::Missing,
        socket::ConnectError::Permission | socket::ConnectError::OtherUid { .. } => ConnectFailure::Forbidden,
        socket::ConnectError::WouldBlock | socket::ConnectError::Timeout(_) => ConnectFailure::Silent,
        socket::ConnectError::Io(error) => ConnectFailure::Other(error.to_string()),
    }
}
