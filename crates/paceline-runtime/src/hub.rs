//! Hub actor: the owner's listener and links around the pure hub.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use paceline_channel::reign::{Begin, Feeds, Output, Queries, note_live};
use paceline_ipc::{
    codec,
    failpoint::hit,
    framing::{FrameReader, ReadError},
    socket::{AcceptError, Connection, Listener, ReadHalf, WriteHalf},
};
use paceline_proto::{
    connection::Connection as UpstreamConnection,
    event::Event,
    hub::{Begin as BeginHub, Carried, ChannelSpec, Effect, Hub, Input, QueryFact, QueryWish},
    id::{Channel, Epoch, LinkId, Mark, MutationId, Position, SessionId, Trace},
    limits::{HELLO_TIMEOUT, UNAUTHENTICATED_MAX, WRITE_MAX},
    message::{Answer, Ask, Change, Hello, KitAddress, Member, Refusal, SubmitOutcome, ToHub, ToSession},
    time::{Time, earliest},
};
use paceline_query::rules::Defaults;

use tokio::sync::oneshot;

use crate::{
    election::ElectionIn,
    fold::JsonFold,
    follower::FollowerIn,
    link::{Outbound, Progress},
    outbox::OutboxIn,
    shell::{Business, Describe, Io},
    socket::{SocketIn, observation},
    thread::Seat,
};

/// What a reign begins with.
pub(crate) struct BeginReign {
    pub epoch: Epoch,
    /// Nonce and socket of the claimed kit.
    pub address: KitAddress,
    pub listener: Listener,
    pub members: Option<Vec<Member>>,
    /// The predecessor handed over and waits to be told.
    pub polite: bool,
    /// Filled by the follower on the way to the hub.
    pub carried: Carried,
}

/// Messages of the hub actor.
pub(crate) enum HubIn {
    /// The reign begins.
    Begin(Box<BeginReign>),
    /// The reign is over: drop everything, after telling followers if `close`.
    End { epoch: Epoch, close: bool },
    /// The own follower says Hello.
    LoopbackHello { epoch: Epoch, hello: Hello },
    /// The own follower sends.
    Loopback { epoch: Epoch, message: ToHub },
    /// A connection came, or accepting failed.
    Accepted { epoch: Epoch, listener: Listener, result: Result<Connection, AcceptError> },
    /// The socket was bound again under its name.
    Rebound { epoch: Epoch, listener: Listener },
    /// A connection said Hello, or did not in time.
    Greeted { epoch: Epoch, result: Result<Box<Greeting>, String> },
    /// A link delivered frames, or ended.
    Read { epoch: Epoch, link: LinkId, reader: FrameReader<ReadHalf>, result: Result<Vec<Bytes>, ReadError> },
    /// A background write ended.
    Wrote { epoch: Epoch, link: LinkId, result: io::Result<WriteHalf> },
    /// An upstream opened the channel.
    ChannelOpened { epoch: Epoch, channel: Channel, resumed: bool },
    /// An upstream message.
    Publish { epoch: Epoch, channel: Channel, position: Option<Position>, live: bool, changes: Vec<Change> },
    /// An upstream's state changed.
    Connection { epoch: Epoch, connection: UpstreamConnection },
    /// The outbox answers.
    Stored { epoch: Epoch, results: Vec<(MutationId, SubmitOutcome)> },
    /// The outbox answers a question.
    Answer { epoch: Epoch, link: LinkId, id: u64, answer: Answer },
    /// Adoption ended well.
    Adopted { epoch: Epoch },
    /// The session's lock is free.
    MemberDead { epoch: Epoch, session: SessionId },
    /// Drain for a handover.
    Drain { epoch: Epoch, to: SessionId },
    /// The handover failed.
    Resume { epoch: Epoch },
    /// No handover was started.
    PromoteRefused { why: String },
    /// Tell the heir to claim.
    SendGo { to: SessionId, last: Mark },
    /// Tell followers where the new owner is.
    SendMoved { epoch: Epoch, to: KitAddress },
    /// Welcome nobody any more if nobody is here and nothing is under way or kept; answer whether that is so.
    Retire { reply: oneshot::Sender<bool> },
    /// The outbox holds nothing, or something.
    Retired { epoch: Epoch, empty: bool, reply: oneshot::Sender<bool> },
    /// Last words of an ended reign were written, or could not be.
    Finished,
    /// The session left: finish the last words, then stop the follower.
    Stop,
}

/// A connection that said Hello.
pub(crate) struct Greeting {
    hello: Hello,
    rest: Vec<Bytes>,
    reader: FrameReader<ReadHalf>,
    writer: WriteHalf,
}

impl Describe for HubIn {
    fn kind(&self) -> &'static str {
        match self {
            Self::Begin(_) => "begin",
            Self::End { .. } => "end",
            Self::LoopbackHello { .. } => "loopback_hello",
            Self::Loopback { .. } => "loopback",
            Self::Accepted { .. } => "accepted",
            Self::Rebound { .. } => "rebound",
            Self::Greeted { .. } => "greeted",
            Self::Read { .. } => "read",
            Self::Wrote { .. } => "wrote",
            Self::ChannelOpened { .. } => "channel_opened",
            Self::Publish { .. } => "publish",
            Self::Connection { .. } => "connection",
            Self::Stored { .. } => "stored",
            Self::Answer { .. } => "answer",
            Self::Adopted { .. } => "adopted",
            Self::MemberDead { .. } => "member_dead",
            Self::Drain { .. } => "drain",
            Self::Resume { .. } => "resume",
            Self::PromoteRefused { .. } => "promote_refused",
            Self::SendGo { .. } => "send_go",
            Self::SendMoved { .. } => "send_moved",
            Self::Retire { .. } => "retire",
            Self::Retired { .. } => "retired",
            Self::Finished => "finished",
            Self::Stop => "stop",
        }
    }

    fn key(&self) -> Option<&paceline_proto::id::Key> {
        match self {
            Self::Publish { changes, .. } => changes.iter().find_map(|change| match change {
                Change::Set { key, .. } | Change::Merge { key, .. } | Change::Invalidate { key, .. } => {
                    Some(key)
                }
                Change::Event { .. } => None,
            }),
            _ => None,
        }
    }
}

/// The own follower's link.
const LOOPBACK: LinkId = LinkId(0);

/// Upstream messages that are gathered into one write to each link, at most.
const PUBLISHED_PER_WRITE: usize = 64;
/// Who met a full door comes again after this time; those in front of it are gone after `HELLO_TIMEOUT` at the latest.
const BUSY_RETRY_MS: u32 = 100;
/// Before accepting again when the listener failed (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// Where a link's output goes.
enum Sink {
    Loopback,
    Remote(Outbound),
}

struct Owned {
    epoch: Epoch,
    address: KitAddress,
    machine: Hub,
    links: BTreeMap<LinkId, Sink>,
    awake: BTreeSet<LinkId>,
    greeting: usize,
    next_link: u64,
    /// Newcomers are not welcomed any more: the reign is about to end.
    retiring: bool,
    /// The listener, while retiring and after somebody came.
    parked: Option<Listener>,
    /// Once the survivors' offers are in.
    queries: Option<Queries>,
    /// Upstreams that are live.
    live: BTreeSet<Arc<str>>,
    /// For the engine, in order.
    facts: VecDeque<QueryFact>,
    /// The engine is being driven.
    engaged: bool,
}

pub(crate) struct HubBusiness {
    seat: Seat,
    channels: Vec<ChannelSpec>,
    /// Upstreams want to know what sessions subscribe to.
    follows: bool,
    feeds: Feeds,
    defaults: Defaults,
    /// For the jitter of the query engine.
    seed: u64,
    owned: Option<Owned>,
    /// Last words to links of an ended reign, still being written.
    finishing: usize,
    stopping: bool,
    /// Upstream messages published since the last write.
    unwritten: usize,
    /// Why nobody could be accepted, when it was last tried.
    refused: Option<String>,
    effects: Vec<Effect>,
}

impl HubBusiness {
    pub(crate) fn new(
        seat: Seat,
        channels: Vec<ChannelSpec>,
        follows: bool,
        feeds: Feeds,
        defaults: Defaults,
        seed: u64,
    ) -> Self {
        Self {
            seat,
            channels,
            follows,
            feeds,
            defaults,
            seed,
            owned: None,
            finishing: 0,
            stopping: false,
            unwritten: 0,
            refused: None,
            effects: Vec::new(),
        }
    }

    fn begin(&mut self, begin: BeginReign, io: &mut Io<'_, HubIn>) {
        let epoch = begin.epoch;
        let state = BeginHub {
            epoch,
            session: self.seat.identity.session,
            program: self.seat.identity.program.clone(),
            carried: begin.carried,
            members: begin.members,
            channels: self.channels.clone(),
        };
        let machine = Hub::new(state, Box::new(JsonFold), io.now, &mut self.effects);
        self.owned = Some(Owned {
            epoch,
            address: begin.address,
            machine,
            links: BTreeMap::new(),
            awake: BTreeSet::new(),
            greeting: 0,
            next_link: 1,
            retiring: false,
            parked: None,
            queries: None,
            live: BTreeSet::new(),
            facts: VecDeque::new(),
            engaged: false,
        });
        io.complete(accept(epoch, begin.listener));
        self.carry_out(io);
        self.engage(io);
    }

    fn end(&mut self, epoch: Epoch, close: bool, io: &mut Io<'_, HubIn>) {
        if self.owned.as_ref().is_none_or(|owned| owned.epoch != epoch) {
            return;
        }
        if close {
            self.drive(Input::SendClose, io);
        }
        self.write_all_awake(io);
        hit("told");
        let Some(owned) = self.owned.take() else { return };
        for sink in owned.links.into_values() {
            if let Sink::Remote(mut out) = sink
                && let Progress::Rest(rest) = out.write()
            {
                // The last words (Moved, Close) go on in the background, bounded by the write timeout.
                self.finishing += 1;
                io.complete(finish(rest));
            }
        }
        self.seat.peers.follower(FollowerIn::LoopbackLost { epoch }, io.trace);
    }

    fn drive(&mut self, input: Input, io: &mut Io<'_, HubIn>) {
        let Some(owned) = &mut self.owned else { return };
        owned.machine.handle(io.now, input, &mut self.effects);
        self.carry_out(io);
        self.engage(io);
    }

    /// Hands the engine what the hub decided, and the hub what the engine wishes, until both are at rest. What a wish leads
    /// to comes before what waited.
    fn engage(&mut self, io: &mut Io<'_, HubIn>) {
        if self.owned.as_mut().is_none_or(|owned| std::mem::replace(&mut owned.engaged, true)) {
            return;
        }
        while let Some(owned) = &mut self.owned
            && let Some(fact) = owned.facts.pop_front()
        {
            let mut output = Output::default();
            if fact == QueryFact::Began {
                let begin = Begin {
                    defaults: self.defaults.clone(),
                    own: self.seat.identity.session,
                    seed: self.seed ^ owned.epoch.0,
                    takeover: owned.epoch > Epoch(1),
                    feeds: self.feeds.clone(),
                    live: owned.live.clone(),
                };
                owned.queries = Some(Queries::new(begin, &owned.machine, io.now));
            }
            if let Some(queries) = &mut owned.queries {
                queries.take(io.now, fact, &mut output);
            }
            self.fulfil(output, io);
        }
        if let Some(owned) = &mut self.owned {
            owned.engaged = false;
        }
    }

    /// The engine polls where an upstream does not feed.
    fn wire(&mut self, connection: &UpstreamConnection, io: &mut Io<'_, HubIn>) {
        let Some(owned) = &mut self.owned else { return };
        note_live(connection, &mut owned.live);
        let Some(queries) = &mut owned.queries else { return };
        let mut output = Output::default();
        queries.connection(io.now, connection, &mut output);
        owned.engaged = true;
        self.fulfil(output, io);
        if let Some(owned) = &mut self.owned {
            owned.engaged = false;
        }
        self.engage(io);
    }

    fn fulfil(&mut self, output: Output, io: &mut Io<'_, HubIn>) {
        output.events.into_iter().for_each(|event| self.seat.observer.event(event));
        let Some(waiting) = self.owned.as_mut().map(|owned| std::mem::take(&mut owned.facts)) else { return };
        for wish in output.wishes {
            self.drive(Input::Query(wish), io);
        }
        if let Some(owned) = &mut self.owned {
            owned.facts.extend(waiting);
        }
    }

    fn carry_out(&mut self, io: &mut Io<'_, HubIn>) {
        let effects = std::mem::take(&mut self.effects);
        for effect in effects {
            self.effect(effect, io);
        }
    }

    fn effect(&mut self, effect: Effect, io: &mut Io<'_, HubIn>) {
        let Some(owned) = &mut self.owned else { return };
        let epoch = owned.epoch;
        match effect {
            Effect::Wake(link) => {
                owned.awake.insert(link);
            }
            Effect::Unlink { link, why } => {
                self.write_link(link, io);
                self.unlink(link, &why, io);
            }
            Effect::OpenChannel { channel, resume } => {
                self.seat.peers.socket(SocketIn::Open { epoch, channel, resume }, io.trace);
            }
            Effect::Store(submit) => self.seat.peers.outbox(OutboxIn::Store { epoch, submit }, io.trace),
            Effect::LookAtMember(session) => {
                self.seat.peers.election(ElectionIn::LookAtMember { epoch, session }, io.trace);
            }
            Effect::Promote { to } => self.seat.peers.election(ElectionIn::Promote { to }, io.trace),
            Effect::Took { epoch, to } => self.seat.peers.election(ElectionIn::Took { epoch, to }, io.trace),
            Effect::Drained { last } => self.seat.peers.election(ElectionIn::Drained { last }, io.trace),
            Effect::Presence { session, presence } => {
                self.seat.observer.event(Event::PresenceChanged { session, presence });
            }
            Effect::Query(QueryFact::Asked { link, id, ask: Ask::Outbox(ask), trace, .. }) => {
                self.seat.peers.outbox(OutboxIn::Ask { epoch, link, id, ask }, trace);
            }
            Effect::Query(fact) => {
                if let Some(observation) = self.follows.then(|| observation(&fact)).flatten() {
                    let epoch = owned.epoch;
                    self.seat.peers.socket(SocketIn::Observed { epoch, observation }, io.trace);
                }
                owned.facts.push_back(fact);
            }
            Effect::Event(event) => self.seat.observer.event(event),
        }
    }

    /// The connection of `link` is gone; tells the machine.
    fn unlink(&mut self, link: LinkId, why: &str, io: &mut Io<'_, HubIn>) {
        let Some(owned) = &mut self.owned else { return };
        if owned.links.remove(&link).is_none() {
            return;
        }
        owned.awake.remove(&link);
        tracing::debug!(link = link.0, %why, "a link ended");
        if link == LOOPBACK {
            self.seat.peers.follower(FollowerIn::LoopbackLost { epoch: owned.epoch }, io.trace);
        }
        self.drive(Input::Unlinked { link }, io);
    }

    fn greeted(&mut self, result: Result<Box<Greeting>, String>, io: &mut Io<'_, HubIn>) {
        let Some(owned) = &mut self.owned else { return };
        owned.greeting -= 1;
        let greeting = match result {
            Ok(greeting) => *greeting,
            Err(why) => return self.seat.observer.event(Event::PeerRefused { why }),
        };
        let mut out = Outbound::new(greeting.writer);
        if let Some(refusal) = self.refusal(&greeting.hello) {
            let Hello { label, session, pid, .. } = &greeting.hello;
            let why =
                format!("{label} ({}), process {pid}: it does not know what the claim says", session.short());
            self.seat.observer.event(Event::PeerRefused { why });
            if out.push(&ToSession::Refused(refusal)).is_ok()
                && let Progress::Rest(rest) = out.write()
            {
                self.finishing += 1;
                io.complete(finish(rest));
            }
            return;
        }
        // An owner that was replaced welcomes nobody.
        if let Err((epoch, why)) = self.seat.reign.check() {
            return self.fenced(epoch, why, io);
        }
        hit("welcome");
        let Some(owned) = &mut self.owned else { return };
        let link = LinkId(owned.next_link);
        owned.next_link += 1;
        owned.links.insert(link, Sink::Remote(out));
        let epoch = owned.epoch;
        self.drive(Input::Linked { link, hello: greeting.hello, remote: true }, io);
        if self.take_frames(link, greeting.rest, io) {
            io.complete(read(epoch, link, greeting.reader));
        }
    }

    fn refusal(&self, hello: &Hello) -> Option<Refusal> {
        let owned = self.owned.as_ref()?;
        (hello.proof != owned.address.nonce).then_some(Refusal::Proof)
    }

    /// Hands frames to the machine. False when the link ended on the way.
    fn take_frames(&mut self, link: LinkId, frames: Vec<Bytes>, io: &mut Io<'_, HubIn>) -> bool {
        for frame in frames {
            match codec::decode::<ToHub>(&frame) {
                Ok(message) => self.message(link, message, io),
                Err(error) => {
                    self.refuse(link, &format!("a frame that cannot be read: {error}"), io);
                }
            }
            if self.owned.as_ref().is_none_or(|owned| !owned.links.contains_key(&link)) {
                return false;
            }
        }
        true
    }

    /// Hands a message to the machine. What a caller caused leaves a record, and what follows names that.
    fn message(&mut self, link: LinkId, mut message: ToHub, io: &mut Io<'_, HubIn>) {
        let mut caused = None;
        if let ToHub::Op { op, trace } = &mut message
            && *trace != Trace::NONE
        {
            let begun = io.begin(*trace);
            *trace = begun.own;
            caused = Some((begun, op.operation.key().clone()));
        }
        self.drive(Input::Message { link, message }, io);
        if let Some((begun, key)) = caused {
            io.note("op", Some(&key), begun);
        }
    }

    fn read(
        &mut self,
        link: LinkId,
        reader: FrameReader<ReadHalf>,
        result: Result<Vec<Bytes>, ReadError>,
        io: &mut Io<'_, HubIn>,
    ) {
        let Some(owned) = &self.owned else { return };
        if !owned.links.contains_key(&link) {
            return;
        }
        let epoch = owned.epoch;
        match result {
            Ok(frames) if frames.is_empty() => self.unlink(link, "the session closed the connection", io),
            Ok(frames) => {
                if self.take_frames(link, frames, io) {
                    io.complete(read(epoch, link, reader));
                }
            }
            Err(error @ ReadError::Io(_)) => self.unlink(link, &error.to_string(), io),
            Err(error @ (ReadError::TooLong(_) | ReadError::HalfFrame)) => {
                self.refuse(link, &error.to_string(), io);
            }
        }
    }

    /// A peer does not speak the protocol: its link is over, and nobody else's.
    fn refuse(&mut self, link: LinkId, why: &str, io: &mut Io<'_, HubIn>) {
        let info = self.owned.as_ref().and_then(|owned| owned.machine.links().find(|info| info.link == link));
        let who = info.map_or_else(String::new, |info| {
            format!("{} ({}), process {}: ", info.label, info.session.short(), info.pid)
        });
        self.seat.observer.event(Event::PeerRefused { why: format!("{who}{why}") });
        self.unlink(link, why, io);
    }

    fn write_all_awake(&mut self, io: &mut Io<'_, HubIn>) {
        while let Some(link) = self.owned.as_mut().and_then(|owned| owned.awake.pop_first()) {
            self.write_link(link, io);
        }
    }

    /// Writes pieces of the link's output until nothing is left or the socket takes no more.
    fn write_link(&mut self, link: LinkId, io: &mut Io<'_, HubIn>) {
        loop {
            let Some(owned) = &mut self.owned else { return };
            let epoch = owned.epoch;
            let Some(sink) = owned.links.get_mut(&link) else { return };
            match sink {
                Sink::Loopback => {
                    let Some(parts) = owned.machine.write(link, WRITE_MAX) else { return };
                    self.seat.peers.follower(FollowerIn::Loopback { epoch, parts }, io.trace);
                }
                Sink::Remote(out) => {
                    if !out.is_idle() {
                        return;
                    }
                    let Some(parts) = owned.machine.write(link, WRITE_MAX) else { return };
                    if let Err(error) = parts.iter().try_for_each(|part| out.push_part(part)) {
                        tracing::error!(%error, "an output of the hub does not fit the wire");
                        self.unlink(link, "an output did not fit the wire", io);
                        return;
                    }
                    match out.write() {
                        Progress::Done => {}
                        Progress::Busy => return,
                        Progress::Rest(rest) => {
                            io.complete(async move { HubIn::Wrote { epoch, link, result: rest.await } });
                            return;
                        }
                        Progress::Broken(error) => {
                            self.unlink(link, &error.to_string(), io);
                            return;
                        }
                    }
                }
            }
            owned.machine.handle(io.now, Input::Written { link }, &mut self.effects);
            self.carry_out(io);
        }
    }

    fn wrote(&mut self, link: LinkId, result: io::Result<WriteHalf>, io: &mut Io<'_, HubIn>) {
        let Some(owned) = &mut self.owned else { return };
        let Some(Sink::Remote(out)) = owned.links.get_mut(&link) else {
            if let Ok(half) = result {
                half.close();
            }
            return;
        };
        match result {
            Ok(half) => {
                out.resume(half);
                self.drive(Input::Written { link }, io);
                if let Some(owned) = &mut self.owned {
                    owned.awake.insert(link);
                }
            }
            Err(error) => self.unlink(link, &error.to_string(), io),
        }
    }

    fn fenced(&mut self, epoch: Epoch, why: String, io: &mut Io<'_, HubIn>) {
        self.seat.peers.election(ElectionIn::Fenced { epoch, why }, io.trace);
        self.owned = None;
        self.seat.peers.follower(FollowerIn::LoopbackLost { epoch }, io.trace);
    }

    fn is_current(&self, epoch: Epoch) -> bool {
        self.owned.as_ref().is_some_and(|owned| owned.epoch == epoch)
    }
}

impl Business for HubBusiness {
    const NAME: &'static str = "hub";
    type Input = HubIn;

    fn handle(&mut self, input: HubIn, io: &mut Io<'_, HubIn>) {
        if let Err((epoch, why)) = self.seat.reign.wake(io.now) {
            self.fenced(epoch, why, io);
        }
        match input {
            HubIn::Begin(begin) => self.begin(*begin, io),
            HubIn::End { epoch, close } => self.end(epoch, close, io),
            HubIn::LoopbackHello { epoch, hello } => {
                if let Some(owned) = self.owned.as_mut().filter(|owned| owned.epoch == epoch) {
                    owned.links.insert(LOOPBACK, Sink::Loopback);
                    self.drive(Input::Linked { link: LOOPBACK, hello, remote: false }, io);
                }
            }
            HubIn::Loopback { epoch, message } if self.is_current(epoch) => {
                self.message(LOOPBACK, message, io);
            }
            HubIn::Accepted { epoch, listener, result } if self.is_current(epoch) => {
                self.accepted(epoch, listener, result, io);
            }
            HubIn::Rebound { epoch, listener } if self.is_current(epoch) => {
                io.complete(accept(epoch, listener))
            }
            HubIn::Greeted { epoch, result } if self.is_current(epoch) => self.greeted(result, io),
            HubIn::Read { epoch, link, reader, result } if self.is_current(epoch) => {
                self.read(link, reader, result, io);
            }
            HubIn::Wrote { epoch, link, result } if self.is_current(epoch) => self.wrote(link, result, io),
            HubIn::ChannelOpened { epoch, channel, resumed } if self.is_current(epoch) => {
                self.drive(Input::ChannelOpened { channel, resumed }, io);
            }
            HubIn::Publish { epoch, channel, position, live, changes } if self.is_current(epoch) => {
                let trace = io.trace;
                self.drive(Input::Publish { channel, position, live, changes, trace }, io);
                self.unwritten += 1;
                if self.unwritten == PUBLISHED_PER_WRITE {
                    self.flush(io);
                }
            }
            HubIn::Connection { epoch, connection } if self.is_current(epoch) => {
                self.wire(&connection, io);
                self.drive(Input::Connection(connection), io);
            }
            HubIn::Stored { epoch, results } if self.is_current(epoch) => {
                self.drive(Input::Stored(results), io)
            }
            HubIn::Answer { epoch, link, id, answer } if self.is_current(epoch) => {
                self.drive(Input::Query(QueryWish::Answer { link, id, answer }), io);
            }
            HubIn::Adopted { epoch } if self.is_current(epoch) => self.drive(Input::Adopted, io),
            HubIn::MemberDead { epoch, session } if self.is_current(epoch) => {
                self.drive(Input::MemberDead(session), io);
            }
            HubIn::Drain { epoch, to } if self.is_current(epoch) => self.drive(Input::Drain { to }, io),
            HubIn::Resume { epoch } if self.is_current(epoch) => self.drive(Input::Resume, io),
            HubIn::PromoteRefused { why } => self.drive(Input::PromoteRefused { why }, io),
            HubIn::SendGo { to, last } => {
                self.drive(Input::SendGo { to, last }, io);
                self.flush(io);
                hit("go_sent");
            }
            HubIn::SendMoved { epoch, to } => self.drive(Input::SendMoved { epoch, to }, io),
            HubIn::Retire { reply } => self.retire(reply, io),
            HubIn::Retired { epoch, empty, reply } => {
                let current = self.owned.as_mut().filter(|owned| owned.epoch == epoch);
                let retired = empty && current.is_some();
                if let Some(owned) = current {
                    owned.retiring = retired;
                    if let Some(listener) = owned.parked.take_if(|_| !retired) {
                        io.complete(accept(epoch, listener));
                    }
                }
                // Whoever asked may have stopped waiting.
                let _ = reply.send(retired);
            }
            HubIn::Finished => {
                self.finishing -= 1;
                self.stop_if_finished(io);
            }
            HubIn::Stop => {
                self.stopping = true;
                self.stop_if_finished(io);
            }
            // Of a reign that is over.
            HubIn::Loopback { .. }
            | HubIn::Accepted { .. }
            | HubIn::Rebound { .. }
            | HubIn::Greeted { .. }
            | HubIn::Read { .. }
            | HubIn::Wrote { .. }
            | HubIn::ChannelOpened { .. }
            | HubIn::Publish { .. }
            | HubIn::Connection { .. }
            | HubIn::Stored { .. }
            | HubIn::Answer { .. }
            | HubIn::Adopted { .. }
            | HubIn::MemberDead { .. }
            | HubIn::Drain { .. }
            | HubIn::Resume { .. } => {}
        }
    }

    fn deadline(&self) -> Option<Time> {
        let owned = self.owned.as_ref()?;
        let engine = owned.queries.as_ref().and_then(Queries::deadline);
        earliest(owned.machine.deadline(), engine)
    }

    fn due(&mut self, io: &mut Io<'_, HubIn>) {
        if let Err((epoch, why)) = self.seat.reign.wake(io.now) {
            return self.fenced(epoch, why, io);
        }
        self.drive(Input::Deadline, io);
        let Some(owned) = &mut self.owned else { return };
        let is_due = |queries: &&mut Queries| queries.deadline().is_some_and(|due| due <= io.now);
        if let Some(queries) = owned.queries.as_mut().filter(is_due) {
            let mut output = Output::default();
            queries.due(io.now, &mut output);
            owned.engaged = true;
            self.fulfil(output, io);
            if let Some(owned) = &mut self.owned {
                owned.engaged = false;
            }
            self.engage(io);
        }
    }

    fn flush(&mut self, io: &mut Io<'_, HubIn>) {
        self.unwritten = 0;
        self.write_all_awake(io);
        self.seat.pace.congested(self.owned.as_ref().is_some_and(|owned| owned.machine.is_congested()));
    }
}

impl HubBusiness {
    fn retire(&mut self, reply: oneshot::Sender<bool>, io: &mut Io<'_, HubIn>) {
        let alone = |owned: &&mut Owned| owned.greeting == 0 && owned.machine.is_alone();
        let Some(owned) = self.owned.as_mut().filter(alone) else {
            let _ = reply.send(false);
            return;
        };
        owned.retiring = true;
        let epoch = owned.epoch;
        self.seat.peers.outbox(OutboxIn::Retire { epoch, reply }, io.trace);
    }

    fn stop_if_finished(&mut self, io: &mut Io<'_, HubIn>) {
        if self.stopping && self.finishing == 0 {
            self.seat.peers.follower(FollowerIn::Stop, io.trace);
        }
    }

    fn accepted(
        &mut self,
        epoch: Epoch,
        listener: Listener,
        result: Result<Connection, AcceptError>,
        io: &mut Io<'_, HubIn>,
    ) {
        let Some(owned) = &mut self.owned else { return };
        if owned.retiring {
            // The newcomer sees the end of its connection, and tries again: the lock is free then, or somebody listens.
            owned.parked = Some(listener);
            return;
        }
        match result {
            Ok(connection) if owned.greeting < UNAUTHENTICATED_MAX => {
                self.refused = None;
                owned.greeting += 1;
                io.complete(async move { HubIn::Greeted { epoch, result: greet(connection).await } });
            }
            Ok(connection) => {
                self.seat.observer.event(Event::LimitReached { limit: "UNAUTHENTICATED_MAX" });
                self.turn_away(connection, io);
            }
            Err(AcceptError::NoDescriptors(connection)) => {
                // It lasts for many tries.
                let limit = "RLIMIT_NOFILE";
                if self.refused.replace(limit.to_owned()).as_deref() != Some(limit) {
                    self.seat.observer.event(Event::LimitReached { limit });
                }
                self.turn_away(*connection, io);
            }
            Err(error) => {
                // One trouble of the listener lasts for many tries.
                let why = error.to_string();
                if self.refused.as_ref() != Some(&why) {
                    self.seat.observer.event(Event::PeerRefused { why: why.clone() });
                }
                self.refused = matches!(error, AcceptError::Listener(_)).then_some(why);
            }
        }
        io.complete(accept(epoch, listener));
    }
}

impl HubBusiness {
    /// Says that too many are at the door. Silence would look like a stopped owner.
    fn turn_away(&mut self, connection: Connection, io: &mut Io<'_, HubIn>) {
        let (_, writer) = connection.into_split();
        let mut out = Outbound::new(writer);
        if out.push(&ToSession::Busy { retry_ms: BUSY_RETRY_MS }).is_ok()
            && let Progress::Rest(rest) = out.write()
        {
            self.finishing += 1;
            io.complete(finish(rest));
        }
    }
}

/// Writes the last words of a link and closes it.
async fn finish(rest: impl Future<Output = io::Result<WriteHalf>>) -> HubIn {
    if let Ok(half) = rest.await {
        half.close();
    }
    HubIn::Finished
}

async fn accept(epoch: Epoch, listener: Listener) -> HubIn {
    let result = listener.accept().await;
    if matches!(result, Err(AcceptError::Listener(_))) {
        // Out of descriptors, for example: do not spin.
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
    HubIn::Accepted { epoch, listener, result }
}

async fn greet(connection: Connection) -> Result<Box<Greeting>, String> {
    let peer = connection.peer_pid().map_or_else(String::new, |pid| format!("process {pid}: "));
    hear(connection).await.map_err(|why| peer + &why)
}

/// What a newcomer says first.
async fn hear(connection: Connection) -> Result<Box<Greeting>, String> {
    let (read, writer) = connection.into_split();
    let mut reader = FrameReader::new(read);
    let mut rest = Vec::new();
    let n = tokio::time::timeout(HELLO_TIMEOUT, reader.read_batch(&mut rest))
        .await
        .map_err(|_| format!("no Hello within {} ms", HELLO_TIMEOUT.as_millis()))?
        .map_err(|error| error.to_string())?;
    if n == 0 {
        return Err("closed before Hello".to_owned());
    }
    let ToHub::Hello(hello) = codec::decode::<ToHub>(&rest.remove(0)).map_err(|error| error.to_string())?
    else {
        return Err("the first message was not Hello".to_owned());
    };
    reader.raise_cap();
    Ok(Box::new(Greeting { hello, rest, reader, writer }))
}

async fn read(epoch: Epoch, link: LinkId, mut reader: FrameReader<ReadHalf>) -> HubIn {
    let mut frames = Vec::new();
    let result = reader.read_batch(&mut frames).await.map(|_| frames);
    HubIn::Read { epoch, link, reader, result }
}
