//! Socket actor: the live upstream connections of a reign.

use std::{collections::BTreeMap, fmt, sync::Arc};

use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, Input},
    protocol::{CloseInfo, Frame, Protocol},
    random::Random,
    route::{Message, Router},
    websocket::{WebSocketJson, WebSocketSpec},
};
use paceline_proto::{
    connection::ConnectionState,
    event::Event,
    hub::ChannelSpec,
    id::{Channel, Epoch, Position, SessionId},
    time::{Time, earliest},
};
use paceline_upstream::websocket::{self, Remote, WebSocket};
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
    /// How to reach it and read its messages.
    pub spec: WebSocketSpec,
    /// Delays between attempts.
    pub backoff: BackoffSpec,
    /// What its messages change.
    pub router: Router,
}

impl Upstream {
    /// The channel of the upstream, as the hub opens it.
    pub fn channel(&self) -> ChannelSpec {
        let caps = WebSocketJson::new(self.spec.clone()).caps();
        ChannelSpec { channel: Channel(self.name.clone()), resume: caps.resume, dense: caps.dense }
    }
}

/// Messages of the socket actor.
pub(crate) enum SocketIn {
    /// Connect the channel, or connect it again, to continue after `resume`.
    Open { epoch: Epoch, channel: Channel, resume: Option<Position> },
    /// An attempt ended.
    Connected { channel: Channel, attempt: u64, result: Result<(WebSocket, Remote), CloseInfo> },
    /// Frames came, or the connection ended behind them.
    Read { channel: Channel, attempt: u64, socket: WebSocket, frames: Vec<Frame>, end: Option<CloseInfo> },
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
            Self::Connected { .. } => "connected",
            Self::Read { .. } => "read",
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
    /// The open transport of the newest attempt.
    remote: Option<(u64, Remote)>,
    /// The newest attempt that has no transport yet; it is given up when this is dropped.
    attempt: Option<(u64, oneshot::Sender<()>)>,
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.machine.fmt(f)
    }
}

pub(crate) struct SocketBusiness {
    seat: Seat,
    epoch: Epoch,
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
            .map(|(upstream, n)| {
                let protocol = Box::new(WebSocketJson::new(upstream.spec));
                let backoff = Backoff::new(upstream.backoff, Random::new(seed.wrapping_add(n)));
                let machine = Connection::new(upstream.name.clone(), protocol, backoff);
                (
                    Channel(upstream.name),
                    Line { machine, router: upstream.router, remote: None, attempt: None },
                )
            })
            .collect();
        Self {
            seat,
            epoch: Epoch::NONE,
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
                io.complete(async move {
                    let given_up = async { drop(dropped.await) };
                    let result = websocket::connect_unless(&request, given_up).await;
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
            Effect::Drop { attempt } => {
                line.attempt.take_if(|(current, _)| *current == attempt);
                if let Some((_, remote)) = line.remote.take_if(|(current, _)| *current == attempt) {
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
            Effect::Unusable(why) => refused(why),
            Effect::Show(connection) => {
                let upstream = channel.0.to_string();
                let state = describe(&connection.state);
                self.seat.observer.event(Event::UpstreamChanged { upstream, state });
                self.seat.peers.hub(HubIn::Connection { epoch, connection }, io.trace);
            }
        }
    }

    fn connected(
        &mut self,
        channel: Channel,
        attempt: u64,
        result: Result<(WebSocket, Remote), CloseInfo>,
        io: &mut Io<'_, SocketIn>,
    ) {
        match result {
            Ok((socket, remote)) => {
                let Some(line) = self.lines.get_mut(&channel) else { return };
                let wanted = line.machine.awaits(attempt);
                if wanted {
                    line.remote = Some((attempt, remote));
                    self.drive(&channel, Input::Opened { attempt }, io);
                }
                // An unwanted transport loses its remote here, which closes it.
                io.complete(read(channel, attempt, socket, self.seat.pace.clone()));
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
                    self.drive(&channel, Input::Open { resume }, io);
                }
            }
            SocketIn::Connected { channel, attempt, result } => self.connected(channel, attempt, result, io),
            SocketIn::Read { channel, attempt, socket, frames, end } => {
                for frame in frames {
                    self.drive(&channel, Input::Frame { attempt, frame }, io);
                }
                match end {
                    None => io.complete(read(channel, attempt, socket, self.seat.pace.clone())),
                    Some(close) => {
                        drop(socket);
                        self.transports -= 1;
                        if let Some(line) = self.lines.get_mut(&channel) {
                            line.remote.take_if(|(current, _)| *current == attempt);
                        }
                        self.drive(&channel, Input::Ended { attempt, close }, io);
                        self.all_closed(io);
                    }
                }
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

async fn read(channel: Channel, attempt: u64, mut socket: WebSocket, pace: Pace) -> SocketIn {
    pace.wait().await;
    let (frames, end) = socket.next().await;
    SocketIn::Read { channel, attempt, socket, frames, end }
}
