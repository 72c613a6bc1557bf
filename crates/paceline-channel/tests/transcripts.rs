//! Golden transcripts of a JSON WebSocket: what goes in at which second, and everything that comes out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fmt::Write as _, sync::Arc, time::Duration};

use paceline_channel::{
    backoff::{Backoff, BackoffSpec, Jitter},
    connection::{Connection, Effect, Input},
    protocol::{CloseInfo, Frame, Head, Outgoing, Secret},
    random::Random,
    template::{Setting, Template},
    websocket::{Heartbeat, PositionSpec, WebSocketJson, WebSocketSpec},
};
use paceline_proto::{
    hub::Resume,
    id::Position,
    time::{Time, earliest},
};

/// The `feed` of the example configuration.
fn feed() -> WebSocketSpec {
    let json = |text| Template::new(text, Setting::Json).ok();
    let mut spec = WebSocketSpec::new("wss://api.example.com/ws");
    spec.headers = vec![("Authorization".into(), Secret::new("Bearer s3cret"))];
    spec.position = Some(PositionSpec {
        offset: "$.seq".parse().unwrap(),
        epoch: Some("$.stream".parse().unwrap()),
        resume_query: Some("since".into()),
        resume: Resume::Proven,
        dense: true,
    });
    spec.heartbeat = Some(Heartbeat {
        send: Some(r#"{"type":"ping"}"#.into()),
        every: Duration::from_secs(20),
        dead_after: Duration::from_secs(30),
    });
    spec.subscribe = json(r#"{"op":"subscribe","channel":"{channel}"}"#);
    spec.unsubscribe = json(r#"{"op":"unsubscribe","channel":"{channel}"}"#);
    spec
}

/// Runs a script and compares everything that comes out.
///
/// A line is a second and a fact: `open [epoch/offset]`, `opened`, `refused STATUS`, `closed CODE`, `failed`, `alive`,
/// `want CHANNEL…`, `close`, or JSON that arrives. `until` only lets time pass. Deadlines fire on their own.
fn check(spec: WebSocketSpec, script: &str, expected: &str) {
    let backoff = BackoffSpec { jitter: Jitter::None, ..BackoffSpec::default() };
    let protocol = Box::new(WebSocketJson::new(spec));
    let mut machine = Connection::new("feed".into(), protocol, Backoff::new(backoff, Random::new(1)));
    let mut attempt = 0;
    let mut said = String::new();
    let mut tell = |machine: &mut Connection, now: Time, input: Input| {
        let mut effects = Vec::new();
        machine.handle(now, input, &mut effects);
        let second = Duration::from_nanos(now.0).as_secs_f64();
        for effect in effects {
            if let Effect::Connect { attempt: new, .. } = effect {
                attempt = new;
            }
            let _ = writeln!(said, "{second:>5} {}", show(&effect));
        }
        attempt
    };
    let mut current = 0;
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (second, fact) = line.split_once(' ').unwrap();
        let now = Time::ZERO + Duration::from_secs_f64(second.parse().unwrap());
        while let Some(due) = machine.deadline().filter(|due| earliest(Some(*due), Some(now)) == Some(*due)) {
            current = tell(&mut machine, due, Input::Deadline);
        }
        if fact != "until" {
            let input = read(current, fact);
            current = tell(&mut machine, now, input);
        }
    }
    let trimmed = |text: &str| {
        text.lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .fold(String::new(), |all, line| all + line + "\n")
    };
    assert_eq!(trimmed(&said), trimmed(expected), "\n{said}");
}

fn read(attempt: u64, fact: &str) -> Input {
    let (word, rest) = fact.split_once(' ').unwrap_or((fact, ""));
    let ended = |close: CloseInfo| Input::Ended { attempt, close };
    match word {
        "open" => Input::Open {
            resume: rest.split_once('/').map(|(epoch, offset)| Position::Seq {
                epoch: epoch.into(),
                offset: offset.parse().unwrap(),
            }),
        },
        "opened" => Input::Opened { attempt, head: Head::default() },
        "refused" => ended(CloseInfo { status: rest.parse().ok(), ..CloseInfo::default() }),
        "closed" => ended(CloseInfo { code: rest.parse().ok(), ..CloseInfo::default() }),
        "failed" => ended(CloseInfo::default()),
        "alive" => Input::Frame { attempt, frame: Frame::Alive },
        "want" => Input::Channels(rest.split_whitespace().map(Arc::from).collect()),
        "close" => Input::Close,
        _ => Input::Frame { attempt, frame: Frame::Text(fact.to_owned().into()) },
    }
}

fn show(effect: &Effect) -> String {
    match effect {
        Effect::Connect { attempt, request } => {
            format!("connect #{attempt} {} {:?}", request.url, request.headers)
        }
        Effect::Send(Outgoing::Text(text)) => format!("send {text}"),
        Effect::Send(Outgoing::Hidden(text)) => format!("send {text:?}"),
        Effect::Send(Outgoing::Ping) => "send ping".into(),
        Effect::Drop { attempt } => format!("drop #{attempt}"),
        Effect::Opened { resumed } => format!("opened resumed={resumed}"),
        Effect::Message { raw, position, live, .. } => {
            let place = match position {
                Some(Position::Seq { epoch, offset }) => format!("{epoch}/{offset}"),
                other => format!("{other:?}"),
            };
            format!("message {place} live={live} {}", String::from_utf8_lossy(raw))
        }
        Effect::Show(shown) => match shown.backoff_ms {
            Some(ms) => format!("show {:?} attempts={} next={ms}ms", shown.state, shown.attempts),
            None => format!("show {:?} attempts={}", shown.state, shown.attempts),
        },
        Effect::Call { attempt, call } => format!("call #{attempt} {}", call.url),
        Effect::Moved(position) => format!("moved {position:?}"),
        Effect::Unusable(why) => format!("unusable: {why}"),
    }
}

#[test]
fn a_connection_is_opened_used_lost_and_resumed() {
    check(
        feed(),
        r#"
        0 want news sport
        0 open
        0.1 opened
        1 {"seq":41,"stream":"s1","type":"A"}
        2 not json
        3 {"type":"notice"}
        4 want sport weather
        5 closed 1006
        5.2 opened
        6 {"seq":41,"stream":"s1","type":"A"}
        6 {"seq":42,"stream":"s1","type":"B"}
        7 close
        "#,
        r#"
        0 show Connecting attempts=0
        0 connect #1 wss://api.example.com/ws [("Authorization", (secret))]
        0.1 opened resumed=false
        0.1 send {"op":"subscribe","channel":"news"}
        0.1 send {"op":"subscribe","channel":"sport"}
        0.1 show Live attempts=0
        1 message s1/41 live=true {"seq":41,"stream":"s1","type":"A"}
        2 unusable: a message is not JSON: expected ident at line 1 column 2
        3 message None live=true {"type":"notice"}
        4 send {"op":"unsubscribe","channel":"news"}
        4 send {"op":"subscribe","channel":"weather"}
        5 show Offline attempts=0 next=0ms
        5 show Connecting attempts=0
        5 connect #2 wss://api.example.com/ws?since=41 [("Authorization", (secret))]
        5.2 opened resumed=true
        5.2 send {"op":"subscribe","channel":"sport"}
        5.2 send {"op":"subscribe","channel":"weather"}
        5.2 show Live attempts=0
        6 message s1/42 live=true {"seq":42,"stream":"s1","type":"B"}
        7 drop #2
        7 show Paused attempts=0
        "#,
    );
}

#[test]
fn a_resume_that_the_server_cannot_keep_is_told() {
    check(
        feed(),
        r#"
        0 open s1/41
        0.1 opened
        1 {"seq":1,"stream":"s2"}
        2 {"seq":3,"stream":"s2"}
        3 {"seq":4,"stream":"s2"}
        "#,
        r#"
        0 show Connecting attempts=0
        0 connect #1 wss://api.example.com/ws?since=41 [("Authorization", (secret))]
        0.1 opened resumed=true
        0.1 show Live attempts=0
        1 opened resumed=false
        1 message s2/1 live=true {"seq":1,"stream":"s2"}
        2 opened resumed=false
        2 message s2/3 live=true {"seq":3,"stream":"s2"}
        3 message s2/4 live=true {"seq":4,"stream":"s2"}
        "#,
    );
}

#[test]
fn a_server_that_falls_silent_is_pinged_and_then_left() {
    check(
        feed(),
        r"
        0 open
        0 opened
        15 alive
        56 alive
        86.5 opened
        100 until
        ",
        r#"
        0 show Connecting attempts=0
        0 connect #1 wss://api.example.com/ws [("Authorization", (secret))]
        0 opened resumed=false
        0 show Live attempts=0
        35 send {"type":"ping"}
        45 drop #1
        45 show Offline attempts=0 next=0ms
        45 show Connecting attempts=0
        45 connect #2 wss://api.example.com/ws [("Authorization", (secret))]
        86.5 opened resumed=false
        86.5 show Live attempts=0
        "#,
    );
}

#[test]
fn without_resume_a_snapshot_comes_before_the_live_mark() {
    let mut spec = WebSocketSpec::new("ws://127.0.0.1:1/");
    spec.live_when = Some(r#"$.type == "live""#.parse().unwrap());
    spec.position = Some(PositionSpec {
        offset: "$.seq".parse().unwrap(),
        epoch: None,
        resume_query: None,
        resume: Resume::None,
        dense: true,
    });
    check(
        spec,
        r#"
        0 open
        0 opened
        1 {"seq":7,"key":"cpu"}
        1 {"seq":5,"key":"memory"}
        1 {"type":"live"}
        2 {"seq":8,"key":"cpu"}
        3 closed 1012
        4 opened
        4 {"seq":11,"key":"cpu"}
        4 {"type":"live"}
        5 {"seq":12,"key":"cpu"}
        "#,
        r#"
        0 show Connecting attempts=0
        0 connect #1 ws://127.0.0.1:1/ []
        0 opened resumed=false
        0 show Degraded attempts=0
        1 message /7 live=false {"seq":7,"key":"cpu"}
        1 message /5 live=false {"seq":5,"key":"memory"}
        1 show Live attempts=0
        2 message /8 live=true {"seq":8,"key":"cpu"}
        3 show Offline attempts=0 next=1000ms
        4 show Connecting attempts=0
        4 connect #2 ws://127.0.0.1:1/ []
        4 opened resumed=false
        4 show Degraded attempts=0
        4 message /11 live=false {"seq":11,"key":"cpu"}
        4 show Live attempts=0
        5 message /12 live=true {"seq":12,"key":"cpu"}
        "#,
    );
}

#[test]
fn one_consumer_only_then_a_server_in_trouble() {
    let mut spec = WebSocketSpec::new("ws://h/");
    spec.resume_epoch_query = Some("ignored without positions".into());
    check(
        spec,
        r"
        0 open
        0 refused 409
        0.005 refused 409
        0.015 refused 409
        0.035 refused 503
        1.035 refused 409
        3.035 opened
        63.1 closed 1000
        63.1 failed
        64.1 refused 404
        ",
        r#"
        0 show Connecting attempts=0
        0 connect #1 ws://h/ []
        0 show Offline attempts=0 next=5ms
        0.005 show Connecting attempts=0
        0.005 connect #2 ws://h/ []
        0.005 show Offline attempts=0 next=10ms
        0.015 show Connecting attempts=0
        0.015 connect #3 ws://h/ []
        0.015 show Offline attempts=0 next=20ms
        0.035 show Connecting attempts=0
        0.035 connect #4 ws://h/ []
        0.035 show Offline attempts=1 next=1000ms
        1.035 show Connecting attempts=1
        1.035 connect #5 ws://h/ []
        1.035 show Offline attempts=2 next=2000ms
        3.035 show Connecting attempts=2
        3.035 connect #6 ws://h/ []
        3.035 opened resumed=false
        3.035 show Live attempts=2
        63.035 show Live attempts=0
        63.1 show Offline attempts=0 next=0ms
        63.1 show Connecting attempts=0
        63.1 connect #7 ws://h/ []
        63.1 show Offline attempts=1 next=1000ms
        64.1 show Connecting attempts=1
        64.1 connect #8 ws://h/ []
        64.1 show Stopped("the server refused with status 404") attempts=1
        "#,
    );
}
