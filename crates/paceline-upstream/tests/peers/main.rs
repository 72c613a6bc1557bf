//! Servers that others wrote: `ws`, `pusher` and `graphql-ws` of npm, `websockets` and `sse-starlette` of PyPI. `.ci/run prepare` puts them
//! under `target/peers`; where one is missing its test says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    future::pending,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use paceline_channel::{
    backoff::{Backoff, BackoffSpec},
    connection::{Connection, Effect, Input},
    graphql::{GraphQl, GraphQlSpec, Operation},
    protocol::{
        Adapter, Answer, Channels, CloseAction, CloseInfo, Frame, Head, Out, Outgoing, Protocol, Secret,
    },
    pusher::{AuthSpec, Pusher, PusherSpec},
    random::Random,
    sse::{Sse, SseSpec},
    websocket::WebSocketSpec,
};
use paceline_proto::{connection::ConnectionState, id::Position, time::Time};
use paceline_upstream::{
    http::{HttpClient, call},
    transport::{Remote, Transport, connect_unless},
};
use serde_json::{Value, json};

/// A server in a process of its own; it ends with this value.
struct Peer {
    child: Child,
    port: u16,
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/peers")
}

/// Starts a script, if what it needs is there.
#[expect(clippy::print_stderr, reason = "what is left out is said")]
fn start(script: &str) -> Option<Peer> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers").join(script);
    let (mut command, needs) = match here.extension().and_then(|it| it.to_str()) {
        Some("js") => {
            let mut command = Command::new("node");
            command.env("NODE_PATH", root().join("node_modules"));
            (command, root().join("node_modules"))
        }
        _ => (Command::new(root().join("venv/bin/python")), root().join("venv/bin/python")),
    };
    if !needs.exists() {
        eprintln!("skipped: {script} needs {}, which `.ci/run prepare` makes", needs.display());
        return None;
    }
    let mut child = command.arg(here).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let mut peer = Peer { child, port: 0 };
    peer.port = line.trim().parse().unwrap_or_else(|_| panic!("{script} does not start: {line:?}"));
    Some(peer)
}

async fn open(
    machine: &mut dyn Protocol,
    position: Option<&Position>,
) -> Result<(Transport, Remote), CloseInfo> {
    connect_unless(&HttpClient::default(), &machine.request(position), pending()).await
}

/// Reads until the connection ends, or so many messages came.
async fn read(
    machine: &mut dyn Protocol,
    transport: &mut Transport,
    messages: usize,
) -> (Vec<Value>, Option<CloseInfo>) {
    let mut out = Vec::new();
    let mut found = Vec::new();
    machine.on_open(Time::ZERO, &transport.head(), &mut out);
    loop {
        for item in out.drain(..) {
            match item {
                Out::Message { value, .. } => found.push(value),
                Out::Drop(close) => return (found, Some(close)),
                _ => {}
            }
        }
        if found.len() >= messages {
            return (found, None);
        }
        let (frames, end) = transport.next().await;
        frames.into_iter().for_each(|frame| machine.on_frame(Time::ZERO, frame, &mut out));
        if end.is_some() {
            found.extend(out.drain(..).filter_map(|item| match item {
                Out::Message { value, .. } => Some(value),
                _ => None,
            }));
            return (found, end);
        }
    }
}

/// What a connection shows after this end, the first time and the second.
fn after(close: &CloseInfo) -> [(ConnectionState, Option<u32>); 2] {
    let backoff = Backoff::new(BackoffSpec::default(), Random::new(7));
    let mut machine = Connection::new("feed".into(), WebSocketSpec::new("ws://h/").machine(), backoff);
    let mut attempt = 0;
    let mut tell = |machine: &mut Connection, now: Time, input: Input| {
        let mut out = Vec::new();
        machine.handle(now, input, &mut out);
        for effect in &out {
            if let Effect::Connect { attempt: new, .. } = effect {
                attempt = *new;
            }
        }
        let shown = out.into_iter().rev().find_map(|effect| match effect {
            Effect::Show(shown) => Some((shown.state, shown.backoff_ms)),
            _ => None,
        });
        (attempt, shown)
    };
    let (mut attempt, _) = tell(&mut machine, Time(1), Input::Open { resume: None });
    [Time(2), Time::ZERO + Duration::from_secs(10)].map(|now| {
        if machine.deadline().is_some() {
            attempt = tell(&mut machine, now, Input::Deadline).0;
        }
        tell(&mut machine, now, Input::Opened { attempt, head: Head::default() });
        let (_, shown) = tell(&mut machine, now, Input::Ended { attempt, close: close.clone() });
        shown.unwrap_or((ConnectionState::Paused, None))
    })
}

#[tokio::test]
async fn each_close_code_of_ws_is_followed_by_its_delay() {
    let Some(peer) = start("ws.js") else { return };
    let at_once = [1000, 1001, 1011, 3000, 4000, 4999];
    let with_a_second = [1002, 1003, 1007, 1008, 1009, 1010, 1012, 1013];
    let all = at_once.iter().map(|code| (*code, 0)).chain(with_a_second.iter().map(|code| (*code, 1000)));
    for (code, floor) in all {
        let mut machine = WebSocketSpec::new(format!("ws://127.0.0.1:{}/close/{code}", peer.port)).machine();
        let (mut transport, _remote) = open(&mut *machine, None).await.unwrap();
        let (messages, end) = read(&mut *machine, &mut transport, usize::MAX).await;
        assert_eq!(messages, [json!({ "n": 1, "extensions": "" })], "{code}: no compression was agreed on");
        let end = end.unwrap();
        assert_eq!((end.code, end.reason.as_str()), (Some(code), "says so"));
        let [(first, delay), (second, later)] = after(&end);
        assert_eq!((first, delay), (ConnectionState::Offline, Some(floor)), "{code}: the first time at once");
        assert_eq!(second, ConnectionState::Offline);
        assert!(later.is_some_and(|ms| ms >= floor && ms <= floor.max(1000)), "{code}: {later:?}");
    }
    let mut machine = WebSocketSpec::new(format!("ws://127.0.0.1:{}/terminate", peer.port)).machine();
    let (mut transport, _remote) = open(&mut *machine, None).await.unwrap();
    let (_, end) = read(&mut *machine, &mut transport, usize::MAX).await;
    assert_eq!(end.unwrap().code, None);
}

#[tokio::test]
async fn pieces_of_ws_are_one_message_and_its_long_ones_end_the_connection() {
    let Some(peer) = start("ws.js") else { return };
    let spec = |path: &str| WebSocketSpec {
        max_message: 1000,
        ..WebSocketSpec::new(format!("ws://127.0.0.1:{}/{path}", peer.port))
    };
    let mut machine = spec("pieces").machine();
    let (mut transport, _remote) = open(&mut *machine, None).await.unwrap();
    assert_eq!(read(&mut *machine, &mut transport, usize::MAX).await.0, [json!({ "text": "in pieces" })]);
    let mut machine = spec("long/1001").machine();
    let (mut transport, _remote) = open(&mut *machine, None).await.unwrap();
    assert_eq!(read(&mut *machine, &mut transport, usize::MAX).await.1.unwrap().code, Some(1009));
}

#[tokio::test]
async fn a_ws_server_that_answers_no_ping_shows_life_by_what_it_sends() {
    let Some(peer) = start("ws.js") else { return };
    let mut machine = WebSocketSpec::new(format!("ws://127.0.0.1:{}/pings", peer.port)).machine();
    let (mut transport, remote) = open(&mut *machine, None).await.unwrap();
    assert!(remote.send(Outgoing::Ping));
    let (messages, end) = read(&mut *machine, &mut transport, 1).await;
    assert_eq!((messages, end), (vec![json!({ "ping": 1 })], None), "a ping came, and no pong");
}

#[tokio::test]
async fn websockets_agrees_on_a_subprotocol_takes_what_is_sent_and_closes_with_a_code() {
    let Some(peer) = start("websocket.py") else { return };
    let spec = WebSocketSpec {
        subprotocols: vec!["other".into(), "json.v1".into()],
        ..WebSocketSpec::new(format!("ws://127.0.0.1:{}/feed?x=1", peer.port))
    };
    let mut machine = spec.machine();
    let (mut transport, remote) = open(&mut *machine, None).await.unwrap();
    assert!(remote.send(Outgoing::Text("[7]".into())));
    let (messages, end) = read(&mut *machine, &mut transport, usize::MAX).await;
    let told = |n: u64| json!({ "n": n, "path": "/feed?x=1", "protocol": "json.v1" });
    assert_eq!(messages, [told(1), told(2), json!({ "echo": [7] })]);
    let end = end.unwrap();
    assert_eq!((end.code, end.reason.as_str()), (Some(4321), "enough"));
}

#[tokio::test]
async fn the_stream_of_sse_starlette_is_read_and_resumed() {
    let Some(peer) = start("sse.py") else { return };
    let mut machine =
        Sse::new(SseSpec { dense: true, ..SseSpec::new(format!("http://127.0.0.1:{}/events", peer.port)) });
    let mut position = None;
    for first in [1, 4] {
        let (mut transport, _remote) = open(&mut machine, position.as_ref()).await.unwrap();
        let (messages, end) = read(&mut machine, &mut transport, 3).await;
        assert_eq!(end, None);
        let expected: Vec<Value> = (first..first + 3)
            .map(|n| json!({ "type": "number", "id": n.to_string(), "data": { "n": n, "text": "ü" } }))
            .collect();
        assert_eq!(messages, expected);
        position = Some(Position::Seq { epoch: "".into(), offset: first + 2 });
        // Then only comments come, which are life and nothing else.
        let (frames, end) = transport.next().await;
        let mut out = Vec::new();
        frames.into_iter().for_each(|frame| machine.on_frame(Time(1), frame, &mut out));
        assert_eq!((out, end), (vec![], None));
    }
}

#[tokio::test]
async fn signatures_of_the_pusher_library_are_handed_on_as_they_are() {
    let Some(peer) = start("pusher.js") else { return };
    let auth =
        AuthSpec { endpoint: format!("http://127.0.0.1:{}/", peer.port), headers: vec![], parallel: 4 };
    let mut machine =
        Pusher::new(PusherSpec { auth: Some(auth), ..PusherSpec::new("278d425bdf160c739803", "h") });
    let wanted = ["private-foobar", "presence-foobar", "private-encrypted-foobar"];
    let wanted: Channels = wanted.into_iter().map(std::sync::Arc::from).collect();
    let mut out = Vec::new();
    machine.set_channels(&wanted, &mut out);
    machine.on_open(Time(1), &Head::default(), &mut out);
    let greeting = json!({ "event": "pusher:connection_established", "data": { "socket_id": "1234.1234" } });
    machine.on_frame(Time(1), Frame::Text(greeting.to_string().into()), &mut out);
    let mut subscriptions = std::collections::BTreeMap::new();
    for item in std::mem::take(&mut out) {
        let Out::Call(asked) = item else { continue };
        let result = call(&HttpClient::default(), &asked).await;
        machine.on_frame(Time(1), Frame::Answer(Answer { call: asked.id, result }), &mut out);
        let Some(Out::Send(Outgoing::Hidden(sent))) = out.pop() else { panic!("{out:?}") };
        let sent: Value = serde_json::from_str(sent.reveal()).unwrap();
        subscriptions.insert(sent["data"]["channel"].as_str().unwrap().to_owned(), sent["data"].clone());
    }
    let key = "278d425bdf160c739803";
    let signed = |signature: &str| json!(format!("{key}:{signature}"));
    assert_eq!(
        subscriptions["private-foobar"]["auth"],
        signed("58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4")
    );
    let who = &subscriptions["presence-foobar"];
    assert_eq!(who["channel_data"], json!(r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#));
    assert_eq!(who["auth"], signed("31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80"));
    // The secret of an encrypted channel stays here.
    assert_eq!(subscriptions["private-encrypted-foobar"].as_object().unwrap().len(), 2);
}

/// Carries out what the machine wishes until it has made so many messages, or the connection ends.
async fn converse(machine: &mut GraphQl, messages: usize) -> (Vec<Value>, Option<CloseAction>) {
    let (mut transport, remote) = match open(machine, None).await {
        Ok(opened) => opened,
        Err(close) => return (Vec::new(), Some(machine.on_close(&close))),
    };
    let mut out = Vec::new();
    let mut found = Vec::new();
    machine.on_open(Time::ZERO, &transport.head(), &mut out);
    loop {
        for item in out.drain(..) {
            match item {
                Out::Send(frame) => assert!(remote.send(frame)),
                Out::Message { value, .. } => found.push(value),
                Out::Unusable(why) => found.push(json!({ "unusable": why })),
                _ => {}
            }
        }
        if found.len() >= messages {
            return (found, None);
        }
        let (frames, end) = transport.next().await;
        frames.into_iter().for_each(|frame| machine.on_frame(Time::ZERO, frame, &mut out));
        if let Some(close) = end {
            return (found, Some(machine.on_close(&close)));
        }
    }
}

#[tokio::test]
async fn graphql_ws_accepts_the_right_token_and_sends_what_is_subscribed() {
    let Some(peer) = start("graphql.js") else { return };
    let spec = |token: &str, query: &str| {
        let variables = serde_json::Map::from_iter([("upto".to_owned(), json!(3))]);
        let operation = Operation { query: query.to_owned(), variables };
        GraphQlSpec {
            init: vec![("token".into(), Secret::new(token))],
            operations: [(std::sync::Arc::from("numbers"), operation)].into(),
            ..GraphQlSpec::new(format!("ws://127.0.0.1:{}/", peer.port))
        }
    };
    let count = "subscription ($upto: Int!) { count(upto: $upto) }";
    let (messages, end) = converse(&mut GraphQl::new(spec("right", count)), 3).await;
    let told = |n: u64| json!({ "type": "numbers", "data": { "count": n } });
    assert_eq!((messages, end), (vec![told(1), told(2), told(3)], None));
    let (messages, _) = converse(&mut GraphQl::new(spec("right", "subscription { nothing }")), 1).await;
    let why = messages[0]["unusable"].as_str().unwrap();
    assert!(why.contains("the subscription \"numbers\" is refused") && why.contains("nothing"), "{why}");
    let (messages, end) = converse(&mut GraphQl::new(spec("wrong", count)), 1).await;
    assert!(
        messages.is_empty() && matches!(&end, Some(CloseAction::Stop(why)) if why.contains("4403")),
        "{end:?}"
    );
}
