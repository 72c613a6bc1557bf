//! Random lives of a connection, with late and repeated answers: what must hold whatever comes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{collections::BTreeSet, time::Duration};

use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, Input},
    protocol::{CloseInfo, Frame, Head},
    random::Random,
    websocket::{Heartbeat, PositionSpec, WebSocketJson, WebSocketSpec},
};
use paceline_proto::{connection::ConnectionState, hub::Resume, id::Position, time::Time};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Step {
    Open(Option<u64>),
    Close,
    /// An answer to one of the last attempts, counted back from the newest.
    Opened(u64),
    Ended(u64, Option<u16>, Option<u16>),
    Message(u64, u64),
    Alive(u64),
    NetworkUp,
    /// Milliseconds; deadlines on the way fire.
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let back = prop_oneof![4 => Just(0_u64), 1 => 1_u64..3];
    prop_oneof![
        1 => prop::option::of(0_u64..20).prop_map(Step::Open),
        1 => Just(Step::Close),
        4 => back.clone().prop_map(Step::Opened),
        2 => (back.clone(), prop::option::of(prop::sample::select(vec![409, 503, 404])), prop::option::of(1000_u16..1014))
            .prop_map(|(back, status, code)| Step::Ended(back, status, code)),
        8 => (back.clone(), 1_u64..30).prop_map(|(back, seq)| Step::Message(back, seq)),
        1 => back.prop_map(Step::Alive),
        1 => Just(Step::NetworkUp),
        4 => (0_u64..40_000).prop_map(Step::Pass),
    ]
}

/// What an observer knows from inputs and effects alone.
#[derive(Debug, Default)]
struct Observer {
    newest: u64,
    /// Attempts asked for and neither dropped nor ended.
    wanted: BTreeSet<u64>,
    open: bool,
    stopped: bool,
    last: Option<u64>,
    /// A hole before the next message has been told.
    told: bool,
}

struct Life {
    machine: Connection,
    now: Time,
    seen: Observer,
}

impl Life {
    fn new(seed: u64) -> Self {
        let mut spec = WebSocketSpec::new("ws://h/");
        spec.position = Some(PositionSpec {
            offset: "$.seq".parse().unwrap(),
            epoch: None,
            resume_query: Some("since".into()),
            resume: Resume::Proven,
            dense: true,
        });
        let (every, dead_after) = (Duration::from_secs(5), Duration::from_secs(8));
        spec.heartbeat = Some(Heartbeat { send: None, every, dead_after });
        let backoff = Backoff::new(BackoffSpec::default(), Random::new(seed));
        let machine = Connection::new("feed".into(), Box::new(WebSocketJson::new(spec)), backoff);
        Self { machine, now: Time(1), seen: Observer::default() }
    }

    fn tell(&mut self, input: Input) -> Result<(), TestCaseError> {
        let answers = match &input {
            Input::Opened { attempt, .. } | Input::Ended { attempt, .. } | Input::Frame { attempt, .. } => {
                Some(*attempt)
            }
            Input::Open { .. }
            | Input::Close
            | Input::Channels(_)
            | Input::Publish(_)
            | Input::NetworkUp
            | Input::Deadline => None,
        };
        let is_stale = answers.is_some_and(|attempt| !self.seen.wanted.contains(&attempt));
        if let (Input::Ended { attempt, .. }, false) = (&input, is_stale) {
            self.seen.wanted.remove(attempt);
            self.seen.open = false;
        }
        if let Input::Open { resume } = &input {
            self.seen.stopped = false;
            self.seen.last = match resume {
                Some(Position::Seq { offset, .. }) => Some(*offset),
                _ => None,
            };
        }
        let mut out = Vec::new();
        self.machine.handle(self.now, input.clone(), &mut out);
        prop_assert!(!is_stale || out.is_empty(), "a stale {input:?} made {out:?}");
        for effect in out {
            self.see(effect)?;
        }
        prop_assert!(self.seen.wanted.len() <= 1, "{:?}", self.seen);
        Ok(())
    }

    fn see(&mut self, effect: Effect) -> Result<(), TestCaseError> {
        let seen = &mut self.seen;
        match effect {
            Effect::Connect { attempt, request } => {
                prop_assert!(attempt > seen.newest && !seen.stopped);
                let expected = seen.last.map_or("ws://h/".to_owned(), |last| format!("ws://h/?since={last}"));
                prop_assert_eq!(request.url, expected, "resumes behind the last message");
                seen.newest = attempt;
                seen.wanted.insert(attempt);
                seen.open = false;
            }
            Effect::Drop { attempt } => {
                prop_assert!(seen.wanted.remove(&attempt), "drops what is there");
                seen.open = false;
            }
            Effect::Opened { resumed } => {
                seen.open = true;
                seen.told = !resumed;
            }
            Effect::Send(_) | Effect::Call { .. } => prop_assert!(seen.open),
            Effect::Message { position: Some(Position::Seq { offset, .. }), .. } => {
                prop_assert!(seen.open);
                if let Some(last) = seen.last {
                    prop_assert!(offset > last, "{offset} after {last}");
                    prop_assert!(offset == last + 1 || seen.told, "an untold hole from {last} to {offset}");
                }
                seen.last = Some(offset);
                seen.told = false;
            }
            Effect::Show(shown) => match shown.state {
                ConnectionState::Stopped(_) => seen.stopped = true,
                ConnectionState::Offline => {
                    prop_assert!(shown.backoff_ms.is_some_and(|ms| ms <= 30_000));
                }
                _ => {}
            },
            Effect::Message { .. } | Effect::Moved(_) | Effect::Unusable(_) => {}
        }
        Ok(())
    }

    fn pass(&mut self, duration: Duration) -> Result<(), TestCaseError> {
        let end = self.now + duration;
        let mut fired = 0;
        while let Some(due) = self.machine.deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.tell(Input::Deadline)?;
            fired += 1;
            prop_assert!(fired < 100, "deadlines that do not move: {:?}", self.machine);
        }
        self.now = end;
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let attempt = |back: u64| self.seen.newest.saturating_sub(back);
        let frame = |back, frame| Input::Frame { attempt: attempt(back), frame };
        let input = match *step {
            Step::Open(offset) => {
                Input::Open { resume: offset.map(|offset| Position::Seq { epoch: "".into(), offset }) }
            }
            Step::Close => Input::Close,
            Step::Opened(back) => Input::Opened { attempt: attempt(back), head: Head::default() },
            Step::Ended(back, status, code) => {
                let code = if status.is_some() { None } else { code };
                Input::Ended {
                    attempt: attempt(back),
                    close: CloseInfo { status, code, ..CloseInfo::default() },
                }
            }
            Step::Message(back, seq) => frame(back, Frame::Text(format!(r#"{{"seq":{seq}}}"#).into())),
            Step::Alive(back) => frame(back, Frame::Alive),
            Step::NetworkUp => Input::NetworkUp,
            Step::Pass(ms) => return self.pass(Duration::from_millis(ms)),
        };
        self.tell(input)
    }
}

proptest! {
    #[test]
    fn no_life_has_two_transports_an_untold_hole_or_a_repetition(
        seed in any::<u64>(),
        steps in prop::collection::vec(step(), 1..80),
    ) {
        let mut life = Life::new(seed);
        for step in &steps {
            life.step(step)?;
        }
    }

    #[test]
    fn a_wanted_connection_comes_back_when_the_server_does(
        seed in any::<u64>(),
        failures in prop::collection::vec(prop::sample::select(vec![None, Some(409), Some(503)]), 0..12),
    ) {
        let mut life = Life::new(seed);
        life.tell(Input::Open { resume: None })?;
        for status in failures {
            let attempt = life.seen.newest;
            life.tell(Input::Ended { attempt, close: CloseInfo { status, ..CloseInfo::default() } })?;
            life.pass(Duration::from_secs(30))?;
            prop_assert_eq!(life.seen.newest, attempt + 1, "the next attempt within the cap");
        }
        let attempt = life.seen.newest;
        life.tell(Input::Opened { attempt, head: Head::default() })?;
        prop_assert!(life.seen.open);
    }
}
