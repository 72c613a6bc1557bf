//! Several ways to the same messages: which one is gone when.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, Input, PROBE_AFTER},
    poll::PollSpec,
    protocol::{Adapter, CloseInfo, Head, Transport},
    random::Random,
    sse::SseSpec,
    websocket::WebSocketSpec,
};
use paceline_proto::{connection::ConnectionState, time::Time};

struct Bench {
    machine: Connection,
    now: Time,
    attempt: u64,
}

impl Bench {
    fn new(seed: u64) -> Self {
        let backoff = Backoff::new(BackoffSpec::default(), Random::new(seed));
        let machine = Connection::new("feed".into(), WebSocketSpec::new("ws://h/").machine(), backoff)
            .or_else(
                SseSpec { read_timeout: Duration::from_secs(3600), ..SseSpec::new("http://h/s") }.machine(),
            )
            .or_else(PollSpec::new("http://h/p").machine());
        let mut bench = Self { machine, now: Time(1), attempt: 0 };
        bench.tell(Input::Open { resume: None });
        bench
    }

    fn tell(&mut self, input: Input) -> Vec<Effect> {
        let mut out = Vec::new();
        self.machine.handle(self.now, input, &mut out);
        for effect in &out {
            if let Effect::Connect { attempt, .. } = effect {
                self.attempt = *attempt;
            }
        }
        out
    }

    /// Lets time pass to the deadline.
    fn due(&mut self) -> (Duration, Vec<Effect>) {
        let at = self.machine.deadline().unwrap();
        let waited = at.since(self.now);
        self.now = at;
        (waited, self.tell(Input::Deadline))
    }

    fn refused(&mut self, status: Option<u16>) -> Vec<Effect> {
        let close = CloseInfo { status, ..CloseInfo::default() };
        self.tell(Input::Ended { attempt: self.attempt, close })
    }

    fn opened(&mut self) -> Vec<Effect> {
        let headers = vec![("content-type".to_owned(), "text/event-stream".to_owned())];
        let head = Head { status: 200, headers, retry_after: None };
        self.tell(Input::Opened { attempt: self.attempt, head })
    }

    /// Fails until the next transport is asked for.
    fn fail_over(&mut self) -> (u32, Transport) {
        for failures in 1.. {
            self.refused(None);
            if let Some(transport) = asked(&self.due().1)
                && failures >= 5
            {
                return (failures, transport);
            }
        }
        unreachable!()
    }
}

fn asked(effects: &[Effect]) -> Option<Transport> {
    effects.iter().find_map(|effect| match effect {
        Effect::Connect { request, .. } => Some(request.transport.clone()),
        _ => None,
    })
}

fn shown(effects: &[Effect]) -> Vec<(ConnectionState, String)> {
    let shown = effects.iter().filter_map(|effect| match effect {
        Effect::Show(shown) => Some((shown.state.clone(), shown.transport.to_string())),
        _ => None,
    });
    shown.collect()
}

#[test]
fn after_five_failures_it_is_the_next_ones_turn_and_after_the_last_the_firsts() {
    let mut bench = Bench::new(1);
    assert_eq!(bench.fail_over(), (5, Transport::Stream));
    assert_eq!(bench.fail_over(), (5, Transport::Calls));
    assert_eq!(bench.fail_over(), (5, Transport::WebSocket(Vec::new())));
}

#[test]
fn a_way_that_cannot_be_gone_is_left_at_once_and_all_of_them_are_the_end() {
    let mut bench = Bench::new(1);
    bench.refused(Some(404));
    assert_eq!(asked(&bench.due().1), Some(Transport::Stream));
    assert_eq!(shown(&bench.opened()), [(ConnectionState::Live, "sse".to_owned())]);
    // That it worked once counts: the others are asked again.
    bench.refused(None);
    bench.due();
    bench.refused(Some(404));
    assert_eq!(asked(&bench.due().1), Some(Transport::Calls));
    bench.refused(Some(404));
    assert_eq!(asked(&bench.due().1), Some(Transport::WebSocket(Vec::new())));
    let out = bench.refused(Some(404));
    assert!(matches!(shown(&out).as_slice(), [(ConnectionState::Stopped(_), _)]), "{out:?}");
    assert_eq!(bench.machine.deadline(), None);
}

#[test]
fn while_a_fallback_serves_the_preferred_way_is_tried_again_and_left_at_once_if_it_is_no_better() {
    for seed in 0..20 {
        let mut bench = Bench::new(seed);
        bench.fail_over();
        bench.opened();
        let begun = bench.now;
        let probe = loop {
            let (_, out) = bench.due();
            if asked(&out).is_some() {
                break out;
            }
        };
        let waited = bench.now.since(begun);
        assert!(waited >= PROBE_AFTER && waited <= PROBE_AFTER * 2, "{waited:?}");
        assert_eq!(asked(&probe), Some(Transport::WebSocket(Vec::new())));
        assert!(matches!(probe[0], Effect::Drop { .. }), "one consumer at a time: {probe:?}");
        // It fails: the stream is asked for at once, and does not count as a failure.
        let back = bench.refused(Some(503));
        assert_eq!(asked(&back), Some(Transport::Stream));
        assert_eq!(shown(&back), [(ConnectionState::Connecting, "sse".to_owned())]);
        assert_eq!(shown(&bench.opened()), [(ConnectionState::Live, "sse".to_owned())]);
        // The next time it works: it stays.
        while asked(&bench.due().1).is_none() {}
        assert_eq!(shown(&bench.opened()), [(ConnectionState::Live, "websocket".to_owned())]);
        while bench.machine.deadline().is_some() {
            assert_eq!(asked(&bench.due().1), None, "there is nothing better to try");
        }
        bench.refused(None);
        assert_eq!(asked(&bench.due().1), Some(Transport::WebSocket(Vec::new())), "a loss is a loss");
    }
}
