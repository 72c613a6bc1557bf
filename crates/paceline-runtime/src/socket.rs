//! Socket actor: the live upstream connections of a reign.

use std::{collections::BTreeMap, fmt, sync::Arc};

use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, Input},
    interest::{Interest, Observation},
    protocol::{Adapter, Answer, Call, Caps, CloseInfo, Frame},
    random::Random,
    route::{Message, Router},
};
use paceline_proto::{
    connection::ConnectionState,
    event::Event,
    hub::{ChannelSpec, QueryFact, Resume},
    id::{Channel, Epoch, Position, SessionId},
    time::{Time, earliest},
};
use paceline_upstream::{
    http::{self, HttpClient},
    transport::{self, Remote, Transport},
};
use tokio::sync::oneshot;

use crate::{
    hub::HubIn,
    outbox::OutboxIn,
    peers::Pace,
    shell::{Business, Describe, Io},
    thread::Seat,
};

/// A declared upstream.
#[derive(Debug, Clone)]
pub struct Upstream {
    /// Its name, which is also its channel's.
    pub name: Arc<str>,
    /// How to reach it and read its messages, and what else leads to the same messages and positions, in the order of
    /// preference.
    pub adapters: Vec<Arc<dyn Adapter>>,
    /// Delays between attempts.
    pub backoff: BackoffSpec,
    /// What its messages change.
    pub router: Router,
}

impl Upstream {
    /// Whether its channels depend on what sessions subscribe to.
    pub(crate) fn follows_sessions(&self) -> bool {
        Interest::new(&self.router).follows_sessions()
    }

    /// The channel of the upstream, as the hub opens it.
    pub fn channel(&self) -> ChannelSpec {
        let caps = self.adapters.first().map_or(Caps::of(Resume::None), |it| it.machine().caps());
        ChannelSpec { channel: Channel(self.name.clone()), resume: caps.resume, dense: caps.dense }
    }
}

/// Messages of the socket actor.
pub(crate) enum SocketIn {
    /// Connect the channel, or connect it again, to continue after `resume`.
    Open { epoch: Epoch, channel: Channel, resume: Option<Position> },
    /// What a session subscribes to changed.
    Observed { epoch: Epoch, observation: Observation },
    /// An attempt ended.
    Connected { channel: Channel, attempt: u64, result: Result<(Transport, Remote), CloseInfo> },
    /// Frames came, or the connection ended behind them.
    Read { channel: Channel, attempt: u64, transport: Transport, frames: Vec<Frame>, end: Option<CloseInfo> },
    /// A call was answered; `None` = it was given up.
    Answered { channel: Channel, attempt: u64, answer: Option<Answer> },
    /// The reign is over.
    Close { epoch: Epoch },
    /// Close everything for a handover, then let the outbox flush.
    Drain { epoch: Epoch, to: SessionId },
    /// The handover failed: channels may be opened again.
    Resume { epoch: Epoch },
    /// The session left: stop the outbox when everything is closed.
    Stop,
}

impl Describe for SocketIn {
    fn kind(&self) -> &'static str {
        match self {
            Self::Open { .. } => "open",
            Self::Observed { .. } => "observed",
            Self::Connected { .. } => "connected",
            Self::Read { .. } => "read",
            Self::Answered { .. } => "answered",
            Self::Close { .. } => "close",
            Self::Drain { .. } => "drain",
            Self::Resume { .. } => "resume",
            Self::Stop => "stop",
        }
    }
}

struct Line {
    machine: Connection,
    router: Router,
    interest: Interest,
    /// The open transport of the newest attempt.
    remote: Option<(u64, Remote)>,
    /// The newest attempt that has no transport yet; it is given up when this is dropped.
    attempt: Option<(u64, oneshot::Sender<()>)>,
    /// Calls under way, by attempt and id; given up when dropped.
    calls: BTreeMap<(u64, u64), oneshot::Sender<()>>,
}

impl Line {
    /// The attempt has no transport any more.
    fn forget(&mut self, attempt: u64) -> Option<Remote> {
        self.attempt.take_if(|(current, _)| *current == attempt);
        self.calls.retain(|(of, _), _| *of != attempt);
        self.remote.take_if(|(current, _)| *current == attempt).map(|(_, remote)| remote)
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.machine.fmt(f)
    }
}

pub(crate) struct SocketBusiness {
    seat: Seat,
    client: HttpClient,
    epoch: Epoch,
    /// The reign whose sessions are known.
    observed: Epoch,
    lines: BTreeMap<Channel, Line>,
    /// Transports that are open or closing: until they ended, an exclusive server has a consumer.
    transports: usize,
    draining: Option<SessionId>,
    /// The reign that drains: its channels stay closed.
    quiet: Option<Epoch>,
    /// The last reign that is over.
    ended: Epoch,
    stopping: bool,
    effects: Vec<Effect>,
}

impl SocketBusiness {
    pub(crate) fn new(seat: Seat, upstreams: Vec<Upstream>, seed: u64) -> Self {
        let lines = upstreams
            .into_iter()
            .zip(0..)
            .filter_map(|(upstream, n)| {
                let Upstream { name, adapters, backoff, router } = upstream;
                let backoff = Backoff::new(backoff, Random::new(seed.wrapping_add(n)));
                let mut protocols = adapters.iter().map(|adapter| adapter.machine());
                let first = Connection::new(name.clone(), protocols.next()?, backoff);
                let machine = protocols.fold(first, Connection::or_else);
                let interest = Interest::new(&router);
                let line =
                    Line { machine, router, interest, remote: None, attempt: None, calls: BTreeMap::new() };
                Some((Channel(name), line))
            })
            .collect();
        Self {
            seat,
            client: HttpClient::default(),
            epoch: Epoch::NONE,
            observed: Epoch::NONE,
            lines,
            transports: 0,
            draining: None,
            quiet: None,
            ended: Epoch::NONE,
            stopping: false,
            effects: Vec::new(),
        }
    }

    fn drive(&mut self, channel: &Channel, input: Input, io: &mut Io<'_, SocketIn>) {
        let Some(line) = self.lines.get_mut(channel) else { return };
        line.machine.handle(io.now, input, &mut self.effects);
        for effect in std::mem::take(&mut self.effects) {
            self.effect(channel, effect, io);
        }
    }

    fn effect(&mut self, channel: &Channel, effect: Effect, io: &mut Io<'_, SocketIn>) {
        let epoch = self.epoch;
        let Some(line) = self.lines.get_mut(channel) else { return };
        let refused = |why: String| {
            let upstream = channel.0.to_string();
            self.seat.observer.event(Event::UpstreamMessageRefused { upstream, why });
        };
        match effect {
            Effect::Connect { attempt, request } => {
                self.transports += 1;
                let channel = channel.clone();
                let (kept, dropped) = oneshot::channel();
                line.attempt = Some((attempt, kept));
                let client = self.client.clone();
                io.complete(async move {
                    let given_up = async { drop(dropped.await) };
                    let result = transport::connect_unless(&client, &request, given_up).await;
                    SocketIn::Connected { channel, attempt, result }
                });
            }
            Effect::Send(frame) => {
                if let Some((_, remote)) = &line.remote
                    && !remote.send(frame)
                {
                    tracing::debug!(upstream = %channel.0, "the upstream takes nothing");
                }
            }
            Effect::Call { attempt, call } => {
                self.transports += 1;
                let (kept, dropped) = oneshot::channel();
                line.calls.insert((attempt, call.id), kept);
                io.complete(answer(self.client.clone(), channel.clone(), attempt, call, dropped));
            }
            Effect::Drop { attempt } => {
                if let Some(remote) = line.forget(attempt) {
                    remote.close();
                }
            }
            Effect::Opened { resumed } => {
                self.seat.pace.opened();
                self.seat
                    .peers
                    .hub(HubIn::ChannelOpened { epoch, channel: channel.clone(), resumed }, io.trace);
            }
            Effect::Message { value, raw, position, live } => {
                match line.router.changes(Message { value: &value, raw: &raw }) {
                    Ok(changes) => {
                        // Also without a change: the position moves.
                        let channel = channel.clone();
                        let publish = HubIn::Publish { epoch, channel, position, live, changes };
                        self.seat.peers.hub(publish, io.cause());
                    }
                    Err(error) => refused(error.to_string()),
                }
            }
            Effect::Moved(position) => {
                let (channel, position, changes) = (channel.clone(), Some(position), Vec::new());
                let publish = HubIn::Publish { epoch, channel, position, live: true, changes };
                self.seat.peers.hub(publish, io.cause());
            }
            Effect::Unusable(why) => refused(why),
            Effect::Show(connection) => {
                let upstream = channel.0.to_string();
                let state = describe(&connection.state);
                self.seat.observer.event(Event::UpstreamChanged { upstream, state });
                self.seat.peers.hub(HubIn::Connection { epoch, connection }, io.trace);
            }
        }
    }

    fn observe(&mut self, epoch: Epoch, observation: &Observation, io: &mut Io<'_, SocketIn>) {
        self.begin(epoch);
        let mut changed = Vec::new();
        for (channel, line) in &mut self.lines {
            if line.interest.take(observation) {
                changed.push((channel.clone(), line.interest.channels()));
            }
        }
        for (channel, wanted) in changed {
            self.drive(&channel, Input::Channels(wanted), io);
        }
    }

    /// What sessions of another reign subscribed to is forgotten.
    fn begin(&mut self, epoch: Epoch) {
        if std::mem::replace(&mut self.observed, epoch) != epoch {
            self.lines.values_mut().for_each(|line| line.interest.clear());
        }
    }

    fn connected(
        &mut self,
        channel: Channel,
        attempt: u64,
        result: Result<(Transport, Remote), CloseInfo>,
        io: &mut Io<'_, SocketIn>,
    ) {
        match result {
            Ok((transport, remote)) => {
                let Some(line) = self.lines.get_mut(&channel) else { return };
                let wanted = line.machine.awaits(attempt);
                if wanted {
                    line.remote = Some((attempt, remote));
                    let head = transport.head();
                    self.drive(&channel, Input::Opened { attempt, head }, io);
                }
                // An unwanted transport loses its remote here, which closes it.
                io.complete(read(channel, attempt, transport, self.seat.pace.clone()));
            }
            Err(close) => {
                self.transports -= 1;
                self.drive(&channel, Input::Ended { attempt, close }, io);
                self.all_closed(io);
            }
        }
    }

    fn all_closed(&mut self, io: &mut Io<'_, SocketIn>) {
        if self.transports > 0 {
            return;
        }
        if let Some(to) = self.draining.take() {
            self.seat.peers.outbox(OutboxIn::Drain { epoch: self.epoch, to }, io.trace);
        }
        if std::mem::take(&mut self.stopping) {
            self.seat.peers.outbox(OutboxIn::Stop, io.trace);
        }
    }

    fn close_all(&mut self, io: &mut Io<'_, SocketIn>) {
        let channels: Vec<Channel> = self.lines.keys().cloned().collect();
        for channel in channels {
            self.drive(&channel, Input::Close, io);
        }
    }
}

impl Business for SocketBusiness {
    const NAME: &'static str = "socket";
    type Input = SocketIn;

    fn handle(&mut self, input: SocketIn, io: &mut Io<'_, SocketIn>) {
        match input {
            SocketIn::Open { epoch, channel, resume } => {
                // The hub may not have heard yet that its reign is over, or handed over.
                if epoch > self.ended && self.quiet != Some(epoch) {
                    self.epoch = epoch;
                    self.begin(epoch);
                    let wanted = self.lines.get(&channel).map(|line| line.interest.channels());
                    self.drive(&channel, Input::Channels(wanted.unwrap_or_default()), io);
                    self.drive(&channel, Input::Open { resume }, io);
                }
            }
            SocketIn::Observed { epoch, observation } => {
                if epoch >= self.observed {
                    self.observe(epoch, &observation, io);
                }
            }
            SocketIn::Connected { channel, attempt, result } => self.connected(channel, attempt, result, io),
            SocketIn::Read { channel, attempt, transport, frames, end } => {
                for frame in frames {
                    self.drive(&channel, Input::Frame { attempt, frame }, io);
                }
                match end {
                    None => io.complete(read(channel, attempt, transport, self.seat.pace.clone())),
                    Some(close) => {
                        drop(transport);
                        self.transports -= 1;
                        if let Some(line) = self.lines.get_mut(&channel) {
                            line.forget(attempt);
                        }
                        self.drive(&channel, Input::Ended { attempt, close }, io);
                        self.all_closed(io);
                    }
                }
            }
            SocketIn::Answered { channel, attempt, answer } => {
                self.transports -= 1;
                if let Some(answer) = answer {
                    if let Some(line) = self.lines.get_mut(&channel) {
                        line.calls.remove(&(attempt, answer.call));
                    }
                    self.drive(&channel, Input::Frame { attempt, frame: Frame::Answer(answer) }, io);
                }
                self.all_closed(io);
            }
            SocketIn::Close { epoch } => {
                self.ended = self.ended.max(epoch);
                if epoch == self.epoch {
                    self.draining = None;
                    self.close_all(io);
                }
            }
            SocketIn::Resume { epoch } => {
                // The hub opens its channels again when it hears of it, which is later.
                self.quiet.take_if(|quiet| *quiet == epoch);
                self.draining = None;
            }
            SocketIn::Drain { epoch, to } => {
                self.epoch = epoch;
                self.quiet = Some(epoch);
                self.draining = Some(to);
                self.close_all(io);
                self.all_closed(io);
            }
            SocketIn::Stop => {
                self.stopping = true;
                self.close_all(io);
                self.all_closed(io);
            }
        }
    }

    fn deadline(&self) -> Option<Time> {
        self.lines.values().fold(None, |soonest, line| earliest(soonest, line.machine.deadline()))
    }

    fn due(&mut self, io: &mut Io<'_, SocketIn>) {
        let now = io.now;
        let due = |line: &Line| line.machine.deadline().is_some_and(|at| at <= now);
        let channels: Vec<Channel> =
            self.lines.iter().filter(|(_, line)| due(line)).map(|(channel, _)| channel.clone()).collect();
        for channel in channels {
            self.drive(&channel, Input::Deadline, io);
        }
    }
}

/// What it says of what sessions subscribe to.
pub(crate) fn observation(fact: &QueryFact) -> Option<Observation> {
    match fact {
        QueryFact::Observed { session, key } => {
            Some(Observation::Observed { session: *session, key: key.clone() })
        }
        QueryFact::Unobserved { session, key } => {
            Some(Observation::Unobserved { session: *session, key: key.clone() })
        }
        QueryFact::Presence { session, presence: None } => Some(Observation::Gone(*session)),
        QueryFact::Presence { presence: Some(_), .. }
        | QueryFact::Began
        | QueryFact::Options { .. }
        | QueryFact::Declared { .. }
        | QueryFact::Changed { .. }
        | QueryFact::Removed { .. }
        | QueryFact::Invalidated { .. }
        | QueryFact::Asked { .. }
        | QueryFact::Fetched { .. } => None,
    }
}

fn describe(state: &ConnectionState) -> String {
    match state {
        ConnectionState::Connecting => "connecting".to_owned(),
        ConnectionState::Live => "live".to_owned(),
        ConnectionState::Degraded => "degraded".to_owned(),
        ConnectionState::Offline => "offline".to_owned(),
        ConnectionState::Paused => "paused".to_owned(),
        ConnectionState::Stopped(why) => format!("stopped: {why}"),
    }
}

async fn read(channel: Channel, attempt: u64, mut transport: Transport, pace: Pace) -> SocketIn {
    pace.wait().await;
    let (frames, end) = transport.next().await;
    SocketIn::Read { channel, attempt, transport, frames, end }
}

async fn answer(
    client: HttpClient,
    channel: Channel,
    attempt: u64,
    call: Call,
    given_up: oneshot::Receiver<()>,
) -> SocketIn {
    let answer = tokio::select! {
        result = http::call(&client, &call) => Some(Answer { call: call.id, result }),
        _ = given_up => None,
    };
    SocketIn::Answered { channel, attempt, answer }
}
