//! One upstream's life: attempts, reconnects, positions. Drives a [`Protocol`] and never touches a socket.

use std::sync::Arc;

use bytes::Bytes;
use paceline_proto::{
    connection::{Connection as Shown, ConnectionState},
    hub::Resume,
    id::Position,
    time::Time,
};
use serde_json::Value;

use crate::{
    backoff::Backoff,
    protocol::{CloseAction, CloseInfo, ConnectRequest, Frame, Out, Outgoing, Protocol},
};

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
    /// The network came back: do not wait any longer.
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
    /// Drop the transport or attempt; no answer.
    Drop {
        /// Token.
        attempt: u64,
    },
    /// Messages follow; `resumed` = without a hole after the position asked for.
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
    protocol: Box<dyn Protocol>,
    backoff: Backoff,
    phase: Phase,
    attempts: u64,
    position: Option<Position>,
    /// The reconnect asked for a position, and its first positioned message has not come yet.
    unproven: bool,
    outs: Vec<Out>,
}

impl Connection {
    /// Closed.
    pub fn new(upstream: Arc<str>, protocol: Box<dyn Protocol>, backoff: Backoff) -> Self {
        Self {
            upstream,
            protocol,
            backoff,
            phase: Phase::Closed,
            attempts: 0,
            position: None,
            unproven: false,
            outs: Vec::new(),
        }
    }

    /// Handles one fact.
    pub fn handle(&mut self, now: Time, input: Input, out: &mut Vec<Effect>) {
        match input {
            Input::Open { resume } => {
                self.position = resume;
                self.drop_transport(out);
                self.connect(out);
            }
            Input::Close => {
                self.drop_transport(out);
                self.phase = Phase::Closed;
                self.show(ConnectionState::Paused, out);
            }
            Input::Opened { attempt } if self.phase == (Phase::Connecting { attempt }) => self.opened(now, out),
            Input::Ended { attempt, close } if self.is_current(attempt) => self.ended(now, &close, out),
            Input::Frame { attempt, frame } if self.phase == (Phase::Open { attempt }) => {
                self.protocol.on_frame(now, frame, &mut self.outs);
                self.carry_out(now, out);
            }
            Input::NetworkUp => {
                if matches!(self.phase, Phase::Waiting { .. }) {
                    self.connect(out);
                }
            }
            Input::Deadline => self.deadline_passed(now, out),
            // Of an attempt that was dropped.
            Input::Opened { .. } | Input::Ended { .. } | Input::Frame { .. } => {}
        }
    }

    /// When [`Input::Deadline`] is due.
    pub fn deadline(&self) -> Option<Time> {
        match self.phase {
            Phase::Waiting { until } => Some(until),
            Phase::Open { .. } => self.protocol.deadline(),
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
        let request = self.protocol.request(self.position.as_ref());
        out.push(Effect::Show(self.shown(ConnectionState::Connecting, None)));
        out.push(Effect::Connect { attempt, request });
    }

    fn drop_transport(&mut self, out: &mut Vec<Effect>) {
        if let Phase::Connecting { attempt } | Phase::Open { attempt } = self.phase {
            out.push(Effect::Drop { attempt });
            self.phase = Phase::Closed;
        }
    }

    fn opened(&mut self, now: Time, out: &mut Vec<Effect>) {
        let Phase::Connecting { attempt } = self.phase else { return };
        self.phase = Phase::Open { attempt };
        self.backoff.opened(now);
        let asked = matches!(self.position, Some(Position::Seq { .. } | Position::Opaque(_)));
        let resumed = asked && self.protocol.caps().resume == Resume::Proven;
        self.unproven = resumed;
        out.push(Effect::Opened { resumed });
        self.protocol.on_open(now, &mut self.outs);
        self.carry_out(now, out);
    }

    fn carry_out(&mut self, now: Time, out: &mut Vec<Effect>) {
        for item in std::mem::take(&mut self.outs) {
            match item {
                Out::Send(frame) => out.push(Effect::Send(frame)),
                Out::Message { value, raw, position, live } => self.message(value, raw, position, live, out),
                Out::Live => self.show(ConnectionState::Live, out),
                Out::Unusable(why) => out.push(Effect::Unusable(why)),
                Out::Drop(reason) => {
                    if let Phase::Open { attempt } = self.phase {
                        out.push(Effect::Drop { attempt });
                    }
                    let close = CloseInfo { reason, ..CloseInfo::default() };
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
        if let Some(new) = position.as_ref().filter(|_| live) {
            let old = self.position.as_ref();
            if old.is_some_and(|old| old.covers(new) == Some(true)) {
                // Sent again by the server around the place of the resume.
                return;
            }
            if std::mem::take(&mut self.unproven) && old.is_some_and(|old| !self.follows(old, new)) {
                out.push(Effect::Opened { resumed: false });
            }
            self.position = Some(new.clone());
        }
        out.push(Effect::Message { value, raw, position, live });
    }

    /// Whether `new` is what a server that resumed after `old` may send first.
    fn follows(&self, old: &Position, new: &Position) -> bool {
        match (old, new) {
            (Position::Seq { epoch: a, offset: x }, Position::Seq { epoch: b, offset: y }) => {
                a == b && (!self.protocol.caps().dense || *y == *x + 1)
            }
            _ => true,
        }
    }

    fn ended(&mut self, now: Time, close: &CloseInfo, out: &mut Vec<Effect>) {
        let was_open = matches!(self.phase, Phase::Open { .. });
        let delay = match self.protocol.on_close(close) {
            CloseAction::Occupied => self.backoff.occupied(now),
            CloseAction::Backoff(floor) if was_open => self.backoff.lost(now, floor),
            CloseAction::Backoff(floor) => self.backoff.failed(now, floor),
            CloseAction::Stop(why) => {
                self.phase = Phase::Stopped;
                return self.show(ConnectionState::Stopped(why), out);
            }
        };
        let until = now + delay;
        self.phase = Phase::Waiting { until };
        let backoff_ms = u32::try_from(delay.as_millis()).unwrap_or(u32::MAX);
        out.push(Effect::Show(self.shown(ConnectionState::Offline, Some(backoff_ms))));
    }

    fn deadline_passed(&mut self, now: Time, out: &mut Vec<Effect>) {
        match self.phase {
            Phase::Waiting { until } if now >= until => self.connect(out),
            Phase::Open { .. } => {
                self.protocol.on_deadline(now, &mut self.outs);
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
            transport: self.protocol.transport().into(),
            attempts: self.backoff.failures(),
            backoff_ms,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        backoff::BackoffSpec,
        random::Random,
        websocket::{PositionSpec, WebSocketJson, WebSocketSpec},
    };

    struct Bench {
        machine: Connection,
        now: Time,
    }

    impl Bench {
        fn new(resume: Resume) -> Self {
            let mut spec = WebSocketSpec::new("ws://h/");
            spec.position = Some(PositionSpec {
                offset: "$.seq".parse().unwrap(),
                epoch: Some("$.stream".parse().unwrap()),
                resume_query: Some("since".into()),
                resume,
                dense: true,
            });
            let backoff = Backoff::new(BackoffSpec::default(), Random::new(1));
            let protocol = Box::new(WebSocketJson::new(spec));
            Self { machine: Connection::new("feed".into(), protocol, backoff), now: Time(1) }
        }

        fn tell(&mut self, input: Input) -> Vec<Effect> {
            let mut out = Vec::new();
            self.machine.handle(self.now, input, &mut out);
            out
        }

        /// Opens at `resume`; returns the attempt, the URL, and what the opening said.
        fn open(&mut self, resume: Option<u64>) -> (u64, String, bool) {
            let resume = resume.map(|offset| Position::Seq { epoch: "a".into(), offset });
            let out = self.tell(Input::Open { resume });
            let (attempt, url) = connects(&out).expect("an attempt");
            let resumed = self.tell(Input::Opened { attempt }).iter().find_map(|effect| match effect {
                Effect::Opened { resumed } => Some(*resumed),
                _ => None,
            });
            (attempt, url, resumed.expect("an opening"))
        }

        fn message(&mut self, attempt: u64, stream: &str, seq: u64) -> Vec<Effect> {
            let text = format!(r#"{{"seq":{seq},"stream":"{stream}"}}"#);
            let mut out = self.tell(Input::Frame { attempt, frame: Frame::Text(text.into()) });
            out.retain(|effect| matches!(effect, Effect::Opened { .. } | Effect::Message { .. }));
            out
        }

        fn end(&mut self, attempt: u64, status: Option<u16>) -> Vec<Effect> {
            self.tell(Input::Ended { attempt, close: CloseInfo { status, ..CloseInfo::default() } })
        }
    }

    fn connects(out: &[Effect]) -> Option<(u64, String)> {
        out.iter().find_map(|effect| match effect {
            Effect::Connect { attempt, request } => Some((*attempt, request.url.clone())),
            _ => None,
        })
    }

    #[test]
    fn a_reconnect_resumes_behind_the_last_message_and_drops_what_comes_twice() {
        let mut bench = Bench::new(Resume::Proven);
        let (attempt, url, resumed) = bench.open(None);
        assert_eq!((url.as_str(), resumed), ("ws://h/", false));
        assert_eq!(bench.message(attempt, "a", 5).len(), 1);
        bench.end(attempt, None);
        assert_eq!(bench.machine.deadline(), Some(bench.now));
        let (attempt, url) = connects(&bench.tell(Input::Deadline)).unwrap();
        assert_eq!(url, "ws://h/?since=5");
        assert!(bench.tell(Input::Opened { attempt }).contains(&Effect::Opened { resumed: true }));
        assert_eq!(bench.message(attempt, "a", 5), []);
        assert!(matches!(bench.message(attempt, "a", 6).as_slice(), [Effect::Message { .. }]));
    }

    #[test]
    fn a_resume_that_is_disproved_is_taken_back_before_the_message() {
        for (stream, seq, holds) in [("a", 6, true), ("a", 7, false), ("b", 6, false)] {
            let mut bench = Bench::new(Resume::Proven);
            let (attempt, _, resumed) = bench.open(Some(5));
            assert!(resumed);
            let out = bench.message(attempt, stream, seq);
            let taken_back = out.first() == Some(&Effect::Opened { resumed: false });
            assert_eq!(taken_back, !holds, "{stream} {seq}");
            assert!(matches!(out.last(), Some(Effect::Message { .. })));
        }
    }

    #[test]
    fn without_proof_no_resume_is_claimed() {
        for resume in [Resume::Unproven, Resume::None] {
            assert!(!Bench::new(resume).open(Some(5)).2);
        }
    }

    #[test]
    fn reopening_behind_the_position_lets_messages_through_again() {
        let mut bench = Bench::new(Resume::Proven);
        let (attempt, ..) = bench.open(Some(10));
        assert_eq!(bench.message(attempt, "a", 11).len(), 1);
        let (again, url, _) = bench.open(Some(7));
        assert_eq!(url, "ws://h/?since=7");
        assert_eq!(bench.message(attempt, "a", 12), [], "the old transport is not heard any more");
        assert_eq!(bench.message(again, "a", 8).len(), 1);
    }

    #[test]
    fn an_occupied_server_is_tried_after_5_10_and_20_ms() {
        let mut bench = Bench::new(Resume::Proven);
        let (mut attempt, _) = connects(&bench.tell(Input::Open { resume: None })).unwrap();
        for ms in [5, 10, 20] {
            bench.end(attempt, Some(409));
            let due = bench.now + Duration::from_millis(ms);
            assert_eq!(bench.machine.deadline(), Some(due));
            bench.now = due;
            attempt = connects(&bench.tell(Input::Deadline)).unwrap().0;
        }
    }

    #[test]
    fn a_refusal_stops_and_a_return_of_the_network_does_not_wait() {
        let mut bench = Bench::new(Resume::Proven);
        let (attempt, _) = connects(&bench.tell(Input::Open { resume: None })).unwrap();
        bench.end(attempt, Some(503));
        assert!(connects(&bench.tell(Input::NetworkUp)).is_some());
        let attempt = attempt + 1;
        let out = bench.end(attempt, Some(401));
        assert!(matches!(out.as_slice(), [Effect::Show(Shown { state: ConnectionState::Stopped(_), .. })]));
        assert_eq!(bench.machine.deadline(), None);
        assert_eq!(bench.end(attempt, None), [], "answers of an ended attempt change nothing");
    }
}
