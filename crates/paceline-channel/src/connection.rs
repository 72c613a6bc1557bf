//! One upstream's life: attempts, reconnects, positions, transports in turn. Drives a [`Protocol`] and never touches a
//! socket.
//!
//! What it says about continuity: every [`Effect::Opened`] tells whether the messages behind it join those before. It is
//! said when a transport opens, and again, with `resumed: false`, before a message that shows a hole: another history,
//! or, where positions are dense, a number that is not the next.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use paceline_proto::{
    connection::{Connection as Shown, ConnectionState},
    id::Position,
    time::{Time, earliest},
};
use serde_json::Value;

use crate::{
    backoff::Backoff,
    protocol::{
        Call, Channels, ClientEvent, CloseAction, CloseInfo, ConnectRequest, Frame, Head, Out, Outgoing,
        Protocol, TOO_LONG,
    },
};

/// A network that comes and goes makes us hurry at most once in this time.
pub const HURRY_INTERVAL: Duration = Duration::from_secs(5);

/// While a fallback serves, the preferred transport is tried again after so long, or up to twice as long. Where a server
/// admits one consumer there is no other way to try than to leave what works for a moment.
pub const PROBE_AFTER: Duration = Duration::from_secs(5 * 60);

/// Facts the machine is told. Answers carry the token of the attempt; stale ones change nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// Connect, or reconnect, to continue after `resume`; `None` = from now.
    Open {
        /// The position to resume at.
        resume: Option<Position>,
    },
    /// Disconnect and stay so.
    Close,
    /// The transport is open.
    Opened {
        /// Token.
        attempt: u64,
        /// What the server answered.
        head: Head,
    },
    /// The transport could not be opened, or closed.
    Ended {
        /// Token.
        attempt: u64,
        /// How.
        close: CloseInfo,
    },
    /// A frame came.
    Frame {
        /// Token.
        attempt: u64,
        /// The frame.
        frame: Frame,
    },
    /// The channels wanted at the upstream.
    Channels(Channels),
    /// A session sends an event through the upstream.
    Publish(ClientEvent),
    /// The network, or a user, came back: do not wait any longer. Heeded once in five seconds.
    NetworkUp,
    /// The deadline passed.
    Deadline,
}

/// Wishes of the machine.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Open a transport.
    Connect {
        /// Token for the answers.
        attempt: u64,
        /// How.
        request: ConnectRequest,
    },
    /// Send on the open transport.
    Send(Outgoing),
    /// Make a call beside it; the answer is a frame of the attempt. Given up with the attempt.
    Call {
        /// Token.
        attempt: u64,
        /// What to ask.
        call: Call,
    },
    /// Drop the transport or attempt; no answer.
    Drop {
        /// Token.
        attempt: u64,
    },
    /// Messages follow; `resumed` = without a hole after the position asked for. Said again when a message disproves it.
    Opened {
        /// Nothing is missing.
        resumed: bool,
    },
    /// A message, in order.
    Message {
        /// Parsed.
        value: Value,
        /// As it came.
        raw: Bytes,
        /// Where it stands.
        position: Option<Position>,
        /// After the snapshot that the server sends on connect.
        live: bool,
    },
    /// The channel stands here now, without a message.
    Moved(Position),
    /// The state to show.
    Show(Shown),
    /// A message that cannot be used.
    Unusable(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Closed,
    Connecting { attempt: u64 },
    Open { attempt: u64 },
    Waiting { until: Time },
    Stopped,
}

/// The machine.
#[derive(Debug)]
pub struct Connection {
    upstream: Arc<str>,
    /// In the order of preference, not empty.
    protocols: Vec<Box<dyn Protocol>>,
    /// Index of the one in use.
    active: usize,
    channels: Channels,
    backoff: Backoff,
    phase: Phase,
    attempts: u64,
    position: Option<Position>,
    /// What the opening means for continuity has been told.
    joined: bool,
    /// Transports in a row that cannot be used; when all cannot, it is over.
    stopped: usize,
    /// The next message is said to join the last one: a hole before it must be told.
    vouched: bool,
    /// Past the snapshot, if there is one.
    live: bool,
    hurried: Option<Time>,
    /// When to try the preferred transport again.
    probe_at: Option<Time>,
    /// The transport to go back to if the preferred one is no better than before.
    probed_from: Option<usize>,
    outs: Vec<Out>,
}

impl Connection {
    /// Closed.
    pub fn new(upstream: Arc<str>, protocol: Box<dyn Protocol>, backoff: Backoff) -> Self {
        Self {
            upstream,
            protocols: vec![protocol],
            active: 0,
            channels: Channels::new(),
            backoff,
            phase: Phase::Closed,
            attempts: 0,
            position: None,
            joined: false,
            stopped: 0,
            vouched: false,
            live: false,
            hurried: None,
            probe_at: None,
            probed_from: None,
            outs: Vec::new(),
        }
    }

    /// Adds another way to the same messages and positions, tried in its turn when those before it fail.
    #[must_use]
    pub fn or_else(mut self, protocol: Box<dyn Protocol>) -> Self {
        self.protocols.push(protocol);
        self
    }

    /// Handles one fact.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Open { resume } => {
                self.position = resume;
                self.stopped = 0;
                self.probed_from = None;
                self.drop_transport(now, out);
                self.connect(out);
            }
            Input::Close => {
                self.drop_transport(now, out);
                self.phase = Phase::Closed;
                self.show(ConnectionState::Paused, out);
            }
            Input::Opened { attempt, head } if self.phase == (Phase::Connecting { attempt }) => {
                self.opened(now, attempt, &head, out)
            }
            Input::Ended { attempt, close } if self.is_current(attempt) => self.ended(now, &close, out),
            Input::Frame { attempt, frame } if self.phase == (Phase::Open { attempt }) => {
                self.protocols[self.active].on_frame(now, frame, &mut self.outs);
                self.carry_out(now, out);
            }
            Input::Channels(wanted) => {
                self.protocols[self.active].set_channels(&wanted, &mut self.outs);
                self.channels = wanted;
                self.carry_out(now, out);
            }
            Input::Publish(event) => {
                if let Err(error) = self.protocols[self.active].publish(event, &mut self.outs) {
                    out.push(Effect::Unusable(format!("an event is not sent: {error}")));
                }
                self.carry_out(now, out);
            }
            Input::NetworkUp => self.hurry(now, out),
            Input::Deadline => self.deadline_passed(now, out),
            // Of an attempt that was dropped.
            Input::Opened { .. } | Input::Ended { .. } | Input::Frame { .. } => {}
        }
    }

    /// When [`Input::Deadline`] is due.
    pub fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Open { .. } => {
                let own = earliest(self.protocols[self.active].deadline(), self.backoff.settles_at());
                earliest(own, self.probe_at)
            }
            Phase::Closed | Phase::Connecting { .. } | Phase::Stopped => None,
        }
    }

    /// Whether a transport is open or being opened.
    pub const fn is_active(&self) -> bool {
        matches!(self.phase, Phase::Connecting { .. } | Phase::Open { .. })
    }

    /// Whether the attempt's transport is still wanted.
    pub fn awaits(&self, attempt: u64) -> bool {
        self.phase == (Phase::Connecting { attempt })
    }

    fn is_current(&self, attempt: u64) -> bool {
        self.phase == (Phase::Connecting { attempt }) || self.phase == (Phase::Open { attempt })
    }

    fn connect(&mut self, out: &mut Vec<Effect>) {
        self.attempts += 1;
        let attempt = self.attempts;
        self.phase = Phase::Connecting { attempt };
        let request = self.protocols[self.active].request(self.position.as_ref());
        out.push(Effect::Show(self.shown(ConnectionState::Connecting, None)));
        out.push(Effect::Connect { attempt, request });
    }

    fn hurry(&mut self, now: Time, out: &mut Vec<Effect>) {
        let lately = self.hurried.is_some_and(|hurried| now.since(hurried) < HURRY_INTERVAL);
        if matches!(self.phase, Phase::Waiting { .. }) && !lately {
            self.hurried = Some(now);
            self.connect(out);
        }
    }

    fn drop_transport(&mut self, now: Time, out: &mut Vec<Effect>) {
        if let Phase::Connecting { attempt } | Phase::Open { attempt } = self.phase {
            out.push(Effect::Drop { attempt });
            self.phase = Phase::Closed;
            self.probe_at = None;
            // The protocol forgets the transport; what to do next is decided here.
            self.protocols[self.active].on_close(&CloseInfo::default());
            self.backoff.closed(now);
        }
    }

    fn opened(&mut self, now: Time, attempt: u64, head: &Head, out: &mut Vec<Effect>) {
        self.phase = Phase::Open { attempt };
        self.backoff.opened(now);
        self.joined = false;
        self.vouched = false;
        self.live = false;
        self.protocols[self.active].on_open(now, head, &mut self.outs);
        self.carry_out(now, out);
        if !self.live && self.phase == (Phase::Open { attempt }) {
            // A snapshot comes first, or a word of the server's.
            self.show(ConnectionState::Degraded, out);
        }
    }

    fn joined(&mut self, resumed: bool, out: &mut Vec<Effect>) {
        self.joined = true;
        self.vouched = resumed;
        out.push(Effect::Opened { resumed });
    }

    fn carry_out(&mut self, now: Time, out: &mut Vec<Effect>) {
        for item in std::mem::take(&mut self.outs) {
            match item {
                Out::Send(frame) => out.push(Effect::Send(frame)),
                Out::Call(call) => {
                    if let Phase::Open { attempt } = self.phase {
                        out.push(Effect::Call { attempt, call });
                    }
                }
                Out::Joined { resumed } => self.joined(resumed, out),
                Out::Message { value, raw, position, live } => self.message(value, raw, position, live, out),
                Out::Moved(position) => {
                    if self.advance(&position, out) {
                        out.push(Effect::Moved(position));
                    }
                }
                Out::Live => {
                    self.stopped = 0;
                    self.probed_from = None;
                    if self.active > 0 && self.probe_at.is_none() {
                        self.probe_at = Some(now + self.backoff.between(PROBE_AFTER, PROBE_AFTER * 2));
                    }
                    if !std::mem::replace(&mut self.live, true) {
                        self.show(ConnectionState::Live, out);
                    }
                }
                Out::Unusable(why) => out.push(Effect::Unusable(why)),
                Out::Drop(close) => {
                    if let Phase::Open { attempt } = self.phase {
                        out.push(Effect::Drop { attempt });
                    }
                    return self.ended(now, &close, out);
                }
            }
        }
    }

    fn message(
        &mut self,
        value: Value,
        raw: Bytes,
        position: Option<Position>,
        live: bool,
        out: &mut Vec<Effect>,
    ) {
        if !self.joined {
            self.joined(false, out);
        }
        if position.as_ref().is_none_or(|new| !live || self.advance(new, out)) {
            out.push(Effect::Message { value, raw, position, live });
        }
    }

    /// The channel moves to `new`; false where it is there already.
    fn advance(&mut self, new: &Position, out: &mut Vec<Effect>) -> bool {
        let old = self.position.as_ref();
        if old.is_some_and(|old| old.covers(new) == Some(true)) {
            // Sent again by the server around the place of the resume.
            return false;
        }
        let joins = old.is_none_or(|old| self.follows(old, new));
        if std::mem::replace(&mut self.vouched, true) && !joins {
            out.push(Effect::Opened { resumed: false });
        }
        self.position = Some(new.clone());
        true
    }

    /// Whether nothing can be missing between the two.
    fn follows(&self, old: &Position, new: &Position) -> bool {
        match (old, new) {
            (Position::Seq { epoch: a, offset: x }, Position::Seq { epoch: b, offset: y }) => {
                a == b && (!self.protocols[self.active].caps().dense || x.checked_add(1) == Some(*y))
            }
            _ => true,
        }
    }

    fn ended(&mut self, now: Time, close: &CloseInfo, out: &mut Vec<Effect>) {
        let was_open = matches!(self.phase, Phase::Open { .. });
        self.probe_at = None;
        if let Some(back) = self.probed_from.take() {
            // No better than before; what it was left for still works.
            self.protocols[self.active].on_close(close);
            self.use_transport(back);
            return self.connect(out);
        }
        if close.code == Some(TOO_LONG) {
            out.push(Effect::Unusable(format!("the connection ended: {}", close.reason)));
        }
        let delay = match self.protocols[self.active].on_close(close) {
            CloseAction::Occupied => self.backoff.occupied(now),
            CloseAction::Backoff(floor) if was_open => self.backoff.lost(now, floor),
            CloseAction::Backoff(floor) => self.backoff.failed(now, floor),
            CloseAction::Stop(why) => {
                self.stopped += 1;
                if self.stopped >= self.protocols.len() {
                    self.phase = Phase::Stopped;
                    return self.show(ConnectionState::Stopped(why), out);
                }
                self.next_transport();
                self.backoff.failed(now, Duration::ZERO)
            }
        };
        if self.backoff.take_switch() && self.protocols.len() > 1 {
            self.next_transport();
        }
        let until = now + delay;
        self.phase = Phase::Waiting { until };
        let backoff_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
        out.push(Effect::Show(self.shown(ConnectionState::Offline, Some(backoff_ms))));
    }

    fn next_transport(&mut self) {
        self.use_transport((self.active + 1) % self.protocols.len());
    }

    /// Tries the preferred transport, with the one in use to go back to.
    fn probe(&mut self, now: Time, out: &mut Vec<Effect>) {
        let from = self.active;
        self.drop_transport(now, out);
        self.probed_from = Some(from);
        self.use_transport(0);
        self.connect(out);
    }

    fn use_transport(&mut self, index: usize) {
        self.active = index;
        // Not open: nothing is sent before it is.
        self.protocols[self.active].set_channels(&self.channels, &mut self.outs);
    }

    fn deadline_passed(&mut self, now: Time, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Waiting { until } if now >= until => self.connect(out),
            Phase::Open { .. } => {
                if self.backoff.settle(now) {
                    let state = if self.live { ConnectionState::Live } else { ConnectionState::Degraded };
                    self.show(state, out);
                }
                if self.probe_at.is_some_and(|at| at <= now) {
                    return self.probe(now, out);
                }
                self.protocols[self.active].on_deadline(now, &mut self.outs);
                self.carry_out(now, out);
            }
            Phase::Waiting { .. } | Phase::Closed | Phase::Connecting { .. } | Phase::Stopped => {}
        }
    }

    fn show(&self, state: ConnectionState, out: &mut Vec<Effect>) {
        out.push(Effect::Show(self.shown(state, None)));
    }

    fn shown(&self, state: ConnectionState, backoff_ms: Option<u32>) -> Shown {
        Shown {
            upstream: self.upstream.clone(),
            state,
            transport: self.protocols[self.active].transport().into(),
            attempts: self.backoff.failures(),
            backoff_ms,
        }
    }
}
