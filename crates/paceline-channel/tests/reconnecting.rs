//! A connection through losses, refusals and repairs.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{sync::Arc, time::Duration};

use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, HURRY_INTERVAL, Input},
    protocol::{CloseInfo, Frame, Head, Outgoing},
    random::Random,
    template::{Setting, Template},
    websocket::{PositionSpec, WebSocketJson, WebSocketSpec},
};
use paceline_proto::{
    connection::{Connection as Shown, ConnectionState},
    hub::Resume,
    id::Position,
    time::Time,
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
        let resumed =
            self.tell(Input::Opened { attempt, head: Head::default() }).iter().find_map(
                |effect| match effect {
                    Effect::Opened { resumed } => Some(*resumed),
                    _ => None,
                },
            );
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
    assert!(
        bench
            .tell(Input::Opened { attempt, head: Head::default() })
            .contains(&Effect::Opened { resumed: true })
    );
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

#[test]
fn a_hole_in_dense_positions_is_told_before_the_message_behind_it() {
    for resume in [Resume::Proven, Resume::None] {
        let mut bench = Bench::new(resume);
        let (attempt, ..) = bench.open(None);
        assert_eq!(bench.message(attempt, "a", 5).len(), 1, "nothing came before the first");
        assert_eq!(bench.message(attempt, "a", 6).len(), 1);
        for (stream, seq) in [("a", 8), ("b", 9)] {
            let out = bench.message(attempt, stream, seq);
            assert_eq!(out[0], Effect::Opened { resumed: false }, "{resume:?} {stream} {seq}");
            assert_eq!(out.len(), 2);
        }
        assert_eq!(bench.message(attempt, "b", 10).len(), 1);
    }
}

#[test]
fn a_network_that_flaps_makes_us_hurry_once_in_five_seconds() {
    let mut bench = Bench::new(Resume::Proven);
    let (mut attempt, _) = connects(&bench.tell(Input::Open { resume: None })).unwrap();
    let begin = bench.now;
    let short = HURRY_INTERVAL - Duration::from_nanos(1);
    for (after, hurries) in [(Duration::ZERO, true), (short, false), (HURRY_INTERVAL, true)] {
        bench.now = begin + after;
        bench.end(attempt, Some(503));
        let out = bench.tell(Input::NetworkUp);
        assert_eq!(connects(&out).is_some(), hurries, "{after:?}");
        attempt = connects(&out).map_or(attempt, |(attempt, _)| attempt);
    }
}

#[test]
fn the_next_transport_is_tried_after_five_failures_and_knows_the_channels() {
    let other = || {
        let mut spec = WebSocketSpec::new("ws://other/");
        spec.subscribe = Template::new("join {channel}", Setting::Json).ok();
        Box::new(WebSocketJson::new(spec))
    };
    let mut bench = Bench::new(Resume::Proven);
    bench.machine = bench.machine.or_else(other());
    assert_eq!(bench.tell(Input::Channels([Arc::from("x")].into())), []);
    let (mut attempt, _) = connects(&bench.tell(Input::Open { resume: None })).unwrap();
    for url in ["ws://h/", "ws://h/", "ws://h/", "ws://h/", "ws://other/"] {
        bench.end(attempt, None);
        bench.now = bench.machine.deadline().unwrap();
        let (next, to) = connects(&bench.tell(Input::Deadline)).unwrap();
        assert_eq!(to, url);
        attempt = next;
    }
    let out = bench.tell(Input::Opened { attempt, head: Head::default() });
    assert!(out.contains(&Effect::Send(Outgoing::Text("join x".into()))));
    // Two connections that end at once, and it is the first one's turn again.
    for url in ["ws://other/", "ws://h/"] {
        bench.end(attempt, None);
        bench.now = bench.machine.deadline().unwrap();
        let (next, to) = connects(&bench.tell(Input::Deadline)).unwrap();
        assert_eq!(to, url);
        attempt = next;
        bench.tell(Input::Opened { attempt, head: Head::default() });
    }
}

#[test]
fn a_stable_minute_is_shown() {
    let mut bench = Bench::new(Resume::Proven);
    let (attempt, _) = connects(&bench.tell(Input::Open { resume: None })).unwrap();
    bench.end(attempt, Some(503));
    bench.now = bench.machine.deadline().unwrap();
    let (attempt, _) = connects(&bench.tell(Input::Deadline)).unwrap();
    let attempts = |out: Vec<Effect>| {
        out.iter().rev().find_map(|effect| match effect {
            Effect::Show(shown) => Some((shown.state.clone(), shown.attempts)),
            _ => None,
        })
    };
    assert_eq!(
        attempts(bench.tell(Input::Opened { attempt, head: Head::default() })),
        Some((ConnectionState::Live, 1))
    );
    assert_eq!(bench.machine.deadline(), Some(bench.now + Duration::from_secs(60)));
    bench.now = bench.machine.deadline().unwrap();
    assert_eq!(attempts(bench.tell(Input::Deadline)), Some((ConnectionState::Live, 0)));
    assert_eq!(bench.machine.deadline(), None);
}

#[test]
fn a_message_that_is_too_long_is_reported() {
    let mut bench = Bench::new(Resume::Proven);
    let (attempt, ..) = bench.open(None);
    let close = CloseInfo { code: Some(1009), reason: "9 > 8".into(), ..CloseInfo::default() };
    let out = bench.tell(Input::Ended { attempt, close });
    assert_eq!(out[0], Effect::Unusable("the connection ended: 9 > 8".into()));
    assert_eq!(bench.machine.deadline(), Some(bench.now + Duration::from_secs(1)), "not at once");
}
